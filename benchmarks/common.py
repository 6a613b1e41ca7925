"""What both sides of a comparison share: stamp, pace, percentiles, and how a process talks to its parent."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAMP_CHARS = 20
PAYLOAD_BYTES = 256
SPIN_NS = 200_000
"""A sleep ends up to 100 µs late here, so the last part of every wait is spent spinning, on both sides alike."""
LOOP_SPIN_NS = 1_500_000
"""A loop's sleep is counted in milliseconds, rounded up."""
WARM_UP = 0.05
"""The share of the first messages whose latency is not counted."""
TAIL_SAMPLES = 10_000
"""From so many latencies on there is a p99.9: ten or more lie above it."""
_FRAME_CHARS = STAMP_CHARS + len('{"t":"","fill":""}')
_FILL = "x" * (PAYLOAD_BYTES - _FRAME_CHARS)


def payload() -> dict[str, str]:
    """A payload of 256 bytes as JSON that begins with the stamp of now (`time.perf_counter_ns`, one clock for all)."""
    return {"t": f"{time.perf_counter_ns():020d}", "fill": _FILL}


def payloads(size: int) -> Callable[[], dict[str, str]]:
    """What makes payloads of so many bytes."""
    fill = "x" * (size - _FRAME_CHARS)
    return payload if size == PAYLOAD_BYTES else lambda: {"t": f"{time.perf_counter_ns():020d}", "fill": fill}


def wait_until(due_ns: int) -> None:
    """Return at ``due_ns``: sleep while it is far, spin when it is near."""
    while (left := due_ns - time.perf_counter_ns()) > 0:
        if left > SPIN_NS:
            time.sleep((left - SPIN_NS) / 1e9)


async def paced(due_ns: int) -> None:
    """`wait_until` for a loop that has answers to read meanwhile: it goes on turning."""
    while (left := due_ns - time.perf_counter_ns()) > 0:
        await asyncio.sleep((left - LOOP_SPIN_NS) / 1e9 if left > LOOP_SPIN_NS else 0)


def percentiles(latencies_ns: Sequence[int]) -> dict[str, float]:
    """p50, p99 and, of many, p99.9 in microseconds, without the warm-up."""
    counted = sorted(latencies_ns[int(len(latencies_ns) * WARM_UP):])
    if not counted:
        return {}
    parts = {"p50": 500, "p99": 990, **({"p99.9": 999} if len(counted) >= TAIL_SAMPLES else {})}
    return {part: counted[len(counted) * share // 1000] / 1000 for part, share in parts.items()}


@dataclass(frozen=True, slots=True)
class Work:
    """What a peer is given: so many messages, so many a second (0: as fast as it goes), from so many tasks."""

    count: int
    hz: float = 0.0
    tasks: int = 1


class Handled:
    """The handler of a peer: counts, and where messages come at a pace takes the time of each."""

    def __init__(self, work: Work) -> None:
        self._left = work.count
        self._paced = bool(work.hz)
        self._latencies: list[int] = []

    def __call__(self, message: dict[str, str]) -> None:
        """One message."""
        stamp = int(message["t"][:STAMP_CHARS])
        if self._paced:
            self._latencies.append(time.perf_counter_ns() - stamp)
        self._left -= 1

    @property
    def done(self) -> bool:
        """True behind the last one."""
        return self._left <= 0

    def tell(self) -> None:
        """That it was the last one."""
        tell(ended=time.perf_counter_ns(), **percentiles(self._latencies))


def run(main: Coroutine[Any, Any, None]) -> None:
    """Every side that has a loop has the same: uvloop where it is installed, as `lemegeton.run` takes it."""
    try:
        from uvloop import new_event_loop as made
    except ImportError:
        made = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=made) as runner:
        runner.run(main)


def tell(**answer: Any) -> None:
    """One line to the parent."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def ready() -> None:
    """Say so, and wait for the parent's word."""
    tell(ready=True)
    sys.stdin.readline()


def memory() -> dict[str, float]:
    """Resident memory of this process in MB, now and at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    words = dict(line.split(":", 1) for line in lines if line.startswith("Vm"))
    return {name: int(words[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")}


def spec() -> dict[str, Any]:
    """What the parent asked this process to be: the first line that it says."""
    found: dict[str, Any] = json.loads(sys.stdin.readline())
    return found


def leave() -> None:
    """Stand still until the parent has read what this process took, and end without cleaning up: the numbers are told."""
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)
