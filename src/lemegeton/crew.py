"""The crew of a subscription: workers that serve its chains side by side, each chain by one worker at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

from lemegeton.handling import LanePlace
from lemegeton.lane import Chain

CANCEL_WAIT_S = 1.0
"""How long a cancelled handler is waited for, at the least."""


@dataclass(slots=True, eq=False)
class ChainState:
    """One chain: its lanes from the current one on, and whether a worker has it."""

    key: Chain
    lanes: deque[LanePlace] = field(default_factory=deque)
    busy: bool = False
    queued: bool = False
    rung: bool = False
    waiting: bool = False
    """A retry is due later: neither a doorbell nor a poll brings it forward."""
    seen: set[int] = field(default_factory=set)
    """The incarnations that were met."""
    stuck_seq: int = 0
    stuck_since: float = 0.0


class Rest(asyncio.Future[None]):
    """What a worker without work awaits.

    ``set_result`` lets it go on in the next turn of the loop.  `step` lets it go on at once: from a doorbell to the
    handler that is one turn less: 74 to 65 µs from publish to handler at 5,000 messages a second, 110 to 105 at 500.
    """

    def add_done_callback(self, fn: Callable[[Any], object], /, *, context: Context | None = None) -> None:
        """Called by a task that begins to await this: how to go on with it, and in which context."""
        self._go_on, self._context = fn, context
        super().add_done_callback(fn, context=context)

    def step(self) -> None:
        """Run the worker until it waits for something.  Not from inside a task: a loop runs one at a time."""
        assert self._context is not None, "a task gives its own"
        self.remove_done_callback(self._go_on)
        self.set_result(None)
        self._context.run(self._go_on, self)


class Crew:
    """At most ``workers_max`` workers; ``serve`` gives a chain one turn and says whether there may be more in it.

    A worker that finds nothing to do stays: waking it takes half of what beginning another one does.
    """

    def __init__(self, serve: Callable[[ChainState], Awaitable[bool]], workers_max: int) -> None:
        self._serve = serve
        self._workers_max = workers_max
        self._ready: tuple[deque[ChainState], ...] = (deque(), deque(), deque(), deque())
        self._picks = 0
        self._workers: set[asyncio.Task[None]] = set()
        self._idle: list[Rest] = []
        self._group: asyncio.TaskGroup | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False

    def begin(self, group: asyncio.TaskGroup) -> None:
        """Serve what is queued and what will be; workers are born in ``group``."""
        self._group = group
        self._loop = asyncio.get_running_loop()
        self._kick()

    def queue(self, chain: ChainState) -> None:
        """Have a chain served soon; while a worker has it, that one looks again."""
        if chain.busy:
            chain.rung = True
        elif not chain.queued and not chain.waiting:
            chain.queued = True
            self._ready[chain.key.priority].append(chain)
            self._kick()

    def _kick(self) -> None:
        """Have one more worker look, if there is something to do."""
        if self._group is None or self._stopping or not any(self._ready):
            return
        if self._idle:
            self._wake(self._idle.pop())
        elif len(self._workers) < self._workers_max:
            task = self._group.create_task(self._work())
            self._workers.add(task)
            task.add_done_callback(self._ended)

    def _wake(self, rest: Rest) -> None:
        """Let a worker go on: now, if all were at rest, so that one callback never serves more than one chain."""
        if rest.done():
            self._kick()  # that one is being cancelled
        elif len(self._idle) + 1 == len(self._workers) and asyncio.current_task(self._loop) is None:
            rest.step()
        else:
            rest.set_result(None)

    def _ended(self, worker: asyncio.Task[None]) -> None:
        """A worker was cancelled, or all of them end: what it was woken for needs another one."""
        self._workers.discard(worker)
        self._kick()

    def _next(self) -> ChainState | None:
        """The next chain: the highest priority, but every eighth time the lowest, which must not starve."""
        self._picks += 1
        for queue in self._ready if self._picks % 8 == 0 else reversed(self._ready):
            if queue:
                return queue.popleft()
        return None

    async def _work(self) -> None:
        while not self._stopping:
            chain = self._next()
            if chain is None:
                rest = Rest(loop=self._loop)
                self._idle.append(rest)
                await rest
                continue
            chain.queued, chain.busy, chain.rung = False, True, False
            if any(self._ready):
                self._kick()
            try:
                more = await self._serve(chain)
            finally:
                chain.busy = False
            if more or chain.rung:
                self.queue(chain)

    async def stop(self, timeout_s: float) -> None:
        """Let running handlers finish for ``timeout_s``, then cancel them."""
        self._stopping = True
        for rest in self._idle:
            if not rest.done():
                rest.set_result(None)
        self._idle.clear()
        if self._workers:
            _, late = await asyncio.wait(self._workers, timeout=timeout_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=max(timeout_s, CANCEL_WAIT_S))
