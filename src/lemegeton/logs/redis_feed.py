"""The feed: what this process knows of one channel in a Redis.

Doorbells carry messages, and a stream holds them all; both come through here, so that a reader asks one place.  What is
kept are the last consecutive records of each lane, so many bytes of them in all.  Whatever does not fit is dropped: it
is in the stream.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from lemegeton.lane import Lane
from lemegeton.logs.base import Found

LANE_BYTES = 512 * 1024
"""How much of one lane is kept for readers that are not far behind."""
ALL_BYTES = 32 * 1024 * 1024
MARKER_BYTES = 64


@dataclass(slots=True)
class Kept:
    """Consecutive records of a lane, the first of which has the sequence ``first``."""

    first: int
    following: int
    records: list[tuple[int, int, Found]] = field(default_factory=list)
    """First and last sequence that each stands for, and what it is."""
    bytes: int = 0


class Shelf:
    """The kept records of every lane of a Redis; the lane that got nothing for longest gives way."""

    def __init__(self, lane_bytes: int = LANE_BYTES, all_bytes: int = ALL_BYTES) -> None:
        self._lane_bytes = lane_bytes
        self._all_bytes = all_bytes
        self._kept: OrderedDict[Lane, Kept] = OrderedDict()
        self._bytes = 0

    def put(self, lane: Lane, first: int, through: int, record: Found) -> None:
        """Keep what comes next in its lane.  A copy is dropped; behind a hole it begins anew."""
        kept = self._kept.get(lane)
        if kept is not None and through < kept.following:
            return
        if kept is None or first > kept.following:
            self._drop(lane)
            kept = self._kept[lane] = Kept(first, first)
        self._kept.move_to_end(lane)
        kept.records.append((first, through, record))
        kept.following = through + 1
        size = _size(record)
        kept.bytes += size
        self._bytes += size
        if kept.bytes > self._lane_bytes:
            self._halve(kept)
        if self._bytes > self._all_bytes:
            self._drop(next(iter(self._kept)))

    def follow(self, lane: Lane, seq: int, record: Found) -> None:
        """Keep what comes next in a lane whose sequence has holes."""
        kept = self._kept.get(lane)
        self.put(lane, seq if kept is None else min(seq, kept.following), seq, record)

    def first(self, lane: Lane) -> int | None:
        """The first sequence that is kept of a lane."""
        kept = self._kept.get(lane)
        return None if kept is None else kept.first

    def _halve(self, kept: Kept) -> None:
        gone = kept.records[: (len(kept.records) + 1) // 2]
        del kept.records[: len(gone)]
        size = sum(_size(record) for *_, record in gone)
        kept.bytes -= size
        self._bytes -= size
        kept.first = gone[-1][1] + 1

    def _drop(self, lane: Lane) -> None:
        kept = self._kept.pop(lane, None)
        if kept is not None:
            self._bytes -= kept.bytes

    def take(self, lane: Lane, after: int, limit: int) -> tuple[list[Found], int]:
        """Up to ``limit`` bytes of what is kept behind ``after``, and the last sequence of that."""
        kept = self._kept.get(lane)
        if kept is None or not kept.first <= after + 1 < kept.following:
            return [], after
        found: list[Found] = []
        size = 0
        for at in range(bisect_left(kept.records, after + 1, key=_through), len(kept.records)):
            _, through, record = kept.records[at]
            size += _size(record)
            if found and size > limit:
                break
            found.append(record)
            after = through
        return found, after

    def clear(self) -> None:
        """Nothing of it may be true any more."""
        self._kept.clear()
        self._bytes = 0


def _size(record: Found) -> int:
    return len(record) if isinstance(record, bytes) else MARKER_BYTES


def _through(kept: tuple[int, int, Found]) -> int:
    return kept[1]


class Asked(NamedTuple):
    """A request to send again: from which sequence, since when it is missed, and when it was asked for last (seconds)."""

    first: int
    since: float
    at: float


class Hole(NamedTuple):
    """What the stream lacks behind a reader, up to ``through``; what is sent again was read up to the id ``place``."""

    through: int
    place: int


@dataclass(slots=True)
class Feed:
    """One channel: the marks of its lanes as last seen, and what this site waits to be sent again."""

    channel: str
    marks: dict[Lane, int] = field(default_factory=dict)
    asked: dict[Lane, Asked] = field(default_factory=dict)
    holes: dict[Lane, Hole] = field(default_factory=dict)
    foreign_at: bytes = b""
    """The last id behind which foreign entries were looked for."""
    heralded: set[Lane] = field(default_factory=set)
    """Lanes that only the first record of a later one names, and that nobody was told of yet."""
    contact: dict[Lane, int] = field(default_factory=dict)
    """The marks when this channel was first seen: a lane that is not here began later."""
    met: bool = False
    """The marks were read ever."""
    seen: bool = False
    """The marks were read since the link came up."""

    def note(self, lane: Lane, seq: int) -> bool:
        """A record with this sequence exists; true if the lane is new."""
        known = self.marks.get(lane)
        if known is None or seq > known:
            self.marks[lane] = seq
        return known is None

    def herald(self, lane: Lane, after: tuple[str, int, int] | None) -> bool:
        """The first record of ``lane`` says which one comes before it; true while that has yet to be told to readers.

        Its sender may have died before it was relayed, and the Redis then knows only the later one."""
        if after is None or after[0] != lane.origin or after[1] >= lane.inc or not after[2]:
            return False
        before = lane._replace(inc=after[1])
        if before not in self.marks:
            self.marks[before] = after[2]
            self.heralded.add(before)
            if lane in self.contact:  # both were there before us: what came before is owed as far as the stream has it
                self.contact[before] = after[2]
        return before in self.heralded
