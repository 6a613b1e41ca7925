"""The relay: copies lanes of this site's log to a replica, and notices whatever the replica forgets.

A lane has one place here and one mark there.  The replica takes only the next sequence, so an empty restart, a stale
failover or an eviction shows itself as a mark below the place, and the relay goes back to it: the log is the truth, the
replica a copy.  Any number of relays may copy the same lane; what one has brought, the others skip.

Some offers of a lane are under way at once; each is only taken where the one before was: order needs no answer in between.

::

    offer from next ──OK mark───► next := mark + 1                     (a repeat answers OK as well)
                    ──GAP mark──► next := mark + 1, or the oldest record there is, offered as the base
                    ──error─────► unknown: the next round asks for the mark first
    a mark that is not a record of ours, same sequence and checksum ──► fork: nothing is offered

Records that expired on the way, and those the log lost, are offered as markers: a sequence is never left open.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from lemegeton.checksum import crc32
from lemegeton.codec import Head, head_of
from lemegeton.errors import InvalidMessage, PositionLost
from lemegeton.events import LaneForked, Observer
from lemegeton.lane import Lane
from lemegeton.logs.base import GONE, READ_BYTES, SKIP, Answer, Batch, Cursor, Found, Item, Log, Mark, Marker, Replica

OFFER_BYTES = 32 * 1024
"""How much one call offers: large enough to be cheap, small enough that the answer of a slow link comes in time."""
FLIGHTS_MAX = 4
SEEKS_MAX = 3


class Told(Protocol):
    """The highest sequence of a lane that any replica ever accepted: up to there everybody who listens was told."""

    def get(self, lane: Lane) -> int: ...
    def put(self, lane: Lane, seq: int) -> None: ...


@dataclass(slots=True)
class Place:
    """Where the relay is in a lane: the next sequence to offer, the log's cursor before it, whether it is the oldest."""

    next: int
    cursor: Cursor | None = None
    base: bool = False


class Flight(NamedTuple):
    """An offer that is under way: its answer, the last item, the log's cursor behind it, whether there is more, and whether
    it begins a place."""

    answer: Awaitable[Answer]
    last: Item
    cursor: Cursor
    more: bool
    begins: bool


