"""The crew of `transitions`: a hub and four agents on one site, four more on another, and what is done to their server."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sites import Sites
from stage import Stage, StageError

from lemegeton import CoordinationMode
from lemegeton.mode_switch import set_mode
from lemegeton.osfs import os_runtime

AGENTS = 8
PUBLISH_S = 60.0
INSIDE_S = 2.0
"""So long after its beginning an outage has made the mode degraded."""
HAND_S = 4.0


class Crew(Sites):
    """Half of all messages come from the hub, the other half from its agents."""

    def __init__(self, root: Path, rng: random.Random, counts: Counter[str], *, local: str) -> None:
        self._local = local
        names = [f"{name}.s{1 + (n > AGENTS // 2)}" for n, name in enumerate(["hub", *(f"agent-{n}" for n in range(AGENTS))])]
        super().__init__(root, rng, counts, sites=2, each=3, settings={}, names=names)

    def _stage(self, number: int, home: Path) -> Stage:
        site = f"s{number}"
        channels = [f"agent-{n}" for n in range(AGENTS)]
        cast: dict[str, dict[str, Any]] = {}
        for full in self.net.proxies:
            name, _, at = full.partition(".")
            if at == site:
                cast[name] = {
                    "role": "both", "plain": True, "channels": ["hub", *channels], "subscriptions": {f"of-{name}": [name]},
                    "targets": channels if name == "hub" else ["hub"], "suffix": f"@{site}",
                    "settings": {"redis_url": self.net.url(full), "local_redis": self._local},
                }
        return Stage(self.root / site, cast, {}, self.rng, self.counts, home=home, site=site)

    def begin_publishing(self, messages: int, rate: float) -> None:
        """Everybody publishes at a pace that makes ``rate`` in all."""
        self._left = time.monotonic() + messages / rate + PUBLISH_S
        for life in self.lives():
            share = 2 if life.name == "hub" else 2 * AGENTS
            tasks = 4 if life.name == "hub" else 1
            self.publish(life, messages // share, tasks * share / rate, tasks)

    def all_published(self) -> bool:
        """True once every batch is at its end; it hears everybody."""
        self.pump(0.02)
        if time.monotonic() > self._left:
            raise StageError("publishing did not come to its end")
        return all(life.heard("batch") for life in self.lives())

    def set_mode(self, mode: CoordinationMode | Literal["auto"]) -> None:
        """Switch both sites by hand."""
        for stage in self.stages:
            set_mode(os_runtime(), str(stage.home), mode, "for a test")


class Outages:
    """What is done to the server, and when; ``spans`` says when it was (monotonic nanoseconds)."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._steps: list[tuple[float, Callable[[], Any]]] = []
        self.spans: list[tuple[int, int, str]] = []

    def plan(self, number: int, at_s: float, outage_s: float) -> None:
        """The outage of this number, of four kinds in turn."""
        kinds = (("killed", self._kill, self._back), ("stopped", self._freeze, self._thaw), ("cut off", self._cut, self._mend),
                 ("refused", self._refuse, self._take))
        kind, begin, end = kinds[number % len(kinds)]

        def begun() -> None:
            self._crew.counts[kind] += 1
            self.spans.append((time.monotonic_ns(), 2**62, kind))
            begin()

        def ended() -> None:
            end()
            self.spans[-1] = (self.spans[-1][0], time.monotonic_ns(), kind)

        self._steps += [(at_s, begun), (at_s + outage_s, ended)]

    def by_hand(self, begins_s: list[float], degraded_s: float) -> None:
        """Local servers die, and modes are switched by hand, so that every change of mode happens: in a long enough run."""
        for share in (0.3, 0.6):
            self._steps.append((begins_s[int(len(begins_s) * share)] + INSIDE_S, self._end_local))
        isolated = begins_s[int(len(begins_s) * 0.45)]
        by_hand: tuple[tuple[float, CoordinationMode | Literal["auto"]], ...] = (
            (isolated + INSIDE_S, CoordinationMode.ISOLATED), (isolated + INSIDE_S + HAND_S, "auto"),
            (degraded_s, CoordinationMode.DEGRADED), (degraded_s + HAND_S, "auto"))
        self._steps += [(at_s, partial(self._crew.set_mode, mode)) for at_s, mode in by_hand]

    def _end_local(self) -> None:
        self._crew.counts["local killed"] += self._crew.end_local()

    def run(self, until: Callable[[], bool]) -> None:
        """Do what is planned while there is something to publish."""
        begun = time.monotonic()
        steps = sorted(self._steps, key=lambda step: step[0])
        while not until():
            while steps and time.monotonic() > begun + steps[0][0]:
                steps.pop(0)[1]()
        for _, step in steps:  # what was to end ends
            step()

    def _kill(self) -> None:
        self._crew.server.kill()

    def _back(self) -> None:
        if not self._crew.server.running:
            self._crew.server.start()

    def _freeze(self) -> None:
        self._crew.frozen = True
        self._crew.server.freeze()

    def _thaw(self) -> None:
        self._crew.server.thaw()
        self._crew.frozen = False

    def _cut(self) -> None:
        self._crew.net.cut(list(self._crew.net.proxies))

    def _mend(self) -> None:
        self._crew.net.heal(list(self._crew.net.proxies))

    def _refuse(self) -> None:
        self._crew.ask("CONFIG", "SET", "maxmemory", "1")

    def _take(self) -> None:
        self._crew.ask("CONFIG", "SET", "maxmemory", "0")
