"""Retention: which segments may go.  Pure: it is told what there is and answers what to remove.

A segment may go when every durable subscription whose pattern matches its channel has settled its last record; of
those, the oldest go until the rest fits the ``disk_budget``, and leaves as much room under the ``disk_limit`` as it
takes: what nobody needs any more must not keep a publisher waiting.  Subscriptions of other sites count like those here,
and what the shared Redis has not taken stays.  Where no durable subscription matches it stays for
``message_max_age``; dead letters stay for ``dead_letter_max_age``.  The last segment of a chain stays as long as the
origin can be taken over: its end is where the next owner goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lemegeton.channels import DEAD_LETTER
from lemegeton.lane import Lane


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """A segment on disk: its records ``first`` to ``last`` (only known when another one follows) and its size."""

    lane: Lane
    first: int
    last: int
    bytes: int
    modified_ms: int
    final: bool
    """True for the last segment of the last incarnation of its chain, if its origin may go on there."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A durable subscription: which channels it listens to and how far it has settled a lane."""

    name: str
    matches: Callable[[str], bool]
    settled: Callable[[Lane], int]


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that decide; times in milliseconds, sizes in bytes."""

    disk_budget: int
    message_max_age_ms: int
    dead_letter_max_age_ms: int
    remove_at_once: bool
    disk_limit: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What to remove, what stays (bytes), and which subscription holds the most of it."""

    remove: Sequence[SegmentInfo]
    used: int
    holder: str


NOBODY = "no durable subscription; records stay for message_max_age or are young"


FLOOR_MS = 600_000
"""How long a record stays that a Redis took: so long it can be filled in again if that Redis forgets it before a
subscription of another site was known here.  Where the home is half full, what is settled goes all the same."""


def plan(
    segments: Sequence[SegmentInfo], holders: Sequence[Holder], now_ms: int, policy: Policy, relayed: Holder | None = None
) -> Plan:
    """Decide for all segments of a home at once.

    ``relayed`` stands for the shared Redis, where there is one: what that has not taken stays, whoever settled it."""
    crowded = _bytes(segments) > policy.disk_limit // 2
    blockers = [*holders, relayed] if relayed is not None else holders
    remove: list[SegmentInfo] = []
    settled: list[SegmentInfo] = []
    held: Counter[str] = Counter()
    for segment in segments:
        blocking = None if segment.final else _blocking(segment, blockers)
        if blocking:
            held[blocking] += segment.bytes
        elif segment.final:
            held.update(_final_holders(segment, blockers))
        elif relayed is not None and not crowded and now_ms - segment.modified_ms < FLOOR_MS:
            continue
        elif _aged_only(segment, holders):
            if now_ms - segment.modified_ms > _age_ms(segment, policy):
                remove.append(segment)
        else:
            settled.append(segment)
    needed = _bytes(segments) - _bytes(settled) - _bytes(remove)
    budget = 0 if policy.remove_at_once else min(policy.disk_budget, (policy.disk_limit - needed) // 2)
    remove.extend(_over_budget(settled, budget))
    used = _bytes(segments) - _bytes(remove)
    return Plan(remove, used, held.most_common(1)[0][0] if held else NOBODY)


def _blocking(segment: SegmentInfo, holders: Iterable[Holder]) -> str:
    """The name of a subscription that has not settled the segment; empty if there is none."""
    for holder in holders:
        if holder.matches(segment.lane.channel) and holder.settled(segment.lane) < segment.last:
            return holder.name
    return ""


def _final_holders(segment: SegmentInfo, holders: Iterable[Holder]) -> dict[str, int]:
    return {h.name: segment.bytes for h in holders
            if h.matches(segment.lane.channel) and h.settled(segment.lane) < segment.first}


def _aged_only(segment: SegmentInfo, holders: Iterable[Holder]) -> bool:
    """True if only its age lets the segment go."""
    channel = segment.lane.channel
    return channel.startswith(DEAD_LETTER) or not any(holder.matches(channel) for holder in holders)


def _age_ms(segment: SegmentInfo, policy: Policy) -> int:
    dead = segment.lane.channel.startswith(DEAD_LETTER)
    return policy.dead_letter_max_age_ms if dead else policy.message_max_age_ms


def _bytes(segments: Iterable[SegmentInfo]) -> int:
    return sum(segment.bytes for segment in segments)


def _over_budget(settled: list[SegmentInfo], budget: int) -> list[SegmentInfo]:
    """The oldest settled segments, until what is left of them fits the budget.

    Within a lane a segment never goes before an earlier one: ``first`` breaks ties of a coarse clock."""
    left = _bytes(settled)
    gone: list[SegmentInfo] = []
    for segment in sorted(settled, key=lambda s: (s.modified_ms, s.lane, s.first)):
        if left <= budget:
            break
        gone.append(segment)
        left -= segment.bytes
    return gone
