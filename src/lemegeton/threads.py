"""Threads for blocking calls: the way there and back is as short as it can be.

An executor of the standard library makes a future with locks of its own for every call and ties it to one of the loop:
25 µs more, of the 600 that 64 messages with ``ack="disk"`` take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")

THREADS_MAX = 8
_Settle = Callable[[asyncio.Future[Any], Any, Exception | None], None]
_Call = tuple[asyncio.Future[Any], Callable[[], Any], _Settle]


class Threads:
    """Runs calls of one event loop; a thread is begun when all others are busy, at most `THREADS_MAX`.

    Cancelling the wait for a call does not end it.  The threads end when nobody holds this any more, and keep no
    process from ending.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._threads = 0
        self._running = 0

    def __call__(self, call: Callable[[], T], /) -> asyncio.Future[T]:
        """Done when the call is, with its result or its error."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._running += 1
        if self._running > self._threads < THREADS_MAX:
            self._threads += 1
            Thread(target=_serve, args=(self._calls,), name="lemegeton blocking", daemon=True).start()
        self._calls.put((done, call, self._settle))
        return done

    def _settle(self, done: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
        self._running -= 1
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def __del__(self) -> None:
        for _ in range(self._threads):
            self._calls.put(None)


def _serve(calls: SimpleQueue[_Call | None]) -> None:
    while (given := calls.get()) is not None:
        done, call, settle = given
        result, error = None, None
        try:
            result = call()
        except Exception as caught:
            error = caught
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            done.get_loop().call_soon_threadsafe(settle, done, result, error)
        del given, done, call, settle, result, error  # while it waits for the next it keeps nothing alive
