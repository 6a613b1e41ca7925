"""Threads for blocking calls: side by side, bounded, and gone with their owner."""

from __future__ import annotations

import asyncio
import gc
import threading
from threading import Event, get_ident

import pytest

from lemegeton.threads import THREADS_MAX, Threads

WAIT_S = 10.0


async def test_calls_run_side_by_side_and_a_free_thread_is_used_again() -> None:
    threads = Threads()
    first = await threads(get_ident)
    assert first != get_ident()
    assert await threads(get_ident) == first
    go = Event()
    waiting = threads(lambda: (go.wait(WAIT_S), get_ident())[1])
    other = await threads(get_ident)  # either of the two may have taken it
    go.set()
    assert await waiting != other


async def test_what_is_too_much_at_once_waits() -> None:
    threads = Threads()
    go = Event()
    waiting = [threads(lambda: (go.wait(WAIT_S), get_ident())[1]) for _ in range(2 * THREADS_MAX)]
    go.set()
    assert 1 < len(set(await asyncio.gather(*waiting))) <= THREADS_MAX


async def test_an_error_comes_to_the_caller_and_the_thread_goes_on() -> None:
    threads = Threads()
    with pytest.raises(ZeroDivisionError):
        await threads(lambda: 1 // 0)
    assert await threads(lambda: 5) == 5


async def test_whoever_is_cancelled_leaves_the_call_running() -> None:
    threads = Threads()
    go, ended = Event(), Event()
    waiting = threads(lambda: (go.wait(WAIT_S), ended.set()))
    waiting.cancel()
    go.set()
    assert await threads(lambda: ended.wait(WAIT_S))
    await asyncio.sleep(0)


def test_the_end_of_a_call_after_that_of_its_loop_disturbs_nobody() -> None:
    threads = Threads()
    go = Event()

    async def begin() -> None:
        threads(lambda: go.wait(WAIT_S))

    asyncio.run(begin())
    go.set()

    async def again() -> int:
        return await threads(lambda: 5)

    assert asyncio.run(again()) == 5


async def test_the_threads_end_with_their_owner() -> None:
    threads = Threads()
    thread = await threads(threading.current_thread)
    del threads
    gc.collect()
    thread.join(WAIT_S)
    assert not thread.is_alive()
