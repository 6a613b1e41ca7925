"""A mutant: one bug, as one replacement in one file of the package."""

from __future__ import annotations

from typing import NamedTuple


class Change(NamedTuple):
    """A text of a file, and what replaces it."""

    file: str
    old: str
    new: str


class Mutant(NamedTuple):
    """A bug: what it is called, and the change that makes it."""

    name: str
    file: str
    old: str
    new: str
    redis: bool = False
    """Seen only where sites share a Redis."""
    faults: tuple[str, ...] = ()
    """The kinds of faults that lead to it: seeds that draw most of them are tried first."""
    healers: tuple[Change, ...] = ()
    """What would heal it and is switched off; what is wrong of that alone does not count."""

    @property
    def change(self) -> Change:
        """The bug itself."""
        return Change(self.file, self.old, self.new)
