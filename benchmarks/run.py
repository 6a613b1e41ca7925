"""The bench: publisher process to subscriber process, through files and through a Redis, beside the limits of the same
minute and beside peers.

    python benchmarks/run.py [--no-peers] [--only NAME …] [--rounds N] [--out DIRECTORY] [--quick] [--list]

Ours and the other side take turns; medians of the rounds with the smallest and largest.  Writes `RESULTS.md` and the
pictures beside this file, and exits 1 where a bar does not hold or a step failed.  ``--only`` runs the turns whose names
begin so (``--list`` tells them) and writes nothing, unless ``--out`` says where.  ``--quick`` only shows that everything
runs: its figures mean nothing, so it holds them against no bar.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from bars import judge
from fan_out import FAN_QUICK, FanBench, FanSize
from figures import QUICK, FileBench, Size
from long_run import LONG_QUICK, LongBench, LongSize
from peers import PEERS_QUICK, PeerBench, PeerSize
from peers import missing as peers_missing
from pictures import pictures
from redis_figures import REDIS_QUICK, RedisBench, RedisSize, redis_server
from report import Run, report
from stand import Found, Turn, take_turns
from start_up import StartBench
from table import Part

from lemegeton.testing.servers import RedisServer

HERE = Path(__file__).parent
ENDED = 128 + signal.SIGTERM
WRONG = 2


class Bench(Protocol):
    """What measures a section of the page."""

    def turns(self) -> list[Turn]:
        """Everything that it can measure here."""
        ...

    def part(self) -> Part:
        """What it found."""
        ...


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much each section does."""

    files: Size
    long: LongSize
    redis: RedisSize
    fan: FanSize
    peers: PeerSize
    starts: int

    def with_rounds(self, rounds: int) -> Sizes:
        """So many rounds; of what takes long at most as many as usual."""
        return Sizes(replace(self.files, rounds=rounds), replace(self.long, rounds=min(rounds, self.long.rounds)),
                     replace(self.redis, rounds=rounds, outages=min(rounds, self.redis.outages)),
                     replace(self.fan, rounds=rounds), replace(self.peers, rounds=min(rounds, self.peers.rounds)), rounds)


SIZES = Sizes(Size(), LongSize(), RedisSize(), FanSize(), PeerSize(), 5)
QUICK_SIZES = Sizes(QUICK, LONG_QUICK, REDIS_QUICK, FAN_QUICK, PEERS_QUICK, 1)


def benches(root: Path, sizes: Sizes, found: Found, server: RedisServer | None, peers: bool) -> list[Bench]:
    """Every section that can be measured here, in the order of the page."""
    files = FileBench(root, sizes.files, found)
    return [
        files,
        *([RedisBench(root, sizes.redis, found, server, peers)] if server is not None else []),
        FanBench(root, sizes.fan, found, server),
        LongBench(root, sizes.long, found, files.line_bytes),
        StartBench(root, sizes.starts, found, server),
        *([PeerBench(root, sizes.peers, found)] if peers else []),
    ]


def chosen(turns: Sequence[Turn], only: Sequence[str]) -> list[Turn]:
    """Those that were asked for; all, if nothing was."""
    return [turn for turn in turns if not only or turn.name.startswith(tuple(only))]


def measure(here: Sequence[Bench], only: Sequence[str], found: Found) -> list[Part]:
    """Run what was asked for, and the sections it makes."""
    parts = []
    for bench in here:
        turns = chosen(bench.turns(), only)
        if turns:
            take_turns(turns[0].name.partition(".")[0], turns, found)
            parts.append(bench.part())
    return parts


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="measure the bus beside the raw limits and beside peers")
    parser.add_argument("--no-peers", action="store_true", help="without the peers and what installs them")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only the turns whose names begin so")
    parser.add_argument("--rounds", type=int, help="so many rounds; of peers, outages and the backlog at most as many as usual")
    parser.add_argument("--out", type=Path, help="where the page and the pictures go")
    parser.add_argument("--quick", action="store_true", help="one short round that only shows that everything runs")
    parser.add_argument("--list", action="store_true", help="tell the names of all turns, and end")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, report."""
    given = parse(arguments)
    sizes = QUICK_SIZES if given.quick else SIZES
    sizes = sizes.with_rounds(given.rounds) if given.rounds else sizes
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
    found, root = Found(), Path(tempfile.mkdtemp(prefix="lemegeton-bench-"))
    begun, load = time.monotonic(), os.getloadavg()[0]
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        server = redis_server()
        if server is not None:
            stack.enter_context(server)
        here = benches(root, sizes, found, server, not given.no_peers)
        names = list(dict.fromkeys(turn.name for bench in here for turn in bench.turns()))
        if given.list:
            print("\n".join(names))
            return 0
        if unknown := [name for name in given.only if not any(turn.startswith(name) for turn in names)]:
            print(f"nothing that is measured here begins with {', '.join(unknown)}; --list tells the names", file=sys.stderr)
            return WRONG
        found.missing += _missing(server, not given.no_peers)
        parts = measure(here, given.only, found)
    run = Run(rounds=sizes.files.rounds, seconds=time.monotonic() - begun, load=load, whole=not given.only)
    return _tell(found, parts, run, given)


def _missing(server: RedisServer | None, peers: bool) -> list[str]:
    """What is not measured, whatever is asked for."""
    return [*([] if server is not None else ["everything through a Redis (no server is here)"]),
            *(peers_missing() if peers else ["all peers, as asked"])]


def _tell(found: Found, parts: list[Part], run: Run, given: argparse.Namespace) -> int:
    judged = [] if given.quick else [one for one in judge(found) if run.whole or one.value is not None]
    drawn = pictures(found)
    page = report(found, parts, judged, tuple(drawn), run)
    print(page)
    out: Path | None = given.out or (None if given.quick or given.only else HERE)
    if out is not None:
        for name, text in drawn.items():
            (out / name).write_text(text)
        (out / "RESULTS.md").write_text(page)
    return 1 if found.failed or not all(one.holds for one in judged) else 0


def _ended(*_: object) -> None:
    sys.exit(ENDED)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _ended)  # so that nothing that was started is left behind
    sys.exit(main())
