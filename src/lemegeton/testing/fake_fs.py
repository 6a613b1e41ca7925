"""`seams.Fs` for one simulated process: descriptors and locks of its own, a disk shared with its site.

Everything happens at once and in the order of the calls; what a real machine may do besides (fail, write less, forget
at a power cut) is asked for with the knobs of `FakeFs` and `FakeDisk`.
"""

from __future__ import annotations

import errno
import heapq
import os
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple, NoReturn

from lemegeton.testing.fake_disk import FakeDisk
from lemegeton.testing.fake_doorbell import FakeDoorbell, Hints
from lemegeton.testing.fake_inode import DAMAGES, Damage, Directory, File, Inode, OpenFile, Symlink
from lemegeton.testing.fake_paths import Place, fail

__all__ = ["DAMAGES", "Damage", "FakeDisk", "FakeFs", "FakeStat", "Hints", "Killed"]

FD_FIRST = 3
ANY = "*"


class Killed(GeneratorExit):
    """The process is dead: nothing that still runs in its name has any effect.

    A `GeneratorExit`, so that a coroutine which is dropped while it waits may raise it from its ``finally`` blocks and
    Python keeps quiet.
    """


class FakeStat(NamedTuple):
    """`seams.Stat`."""

    st_mode: int
    st_ino: int
    st_dev: int
    st_nlink: int
    st_uid: int
    st_size: int
    st_mtime: float


@dataclass(slots=True)
class _Plan:
    """An error that the n-th call from now will meet."""

    op: str
    code: int
    left: int


@dataclass(slots=True)
class _Descriptors:
    """The numbers of open files: always the lowest free one."""

    files: dict[int, OpenFile] = field(default_factory=dict)
    _free: list[int] = field(default_factory=list)

    def add(self, file: OpenFile) -> int:
        fd = heapq.heappop(self._free) if self._free else FD_FIRST + len(self.files)
        self.files[fd] = file
        return fd

    def pop(self, fd: int) -> OpenFile:
        file = self.files.pop(fd)
        heapq.heappush(self._free, fd)
        return file


