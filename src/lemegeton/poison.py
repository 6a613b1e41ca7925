"""Poison: a message in whose handler one process after another ends.

The marks of a lane say that a record was begun, not how often.  What an earlier process may have begun is counted in two
more words of the lane's row, which a record that comes for the first time never touches::

    since    Unix ms of when it came again for the first time
    lives    its sequence (48 bits) ┬ processes that had it (15 bits) ┬ alone (1 bit)

Whatever was in a handler beside the poison is counted with it.  So the last chance is taken *alone*: of all messages that
have come so far only one at a time is in a handler, and only one that was alone when its process ended is poison.
"""

from __future__ import annotations

from dataclasses import dataclass

from lemegeton.checkpoint import lives_at

LIVES_MAX = 2**15 - 1
_SEQ_MASK = 2**48 - 1


@dataclass(frozen=True, slots=True)
class Past:
    """What earlier processes had to do with a record: how many had it, since when, whether the last one tried it alone.

    ``counted`` is false where nothing but an intent tells of them."""

    lives: int
    since_ms: int = 0
    alone: bool = False
    counted: bool = False

    def last_chance(self, attempts: int) -> bool:
        """True if the next attempt is the last of those allowed."""
        return self.counted and self.lives + 1 >= attempts


def past_of(cells: memoryview, row: int, seq: int, begun: bool) -> Past:
    """The past of a record; ``begun`` says that an intent was left for it."""
    word = cells[lives_at(row)]
    if word >> 16 != seq & _SEQ_MASK:
        return Past(int(begun))
    return Past(word >> 1 & LIVES_MAX, cells[lives_at(row) - 1], bool(word & 1), counted=True)


def remember(cells: memoryview, row: int, seq: int, past: Past) -> None:
    """Store it: it counts by its last store, one of 8 bytes, as every mark."""
    cells[lives_at(row) - 1] = past.since_ms
    cells[lives_at(row)] = (seq & _SEQ_MASK) << 16 | min(past.lives, LIVES_MAX) << 1 | past.alone


class Turn:
    """Who of all subscriptions of a bus takes a last chance now."""

    def __init__(self) -> None:
        self._taken = False

    def take(self) -> bool:
        """True if nobody else has it; give it back with `leave`."""
        taken, self._taken = self._taken, True
        return not taken

    def leave(self) -> None:
        """Let the next one have it."""
        self._taken = False
