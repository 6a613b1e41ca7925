"""Fan-out: the same messages to 1, 10 and 100 subscribers, each an agent with a bus and a durable subscription of its own.

The subscribers share at most four processes.  What counts is what one more subscriber costs those that everybody waits
for, the publisher and the server: their CPU for each message that was delivered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from figures import TASKS
from redis_figures import server_cpu
from stand import Found, Role, Turn, crowd, directory, nobody, rate
from table import Pair, Part

from lemegeton.testing.servers import RedisServer

NUMBERS = (1, 10, 100)
PROCESSES = 4
SPENT = "fan-out: {where}, CPU of {what}, µs a delivered message"
DELIVERED = "fan-out: {where}, delivered to all together, msg/s"
MEMORY = "fan-out: {where}, peak memory of the subscribers' processes together, MB"
FILES, SITES = WHERE = ("files", "Redis")
PUBLISHER = {FILES: "the publisher", SITES: "server and publisher"}


@dataclass(frozen=True, slots=True)
class FanSize:
    """Messages, rounds, and how many subscribers."""

    messages: int = 2_048
    rounds: int = 5
    numbers: tuple[int, ...] = NUMBERS


FAN_QUICK = FanSize(messages=320, rounds=1, numbers=(1, 5))


def side(number: int) -> str:
    """What a side is called."""
    return "1 subscriber" if number == 1 else f"{number} subscribers"


def shares(number: int) -> list[tuple[int, int]]:
    """The first subscriber and the number of them of each process."""
    ends = [number * n // PROCESSES for n in range(PROCESSES + 1)]
    return [(first, last - first) for first, last in pairwise(ends) if last > first]


@dataclass(slots=True)
class FanBench:
    """Runs the figures; without a server only those on files."""

    root: Path
    size: FanSize
    found: Found
    server: RedisServer | None

    def turns(self) -> list[Turn]:
        """On files, and from site to site."""
        return [Turn(f"fan-out.{where.lower()}", [self._side(where, number) for number in self.size.numbers],
                     self.size.rounds) for where in WHERE if where == FILES or self.server is not None]

    def _side(self, where: str, number: int) -> Callable[[], None]:
        return lambda: self._run(where, number)

    def _run(self, where: str, number: int) -> None:
        count, server = self.size.messages, self.server if where == SITES else None
        if server is not None:
            server.cli("FLUSHALL")
        with directory(self.root) as path:
            here, there = (str(path / home) for home in ("aa" if server is None else "ab"))
            url = "" if server is None else server.url("redis")
            readers = [Role("ours.py", "fan", home=there, count=count, first=first, number=some, url=url)
                       for first, some in shares(number)]
            writer = Role("ours.py", "publish", home=here, count=count, tasks=TASKS, url=url)
            cpu = nobody if server is None else lambda: server_cpu(server)
            ran = crowd(readers, [writer], cpu)
        delivered, name = count * number, side(number)
        self.found.add(SPENT.format(where=where, what=PUBLISHER[where]), name,
                       (ran.wrote[0].cpu_s + ran.server_s) * 1e6 / delivered)
        self.found.add(DELIVERED.format(where=where), name, rate(delivered, ran.begun, ran.ended))
        self.found.add(MEMORY.format(where=where), name, sum(one.peak_mb for one in ran.read))

    def part(self) -> Part:
        """Many subscribers beside one."""
        pairs = [Pair(figure, side(number), side(self.size.numbers[0])) for figure in self.found.samples
                 if figure.startswith("fan-out: ") for number in self.size.numbers[1:]]
        return Part("fan-out", "Fan-out", TEXT.format(processes=PROCESSES, tasks=TASKS), pairs)


TEXT = """Every subscriber is an agent with a bus and a durable subscription of its own, in at most {processes} processes; one
publisher with {tasks} tasks. A cost is CPU over messages delivered to all of them together."""
