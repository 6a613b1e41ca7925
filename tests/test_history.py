"""The checker is itself checked: clean histories of a correct bus pass, and every planted fault is named."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec.structs import replace

from lemegeton.testing.checker import check
from lemegeton.testing.history import Event, History, MemoryHistory, load

CHANNELS = ("hub", "agent-a")
SITE = "s1"
Chain = tuple[str, str]


@dataclass
class Record:
    """A stored message, as the readers of the model bus find it."""

    fields: dict[str, object]
    sha: str
    damaged: bool = False

    @property
    def id(self) -> str:
        return str(self.fields["id"])


@dataclass
class Reader:
    """A subscription of the model bus: what it would have in its checkpoint, and its present life."""

    name: str
    inc: str = ""
    settled: dict[Chain, int] = field(default_factory=dict)
    intent: dict[Chain, int] = field(default_factory=dict)
    doubtful: dict[Chain, int] = field(default_factory=dict)


class Bus:
    """A tiny correct bus on one site that records what it does: the source of clean histories."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = itertools.count(1).__next__
        self.history = MemoryHistory().life("harness")
        self.numbers = itertools.count(1)
        self.chains: dict[Chain, list[Record]] = {}
        self.pinc = {"p1": 1, "p2": 1}
        self.lives = {"p1": "p1-0", "p2": "p2-0"}
        self.seqs: dict[tuple[str, str, int], int] = {}
        self.readers = [Reader("sub1"), Reader("sub2")]
        for reader in self.readers:
            self.start(reader)

    def note(self, ev: str, inc: str, **fields: object) -> None:
        self.history.record(ev, t=self.clock(), inc=inc, site=SITE, **fields)  # type: ignore[arg-type]

    def start(self, reader: Reader) -> None:
        reader.inc = f"{reader.name}-{next(self.numbers)}"
        self.note("open", reader.inc, sub=reader.name)
        for channel in CHANNELS:
            self.note("reg", reader.inc, sub=reader.name, ch=channel)

    def publish(self, prod: str, ch: str, level: str = "local", outcome: str = "ack") -> Record:
        inc, message = self.lives[prod], f"m{next(self.numbers)}"
        sha = f"sha-of-{message}"
        self.note("inv", inc, ch=ch, prod=prod, id=message, sha=sha)
        if outcome != "ack":
            self.note(outcome, inc, ch=ch, id=message)
            return Record({"id": message}, sha)
        lane = ch, prod, self.pinc[prod]
        self.seqs[lane] = self.seqs.get(lane, 0) + 1
        place: dict[str, object] = {"ch": ch, "prod": prod, "origin": f"{prod}~{SITE}~1", "pinc": self.pinc[prod],
                                    "prio": 1, "seq": self.seqs[lane], "id": message}
        record = Record(place, sha)
        self.chains.setdefault((prod, ch), []).append(record)
        if level == "handled":
            self.drain()
        self.note("ack", inc, level=level, **place)
        return record

    def deliver(self, reader: Reader, chain: Chain, die: str = "") -> None:
        """Hand out the next record of a chain; ``die`` says where in it the life is killed."""
        at = reader.settled.get(chain, 0)
        record = self.chains[chain][at]
        about = {"sub": reader.name, **record.fields}
        if record.damaged:
            self.note("corrupt", reader.inc, **about)
            self.note("gap", reader.inc, **about, first=record.fields["seq"], last=record.fields["seq"])
            reader.settled[chain] = at + 1
            return
        redel = reader.intent.get(chain, -1) == at or at < reader.doubtful.get(chain, 0)
        reader.intent[chain] = at
        if die == "before":
            self.kill(reader)
            return
        self.note("start", reader.inc, **about, sha=record.sha, redel=redel)
        if die == "inside":
            self.kill(reader)
            return
        if self.rng.random() < 0.1:
            self.note("error", reader.inc, **about)
            self.note("start", reader.inc, **about, sha=record.sha, redel=redel, attempt=2)
        self.note("dead" if self.rng.random() < 0.03 else "done", reader.inc, **about)
        if die == "after":
            self.kill(reader)
        else:
            reader.settled[chain] = at + 1

    def kill(self, reader: Reader) -> None:
        self.note("fault", reader.inc, kind="kill")
        self.start(reader)

    def restart_producer(self, prod: str, *, torn: bool) -> None:
        self.note("fault", self.lives[prod], kind="kill")
        self.lives[prod] = f"{prod}-{next(self.numbers)}"
        self.pinc[prod] += torn

    def power(self, lose: int = 1) -> list[str]:
        """Cut the power: the newest records that nobody synced go, and the checkpoints fall back by some records."""
        gone: list[str] = []
        for chain, records in self.chains.items():
            keep = len(records) - lose
            gone += [record.id for record in records[keep:]]
            del records[keep:]
            self.pinc[chain[0]] += 1
        self.note("fault", "harness", kind="power", ids=tuple(gone))
        for prod in self.lives:
            self.lives[prod] = f"{prod}-{next(self.numbers)}"
        for reader in self.readers:
            reader.settled = {c: max(0, min(n, len(self.chains[c])) - 2) for c, n in reader.settled.items()}
            reader.doubtful = {c: len(records) for c, records in self.chains.items()}
            reader.intent.clear()
            self.start(reader)
        return gone

    def corrupt(self, chain: Chain) -> None:
        """Damage the newest record of a chain, which nobody may have read."""
        record = self.chains[chain][-1]
        record.damaged = True
        self.note("fault", "harness", kind="corrupted", ids=(record.id,))

    def pending(self, reader: Reader) -> list[Chain]:
        return [chain for chain, records in self.chains.items() if reader.settled.get(chain, 0) < len(records)]

    def drain(self) -> None:
        for reader in self.readers:
            while pending := self.pending(reader):
                self.deliver(reader, self.rng.choice(pending))

    def run(self, steps: int) -> None:
        """Publish and deliver at random, with every kind of crash."""
        for _ in range(steps):
            self.step(self.rng.random())

    def step(self, chance: float) -> None:
        reader = self.rng.choice(self.readers)
        if chance < 0.4:
            outcome = self.rng.choices(("ack", "fail", "info"), (20, 1, 1))[0]
            self.publish(self.rng.choice(("p1", "p2")), self.rng.choice(CHANNELS), outcome=outcome)
        elif chance < 0.43:
            self.restart_producer(self.rng.choice(("p1", "p2")), torn=self.rng.random() < 0.5)
        elif pending := self.pending(reader):
            die = self.rng.choice(("before", "inside", "after")) if self.rng.random() < 0.05 else ""
            self.deliver(reader, self.rng.choice(pending), die)

    def finish(self) -> list[Event]:
        self.note("quiet", "harness")
        self.publish("p1", "hub")
        self.drain()
        return list(self.history.events)


