"""The Redis figures: two sites on one machine, beside what the server can do by hand, its client library, and a peer."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import PAYLOAD_BYTES
from figures import CHANNELS, FAST_HZ, PAYLOADS, SLOW_HZ, TASKS, WRITERS, among_channels, channel_side, costs, latencies
from outage import outage
from stand import Found, Role, StepFailed, Turn, alone, crowd, directory, rate
from table import Part, beside

from lemegeton.config import Settings
from lemegeton.logs.redis_replica import HARD_LENGTH
from lemegeton.logs.redis_scripts import FORWARD
from lemegeton.testing.servers import RedisServer, servers

CHANNEL = "load-0"
BATCH = 64
TCP, UNIX = KINDS = ("TCP", "unix socket")
STREAM = f"message-stream:{CHANNEL}"
MARKS = f"relay:{{{STREAM}}}"
PROBED = 1000
HISTORY = 10_000

THROUGHPUT = "Redis: {kind}, 64 tasks, msg/s"
AWAITED = "Redis: {kind}, each publish awaited, msg/s"
EIGHT = "Redis: {kind}, eight publishers of 64 tasks, msg/s"
LARGE = "Redis: {kind}, payload of {size}, 64 tasks, msg/s"
MANY = "Redis: {kind}, channels in turn, glob subscription, msg/s"
LATENCY = "Redis: {kind}, latency at {hz:,} msg/s, {part}, µs"
SERVER = "CPU of the server, µs a message"
KEPT = f"Redis: {HISTORY:,} messages of history, memory of the server, MB"
BATCHES, SCRIPT, ALONE = "XADD + PUBLISH by hand, 64 at once", "our script by hand, 64 at once", \
    "XADD + PUBLISH by hand, one at a time"
LIBRARY, FASTSTREAM = "redis-py PUBLISH", "FastStream pub/sub"


@dataclass(frozen=True, slots=True)
class RedisSize:
    """How much a run does: messages of ours and by hand, of the slow ones, of each large payload; seconds paced; rounds of
    ours and the limits, of peers, of outages."""

    messages: int = 64_000
    slow: int = 6_400
    large: tuple[int, int] = (16_000, 640)
    paced_s: float = 2.2
    rounds: int = 5
    peer_rounds: int = 3
    outages: int = 3


REDIS_QUICK = RedisSize(messages=5_120, slow=640, large=(1_280, 128), paced_s=0.6, rounds=1, peer_rounds=1, outages=1)


def redis_server() -> RedisServer | None:
    """The newest Valkey, else the newest Redis; None where there is no server."""
    found = sorted(servers(), key=lambda one: (one.name.startswith("valkey"), one.version))
    return RedisServer(found[-1].binary, tcp=True) if found else None


def told_of(server: RedisServer, section: str, *fields: str) -> float:
    """The sum of what a server says about itself in these fields."""
    lines = server.cli("INFO", section).decode().split()
    return sum(float(line.partition(":")[2]) for line in lines if line.startswith(tuple(f"{name}:" for name in fields)))


def server_cpu(server: RedisServer) -> float:
    """Seconds of CPU of a server."""
    return told_of(server, "cpu", "used_cpu_sys", "used_cpu_user")


@dataclass(slots=True)
class RedisBench:
    """Runs the figures on one server that is emptied between two runs."""

    root: Path
    size: RedisSize
    found: Found
    server: RedisServer
    peers: bool = True
    _records: dict[int, dict[str, Any]] = field(default_factory=dict)

    # ------------------------------------------------------------------------------------------ runs

    def url(self, kind: str) -> str:
        """Where the server is."""
        return self.server.url("redis" if kind == TCP else "unix")

    def place(self, kind: str) -> str | list[Any]:
        """The same for a raw socket."""
        return list(self.server.address) if kind == TCP else self.server.path

    def record(self, payload: int = PAYLOAD_BYTES) -> dict[str, Any]:
        """One of our records with such a payload as the relay makes it: what the others carry."""
        if payload not in self._records:
            count = min(PROBED, 50 * 2**20 // payload)
            self.server.cli("FLUSHALL")
            with directory(self.root) as path:
                alone(Role("ours.py", "publish", home=str(path / "a"), count=count, url=self.url(UNIX), payload_bytes=payload),
                      until=lambda: self.relayed() == count)
                wire = sorted(path.glob("a/messages/*/*.log"))[-1].read_text().splitlines()[-1][9:]
            entry = self.server.cli("XREVRANGE", STREAM, "+", "-", "COUNT", 1)[0]
            self._records[payload] = {"wire": wire, "fields": [field.decode() for field in entry[1]],
                                      "length": Settings().max_stream_length * HARD_LENGTH}
        return self._records[payload]

    def relayed(self) -> int:
        """The highest sequence that the server has."""
        marks = self.server.cli("HVALS", MARKS)
        return int(marks[0].partition(b":")[0]) if marks else 0

    def ours(self, figure: str, kind: str, count: int, *, side: str = "ours", pattern: str = CHANNEL, writers: int = 1,
             **more: Any) -> None:
        """Publishers on one site, a durable subscriber on the other."""
        with directory(self.root) as path:
            here, url = str(path / "a"), self.url(kind)
            reader = Role("ours.py", "subscribe", home=str(path / "b"), count=count, patterns=[pattern],
                          latency="rate" in more, url=url)
            self._run(figure, side, count, reader, [
                Role("ours.py", "publish", home=here, count=count // writers, url=url, name=f"sender{n}", **more)
                for n in range(writers)])

    def by_hand(self, figure: str, kind: str, side: str, count: int, *, writers: int = 1, payload: int = PAYLOAD_BYTES,
                **more: Any) -> None:
        """Raw sockets."""
        role, more = ("forward", {"text": FORWARD.text, **more}) if side == SCRIPT else ("commands", more)
        given = {"place": self.place(kind), **self.record(payload), **more}
        reader = Role("redis_raw.py", "hear", place=self.place(kind), count=count, latency="rate" in more)
        self._run(figure, side, count, reader,
                  [Role("redis_raw.py", role, count=count // writers, **given) for _ in range(writers)])

    def library(self, figure: str, kind: str, count: int, hz: int) -> None:
        """The client library, awaited at a pace."""
        reader = Role("redis_raw.py", "library_subscribe", url=self.url(kind), count=count)
        writer = Role("redis_raw.py", "library_publish", url=self.url(kind), count=count, wire=self.record()["wire"], rate=hz)
        self._run(figure, LIBRARY, count, reader, [writer])

    def faststream(self, figure: str, kind: str, count: int) -> None:
        """The peer, from as many tasks as ours."""
        given = {"place": self.url(kind), "count": count, "hz": 0}
        self._run(figure, FASTSTREAM, count, Role("redis_peers.py", "faststream_subscribe", **given),
                  [Role("redis_peers.py", "faststream_publish", tasks=TASKS, **given)])

    def _run(self, figure: str, side: str, count: int, reader: Role, writers: list[Role]) -> None:
        self.server.cli("FLUSHALL")
        ran = crowd([reader], writers, lambda: server_cpu(self.server))
        if "p50" in ran.read[0].told:
            latencies(self.found, figure, side, ran.read[0].told)
            return
        self.found.add(figure, side, rate(count, ran.begun, ran.ended))
        self.found.add(f"{figure.removesuffix(', msg/s')}, {SERVER}", side, ran.server_s * 1e6 / count)
        if figure == THROUGHPUT.format(kind=TCP):
            costs(self.found, figure, side, count, ran.read[0], ran.wrote[0])

    def history(self) -> None:
        """What the history of a channel takes in the server."""
        self.server.cli("FLUSHALL")
        before, count = told_of(self.server, "memory", "used_memory"), HISTORY
        with directory(self.root) as path:
            writer = Role("ours.py", "publish", home=str(path / "a"), count=count, url=self.url(UNIX))
            alone(writer, until=lambda: self.relayed() == count)
        if (kept := self.server.cli("XLEN", STREAM)) < count:
            raise StepFailed(f"the stream keeps {kept} of {count} messages")
        self.found.add(KEPT, "ours", (told_of(self.server, "memory", "used_memory") - before) / 2**20)

    # ------------------------------------------------------------------------------------------ turns

    def turns(self) -> list[Turn]:
        """All figures.  TCP has all of them; the socket has those with a bar."""
        rounds, size = self.size.rounds, self.size
        turns = [turn for kind in KINDS for turn in (*self._throughput(kind), *self._latency(kind, SLOW_HZ))]
        awaited, eight, count = AWAITED.format(kind=TCP), EIGHT.format(kind=TCP), size.messages
        return [
            *turns, *self._latency(TCP, FAST_HZ),
            Turn("redis.awaited", (lambda: self.ours(awaited, TCP, count),
                                   lambda: self.by_hand(awaited, TCP, ALONE, count // 4)), rounds),
            Turn("redis.eight", (lambda: self.ours(eight, TCP, count, tasks=TASKS, writers=WRITERS),
                                 lambda: self.by_hand(eight, TCP, BATCHES, count, batch=BATCH, writers=WRITERS)), rounds),
            Turn("redis.channels", [self._channels(channels) for channels in CHANNELS], min(rounds, size.peer_rounds)),
            *(self._large(payload, some) for payload, some in zip(PAYLOADS, size.large, strict=True)),
            Turn("redis.outage", (lambda: outage(self.root, self.server, self.found),), size.outages),
            Turn("redis.history", (self.history,), 1),
        ]

    def _throughput(self, kind: str) -> list[Turn]:
        figure, size = THROUGHPUT.format(kind=kind), self.size
        sides = (lambda: self.ours(figure, kind, size.messages, tasks=TASKS),
                 lambda: self.by_hand(figure, kind, BATCHES, size.messages, batch=BATCH),
                 lambda: self.by_hand(figure, kind, SCRIPT, size.messages, batch=BATCH))
        peer = (lambda: self.faststream(figure, kind, size.slow),)
        return self._with_peer(f"redis.tasks-{kind}", sides, peer if importlib.util.find_spec("faststream") else ())

    def _latency(self, kind: str, hz: int) -> list[Turn]:
        figure = LATENCY.replace("{kind}", kind).replace("{hz:,}", f"{hz:,}")
        count = int(hz * self.size.paced_s)
        sides = (lambda: self.ours(figure, kind, count, rate=hz), lambda: self.by_hand(figure, kind, ALONE, count, rate=hz))
        return self._with_peer(f"redis.latency-{hz}-{kind}", sides,
                               (lambda: self.library(figure, kind, count, hz),))

    def _with_peer(self, name: str, sides: tuple[Callable[[], None], ...], peer: tuple[Callable[[], None], ...]) -> list[Turn]:
        """The peer takes its turn in fewer rounds."""
        name, rounds, peer = name.replace(" ", "-"), self.size.rounds, peer if self.peers else ()
        both = min(rounds, self.size.peer_rounds) if peer else 0
        return [turn for turn in (Turn(name, (*sides, *peer), both), Turn(name, sides, rounds - both)) if turn.rounds]

    def _channels(self, channels: int) -> Callable[[], None]:
        return lambda: self.ours(MANY.format(kind=TCP), TCP, self.size.messages // 4, side=channel_side(channels),
                                 pattern="load-*", channel_count=channels)

    def _large(self, payload: int, count: int) -> Turn:
        figure = LARGE.format(kind=TCP, size=PAYLOADS[payload])
        return Turn(f"redis.payload-{payload}", (
            lambda: self.ours(figure, TCP, count, tasks=TASKS, payload_bytes=payload),
            lambda: self.by_hand(figure, TCP, BATCHES, count, payload=payload, batch=BATCH)), self.size.rounds)

    # ------------------------------------------------------------------------------------------ the section

    def part(self) -> Part:
        """Everything that was measured."""
        figures = [name for name in self.found.samples if name.startswith("Redis: ")]
        compared = [name for name in figures if self.found.values(name, channel_side(CHANNELS[0]))]
        return Part("redis", "Redis", TEXT, [
            *beside(self.found, [name for name in figures if name not in compared]), *among_channels(compared)])


TEXT = """Two sites on this machine. Ours: publish → file → relay → script (XADD, PUBLISH, mark) → doorbell → decode, intent,
handler, settled, in a durable subscription of the other site. By hand: a raw socket, commands packed with hiredis, the same
fields and bytes on the same server, a subscriber that counts; nothing on a disk, nothing numbered or remembered."""
