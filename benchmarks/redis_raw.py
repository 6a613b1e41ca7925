"""What Redis can do by itself: commands packed by hand on a raw socket, and the client library awaited.

Everything here carries one of our records (``wire`` and ``fields``, as our own relay made them), with a stamp of its own in
each: by hand as bytes that nobody looks into, through the library as JSON that is made from a payload and read for a
handler, as whoever uses it has to.  The writer packs a batch, sends it and waits for its answers; the reader counts what is
published.  Nothing is kept on a disk, numbered, checked or remembered.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import hiredis
from common import STAMP_CHARS, leave, paced, payload, percentiles, ready, run, spec, tell, wait_until

CHANNEL = "load-0"
STREAM = f"message-stream:{CHANNEL}"
MARKS = f"relay:{{{STREAM}}}"
STAMP = b'"t":"'
RECEIVE_BYTES = 256 * 1024
_NOT_YET = object()
_now = time.perf_counter_ns


class Connection:
    """One blocking connection: bytes out, answers in."""

    def __init__(self, place: str | list[Any]) -> None:
        if isinstance(place, str):
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(place)
        else:
            self._socket = socket.create_connection((place[0], place[1]))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader(notEnoughData=_NOT_YET)

    def send(self, data: bytes) -> None:
        """All of it."""
        self._socket.sendall(data)

    def answers(self) -> Iterator[Any]:
        """One after the other, for ever."""
        while True:
            self._reader.feed(self._socket.recv(RECEIVE_BYTES))
            while (answer := self._reader.gets()) is not _NOT_YET:
                if isinstance(answer, hiredis.ReplyError):
                    raise RuntimeError(str(answer))
                yield answer


class Record:
    """One of our records, with room for a stamp."""

    def __init__(self, wire: str, fields: list[str], length: int) -> None:
        self._wire = _around(wire.encode())
        at = fields.index("payload") + 1
        self._payload = _around(fields[at].encode())
        self._before = tuple(field.encode() for field in fields[:at])
        self._after = tuple(field.encode() for field in fields[at + 1:])
        self._length = length

    def fields(self, stamp: bytes) -> tuple[bytes, ...]:
        """Names and values of the entry in the stream."""
        return (*self._before, stamp.join(self._payload), *self._after)

    def wire(self, stamp: bytes) -> bytes:
        """What is published."""
        return stamp.join(self._wire)

    def commands(self, count: int) -> list[bytes]:
        """XADD and PUBLISH, so many times."""
        packed: list[bytes] = []
        for _ in range(count):
            stamp = b"%020d" % _now()
            packed += (
                hiredis.pack_command(("XADD", STREAM, "MAXLEN", "~", self._length, "*", *self.fields(stamp))),
                hiredis.pack_command(("PUBLISH", CHANNEL, self.wire(stamp))))
        return packed

    def forward(self, sha: str, first: int, count: int) -> bytes:
        """One call of the relay's script with so many items."""
        arguments: list[bytes | str | int] = ["EVALSHA", sha, 2, STREAM, MARKS, "raw~raw~1.1.1", 0, 0, CHANNEL, self._length]
        for seq in range(first, first + count):
            stamp = b"%020d" % _now()
            fields = self.fields(stamp)
            arguments += (seq, seq, 1234567890, self.wire(stamp), len(fields), *fields)
        return hiredis.pack_command(tuple(arguments))


def _around(data: bytes) -> tuple[bytes, bytes]:
    at = data.index(STAMP) + len(STAMP)
    return data[:at], data[at + STAMP_CHARS:]


def whole(count: int, batch: int) -> None:
    """A part of a batch would never come, and who waits for it would wait long."""
    if count % batch:
        raise ValueError(f"{count} messages are not batches of {batch}")


def commands(
    *, place: str | list[Any], wire: str, fields: list[str], length: int, count: int, batch: int = 1, rate: float = 0.0
) -> None:
    """XADD and PUBLISH of each message, ``batch`` messages in one write."""
    whole(count, batch)
    record, connection = Record(wire, fields, length), Connection(place)
    answers = connection.answers()
    ready()
    begun = _now()
    for n in range(count // batch):
        if rate:
            wait_until(begun + int(n * 1e9 / rate))
        packed = record.commands(batch)
        connection.send(b"".join(packed))
        for _ in packed:
            next(answers)
    tell(begun=begun, ended=_now())


def forward(
    *, place: str | list[Any], wire: str, fields: list[str], length: int, count: int, batch: int, text: str
) -> None:
    """The relay's script, ``batch`` messages a call."""
    whole(count, batch)
    record, connection = Record(wire, fields, length), Connection(place)
    answers = connection.answers()
    connection.send(hiredis.pack_command(("SCRIPT", "LOAD", text)))
    sha = next(answers).decode()
    ready()
    begun = _now()
    for n in range(count // batch):
        connection.send(record.forward(sha, 1 + n * batch, batch))
        if next(answers)[0] != b"OK":
            raise RuntimeError("the script refused what is in order")
    tell(begun=begun, ended=_now())


def hear(*, place: str | list[Any], count: int, latency: bool = False) -> None:
    """Count what is published."""
    connection = Connection(place)
    connection.send(hiredis.pack_command(("SUBSCRIBE", CHANNEL)))
    answers = connection.answers()
    next(answers)
    ready()
    latencies: list[int] = []
    for _ in range(count):
        data = next(answers)[2]
        if latency:
            at = data.index(STAMP) + len(STAMP)
            latencies.append(_now() - int(data[at : at + STAMP_CHARS]))
    tell(ended=_now(), **percentiles(latencies))


# ── the client library ───────────────────────────────────────────────────────────────────────────────────────────────


async def library_publish(*, url: str, wire: str, count: int, rate: float) -> None:
    """PUBLISH of the same record as JSON, awaited, at a pace."""
    import redis.asyncio as library

    record = json.loads(wire)
    client = library.Redis.from_url(url)
    await client.ping()
    ready()
    begun = _now()
    for n in range(count):
        await paced(begun + int(n * 1e9 / rate))
        record["payload"] = payload()
        await client.publish(CHANNEL, json.dumps(record))
    tell(begun=begun, ended=_now())


async def library_subscribe(*, url: str, count: int) -> None:
    """Its ``listen``, and a handler that is given what was published."""
    import redis.asyncio as library

    latencies: list[int] = []

    async def handle(message: dict[str, Any]) -> None:
        latencies.append(_now() - int(message["payload"]["t"][:STAMP_CHARS]))

    pubsub = library.Redis.from_url(url).pubsub()
    await pubsub.subscribe(CHANNEL)
    heard = pubsub.listen()
    await anext(heard)
    ready()
    for _ in range(count):
        await handle(json.loads((await anext(heard))["data"]))
    tell(ended=_now(), **percentiles(latencies))


ROLES: dict[str, Callable[..., Any]] = {
    "commands": commands, "forward": forward, "hear": hear,
    "library_publish": lambda **given: run(library_publish(**given)),
    "library_subscribe": lambda **given: run(library_subscribe(**given)),
}

if __name__ == "__main__":
    given = spec()
    ROLES[given.pop("role")](**given)
    leave()
