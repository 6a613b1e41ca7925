"""The figures: what is measured, beside what, and the bar that each must hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raw import database
from stand import Role, Samples, alone, directory, median, pair, rate, told

SLOW_HZ, FAST_HZ = 500, 5000
TASKS = 64
CHANNELS = 1000
MEMORY_BAR_MB = 60.0
MEMORY_GROWTH_BAR_MB = 5.0
START_BAR_S = 0.2


@dataclass(frozen=True, slots=True)
class Size:
    """How much a run does: messages in the throughput figures, with sync, in SQLite, in the long run; seconds paced."""

    messages: int = 64_000
    synced: int = 16_000
    rows: int = 20_000
    long: int = 1_000_000
    paced_s: float = 3.0


QUICK = Size(messages=16_000, synced=3_200, rows=4_000, long=60_000, paced_s=0.6)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.  ``holds`` is None for a figure without a bar."""

    figure: str
    ours: str
    other: str
    ratio: str
    bar: str
    holds: bool | None


@dataclass(slots=True)
class Bench:
    """Runs the figures round by round and keeps what they gave."""

    root: Path
    size: Size
    line_bytes: int = 0
    samples: dict[str, Samples] = field(default_factory=dict)
    groups: list[float] = field(default_factory=list)
    rounds: int = 0

    def probe(self) -> None:
        """How many bytes one of our lines takes: an average, sequences grow."""
        count = self.size.messages
        with directory(self.root) as path:
            alone(Role("ours.py", "publish", home=str(path), count=count))
            total = sum(file.stat().st_size for file in path.glob("messages/*/*.log"))
        self.line_bytes = round(total / count)

    def round(self) -> None:
        """Every figure once, ours beside the other, each time in the other order."""
        self.rounds += 1
        for measure in FIGURES:
            sides = measure(self)
            for side in sides if self.rounds % 2 else reversed(sides):
                side()

    def add(self, figure: str, side: str, value: float) -> None:
        """One measured value."""
        self.samples.setdefault(figure, Samples()).add(side, value)

    # ------------------------------------------------------------------------------------------ runs

    def ours(self, figure: str, side: str, count: int, *, patterns: tuple[str, ...] = ("load-0",), **more: Any) -> None:
        """Publisher to durable subscriber, full delivery."""
        latency = "rate" in more
        with directory(self.root) as path:
            home = str(path)
            reader = Role("ours.py", "subscribe", home=home, count=count, latency=latency, patterns=patterns)
            writer = Role("ours.py", "publish", home=home, count=count, **more)
            self._add_pair(figure, side, count, *pair(reader, writer))

    def raw(self, figure: str, count: int, **more: Any) -> None:
        """One write a line to a reader that splits lines."""
        latency = "rate" in more
        with directory(self.root) as path:
            file = str(path / "log")
            reader = Role("raw.py", "read", path=file, count=count, latency=latency)
            writer = Role("raw.py", "write", path=file, count=count, line_bytes=self.line_bytes, **more)
            self._add_pair(figure, "raw", count, *pair(reader, writer))

    def _add_pair(self, figure: str, side: str, count: int, read: dict[str, Any], wrote: dict[str, Any]) -> None:
        if "p50" in read:
            self.add(f"{figure}, p50", side, read["p50"])
            self.add(f"{figure}, p99", side, read["p99"])
        else:
            self.add(figure, side, rate(count, wrote["begun"], read["ended"]))

    def ours_disk(self, figure: str) -> None:
        """64 tasks that each wait for the disk; nobody reads."""
        count = self.size.synced
        with directory(self.root) as path:
            result = alone(Role("ours.py", "publish", home=str(path), count=count, tasks=TASKS, ack="disk"))
        self.groups.append(count / max(1, result["syncs"]))
        self.add(figure, "ours", rate(count, result["begun"], result["ended"]))

    def raw_disk(self, figure: str, role: str, **more: Any) -> None:
        """Lines that are synced in groups of 64; nobody reads."""
        count = self.size.synced
        with directory(self.root) as path:
            result = alone(Role("raw.py", role, path=str(path / "log"), count=count, line_bytes=self.line_bytes, **more))
        self.add(figure, "raw", rate(count, result["begun"], result["ended"]))

    def sqlite(self, figure: str) -> None:
        """The peer."""
        count = self.size.rows
        with directory(self.root) as path:
            file = str(path / "log.db")
            database(file).close()
            reader = Role("raw.py", "select", path=file, count=count)
            writer = Role("raw.py", "insert", path=file, count=count, line_bytes=self.line_bytes)
            self._add_pair(figure, "SQLite", count, *pair(reader, writer))


Sides = list[Callable[[], None]]


def one_publisher(bench: Bench) -> Sides:
    """Throughput, a write a message."""
    count, name = bench.size.messages, ONE
    return [lambda: bench.ours(name, "ours", count), lambda: bench.raw(name, count), lambda: bench.sqlite(SQLITE),
            lambda: bench.ours(SQLITE, "ours", bench.size.rows)]


def latency_slow(bench: Bench) -> Sides:
    """Latency with an idle reader."""
    return _latency(bench, SLOW_HZ)


def latency_fast(bench: Bench) -> Sides:
    """Latency with a busy one."""
    return _latency(bench, FAST_HZ)


def _latency(bench: Bench, hz: int) -> Sides:
    count, name = int(hz * bench.size.paced_s), f"latency at {hz:,} msg/s"
    return [lambda: bench.ours(name, "ours", count, rate=hz), lambda: bench.raw(name, count, rate=hz)]


