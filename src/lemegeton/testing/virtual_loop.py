"""Virtual time: an event loop that never sleeps, so that an hour of a simulated bus takes a second.

The clock stands still while callbacks run and jumps to the next timer when nothing is ready.  Nothing in here looks at
the real clock, at descriptors or at threads: two runs of one program take the same turns in the same order.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

CLOCK_RESOLUTION_S = 1e-9
"""Timers this close together fire in one turn; fixed, because the machine's own resolution would decide otherwise."""

LEAVE_S = 3600.0
"""How long (virtual seconds) `run` waits for cancelled tasks to end."""


class Stuck(RuntimeError):
    """Nothing is ready and no timer is set: the simulation would wait for ever."""


class VirtualSelector(selectors.BaseSelector):
    """Waits by moving the clock; holds no descriptors."""

    def __init__(self, start: float) -> None:
        self.now = start

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck(f"virtual loop: nothing is ready and no timer is set at {self.now:.6f} s; "
                        "some task waits for what nobody will do")
        if timeout > 0:
            self.now += timeout
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        raise NotImplementedError("virtual loop: real descriptors cannot be waited for in virtual time")

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        raise KeyError(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on a virtual clock that begins at ``start`` seconds.

    `Stuck` is raised out of the loop instead of waiting for ever.  Threads and descriptors are refused: their answers
    would come at a time that no seed decides.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._clock = VirtualSelector(start)
        super().__init__(self._clock)
        self._clock_resolution = CLOCK_RESOLUTION_S
        self.set_debug(False)

    def time(self) -> float:
        """Virtual seconds."""
        return self._clock.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> NoReturn:  # type: ignore[override]
        raise NotImplementedError("virtual loop: no threads in virtual time; go through Runtime.blocking")

    # The pipe that wakes a real loop out of its select: here nobody sleeps, and thousands of loops need no descriptors.
    def _make_self_pipe(self) -> None:
        self._ssock = self._csock = None

    def _close_self_pipe(self) -> None:
        """Nothing was opened."""

    def _write_to_self(self) -> None:
        """Nobody sleeps."""


def run(coro: Coroutine[Any, Any, T], start: float = 0.0) -> T:
    """Run to the end on a fresh virtual loop, as `asyncio.run` does; every task left over is cancelled, then it closes.

    Raises `Stuck` also when a task is left that does not end within `LEAVE_S` of being cancelled.
    """
    loop = VirtualLoop(start)
    try:
        result = loop.run_until_complete(coro)
        left = _leave(loop)
    except BaseException:
        _leave(loop)
        raise
    finally:
        loop.close()
    if left:
        raise Stuck(f"virtual loop: {len(left)} tasks ignore cancellation, among them {left[0]}")
    return result


def _leave(loop: VirtualLoop) -> list[str]:
    """Cancel all tasks and let them end; the names of those that did not."""
    tasks = sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())  # the set's own order is not repeatable
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=LEAVE_S))
    loop.run_until_complete(loop.shutdown_asyncgens())
    for task in tasks:
        _account(loop, task)
    return [task.get_name() for task in tasks if not task.done()]


def _account(loop: VirtualLoop, task: asyncio.Task[Any]) -> None:
    """Report what a cancelled task raised; one of a killed process (a `GeneratorExit`) has nothing to say."""
    if not task.done():
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # `run` raises for it
    elif not task.cancelled() and not isinstance(task.exception(), GeneratorExit | None):
        loop.call_exception_handler({"message": "unhandled exception while the loop was left",
                                     "exception": task.exception(), "task": task})
