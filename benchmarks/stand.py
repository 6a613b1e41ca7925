"""The test stand: one process a role, a fresh directory a run, everything on one file system."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lemegeton.errors import LemegetonError

HERE = Path(__file__).parent
LOOK_AGAIN_S = 0.01
ANSWER_S = 120.0
"""How long a process may take until it says its next line: none takes a quarter of that."""
_READ_BYTES = 64 * 1024
_CPU_CLOCK = 2


class StepFailed(RuntimeError):
    """A process of the bench ended, or said nothing for too long: the figure is not there, and the bench has failed."""


def cpu_s(pid: int) -> float:
    """Seconds of CPU of a process, all its threads, in user and kernel: the clock that ``clock_getcpuclockid(3)`` names."""
    return time.clock_gettime(~pid << 3 | _CPU_CLOCK)


def peak_mb(pid: int) -> float:
    """The most memory that a process had resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


@dataclass(frozen=True, slots=True)
class Ran:
    """What a process told, the CPU it took since its begin, and its peak memory."""

    told: dict[str, Any]
    cpu_s: float
    peak_mb: float


class Role:
    """A process that says when it is ready, goes on when told, tells one result and stands still until it is ended."""

    def __init__(self, script: str, role: str, **given: Any) -> None:
        self._process = subprocess.Popen([sys.executable, str(HERE / script), role], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, bufsize=0)
        self._say(json.dumps({"role": role, **given}))
        self._name = f"{script} {role}"
        self._unread = b""
        self._cpu_s = 0.0

    def hear(self, wait_s: float = ANSWER_S) -> dict[str, Any]:
        """The next line it says; `StepFailed` if none comes."""
        ends = time.monotonic() + wait_s
        stdout = self._process.stdout
        assert stdout is not None
        while b"\n" not in self._unread:
            if not select.select([stdout], [], [], max(0.0, ends - time.monotonic()))[0]:
                raise StepFailed(f"{self._name} said nothing for {wait_s:.0f} s")
            data = os.read(stdout.fileno(), _READ_BYTES)
            if not data:
                raise StepFailed(f"{self._name} ended with {self._process.wait()} and said nothing")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            told: dict[str, Any] = json.loads(line)
        except ValueError:
            raise StepFailed(f"{self._name} said {line[:200]!r}") from None
        return told

    def go(self) -> None:
        """Let it begin."""
        self._cpu_s = cpu_s(self._process.pid)
        self._say("go")

    def _say(self, line: str) -> None:
        """A line to the process; not in its arguments, which are too short for a large record."""
        data = line.encode() + b"\n"
        assert self._process.stdin is not None
        try:
            while data:
                data = data[self._process.stdin.write(data):]
        except BrokenPipeError as error:
            raise StepFailed(f"{self._name} has ended and hears nothing") from error

    def ran(self, told: dict[str, Any]) -> Ran:
        """With what it took until now."""
        pid = self._process.pid
        return Ran(told, cpu_s(pid) - self._cpu_s, peak_mb(pid))

    def end(self) -> None:
        """End it if it still runs; it is our own child."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@dataclass(slots=True)
class Found:
    """What was measured: figure → side → a value a round; and what failed or is not here, in words."""

    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def add(self, figure: str, side: str, value: float) -> None:
        """One more round."""
        self.samples.setdefault(figure, {}).setdefault(side, []).append(value)

    def values(self, figure: str, side: str) -> list[float]:
        """One a round; none of what was not measured."""
        return self.samples.get(figure, {}).get(side, [])

    def step(self, name: str, side: Callable[[], None]) -> None:
        """Measure; a failure is kept for the end, so that one side does not cost the figures of all others."""
        try:
            side()
        except (StepFailed, LemegetonError, OSError) as error:
            self.failed.append(f"{name}: {error}")
            print(f"\nFAILED {self.failed[-1]}", flush=True)


@dataclass(frozen=True, slots=True)
class Turn:
    """Sides that take turns in so many rounds, each round in the other order."""

    name: str
    sides: Sequence[Callable[[], None]]
    rounds: int


def take_turns(part: str, turns: Sequence[Turn], found: Found) -> None:
    """All rounds of all turns, every other one backwards, with a word about how far it is."""
    begun = time.monotonic()
    rounds = max((turn.rounds for turn in turns), default=0)
    for number in range(rounds):
        print(f"{part}, round {number + 1} of {rounds}:", end="", flush=True)
        for turn in reversed(turns) if number % 2 else turns:
            if number < turn.rounds:
                since = time.monotonic()
                for side in reversed(turn.sides) if number % 2 else turn.sides:
                    found.step(turn.name, side)
                print(f" {turn.name.partition('.')[2]} {time.monotonic() - since:.1f} s", end="", flush=True)
        print(f"; {time.monotonic() - begun:.0f} s in all", flush=True)


@contextmanager
def directory(root: Path) -> Iterator[Path]:
    """A fresh directory.  Afterwards its files are emptied, and go with ``root``.

    Not removed before: for some minutes ext4 does not use an inode again and searches past all of these for a new one.
    What earlier runs had removed made 1,000 new channels cost half a second instead of a tenth."""
    path = Path(tempfile.mkdtemp(prefix="run-", dir=root))
    try:
        yield path
    finally:
        for file in path.rglob("*"):
            if file.is_file():
                os.truncate(file, 0)


def nobody() -> float:
    """The CPU of no server."""
    return 0.0


@dataclass(frozen=True, slots=True)
class Crowd:
    """What readers and writers told and took, what their server took meanwhile, and when the first writer began."""

    read: list[Ran]
    wrote: list[Ran]
    server_s: float
    begun: int

    @property
    def ended(self) -> int:
        """When the last reader had all."""
        return max(int(ran.told["ended"]) for ran in self.read)


def crowd(
    readers: Sequence[Role], writers: Sequence[Role], server: Callable[[], float] = nobody, wait_s: float = ANSWER_S
) -> Crowd:
    """Run readers and writers until the last reader has all; ``server`` says how much CPU the server has taken.

    Costs are read when all have told: what a writer still brings to a server after its last publish counts for it."""
    try:
        for role in (*readers, *writers):
            role.hear()
        before = server()
        for role in (*readers, *writers):
            role.go()
        read = [role.hear(wait_s) for role in readers]
        wrote = [role.hear(wait_s) for role in writers]
        return Crowd([role.ran(told) for role, told in zip(readers, read, strict=True)],
                     [role.ran(told) for role, told in zip(writers, wrote, strict=True)],
                     server() - before, min(told["begun"] for told in wrote))
    finally:
        for role in (*readers, *writers):
            role.end()


def pair(reader: Role, writer: Role, wait_s: float = ANSWER_S) -> tuple[Ran, Ran]:
    """Run a reader and a writer until the reader has all."""
    ran = crowd([reader], [writer], wait_s=wait_s)
    return ran.read[0], ran.wrote[0]


def alone(role: Role, until: Callable[[], bool] = lambda: True, wait_s: float = ANSWER_S) -> Ran:
    """Run one process to its end, which is not before ``until``."""
    try:
        role.hear()
        role.go()
        told = role.hear(wait_s)
        ends = time.monotonic() + wait_s
        while not until():
            if time.monotonic() > ends:
                raise StepFailed(f"what {told} should lead to is not there after {wait_s:.0f} s")
            time.sleep(LOOK_AGAIN_S)
        return role.ran(told)
    finally:
        role.end()


def told(role: Role) -> dict[str, Any]:
    """What a process tells that does not wait for anything."""
    try:
        return role.hear()
    finally:
        role.end()


def rate(count: int, begun_ns: int, ended_ns: int) -> float:
    """Messages a second."""
    return count / ((ended_ns - begun_ns) / 1e9)


def median(values: Sequence[float]) -> float:
    """The middle one; of an even number the lower middle."""
    return sorted(values)[(len(values) - 1) // 2]
