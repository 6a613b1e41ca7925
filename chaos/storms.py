"""Storms: what a schedule does to servers, network and processes while everybody publishes.

The numbers are rows of the fault matrix: 3, 5-9, 11-20, 22, 24, 26, 27, 41 and 43.  Each schedule draws a random half of
the kinds, and from those when and where; so some schedules see a fault by itself, and some what it does to another.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mischief import GARBAGE, Mischief
from sites import CHANNELS, Sites, binary
from stage import Life

from lemegeton.errors import LogError
from lemegeton.testing.proxy import Direction, Proxy
from lemegeton.testing.servers import RedisServer

Step = tuple[float, Callable[[], None]]
DOWN_S = (0.05, 1.5)
FROZEN_S = (1.0, 4.0)
KILLS = 20


class Storm(Mischief):
    """The faults of one schedule, each a method that plans its steps."""

    def __init__(self, sites: Sites, span_s: float) -> None:
        super().__init__(sites)
        self.rng: random.Random = sites.rng
        self.span_s = span_s
        self.steps: list[Step] = []
        self.forgets = False
        """A fault took marks or streams: what is filled again stands twice in a stream, and may."""

    def at(self, when_s: float, kind: str, step: Callable[[], Any]) -> None:
        """Plan a step; it counts as a fault of this kind unless it says that there was nothing to do to."""
        def run() -> None:
            if step() is not False and kind:
                self.sites.counts[kind] += 1

        self.steps.append((when_s, run))

    def begin(self) -> float:
        """Some moment of the schedule."""
        return self.rng.uniform(0.3, self.span_s - 0.5)

    def some(self) -> list[str]:
        """The proxies of one process, of one site, or of all."""
        names = list(self.sites.net.proxies)
        one = self.rng.choice(names)
        return self.rng.choice(([one], self.site_names(one.partition(".")[2]), names))

    def site_names(self, site: str) -> list[str]:
        """The proxies of a site."""
        return [name for name in self.sites.net.proxies if name.endswith("." + site)]

    def _back(self, *, dump: bytes | None = None) -> None:
        if not self.sites.server.running:
            self.sites.server.start(dump=dump)

    # ------------------------------------------------------------------------------------------ the server

    def killed(self) -> None:
        when = self.begin()
        self.forgets = True

        def kill() -> bool:
            if not self.sites.server.running or self.sites.frozen:
                return False
            self.sites.server.kill()
            return True

        self.at(when, f"5/6 server killed ({self.sites.persistence})", kill)
        self.at(when + self.rng.uniform(*DOWN_S), "", self._back)

    def restored(self) -> None:
        if self.sites.persistence.startswith("AOF"):
            self.killed()
            return
        when, self.forgets = self.begin() * 0.7, True
        dumps: list[bytes] = []

        def dump() -> bool:
            if self.ask("PING") is None:
                return False
            with suppress(LogError):  # it is saving by itself just now
                dumps.append(self.sites.server.dump())
            return bool(dumps)

        def kill() -> bool:
            if not dumps or not self.sites.server.running or self.sites.frozen:
                return False
            self.sites.server.kill()
            return True

        later = when + self.rng.uniform(1.0, 5.0)
        self.at(when, "", dump)
        self.at(later, "7 server restored from an older dump", kill)
        self.at(later + self.rng.uniform(*DOWN_S), "", lambda: self._back(dump=dumps[0]) if dumps else None)

    def failover(self) -> None:
        when, self.forgets = self.begin() * 0.6, True
        old, made = self.sites.server, []

        def replica() -> bool:
            if self.ask("PING") is None or old is not self.sites.server:
                return False
            made.append(RedisServer(binary(), tcp=True, replica_of=old.address).start())
            return True

        def promote() -> bool:  # from here on it lags behind
            return bool(made) and made[0].cli("REPLICAOF", "NO", "ONE") is not None

        def move() -> bool:
            if not made:
                return False
            self.sites.replace_server(made[0])
            self.sites.frozen = False
            self.sites.net.lead_to(made[0].path)
            old.kill()
            return True

        self.at(when, "", replica)
        self.at(when + 0.7, "", promote)
        self.at(when + 0.7 + self.rng.uniform(0.2, 2.0), "8 failover to a lagging replica", move)

    def paused(self) -> None:
        when = self.begin()

        def freeze() -> bool:
            if not self.sites.server.running:
                return False
            self.sites.frozen = True
            self.sites.server.freeze()
            return True

        def thaw() -> None:
            self.sites.server.thaw()
            self.sites.frozen = False

        self.at(when, "13 server stopped", freeze)
        self.at(when + self.rng.uniform(*FROZEN_S), "", thaw)

    def client_pause(self) -> None:
        how, long_ms = self.rng.choice(("WRITE", "ALL")), self.rng.randint(1000, 3000)
        self.asked(self.begin(), f"14 CLIENT PAUSE {how}", "CLIENT", "PAUSE", long_ms, how)

    def client_kill(self) -> None:
        kind, when = self.rng.choice(("normal", "pubsub")), self.begin()
        for number in range(KILLS):
            self.asked(when + number * 0.05, f"15 CLIENT KILL TYPE {kind}", "CLIENT", "KILL", "TYPE", kind)

    def full(self) -> None:
        self._for_a_while("11 out of memory", ("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"))

    def read_only(self) -> None:
        self.forgets = True  # it asks nobody for data, but is a replica
        self._for_a_while("12 read only", ("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"))

    def _for_a_while(self, kind: str, on: tuple[str, ...], off: tuple[str, ...]) -> None:
        when = self.begin()
        self.asked(when, kind, *on)
        self.asked(when + self.rng.uniform(0.3, 3.0), "", *off)

    def buffers(self) -> None:
        life = self._one()
        limit = self.rng.choice(("pubsub 2kb 1kb 1", "pubsub 1 1 0"))
        when = self.begin()
        self.asked(when, "26 output buffer limit", "CONFIG", "SET", "client-output-buffer-limit", limit)
        self.at(when, "", lambda: self._alive(life).do(do="slow", seconds=0.02))
        self.at(when + 2.0, "", lambda: self._alive(life).do(do="slow", seconds=0))

    def asked(self, when_s: float, kind: str, *command: bytes | str | int) -> None:
        """Plan to ask the server something."""
        self.at(when_s, kind, lambda: self.ask(*command) is not None)

    # ------------------------------------------------------------------------------------------ the network

    def _net(self, kind: str, names: list[str], switch: Callable[[Proxy], None], seconds: float) -> None:
        when = self.begin()
        self.at(when, kind, lambda: self.sites.net.do(names, switch))
        self.at(when + seconds, "", lambda: self.sites.net.heal(names))

    def resets(self) -> None:
        def switch(proxy: Proxy) -> None:
            proxy.to_client.cut_every = 7

        self._net("16 reset between request and reply", self.some(), switch, self.rng.uniform(1.0, 3.0))

    def black_hole(self) -> None:
        self._net("17 black hole", self.some(), Proxy.swallow, self.rng.uniform(0.5, 4.0))

    def one_way(self) -> None:
        to_server = self.rng.random() < 0.5

        def switch(proxy: Proxy) -> None:
            way: Direction = proxy.to_server if to_server else proxy.to_client
            way.shut()

        self._net("17 one direction shut", self.some(), switch, self.rng.uniform(0.5, 3.0))

    def slow_link(self) -> None:
        self._net("18 slow link", self.some(), lambda proxy: proxy.slow(delay_s=0.2, bytes_s=10_000), 2.0)

    def half_frames(self) -> None:
        size = self.rng.randint(1, 20_000)

        def switch(proxy: Proxy) -> None:
            way = proxy.to_server if size % 2 else proxy.to_client
            way.cut_after = size

        self._net("18 half a frame", self.some(), switch, 3.0)

    def partition(self) -> None:
        names = self.site_names(self.rng.choice(self.sites.stages).site)
        when = self.begin()
        self.at(when, "19 site cut off", lambda: self.sites.net.cut(names))
        self.at(when + self.rng.uniform(0.5, 4.0), "", lambda: self.sites.net.heal(names))

    def swizzle(self) -> None:
        """One after the other is cut off; they come back in another order."""
        when, names = self.begin() * 0.6, list(self.sites.net.proxies)
        for order, at_s in ((1, when), (2, when + 1.5)):
            self.rng.shuffle(names)
            for number, name in enumerate(names):
                work = self.sites.net.cut if order == 1 else self.sites.net.heal
                self.at(at_s + number * 0.2, "19 swizzle" if order == 1 and not number else "",
                        lambda work=work, name=name: work([name]))  # type: ignore[misc]

    def one_cut(self) -> None:
        name, when = self.rng.choice(list(self.sites.net.proxies)), self.begin()
        self.at(when, "20 one process cut off", lambda: self.sites.net.cut([name]))
        self.at(when + self.rng.uniform(1.5, 5.0), "", lambda: self.sites.net.heal([name]))

    def flapping(self) -> None:
        names, when = self.some(), self.begin() * 0.6
        for _ in range(self.rng.randint(2, 5)):
            self.at(when, "22 flap", lambda: self.sites.net.cut(names))
            self.at(when + self.rng.uniform(0.1, 0.5), "", lambda: self.sites.net.heal(names))
            when += self.rng.uniform(0.6, 1.2)

    # ------------------------------------------------------------------------------------------ processes

    def _one(self) -> Life:
        return self.rng.choice(self.sites.lives())

    def _alive(self, life: Life) -> Life:
        """The present life of the same process."""
        return self.sites.stage_of(life).life(life.name)

    def stopped(self) -> None:
        life, when = self._one(), self.begin()
        self.at(when, "24 process stopped", lambda: self.sites.stage_of(life).stop(life))
        self.at(when + self.rng.uniform(*FROZEN_S), "", lambda: self.sites.stage_of(life).go_on(life))

    def process_killed(self) -> None:
        life = self._one()
        self._kill(self.begin(), "1/2 process killed", lambda: self._alive(life))

    def bridge_killed(self) -> None:
        stage = self.rng.choice(self.sites.stages)

        def holder() -> Life | None:
            with open("/proc/locks") as locks:
                wanted = str(os.stat(stage.home / "bridge.lock").st_ino)
                pids = {line.split()[-4] for line in locks if line.split()[-3].rpartition(":")[2] == wanted}
            return next((life for life in stage.of("both") if str(life.process.pid) in pids), None)

        self._kill(self.begin(), "3 bridge killed", holder)

    def _kill(self, when: float, kind: str, whom: Callable[[], Life | None]) -> None:
        def kill() -> bool:
            life = whom()
            if life is None or not life.alive:
                return False
            self.sites.stage_of(life).kill(life)
            return True

        def again() -> None:
            self.sites.pump(0)
            for stage, name in self.sites.dead():
                stage.begin(name)

        self.at(when, kind, kill)
        self.at(when + self.rng.uniform(0.1, 1.5), "", again)

    # ------------------------------------------------------------------------------------------ foreign hands

    def foreign(self) -> None:
        for _ in range(self.rng.randint(3, 10)):
            text, channel = self.rng.choice(GARBAGE), self.rng.choice((*CHANNELS, "agent-nobody"))
            self.at(self.begin(), "43 garbage", lambda text=text, channel=channel: self.garbage(text, channel))  # type: ignore[misc]

    def forgotten(self) -> None:
        self.forgets = True
        for _ in range(self.rng.randint(1, 3)):
            kind, work = self.rng.choice(self.losses())
            self.at(self.begin(), f"9 {kind}", work)


FAULTS: tuple[Callable[[Storm], None], ...] = (
    Storm.killed, Storm.killed, Storm.restored, Storm.failover, Storm.paused, Storm.client_pause, Storm.client_kill, Storm.full,
    Storm.read_only, Storm.buffers, Storm.resets, Storm.black_hole, Storm.one_way, Storm.slow_link, Storm.half_frames,
    Storm.partition, Storm.swizzle, Storm.one_cut, Storm.flapping, Storm.stopped, Storm.process_killed, Storm.bridge_killed,
    Storm.foreign, Storm.forgotten, Storm.forgotten,
)
"""What is drawn from; what stands here twice comes twice as often."""
