"""The real file system behind the seams: what it adds to `os` is privacy, locks that a fork does not keep, and maps."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lemegeton import osfs
from lemegeton.osfs import OsFs, at_fork, boot_id, os_runtime
from lemegeton.seams import Fs

NEW = os.O_RDWR | os.O_CREAT


@pytest.fixture
def fs() -> Fs:
    return OsFs()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "file")


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


# Files


@pytest.mark.usefixtures("open_umask")
def test_what_is_made_is_private_whatever_the_umask(fs: Fs, tmp_path: Path) -> None:
    fs.close(fs.open(str(tmp_path / "file"), NEW))
    fs.mkdir(str(tmp_path / "directory"))
    assert os.stat(tmp_path / "file").st_mode & 0o777 == 0o600
    assert os.stat(tmp_path / "directory").st_mode & 0o777 == 0o700


def test_the_calls_do_what_those_of_the_system_do(fs: Fs, path: str, tmp_path: Path) -> None:
    fd = fs.open(path, NEW)
    assert fs.write(fd, b"hello") == 5
    assert fs.pwrite(fd, b"J", 0) == 1
    assert fs.pread(fd, 99, 0) == b"Jello"
    fs.fsync(fd)
    fs.fdatasync(fd)
    assert fs.fstat(fd).st_ino == fs.lstat(path).st_ino
    fs.close(fd)
    fs.rename(path, path + "2")
    assert fs.listdir(str(tmp_path)) == ["file2"]
    fs.unlink(path + "2")
    with pytest.raises(FileNotFoundError):
        fs.lstat(path)


@pytest.mark.parametrize("fallocate", [True, False], ids=["fallocate", "zeros"])
def test_allocated_bytes_are_zeros_behind_what_there_was(
    fs: Fs, path: str, fallocate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fallocate:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    fd = fs.open(path, NEW)
    fs.write(fd, b"hello")
    fs.allocate(fd, 0, 4096)
    assert fs.pread(fd, 9999, 0) == b"hello" + bytes(4091)
    fs.allocate(fd, 4096, 10_000)
    assert fs.fstat(fd).st_size == 14_096
    fs.allocate(fd, 0, 100)
    assert fs.pread(fd, 99999, 0) == b"hello" + bytes(14_091)
    fs.close(fd)


def test_a_store_into_a_map_is_in_the_file_and_in_every_other_map(fs: Fs, path: str) -> None:
    fd = fs.open(path, NEW)
    fs.allocate(fd, 0, 8192)
    one, other = fs.map(fd, 8192), fs.map(fd, 4096)
    one.cast("Q")[1] = 7
    assert other.cast("Q")[1] == 7
    assert fs.pread(fd, 8, 8) == (7).to_bytes(8, sys.byteorder)
    fs.close(fd)
    one.cast("Q")[1] = 8
    assert Path(path).read_bytes()[8:16] == (8).to_bytes(8, sys.byteorder)
    one.release()
    other.release()


# Locks


def test_one_open_file_holds_an_exclusive_lock_until_it_is_closed(fs: Fs, path: str) -> None:
    first, second = fs.open(path, NEW), fs.open(path, NEW)
    assert fs.lock(first)
    assert not fs.lock(second)
    assert not fs.lock(second, shared=True)
    fs.close(first)
    assert fs.lock(second)
    fs.close(second)


def test_many_share_a_lock_and_nobody_has_it_alone_meanwhile(fs: Fs, path: str) -> None:
    fds = [fs.open(path, NEW) for _ in range(3)]
    assert fs.lock(fds[0], shared=True)
    assert fs.lock(fds[1], shared=True)
    assert not fs.lock(fds[2])
    for fd in fds:
        fs.close(fd)


CHILD = """
import os, sys
from lemegeton.osfs import OsFs, at_fork
fs = OsFs()
fd = fs.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
assert fs.lock(fd)
class Owner: pass
owner, gone = Owner(), Owner()
at_fork(owner, lambda _: print("told", flush=True))
at_fork(gone, lambda _: print("not told", flush=True))
del gone
child = os.fork()
if child:
    os.waitpid(child, 0)
print("child", flush=True)
sys.stdin.read()
"""


def test_a_forked_child_that_outlives_its_killed_parent_holds_no_lock_and_was_told(fs: Fs, path: str) -> None:
    command = [sys.executable, "-c", CHILD, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"told\n"
        assert process.stdout.readline() == b"child\n"
        fd = fs.open(path, NEW)
        assert not fs.lock(fd)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert fs.lock(fd)
        fs.close(fd)
        process.stdin.close()
        assert process.stdout.read() == b""


def test_forgetting_locks_closes_them_and_nothing_else(path: str) -> None:
    fs = OsFs()
    kept, closed, reused = (fs.open(f"{path}{n}", NEW) for n in range(3))
    for fd in (kept, closed, reused):
        assert fs.lock(fd)
    fs.close(closed)
    other = os.open(path, NEW)
    os.dup2(other, reused)  # the number of a lock that was let go is another file's now
    fs.forget_locks()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kept)
    assert os.fstat(reused).st_ino == os.fstat(other).st_ino
    os.close(reused)
    os.close(other)
    fs.forget_locks()


def test_in_a_child_every_file_system_forgets_and_every_living_owner_is_told(path: str) -> None:
    class Owner:
        pass

    fs, owner, gone = OsFs(), Owner(), Owner()
    told: list[str] = []
    fd = fs.open(path, NEW)
    assert fs.lock(fd)
    at_fork(owner, lambda _: told.append("first"))
    at_fork(owner, lambda of: told.append("second" if of is owner else "another"))
    at_fork(gone, lambda _: told.append("gone"))
    del gone
    gc.collect()
    osfs._in_child()
    assert told == ["second"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


# The machine


def test_the_boot_id_stays_while_the_machine_runs() -> None:
    assert boot_id()
    assert boot_id() == boot_id()


def test_what_the_system_does_not_tell_is_empty(tmp_path: Path) -> None:
    assert osfs._read_text(str(tmp_path / "missing")) == ""
    (tmp_path / "id").write_bytes(b" abc\xff\n")
    assert osfs._read_text(str(tmp_path / "missing"), str(tmp_path / "id")) == "abc\ufffd"


async def test_the_runtime_is_this_machine() -> None:
    runtime = os_runtime()
    assert (runtime.uid, runtime.boot_id) == (os.geteuid(), boot_id())
    assert abs(runtime.wall_ms() - time.time() * 1000) < 60_000
    assert len(runtime.token(6)) == 12
    assert runtime.token(6) != runtime.token(6)
    assert isinstance(runtime.fs, OsFs)
    bell = runtime.doorbell()
    assert bell.working or bell.cause
    bell.close()


async def test_a_blocking_call_does_not_block_the_loop() -> None:
    released = asyncio.Event()
    loop = asyncio.get_running_loop()
    came, go = os.pipe()

    def call() -> bytes:
        loop.call_soon_threadsafe(released.set)
        return os.read(came, 1)

    task = asyncio.ensure_future(os_runtime().blocking(call))
    await released.wait()
    os.write(go, b"x")
    assert await task == b"x"
    for fd in (came, go):
        os.close(fd)


async def test_an_error_of_a_blocking_call_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        await os_runtime().blocking(lambda: 1 // 0)
