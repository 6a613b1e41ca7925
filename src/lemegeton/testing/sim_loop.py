"""Many processes on one loop: each callback belongs to a process life, which can be stopped, continued and killed.

A life is told by a context variable, so everything that a task of it starts (tasks, timers, callbacks) belongs to it as
well.  While a life is stopped its callbacks are held back, as SIGSTOP does; once it is dead they are dropped and its
coroutines are never resumed, so that no ``finally`` of the bus has any effect.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from lemegeton.testing.fake_doorbell import FakeDoorbell
from lemegeton.testing.fake_fs import FakeFs, Killed
from lemegeton.testing.virtual_loop import CLOCK_RESOLUTION_S, Stuck, VirtualLoop

PRUNE_AT = 500


class Gate:
    """One process life: whether its callbacks run, wait or are dropped."""

    __slots__ = ("_prune_at", "dead", "halted", "held", "name", "tasks")

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.halted = False
        """True while callbacks must not run, for whatever reason."""
        self.held: deque[asyncio.Handle] = deque()
        self.tasks: list[asyncio.Task[Any]] = []
        self._prune_at = PRUNE_AT

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Keep a task alive: one that is collected would run its ``finally`` blocks."""
        self.tasks.append(task)
        if len(self.tasks) > self._prune_at:
            self.tasks = [task for task in self.tasks if not task.done()]
            self._prune_at = 2 * len(self.tasks) + PRUNE_AT

    def kill(self) -> None:
        """Nothing of this life runs any more."""
        self.dead = self.halted = True
        self.held.clear()


LIFE: contextvars.ContextVar[Gate | None] = contextvars.ContextVar("life", default=None)


class SimTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address."""

    def __init__(self, coro: Coroutine[Any, Any, Any], *, number: int, **options: Any) -> None:
        self._number = number
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number


class SimHandle(asyncio.Handle):
    """A callback that is ready; made without asking the loop whether it is debugged."""

    __slots__ = ()

    def __init__(self, callback: Any, args: Any, loop: asyncio.AbstractEventLoop, context: Any) -> None:
        _fill(self, callback, args, loop, context)


class SimTimer(asyncio.TimerHandle):
    """A callback that has a time; compared with nothing but its like."""

    __slots__ = ()

    def __init__(self, when: float, callback: Any, args: Any, loop: asyncio.AbstractEventLoop, context: Any) -> None:
        _fill(self, callback, args, loop, context)
        self._when = when
        self._scheduled = True

    def __lt__(self, other: asyncio.TimerHandle) -> bool:
        return self._when < other._when  # type: ignore[attr-defined, no-any-return]

    def cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            self._callback = self._args = None  # type: ignore[assignment]


def _fill(handle: Any, callback: Any, args: Any, loop: asyncio.AbstractEventLoop, context: Any) -> None:
    """What `asyncio.Handle` makes of its arguments."""
    handle._context = contextvars.copy_context() if context is None else context
    handle._loop = loop
    handle._callback = callback
    handle._args = args
    handle._cancelled = False
    handle._repr = handle._source_traceback = None


class SimLoop(VirtualLoop):
    """A virtual loop that knows process lives.  ``broken`` collects what reached the loop's exception handler."""

    def __init__(self) -> None:
        super().__init__()
        self._made = 0
        self.broken: list[str] = []
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._on_exception)

    def _make_task(self, _: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        self._made += 1
        task = SimTask(coro, loop=self, number=self._made, name=f"task-{self._made}", **options)
        context = options.get("context")
        life = LIFE.get() if context is None else context.get(LIFE)
        if life is not None:
            life.adopt(task)
        return task

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        handle = SimHandle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        timer = SimTimer(when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._clock.now + delay, callback, *args, context=context)

    def _on_exception(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, Killed):
            self.broken.append(f"{context['message']}: {type(error).__name__}: {error}")

    def resume(self, life: Gate) -> None:
        """SIGCONT."""
        if life.dead:
            return
        life.halted = False
        self._ready.extend(handle for handle in life.held if not handle.cancelled())  # type: ignore[attr-defined]
        life.held.clear()

    def _run_once(self) -> None:
        """One turn, as in `asyncio.BaseEventLoop`, but for the lives whose callbacks must not run."""
        ready: deque[asyncio.Handle] = self._ready  # type: ignore[attr-defined]
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False  # type: ignore[attr-defined]
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            if not scheduled:
                raise Stuck(f"nothing is ready and no timer is set at {self.time():.6f} s")
            self._clock.now = max(self._clock.now, scheduled[0].when())
        end = self._clock.now + CLOCK_RESOLUTION_S
        while scheduled and scheduled[0]._when < end:  # type: ignore[attr-defined]
            handle = heapq.heappop(scheduled)
            handle._scheduled = False  # type: ignore[attr-defined]
            ready.append(handle)
        for _ in range(len(ready)):
            self._turn(ready.popleft())

    def _turn(self, handle: asyncio.Handle) -> None:
        if handle._cancelled:
            return
        life: Gate | None = handle._context.get(LIFE)  # type: ignore[attr-defined]
        if life is None or not life.halted:
            handle._run()
        elif not life.dead:
            life.held.append(handle)


class SimDoorbell(FakeDoorbell):
    """Rings in the name of the life that listens, not of the one that wrote."""

    def __init__(self, fs: FakeFs) -> None:
        super().__init__(fs)
        self._owner = contextvars.copy_context()

    def changed(self, directory: Any, name: str, created: bool) -> None:
        self._owner.run(super().changed, directory, name, created)


def bury(lives: list[Gate]) -> None:
    """End the coroutines of lives that are over, when nothing they do can matter any more."""
    for life in lives:
        for task in life.tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                coro = task.get_coro()
                for _ in range(3):
                    with suppress(BaseException):
                        coro.close()
                        break
