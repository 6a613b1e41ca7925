"""The seams: everything outside that the bus touches, as small Protocols.

They exist so that a whole bus can run inside a simulation with a virtual clock and a file system that loses power
(`lemegeton.testing`).  The real ones are `osfs.OsFs` and `doorbell.open_doorbell`; they add nothing to the calls
they stand for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

T = TypeVar("T")


class Stat(Protocol):
    """What is read of ``os.stat_result``."""

    @property
    def st_mode(self) -> int: ...
    @property
    def st_ino(self) -> int: ...
    @property
    def st_dev(self) -> int: ...
    @property
    def st_nlink(self) -> int: ...
    @property
    def st_uid(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_mtime(self) -> float: ...


class Fs(Protocol):
    """The file system calls of the bus: the meaning, flags and ``OSError`` are those of the `os` functions.

    All are synchronous; `fdatasync` and `fsync` are the only ones that may take long, callers run them through
    `Runtime.blocking`.
    """

    def open(self, path: str, flags: int, mode: int = 0o600) -> int: ...
    def close(self, fd: int) -> None: ...
    def write(self, fd: int, data: bytes) -> int: ...
    def pwrite(self, fd: int, data: bytes, offset: int) -> int: ...
    def pread(self, fd: int, size: int, offset: int) -> bytes: ...
    def fstat(self, fd: int) -> Stat: ...
    def lstat(self, path: str) -> Stat: ...
    def fdatasync(self, fd: int) -> None: ...
    def fsync(self, fd: int) -> None: ...
    def listdir(self, path: str) -> list[str]: ...
    def mkdir(self, path: str, mode: int = 0o700) -> None: ...
    def unlink(self, path: str) -> None: ...
    def rename(self, source: str, target: str) -> None: ...

    def allocate(self, fd: int, offset: int, length: int) -> None:
        """`os.posix_fallocate`: the bytes exist on disk afterwards, so a store into them cannot hit a full disk."""
        ...

    def map(self, fd: int, length: int) -> memoryview:
        """A shared, writable view of the first ``length`` bytes; a store is visible to every process at once.

        The view stays valid until its `memoryview.release`; closing ``fd`` does not end it."""
        ...

    def lock(self, fd: int, *, shared: bool = False) -> bool:
        """Take the `flock` of the open file without waiting; false when somebody else holds it.

        It is let go when the last descriptor of this open file is closed, also by SIGKILL."""
        ...


Ring = Callable[[str | None, bool], None]
"""``ring(file name or None, something was created)``: None says that anything may have changed."""


class Doorbell(Protocol):
    """Hints that a directory changed.  They may be lost or doubled: a poll stands behind every watch."""

    @property
    def working(self) -> bool:
        """False once hints cannot be relied on at all: poll often."""
        ...

    @property
    def cause(self) -> str:
        """Why it does not work; empty while it does."""
        ...

    def watch(self, path: str, ring: Ring) -> None:
        """Call ``ring`` from the event loop when a file in ``path`` is created, renamed into it or written to."""
        ...

    def unwatch(self, path: str) -> None: ...
    def close(self) -> None: ...


class Blocking(Protocol):
    """Run a blocking call outside the event loop and wait for its result."""

    def __call__(self, call: Callable[[], T], /) -> Awaitable[T]: ...


Heard = Callable[[Any], None]
"""What a subscriber's connection does with everything that comes; an error comes as `RedisRefused`."""


class Packed(NamedTuple):
    """So many arguments of a command as the wire takes them."""

    number: int
    data: bytes


class Wire(Protocol):
    """One connection to a Redis: commands go out in order, answers come back in order."""

    @property
    def silent(self) -> bool:
        """True if nothing at all came since the last ``PING`` that was sent."""
        ...

    def call(self, *arguments: bytes | str | int, packed: Packed | None = None) -> Awaitable[Any]:
        """Send a command, with arguments that are ``packed`` behind the others.

        The answer raises `RedisRefused` for an error and `RedisLost` if the connection ends first.

        Cancelling the wait does not take the command back."""
        ...

    def send(self, *arguments: bytes | str | int) -> None:
        """Send a command on a subscriber's connection: whatever comes back is heard."""
        ...

    def close(self) -> None: ...


class Dial(Protocol):
    """Connect, authenticate and be ready for commands; ``OSError`` or `RedisRefused` says why not.

    With ``heard`` it is a subscriber's connection.  ``lost`` is called once, with the cause, when it ends by itself."""

    def __call__(self, url: str, heard: Heard | None, lost: Callable[[str], None], /) -> Awaitable[Wire]: ...


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a bus needs from the machine it runs on.

    ``wall_ms`` is the wall clock in Unix milliseconds (stamps and TTL only, never order); ``token(n)`` gives n random
    bytes as hex; ``boot_id`` changes with every start of the kernel; ``machine_id`` is the machine's own; ``uid`` owns
    every file of the home; ``dial`` connects to a Redis.
    """

    fs: Fs
    wall_ms: Callable[[], int]
    token: Callable[[int], str]
    blocking: Blocking
    doorbell: Callable[[], Doorbell]
    boot_id: str
    machine_id: str
    uid: int
    dial: Dial