def on_disk(bench: Bench) -> Sides:
    """Group sync: beside 64 tasks that share one as well, and beside a loop that writes 64 lines and syncs."""
    return [lambda: bench.ours_disk(DISK), lambda: bench.raw_disk(DISK, "tasks", tasks=TASKS),
            lambda: bench.ours_disk(BARE_DISK), lambda: bench.raw_disk(BARE_DISK, "write", batch=TASKS, sync=True)]


def many_channels(bench: Bench) -> Sides:
    """The same messages over 1,000 channels and over one, both read through a glob."""
    count = bench.size.messages
    return [lambda: bench.ours(MANY, "ours", count, patterns=("load-*",), channel_count=CHANNELS),
            lambda: bench.ours(MANY, "one channel", count, patterns=("load-*",))]


def many_tasks(bench: Bench) -> Sides:
    """64 publishing tasks beside raw writes of 64 lines."""
    count = bench.size.messages
    return [lambda: bench.ours(GROUPED, "ours", count, tasks=TASKS), lambda: bench.raw(GROUPED, count, batch=TASKS)]


FIGURES: tuple[Callable[[Bench], Sides], ...] = (
    one_publisher, latency_slow, latency_fast, on_disk, many_channels, many_tasks,
)
ONE = "one publisher, each publish awaited, msg/s"
SQLITE = "the same beside SQLite (WAL, NORMAL, a row a commit), msg/s"
DISK = 'ack="disk", 64 tasks, msg/s'
BARE_DISK = "the same beside one write and sync for 64 lines, no tasks, msg/s"
MANY = "1,000 channels in turn, glob subscription, msg/s"
GROUPED = "64 tasks, msg/s"
BARS: dict[str, tuple[float, bool]] = {
    ONE: (0.4, True), DISK: (0.6, True), MANY: (0.5, True),
    **{f"latency at {hz:,} msg/s, {p}": (2.5, False) for hz in (SLOW_HZ, FAST_HZ) for p in ("p50", "p99")},
}
"""Figure → the bar of ours over the other, and whether it must be at least that (else at most)."""


def rows(bench: Bench) -> list[Row]:
    """The table of what was measured in rounds."""
    return [_row(figure, samples, bench) for figure, samples in bench.samples.items()]


def _row(figure: str, samples: Samples, bench: Bench) -> Row:
    ours = samples.sides["ours"]
    side, other = next((side, values) for side, values in samples.sides.items() if side != "ours")
    ratio = median(ours) / median(other)
    limit, at_least = BARS.get(figure, (0.0, True))
    unit = " µs" if "latency" in figure else ""
    group = f"; {median(bench.groups):.0f} a sync" if figure in (DISK, BARE_DISK) else ""
    return Row(
        figure, spread(ours, unit) + group, f"{side}: {spread(other, unit)}", f"{ratio:.2f}",
        f"{'≥' if at_least else '≤'} {limit}" if limit else "–",
        None if not limit else (ratio >= limit if at_least else ratio <= limit))


def spread(values: list[float], unit: str) -> str:
    """The median, the smallest and the largest."""
    return f"{median(values):,.0f}{unit} ({min(values):,.0f}–{max(values):,.0f})"


# ── a long run: memory and start ─────────────────────────────────────────────────────────────────────────────────────


def long_run(root: Path, count: int, rounds: int) -> list[Row]:
    """A million messages from one process to another, then subscriptions that begin behind them."""
    with directory(root) as path:
        home = str(path)
        Role("ours.py", "hold", home=home).wait()
        reader = Role("ours.py", "subscribe", home=home, count=count, every=count // 10)
        read, wrote = pair(reader, Role("ours.py", "fill", home=home, count=count, every=count // 10))
        alone(Role("ours.py", "publish", home=home, count=1000))
        found = [_memory_row(f"memory of the {role}, {count:,} messages", result)
                 for role, result in (("publisher", wrote), ("subscriber", read))]
        fresh = [told(Role("ours.py", "start", home=home, name=f"fresh{n}")) for n in range(rounds)]
        known = [told(Role("ours.py", "start", home=home, name="reader")) for n in range(rounds)]
        assert {s["seq"] for s in fresh} == {1}, "a fresh place begins at the first record"
        assert {s["seq"] for s in known} == {count + 1}, "a known place goes on where it was"
    what = f"behind {count:,} records, subscribe to first delivery"
    return [*found, _start_row(f"fresh name {what}", fresh), _start_row(f"known place near the end, {what}", known)]


def _memory_row(figure: str, result: dict[str, Any]) -> Row:
    growth = result["marks"][-1] - result["marks"][0]
    holds = result["VmHWM"] < MEMORY_BAR_MB and growth < MEMORY_GROWTH_BAR_MB
    text = f"{result['VmRSS']:.1f} MB, peak {result['VmHWM']:.1f} MB, {growth:+.1f} MB since the first tenth"
    return Row(figure, text, "–", "–", f"peak < {MEMORY_BAR_MB:.0f} MB, growth < {MEMORY_GROWTH_BAR_MB:.0f} MB", holds)


def _start_row(figure: str, results: list[dict[str, Any]]) -> Row:
    seconds = [result["seconds"] for result in results]
    text = f"{median(seconds) * 1000:.0f} ms ({min(seconds) * 1000:.0f}–{max(seconds) * 1000:.0f})"
    return Row(figure, text, "–", "–", f"< {START_BAR_S * 1000:.0f} ms", median(seconds) < START_BAR_S)
