"""The simulated file system answers as the real one does."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import stat
import tempfile
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lemegeton import seams
from lemegeton.osfs import OsFs
from lemegeton.testing.fake_fs import FakeDisk, FakeFs, Killed
from lemegeton.testing.virtual_loop import run

NEW = os.O_RDWR | os.O_CREAT
APPEND = NEW | os.O_APPEND


@pytest.fixture
def disk() -> FakeDisk:
    return FakeDisk(Random(1))


@pytest.fixture
def fs(disk: FakeDisk) -> FakeFs:
    return FakeFs(disk)


def put(fs: FakeFs, path: str, data: bytes, *, sync: bool = False) -> None:
    fd = fs.open(path, NEW)
    assert fs.pwrite(fd, data, 0) == len(data)
    if sync:
        fs.fsync(fd)
    fs.close(fd)


def refused(code: int) -> Any:
    return pytest.raises(OSError, match=rf"^\[Errno {code}\]")


# Against the real one


FLAGS = st.builds(
    lambda access, more: access | sum(set(more)),
    st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR]),
    st.lists(st.sampled_from([os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW]), max_size=3),
) | st.sampled_from([NEW, APPEND, NEW | os.O_EXCL, os.O_RDONLY | os.O_DIRECTORY,
                     os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW])
PATHS = st.sampled_from(["a", "b", "d", "d/a", "d/b", "e", "e/a", "d/e", "l", "o", "m", "m/a", "n", "d/../a", "./b",
                         ".", "a/x", "x" * 300, "ü" * 130, ""])
# Of two things that are wrong with a rename, the real one may name the other first.
NAMES = PATHS.filter(lambda path: path != "." and len(path) < 100)
WHICH = st.integers(0, 5)
OFFSET = st.sampled_from([-1, 0, 1, 5, 8, 4090, 5000])
DATA = st.binary(max_size=20) | st.just(b"x" * 5000)
OPERATIONS = st.one_of(
    st.tuples(st.just("open"), PATHS, FLAGS),
    st.tuples(st.just("open"), st.sampled_from(["a", "b", "d/a"]), st.sampled_from([NEW, APPEND])),
    st.tuples(st.just("close"), WHICH),
    st.tuples(st.just("write"), WHICH, DATA),
    st.tuples(st.just("pwrite"), WHICH, DATA, OFFSET),
    st.tuples(st.just("pread"), WHICH, st.sampled_from([-1, 0, 7, 100, 10_000]), OFFSET),
    st.tuples(st.just("allocate"), WHICH, OFFSET, st.sampled_from([-1, 0, 8, 4096, 9000])),
    st.tuples(st.just("store"), WHICH, st.sampled_from([0, 8, 16, 4096]), st.integers(0, 1)),
    st.tuples(st.just("lock"), WHICH, st.booleans()),
    st.tuples(st.just("fsync"), WHICH),
    st.tuples(st.just("fstat"), WHICH),
    st.tuples(st.just("lstat"), PATHS),
    st.tuples(st.just("rename"), NAMES, NAMES),
    st.tuples(st.just("unlink"), PATHS),
    st.tuples(st.just("mkdir"), PATHS),
    st.tuples(st.just("listdir"), PATHS),
)


class Machine:
    """Runs operations on a file system, and tells what came of each."""

    def __init__(self, fs: seams.Fs, root: str) -> None:
        self.fs = fs
        self.root = root
        self.fds: list[int] = []

    def path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else ""

    def fd(self, which: int) -> int:
        return self.fds[which % len(self.fds)] if self.fds else 9999

    def run(self, operation: tuple[Any, ...]) -> object:
        try:
            return getattr(self, operation[0])(*operation[1:])
        except OSError as error:
            return errno.errorcode[error.errno or 0], [str(name)[len(self.root):] for name in
                                                       (error.filename, error.filename2) if name]
        except ValueError:
            return "ValueError"

    def open(self, name: str, flags: int) -> int:
        self.fds.append(self.fs.open(self.path(name), flags))
        return len(self.fds)

    def close(self, which: int) -> None:
        fd = self.fd(which)
        self.fs.close(fd)
        self.fds.remove(fd)

    def write(self, which: int, data: bytes) -> int:
        return self.fs.write(self.fd(which), data)

    def pwrite(self, which: int, data: bytes, offset: int) -> int:
        return self.fs.pwrite(self.fd(which), data, offset)

    def pread(self, which: int, size: int, offset: int) -> bytes:
        return self.fs.pread(self.fd(which), size, offset)

    def allocate(self, which: int, offset: int, length: int) -> None:
        self.fs.allocate(self.fd(which), offset, length)

    def store(self, which: int, length: int, cell: int) -> bytes:
        if stat.S_ISDIR(self.fs.fstat(self.fd(which)).st_mode):
            return b"a directory"  # which of its errors comes first differs from one file system to the next
        view = self.fs.map(self.fd(which), length)
        try:
            if len(view) < 16:
                return bytes(view)
            with view[:16].cast("Q") as cells:
                cells[cell] += 0x0102030405060708
            return self.fs.pread(self.fd(which), 40, 0)
        except ValueError as error:
            return repr(error).encode()
        finally:
            view.release()

    def lock(self, which: int, shared: bool) -> bool:
        return self.fs.lock(self.fd(which), shared=shared)

    def fsync(self, which: int) -> None:
        self.fs.fsync(self.fd(which))
        self.fs.fdatasync(self.fd(which))

    def _shape(self, found: seams.Stat) -> tuple[int, ...]:
        kind = stat.S_IFMT(found.st_mode)
        if not stat.S_ISREG(kind):
            return kind, 0, 0
        return kind, found.st_size, found.st_nlink

    def fstat(self, which: int) -> tuple[int, ...]:
        return self._shape(self.fs.fstat(self.fd(which)))

    def lstat(self, name: str) -> tuple[int, ...]:
        return self._shape(self.fs.lstat(self.path(name)))

    def rename(self, source: str, target: str) -> None:
        self.fs.rename(self.path(source), self.path(target))

    def unlink(self, name: str) -> None:
        self.fs.unlink(self.path(name))

    def mkdir(self, name: str) -> None:
        self.fs.mkdir(self.path(name))

    def listdir(self, name: str) -> list[str]:
        return sorted(self.fs.listdir(self.path(name)))

    def end(self) -> None:
        for fd in self.fds:
            self.fs.close(fd)


@settings(max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.lists(OPERATIONS, min_size=5, max_size=40))
def test_every_operation_answers_as_the_real_file_system_does(operations: list[tuple[Any, ...]]):
    disk = FakeDisk(Random(1))
    with tempfile.TemporaryDirectory() as directory:
        for name, target in (("l", "a"), ("o", "o"), ("m", "d"), ("n", "nowhere")):
            os.symlink(target, f"{directory}/{name}")
            disk.plant(f"/{name}", "symlink", target)
        real, fake = Machine(OsFs(), directory), Machine(FakeFs(disk), "")
        try:
            for operation in operations:
                assert fake.run(operation) == real.run(operation), operation
        finally:
            real.end()
            fake.end()


# Locks, descriptors, death


def test_a_lock_belongs_to_the_open_file_and_ends_with_it(disk: FakeDisk, fs: FakeFs):
    other = FakeFs(disk)
    mine, again, theirs = fs.open("/f", NEW), fs.open("/f", NEW), other.open("/f", NEW)
    assert fs.lock(mine)
    assert fs.lock(mine)
    assert not fs.lock(again)
    assert not other.lock(theirs, shared=True)
    assert fs.lock(mine, shared=True)
    assert other.lock(theirs, shared=True)
    assert not fs.lock(mine)
    other.close(theirs)
    assert fs.lock(mine)
    fs.close(mine)
    assert fs.lock(again)


def test_a_killed_process_holds_nothing_and_does_nothing(disk: FakeDisk, fs: FakeFs):
    other = FakeFs(disk)
    mine, theirs = fs.open("/f", NEW), other.open("/f", NEW)
    fs.lock(mine)
    fs.kill()
    fs.kill()
    assert other.lock(theirs)
    for call in (lambda: fs.close(mine), lambda: fs.write(mine, b"x"), lambda: fs.lstat("/f"), lambda: fs.lock(mine),
                 lambda: fs.open("/g", NEW), lambda: fs.fsync(mine), fs.doorbell, lambda: fs.unlink("/f")):
        with pytest.raises(Killed):
            call()
    assert disk.read("/f") == b""
    assert other.listdir("/") == ["f"]


def test_a_dropped_coroutine_of_a_killed_process_ends_in_silence(fs: FakeFs):
    async def use() -> None:
        fd = fs.open("/f", NEW)
        try:
            await asyncio.sleep(0)
        finally:
            fs.write(fd, b"too late")

    coro = use()
    coro.send(None)
    fs.kill()
    del coro
    gc.collect()
    assert fs.disk.read("/f") == b""


def test_a_killed_task_does_not_trouble_the_loop(fs: FakeFs):
    async def use() -> None:
        fd = fs.open("/f", NEW)
        try:
            await asyncio.sleep(100)
        finally:
            fs.close(fd)

    async def main() -> None:
        task = asyncio.create_task(use())
        await asyncio.sleep(1)
        fs.kill()
        assert not task.done()

    run(main())


def test_descriptors_are_the_lowest_free_numbers_and_limited(fs: FakeFs):
    first, second = fs.open("/a", NEW), fs.open("/b", NEW)
    fs.close(first)
    assert fs.open("/c", NEW) == first
    assert fs.open_fds() == [first, second]
    fs.fd_limit = 2
    with refused(errno.EMFILE):
        fs.open("/d", NEW)
    assert sorted(fs.listdir("/")) == ["a", "b", "c"]


def test_unlinked_content_lives_while_it_is_open_and_then_gives_its_room_back(disk: FakeDisk, fs: FakeFs):
    put(fs, "/f", b"x" * 100)
    fd = fs.open("/f", os.O_RDWR)
    fs.unlink("/f")
    assert fs.pread(fd, 3, 0) == b"xxx"
    assert (fs.fstat(fd).st_nlink, disk.used) == (0, 100)
    fs.close(fd)
    assert disk.used == 0


def test_stat_tells_owner_mode_device_and_time():
    now = 5.0
    disk = FakeDisk(Random(1), clock=lambda: now, device=7)
    fs = FakeFs(disk, uid=501)
    fs.umask = 0
    fs.mkdir("/d", 0o700)
    fd = fs.open("/d/f", NEW, 0o600)
    now = 9.0
    fs.write(fd, b"x")
    found, above = fs.fstat(fd), fs.lstat("/d")
    assert (found.st_mode, found.st_uid, found.st_dev, found.st_mtime) == (stat.S_IFREG | 0o600, 501, 7, 9.0)
    assert (above.st_mode, above.st_mtime) == (stat.S_IFDIR | 0o700, 5.0)
    assert found.st_ino != above.st_ino
    disk.chmod("/d/f", 0o666)
    disk.chown("/d/f", 0)
    assert (stat.S_IMODE(fs.fstat(fd).st_mode), fs.fstat(fd).st_uid) == (0o666, 0)


def test_planted_files_are_told_apart(disk: FakeDisk, fs: FakeFs):
    put(fs, "/f", b"x")
    disk.plant("/link", "symlink", "/f")
    disk.plant("/pipe", "fifo")
    disk.plant("/twin", "hardlink", "/f")
    with refused(errno.ELOOP):
        fs.open("/link", os.O_RDONLY | os.O_NOFOLLOW)
    with refused(errno.EEXIST):
        fs.open("/link", NEW | os.O_EXCL)
    with refused(errno.ENXIO):
        fs.open("/pipe", os.O_WRONLY | os.O_NONBLOCK)
    with pytest.raises(RuntimeError, match="hang"):
        fs.open("/pipe", os.O_RDONLY)
    assert stat.S_ISFIFO(fs.fstat(fs.open("/pipe", os.O_RDONLY | os.O_NONBLOCK)).st_mode)
    assert stat.S_ISLNK(fs.lstat("/link").st_mode)
    assert fs.lstat("/f").st_nlink == 2
    disk.power(Random(1))


def test_a_path_that_was_replaced_is_not_remembered(disk: FakeDisk, fs: FakeFs):
    for name in ("/d", "/e"):
        fs.mkdir(name)
    put(fs, "/d/f", b"d")
    put(fs, "/e/g", b"e")
    fs.rename("/d", "/x")
    fs.rename("/e", "/d")
    assert fs.listdir("/d") == ["g"]
    with refused(errno.ENOENT):
        fs.lstat("/d/f")


def test_the_order_of_a_directory_is_none_and_repeatable():
    def orders(seed: int) -> list[list[str]]:
        fs = FakeFs(FakeDisk(Random(seed)))
        for number in range(10):
            put(fs, f"/{number}", b"")
        return [fs.listdir("/") for _ in range(5)]

    assert orders(1) == orders(1)
    assert len({tuple(order) for order in orders(1)}) > 1


# Maps


def test_a_map_is_shared_and_outlives_growth_and_its_descriptor(disk: FakeDisk, fs: FakeFs):
    other = FakeFs(disk)
    fd, far = fs.open("/f", NEW), other.open("/f", NEW)
    fs.allocate(fd, 0, 512)
    cells = fs.map(fd, 512).cast("Q")
    fs.close(fd)
    cells[3] = 77
    assert other.pread(far, 8, 24) == (77).to_bytes(8, "little")
    other.allocate(far, 512, 1 << 20)
    wide = other.map(far, 512 + (1 << 20)).cast("Q")
    wide[4] = 88
    cells[5] = 99
    other.pwrite(far, (55).to_bytes(8, "little"), 48)
    assert list(cells[3:7]) == list(wide[3:7]) == [77, 88, 99, 55]
    cells.release()
    assert wide[3] == 77


def test_a_map_needs_reading_writing_and_enough_bytes(fs: FakeFs):
    put(fs, "/f", b"x" * 16)
    with refused(errno.EACCES):
        fs.map(fs.open("/f", os.O_RDONLY), 16)
    with pytest.raises(ValueError, match="greater than file size"):
        fs.map(fs.open("/f", os.O_RDWR), 24)
