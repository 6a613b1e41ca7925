"""Several sites at one Redis: a stage for each, a real server, a proxy for every process, and histories judged together."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from network import Network
from stage import READY_S, Life, Stage, StageError

from lemegeton.errors import LogError
from lemegeton.testing.checker import Violation, lost
from lemegeton.testing.history import load, tell
from lemegeton.testing.servers import RedisServer, servers

CHANNELS = ("agent-a", "agent-b", "hub", "orders/new")
ROLES: dict[str, dict[str, list[str]]] = {
    "ann": {"exact": ["hub", "orders/new"]}, "ben": {"glob": ["agent-*"]}, "cid": {"all": ["*"]},
}
DELIVERED_S = 15.0
LOOK_S = 0.3
BATCH_S = 15.0
PERSISTENCE: tuple[tuple[str, dict[str, str]], ...] = (
    ("keeps nothing", {}), ("keeps nothing", {}), ("AOF everysec", {"appendonly": "yes", "appendfsync": "everysec"}),
    ("AOF always", {"appendonly": "yes", "appendfsync": "always"}), ("RDB every second", {"save": "1 1"}),
)


def binary() -> str:
    """The newest server there is."""
    return max(servers(), key=lambda found: (found.name.startswith("valkey"), found.version)).binary


class Sites:
    """The world of one schedule.  Use it with ``with``."""

    def __init__(self, root: Path, rng: random.Random, counts: Counter[str], *, sites: int, each: int,
                 settings: dict[str, Any], names: list[str] | None = None) -> None:
        self.root = root
        self.rng = rng
        self.counts = counts
        self.persistence, kept = rng.choice(PERSISTENCE)
        self.server = RedisServer(binary(), tcp=True, settings=kept)
        self.frozen = False
        self._servers = [self.server]
        names = names or [f"{role}.s{n}" for n in range(1, sites + 1) for role in [*ROLES][:each]]
        self._sockets = Path(tempfile.mkdtemp(prefix="lemegeton-n"))
        self.net = Network(self._sockets, self.server.path, names)
        self._settings = settings
        self.each = each
        self.stages = [self._stage(n, root / f"s{n}" / "home") for n in range(1, sites + 1)]
        self._later: Stage | None = None
        self._given: Counter[str] = Counter()
        self.worst_s = 0.0

    def _stage(self, number: int, home: Path) -> Stage:
        site = f"s{number}"
        cast: dict[str, dict[str, Any]] = {role: {
            "role": "both", "channels": CHANNELS, "subscriptions": ROLES[role], "suffix": f"@{site}",
            "settings": {**self._settings, "redis_url": self.net.url(f"{role}.{site}")},
        } for role in [*ROLES][: self.each]}
        return Stage(self.root / site, cast, {}, self.rng, self.counts, home=home, site=site)

    def __enter__(self) -> Sites:
        self.server.start()
        self.net.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for stage in self.stages:
            stage.close()
        self.end_local()
        self.net.__exit__()
        for server in self._servers:
            server.close()
        shutil.rmtree(self._sockets)

    # ------------------------------------------------------------------------------------------ processes

    def start(self, *, without: Stage | None = None) -> None:
        """Begin everybody at once, but for a site that comes later."""
        self._later = without
        for stage in self.stages:
            for name in stage.cast if stage is not without else ():
                stage.begin(name)
        self.ready()

    def come(self, stage: Stage) -> None:
        """The site that was left out is there now."""
        self._later = None
        for name in stage.cast:
            stage.begin(name)
        self.ready()

    def ready(self) -> None:
        """Return when everybody serves; who is dead begins anew."""
        deadline = time.monotonic() + READY_S
        while not all(life.heard("ready") for life in self.lives()) or self.dead():
            for stage, name in self.dead():
                stage.begin(name)
            if time.monotonic() > deadline:
                raise StageError("not everybody was ready in time")
            self.pump(0.02)

    def dead(self) -> list[tuple[Stage, str]]:
        """Who should live and does not."""
        return [(stage, name) for stage in self.stages if stage is not self._later
                for name in stage.cast if not stage.life(name).alive]

    def lives(self) -> list[Life]:
        """Everybody who is alive."""
        return [life for stage in self.stages for life in stage.of("both")]

    def stage_of(self, life: Life) -> Stage:
        """Where a life belongs."""
        return next(stage for stage in self.stages if life.inc.split(".")[1] == stage.site)

    def pump(self, timeout_s: float) -> None:
        """Hear everybody."""
        for stage in self.stages:
            stage.pump(timeout_s / len(self.stages))

    def publish(self, life: Life, count: int, pace_s: float, tasks: int = 1) -> None:
        """A batch from one that is ready."""
        if life.heard("ready") and not life.stopped:
            self._given[life.inc] += 1
            life.do(do="batch", count=count, pace_s=pace_s, tasks=tasks)

    def published(self) -> None:
        """Return when every batch is at its end."""
        def done() -> bool:
            self.pump(0.02)
            return all(sum("batch" in told for told in life.said) >= self._given[life.inc] for life in self.lives())

        deadline = time.monotonic() + BATCH_S
        while not done():
            if time.monotonic() > deadline:
                raise StageError("publishing did not come to its end")

    # ------------------------------------------------------------------------------------------ the server

    def ask(self, *arguments: bytes | str | int) -> Any:
        """Ask the server; None if it is down, stands still or refuses."""
        if self.frozen or not self.server.running:
            return None
        with suppress(OSError, LogError):
            return self.server.cli(*arguments)
        return None

    def replace_server(self, other: RedisServer) -> None:
        """Another one is the primary from now on."""
        self._servers.append(other)
        self.server = other

    def heal(self) -> None:
        """Everything runs, nothing is in the way."""
        self.net.heal(list(self.net.proxies))
        self.server.thaw()
        self.frozen = False
        if not self.server.running:
            self.server.start()
        for command in (("REPLICAOF", "NO", "ONE"), ("CONFIG", "SET", "maxmemory", "0"), ("CLIENT", "UNPAUSE"),
                        ("CONFIG", "SET", "client-output-buffer-limit", "pubsub 32mb 8mb 60")):
            self.server.cli(*command)
        for life in self.lives():
            self.stage_of(life).go_on(life)
            life.do(do="slow", seconds=0)
        self.ready()

    def end_local(self) -> int:
        """SIGKILL the servers that sites started by themselves, each known by the directory it works in."""
        ended = 0
        for stage in self.stages:
            wanted = str(stage.home / "redis")
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    if os.readlink(process / "cwd") == wanted:
                        os.kill(int(process.name), signal.SIGKILL)
                        ended += 1
        return ended

    # ------------------------------------------------------------------------------------------ judging

    def histories(self) -> list[Path]:
        """Of all sites."""
        return [path for stage in self.stages for path in stage.histories()]

    def settle(self) -> None:
        """Wait until everything acknowledged is delivered everywhere, at most 15 s; the checker says what is not."""
        self.stages[0].history.record("quiet")
        self.worst_s = self.delivered()

    def delivered(self) -> float:
        """Wait like `settle`, in the middle of a run; how long it took."""
        begun = time.monotonic()
        while time.monotonic() < begun + DELIVERED_S:
            self.pump(LOOK_S)
            if not any(lost(tell(load(self.histories())), False)):
                break
        return time.monotonic() - begun

    def finish(self) -> None:
        """Have everybody end in good order."""
        lives = self.lives()
        for life in lives:
            life.do(do="stop")
        deadline = time.monotonic() + READY_S
        while any(life.alive for life in lives):
            if time.monotonic() > deadline:
                raise StageError("not everybody stopped in time")
            self.pump(0.02)
        self.pump(0)

    def trouble(self) -> list[Violation]:
        """What the processes themselves did wrong."""
        return [Violation("process", text, ()) for stage in self.stages for text in stage.trouble]
