"""Virtual time: nothing sleeps, nothing hangs, every run is the same."""

from __future__ import annotations

import asyncio
import gc
import os
import time
import warnings

import pytest

from lemegeton.testing.virtual_loop import Stuck, VirtualLoop, run


async def _now() -> float:
    return asyncio.get_running_loop().time()


def test_an_hour_passes_in_no_time():
    began = time.perf_counter()

    async def sleep() -> float:
        await asyncio.sleep(3600)
        return await _now()

    assert run(sleep()) == pytest.approx(3600)
    assert time.perf_counter() - began < 1


def test_the_clock_begins_where_it_is_told_and_stands_still_between_timers():
    async def look() -> tuple[float, float]:
        first = await _now()
        for _ in range(100):
            await asyncio.sleep(0)
        return first, await _now()

    assert run(look(), start=50.0) == (50.0, 50.0)


def test_a_timer_more_than_a_day_ahead_is_reached():
    async def sleep() -> float:
        await asyncio.sleep(40 * 86400)
        return await _now()

    assert run(sleep()) == pytest.approx(40 * 86400)


def test_timers_fire_in_order_and_never_early():
    fired: list[tuple[int, float, float]] = []

    async def wait(number: int, delay: float) -> None:
        await asyncio.sleep(delay)
        fired.append((number, delay, await _now()))

    async def main() -> None:
        await asyncio.gather(*(wait(n, (n * 7919 % 1000) / 1000) for n in range(1000)))

    run(main())
    assert [delay for _, delay, _ in fired] == sorted(n / 1000 for n in range(1000))
    assert all(now >= delay - 1e-9 for _, delay, now in fired)


def test_timeouts_work_in_virtual_time():
    async def main() -> float:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 5.0)
        return await _now()

    assert run(main()) == pytest.approx(5.0)


def test_waiting_for_nothing_is_an_error_and_not_a_hang():
    async def main() -> None:
        await asyncio.Event().wait()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Stuck, match="no timer is set at 0"):
            run(main())
        gc.collect()


def test_tasks_left_over_are_cancelled_and_their_clean_up_runs():
    ended: list[str] = []

    async def background(name: str) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(1)
            ended.append(name)

    async def main() -> str:
        tasks = [asyncio.create_task(background(name), name=name) for name in ("b", "a")]
        await asyncio.sleep(0.1)
        assert len(tasks) == 2
        return "done"

    assert run(main()) == "done"
    assert ended == ["a", "b"]


def test_a_task_that_ignores_cancellation_is_named():
    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                continue

    tasks: list[asyncio.Task[None]] = []

    async def main() -> None:
        tasks.append(asyncio.create_task(stubborn(), name="mule"))
        await asyncio.sleep(0)

    with pytest.raises(Stuck, match="mule"):
        run(main())
    tasks[0].get_coro().close()


def test_the_error_of_the_main_task_comes_out_and_the_loop_is_closed():
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        raise KeyError("x")

    with pytest.raises(KeyError):
        run(main())
    assert loops[0].is_closed()


def test_an_error_of_a_task_left_over_is_reported():
    reports: list[str] = []

    async def background() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            raise ValueError("in the clean-up")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(str(context["exception"])))
        task = asyncio.create_task(background())
        await asyncio.sleep(0)
        assert not task.done()

    run(main())
    assert reports == ["in the clean-up"]


def test_threads_and_descriptors_are_refused():
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(NotImplementedError):
            await asyncio.to_thread(time.monotonic)
        with pytest.raises(NotImplementedError):
            loop.add_reader(0, print)
        assert not loop.get_debug()

    run(main())


def test_call_soon_threadsafe_and_async_generators_work():
    closed: list[bool] = []

    async def numbers():
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    async def main() -> int:
        event = asyncio.Event()
        for _ in range(200_000 // 1000):
            asyncio.get_running_loop().call_soon_threadsafe(event.set)
        await event.wait()
        source = numbers()
        main.source = source  # type: ignore[attr-defined]  # still referenced when the loop is left
        return await anext(source)

    assert run(main()) == 1
    assert closed == [True]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors")
def test_a_loop_needs_no_descriptors():
    before = len(os.listdir("/proc/self/fd"))
    loops = [VirtualLoop() for _ in range(100)]
    assert len(os.listdir("/proc/self/fd")) == before
    for loop in loops:
        loop.close()
        loop.close()


def test_a_hundred_thousand_turns_take_less_than_two_seconds():
    async def spin() -> None:
        for _ in range(100_000):
            await asyncio.sleep(0)

    began = time.perf_counter()
    run(spin())
    assert time.perf_counter() - began < 2
