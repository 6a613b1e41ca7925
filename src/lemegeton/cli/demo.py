"""``demo``: a hub and its agents on real work, one of them killed, and the sum checked against one process alone."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shlex
import shutil
import sys
import sysconfig
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import click

from lemegeton.cli.demo_redis import OwnRedis
from lemegeton.cli.demo_view import Board, Row, View, Worker, open_view, show_closing
from lemegeton.cli.demo_work import Found, Total, python_files, total
from lemegeton.cli.output import FAILED, Ended, Options, put_line, run, to_json
from lemegeton.hub import Hub
from lemegeton.ledger import ASSIGNED, COMPLETED, QUEUED, Entry

LONGEST = 10
KILL_AT = 1 / 3
LEAVE_S = 10.0
"""How long an agent that was told to leave may take before it is killed."""
STUCK_S = 60.0
"""Without any outcome for so long the demo gives up and says what is missing."""
LOOK_S = 0.1


@click.command()
@click.option("--agents", metavar="N", type=click.IntRange(1, 64), default=4, show_default=True,
              help="How many agents.")
@click.option("--path", metavar="DIR", type=click.Path(exists=True, file_okay=False), default=None,
              help="Directory with Python files; without it the standard library of this Python.")
@click.option("--no-kill", is_flag=True, help="Kill nobody.")
@click.option("--redis", is_flag=True, help="Over two sites, through a Redis of its own that is killed, stopped and cut off.")
@click.option("--seed", metavar="N", type=int, default=None, help="Choose the agent to kill as in an earlier run.")
@click.pass_obj
def demo(options: Options, agents: int, path: str | None, no_kill: bool, redis: bool, seed: int | None) -> None:
    """Let a hub and its agents parse the standard library; kill one of them; check every number.

    Each agent is a process; no server is needed.  With --redis every second one lives on a second site.
    Exit 1 if anything was lost, doubled or miscounted.
    """
    files = python_files(path or sysconfig.get_path("stdlib"))
    if not files:
        raise click.UsageError(f"no Python file below {path}")
    shown = run(Demo(files, agents, not no_kill, random.Random(seed), options.json, redis=redis).run())
    if options.json:
        put_line(to_json({row.key: row.fact for row in shown.rows} | {"right": shown.right, "home": shown.home}))
    else:
        show_closing(shown.rows, shown.longest, shown.commands)
    if not shown.right:
        raise Ended(FAILED, "a number is wrong: " + ", ".join(row.what for row in shown.rows if row.right is False))


@dataclass(frozen=True, slots=True)
class Shown:
    """How it ended."""

    home: str
    rows: list[Row]
    longest: list[tuple[int, str, str]]

    @property
    def right(self) -> bool:
        """True if every number that can be wrong is right."""
        return not any(row.right is False for row in self.rows)

    @property
    def commands(self) -> list[str]:
        """How to look into the home, fit to be copied: a shell need not know where this program lies."""
        program = "lemegeton" if shutil.which("lemegeton") else f"{shlex.quote(sys.executable)} -m lemegeton"
        return [f"{program} --home {shlex.quote(self.home)} {verb}" for verb in ("status", "history hub -n 5", "subs list")]


@dataclass(slots=True)
class Tally:
    """What the hub saw: outcomes by file, who did them, and how long each took."""

    found: dict[str, Found] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    """Assignment to file."""
    outcomes: Counter[str] = field(default_factory=Counter)
    by_agent: Counter[str] = field(default_factory=Counter)
    handed_out: dict[str, float] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    again: set[str] = field(default_factory=set)
    messages: int = 0

    def note(self, entry: Entry) -> None:
        """An assignment changed."""
        now = time.perf_counter()
        if entry.status == ASSIGNED:
            self.messages += 1
            self.handed_out[entry.id] = now
            if entry.attempt > 1:
                self.again.add(entry.id)
        elif entry.status != QUEUED:
            self.messages += 1
            self.outcomes[entry.id] += 1
            if entry.status == COMPLETED:
                self._completed(entry, now)

    def _completed(self, entry: Entry, now: float) -> None:
        self.by_agent[entry.agent] += 1
        self.found[self.paths[entry.id]] = Found(*entry.result)
        self.latencies_ms.append((now - self.handed_out[entry.id]) * 1000)


class Demo:
    """One run, in a home of its own that stays behind."""

    def __init__(
        self, files: Sequence[str], agents: int, kill: bool, rng: random.Random, quiet: bool, *, redis: bool = False
    ) -> None:
        self._files = files
        self._agents = agents
        self._kill = kill
        self._rng = rng
        self._quiet = quiet
        self._home = os.path.join(tempfile.mkdtemp(prefix="lemegeton-demo-"), ".lemegeton")
        self._board = Board(total=len(files))
        self._tally = Tally()
        self._processes: dict[str, Process] = {}
        self._victim = ""
        self._redis = OwnRedis(os.path.dirname(self._home)) if redis else None
        self._settings = {} if self._redis is None else {"redis_url": self._redis.url, "local_redis": "off"}
        self._hub = Hub(home=self._home, **self._settings)

    async def run(self) -> Shown:
        """All of it; no process is left, however it ends."""
        try:
            with open_view(self._board, quiet=self._quiet) as view:
                view.note(f"home {self._home}")
                if self._redis is not None:
                    await self._redis.begin()
                await self._work(view)
                view.note("the same files in one process, to compare")
                began = time.monotonic()
                alone = await self._count_alone()
            return self._shown(alone, time.monotonic() - began)
        finally:
            await self._end_all()

    async def _work(self, view: View) -> None:
        async with self._hub as hub:
            silence = hub.watch(self._note)
            for number in range(1, self._agents + 1):
                await self._begin(f"agent-{number}", view)
            await self._joined(hub)
            self._board.begin()
            view.note(f"{len(self._files)} files for {self._agents} agents")
            await self._hand_out(hub)
            await self._watch(hub, view)
            silence()
            self._board.end()
            view.note(f"done after {self._board.seconds:.2f} s")
            await hub.shutdown(reason="the demo is over")
            await self._left(view)

    # ------------------------------------------------------------------------------------------ agents

    async def _begin(self, name: str, view: View) -> None:
        with open(os.path.join(os.path.dirname(self._home), "agents.log"), "ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "lemegeton.cli.demo_agent", self._home_of(name), name, *self._settings.values(),
                stdin=PIPE, stdout=DEVNULL, stderr=log, start_new_session=True)
        self._processes[name] = process
        self._board.workers[name] = Worker(name, process.pid)
        view.note(f"{name} begins, process {process.pid}")

    def _home_of(self, name: str) -> str:
        """With a Redis every second agent lives on a site of its own."""
        return self._home + "-2" if self._redis is not None and int(name.rpartition("-")[2]) % 2 == 0 else self._home

    async def _joined(self, hub: Hub) -> None:
        """Until every agent has registered; one that ended instead has said why in the log."""
        until = time.monotonic() + STUCK_S
        while len(hub.agents()) < self._agents:
            ended = [name for name, process in self._processes.items() if process.returncode is not None]
            if ended or time.monotonic() > until:
                what = f"{ended[0]} ended at its start" if ended else f"no agent joined within {STUCK_S:.0f} s"
                raise Ended(FAILED, f"demo: {what}; {os.path.dirname(self._home)}/agents.log may say why")
            await asyncio.sleep(0.01)

    def _note(self, entry: Entry) -> None:
        """An assignment changed; at a third of them an agent is killed in the middle of its work."""
        self._tally.note(entry)
        if self._kill and not self._victim and len(self._tally.found) >= KILL_AT * len(self._files):
            most = max(agent.open for agent in self._hub.agents())
            self._victim = self._rng.choice(sorted(a.name for a in self._hub.agents() if a.open == most))
            with suppress(ProcessLookupError):
                self._processes[self._victim].kill()

    async def _replace(self, view: View) -> None:
        """A new agent joins in the place of one that was killed."""
        if not self._victim or len(self._board.workers) > self._agents:
            return
        worker = self._board.workers[self._victim]
        worker.state = "killed"
        view.note(f"{worker.name} is killed: SIGKILL to process {worker.pid}")
        await self._begin(f"agent-{self._agents + 1}", view)

    async def _left(self, view: View) -> None:
        """Until all are gone; one that was not told, because it joined just now, sees its input end."""
        for name, process in self._processes.items():
            assert process.stdin is not None, "it has a pipe"
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), LEAVE_S)
            except TimeoutError:
                view.note(f"{name} does not leave")

    async def _end_all(self) -> None:
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.kill()
        for process in self._processes.values():
            await process.wait()
        if self._redis is not None:
            await self._redis.end()

    # ------------------------------------------------------------------------------------------ work

    async def _hand_out(self, hub: Hub) -> None:
        """Every file is an assignment of its own; the hub keeps what the agents cannot take yet."""
        for number, path in enumerate(self._files):
            ident = f"file-{number}"
            self._tally.paths[ident] = path
            await hub.assign("any", {"path": path}, id=ident)
            if number % 16 == 0:
                await asyncio.sleep(0)

    async def _watch(self, hub: Hub, view: View) -> None:
        seen, since = -1, time.monotonic()
        while hub.pending:
            self._refresh(hub)
            view.update()
            await self._replace(view)
            if self._redis is not None:
                await self._redis.hurt(self._board.done / self._board.total, view.note)
            if self._board.done != seen:
                seen, since = self._board.done, time.monotonic()
            elif time.monotonic() - since > STUCK_S:
                view.note(f"nothing happens any more: {hub.pending} files are missing")
                return
            await asyncio.sleep(LOOK_S)
        self._refresh(hub)
        await self._replace(view)
        view.update()

    def _refresh(self, hub: Hub) -> None:
        board, tally = self._board, self._tally
        board.done, board.messages = len(tally.found), tally.messages
        for agent in hub.agents():
            worker = board.workers[agent.name]
            worker.done = tally.by_agent[agent.name]
            if agent.name != self._victim:
                worker.state = "working" if agent.open else "idle"

    async def _count_alone(self) -> Total:
        """The same files, looked into by one process that knows nothing of the bus."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "lemegeton.cli.demo_work", stdin=PIPE, stdout=PIPE, start_new_session=True)
        self._processes["count"] = process
        out, _ = await process.communicate("\n".join(self._files).encode("utf-8", "surrogateescape"))
        return Total(*json.loads(out))

    # ------------------------------------------------------------------------------------------ numbers

    def _shown(self, alone: Total, alone_s: float) -> Shown:
        tally, board = self._tally, self._board
        together = total(tally.found.values())
        wanted = len(self._files)
        by_agent = {name: tally.by_agent[name] for name in board.workers}
        p50, p99 = (_quantile(tally.latencies_ms, share) for share in (0.5, 0.99))
        rows = [
            _count("files", wanted, alone.files),
            _count("completed", together.files, wanted),
            Row("by agent", self._told(by_agent), by_agent, sum(by_agent.values()) == wanted),
            _count("lost", wanted - len(tally.found), 0),
            _count("doubled", sum(count - 1 for count in tally.outcomes.values()), 0),
            Row("handed out again", str(len(tally.again)), len(tally.again)),
            _count("lines", together.lines, alone.lines),
            _count("functions", together.functions, alone.functions),
            _count("files that do not parse", together.files - together.parsed, alone.files - alone.parsed),
            *([] if self._redis is None else [_count("what happened to the Redis", len(self._redis.done), 3)]),
            Row("from hub to outcome", f"p50 {p50:.1f} ms, p99 {p99:.1f} ms", {"p50_ms": p50, "p99_ms": p99}),
            Row("messages a second", f"{board.rate:,.0f}", round(board.rate)),
            Row("time", f"{board.seconds:.2f} s; one process alone {alone_s:.2f} s",
                {"together_s": round(board.seconds, 3), "alone_s": round(alone_s, 3)}),
        ]
        return Shown(self._home, rows, self._longest())

    def _told(self, by_agent: dict[str, int]) -> str:
        return ", ".join(f"{name}{' (killed)' if name == self._victim else ''} {count}"
                         for name, count in by_agent.items())

    def _longest(self) -> list[tuple[int, str, str]]:
        root = os.path.commonpath([os.path.dirname(path) for path in self._files])
        ranked = sorted(((found.longest, found.name, os.path.relpath(path, root))
                         for path, found in self._tally.found.items() if found.longest), reverse=True)
        return ranked[:LONGEST]


def _count(what: str, count: int, right: int) -> Row:
    """A row for a number that has one right value."""
    return Row(what, f"{count:,}", count, count == right)


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values) or [0.0]
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 3)
