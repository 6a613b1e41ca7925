"""Chaos: real processes on a real home, killed, stopped, forked and copied, and a checker that judges what they did.

    python chaos/run.py --rounds 200 --schedules 30 --seed 7

A round is a batch of messages with one to four faults in it; ten rounds share a home, then everything that was
acknowledged must be delivered within 15 s and the checker reads the histories.  A schedule is some ten seconds of two or
three sites around a server that is killed, emptied, stopped, cut off and lied to (`storms`), judged in the same way.
Exit 1 on any violation: the histories of the failing groups stay where the output says.  A seed draws the same faults
again, not the same moments.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from faults import GROUPS, Round, cast_of, common
from schedule import SPAN_S, Schedule
from specials import clone, crowd
from stage import Stage, StageError, trouble_of

from lemegeton.testing.checker import check
from lemegeton.testing.history import Event, load
from lemegeton.testing.violation import Violation

GROUP_ROUNDS = 10
SPECIALS_FROM = 40
"""With fewer rounds than this there is no time for the crowd and the copied home."""
SHOWN = 10


def say(text: str) -> None:
    """One line of the report, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Totals:
    """What all groups did."""

    def __init__(self) -> None:
        self.faults: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.violations = 0

    def judge(self, name: str, stages: Iterable[Stage], seconds: float) -> bool:
        """Check the histories of a group, each home by itself; false if there is a violation."""
        return self._report(name, [(stage.histories(), trouble_of(stage)) for stage in stages], seconds)

    def judge_schedule(self, name: str, played: Schedule, seconds: float) -> bool:
        """Check the histories of all sites together; false if there is a violation."""
        trouble = played.trouble + played.sites.trouble()
        what = f", delivered {played.sites.worst_s:.1f} s after the last fault"
        return self._report(name, [(played.sites.histories(), trouble)], seconds, what)

    def _report(self, name: str, runs: list[tuple[list[Path], list[Violation]]], seconds: float, what: str = "") -> bool:
        found: list[Violation] = []
        counts: Counter[str] = Counter()
        for histories, trouble in runs:
            events = load(histories)
            found += check(events) + trouble
            counts.update(tally(events))
        self.counts.update(counts)
        self.violations += len(found)
        say(f"{name}: {counts['acknowledged']} acknowledged, {counts['handled']} handled, {counts['flagged']} flagged "
            f"of {counts['budget']} allowed, {counts['refused']} refused, {counts['lives killed']} lives killed, "
            f"{len(found)} violations{what}, {seconds:.1f} s")
        for violation in found[:SHOWN]:
            say(f"  {violation.kind}: {violation.text}")
        return not found


def tally(events: list[Event]) -> Counter[str]:
    """What a history holds, and how many flagged deliveries its crashes explain: crashes × lanes, per subscription."""
    names = {"ack": "acknowledged", "done": "handled", "fail": "refused", "dead": "dead-lettered", "expired": "expired",
             "gap": "gaps", "info": "unknown", "mode": "mode changes"}
    counts = Counter(names[event.ev] for event in events if event.ev in names)
    killed = {event.inc for event in events if event.ev == "fault" and event.kind == "kill"}
    lives: dict[str, set[str]] = {}
    lanes: dict[str, set[tuple[Any, ...]]] = {}
    for event in events:
        if event.ev == "start":
            counts["flagged"] += event.redel and event.attempt == 1
            lanes.setdefault(event.sub, set()).add((event.ch, event.origin, event.pinc, event.prio))
        if event.sub:
            lives.setdefault(event.sub, set()).add(event.inc)
    counts["budget"] = sum(len(lives[sub] & killed) * len(lanes[sub]) for sub in lanes)
    counts["lives killed"] = len(killed)
    return counts


