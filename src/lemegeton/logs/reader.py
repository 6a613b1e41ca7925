"""The reader: lanes of any origin, read from the segments of this home.

What it knows of a directory is a *view*, listed anew by `look`.  A reader never moves on an end that it saw before it
knew of a later segment: it reads the earlier one to its end again, and only then drops a torn tail and goes on
(a record may have been written between the two looks).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence

from lemegeton.channels import decode_name, encode_name, is_hashed
from lemegeton.errors import HomeRefused, LogError, PositionLost
from lemegeton.events import Observer, StrayEntry, TailDropped
from lemegeton.home import Home, check_file, is_own_directory
from lemegeton.lane import Lane, chain_of
from lemegeton.logs.base import READ_BYTES, Batch, Cursor, Damage, Span
from lemegeton.logs.segments import NAME_FILE, READ_FLAGS, TAIL_BYTES, sequence_of
from lemegeton.seams import Fs
from lemegeton.segment import SegmentName, parse_line, parse_segment_name

NEWS_BYTES = 16 * 1024
"""Read at first: mostly there is less, and memory for a long read is asked of the kernel and given back each time."""
SCAN_BYTES = 1024 * 1024
TOLD_MAX = 1000
"""How many dropped tails and stray entries are remembered, so that each is reported once."""
_BAD_LINE = Damage("wrong checksum")


class Reader:
    """Reads segments; keeps at most ``open_files`` of them open."""

    def __init__(
        self, fs: Fs, home: Home, uid: int, observe: Observer, *, open_files: int, line_bytes_max: int
    ) -> None:
        self._fs = fs
        self._home = home
        self._uid = uid
        self._observe = observe
        self._limit = open_files
        self._line_bytes_max = line_bytes_max
        self._views: dict[str, dict[Lane, list[int]]] = {}
        self._fds: OrderedDict[tuple[Lane, int], int] = OrderedDict()
        self._told: set[str] = set()

    # ------------------------------------------------------------------------------------------ directories

    def channels(self) -> Sequence[str]:
        """The channels that have a directory.  What else lies there is told once, and keeps nobody from the others."""
        names = (self._channel_at(entry) for entry in sorted(self._fs.listdir(self._home.messages)))
        return [name for name in names if name is not None]

    def _channel_at(self, entry: str) -> str | None:
        channel = self.channel_of(entry)
        if channel is not None and self._views.get(channel):  # it was looked into
            return channel
        path, cause = f"{self._home.messages}/{entry}", ""
        try:
            if not is_own_directory(self._fs, path, self._uid):
                cause = "not a directory of this user"
            elif channel is None and is_hashed(entry):
                # One with nothing else in it is being made: the name is written before the first record.
                unused = set(self._fs.listdir(path)) <= {NAME_FILE}
                cause = "" if unused else f"its file {NAME_FILE} does not say which channel it is"
            elif channel is None:
                cause = "not the encoded name of a channel"
        except FileNotFoundError:
            return None
        self._report_stray(path, cause)
        return None if cause else channel

    def _report_stray(self, path: str, cause: str) -> None:
        if cause and path not in self._told:
            self._told = {path, *list(self._told)[:TOLD_MAX]}
            self._observe(StrayEntry(path, cause))

    def channel_of(self, encoded: str) -> str | None:
        """The channel of a directory name; None for a directory that no channel has."""
        if not is_hashed(encoded):
            return decode_name(encoded)
        try:
            fd = self._open(f"{self._home.messages}/{encoded}/{NAME_FILE}")
        except OSError:
            return None
        try:
            name = self._fs.pread(fd, 4096, 0).decode("utf-8", "replace")
        finally:
            self._fs.close(fd)
        return name if encode_name(name) == encoded else None

    def directory(self, channel: str) -> str:
        """The directory of a channel."""
        return f"{self._home.messages}/{encode_name(channel)}"

    def look(self, channel: str) -> list[str]:
        """List a channel's directory anew; returns the names in it that are not segments."""
        view: dict[Lane, list[int]] = {}
        others: list[str] = []
        directory = self.directory(channel)
        try:
            if not self._views.get(channel) and not is_own_directory(self._fs, directory, self._uid):
                raise LogError(f"file log: {directory} is not a directory of this user; move it away")
            entries = self._fs.listdir(directory)
        except FileNotFoundError:
            entries = []
        for entry in entries:
            name = parse_segment_name(entry)
            if name is None:
                others.append(entry)
            else:
                view.setdefault(Lane(channel, name.origin, name.inc, name.priority), []).append(name.first)
        for firsts in view.values():
            firsts.sort()
        self._views[channel] = view
        return others

    def lanes(self, channel: str) -> list[Lane]:
        """The lanes of the last look."""
        return sorted(self._view(channel))

    def _view(self, channel: str) -> dict[Lane, list[int]]:
        if channel not in self._views:
            self.look(channel)
        return self._views[channel]

    def segments(self, lane: Lane) -> list[int]:
        """The first sequences of the segments of a lane, at the last look."""
        return self._view(lane.channel).get(lane, [])

    def path(self, lane: Lane, first: int) -> str:
        """The path of a segment."""
        return f"{self.directory(lane.channel)}/{SegmentName(lane.origin, lane.inc, lane.priority, first)}"

    def _open(self, path: str) -> int:
        fd = self._fs.open(path, READ_FLAGS)
        try:
            check_file(self._fs, fd, path, self._uid)
        except BaseException:
            self._fs.close(fd)
            raise
        return fd

    def _fd(self, lane: Lane, first: int) -> int:
        key = (lane, first)
        fd = self._fds.get(key)
        if fd is None:
            fd = self._fds[key] = self._open(self.path(lane, first))
            while len(self._fds) > self._limit:
                self._fs.close(self._fds.popitem(last=False)[1])
        else:
            self._fds.move_to_end(key)
        return fd

    def close(self) -> None:
        """Close every descriptor."""
        while self._fds:
            self._fs.close(self._fds.popitem()[1])

    def close_lane(self, lane: Lane, first: int) -> None:
        """This segment is read to its end, or gone."""
        fd = self._fds.pop((lane, first), None)
        if fd is not None:
            self._fs.close(fd)

    # ------------------------------------------------------------------------------------------ reading

    def read(self, lane: Lane, cursor: Cursor, limit: int = READ_BYTES) -> Batch:
        """Records behind the cursor; see `Log.read`."""
        first, offset = cursor
        try:
            while True:
                fd = self._fd(lane, first)
                data = self._fs.pread(fd, min(limit, NEWS_BYTES), offset)
                if len(data) == NEWS_BYTES < limit:
                    data = self._fs.pread(fd, limit, offset)
                end = data.rfind(b"\n")
                if end < 0 and len(data) == limit:
                    data, end = self._long_line(fd, offset)
                if end >= 0:
                    records = [parse_line(line) or _BAD_LINE for line in data[:end].split(b"\n")]
                    more = len(data) >= limit or first not in self._view(lane.channel).get(lane, ())[-1:]
                    return Batch(records, (first, offset + end + 1), more)
                later = self._later(lane, first)
                if later is None:
                    if data and self._superseded(lane):
                        self._report_tail(lane, first, offset, len(data))
                    return Batch((), (first, offset))
                if b"\n" in self._fs.pread(fd, limit, offset):
                    continue
                self._drop_tail(lane, first, offset, len(data))
                first, offset = later, 0
        except FileNotFoundError:
            raise self._lost(lane, first) from None
        except HomeRefused as error:
            raise LogError(str(error)) from error
        except OSError as error:
            raise LogError(f"file log: read of {self.path(lane, first)}: {error.strerror}") from error

    def _long_line(self, fd: int, offset: int) -> tuple[bytes, int]:
        """A line longer than one read; bytes without any newline up to the longest line count as one bad line."""
        data = self._fs.pread(fd, self._line_bytes_max, offset)
        end = data.find(b"\n")
        if end < 0 and len(data) == self._line_bytes_max:
            return data, len(data) - 1
        return data, end

    def _later(self, lane: Lane, first: int) -> int | None:
        firsts = self.segments(lane)
        at = bisect_right(firsts, first)
        return firsts[at] if at < len(firsts) else None

    def _superseded(self, lane: Lane) -> bool:
        """True if its origin went on in a later incarnation, so that nothing is ever added here."""
        return any(chain_of(other) == chain_of(lane) and other.inc > lane.inc for other in self._view(lane.channel))

    def _report_tail(self, lane: Lane, first: int, offset: int, length: int) -> None:
        path = self.path(lane, first)
        if path not in self._told:
            self._told = {path, *list(self._told)[:TOLD_MAX]}
            self._observe(TailDropped(lane, path, offset, length))

    def _drop_tail(self, lane: Lane, first: int, offset: int, length: int) -> None:
        if length:
            self._report_tail(lane, first, offset, length)
        self.close_lane(lane, first)

    def _lost(self, lane: Lane, wanted: int) -> PositionLost:
        span = self.span(lane)
        return PositionLost(f"file log: {lane}: the segment from {wanted} on is gone", first=span.first, last=span.last)

    # ------------------------------------------------------------------------------------------ places

    def span(self, lane: Lane) -> Span:
        """What a lane can supply, looked up in its first and last segments.

        ``last`` is that of a right line: bad ones behind may be damaged records, or bytes that never had a number, and
        the next record may come with a number that counting them has used up."""
        self.look(lane.channel)
        firsts = self.segments(lane)
        if not firsts:
            return Span(1, 0)
        return Span(firsts[0], self._last(lane, count_bad=False))

    def last(self, lane: Lane) -> int:
        """The last sequence that a lane may have had, by its segments at the last look: bad lines at the end count."""
        return self._last(lane, count_bad=True)

    def _last(self, lane: Lane, *, count_bad: bool) -> int:
        """A segment may end below the numbers before it: with what was written again after a failed sync."""
        firsts = self.segments(lane)
        last = firsts[0] - 1
        for first in reversed(firsts):
            try:
                right, bad = self._last_in(lane, first)
            except FileNotFoundError:
                continue
            last = max(last, (right or first - 1) + bad if count_bad and right + bad else right)
            if last >= first - 1:
                break
        return last

    def _last_in(self, lane: Lane, first: int) -> tuple[int, int]:
        """The sequence of the last right line of a segment (0 if it has none), and how many bad lines lie behind."""
        fd = self._fd(lane, first)
        size = self._fs.fstat(fd).st_size
        for tail in (TAIL_BYTES, SCAN_BYTES, self._line_bytes_max, size):
            data = self._fs.pread(fd, min(tail, size), max(0, size - tail))
            lines = data.split(b"\n")[:-1]
            for bad, line in enumerate(reversed(lines if tail >= size else lines[1:])):
                seq = sequence_of(line, lane)
                if seq is not None:
                    return seq, bad
            if tail >= size:
                break
        return 0, len(lines)

    def seek(self, lane: Lane, after: int) -> Cursor:
        """The cursor behind ``after``; `PositionLost` if the record behind it is gone."""
        firsts = self.segments(lane)
        if not firsts or firsts[0] > after + 1:
            self.look(lane.channel)
            firsts = self.segments(lane)
        if not firsts:
            raise PositionLost(f"file log: {lane}: no such lane", first=1, last=0)
        at = bisect_right(firsts, after + 1) - 1
        if at < 0:
            raise self._lost(lane, after + 1)
        try:
            return (firsts[at], self._offset(lane, firsts[at], after + 1))
        except FileNotFoundError:
            raise self._lost(lane, after + 1) from None

    def _offset(self, lane: Lane, first: int, wanted: int) -> int:
        """Where the record ``wanted`` begins in a segment, or would.

        Lines are counted, which a hundred megabytes a second would not notice, and the line found is checked; only
        where that fails (damage, records appended again) every line is looked into.
        """
        fd = self._fd(lane, first)
        offset = self._count_lines(fd, wanted - first)
        seq = sequence_of(self._line_at(fd, offset), lane)
        if seq == wanted or (seq is None and wanted == first):
            return offset
        return self._search(fd, lane, wanted)

    def _line_at(self, fd: int, offset: int) -> bytes:
        """The line that begins at an offset; most are short."""
        line, newline, _ = self._fs.pread(fd, TAIL_BYTES, offset).partition(b"\n")
        return line if newline else self._fs.pread(fd, self._line_bytes_max, offset).partition(b"\n")[0]

    def _count_lines(self, fd: int, lines: int) -> int:
        offset = 0
        while lines > 0:
            data = self._fs.pread(fd, SCAN_BYTES, offset)
            count = data.count(b"\n")
            if count >= lines:
                at = -1
                for _ in range(lines):
                    at = data.index(b"\n", at + 1)
                return offset + at + 1
            if not data:
                break
            lines -= count
            offset += len(data)
        return offset

    def _search(self, fd: int, lane: Lane, wanted: int) -> int:
        """The offset of the first right line at or behind ``wanted``; the end of the last whole line if there is none."""
        offset = 0
        while True:
            data = self._fs.pread(fd, SCAN_BYTES + self._line_bytes_max, offset)
            end = data.rfind(b"\n") + 1
            if not end:
                return offset
            for line in data[:end].split(b"\n")[:-1]:
                seq = sequence_of(line, lane)
                if seq is not None and seq >= wanted:
                    return offset
                offset += len(line) + 1
