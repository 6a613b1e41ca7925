"""Group sync: any number of publishers that asked for ``disk`` share one `fdatasync`.

A sync that fails is never tried again on the same segment: the kernel has marked its pages clean, the next answer
would be a lie.  What it held is appended again elsewhere, and that is synced.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from lemegeton.errors import LogError
from lemegeton.home import sync_directory
from lemegeton.logs.lanes import LaneWriter
from lemegeton.logs.segments import Segment, SegmentFiles
from lemegeton.logs.writer import Writer
from lemegeton.seams import Fs, Runtime

SYNC_TRIES = 3
SYNCS_AT_ONCE = 4


@dataclass(slots=True)
class _Wait:
    writer: LaneWriter
    done: asyncio.Future[None]


class Syncer:
    """Rounds of syncs.  Whoever asks during a round is served by the next: a running sync may have missed him."""

    def __init__(self, runtime: Runtime, files: SegmentFiles, writer: Writer) -> None:
        self._fs: Fs = runtime.fs
        self._blocking = runtime.blocking
        self._files = files
        self._writer = writer
        self._wanted: dict[Segment, list[_Wait]] = {}
        self._task: asyncio.Task[None] | None = None

    async def reach(self, writer: LaneWriter, segment: Segment) -> None:
        """Return when all that was written to the segment is on disk; `LogError`, not definite, when that could not be had.

        Cancelling it leaves the record in the log and the sync to the others."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted.setdefault(segment, []).append(_Wait(writer, done))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._rounds())
        await done

    async def _rounds(self) -> None:
        """Sync until nobody waits; `aclose` waits for it."""
        while self._wanted:
            wanted, self._wanted = self._wanted, {}
            todo = list(_where_they_lie(wanted).items())
            for at in range(0, len(todo), SYNCS_AT_ONCE):
                async with asyncio.TaskGroup() as group:
                    for segment, waits in todo[at : at + SYNCS_AT_ONCE]:
                        group.create_task(self._serve(segment, waits))

    async def _serve(self, segment: Segment, waits: list[_Wait]) -> None:
        try:
            error: OSError | None = None
            for _ in range(SYNC_TRIES):
                if not segment.failed:
                    error = await self._sync(segment)
                    if error is None:
                        return _answer(waits, None)
                    segment.failed = True
                segment.moved = self._writer.reappend(waits[0].writer, segment)
                segment = segment.moved
            _answer(waits, _not_on_disk(segment, error))
        except OSError as error:
            _answer(waits, _not_on_disk(segment, error))

    async def _sync(self, segment: Segment) -> OSError | None:
        """One sync of a segment and, the first time, of the directories that name it."""
        self._files.pin(segment)
        size = segment.size
        try:
            await self._blocking(lambda: self._sync_now(segment))
        except OSError as error:
            return error
        finally:
            self._files.unpin(segment)
        segment.synced = max(segment.synced, size)
        segment.entry_synced = True
        return None

    def _sync_now(self, segment: Segment) -> None:
        self._fs.fdatasync(segment.fd)
        if not segment.entry_synced:
            directory = os.path.dirname(segment.path)
            for path in (directory, os.path.dirname(directory)):
                sync_directory(self._fs, path)

    async def aclose(self) -> None:
        """Finish the syncs that somebody waits for."""
        if self._task is not None:
            await self._task


def _where_they_lie(wanted: dict[Segment, list[_Wait]]) -> dict[Segment, list[_Wait]]:
    """Whoever waits for a segment whose sync failed waits for the one that took its records."""
    found: dict[Segment, list[_Wait]] = {}
    for segment, waits in wanted.items():
        while segment.moved is not None:
            segment = segment.moved
        found.setdefault(segment, []).extend(waits)
    return found


def _answer(waits: list[_Wait], error: LogError | None) -> None:
    for wait in waits:
        if wait.done.done():
            continue
        if error is None:
            wait.done.set_result(None)
        else:
            wait.done.set_exception(error)


def _not_on_disk(segment: Segment, error: OSError | None) -> LogError:
    cause = error.strerror if error is not None else "unknown"
    return LogError(f"file log: sync of {segment.path}: {cause}; the message is kept and still goes", definite=False)
