"""What the conformance checks are made of: how a log is set up, what a check may need, how a log is read out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from lemegeton.codec import Draft, decode, encode
from lemegeton.errors import LemegetonError
from lemegeton.lane import Lane
from lemegeton.logs.base import READ_BYTES, Cursor, Log

CHANNEL = "conformance"
SOON_S = 10.0
"""A call that takes longer hangs."""

Opener = Callable[[str], Awaitable[Log]]


class Make(Protocol):
    """Sets up the log under test.  Every instance is a fresh, empty storage; every call one more log over it.

    None says that a hook cannot be had; the checks that need it are then not for this log.
    """

    bytes_max: int
    """The largest body that `append` takes."""
    reopens: bool
    """True if the records outlive every log of this storage."""
    cross_process: Opener | None
    """As calling this instance, and can be pickled: given to a process that is spawned."""
    outage: Callable[[], AbstractContextManager[object]] | None
    """While entered the storage refuses writes."""
    wipe: Callable[[], None] | None
    """Remove every record behind the backs of the logs that are open."""
    tear: Callable[[Lane], None] | None
    """Leave half a record at the end of a lane that nobody has open, as a killed writer does."""

    async def __call__(self, name: str = "conformance") -> Log: ...


Check = Callable[[Make], Awaitable[None]]
_needs: dict[Check, str] = {}


def needing(hook: str) -> Callable[[Check], Check]:
    """Decorates a check that only a `Make` with this hook can be put to."""
    def register(check: Check) -> Check:
        _needs[check] = hook
        return check

    return register


def lacks(check: Check, make: Make) -> str:
    """The hook that ``check`` needs and ``make`` does not have; empty if it can be run."""
    hook = _needs.get(check, "")
    return hook if hook and not getattr(make, hook) else ""


def body(payload: object, ident: str | None = None) -> bytes:
    """What `Log.append` takes."""
    return encode(Draft(1, "custom", "conformance", payload, ident), 1 << 62)


def sized(size: int) -> bytes:
    """A body of exactly this many bytes."""
    return body("x" * (size - len(body(""))))


async def drain(log: Log, lane: Lane, cursor: Cursor, limit: int = READ_BYTES) -> tuple[list[bytes], Cursor]:
    """Every record behind the cursor that is there now, and the cursor behind them; none of them may be damaged."""
    await log.lanes(lane.channel)
    found: list[bytes] = []
    while (batch := await log.read(lane, cursor, limit)).records:
        for record in batch.records:
            assert isinstance(record, bytes), f"{lane}: {record} behind record {len(found)}"
            found.append(record)
        cursor = batch.cursor
    return found, cursor


async def everything(log: Log, channel: str = CHANNEL) -> dict[Lane, list[bytes]]:
    """All records of a channel; each must say where it lies."""
    found: dict[Lane, list[bytes]] = {}
    for lane in await log.lanes(channel):
        span = await log.span(lane)
        records, _ = await drain(log, lane, await log.seek(lane, span.first - 1))
        for seq, record in enumerate(records, span.first):
            message = decode(record)
            assert (message.origin, message.inc, message.seq) == (lane.origin, lane.inc, seq), f"{lane}: not {record!r}"
        found[lane] = records
    return found


async def payloads(log: Log, channel: str = CHANNEL) -> list[object]:
    """What all records of a channel carry, lane after lane."""
    return [decode(record).payload for records in (await everything(log, channel)).values() for record in records]


async def write(log: Log, items: Iterable[object], channel: str = CHANNEL) -> Lane:
    """Append one record an item; returns the lane of the last."""
    position = None
    for item in items:
        position = await log.append(channel, body(item))
    assert position is not None, "write needs an item"
    return position.lane


async def rejected(call: Awaitable[object], error: type[LemegetonError]) -> LemegetonError:
    """The error that ``call`` ends with; `AssertionError` if it ends well or never."""
    try:
        async with asyncio.timeout(SOON_S):
            await call
    except error as caught:
        return caught
    raise AssertionError(f"no {error.__name__} was raised")
