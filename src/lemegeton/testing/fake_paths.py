"""Where a path leads on a simulated disk: symbolic links, dots and the errors of Linux."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple, NoReturn

from lemegeton.testing.fake_inode import Directory, Inode, Symlink

LINKS_MAX = 40
NAME_MAX = 255
NAME_SAFE = NAME_MAX // 4
"""No name of this many characters can be too long in bytes."""


class Place(NamedTuple):
    """Where a path leads: the directory and the name in it, and what is there."""

    parent: Directory
    name: str
    inode: Inode | None


def fail(code: int, path: str | None = None, other: str | None = None) -> NoReturn:
    """Raise the `OSError` that the `os` functions raise."""
    if other is not None:
        raise OSError(code, os.strerror(code), path, None, other)
    if path is not None:
        raise OSError(code, os.strerror(code), path)
    raise OSError(code, os.strerror(code))


class Paths:
    """The paths below one root.  What is relative is relative to the root.

    Directories are remembered by path; whoever removes or renames anything but a file must call `forget`.
    """

    def __init__(self, root: Directory) -> None:
        self._root = root
        self._known: dict[str, Directory] = {}

    def forget(self) -> None:
        self._known.clear()

    def find(self, path: str, *, follow: bool = False) -> Place:
        """Where ``path`` leads; a missing last name has no inode, anything else missing raises."""
        head, _, name = path.rpartition("/")
        parent = self._known.get(head)
        if parent is None or name in ("", ".", "..") or len(name) > NAME_SAFE or "\0" in path:
            return self._walk(path, follow, self._root, 0)
        inode = parent.entries.get(name)
        if follow and isinstance(inode, Symlink):
            return self._walk(inode.target, True, parent, 1)
        return Place(parent, name, inode)

    def _walk(self, path: str, follow: bool, base: Directory, depth: int) -> Place:
        _check_path(path, depth)
        here = self._root if path[0] == "/" else base
        names = [name for name in path.split("/") if name and name != "."]
        if not names:
            return self._place(here)
        last = names.pop()
        for name in names:
            here = self._step(here, name, depth)
        if last == "..":
            return self._place(here.parent or self._root)
        if not depth:
            self._known[path.rpartition("/")[0]] = here
        inode = here.entries.get(last)
        if follow and isinstance(inode, Symlink):
            return self._walk(inode.target, True, here, depth + 1)
        return Place(here, last, inode)

    def _place(self, directory: Directory) -> Place:
        return Place(directory.parent or self._root, directory.name, directory)

    def _step(self, here: Directory, name: str, depth: int) -> Directory:
        found = here.parent if name == ".." else here.entries.get(name)
        if isinstance(found, Symlink):
            found = self._walk(found.target, True, here, depth + 1).inode
        if isinstance(found, Directory):
            return found
        fail(errno.ENOENT if found is None else errno.ENOTDIR)


def _check_path(path: str, depth: int) -> None:
    if "\0" in path:
        raise ValueError("embedded null byte")
    if not path:
        fail(errno.ENOENT)
    if depth > LINKS_MAX:
        fail(errno.ELOOP)
    for name in path.split("/"):
        if len(name) > NAME_SAFE and len(os.fsencode(name)) > NAME_MAX:
            fail(errno.ENAMETOOLONG)


def check_rename(inode: Inode, source: Place, target: Place) -> None:
    """Raise what `rename(2)` of Linux raises; ``inode`` is what ``source`` names."""
    if not source.name or not target.name:
        fail(errno.EBUSY)
    if inode is target.inode:
        return
    above: Directory | None = target.parent
    while above is not None and above.name:
        if above is inode:
            fail(errno.EINVAL)
        above = above.parent
    victim = target.inode
    if victim is None:
        return
    if isinstance(inode, Directory):
        if not isinstance(victim, Directory):
            fail(errno.ENOTDIR)
        if victim.entries:
            fail(errno.ENOTEMPTY)
    elif isinstance(victim, Directory):
        fail(errno.EISDIR if not _holds(victim, source.parent) else errno.ENOTEMPTY)


def _holds(directory: Directory, inside: Directory | None) -> bool:
    while inside is not None and inside.name:
        if inside is directory:
            return True
        inside = inside.parent
    return False
