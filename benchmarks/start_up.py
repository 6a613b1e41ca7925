"""What it takes to begin: an import in a fresh interpreter, a bus in a fresh home."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stand import ANSWER_S, Found, Role, StepFailed, Turn, directory, told
from table import Pair, Part

from lemegeton.testing.servers import RedisServer

PACKAGE, BUS, REDIS = "import lemegeton", "from lemegeton import MessageBus", "import redis"
IMPORT = "start: in a fresh interpreter, ms"
READY = "start: a bus in a new home, {where}, ready, ms"
PUBLISHED = "start: a bus in a new home, {where}, its first publish has returned, ms"
_TIMED = "import time; t = time.perf_counter_ns(); {what}; print(time.perf_counter_ns() - t)"


@dataclass(slots=True)
class StartBench:
    """Runs the figures; without a server only those on files."""

    root: Path
    rounds: int
    found: Found
    server: RedisServer | None

    def turns(self) -> list[Turn]:
        """Imports, then a bus."""
        homes = [self._bus("on files", ""), *([self._bus("with a Redis", self.server.url("redis"))] if self.server else [])]
        return [Turn("start.import", [self._import(what) for what in (PACKAGE, BUS, REDIS)], self.rounds),
                Turn("start.bus", homes, self.rounds)]

    def _import(self, what: str) -> Callable[[], None]:
        def measure() -> None:
            try:
                done = subprocess.run([sys.executable, "-c", _TIMED.format(what=what)], capture_output=True, text=True,
                                      timeout=ANSWER_S)
            except subprocess.TimeoutExpired:
                raise StepFailed(f"{what} did not end in {ANSWER_S:.0f} s") from None
            if done.returncode:
                raise StepFailed(f"{what}: {done.stderr.strip()[-500:]}")
            self.found.add(IMPORT, what, int(done.stdout) / 1e6)

        return measure

    def _bus(self, where: str, url: str) -> Callable[[], None]:
        def measure() -> None:
            with directory(self.root) as path:
                took = told(Role("ours.py", "begin", home=str(path / "home"), url=url))
            self.found.add(READY.format(where=where), "ours", took["ready"] * 1000)
            self.found.add(PUBLISHED.format(where=where), "ours", took["published"] * 1000)

        return measure

    def part(self) -> Part:
        """Everything that was measured."""
        buses = [name for name in self.found.samples if name.startswith("start: ") and name != IMPORT]
        return Part("start", "Start", TEXT, [Pair(IMPORT, PACKAGE, REDIS), Pair(IMPORT, BUS, REDIS),
                                             *(Pair(name, "ours") for name in buses)])


TEXT = """Imports with everything compiled and in the page cache, in an interpreter that has imported nothing else. `import
lemegeton` loads a name when it is first asked for; what a program pays that opens a bus stands beside it."""
