"""The deterministic simulation of the file bus: ``python -m lemegeton.testing.simulation --seeds 300``.

One seed is one schedule: sites with processes, messages, faults, then all is healed, and within 15 virtual seconds
everything that was acknowledged has to be delivered.  `checker.check` judges the history.  Two runs of a seed are equal
to the last byte, whatever ``PYTHONHASHSEED``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from random import Random

import msgspec

from lemegeton.testing.sim_faults import FAULTS
from lemegeton.testing.sim_judge import judge
from lemegeton.testing.sim_loop import SimLoop, bury
from lemegeton.testing.sim_plan import HEAL_S, QUIET_S, SHARED_URL, Fault, Plan, make_plan
from lemegeton.testing.sim_redis_faults import REDIS_FAULTS
from lemegeton.testing.sim_world import World
from lemegeton.testing.violation import Violation

FINISH_S = 60.0
"""How long processes may take, after all is healed, to publish what is left."""
SHRINK_TRIES = 60
STRIKES = {**FAULTS, **REDIS_FAULTS}


@dataclass(slots=True)
class Report:
    """What one schedule did, and what was wrong with it."""

    seed: int
    messages: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    crashes: int = 0
    deliveries: int = 0
    redelivered: int = 0
    virtual_s: float = 0.0
    events: int = 0
    trace: str = ""
    violations: list[Violation] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    redis: bool = False


def plan_of(seed: int, redis: bool = False) -> Plan:
    """The plan of a seed, with all kinds of faults that can be met there."""
    kinds = [kind for kind in STRIKES if kind != "clone"] if redis else FAULTS  # a copy would be told twice of everything
    return make_plan(seed, tuple(kinds), redis=redis)


def simulate(seed: int, without: frozenset[int] = frozenset(), redis: bool = False) -> Report:
    """Run the schedule of a seed, ``without`` some of its faults, and judge it."""
    report, _ = observe(plan_of(seed, redis), without)
    return report


def observe(plan: Plan, without: frozenset[int] = frozenset()) -> tuple[Report, World]:
    """`simulate` for a given plan; also the world as it was left, for whoever wants to look."""
    loop = SimLoop()
    collecting = gc.isenabled()
    gc.disable()
    try:
        world = World(plan, loop)
        try:
            loop.run_until_complete(loop.create_task(_schedule(world, without), context=world.context))
        except Exception as error:
            world.violate("raised", f"{type(error).__name__}: {error}")
        finally:
            world.over = True
            report = _report(world)
            for site in world.sites:
                for process in site.processes:
                    process.vanish()
            bury(world.gates)
            loop.close()
        return report, world
    finally:
        if collecting:
            gc.enable()


async def _schedule(world: World, without: frozenset[int]) -> None:
    for site in world.sites:
        site.begin()
    strikes = [asyncio.create_task(_strike(world, fault)) for fault in world.plan.faults if fault.number not in without]
    await asyncio.sleep(HEAL_S)
    for strike in strikes:
        strike.cancel()
    await asyncio.gather(*strikes, return_exceptions=True)
    await world.heal()
    deadline = world.loop.time() + FINISH_S
    while world.unsent() and world.loop.time() < deadline:
        await asyncio.sleep(0.5)
    if world.unsent():
        world.violate("unsent", f"{', '.join(world.unsent())}: publishes did not come back {FINISH_S} s after all was healed")
    world.quiet()
    await asyncio.sleep(QUIET_S)
    world.end()


async def _strike(world: World, fault: Fault) -> None:
    await asyncio.sleep(fault.at - world.loop.time())
    rng = Random(fault.seed)
    world.say(f"fault {fault.number}: {fault.kind}")
    world.faults[fault.kind] += 1
    if not await STRIKES[fault.kind](world, rng):
        world.faults[fault.kind] -= 1
        world.faults["kill"] += 1
        await STRIKES["kill"](world, rng)


def _report(world: World) -> Report:
    violations = list(world.violations)
    trace = hashlib.sha256()
    for story in world.stories():
        violations += judge(*story)
    for site in world.sites:
        trace.update(msgspec.json.encode(site.history.events))
        trace.update(site.files_digest().encode())
    if world.net is not None:
        trace.update(world.net.server(SHARED_URL).digest().encode())
    violations += [Violation("broken", text, ("broken",)) for text in world.loop.broken]
    return Report(
        world.plan.seed, world.published, +world.faults, world.crashes, world.deliveries, world.redelivered,
        world.loop.time(), sum(len(events) for events, _, _ in world.stories()), trace.hexdigest(), violations,
        world.notes + world.seen, world.log, world.plan.redis)


# ── failures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def shrink(report: Report, tries: int = SHRINK_TRIES) -> tuple[frozenset[int], Report]:
    """Leave out faults one by one while it still fails in one of its ways."""
    plan = plan_of(report.seed, report.redis)
    kinds = {violation.kind for violation in report.violations}
    without: frozenset[int] = frozenset()
    for fault in reversed(plan.faults):
        if tries <= 0:
            break
        tries -= 1
        smaller = simulate(report.seed, without | {fault.number}, report.redis)
        if kinds & {violation.kind for violation in smaller.violations}:
            without, report = without | {fault.number}, smaller
    return without, report


def describe(report: Report, without: frozenset[int] = frozenset()) -> str:
    """A failure, for people: the seed, what was broken, and the schedule that is left."""
    lines = [f"seed={report.seed} without={sorted(without)}"]
    lines += [f"  {violation.kind}: {violation.text}" for violation in report.violations[:8]]
    return "\n".join(lines + [f"  {line}" for line in report.log])


def usual(report: Report) -> list[str]:
    """What is missing of what every schedule has to have."""
    wanted = {"messages": (report.messages, 50), "faults": (report.faults.total(), 5), "seconds": (report.virtual_s, 60)}
    return [f"seed {report.seed}: {got} {what}, at least {least}" for what, (got, least) in wanted.items() if got < least]


# ── command line ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Totals:
    """The sum of many reports."""

    seeds: int = 0
    messages: int = 0
    crashes: int = 0
    deliveries: int = 0
    redelivered: int = 0
    virtual_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    failed: list[Report] = field(default_factory=list)
    poor: list[str] = field(default_factory=list)

    def add(self, report: Report) -> None:
        self.seeds += 1
        self.messages += report.messages
        self.crashes += report.crashes
        self.deliveries += report.deliveries
        self.redelivered += report.redelivered
        self.virtual_s += report.virtual_s
        self.faults += report.faults
        self.notes += report.notes
        self.poor += usual(report)
        if report.violations:
            self.failed.append(report)

    def lines(self, wall_s: float) -> Iterable[str]:
        yield (f"seeds {self.seeds}  messages {self.messages}  deliveries {self.deliveries}  "
               f"redelivered {self.redelivered}  crashes {self.crashes}")
        yield f"faults {self.faults.total()}: " + ", ".join(f"{k} {n}" for k, n in sorted(self.faults.items()))
        yield "seen: " + ", ".join(f"{k} {n}" for k, n in sorted(self.notes.items()))
        yield f"virtual {self.virtual_s:.0f} s  wall {wall_s:.1f} s"
        yield f"violations {sum(len(r.violations) for r in self.failed)} in {len(self.failed)} seeds"


def run(seeds: Iterable[int], jobs: int, *, first_failure: bool = False, redis: bool = False) -> Totals:
    """Run all seeds; with ``first_failure`` only until one is violated."""
    totals = Totals()
    if jobs == 1:
        for seed in seeds:
            totals.add(simulate(seed, redis=redis))
            if first_failure and totals.failed:
                break
        return totals
    with ProcessPoolExecutor(jobs) as pool:
        for report in pool.map(partial(simulate, redis=redis), seeds, chunksize=4):
            totals.add(report)
    return totals


def undetermined(seeds: Iterable[int], traces: dict[int, str], redis: bool = False) -> list[int]:
    """The seeds whose second run is not equal to the first."""
    return [seed for seed in seeds if simulate(seed, redis=redis).trace != traces[seed]]


def main(arguments: list[str] | None = None) -> int:
    """Print totals; 1 when anything was violated."""
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--redis", action="store_true", help="two or three sites that share a Redis, and its faults")
    parser.add_argument("--mutants", action="store_true", help="plant bugs and see how soon they are found")
    parser.add_argument("--until-failure", action="store_true", help="stop at the first violation and name it")
    parser.add_argument("--prefer", default="", help="with --until-failure: seeds with most of these faults first")
    parser.add_argument("--skip", type=int, default=0, help="with --until-failure: leave out so many of the first")
    parser.add_argument("--only", default="", help="with --mutants: only this one")
    parser.add_argument("--trace", action="store_true", help="print the trace of every seed")
    options = parser.parse_args(arguments)
    seeds = range(options.first, options.first + options.seeds)
    if options.mutants:
        from lemegeton.testing.mutants import hunt

        return hunt(options.seeds, options.jobs, [options.only] if options.only else (), options.first)
    if options.trace:
        for seed in seeds:
            _say(f"{seed} {simulate(seed, redis=options.redis).trace}")
        return 0
    if options.until_failure:
        return _until_failure(preferring(options.prefer.split(","), seeds, options.redis)[options.skip :], options.redis)
    return _all(seeds, options.jobs, options.redis)


def preferring(kinds: Iterable[str], seeds: Sequence[int], redis: bool) -> list[int]:
    """The seeds, those whose plans have most faults of these kinds first."""
    wanted = set(kinds) & STRIKES.keys()
    if not wanted:
        return list(seeds)
    return sorted(seeds, key=lambda seed: -sum(fault.kind in wanted for fault in plan_of(seed, redis).faults))


def _until_failure(seeds: Sequence[int], redis: bool) -> int:
    totals = run(seeds, 1, first_failure=True, redis=redis)
    for report in totals.failed:
        kinds = sorted({violation.kind for violation in report.violations})
        _say(f"caught {totals.seeds} {report.seed} {' '.join(kinds)}")
    return int(bool(totals.failed))


def _all(seeds: range, jobs: int, redis: bool) -> int:
    began = time.perf_counter()
    totals = run(seeds, jobs, redis=redis)
    for line in totals.lines(time.perf_counter() - began):
        _say(line)
    for line in totals.poor:
        _say(line)
    for report in totals.failed[:3]:
        without, smaller = shrink(report)
        _say(describe(smaller, without))
    if len(totals.failed) > 3:
        _say("further seeds: " + ", ".join(str(report.seed) for report in totals.failed[3:]))
    repeat = list(seeds)[:: max(1, len(seeds) // 5)][:5]
    traces = {seed: simulate(seed, redis=redis).trace for seed in repeat}
    unequal = undetermined(repeat, traces, redis)
    if unequal:
        _say(f"undetermined: {unequal}")
    return int(bool(totals.failed or totals.poor or unequal))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
