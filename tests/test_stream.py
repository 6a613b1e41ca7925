"""The stream: one message at a time, each settled when the next is asked for."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from lemegeton.bus import MessageBus
from lemegeton.logs.memory import MemoryStore
from lemegeton.message import Message
from lemegeton.stream import Hand
from lemegeton.testing.memory import MemorySite
from test_delivery import in_virtual_time


def message(payload: object) -> Message:
    return Message(timestamp=1, type="custom", sender="x", payload=payload)


@in_virtual_time
async def test_a_message_is_used_when_the_next_is_asked_for() -> None:
    hand = Hand()
    taking = hand.take()
    first = asyncio.create_task(hand.give(message(1)))
    assert (await anext(taking)).payload == 1
    await asyncio.sleep(1.0)
    assert not first.done()
    second = asyncio.create_task(hand.give(message(2)))
    assert (await anext(taking)).payload == 2
    assert first.done()
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    await taking.aclose()


@in_virtual_time
async def test_lanes_that_give_at_the_same_time_take_turns() -> None:
    hand = Hand()
    giving = [asyncio.create_task(hand.give(message(n))) for n in range(5)]
    taking = hand.take()
    assert [(await anext(taking)).payload for _ in range(5)] == [0, 1, 2, 3, 4]
    waiting = asyncio.ensure_future(anext(taking))
    await asyncio.gather(*giving)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


@in_virtual_time
async def test_one_whose_giver_was_cancelled_is_not_settled() -> None:
    hand = Hand()
    giving = asyncio.create_task(hand.give(message(1)))
    taking = hand.take()
    await anext(taking)
    giving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await giving
    following = asyncio.create_task(hand.give(message(2)))
    assert (await anext(taking)).payload == 2
    await taking.aclose()
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following


@in_virtual_time
async def test_what_was_not_asked_behind_comes_again_and_nothing_else() -> None:
    store = MemoryStore()
    async with MessageBus("x", site=MemorySite(store)) as bus:
        for n in range(4):
            await bus.publish("c", n)
        seen = []
        async with aclosing(bus.stream("c", start="earliest", durable="reader")) as stream:  # type: ignore[type-var]
            async for each in stream:
                seen.append(each.payload)
                if each.payload == 2:
                    break
        assert seen == [0, 1, 2]
        async with aclosing(bus.stream("c", durable="reader")) as stream:  # type: ignore[type-var]
            assert (await anext(stream)).payload == 2
            redelivered = await anext(stream)
            assert redelivered.payload == 3
        assert bus.stats().subscriptions == ()


@in_virtual_time
async def test_a_stream_ends_when_its_bus_stops() -> None:
    bus = MessageBus("x", site=MemorySite(drain_timeout=0.5))
    await bus.start()
    stream = bus.stream("c")
    waiting = asyncio.ensure_future(anext(stream))  # type: ignore[arg-type]
    await asyncio.sleep(0.1)
    await bus.stop()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
