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
from functools import cache
from pathlib import Path
from typing import NamedTuple

import lemegeton
from lemegeton.testing.mutants_of_files import FILE_MUTANTS
from lemegeton.testing.mutants_of_redis import REDIS_MUTANTS
from lemegeton.testing.planting import Mutant

TIMEOUT_S = 300.0


MUTANTS: tuple[Mutant, ...] = (*FILE_MUTANTS, *REDIS_MUTANTS)


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
    """Run the simulation with the bug in it until it shows what the same seed does not show without it."""
    began = time.perf_counter()
    at, end, why = first, first + seeds, "-"
    with tempfile.TemporaryDirectory() as directory:
        plant(mutant, directory)
        while at < end:
            left_s = TIMEOUT_S - (time.perf_counter() - began)
            number, kinds, why = _violated(directory, at, end - at, mutant.redis, left_s)
            if not number:
                break
            at += number
            new = set(kinds) - _clean(at - 1, mutant.redis)
            if new:
                return Result(mutant, at - first, " ".join(sorted(new)), time.perf_counter() - began)
    return Result(mutant, 0, why, time.perf_counter() - began)


def _violated(directory: str, first: int, seeds: int, redis: bool, left_s: float) -> tuple[int, list[str], str]:
    """After how many seeds the package in a directory is violated first (0: never), in which ways, or why that is unknown."""
    command = [sys.executable, "-m", "lemegeton.testing.simulation", "--seeds", str(seeds), "--first", str(first),
               "--until-failure", *(["--redis"] if redis else [])]
    environ = {**os.environ, "PYTHONPATH": directory, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, env=environ, cwd=directory, capture_output=True, text=True, timeout=max(0.1, left_s))
    except subprocess.TimeoutExpired:
        return 0, [], f"not within {TIMEOUT_S} s"
    words = done.stdout.split()
    return (int(words[1]), words[2:], "-") if words[:1] == ["caught"] else (0, [], done.stderr.strip()[-200:] or "-")


@cache
def _clean(seed: int, redis: bool) -> frozenset[str]:
    """The violations of a seed without any mutant."""
    return frozenset(_violated(str(Path(lemegeton.__file__).parent.parent), seed, 1, redis, TIMEOUT_S)[1])


def table(results: Iterable[Result]) -> Iterable[str]:
    """The results as lines of a Markdown table."""
    yield "| mutant | file | seeds until caught | violations |"
    yield "| --- | --- | --- | --- |"
    for result in results:
        yield f"| {result.mutant.name} | {result.mutant.file} | {result.seeds or 'never'} | {result.kinds} |"


def hunt(seeds: int, jobs: int, names: Iterable[str] = (), first: int = 0) -> int:
    """Run every mutant, or those with these names; 1 if one of them is not caught."""
    wanted = set(names)
    chosen = [mutant for mutant in MUTANTS if not wanted or mutant.name in wanted]
    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(lambda mutant: catch(mutant, seeds, first), chosen))
    for line in table(results):
        sys.stdout.write(line + "\n")
    return int(not all(result.seeds for result in results))
