"""Peers side by side: each is given the same work, and one whose package or server is not here is said to be missing."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from figures import SLOW_HZ, latencies
from peer_list import PEERS, REDIS, Peer, program
from raw import database
from redis_figures import redis_server, told_of
from stand import (
    LOOK_AGAIN_S,
    Crowd,
    Found,
    Ran,
    Role,
    StepFailed,
    Turn,
    alone,
    cpu_s,
    crowd,
    directory,
    median,
    nobody,
    peak_mb,
    rate,
)
from table import NONE, Pair, Part, markdown, number, ratio, spread

READY_S = 10.0
HOST = "127.0.0.1"
FILES, SITES = "ours, one site", "ours, two sites"
AWAITED = "peers: each publish awaited, msg/s"
LATENCY = f"peers: latency at {SLOW_HZ} msg/s, {{part}}, µs"
CPU = tuple(f"peers: CPU of the {role}, µs a message" for role in ("publisher", "subscriber", "server"))
MEMORY = tuple(f"peers: peak memory of the {role}, MB" for role in ("publisher", "subscriber", "server"))
RATES_HEAD = ("side", "msg/s", "ours, one site, is so many times that", "ours, two sites",
              f"latency at {SLOW_HZ} msg/s: p50, µs", "p99, µs")
COSTS_HEAD = ("side", "CPU, µs a message: publisher", "subscriber", "server",
              "peak memory, MB: publisher", "subscriber", "server")


@dataclass(frozen=True, slots=True)
class PeerSize:
    """Messages of a peer and of ours, seconds paced, rounds."""

    count: int = 5_000
    ours: int = 64_000
    paced_s: float = 2.0
    rounds: int = 3


PEERS_QUICK = PeerSize(count=500, ours=8_000, paced_s=0.6, rounds=1)


# ── servers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Served(NamedTuple):
    """What to connect to, and the process of the server; 0: there is none."""

    place: str | int
    pid: int = 0


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
def served(server: str, path: Path) -> Iterator[Served]:
    """A server of our own with nothing in it, or a socket."""
    if not server:
        yield Served(f"ipc://{path}/s")
        return
    if server == REDIS:
        redis = redis_server()
        assert redis is not None, "whoever lacks a server is not run"
        with redis:
            yield Served(redis.url("redis"), int(told_of(redis, "server", "process_id")))
        return
    port = _free_port()
    process = subprocess.Popen(_command(server, port, path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield Served(f"nats://{HOST}:{port}" if server == "nats-server" else port, process.pid)
    finally:
        process.terminate()
        process.wait(READY_S)


def _wait_for(port: int) -> None:
    ends = time.monotonic() + READY_S
    while time.monotonic() < ends:
        with suppress(OSError), socket.create_connection((HOST, port)):
            return
        time.sleep(LOOK_AGAIN_S)
    raise StepFailed(f"no server answers on port {port} within {READY_S} s")


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class PeerBench:
    """Runs ours and every peer that is here."""

    root: Path
    size: PeerSize
    found: Found

    def turns(self) -> list[Turn]:
        """In each round everybody once: ours through files, ours through a Redis, every peer that is here."""
        ours = [partial(self._ours, FILES, False), *([partial(self._ours, SITES, True)] if redis_server() else [])]
        here = [peer for peer in PEERS if not peer.lacks()]
        return [Turn("peers.ours", ours, self.size.rounds),
                *(Turn(turn_name(peer), (partial(self._peer, peer),), self.size.rounds) for peer in here)]

    def _ours(self, side: str, redis: bool) -> None:
        self._ours_once(side, redis, self.size.ours)
        self._ours_once(side, redis, int(SLOW_HZ * self.size.paced_s), rate=SLOW_HZ)

    def _ours_once(self, side: str, redis: bool, count: int, **more: Any) -> None:
        with directory(self.root) as path, served(REDIS if redis else "", path) as server:
            url, homes = (str(server.place), "ab") if redis else ("", "aa")
            reader = Role("ours.py", "subscribe", home=f"{path}/{homes[1]}", url=url, count=count, latency=bool(more))
            writer = Role("ours.py", "publish", home=f"{path}/{homes[0]}", url=url, count=count, **more)
            self._add(side, count, crowd([reader], [writer], _cpu_of(server.pid)), server.pid)

    def _peer(self, peer: Peer) -> None:
        """What has failed is not tried again: `Found.step` has it, and the bench has failed."""
        if any(failed.startswith(f"{turn_name(peer)}: ") for failed in self.found.failed):
            return
        self._peer_once(peer, self.size.count, 0)
        if peer.paced:
            self._peer_once(peer, int(SLOW_HZ * self.size.paced_s), SLOW_HZ)

    def _peer_once(self, peer: Peer, count: int, hz: int) -> None:
        with directory(self.root) as path, served(peer.server, path) as server:
            script, where = "server_peers.py", {"place": server.place}
            if peer.files:
                script, where = "file_peers.py", {"path": str(path)}
                database(f"{path}/log.db").close()
            elif peer.server == REDIS:
                script = "redis_peers.py"
            reader = Role(script, peer.reader, count=count, hz=hz, **where)
            writer = Role(script, peer.writer, count=count, hz=hz, **where)
            ran = _one_after_the_other(reader, writer) if peer.after else crowd([reader], [writer], _cpu_of(server.pid))
            self._add(peer.name, count, ran, server.pid)

    def _add(self, side: str, count: int, ran: Crowd, pid: int) -> None:
        read, wrote = ran.read[0], ran.wrote[0]
        if "p50" in read.told:
            latencies(self.found, LATENCY, side, read.told)
            return
        self.found.add(AWAITED, side, rate(count, ran.begun, ran.ended))
        spent = (*(seconds * 1e6 / count for seconds in (wrote.cpu_s, read.cpu_s, ran.server_s)), wrote.peak_mb, read.peak_mb,
                 peak_mb(pid) if pid else 0.0)
        for figure, value in zip((*CPU, *MEMORY), spent, strict=True):
            self.found.add(figure, side, value)

    # ------------------------------------------------------------------------------------------ the section

    def part(self) -> Part:
        """What each gave and what it took."""
        sides = [side for side in (FILES, SITES, *(peer.name for peer in PEERS)) if self.found.values(AWAITED, side)]
        rates = markdown(RATES_HEAD, [self._rates(side) for side in sides])
        costs = markdown(COSTS_HEAD, [(side, *(self._cost(figure, side) for figure in (*CPU, *MEMORY))) for side in sides])
        return Part("peers", "Peers", TEXT.format(count=self.size.count, ours=self.size.ours), (), (rates, costs))

    def _rates(self, side: str) -> tuple[str, ...]:
        """Throughput, how many times that ours is, and latency."""
        note = next((peer.note for peer in PEERS if peer.name == side), "")
        times = [ratio(self.found, Pair(AWAITED, ours, side)) for ours in (FILES, SITES)]
        paced = [spread(self.found.values(LATENCY.format(part=part), side)) for part in ("p50", "p99")]
        return (f"{side} ({note})" if note else side, spread(self.found.values(AWAITED, side)),
                *(NONE if one is None or side in (FILES, SITES) else number(one) for one in times), *paced)

    def _cost(self, figure: str, side: str) -> str:
        values = self.found.values(figure, side)
        return number(median(values)) if values and median(values) else NONE


def turn_name(peer: Peer) -> str:
    """What to ask for to have this peer alone."""
    return "peers." + re.sub("[^a-z0-9]+", "-", peer.name.lower())


def missing() -> list[str]:
    """The peers that are not here, and what they lack."""
    return [f"{peer.name} ({lack} is not here)" for peer in PEERS if (lack := peer.lacks())]


def _cpu_of(pid: int) -> Callable[[], float]:
    return partial(cpu_s, pid) if pid else nobody


def _one_after_the_other(reader: Role, writer: Role) -> Crowd:
    """The reader's time counts from the end of the writer's."""
    wrote = alone(writer)
    begun = time.perf_counter_ns()
    try:
        reader.hear()
        begun = time.perf_counter_ns()
        reader.go()
        ran = reader.ran(reader.hear())
    finally:
        reader.end()
    ended = wrote.told["ended"] + ran.told["ended"] - begun
    return Crowd([Ran({"ended": ended}, ran.cpu_s, ran.peak_mb)], [wrote], 0.0, wrote.told["begun"])


TEXT = """One publisher process, one subscriber process, 256 bytes a message, each peer as its documentation says; {count:,}
messages of a peer, {ours:,} of ours, each publish awaited unless its note says otherwise. Two sites: ours through a Redis. A
server of its own for everybody who needs one. A latency of many milliseconds: that side did not keep the pace. CPU counts
from the first publish to the last delivery; a server's memory is all it had."""
