"""What a simulated disk is made of: inodes with a page cache apart from what lies on the disk.

::

    data    what every process reads and writes   (page cache)
    image   what survives a power cut             (disk)
    dirty   pages of ``data`` that no fsync has brought to ``image`` yet

A mapped file keeps its data in one large reserved region: growing it moves nothing, so views stay valid, and pages that
were never touched cost nothing.
"""

from __future__ import annotations

import mmap
import stat
from random import Random
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lemegeton.testing.fake_doorbell import FakeDoorbell

Damage = Literal["flip", "zero", "garbage", "duplicate", "truncate"]
DAMAGES: tuple[Damage, ...] = ("flip", "zero", "garbage", "duplicate", "truncate")

PAGE = 4096
SECTOR = 512
WORD = 8
RESERVED_BYTES = 256 * 1024 * 1024
"""The limit of a mapped file: address space only, the kernel gives a page when it is first stored to."""


class OpenFile:
    """One open file description: what `flock` belongs to."""

    __slots__ = ("append", "inode", "position", "readable", "writable")

    def __init__(self, inode: Inode, *, readable: bool, writable: bool, append: bool) -> None:
        self.inode = inode
        self.readable = readable
        self.writable = writable
        self.append = append
        self.position = 0


class Inode:
    """What every kind of file has; by itself a FIFO."""

    __slots__ = ("exclusive", "mode", "mtime", "name", "nlink", "number", "opens", "parent", "place", "shared", "uid")

    def __init__(self, number: int, mode: int, uid: int, mtime: float) -> None:
        self.number = number
        self.mode = mode
        self.uid = uid
        self.mtime = mtime
        self.nlink = 0
        self.opens = 0
        self.parent: Directory | None = None
        self.name = ""
        self.place: tuple[Directory, str] | None = None
        """Its entry on the disk, where ``parent`` and ``name`` are that of the page cache."""
        self.exclusive: OpenFile | None = None
        self.shared: list[OpenFile] = []

    def lock(self, holder: OpenFile, shared: bool) -> bool:
        """`flock` without waiting.  A conversion first lets the old lock go, as Linux does, also when it then fails."""
        if (holder in self.shared) if shared else (self.exclusive is holder):
            return True
        self.unlock(holder)
        if self.exclusive is not None or (self.shared and not shared):
            return False
        if shared:
            self.shared.append(holder)
        else:
            self.exclusive = holder
        return True

    def unlock(self, holder: OpenFile) -> None:
        if self.exclusive is holder:
            self.exclusive = None
        elif holder in self.shared:
            self.shared.remove(holder)

    def restart(self) -> None:
        """Forget what only a running kernel knows."""
        self.opens = self.nlink = 0
        self.exclusive = None
        self.shared = []

    @property
    def size(self) -> int:
        return 0


class Symlink(Inode):
    """A symbolic link that a test planted."""

    __slots__ = ("target",)

    def __init__(self, number: int, uid: int, mtime: float, target: str) -> None:
        super().__init__(number, stat.S_IFLNK | 0o777, uid, mtime)
        self.target = target

    @property
    def size(self) -> int:
        return len(self.target.encode())


class Directory(Inode):
    """Entries in the page cache and entries on the disk."""

    __slots__ = ("entries", "image", "watchers")

    def __init__(self, number: int, mode: int, uid: int, mtime: float) -> None:
        super().__init__(number, stat.S_IFDIR | mode, uid, mtime)
        self.entries: dict[str, Inode] = {}
        self.image: dict[str, Inode] = {}
        self.watchers: list[FakeDoorbell] = []

    def restart(self) -> None:
        super().restart()
        self.entries = dict(self.image)
        self.watchers = []

    @property
    def size(self) -> int:
        return PAGE


