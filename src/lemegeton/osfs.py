"""The real machine behind the seams: `os`, `fcntl` and `mmap`, and nothing on top of them."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lemegeton.seams import Doorbell, Heard, Runtime, Wire
from lemegeton.threads import Threads

T = TypeVar("T")


class OsFs:
    """`seams.Fs` on the operating system; most calls are the `os` functions themselves.

    A forked child closes every lock it inherited: `flock` belongs to the open file, so a child that outlives its
    parent would otherwise hold the parent's names for ever.
    """

    close = staticmethod(os.close)
    write = staticmethod(os.write)
    pwrite = staticmethod(os.pwrite)
    pread = staticmethod(os.pread)
    fstat = staticmethod(os.fstat)
    lstat = staticmethod(os.lstat)
    fsync = staticmethod(os.fsync)
    fdatasync = staticmethod(getattr(os, "fdatasync", os.fsync))  # macOS has no fdatasync
    listdir = staticmethod(os.listdir)
    unlink = staticmethod(os.unlink)
    rename = staticmethod(os.rename)

    def __init__(self) -> None:
        self._locks: dict[int, tuple[int, int]] = {}
        _instances.add(self)

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        return os.open(path, flags, mode)  # os.open by itself makes files that everybody may write to

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        os.mkdir(path, mode)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, offset, length)
        else:  # macOS: writing zeros allocates as well, where there is nothing yet
            size = os.fstat(fd).st_size
            os.pwrite(fd, bytes(max(0, offset + length - size)), size)

    def map(self, fd: int, length: int) -> memoryview:
        return memoryview(mmap.mmap(fd, length))

    def lock(self, fd: int, *, shared: bool = False) -> bool:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        state = os.fstat(fd)
        self._locks[fd] = (state.st_dev, state.st_ino)
        return True

    def forget_locks(self) -> None:
        """Close the descriptors of all locks; called in a forked child, which must not hold them."""
        for fd, identity in self._locks.items():
            with contextlib.suppress(OSError):
                state = os.fstat(fd)
                if (state.st_dev, state.st_ino) == identity:  # the number may belong to another file by now
                    os.close(fd)
        self._locks.clear()


_instances: weakref.WeakSet[OsFs] = weakref.WeakSet()


def _in_child() -> None:
    for fs in list(_instances):
        fs.forget_locks()
    for owner, act in list(_at_fork.items()):
        act(owner)


os.register_at_fork(after_in_child=_in_child)


def _read_text(*paths: str) -> str:
    for path in paths:
        with contextlib.suppress(OSError):
            return Path(path).read_text(encoding="ascii", errors="replace").strip()
    return ""


def boot_id() -> str:
    """Changes with every start of the kernel; where the system does not tell, the time of that start stands for it."""
    known = _read_text("/proc/sys/kernel/random/boot_id")
    return known or f"since-{round(time.time() - time.monotonic(), -1):.0f}"


def _open_doorbell() -> Doorbell:
    from lemegeton.doorbell import open_doorbell  # only readers need it, and it loads a C library

    return open_doorbell()


async def _dial(url: str, heard: Heard | None, lost: Callable[[str], None], /) -> Wire:
    from lemegeton.redis_wire import dial  # only who has a Redis pays for loading its client

    return await dial(url, heard, lost)


def os_runtime() -> Runtime:
    """The runtime of this machine."""
    return Runtime(
        fs=OsFs(),
        wall_ms=lambda: time.time_ns() // 1_000_000,
        token=lambda size: os.urandom(size).hex(),
        blocking=Threads(),
        doorbell=_open_doorbell,
        boot_id=boot_id(),
        machine_id=_read_text("/etc/machine-id", "/var/lib/dbus/machine-id"),
        uid=os.geteuid(),
        dial=_dial,
    )


_at_fork: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


def at_fork(owner: T, act: Callable[[T], None]) -> None:
    """Call ``act(owner)`` in every forked child, for as long as ``owner`` lives: ``act`` must not hold it."""
    _at_fork[owner] = act
