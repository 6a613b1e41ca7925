"""What is kept, trimmed, torn, wiped or closed: places are never given twice, and losses are loud."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

from lemegeton.codec import decode
from lemegeton.errors import BusClosed, PositionLost
from lemegeton.lane import Lane
from lemegeton.logs.base import Cursor, Log
from lemegeton.testing.conformance_kit import CHANNEL, Make, body, drain, needing, payloads, rejected, write


async def check_span_brackets_the_log(make: Make) -> None:
    """From its first to its last everything can be read, and nothing lies outside."""
    log, reader = await make(), await make("reader")
    for upto in (1, 2, 17):
        lane = await write(log, range(upto))
        span = await reader.span(lane)
        total = {1: 1, 2: 3, 17: 20}[upto]
        assert (span.first, span.last) == (1, total)
        assert len((await drain(reader, lane, await reader.seek(lane, 0)))[0]) == total
    await log.aclose()
    await reader.aclose()


async def check_trim_is_loud_and_idempotent(make: Make) -> None:
    """It never takes what lies behind; who stands before what was taken is told what is left."""
    log, reader = await make(), await make("reader")
    lane = await write(log, range(1, 41))
    await reader.lanes(CHANNEL)
    start = await reader.seek(lane, 0)
    for through in (0, 20, 20, 10):
        await log.trim(lane, through)
        span = await log.span(lane)
        assert 1 <= span.first <= max(1, 21 if through else 1)
        assert span.last == 40
    records, _ = await drain(log, lane, await log.seek(lane, 20))
    assert [decode(record).payload for record in records] == list(range(21, 41))
    if span.first > 1:
        lost = await rejected(log.seek(lane, 0), PositionLost)
        assert isinstance(lost, PositionLost)
        assert (lost.first, lost.last) == (span.first, 40)
    await _reads_on_or_is_told(reader, lane, start, 1)
    await log.aclose()
    await reader.aclose()


async def _reads_on_or_is_told(log: Log, lane: Lane, cursor: Cursor, following: int) -> None:
    """A cursor from before the trim: the record behind it, or `PositionLost`; never a later one."""
    with suppress(PositionLost):
        while (batch := await log.read(lane, cursor)).records:
            for record in batch.records:
                assert isinstance(record, bytes)
                assert decode(record).seq == following, f"record {following} was skipped without a word"
                following += 1
            cursor = batch.cursor


async def check_positions_are_never_given_twice(make: Make) -> None:
    """Not after everything was trimmed, and not in a log that was opened again."""
    given = set()
    for _ in range(3):
        log = await make("again")
        for n in range(10):
            position = await log.append(CHANNEL, body(n))
            assert position not in given
            given.add(position)
        await log.trim(position.lane, position.seq)
        assert (await log.append(CHANNEL, body("more"))) not in given
        await log.aclose()


@needing("reopens")
async def check_reopening_keeps_everything(make: Make) -> None:
    """Every record of every log that ever wrote, in order."""
    for life in range(3):
        log = await make("again")
        await write(log, [[life, n] for n in range(12)])
        await log.aclose()
    reader = await make("reader")
    assert await payloads(reader) == [[life, n] for life in range(3) for n in range(12)]
    await reader.aclose()


@needing("tear")
async def check_a_torn_tail_is_cut_and_not_raised(make: Make) -> None:
    """Half a record was never acknowledged: it is neither an error nor damage, and the origin goes on."""
    assert make.tear is not None
    log = await make("torn")
    lane = await write(log, range(5))
    await log.aclose()
    make.tear(lane)
    reader = await make("reader")
    assert await payloads(reader) == [0, 1, 2, 3, 4]
    again = await make("torn")
    await write(again, range(5, 9))
    assert await payloads(reader) == list(range(9))
    await again.aclose()
    await reader.aclose()


@needing("wipe")
async def check_a_wiped_log_is_not_taken_for_the_old_one(make: Make) -> None:
    """A place in it is lost, also when there are as many records again."""
    assert make.wipe is not None
    log = await make("wiped")
    lane = await write(log, range(5))
    await log.aclose()
    make.wipe()
    again = await make("wiped")
    await write(again, range(10))
    for after in (0, 3, 5):
        await rejected(again.seek(lane, after), PositionLost)
    assert await payloads(again) == list(range(10))
    await again.aclose()


async def check_closing_twice_is_harmless_and_everything_else_is_refused(make: Make) -> None:
    """`BusClosed` is definite."""
    log = await make()
    lane = await write(log, ["x"])
    cursor = await log.seek(lane, 0)
    await log.aclose()
    await log.aclose()
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: log.append(CHANNEL, body("y")), log.channels, lambda: log.lanes(CHANNEL), lambda: log.span(lane),
        lambda: log.of_earlier_boot(lane), lambda: log.seek(lane, 0), lambda: log.read(lane, cursor), lambda: log.trim(lane, 1),
    ]
    for call in calls:
        error = await rejected(call(), BusClosed)
        assert error.definite
