"""The page: what it ran on, the bars, every section with its table."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bars import Judged, bars_table
from peer_list import program
from stand import Found
from table import Part, table

from lemegeton.testing.servers import servers

PACKAGES = ("msgspec", "hiredis", "inotify-simple", "deflate", "uvloop", "redis", "faststream", "kombu", "dirq", "litequeue",
            "persist-queue", "huey", "nats-py", "aiomqtt", "taskiq-redis", "pyzmq")
SERVERS = {"nats-server": "--version", "mosquitto": "-h"}
VERSION_S = 10.0


@dataclass(frozen=True, slots=True)
class Run:
    """What was done: rounds, how long it took, the load before it began, and whether it was everything."""

    rounds: int
    seconds: float
    load: float
    whole: bool


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


def versions() -> str:
    """Of everything that is here and was measured."""
    found = [f"{name} {here}" for name in PACKAGES if (here := _installed(name))]
    found += sorted(server.name.replace("-", " ") for server in servers())[-1:]
    found += [said for name, flag in SERVERS.items() if (said := _said(name, flag))]
    return ", ".join(found)


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _said(name: str, flag: str) -> str:
    """The first line in which a server says its version."""
    path = program(name)
    if path is None:
        return ""
    done = subprocess.run([path, flag], capture_output=True, text=True, timeout=VERSION_S)
    return next((line.strip() for line in (done.stdout + done.stderr).splitlines() if "version" in line or ":" in line), name)


def report(found: Found, parts: Sequence[Part], judged: Sequence[Judged], drawn: Sequence[str], run: Run) -> str:
    """The whole page.  The load is what the machine did before we began: above some tenths the figures are not ours."""
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    head = f"""# Results

`make bench`, {day}, {run.rounds} rounds in {run.seconds:.0f} s. {machine()}; load average {run.load:.1f} before it began.
{versions()}.

256-byte payload unless said otherwise. Whoever has an event loop, ours and peers, runs it on uvloop where that is installed.
Medians over the rounds, smallest and largest in parentheses; a ratio is that of the medians.
{"" if run.whole else f"{chr(10)}Not the whole bench: only what was asked for.{chr(10)}"}"""
    pictures = (f"![{_about(name)}]({name})\n" for name in drawn)
    return "\n".join([head, *_wrong(found), *_judged(judged), *pictures,
                      *(_section(found, part) for part in parts)])


def _wrong(found: Found) -> list[str]:
    return [f"**{title}:** {'; '.join(dict.fromkeys(entries))}.\n" for title, entries in
            (("Failed", found.failed), ("Missing", found.missing)) if entries]


def _judged(judged: Sequence[Judged]) -> list[str]:
    if not judged:
        return []
    broken = sum(not one.holds for one in judged)
    goals = sum(one.cells()[-1] == "goal" for one in judged)
    measured = [one for one in judged if one.value is not None]
    return [f"""## Goals and bars

{len(measured) - broken} of {len(measured)} bars hold, {goals} reach their goal. A ratio is ours over the side beside it;
without one, the figure itself is meant.

{bars_table(judged)}
"""]


def _section(found: Found, part: Part) -> str:
    tables = [*([table(found, part.pairs)] if part.pairs else []), *part.tables]
    return "\n".join([f"## {part.title}\n\n{part.text}\n", *(f"{text}\n" for text in tables)])


def _about(name: str) -> str:
    return name.partition(".")[0].replace("-", " ")
