"""The writer: the one that appends to this origin's segments.

Two ways to the same line.  A task that publishes one message after the other writes each at once, in its own step.
As soon as several tasks publish in the same turn of the loop they form a group: numbered and framed at once, written
together, one `write` a lane, when the turn ends.

A segment never shrinks, and what went wrong once is not tried again in the same place: after a short write or a failed
sync the segment is *sealed* and the log goes on in another one, whose name, the next sequence, nobody has used
(`O_EXCL`); when that name is taken, in a new incarnation.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile

from lemegeton.errors import DiskFull, LogError
from lemegeton.events import IncarnationBegun, Observer, SegmentSealed
from lemegeton.lane import Lane
from lemegeton.logs.base import Position
from lemegeton.logs.lanes import Entry, LaneWriter
from lemegeton.logs.origin import Origin
from lemegeton.logs.room import Room
from lemegeton.logs.segments import Segment, SegmentFiles, last_sequence, sequence_of
from lemegeton.seams import Fs
from lemegeton.segment import SegmentName, parse_segment_name

YIELD_EVERY = 64
"""A task that never waits gives the loop a turn after this many messages, or nothing else would ever run."""
RENEWALS_MAX = 8
"""How many new segments one write may need before it is given up."""
ROTATE_BYTES_MIN = 64 * 1024
"""A segment smaller than this is not worth a new one when room is wanted."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Writer:
    """All lanes of one origin.  Every method but `append` is one synchronous step."""

    def __init__(
        self, fs: Fs, files: SegmentFiles, origin: Origin, room: Room, observe: Observer, *, segment_bytes: int,
        line_bytes_max: int
    ) -> None:
        self._fs = fs
        self._files = files
        self._origin = origin
        self._room = room
        self._observe = observe
        self._segment_bytes = segment_bytes
        self._line_bytes_max = line_bytes_max
        self._lanes: dict[tuple[str, int], LaneWriter] = {}
        self._hot: Segment | None = None
        self._inc = 0
        self._group: dict[LaneWriter, list[Entry]] = {}
        self._last_task: asyncio.Task[object] | None = None
        self.unbroken = 0
        """How many records one task has written since the loop had its turn."""

    @property
    def origin(self) -> str:
        """The name of the origin."""
        return self._origin.name

    # ------------------------------------------------------------------------------------------ append

    def append_now(self, channel: str, body: bytes, priority: int, made: bool) -> Position | None:
        """Number, frame and write a record in one step; None when it has to go through the group."""
        writer = self._lanes.get((channel, priority)) or self._open_lane(channel, priority)
        if asyncio.current_task() is not self._last_task or self._group:
            return None
        self.unbroken += 1
        segment = writer.segment
        if segment is None or segment is not self._hot or segment.size >= self._segment_bytes:
            return self._append_alone(writer, body, made, None)
        # The usual case, written out: what `_append_alone` does, without its list and entry (a third of the time).
        seq = writer.next
        line = writer.framer.line(body, seq, made)
        try:
            written = self._fs.write(segment.fd, line)
        except OSError as error:
            return self._append_alone(writer, body, made, error)
        if written != len(line):
            return self._append_alone(writer, body, made, written)
        segment.size += written
        self._room.used += written
        writer.next = seq + 1
        return Position(writer.lane, seq)

    async def append(self, channel: str, body: bytes, priority: int, made: bool) -> Position:
        """Number and frame a record; return when the group of this turn is written."""
        writer = self._lanes.get((channel, priority)) or self._open_lane(channel, priority)
        entry = await self._join_group(writer, body, made)
        return Position(entry.lane, entry.seq)

    async def append_landed(self, channel: str, body: bytes, priority: int, made: bool) -> tuple[LaneWriter, Entry]:
        """`append`, always through the group, for a sender that has to know the segment."""
        writer = self._lanes.get((channel, priority)) or self._open_lane(channel, priority)
        return writer, await self._join_group(writer, body, made)

    def _append_alone(
        self, writer: LaneWriter, body: bytes, made: bool, tried: int | OSError | None
    ) -> Position:
        """Write one record now; ``tried`` is how a first attempt to write exactly this line ended."""
        entry = self._number(writer, body, made)
        self._put(writer, [entry], tried)
        if entry.error is not None:
            raise entry.error
        return Position(entry.lane, entry.seq)

    def _number(self, writer: LaneWriter, body: bytes, made: bool) -> Entry:
        seq = writer.next
        entry = Entry(body, made, writer.lane, seq, writer.framer.line(body, seq, made))
        writer.next = seq + 1
        self._room.used += len(entry.line)
        return entry

    async def _join_group(self, writer: LaneWriter, body: bytes, made: bool) -> Entry:
        """Number a record and wait until the group of this turn is written."""
        self._last_task = asyncio.current_task()
        self.unbroken = 0
        loop = asyncio.get_running_loop()
        entry = self._number(writer, body, made)
        entry.done = loop.create_future()
        if not self._group:
            loop.call_soon(self.flush)
        self._group.setdefault(writer, []).append(entry)
        await entry.done
        if entry.error is not None:
            raise entry.error
        return entry

    def flush(self) -> None:
        """Write the group and wake its senders."""
        group, self._group = self._group, {}
        for writer, entries in group.items():
            self._put(writer, entries)
            for entry in entries:
                if entry.done is not None and not entry.done.done():
                    entry.done.set_result(None)

    # ------------------------------------------------------------------------------------------ write

    def _put(self, writer: LaneWriter, entries: list[Entry], tried: int | OSError | None = None) -> None:
        """Write the entries in order.  Those that cannot be written get an error, and the next record their number."""
        for _ in range(RENEWALS_MAX):
            written = self._try(writer, entries) if tried is None else tried
            tried = None
            if isinstance(written, OSError):
                return self._give_up(writer, self._after_error(writer, entries, written), written)
            segment = writer.segment
            assert segment is not None, "what was written was written somewhere"
            segment.size += written
            entries = self._landed(writer, segment, entries, written)
            if not entries:
                return None
        return self._give_up(writer, entries, OSError(errno.EIO, f"{RENEWALS_MAX} short writes one after the other"))

    def _try(self, writer: LaneWriter, entries: list[Entry]) -> int | OSError:
        try:
            segment = self._ready(writer, entries)
            return self._fs.write(segment.fd, b"".join([entry.line for entry in entries]))
        except OSError as error:
            return error

    def _ready(self, writer: LaneWriter, entries: list[Entry]) -> Segment:
        """The open segment that the first entry goes into."""
        segment = writer.segment
        if (segment is not None and segment is self._hot and segment.fd >= 0 and not segment.stale
                and segment.size < self._segment_bytes):
            return segment
        if segment is not None and segment.size >= self._segment_bytes:
            self._check(writer, entries)
            if writer.segment is segment:
                self._files.close(segment)
                writer.segment = None
            segment = writer.segment
        if segment is not None and segment.fd < 0:
            with suppress(FileNotFoundError):
                self._files.reopen(segment)
                self._hot = segment
                return segment
            self._begin_incarnation(writer, entries, "its segment is gone")
        elif segment is None:
            self._new_segment(writer, entries)
        assert writer.segment is not None
        self._files.touch(writer.segment)
        self._hot = writer.segment
        return writer.segment

    def _new_segment(self, writer: LaneWriter, entries: list[Entry]) -> None:
        first = entries[0].seq if entries else writer.next
        try:
            writer.segment = self._files.create(writer.lane, first)
            writer.checked, writer.checked_size = first, 0
        except FileExistsError:
            self._begin_incarnation(writer, entries, f"the segment name for {first} is taken")

    def _begin_incarnation(self, writer: LaneWriter, entries: list[Entry], cause: str) -> None:
        """Count from 1 again, where nobody has counted before; the entries are numbered anew."""
        lane = writer.lane
        for _ in range(RENEWALS_MAX):
            lane = lane._replace(inc=self._origin.fresh(lane.inc))
            with suppress(FileExistsError):
                writer.segment = self._files.create(lane, 1)
                break
        else:
            raise FileExistsError(errno.EEXIST, f"{RENEWALS_MAX} incarnations are taken already")
        self._go_on(writer, lane, 1, entries)
        self._observe(IncarnationBegun(lane, cause))

    @staticmethod
    def _go_on(writer: LaneWriter, lane: Lane, first: int, entries: Sequence[Entry]) -> None:
        """Number the entries from ``first`` on in this lane, and what comes after them behind."""
        writer.begin(lane, first + len(entries))
        writer.checked = first
        for seq, entry in enumerate(entries, first):
            entry.lane, entry.seq = lane, seq
            entry.line = writer.framer.line(entry.body, seq, entry.made)

    def _landed(self, writer: LaneWriter, segment: Segment, entries: list[Entry], written: int) -> list[Entry]:
        """The complete lines count.  A short write seals the segment behind its torn end; returns the rest."""
        end = 0
        for done, entry in enumerate(entries):
            end += len(entry.line)
            if end > written:
                self._seal(writer, f"short write of {written} bytes")
                return entries[done:]
            entry.segment = segment
        return []

    def _after_error(self, writer: LaneWriter, entries: list[Entry], error: OSError) -> list[Entry]:
        """What of the entries is not in the log after a failed call."""
        segment = writer.segment
        if segment is None or segment.fd < 0:
            return entries
        try:
            tail = self._fs.pread(segment.fd, self._fs.fstat(segment.fd).st_size - segment.size, segment.size)
        except (OSError, ValueError):  # shorter than what was written to it
            self._seal(writer, error.strerror or str(error))
            return entries
        if not tail and error.errno in _FULL:
            return entries
        self._seal(writer, error.strerror or str(error))
        # Looked for, not counted: bytes that somebody else put there are no proof that ours are.
        landed = list(takewhile(lambda entry: entry.line in tail, entries))
        for entry in landed:
            entry.segment = segment
            segment.size += len(entry.line)
        return entries[len(landed):]

    def _seal(self, writer: LaneWriter, cause: str) -> None:
        segment = writer.segment
        assert segment is not None
        self._observe(SegmentSealed(writer.lane, segment.path, cause))
        self._files.close(segment)
        writer.segment = None

    def _give_up(self, writer: LaneWriter, entries: list[Entry], error: OSError) -> None:
        if entries:
            writer.next = entries[0].seq
        for entry in entries:
            self._room.used -= len(entry.line)
            entry.error = log_error(f"append to {writer.lane.channel}", error)

    # ------------------------------------------------------------------------------------------ takeover

    def _open_lane(self, channel: str, priority: int) -> LaneWriter:
        """Go on where the last owner of this origin stopped, if its end can be trusted; else a new incarnation."""
        try:
            directory = self._files.make_directory(channel)
            names = map(parse_segment_name, self._fs.listdir(directory))
            ours = [n for n in names if n is not None and n.origin == self.origin and n.priority == priority]
            last = max(ours, key=lambda n: (n.inc, n.first), default=None)
            writer = self._continue(channel, last) if last else None
            if writer is None:
                above = last.inc if last else 0
                if self._inc <= above:
                    self._inc = self._origin.fresh(above)
                writer = LaneWriter(Lane(channel, self.origin, self._inc, priority), 1, None)
                if last:
                    self._observe(IncarnationBegun(writer.lane, f"{last} was not continued: other boot or torn end"))
        except OSError as error:
            if isinstance(error, LogError):
                raise
            raise log_error(f"append to {channel}", error) from error
        self._lanes[channel, priority] = writer
        return writer

    def _continue(self, channel: str, last: SegmentName) -> LaneWriter | None:
        if not self._origin.continuable(last.inc):
            return None
        segment = self._files.adopt(f"{self._files.directory(channel)}/{last}")
        lane = Lane(channel, last.origin, last.inc, last.priority)
        seq = last_sequence(self._fs, segment, lane, self._line_bytes_max)
        if seq is None:
            self._files.close(segment)
            return None
        return LaneWriter(lane, seq + 1, segment)

    # ------------------------------------------------------------------------------------------ upkeep

    def verify(self) -> None:
        """Find segments that somebody removed or moved away, and write what went into them since into new ones."""
        self.flush()
        for writer in self._lanes.values():
            if writer.next != writer.checked:
                self._check(writer)

    def rotate(self) -> None:
        """Begin new segments, so that what the current ones hold may go once it is settled: the last one never does."""
        self.flush()
        for writer in self._lanes.values():
            if writer.segment is not None and writer.segment.size >= ROTATE_BYTES_MIN:
                self._check(writer)
                if writer.segment is not None:
                    self._files.close(writer.segment)
                    writer.segment = None
                    self._new_segment(writer, [])

    def _check(self, writer: LaneWriter, waiting: Sequence[Entry] = ()) -> None:
        """See `verify`; what is ``waiting`` to be written has its numbers behind what is written again."""
        segment = writer.segment
        if segment is None or segment.fd < 0:
            return
        with suppress(FileNotFoundError):
            found = self._fs.fstat(segment.fd)
            if self._fs.lstat(segment.path).st_ino == found.st_ino:
                writer.checked, writer.checked_size = writer.next, segment.size
                if found.st_size != segment.size:
                    self._seal(writer, f"it is {found.st_size} bytes long, {segment.size} were written to it")
                return
        entries = self._records_since(writer, segment)
        lane, following = writer.lane, writer.next - len(waiting)
        checked = writer.checked, writer.checked_size
        self._begin_incarnation(writer, [*entries, *waiting], f"{segment.path} was removed")
        if entries:
            self._put(writer, entries)
        if not entries or entries[-1].error is None:
            self._files.close(segment)
            return
        # They were acknowledged: as long as the removed file is open they are not lost, and the next check tries again.
        if writer.segment is not None:
            self._files.close(writer.segment)
        writer.segment = segment
        self._go_on(writer, lane, following, waiting)
        writer.checked, writer.checked_size = checked
        raise OSError(errno.EIO, f"{segment.path} was removed and cannot be written again: {entries[-1].error}")

    def _records_since(self, writer: LaneWriter, segment: Segment) -> list[Entry]:
        """The records since the last check, read from the descriptor: a removed file lives as long as that is open."""
        data = self._fs.pread(segment.fd, segment.size - writer.checked_size, writer.checked_size)
        entries: list[Entry] = []
        for line in data.split(b"\n")[:-1]:
            seq = sequence_of(line, writer.lane)  # not counted: lines may be damaged, or be there a second time
            if seq is not None and seq >= writer.checked:
                entries.append(Entry(writer.framer.body(line[9:], seq), False, writer.lane, seq, b""))
        return entries

    def reappend(self, writer: LaneWriter, failed: Segment) -> Segment:
        """After a failed sync: the unsynced records of a segment again, in another one, under their old numbers.

        Readers skip what they have settled; a reader that finds the old pages gone has them here.  The kernel marks
        pages clean after a failed sync, so syncing the old segment again would answer a success that is none."""
        self.flush()
        self._files.pin(failed)
        try:
            data = self._fs.pread(failed.fd, failed.size - failed.synced, failed.synced)
        finally:
            self._files.unpin(failed)
        if writer.segment is failed:
            self._seal(writer, "sync failed")
        if writer.segment is None:
            writer.segment = self._files.create(writer.lane, writer.next)
            writer.checked_size = 0
        segment = writer.segment
        written = self._fs.write(segment.fd, data)
        segment.size += written
        if written != len(data):
            self._seal(writer, f"short write of {written} bytes")
            raise OSError(errno.ENOSPC, "short write")
        return segment

    def close(self) -> None:
        """Write what waits, close all segments and let the origin go."""
        self.flush()
        self._files.close_all()
        self._origin.release()


def log_error(what: str, error: OSError) -> LogError:
    """The typed error for a failed file system call; the record is certainly absent."""
    where = f"file log: {what}: {error.strerror or error}"
    if error.errno in _FULL:
        return DiskFull(f"{where}; free disk space, then publish again")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return LogError(f"{where}; raise the limit of open files, or lower open_files")
    return LogError(f"{where}; mend the home and publish again")
