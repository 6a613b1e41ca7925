"""The promises of a `Log`, each as a small coroutine that raises `AssertionError` where it is broken.

A further kind of log is one file and a `Make` for it; there is no pytest in here, so run the checks with anything::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_my_log(check, tmp_path):
        await check(MakeMine(tmp_path))

A log that cannot keep a promise is not a `Log`.  What only some can be *set up* for (another process, an outage) is
named by `lacks`, to be skipped.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol

from lemegeton.codec import Draft, decode, encode
from lemegeton.errors import BusClosed, LemegetonError, LogError, PositionLost
from lemegeton.lane import Lane, chain_of
from lemegeton.logs.base import READ_BYTES, Cursor, Log, read_wait

CHANNEL = "conformance"
WRITERS = 8
WRITES_EACH = 40
PROMPT_S = 1.0
"""How soon a waiting read must see a record: far below its own wait, far above what a busy machine needs."""
SOON_S = 10.0
"""A call that takes longer hangs."""
ODD_NAMES = (
    "a", "A", "a:b", "a/b", "a%2Fb", "a%3Ab", "..", ".", ".hidden", "-", "*", "[a]", "~", " ", "a b", "a.b", "h-a", "é",
    "e\u0301", "名", "\U0001f600", "con", "nul.log", "x" * 256, "x" * 255 + "y", "X" * 256, "é" * 128,
)

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


def _needing(hook: str) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        _needs[check] = hook
        return check

    return register


def lacks(check: Check, make: Make) -> str:
    """The hook that ``check`` needs and ``make`` does not have; empty if it can be run."""
    hook = _needs.get(check, "")
    return hook if hook and not getattr(make, hook) else ""


# ------------------------------------------------------------------------------------------------ tools


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


async def _rejected(call: Awaitable[object], error: type[LemegetonError]) -> LemegetonError:
    try:
        async with asyncio.timeout(SOON_S):
            await call
    except error as caught:
        return caught
    raise AssertionError(f"no {error.__name__} was raised")


# ------------------------------------------------------------------------------------------------ content


async def check_bytes_come_back_as_they_went_in(make: Make) -> None:
    """Empty, null, escaped NUL, any Unicode, deep, 1 MiB less the envelope."""
    log = await make()
    items: list[object] = [None, "", {}, [], "\0\n\r\"\\/", "\u2028\U0001f600", [[[["x"]]]], {"": 0}, 0.1, -(2**53)]
    for item in items:
        given = body(item, f"id-{len(str(item))}")
        position = await log.append(CHANNEL, given, made=False)
        (record,), _ = await drain(log, position.lane, await log.seek(position.lane, position.seq - 1))
        assert record.startswith(given[:-1]), f"{given!r} came back as {record!r}"
        assert decode(record).payload == item
    await log.aclose()


async def check_a_body_at_the_limit_goes_and_one_above_is_refused(make: Make) -> None:
    """Refused is definite: nothing of it is in the log."""
    log = await make()
    position = await log.append(CHANNEL, sized(make.bytes_max))
    error = await _rejected(log.append(CHANNEL, sized(make.bytes_max + 1)), LogError)
    assert error.definite
    following = await log.append(CHANNEL, body("next"))
    assert (following.lane, following.seq) == (position.lane, position.seq + 1)
    first, last = (await everything(log))[position.lane]
    assert sized(make.bytes_max)[1:-1] in first
    assert decode(last).payload == "next"
    await log.aclose()


async def check_odd_channel_names_stay_apart(make: Make) -> None:
    """Every name has its own records and comes back from `channels` as it was given."""
    log = await make()
    for name in ODD_NAMES:
        await log.append(name, body(name))
    reader = await make("reader")
    assert sorted(await reader.channels()) == sorted(ODD_NAMES)
    for name in ODD_NAMES:
        assert await payloads(reader, name) == [name]
    await log.aclose()
    await reader.aclose()


async def check_priorities_have_lanes_of_their_own(make: Make) -> None:
    """One number is enough for a lane only if nothing can overtake in it."""
    log = await make()
    positions = [await log.append(CHANNEL, body(n), n % 4) for n in range(8)]
    assert [position.seq for position in positions] == [1] * 4 + [2] * 4
    assert [position.lane.priority for position in positions] == [0, 1, 2, 3] * 2
    await log.aclose()


# ------------------------------------------------------------------------------------------------ reading


async def check_after_is_exclusive_and_every_place_can_be_sought(make: Make) -> None:
    """Behind record n lies n + 1, for every n up to the end."""
    log = await make()
    lane = await write(log, range(1, 31))
    for after in range(31):
        records, _ = await drain(log, lane, await log.seek(lane, after))
        assert [decode(record).payload for record in records] == list(range(after + 1, 31)), f"behind {after}"
    await log.aclose()


async def check_any_limit_splits_alike(make: Make) -> None:
    """However much is read at a time, the same records come; one larger than the limit comes by itself."""
    log = await make()
    lane = await write(log, ["x" * (n * 37 % 500) for n in range(60)])
    whole, end = await drain(log, lane, await log.seek(lane, 0))
    for limit in (1, 64, 200, 1000, 4096, READ_BYTES):
        assert (await drain(log, lane, await log.seek(lane, 0), limit))[0] == whole, f"limit {limit}"
    assert len(whole) == 60
    assert (await log.read(lane, end)).records in ([], ())
    await log.aclose()


async def check_a_read_can_be_repeated(make: Make) -> None:
    """A read removes and remembers nothing; a cursor works in another log of the storage as well."""
    log, other = await make(), await make("other")
    lane = await write(log, range(10))
    await other.lanes(CHANNEL)
    start = await log.seek(lane, 3)
    first = await drain(log, lane, start)
    assert first == await drain(log, lane, start)
    assert first[0] == (await drain(other, lane, await other.seek(lane, 3)))[0]
    await log.aclose()
    await other.aclose()


async def check_an_empty_read_waits_as_long_as_it_may(make: Make) -> None:
    """It returns nothing, neither early nor much later."""
    log = await make()
    lane = await write(log, ["before"])
    cursor = await log.seek(lane, 1)
    clock = asyncio.get_running_loop().time
    began = clock()
    assert not (await read_wait(log, lane, cursor, 0.2)).records
    assert 0.2 <= clock() - began < 0.2 + PROMPT_S
    assert not (await read_wait(log, lane, cursor, 0.0)).records
    await log.aclose()


async def check_a_waiting_read_wakes_when_a_record_comes(make: Make) -> None:
    """Also when the record begins a new segment."""
    log, reader = await make(), await make("reader")
    lane = await write(log, ["before"])
    await reader.lanes(CHANNEL)
    cursor = await reader.seek(lane, 1)
    for n in range(2, 12):
        waiting = asyncio.create_task(read_wait(reader, lane, cursor, SOON_S))
        await asyncio.sleep(0)
        assert not waiting.done()
        await log.append(CHANNEL, body(n))
        batch = await asyncio.wait_for(waiting, PROMPT_S)
        assert [decode(r).payload for r in batch.records if isinstance(r, bytes)] == [n]
        cursor = batch.cursor
    await log.aclose()
    await reader.aclose()


async def check_a_cancelled_read_does_no_harm(make: Make) -> None:
    """The next one answers as if the first had never been."""
    log = await make()
    lane = await write(log, range(3))
    cursor = await log.seek(lane, 3)
    for _ in range(3):
        waiting = asyncio.create_task(read_wait(log, lane, cursor, SOON_S))
        await asyncio.sleep(0)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
    await log.append(CHANNEL, body("after"))
    (record,), _ = await drain(log, lane, cursor)
    assert decode(record).payload == "after"
    await log.aclose()


# ------------------------------------------------------------------------------------------------ writing


async def check_a_cancelled_append_is_in_or_not(make: Make) -> None:
    """Whole or absent, never twice, wherever it was cancelled; the lane stays without a hole and the next call works."""
    log = await make()
    for turns in range(6):
        tasks = [asyncio.create_task(log.append(CHANNEL, body(f"{turns} {n}"))) for n in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        tasks[1].cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        await log.append(CHANNEL, body(f"{turns} next"))
    found = await payloads(log)
    assert len(found) == len(set(map(str, found))), f"a record came twice: {found}"
    certain = [item for turns in range(6) for item in (f"{turns} 0", f"{turns} 2", f"{turns} next")]
    assert [item for item in found if item in certain] == certain
    await log.aclose()


async def _write_many(log: Log, writer: int, count: int = WRITES_EACH) -> None:
    for n in range(count):
        await log.append(CHANNEL, body([writer, n]))


class _Watch:
    """Reads a channel while others write: what was read once is never preceded by anything new."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._cursors: dict[Lane, Cursor] = {}
        self.read: dict[Lane, list[bytes]] = defaultdict(list)

    async def look(self) -> None:
        for lane in await self._log.lanes(CHANNEL):
            if lane not in self._cursors:
                self._cursors[lane] = await self._log.seek(lane, 0)
            records, self._cursors[lane] = await drain(self._log, lane, self._cursors[lane])
            self.read[lane] += records

    async def until(self, writing: asyncio.Future[Any]) -> None:
        while not writing.done():
            await self.look()
            await asyncio.sleep(0.001)
        await writing
        await self.look()

    async def check(self, writers: int = WRITERS) -> None:
        """None lost, none twice, in each writer's order, and the same as is read afterwards from the beginning."""
        assert dict(self.read) == await everything(self._log), "a record appeared before one that had been read"
        order: dict[int, list[int]] = defaultdict(list)
        for records in self.read.values():
            for record in records:
                writer, n = decode(record).payload
                order[writer].append(n)
        assert order == {writer: list(range(WRITES_EACH)) for writer in range(writers)}


