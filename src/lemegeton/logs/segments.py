"""The segment files this origin writes: making, opening again, and how many are open at a time."""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field

from lemegeton.channels import encode_name, is_hashed
from lemegeton.codec import decode
from lemegeton.errors import InvalidMessage
from lemegeton.home import Home, check_file, store
from lemegeton.lane import Lane
from lemegeton.seams import Fs
from lemegeton.segment import SegmentName, parse_line

TAIL_BYTES = 64 * 1024
NAME_FILE = ".name"
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_AGAIN = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(slots=True, eq=False)
class Segment:
    """A segment file.  ``size`` is what was written, ``synced`` how much of that is known to be on disk.

    ``pins`` counts the syncs under way: a pinned segment keeps its descriptor, whatever else is opened meanwhile."""

    path: str
    fd: int
    size: int = 0
    synced: int = 0
    entry_synced: bool = False
    pins: int = 0
    stale: bool = field(default=False)
    """Closed by everybody but a sync under way; the last pin closes the descriptor."""
    failed: bool = False
    """A sync of it failed: another one would answer a success that is none."""
    moved: Segment | None = None
    """Where what a failed sync left unsure lies as well."""


class SegmentFiles:
    """At most ``open_files`` segments are open for writing, the least recently used one gives way."""

    def __init__(self, fs: Fs, home: Home, uid: int, open_files: int) -> None:
        self._fs = fs
        self._home = home
        self._uid = uid
        self._limit = open_files
        self._open: OrderedDict[Segment, None] = OrderedDict()

    def directory(self, channel: str) -> str:
        """The directory of a channel."""
        return f"{self._home.messages}/{encode_name(channel)}"

    def make_directory(self, channel: str) -> str:
        """The directory of a channel, made if it is missing; a hashed name is stored beside, on disk."""
        path = self.directory(channel)
        with suppress(FileExistsError):
            self._fs.mkdir(path, 0o700)
        if is_hashed(encode_name(channel)):
            self._store_name(path, channel.encode())
        return path

    def _store_name(self, path: str, name: bytes) -> None:
        fd = self._fs.open(f"{path}/{NAME_FILE}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if self._fs.pread(fd, len(name) + 1, 0) != name:
                store(self._fs, fd, name, 0)  # everybody writes the same bytes
                self._fs.fsync(fd)
        finally:
            self._fs.close(fd)

    def create(self, lane: Lane, first: int) -> Segment:
        """A new, empty segment; `FileExistsError` if its name is taken."""
        path = f"{self.directory(lane.channel)}/{SegmentName(lane.origin, lane.inc, lane.priority, first)}"
        try:
            fd = self._fs.open(path, _NEW, 0o600)
        except FileNotFoundError:  # the channel's directory was removed under us
            self.make_directory(lane.channel)
            fd = self._fs.open(path, _NEW, 0o600)
        return self._keep(Segment(path, fd))

    def adopt(self, path: str) -> Segment:
        """An existing segment of ours, to go on with."""
        segment = Segment(path, -1)
        self.reopen(segment)
        segment.size = self._fs.fstat(segment.fd).st_size
        return segment

    def reopen(self, segment: Segment) -> None:
        """Open a segment that had to give way."""
        segment.fd = self._fs.open(segment.path, _AGAIN)
        try:
            check_file(self._fs, segment.fd, segment.path, self._uid)
        except BaseException:
            self._fs.close(segment.fd)
            segment.fd = -1
            raise
        self._keep(segment)

    def _keep(self, segment: Segment) -> Segment:
        self._open[segment] = None
        while len(self._open) > self._limit:
            oldest, _ = self._open.popitem(last=False)
            self._let_go(oldest)
        return segment

    def touch(self, segment: Segment) -> None:
        """This segment is in use: it gives way last, also if it had to give way and only a sync keeps it open."""
        segment.stale = False
        self._open.pop(segment, None)
        self._keep(segment)

    def close(self, segment: Segment) -> None:
        """Nothing more is written to this segment."""
        self._open.pop(segment, None)
        self._let_go(segment)

    def _let_go(self, segment: Segment) -> None:
        if segment.pins:
            segment.stale = True
        elif segment.fd >= 0:
            fd, segment.fd = segment.fd, -1
            with suppress(OSError):  # the descriptor is gone all the same, and what matters was synced
                self._fs.close(fd)

    def pin(self, segment: Segment) -> None:
        """Keep the descriptor until `unpin`."""
        if segment.fd < 0:
            self.reopen(segment)
        segment.pins += 1

    def unpin(self, segment: Segment) -> None:
        """A sync is over."""
        segment.pins -= 1
        if segment.stale and not segment.pins:
            segment.stale = False
            self._let_go(segment)

    def close_all(self) -> None:
        """Close every descriptor."""
        for segment in list(self._open):
            self.close(segment)


def last_sequence(fs: Fs, segment: Segment, lane: Lane, line_bytes_max: int) -> int | None:
    """The sequence in the last line of a segment, if that line is whole and right; otherwise None."""
    for size in (min(TAIL_BYTES, segment.size), min(line_bytes_max, segment.size)):
        data = fs.pread(segment.fd, size, segment.size - size)
        if not data.endswith(b"\n"):
            return None
        start = data.rfind(b"\n", 0, -1) + 1
        if start == 0 and size < segment.size:
            continue
        return sequence_of(data[start:-1], lane)
    return None


def sequence_of(line: bytes, lane: Lane) -> int | None:
    """The sequence of a line of this lane; None if it is damaged or of another lane."""
    wire = parse_line(line)
    if wire is None:
        return None
    try:
        message = decode(wire)
    except InvalidMessage:
        return None
    return message.seq if (message.origin, message.inc) == (lane.origin, lane.inc) else None
