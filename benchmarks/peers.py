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
from dataclasses import dataclass
from pathlib import Path

from figures import Row, spread
from raw import database
from redis_figures import redis_server
from stand import LOOK_AGAIN_S, Role, directory, median, pair, rate

READY_S = 10.0
COUNT = 5000
OURS_COUNT = 64_000
FILE_BAR = 3.0
REDIS = "a Redis"
ROUNDS = 3
HOST = "127.0.0.1"


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
    bar: float = 0.0
    """How many times its rate ours has to be; 0: none, for it promises less or does not wait for each message."""

    def lacks(self) -> str:
        """What is not here; empty if all is."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"the package {self.package}"
        here = redis_server() is not None if self.server == REDIS else not self.server or program(self.server) is not None
        return "" if here else self.server


def _files(name: str, package: str, role: str, note: str, *, after: bool = False, bar: float = FILE_BAR) -> Peer:
    return Peer(name, package, f"{role}_publish", f"{role}_subscribe", "", note, after, bar)


FILE_PEERS = (
    _files("SQLite, 64 rows a commit", "", "sqlite", "WAL, NORMAL", bar=0.0),
    _files("Kombu, filesystem", "kombu", "kombu",
           "reader after writer: beside it, it reads half-written files and fails", after=True),
    _files("dirq", "dirq", "dirq", "a file a message"),
    _files("persist-queue", "persistqueue", "persist_queue", "SQLite, acknowledged"),
    _files("litequeue", "litequeue", "litequeue", "SQLite, done after the handler"),
    _files("huey", "huey", "huey", "SQLite, a task a message"),
)
SERVER_PEERS = (
    Peer("NATS core", "nats", "nats_publish", "nats_subscribe", "nats-server", "nothing is kept"),
    Peer("JetStream", "nats", "jetstream_publish", "jetstream_subscribe", "nats-server",
         "on files, each awaited", bar=20.0),
    Peer("JetStream, 256 outstanding", "nats", "jetstream_outstanding_publish", "jetstream_subscribe", "nats-server",
         "on files", bar=3.0),
    Peer("MQTT, QoS 1", "aiomqtt", "mqtt_publish", "mqtt_subscribe", "mosquitto", "session kept in memory, each awaited"),
    Peer("Kombu, Redis", "kombu", "kombu_publish", "kombu_subscribe", REDIS, "acknowledged"),
    Peer("taskiq, Redis streams", "taskiq_redis", "taskiq_publish", "taskiq_subscribe", REDIS,
         "acknowledged, a task a message"),
    Peer("ZeroMQ over ipc", "zmq", "zeromq_publish", "zeromq_subscribe", "", "no broker, nothing is kept"),
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


def measure(peer: Peer, root: Path, count: int) -> float:
    """Messages a second, from the first publish to the last handler."""
    with directory(root) as path:
        if peer in SERVER_PEERS:
            with served(peer.server, path) as place:
                reader = Role("server_peers.py", peer.reader, place=place, count=count)
                read, wrote = pair(reader, Role("server_peers.py", peer.writer, place=place, count=count))
            return rate(count, wrote["begun"], read["ended"])
        database(f"{path}/log.db").close()
        if peer.after:
            return _one_after_the_other(peer, path, count)
        reader = Role("file_peers.py", peer.reader, path=str(path), count=count)
        read, wrote = pair(reader, Role("file_peers.py", peer.writer, path=str(path), count=count))
        return rate(count, wrote["begun"], read["ended"])


def _one_after_the_other(peer: Peer, path: Path, count: int) -> float:
    writer = Role("file_peers.py", peer.writer, path=str(path), count=count)
    try:
        writer.hear()
        writer.go()
        wrote = writer.hear()
    finally:
        writer.end()
    reader = Role("file_peers.py", peer.reader, path=str(path), count=count)
    try:
        reader.hear()
        begun = time.perf_counter_ns()
        reader.go()
        return count / ((wrote["ended"] - wrote["begun"] + reader.hear()["ended"] - begun) / 1e9)
    finally:
        reader.end()


def measure_ours(root: Path, count: int) -> float:
    """The same work by us, each publish awaited: durable, through files."""
    with directory(root) as path:
        reader = Role("ours.py", "subscribe", home=str(path), count=count, patterns=("load-0",))
        read, wrote = pair(reader, Role("ours.py", "publish", home=str(path), count=count))
        return rate(count, wrote["begun"], read["ended"])


def compared(root: Path, rounds: int, count: int, ours_count: int) -> tuple[list[Row], list[str]]:
    """A row for each peer, and what is missing or failed, in words.  All take turns."""
    ours: list[float] = []
    found: dict[Peer, list[float]] = {}
    absent = {peer: f"{peer.name} ({lack} is not here)" for peer in PEERS if (lack := peer.lacks())}
    for number in range(rounds):
        ours.append(measure_ours(root, ours_count))
        for peer in PEERS:
            if peer in absent:
                continue
            try:
                found.setdefault(peer, []).append(measure(peer, root, count))
            except RuntimeError as error:
                absent[peer] = f"{peer.name} ({error})"
        print(f"peers: round {number + 1} of {rounds}", flush=True)
    return [_row(peer, ours, values) for peer, values in found.items() if peer not in absent], list(absent.values())


def _row(peer: Peer, ours: list[float], values: list[float]) -> Row:
    ratio = median(ours) / median(values)
    other = f"{peer.name} ({peer.note}): {spread(values, '')}"
    return Row("each publish awaited, msg/s", spread(ours, ""), other, f"{ratio:.2f}",
               f"≥ {peer.bar}" if peer.bar else "–", ratio >= peer.bar if peer.bar else None)


def main() -> None:
    """This section alone."""
    parser = argparse.ArgumentParser(description="measure the peers")
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="lemegeton-peers-"))
    try:
        rows, absent = compared(root, given.rounds, given.count, OURS_COUNT)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    for row in rows:
        print(f"{row.other}   ours {row.ours}   ratio {row.ratio}, bar {row.bar}")
    print("missing:", ", ".join(absent) or "none")


if __name__ == "__main__":
    main()
