"""The checks of redelivery (D): no second handling without a flag, and no flag without a crash that explains it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lemegeton.testing.history import NEVER, Event, Key, LaneKey, Numbered, Story, lane_of
from lemegeton.testing.violation import Violation, violation, where


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
    was registered again may be flagged, once; of another site what a lane held when it was met first after the cut.
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
    doubtful: set[Key] = field(default_factory=set)
    """What a crash left in doubt and then expired: one published again later under its id may be flagged."""
    site: str = ""
    cut_at: int = NEVER
    plain: set[LaneKey] = field(default_factory=set)
    """Lanes of which something came without a flag since the last power cut."""
    horizon: dict[str, int] = field(default_factory=dict)
    """Channel → where the subscription was registered again after the last power cut."""

    @property
    def allowed(self) -> int:
        """Crashes times lanes: the flagged deliveries that can be explained at most."""
        return self.crashes * len(self.lanes)

    def judge(self, events: Iterable[Numbered]) -> Iterator[Violation]:
        for at, event in events:
            if event.ev == "fault":
                self.cut_at, self.horizon = at, {}
                self.plain.clear()
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

    def _begin(self, at: int, start: Event) -> None:
        key, lane = (start.ch, start.id), lane_of(start)
        self.begun[key] = _Begun(at, self.epoch, start)
        if not start.redel:
            self.plain.add(lane)
        self.lanes[lane] = _Mark(key, self.epoch, self.deaths, True)
        self.open.add(lane)
        self.failed.pop(key, None)

    def _note(self, at: int, event: Event) -> None:
        key, lane = (event.ch, event.id), lane_of(event)
        if event.ev == "reg":
            self.site = event.site
            if self.cut_at != NEVER:
                self.horizon.setdefault(event.ch, at)
        elif event.ev == "error":
            self.failed[key] = self.epoch
        elif event.ev in ("expired", "dead", "gap") or (event.ev == "done" and lane in self.open):
            if event.ev == "expired":
                self._expire(event, key, self.begun.get(key))
            self.lanes[lane] = _Mark(key, self.epoch, self.deaths, False)
            self.open.discard(lane)

    def _expire(self, event: Event, key: Key, begun: _Begun | None) -> None:
        if begun is not None and key in self.failed and _position(begun.start) == _position(event):
            # Its handler has only raised: one published again later under its id is no second handling.
            del self.begun[key], self.failed[key]
            return
        here = begun is None or _position(begun.start) == _position(event)
        if here and (self._in_doubt(event, begun) or self._rebooted(event, begun)):
            self.doubtful.add(key)

    def _judge_start(self, start: Event) -> Iterator[Violation]:
        key = start.ch, start.id
        before = self.begun.get(key)
        if before is not None and self.failed.get(key) == self.epoch:
            yield from self._judge_retry(start, before.start)
        elif start.redel:
            yield from self._judge_flag(start, before)
        elif before is not None:
            kind = "doubled" if _position(start) == _position(before.start) else "copied"
            if kind == "copied" and before.at < self.cut_at:
                return  # given ids are remembered in the page cache: a power cut takes them
            yield violation(kind, self.sub, key, f"handled at {_position(before.start)} and, without a flag, again at "
                             f"{_position(start)}")

    def _judge_retry(self, start: Event, before: Event) -> Iterator[Violation]:
        key = start.ch, start.id
        if start.redel and not before.redel:
            yield violation("false_flag", self.sub, key, "a retry in the same life is flagged as redelivered")
        elif start.redel != before.redel or start.attempt <= before.attempt:
            yield violation("doubled", self.sub, key, f"tried again as attempt {start.attempt} after attempt "
                             f"{before.attempt}, redelivered {start.redel} after {before.redel}")

    def _judge_flag(self, start: Event, before: _Begun | None) -> Iterator[Violation]:
        key, in_doubt = (start.ch, start.id), self._in_doubt(start, before)
        if not in_doubt and (key in self.doubtful or self._rebooted(start, before)):
            return self.doubtful.discard(key)
        self.flagged += 1
        if not in_doubt:
            kind = "false_flag" if before is None else "doubled"
            yield violation(kind, self.sub, key, f"{_position(start)} is flagged as redelivered, but "
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
        return pub.inv_at < horizon or (elsewhere and lane_of(start) not in self.plain)


def _position(start: Event) -> str:
    return where(lane_of(start), start.seq)


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
