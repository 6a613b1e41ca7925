"""Rows: what was measured, one side beside another, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stand import Found, median

NONE = "–"


@dataclass(frozen=True, slots=True)
class Pair:
    """What stands in one row: a figure, a side of it, and the side beside it (empty: none)."""

    figure: str
    ours: str
    other: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """A section of the page: its name, which begins the names of its turns, what it did, and its rows."""

    name: str
    title: str
    text: str
    pairs: Sequence[Pair]
    tables: Sequence[str] = ()
    """Further tables, behind that of the rows."""


def number(value: float) -> str:
    """With as many digits as can be told apart from one run to the next."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values: Sequence[float]) -> str:
    """The median, the smallest and the largest."""
    if not values:
        return NONE
    return number(median(values)) + (f" ({number(min(values))}–{number(max(values))})" if len(values) > 1 else "")


def ratio(found: Found, pair: Pair) -> float | None:
    """Of the medians; None where a side was not measured."""
    ours, other = found.values(pair.figure, pair.ours), found.values(pair.figure, pair.other)
    return median(ours) / median(other) if ours and other else None


def beside(found: Found, figures: Sequence[str], ours: str = "ours") -> list[Pair]:
    """A row for ours and each other side of these figures; of a figure that has no other side, ours alone."""
    return [Pair(figure, ours, other) for figure in figures
            for other in [side for side in found.samples.get(figure, ()) if side != ours] or [""]]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))


def table(found: Found, pairs: Sequence[Pair]) -> str:
    """The rows that were measured; a figure's name stands without that of its part."""
    rows = []
    for pair in pairs:
        ours = found.values(pair.figure, pair.ours)
        if ours:
            against = f"{pair.other}: {spread(found.values(pair.figure, pair.other))}" if pair.other else NONE
            share = ratio(found, pair)
            name = pair.figure.partition(": ")[2]
            rows.append((name, ("" if pair.ours == "ours" else f"{pair.ours}: ") + spread(ours), against,
                         NONE if share is None else f"{share:.2f}"))
    return markdown(("figure", "ours", "beside", "ratio"), rows)
