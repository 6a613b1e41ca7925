"""The Redis figures: two sites on one machine, beside what the server can do by hand, its client library, and peers."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from figures import Row, spread
from stand import Role, Samples, alone, directory, median, pair, rate

from lemegeton.config import Settings
from lemegeton.logs.redis_replica import HARD_LENGTH
from lemegeton.logs.redis_scripts import FORWARD
from lemegeton.testing.servers import RedisServer, servers

CHANNEL = "load-0"
TASKS = BATCH = 64
SLOW_HZ, FAST_HZ = 500, 5000
KINDS = ("TCP", "unix socket")
STREAM = f"message-stream:{CHANNEL}"
HISTORY = 10_000
OUTAGES, OUTAGE_S = 3, 5.0
HISTORY_BAR_MB = 100.0

THROUGHPUT = "{kind}, 64 tasks, msg/s"
AWAITED = "{kind}, each publish awaited, msg/s"
LATENCY = "{kind}, latency at {hz:,} msg/s"
OURS, BATCHES, SCRIPT, ALONE = "ours", "XADD + PUBLISH by hand, 64 at once", "our script by hand, 64 at once", \
    "XADD + PUBLISH by hand, one at a time"
LIBRARY, FASTSTREAM = "redis-py PUBLISH", "FastStream pub/sub"
BARS: dict[tuple[str, str], float] = {
    **{(THROUGHPUT.format(kind=kind), side): bar for kind in KINDS
       for side, bar in ((BATCHES, 0.5), (SCRIPT, 0.7), (FASTSTREAM, 10.0))},
    **{(f"{LATENCY.format(kind=kind, hz=SLOW_HZ)}, p50", LIBRARY): -1.3 for kind in KINDS},
}
"""Figure and side → at least so many times that side; negative: at most."""


@dataclass(frozen=True, slots=True)
class RedisSize:
    """How much a run does: messages of ours and by hand, of the library and peers, seconds paced."""

    messages: int = 64_000
    slow: int = 6_400
    paced_s: float = 3.0


REDIS_QUICK = RedisSize(messages=12_800, slow=1_280, paced_s=0.6)


def missing() -> list[str]:
    """The peers that are not installed here."""
    return [] if importlib.util.find_spec("faststream") else [FASTSTREAM]


@dataclass(slots=True)
class RedisBench:
    """Runs the figures round by round, on one server that is emptied between two runs, and keeps what they gave."""

    root: Path
    size: RedisSize
    server: RedisServer
    peers: bool = True
    samples: dict[str, Samples] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    rounds: int = 0

    # ------------------------------------------------------------------------------------------ runs

    def url(self, kind: str) -> str:
        """Where the server is."""
        return self.server.url("redis" if kind == "TCP" else "unix")

    def place(self, kind: str) -> str | list[Any]:
        """The same for a raw socket."""
        return list(self.server.address) if kind == "TCP" else self.server.path

    def probe(self) -> None:
        """One of our records as the relay makes it: what the others carry."""
        self.server.cli("FLUSHALL")
        with directory(self.root) as path:
            writer = Role("ours.py", "publish", home=str(path / "a"), count=1000, url=self.url("unix"))
            alone(writer, until=lambda: self.server.cli("XLEN", STREAM) == 1000)
            wire = next(path.glob("a/messages/*/*.log")).read_text().splitlines()[-1][9:]
        entry = self.server.cli("XREVRANGE", STREAM, "+", "-", "COUNT", 1)[0]
        self.record = {"wire": wire, "fields": [field.decode() for field in entry[1]],
                       "length": Settings().max_stream_length * HARD_LENGTH}

    def ours(self, figure: str, kind: str, count: int, **more: Any) -> None:
        """Publisher on one site, durable subscriber on the other."""
        with directory(self.root) as path:
            reader = Role("ours.py", "subscribe", home=str(path / "b"), count=count, latency="rate" in more,
                          url=self.url(kind))
            writer = Role("ours.py", "publish", home=str(path / "a"), count=count, url=self.url(kind), **more)
            self._pair(figure, OURS, count, reader, writer)

    def by_hand(self, figure: str, kind: str, side: str, count: int, **more: Any) -> None:
        """Raw sockets."""
        role, more = ("forward", {"text": FORWARD.text, **more}) if side == SCRIPT else ("commands", more)
        reader = Role("redis_raw.py", "hear", place=self.place(kind), count=count, latency="rate" in more)
        writer = Role("redis_raw.py", role, place=self.place(kind), count=count, **self.record, **more)
        self._pair(figure, side, count, reader, writer)

    def other(self, figure: str, kind: str, side: str, count: int, **more: Any) -> None:
        """The client library, or a peer."""
        script, name = ("redis_raw.py", "library") if side == LIBRARY else ("redis_peers.py", "faststream")
        given = {"wire": self.record["wire"]} if side == LIBRARY else {}
        reader = Role(script, f"{name}_subscribe", url=self.url(kind), count=count, latency="rate" in more)
        writer = Role(script, f"{name}_publish", url=self.url(kind), count=count, **given, **more)
        self._pair(figure, side, count, reader, writer)

    def _pair(self, figure: str, side: str, count: int, reader: Role, writer: Role) -> None:
        self.server.cli("FLUSHALL")
        before = self._server_cpu()
        read, wrote = pair(reader, writer)
        if "p50" in read:
            self.add(f"{figure}, p50", side, read["p50"])
            self.add(f"{figure}, p99", side, read["p99"])
        else:
            self.add(figure, side, rate(count, wrote["begun"], read["ended"]))
            self.add(f"{figure.removesuffix(', msg/s')}, server CPU, µs a message", side,
                     (self._server_cpu() - before) * 1e6 / count)

    def _server_cpu(self) -> float:
        lines = self.server.cli("INFO", "cpu").decode().split()
        return sum(float(line.partition(":")[2]) for line in lines
                   if line.startswith(("used_cpu_sys:", "used_cpu_user:")))

    def add(self, figure: str, side: str, value: float) -> None:
        """One measured value."""
        self.samples.setdefault(figure, Samples()).add(side, value)

    # ------------------------------------------------------------------------------------------ rounds

    def round(self) -> None:
        """Every figure once, the sides one after the other, each time in the other order."""
        self.rounds += 1
        for kind in KINDS:
            for sides in (self._throughput(kind), self._awaited(kind), self._latency(kind, SLOW_HZ),
                          self._latency(kind, FAST_HZ)):
                for side in sides if self.rounds % 2 else reversed(sides):
                    side()

    def _throughput(self, kind: str) -> list[Callable[[], None]]:
        figure, size = THROUGHPUT.format(kind=kind), self.size
        sides: list[Callable[[], None]] = [
            lambda: self.ours(figure, kind, size.messages, tasks=TASKS),
            lambda: self.by_hand(figure, kind, BATCHES, size.messages, batch=BATCH),
            lambda: self.by_hand(figure, kind, SCRIPT, size.messages, batch=BATCH)]
        if self.peers and FASTSTREAM not in missing():
            sides.append(lambda: self.other(figure, kind, FASTSTREAM, size.slow, tasks=TASKS))
        return sides

    def _awaited(self, kind: str) -> list[Callable[[], None]]:
        figure, size = AWAITED.format(kind=kind), self.size
        sides: list[Callable[[], None]] = [lambda: self.ours(figure, kind, size.messages),
                                           lambda: self.by_hand(figure, kind, ALONE, size.messages // 2)]
        if self.peers:
            sides.append(lambda: self.other(figure, kind, LIBRARY, size.slow))
        if self.peers and FASTSTREAM not in missing():
            sides.append(lambda: self.other(figure, kind, FASTSTREAM, size.slow))
        return sides

    def _latency(self, kind: str, hz: int) -> list[Callable[[], None]]:
        figure, count = LATENCY.format(kind=kind, hz=hz), int(hz * self.size.paced_s)
        return [lambda: self.ours(figure, kind, count, rate=hz),
                lambda: self.by_hand(figure, kind, ALONE, count, rate=hz),
                *([lambda: self.other(figure, kind, LIBRARY, count, rate=hz)] if self.peers else [])]

    # ------------------------------------------------------------------------------------------ once

    def history(self) -> Row:
        """What 10,000 messages of history take in the server."""
        self.server.cli("FLUSHALL")
        before = self._memory()
        with directory(self.root) as path:
            writer = Role("ours.py", "publish", home=str(path / "a"), count=HISTORY, url=self.url("unix"))
            alone(writer, until=lambda: self._told() == HISTORY)
        megabytes = (self._memory() - before) / 2**20
        kept = self.server.cli("XLEN", STREAM)
        return Row(f"{kept:,} messages of history, in the server", f"{megabytes:.1f} MB", "–", "–",
                   f"< {HISTORY_BAR_MB:.0f} MB", megabytes < HISTORY_BAR_MB)

    def _told(self) -> int:
        marks = self.server.cli("HVALS", f"relay:{{{STREAM}}}")
        return int(marks[0].partition(b":")[0]) if marks else 0

    def _memory(self) -> int:
        lines = self.server.cli("INFO", "memory").decode().split()
        return int(next(line for line in lines if line.startswith("used_memory:")).partition(":")[2])

    def outage(self) -> list[tuple[float, float]]:
        """SIGKILL under 500 msg/s, back empty a second later: seconds to the next delivery on the same and the other site."""
        found = []
        for _ in range(OUTAGES):
            self.server.cli("FLUSHALL")
            with directory(self.root) as path:
                found.append(self._outage(path))
        return found

    def _outage(self, path: Path) -> tuple[float, float]:
        count, url = int(SLOW_HZ * OUTAGE_S), self.url("unix")
        roles = [Role("ours.py", "subscribe", home=str(path / home), count=count, name=home, stamps=True, url=url)
                 for home in "ab"]
        roles.append(Role("ours.py", "publish", home=str(path / "a"), count=count, rate=SLOW_HZ, url=url))
        try:
            for role in roles:
                role.hear()
                role.go()
            time.sleep(1.0)
            killed = time.perf_counter_ns()
            self.server.kill()
            time.sleep(1.0)
            self.server.start()
            back = time.perf_counter_ns()
            here, there = (role.hear()["stamps"] for role in roles[:2])
            same = min(handled for published, handled in here if published > killed)
            other = min(handled for published, handled in there if published > killed)
            return (same - killed) / 1e9, (other - back) / 1e9
        finally:
            for role in roles:
                role.end()

    # ------------------------------------------------------------------------------------------ the table

    def rows(self) -> list[Row]:
        """What was measured, ours beside each other side."""
        found = [self._row(figure, side, samples) for figure, samples in self.samples.items()
                 for side in samples.sides if side != OURS]
        outages = self.outage()
        for n, what in enumerate(("on the same site, from the kill", "on the other site, from its return")):
            times = [outage[n] * 1000 for outage in outages]
            found.append(Row(f"server SIGKILLed and back empty: next delivery {what}", f"{spread(times, ' ms')}", "–", "–", "–",
                             None))
        return [*found, self.history()]

    def _row(self, figure: str, side: str, samples: Samples) -> Row:
        ours, other = samples.sides[OURS], samples.sides[side]
        unit = "" if "msg/s" in figure.rpartition(", ")[2] else " µs"
        ratio = median(ours) / median(other)
        bar = BARS.get((figure, side), 0.0)
        holds = None if not bar else (ratio >= bar if bar > 0 else ratio <= -bar)
        return Row(figure, spread(ours, unit), f"{side}: {spread(other, unit)}", f"{ratio:.2f}",
                   "–" if not bar else f"≥ {bar}" if bar > 0 else f"≤ {-bar}", holds)


def redis_server() -> RedisServer | None:
    """The newest Valkey, else the newest Redis; None where there is no server."""
    found = sorted(servers(), key=lambda one: (one.name.startswith("valkey"), one.version))
    return RedisServer(found[-1].binary, tcp=True) if found else None
