"""Deadlines: `asyncio.timeout`, also in a task that is being cancelled.

Whoever is cancelled and leaves in good order waits for this and that with a deadline.  Up to Python 3.11.2 that deadline
came as another cancellation there, and the rest of the leaving was not done: a command that ignores SIGTERM ran on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def within(wait_s: float | None) -> AsyncIterator[None]:
    """`TimeoutError` if the block takes longer than ``wait_s`` seconds; None: it may take as long as it takes."""
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    before = task.cancelling()
    limit = asyncio.timeout(wait_s)
    try:
        async with limit:
            yield
    except asyncio.CancelledError:
        if limit.expired() and task.cancelling() == before:
            raise TimeoutError from None
        raise
