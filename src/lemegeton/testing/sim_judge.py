"""Judging a simulated run: the checker, and what the harness knows better than the history tells.

The history names damaged messages by id, the harness by place as well: a gap over a place that it damaged has a cause,
also if the same id lies elsewhere, and the end of a lane that was torn off is reported as a dropped tail.  After a
power cut a subscription's place may be older than what it handled.  It is then owed nothing less and may get more:
records from before its ``start``, flagged as redelivered, or a gap over those of them and of what it settled that were
removed since.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise

from lemegeton.lane import Lane
from lemegeton.testing.checker import check, gap_key
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
        self.skipped: set[tuple[str, Lane, int]] = set()
        """Subscription and places of what expired and was not sent: it settled them without learning an id."""
        self.cut = False
        self.forgot: dict[str, list[int]] = {}
        """Channel, or "" for all → when a Redis lost something that it had of it."""
        self.cuts: dict[str, list[int]] = {}
        """Site → when it lost power."""
        self.starts: dict[tuple[str, str, str], list[tuple[int, Event]]] = {}
        self.acked: dict[tuple[str, str], tuple[int, Event]] = {}
        for at, event in enumerate(events):
            self._learn(at, event)

    def _learn(self, at: int, event: Event) -> None:
        if event.ev in ("ack", "start"):
            self.places[_lane(event), event.seq] = event.id
        if event.ev in ("done", "expired", "dead"):
            self._settle(event)
        if event.ev == "inv":
            self.invs.setdefault((event.ch, event.id), []).append(at)
        elif event.ev == "ack":
            self.acked.setdefault((event.ch, event.id), (at, event))
            self.acks.setdefault((event.ch, event.id), []).append(_lane(event))
        elif event.ev == "reg":
            self.regs.setdefault((event.sub, event.ch), at)
        elif event.ev == "gap":
            self.gaps[gap_key(event)] = event
        elif event.ev == "fault":
            self.cut = self.cut or event.kind == "power"
            if event.kind == "forgot":
                self.forgot.setdefault(event.ch, []).append(at)
            elif event.kind == "power":
                self.cuts.setdefault(event.site, []).append(at)
        elif event.ev == "start":
            self.starts.setdefault((event.sub, event.ch, event.id), []).append((at, event))
            if event.redel:
                self.flagged.add((event.sub, event.ch, event.id))

    def _settle(self, event: Event) -> None:
        if event.first:
            self.skipped.update((event.sub, _lane(event), seq) for seq in range(event.first, event.seq + 1))
        else:
            self.done.add((event.sub, event.ch, event.id))

    def explains(self, violation: Violation) -> bool:
        """True if the harness knows the reason."""
        if violation.kind == "gap":
            gap = self.gaps[violation.key]
            places = [(_lane(gap), seq) for seq in range(gap.first, gap.last + 1)]
            known = {self.places[place] for place in places
                     if place in self.places and (gap.sub, *place) not in self.skipped}
            settled = all(self._settled(gap.sub, (gap.ch, tag)) for tag in known)
            return any(place in self.gone for place in places) or (self.cut and settled)
        if violation.kind == "flag_budget":
            return self.cut
        if len(violation.key) != 3:
            return False
        sub, *rest = violation.key
        key = rest[0], rest[1]
        if self.forgot and self._forgotten(violation.kind, sub, key):
            return True
        if violation.kind == "unreported":
            return bool(self.tails.intersection(self.acks.get(key, ())))
        if violation.kind in ("order", "producer_order"):
            first = self.invs.get(key, [NEVER])[0]
            return self.cut and self._before_start(sub, key[0], first) and (sub, *key) in self.flagged
        return violation.kind == "false_flag" and self.cut and len(self.invs.get(key, ())) > 1

    def _forgotten(self, kind: str, sub: str, key: tuple[str, str]) -> bool:
        """True if it comes of a Redis that forgot, in one of the ways that the guarantees name."""
        starts = self.starts.get((sub, *key), [])
        if kind == "lost":
            # It was never met: what that Redis had of the lane when it was met began behind it.
            at, ack = self.acked[key]
            met = min((began for began, _ in self._of_chain(sub, ack)), default=2**62)
            return not starts and self._elsewhere(sub, ack) and self._forgot(key[0], at, met)
        if kind == "order" and starts:
            # A later incarnation was met first, as the Redis knew nothing of this one.
            at, start = starts[0]
            published = self.invs.get(key, [NEVER])[0]
            return self._elsewhere(sub, start) and self._forgot(key[0], published, at) and any(
                began < at and other.pinc > start.pinc for began, other in self._of_chain(sub, start))
        if kind == "doubled" and len(starts) > 1:
            # The marks went with the power of the reader's site, and the Redis did not know how far the lane went.
            return self._elsewhere(sub, starts[0][1]) and any(
                self._between(self.cuts.get(start.site, []), before, at) and self._forgot(key[0], before, at)
                for (before, _), (at, start) in pairwise(starts))
        return False

    def _of_chain(self, sub: str, place: Event) -> Iterator[tuple[int, Event]]:
        """Everything that the subscription was given of the same origin, channel and priority."""
        wanted = place.ch, place.origin, place.prio
        return ((at, start) for (name, *_), found in self.starts.items() if name == sub
                for at, start in found if (start.ch, start.origin, start.prio) == wanted)

    def _elsewhere(self, sub: str, place: Event) -> bool:
        """True if it was published on another site."""
        here = next((start.site for (name, *_), ((_, start), *_) in self.starts.items() if name == sub), "")
        published = next((ack.site for _, ack in self.acked.values() if ack.origin == place.origin), place.site)
        return here != published

    def _forgot(self, channel: str, after: int, before: int) -> bool:
        """True if a Redis lost something of this channel meanwhile."""
        return any(self._between(self.forgot.get(of, []), after, before) for of in ("", channel))

    @staticmethod
    def _between(found: list[int], after: int, before: int) -> bool:
        at = bisect_right(found, after)
        return at < len(found) and found[at] < before

    def _settled(self, sub: str, key: tuple[str, str]) -> bool:
        """True if the subscription has settled it, or was never owed any publish of it."""
        return (sub, *key) in self.done or self._before_start(sub, key[0], self.invs.get(key, [NEVER])[-1])

    def _before_start(self, sub: str, channel: str, inv_at: int) -> bool:
        """True if a publish lies before the subscription was registered."""
        return NEVER < inv_at < self.regs.get((sub, channel), NEVER)


def _lane(event: Event) -> Lane:
    return Lane(event.ch, event.origin, event.pinc, event.prio)
