"""Lanes: the unit of order.

A lane is what one origin, in one incarnation, published to one channel with one priority.  Its sequence counts
1, 2, 3 …; a reader keeps one number for it, the next sequence, and everything else follows from comparing.
"""

from __future__ import annotations

import hashlib
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

SPARSE = "foreign~"
"""How the origin of a lane begins that somebody else numbers, with holes that are none."""


class Lane(NamedTuple):
    """One numbered sequence of records with a single writer."""

    channel: str
    origin: str
    inc: int
    priority: int

    def __str__(self) -> str:
        return f"{self.channel} {self.origin}.{self.inc}.{self.priority}"


class Chain(NamedTuple):
    """The lanes of one origin, channel and priority: its incarnations, one handled after the end of the other."""

    channel: str
    origin: str
    priority: int


def chain_of(lane: Lane) -> Chain:
    """The chain a lane belongs to."""
    return Chain(lane.channel, lane.origin, lane.priority)


class Step(Enum):
    """What a record is to a reader that waits for a sequence."""

    NEXT = "next"
    COPY = "copy"
    GAP = "gap"


def step(expected: int, seq: int) -> Step:
    """How a record with ``seq`` relates to the ``expected`` one."""
    if seq == expected:
        return Step.NEXT
    return Step.COPY if seq < expected else Step.GAP


@lru_cache(maxsize=4096)
def lane_token(lane: Lane) -> str:
    """The beginning of every id that is made, not given, in this lane: 16 hex digits, the same for every process."""
    return hashlib.blake2b("\0".join(map(str, lane)).encode(), digest_size=8).hexdigest()


def made_id(lane: Lane, seq: int) -> str:
    """The id of a record whose sender gave none.  It names the position, so no window of ids has to remember it."""
    return f"{lane_token(lane)}-{seq:x}"


BRANCH = "~"
"""In an id that was made: what follows tells the records of two branches of a forked lane apart."""


def branch_id(ident: str, checksum: int) -> str:
    """The id of a record that is sent again after a fork: another record may have been handled under the old one."""
    return f"{ident}{BRANCH}{checksum:08x}"
