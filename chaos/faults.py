"""Faults: what a round does to the processes, drawn anew for every round."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from stage import Life, Stage

BATCH_S = 10.0
NAMES_FREE_S = 5.0
FAULTS_MAX = 4
CHANNELS = ("agent-a", "agent-b", "hub", "orders/new", "#general")
CAST: dict[str, dict[str, Any]] = {
    "pia": {"role": "publisher", "channels": CHANNELS},
    "pol": {"role": "publisher", "channels": CHANNELS},
    "sam": {"role": "subscriber", "channels": CHANNELS, "subscriptions": {"exact": ["orders/new", "hub"]}},
    "sue": {"role": "subscriber", "channels": CHANNELS, "subscriptions": {"glob": ["agent-*", "#*"]}},
    "sid": {"role": "subscriber", "channels": CHANNELS, "subscriptions": {"one": ["agent-a"], "all": ["*"]}},
}
GROUPS: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("plain", {}, 0),
    ("tiny segments", {"segment_bytes": 4096}, 0),
    ("tiny segments, settled ones removed", {"segment_bytes": 2048, "delete_processed_messages": True}, 0),
    ("files of 6 kB: short writes", {}, 6_000),
    ("files of 3 kB, tiny segments, few open", {"segment_bytes": 8192, "open_files": 2}, 3_000),
    ("no room: 300 kB in all", {"segment_bytes": 4096, "disk_limit": 300_000, "on_full": "raise", "disk_budget": 0}, 0),
)
"""What a group of rounds is called, its settings, and how large a file of a publisher may become (0: as it likes)."""

Step = tuple[float, Callable[[], None]]


def cast_of(file_bytes: int) -> dict[str, dict[str, Any]]:
    """The cast, its publishers with small files if asked."""
    small = {"publisher": file_bytes, "subscriber": 0}
    return {name: {**role, "file_bytes": small[role["role"]]} for name, role in CAST.items()}


def common(retry: dict[str, Any]) -> dict[str, Any]:
    """The settings of a group, with what every group has: quick retries, so that a round is short."""
    return {"retry_delay": 0.01, **retry}


class Round:
    """One round: a batch of messages, one to four faults in it, and new lives for whoever died."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._rng: random.Random = stage.rng
        self._steps: list[Step] = []
        self._dying: Counter[str] = Counter()

    def play(self) -> None:
        """The whole round."""
        chosen = self._rng.sample(FAULTS, k=self._rng.randint(1, FAULTS_MAX))
        for fault in chosen:
            fault(self)
        batch = self._stage.of("publisher")
        for life in batch:
            self._publish(life)
        self._run_steps()
        self._stage.wait(lambda: all(life.heard("batch") or not life.alive for life in batch), BATCH_S, "the batch")
        self._stage.pump(0)
        self._stage.revive()

    def _publish(self, life: Life) -> None:
        rng = self._rng
        life.said = [answer for answer in life.said if "batch" not in answer]
        count, pace_s = rng.choice(((40, 0.005), (80, 0.002), (200, 0.0)))
        die_after = rng.randint(1, count) if self._dying.pop(life.name, 0) else 0
        if die_after:
            self._count("publisher behind a receipt")
        life.do(do="batch", count=count, pace_s=pace_s, tasks=rng.choice((1, 1, 4)), die_after=die_after)

    def _run_steps(self) -> None:
        begun = time.monotonic()
        for at_s, step in sorted(self._steps, key=lambda step: step[0]):
            while time.monotonic() < begun + at_s:
                self._stage.pump(max(0.0, min(0.02, begun + at_s - time.monotonic())))
            step()

    def _count(self, kind: str) -> None:
        self._stage.counts[kind] += 1

    def _at(self, spread_s: float, step: Callable[[], None]) -> None:
        self._steps.append((self._rng.random() * spread_s, step))

    def _one(self, role: str) -> Life:
        return self._rng.choice(self._stage.of(role))

    # ------------------------------------------------------------------------------------------ the faults

    def publisher_behind_receipt(self) -> None:
        self._dying[self._one("publisher").name] = 1

    def publisher_any_time(self) -> None:
        self._kill_later("publisher", "publisher at any time")

    def subscriber_any_time(self) -> None:
        self._kill_later("subscriber", "subscriber at any time")

    def _kill_later(self, role: str, kind: str) -> None:
        life = self._one(role)

        def step() -> None:
            if life.alive:
                self._count(kind)
                self._stage.kill(life)

        self._at(0.3, step)

    def subscriber_at_handler(self) -> None:
        where = self._rng.choice(("before", "inside", "after"))
        self._count(f"subscriber {where} its handler (armed)")
        self._one("subscriber").do(do="arm", where=where, calls=self._rng.randint(1, 40))

    def everybody(self) -> None:
        def step() -> None:
            self._count("everybody at once")
            lives = [*self._stage.of("publisher"), *self._stage.of("subscriber")]
            self._rng.shuffle(lives)
            for life in lives:
                self._stage.kill(life)

        self._at(0.2, step)

    def pause(self) -> None:
        life = self._one(self._rng.choice(("publisher", "subscriber")))
        begin = self._rng.random() * 0.2
        self._steps.append((begin, lambda: self._pause(life)))
        self._steps.append((begin + 0.1 + self._rng.random() * 0.4, lambda: self._stage.go_on(life)))

    def _pause(self, life: Life) -> None:
        if self._stage.stop(life):
            self._count(f"{self._stage.cast[life.name]['role']} stopped for a while")

    def second_holder(self) -> None:
        life = self._one("subscriber")

        def step() -> None:
            if not self._stage.stop(life):
                return
            self._count("second holder asked")
            self._stage.rival(life.name)
            if self._rng.random() < 0.3:
                self._count("stopped subscriber")
                self._stage.kill(life)
            self._stage.go_on(life)

        self._at(0.1, step)

    def forked_child(self) -> None:
        life = self._one(self._rng.choice(("publisher", "subscriber")))

        def step() -> None:
            if life.alive and not life.stopped and self._stage.life(life.name) is life:
                self._count("parent of a forked child")
                self._stage.orphan(life.name, NAMES_FREE_S)

        self._at(0.1, step)

    def good_end(self) -> None:
        life = self._one("subscriber")

        def step() -> None:
            if life.alive and not life.stopped:
                self._count("subscriber stopped in good order")
                self._stage.drain(life)

        self._at(0.2, step)


FAULTS: list[Callable[[Round], None]] = [
    Round.publisher_behind_receipt, Round.publisher_behind_receipt, Round.publisher_any_time, Round.subscriber_any_time,
    Round.subscriber_any_time, Round.subscriber_at_handler, Round.subscriber_at_handler, Round.subscriber_at_handler,
    Round.everybody, Round.pause, Round.pause, Round.second_holder, Round.forked_child, Round.good_end,
]
"""What is drawn from; what stands here twice comes twice as often."""