async def check_eight_tasks_of_one_log_lose_nothing(make: Make) -> None:
    """They share its lane, each in its own order."""
    log, reader = await make(), await make("reader")
    watch = _Watch(reader)
    await watch.until(asyncio.gather(*(_write_many(log, writer) for writer in range(WRITERS))))
    await watch.check()
    assert len({chain_of(lane) for lane in watch.read}) == 1
    await log.aclose()
    await reader.aclose()


async def check_eight_logs_lose_nothing(make: Make) -> None:
    """Each has a lane of its own, whatever its name."""
    logs = [await make("same" if n % 2 else f"writer-{n}") for n in range(WRITERS)]
    reader = await make("reader")
    watch = _Watch(reader)
    await watch.until(asyncio.gather(*(_write_many(log, writer) for writer, log in enumerate(logs))))
    await watch.check()
    assert len({chain_of(lane) for lane in watch.read}) == WRITERS
    for log in (*logs, reader):
        await log.aclose()


def _write_in_process(opener: Opener, writer: int) -> None:
    async def run() -> None:
        log = await opener("same")
        await _write_many(log, writer)
        await log.aclose()

    asyncio.run(run())


@_needing("cross_process")
async def check_eight_processes_lose_nothing(make: Make) -> None:
    """As with tasks, with a kernel between them."""
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_write_in_process, args=(make.cross_process, n)) for n in range(WRITERS)]
    reader = await make("reader")
    watch = _Watch(reader)
    for process in processes:
        process.start()
    await watch.until(asyncio.gather(*(asyncio.to_thread(process.join) for process in processes)))
    assert [process.exitcode for process in processes] == [0] * WRITERS
    await watch.check()
    await reader.aclose()