class FakeFs:
    """The file system as one process sees it.

    Knobs, to be set at any time: ``fd_limit`` (EMFILE), ``umask``, ``short_writes`` (probability that a write stores
    less than it was given), ``fsync_errors`` (probability of EIO), ``hints`` (how its doorbells behave), `fail_next`.

    Against Linux: permissions are not enforced, a trailing slash means nothing, a mapping neither keeps the lock of a
    closed descriptor nor sets ``st_mtime``.
    """

    def __init__(self, disk: FakeDisk, *, uid: int = 1000, rng: Random | None = None,
                 hints: Hints | None = None) -> None:
        self.disk = disk
        self.uid = uid
        self.rng = rng or Random(disk.rng.getrandbits(64))
        self.hints = hints or Hints()
        self.umask = 0o022
        self.fd_limit = 1024
        self.short_writes = 0.0
        self.fsync_errors = 0.0
        self.killed = False
        self._descriptors = _Descriptors()
        self._files = self._descriptors.files
        self._plans: list[_Plan] = []
        self._bells: list[FakeDoorbell] = []
        self._trapped = False
        disk.processes.append(self)

    # Death and faults

    def kill(self) -> None:
        """SIGKILL: descriptors and locks are gone, doorbells silent; every later call raises `Killed`.

        Stores through views that were mapped before still reach the page cache (until a power cut): do not run code
        of a killed process again.
        """
        if self.killed:
            return
        self.killed = self._trapped = True
        self.disk.processes.remove(self)
        for bell in self._bells:
            bell.close()
        for file in self._files.values():
            self._let_go(file)
        self._files.clear()

    def fail_next(self, op: str, code: int, after: int = 1) -> None:
        """Let the ``after``-th call of ``op`` from now on fail once with this errno; ``*`` counts every call."""
        self._plans.append(_Plan(op, code, after))
        self._trapped = True

    def open_fds(self) -> list[int]:
        """The numbers in use, to find leaks."""
        return sorted(self._files)

    def _sprung(self, op: str) -> int:
        """The errno this call must meet, or 0."""
        if self.killed:
            raise Killed
        code = 0
        for plan in [plan for plan in self._plans if plan.op in (op, ANY)]:
            plan.left -= 1
            if not plan.left:
                self._plans.remove(plan)
                code = plan.code
        self._trapped = bool(self._plans)
        return code

    def _enter(self, op: str, path: str | None = None, other: str | None = None) -> None:
        if self._trapped:
            code = self._sprung(op)
            if code:
                fail(code, path, other)

    def _file(self, op: str, fd: int) -> OpenFile:
        self._enter(op)
        file = self._files.get(fd)
        if file is None:
            fail(errno.EBADF)
        return file

    def _writable(self, op: str, fd: int) -> tuple[OpenFile, File]:
        file = self._file(op, fd)
        if not file.writable or not isinstance(file.inode, File):
            fail(errno.EBADF)
        return file, file.inode

    # Descriptors

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        self._enter("open", path)
        if len(self._files) >= self.fd_limit:
            fail(errno.EMFILE, path)
        try:
            inode = self._open_inode(path, flags, mode)
        except OSError as error:
            _with_path(error, path)
        access = flags & os.O_ACCMODE
        inode.opens += 1
        return self._descriptors.add(OpenFile(inode, readable=access != os.O_WRONLY, writable=access != os.O_RDONLY,
                                              append=bool(flags & os.O_APPEND)))

    def _open_inode(self, path: str, flags: int, mode: int) -> Inode:
        exclusive = flags & os.O_CREAT and flags & os.O_EXCL
        place = self.disk.find(path, follow=not (flags & os.O_NOFOLLOW or exclusive))
        inode = place.inode
        if inode is None:
            if not flags & os.O_CREAT:
                fail(errno.ENOENT)
            return self.disk.make_file(place, mode & ~self.umask, self.uid)
        if exclusive:
            fail(errno.EEXIST)
        _check_open(inode, flags)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self.disk.check_writable()
        if flags & os.O_TRUNC and isinstance(inode, File):
            self.disk.truncate(inode)
        return inode

    def close(self, fd: int) -> None:
        code = self._sprung("close") if self._trapped else 0
        if fd not in self._files:
            fail(errno.EBADF)
        self._let_go(self._descriptors.pop(fd))
        if code:
            fail(code)  # as on Linux, the descriptor is gone all the same

    def _let_go(self, file: OpenFile) -> None:
        file.inode.unlock(file)
        file.inode.opens -= 1
        self.disk.forget(file.inode)

    def lock(self, fd: int, *, shared: bool = False) -> bool:
        file = self._file("lock", fd)
        return file.inode.lock(file, shared)

    # Content

    def write(self, fd: int, data: bytes) -> int:
        file, inode = self._writable("write", fd)
        offset = inode.size if file.append else file.position
        stored = self.disk.write(inode, self._shortened(data), offset)
        file.position = offset + stored
        return stored

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        if offset < 0:
            fail(errno.EINVAL)
        file, inode = self._writable("pwrite", fd)
        # On Linux O_APPEND wins over the offset.
        return self.disk.write(inode, self._shortened(data), inode.size if file.append else offset)

    def _shortened(self, data: bytes) -> bytes:
        if self.short_writes and len(data) > 1 and self.rng.random() < self.short_writes:
            return data[: self.rng.randint(1, len(data) - 1)]
        return data

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        if size < 0 or offset < 0:
            fail(errno.EINVAL)
        file = self._file("pread", fd)
        if not file.readable:
            fail(errno.EBADF)
        inode = file.inode
        if not isinstance(inode, File):
            fail(errno.EISDIR if isinstance(inode, Directory) else errno.ESPIPE)
        return inode.read(size, offset)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        file = self._file("allocate", fd)
        if offset < 0 or length <= 0:
            fail(errno.EINVAL)
        if not file.writable or not isinstance(file.inode, File):
            fail(errno.EBADF)
        self.disk.allocate(file.inode, offset + length)

    def map(self, fd: int, length: int) -> memoryview:
        file = self._file("map", fd)
        inode = file.inode
        if isinstance(inode, File):
            if not length and not inode.size:
                raise ValueError("cannot mmap an empty file")
            if length > inode.size:
                raise ValueError("mmap length is greater than file size")
        if not isinstance(inode, File) or not (file.readable and file.writable):
            fail(errno.EACCES)
        return inode.map(length or inode.size)

    def fdatasync(self, fd: int) -> None:
        self._sync("fdatasync", fd)

    def fsync(self, fd: int) -> None:
        self._sync("fsync", fd)

    def _sync(self, op: str, fd: int) -> None:
        code = self._sprung(op) if self._trapped else 0
        file = self._files.get(fd)
        if file is None:
            fail(errno.EBADF)
        if not code and self.fsync_errors and self.rng.random() < self.fsync_errors:
            code = errno.EIO
        if not code:
            self.disk.sync_inode(file.inode)
            return
        if isinstance(file.inode, File):
            file.inode.sync_failed()
        fail(code)

    # Names

    def fstat(self, fd: int) -> FakeStat:
        return self._stat(self._file("fstat", fd).inode)

    def lstat(self, path: str) -> FakeStat:
        self._enter("lstat", path)
        try:
            return self._stat(self.disk.get(path))
        except OSError as error:
            _with_path(error, path)

    def _stat(self, inode: Inode) -> FakeStat:
        return FakeStat(inode.mode, inode.number, self.disk.device, inode.nlink, inode.uid, inode.size, inode.mtime)

    def listdir(self, path: str) -> list[str]:
        self._enter("listdir", path)
        try:
            inode = self.disk.get(path, follow=True)
            if not isinstance(inode, Directory):
                fail(errno.ENOTDIR)
        except OSError as error:
            _with_path(error, path)
        names = list(inode.entries)
        self.rng.shuffle(names)
        return names

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        self._enter("mkdir", path)
        try:
            place = self.disk.find(path)
            if place.inode is not None:
                fail(errno.EEXIST)
            self.disk.make_directory(place, mode & ~self.umask, self.uid)
        except OSError as error:
            _with_path(error, path)

    def unlink(self, path: str) -> None:
        self._enter("unlink", path)
        try:
            self.disk.unlink(self.disk.find(path))
        except OSError as error:
            _with_path(error, path)

    def rename(self, source: str, target: str) -> None:
        self._enter("rename", source, target)
        try:
            start: Place = self.disk.find(source)
            self.disk.rename(start, self.disk.find(target))
        except OSError as error:
            _with_path(error, source, target)

    def check_alive(self) -> None:
        """Raise `Killed` in the name of a dead process."""
        if self.killed:
            raise Killed

    def doorbell(self) -> FakeDoorbell:
        """A doorbell of this process, on the running loop."""
        self.check_alive()
        self._bells = [bell for bell in self._bells if not bell.closed]
        bell = FakeDoorbell(self)
        self._bells.append(bell)
        return bell


def _check_open(inode: Inode, flags: int) -> None:
    writing = flags & os.O_ACCMODE != os.O_RDONLY
    if isinstance(inode, Directory):
        if writing or flags & (os.O_CREAT | os.O_TRUNC):
            fail(errno.EISDIR)
    elif flags & os.O_DIRECTORY:
        fail(errno.ENOTDIR)
    elif isinstance(inode, Symlink):
        fail(errno.ELOOP)
    elif not isinstance(inode, File):
        if not flags & os.O_NONBLOCK:
            raise RuntimeError("fake fs: opening a FIFO without O_NONBLOCK would hang for ever")
        if flags & os.O_ACCMODE == os.O_WRONLY:
            fail(errno.ENXIO)


def _with_path(error: OSError, path: str, other: str | None = None) -> NoReturn:
    """Raise it again with the names that the `os` functions give it."""
    fail(error.errno or errno.EIO, path, other)
