"""A mutant: one bug, as one replacement in one file of the package."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """A bug: what it is called, where it is planted, and the text that it replaces there."""

    name: str
    file: str
    old: str
    new: str
    redis: bool = False
    """Seen only where sites share a Redis."""
