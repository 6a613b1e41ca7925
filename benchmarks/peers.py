"""Peers side by side: each is given the same work, and one whose package or server is not here is said to be missing.

    python benchmarks/peers.py [--count 5000] [--rounds 3]     # this section alone
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from figures import Row, spread
from raw import database
from redis_figures import redis_server
from stand import LOOK_AGAIN_S, Role, Samples, alone, directory, median, pair, rate

READY_S = 10.0
COUNT = 5000
OURS_COUNT = 64_000
FILE_BAR = 3.0
REDIS = "a Redis"
ROUNDS = 3
HOST = "127.0.0.1"
HZ, PACED_S = 500, 2.0
FILES, SITES = "ours, one site", "ours, two sites"
AWAITED, LATENCY = "each publish awaited, msg/s", f"latency at {HZ} msg/s, {{part}}"


@dataclass(frozen=True, slots=True)
class Peer:
    """One row: what people call it, the roles it has, and what must be here for it."""

    name: str
    package: str
    writer: str
    reader: str
    server: str = ""
    note: str = ""
    after: bool = False
    """Its reader begins when its writer has ended; the rate counts the time of both."""
    paced: bool = True
    """Its latency is measured: it takes one message at a time, while its reader reads."""
    bar: float = 0.0
    """How many times its rate ours through files has to be; 0: none, for its promises are others or it does not wait."""
    redis_bar: float = 0.0
    """The same for ours from site to site."""

    def lacks(self) -> str:
        """What is not here; empty if all is."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"the package {self.package}"
        here = redis_server() is not None if self.server == REDIS else not self.server or program(self.server) is not None
        return "" if here else self.server


def _files(name: str, package: str, role: str, note: str, **more: Any) -> Peer:
    return Peer(name, package, f"{role}_publish", f"{role}_subscribe", "", note, **more)


def _server(name: str, package: str, role: str, server: str, note: str, **more: Any) -> Peer:
    return Peer(name, package, f"{role}_publish", f"{more.pop('reader', role)}_subscribe", server, note, **more)


FILE_PEERS = (
    _files("SQLite, 64 rows a commit", "", "sqlite", "WAL, NORMAL", paced=False),
    _files("Kombu, filesystem", "kombu", "kombu",
           "reader after writer: beside it, it reads half-written files and fails", after=True, paced=False, bar=FILE_BAR),
    _files("dirq", "dirq", "dirq", "a file a message", bar=FILE_BAR),
    _files("litequeue", "litequeue", "litequeue", "SQLite, NORMAL, done after the handler", bar=FILE_BAR),
    _files("persist-queue", "persistqueue", "persist_queue", "SQLite, acknowledged, each commit waits for the disk"),
    _files("huey", "huey", "huey", "SQLite, a task a message, each commit waits for the disk"),
)
SERVER_PEERS = (
    _server("NATS core", "nats", "nats", "nats-server", "nothing is kept, nothing awaited"),
    _server("JetStream", "nats", "jetstream", "nats-server", "on files, each awaited", bar=20.0, redis_bar=10.0),
    _server("JetStream, 256 outstanding", "nats", "jetstream_outstanding", "nats-server", "on files", reader="jetstream",
            paced=False, bar=3.0),
    _server("MQTT, QoS 1", "aiomqtt", "mqtt", "mosquitto", "session kept in memory, each awaited"),
    _server("Kombu, Redis", "kombu", "kombu", REDIS, "acknowledged"),
    _server("taskiq, Redis streams", "taskiq_redis", "taskiq", REDIS, "acknowledged, a task a message"),
    _server("ZeroMQ over ipc", "zmq", "zeromq", "", "no broker, nothing is kept"),
)
PEERS = (*FILE_PEERS, *SERVER_PEERS)


