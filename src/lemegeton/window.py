"""The id window: which ids that were given, not made, this subscription has handled.

A made id names its position, so sequence numbers already tell copies of it.  An id from outside (a foreign message, a
drop-in, a sender's own) does not: it is remembered, for the last 100,000 ids and 24 hours, in a ring on disk beside the
checkpoint::

    cursors/{subscription}.ids      slots of 32 bytes: blake2b-128 of channel and id, running number, Unix ms

The file is mapped, like the checkpoint, and has its room before a handler is called: what was handled can be remembered
whatever becomes of the disk meanwhile.  A slot becomes valid by its last store, that of the number.
"""

from __future__ import annotations

import hashlib
import os
import struct

from lemegeton.home import OWN_FILE
from lemegeton.seams import Fs

IDS_MAX = 100_000
AGE_MAX_MS = 24 * 3_600_000
NUMBER_MAX = 2**62
GROW_SLOTS = 4096
"""How much room is taken at a time."""
AHEAD_SLOTS = 1024
"""As many handlers may be at a message with a given id when the disk fills up, and still all be remembered."""
_SLOT = struct.Struct("=16sQQ")
_WORDS = _SLOT.size // 8


class IdWindow:
    """Remembers ids; bounded by number and age.

    With a path every `add` survives SIGKILL; the file is made by the first `reserve`.  A slot that is not where its
    number belongs was torn or damaged, and counts as empty.
    """

    def __init__(self, fs: Fs, path: str | None, *, ids_max: int = IDS_MAX) -> None:
        self._fs = fs
        self._path = path
        self._ids_max = ids_max
        self._fd = -1
        self._count = 0
        self._allocated = 0
        self._cells = memoryview(b"").cast("Q")
        self._mapped: memoryview | None = None
        self._seen: dict[bytes, int] = {}
        self._unsaved: dict[bytes, int] = {}
        if path is not None:
            self._load(path)

    def _load(self, path: str) -> None:
        try:
            self._fd = self._fs.open(path, OWN_FILE & ~os.O_CREAT)
        except FileNotFoundError:
            return
        data = self._fs.pread(self._fd, self._ids_max * _SLOT.size, 0)
        slots = enumerate(_SLOT.iter_unpack(data[: len(data) // _SLOT.size * _SLOT.size]))
        right = [slot for at, slot in slots if any(slot[0]) and slot[1] % self._ids_max == at and slot[1] < NUMBER_MAX]
        for digest, number, stamp in sorted(right, key=lambda slot: slot[1]):
            self._seen.pop(digest, None)
            self._seen[digest] = stamp
            self._count = max(self._count, number + 1)
        self._allocated = len(data) // _SLOT.size

    def __contains__(self, key: tuple[str, str, int]) -> bool:
        """True if this (channel, id) was added less than 24 h before the given Unix ms."""
        channel, ident, now_ms = key
        stamp = self._seen.get(_digest(channel, ident))
        return stamp is not None and now_ms - stamp < AGE_MAX_MS

    def reserve(self) -> None:
        """Take room for what a handler that is called now has to have remembered; ``OSError`` where that cannot be had.

        Whoever calls the handler first and then cannot remember it must not settle it: it would be handled again."""
        self.save()
        if self._path is not None:
            self._reach(self._path, min(self._count + AHEAD_SLOTS, self._ids_max))

    def add(self, channel: str, ident: str, now_ms: int) -> None:
        """Remember an id; on disk when this returns, if the window has a path.

        Where the disk refuses it (``OSError``) it is remembered while the process lives, and `save` tries again.
        """
        digest = _digest(channel, ident)
        self._seen.pop(digest, None)
        self._seen[digest] = now_ms
        while len(self._seen) > self._ids_max:
            del self._seen[next(iter(self._seen))]
        self._unsaved[digest] = now_ms
        self.save()

    def save(self) -> None:
        """Bring to disk what an `add` could not; a copy may only be settled on the word of an id that survives."""
        while self._unsaved:
            digest, stamp = next(iter(self._unsaved.items()))
            if self._path is not None:
                self._store(self._path, digest, stamp)
            self._count += 1
            del self._unsaved[digest]

    def _store(self, path: str, digest: bytes, stamp: int) -> None:
        at = self._count % self._ids_max
        self._reach(path, at + 1)
        cells, word = self._cells, at * _WORDS
        cells[word + 2] = NUMBER_MAX  # no number: until the last store the slot counts as empty
        cells[word], cells[word + 1] = memoryview(digest).cast("Q")
        cells[word + 3] = stamp
        cells[word + 2] = self._count

    def _reach(self, path: str, slots: int) -> None:
        """Have so many slots mapped, allocated before: a store into a hole of a full disk is a SIGBUS."""
        if slots * _WORDS <= len(self._cells):
            return
        if self._fd < 0:
            self._fd = self._fs.open(path, OWN_FILE, 0o600)
        if slots > self._allocated:
            room = min(max(slots, self._allocated + GROW_SLOTS), self._ids_max)
            self._fs.allocate(self._fd, 0, room * _SLOT.size)
            self._allocated = room
        mapped = self._fs.map(self._fd, self._allocated * _SLOT.size)
        self._unmap()
        self._mapped, self._cells = mapped, mapped.cast("Q")

    def _unmap(self) -> None:
        self._cells.release()
        if self._mapped is not None:
            self._mapped.release()
            self._mapped = None
        self._cells = memoryview(b"").cast("Q")

    def close(self) -> None:
        """Let the file go."""
        self._unmap()
        if self._fd >= 0:
            self._fs.close(self._fd)
            self._fd = -1


def _digest(channel: str, ident: str) -> bytes:
    return hashlib.blake2b(f"{channel}\0{ident}".encode(), digest_size=16).digest()
