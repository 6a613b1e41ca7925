"""The checksum is that of zlib, whichever library makes it."""

from __future__ import annotations

import subprocess
import sys
import zlib

from hypothesis import given
from hypothesis import strategies as st

from lemegeton.checksum import crc32


@given(st.binary(max_size=2000))
def test_it_is_that_of_zlib(data: bytes) -> None:
    assert crc32(data) == zlib.crc32(data)


def test_without_the_fast_library_zlib_does_it() -> None:
    code = ("import sys; sys.modules['deflate'] = None; import zlib; from lemegeton.checksum import crc32; "
            "assert crc32 is zlib.crc32")
    subprocess.run([sys.executable, "-c", code], check=True)
