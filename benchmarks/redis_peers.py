"""Peers on a Redis: the same payload from one process to a handler in another, as their own documentation says."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from common import STAMP_CHARS, leave, paced, payload, percentiles, ready, spec, tell

CHANNEL = "load-0"


async def faststream_publish(*, url: str, count: int, rate: float = 0.0, tasks: int = 1) -> None:
    """FastStream's publish, awaited."""
    from faststream.redis import RedisBroker

    broker = RedisBroker(url, logger=None)
    await broker.connect()
    ready()
    begun = time.perf_counter_ns()

    async def some(count: int) -> None:
        for n in range(count):
            if rate:
                await paced(begun + int(n * 1e9 / rate))
            await broker.publish(payload(), channel=CHANNEL)

    await asyncio.gather(*[some(count // tasks) for _ in range(tasks)])
    tell(begun=begun, ended=time.perf_counter_ns())


async def faststream_subscribe(*, url: str, count: int, latency: bool = False) -> None:
    """FastStream's subscriber."""
    from faststream.redis import RedisBroker

    broker = RedisBroker(url, logger=None)
    done = asyncio.get_running_loop().create_future()
    latencies: list[int] = []
    seen = 0

    @broker.subscriber(CHANNEL)  # type: ignore[untyped-decorator]
    async def handle(message: dict[str, str]) -> None:
        nonlocal seen
        if latency:
            latencies.append(time.perf_counter_ns() - int(message["t"][:STAMP_CHARS]))
        seen += 1
        if seen == count:
            done.set_result(time.perf_counter_ns())

    await broker.start()
    ready()
    tell(ended=await done, **percentiles(latencies))


ROLES: dict[str, Callable[..., Any]] = {
    "faststream_publish": faststream_publish, "faststream_subscribe": faststream_subscribe,
}

if __name__ == "__main__":
    logging.disable()
    given = spec()
    asyncio.run(ROLES[given.pop("role")](**given))
    leave()
