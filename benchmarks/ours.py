"""Our side: publishers and subscribers as a user would write them, with the settings that a user gets."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from common import (
    PAYLOAD_BYTES,
    STAMP_CHARS,
    leave,
    memory,
    paced,
    payload,
    payloads,
    percentiles,
    ready,
    spec,
    tell,
    wait_until,
)

from lemegeton import Message, MessageBus, run
from lemegeton.osfs import OsFs

CHANNEL = "load-0"
STARTS_MAX = 100
"""A message that ends so many processes is a dead letter; here it ends one a round."""


def channels(count: int) -> list[str]:
    """The names of so many channels."""
    return [f"load-{n}" for n in range(count)]


class Syncs:
    """Counts the syncs of this process."""

    def __init__(self) -> None:
        self.count = 0
        call = OsFs.fdatasync

        def counted(fd: int) -> None:
            self.count += 1
            call(fd)

        OsFs.fdatasync = staticmethod(counted)  # type: ignore[arg-type]


def settings(home: str, url: str) -> dict[str, str]:
    """What a user gives: a home, and a Redis where there is one."""
    return {"home": home, "redis_url": url, "local_redis": "off"} if url else {"home": home}


async def stay() -> None:
    """Go on serving until the parent, which reads meanwhile what this process took, ends it or is gone."""
    await asyncio.to_thread(sys.stdin.read)


async def publish(
    *, home: str, count: int, rate: float = 0.0, tasks: int = 1, ack: str = "local", channel_count: int = 1, url: str = "",
    name: str = "sender", payload_bytes: int = PAYLOAD_BYTES
) -> None:
    """Publish ``count`` messages, awaiting each; with a Redis the relay goes on until this process is ended."""
    syncs, made = Syncs(), payloads(payload_bytes)
    async with MessageBus(name, **settings(home, url)) as bus:
        names = channels(channel_count)
        ready()
        begun = time.perf_counter_ns()
        if rate:
            await (_paced_with_loop if url else _paced)(bus, count, rate, begun)
        elif tasks > 1:
            async with asyncio.TaskGroup() as group:
                for n in range(tasks):
                    group.create_task(_some(bus, count // tasks + (n < count % tasks), ack, made))
        else:
            for n in range(count):
                await bus.publish(names[n % channel_count], made())
        tell(begun=begun, ended=time.perf_counter_ns(), syncs=syncs.count)
        await stay()


async def _some(bus: MessageBus, count: int, ack: Any, made: Callable[[], dict[str, str]]) -> None:
    for _ in range(count):
        await bus.publish(CHANNEL, made(), ack=ack)


async def _paced(bus: MessageBus, count: int, rate: float, begun: int) -> None:
    for n in range(count):
        wait_until(begun + int(n * 1e9 / rate))
        await bus.publish(CHANNEL, payload())
        await asyncio.sleep(0)  # the wait blocks, so the loop gets its turn here


async def _paced_with_loop(bus: MessageBus, count: int, rate: float, begun: int) -> None:
    for n in range(count):
        await paced(begun + int(n * 1e9 / rate))
        await bus.publish(CHANNEL, payload())


async def fill(*, home: str, count: int, every: int) -> None:
    """Publish ``count`` messages, saying how much memory that takes every so often."""
    async with MessageBus("sender", home=home) as bus:
        ready()
        begun = time.perf_counter_ns()
        marks = []
        for n in range(1, count + 1):
            await bus.publish(CHANNEL, payload())
            if n % every == 0:
                marks.append(memory()["VmRSS"])
        tell(begun=begun, ended=time.perf_counter_ns(), marks=marks, **memory())
        await stay()


async def subscribe(
    *, home: str, count: int, patterns: Sequence[str] = (CHANNEL,), name: str = "reader", latency: bool = False,
    every: int = 0, url: str = "", stamps: bool = False
) -> None:
    """Handle ``count`` messages in a durable subscription."""
    done = asyncio.get_running_loop().create_future()
    latencies: list[int] = []
    marks: list[float] = []
    times: list[tuple[int, int]] = []
    seen = 0

    async def handle(message: Message) -> None:
        nonlocal seen
        if latency:
            latencies.append(time.perf_counter_ns() - int(message.payload["t"][:STAMP_CHARS]))
        if stamps:
            times.append((int(message.payload["t"][:STAMP_CHARS]), time.perf_counter_ns()))
        seen += 1
        if every and seen % every == 0:
            marks.append(memory()["VmRSS"])
        if seen == count:
            done.set_result(time.perf_counter_ns())

    async with MessageBus("receiver", **settings(home, url)) as bus:
        await bus.subscribe(list(patterns), handle, durable=name, start="earliest")
        ready()
        tell(ended=await done, marks=marks, stamps=times, **percentiles(latencies), **memory())
        await stay()


async def fan(*, home: str, count: int, first: int, number: int, url: str = "") -> None:
    """So many agents, each with a bus and a durable subscription of its own, that each handle ``count`` messages."""
    done = asyncio.get_running_loop().create_future()
    left = count * number

    async def handle(_: Message) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set_result(time.perf_counter_ns())

    async with AsyncExitStack() as stack:
        for n in range(first, first + number):
            bus = await stack.enter_async_context(MessageBus(f"receiver{n}", **settings(home, url)))
            await bus.subscribe(CHANNEL, handle, durable=f"reader{n}", start="earliest")
        ready()
        tell(ended=await done)
        await stay()


async def hold(*, home: str) -> None:
    """Leave a durable place at the beginning: it keeps every record."""
    async with MessageBus("receiver", home=home) as bus:
        await bus.subscribe([CHANNEL], lambda message: None, durable="holder", start="earliest")
    tell(left=True)


async def start(*, home: str, name: str) -> None:
    """Seconds from `subscribe` to the first delivery; ends inside it, so that the place stays where it is."""
    loop = asyncio.get_running_loop()
    first = loop.create_future()

    async def handle(message: Message) -> None:
        tell(seconds=(time.perf_counter_ns() - begun) / 1e9, seq=message.seq)
        os._exit(0)

    async with MessageBus("receiver", home=home, retry_attempts=STARTS_MAX) as bus:
        begun = time.perf_counter_ns()
        await bus.subscribe([CHANNEL], handle, durable=name, start="earliest")
        await first


async def drain(*, home: str, name: str, count: int) -> None:
    """Seconds from `subscribe` to the first and to the last of the records that wait."""
    done = asyncio.get_running_loop().create_future()
    first, seen = 0, 0

    async def handle(_: Message) -> None:
        nonlocal first, seen
        first = first or time.perf_counter_ns()
        seen += 1
        if seen == count:
            done.set_result(time.perf_counter_ns())

    async with MessageBus("receiver", home=home) as bus:
        ready()
        begun = time.perf_counter_ns()
        await bus.subscribe([CHANNEL], handle, durable=name, start="earliest")
        last = await done
        tell(first=(first - begun) / 1e9, last=(last - begun) / 1e9)
        await stay()


async def begin(*, home: str, url: str = "") -> None:
    """Seconds until a new bus in a new home is ready, and until its first publish has returned."""
    begun = time.perf_counter_ns()
    async with MessageBus("sender", **settings(home, url)) as bus:
        opened = time.perf_counter_ns()
        await bus.publish(CHANNEL, payload())
        published = time.perf_counter_ns()
    tell(ready=(opened - begun) / 1e9, published=(published - begun) / 1e9)


ROLES: dict[str, Callable[..., Any]] = {
    "publish": publish, "fill": fill, "subscribe": subscribe, "fan": fan, "hold": hold, "start": start, "drain": drain,
    "begin": begin,
}

if __name__ == "__main__":
    given = spec()
    run(ROLES[given.pop("role")](**given))
    leave()
