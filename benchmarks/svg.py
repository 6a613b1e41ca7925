"""Bar charts as SVG: small, readable on a light and on a dark page, and in words for who does not see them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from table import number

WIDTH, LABEL, RIGHT = 800, 270, 110
ROW, BAR, TOP, HEADING, FOOT = 19, 12, 62, 28, 24
STYLE = """
text{font:12px system-ui,sans-serif;fill:#1f2328}.title{font-size:15px;font-weight:600}.heading{font-weight:600}
.end{text-anchor:end}.middle{text-anchor:middle}.page{fill:#fff}.line{stroke:#d0d7de}
.ours{fill:#0b62c4}.limit{fill:#6a7683}.peer{fill:#b0752a}.more{opacity:.4}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.page{fill:#0d1117}.line{stroke:#30363d}
.ours{fill:#58a6ff}.limit{fill:#98a4b0}.peer{fill:#d9a441}}
"""
"""The page's own colour lies behind, so that text and page turn dark together wherever the picture is shown."""
KINDS = {"ours": "ours", "limit": "limit by hand", "peer": "peer"}


@dataclass(frozen=True, slots=True)
class Bar:
    """A row: what it is, how long, which kind of side (of `KINDS`), and how far a paler bar goes on."""

    label: str
    value: float
    kind: str
    more: float | None = None

    @property
    def end(self) -> float:
        """Where it ends."""
        return self.value if self.more is None else max(self.value, self.more)

    def words(self) -> str:
        """The numbers."""
        return number(self.value) + ("" if self.more is None else f" / {number(self.more)}")


@dataclass(frozen=True, slots=True)
class Group:
    """Rows under a heading."""

    heading: str
    bars: Sequence[Bar]


class _Scale:
    """Values to places; logarithmic, from a power of ten well below all to one above."""

    def __init__(self, values: Sequence[float]) -> None:
        self._low = math.floor(math.log10(min(values) / 2))
        self._high = max(self._low + 1, math.ceil(math.log10(max(values))))

    def x(self, value: float) -> float:
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return LABEL + share * (WIDTH - LABEL - RIGHT)

    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self._low, self._high + 1)]


def chart(title: str, unit: str, groups: Sequence[Group]) -> str:
    """The picture."""
    bars = [bar for group in groups for bar in group.bars]
    scale, height = _Scale([value for bar in bars for value in (bar.value, bar.end)]), _height(groups)
    words = "; ".join(f"{group.heading}: " + ", ".join(f"{bar.label} {bar.words()}" for bar in group.bars) for group in groups)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        'aria-labelledby="title words">',
        f'<title id="title">{escape(title)}</title><desc id="words">{escape(f"{unit}. {words}.")}</desc>',
        f"<style>{STYLE}</style>", f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        f'<text class="title" x="12" y="24">{escape(title)}</text>', *_legend({bar.kind for bar in bars}, unit),
        *_grid(scale, height), *_rows(scale, groups), "</svg>"]
    return "\n".join(parts) + "\n"


def _height(groups: Sequence[Group]) -> int:
    return TOP + sum(HEADING + ROW * len(group.bars) for group in groups) + FOOT


def _legend(kinds: set[str], unit: str) -> list[str]:
    parts, x = [f'<text x="12" y="44">{escape(unit)}, logarithmic</text>'], LABEL
    for kind, words in KINDS.items():
        if kind in kinds:
            parts.append(f'<rect class="{kind}" x="{x}" y="34" width="{BAR}" height="{BAR}"/>'
                         f'<text x="{x + 18}" y="44">{words}</text>')
            x += 130
    return parts


def _grid(scale: _Scale, height: int) -> list[str]:
    return [f'<line class="line" x1="{x:.0f}" x2="{x:.0f}" y1="{TOP}" y2="{height - FOOT}"/>'
            f'<text class="middle" x="{x:.0f}" y="{height - 8}">{_round(tick)}</text>'
            for tick in scale.ticks() for x in (scale.x(tick),)]


def _round(tick: float) -> str:
    return f"{tick:,.0f}" if tick >= 1 else f"{tick:g}"


def _rows(scale: _Scale, groups: Sequence[Group]) -> list[str]:
    parts, y = [], TOP
    for group in groups:
        y += HEADING
        parts.append(f'<text class="heading" x="12" y="{y - 8}">{escape(group.heading)}</text>')
        for bar in group.bars:
            parts.append(_row(scale, bar, y))
            y += ROW
    return parts


def _row(scale: _Scale, bar: Bar, y: int) -> str:
    def drawn(kind: str, value: float) -> str:
        width = max(1.0, scale.x(value) - LABEL)
        return f'<rect class="{kind}" x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR}"/>'

    paler = "" if bar.more is None else drawn(f"{bar.kind} more", bar.more)
    return (f'<text class="end" x="{LABEL - 8}" y="{y + 10}">{escape(bar.label)}</text>{paler}{drawn(bar.kind, bar.value)}'
            f'<text x="{scale.x(bar.end) + 6:.1f}" y="{y + 10}">{bar.words()}</text>')