def group(root: Path, number: int, rounds: int, rng: random.Random, counts: Counter[str]) -> tuple[str, list[Stage]]:
    """Some rounds on one home, healed at the end."""
    name, settings, file_bytes = GROUPS[number % len(GROUPS)]
    stage = Stage(root, cast_of(file_bytes), common(settings), rng, counts)
    try:
        stage.revive()
        for _ in range(rounds):
            Round(stage).play()
        for life in stage.of("subscriber"):
            life.do(do="arm", where="", calls=0)
        stage.revive()
        stage.settle()
        stage.finish()
    except StageError as error:
        stage.trouble.append(str(error))
    finally:
        stage.close()
    return name, [stage]


Act = tuple[str, int, Callable[[Path, random.Random, Counter[str]], tuple[str, list[Stage]]]]


def acts(rounds: int) -> list[Act]:
    """The groups of a run: name, rounds, what to do."""
    todo: list[Act] = []
    if rounds >= SPECIALS_FROM:
        todo.append(("crowd", 1, lambda root, rng, counts: ("fifty at once", crowd(root, rng, counts))))
        todo.append(("copy", 1, lambda root, rng, counts: ("copied home", clone(root, rng, counts))))
        rounds -= 2
    for number, first in enumerate(range(0, rounds, GROUP_ROUNDS)):
        count = min(GROUP_ROUNDS, rounds - first)
        todo.append((f"group{number}", count, _group_act(number, count)))
    return todo


def _group_act(number: int, count: int) -> Callable[[Path, random.Random, Counter[str]], tuple[str, list[Stage]]]:
    return lambda root, rng, counts: group(root, number, count, rng, counts)


def run(rounds: int, seed: int, keep: Path) -> Totals:
    """All groups; what a clean one wrote is removed."""
    totals = Totals()
    done = 0
    for number, (name, count, act) in enumerate(acts(rounds)):
        begun = time.monotonic()
        root = keep / name
        title, stages = act(root, random.Random(seed * 1000 + number), totals.faults)
        label = f"rounds {done + 1}-{done + count} ({title})"
        if totals.judge(label, stages, time.monotonic() - begun):
            shutil.rmtree(root)
        else:
            say(f"  histories kept: {root}")
        done += count
    return totals


def run_schedules(schedules: int, seed: int, keep: Path, totals: Totals, span_s: float, sites: int | None) -> None:
    """All schedules; what a clean one wrote is removed."""
    for number in range(1, schedules + 1):
        begun, root, faults = time.monotonic(), keep / f"schedule{number}", Counter[str]()
        played = Schedule(root, random.Random(seed * 1000 + 500 + number), faults, span_s=span_s, sites=sites)
        played.play()
        totals.faults.update(faults)
        what = ", ".join(f"{count} × {kind}" for kind, count in sorted(faults.items()))
        if totals.judge_schedule(f"schedule {number} ({what})", played, time.monotonic() - begun):
            shutil.rmtree(root)
        else:
            say(f"  histories kept: {root}")


def main() -> int:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(description="kill, stop, fork and copy, then check what was promised")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--schedules", type=int, default=0, help="of sites around a server, after the rounds")
    parser.add_argument("--seconds", type=float, default=SPAN_S, help="how long a schedule's storm takes")
    parser.add_argument("--sites", type=int, default=None, help="default: drawn for each schedule")
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    keep = Path(tempfile.mkdtemp(prefix="lemegeton-chaos-"))
    begun = time.monotonic()
    size = f"{given.rounds} rounds, {given.schedules} schedules"
    say(f"seed {seed}, {size}")
    try:
        totals = run(given.rounds, seed, keep)
        run_schedules(given.schedules, seed, keep, totals, given.seconds, given.sites)
    except SystemExit:
        shutil.rmtree(keep, ignore_errors=True)
        raise
    for title, counts in (("faults", totals.faults), ("messages", totals.counts)):
        say(f"{title}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    say(f"seed {seed}: {size}, {totals.violations} violations, {time.monotonic() - begun:.0f} s")
    if not totals.violations:
        shutil.rmtree(keep)
    return 1 if totals.violations else 0


if __name__ == "__main__":
    sys.exit(main())
