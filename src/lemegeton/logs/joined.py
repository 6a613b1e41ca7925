"""The joined log: the files of this site, and what other sites brought to a Redis.

The path follows the topology, never the mode: a lane of this site is read from its file, every other one from Redis.
In a copied home lie segments of the site it was copied from; its lanes are read from there as far as they go, and then
from Redis: the sequence of a lane is one for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from lemegeton.errors import LogError, PositionLost, RedisLost, RedisRefused
from lemegeton.lane import Lane
from lemegeton.logs.base import READ_BYTES, Batch, Cursor, Form, Log, Placed, Position, Ring, Span
from lemegeton.logs.origin import site_of


class JoinedLog:
    """Two logs that look like one; see `logs.base.Log`."""

    def __init__(self, files: Log, redis: Log, site: str) -> None:
        self._files = files
        self._redis = redis
        self._site = site
        self._copied: set[Lane] = set()
        """Lanes of other sites that have segments here."""

    def _ours(self, lane: Lane) -> bool:
        return site_of(lane.origin) == self._site

    @property
    def rings(self) -> bool:
        """True while the doorbells of the files work; those of Redis come by themselves or not at all."""
        return self._files.rings

    def append_now(self, form: Form, stamp_ms: int, payload: bytes, disk: bool = False) -> Placed:
        return self._files.append_now(form, stamp_ms, payload, disk)

    async def append(
        self, channel: str, body: bytes, priority: int = 1, *, made: bool = True, disk: bool = False
    ) -> Position:
        return await self._files.append(channel, body, priority, made=made, disk=disk)

    async def channels(self) -> Sequence[str]:
        found = set(await self._files.channels())
        with suppress(RedisLost, RedisRefused):  # what it has is found when it answers again
            found.update(await self._redis.channels())
        return sorted(found)

    async def lanes(self, channel: str) -> Sequence[Lane]:
        here = await self._files.lanes(channel)
        others = [lane for lane in here if not self._ours(lane)]
        self._copied.update(others)
        with suppress(RedisLost, RedisRefused):
            there = [lane for lane in await self._redis.lanes(channel) if lane not in self._copied]
            return sorted([*here, *there])
        return here

    async def span(self, lane: Lane) -> Span:
        if self._ours(lane):
            return await self._files.span(lane)
        there = await self._redis.span(lane)
        if lane not in self._copied:
            return there
        here = await self._files.span(lane)
        return Span(here.first, max(here.last, there.last), there.contact)

    async def of_earlier_boot(self, lane: Lane) -> bool:
        return self._ours(lane) and await self._files.of_earlier_boot(lane)

    async def seek(self, lane: Lane, after: int) -> Cursor:
        if self._ours(lane):
            return await self._files.seek(lane, after)
        if lane in self._copied and (await self._files.span(lane)).last > after:
            return await self._files.seek(lane, after)
        place, ident = await self._redis.seek(lane, after)
        return (-1 - place, ident)

    async def read(self, lane: Lane, cursor: Cursor, limit: int = READ_BYTES) -> Batch:
        if cursor[0] < 0:  # only a cursor into Redis is
            batch = await self._redis.read(lane, (-1 - cursor[0], cursor[1]), limit)
            return Batch(batch.records, (-1 - batch.cursor[0], batch.cursor[1]), batch.more)
        batch = await self._files.read(lane, cursor, limit)
        if not batch.records and not self._ours(lane):
            raise PositionLost(f"joined log: {lane}: its segments here end; the rest is in Redis", first=0, last=2**62)
        return batch

    async def trim(self, lane: Lane, through: int) -> None:
        await (self._files if self._ours(lane) else self._redis).trim(lane, through)

    async def ended(self, lane: Lane, later: Lane, settled: int) -> bool:
        try:
            return await (self._files if self._ours(lane) else self._redis).ended(lane, later, settled)
        except LogError:
            return False

    def is_near(self, lane: Lane) -> bool:
        return self._ours(lane)

    async def vanished(self, lane: Lane) -> bool:
        return await (self._files if self._ours(lane) else self._redis).vanished(lane)

    def listen(self, channel: str, ring: Ring) -> Callable[[], None]:
        return _both(self._files.listen(channel, ring), self._redis.listen(channel, ring))

    def listen_new(self, globs: Sequence[str], ring: Ring) -> Callable[[], None]:
        return _both(self._files.listen_new(globs, ring), self._redis.listen_new(globs, ring))

    async def aclose(self) -> None:
        await self._files.aclose()
        await self._redis.aclose()


def _both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def end() -> None:
        first()
        second()

    return end
