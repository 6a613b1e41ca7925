"""Mutants: bugs planted into a copy of the package, each of which the simulation has to find.

A simulation that finds nothing proves nothing.  Each mutant is one replacement in one file; it runs in processes of its
own, seed after seed, until a schedule is violated that is not without it.  Where another rule heals a bug, so that nothing
is lost by it alone, that rule is switched off in both.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import lemegeton
from lemegeton.testing.mutants_of_files import FILE_MUTANTS
from lemegeton.testing.mutants_of_redis import REDIS_MUTANTS
from lemegeton.testing.planting import Change, Mutant

TIMEOUT_S = 600.0
"""How long one mutant is looked for."""

MUTANTS: tuple[Mutant, ...] = (*FILE_MUTANTS, *REDIS_MUTANTS)


AS_WELL = "what is wrong is so without it as well"


class Result(NamedTuple):
    """How a mutant ended: the seed that caught it (None: none did), as the how-manieth, in which ways, after how long."""

    mutant: Mutant
    seed: int | None
    tried: int
    kinds: str
    wall_s: float


class Caught(NamedTuple):
    """What a run of seeds ended with: after how many, at which (None: none was violated), in which ways, or why not."""

    tried: int
    seed: int | None
    kinds: frozenset[str]
    why: str = "-"


def plant(changes: Sequence[Change], directory: str) -> None:
    """Copy the package and change it; `ValueError` when the place of a change is not there exactly once."""
    source = Path(lemegeton.__file__).parent
    target = Path(directory) / "lemegeton"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    for change in changes:
        path = target / change.file
        text = path.read_text()
        if text.count(change.old) != 1:
            raise ValueError(f"{change.old!r:.60} is {text.count(change.old)} times in {change.file}, not once")
        path.write_text(text.replace(change.old, change.new))


def catch(mutant: Mutant, seeds: int, first: int = 0) -> Result:
    """Run the simulation with the bug in it until it shows what the same seed does not show without it."""
    began = time.perf_counter()
    tried, why = 0, "-"
    with tempfile.TemporaryDirectory() as ill, tempfile.TemporaryDirectory() as well:
        plant((*mutant.healers, mutant.change), ill)
        plant(mutant.healers, well)
        while tried < seeds:
            left_s = TIMEOUT_S - (time.perf_counter() - began)
            caught = _run(ill, mutant, left_s, "--seeds", seeds, "--first", first, "--skip", tried)
            if caught.seed is None:
                why = caught.why
                break
            tried += caught.tried
            new = caught.kinds - _run(well, mutant, TIMEOUT_S, "--seeds", 1, "--first", caught.seed).kinds
            if new:
                return Result(mutant, caught.seed, tried, " ".join(sorted(new)), time.perf_counter() - began)
            why = AS_WELL
    return Result(mutant, None, seeds, why, time.perf_counter() - began)


def _run(directory: str, mutant: Mutant, left_s: float, *options: str | int) -> Caught:
    """Run seeds of the package in a directory until one is violated."""
    command = [sys.executable, "-m", "lemegeton.testing.simulation", "--until-failure", "--prefer", ",".join(mutant.faults),
               *map(str, options), *(["--redis"] if mutant.redis else [])]
    environ = {**os.environ, "PYTHONPATH": directory, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, env=environ, cwd=directory, capture_output=True, text=True, timeout=max(0.1, left_s))
    except subprocess.TimeoutExpired:
        return Caught(0, None, frozenset(), f"not within {TIMEOUT_S} s")
    words = done.stdout.split()
    if words[:1] == ["caught"]:
        return Caught(int(words[1]), int(words[2]), frozenset(words[3:]))
    return Caught(0, None, frozenset(), done.stderr.strip()[-200:] or "-")


def table(results: Iterable[Result]) -> Iterable[str]:
    """The results as lines of a Markdown table."""
    yield "| mutant | file | caught by seed | tried | s | violations |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for each in results:
        seed = "never" if each.seed is None else each.seed
        yield f"| {each.mutant.name} | {each.mutant.file} | {seed} | {each.tried} | {each.wall_s:.0f} | {each.kinds} |"


def hunt(seeds: int, jobs: int, names: Iterable[str] = (), first: int = 0) -> int:
    """Run every mutant, or those with these names, and print each as soon as it has ended; 1 if one is not caught."""
    wanted = set(names)
    chosen = [mutant for mutant in MUTANTS if not wanted or mutant.name in wanted]
    results: list[Result] = []

    def ended() -> Iterable[Result]:
        with ThreadPoolExecutor(jobs) as pool:
            for result in pool.map(lambda mutant: catch(mutant, seeds, first), chosen):
                results.append(result)
                yield result

    for line in table(ended()):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return int(any(result.seed is None for result in results))
