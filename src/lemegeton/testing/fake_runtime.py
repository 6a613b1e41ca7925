"""`seams.Runtime` of one simulated process: virtual time, seeded randomness, calls that block for a little while."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import TypeVar

from lemegeton.seams import Dial, Heard, Runtime, Wire
from lemegeton.testing.fake_fs import FakeFs, Killed

T = TypeVar("T")

EPOCH_MS = 1_700_000_000_000
"""What the wall clock says at virtual time 0: any day after 2020 will do."""


class FakeClock:
    """The wall clock of one process; `step` moves it as an administrator or NTP would."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None, *, offset_ms: int = 0) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self.offset_ms = offset_ms

    def wall_ms(self) -> int:
        """Unix milliseconds."""
        return EPOCH_MS + self.offset_ms + round(self._loop.time() * 1000)

    def step(self, by_ms: int) -> None:
        """Jump forth or back."""
        self.offset_ms += by_ms


class FakeBlocking:
    """A thread pool in one thread: the call takes effect at some time within the delay, its answer comes at the end.

    As with a real thread, cancelling the wait does not stop the call; killing the process does, and then no answer
    ever comes.
    """

    def __init__(self, fs: FakeFs, rng: Random, delay_s: tuple[float, float]) -> None:
        self._fs = fs
        self._rng = rng
        self.delay_s = delay_s

    def __call__(self, call: Callable[[], T], /) -> Awaitable[T]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        total = self._rng.uniform(*self.delay_s)
        first = total * self._rng.random()
        loop.call_later(first, self._work, call, answer, total - first)
        return answer

    def _work(self, call: Callable[[], T], answer: asyncio.Future[T], rest_s: float) -> None:
        if self._fs.killed:
            return
        loop = asyncio.get_running_loop()
        try:
            result = call()
        except Killed:
            return
        except Exception as error:
            give = partial(answer.set_exception, error)
        else:
            give = partial(answer.set_result, result)
        loop.call_later(rest_s, self._answer, answer, give)

    def _answer(self, answer: asyncio.Future[T], give: Callable[[], None]) -> None:
        if not self._fs.killed and not answer.done():
            give()


def runtime(fs: FakeFs, *, clock: FakeClock | None = None, rng: Random | None = None, machine_id: str = "machine",
            blocking_s: tuple[float, float] = (0.000_05, 0.005), dial: Dial | None = None) -> Runtime:
    """The runtime of one process; call it in the running loop.

    ``blocking_s`` is the least and the most that a blocking call takes.  The boot id is that of the disk now: after a
    power cut a new process needs a new runtime.
    """
    rng = rng or Random(fs.rng.getrandbits(64))
    return Runtime(
        fs=fs,
        wall_ms=(clock or FakeClock()).wall_ms,
        token=lambda size: rng.randbytes(size).hex(),
        blocking=FakeBlocking(fs, rng, blocking_s),
        doorbell=fs.doorbell,
        boot_id=fs.disk.boot_id,
        machine_id=machine_id,
        uid=fs.uid,
        dial=dial or no_redis,
    )


async def no_redis(url: str, heard: Heard | None, lost: Callable[[str], None], /) -> Wire:
    """There is none."""
    raise ConnectionRefusedError(f"redis {url}: there is none")