@_needing("outage")
async def check_an_outage_is_an_error_that_says_whether_it_happened(make: Make) -> None:
    """Within bounded time; what is definite is not in the log, what succeeded is, and it works again afterwards."""
    log = await make()
    assert make.outage is not None
    stored, absent = ["before"], []
    await write(log, stored)
    with make.outage():
        for n in range(3):
            error = await _rejected(log.append(CHANNEL, body(f"during {n}")), LogError)
            absent += [f"during {n}"] * error.definite
    await write(log, ["after"])
    found = await payloads(log)
    assert [item for item in found if item in ("before", "after")] == ["before", "after"]
    assert not [item for item in found if item in absent]
    await log.aclose()


# ------------------------------------------------------------------------------------------------ spans and trimming


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
        lost = await _rejected(log.seek(lane, 0), PositionLost)
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


@_needing("reopens")
async def check_reopening_keeps_everything(make: Make) -> None:
    """Every record of every log that ever wrote, in order."""
    for life in range(3):
        log = await make("again")
        await write(log, [[life, n] for n in range(12)])
        await log.aclose()
    reader = await make("reader")
    assert await payloads(reader) == [[life, n] for life in range(3) for n in range(12)]
    await reader.aclose()


@_needing("tear")
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


@_needing("wipe")
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
        await _rejected(again.seek(lane, after), PositionLost)
    assert await payloads(again) == list(range(10))
    await again.aclose()


# ------------------------------------------------------------------------------------------------ end


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
        error = await _rejected(call(), BusClosed)
        assert error.definite


CHECKS: tuple[Check, ...] = tuple(
    check for name, check in list(globals().items()) if name.startswith("check_") and callable(check)
)