class Relay:
    """Copies a lane when `copy` is called; safe to stop, to repeat and to run beside others at any point."""

    def __init__(
        self, log: Log, replica: Replica, told: Told, observe: Observer, *, wall_ms: Callable[[], int],
        forked: Callable[[Lane], None] = lambda _: None
    ) -> None:
        self._log = log
        self._replica = replica
        self._told = told
        self._observe = observe
        self._wall_ms = wall_ms
        self._forked = forked
        self._places: dict[Lane, Place] = {}

    def forget(self) -> None:
        """The replica may be another one, or not remember: every lane asks for its mark again."""
        self._places.clear()

    async def copy(self, lane: Lane) -> int:
        """Bring the replica what it lacks of a lane; the last sequence that it has now.

        The first call for a lane, and each one after an error, asks for the mark.  Errors of the replica go to the
        caller: what was under way may have arrived."""
        flights: deque[Flight] = deque()
        try:
            place = self._places.get(lane) or await self.probe(lane)
            while place is not None:
                await self._offer(lane, place, flights)
                if not flights:
                    return place.next - 1
                last = flights[-1]
                place = await self._land(lane, place, flights)
                if place is not None and place.next > last.last.through and not last.more:
                    return place.next - 1  # what came meanwhile has marked the lane again
            return 0
        except BaseException:
            self._places.pop(lane, None)
            for flight in flights:
                assert isinstance(flight.answer, asyncio.Future), "whatever is awaited as it is goes alone"
                flight.answer.cancel()
                flight.answer.add_done_callback(_unheard)
            raise

    async def _offer(self, lane: Lane, place: Place, flights: deque[Flight]) -> None:
        """Have offers under way: those behind the first spare the replica waiting for us.

        Whatever becomes of one, the next is only taken behind it.  What begins a place goes alone."""
        while len(flights) < FLIGHTS_MAX and (not flights or (flights[-1].more and not flights[-1].begins)):
            ahead = Place(flights[-1].last.through + 1, flights[-1].cursor) if flights else place
            begins = ahead.cursor is None
            items, batch = await self._next(lane, ahead)
            if not items or (flights and ahead.base):
                return
            call = self._replica.accept(lane, items, base=ahead.base, told=self._told.get(lane))
            # The usual one, alone, is awaited as it is: a task would begin a turn of the loop later.
            answer = asyncio.ensure_future(call) if flights or (batch.more and not begins) else call
            flights.append(Flight(answer, items[-1], batch.cursor, batch.more, begins))

    async def _land(self, lane: Lane, place: Place, flights: deque[Flight]) -> Place | None:
        """The answer to the first offer that is under way."""
        flight = flights.popleft()
        answer = await flight.answer
        if not answer.gap and answer.mark == Mark(flight.last.through, _checksum(flight.last)):
            place.next, place.cursor, place.base = flight.last.through + 1, flight.cursor, False
            self._told.put(lane, flight.last.through)
            return place
        while flights:  # the mark may have moved since
            answer = await flights.popleft().answer
        return await self._from_mark(lane, answer.mark)

    async def probe(self, lane: Lane) -> Place | None:
        """Go on from the replica's mark; None if that is a fork.

        Called after a reconnect, and now and then, because a replica may forget while nobody sends."""
        return await self._from_mark(lane, (await self._replica.accept(lane, ())).mark)

    async def _from_mark(self, lane: Lane, mark: Mark) -> Place | None:
        if mark.seq and not await self._is_ours(lane, mark):
            self._places.pop(lane, None)
            self._observe(LaneForked(lane, mark.seq, "the replica's mark is not a record of this log"))
            self._forked(lane)
            return None
        self._told.put(lane, mark.seq)
        place = self._places.get(lane)
        if place is None or place.next != mark.seq + 1:
            place = self._places[lane] = Place(mark.seq + 1)
        return place

    async def _is_ours(self, lane: Lane, mark: Mark) -> bool:
        """True if the record at the mark is in our log.  One that was trimmed was settled by all, so it was ours."""
        span = await self._log.span(lane)
        if mark.seq < span.first:
            return True
        known = mark.seq <= span.last
        after = mark.seq - 1 if known else max(span.first, span.last) - 1  # bad lines at the end are not in the span
        try:
            batch = await self._log.read(lane, await self._log.seek(lane, after), 1 if known else READ_BYTES)
        except PositionLost:
            return True
        found = batch.records[mark.seq - after - 1 :]
        if not found:
            return known
        head = _head(lane, found[0])
        if not mark.crc or head is None or head.seq != mark.seq:
            return True  # damaged, or lost with one that a power cut took: what lies there cannot tell
        assert isinstance(found[0], bytes), "only a record has a head"
        return crc32(found[0]) == mark.crc

    # ------------------------------------------------------------------------------------------ what to offer

    async def _next(self, lane: Lane, place: Place) -> tuple[list[Item], Batch]:
        """The next consecutive items of a lane, and the batch that they end."""
        for _ in range(SEEKS_MAX):
            try:
                cursor = place.cursor or await self._log.seek(lane, place.next - 1)
                while (batch := await self._log.read(lane, cursor, OFFER_BYTES)).records:
                    items = items_of(lane, place.next, batch.records, self._wall_ms())
                    if items:
                        return items, batch
                    cursor = batch.cursor  # damage, copies: what they were shows when a record comes behind them
                return [], batch
            except PositionLost as lost:
                place.cursor = None
                if lost.first <= place.next or lost.last < lost.first:
                    break
                place.next, place.base = lost.first, True
        return [], Batch((), (0, 0))


def items_of(lane: Lane, following: int, records: Sequence[Found], now_ms: int) -> list[Item]:
    """What follows ``following`` in these records of a lane, consecutive: holes and expired records as markers."""
    items: list[Item] = []
    for record in records:
        head = _head(lane, record)
        if head is None or head.seq < following:
            continue
        assert isinstance(record, bytes), "only a record has a head"
        if head.seq > following:
            items.append(_marked(GONE, following, head.seq - 1))
        if head.ttl is None or head.timestamp + head.ttl >= now_ms or head.said_after is not None:
            # The first of an incarnation goes out whatever became of it: it says where the one before ends.
            items.append(Item(head.seq, head.seq, record))
        elif items and isinstance(before := items[-1].record, Marker) and before.kind == SKIP:
            items[-1] = _marked(SKIP, before.first, head.seq)
        else:
            items.append(_marked(SKIP, head.seq, head.seq))
        following = head.seq + 1
    return items


def _unheard(answer: asyncio.Future[Answer]) -> None:
    """Nobody waits for it any more, and its error is no news."""
    if not answer.cancelled():
        answer.exception()


def _marked(kind: str, first: int, through: int) -> Item:
    return Item(first, through, Marker(kind, first, through))


def _checksum(item: Item) -> int:
    return crc32(item.record) if isinstance(item.record, bytes) else 0


def _head(lane: Lane, record: Found) -> Head | None:
    """The head of a record of this lane; None for anything else."""
    if not isinstance(record, bytes):
        return None
    try:
        head = head_of(record)
    except InvalidMessage:
        return None
    return head if (head.origin, head.inc) == (lane.origin, lane.inc) else None
