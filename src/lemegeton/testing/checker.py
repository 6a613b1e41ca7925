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
from dataclasses import dataclass, field

from lemegeton.testing.history import NEVER, Event, Key, LaneKey, Numbered, Story, lane_of, tell


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise: its kind (see the module), a text for people, and what it is about."""

    kind: str
    text: str
    key: tuple[str, ...]


def check(events: Iterable[Event], *, cap: bool = False, flag_budget: int | None = None) -> list[Violation]:
    """Every violation in a whole history; empty means clean.

    ``cap`` says that a limit of the run may drop records if it reports them as gaps.  ``flag_budget`` is the number of
    flagged deliveries allowed in all; without it each subscription has its crashes times its lanes.
    """
    story = tell(events)
    found = [violation for judge in CHECKS for violation in judge(story)]
    found += [violation for judge in (lost, gaps, receipts) for violation in judge(story, cap)]
    return found + list(redeliveries(story, flag_budget))


# ── loss: L, G, R, V ─────────────────────────────────────────────────────────────────────────────────────────────────


def lost(story: Story, cap: bool) -> Iterator[Violation]:
    """L and V: what was acknowledged is settled by every subscription that was registered before its publish began."""
    for key, pub in story.pubs.items():
        if pub.owed_at == NEVER:
            continue
        for sub, registered_at in story.regs.get(key[0], {}).items():
            if registered_at < pub.owed_at and (sub, *key) not in story.settled:
                yield from _missing(story, cap, sub, key)


def _missing(story: Story, cap: bool, sub: str, key: Key) -> Iterator[Violation]:
    pub = story.pubs[key]
    reported = story.reported_gap(sub, pub.lane, pub.seq)
    passed = story.passed(sub, pub)
    if reported and cap:
        return
    if story.was_damaged(key):
        if passed and not reported and (sub, pub.lane, pub.seq) not in story.corrupt:
            yield _violation("unreported", sub, key, f"its bytes at {_where(pub.lane, pub.seq)} were damaged; the "
                             "subscription went past them without a gap or corrupt event")
    elif not story.was_cut(key):
        yield _lost(story, sub, key, passed)


def _lost(story: Story, sub: str, key: Key, passed: bool) -> Violation:
    pub = story.pubs[key]
    seen = "its handler began and never returned" if (sub, *key) in story.begun else "its handler never began"
    ending = "and the subscription went past it" if passed else "and the subscription never went past it"
    healed = ", although all faults were healed" if story.quiet else ""
    return _violation("lost" if passed else "stuck", sub, key,
                      f"acknowledged at {_where(pub.lane, pub.seq)}; {seen} {ending}{healed}")


def gaps(story: Story, cap: bool) -> Iterator[Violation]:
    """G: a gap has a cause, which is a cap, a power cut that took bytes of its range, or damage to them."""
    if cap:
        return
    for (sub, lane), reports in story.gaps.items():
        for gap in reports:
            if not _has_cause(story, gap):
                text = (f"subscription {sub}: reported {_where(lane, gap.first)} to {gap.last} as a gap, but no byte "
                        "of that range was lost and no cap was reached")
                yield Violation("gap", text, (sub, gap.ch, str(gap.first), str(gap.last)))


def _has_cause(story: Story, gap: Event) -> bool:
    placed = story.places.get(lane_of(gap), {})
    keys = [(gap.ch, found) for seq, found in placed.items() if gap.first <= seq <= gap.last]
    return (gap.ch, gap.prod) in story.unplaced or any(story.was_damaged(key) or story.was_cut(key) for key in keys)


def receipts(story: Story, cap: bool) -> Iterator[Violation]:
    """R: a receipt of level handled comes after every subscription registered before the publish has settled it."""
    for at, owed_at, ack in story.handled_acks:
        for sub, registered_at in story.regs.get(ack.ch, {}).items():
            settled_at = story.settled.get((sub, ack.ch, ack.id))
            if registered_at >= owed_at or (settled_at is not None and settled_at < at):
                continue
            if cap and story.reported_gap(sub, lane_of(ack), ack.seq):
                continue
            yield _violation("receipt", sub, (ack.ch, ack.id),
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
            yield _violation("payload", start.sub, key, f"got {start.sha}, published was {' or '.join(pub.shas)}")
        if pub.fails >= pub.invs:
            yield _violation("ghost", start.sub, key, "handled, but every publish of it had surely failed")
        if pub.invs == 1 and at < pub.inv_at:
            yield _violation("early", start.sub, key, "handled before its publish began")


def _stranger(story: Story, start: Event) -> Violation:
    channels = story.published_on.get(start.id)
    if channels:
        return _violation("wrong_channel", start.sub, (start.ch, start.id), f"published only to {', '.join(channels)}")
    return _violation("unknown", start.sub, (start.ch, start.id), "handled, but nobody published it")


def divergence(story: Story) -> Iterator[Violation]:
    """P: a position in a lane is one message for ever, for every reader and for the sender."""
    for event, known in story.diverged:
        text = f"{_where(lane_of(event), event.seq)}: {known} at first, then {event.id} ({event.ev} {event.sub})"
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
                yield _violation("order", sub, (start.ch, start.id), f"{_where(lane_of(start), start.seq)} came after "
                                 f"{_where(lane_of(before), before.seq)} ({before.id})")
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
                yield _violation("producer_order", sub, (start.ch, start.id),
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
                    yield _violation("overlap", sub, (event.ch, event.id), f"began while {before.id} was not settled")
                busy[lane] = event
            elif event.ev in ("done", "dead", "expired"):
                busy.pop(lane, None)
            elif event.ev == "stop":
                busy.clear()


# ── redelivery: D ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Mark:
    """What a subscription touched last in a lane."""

    key: Key
    epoch: int
    deaths: int
    open: bool


@dataclass(frozen=True, slots=True)
class _Begun:
    """The last time a message was given to a handler."""

    at: int
    epoch: int
    start: Event


@dataclass(slots=True)
class _Reader:
    """Follows one subscription through its lives (epochs) and says of each start whether it may be what it claims.

    Per lane, a crash leaves at most one message in doubt: the one that was begun last and maybe not marked as settled,
    or, if that was settled, the next one, whose intent was stored and whose handler had not begun.  So a flag needs a
    crash since the lane was last touched.  After a power cut of the site anything published before the subscription
    was registered again may be flagged, once.
    """

    story: Story
    sub: str
    inc: str = ""
    epoch: int = 0
    deaths: int = 0
    died_at: int = NEVER
    crashes: int = 0
    flagged: int = 0
    open: set[LaneKey] = field(default_factory=set)
    lanes: dict[LaneKey, _Mark] = field(default_factory=dict)
    begun: dict[Key, _Begun] = field(default_factory=dict)
    failed: dict[Key, int] = field(default_factory=dict)
    site: str = ""
    cut_at: int = NEVER
    reboot: int = NEVER
    """The first epoch after the last power cut."""
    horizon: dict[str, int] = field(default_factory=dict)
    """Channel → where the subscription was registered again after the last power cut."""

    @property
    def allowed(self) -> int:
        """Crashes times lanes: the flagged deliveries that can be explained at most."""
        return self.crashes * len(self.lanes)

    def judge(self, events: Iterable[Numbered]) -> Iterator[Violation]:
        for at, event in events:
            if event.ev == "fault":
                self.cut_at, self.reboot, self.horizon = at, NEVER, {}
                continue
            if event.inc != self.inc:
                self._turn(at, event.inc)
            if event.ev == "start":
                yield from self._judge_start(event)
                self._begin(at, event)
            elif event.ev == "stop":
                self._turn(at, "")
            else:
                self._note(at, event)

    def _turn(self, at: int, inc: str) -> None:
        died = self.inc in self.story.killed  # a power cut explains its flags by itself: see `_rebooted`
        if died:
            self.deaths, self.died_at = self.deaths + 1, at
        self.crashes += died or bool(self.open)
        self.open.clear()
        self.inc, self.epoch = inc, self.epoch + 1
        if inc and self.cut_at != NEVER and self.reboot == NEVER:
            self.reboot = self.epoch

    def _begin(self, at: int, start: Event) -> None:
        key, lane = (start.ch, start.id), lane_of(start)
        self.begun[key] = _Begun(at, self.epoch, start)
        self.lanes[lane] = _Mark(key, self.epoch, self.deaths, True)
        self.open.add(lane)
        self.failed.pop(key, None)

    def _note(self, at: int, event: Event) -> None:
        key, lane = (event.ch, event.id), lane_of(event)
        if event.ev == "reg":
            self.site = event.site
            if self.reboot != NEVER:
                self.horizon.setdefault(event.ch, at)
        elif event.ev == "error":
            self.failed[key] = self.epoch
        elif event.ev in ("expired", "dead", "gap") or (event.ev == "done" and lane in self.open):
            self.lanes[lane] = _Mark(key, self.epoch, self.deaths, False)
            self.open.discard(lane)

    def _judge_start(self, start: Event) -> Iterator[Violation]:
        key = start.ch, start.id
        before = self.begun.get(key)
        if before is not None and self.failed.get(key) == self.epoch:
            yield from self._judge_retry(start, before.start)
        elif start.redel:
            yield from self._judge_flag(start, before)
        elif before is not None:
            kind = "doubled" if _position(start) == _position(before.start) else "copied"
            yield _violation(kind, self.sub, key, f"handled at {_position(before.start)} and, without a flag, again at "
                             f"{_position(start)}")

    def _judge_retry(self, start: Event, before: Event) -> Iterator[Violation]:
        key = start.ch, start.id
        if start.redel and not before.redel:
            yield _violation("false_flag", self.sub, key, "a retry in the same life is flagged as redelivered")
        elif start.redel != before.redel or start.attempt <= before.attempt:
            yield _violation("doubled", self.sub, key, f"tried again as attempt {start.attempt} after attempt "
                             f"{before.attempt}, redelivered {start.redel} after {before.redel}")

    def _judge_flag(self, start: Event, before: _Begun | None) -> Iterator[Violation]:
        in_doubt = self._in_doubt(start, before)
        if not in_doubt and self._rebooted(start, before):
            return
        self.flagged += 1
        if not in_doubt:
            kind = "false_flag" if before is None else "doubled"
            yield _violation(kind, self.sub, (start.ch, start.id), f"{_position(start)} is flagged as redelivered, but "
                             f"no crash of the subscription left it in doubt ({self.crashes} crashes so far)")

    def _in_doubt(self, start: Event, before: _Begun | None) -> bool:
        """True if a crash can have left intent without settled for this message."""
        key = start.ch, start.id
        mark = self.lanes.get(lane_of(before.start if before else start))
        if mark is not None and (mark.epoch == self.epoch or (mark.key != key and (before or mark.open))):
            return False
        if mark is not None and mark.open:
            return True
        pub = self.story.pubs.get(key)
        known = pub is None or pub.invs > 1 or pub.inv_at < self.died_at
        return known and self.deaths > (mark.deaths if mark else 0)

    def _rebooted(self, start: Event, before: _Begun | None) -> bool:
        """True if it may be flagged only because the site lost power since it was handled last."""
        if self.cut_at == NEVER or (before is not None and before.at > self.cut_at):
            return False
        pub, horizon = self.story.pubs.get((start.ch, start.id)), self.horizon.get(start.ch)
        if pub is None or horizon is None:
            return True
        elsewhere = not pub.site or pub.site != self.site  # another site's log may have grown before first contact
        return pub.inv_at < horizon or (elsewhere and self.epoch == self.reboot)


def _position(start: Event) -> str:
    return _where(lane_of(start), start.seq)


def redeliveries(story: Story, flag_budget: int | None) -> Iterator[Violation]:
    """D: no second handling without a flag, no flag that no crash explains, no more flags than crashes allow."""
    flagged = 0
    for sub, events in story.readers.items():
        reader = _Reader(story, sub)
        yield from reader.judge(events)
        flagged += reader.flagged
        if flag_budget is None and reader.flagged > reader.allowed:
            yield Violation("flag_budget", f"subscription {sub}: {reader.flagged} flagged deliveries, but "
                            f"{reader.crashes} crashes and {len(reader.lanes)} lanes explain {reader.allowed}", (sub,))
    if flag_budget is not None and flagged > flag_budget:
        yield Violation("flag_budget", f"{flagged} flagged deliveries in all, at most {flag_budget} allowed", ())


CHECKS: tuple[Callable[[Story], Iterator[Violation]], ...] = (integrity, divergence, order, producer_order, overlap)


def _where(lane: LaneKey, seq: int) -> str:
    return f"{lane[0]} {lane[1]}.{lane[2]}.{lane[3]}:{seq}"


def _violation(kind: str, sub: str, key: Key, text: str) -> Violation:
    return Violation(kind, f"subscription {sub}, message {key[1]} on {key[0]}: {text}", (sub, *key))
