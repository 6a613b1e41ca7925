"""History of a channel: the newest messages, oldest first, whatever happened to the log."""

from __future__ import annotations

from typing import Any

import pytest

from lemegeton.codec import Draft, encode
from lemegeton.errors import InvalidMessage, PositionLost
from lemegeton.history import COUNT_MAX, newest
from lemegeton.lane import Lane
from lemegeton.logs.base import Log
from lemegeton.logs.memory import MemoryLog, MemoryStore
from lemegeton.segment import Framer
from lemegeton.testing.faulty import FaultyLog
from test_delivery import in_virtual_time, put
from test_file_log import Rig, write


async def stamped(log: Log, stamp: int, payload: Any) -> None:
    await log.append("c", encode(Draft(stamp, "custom", "tester", payload), 1 << 20))


@in_virtual_time
async def test_the_last_messages_come_oldest_first_by_their_stamps() -> None:
    store = MemoryStore()
    a, b = MemoryLog("a", store), MemoryLog("b", store)
    for stamp, log in ((1, a), (2, b), (3, a), (4, b), (5, a)):
        await stamped(log, stamp, stamp)
    assert [m.payload for m in await newest(a, "c", 100)] == [1, 2, 3, 4, 5]
    found = await newest(a, "c", 3)
    assert [(m.payload, m.channel) for m in found] == [(3, "c"), (4, "c"), (5, "c")]
    assert found[0].raw
    assert await newest(a, "empty", 3) == []


@in_virtual_time
async def test_a_clock_that_was_set_back_does_not_reorder_a_lane() -> None:
    log = MemoryLog()
    for stamp, payload in ((100, "a"), (5, "b"), (101, "c")):
        await stamped(log, stamp, payload)
    assert [m.payload for m in await newest(log, "c", 10)] == ["a", "b", "c"]


@pytest.mark.parametrize("count", [0, -1, COUNT_MAX + 1])
def test_a_count_outside_the_limits_is_refused(count: int) -> None:
    @in_virtual_time
    async def test() -> None:
        with pytest.raises(InvalidMessage, match="count"):
            await newest(MemoryLog(), "c", count)

    test()


@in_virtual_time
async def test_damage_is_passed_over() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, 1, 2)
    rig.edit(rig.files()[0], b"damaged\n")
    lane = (await log.lanes("c"))[0]
    rig.edit(rig.files()[0], Framer(lane).line(b'{"not":"a message"}', 4, True))
    rig.edit(rig.files()[0], Framer(lane).line(encode(Draft(1, "custom", "x", 5), 1000), 5, True))
    assert [m.payload for m in await newest(log, "c", 10)] == [1, 2, 5]


@in_virtual_time
async def test_records_that_are_there_twice_come_once() -> None:
    store = MemoryStore()
    lane = Lane("c", "a~s~0", 1, 1)
    await put(store, lane, 1, ["a", "b"])
    store.lanes[lane].records += store.lanes[lane].records
    assert [m.payload for m in await newest(MemoryLog("r", store), "c", 10)] == ["a", "b"]


@in_virtual_time
async def test_what_is_removed_meanwhile_leaves_what_was_read() -> None:
    log = FaultyLog(MemoryLog())
    await stamped(log, 1, "a")
    log.fail("read", at=2, error=PositionLost("gone", first=1, last=0))
    assert [m.payload for m in await newest(log, "c", 10)] == ["a"]
    log.fail("seek", error=PositionLost("gone", first=1, last=0))
    assert await newest(log, "c", 10) == []
