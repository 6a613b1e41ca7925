"""Peers with a server of their own, and one with none: NATS core, JetStream, MQTT with QoS 1, ZeroMQ over ``ipc``.

The same payload from one process to a handler in another.  ``place`` is what to connect to: a URL, a port, a path.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from common import Handled, Work, leave, paced, payload, ready, run, spec, tell

SUBJECT = "load.0"
OUTSTANDING = 256


def encoded() -> bytes:
    """The payload as bytes."""
    return json.dumps(payload()).encode()


async def timed(publish: Callable[[], Awaitable[Any]], work: Work, flush: Callable[[], Awaitable[Any]] | None = None) -> None:
    """Publish one after the other, each awaited."""
    ready()
    begun = time.perf_counter_ns()
    for n in range(work.count):
        if work.hz:
            await paced(begun + int(n * 1e9 / work.hz))
        await publish()
    if flush is not None:
        await flush()
    tell(begun=begun, ended=time.perf_counter_ns())


class Handler:
    """The handler of a callback that is given bytes."""

    def __init__(self, work: Work) -> None:
        self._handled = Handled(work)
        self._done = asyncio.Event()

    def __call__(self, data: bytes) -> None:
        """One message."""
        self._handled(json.loads(data))
        if self._handled.done and not self._done.is_set():
            self._handled.tell()
            self._done.set()

    async def ended(self) -> None:
        """Begin, and wait for the last one."""
        ready()
        await self._done.wait()


# ── NATS ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def nats_publish(place: str, work: Work) -> None:
    """Nothing is kept."""
    import nats

    client = await nats.connect(place)
    await timed(lambda: client.publish(SUBJECT, encoded()), work, client.flush)


async def nats_subscribe(place: str, work: Work) -> None:
    """A callback."""
    import nats

    handler = Handler(work)

    async def handle(message: Any) -> None:
        handler(message.data)

    client = await nats.connect(place)
    await client.subscribe(SUBJECT, cb=handle, pending_msgs_limit=-1, pending_bytes_limit=-1)
    await client.flush()
    await handler.ended()


async def _jetstream(place: str) -> Any:
    import nats

    stream = (await nats.connect(place)).jetstream()
    await stream.add_stream(name="LOAD", subjects=[SUBJECT])
    return stream


async def jetstream_publish(place: str, work: Work) -> None:
    """Each waits for the server's acknowledgement."""
    stream = await _jetstream(place)
    await timed(lambda: stream.publish(SUBJECT, encoded()), work)


async def jetstream_outstanding_publish(place: str, work: Work) -> None:
    """So many wait at a time."""
    stream = await _jetstream(place)

    async def some(number: int) -> None:
        for _ in range(number):
            await stream.publish(SUBJECT, encoded())

    ready()
    begun = time.perf_counter_ns()
    await asyncio.gather(*[some(work.count // OUTSTANDING + (n < work.count % OUTSTANDING)) for n in range(OUTSTANDING)])
    tell(begun=begun, ended=time.perf_counter_ns())


async def jetstream_subscribe(place: str, work: Work) -> None:
    """A durable consumer that acknowledges each."""
    stream, handler = await _jetstream(place), Handler(work)

    async def handle(message: Any) -> None:
        handler(message.data)
        await message.ack()

    await stream.subscribe(SUBJECT, durable="reader", cb=handle, manual_ack=True)
    await handler.ended()


# ── MQTT, ZeroMQ ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def mqtt_publish(place: int, work: Work) -> None:
    """QoS 1, awaited."""
    import aiomqtt

    async with aiomqtt.Client("127.0.0.1", place) as client:
        await timed(lambda: client.publish(SUBJECT, encoded(), qos=1), work)


async def mqtt_subscribe(place: int, work: Work) -> None:
    """QoS 1, a session that is kept."""
    import aiomqtt

    handler = Handler(work)
    async with aiomqtt.Client("127.0.0.1", place, identifier="reader", clean_session=False) as client:
        await client.subscribe(SUBJECT, qos=1)

        async def listen() -> None:
            async for message in client.messages:
                handler(message.payload)

        listening = asyncio.create_task(listen())
        await handler.ended()
        listening.cancel()


async def zeromq_publish(place: str, work: Work) -> None:
    """No broker, nothing is kept: the bound of a socket between two processes."""
    import zmq.asyncio

    socket = zmq.asyncio.Context().socket(zmq.PUSH)
    socket.set_hwm(0)
    socket.connect(place)
    await timed(lambda: socket.send(encoded()), work)


async def zeromq_subscribe(place: str, work: Work) -> None:
    """The other end."""
    import zmq.asyncio

    socket = zmq.asyncio.Context().socket(zmq.PULL)
    socket.set_hwm(0)
    socket.bind(place)
    handler = Handler(work)

    async def listen() -> None:
        while True:
            handler(await socket.recv())

    listening = asyncio.create_task(listen())
    await handler.ended()
    listening.cancel()


ROLES: dict[str, Callable[[Any, Work], Coroutine[Any, Any, None]]] = {
    name: role for name, role in list(globals().items()) if name.endswith(("_publish", "_subscribe"))}

if __name__ == "__main__":
    given = spec()
    run(ROLES[given["role"]](given["place"], Work(given["count"], given["hz"])))
    leave()
