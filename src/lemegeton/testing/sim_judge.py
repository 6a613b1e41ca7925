"""Judging a simulated run: the checker, and what the harness knows better than the history tells.

The history names damaged messages by id, the harness by place as well: a gap over a place that it damaged has a cause,
also if the same id lies elsewhere, and the end of a lane that was torn off is reported as a dropped tail.  After a
power cut a subscription's place may be older than what it handled.  It is then owed nothing less and may get more:
records from before its ``start``, flagged as redelivered, or a gap over those of them and of what it settled that were
removed since.
"""

from __future__ import annotations

from collections.abc import Iterator

from lemegeton.lane import Lane
from lemegeton.testing.checker import check
from lemegeton.testing.history import NEVER, Event
from lemegeton.testing.violation import Violation


def judge(events: list[Event], gone: set[tuple[Lane, int]], tails: set[Lane]) -> Iterator[Violation]:
    """What `check` finds and nothing explains; ``gone`` are the places damaged, ``tails`` the lanes with torn ends."""
    found = check(events)
    known = _Known(events, gone, tails) if found else None
    for violation in found:
        if known is None or not known.explains(violation):
            yield violation


class _Known:
    """What is asked of a history when a violation has to be explained."""

    def __init__(self, events: list[Event], gone: set[tuple[Lane, int]], tails: set[Lane]) -> None:
        self.gone = gone
        self.tails = tails
        self.invs: dict[tuple[str, str], list[int]] = {}
        self.regs: dict[tuple[str, str], int] = {}
        self.acks: dict[tuple[str, str], list[Lane]] = {}
        self.gaps: dict[tuple[str, ...], Event] = {}
        self.flagged: set[tuple[str, str, str]] = set()
        self.places: dict[tuple[Lane, int], str] = {}
        self.done: set[tuple[str, str, str]] = set()
        self.cut = False
        for at, event in enumerate(events):
            self._learn(at, event)

    def _learn(self, at: int, event: Event) -> None:
        if event.ev in ("ack", "start"):
            self.places[_lane(event), event.seq] = event.id
        if event.ev in ("done", "expired", "dead"):
            self.done.add((event.sub, event.ch, event.id))
        if event.ev == "inv":
            self.invs.setdefault((event.ch, event.id), []).append(at)
        elif event.ev == "ack":
            self.acks.setdefault((event.ch, event.id), []).append(_lane(event))
        elif event.ev == "reg":
            self.regs.setdefault((event.sub, event.ch), at)
        elif event.ev == "gap":
            self.gaps[event.sub, event.ch, str(event.first), str(event.last)] = event
        elif event.ev == "fault":
            self.cut = self.cut or event.kind == "power"
        elif event.ev == "start" and event.redel:
            self.flagged.add((event.sub, event.ch, event.id))

    def explains(self, violation: Violation) -> bool:
        """True if the harness knows the reason."""
        if violation.kind == "gap":
            gap = self.gaps[violation.key]
            places = [(_lane(gap), seq) for seq in range(gap.first, gap.last + 1)]
            known = {self.places[place] for place in places if place in self.places}
            settled = all(self._settled(gap.sub, (gap.ch, tag)) for tag in known)
            return any(place in self.gone for place in places) or (self.cut and settled)
        if violation.kind == "flag_budget":
            return self.cut
        if len(violation.key) != 3:
            return False
        sub, *rest = violation.key
        key = rest[0], rest[1]
        if violation.kind == "unreported":
            return bool(self.tails.intersection(self.acks.get(key, ())))
        if violation.kind in ("order", "producer_order"):
            first = self.invs.get(key, [NEVER])[0]
            return self.cut and self._before_start(sub, key[0], first) and (sub, *key) in self.flagged
        return violation.kind == "false_flag" and self.cut and len(self.invs.get(key, ())) > 1

    def _settled(self, sub: str, key: tuple[str, str]) -> bool:
        """True if the subscription has settled it, or was never owed any publish of it."""
        return (sub, *key) in self.done or self._before_start(sub, key[0], self.invs.get(key, [NEVER])[-1])

    def _before_start(self, sub: str, channel: str, inv_at: int) -> bool:
        """True if a publish lies before the subscription was registered."""
        return NEVER < inv_at < self.regs.get((sub, channel), NEVER)


def _lane(event: Event) -> Lane:
    return Lane(event.ch, event.origin, event.pinc, event.prio)
