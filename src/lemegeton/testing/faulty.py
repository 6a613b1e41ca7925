"""A log that fails on cue: what a handler, a subscription or a whole bus does then is for a test to see.

::

    log = FaultyLog(MemoryLog())
    log.fail("append", at=3)                      the third append from now raises, and nothing was written
    log.fail("append", after=True)                the next one raises, and the record is in: not definite
    log.delay("read", 0.5)                        the next read takes half a second longer
    log.hang("read")                              the next read never returns; cancel it
    log.outage = True                             everything raises until it is set to False
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from lemegeton.errors import LogError
from lemegeton.lane import Lane
from lemegeton.logs.base import READ_BYTES, Batch, Cursor, Form, Log, Placed, Position, Ring, Span

T = TypeVar("T")
Verb = Literal["append", "channels", "lanes", "span", "of_earlier_boot", "seek", "read", "trim"]


@dataclass(slots=True)
class _Fault:
    """What one call will meet: it waits ``delay_s`` first (None: for ever), then ``error`` comes before or after the
    effect."""

    verb: Verb
    left: int
    delay_s: float | None = 0.0
    error: Exception | None = None
    after: bool = False


class FaultyLog:
    """Wraps any `Log` and keeps its promises but for the calls that were told to fail."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._faults: list[_Fault] = []
        self.outage = False
        self.calls: list[str] = []
        """The verbs that were called, in order."""

    # ------------------------------------------------------------------------------------------ cues

    def fail(self, verb: Verb, at: int = 1, *, times: int = 1, after: bool = False, error: Exception | None = None
             ) -> None:
        """Let the ``at``-th call from now (and ``times`` in all, one after the other) raise; ``after`` the effect it
        is not definite."""
        for n in range(at, at + times):
            cause = error or LogError(f"faulty log: {verb} was told to fail", definite=not after)
            self._faults.append(_Fault(verb, n, error=cause, after=after))

    def delay(self, verb: Verb, delay_s: float, at: int = 1) -> None:
        """Let the ``at``-th call from now take longer, before its effect."""
        self._faults.append(_Fault(verb, at, delay_s=delay_s))

    def hang(self, verb: Verb, at: int = 1) -> None:
        """Let the ``at``-th call from now wait until it is cancelled; it has no effect."""
        self._faults.append(_Fault(verb, at, delay_s=None))

    async def _before(self, verb: Verb) -> list[_Fault]:
        """Count the call; wait and raise what comes before the effect.  Returns what it has met."""
        self.calls.append(verb)
        if self.outage:
            raise LogError(f"faulty log: {verb}: outage")
        for fault in self._faults:
            fault.left -= fault.verb == verb
        met = [fault for fault in self._faults if not fault.left]
        self._faults = [fault for fault in self._faults if fault.left]
        for fault in met:
            if fault.delay_s is None:
                await asyncio.get_running_loop().create_future()
            elif fault.delay_s:
                await asyncio.sleep(fault.delay_s)
            _raise(fault, after=False)
        return met

    # ------------------------------------------------------------------------------------------ the log

    @property
    def rings(self) -> bool:
        """As the log inside."""
        return self._log.rings

    def append_now(self, form: Form, stamp_ms: int, payload: bytes, disk: bool = False) -> Placed:
        return None  # so that every append meets its fault

    async def append(
        self, channel: str, body: bytes, priority: int = 1, *, made: bool = True, disk: bool = False
    ) -> Position:
        met = await self._before("append")
        position = await self._log.append(channel, body, priority, made=made, disk=disk)
        return _after(met, position)

    async def channels(self) -> Sequence[str]:
        met = await self._before("channels")
        return _after(met, await self._log.channels())

    async def lanes(self, channel: str) -> Sequence[Lane]:
        met = await self._before("lanes")
        return _after(met, await self._log.lanes(channel))

    async def span(self, lane: Lane) -> Span:
        met = await self._before("span")
        return _after(met, await self._log.span(lane))

    async def of_earlier_boot(self, lane: Lane) -> bool:
        met = await self._before("of_earlier_boot")
        return _after(met, await self._log.of_earlier_boot(lane))

    async def seek(self, lane: Lane, after: int) -> Cursor:
        met = await self._before("seek")
        return _after(met, await self._log.seek(lane, after))

    async def read(self, lane: Lane, cursor: Cursor, limit: int = READ_BYTES) -> Batch:
        met = await self._before("read")
        return _after(met, await self._log.read(lane, cursor, limit))

    async def trim(self, lane: Lane, through: int) -> None:
        met = await self._before("trim")
        await self._log.trim(lane, through)
        _after(met, None)

    async def ended(self, lane: Lane, later: Lane, settled: int) -> bool:
        """As the log inside."""
        return await self._log.ended(lane, later, settled)

    def is_near(self, lane: Lane) -> bool:
        """As the log inside."""
        return self._log.is_near(lane)

    async def vanished(self, lane: Lane) -> bool:
        """As the log inside."""
        return await self._log.vanished(lane)

    def listen(self, channel: str, ring: Ring) -> Callable[[], None]:
        """As the log inside: a doorbell is only a hint and cannot fail."""
        return self._log.listen(channel, ring)

    def listen_new(self, globs: Sequence[str], ring: Ring) -> Callable[[], None]:
        """As the log inside."""
        return self._log.listen_new(globs, ring)

    async def aclose(self) -> None:
        """Never fails."""
        await self._log.aclose()


def _raise(fault: _Fault, *, after: bool) -> None:
    if fault.error is not None and fault.after is after:
        raise fault.error


def _after(met: list[_Fault], result: T) -> T:
    for fault in met:
        _raise(fault, after=True)
    return result
