"""Group sync: any number of publishers that asked for ``disk`` share one `fdatasync`.

A sync that fails is never tried again on the same segment: the kernel has marked its pages clean, the next answer
would be a lie.  What it held is appended again elsewhere, and that is synced.
"""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from lemegeton.errors import LogError
from lemegeton.home import sync_directory
from lemegeton.logs.lanes import Entry, LaneWriter, answer
from lemegeton.logs.segments import Segment, SegmentFiles, sequence_of
from lemegeton.logs.writer import Writer
from lemegeton.seams import Fs, Runtime
from lemegeton.segment import parse_segment_name

SYNC_TRIES = 3
SYNCS_AT_ONCE = 4


@dataclass(slots=True)
class _Wanted:
    """Who waits for a segment, and the lane it belongs to."""

    writer: LaneWriter
    entries: list[Entry]


class Syncer:
    """Rounds of syncs.  Whoever asks during a round is served by the next: a running sync may have missed him."""

    def __init__(self, runtime: Runtime, files: SegmentFiles, writer: Writer) -> None:
        self._fs: Fs = runtime.fs
        self._blocking = runtime.blocking
        self._files = files
        self._writer = writer
        self._wanted: dict[Segment, _Wanted] = {}
        self._task: asyncio.Task[None] | None = None
        writer.to_disk = self.reach

    def reach(self, writer: LaneWriter, entries: list[Entry]) -> None:
        """Wake the senders of written entries when these are on disk; with a `LogError`, not definite, when that could
        not be had."""
        segment = entries[0].segment
        if segment is entries[-1].segment:  # the usual case: segments follow each other
            self._want(segment, writer, entries)
        else:
            for segment, of_segment in groupby(entries, attrgetter("segment")):
                self._want(segment, writer, list(of_segment))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._rounds())

    def _want(self, segment: Segment | None, writer: LaneWriter, entries: list[Entry]) -> None:
        """Whoever waits for a segment whose sync failed waits for the one that took its records."""
        assert segment is not None, "a written record lies in a segment"
        while segment.moved is not None:
            segment = segment.moved
        wanted = self._wanted.get(segment)
        if wanted is None:
            self._wanted[segment] = _Wanted(writer, entries)
        else:
            wanted.entries.extend(entries)

    async def _rounds(self) -> None:
        """Sync until nobody waits; `aclose` waits for it."""
        while self._wanted:
            todo = list(self._take().items())
            if len(todo) == 1:  # the usual case, without a task
                await self._serve(*todo[0])
                continue
            for at in range(0, len(todo), SYNCS_AT_ONCE):
                async with asyncio.TaskGroup() as group:
                    for segment, wanted in todo[at : at + SYNCS_AT_ONCE]:
                        group.create_task(self._serve(segment, wanted))

    def _take(self) -> dict[Segment, _Wanted]:
        """What is to be synced now."""
        taken, self._wanted = self._wanted, {}
        for segment, wanted in taken.items():
            self._want(segment, wanted.writer, wanted.entries)
        taken, self._wanted = self._wanted, {}
        return taken

    async def _serve(self, segment: Segment, wanted: _Wanted) -> None:
        try:
            error: OSError | None = None
            for _ in range(SYNC_TRIES):
                if not segment.failed:
                    error = await self._sync(segment)
                    if error is None:
                        return answer(wanted.entries)
                    segment.failed = True
                segment.moved = self._reappend(wanted.writer, segment)
                segment = segment.moved
            answer(wanted.entries, _not_on_disk(segment, error))
        except OSError as error:
            answer(wanted.entries, _not_on_disk(segment, error))

    def _reappend(self, writer: LaneWriter, failed: Segment) -> Segment:
        """After a failed sync: the unsynced records of a segment again, in another one, under their old numbers.

        Readers skip what they have settled; a reader that finds the old pages gone has them here.  The kernel marks
        pages clean after a failed sync, so syncing the old segment again would answer a success that is none."""
        self._writer.flush()
        if writer.segment is not failed:
            self._writer.check(writer)
        name = parse_segment_name(failed.path.rpartition("/")[2])
        assert name is not None, "a segment has the name that it was made with"
        lane = writer.lane._replace(inc=name.inc)
        data = self._files.unsynced(failed, lane)
        if lane != writer.lane:  # its incarnation is over: that ends in one more segment, and the lane goes on elsewhere
            last = sequence_of(data[:-1].rpartition(b"\n")[2], lane) or 0
            return self._write_again(writer, self._files.create(lane, last + 1), data)
        if writer.segment is failed:
            self._writer.seal(writer, "sync failed")
        elif writer.segment is not None and writer.segment.size:
            # Never behind newer records: whoever looks for the end of a lane takes the last line for it.
            self._files.close(writer.segment)
            writer.segment = None
        if writer.segment is None:
            writer.segment = self._files.create(writer.lane, writer.next)
            writer.checked_size = 0
        return self._write_again(writer, writer.segment, data)

    def _write_again(self, writer: LaneWriter, segment: Segment, data: bytes) -> Segment:
        written = self._fs.write(segment.fd, data)
        segment.size += written
        if written != len(data):
            if writer.segment is segment:
                self._writer.seal(writer, f"short write of {written} bytes")
            raise OSError(errno.ENOSPC, "short write")
        return segment

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


def _not_on_disk(segment: Segment, error: OSError | None) -> LogError:
    cause = error.strerror if error is not None else "unknown"
    return LogError(f"file log: sync of {segment.path}: {cause}; the message is kept and still goes", definite=False)
