"""What the writer knows of a record on its way and of a lane it writes to."""

from __future__ import annotations

import asyncio

from lemegeton.errors import LogError
from lemegeton.lane import Lane
from lemegeton.logs.segments import Segment
from lemegeton.segment import Framer


class Entry:
    """A record on its way into a write.  Afterwards it has either the ``segment`` it lies in or an ``error``."""

    __slots__ = ("body", "done", "error", "lane", "line", "made", "segment", "seq")

    def __init__(self, body: bytes, made: bool, lane: Lane, seq: int, line: bytes) -> None:
        self.body = body
        self.made = made
        self.lane = lane
        self.seq = seq
        self.line = line
        self.segment: Segment | None = None
        self.error: LogError | None = None
        self.done: asyncio.Future[None] | None = None


class LaneWriter:
    """One lane that is written to: its current segment (None: a new one is due) and the next sequence.

    ``checked`` and ``checked_size`` are the next sequence and the size when the segment was last seen under its name.
    """

    __slots__ = ("checked", "checked_size", "framer", "lane", "next", "segment")

    def __init__(self, lane: Lane, following: int, segment: Segment | None) -> None:
        self.segment = segment
        self.begin(lane, following)
        self.checked_size = segment.size if segment is not None else 0

    def begin(self, lane: Lane, following: int) -> None:
        """Go on in this lane with this sequence."""
        self.lane = lane
        self.framer = Framer(lane)
        self.next = self.checked = following
        self.checked_size = 0
