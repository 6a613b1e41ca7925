"""The checker: says, of a recorded history, every way in which the bus broke its word.

A pure function over the events of `history`.  One pass sorts them into a `Story`, then every check reads that by
itself; all are streams over dicts, so a million events take some seconds.  Order in the history is the order of the
list, never ``t``: events of a virtual clock share their time.

================ ===================================================================================================
kind             what was seen
================ ===================================================================================================
lost             acknowledged, owed, not settled, and the subscription went past it
stuck            acknowledged, owed, not settled, and the subscription never went past it
unreported       damaged bytes were passed over without a gap or corrupt event
gap              a gap where no cap allows one and no byte was lost
doubled          handled again without a flag, or with a flag that no crash explains
copied           the same, where both have the same id at different positions
false_flag       the first handling is flagged as redelivered and no crash explains it
flag_budget      more flagged deliveries than crashes × lanes
order            first handlings of an origin's channel and priority do not increase
producer_order   first handlings do not follow the order in which one life of the sender published
overlap          a handler began while the one before it in its lane was not settled
payload          the digest is not that of the published payload
wrong_channel    handled on a channel where it was not published
unknown          nobody published it
ghost            every publish of it had surely failed
early            handled before it was published
diverged         one position in a lane, two messages
receipt          acknowledged as handled before every subscription had settled it
================ ===================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lemegeton.testing.history import NEVER, Event, Key, LaneKey, Numbered, Story, lane_of, tell
from lemegeton.testing.redelivery import redeliveries
from lemegeton.testing.violation import Violation, violation, where


def check(events: Iterable[Event], *, cap: bool = False, flag_budget: int | None = None) -> list[Violation]:
    """Every violation in a whole history; empty means clean.

    ``cap`` says that a limit of the run may drop records if it reports them as gaps.  ``flag_budget`` is the number of
    flagged deliveries allowed in all; without it each subscription has its crashes times its lanes.
    """
    story = tell(events)
    found = [each for judge in CHECKS for each in judge(story)]
    found += [each for judge in (lost, gaps, receipts) for each in judge(story, cap)]
    return found + list(redeliveries(story, flag_budget))


# ── loss: L, G, R, V ─────────────────────────────────────────────────────────────────────────────────────────────────


def lost(story: Story, cap: bool) -> Iterator[Violation]:
    """L and V: what was acknowledged is settled by every subscription that owes it (`Story.owes`)."""
    for key, pub in story.pubs.items():
        for sub, registered_at in story.regs.get(key[0], {}).items():
            if story.owes(sub, registered_at, pub) and (sub, *key) not in story.settled:
                yield from _missing(story, cap, sub, key)


def _missing(story: Story, cap: bool, sub: str, key: Key) -> Iterator[Violation]:
    pub = story.pubs[key]
    reported = story.reported_gap(sub, pub.lane, pub.seq)
    passed = story.passed(sub, pub)
    if (reported and cap) or story.was_skipped(sub, pub):
        return
    if story.was_damaged(key):
        if passed and not reported and (sub, pub.lane, pub.seq) not in story.corrupt:
            yield violation("unreported", sub, key, f"its bytes at {where(pub.lane, pub.seq)} were damaged; the "
                             "subscription went past them without a gap or corrupt event")
    elif not story.was_cut(key):
        yield _lost(story, sub, key, passed)


def _lost(story: Story, sub: str, key: Key, passed: bool) -> Violation:
    pub = story.pubs[key]
    seen = "its handler began and never returned" if (sub, *key) in story.begun else "its handler never began"
    ending = "and the subscription went past it" if passed else "and the subscription never went past it"
    healed = ", although all faults were healed" if story.quiet else ""
    return violation("lost" if passed else "stuck", sub, key,
                      f"acknowledged at {where(pub.lane, pub.seq)}; {seen} {ending}{healed}")


def gaps(story: Story, cap: bool) -> Iterator[Violation]:
    """G: a gap has a cause, which is a cap, a power cut that took bytes of its range, or damage to them."""
    if cap:
        return
    for (sub, lane), reports in story.gaps.items():
        for gap in reports:
            if not _has_cause(story, gap):
                text = (f"subscription {sub}: reported {where(lane, gap.first)} to {gap.last} as a gap, but no byte "
                        "of that range was lost and no cap was reached")
                yield Violation("gap", text, gap_key(gap))


def gap_key(gap: Event) -> tuple[str, ...]:
    """What a violation names a gap by: two lanes of one channel may have gaps over the same numbers."""
    return gap.sub, *map(str, lane_of(gap)), str(gap.first), str(gap.last)


def _has_cause(story: Story, gap: Event) -> bool:
    placed = story.places.get(lane_of(gap), {})
    keys = [(gap.ch, found) for seq, found in placed.items() if gap.first <= seq <= gap.last]
    return (gap.ch, gap.prod) in story.unplaced or any(story.was_damaged(key) or story.was_cut(key) for key in keys)


def receipts(story: Story, cap: bool) -> Iterator[Violation]:
    """R: a receipt of level handled comes after every subscription of the sender's site that was registered before the
    publish has settled it."""
    for at, owed_at, ack in story.handled_acks:
        for sub, registered_at in story.regs.get(ack.ch, {}).items():
            settled_at = story.settled.get((sub, ack.ch, ack.id))
            if registered_at >= owed_at or (settled_at is not None and settled_at < at):
                continue
            if story.sites.get(sub, ack.site) != ack.site:
                continue
            if cap and story.reported_gap(sub, lane_of(ack), ack.seq):
                continue
            yield violation("receipt", sub, (ack.ch, ack.id),
                             "acknowledged as handled before this subscription had settled it")


# ── integrity and order: P, O ────────────────────────────────────────────────────────────────────────────────────────


def _starts(story: Story) -> Iterator[Numbered]:
    return (item for reader in story.readers.values() for item in reader if item[1].ev == "start")


def integrity(story: Story) -> Iterator[Violation]:
    """P: what a handler gets was published, there, with this payload, before, and did not surely fail."""
    for at, start in _starts(story):
        key = start.ch, start.id
        pub = story.pubs.get(key)
        if pub is None:
            yield _stranger(story, start)
            continue
        if start.sha not in pub.shas:
            yield violation("payload", start.sub, key, f"got {start.sha}, published was {' or '.join(pub.shas)}")
        if pub.fails >= pub.invs:
            yield violation("ghost", start.sub, key, "handled, but every publish of it had surely failed")
        if pub.invs == 1 and at < pub.inv_at:
            yield violation("early", start.sub, key, "handled before its publish began")


def _stranger(story: Story, start: Event) -> Violation:
    channels = story.published_on.get(start.id)
    if channels:
        return violation("wrong_channel", start.sub, (start.ch, start.id), f"published only to {', '.join(channels)}")
    return violation("unknown", start.sub, (start.ch, start.id), "handled, but nobody published it")


def divergence(story: Story) -> Iterator[Violation]:
    """P: a position in a lane is one message for ever, for every reader and for the sender."""
    for event, known in story.diverged:
        text = f"{where(lane_of(event), event.seq)}: {known} at first, then {event.id} ({event.ev} {event.sub})"
        yield Violation("diverged", text, (event.ch, known, event.id))


def _first_starts(story: Story, sub: str) -> Iterator[Event]:
    return (start for at, start in story.readers[sub]
            if start.ev == "start" and story.begun[sub, start.ch, start.id] == at)


def order(story: Story) -> Iterator[Violation]:
    """O: first handlings of one origin, channel and priority have increasing (incarnation, sequence)."""
    for sub in story.readers:
        last: dict[tuple[str, str, int], Event] = {}
        for start in _first_starts(story, sub):
            before = last.setdefault((start.ch, start.origin, start.prio), start)
            if before is not start and (start.pinc, start.seq) <= (before.pinc, before.seq):
                yield violation("order", sub, (start.ch, start.id), f"{where(lane_of(start), start.seq)} came after "
                                 f"{where(lane_of(before), before.seq)} ({before.id})")
            else:
                last[start.ch, start.origin, start.prio] = start


def producer_order(story: Story) -> Iterator[Violation]:
    """O: acknowledged messages of one life of a sender are handled in the order in which it published them."""
    for sub in story.readers:
        last: dict[tuple[str, str, int, str], tuple[int, str]] = {}
        for start in _first_starts(story, sub):
            pub = story.pubs.get((start.ch, start.id))
            if pub is None or pub.invs > 1 or pub.owed_at == NEVER:  # a copy may stand for either of its publishes
                continue
            run = start.ch, pub.prod, start.prio, pub.inc
            before = last.get(run, (NEVER, ""))
            if pub.inv_at < before[0]:
                yield violation("producer_order", sub, (start.ch, start.id),
                                 f"{pub.prod} published it before {before[1]}, which was handled first")
            else:
                last[run] = pub.inv_at, start.id


def overlap(story: Story) -> Iterator[Violation]:
    """O: within one life of the subscription a lane hands out the next message when the one before it is settled."""
    for sub, reader in story.readers.items():
        busy: dict[LaneKey, Event] = {}
        for _, event in reader:
            lane = lane_of(event)
            if event.ev == "start":
                before = busy.get(lane)
                if before is not None and before.inc == event.inc and before.id != event.id:
                    yield violation("overlap", sub, (event.ch, event.id), f"began while {before.id} was not settled")
                busy[lane] = event
            elif event.ev in ("done", "dead", "expired"):
                busy.pop(lane, None)
            elif event.ev == "stop":
                busy.clear()


CHECKS: tuple[Callable[[Story], Iterator[Violation]], ...] = (integrity, divergence, order, producer_order, overlap)
