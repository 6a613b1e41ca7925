"""The memory log: the whole contract in one process, for tests, for the test bus and as a relay's replica."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lemegeton.checksum import crc32
from lemegeton.errors import BusClosed, LogError, PositionLost
from lemegeton.lane import Lane
from lemegeton.logs.base import READ_BYTES, Answer, Batch, Cursor, Form, Found, Item, Mark, Marker, Placed, Position, Ring, Span
from lemegeton.segment import Framer, parse_line


class MemoryStore:
    """What several memory logs share: the lanes and who listens.  It plays the directory."""

    def __init__(self) -> None:
        self.lanes: dict[Lane, MemoryLane] = {}
        self.rings: list[tuple[str | None, Ring]] = []
        self.origins = 0

    def lane(self, lane: Lane) -> MemoryLane:
        """The lane, made if it is new."""
        new_channel = all(known.channel != lane.channel for known in self.lanes)
        if lane not in self.lanes:
            self.lanes[lane] = MemoryLane()
            self.ring(lane.channel, None, new_channel)
        return self.lanes[lane]

    def ring(self, channel: str, lane: Lane | None, new_channel: bool = False) -> None:
        """Tell everybody who listens."""
        for wanted, ring in list(self.rings):
            if wanted == channel or (wanted is None and new_channel):
                ring(channel, lane)


class MemoryLane:
    """The records of a lane: ``records[0]`` has the sequence ``first``."""

    def __init__(self) -> None:
        self.first = 1
        self.records: list[bytes | Marker] = []

    @property
    def span(self) -> Span:
        return Span(self.first, self.first + len(self.records) - 1)


class MemoryLog:
    """A log of one origin over a shared `MemoryStore`; keeps everything until trimmed, loses it with the process."""

    rings = True

    def __init__(self, name: str = "memory", store: MemoryStore | None = None, *, bytes_max: int = 1024 * 1024) -> None:
        self._store = store if store is not None else MemoryStore()
        self._bytes_max = bytes_max
        self._origin = f"{name}~memory~{self._store.origins}"
        self._store.origins += 1
        self._framers: dict[Lane, Framer] = {}
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise BusClosed("memory log: used after aclose")

    def append_now(self, form: Form, stamp_ms: int, payload: bytes, disk: bool = False) -> Placed:
        return None

    async def append(
        self, channel: str, body: bytes, priority: int = 1, *, made: bool = True, disk: bool = False
    ) -> Position:
        self._check_open()
        if len(body) > self._bytes_max:
            raise LogError(f"memory log: append to {channel}: {len(body)} bytes, at most {self._bytes_max}")
        lane = Lane(channel, self._origin, 1, priority)
        kept = self._store.lane(lane)
        framer = self._framers.get(lane)
        if framer is None:
            framer = self._framers[lane] = Framer(lane)
        seq = kept.span.last + 1
        wire = parse_line(framer.line(body, seq, made)[:-1])
        assert wire is not None, "a line just framed has the checksum it was framed with"
        kept.records.append(wire)
        self._store.ring(channel, lane)
        return Position(lane, seq)

    async def channels(self) -> Sequence[str]:
        self._check_open()
        return sorted({lane.channel for lane in self._store.lanes})

    async def lanes(self, channel: str) -> Sequence[Lane]:
        self._check_open()
        return sorted(lane for lane in self._store.lanes if lane.channel == channel)

    def _lane(self, lane: Lane) -> MemoryLane:
        self._check_open()
        kept = self._store.lanes.get(lane)
        if kept is None:
            raise PositionLost(f"memory log: {lane}: no such lane", first=1, last=0)
        return kept

    async def span(self, lane: Lane) -> Span:
        return self._lane(lane).span

    async def of_earlier_boot(self, lane: Lane) -> bool:
        self._check_open()
        return False

    async def seek(self, lane: Lane, after: int) -> Cursor:
        kept = self._lane(lane)
        if after + 1 < kept.first:
            raise PositionLost(f"memory log: {lane}: record {after + 1} is gone", first=kept.first, last=kept.span.last)
        return (after, 0)

    async def read(self, lane: Lane, cursor: Cursor, limit: int = READ_BYTES) -> Batch:
        kept = self._lane(lane)
        at = cursor[0]
        if at + 1 < kept.first:
            raise PositionLost(f"memory log: {lane}: record {at + 1} is gone", first=kept.first, last=kept.span.last)
        found: list[Found] = []
        size = 0
        for record in kept.records[at + 1 - kept.first :]:
            size += len(record)
            if found and size > limit:
                break
            found.append(record)
        return Batch(found, (at + len(found), 0))

    async def trim(self, lane: Lane, through: int) -> None:
        kept = self._lane(lane)
        gone = min(through, kept.span.last) - kept.first + 1
        if gone > 0:
            del kept.records[:gone]
            kept.first += gone

    async def ended(self, lane: Lane, later: Lane, settled: int) -> bool:
        return True

    def is_near(self, lane: Lane) -> bool:
        return True

    async def vanished(self, lane: Lane) -> bool:
        return lane not in self._store.lanes

    def listen(self, channel: str, ring: Ring) -> Callable[[], None]:
        return self._listen(channel, ring)

    def listen_new(self, globs: Sequence[str], ring: Ring) -> Callable[[], None]:
        return self._listen(None, ring)

    def _listen(self, channel: str | None, ring: Ring) -> Callable[[], None]:
        self._check_open()
        entry = (channel, ring)
        self._store.rings.append(entry)
        return lambda: self._store.rings.remove(entry) if entry in self._store.rings else None

    async def aclose(self) -> None:
        self._closed = True


class MemoryReplica:
    """A relay's target in memory: marks and records move together, as in the script that Redis runs."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.store = store if store is not None else MemoryStore()
        self.published: list[bytes] = []

    def mark(self, lane: Lane) -> Mark:
        """What it has of a lane."""
        kept = self.store.lanes.get(lane)
        if kept is None or not kept.records:
            return Mark(0, 0)
        last = kept.records[-1]
        return Mark(kept.span.last, crc32(last) if isinstance(last, bytes) else 0)

    async def accept(self, lane: Lane, items: Sequence[Item], *, base: bool = False, told: int = 0) -> Answer:
        mark = self.mark(lane)
        new = [item for item in items if item.through > mark.seq]
        if not new:
            return Answer(mark)
        if new[0].seq > mark.seq + 1 and not base:
            return Answer(mark, gap=True)
        kept = self.store.lane(lane)
        if new[0].seq > mark.seq + 1:
            kept.first, kept.records = new[0].seq, []
        for item in new:
            kept.records.extend([item.record] * (item.through - kept.span.last))
            if isinstance(item.record, bytes) and item.seq > told:
                self.published.append(item.record)
        self.store.ring(lane.channel, lane)
        return Answer(self.mark(lane))
