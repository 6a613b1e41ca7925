"""Sending again: what another site misses of our lanes, taken from the log and put where that site looks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from lemegeton.checksum import crc32
from lemegeton.codec import head_of
from lemegeton.errors import InvalidMessage, PositionLost
from lemegeton.lane import Lane
from lemegeton.logs.base import GONE, Item, Log, Marker
from lemegeton.logs.origin import site_of
from lemegeton.logs.redis_entries import Keys, entry_of, fields_of, lane_of, marker_fields, sequence_in
from lemegeton.logs.redis_link import Link, pairs
from lemegeton.relay import items_of

BATCH_BYTES = 512 * 1024
"""How much one request is answered with; the reader asks for the rest when it has settled that."""
CHUNK = 256
LENGTH = 10_000
KEPT_S = 600
"""An answer that nobody fetches goes after this."""


class Resending:
    """Answers the requests of a channel."""

    def __init__(self, log: Log, link: Link, keys: Keys, site: str, wall_ms: Callable[[], int]) -> None:
        self._log = log
        self._link = link
        self._keys = keys
        self._site = site
        self._wall_ms = wall_ms

    async def answer(self, channel: str) -> None:
        """Answer what is asked of this site.  Done twice it does no harm: readers drop copies."""
        requests = pairs(await self._link.call("HGETALL", self._keys.nacks(channel)))
        for field, asked in sorted(requests.items()):
            name, _, site = field.decode("utf-8", "replace").rpartition("|")
            lane = lane_of(channel, name)
            first, last = (sequence_in(part) for part in asked.partition(b"-")[::2])
            if lane is None or site_of(lane.origin) != self._site:
                continue
            if site and first and last and first <= last:
                await self._send(lane, site, first, last)
            await self._link.call("HDEL", self._keys.nacks(channel), field)
            await self._link.call("PUBLISH", self._keys.control, f"n {channel}")

    async def _send(self, lane: Lane, site: str, first: int, last: int) -> None:
        key = self._keys.resend(lane.channel, site)
        calls = []
        for item in await self._items(lane, first, last):
            fields = (fields_of(item.record) if isinstance(item.record, bytes)
                      else marker_fields(item.record, lane, self._wall_ms()))
            calls.append(self._link.call("XADD", key, "MAXLEN", "~", LENGTH, "*", *fields))
        calls.append(self._link.call("EXPIRE", key, KEPT_S))
        await asyncio.gather(*calls)

    async def _items(self, lane: Lane, first: int, last: int) -> list[Item]:
        """The records ``first`` to ``last`` (a batch of them), with a marker for what the log does not have."""
        try:
            if lane not in await self._log.lanes(lane.channel):
                return [_gone(first, last)]
            cursor = await self._log.seek(lane, first - 1)
            found = items_of(lane, first, (await self._log.read(lane, cursor, BATCH_BYTES)).records, self._wall_ms())
        except PositionLost as lost:
            return [_gone(first, min(last, max(first, lost.first - 1)))]
        wanted = [item for item in found if item.seq <= last]
        # At its end the log has nothing behind: what is asked for above that was lost with a power cut.
        return wanted or [_gone(first, last)]


async def taken_of(log: Log, link: Link, keys: Keys, lane: Lane) -> int:
    """The last record of a lane of ours that the Redis holds as our log has it: of before a fork, if it is one."""
    theirs: dict[int, int] = {}
    begin = "-"
    while True:
        answer = await link.call("XRANGE", keys.stream(lane.channel), begin, "+", "COUNT", CHUNK)
        for raw in answer:
            with suppress(InvalidMessage):
                entry = entry_of(raw)
                if (entry.head.origin, entry.head.inc, entry.head.priority) == lane[1:]:
                    theirs[entry.head.seq] = crc32(entry.wire)
        if len(answer) < CHUNK:
            break
        begin = f"({answer[-1][0].decode()}"
    last = 0
    cursor = await log.seek(lane, (await log.span(lane)).first - 1)
    while (batch := await log.read(lane, cursor)).records:
        cursor = batch.cursor
        for record in batch.records:
            if isinstance(record, bytes) and theirs.get(seq := head_of(record).seq) == crc32(record):
                last = seq
    return last


def _gone(first: int, last: int) -> Item:
    return Item(first, last, Marker(GONE, first, last))

