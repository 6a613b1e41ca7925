"""Many who write at once lose nothing, and an append that fails says whether it happened."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections import defaultdict
from contextlib import suppress
from typing import Any

from lemegeton.codec import decode
from lemegeton.errors import LogError
from lemegeton.lane import Lane, chain_of
from lemegeton.logs.base import Cursor, Log
from lemegeton.testing.conformance_kit import CHANNEL, Make, Opener, body, drain, everything, needing, payloads, rejected, write

WRITERS = 8
WRITES_EACH = 40


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


@needing("cross_process")
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


@needing("outage")
async def check_an_outage_is_an_error_that_says_whether_it_happened(make: Make) -> None:
    """Within bounded time; what is definite is not in the log, what succeeded is, and it works again afterwards."""
    log = await make()
    assert make.outage is not None
    stored, absent = ["before"], []
    await write(log, stored)
    with make.outage():
        for n in range(3):
            error = await rejected(log.append(CHANNEL, body(f"during {n}")), LogError)
            absent += [f"during {n}"] * error.definite
    await write(log, ["after"])
    found = await payloads(log)
    assert [item for item in found if item in ("before", "after")] == ["before", "after"]
    assert not [item for item in found if item in absent]
    await log.aclose()
