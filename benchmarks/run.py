"""The bench: publisher process to subscriber process through files, beside the raw limit of the same minute.

    python benchmarks/run.py [--rounds 5] [--quick]

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

RESULTS = Path(__file__).with_name("RESULTS.md")
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


def report(found: list[Row], rounds: int, line_bytes: int, seconds: float, load: float) -> str:
    """The whole page.  ``load`` is what the machine did before we began: above some tenths the figures are not ours."""
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    return f"""# Results

`make bench`, {day}, {rounds} rounds in {seconds:.0f} s. {machine()}; load average {load:.1f} before it began.

256-byte payload, {line_bytes} bytes a line. Ours: publish awaited → file → inotify → checksum, decode, intent, handler,
settled, in a durable subscription of another process. Raw: `os.write` of lines of as many bytes → inotify → split.
Raw with the disk: 64 asyncio tasks that append a ready line and share one write and one `fdatasync` in a thread.
Medians over the rounds, smallest and largest in parentheses; the ratio is that of the medians.

{table(found)}
"""


def measure(root: Path, rounds: int, size: Size) -> tuple[list[Row], int]:
    """All figures; and the bytes of a line."""
    bench = Bench(root, size)
    bench.probe()
    for number in range(rounds):
        bench.round()
        print(f"round {number + 1} of {rounds}", flush=True)
    return rows(bench) + long_run(root, size.long, rounds), bench.line_bytes


def main() -> int:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(description="measure the bus beside the raw limit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one short round that only shows that everything runs")
    given = parser.parse_args()
    rounds, size = (1, QUICK) if given.quick else (given.rounds, Size())
    root = Path(tempfile.mkdtemp(prefix="lemegeton-bench-"))
    begun, load = time.monotonic(), os.getloadavg()[0]
    try:
        found, line_bytes = measure(root, rounds, size)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    page = report(found, rounds, line_bytes, time.monotonic() - begun, load)
    print(page)
    if given.quick:
        return 0
    RESULTS.write_text(page)
    return 0 if all(row.holds is not False for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
