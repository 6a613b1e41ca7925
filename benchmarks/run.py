"""The bench: publisher process to subscriber process, through files and through a Redis, beside the limits of the same
minute and beside peers.

    python benchmarks/run.py [--rounds 5] [--no-peers] [--only files|redis] [--quick]

Ours and the other side take turns; medians of the rounds with the smallest and largest.  Writes `RESULTS.md` beside
this file and exits 1 where a bar does not hold.  ``--quick`` only shows that everything runs: it writes nothing and
its figures mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

from figures import QUICK, Bench, Row, Size, long_run, rows
from peers import COUNT, OURS_COUNT, PACED_S, ROUNDS, compared
from redis_figures import REDIS_QUICK, RedisBench, RedisSize, missing, redis_server

RESULTS = Path(__file__).with_name("RESULTS.md")
PEERS_QUICK = (1, 500, 16_000, 0.6)
"""Rounds, messages of a peer, messages of ours, seconds paced."""
HEAD = ("figure", "ours", "raw or peer", "ratio", "bar", "holds")


def machine() -> str:
    """One line that says what it ran on."""
    model = next((line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
                 platform.machine())
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def table(found: list[Row]) -> str:
    """The rows as Markdown."""
    words = {True: "yes", False: "NO", None: "–"}
    cells = [HEAD, ("---",) * len(HEAD),
             *((r.figure, r.ours, r.other, r.ratio, r.bar, words[r.holds]) for r in found)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


FILES = """## Files

Ours: publish awaited → file → inotify → checksum, decode, intent, handler, settled, in a durable subscription of another
process. Raw: `os.write` of lines of as many bytes → inotify → split. Raw with the disk: 64 asyncio tasks that append a ready
line and share one write and one `fdatasync` in a thread. {line_bytes} bytes a line.

{table}
"""
REDIS = """## Redis

Two sites on this machine. Ours: publish → file → relay → script (XADD, PUBLISH, mark) → doorbell → decode, intent, handler,
settled, in a durable subscription of the other site. By hand: a raw socket, commands packed with hiredis, the same fields and
bytes on the same server, a subscriber that counts; nothing on a disk, nothing numbered or remembered. {missing}

{table}
"""


PEERS = """## Peers

One publisher process, one subscriber process, 256 bytes a message, each peer as its documentation says; {count:,} messages of a
peer, {ours_count:,} of ours. Two sites: ours through a Redis. A bar stands where a peer promises as much and waits for each
message as ours does. {missing}

{table}
"""


def beside_peers(root: Path, rounds: int, count: int, ours_count: int, paced_s: float) -> tuple[str, list[Row]]:
    """Ours beside every peer that is here."""
    found, absent = compared(root, rounds, count, ours_count, paced_s)
    missing = f"Missing: {', '.join(absent)}." if absent else ""
    return PEERS.format(count=count, ours_count=ours_count, missing=missing, table=table(found)), found


def report(sections: list[str], rounds: int, seconds: float, load: float) -> str:
    """The whole page.  ``load`` is what the machine did before we began: above some tenths the figures are not ours."""
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    return f"""# Results

`make bench`, {day}, {rounds} rounds in {seconds:.0f} s. {machine()}; load average {load:.1f} before it began.

256-byte payload. Medians over the rounds, smallest and largest in parentheses; the ratio is that of the medians.

""" + "\n".join(sections)


def files(root: Path, rounds: int, size: Size) -> tuple[str, list[Row]]:
    """All figures through files."""
    bench = Bench(root, size)
    bench.probe()
    for number in range(rounds):
        bench.round()
        print(f"files: round {number + 1} of {rounds}", flush=True)
    found = rows(bench) + long_run(root, size.long, rounds)
    return FILES.format(line_bytes=bench.line_bytes, table=table(found)), found


def through_redis(root: Path, rounds: int, size: RedisSize, peers: bool) -> tuple[str, list[Row]]:
    """All figures through a Redis."""
    server = redis_server()
    if server is None:
        return REDIS.format(missing="Missing here: a server.", table=""), []
    with server:
        bench = RedisBench(root, size, server, peers)
        bench.probe()
        for number in range(rounds):
            bench.round()
            print(f"redis: round {number + 1} of {rounds}", flush=True)
        found = bench.rows()
    absent = ", ".join(missing()) if peers else "all peers, as asked"
    return REDIS.format(missing=f"Missing: {absent}." if absent else "", table=table(found)), found


def main() -> int:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(description="measure the bus beside the raw limit and beside peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--only", choices=("files", "redis"))
    parser.add_argument("--quick", action="store_true", help="one short round that only shows that everything runs")
    given = parser.parse_args()
    rounds, size, redis_size = (1, QUICK, REDIS_QUICK) if given.quick else (given.rounds, Size(), RedisSize())
    root = Path(tempfile.mkdtemp(prefix="lemegeton-bench-"))
    begun, load = time.monotonic(), os.getloadavg()[0]
    parts: list[tuple[str, list[Row]]] = []
    peers = not given.no_peers and given.only is None
    try:
        if given.only != "redis":
            parts.append(files(root, rounds, size))
        if given.only != "files":
            parts.append(through_redis(root, rounds, redis_size, not given.no_peers))
        if peers:
            parts.append(beside_peers(root, *(PEERS_QUICK if given.quick else (ROUNDS, COUNT, OURS_COUNT, PACED_S))))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    page = report([section for section, _ in parts], rounds, time.monotonic() - begun, load)
    print(page)
    if given.quick:
        return 0
    if given.only is None:
        RESULTS.write_text(page)
    return 0 if all(row.holds is not False for _, found in parts for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
