"""Segments: how records lie in a file.

::

    messages/{channel}/{origin}.{incarnation}.{priority}.{first seq}.log

    5f3b9c01 {"id":"…","timestamp":…,"type":…,"from":…,"payload":…,"origin":"…","inc":1,"seq":7}\n
    └─crc32─┘└────────────────────────────── wire JSON ─────────────────────────────────────────┘

Only its origin appends to a segment, and it never shrinks.  A line without its newline is torn: not yet, or never, a
record.  A line whose checksum is wrong costs that one record.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from lemegeton.checksum import crc32
from lemegeton.lane import Lane, lane_token

SUFFIX = ".log"
LINE_OVERHEAD = 512
"""What checksum, id, origin, incarnation and sequence add to a message, at the most."""


NUMBER_MAX = 2**62
"""Sequences and incarnations stay far below what eight bytes hold."""

_ORIGIN = re.compile(r"[A-Za-z0-9_%~-]{1,160}")
"""What an origin is made of: it goes into wire JSON as it is, and a row of a checkpoint has room for no more of it."""


def is_origin(text: str) -> bool:
    """True for what can be the name of an origin."""
    return _ORIGIN.fullmatch(text) is not None


class SegmentName(NamedTuple):
    """What the file name of a segment says."""

    origin: str
    inc: int
    priority: int
    first: int

    def __str__(self) -> str:
        return f"{self.origin}.{self.inc}.{self.priority}.{self.first}{SUFFIX}"


@lru_cache(maxsize=4096)
def parse_segment_name(name: str) -> SegmentName | None:
    """The parts of a segment's file name; None for any other file."""
    parts = name.split(".")
    if len(parts) != 5 or parts[4] != "log" or not is_origin(parts[0]):
        return None
    try:
        found = SegmentName(parts[0], int(parts[1]), int(parts[2]), int(parts[3]))
    except ValueError:
        return None
    known = 0 < found.first < NUMBER_MAX and 0 < found.inc < NUMBER_MAX and 0 <= found.priority <= 3
    return found if known and str(found) == name else None


class Framer:
    """Makes the lines of one lane.

    The position is spliced into the encoded message, so that a message is encoded once, before it has a number.
    """

    __slots__ = ("_made", "_tail")

    def __init__(self, lane: Lane) -> None:
        self._made = b'{"id":"%s-%%x",%%b,"origin":"%s","inc":%d,"seq":%%d}' % (
            lane_token(lane).encode(), lane.origin.replace("%", "%%").encode(), lane.inc)
        self._tail = b',"origin":"%s","inc":%d,"seq":%%d}' % (lane.origin.replace("%", "%%").encode(), lane.inc)

    def line(self, body: bytes, seq: int, made: bool) -> bytes:
        """The line of record ``seq``; ``body`` is a JSON object without position, and without id if ``made``."""
        wire = self._made % (seq, body[1:-1], seq) if made else body[:-1] + self._tail % seq
        return b"%08x %b\n" % (crc32(wire), wire)

    def blank(self, form: bytes) -> bytes:
        """`line` of a form (`codec.form_of`), without checksum: ``% (seq, timestamp, payload, seq)`` fills it."""
        return self._made.replace(b"%b", form[1:-1], 1)

    def body(self, wire: bytes, seq: int, made: bool = False) -> bytes:
        """What `line` was given; of a record that has to move to another place the id is in it, unless it was ``made``."""
        begin = b"{" + wire[len(self._made[: self._made.index(b"%b")] % seq) :] if made else wire
        return begin[: -len(self._tail % seq)] + b"}"


def parse_line(line: bytes) -> bytes | None:
    """The wire JSON of a line without its newline; None if its checksum is wrong."""
    wire = line[9:]
    return wire if line[:9] == b"%08x " % crc32(wire) else None
