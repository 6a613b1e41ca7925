"""Our side: a publisher and a subscriber as a user would write them, with the settings that a user gets."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from common import STAMP_CHARS, leave, memory, paced, payload, percentiles, ready, spec, tell, wait_until

from lemegeton import Message, MessageBus, run
from lemegeton.osfs import OsFs

CHANNEL = "load-0"


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


async def publish(
    *, home: str, count: int, rate: float = 0.0, tasks: int = 1, ack: str = "local", channel_count: int = 1, url: str = ""
) -> None:
    """Publish ``count`` messages, awaiting each; with a Redis the relay goes on until this process is ended."""
    syncs = Syncs()
    async with MessageBus("sender", **settings(home, url)) as bus:
        names = channels(channel_count)
        ready()
        begun = time.perf_counter_ns()
        if rate:
            await (_paced_with_loop if url else _paced)(bus, count, rate, begun)
        elif tasks > 1:
            async with asyncio.TaskGroup() as group:
                for _ in range(tasks):
                    group.create_task(_some(bus, count // tasks, ack))
        else:
            for n in range(count):
                await bus.publish(names[n % channel_count], payload())
        ended = time.perf_counter_ns()
        tell(begun=begun, ended=ended, syncs=syncs.count, **memory())
        if url:
            await asyncio.Event().wait()


async def _some(bus: MessageBus, count: int, ack: Any) -> None:
    for _ in range(count):
        await bus.publish(CHANNEL, payload(), ack=ack)


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


async def hold(*, home: str) -> None:
    """Leave a durable place at the beginning: it keeps every record."""
    async with MessageBus("receiver", home=home) as bus:
        await bus.subscribe([CHANNEL], lambda message: None, durable="holder", start="earliest")


async def start(*, home: str, name: str) -> None:
    """Seconds from `subscribe` to the first delivery; ends inside it, so that the place stays where it is."""
    loop = asyncio.get_running_loop()
    first = loop.create_future()

    async def handle(message: Message) -> None:
        tell(seconds=(time.perf_counter_ns() - begun) / 1e9, seq=message.seq)
        os._exit(0)

    async with MessageBus("receiver", home=home) as bus:
        begun = time.perf_counter_ns()
        await bus.subscribe([CHANNEL], handle, durable=name, start="earliest")
        await first


ROLES: dict[str, Callable[..., Any]] = {
    "publish": publish, "fill": fill, "subscribe": subscribe, "hold": hold, "start": start,
}

if __name__ == "__main__":
    given = spec()
    run(ROLES[given.pop("role")](**given))
    leave()