def program(name: str) -> str | None:
    """The path of a server; Debian puts some where only root looks."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


# ── servers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _command(server: str, port: int, path: Path) -> list[str]:
    binary = program(server)
    assert binary is not None, "whoever lacks a server is not run"
    if server == "nats-server":
        return [binary, "-a", HOST, "-p", str(port), "-js", "-sd", str(path)]
    (path / "mosquitto.conf").write_text(
        f"listener {port} {HOST}\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n")
    return [binary, "-c", str(path / "mosquitto.conf")]


@contextmanager
def served(server: str, path: Path) -> Iterator[str | int]:
    """What to connect to: a server of our own with nothing in it, or a socket."""
    if not server:
        yield f"ipc://{path}/s"
        return
    if server == REDIS:
        redis = redis_server()
        assert redis is not None, "whoever lacks a server is not run"
        with redis:
            yield redis.url("redis")
        return
    port = _free_port()
    process = subprocess.Popen(_command(server, port, path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield f"nats://{HOST}:{port}" if server == "nats-server" else port
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int) -> None:
    ends = time.monotonic() + READY_S
    while time.monotonic() < ends:
        with suppress(OSError), socket.create_connection((HOST, port)):
            return
        time.sleep(LOOK_AGAIN_S)
    raise RuntimeError(f"no server answers on port {port} within {READY_S} s")


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Compared:
    """Runs ours and every peer round by round and keeps what they gave."""

    root: Path
    samples: dict[str, Samples] = field(default_factory=dict)
    absent: dict[Peer, str] = field(default_factory=dict)

    def round(self, count: int, ours_count: int, paced_s: float) -> None:
        """Ours through files, ours through a Redis, every peer."""
        paced = int(HZ * paced_s)
        for side, redis in ((FILES, False), (SITES, True)):
            if redis and redis_server() is None:
                continue
            self._ours(side, ours_count, redis)
            self._ours(side, paced, redis, rate=HZ)
        for peer in PEERS:
            if peer not in self.absent:
                self._peer(peer, count, paced)

    def _ours(self, side: str, count: int, redis: bool, **more: Any) -> None:
        with directory(self.root) as path, served(REDIS if redis else "", path) as place:
            url, homes = (str(place), "ab") if redis else ("", "aa")
            reader = Role("ours.py", "subscribe", home=f"{path}/{homes[1]}", url=url, count=count, latency=bool(more))
            writer = Role("ours.py", "publish", home=f"{path}/{homes[0]}", url=url, count=count, **more)
            self._add(side, count, *pair(reader, writer))

    def _peer(self, peer: Peer, count: int, paced: int) -> None:
        """What fails once is not tried again; the report says how it failed."""
        try:
            self._run(peer, count, 0)
            if peer.paced:
                self._run(peer, paced, HZ)
        except RuntimeError as error:
            self.absent[peer] = f"{peer.name} ({error})"

    def _run(self, peer: Peer, count: int, hz: int) -> None:
        with directory(self.root) as path, served(peer.server, path) as place:
            script, where = "server_peers.py", {"place": place}
            if peer in FILE_PEERS:
                script, where = "file_peers.py", {"path": str(path)}
                database(f"{path}/log.db").close()
            reader = Role(script, peer.reader, count=count, hz=hz, **where)
            writer = Role(script, peer.writer, count=count, hz=hz, **where)
            self._add(peer.name, count, *(_one_after_the_other if peer.after else pair)(reader, writer))

    def _add(self, side: str, count: int, read: dict[str, Any], wrote: dict[str, Any]) -> None:
        if "p50" in read:
            for part in ("p50", "p99"):
                self.samples.setdefault(LATENCY.format(part=part), Samples()).add(side, read[part])
        else:
            self.samples.setdefault(AWAITED, Samples()).add(side, rate(count, wrote["begun"], read["ended"]))

    def rows(self) -> list[Row]:
        """A row for each figure and peer: ours through files, for a server ours from site to site as well."""
        return [self._row(figure, side, peer, samples.sides) for figure, samples in self.samples.items() for peer in PEERS
                for side in (FILES, SITES) if side in samples.sides and peer.name in samples.sides and _beside(side, peer)]

    def _row(self, figure: str, side: str, peer: Peer, sides: dict[str, list[float]]) -> Row:
        ours, other, unit = sides[side], sides[peer.name], "" if figure == AWAITED else " µs"
        ratio = median(ours) / median(other)
        bar = 0.0 if figure != AWAITED else peer.bar if side == FILES else peer.redis_bar
        return Row(figure, f"{side}: {spread(ours, unit)}", f"{peer.name} ({peer.note}): {spread(other, unit)}",
                   f"{ratio:.2f}", f"≥ {bar}" if bar else "–", ratio >= bar if bar else None)


def _beside(side: str, peer: Peer) -> bool:
    """A peer on our own Redis stands beside ours through that alone."""
    return peer.server != REDIS if side == FILES else bool(peer.server)


def _one_after_the_other(reader: Role, writer: Role) -> tuple[dict[str, Any], dict[str, Any]]:
    """The reader's time counts from the end of the writer's."""
    wrote = alone(writer)
    try:
        reader.hear()
        begun = time.perf_counter_ns()
        reader.go()
        took = reader.hear()["ended"] - begun
    finally:
        reader.end()
    return {"ended": wrote["ended"] + took}, wrote


def compared(root: Path, rounds: int, count: int, ours_count: int, paced_s: float) -> tuple[list[Row], list[str]]:
    """A row for each figure and peer, and what is missing or failed, in words.  All take turns."""
    found = Compared(root, absent={peer: f"{peer.name} ({lack} is not here)" for peer in PEERS if (lack := peer.lacks())})
    for number in range(rounds):
        found.round(count, ours_count, paced_s)
        print(f"peers: round {number + 1} of {rounds}", flush=True)
    return found.rows(), list(found.absent.values())


def main() -> None:
    """This section alone."""
    parser = argparse.ArgumentParser(description="measure the peers")
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="lemegeton-peers-"))
    try:
        rows, absent = compared(root, given.rounds, given.count, OURS_COUNT, PACED_S)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    for row in rows:
        print(f"{row.figure}: {row.ours}   {row.other}   ratio {row.ratio}, bar {row.bar}")
    print("missing:", ", ".join(absent) or "none")


if __name__ == "__main__":
    main()
