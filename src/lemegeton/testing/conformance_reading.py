"""What goes in comes back, from wherever it is sought, and a read that waits is woken."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from lemegeton.codec import decode
from lemegeton.errors import LogError
from lemegeton.logs.base import READ_BYTES, read_wait
from lemegeton.testing.conformance_kit import CHANNEL, SOON_S, Make, body, drain, everything, payloads, rejected, sized, write

PROMPT_S = 1.0
"""How soon a waiting read must see a record: far below its own wait, far above what a busy machine needs."""
ODD_NAMES = (
    "a", "A", "a:b", "a/b", "a%2Fb", "a%3Ab", "..", ".", ".hidden", "-", "*", "[a]", "~", " ", "a b", "a.b", "h-a", "é",
    "e\u0301", "名", "\U0001f600", "con", "nul.log", "x" * 256, "x" * 255 + "y", "X" * 256, "é" * 128,
)


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
    error = await rejected(log.append(CHANNEL, sized(make.bytes_max + 1)), LogError)
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
