"""The segment files this origin writes: making, opening again, and how many are open at a time."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from lemegeton.channels import encode_name, is_hashed
from lemegeton.codec import decode
from lemegeton.errors import DiskFull, InvalidMessage, LogError
from lemegeton.home import Home, check_file, is_own_directory, store, sync_directory
from lemegeton.lane import Lane
from lemegeton.seams import Fs
from lemegeton.segment import SegmentName, parse_line

TAIL_BYTES = 64 * 1024
NAME_FILE = ".name"
FULL = (errno.ENOSPC, errno.EDQUOT)
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_AGAIN = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(slots=True, eq=False)
class Segment:
    """A segment file.  ``size`` is what was written, ``synced`` how much of that is known to be on disk.

    ``pins`` counts the syncs under way: a pinned segment keeps its descriptor, whatever else is opened meanwhile."""

    path: str
    fd: int
    first: int
    size: int = 0
    synced: int = 0
    entry_synced: bool = False
    pins: int = 0
    kept: bool = False
    """Open to be written to.  False: closed, or only a sync under way keeps it open, and the last pin closes it."""
    used: bool = False
    """Written to since it last had to fear to give way."""
    failed: bool = False
    """A sync of it failed: another one would answer a success that is none."""
    moved: Segment | None = None
    """Where what a failed sync left unsure lies as well."""


class SegmentFiles:
    """At most ``open_files`` segments are open for writing; the first opened that was not used since gives way.

    A second chance instead of the order of use: whoever writes sets one flag, and with a thousand channels in turn that
    is a third of the time of moving each segment to the end of a queue at every write."""

    def __init__(self, fs: Fs, home: Home, uid: int, open_files: int) -> None:
        self._fs = fs
        self._home = home
        self._uid = uid
        self._limit = open_files
        self._open: OrderedDict[Segment, None] = OrderedDict()
        self.created: Callable[[str], None] = lambda channel: None
        """Called with the channel of every new segment."""

    def directory(self, channel: str) -> str:
        """The directory of a channel."""
        return f"{self._home.messages}/{encode_name(channel)}"

    def make_directory(self, channel: str) -> str:
        """The directory of a channel, made if it is missing; a hashed name is stored beside."""
        path = self.directory(channel)
        try:
            self._fs.mkdir(path, 0o700)
        except FileExistsError:
            self._check_directory(path)
        if is_hashed(encode_name(channel)):
            self._store_name(path, channel.encode(), on_disk=False)
        return path

    def _check_directory(self, path: str) -> None:
        """Nothing is written through a symbolic link: what it leads to is not in the home.  One that is gone is made anew."""
        with suppress(FileNotFoundError):
            if not is_own_directory(self._fs, path, self._uid):
                raise NotADirectoryError(errno.ENOTDIR, f"{path} is not a directory of this user; move it away")

    def _store_name(self, path: str, name: bytes, *, on_disk: bool) -> None:
        fd = self._fs.open(f"{path}/{NAME_FILE}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if self._fs.pread(fd, len(name) + 1, 0) != name:
                store(self._fs, fd, name, 0)  # everybody writes the same bytes
            if on_disk:
                self._fs.fsync(fd)
        finally:
            self._fs.close(fd)
        if on_disk:
            sync_directory(self._fs, path)

    def create(self, lane: Lane, first: int) -> Segment:
        """A new, empty segment; `FileExistsError` if its name is taken."""
        directory = self.directory(lane.channel)
        path = f"{directory}/{SegmentName(lane.origin, lane.inc, lane.priority, first)}"
        if is_hashed(encode_name(lane.channel)):
            # First, and on disk: what a power cut leaves of the channel would otherwise be found by nobody.
            self._store_name(self.make_directory(lane.channel), lane.channel.encode(), on_disk=True)
        try:
            self._check_directory(directory)
            fd = self._fs.open(path, _NEW, 0o600)
        except FileNotFoundError:  # the channel's directory is not there yet, or was removed under us
            self.make_directory(lane.channel)
            fd = self._fs.open(path, _NEW, 0o600)
        self.created(lane.channel)
        return self._keep(Segment(path, fd, first))

    def adopt(self, path: str, first: int) -> Segment:
        """An existing segment of ours, to go on with."""
        segment = Segment(path, -1, first)
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
        segment.kept = segment.used = True
        while len(self._open) > self._limit:
            oldest, _ = self._open.popitem(last=False)
            if oldest.used:
                oldest.used = False
                self._open[oldest] = None
            else:
                self._let_go(oldest)
        return segment

    def ready(self, segment: Segment) -> None:
        """Have a segment open to be written to, also if it had to give way; `FileNotFoundError` if it is gone."""
        if segment.kept:
            segment.used = True
        elif segment.fd >= 0:
            self._keep(segment)
        else:
            self.reopen(segment)

    def close(self, segment: Segment) -> None:
        """Nothing more is written to this segment."""
        self._open.pop(segment, None)
        self._let_go(segment)

    def _let_go(self, segment: Segment) -> None:
        segment.kept = False
        if not segment.pins and segment.fd >= 0:
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
        if not segment.kept:
            self._let_go(segment)

    def unsynced(self, segment: Segment, lane: Lane) -> bytes:
        """The right lines of a segment that are not known to be on disk."""
        self.pin(segment)
        try:
            size = self._fs.fstat(segment.fd).st_size
            return right_lines(self._fs.pread(segment.fd, max(0, size - segment.synced), segment.synced), lane)
        finally:
            self.unpin(segment)

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


def end_of(fs: Fs, segment: Segment, lane: Lane, first: int) -> int | None:
    """The highest sequence near the end of a segment that begins with ``first``; None if only damage is there."""
    size = min(TAIL_BYTES, segment.size)
    lines = fs.pread(segment.fd, size, segment.size - size).split(b"\n")[:-1]
    found = [seq for line in lines if (seq := sequence_of(line, lane)) is not None]
    return max(found) if found else first - 1 if size == segment.size else None


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


def right_lines(data: bytes, lane: Lane) -> bytes:
    """The whole and right lines of this lane: no torn end, which would swallow the record behind it, and nothing that
    somebody else put there."""
    return b"".join(line + b"\n" for line in data.split(b"\n")[:-1] if sequence_of(line, lane) is not None)


def log_error(what: str, error: OSError) -> LogError:
    """The typed error for a failed file system call; the record is certainly absent."""
    where = f"file log: {what}: {error.strerror or error}"
    if error.errno in FULL:
        return DiskFull(f"{where}; free disk space, then publish again")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return LogError(f"{where}; raise the limit of open files, or lower open_files")
    return LogError(f"{where}; mend the home and publish again")
