"""A subscription: opened, served, stopped; handlers of every kind."""

from __future__ import annotations

import asyncio
import threading
import time
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest

from lemegeton.bus import MessageBus
from lemegeton.errors import LogError, NameTaken
from lemegeton.logs.memory import MemoryLog, MemoryStore
from lemegeton.message import Message
from lemegeton.testing.faulty import FaultyLog
from lemegeton.testing.memory import MemorySite
from test_delivery import Gate, Got, in_virtual_time

who: ContextVar[str] = ContextVar("who", default="nobody")


async def test_a_synchronous_handler_runs_in_a_bounded_pool_of_threads() -> None:
    names: set[str] = set()
    inside, most, lock = 0, 0, threading.Lock()
    all_in = threading.Barrier(2, timeout=10.0)

    def handler(message: Message) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
            names.add(threading.current_thread().name)
        all_in.wait()
        with lock:
            inside -= 1
        loop.call_soon_threadsafe(done.release)

    loop, done = asyncio.get_running_loop(), asyncio.Semaphore(0)
    async with MessageBus("x", site=MemorySite(handler_threads=2)) as bus:
        await bus.subscribe("c*", handler)
        for n in range(6):
            await bus.publish(f"c{n}", n)
        for _ in range(6):
            await asyncio.wait_for(done.acquire(), 10.0)
    assert most == 2
    assert all(name.startswith("lemegeton-handler") for name in names)


async def test_a_synchronous_handler_that_fails_is_tried_again() -> None:
    attempts: list[int] = []
    done = threading.Event()

    def handler(message: Message) -> None:
        attempts.append(message.attempt)
        if message.attempt < 3:
            raise ValueError("not yet")
        done.set()

    async with MessageBus("x", site=MemorySite(retry_delay=0.01)) as bus:
        await bus.subscribe("c", handler)
        await bus.publish("c", 1)
        assert await asyncio.to_thread(done.wait, 10.0)
    assert attempts == [1, 2, 3]


async def test_callables_of_every_kind_are_handlers() -> None:
    got: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    class Asynchronous:
        async def __call__(self, _: Message) -> None:
            got.put_nowait("asynchronous object")

    class Synchronous:
        def __call__(self, _: Message) -> None:
            loop.call_soon_threadsafe(got.put_nowait, "synchronous object")

    async def coroutine(label: str, _: Message) -> None:
        got.put_nowait(label)

    async with MessageBus("x", site=MemorySite()) as bus:
        for n, handler in enumerate((
            Asynchronous(), Synchronous(), partial(coroutine, "partial"), lambda m: coroutine("lambda", m),
        )):
            await bus.subscribe(f"c{n}", handler)
            await bus.publish(f"c{n}", n)
        found = {await asyncio.wait_for(got.get(), 10.0) for _ in range(4)}
    assert found == {"asynchronous object", "synchronous object", "partial", "lambda"}


async def test_a_synchronous_handler_sees_the_context_it_was_subscribed_in() -> None:
    seen: list[str] = []
    done = threading.Event()

    def handler(_: Message) -> None:
        seen.append(who.get())
        done.set()

    async with MessageBus("x", site=MemorySite()) as bus:
        who.set("me")
        await bus.subscribe("c", handler)
        await bus.publish("c", 1)
        assert await asyncio.to_thread(done.wait, 10.0)
    assert seen == ["me"]


async def test_a_handler_that_blocks_the_loop_shows_in_the_lag_and_loses_nothing() -> None:
    got = Got()

    async def blocking(message: Message) -> None:
        if message.payload == 0:
            time.sleep(1.5)  # noqa: ASYNC251  what it must survive
        await got(message)

    async with MessageBus("x", site=MemorySite()) as bus:
        await bus.subscribe("c", blocking)
        for n in range(3):
            await bus.publish("c", n)
        await got.reach(3)
        while not bus.stats().loop_lag_max_s:
            await asyncio.sleep(0.05)
        assert bus.stats().loop_lag_max_s > 0.4
    assert got.payloads == [0, 1, 2]


