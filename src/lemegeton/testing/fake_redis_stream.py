"""A stream of the simulated Redis: entries in nodes, because ``MAXLEN ~`` removes nothing but whole nodes.

How full a node gets is decided by the bytes of its listpack, so those are counted as a server counts them; deleted
entries keep their bytes and their place until the whole node goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import copy
from typing import NamedTuple

NODE_ENTRIES = 100
NODE_BYTES = 4096
"""`stream-node-max-entries` and `stream-node-max-bytes`, as a server has them unless it is told otherwise."""
TRIM_ENTRIES_MAX = 100 * NODE_ENTRIES
"""How much one ``~`` removes at most."""
SEQ_MAX = 2**64 - 1

StreamId = tuple[int, int]
FIRST: StreamId = (0, 0)
LAST: StreamId = (SEQ_MAX, SEQ_MAX)


class Entry(NamedTuple):
    """What was added: names and values in turn."""

    id: StreamId
    fields: tuple[bytes, ...]


class Trim(NamedTuple):
    """What a trim keeps: the last ``length`` entries, or those from ``least`` on; ``about``: and perhaps more."""

    about: bool
    length: int | None
    least: StreamId = FIRST


class Node:
    """Some consecutive entries."""

    __slots__ = ("_names", "_size", "entries", "first", "last", "taken")

    def __init__(self, first: Entry) -> None:
        self.first = self.last = first.id
        self._names = first.fields[::2]
        self.entries: list[Entry] = []
        self.taken = 0
        """Entries, with the deleted ones."""
        self._size = 7 + sum(map(_int_size, (1, 0, len(self._names), 0))) + sum(map(_size, self._names))

    def __copy__(self) -> Node:
        """The same node, on its own."""
        other = Node.__new__(Node)
        other.first, other.last, other.taken = self.first, self.last, self.taken
        other._names, other._size = self._names, self._size
        other.entries = self.entries.copy()
        return other

    def takes(self, entry: Entry) -> bool:
        """False once a new node has to be begun."""
        return self._size + sum(map(len, entry.fields)) < NODE_BYTES and self.taken < NODE_ENTRIES

    def add(self, entry: Entry) -> None:
        """Put it at the end."""
        names, values = entry.fields[::2], entry.fields[1::2]
        ahead = (2, _signed(entry.id[0] - self.first[0]), _signed(entry.id[1] - self.first[1]))
        self._size += sum(map(_int_size, ahead)) + sum(map(_size, values))
        count = len(names) + 3
        if names != self._names:
            self._size += _int_size(len(names)) + sum(map(_size, names))
            count += len(names) + 1
        self._size += _int_size(count)
        self.taken += 1
        self.last = entry.id
        self.entries.append(entry)


class Stream:
    """See the module."""

    def __init__(self) -> None:
        self.last: StreamId = FIRST
        self._nodes: list[Node] = []
        self.length = 0

    def __copy__(self) -> Stream:
        """The same stream, on its own."""
        other = Stream()
        other.last, other.length = self.last, self.length
        other._nodes = [copy(node) for node in self._nodes]
        return other

    def next_id(self, now_ms: int) -> StreamId:
        """What ``*`` stands for: never below an id that this stream ever had."""
        return (now_ms, 0) if now_ms > self.last[0] else (self.last[0], self.last[1] + 1)

    def add(self, ident: StreamId, fields: Sequence[bytes]) -> None:
        """Append; the id is above the last."""
        entry = Entry(ident, tuple(fields))
        if not self._nodes or not self._nodes[-1].takes(entry):
            self._nodes.append(Node(entry))
        self._nodes[-1].add(entry)
        self.last = ident
        self.length += 1

    def __iter__(self) -> Iterator[Entry]:
        for node in self._nodes:
            yield from node.entries

    def between(self, start: StreamId, end: StreamId, *, back: bool = False) -> list[Entry]:
        """The entries from ``start`` to ``end``, both included."""
        found = [entry for entry in self if start <= entry.id <= end]
        return found[::-1] if back else found

    def delete(self, idents: Sequence[StreamId]) -> int:
        """Take out the entries with these ids; how many there were."""
        gone = 0
        wanted = set(idents)
        for node in self._nodes:
            left = [entry for entry in node.entries if entry.id not in wanted]
            gone += len(node.entries) - len(left)
            node.entries = left
        self.length -= gone
        self._nodes = [node for node in self._nodes if node.entries]
        return gone

    def trim(self, trim: Trim) -> int:
        """Take out from the head what is not to be kept; how many entries."""
        gone = whole_nodes = 0
        for node in self._nodes:
            count = len(node.entries)
            left = self.length - gone
            if trim.length is not None and left <= trim.length:
                break
            if trim.about and gone + count > TRIM_ENTRIES_MAX:
                break
            whole = node.last < trim.least if trim.length is None else left - count >= trim.length
            if trim.about and not whole:
                break
            if trim.length is not None:
                cut = min(count, left - trim.length)
            else:
                cut = sum(entry.id < trim.least for entry in node.entries)
            del node.entries[:cut]
            gone += cut
            if not whole:
                break
            whole_nodes += 1
        self.length -= gone
        del self._nodes[:whole_nodes]
        return gone


def id_text(ident: StreamId) -> bytes:
    """An id as a server writes it."""
    return b"%d-%d" % ident


# ── how many bytes of a listpack something takes ──────────────────────────────────────────────────────────────────────

_CANONICAL = re.compile(rb"0|-?[1-9][0-9]{0,18}")


def integer_of(data: bytes) -> int | None:
    """The number that is written there as a server would write it; None for anything else."""
    if not _CANONICAL.fullmatch(data):
        return None
    number = int(data)
    return number if -(2**63) <= number < 2**63 else None


def _size(data: bytes) -> int:
    number = integer_of(data)
    if number is not None:
        return _int_size(number)
    count = len(data)
    return _with_back(count + (1 if count < 64 else 2 if count < 4096 else 5))


def _int_size(number: int) -> int:
    if 0 <= number <= 127:
        return 2
    for bits, size in ((13, 2), (16, 3), (24, 4), (32, 5)):
        if -(1 << bits - 1) <= number < 1 << bits - 1:
            return _with_back(size)
    return _with_back(9)


def _with_back(size: int) -> int:
    """The length stands once more behind the element, seven bits a byte."""
    return size + (1 if size <= 127 else 2 if size < 16383 else 3 if size < 2097151 else 4)


def _signed(number: int) -> int:
    """A difference as 64 bits hold it."""
    return (number + 2**63) % 2**64 - 2**63
