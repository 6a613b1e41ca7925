"""A channel from its first record to its last, whatever is missing of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lemegeton.codec import Draft, encode
from lemegeton.errors import PositionLost, RedisLost
from lemegeton.logs import whole
from lemegeton.logs.base import SKIP, Marker, Span
from lemegeton.logs.memory import MemoryLog, MemoryStore
from lemegeton.testing.faulty import FaultyLog
from lemegeton.testing.virtual_loop import run


async def published(log: Any, *numbers: int, stamp: int = 5) -> None:
    for n in numbers:
        await log.append("c", encode(Draft(stamp, "custom", "me", n), 1000))


async def read(log: Any) -> list[Any]:
    return [message.payload async for _, message in whole.records(log, "c")]


def test_every_record_of_every_lane_comes_with_its_channel_and_bytes() -> None:
    async def test() -> None:
        store = MemoryStore()
        one, two = MemoryLog("a", store), MemoryLog("b", store)
        await published(one, 1, 2)
        await published(two, 3)
        found = [message async for _, message in whole.records(one, "c")]
        assert [(message.payload, message.channel, message.raw != b"") for message in found] == [
            (1, "c", True), (2, "c", True), (3, "c", True)]

    run(test())


def test_others_have_a_turn_while_a_long_channel_is_read() -> None:
    async def test() -> None:
        log = MemoryLog()
        await published(log, *range(3000))
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        assert await read(log) == list(range(3000))
        task.cancel()
        assert turns > 1

    run(test())


def test_a_stamp_never_goes_back_within_a_lane() -> None:
    async def test() -> None:
        log = MemoryLog()
        await published(log, 1, stamp=9)
        await published(log, 2, stamp=3)
        assert [(stamp, message.timestamp) async for stamp, message in whole.records(log, "c")] == [(9, 9), (9, 3)]

    run(test())


def test_what_was_removed_what_is_damaged_and_what_never_comes_is_passed_over() -> None:
    async def test() -> None:
        store = MemoryStore()
        log = MemoryLog("a", store)
        await published(log, *range(1, 8))
        (lane,) = await log.lanes("c")
        kept = store.lanes[lane].records
        kept[3], kept[4] = b"no message", Marker(SKIP, 5, 5)
        await log.trim(lane, 2)
        assert await read(log) == [3, 6, 7]
        kept[-1] = Marker(SKIP, 7, 7)
        assert await read(log) == [3, 6]
        await log.trim(lane, 7)
        assert await read(log) == []

    run(test())


@pytest.mark.parametrize("call", ["span", "seek", "read"])
def test_a_lane_that_cannot_be_had_stops_no_other(call: str) -> None:
    async def test() -> None:
        store = MemoryStore()
        for name in ("a", "b"):
            await published(MemoryLog(name, store), 1)
        for error, times in ((RedisLost("away"), 1), (PositionLost("gone", first=0, last=2**62), whole.SEEKS_MAX)):
            log = FaultyLog(MemoryLog("c", store))
            log.fail(call, times=1 if call == "span" else times, error=error)
            assert await read(log) == [1]

    run(test())


def test_a_place_that_is_lost_for_a_moment_is_looked_for_again() -> None:
    async def test() -> None:
        log = FaultyLog(MemoryLog())
        await published(log, 1, 2)
        log.fail("read", error=PositionLost("moved", first=0, last=2**62))
        assert await read(log) == [1, 2]

    run(test())


class Far(FaultyLog):
    """The lanes of another site, which has to send some again."""

    def is_near(self, lane: Any) -> bool:
        return False


def test_what_another_site_does_not_send_again_is_waited_for_a_moment_and_then_passed_over() -> None:
    async def test() -> None:
        store = MemoryStore()
        log = Far(MemoryLog("a", store))
        await published(log, *range(1, 5))
        (lane,) = await log.lanes("c")
        reading = log.read
        store.lanes[lane].first = 1

        async def nothing_of_the_first(lane: Any, cursor: Any, limit: int = 9) -> Any:
            batch = await reading(lane, cursor, limit)
            return batch if cursor[0] >= 2 else batch._replace(records=(), cursor=cursor)

        async def span(lane: Any) -> Any:
            return Span(3, 4)

        log.read, log.span = nothing_of_the_first, span  # type: ignore[method-assign]
        assert await read(log) == [3, 4]

    run(test())
