"""Modes: which path to other sites works now.  They never decide where a message is written.

The rules are in `mode_rules`; here is what they need: links that come up and go down, probes, the switch by hand, and
whoever is told.  Taking all of this away changes a name that people see, and nothing else (that is the test of it).
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from lemegeton.config import Settings
from lemegeton.events import ModeChanged, Observer
from lemegeton.logs.redis_entries import Keys
from lemegeton.logs.redis_link import Link
from lemegeton.mode_board import HISTORY_MAX, Answer, Board, Health, Transition
from lemegeton.mode_rules import PROBE_LONGEST, Contact, CoordinationMode, Facts, Manual, Rules, State, calm, decide
from lemegeton.mode_switch import Position, Switch
from lemegeton.osfs import os_runtime
from lemegeton.seams import Runtime
from lemegeton.within import within

__all__ = ["CoordinationMode", "CoordinationModeManager", "Transition"]

FIRST_S = 0.05
"""Between the first probes: nobody should begin in a mode that is not his."""
SWITCH_S = 1.0
"""How often the switch by hand is looked at."""
REASON_MAX = 300


class CoordinationModeManager:
    """Names the best mode that works: distributed by ``shared``, degraded by ``local``, isolated otherwise.

    It keeps no link connected (`Link.run` does) and moves no message.  `mode`, `reason`, `history` and `relay_paused`
    may be read at any time; they change only in steps of the event loop.  Every change is told by ``observe``, by
    `on_change`, and in each Redis that is up (`mode_board`).  ``home`` is where the switch by hand lies (None: there is
    none), ``name`` and ``site`` say who tells.
    """

    def __init__(
        self, shared: Link | None, local: Link | None, *, home: str | None = None, settings: Settings | None = None,
        name: str = "lemegeton", site: str = "", observe: Observer = lambda _: None, runtime: Runtime | None = None
    ) -> None:
        runtime = runtime or os_runtime()
        settings = settings or Settings()
        self.history: deque[Transition] = deque(maxlen=HISTORY_MAX)
        """The last changes of this manager, oldest first."""
        self._by = f"{name}@{site}" if site else name
        self._runtime = runtime
        self._observe = observe
        self._interval_s = settings.mode_probe_interval
        self._rules = Rules(settings.mode_good_probes, settings.mode_cooldown)
        self._switch = None if home is None else Switch(runtime.fs, home, runtime.uid, runtime.wall_ms, observe)
        self._position = Position(None)
        self._state = State(reason="nothing has answered yet" if shared or local else "no Redis is set")
        self._on_change: list[Callable[[], None]] = []
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._pause_s = self._due_s = 0.0
        self._board = partial(Board, keys=Keys(settings.namespace), sender=name, life=runtime.token(6), observe=observe)
        self._ends: dict[Board, Callable[[], None]] = {}
        self._shared, self._local = self._watched(shared), self._watched(local)

    # ------------------------------------------------------------------------------------------ looking

    @property
    def mode(self) -> CoordinationMode:
        """The best path that works."""
        return self._state.mode

    @property
    def reason(self) -> str:
        """Why the mode is what it is."""
        return self._state.reason

    @property
    def manual(self) -> Manual | None:
        """The switch by hand that is in force."""
        return self._state.manual

    @property
    def relay_paused(self) -> bool:
        """True while isolated by hand: relays send nothing, to no Redis, until it ends."""
        return self._state.manual is not None and self._state.manual.mode is CoordinationMode.ISOLATED

    @property
    def changes(self) -> int:
        """How often the mode has changed."""
        return self._state.changes

    def on_change(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call after each change of the mode or of the switch by hand; returns what ends that."""
        self._on_change.append(call)
        return lambda: self._on_change.remove(call) if call in self._on_change else None

    # ------------------------------------------------------------------------------------------ links

    def use_local(self, link: Link | None) -> None:
        """From here on this is the Redis of this host."""
        self._forget(self._local)
        self._local = self._watched(link)
        if not self._closing.is_set():
            self._step()

    def _watched(self, link: Link | None) -> Board | None:
        if link is None:
            return None
        board = self._board(link)
        self._ends[board] = link.on_change(partial(self._changed, board))
        return board

    def _forget(self, board: Board | None) -> None:
        if board is not None and (end := self._ends.pop(board, None)) is not None:
            end()

    def _changed(self, board: Board, up: bool) -> None:
        """A link came up, and is probed at once, or went down, and the mode with it."""
        if self._closing.is_set():
            return
        board.changed(up)
        self._step()
        self._pause_s = self._due_s = 0.0
        self._wake.set()

    # ------------------------------------------------------------------------------------------ life

    async def run(self) -> None:
        """Watch, probe and tell, until `close`.  Cancelling it is the same as closing."""
        self._look()
        self._step()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch_switch())
                group.create_task(self._keep_probing())
        finally:
            for board in list(self._ends):
                self._forget(board)

    def close(self) -> None:
        """Have `run` return."""
        self._closing.set()
        self._wake.set()

    async def _watch_switch(self) -> None:
        while self._switch is not None and not self._closing.is_set():
            with suppress(TimeoutError):
                async with within(SWITCH_S):
                    await self._closing.wait()
            self._look()

    def _look(self) -> None:
        """Look at the switch by hand, and take what follows from it."""
        if self._switch is not None:
            self._position = self._switch.look()
        if self._position.manual != self._state.manual:
            self._step()

    async def _keep_probing(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._closing.is_set():
            self._wake.clear()
            boards = [board for board in self._ends if board.link.up]
            if boards and loop.time() >= self._due_s:
                self._due_s = math.inf
                await self._probe(boards)
                self._due_s = min(self._due_s, loop.time() + self._pause())  # a link that came up meanwhile made it 0
            await self._tell(boards)
            with suppress(TimeoutError):
                async with within(self._due_s - loop.time() if boards else None):
                    await self._wake.wait()  # a link that came up or went down, or a changed mode

    async def _probe(self, boards: list[Board]) -> None:
        """Probe all at once, and decide."""
        async with asyncio.TaskGroup() as group:
            for board in boards:
                group.create_task(board.probe(self._health()))
        self._step(*boards)

    async def _tell(self, boards: list[Board]) -> None:
        for board in boards:
            await board.tell(self._state.mode, tuple(self.history), self._state.changes)

    def _pause(self) -> float:
        """How long to wait after a probe: twice as long as before while all is calm."""
        if not self._state.changes:
            return FIRST_S
        is_calm = calm(self._state, self._facts(), self._rules)
        longest_s = self._interval_s * PROBE_LONGEST
        self._pause_s = min(longest_s, max(self._interval_s, self._pause_s * 2)) if is_calm else self._interval_s
        return self._pause_s

    def _health(self) -> Health:
        """The shared Redis as it is known before this probe."""
        board, now_ms = self._shared, self._runtime.wall_ms()
        if board is None:
            return Health(up=False, latency=None, cause="no redis_url is set", at=now_ms, by=self._by)
        answer = board.answer
        latency = None if answer is None or answer.latency_s is None else round(answer.latency_s * 1000, 3)
        up = board.link.up and (answer is None or answer.good)
        return Health(up=up, latency=latency, cause="" if up else _plain(_cause(board)), at=now_ms, by=self._by)

    # ------------------------------------------------------------------------------------------ deciding

    def _step(self, *probed: Board) -> None:
        """Decide by what is known now; ``probed`` are those whose probe has just ended."""
        before = self._state
        self._state = decide(before, self._facts(*probed), asyncio.get_running_loop().time(), self._rules)
        if self._state.mode is not before.mode:
            self._record(before)
        if self._state.mode is not before.mode or self._state.manual != before.manual:
            self._wake.set()
            for call in list(self._on_change):
                call()

    def _record(self, before: State) -> None:
        reason = _plain(self._state.reason)
        self.history.append(Transition(
            before.mode.value, self._state.mode.value, reason, self._runtime.wall_ms(), self._by))
        self._observe(ModeChanged(before.mode.value, self._state.mode.value, reason))

    def _facts(self, *probed: Board) -> Facts:
        return Facts(
            _contact(self._shared, probed, "no redis_url is set"), _contact(self._local, probed, "there is none"),
            self._position.manual, f"the switch by hand ended: {self._position.reason or 'no reason given'}")


def _contact(board: Board | None, probed: tuple[Board, ...], missing: str) -> Contact:
    if board is None:
        return Contact(up=False, cause=missing)
    answer: Answer | None = board.answer if board in probed else None
    return Contact(board.link.up, None if answer is None else answer.good, _cause(board))


def _cause(board: Board) -> str:
    """What is wrong with a Redis, as far as it is known."""
    if not board.link.up:
        return board.link.cause
    return "" if board.answer is None else board.answer.cause


def _plain(text: str) -> str:
    """Text of a bounded length that any encoder takes."""
    return text[:REASON_MAX].encode("utf-8", "replace").decode()
