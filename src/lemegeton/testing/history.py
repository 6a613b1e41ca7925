"""Histories: what every process of a run did, written down before it did it, so that `checker.check` can judge it.

A process appends one JSON line an event to a file of its own.  The line is written *before* the effect it tells of
(`ack`, `done` and `reg` tell of a return and follow it), by one ``write`` to an ``O_APPEND`` file: SIGKILL can cut the
process off between line and effect, and the checker knows that, but it cannot hide an effect.

Every event carries ``ev``, ``t`` (monotonic nanoseconds), ``pid``, ``inc`` and ``site``.  ``inc`` names a process life
and is never used twice; an event with ``sub`` must carry the life that holds the subscription.  *key* stands for
``ch prod origin pinc prio seq id``: ``prod`` is the sender name, ``origin`` its full origin, ``pinc`` the origin's
incarnation; ``(ch, origin, pinc, prio)`` is the lane.

======== ================================= =========================================================================
ev       further fields                    meaning
======== ================================= =========================================================================
open     sub                               subscribe() is about to be called in this life
reg      sub ch                            subscribe() of a durable subscription returned; one event a channel
stop     sub                               the subscription ended in this life without being killed
inv      ch prod id sha kind               publish() is about to be called; ``kind="ttl"`` if it can expire
ack      key level                         publish() returned; ``level`` as in `MessageBus.publish`
fail     ch id                             publish() raised and the message is surely not stored
info     ch id                             the outcome of publish() is unknown
start    sub key sha redel attempt         a handler begins
done     sub key                           the handler returned
error    sub key                           the handler raised or was cancelled, and will be tried again in this life
gap      sub ch prod origin pinc prio      the subscription went on behind ``first`` to ``last``, inclusive
         first last
corrupt  sub ch origin pinc prio seq       bytes were met where ``seq`` was expected
expired  sub key first                     settled without a handler; with ``first`` instead of an id: all that can
                                           expire from there to ``seq``, which another site did not send
dead     sub key                           settled by a dead letter
mode     kind                              the mode is now ``kind``; not judged
fault    kind                              the harness did something; the checker knows four kinds:
         kind="kill" inc                   the process life ``inc`` (not the recorder's own) was killed
         kind="power" site ids             every life of ``site`` ended; the bytes of ``ids`` are not on its disk
         kind="corrupted" ids              the bytes of ``ids`` were damaged or deleted
         kind="forgot" ch                  a Redis lost something that it had; of every channel if ``ch`` is empty
quiet    —                                 the last fault is healed: all must be delivered by the end of the history
======== ================================= =========================================================================

The histories of several sites may be judged together; then a subscription is named ``name@site``, as it is elsewhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

Kind = Literal[
    "open", "reg", "stop", "inv", "ack", "fail", "info", "start", "done", "error", "gap", "corrupt", "expired", "dead",
    "mode", "fault", "quiet",
]


class Event(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """One thing that happened.  The table of the module says which fields an event has; the others keep the default."""

    ev: Kind
    t: int = 0
    pid: int = 0
    inc: str = ""
    site: str = ""
    sub: str = ""
    ch: str = ""
    prod: str = ""
    origin: str = ""
    pinc: int = 0
    prio: int = 1
    seq: int = 0
    id: str = ""
    sha: str = ""
    level: str = ""
    redel: bool = False
    attempt: int = 1
    first: int = 0
    last: int = 0
    kind: str = ""
    ids: tuple[str, ...] = ()
    cause: str = ""


class Recorder(Protocol):
    """Where a process life writes its events.  Fields given to `record` override those that are added."""

    def record(self, ev: Kind, **fields: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Life:
    """What is added to every event of one process life; ``clock`` gives monotonic nanoseconds."""

    inc: str = ""
    site: str = ""
    pid: int = 0
    clock: Callable[[], int] = time.monotonic_ns

    def event(self, ev: Kind, fields: dict[str, Any]) -> Event:
        """The event, stamped; a field that no event has raises `TypeError`."""
        return Event(**{"ev": ev, "t": self.clock(), "pid": self.pid, "inc": self.inc, "site": self.site, **fields})


class History:
    """Appends the events of one process life to a file of its own.

    When `record` returns, the line is in the page cache: SIGKILL of everything cannot take it back.  It is one
    ``write``, so threads and forked children may share the file.
    """

    def __init__(
        self, path: str | Path, *, inc: str = "", site: str = "", clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._life = Life(inc, site, os.getpid(), clock)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def record(self, ev: Kind, **fields: Any) -> None:
        """Append one event; a short write raises, because a history with a hole proves nothing."""
        line = msgspec.json.encode(self._life.event(ev, fields)) + b"\n"
        written = os.write(self._fd, line)
        if written != len(line):
            raise OSError(f"history: wrote {written} of {len(line)} bytes of an event; free disk space")

    def close(self) -> None:
        """Let the file go."""
        os.close(self._fd)


@dataclass(frozen=True, slots=True)
class MemoryHistory:
    """Keeps the events of a simulation in one list, in the order in which they were recorded."""

    stamp: Life = field(default_factory=Life)
    events: list[Event] = field(default_factory=list)

    def record(self, ev: Kind, **fields: Any) -> None:
        """Append one event to the list."""
        self.events.append(self.stamp.event(ev, fields))

    def life(self, inc: str, *, site: str = "", pid: int = 0) -> MemoryHistory:
        """A recorder for another process life that writes into the same list, by the same clock."""
        return MemoryHistory(Life(inc, site, pid, self.stamp.clock), self.events)


def load(paths: Iterable[str | Path]) -> list[Event]:
    """The events of all files, merged by time; events of one time keep the order of their file.

    A last line without its newline is torn and left out.  Any other line that is no event raises `ValueError`.
    """
    events = [event for path in paths for event in _read(Path(path))]
    return sorted(events, key=lambda event: event.t)


_decoder = msgspec.json.Decoder(Event)


def _read(path: Path) -> list[Event]:
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    try:
        return _decoder.decode_lines(whole)
    except msgspec.MsgspecError as error:
        raise ValueError(f"history {path}: a line is not an event: {error}") from error


# ── sorting, for the checker ─────────────────────────────────────────────────────────────────────────────────────────


Key = tuple[str, str]
"""Channel and id: what a subscription handles once."""
LaneKey = tuple[str, str, int, int]
Numbered = tuple[int, Event]
NEVER = -1


def lane_of(event: Event) -> LaneKey:
    """The lane an event names."""
    return event.ch, event.origin, event.pinc, event.prio


@dataclass(slots=True)
class Pub:
    """One message: all publishes of one id to one channel."""

    prod: str
    inc: str
    site: str
    shas: tuple[str, ...]
    inv_at: int
    invs: int = 1
    fails: int = 0
    disk: bool = False
    owed_at: int = NEVER
    """Where in the history the publish began that was acknowledged last."""
    acked_at: int = NEVER
    expires: bool = False
    lane: LaneKey = ("", "", 0, 0)
    seq: int = 0


@dataclass
class Story:
    """A history sorted into what the checks ask for.  Numbers are places in the history."""

    pubs: dict[Key, Pub] = field(default_factory=dict)
    regs: dict[str, dict[str, int]] = field(default_factory=dict)
    """Channel → subscription → where it was registered first."""
    readers: dict[str, list[Numbered]] = field(default_factory=dict)
    """Subscription → its own events and the power cuts of its site."""
    settled: dict[tuple[str, str, str], int] = field(default_factory=dict)
    begun: dict[tuple[str, str, str], int] = field(default_factory=dict)
    reached: dict[tuple[str, str, str, int], tuple[int, int]] = field(default_factory=dict)
    """Subscription, channel, origin, priority → the furthest (incarnation, sequence) that was begun."""
    places: dict[LaneKey, dict[int, str]] = field(default_factory=dict)
    diverged: list[tuple[Event, str]] = field(default_factory=list)
    gaps: dict[tuple[str, LaneKey], list[Event]] = field(default_factory=dict)
    corrupt: set[tuple[str, LaneKey, int]] = field(default_factory=set)
    handled_acks: list[tuple[int, int, Event]] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)
    damaged: dict[str, int] = field(default_factory=dict)
    sites: dict[str, str] = field(default_factory=dict)
    """Subscription → its site."""
    skipped: dict[tuple[str, LaneKey], list[Event]] = field(default_factory=dict)
    killed: set[str] = field(default_factory=set)
    """The process lives that were killed.  A kill is written before the signal lands, so its place says nothing."""
    quiet: bool = False

    @cached_property
    def published_on(self) -> dict[str, list[str]]:
        """Id → the channels it was published to."""
        found: dict[str, list[str]] = {}
        for channel, message in self.pubs:
            found.setdefault(message, []).append(channel)
        return found

    @cached_property
    def unplaced(self) -> set[tuple[str, str]]:
        """Channel and sender of messages whose bytes are gone and whose sequence nobody was told."""
        gone = self.lost.keys() | self.damaged.keys()
        return {(key[0], pub.prod) for key, pub in self.pubs.items() if pub.owed_at == NEVER and key[1] in gone}

    def owes(self, sub: str, registered_at: int, pub: Pub) -> bool:
        """True if the subscription, registered there, must settle this message.

        On the site of the sender: if its publish began later.  On another: if it was acknowledged later, because what
        other sites say is taken from the oldest on."""
        if pub.owed_at == NEVER:
            return False
        elsewhere = "" != pub.site != self.sites.get(sub, pub.site) != ""
        return registered_at < (pub.acked_at if elsewhere else pub.owed_at)

    def was_skipped(self, sub: str, pub: Pub) -> bool:
        """True if it could expire, and the subscription was told that it did before it was sent."""
        return pub.expires and any(
            told.first <= pub.seq <= told.seq for told in self.skipped.get((sub, pub.lane), ()))

    def was_damaged(self, key: Key) -> bool:
        """True if the harness damaged the message after the publish that counts."""
        return key in self.pubs and self.damaged.get(key[1], NEVER) > self.pubs[key].owed_at

    def was_cut(self, key: Key) -> bool:
        """True if a power cut took the message and its receipt promised no more than the page cache."""
        pub = self.pubs.get(key)
        return pub is not None and not pub.disk and self.lost.get(key[1], NEVER) > pub.owed_at

    def reported_gap(self, sub: str, lane: LaneKey, seq: int) -> bool:
        """True if the subscription reported a gap over this position."""
        return any(gap.first <= seq <= gap.last for gap in self.gaps.get((sub, lane), ()))

    def passed(self, sub: str, pub: Pub) -> bool:
        """True if the subscription began something behind this message in its chain."""
        channel, origin, pinc, prio = pub.lane
        return self.reached.get((sub, channel, origin, prio), (0, 0)) > (pinc, pub.seq)


@dataclass(slots=True)
class _Teller:
    """Builds the story event by event."""

    story: Story

    def tell(self, at: int, event: Event) -> None:
        if event.sub:
            self.story.sites[event.sub] = event.site
            self.story.readers.setdefault(event.sub, []).append((at, event))
        handle = _TELL.get(event.ev)
        if handle is not None:
            handle(self, at, event)

    def inv(self, at: int, event: Event) -> None:
        pub = self.story.pubs.get((event.ch, event.id))
        if pub is None:
            self.story.pubs[event.ch, event.id] = Pub(
                event.prod, event.inc, event.site, (event.sha,), at, expires=event.kind == "ttl")
            return
        pub.invs += 1
        pub.inv_at = at
        if event.sha not in pub.shas:
            pub.shas += (event.sha,)

    def ack(self, at: int, event: Event) -> None:
        self._place(event)
        pub = self.story.pubs.get((event.ch, event.id))
        if pub is None:
            return
        pub.owed_at, pub.acked_at, pub.lane, pub.seq = pub.inv_at, at, lane_of(event), event.seq
        pub.disk |= event.level == "disk"
        if event.level == "handled":
            self.story.handled_acks.append((at, pub.inv_at, event))

    def fail(self, at: int, event: Event) -> None:
        pub = self.story.pubs.get((event.ch, event.id))
        if pub is not None:
            pub.fails += 1

    def reg(self, at: int, event: Event) -> None:
        self.story.regs.setdefault(event.ch, {}).setdefault(event.sub, at)

    def start(self, at: int, event: Event) -> None:
        self._place(event)
        self.story.begun.setdefault((event.sub, event.ch, event.id), at)
        chain = event.sub, event.ch, event.origin, event.prio
        position = event.pinc, event.seq
        if position > self.story.reached.get(chain, (0, 0)):
            self.story.reached[chain] = position

    def _place(self, event: Event) -> None:
        known = self.story.places.setdefault(lane_of(event), {}).setdefault(event.seq, event.id)
        if known != event.id:
            self.story.diverged.append((event, known))

    def settle(self, at: int, event: Event) -> None:
        self.story.settled.setdefault((event.sub, event.ch, event.id), at)

    def expired(self, at: int, event: Event) -> None:
        if event.first:
            self.story.skipped.setdefault((event.sub, lane_of(event)), []).append(event)
        else:
            self.settle(at, event)

    def gap(self, at: int, event: Event) -> None:
        self.story.gaps.setdefault((event.sub, lane_of(event)), []).append(event)

    def corrupt(self, at: int, event: Event) -> None:
        self.story.corrupt.add((event.sub, lane_of(event), event.seq))

    def fault(self, at: int, event: Event) -> None:
        if event.kind == "kill":
            self.story.killed.add(event.inc)
        elif event.kind == "power":
            self.story.lost.update(dict.fromkeys(event.ids, at))
            for sub, site in self.story.sites.items():
                if site == event.site:
                    self.story.readers[sub].append((at, event))
        elif event.kind == "corrupted":
            self.story.damaged.update(dict.fromkeys(event.ids, at))

    def quiet(self, at: int, event: Event) -> None:
        self.story.quiet = True


_TELL: dict[str, Callable[[_Teller, int, Event], None]] = {
    "inv": _Teller.inv, "ack": _Teller.ack, "fail": _Teller.fail, "reg": _Teller.reg, "start": _Teller.start,
    "done": _Teller.settle, "expired": _Teller.expired, "dead": _Teller.settle, "gap": _Teller.gap,
    "corrupt": _Teller.corrupt, "fault": _Teller.fault, "quiet": _Teller.quiet,
}


def tell(events: Iterable[Event]) -> Story:
    """Sort a history into a story."""
    teller = _Teller(Story())
    for at, event in enumerate(events):
        teller.tell(at, event)
    return teller.story
