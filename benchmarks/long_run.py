"""A million records: memory while they come, subscriptions that begin behind them, and the whole backlog handled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import RAW
from stand import Found, Role, StepFailed, Turn, alone, directory, pair, rate, told
from table import Pair, Part

BATCH = 64
AFTER = 1000
"""Published behind the known place, so that it has something to begin with."""
WAIT_S = 300.0
PEAK = "backlog: {count:,} messages, peak memory of the {role}, MB"
GROWTH = "backlog: {count:,} messages, growth of the memory of the {role} since the first tenth, MB"
FRESH = "backlog: fresh name behind {count:,} records, subscribe to first delivery, ms"
KNOWN = "backlog: known place near the end of {count:,} records, subscribe to first delivery, ms"
FIRST = "backlog: all of {count:,} records, subscribe to first delivery, ms"
LAST = "backlog: all of {count:,} records, subscribe to last delivery, s"
BOTH = "backlog: all of {count:,} records, msg/s"


@dataclass(frozen=True, slots=True)
class LongSize:
    """Records; how many subscriptions begin behind them; how many times all of them are handled."""

    count: int = 1_000_000
    starts: int = 5
    rounds: int = 2


LONG_QUICK = LongSize(count=60_000, starts=1, rounds=1)


@dataclass(slots=True)
class LongBench:
    """Runs the figures."""

    root: Path
    size: LongSize
    found: Found
    line_bytes: Callable[[], int]

    def turns(self) -> list[Turn]:
        """One turn with everything: the records are written once."""
        return [Turn("backlog.all", (self._all,), 1)]

    def _all(self) -> None:
        count = self.size.count
        with directory(self.root) as path:
            home = str(path / "home")
            told(Role("ours.py", "hold", home=home))
            reader = Role("ours.py", "subscribe", home=home, count=count, every=count // 10)
            read, wrote = pair(reader, Role("ours.py", "fill", home=home, count=count, every=count // 10), WAIT_S)
            for role, ran in (("publisher", wrote), ("subscriber", read)):
                self._memory(role, ran.told)
            alone(Role("ours.py", "publish", home=home, count=AFTER))
            self._starts(home)
            raw = str(path / "log")
            alone(Role("raw.py", "write", path=raw, count=count // BATCH * BATCH, line_bytes=self.line_bytes(), batch=BATCH))
            for number in range(self.size.rounds):
                self._drain(home, raw, number)

    def _memory(self, role: str, given: dict[str, Any]) -> None:
        count = self.size.count
        self.found.add(PEAK.format(count=count, role=role), "ours", given["VmHWM"])
        self.found.add(GROWTH.format(count=count, role=role), "ours", given["marks"][-1] - given["marks"][0])

    def _starts(self, home: str) -> None:
        count = self.size.count
        for n in range(self.size.starts):
            for figure, name, seq in ((FRESH, f"fresh{n}", 1), (KNOWN, "reader", count + 1)):
                begun = told(Role("ours.py", "start", home=home, name=name))
                if begun["seq"] != seq:
                    raise StepFailed(f"{name} began at {begun['seq']}, not at {seq}")
                self.found.add(figure.format(count=count), "ours", begun["seconds"] * 1000)

    def _drain(self, home: str, raw: str, number: int) -> None:
        count, more = self.size.count, self.size.count + AFTER
        ours = alone(Role("ours.py", "drain", home=home, name=f"drain{number}", count=more), wait_s=WAIT_S).told
        lines = count // BATCH * BATCH
        split = alone(Role("raw.py", "read", paths=[raw], count=lines), wait_s=WAIT_S).told
        for side, told_by, some in (("ours", ours, more), (RAW, split, lines)):
            self.found.add(FIRST.format(count=count), side, told_by["first"] * 1000)
            self.found.add(LAST.format(count=count), side, told_by["last"])
            self.found.add(BOTH.format(count=count), side, rate(some, 0, int(told_by["last"] * 1e9)))

    def part(self) -> Part:
        """Everything that was measured."""
        figures = [name for name in self.found.samples if name.startswith("backlog: ")]
        compared = [name for name in figures if self.found.values(name, RAW)]
        return Part("backlog", "A million records", TEXT,
                    [Pair(name, "ours", RAW if name in compared else "") for name in figures])


TEXT = """One process publishes, another handles what comes; a third had left a durable place at the beginning. Then, with
nobody publishing: subscriptions that begin behind all records, and subscriptions that handle all of them. Raw: the same
number of lines of as many bytes, read and split. Everything is in the page cache."""
