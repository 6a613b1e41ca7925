"""Peers on a Redis: the same payload from one process to a handler in another, as their own documentation says."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from common import Handled, Work, leave, paced, payload, ready, run, spec, tell
from server_peers import Handler, encoded, timed

CHANNEL = "load-0"
STREAM = "load-stream"
BATCH = 64
READ_COUNT, BLOCK_MS = 1000, 1000

# ── the client library ───────────────────────────────────────────────────────────────────────────────────────────────


def _client(place: str) -> Any:
    import redis.asyncio as library

    return library.Redis.from_url(place)


async def pubsub_publish(place: str, work: Work) -> None:
    """Nothing is kept."""
    client = _client(place)
    await client.ping()
    await timed(lambda: client.publish(CHANNEL, encoded()), work)


async def pubsub_subscribe(place: str, work: Work) -> None:
    """Its ``listen``."""
    pubsub, handled = _client(place).pubsub(), Handled(work)
    await pubsub.subscribe(CHANNEL)
    heard = pubsub.listen()
    await anext(heard)
    ready()
    while not handled.done:
        handled(json.loads((await anext(heard))["data"]))
    handled.tell()


async def stream_publish(place: str, work: Work) -> None:
    """One entry a message."""
    client = _client(place)
    await client.ping()
    await timed(lambda: client.xadd(STREAM, {"data": encoded()}), work)


async def stream_subscribe(place: str, work: Work) -> None:
    """A reader that keeps its place itself."""
    client, handled, last = _client(place), Handled(work), b"0"
    await client.ping()
    ready()
    while not handled.done:
        for _, entries in await client.xread({STREAM: last}, count=READ_COUNT, block=BLOCK_MS):
            for _, fields in entries:
                handled(json.loads(fields[b"data"]))
            last = entries[-1][0]
    handled.tell()


async def pipeline_publish(place: str, work: Work) -> None:
    """So many entries in one round trip."""
    client = _client(place)
    await client.ping()
    ready()
    begun = time.perf_counter_ns()
    for at in range(0, work.count, BATCH):
        pipeline = client.pipeline(transaction=False)
        for _ in range(min(BATCH, work.count - at)):
            pipeline.xadd(STREAM, {"data": encoded()})
        await pipeline.execute()
    tell(begun=begun, ended=time.perf_counter_ns())


# ── FastStream ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def faststream_publish(place: str, work: Work) -> None:
    """Its publish, awaited."""
    from faststream.redis import RedisBroker

    broker = RedisBroker(place, logger=None)
    await broker.connect()
    ready()
    begun = time.perf_counter_ns()

    async def some(count: int) -> None:
        for n in range(count):
            if work.hz:
                await paced(begun + int(n * 1e9 / work.hz))
            await broker.publish(payload(), channel=CHANNEL)

    await asyncio.gather(*[some(work.count // work.tasks) for _ in range(work.tasks)])
    tell(begun=begun, ended=time.perf_counter_ns())


async def faststream_subscribe(place: str, work: Work) -> None:
    """Its subscriber."""
    from faststream.redis import RedisBroker

    broker, handled, done = RedisBroker(place, logger=None), Handled(work), asyncio.Event()

    @broker.subscriber(CHANNEL)  # type: ignore[untyped-decorator]
    async def handle(message: dict[str, str]) -> None:
        handled(message)
        if handled.done:
            done.set()

    await broker.start()
    ready()
    await done.wait()
    handled.tell()


# ── Kombu, taskiq ────────────────────────────────────────────────────────────────────────────────────────────────────


def _kombu(place: str) -> tuple[Any, Any]:
    from kombu import Connection, Exchange, Queue

    return Connection(place), Queue(CHANNEL, Exchange(CHANNEL, "direct"), CHANNEL)


async def kombu_publish(place: str, work: Work) -> None:
    """Its producer, which blocks."""
    connection, queue = _kombu(place)
    producer = connection.Producer()

    async def publish() -> None:
        producer.publish(payload(), exchange=queue.exchange, routing_key=CHANNEL, declare=[queue])

    await timed(publish, work)


async def kombu_subscribe(place: str, work: Work) -> None:
    """Its consumer, each message acknowledged."""
    connection, queue = _kombu(place)
    handled = Handled(work)

    def handle(body: dict[str, str], message: Any) -> None:
        handled(body)
        message.ack()

    with connection.Consumer(queue, callbacks=[handle]):
        ready()
        while not handled.done:
            connection.drain_events()
    handled.tell()


def _taskiq(place: str, handler: Callable[[dict[str, str]], None]) -> tuple[Any, Any]:
    from taskiq_redis import RedisStreamBroker

    broker = RedisStreamBroker(place)

    async def handle(message: dict[str, str]) -> None:
        handler(message)

    return broker, broker.register_task(handle, task_name="handle")


async def taskiq_publish(place: str, work: Work) -> None:
    """A task a message, through a stream."""
    broker, task = _taskiq(place, lambda _: None)
    await broker.startup()
    await timed(lambda: task.kiq(payload()), work)


async def taskiq_subscribe(place: str, work: Work) -> None:
    """Its worker's receiver."""
    from taskiq.api import run_receiver_task

    handler = Handler(work)
    broker, _ = _taskiq(place, lambda message: handler(json.dumps(message).encode()))
    broker.is_worker_process = True
    await broker.startup()
    receiving = asyncio.create_task(run_receiver_task(broker))
    await handler.ended()
    receiving.cancel()


ROLES: dict[str, Callable[[str, Work], Coroutine[Any, Any, None]]] = {
    name: role for name, role in list(globals().items()) if name.endswith(("_publish", "_subscribe"))}

if __name__ == "__main__":
    logging.disable()
    given = spec()
    run(ROLES[given["role"]](given["place"], Work(given["count"], given["hz"], given.get("tasks", 1))))
    leave()
