"""The scan: records that no doorbell brought, looked for in the streams of a Redis.

::

    behind the id where this lane was read last ──► from the stream's beginning ──► what was sent again ──► ask for it
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from lemegeton.codec import Head
from lemegeton.errors import InvalidMessage
from lemegeton.events import Observer, Refused
from lemegeton.lane import Lane
from lemegeton.logs.base import GONE, SKIP, Batch, Found, Marker
from lemegeton.logs.redis_entries import Entry, Keys, entry_of, lane_field
from lemegeton.logs.redis_feed import Asked, Feed, Hole, Shelf
from lemegeton.logs.redis_foreign import foreign_lane, is_sparse, placed, sequence_of_id
from lemegeton.logs.redis_link import Link, answered

CHUNK = 256
"""How many entries one XRANGE asks for."""
ASK_AGAIN_S = 5.0
CALL_S = 2.0
"""How long one answer is waited for; whoever waits comes back later."""
REPORTED_MAX = 1000

LaneOf = Callable[[str, Head], Lane | None]


class Scan:
    """Looks through streams; keeps no place, the reader's cursor is the place."""

    def __init__(
        self, link: Link, keys: Keys, site: str, shelf: Shelf, lane_of: LaneOf, observe: Observer,
        gap_timeout_s: float | None, bytes_max: int
    ) -> None:
        self.dataset = ""
        """Which life of this Redis its foreign entries belong to."""
        self._bytes_max = bytes_max
        self._gap_timeout_s = gap_timeout_s
        self._link = link
        self._keys = keys
        self._site = site
        self._shelf = shelf
        self._lane_of = lane_of
        self._observe = observe
        self._reported: dict[bytes, None] = {}

    async def find(self, feed: Feed, lane: Lane, after: int, ident: int, limit: int) -> Batch:
        """Records behind ``after``, or nothing and a request to send them again.

        While a hole is filled the stream is not looked through for every piece of it, only every 5 s without one."""
        hole, asked = feed.holes.pop(lane, None), feed.asked.get(lane)
        waits = asked is None or asyncio.get_running_loop().time() - asked.at < ASK_AGAIN_S
        if hole is not None and after < hole.through and waits:
            return await self._filled(feed, lane, after, ident, limit, hole)
        stream = self._keys.stream(lane.channel)
        places = [(stream, ident), (stream, 0)] if ident else [(stream, 0)]
        if lane in feed.asked:
            places.append((self._keys.resend(lane.channel, self._site), 0))
        higher = feed.marks.get(lane, 0) + 1
        for key, start in places:
            found, last, at, above = await self._consecutive(key, start, lane, after, limit)
            if found:
                feed.asked.pop(lane, None)
                return Batch(found, (last, at if key == stream else ident))
            higher = min(higher, above)
        if higher <= after + 1 or is_sparse(lane):
            return Batch((), (after, ident))
        return await self._missing(feed, lane, after, ident, Hole(higher - 1, 0))

    async def _filled(self, feed: Feed, lane: Lane, after: int, ident: int, limit: int, hole: Hole) -> Batch:
        """The next piece of a hole that was sent again, or a request for it."""
        key = self._keys.resend(lane.channel, self._site)
        found, last, at, _ = await self._consecutive(key, hole.place, lane, after, limit)
        if not found:
            return await self._missing(feed, lane, after, ident, hole)
        feed.asked.pop(lane, None)
        feed.holes[lane] = Hole(hole.through, at)
        return Batch(found, (last, ident))

    async def _missing(self, feed: Feed, lane: Lane, after: int, ident: int, hole: Hole) -> Batch:
        if await self._ask(feed, lane, after + 1, hole.through):
            return Batch((Marker(GONE, after + 1, hole.through),), (hole.through, ident))
        feed.holes[lane] = hole
        return Batch((), (after, ident))

    async def _consecutive(
        self, key: str, start: int, lane: Lane, after: int, limit: int
    ) -> tuple[list[Found], int, int, int]:
        """What follows ``after`` without a hole: the records, the last sequence, the id there, and the lowest above."""
        found: list[Found] = []
        size, at, above = 0, start, 2**62
        sparse = is_sparse(lane)
        async for entries in self.entries(lane.channel, key, start):
            for entry_lane, entry in entries:
                if entry_lane != lane:
                    if not is_sparse(entry_lane):
                        self._shelf.put(entry_lane, entry.head.seq, entry.through, found_in(entry))
                elif entry.head.seq > after + 1 and not sparse:
                    above = min(above, entry.head.seq)
                elif entry.through > after:
                    found.append(found_in(entry))
                    after, at, size = entry.through, id_number(entry.id), size + len(entry.wire)
            if size >= limit or (found and above < 2**62):
                break
        return found, after, at, above

    async def entries(self, channel: str, key: str, start: int = 0) -> AsyncIterator[Sequence[tuple[Lane, Entry]]]:
        """The entries of other sites behind an id, chunk by chunk; one that is no message is reported once."""
        while True:
            asked = self._link.call("XRANGE", key, id_text(start), "+", "COUNT", CHUNK)
            answer = await answered(asked, CALL_S, f"redis ({self._link.name}): {key}")
            chunk = []
            for raw in answer:
                if raw[1] is None:  # deleted between two steps of the server
                    continue
                try:
                    entry = entry_of(raw)
                    if not entry.head.origin:
                        entry = self.foreign(channel, entry)
                    lane = self._lane_of(channel, entry.head)
                except InvalidMessage as error:
                    self.report(channel, raw[0], str(error))
                    continue
                if lane is not None:
                    chunk.append((lane, entry))
            yield chunk
            if len(answer) < CHUNK:
                return
            start = id_number(answer[-1][0])

    def foreign(self, channel: str, entry: Entry) -> Entry:
        """An entry of some other program, in the place that its id gives it."""
        seq = sequence_of_id(entry.id)
        lane = foreign_lane(channel, self.dataset)
        wire = placed(entry.wire, lane, seq, self._bytes_max)
        return Entry(entry.id, Head(origin=lane.origin, inc=1, seq=seq), wire, seq)

    def report(self, channel: str, ident: bytes, cause: str) -> None:
        """An entry that is no message: said once."""
        if ident not in self._reported:
            self._reported[ident] = None
            while len(self._reported) > REPORTED_MAX:
                del self._reported[next(iter(self._reported))]
            self._observe(Refused(channel, f"redis entry {ident.decode('ascii', 'replace')}", "", cause))

    async def _ask(self, feed: Feed, lane: Lane, first: int, last: int) -> bool:
        """Ask the lane's site to send a range again, at most every 5 s; true once ``gap_timeout`` gives it up."""
        now = asyncio.get_running_loop().time()
        asked = feed.asked.get(lane)
        since = asked.since if asked is not None and asked.first == first else now
        if self._gap_timeout_s is not None and now - since >= self._gap_timeout_s:
            del feed.asked[lane]
            return True
        if asked is None or asked.first != first or now - asked.at >= ASK_AGAIN_S:
            feed.asked[lane] = Asked(first, since, now)
            field = f"{lane_field(lane)}|{self._site}"
            await self._link.call("HSET", self._keys.nacks(lane.channel), field, f"{first}-{last}")
            await self._link.call("PUBLISH", self._keys.control, f"q {lane.channel}")
        return False


def found_in(entry: Entry) -> Found:
    """What an entry is to a reader."""
    if entry.head.type in (SKIP, GONE) and entry.head.through:
        return Marker(entry.head.type, entry.head.seq, entry.through)
    return entry.wire


def id_number(ident: bytes) -> int:
    """A stream id as one number that keeps its order."""
    milliseconds, _, number = ident.partition(b"-")
    return int(milliseconds) << 64 | int(number)


def id_text(number: int) -> str:
    """The range that begins behind an id; 0 is the beginning."""
    return f"({number >> 64}-{number & (2**64 - 1)}" if number else "-"