@in_virtual_time
async def test_a_durable_place_goes_on_where_it_was_whatever_start_says() -> None:
    store, first, second = MemoryStore(), Got(), Got()
    async with MessageBus("x", site=MemorySite(store)) as bus:
        await bus.publish("c", "before")
        await bus.subscribe("c", first, durable="worker")
        await bus.publish("c", 1)
        await first.reach(1)
    async with MessageBus("y", site=MemorySite(store)) as bus:
        await bus.publish("c", "while away")
        await bus.subscribe("c", second, durable="worker", start="new")
        await second.reach(1)
    assert (first.payloads, second.payloads) == ([1], ["while away"])
    assert not second[0].redelivered


@in_virtual_time
async def test_an_ephemeral_place_dies_with_its_subscription() -> None:
    store, first, second = MemoryStore(), Got(), Got()
    async with MessageBus("x", site=MemorySite(store)) as bus:
        await bus.subscribe("c", first)
        await bus.publish("c", 1)
        await first.reach(1)
        await bus.unsubscribe("c")
        await bus.publish("c", "missed")
        await bus.subscribe("c", second)
        await bus.publish("c", 2)
        await second.reach(1)
    assert second.payloads == [2]


@in_virtual_time
async def test_a_durable_name_has_one_holder_and_is_free_after_it() -> None:
    store = MemoryStore()
    async with MessageBus("x", site=MemorySite(store)) as a, MessageBus("y", site=MemorySite(store)) as b:
        held = await a.subscribe("c", Got(), durable="worker")
        with pytest.raises(NameTaken, match="worker"):
            await b.subscribe("c", Got(), durable="worker")
        await a.unsubscribe(held)
        await b.subscribe("c", Got(), durable="worker")


@in_virtual_time
async def test_forget_drops_the_place_and_unsubscribing_keeps_it() -> None:
    store, got = MemoryStore(), Got()
    async with MessageBus("x", site=MemorySite(store)) as bus:
        await bus.subscribe("c", got, durable="worker")
        await bus.unsubscribe("c")
        assert [holder.name for holder in bus.site.holders()] == ["worker"]
        await bus.publish("c", "missed")
        await bus.subscribe("c", got, durable="worker")
        await got.reach(1)
        assert await bus.unsubscribe_all(forget=True) == 1
        assert bus.site.holders() == []
        await bus.publish("c", "lost on purpose")
        await bus.subscribe("c", got, durable="worker")
        await bus.publish("c", "new")
        await got.reach(2)
    assert got.payloads == ["missed", "new"]


@in_virtual_time
async def test_one_that_cannot_be_opened_lets_its_name_go() -> None:
    store = MemoryStore()
    log = FaultyLog(MemoryLog("x", store))
    async with MessageBus("x", site=MemorySite(store, log=log)) as bus:
        log.fail("lanes")
        with pytest.raises(LogError):
            await bus.subscribe("c", Got(), durable="worker")
        await bus.subscribe("c", Got(), durable="worker")


@in_virtual_time
async def test_counts_and_running_handlers_show_in_the_stats() -> None:
    gate = Gate()
    async with MessageBus("x", site=MemorySite()) as bus:
        sub = await bus.subscribe("c", gate, durable="worker")
        receipt = await bus.publish("c", 1)
        await gate.inside.wait()
        await asyncio.sleep(5.5)
        (running,) = bus.stats().running
        assert (running.subscription, running.channel, running.origin, running.seq) == (
            "worker", "c", receipt.lane.origin, 1)
        assert running.seconds > 3.0
        gate.opened.set()
        await asyncio.sleep(0.1)
        (counts,) = bus.stats().subscriptions
        assert (counts.name, counts.patterns, counts.durable, counts.chains, counts.handled) == (
            "worker", ("c",), True, 1, 1)
        assert sub.caught_up({receipt.lane: 1})
        await sub.stop(1.0)
        await sub.stop(1.0)


@in_virtual_time
async def test_a_durable_place_grows_with_its_lanes() -> None:
    store, got = MemoryStore(), Got()
    async with MessageBus("x", site=MemorySite(store)) as bus:
        await bus.subscribe("*", got, durable="worker")
        for n in range(200):
            await bus.publish(f"c{n}", n)
        await got.reach(200)
    again: Any = Got()
    async with MessageBus("y", site=MemorySite(store)) as bus:
        await bus.subscribe("*", again, durable="worker")
        await bus.publish("c0", "new")
        await again.reach(1)
    assert again.payloads == ["new"]
