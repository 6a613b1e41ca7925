"""Checkpoints: where a durable subscription stands, on disk, in a form that SIGKILL cannot tear.

::

    cursors/{subscription}          mapped by its holder, read by everybody
    ├── page 0..3   header          magic, boot id, seen (Unix ms), patterns, each with its checksum
    └── row 0, 1 …  512 bytes each  ┌ valid ┬ settled ┬ intent ┬ length ┬ crc ┬ lane key ┬ since ┬ lives ┐
                                     8       8         8        8        8     456        8       8

``intent`` is stored before the handler is called and ``settled`` after it returned: each is one aligned 8-byte store
into the mapping, so it is in the page cache when the next instruction runs (a `struct.pack_into` would write byte by
byte).  A record with intent but not settled may have been handled: it is delivered again, as redelivered.  A row
becomes valid by its last store; ``since`` and ``lives`` are those of `poison`.  Room is allocated before it is mapped,
because a store into a hole of a full disk is a SIGBUS.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Protocol

import msgspec

from lemegeton.channels import check_pattern, encode_name
from lemegeton.checksum import crc32
from lemegeton.errors import CheckpointFull, InvalidMessage, NameTaken
from lemegeton.home import OWN_FILE, store, sync_directory
from lemegeton.lane import Lane
from lemegeton.seams import Fs

HEADER_BYTES = 4 * 4096
ROW_BYTES = 512
GROW_ROWS = 64
ROWS_MAX = 200_000
_WORDS = ROW_BYTES // 8
_VALID, _SETTLED, _INTENT, _LENGTH, _CRC, _KEY = 0, 1, 2, 3, 4, 5
_KEY_BYTES = ROW_BYTES - 8 * _KEY - 16
_VALID_MARK = 0x4C454D45
LOCK_SUFFIX = ".lock"
IDS_SUFFIX = ".ids"
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Header(msgspec.Struct, frozen=True):
    """Who the subscription is: its name, what it listens to, the boot of its last holder and when it was last seen.

    ``rebooted``: it was there before a boot, and may have handled what it has no marks of."""

    name: str
    patterns: tuple[str, ...]
    boot_id: str
    seen_ms: int
    rebooted: bool = False


class Marks(Protocol):
    """Settled and intent of the lanes of one subscription, by row."""

    cells: memoryview
    """All words; those of a row lie at ``settled_at(row)`` and one behind it."""

    def find(self, lane: Lane) -> int | None: ...
    def add(self, lane: Lane, settled: int) -> int: ...
    def drop(self, lane: Lane) -> None: ...
    def lanes(self) -> Sequence[Lane]: ...
    def close(self) -> None: ...
    def forget(self) -> None: ...


def settled_at(row: int) -> int:
    """The word in ``cells`` that holds the settled sequence of a row; the intent is the word behind it."""
    return row * _WORDS + _SETTLED


def lives_at(row: int) -> int:
    """The word in ``cells`` that counts the processes which had the next record of a row; ``since`` is the one before it."""
    return row * _WORDS + _WORDS - 1


class VolatileMarks:
    """The marks of an ephemeral subscription: the same words, in memory, gone with the process."""

    def __init__(self) -> None:
        self.cells = memoryview(bytearray(GROW_ROWS * ROW_BYTES)).cast("Q")
        self._rows: dict[Lane, int] = {}
        self._free: list[int] = list(range(GROW_ROWS - 1, -1, -1))

    def find(self, lane: Lane) -> int | None:
        return self._rows.get(lane)

    def add(self, lane: Lane, settled: int) -> int:
        if not self._free:
            self._grow()
        row = self._free.pop()
        self.cells[settled_at(row)] = self.cells[settled_at(row) + 1] = settled
        self.cells[lives_at(row)] = 0
        self._rows[lane] = row
        return row

    def _grow(self) -> None:
        rows = len(self.cells) // _WORDS
        bigger = bytearray(2 * rows * ROW_BYTES)
        bigger[: rows * ROW_BYTES] = self.cells.cast("B")
        self.cells = memoryview(bigger).cast("Q")
        self._free = list(range(2 * rows - 1, rows - 1, -1))

    def drop(self, lane: Lane) -> None:
        self._free.append(self._rows.pop(lane))

    def lanes(self) -> Sequence[Lane]:
        return list(self._rows)

    def close(self) -> None:
        self.cells.release()

    def forget(self) -> None:
        self.close()


class Checkpoint:
    """The marks of a durable subscription, held exclusively while open.

    `open` refuses with `NameTaken` while another live process holds the name.  Every store survives SIGKILL of
    everything; after a power cut the file may be older than the log, never newer than what its holder stored.
    """

    def __init__(self, fs: Fs, directory: str, header: Header, *, rows_max: int = ROWS_MAX) -> None:
        self._fs = fs
        self._rows_max = rows_max
        self._path = f"{directory}/{encode_name(header.name)}"
        _header_bytes(header)  # one that does not fit is refused before there is a file
        self._rows: dict[Lane, int] = {}
        self._free: list[int] = []
        self._size = 0
        self._mapped: memoryview | None = None
        self.closed = False
        self.cells = memoryview(b"").cast("Q")
        self._lock = fs.open(self._path + LOCK_SUFFIX, OWN_FILE)
        try:
            if not fs.lock(self._lock):
                raise NameTaken(f"durable subscription {header.name!r}: another live process holds it; stop that one "
                                "or use another name")
            self._fd = fs.open(self._path, OWN_FILE)
        except BaseException:
            fs.close(self._lock)
            raise
        self.new = False
        try:
            self.new = fs.fstat(self._fd).st_size == 0
            self.previous = read_header(fs, self._fd)
            """Who held it before; None for a new one, and for one whose header is damaged."""
            self._load(header, directory)
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """Close; a file that only this call made goes, for records are kept for every checkpoint without a header."""
        if self.new:
            with suppress(OSError):
                self._fs.unlink(self._path)
        self.close()

    def _load(self, header: Header, directory: str) -> None:
        size = self._fs.fstat(self._fd).st_size
        if size < HEADER_BYTES:
            self._allocate(0, HEADER_BYTES)
        # Of the boot before until `Delivery` has flagged what that may have handled; a crash meanwhile changes nothing.
        boot = self.previous.boot_id if self.previous else header.boot_id if self.new else ""
        rebooted = self.previous is not None and self.previous.rebooted
        self.write_header(msgspec.structs.replace(header, boot_id=boot, rebooted=rebooted))
        if size < HEADER_BYTES:
            # After a power cut records are still kept for a subscription that was once made.
            self._fs.fsync(self._fd)
            sync_directory(self._fs, directory)
        rows = max(0, size - HEADER_BYTES) // ROW_BYTES
        if rows:
            self._map(rows)
        for row in range(rows):
            lane = _read_row(self.cells, row)
            if lane is None or lane in self._rows:
                self._free.append(row)
            else:
                self._rows[lane] = row
        self._free.reverse()

    def write_header(self, header: Header) -> None:
        """Store name, patterns, boot and last seen; one write, checked by its sum."""
        store(self._fs, self._fd, _header_bytes(header), 0)

    def _allocate(self, offset: int, length: int) -> None:
        try:
            self._fs.allocate(self._fd, offset, length)
        except OSError as error:
            raise CheckpointFull(f"checkpoint {self._path}: no room for {length} bytes: {error.strerror}; "
                                 "free disk space") from error

    def _map(self, rows: int) -> None:
        mapped = self._fs.map(self._fd, HEADER_BYTES + rows * ROW_BYTES)
        self._unmap()
        self._mapped = mapped
        self.cells = self._mapped[HEADER_BYTES:].cast("Q")
        self._size = rows

    def _unmap(self) -> None:
        self.cells.release()
        if self._mapped is not None:
            self._mapped.release()
            self._mapped = None

    @property
    def ids_path(self) -> str:
        """Where the window of handled ids of this subscription lies."""
        return self._path + IDS_SUFFIX

    def find(self, lane: Lane) -> int | None:
        """The row of a lane, if it has one."""
        return self._rows.get(lane)

    def add(self, lane: Lane, settled: int) -> int:
        """A row for a new lane that begins behind ``settled``; `CheckpointFull` when there is no room for it."""
        key = _row_key(lane)
        if len(key) > _KEY_BYTES:
            raise CheckpointFull(f"checkpoint {self._path}: lane {lane}: {len(key)} bytes, at most {_KEY_BYTES} fit")
        if not self._free:
            self._grow()
        row = self._free.pop()
        _write_row(self.cells, row, key, settled)
        self._rows[lane] = row
        return row

    def _grow(self) -> None:
        rows = self._size
        if rows >= self._rows_max:
            raise CheckpointFull(f"checkpoint {self._path}: {rows} lanes, the limit; drop what is not needed")
        self._allocate(HEADER_BYTES + rows * ROW_BYTES, GROW_ROWS * ROW_BYTES)
        self._map(rows + GROW_ROWS)
        self._free = list(range(rows + GROW_ROWS - 1, rows - 1, -1))

    def drop(self, lane: Lane) -> None:
        """Give the row of a lane that no longer exists back."""
        row = self._rows.pop(lane)
        self.cells[row * _WORDS + _VALID] = 0
        self._free.append(row)

    def lanes(self) -> Sequence[Lane]:
        """The lanes that have a row."""
        return list(self._rows)

    def close(self) -> None:
        """Let the file and the name go; the place stays."""
        if self.closed:
            return
        self.closed = True
        self._unmap()
        self._fs.close(self._fd)
        self._fs.close(self._lock)

    def forget(self) -> None:
        """Drop the place: the next holder of the name begins anew, and records are no longer kept for it."""
        for suffix in ("", IDS_SUFFIX):
            with suppress(FileNotFoundError):
                self._fs.unlink(self._path + suffix)
        self.close()


def _header_bytes(header: Header) -> bytes:
    data = msgspec.json.encode(header)
    if len(data) > HEADER_BYTES - 32:
        raise InvalidMessage(f"durable subscription {header.name!r}: {len(header.patterns)} patterns take "
                             f"{len(data)} bytes, at most {HEADER_BYTES - 32} fit; use globs")
    return b"LEMEGETON1 %08x %08x %b\n" % (crc32(data), len(data), data)


def read_header(fs: Fs, fd: int) -> Header | None:
    """The header of an open checkpoint; None if there is none or its checksum is wrong."""
    data = fs.pread(fd, HEADER_BYTES, 0)
    parts = data[:29].split(b" ")
    if len(parts) != 4 or parts[0] != b"LEMEGETON1":
        return None
    with suppress(ValueError, msgspec.MsgspecError):
        body = data[29 : 29 + int(parts[2], 16)]
        if crc32(body) == int(parts[1], 16):
            header = msgspec.json.decode(body, type=Header)
            for pattern in header.patterns:
                check_pattern(pattern)
            return header
    return None


def _row_key(lane: Lane) -> bytes:
    return "\0".join(map(str, lane)).encode()


def _write_row(cells: memoryview, row: int, key: bytes, settled: int) -> None:
    at = row * _WORDS
    cells[at + _VALID] = 0
    padded = key + bytes(-len(key) % 8)
    for i, word in enumerate(memoryview(padded).cast("Q")):
        cells[at + _KEY + i] = word
    cells[at + _LENGTH] = len(key)
    cells[at + _CRC] = crc32(key)
    cells[at + _SETTLED] = cells[at + _INTENT] = settled
    cells[lives_at(row)] = 0
    cells[at + _VALID] = _VALID_MARK


def _read_row(cells: memoryview, row: int) -> Lane | None:
    at = row * _WORDS
    length = cells[at + _LENGTH]
    if cells[at + _VALID] != _VALID_MARK or not 0 < length <= _KEY_BYTES:
        return None
    key = cells[at + _KEY : at + _KEY + _KEY_BYTES // 8].tobytes()[:length]
    if crc32(key) != cells[at + _CRC]:
        return None
    channel, origin, inc, priority = key.decode().split("\0")
    return Lane(channel, origin, int(inc), int(priority))


class CheckpointView:
    """Somebody else's checkpoint, read without holding it: what a sender must know before it lets a record go."""

    def __init__(self, fs: Fs, path: str) -> None:
        self._fs = fs
        self._fd = fs.open(path, _READ)
        self._settled: dict[Lane, int] = {}
        self.inode = fs.fstat(self._fd).st_ino

    def header(self) -> Header | None:
        """Name, patterns and last seen; None while the file is being made or when it is damaged."""
        return read_header(self._fs, self._fd)

    def begun(self) -> bool:
        """False for a file whose maker was killed before it wrote the header: it never held anything."""
        return bool(self._fs.pread(self._fd, 32, 0).strip(b"\0"))

    def refresh(self) -> None:
        """Look again; `settled` answers from what this found."""
        size = self._fs.fstat(self._fd).st_size
        rows = max(0, size - HEADER_BYTES) // ROW_BYTES
        data = self._fs.pread(self._fd, rows * ROW_BYTES, HEADER_BYTES)
        cells = memoryview(data[: len(data) // ROW_BYTES * ROW_BYTES]).cast("Q")
        self._settled = {
            lane: cells[settled_at(row)]
            for row in range(len(cells) // _WORDS)
            if (lane := _read_row(cells, row)) is not None
        }

    def settled(self, lane: Lane) -> int:
        """The last settled sequence of a lane; 0 when the subscription has not seen it yet."""
        return self._settled.get(lane, 0)

    def all_settled(self) -> dict[Lane, int]:
        """The last settled sequence of every lane."""
        return self._settled

    def close(self) -> None:
        """Let the file go."""
        self._fs.close(self._fd)


def held(fs: Fs, path: str) -> bool:
    """True while a live process holds the checkpoint at ``path``."""
    try:
        fd = fs.open(path + LOCK_SUFFIX, _READ)
    except FileNotFoundError:
        return False
    try:
        return not fs.lock(fd, shared=True)
    finally:
        fs.close(fd)


def forget(fs: Fs, path: str) -> bool:
    """Drop the place of a subscription that nobody holds; false if somebody does."""
    lock = fs.open(path + LOCK_SUFFIX, OWN_FILE, 0o600)
    try:
        if not fs.lock(lock):
            return False
        for suffix in ("", IDS_SUFFIX):
            with suppress(FileNotFoundError):
                fs.unlink(path + suffix)
        return True
    finally:
        fs.close(lock)


def checkpoint_names(fs: Fs, directory: str) -> Iterator[str]:
    """The file names of the checkpoints in a directory."""
    return (name for name in fs.listdir(directory) if "." not in name)

