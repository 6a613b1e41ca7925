"""A schedule: some seconds of traffic between sites in a storm, then calm, and the checker."""

from __future__ import annotations

import random
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

from sites import Sites
from stage import Stage, StageError
from storms import FAULTS, Storm

from lemegeton.testing.checker import Violation

SPAN_S = 8.0
EVENTS = (4, 10)
"""How many faults are drawn for a schedule."""
BATCH_EVERY_S = 1.0
COPIED = 0.15
ALONE = 0.8
"""The share of schedules in which sites start no Redis of their own."""


def settings_of(rng: random.Random) -> dict[str, Any]:
    """The settings of everybody: streams may be tiny, segments too."""
    return {
        "retry_delay": 0.01, "max_stream_length": rng.choice((1000, 1000, 100, 10)),
        "segment_bytes": rng.choice((4 * 1024 * 1024, 8192)), "local_redis": "off" if rng.random() < ALONE else "auto",
    }


class Schedule:
    """One schedule; ``trouble`` is what went wrong beside the histories."""

    def __init__(self, root: Path, rng: random.Random, counts: Counter[str], *, span_s: float = SPAN_S,
                 sites: int | None = None, each: int | None = None) -> None:
        self._rng = rng
        self._counts = counts
        self._span_s = span_s
        self.sites = Sites(root, rng, counts, sites=sites or rng.choice((2, 2, 3)), each=each or rng.choice((2, 3)),
                           settings=settings_of(rng))
        self.trouble: list[Violation] = []

    def play(self) -> None:
        """The whole of it."""
        with self.sites as sites:
            try:
                copied = sites.stages[-1] if self._rng.random() < COPIED else None
                sites.start(without=copied)
                if copied is not None:
                    self._copy_a_home(copied)
                storm = self._storm()
                sites.heal()
                for life in sites.lives():
                    sites.publish(life, 5, 0.0)
                sites.published()
                sites.settle()
                self._look(storm)
                sites.finish()
            except StageError as error:
                self.trouble.append(Violation("process", str(error), ()))

    def _storm(self) -> Storm:
        storm = Storm(self.sites, self._span_s)
        half = self._rng.sample(FAULTS, k=len(FAULTS) // 2)
        for fault in self._rng.choices(half, k=self._rng.randint(*EVENTS)):
            fault(storm)
        for second in range(int(self._span_s / BATCH_EVERY_S)):
            storm.steps.append((0.1 + second * BATCH_EVERY_S, self._publish))
        self._run(storm)
        return storm

    def _look(self, storm: Storm) -> None:
        """Where nothing was forgotten nothing stands in a stream twice, however often a connection was cut."""
        twice = [] if storm.forgets else storm.stands_twice()
        if twice:
            self.trouble.append(Violation("twice", f"stand twice in a stream: {', '.join(twice[:5])}", ()))

    def _run(self, storm: Storm) -> None:
        begun = time.monotonic()
        for at_s, step in sorted(storm.steps, key=lambda step: step[0]):
            while (left := begun + at_s - time.monotonic()) > 0:
                self.sites.pump(min(0.05, left))
            step()

    def _publish(self) -> None:
        for life in self.sites.lives():
            count, pace_s = self._rng.choice(((10, 0.05), (40, 0.015), (100, 0.0)))
            self.sites.publish(life, count, pace_s, self._rng.choice((1, 1, 3)))

    def _copy_a_home(self, last: Stage) -> None:
        """The last site begins in a copy of the home of the first, under names of its own."""
        first = self.sites.stages[0]
        for life in self.sites.lives():
            self.sites.publish(life, 20, 0.0)
        self.sites.published()
        self.sites.delivered()  # what is in a handler now would be in doubt in the copy
        subprocess.run(["cp", "-a", str(first.home), str(last.home)], check=True)
        self._counts["41 home copied"] += 1
        self.sites.come(last)
