"""Transitions: a hub and eight agents on two sites, and a server that dies, stops, is cut off and refuses, in turn.

    python chaos/transitions.py --messages 100000 --runs 3

Three scenarios.  All six changes between the modes while 100,000 messages go: everything acknowledged is handled, once
and in order, within 15 s of the last fault.  Same-site latency during outages 12 s apart, beside that of calm seconds of
the same run (median of the runs; a verdict, but no exit code).  One kill and restart at 500 messages a second, where the
design that publishes straight to Redis lost 1,797 of 2,651.  And `publish` beside a server that is stopped, black-holed
and down.  Exit 1 if anything is lost, late, doubled or mixed, or one of the six changes was never seen.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from crew_of_hub import Crew, Outages
from sites import binary

from lemegeton import MessageBus
from lemegeton.testing.checker import Violation, check
from lemegeton.testing.history import Event, load
from lemegeton.testing.proxy import Proxy
from lemegeton.testing.servers import RedisServer

RATE = 1000.0
EVERY_S = 12.0
OUTAGE_S = 6.0
QUICK_S = (2.5, 2.0)
"""How long an outage of the first scenario lasts, and the pause behind it."""
CALM_FROM, CALM_S = 0.7, 16.0
"""Where in the first scenario there is calm for long enough that the mode is distributed when it is switched by hand."""
OBVIOUS_MESSAGES, OBVIOUS_RATE = 2651, 500.0
PUBLISHED = 2000
WARM_NS = 2_000_000_000
"""What everybody does first is no calm."""
CALM, ANY, BEHIND = "calm", "any outage", "recovery"
RECOVERY_NS = 5_000_000_000
ALL = ", all transitions"
SETTLED_S = 15.0
"""How soon after the last fault everything has to be delivered."""
MODES = ("distributed", "degraded", "isolated")


class Run(NamedTuple):
    """What a run of a crew gave."""

    name: str
    counts: Counter[str]
    violations: list[Violation]
    p99_ms: dict[str, float]
    rate: float
    settled_s: float
    seconds: float


def say(text: str = "") -> None:
    """One line of the report, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def percentile(values: list[float], share: float) -> float:
    """The value below which this share of them lies; 0 without any."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else 0.0


def latencies(events: list[Event], outages: list[tuple[int, int, str]]) -> dict[str, list[float]]:
    """Milliseconds from publish to handler on one site: published while all was calm, and during outages, by their kind."""
    began = {event.id: event for event in events if event.ev == "inv"}
    found: dict[str, list[float]] = {}
    calm_ns = min((event.t for event in began.values()), default=0) + WARM_NS
    behind = [(end, end + RECOVERY_NS, BEHIND) for _, end, _ in outages]
    spans = [*outages, *behind, (calm_ns, outages[0][0] if outages else 2**62, CALM)]
    for event in events:
        inv = began.get(event.id) if event.ev == "start" else None
        if inv is not None and inv.site == event.site:
            kind = next((kind for begin, end, kind in spans if begin < inv.t < end), "")
            found.setdefault(kind, []).append((event.t - inv.t) / 1e6)
    return found


def rate_of(events: list[Event]) -> float:
    """Messages a second."""
    times = [event.t for event in events if event.ev == "inv"]
    return len(times) / (max(times) - min(times)) * 1e9


def settled_after(events: list[Event]) -> float:
    """Seconds from the end of the last fault to the last message that was handled."""
    quiet = max(event.t for event in events if event.ev == "quiet")
    return max(0.0, max(event.t for event in events if event.ev == "done") - quiet) / 1e9


def play(name: str, root: Path, messages: int, rate: float, plan: Callable[[Outages], None], *, local: str) -> Run:
    """One run: the crew begins, publishes, is hurt as planned, and has to have everything at the end."""
    begun = time.monotonic()
    counts: Counter[str] = Counter()
    with Crew(root, random.Random(1), counts, local=local) as crew:
        crew.start()
        outages = Outages(crew)
        plan(outages)
        crew.begin_publishing(messages, rate)
        outages.run(until=crew.all_published)
        crew.heal()
        crew.settle()
        crew.finish()
    events = load(crew.histories())
    counts.update(event.ev for event in events if event.ev in ("ack", "done"))
    counts.update(event.kind for event in events if event.ev == "mode")
    took = latencies(events, outages.spans)
    p99_ms = {kind: percentile(values, 0.99) for kind, values in took.items() if kind}
    p99_ms[ANY] = percentile([ms for kind, values in took.items() if kind not in ("", CALM, BEHIND) for ms in values], 0.99)
    return Run(name, counts, check(events) + crew.trouble(), p99_ms, rate_of(events), settled_after(events),
               time.monotonic() - begun)


def in_turn(outages: Outages, *, first_s: float, last_s: float, outage_s: float, pause_s: float,
            calm_s: tuple[float, float] = (0, 0)) -> list[float]:
    """Every kind of outage in turn from ``first_s`` on, but for a time of calm; when they begin."""
    begins: list[float] = []
    while (at_s := first_s + len(begins) * (outage_s + pause_s)) + outage_s < last_s:
        if not calm_s[0] < at_s + outage_s < calm_s[1]:
            outages.plan(len(begins), at_s, outage_s)
        begins.append(at_s)
    return begins


def report(run: Run) -> None:
    """The lines of one run."""
    kinds = Counter(violation.kind for violation in run.violations)
    acked, handled = run.counts["ack"], run.counts["done"]
    lost = sum(kinds[kind] for kind in ("lost", "stuck"))
    doubled = sum(kinds[kind] for kind in ("doubled", "copied", "false_flag"))
    mixed = sum(kinds[kind] for kind in ("order", "producer_order", "overlap"))
    say(f"{run.name:<34}{acked:>8} {handled:>8} {lost:>5} {doubled:>7} {mixed:>9} {len(run.violations):>6} "
        f"{run.settled_s:>9.1f} {run.p99_ms.get(CALM, 0):>8.2f} {run.p99_ms[ANY]:>9.2f} {run.rate:>6.0f} {run.seconds:>6.0f}")
    say("  same-site p99 by outage: " + ", ".join(
        f"{kind} {ms:.2f} ms" for kind, ms in run.p99_ms.items() if kind not in (CALM, ANY)))
    for violation in run.violations[:5]:
        say(f"  {violation.kind}: {violation.text}")


def head() -> None:
    """The head of the table of runs."""
    say(f"{'':<34}{'acked':>8} {'handled':>8} {'lost':>5} {'doubled':>7} {'reordered':>9} {'all':>6} {'settled s':>9} "
        f"{'p99 calm':>8} {'p99 fault':>9} {'msg/s':>6} {'s':>6}")


# ── publish beside a server that does not answer ─────────────────────────────────────────────────────────────────────


@contextmanager
def hurt(kind: str, server: RedisServer, proxy: Proxy) -> Iterator[None]:
    """The server is stopped, behind a black hole, or down."""
    {"stopped": server.freeze, "black hole": proxy.swallow, "down": server.kill, "well": lambda: None}[kind]()
    try:
        yield
    finally:
        proxy.heal()
        server.thaw()
        if not server.running:
            server.start()


async def publish_times(root: Path) -> dict[str, list[float]]:
    """Milliseconds of `publish`, a thousand a second, by what ails the server."""
    found: dict[str, list[float]] = {}
    with RedisServer(binary()) as server:
        async with Proxy(server.path, path=str(root / "p")) as proxy:
            home = str(root / "home")
            async with MessageBus("one", home=home, redis_url=proxy.url, local_redis="off") as bus:
                await bus.publish("hub", {"warm": "up"})
                for kind in ("well", "stopped", "black hole", "down"):
                    with hurt(kind, server, proxy):
                        found[kind] = [await _timed(bus) for _ in range(PUBLISHED)]
                    await asyncio.sleep(1.5)
    return found


async def _timed(bus: MessageBus) -> float:
    await asyncio.sleep(0.0008)
    begun = time.perf_counter()
    await bus.publish("hub", {"fill": "x" * 200})
    return (time.perf_counter() - begun) * 1000


# ── all of it ────────────────────────────────────────────────────────────────────────────────────────────────────────


def scenarios(given: argparse.Namespace, keep: Path) -> Iterator[Run]:
    """Every run of a crew, one after the other."""
    span_s = given.messages / RATE
    if given.messages:
        def six(outages: Outages) -> None:
            calm_s = (span_s * CALM_FROM, span_s * CALM_FROM + CALM_S)
            outages.by_hand(in_turn(outages, first_s=4.0, last_s=span_s, outage_s=QUICK_S[0], pause_s=QUICK_S[1],
                                    calm_s=calm_s), calm_s[1] - 4.0)

        yield play(f"{given.messages} messages{ALL}", keep / "all", given.messages, RATE, six, local="auto")
    for number in range(1, given.runs + 1):
        yield play(f"outages 12 s apart, run {number}", keep / f"run{number}", int(RATE * 5 * EVERY_S), RATE,
                   lambda outages: in_turn(outages, first_s=EVERY_S, last_s=5 * EVERY_S, outage_s=OUTAGE_S,
                                           pause_s=EVERY_S - OUTAGE_S), local="off")
    yield obvious(keep)


def obvious(keep: Path) -> Run:
    """One kill and restart at 500 messages a second: see the module."""
    return play("one kill at 500 msg/s", keep / "obvious", OBVIOUS_MESSAGES, OBVIOUS_RATE,
                lambda outages: outages.plan(0, 2.5, 0.5), local="off")


PAIRS = tuple(f"{old} > {new}" for old in MODES for new in MODES if old != new)


def verdict(runs: list[Run]) -> int:
    """What was asked of all runs, each with what was found; how much of it that hangs on no clock was not met."""
    apart = [run for run in runs if run.name.startswith("outages")]
    switched = [run for run in runs if run.name.endswith(ALL)]
    unseen = [pair for run in switched for pair in PAIRS if not run.counts[pair]]
    broken = sum(len(run.violations) for run in runs)
    late = [run.name for run in runs if run.settled_s > SETTLED_S]
    unequal = [run.name for run in runs if run.counts["ack"] != run.counts["done"]]
    asked = [(f"{broken} violations", not broken),
             ("acknowledged = handled" + "".join(f", not in {name}" for name in unequal), not unequal),
             (f"all delivered within {SETTLED_S:.0f} s" + "".join(f", not in {name}" for name in late), not late)]
    if switched:
        seen = f"{len(PAIRS) - len(unseen)} of {len(PAIRS)} transitions"
        asked.append((seen + "".join(f", not {pair}" for pair in unseen), not unseen))
    if apart:
        calm, fault = (statistics.median(run.p99_ms[kind] for run in apart) for kind in (CALM, ANY))
        most = max(2 * calm, calm + 10)
        say(f"{'met' if fault <= most else 'NOT MET':<8} same-site p99 at {RATE:.0f} msg/s, median of {len(apart)}: calm "
            f"{calm:.2f} ms, during outages {fault:.2f} ms, at most {most:.2f} asked (a busy machine fails it: no exit code)")
    for text, met in asked:
        say(f"{'met' if met else 'NOT MET':<8} {text}")
    return sum(not met for _, met in asked)


def finish(runs: list[Run], times: dict[str, list[Any]]) -> int:
    """The rest of the report; the exit code."""
    say()
    for run in runs[:1]:
        say("modes: " + ", ".join(f"{pair} {run.counts[pair]}" for pair in PAIRS))
        say("faults: " + ", ".join(f"{count} {kind}" for kind, count in sorted(run.counts.items())
                                   if kind not in ("ack", "done") and ">" not in kind))
    for kind, values in times.items():
        say(f"publish, server {kind}: p50 {percentile(values, 0.5):.3f} ms, p99 {percentile(values, 0.99):.3f} ms, "
            f"worst {max(values):.2f} ms")
    return 1 if verdict(runs) else 0


def main() -> int:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(description="a hub and eight agents while the server comes and goes")
    parser.add_argument("--messages", type=int, default=100_000, help="of the first scenario; 0: without it")
    parser.add_argument("--runs", type=int, default=3, help="of the second scenario")
    parser.add_argument("--obvious", action="store_true", help="only the one kill and restart")
    given = parser.parse_args()
    keep = Path(tempfile.mkdtemp(prefix="lemegeton-t"))
    (keep / "times").mkdir()
    times = {} if given.obvious else asyncio.run(publish_times(keep / "times"))
    head()
    runs = []
    for run in [obvious(keep)] if given.obvious else scenarios(given, keep):
        runs.append(run)
        report(run)
    code = finish(runs, times)
    if not code:
        shutil.rmtree(keep)
    else:
        say(f"histories kept: {keep}")
    return code


if __name__ == "__main__":
    sys.exit(main())
