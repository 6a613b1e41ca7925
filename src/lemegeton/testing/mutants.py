"""Mutants: bugs planted into a copy of the package, each of which the simulation has to find.

A simulation that finds nothing proves nothing.  Each mutant is one replacement in one file; it runs in processes of its
own, seed after seed, until a schedule is violated.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import lemegeton

TIMEOUT_S = 300.0


class Mutant(NamedTuple):
    """A bug: what it is called, where it is planted, and the text that it replaces there."""

    name: str
    file: str
    old: str
    new: str


MUTANTS: tuple[Mutant, ...] = (
    Mutant("no intent mark", "handling.py", "                    marks.cells[at + 1] = seq\n", "                    pass\n"),
    Mutant("settled before the handler", "handling.py", '                _set(message, "channel", lane.channel)\n',
           '                marks.cells[at] = seq\n                _set(message, "channel", lane.channel)\n'),
    Mutant("flag everything", "handling.py", "if message.seq <= place.flagged or", "if message.seq > 0 or"),
    Mutant("never flag", "handling.py", "if message.seq <= place.flagged or in_doubt:", "if message.seq < 0:"),
    Mutant("dead letter, not settled", "handling.py",
           "        place.forget_trouble()\n        return Outcome.DONE\n\n    def _dead_letter",
           "        place.forget_trouble()\n        return Outcome.LATER\n\n    def _dead_letter"),
    Mutant("id window not consulted", "handling.py",
           "if (place.lane.channel, message.id, self._wall_ms()) in self._window:", "if not message.id:"),
    Mutant("id window not persisted", "window.py", "            if self._path is not None:\n                self._store",
           "            if self._path is None:\n                self._store"),
    Mutant("attempts keep the cursor", "delivery.py",
           "            if outcome is not Outcome.DONE:\n                place.cursor = None\n",
           "            if outcome is not Outcome.DONE:\n"),
    Mutant("start new for late lanes", "delivery.py", 'await self._add_channel(channel, "earliest")',
           "await self._add_channel(channel, self._start)"),
    Mutant("poll removed", "delivery.py", "next_poll = loop.time() + self._interval(0.0)",
           "next_poll = loop.time() + 1e9"),
    Mutant("ring during a turn forgotten", "crew.py", "if more or chain.rung:", "if more:"),
    Mutant("lost wake-up of workers", "crew.py", "self._wake(self._idle.pop())", "self._idle.pop()"),
    Mutant("flags of a reboot forgotten", "delivery.py", "cells[settled_at(row) + 1] = flagged", "pass"),
    Mutant("later incarnation at once", "delivery.py", "            place = chain.lanes[0]\n            later_known",
           "            while len(chain.lanes) > 1:\n                chain.lanes.popleft()\n"
           "            place = chain.lanes[0]\n            later_known"),
    Mutant("later segment before the end", "logs/reader.py", "        first, offset = cursor\n",
           "        first, offset = cursor\n        if self._later(lane, first) is not None:\n"
           "            first, offset = self._later(lane, first) or 1, 0\n"),
    Mutant("checksum not looked at", "segment.py",
           'return wire if line[:9] == b"%08x " % crc32(wire) else None', "return wire"),
    Mutant("goes on behind a torn tail", "logs/segments.py", '        if not data.endswith(b"\\n"):\n            return None\n',
           '        data = data[: data.rfind(b"\\n") + 1]\n'),
    Mutant("goes on after another boot", "logs/origin.py", "return inc > self._floor", "return inc > 0"),
    Mutant("incarnation not synced", "logs/origin.py", "        self._fs.fsync(self._fd)\n", ""),
    Mutant("origin lock shared", "logs/origin.py", "if fs.lock(fd):", "if fs.lock(fd, shared=True):"),
    Mutant("failed group keeps its numbers", "logs/writer.py", "            writer.next = entries[0].seq\n",
           "            pass\n"),
    Mutant("short write not sealed", "logs/writer.py",
           '                self.seal(writer, f"short write of {written} bytes")\n                return entries[done:]',
           "                return entries[done:]"),
    Mutant("failed sync tried again", "logs/sync.py",
           "                segment.moved = self._reappend(wanted.writer, segment)\n"
           "                segment = segment.moved\n", "                segment.failed = False\n"),
    Mutant("disk without a sync", "logs/file.py", "priority, made, disk)", "priority, made, False)"),
    Mutant("directories not synced", "logs/sync.py", "if not segment.entry_synced:", "if segment.fd < 0:"),
    Mutant("retention ignores a holder", "retention.py", "holder.settled(segment.lane) < segment.last:\n            return",
           'holder.settled(segment.lane) < segment.last and not holder.name.endswith("0"):\n            return'),
    Mutant("retention by age", "retention.py",
           "blocking = None if segment.final else _blocking(segment, blockers)",
           "blocking = None if segment.final or now_ms - segment.modified_ms > 5000 else _blocking(segment, blockers)"),
    Mutant("durable name not exclusive", "checkpoint.py", "if not fs.lock(self._lock):",
           "if not fs.lock(self._lock, shared=True):"),
)


class Result(NamedTuple):
    """How a mutant ended: after how many seeds it was caught (0: never), in which ways, after how long."""

    mutant: Mutant
    seeds: int
    kinds: str
    wall_s: float


def plant(mutant: Mutant, directory: str) -> None:
    """Copy the package and plant the bug; `ValueError` when its place is not there exactly once."""
    source = Path(lemegeton.__file__).parent
    target = Path(directory) / "lemegeton"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    path = target / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"mutant {mutant.name!r}: its text is {text.count(mutant.old)} times in {mutant.file}, not once")
    path.write_text(text.replace(mutant.old, mutant.new))


def catch(mutant: Mutant, seeds: int, first: int = 0) -> Result:
    """Run the simulation with the bug in it until it is seen."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        plant(mutant, directory)
        command = [sys.executable, "-m", "lemegeton.testing.simulation", "--seeds", str(seeds), "--first", str(first),
                   "--until-failure"]
        environ = {**os.environ, "PYTHONPATH": directory, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(command, env=environ, cwd=directory, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return Result(mutant, 0, f"not within {TIMEOUT_S} s", time.perf_counter() - began)
    words = done.stdout.split()
    if words[:1] != ["caught"]:
        return Result(mutant, 0, done.stderr.strip()[-200:] or "-", time.perf_counter() - began)
    return Result(mutant, int(words[1]), " ".join(words[2:]), time.perf_counter() - began)


def table(results: Iterable[Result]) -> Iterable[str]:
    """The results as lines of a Markdown table."""
    yield "| mutant | file | seeds until caught | violations |"
    yield "| --- | --- | --- | --- |"
    for result in results:
        yield f"| {result.mutant.name} | {result.mutant.file} | {result.seeds or 'never'} | {result.kinds} |"


def hunt(seeds: int, jobs: int, names: Iterable[str] = ()) -> int:
    """Run every mutant, or those with these names; 1 if one of them is not caught."""
    wanted = set(names)
    chosen = [mutant for mutant in MUTANTS if not wanted or mutant.name in wanted]
    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(lambda mutant: catch(mutant, seeds), chosen))
    for line in table(results):
        sys.stdout.write(line + "\n")
    return int(not all(result.seeds for result in results))
