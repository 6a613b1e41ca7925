"""The pictures of the page: throughput, latency, CPU, fan-out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import figures
import peers
import redis_figures
from fan_out import NUMBERS, PUBLISHER, SPENT, WHERE, side
from figures import GROUPED, ONE, RAW, SLOW_HZ
from peer_list import PEERS
from stand import Found, median
from svg import Bar, Group, chart

OURS, LIMIT, PEER = "ours", "limit", "peer"
Source = tuple[str, str, str, str]
"""Label, kind, figure, side."""
TCP = redis_figures.TCP
TASKS = redis_figures.THROUGHPUT.format(kind=TCP)
ONE_BY_ONE = redis_figures.AWAITED.format(kind=TCP)


def pictures(found: Found) -> dict[str, str]:
    """File name → SVG, of everything that was measured."""
    drawn: dict[str, Callable[[Found], str | None]] = {
        "throughput.svg": _throughput, "latency.svg": _latency, "cpu.svg": _cpu, "fan-out.svg": _fan_out}
    return {name: text for name, draw in drawn.items() if (text := draw(found)) is not None}


def _bars(found: Found, sources: Sequence[Source], more: str = "") -> list[Bar]:
    """Those that were measured; ``more`` is what stands for p50 in the figure of the paler bar."""
    bars = []
    for label, kind, figure, name in sources:
        values = found.values(figure, name)
        further = found.values(figure.replace("p50", more), name) if more else []
        if values:
            bars.append(Bar(label, median(values), kind, median(further) if further else None))
    return bars


def _picture(title: str, unit: str, groups: Sequence[Group]) -> str | None:
    some = [group for group in groups if group.bars]
    return chart(title, unit, some) if some else None


def _peers(figure: str) -> list[Source]:
    return [(peer.name, PEER, figure, peer.name) for peer in PEERS]


def _ours(found: Found, name: str, beside: str, alone: str) -> Source:
    """Ours as it was measured in turn with the peers; where they were not, as beside the limit."""
    return (name, OURS, beside, name) if found.values(beside, name) else (name, OURS, alone, "ours")


def _sorted(bars: list[Bar], longest_first: bool) -> list[Bar]:
    return sorted(bars, key=lambda bar: bar.value, reverse=longest_first)


def _throughput(found: Found) -> str | None:
    awaited = _bars(found, [("files: one write a line", LIMIT, ONE, RAW), _ours(found, peers.FILES, peers.AWAITED, ONE),
                            _ours(found, peers.SITES, peers.AWAITED, ONE_BY_ONE),
                            ("Redis: XADD + PUBLISH", LIMIT, ONE_BY_ONE, redis_figures.ALONE), *_peers(peers.AWAITED)])
    tasks = _bars(found, [("files: 64 lines a write", LIMIT, GROUPED, RAW), (peers.FILES, OURS, GROUPED, "ours"),
                          ("Redis: XADD + PUBLISH, 64 at once", LIMIT, TASKS, redis_figures.BATCHES),
                          (peers.SITES, OURS, TASKS, "ours"),
                          ("FastStream, pub/sub", PEER, TASKS, redis_figures.FASTSTREAM)])
    return _picture("One publisher process to one subscriber process", "messages a second",
                    [Group("one after the other (peers: see the notes)", _sorted(awaited, True)),
                     Group("64 tasks, or 64 at once", _sorted(tasks, True))])


def _latency(found: Found) -> str | None:
    def paced(figure: str) -> str:
        return figure.replace("{hz:,}", f"{SLOW_HZ:,}").replace("{kind}", TCP).replace("{part}", "p50")

    through, beside = paced(redis_figures.LATENCY), paced(peers.LATENCY)
    bars = _bars(found, [("files: one write, inotify", LIMIT, paced(figures.LATENCY), RAW),
                         _ours(found, peers.FILES, beside, paced(figures.LATENCY)),
                         _ours(found, peers.SITES, beside, through),
                         ("Redis: XADD + PUBLISH", LIMIT, through, redis_figures.ALONE), *_peers(beside)], "p99")
    return _picture(f"From publish to handler at {SLOW_HZ} messages a second", "µs, p50 / p99 (paler)",
                    [Group("shorter is better", _sorted(bars, False))])


def _cpu(found: Found) -> str | None:
    sides = [(peers.FILES, OURS), (peers.SITES, OURS), *((peer.name, PEER) for peer in PEERS)]
    bars = [Bar(name, total, kind) for name, kind in sides
            if (total := sum(median(values) for figure in peers.CPU if (values := found.values(figure, name))))]
    return _picture("CPU for one message: publisher, server and subscriber together", "µs",
                    [Group("shorter is better", _sorted(bars, False))])


def _fan_out(found: Found) -> str | None:
    groups = [Group(f"{where}: {PUBLISHER[where]}",
                    _bars(found, [(side(number), OURS, SPENT.format(where=where, what=PUBLISHER[where]), side(number))
                                  for number in NUMBERS])) for where in WHERE]
    return _picture("What one delivered message costs those that everybody waits for", "µs of CPU", groups)