def steady(seed: int = 1) -> list[Event]:
    """A clean history with kills of readers and producers, errors, dead letters and failed publishes."""
    bus = Bus(seed)
    bus.run(400)
    bus.publish("p1", "hub", level="handled")
    bus.run(100)
    return bus.finish()


def calm() -> list[Event]:
    """A clean history without any fault."""
    bus = Bus(2)
    bus.rng.random = lambda: 0.5  # type: ignore[method-assign]  # no error, no dead letter, no kill
    for n in range(24):
        bus.publish(("p1", "p2")[n % 2], CHANNELS[n // 2 % 2], outcome="fail" if n == 5 else "ack")
        if n % 4 == 0:
            bus.drain()
    return bus.finish()


def powered() -> list[Event]:
    """A clean history with a power cut that takes records and sets the checkpoints back."""
    bus = Bus(3)
    bus.run(60)
    bus.drain()
    for prod, ch in itertools.product(("p1", "p2"), CHANNELS):
        bus.publish(prod, ch)
    bus.power()
    bus.run(60)
    return bus.finish()


def damaged() -> list[Event]:
    """A clean history in which one record is damaged before anybody reads it."""
    bus = Bus(4)
    bus.run(40)
    bus.publish("p1", "hub")
    bus.corrupt(("p1", "hub"))
    bus.publish("p1", "hub")
    return bus.finish()


CLEAN: dict[str, Callable[[], list[Event]]] = {"steady": steady, "calm": calm, "powered": powered, "damaged": damaged}


@pytest.mark.parametrize("name", CLEAN)
def test_a_correct_bus_has_a_clean_history(name: str) -> None:
    assert check(CLEAN[name]()) == []


@pytest.mark.parametrize("seed", range(40))
def test_no_random_run_of_a_correct_bus_is_accused(seed: int) -> None:
    bus = Bus(seed)
    bus.run(150)
    if seed % 2:
        bus.power(lose=seed % 4 // 2)
        bus.run(150)
    assert check(bus.finish()) == []


def test_the_clean_histories_hold_what_the_faults_need() -> None:
    events = steady()
    assert {"start", "done", "error", "dead", "fail", "info", "fault", "quiet"} <= {e.ev for e in events}
    assert any(e.redel for e in events)
    assert any(e.redel for e in powered())


# ── planted faults ───────────────────────────────────────────────────────────────────────────────────────────────────


def find(events: list[Event], ev: str, nth: int = 0, **fields: object) -> int:
    """The place of the nth event of a kind with these fields."""
    hits = [i for i, e in enumerate(events) if e.ev == ev and all(getattr(e, k) == v for k, v in fields.items())]
    return hits[nth]


def about(events: list[Event], sub: str, message: str) -> list[int]:
    return [i for i, e in enumerate(events) if e.sub == sub and e.id == message]


def without(events: list[Event], places: list[int]) -> list[Event]:
    gone = set(places)
    return [e for i, e in enumerate(events) if i not in gone]


def changed(events: list[Event], at: int, **fields: object) -> list[Event]:
    return [*events[:at], replace(events[at], **fields), *events[at + 1 :]]


def drop_one() -> list[Event]:
    events = calm()
    return without(events, about(events, "sub1", events[find(events, "start", 2, sub="sub1")].id))


def drop_the_done_of_a_killed_handler() -> list[Event]:
    """Marked before the handler: the kill inside it loses the message."""
    events = calm()
    at = find(events, "done", 2, sub="sub1")
    kill = replace(events[at], ev="fault", kind="kill", sub="")
    later = [replace(e, inc="sub1-new") if e.sub == "sub1" else e for e in events[at + 1 :]]
    return [*events[:at], kill, *later]


def drop_the_last_after_quiet() -> list[Event]:
    events = calm()
    return without(events, about(events, "sub2", events[find(events, "start", -1, sub="sub2")].id))


def drop_everything_for_a_subscription() -> list[Event]:
    events = calm()
    return without(events, [i for i, e in enumerate(events) if e.sub == "sub1" and e.ev in ("start", "done")])


def double_one_unflagged() -> list[Event]:
    events = calm()
    at = find(events, "done", 3, sub="sub1")
    return [*events[: at + 1], *events[at - 1 : at + 1], *events[at + 1 :]]


def double_one_flagged_without_a_crash() -> list[Event]:
    events = calm()
    at = find(events, "done", 3, sub="sub1")
    return [*events[: at + 1], replace(events[at - 1], redel=True), events[at], *events[at + 1 :]]


def hide_the_flag_after_a_crash() -> list[Event]:
    events = steady()
    begun: set[tuple[str, str]] = set()
    for i, e in enumerate(events):
        if e.ev == "start" and e.redel and (e.sub, e.id) in begun:
            return changed(events, i, redel=False)
        if e.ev == "start":
            begun.add((e.sub, e.id))
    raise AssertionError("no redelivery in the history")


def hide_the_flag_after_a_power_cut() -> list[Event]:
    events = powered()
    cut = find(events, "fault", kind="power")
    settled = {e.id for e in events[:cut] if e.ev == "done" and e.sub == "sub1"}
    at = next(i for i, e in enumerate(events) if i > cut and e.ev == "start" and e.sub == "sub1" and e.id in settled)
    return changed(events, at, redel=False)


def swap_two() -> list[Event]:
    events = calm()
    lane = {"sub": "sub1", "ch": "hub", "prod": "p1"}
    first, second = (find(events, "start", n, **lane) for n in (2, 3))
    a, b = about(events, "sub1", events[first].id), about(events, "sub1", events[second].id)
    events = list(events)
    for i, j in zip(a, b, strict=True):
        events[i], events[j] = events[j], events[i]
    return events


def wrong_payload() -> list[Event]:
    return changed(calm(), find(calm(), "start", 4), sha="other")


def wrong_channel() -> list[Event]:
    return changed(calm(), find(calm(), "start", 4, ch="hub"), ch="agent-a")


def unknown_id() -> list[Event]:
    return changed(calm(), find(calm(), "start", 4), id="nobody's")


def ghost() -> list[Event]:
    events = calm()
    failed = events[find(events, "fail")]
    inv = events[find(events, "inv", id=failed.id)]
    start = replace(events[find(events, "start", sub="sub1")], ch=failed.ch, prod=inv.prod, id=failed.id, sha=inv.sha,
                    origin="p2~s1~2", seq=1)
    return [*events, start, replace(start, ev="done")]


def handled_before_it_was_published() -> list[Event]:
    events = calm()
    at = find(events, "inv", id=events[find(events, "start", -1)].id)
    return [*events[:at], *events[at + 1 :], events[at]]


def two_messages_at_one_position() -> list[Event]:
    events = calm()
    at, before = (find(events, "ack", n, ch="hub", prod="p1") for n in (1, 0))
    return changed(events, at, seq=events[before].seq)


def gap_without_a_cause() -> list[Event]:
    events = calm()
    at = find(events, "done", 3, sub="sub1")
    seq = events[at].seq
    return [*events[: at + 1], replace(events[at], ev="gap", id="", first=seq, last=seq), *events[at + 1 :]]


def loss_called_a_gap() -> list[Event]:
    events = calm()
    at = find(events, "start", 3, sub="sub1")
    gap = replace(events[at], ev="gap", first=events[at].seq, last=events[at].seq)
    return without([*events[:at], gap, *events[at:]], [at + 1, at + 2])


def hidden_report_of_damage() -> list[Event]:
    events = damaged()
    hidden = [i for i, e in enumerate(events) if e.ev in ("gap", "corrupt") and e.sub == "sub1"]
    return without(events, hidden)


def false_flag() -> list[Event]:
    return changed(calm(), find(calm(), "start", 4), redel=True)


def false_flag_long_after_a_crash() -> list[Event]:
    events = calm()
    at = find(events, "reg", 1, sub="sub1")
    kill = replace(events[at], ev="fault", kind="kill", inc="sub1-0", sub="")
    early = [replace(e, ev="open", inc="sub1-0", ch="") if i == 0 else e for i, e in enumerate(events[: at + 1])]
    later = events[at + 1 :]
    return [*early, kill, *changed(later, find(later, "start", 9, sub="sub1"), redel=True)]


def flag_everything() -> list[Event]:
    return [replace(e, redel=True) if e.ev == "start" else e for e in steady()]


def flag_everything_after_a_power_cut() -> list[Event]:
    events = powered()
    cut = find(events, "fault", kind="power")
    return [replace(e, redel=True) if e.ev == "start" and i > cut else e for i, e in enumerate(events)]


def flag_a_retry() -> list[Event]:
    events = steady()
    return changed(events, find(events, "start", attempt=2, redel=False), redel=True)


def retry_without_an_error() -> list[Event]:
    events = steady()
    error = find(events, "error")
    return without(events, [error])


def receipt_lies_about_handled() -> list[Event]:
    events = steady()
    ack = events[find(events, "ack", level="handled")]
    done = next(i for i, e in enumerate(events) if e.ev in ("done", "dead") and e.sub == "sub1" and e.id == ack.id)
    at = find(events, "ack", level="handled")
    return [*events[:done], ack, *events[done:at], *events[at + 1 :]]


def disk_receipt_lost_in_a_power_cut() -> list[Event]:
    events = powered()
    gone = events[find(events, "fault", kind="power")].ids
    handled = {e.id for e in events if e.ev == "done" and e.sub == "sub1"}
    at = next(i for i, e in enumerate(events) if e.ev == "ack" and e.id in gone and e.id not in handled)
    return changed(events, at, level="disk")


def order_across_incarnations() -> list[Event]:
    """The first record of a later incarnation is handled before the last of the earlier."""
    events = calm()
    lane = {"ch": "hub", "prod": "p1"}
    last = events[find(events, "ack", 3, **lane)].id
    moved = {e.id: n for n, e in enumerate(e for e in events if e.ev == "ack" and e.ch == "hub" and e.prod == "p1")}
    split = moved[last]
    return [replace(e, pinc=2 if moved[e.id] < split else 1)
            if e.id in moved and e.ev in ("ack", "start", "done") else e for e in events]


def one_producer_reordered() -> list[Event]:
    """Numbered in another order than published: positions increase, the sender's order does not hold."""
    events = calm()
    lane = {"ch": "hub", "prod": "p1"}
    a, b = (find(events, "inv", n, **lane) for n in (3, 4))
    events = list(events)
    early, late = events[a], events[b]
    events[a] = late
    del events[b]
    events.insert(a + 1, early)
    acks = [find(events, "ack", id=early.id), find(events, "ack", id=late.id)]
    assert acks[0] < acks[1]
    return events


def overlapping_handlers() -> list[Event]:
    events = calm()
    lane = {"sub": "sub1", "ch": "hub", "prod": "p1"}
    done, after = find(events, "done", 3, **lane), find(events, "start", 4, **lane)
    assert done < after
    return [*events[:done], *events[done + 1 : after + 1], events[done], *events[after + 1 :]]


def copy_handled_twice() -> list[Event]:
    """The user published one id twice, and both copies reached the handler."""
    events = calm()
    inv = events[find(events, "inv", 2, prod="p1", ch="hub")]
    ack = events[find(events, "ack", id=inv.id)]
    start, done = (events[find(events, ev, id=inv.id, sub="sub1")] for ev in ("start", "done"))
    return [*events, inv, replace(ack, seq=900), replace(start, seq=900), replace(done, seq=900)]


PLANTED: list[tuple[Callable[[], list[Event]], str]] = [
    (drop_one, "lost"),
    (drop_the_done_of_a_killed_handler, "lost"),
    (drop_the_last_after_quiet, "stuck"),
    (drop_everything_for_a_subscription, "stuck"),
    (double_one_unflagged, "doubled"),
    (double_one_flagged_without_a_crash, "doubled"),
    (hide_the_flag_after_a_crash, "doubled"),
    (hide_the_flag_after_a_power_cut, "doubled"),
    (swap_two, "order"),
    (wrong_payload, "payload"),
    (wrong_channel, "wrong_channel"),
    (unknown_id, "unknown"),
    (ghost, "ghost"),
    (handled_before_it_was_published, "early"),
    (two_messages_at_one_position, "diverged"),
    (gap_without_a_cause, "gap"),
    (loss_called_a_gap, "gap"),
    (hidden_report_of_damage, "unreported"),
    (false_flag, "false_flag"),
    (false_flag_long_after_a_crash, "false_flag"),
    (flag_everything, "flag_budget"),
    (flag_everything_after_a_power_cut, "false_flag"),
    (flag_a_retry, "false_flag"),
    (retry_without_an_error, "doubled"),
    (receipt_lies_about_handled, "receipt"),
    (disk_receipt_lost_in_a_power_cut, "lost"),
    (order_across_incarnations, "order"),
    (one_producer_reordered, "producer_order"),
    (overlapping_handlers, "overlap"),
    (copy_handled_twice, "copied"),
]


@pytest.mark.parametrize(("plant", "kind"), PLANTED, ids=[plant.__name__ for plant, _ in PLANTED])
def test_a_planted_fault_is_named(plant: Callable[[], list[Event]], kind: str) -> None:
    found = check(plant())
    assert kind in {violation.kind for violation in found}
    assert all(violation.text for violation in found)


def test_a_violation_names_subscription_message_and_channel() -> None:
    planted = wrong_payload()
    [found] = check(planted)
    start = planted[find(planted, "start", sha="other")]
    assert found.key == (start.sub, start.ch, start.id)
    assert all(part in found.text for part in found.key)


def test_a_cap_allows_a_reported_gap_and_no_hidden_one() -> None:
    reported = loss_called_a_gap()
    assert check(reported, cap=True) == []
    hidden = [e for e in reported if e.ev != "gap"]
    assert {v.kind for v in check(hidden, cap=True)} == {"lost"}


def test_a_flag_budget_limits_all_flags_together() -> None:
    events = steady()
    flagged = sum(e.redel and e.attempt == 1 for e in events if e.ev == "start")
    assert check(events, flag_budget=flagged) == []
    assert {v.kind for v in check(events, flag_budget=flagged - 1)} == {"flag_budget"}


def test_a_subscription_is_not_owed_what_was_published_before_it() -> None:
    events = calm()
    late = MemoryHistory(events=events).life("late")
    late.record("reg", sub="sub3", ch="hub")
    assert check(events) == []


def test_a_message_that_was_acknowledged_at_the_end_is_owed_by_the_end() -> None:
    bus = Bus(5)
    bus.publish("p1", "hub")
    assert {v.kind for v in check(bus.history.events)} == {"stuck"}


# ── fine points ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Script:
    """A history written by hand: one subscription, one sender, one line a call."""

    def __init__(self) -> None:
        self.history = MemoryHistory()
        self.lives = itertools.count(1)
        self.life()

    def life(self) -> None:
        self.sub = self.history.life(f"life{next(self.lives)}", site=SITE)
        self.sub.record("open", sub="s")
        self.sub.record("reg", sub="s", ch="hub")

    def kill(self) -> None:
        self.history.record("fault", kind="kill", inc=self.sub.stamp.inc)
        self.life()

    def power(self, *ids: str) -> None:
        self.history.record("fault", kind="power", site=SITE, ids=ids)
        self.life()

    def place(self, message: str, seq: int) -> dict[str, object]:
        return {"ch": "hub", "prod": "p", "origin": "p~s1~1", "pinc": 1, "seq": seq, "id": message}

    def inv(self, message: str, site: str = SITE) -> None:
        self.history.record("inv", inc="p-1", site=site, ch="hub", prod="p", id=message, sha="x")

    def ack(self, message: str, seq: int) -> None:
        self.history.record("ack", inc="p-1", level="local", **self.place(message, seq))

    def pub(self, message: str, seq: int, site: str = SITE) -> None:
        self.inv(message, site)
        self.ack(message, seq)

    def start(self, message: str, seq: int, *, redel: bool = False, attempt: int = 1) -> None:
        self.sub.record("start", sub="s", sha="x", redel=redel, attempt=attempt, **self.place(message, seq))

    def done(self, message: str, seq: int) -> None:
        self.sub.record("done", sub="s", **self.place(message, seq))

    def handle(self, message: str, seq: int, *, redel: bool = False) -> None:
        self.start(message, seq, redel=redel)
        self.done(message, seq)

    def kinds(self) -> set[str]:
        return {violation.kind for violation in check(self.history.events)}


@pytest.fixture
def script() -> Script:
    return Script()


def test_a_message_published_again_after_its_bytes_were_lost_is_owed_again(script: Script) -> None:
    script.pub("a", 1)
    script.power("a")
    assert script.kinds() == set()
    script.pub("a", 2)
    assert script.kinds() == {"stuck"}


def test_a_handler_that_never_returned_has_not_settled_its_message(script: Script) -> None:
    script.pub("a", 1)
    script.start("a", 1)
    assert script.kinds() == {"stuck"}


def test_a_report_does_not_excuse_a_loss_where_no_cap_allows_it() -> None:
    assert {v.kind for v in check(loss_called_a_gap())} == {"lost", "gap"}


@pytest.mark.parametrize("moment", ["intent", "inside", "after"])
def test_a_crash_leaves_one_message_of_a_lane_in_doubt(script: Script, moment: str) -> None:
    script.pub("a", 1)
    script.pub("b", 2)
    if moment != "intent":
        script.start("a", 1)
    if moment == "after":
        script.done("a", 1)
    script.kill()
    script.handle("a", 1, redel=True)
    script.handle("b", 2)
    assert script.kinds() == set()


def test_the_next_message_may_be_the_one_in_doubt(script: Script) -> None:
    script.pub("a", 1)
    script.pub("b", 2)
    script.handle("a", 1)
    script.kill()
    script.handle("b", 2, redel=True)
    assert script.kinds() == set()


def test_an_earlier_message_than_the_last_begun_is_never_in_doubt(script: Script) -> None:
    script.pub("a", 1)
    script.pub("b", 2)
    script.handle("a", 1)
    script.handle("b", 2)
    script.kill()
    script.handle("a", 1, redel=True)
    assert script.kinds() == {"doubled"}


def test_a_flag_does_not_excuse_two_handlings_in_one_life(script: Script) -> None:
    script.pub("a", 1)
    script.start("a", 1)
    script.handle("a", 1, redel=True)
    assert "doubled" in script.kinds()


def test_a_crash_leaves_nothing_in_doubt_that_was_published_later(script: Script) -> None:
    script.kill()
    script.pub("a", 1)
    script.handle("a", 1, redel=True)
    assert script.kinds() == {"false_flag"}


def test_an_old_crash_explains_no_flag_in_a_lane_touched_since(script: Script) -> None:
    script.pub("a", 1)
    script.pub("b", 2)
    script.kill()
    script.handle("a", 1)
    script.sub.record("stop", sub="s")
    script.life()
    script.handle("b", 2, redel=True)
    assert script.kinds() == {"false_flag"}


def test_a_life_that_ended_inside_a_handler_needs_no_recorded_kill(script: Script) -> None:
    script.pub("a", 1)
    script.start("a", 1)
    script.life()
    script.handle("a", 1, redel=True)
    assert script.kinds() == set()


def test_a_handler_that_outlives_its_subscription_leaves_its_message_in_doubt(script: Script) -> None:
    script.pub("a", 1)
    script.start("a", 1)
    script.sub.record("stop", sub="s")
    script.done("a", 1)
    script.life()
    script.handle("a", 1, redel=True)
    assert script.kinds() == set()


def test_a_kill_that_is_written_before_the_life_said_anything_counts(script: Script) -> None:
    script.pub("a", 1)
    script.sub.record("stop", sub="s")
    script.history.record("fault", kind="kill", inc="life2")
    script.life()
    script.life()
    script.handle("a", 1, redel=True)
    assert script.kinds() == set()


def test_a_power_cut_excuses_one_repetition_only(script: Script) -> None:
    script.pub("a", 1)
    script.handle("a", 1)
    script.power()
    script.handle("a", 1, redel=True)
    assert script.kinds() == set()
    script.life()
    script.handle("a", 1, redel=True)
    assert "doubled" in script.kinds()


def test_what_a_lane_of_another_site_holds_when_it_is_met_after_a_power_cut_may_be_flagged(script: Script) -> None:
    script.power()
    script.pub("a", 1, site="elsewhere")
    script.handle("a", 1, redel=True)
    script.life()  # which may have been killed before it met that lane
    script.pub("b", 2, site="elsewhere")
    script.handle("b", 2, redel=True)
    assert script.kinds() == set()
    script.pub("c", 3, site="elsewhere")
    script.handle("c", 3)
    script.pub("d", 4, site="elsewhere")
    script.handle("d", 4, redel=True)
    assert "false_flag" in script.kinds()


def test_a_retry_raises_the_attempt(script: Script) -> None:
    script.pub("a", 1)
    script.start("a", 1)
    script.sub.record("error", sub="s", **script.place("a", 1))
    script.handle("a", 1)
    assert script.kinds() == {"doubled"}


def test_what_expired_between_two_attempts_may_be_published_and_handled_again(script: Script) -> None:
    script.pub("a", 1)
    script.start("a", 1)
    script.sub.record("error", sub="s", **script.place("a", 1))
    script.sub.record("expired", sub="s", **script.place("a", 1))
    script.pub("a", 2)
    script.handle("a", 2)
    assert script.kinds() == set()
    script.pub("a", 3)
    script.handle("a", 3)
    assert script.kinds() == {"copied"}


def test_a_power_cut_takes_ids_that_were_remembered(script: Script) -> None:
    script.pub("a", 1)
    script.handle("a", 1)
    script.power()
    script.pub("a", 2)
    script.handle("a", 2)
    assert script.kinds() == set()
    script.pub("a", 3)
    script.handle("a", 3)
    assert script.kinds() == {"copied"}


@pytest.mark.parametrize("expired", [1, 2])
def test_what_was_handled_or_may_have_been_is_doubled_also_if_a_copy_of_it_expired(script: Script, expired: int) -> None:
    script.pub("a", 1)
    script.start("a", 1)
    if expired == 2:
        script.done("a", 1)
        script.pub("a", 2)
    else:
        script.kill()
    script.sub.record("expired", sub="s", **script.place("a", expired))
    script.pub("a", 3)
    script.handle("a", 3)
    assert script.kinds() == {"copied"}


@pytest.mark.parametrize(("crash", "handled", "kind"), [
    (True, True, None), (True, False, None), (False, True, "doubled"), (False, False, "false_flag")])
def test_a_copy_of_what_expired_in_doubt_may_be_flagged_once(
    script: Script, crash: bool, handled: bool, kind: str | None
) -> None:
    script.pub("a", 1)
    if handled:
        script.handle("a", 1)
    if crash:
        script.kill()
    script.sub.record("expired", sub="s", **script.place("a", 1))
    script.pub("a", 2)
    script.handle("a", 2, redel=True)
    assert script.kinds() - {"flag_budget"} == ({kind} if kind else set())
    script.pub("a", 3)
    script.handle("a", 3, redel=True)
    assert "doubled" in script.kinds()


def test_a_copy_that_expired_says_nothing_of_an_attempt_that_goes_on(script: Script) -> None:
    script.pub("a", 1)
    script.start("a", 1)
    script.sub.record("error", sub="s", **script.place("a", 1))
    script.pub("a", 2)
    script.sub.record("expired", sub="s", **script.place("a", 2))
    script.handle("a", 1)
    assert script.kinds() == {"doubled"}


def test_a_copy_that_was_dropped_does_not_disturb_the_order(script: Script) -> None:
    for seq, message in enumerate("aba", 1):
        script.pub(message, seq)
    script.handle("a", 1)
    script.handle("b", 2)
    assert script.kinds() == set()


def test_what_was_not_acknowledged_has_no_order(script: Script) -> None:
    script.inv("a")
    script.pub("b", 1)
    script.handle("b", 1)
    script.handle("a", 2)
    assert script.kinds() == set()


def test_damage_to_a_message_whose_sequence_nobody_was_told_is_a_cause_for_a_gap(script: Script) -> None:
    script.inv("a")
    script.history.record("fault", kind="corrupted", ids=("a",))
    script.sub.record("gap", sub="s", ch="hub", prod="p", origin="p~s1~1", pinc=1, first=1, last=1)
    assert script.kinds() == set()


@pytest.mark.parametrize(("report", "expected"), [("corrupt", set()), ("mode", {"unreported"})])
def test_damage_is_reported_by_a_corrupt_event_too(script: Script, report: str, expected: set[str]) -> None:
    script.pub("a", 1)
    script.pub("b", 2)
    script.history.record("fault", kind="corrupted", ids=("a",))
    script.sub.record(report, sub="s", **script.place("a", 1))  # type: ignore[arg-type]
    script.handle("b", 2)
    assert script.kinds() == expected


def test_a_message_published_again_after_damage_is_owed_again(script: Script) -> None:
    script.pub("a", 1)
    script.history.record("fault", kind="corrupted", ids=("a",))
    script.pub("a", 2)
    assert script.kinds() == {"stuck"}


def test_damage_that_nobody_reached_needs_no_report(script: Script) -> None:
    script.pub("a", 1)
    script.history.record("fault", kind="corrupted", ids=("a",))
    assert script.kinds() == set()


# ── recording ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_recorded_is_loaded_in_the_order_of_time(tmp_path: Path) -> None:
    clock = itertools.count(1).__next__
    one, two = (History(tmp_path / name, inc=name, site="s", clock=clock) for name in "ab")
    one.record("inv", ch="hub", prod="p", id="x", sha="1")
    two.record("reg", sub="s", ch="hub")
    one.record("gap", sub="s", ch="hub", first=2, last=3)
    one.close()
    two.close()
    events = load([tmp_path / "b", tmp_path / "a"])
    assert [(e.ev, e.t, e.inc) for e in events] == [("inv", 1, "a"), ("reg", 2, "b"), ("gap", 3, "a")]
    assert {e.site for e in events} == {"s"}
    assert (events[2].first, events[2].last) == (2, 3)
    assert events[0].pid > 0


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "h"
    history = History(path, inc="a")
    history.record("quiet")
    history.record("fault", kind="power", ids=("x",))
    history.close()
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for cut in range(first, len(data)):
        path.write_bytes(data[:cut])
        assert [e.ev for e in load([path])] == ["quiet"]


def test_a_broken_line_in_the_middle_is_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "h"
    path.write_bytes(b'{"ev":"quiet"}\n{"ev":"qui\n{"ev":"quiet"}\n')
    with pytest.raises(ValueError, match="not an event"):
        load([path])


def test_a_misspelt_field_is_refused() -> None:
    with pytest.raises(TypeError):
        MemoryHistory().record("start", subscription="s")


def test_a_short_write_is_loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(tmp_path / "h")
    monkeypatch.setattr("os.write", lambda fd, data: len(data) - 1)
    with pytest.raises(OSError, match="history: wrote"):
        history.record("quiet")
    history.close()


def test_lives_of_a_simulation_share_one_list() -> None:
    harness = MemoryHistory()
    harness.life("a", site="s1").record("reg", sub="s", ch="hub")
    harness.life("b").record("quiet")
    assert [(e.inc, e.site) for e in harness.events] == [("a", "s1"), ("b", "")]


def test_a_long_history_is_checked_in_one_go() -> None:
    bus = Bus(7)
    bus.run(40_000)
    events = bus.finish()
    assert len(events) > 50_000
    assert check(events) == []