class File(Inode):
    """A regular file."""

    __slots__ = ("_clean", "_dirty", "_length", "_low", "data", "image")

    def __init__(self, number: int, mode: int, uid: int, mtime: float) -> None:
        super().__init__(number, stat.S_IFREG | mode, uid, mtime)
        self.data: bytearray | mmap.mmap = bytearray()
        self.image = bytearray()
        self._length = 0
        self._dirty: set[int] = set()
        self._low = 0
        """The shortest it has been since it was synced: a cut between truncation and writes is a state of its own."""
        self._clean: bytes | None = None
        """What the page cache held at the last fsync, once one failed: those pages are clean and not on the disk."""

    @property
    def size(self) -> int:
        return self._length

    @property
    def mapped(self) -> bool:
        """Whether any process ever mapped it since the last boot."""
        return isinstance(self.data, mmap.mmap)

    def read(self, size: int, offset: int) -> bytes:
        end = min(offset + size, self._length)
        return bytes(memoryview(self.data)[offset:end]) if offset < end else b""

    def write(self, data: bytes, offset: int) -> None:
        """Store and mark dirty; a hole before ``offset`` reads as zeros."""
        end = offset + len(data)
        if end > self._length:
            self.grow(end)
        self.data[offset:end] = data
        first, last = offset // PAGE, (end - 1) // PAGE
        if first == last:
            self._dirty.add(first)
        else:
            self._dirty.update(range(first, last + 1))

    def grow(self, length: int) -> None:
        """At least ``length`` bytes; new ones are zeros."""
        if length <= self._length:
            return
        if isinstance(self.data, bytearray):
            self.data.extend(bytes(length - self._length))
        elif length > RESERVED_BYTES:
            raise MemoryError(f"fake disk: a mapped file of {length} bytes; at most {RESERVED_BYTES} are reserved")
        self._dirty.add(self._length // PAGE)
        self._length = length

    def truncate(self, length: int) -> None:
        """At most ``length`` bytes."""
        if length >= self._length:
            return
        if isinstance(self.data, bytearray):
            del self.data[length:]
        else:
            self.data[length : self._length] = bytes(self._length - length)
        self._length = length
        self._low = min(self._low, length)
        self._dirty = {page for page in self._dirty if page * PAGE < length}

    def map(self, length: int) -> memoryview:
        """A view of the shared data that growth does not invalidate."""
        if isinstance(self.data, bytearray):
            if self._length > RESERVED_BYTES:
                raise MemoryError(f"fake disk: a mapped file of {self._length} bytes; at most {RESERVED_BYTES}")
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
            region = mmap.mmap(-1, RESERVED_BYTES, flags=flags)
            region[: self._length] = bytes(self.data)
            self.data = region
        return memoryview(self.data)[:length]

    def _dirty_pages(self) -> list[int]:
        """In order.  A store through a map leaves no trace but a difference, so mapped pages are compared."""
        if not self.mapped:
            return sorted(self._dirty)
        known: bytes | bytearray = self.image if self._clean is None else self._clean
        pages = range((self._length + PAGE - 1) // PAGE)
        return [page for page in pages if page in self._dirty or self._differs(page * PAGE, known)]

    def _differs(self, start: int, known: bytes | bytearray) -> bool:
        page = self.data[start : min(start + PAGE, self._length)]
        return page != known[start : start + PAGE].ljust(len(page), b"\0")

    def sync(self) -> None:
        """Bring every dirty page and the length to the disk."""
        pages = self._dirty_pages()
        self._fit_image(self._length)
        for page in pages:
            start = page * PAGE
            end = min(start + PAGE, self._length)
            self.image[start:end] = self.data[start:end]
        self._count_as_clean(remember=self._clean is not None)

    def sync_failed(self) -> None:
        """As Linux does after EIO: the pages are clean from now on, and never reach the disk unless written again."""
        self._count_as_clean(remember=True)

    def _count_as_clean(self, *, remember: bool) -> None:
        self._dirty.clear()
        self._low = self._length
        self._clean = self.read(self._length, 0) if remember else None

    def _fit_image(self, length: int) -> None:
        if length > len(self.image):
            self.image.extend(bytes(length - len(self.image)))
        else:
            del self.image[length:]

    def lose_power(self, rng: Random) -> None:
        """What lies on the disk, with a random part of what was on its way there."""
        pages = self._dirty_pages()
        if self._low < len(self.image) and rng.random() < 0.5:
            del self.image[self._low :]
        if pages or self._length != len(self.image):
            self._fit_image(self._length_after(rng))
            self._keep_some(pages, rng)
        self.data = bytearray()  # views of dead processes keep the old page cache to themselves
        self._length = 0
        self.replace(self.image)

    def _length_after(self, rng: Random) -> int:
        """The old length, the new one, or a cut at any byte between; never inside a word that a map stores whole."""
        bounds = sorted((len(self.image), self._length))
        cut = rng.randint(*bounds)
        if self.mapped:
            cut = max(bounds[0], cut - cut % WORD)
        return rng.choice((len(self.image), self._length, cut, cut))

    def _keep_some(self, pages: list[int], rng: Random) -> None:
        keep = rng.choice((0.0, 0.5, 0.9, 1.0))
        block = rng.choice((SECTOR, PAGE))
        limit = min(len(self.image), self._length)
        for page in pages:
            for start in range(page * PAGE, min(page * PAGE + PAGE, limit), block):
                if rng.random() < keep:
                    end = min(start + block, limit)
                    self.image[start:end] = self.data[start:end]

    def replace(self, content: bytes | bytearray) -> None:
        """This and nothing else, in the page cache and on the disk alike; views stay valid."""
        self.truncate(0)
        self.grow(len(content))
        self.data[: len(content)] = content
        self.image = bytearray(content)
        self._dirty.clear()
        self._low = self._length
        self._clean = None

    def damage(self, start: int, data: bytes) -> None:
        """Overwrite existing bytes in page cache and on disk alike; views see it."""
        end = start + len(data)
        self.data[start:end] = data
        have = len(self.image)
        self.image[start : min(end, have)] = data[: max(0, have - start)]


def corrupt_file(inode: File, kind: Damage, rng: Random) -> tuple[int, int]:
    """See `FakeDisk.corrupt`; an empty file can only get garbage."""
    size = inode.size
    content = inode.read(size, 0)
    if kind == "garbage":
        garbage = rng.randbytes(rng.randint(1, 2 * PAGE))
        inode.replace(content + garbage)
        return size, size + len(garbage)
    if not size:
        return 0, 0
    start = rng.randrange(size)
    if kind == "flip":
        inode.damage(start, bytes((content[start] ^ rng.randint(1, 255),)))
        return start, start + 1
    if kind == "truncate":
        inode.replace(content[:start])
        return start, size
    start -= start % PAGE
    end = min(start + PAGE, size)
    if kind == "zero":
        inode.damage(start, bytes(end - start))
        return start, end
    inode.replace(content[:end] + content[start:])
    return end, end + end - start
