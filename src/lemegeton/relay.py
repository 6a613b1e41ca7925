"""The relay: copies lanes of this site's log to a replica, and notices whatever the replica forgets.

A lane has one cursor here and one mark there.  The replica takes only the next sequence, so an empty restart, a stale
failover or an eviction shows itself as a mark below the cursor, and the relay goes back to it: the log is the truth,
the replica a copy.  Any number of relays may copy the same lane; what one has brought, the others skip.

::

    send from cursor ──OK mark───► cursor := mark + 1                  (a repeat answers OK as well)
                     ──GAP mark──► cursor := mark + 1, or the oldest record there is, sent as the base
                     ──error─────► unknown: the next round asks for the mark first
    a mark that is not a record of ours, same sequence and checksum ──► fork: nothing is sent
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

from lemegeton.codec import decode
from lemegeton.errors import InvalidMessage
from lemegeton.events import LaneForked, Observer
from lemegeton.lane import Lane
from lemegeton.logs.base import Damage, Log, Mark, Replica

RECORDS_A_CALL = 100


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive records from sequence ``first`` on; ``base`` if no log has the one before."""

    first: int
    records: Sequence[bytes]
    base: bool


class Relay:
    """Copies a lane when `copy` is called; safe to stop, to repeat and to run beside others at any point."""

    def __init__(self, log: Log, replica: Replica, observe: Observer) -> None:
        self._log = log
        self._replica = replica
        self._observe = observe
        self._next: dict[Lane, int] = {}

    async def copy(self, lane: Lane) -> int:
        """Bring the replica what it lacks of a lane; the last sequence that it has now.

        The first call for a lane, and each one after an error, asks for the mark.  Errors of the replica go to the
        caller: what was under way may have arrived."""
        try:
            while lane not in self._next or (run := await self._read(lane, self._next[lane])).records:
                if lane not in self._next:
                    accepted = await self.probe(lane)
                else:
                    answer = await self._replica.accept(lane, run.first, run.records, base=run.base)
                    accepted = await self._adopt(lane, answer.mark)
                if not accepted:
                    return 0
        except BaseException:
            self._next.pop(lane, None)
            raise
        return self._next[lane] - 1

    async def probe(self, lane: Lane) -> bool:
        """Go on from the replica's mark; false if that is a fork.

        Called after a reconnect, and now and then, because a replica may forget while nobody sends."""
        return await self._adopt(lane, await self._replica.mark(lane))

    async def _adopt(self, lane: Lane, mark: Mark) -> bool:
        if mark.seq and not await self._is_ours(lane, mark):
            self._next.pop(lane, None)
            self._observe(LaneForked(lane, mark.seq, "the replica's mark is not a record of this log"))
            return False
        self._next[lane] = mark.seq + 1
        return True

    async def _is_ours(self, lane: Lane, mark: Mark) -> bool:
        """True if the record at the mark is in our log.  One that was trimmed was settled by all, so it was ours."""
        span = await self._log.span(lane)
        if mark.seq < span.first:
            return True
        if mark.seq > span.last:
            return False
        batch = await self._log.read(lane, await self._log.seek(lane, mark.seq - 1), 1)
        found = batch.records[0] if batch.records else Damage("missing")
        return isinstance(found, Damage) or crc32(found) == mark.crc

    async def _read(self, lane: Lane, following: int) -> Run:
        """The next consecutive records from ``following`` on; those no log has any more are passed over."""
        span = await self._log.span(lane)
        first = max(following, span.first)
        if first > span.last:
            return Run(first, (), False)
        cursor = await self._log.seek(lane, first - 1)
        records: list[bytes] = []
        while not records and (batch := await self._log.read(lane, cursor)).records:
            cursor = batch.cursor
            for record in batch.records:
                seq = _sequence(record)
                if not records and seq >= first:
                    first = seq
                if seq == first + len(records) and len(records) < RECORDS_A_CALL:
                    records.append(record)  # type: ignore[arg-type]  # damage has no sequence
                elif records and seq > first + len(records):
                    break
        return Run(first, records, first != following or first == span.first)


def _sequence(record: bytes | Damage) -> int:
    """The sequence in a record; 0 for what is not one."""
    try:
        return 0 if isinstance(record, Damage) else decode(record).seq
    except InvalidMessage:
        return 0
