"""Room: publishers wait in the order they came, before they get a number, and are told who is in the way."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from lemegeton.errors import BusFull
from lemegeton.events import Event, LimitReached
from lemegeton.logs.room import Room
from test_delivery import in_virtual_time
from test_file_log import Rig, read_all, write


@in_virtual_time
async def test_publishers_are_let_in_first_come_first_served_and_numbered_so() -> None:
    rig = Rig()
    log = await rig.log(disk_limit=1)
    log.room.used = 1
    tasks = [asyncio.create_task(write(log, n)) for n in range(10)]
    await asyncio.sleep(0.1)
    assert log._writer is None  # nobody has a number yet
    log.room.limit = 10**9
    log.room.counted(0, "nobody")
    positions = await asyncio.gather(*tasks)
    assert [position.seq for position in positions] == list(range(1, 11))
    assert await read_all(log) == list(range(10))


@in_virtual_time
async def test_who_comes_while_others_wait_stands_behind_them() -> None:
    rig = Rig()
    log = await rig.log(disk_limit=1)
    log.room.used = 1
    early = asyncio.create_task(write(log, "early"))
    await asyncio.sleep(0.1)
    log.room.limit = 10**9
    log.room.counted(0, "nobody")
    late = asyncio.create_task(write(log, "late"))
    assert ((await early).seq, (await late).seq) == (1, 2)


@in_virtual_time
async def test_waiting_ends_with_an_error_that_names_the_subscription_in_the_way() -> None:
    events: list[Event] = []
    room = Room(100, 5.0, events.append)
    room.counted(200, "slow-worker")
    began = asyncio.get_running_loop().time()
    results = await asyncio.gather(room.wait(), room.wait(), return_exceptions=True)
    assert asyncio.get_running_loop().time() - began == pytest.approx(5.0)
    for result in results:
        assert isinstance(result, BusFull)
        assert "200 of 100 bytes" in str(result)
        assert "slow-worker" in str(result)
        assert result.definite
    assert [event for event in events if isinstance(event, LimitReached)] == [LimitReached(200, 100, "slow-worker")]
    assert not room.waiters
    assert room.full
    room.counted(0, "")
    assert not room.full


@in_virtual_time
async def test_on_full_raise_does_not_wait() -> None:
    rig = Rig()
    log = await rig.log(disk_limit=1, on_full="raise")
    log.room.counted(1, "slow-worker")
    began = asyncio.get_running_loop().time()
    with pytest.raises(BusFull, match="slow-worker"):
        await write(log, 1)
    assert asyncio.get_running_loop().time() == began


@in_virtual_time
async def test_one_that_gives_up_hands_its_turn_on() -> None:
    room = Room(100, 50.0, lambda _: None)
    room.counted(100, "x")
    first, second = asyncio.create_task(room.wait()), asyncio.create_task(room.wait())
    await asyncio.sleep(0.1)
    room.counted(0, "x")  # the first has its turn now, and is cancelled before it can use it
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    await asyncio.wait_for(second, 1.0)
    assert not room.full


@in_virtual_time
async def test_one_that_was_cancelled_while_it_waited_is_not_in_the_way() -> None:
    room = Room(100, 50.0, lambda _: None)
    room.counted(100, "x")
    first, second = asyncio.create_task(room.wait()), asyncio.create_task(room.wait())
    await asyncio.sleep(0.1)
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    assert len(room.waiters) == 1
    room.counted(0, "x")
    await asyncio.wait_for(second, 1.0)


@in_virtual_time
async def test_a_waiter_whose_future_is_over_is_passed_over() -> None:
    room = Room(100, 50.0, lambda _: None)
    room.counted(100, "x")
    second = asyncio.create_task(room.wait())
    await asyncio.sleep(0)
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    over.cancel()
    room.waiters.appendleft(over)
    room.counted(0, "x")
    await asyncio.wait_for(second, 1.0)
