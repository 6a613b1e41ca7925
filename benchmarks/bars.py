"""The bars: for a figure how far ours has to get, and the goal beyond that.  Where one does not hold, `run.py` exits 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fan_out import NUMBERS, PUBLISHER, SPENT, WHERE, side
from figures import (
    CHANNELS,
    DISK,
    FAST_HZ,
    GROUPED,
    LATENCY,
    MANY,
    MEMORY,
    ONE,
    RAW,
    ROLES,
    ROWS,
    SLOW_HZ,
    SQLITE,
    channel_side,
)
from long_run import FRESH, GROWTH, KNOWN, PEAK, LongSize
from peer_list import DIRQ, JETSTREAM, KOMBU_FILES, LITEQUEUE, OUTSTANDING
from peers import AWAITED as PEERS_AWAITED
from peers import FILES, SITES
from redis_figures import BATCHES, FASTSTREAM, KEPT, KINDS, LIBRARY, SCRIPT, THROUGHPUT
from redis_figures import LATENCY as REDIS_LATENCY
from stand import Found, median
from start_up import IMPORT, PACKAGE, REDIS
from table import NONE, Pair, markdown, number, ratio

AT_LEAST, AT_MOST = "≥", "≤"


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure must be: as a ratio to another side, or, where there is none, in the unit of the figure."""

    pair: Pair
    sign: str
    bar: float
    goal: float | None = None

    def reached(self, value: float, limit: float) -> bool:
        """Whether a value is on the right side."""
        return value >= limit if self.sign == AT_LEAST else value <= limit


def _least(figure: str, other: str, bar: float, goal: float | None = None, ours: str = "ours") -> Bar:
    return Bar(Pair(figure, ours, other), AT_LEAST, bar, goal)


def _most(figure: str, other: str, bar: float, goal: float | None = None, ours: str = "ours") -> Bar:
    return Bar(Pair(figure, ours, other), AT_MOST, bar, goal)


def _paced(figure: str, hz: int, part: str, kind: str = "") -> str:
    return figure.replace("{hz:,}", f"{hz:,}").replace("{part}", part).replace("{kind}", kind)


_MILLION = LongSize().count
_FEW, _MANY = channel_side(CHANNELS[0]), channel_side(CHANNELS[-1])
ON_FILES = (
    _least(ONE, RAW, 0.5, 0.8), _least(GROUPED, RAW, 0.25, 0.4),
    *(_most(_paced(LATENCY, hz, part), RAW, 2.0, 1.3) for hz in (SLOW_HZ, FAST_HZ) for part in ("p50", "p99")),
    _least(ROWS, SQLITE, 3.0, 6.0), _least(DISK, RAW, 0.6), _least(MANY, _FEW, 0.5, ours=_MANY),
    *(_most(MEMORY.format(role=role), _FEW, 1.5, 1.2, ours=_MANY) for role in ROLES),
)
THROUGH_REDIS = tuple(bar for kind in KINDS for bar in (
    _least(THROUGHPUT.format(kind=kind), BATCHES, 0.5, 0.8), _least(THROUGHPUT.format(kind=kind), SCRIPT, 0.7),
    _least(THROUGHPUT.format(kind=kind), FASTSTREAM, 15.0, 30.0),
    _most(_paced(REDIS_LATENCY, SLOW_HZ, "p50", kind), LIBRARY, 1.3, 0.8)))
BESIDE_PEERS = (
    *(_least(PEERS_AWAITED, peer, 3.0, 6.0, FILES) for peer in (KOMBU_FILES, DIRQ, LITEQUEUE)),
    _least(PEERS_AWAITED, JETSTREAM, 20.0, 50.0, FILES), _least(PEERS_AWAITED, OUTSTANDING, 3.0, 6.0, FILES),
    _least(PEERS_AWAITED, JETSTREAM, 10.0, 30.0, SITES),
)
OTHERS = (
    _most(KEPT, "", 100.0),
    *(_most(SPENT.format(where=where, what=PUBLISHER[where]), side(NUMBERS[0]), 1.0, 0.5, side(NUMBERS[-1]))
      for where in WHERE),
    *(_most(figure.format(count=_MILLION, role=role), "", limit)
      for role in ROLES for figure, limit in ((PEAK, 60.0), (GROWTH, 5.0))),
    *(_most(figure.format(count=_MILLION), "", 200.0) for figure in (FRESH, KNOWN)),
    _most(IMPORT, "", 120.0, 60.0, PACKAGE), _most(IMPORT, REDIS, 0.7, ours=PACKAGE),
)
BARS = (*ON_FILES, *THROUGH_REDIS, *OTHERS, *BESIDE_PEERS)
HEAD = ("figure", "ours", "beside", "measured", "goal", "bar", "holds")


@dataclass(frozen=True, slots=True)
class Judged:
    """A bar with what was measured; None: it was not."""

    bar: Bar
    value: float | None

    @property
    def holds(self) -> bool:
        """False where it was measured and is on the wrong side."""
        return self.value is None or self.bar.reached(self.value, self.bar.bar)

    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        pair, bar = self.bar.pair, self.bar
        if self.value is None:
            measured, holds = "not measured", NONE
        else:
            measured = f"{self.value:.2f}" if pair.other else number(self.value)
            holds = "goal" if bar.goal is not None and bar.reached(self.value, bar.goal) else "yes" if self.holds else "NO"
        goal = NONE if bar.goal is None else f"{bar.sign} {bar.goal:g}"
        return (pair.figure, pair.ours, pair.other or NONE, measured, goal, f"{bar.sign} {bar.bar:g}", holds)


def judge(found: Found, bars: Sequence[Bar] = BARS) -> list[Judged]:
    """Every bar beside the median that was measured."""
    return [Judged(bar, _value(found, bar.pair)) for bar in bars]


def _value(found: Found, pair: Pair) -> float | None:
    if pair.other:
        return ratio(found, pair)
    values = found.values(pair.figure, pair.ours)
    return median(values) if values else None


def bars_table(judged: Sequence[Judged]) -> str:
    """All bars as Markdown."""
    return markdown(HEAD, [one.cells() for one in judged])
