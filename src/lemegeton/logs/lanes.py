"""What the writer knows of a record on its way and of a lane it writes to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import msgspec

from lemegeton.errors import LogError
from lemegeton.lane import Lane
from lemegeton.logs.base import Form, Position
from lemegeton.logs.segments import Segment, sequence_of
from lemegeton.seams import Fs
from lemegeton.segment import Framer


class Entry(msgspec.Struct, eq=False):
    """A record on its way into a write.  Afterwards it has either the ``segment`` it lies in or an ``error``.

    ``done`` is what its sender waits for: its position once it is written or, with ``disk``, on disk."""

    made: bool
    lane: Lane
    seq: int
    line: bytes
    disk: bool = False
    segment: Segment | None = None
    error: LogError | None = None
    done: asyncio.Future[Position] | None = None


def answer(entries: Iterable[Entry], error: LogError | None = None) -> None:
    """Wake the senders of entries; ``error`` is of those that are written and did not get further."""
    for entry in entries:
        done = entry.done
        if done is not None and not done.done():
            failed = error or entry.error
            if failed is None:
                done.set_result(Position(entry.lane, entry.seq))
            else:
                done.set_exception(failed)
                done.exception()  # heard: a sender that is cancelled now does not ask any more


class LaneWriter:
    """One lane that is written to: its current segment (None: a new one is due) and the next sequence.

    ``checked`` and ``checked_size`` are the next sequence and the size when the segment was last seen under its name.
    ``after`` is what the first record of an incarnation says of the one before it, as JSON.  ``blank`` is the last
    ``form``, framed.
    """

    __slots__ = ("after", "blank", "checked", "checked_size", "form", "framer", "lane", "next", "segment")

    def __init__(self, lane: Lane, following: int, segment: Segment | None, after: bytes = b"") -> None:
        self.segment = segment
        self.after = after
        self.begin(lane, following)
        self.checked_size = segment.size if segment is not None else 0

    form: Form | None
    blank: bytes

    def begin(self, lane: Lane, following: int) -> None:
        """Go on in this lane with this sequence."""
        self.lane = lane
        self.framer = Framer(lane)
        self.form, self.blank = None, b""
        self.next = self.checked = following
        self.checked_size = 0

    def go_on(self, lane: Lane, first: int, entries: Sequence[Entry]) -> None:
        """Number the entries from ``first`` on in this lane, and what comes after them behind."""
        bodies = [self.framer.body(entry.line[9:-1], entry.seq, entry.made) for entry in entries]
        self.begin(lane, first + len(entries))
        self.checked = first
        for seq, (entry, body) in enumerate(zip(entries, bodies, strict=True), first):
            entry.lane, entry.seq, entry.line = lane, seq, self.line(body, seq, entry.made)

    def line(self, body: bytes, seq: int, made: bool) -> bytes:
        """The line of record ``seq``; the first of an incarnation says what was before."""
        if self.after:
            body = b'%b,"after":%b}' % (body[:-1], self.after)
            self.after = b""
        return self.framer.line(body, seq, made)

    def fit(self, form: Form) -> bytes:
        """The framed form, kept for the next record: a sender gives one and the same again."""
        self.form, self.blank = form, self.framer.blank(form.body)
        return self.blank


def records_since(fs: Fs, writer: LaneWriter, segment: Segment) -> list[Entry]:
    """The records since the last check, read from the descriptor: a removed file lives as long as that is open."""
    data = fs.pread(segment.fd, segment.size - writer.checked_size, writer.checked_size)
    entries: list[Entry] = []
    for line in data.split(b"\n")[:-1]:
        seq = sequence_of(line, writer.lane)  # not counted: lines may be damaged, or be there a second time
        if seq is not None and seq >= writer.checked:
            entries.append(Entry(False, writer.lane, seq, line + b"\n"))
    return entries
