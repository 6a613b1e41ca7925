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
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import takewhile

from lemegeton.checksum import crc32
from lemegeton.events import IncarnationBegun, Observer, SegmentSealed
from lemegeton.lane import Lane
from lemegeton.logs.base import Batch, Cursor, Form, Position
from lemegeton.logs.lanes import Entry, LaneWriter, answer, records_since
from lemegeton.logs.origin import Origin
from lemegeton.logs.room import Room
from lemegeton.logs.segments import FULL, Segment, SegmentFiles, log_error
from lemegeton.logs.takeover import Takeover, after_text
from lemegeton.seams import Fs

RENEWALS_MAX = 8
"""How many new segments one write may need before it is given up."""
ROTATE_BYTES_MIN = 64 * 1024
"""A segment smaller than this is not worth a new one when room is wanted."""


class Writer:
    """All lanes of one origin.  Every method is one synchronous step."""

    def __init__(
        self, fs: Fs, files: SegmentFiles, origin: Origin, room: Room, observe: Observer, *, segment_bytes: int,
        line_bytes_max: int
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._fs = fs
        self._files = files
        self._origin = origin
        self._room = room
        self._observe = observe
        self._segment_bytes = segment_bytes
        self._takeover = Takeover(fs, files, origin, observe, line_bytes_max)
        self._lanes: dict[tuple[str, int], LaneWriter] = {}
        self._group: dict[LaneWriter, list[Entry]] = {}
        self._last_task: asyncio.Task[object] | None = None
        self.unbroken = 0
        """How many records one task has written since the loop had its turn."""
        self.to_disk: Callable[[LaneWriter, list[Entry]], None] | None = None
        """Takes over written entries whose senders wait for the disk."""
        self.appended: Callable[[Lane], None] | None = None
        """Called with the lane after every write."""
        self._latest: tuple[LaneWriter, Cursor, Cursor, bytes] | None = None
        """What was written last, for whoever is called: from the file it would take 8 µs more."""

    @property
    def origin(self) -> str:
        """The name of the origin."""
        return self._origin.name

    # ------------------------------------------------------------------------------------------ append

    def append_now(self, form: Form, stamp_ms: int, payload: bytes) -> Position | None:
        """`append_alone` of ``form.body % (stamp_ms, payload)``: the usual case written out, without its list and entry."""
        writer: LaneWriter = form.lane or self._lane_of(form)
        # With the loop given it is not looked for: that asks the kernel for the pid, an eighth of a microsecond.
        task = asyncio.current_task(self._loop)
        if task is not self._last_task or self._group:
            self._last_task = task
            return None
        self.unbroken += 1
        segment = writer.segment
        if segment is None or not segment.kept or writer.after or segment.size >= self._segment_bytes:
            return self._append_alone(writer, form.body % (stamp_ms, payload), True, None)
        seq = writer.next
        wire = (writer.blank if writer.form is form else writer.fit(form)) % (seq, stamp_ms, payload, seq)
        line = b"%08x %b\n" % (crc32(wire), wire)
        try:
            written = self._fs.write(segment.fd, line)
        except OSError as error:
            return self._append_alone(writer, form.body % (stamp_ms, payload), True, error)
        if written != len(line):
            return self._append_alone(writer, form.body % (stamp_ms, payload), True, written)
        segment.used = True
        segment.size += written
        self._room.used += written
        writer.next = seq + 1
        if self.appended is not None:
            self._latest = writer, (segment.first, segment.size - written), (segment.first, segment.size), wire
            self.appended(writer.lane)
        return Position(writer.lane, seq)

    def append_alone(self, channel: str, body: bytes, priority: int, made: bool) -> Position | None:
        """Number, frame and write a record in one step; None when it has to go through the group."""
        writer = self._lane(channel, priority)
        task = asyncio.current_task(self._loop)
        if task is not self._last_task or self._group:
            self._last_task = task
            return None
        self.unbroken += 1
        return self._append_alone(writer, body, made, None)

    def _append_alone(self, writer: LaneWriter, body: bytes, made: bool, tried: int | OSError | None) -> Position:
        """Write one record now; ``tried`` is how a first attempt to write exactly this line ended."""
        seq = writer.next
        entry = Entry(made, writer.lane, seq, writer.line(body, seq, made))
        writer.next = seq + 1
        self._room.used += len(entry.line)
        self._put(writer, [entry], tried)
        if entry.error is not None:
            raise entry.error
        if self.appended is not None:
            self.appended(entry.lane)
        return Position(entry.lane, entry.seq)

    def enter(self, channel: str, body: bytes, priority: int, made: bool, disk: bool) -> asyncio.Future[Position]:
        """Number and frame a record and put it into the group of this turn; what to wait for, however far it has to go."""
        writer = self._lane(channel, priority)
        seq = writer.next
        return self._join(writer, Entry(made, writer.lane, seq, writer.line(body, seq, made), disk))

    def enter_form(self, form: Form, stamp_ms: int, payload: bytes, disk: bool) -> asyncio.Future[Position]:
        """`enter` of ``form.body % (stamp_ms, payload)``."""
        writer: LaneWriter = form.lane or self._lane_of(form)
        seq = writer.next
        if writer.after:
            return self.enter(form.channel, form.body % (stamp_ms, payload), form.priority, True, disk)
        wire = (writer.blank if writer.form is form else writer.fit(form)) % (seq, stamp_ms, payload, seq)
        return self._join(writer, Entry(True, writer.lane, seq, b"%08x %b\n" % (crc32(wire), wire), disk))

    def _join(self, writer: LaneWriter, entry: Entry) -> asyncio.Future[Position]:
        writer.next = entry.seq + 1
        self._room.used += len(entry.line)
        self.unbroken = 0
        done: asyncio.Future[Position] = asyncio.Future(loop=self._loop)
        entry.done = done
        group = self._group.get(writer)
        if group is not None:
            group.append(entry)
            return done
        if not self._group:
            self._loop.call_soon(self.flush)
        self._group[writer] = [entry]
        return done

    def flush(self) -> None:
        """Write the group and wake its senders; those who wait for the disk are handed on."""
        group, self._group = self._group, {}
        for writer, entries in group.items():
            self._put(writer, entries)
            if self.appended is not None:
                self.appended(writer.lane)
            for_disk = [entry for entry in entries if entry.disk and entry.error is None]
            if not for_disk:
                answer(entries)
            elif len(for_disk) < len(entries):
                answer([entry for entry in entries if not entry.disk or entry.error is not None])
            if for_disk:
                assert self.to_disk is not None, "there is a syncer where there is a writer"
                self.to_disk(writer, for_disk)

    def latest(self, lane: Lane, cursor: Cursor) -> Batch | None:
        """The record at this cursor, if it is the one that was written last."""
        if self._latest is None or self._latest[1] != cursor or self._latest[0].lane != lane:
            return None
        writer, _, end, wire = self._latest
        segment = writer.segment
        return Batch((wire,), end, segment is None or end != (segment.first, segment.size))

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
        if segment is not None and segment.size >= self._segment_bytes:
            self.check(writer, entries)
            if writer.segment is segment:
                self._files.close(segment)
                writer.segment = None
            segment = writer.segment
        if segment is None:
            self._new_segment(writer, entries)
        else:
            try:
                self._files.ready(segment)
            except FileNotFoundError:
                self._begin_incarnation(writer, entries, "its segment is gone")
        assert writer.segment is not None
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
        writer.after = after_text(writer.lane, writer.next - 1 - len(entries))
        writer.go_on(lane, 1, entries)
        self._observe(IncarnationBegun(lane, cause))

    def _landed(self, writer: LaneWriter, segment: Segment, entries: list[Entry], written: int) -> list[Entry]:
        """The complete lines count.  A short write seals the segment behind its torn end; returns the rest."""
        end = 0
        for done, entry in enumerate(entries):
            end += len(entry.line)
            if end > written:
                self.seal(writer, f"short write of {written} bytes")
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
            self.seal(writer, error.strerror or str(error))
            return entries
        if not tail and error.errno in FULL:
            return entries
        self.seal(writer, error.strerror or str(error))
        # Looked for, not counted: bytes that somebody else put there are no proof that ours are.
        landed = list(takewhile(lambda entry: entry.line in tail, entries))
        for entry in landed:
            entry.segment = segment
            segment.size += len(entry.line)
        return entries[len(landed):]

    def seal(self, writer: LaneWriter, cause: str) -> None:
        """Nothing more is written to its segment: the next record begins another one."""
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

    # ------------------------------------------------------------------------------------------ lanes

    def _lane_of(self, form: Form) -> LaneWriter:
        form.lane = self._lane(form.channel, form.priority)
        return form.lane  # type: ignore[no-any-return]

    def _lane(self, channel: str, priority: int) -> LaneWriter:
        writer = self._lanes.get((channel, priority))
        if writer is None:
            writer = self._lanes[channel, priority] = self._takeover.open_lane(channel, priority)
        return writer

    def begin_again(self, channel: str, priority: int, bodies: Sequence[bytes], cause: str) -> None:
        """A new incarnation of a lane that begins with these records, each with its id; one step.

        Where they cannot be written the lane stays as it was."""
        self.flush()
        writer = self._lane(channel, priority)
        lane, segment, following = writer.lane, writer.segment, writer.next
        checked = writer.checked, writer.checked_size
        entries = [Entry(False, lane, 0, writer.framer.line(body, 0, False)) for body in bodies]
        self._begin_incarnation(writer, entries, cause)
        if entries:
            self._put(writer, entries)
        failed = entries[-1].error if entries else None
        if failed is None:
            if segment is not None:
                self._files.close(segment)
            return
        if writer.segment is not None:
            self._files.close(writer.segment)
        writer.segment, writer.after = segment, b""
        writer.go_on(lane, following, ())
        writer.checked, writer.checked_size = checked
        raise OSError(errno.EIO, f"{lane}: {failed}")

    @property
    def lanes(self) -> list[Lane]:
        """The lanes that were written to."""
        return [writer.lane for writer in self._lanes.values()]

    def last_of(self, lane: Lane) -> int:
        """The last sequence of a lane that is written to; 0 if it is not."""
        writer = self._lanes.get((lane.channel, lane.priority))
        return 0 if writer is None or writer.lane != lane else writer.next - 1

    def segment_of(self, lane: Lane) -> str:
        """The file name of the segment that a lane is written to; empty if it is not."""
        writer = self._lanes.get((lane.channel, lane.priority))
        segment = writer.segment if writer is not None and writer.lane == lane else None
        return "" if segment is None else segment.path.rpartition("/")[2]

    # ------------------------------------------------------------------------------------------ upkeep

    def verify(self) -> None:
        """Find segments that somebody removed or moved away, and write what went into them since into new ones."""
        self.flush()
        for writer in self._lanes.values():
            if writer.next != writer.checked:
                self.check(writer)

    def rotate(self) -> None:
        """Begin new segments, so that what the current ones hold may go once it is settled: the last one never does."""
        self.flush()
        for writer in self._lanes.values():
            if writer.segment is not None and writer.segment.size >= ROTATE_BYTES_MIN:
                self.check(writer)
                if writer.segment is not None:
                    self._files.close(writer.segment)
                    writer.segment = None
                    self._new_segment(writer, [])

    def check(self, writer: LaneWriter, waiting: Sequence[Entry] = ()) -> None:
        """See `verify`; what is ``waiting`` to be written has its numbers behind what is written again."""
        segment = writer.segment
        if segment is None or segment.fd < 0:
            return
        with suppress(FileNotFoundError):
            found = self._fs.fstat(segment.fd)
            if self._fs.lstat(segment.path).st_ino == found.st_ino:
                writer.checked, writer.checked_size = writer.next, segment.size
                if found.st_size != segment.size:
                    self.seal(writer, f"it is {found.st_size} bytes long, {segment.size} were written to it")
                return
        entries = records_since(self._fs, writer, segment)
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
        writer.go_on(lane, following, waiting)
        writer.checked, writer.checked_size = checked
        raise OSError(errno.EIO, f"{segment.path} was removed and cannot be written again: {entries[-1].error}")

    def close(self) -> None:
        """Write what waits, close all segments and let the origin go."""
        self.flush()
        self._files.close_all()
        self._origin.release()
