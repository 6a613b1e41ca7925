"""The file log: segments under the home, written by their origins and read by everybody of the site."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from itertools import pairwise

from lemegeton.checksum import crc32
from lemegeton.codec import STAMP_BYTES_MAX, head_of
from lemegeton.config import Settings
from lemegeton.errors import BusClosed, LogError
from lemegeton.events import DoorbellLost, LaneStalled, Observer
from lemegeton.home import Home
from lemegeton.lane import Lane, branch_id, made_id
from lemegeton.logs.base import READ_BYTES, Batch, Cursor, Form, Placed, Position, Ring, Span
from lemegeton.logs.dropin import DropIn
from lemegeton.logs.origin import Origin, of_this_boot, take_origin
from lemegeton.logs.reader import Reader
from lemegeton.logs.room import Room
from lemegeton.logs.segments import SegmentFiles, log_error
from lemegeton.logs.sync import Syncer
from lemegeton.logs.writer import Writer
from lemegeton.seams import Doorbell, Runtime
from lemegeton.segment import LINE_OVERHEAD, SUFFIX, Framer, parse_segment_name

YIELD_EVERY = 64
"""A task that never waits gives the loop a turn after this many messages, or nothing else would ever run."""
ORIGIN_POLL_S = 0.02
OPEN_FILES = 256
"""Where nobody has looked how many files the process may open."""


class FileLog:
    """A log in a home directory; see `logs.base.Log` for what it promises.

    Survives SIGKILL of everything as soon as `append` returned, a power cut when it was called with ``disk``.  The
    origin is taken at the first append, so that a reader needs none; ``origin_wait_s`` above 0 waits so long for the
    first origin of the name instead of taking another (a thousand short-lived senders then leave one log).
    """

    def __init__(
        self, runtime: Runtime, home: Home, name: str, settings: Settings, observe: Observer, *,
        origin_wait_s: float = 0.0
    ) -> None:
        line_bytes_max = settings.max_message_bytes + LINE_OVERHEAD
        self._runtime = runtime
        self._home = home
        self._name = name
        self._settings = settings
        self._observe = observe
        self._origin_wait_s = origin_wait_s
        self._reader = Reader(runtime.fs, home, runtime.uid, observe, open_files=settings.open_files or OPEN_FILES,
                              line_bytes_max=line_bytes_max)
        self._line_bytes_max = line_bytes_max
        self._form_bytes_max = settings.max_message_bytes - STAMP_BYTES_MAX
        self._writer: Writer | None = None
        self._syncer: Syncer | None = None
        self._opening = asyncio.Lock()
        self._queued = 0
        self._doorbell: Doorbell | None = None
        self._listeners: dict[str | None, list[Ring]] = {}
        self._dropin = DropIn(runtime, home, settings.max_message_bytes, observe)
        self._closed = False
        self._silent = False
        self._appended: Callable[[Lane], None] | None = None
        self.room = Room(settings.disk_limit, settings.publish_timeout if settings.on_full == "wait" else 0.0, observe)

    def _check_open(self) -> None:
        if self._closed:
            raise BusClosed("file log: used after aclose")

    # ------------------------------------------------------------------------------------------ writing

    def append_now(self, form: Form, stamp_ms: int, payload: bytes, disk: bool = False) -> Placed:
        writer, room = self._writer, self.room
        if (writer is None or writer.unbroken >= YIELD_EVERY or self._queued or room.queued or room.held
                or room.used >= room.limit or self._closed or len(form.body) + len(payload) > self._form_bytes_max):
            return None
        if not disk and (position := writer.append_now(form, stamp_ms, payload)) is not None:
            return position
        return writer.enter_form(form, stamp_ms, payload, disk)

    async def append(
        self, channel: str, body: bytes, priority: int = 1, *, made: bool = True, disk: bool = False
    ) -> Position:
        writer, room = self._writer, self.room
        if writer is not None and writer.unbroken >= YIELD_EVERY:
            writer.unbroken = 0
            await asyncio.sleep(0)
        if writer is None or self._queued or room.queued or room.held or room.used >= room.limit or self._closed:
            writer = await self._admit()
        if len(body) > self._settings.max_message_bytes:
            raise LogError(f"file log: append to {channel}: {len(body)} bytes, at most "
                           f"{self._settings.max_message_bytes} (max_message_bytes) are allowed")
        if not disk and (position := writer.append_alone(channel, body, priority, made)) is not None:
            return position
        return await writer.enter(channel, body, priority, made, disk)

    async def _admit(self) -> Writer:
        """Wait for room and for the origin, in the order of coming."""
        self._check_open()
        if self.room.full:
            await self.room.wait()
            self._check_open()
        if self._writer is None or self._queued:
            return await self._queue_for_writer()
        return self._writer

    async def _queue_for_writer(self) -> Writer:
        """`_open_writer` for publishers: whoever comes while others wait for it stands behind them."""
        self._queued += 1
        try:
            return await self._open_writer()
        finally:
            self._queued -= 1

    async def _open_writer(self) -> Writer:
        async with self._opening:
            if self._writer is None:
                self._check_open()
                try:
                    origin = await self._take_origin()
                except OSError as error:
                    raise log_error("taking an origin", error) from error
                self._start_writer(origin)
            assert self._writer is not None
            return self._writer

    def _start_writer(self, origin: Origin) -> None:
        fs, settings = self._runtime.fs, self._settings
        files = SegmentFiles(fs, self._home, self._runtime.uid, settings.open_files or OPEN_FILES)
        files.created = self._on_created
        self._writer = Writer(fs, files, origin, self.room, self._observe, segment_bytes=settings.segment_bytes,
                              line_bytes_max=self._line_bytes_max)
        self._writer.appended = self._appended
        self._syncer = Syncer(self._runtime, files, self._writer)

    def _on_created(self, channel: str) -> None:
        """Whoever copies what we write has no doorbell for it: a segment is known to the reader before anything is in it."""
        if self._appended is not None:
            self._reader.look(channel)

    async def _take_origin(self) -> Origin:
        deadline = asyncio.get_running_loop().time() + self._origin_wait_s
        while self._origin_wait_s > 0:
            origin = take_origin(self._runtime, self._home, self._name, first_only=True)
            if origin is not None:
                return origin
            if asyncio.get_running_loop().time() >= deadline:
                break
            await asyncio.sleep(ORIGIN_POLL_S)
        origin = take_origin(self._runtime, self._home, self._name)
        assert origin is not None, "without first_only there is an origin or an error"
        return origin

    @property
    def origin(self) -> str | None:
        """The name of the origin this log writes, once it has written."""
        return None if self._writer is None else self._writer.origin

    async def take_origin(self) -> str:
        """The name of the origin, which is taken now if nothing was written yet."""
        return (self._writer or await self._open_writer()).origin

    def own_lanes(self) -> list[Lane]:
        """The lanes this log has written to."""
        return [] if self._writer is None else self._writer.lanes

    def last_of(self, lane: Lane) -> int:
        """The last sequence this log has written to a lane of its own; 0 where it has written none."""
        return 0 if self._writer is None else self._writer.last_of(lane)

    async def begin_again(self, lane: Lane, cause: str, common: int = 0) -> dict[int, Position]:
        """A lane of ours that somebody else grew from the same point goes on in a new incarnation.

        What it still holds is in it again, so that readers drop what they have settled: under its ids up to ``common``,
        the last record of before the fork, and under ids that no other branch has behind it.  Returns where each is now."""
        if self._writer is None or lane not in self._writer.lanes:
            return {}
        bodies: list[bytes] = []
        seqs: list[int] = []
        self._reader.look(lane.channel)
        span = self._reader.span(lane)
        cursor = self._reader.seek(lane, span.first - 1)
        framer = Framer(lane)
        while (batch := self._reader.read(lane, cursor)).records:
            cursor = batch.cursor
            for record in batch.records:
                if isinstance(record, bytes) and (seq := head_of(record).seq):
                    seqs.append(seq)
                    bodies.append(framer.body(record if seq <= common else _on_branch(lane, seq, record), seq))
        try:
            self._writer.begin_again(lane.channel, lane.priority, bodies, cause)
        except OSError as error:
            raise log_error(f"beginning {lane} again", error) from error
        lanes = self._writer.lanes
        if self._appended is not None:
            for own in lanes:
                self._appended(own)
        later = next(own for own in lanes if (own.channel, own.priority) == (lane.channel, lane.priority))
        return {seq: Position(later, again) for again, seq in enumerate(seqs, 1)}

    def tell(self, appended: Callable[[Lane], None]) -> None:
        """Call with the lane after every write."""
        self._appended = appended
        if self._writer is not None:
            self._writer.appended = appended

    def upkeep(self) -> None:
        """Once a second: find out whether somebody removed what is being written to; make room if there is none."""
        if self._writer is not None:
            try:
                self._writer.verify()
                if self.room.full:
                    self._writer.rotate()
            except OSError as error:
                raise log_error("checking segments", error) from error

    # ------------------------------------------------------------------------------------------ reading

    async def channels(self) -> Sequence[str]:
        self._check_open()
        return self._reader.channels()

    async def lanes(self, channel: str) -> Sequence[Lane]:
        self._check_open()
        if channel in self._listeners:
            self._watch(channel)  # again: the directory may be another one than the one that is watched
        others = self._reader.look(channel)
        if self._listeners and not self.room.full and any(self._dropin.wants(name) for name in others):
            await self._take_drop_ins(channel, others)
            self._reader.look(channel)
        return self._reader.lanes(channel)

    async def _take_drop_ins(self, channel: str, names: list[str]) -> None:
        """Publish drop-ins.  Those that cannot be published now wait, and keep nobody from reading: a full disk gets
        room only by reading."""
        try:
            writer = self._writer or await self._open_writer()
            await self._dropin.take(channel, names, writer.origin, self.append)
        except (LogError, OSError) as error:
            self._observe(LaneStalled("(drop-in)", Lane(channel, "", 0, 0), str(error)))

    async def span(self, lane: Lane) -> Span:
        self._check_open()
        return self._reader.span(lane)

    async def of_earlier_boot(self, lane: Lane) -> bool:
        self._check_open()
        return not of_this_boot(self._runtime, self._home, lane.origin, lane.inc)

    async def seek(self, lane: Lane, after: int) -> Cursor:
        self._check_open()
        return self._reader.seek(lane, after)

    async def read(self, lane: Lane, cursor: Cursor, limit: int = READ_BYTES) -> Batch:
        self._check_open()
        if self._writer is not None and (latest := self._writer.latest(lane, cursor)) is not None:
            return latest
        batch = self._reader.read(lane, cursor, limit)
        if not batch.records and self._has_unread_segment(lane):
            self._reader.look(lane.channel)
            batch = self._reader.read(lane, cursor, limit)
        return batch

    def _has_unread_segment(self, lane: Lane) -> bool:
        """True if we write this lane to a segment that the reader does not know of: no doorbell tells us of ourselves."""
        name = parse_segment_name(self._writer.segment_of(lane)) if self._writer is not None else None
        return name is not None and name.first not in self._reader.segments(lane)[-1:]

    async def trim(self, lane: Lane, through: int) -> None:
        """Remove the segments that hold nothing above ``through``; the last one of a lane always stays."""
        self._check_open()
        self._reader.look(lane.channel)
        firsts = self._reader.segments(lane)
        for first, following in pairwise(firsts):
            if following - 1 > through:
                break
            self._remove(lane, first)
        self._reader.look(lane.channel)

    def _remove(self, lane: Lane, first: int) -> None:
        self._reader.close_lane(lane, first)
        with suppress(FileNotFoundError):
            self._runtime.fs.unlink(self._reader.path(lane, first))

    # ------------------------------------------------------------------------------------------ doorbell

    @property
    def rings(self) -> bool:
        """True while doorbells work."""
        return self._doorbell is not None and self._doorbell.working

    async def ended(self, lane: Lane, later: Lane, settled: int) -> bool:
        """True: its writer, and nobody else ever, went on in the later one."""
        return True

    def is_near(self, lane: Lane) -> bool:
        return True

    async def vanished(self, lane: Lane) -> bool:
        return lane not in await self.lanes(lane.channel)

    def listen(self, channel: str, ring: Ring) -> Callable[[], None]:
        return self._listen(channel, ring)

    def listen_new(self, globs: Sequence[str], ring: Ring) -> Callable[[], None]:
        return self._listen(None, ring)

    def _listen(self, channel: str | None, ring: Ring) -> Callable[[], None]:
        self._check_open()
        if self._doorbell is None:
            self._doorbell = self._runtime.doorbell()
        rings = self._listeners.setdefault(channel, [])
        rings.append(ring)
        if len(rings) == 1:
            self._watch(channel)
        return lambda: self._silence(channel, ring)

    def _watch(self, channel: str | None) -> None:
        assert self._doorbell is not None
        if channel is None:
            self._doorbell.watch(self._home.messages, self._on_channel)
        else:
            path = self._reader.directory(channel)
            with suppress(OSError):  # not makeable now: polling finds it when it appears
                SegmentFiles(self._runtime.fs, self._home, self._runtime.uid, 1).make_directory(channel)
            self._doorbell.watch(path, partial(self._on_file, channel))
        if self._silent == self._doorbell.working:
            self._silent = not self._doorbell.working
            if self._silent:
                self._observe(DoorbellLost(self._doorbell.cause))

    def _silence(self, channel: str | None, ring: Ring) -> None:
        rings = self._listeners.get(channel, [])
        if ring in rings:
            rings.remove(ring)
        if not rings and self._listeners.pop(channel, None) is not None and self._doorbell is not None:
            self._doorbell.unwatch(self._home.messages if channel is None else self._reader.directory(channel))

    def _on_channel(self, name: str | None, created: bool) -> None:
        if not created:
            return
        channel = None if name is None else self._reader.channel_of(name)
        for ring in list(self._listeners.get(None, ())):
            ring(channel or "", None)

    def _on_file(self, channel: str, name: str | None, created: bool) -> None:
        lane = None if created or name is None else _lane_of(channel, name)
        if lane is None and name is not None and not created:
            return
        for ring in list(self._listeners.get(channel, ())):
            ring(channel, lane)

    # ------------------------------------------------------------------------------------------ end

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._writer is not None and self._syncer is not None:
            self._writer.flush()
            await self._syncer.aclose()
            self._writer.close()
        if self._doorbell is not None:
            self._doorbell.close()
        self._reader.close()


def _on_branch(lane: Lane, seq: int, record: bytes) -> bytes:
    """A record whose id, if it was made, names its branch as well as its position."""
    made = made_id(lane, seq)
    begin = b'{"id":"%b"' % made.encode()
    if not record.startswith(begin):
        return record
    return b'{"id":"%b"%b' % (branch_id(made, crc32(record)).encode(), record[len(begin):])


@lru_cache(maxsize=4096)
def _lane_of(channel: str, name: str) -> Lane | None:
    found = parse_segment_name(name) if name.endswith(SUFFIX) else None
    return None if found is None else Lane(channel, found.origin, found.inc, found.priority)
