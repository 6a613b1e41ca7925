"""`seams.Doorbell` in a simulation: hints that come late, twice, or not at all."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lemegeton.seams import Ring
from lemegeton.testing.fake_inode import Directory
from lemegeton.testing.fake_paths import fail

if TYPE_CHECKING:
    from lemegeton.testing.fake_fs import FakeFs


@dataclass(slots=True)
class Hints:
    """How the doorbells of a process behave; may be changed at any time.

    Each hint is late by up to ``delay_s`` (least, most), lost with probability ``loss``, doubled with ``double``, and
    replaced by "anything may have changed" with ``overflow``.  With ``working`` false there are none, and the doorbell
    says so.
    """

    delay_s: tuple[float, float] = (0.000_05, 0.002)
    loss: float = 0.0
    double: float = 0.0
    overflow: float = 0.0
    working: bool = True


class FakeDoorbell:
    """Rings from the running loop a little after a change; never once its process is dead.

    As inotify does, it watches the directory and not its path, coalesces equal hints that are under way, and says
    nothing of stores through a map.
    """

    def __init__(self, fs: FakeFs) -> None:
        self._fs = fs
        self._loop = asyncio.get_running_loop()
        self._watches: dict[str, Directory] = {}
        self._rings: dict[int, Ring] = {}
        self._ahead: set[tuple[int, str, bool]] = set()
        self._broken = ""
        self.closed = False

    @property
    def working(self) -> bool:
        """False once a watch was refused or `Hints.working` is off."""
        return not self.cause

    @property
    def cause(self) -> str:
        return self._broken or ("" if self._fs.hints.working else "switched off")

    def watch(self, path: str, ring: Ring) -> None:
        self._fs.check_alive()
        try:
            inode = self._fs.disk.get(path, follow=True)
            if not isinstance(inode, Directory):
                fail(errno.ENOTDIR)
        except OSError as error:
            self._broken = f"watching {path}: {error.strerror}"
            return
        self._watches[path] = inode
        self._rings[inode.number] = ring
        if self not in inode.watchers:
            inode.watchers.append(self)

    def unwatch(self, path: str) -> None:
        inode = self._watches.pop(path, None)
        if inode is not None and self._rings.pop(inode.number, None) is not None:
            inode.watchers.remove(self)

    def close(self) -> None:
        for path in list(self._watches):
            self.unwatch(path)
        self.closed = True

    def changed(self, directory: Directory, name: str, created: bool) -> None:
        """The disk says that ``name`` was written to, or made."""
        hints, rng = self._fs.hints, self._fs.rng
        key = (directory.number, name, created)
        if not hints.working or key in self._ahead or (hints.loss and rng.random() < hints.loss):
            return
        self._ahead.add(key)
        self._loop.call_later(rng.uniform(*hints.delay_s), self._ring, key)
        if hints.double and rng.random() < hints.double:
            self._loop.call_later(rng.uniform(*hints.delay_s), self._ring, key)

    def _ring(self, key: tuple[int, str, bool]) -> None:
        self._ahead.discard(key)
        number, name, created = key
        ring = self._rings.get(number)
        if ring is None or self.closed:
            return
        overflow = self._fs.hints.overflow
        if overflow and self._fs.rng.random() < overflow:
            for each in list(self._rings.values()):
                each(None, True)
        else:
            ring(name, created)
