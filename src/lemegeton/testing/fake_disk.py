"""The disk of one simulated site: a tree of inodes that loses power, fills up, fails and rots.

Entries are journaled.  A change of a directory (an entry made, removed or renamed, each whole or not at all) is on the
disk once that directory was synced; a power cut keeps, of the others, a random prefix (ext4) or a random subset.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Literal, NamedTuple

from lemegeton.testing.fake_inode import Damage, Directory, File, Inode, Symlink, corrupt_file
from lemegeton.testing.fake_paths import Paths, Place, check_rename, fail

if TYPE_CHECKING:
    from lemegeton.testing.fake_fs import FakeFs


class Change(NamedTuple):
    """A change that no fsync of a directory has brought to the disk: made (no source), removed (no target), renamed."""

    source: Directory | None
    target: Directory | None
    name: str
    inode: Inode


class FakeDisk:
    """One site: its files, its page cache and the processes that have them open.

    ``clock`` gives ``st_mtime`` in seconds; ``capacity`` is the sum of all file sizes; ``read_only`` refuses every
    change with EROFS.  Both may be set at any time.  Permissions are recorded, not enforced.
    """

    def __init__(self, rng: Random, *, clock: Callable[[], float] = lambda: 0.0, capacity: int | None = None,
                 device: int = 1) -> None:
        self.rng = rng
        self.clock = clock
        self.capacity = capacity
        self.device = device
        self.read_only = False
        self.used = 0
        self.boots = 1
        self.processes: list[FakeFs] = []
        self._machine = f"{rng.getrandbits(64):016x}"
        self._numbers = 1
        self._journal: list[Change] = []
        self.root = Directory(self._number(), 0o755, 0, clock())
        self.root.parent = self.root
        self.root.nlink = 1
        self._paths = Paths(self.root)
        self.find = self._paths.find

    @property
    def boot_id(self) -> str:
        """Changes with every power cut."""
        return f"boot-{self._machine}-{self.boots}"

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    # Entries

    def get(self, path: str, *, follow: bool = False) -> Inode:
        """The inode at ``path``, or ENOENT."""
        inode = self.find(path, follow=follow).inode
        if inode is None:
            fail(errno.ENOENT)
        return inode

    def check_writable(self) -> None:
        if self.read_only:
            fail(errno.EROFS)

    def make_file(self, place: Place, mode: int, uid: int) -> File:
        self.check_writable()
        inode = File(self._number(), mode, uid, self.clock())
        self.link(inode, place.parent, place.name)
        return inode

    def make_directory(self, place: Place, mode: int, uid: int) -> None:
        self.check_writable()
        self.link(Directory(self._number(), mode, uid, self.clock()), place.parent, place.name)

    def link(self, inode: Inode, parent: Directory, name: str) -> None:
        """Make the entry of a new inode and ring."""
        inode.nlink += 1
        self._journal.append(Change(None, parent, name, inode))
        self._enter(inode, parent, name)

    def _enter(self, inode: Inode, parent: Directory, name: str) -> None:
        parent.entries[name] = inode
        parent.mtime = self.clock()
        inode.parent, inode.name = parent, name
        self.ring(inode, created=True)

    def unlink(self, place: Place) -> None:
        self.check_writable()
        inode = place.inode
        if inode is None:
            fail(errno.ENOENT)
        if isinstance(inode, Directory):
            fail(errno.EISDIR)
        self._journal.append(Change(place.parent, None, "", inode))
        del place.parent.entries[place.name]
        place.parent.mtime = self.clock()
        self._drop(inode)
        if isinstance(inode, Symlink):
            self._paths.forget()

    def _drop(self, inode: Inode) -> None:
        inode.nlink -= 1
        if not inode.nlink:
            inode.parent = None
        self.forget(inode)

    def forget(self, inode: Inode) -> None:
        """Give the room of a file back that has neither name nor descriptor."""
        if isinstance(inode, File) and not inode.nlink and not inode.opens:
            self.used -= inode.size

    def rename(self, source: Place, target: Place) -> None:
        """`rename(2)` of Linux."""
        self.check_writable()
        inode = source.inode
        if inode is None:
            fail(errno.ENOENT)
        check_rename(inode, source, target)
        if inode is target.inode:
            return
        if target.inode is not None:
            self._drop(target.inode)
        del source.parent.entries[source.name]
        source.parent.mtime = self.clock()
        self._journal.append(Change(source.parent, target.parent, target.name, inode))
        self._enter(inode, target.parent, target.name)
        if not isinstance(inode, File) or isinstance(target.inode, Symlink):
            self._paths.forget()

    def ring(self, inode: Inode, *, created: bool) -> None:
        """Tell whoever watches the directory of ``inode``."""
        parent = inode.parent
        if parent is not None and parent.watchers:
            for bell in parent.watchers:
                bell.changed(parent, inode.name, created)

    # Content

    def room(self) -> int | None:
        """Bytes that files may still grow by."""
        return None if self.capacity is None else max(0, self.capacity - self.used)

    def write(self, inode: File, data: bytes, offset: int) -> int:
        """Write what fits; ENOSPC if nothing does."""
        self.check_writable()
        if not data:
            return 0
        growth = offset + len(data) - inode.size
        room = self.room() if growth > 0 else None
        if room is not None and growth > room:
            data = data[: max(0, len(data) - (growth - room))]
            if not data:
                fail(errno.ENOSPC)
        before = inode.size
        inode.write(data, offset)
        self._changed(inode, before)
        return len(data)

    def allocate(self, inode: File, length: int) -> None:
        self.check_writable()
        before = inode.size
        room = self.room()
        if room is not None and length - before > room:
            fail(errno.ENOSPC)
        inode.grow(length)
        self._changed(inode, before)

    def truncate(self, inode: File) -> None:
        self.check_writable()
        before = inode.size
        inode.truncate(0)
        self._changed(inode, before)

    def _changed(self, inode: File, before: int) -> None:
        self.used += inode.size - before
        inode.mtime = self.clock()
        self.ring(inode, created=False)

    # What reaches the disk

    def sync_inode(self, inode: Inode) -> None:
        """`fsync`: the content of a file, the entries of a directory."""
        if isinstance(inode, File):
            inode.sync()
        elif isinstance(inode, Directory):
            self._sync_entries(inode)

    def _sync_entries(self, directory: Directory) -> None:
        """A rename ties two directories together, and what came before it in either goes with it."""
        touched: list[Inode] = [directory]
        due: list[Change] = []
        left: list[Change] = []
        for change in reversed(self._journal):
            ends = [end for end in (change.source, change.target) if end is not None]
            if any(end in touched for end in ends):
                touched += [end for end in ends if end not in touched]
                due.append(change)
            else:
                left.append(change)
        for change in reversed(due):
            _replay(change)
        self._journal = left[::-1]

    def sync(self) -> None:
        """Everything, as a kernel does by itself after half a minute."""
        for change in self._journal:
            _replay(change)
        self._journal.clear()
        for inode in _reachable(self.root, on_disk=False):
            if isinstance(inode, File):
                inode.sync()

    def power(self, rng: Random) -> None:
        """Cut the power and boot again: every process is dead, what was not synced is lost or kept at random.

        Of a file: its synced content, and a random part of the sectors or pages written since; its length is the old
        one, the new one or cut at any byte between.  An aligned 8-byte store into a map never tears.
        """
        for process in list(self.processes):
            process.kill()
        for change in self._survivors(rng):
            _replay(change)
        self._journal.clear()
        self._paths.forget()
        self.boots += 1
        self._boot(rng)

    def _boot(self, rng: Random) -> None:
        inodes = _reachable(self.root, on_disk=True)
        for inode in inodes:
            inode.restart()
        self.root.nlink = 1
        self.used = 0
        for inode in inodes:
            if isinstance(inode, Directory):
                for name, child in inode.entries.items():
                    child.nlink += 1
                    child.parent, child.name = inode, name
            elif isinstance(inode, File):
                inode.lose_power(rng)
                self.used += inode.size

    def _survivors(self, rng: Random) -> list[Change]:
        if rng.random() < 0.5:
            return self._journal[: rng.randint(0, len(self._journal))]
        keep = rng.choice((0.0, 0.5, 0.9, 1.0))
        return [change for change in self._journal if rng.random() < keep]

    # For tests

    def read(self, path: str) -> bytes:
        """The content of a file, as any process would read it."""
        inode = self.get(path)
        assert isinstance(inode, File)
        return inode.read(inode.size, 0)

    def plant(self, path: str, kind: Literal["symlink", "fifo", "hardlink"], target: str = "", uid: int = 0) -> None:
        """Put something hostile at ``path``; it is on the disk when its directory is."""
        place = self.find(path)
        if place.inode is not None:
            fail(errno.EEXIST, path)
        if kind == "symlink":
            inode: Inode = Symlink(self._number(), uid, self.clock(), target)
        elif kind == "fifo":
            inode = Inode(self._number(), stat.S_IFIFO | 0o600, uid, self.clock())
        else:
            inode = self.get(target)
        self.link(inode, place.parent, place.name)
        _replay(self._journal.pop())

    def chmod(self, path: str, mode: int) -> None:
        """Change the permission bits."""
        inode = self.get(path)
        inode.mode = stat.S_IFMT(inode.mode) | mode

    def chown(self, path: str, uid: int) -> None:
        """Give it to another user."""
        self.get(path).uid = uid

    def corrupt(self, path: str, kind: Damage, rng: Random) -> tuple[int, int]:
        """Damage a file, in the page cache and on the disk; the range of bytes that is not what was written.

        ``flip`` changes a byte, ``zero`` a page, ``garbage`` appends, ``duplicate`` inserts a copy of a block behind
        it, ``truncate`` cuts (the range is what is gone).
        """
        inode = self.get(path)
        assert isinstance(inode, File)
        before = inode.size
        damaged = corrupt_file(inode, kind, rng)
        self.used += inode.size - before
        return damaged


def _replay(change: Change) -> None:
    """Bring a change to the disk.  The entry that goes is the one the disk has, whatever the page cache called it."""
    inode = change.inode
    if change.source is not None and inode.place is not None:
        directory, name = inode.place
        if directory.image.get(name) is inode:
            del directory.image[name]
        inode.place = None
    if change.target is not None:
        change.target.image[change.name] = inode
        inode.place = change.target, change.name


def _reachable(root: Directory, *, on_disk: bool) -> list[Inode]:
    """Every inode with a name, once, in an order that only the names decide."""
    found: dict[int, Inode] = {root.number: root}
    ahead = [root]
    while ahead:
        directory = ahead.pop()
        entries = directory.image if on_disk else directory.entries
        for _, inode in sorted(entries.items(), key=lambda entry: entry[0]):
            if inode.number not in found:
                found[inode.number] = inode
                if isinstance(inode, Directory):
                    ahead.append(inode)
    return list(found.values())
