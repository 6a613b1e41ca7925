"""The test stand: one process a role, a fresh directory a run, everything on one file system."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LOOK_AGAIN_S = 0.01


class Role:
    """A process that says when it is ready, goes on when told, and tells one result."""

    def __init__(self, script: str, role: str, **given: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script), json.dumps({"role": role, **given})], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True)
        self._name = f"{script} {role}"

    def hear(self) -> dict[str, Any]:
        """The next line it says."""
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise RuntimeError(f"{self._name} ended with {self._process.wait()} and said nothing")
        told: dict[str, Any] = json.loads(line)
        return told

    def go(self) -> None:
        """Let it begin."""
        self._process.stdin.write("go\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]

    def wait(self) -> None:
        """Wait for its own end."""
        code = self._process.wait()
        self.end()
        if code:
            raise RuntimeError(f"{self._name} ended with {code}")

    def end(self) -> None:
        """End it if it still runs; it is our own child."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.stdout.close()  # type: ignore[union-attr]


@dataclass(slots=True)
class Samples:
    """The values of one figure, round by round, for each side."""

    sides: dict[str, list[float]] = field(default_factory=dict)

    def add(self, side: str, value: float) -> None:
        """One more round."""
        self.sides.setdefault(side, []).append(value)


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


def pair(reader: Role, writer: Role) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a reader and a writer to their ends; what both told."""
    try:
        reader.hear()
        reader.go()
        writer.hear()
        writer.go()
        return reader.hear(), writer.hear()
    finally:
        reader.end()
        writer.end()


def alone(role: Role, until: Callable[[], bool] = lambda: True) -> dict[str, Any]:
    """Run one process to its end, which is not before ``until``."""
    try:
        role.hear()
        role.go()
        found = role.hear()
        while not until():
            time.sleep(LOOK_AGAIN_S)
        return found
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


def median(values: list[float]) -> float:
    """The middle one; of an even number the lower middle."""
    return sorted(values)[(len(values) - 1) // 2]
