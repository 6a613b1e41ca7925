"""A deadline is a timeout whatever else becomes of the task, and a cancellation stays one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lemegeton.within import within

SOURCE = Path(__file__).parent.parent / "src" / "lemegeton"


async def test_what_takes_too_long_is_a_timeout_and_what_does_not_is_nothing() -> None:
    with pytest.raises(TimeoutError):
        async with within(0.0):
            await asyncio.Event().wait()
    async with within(None), within(60.0):
        await asyncio.sleep(0)


async def test_in_a_task_that_is_being_cancelled_it_is_one_as_well() -> None:
    begun, ended = asyncio.Event(), []

    async def work() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            with pytest.raises(TimeoutError):
                async with within(0.0):
                    await asyncio.Event().wait()
            ended.append(True)

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]


@pytest.mark.parametrize("times", [1, 2])
async def test_a_cancellation_before_the_deadline_stays_one(times: int) -> None:
    begun = asyncio.Event()

    async def work() -> None:
        async with within(60.0):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await begun.wait()
    for _ in range(times):
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_every_wait_goes_through_it() -> None:
    users = [path.name for path in SOURCE.rglob("*.py")
             if "testing" not in path.parts and "asyncio.timeout(" in path.read_text()]
    assert users == ["within.py"]
