"""Histories of several sites, judged together: a subscription owes what other sites publish, and nothing is excused."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from lemegeton.testing.checker import check
from lemegeton.testing.history import Event, MemoryHistory

SITES = ("s1", "s2")
COUNT = 12


class Sites:
    """Two sites that hear each other: one sender and one subscription on each, and what they write down."""

    def __init__(self) -> None:
        self.memory = MemoryHistory()
        self.seqs = dict.fromkeys(SITES, 0)
        self.lives = dict.fromkeys(SITES, 0)
        for site in SITES:
            self.register(site)

    def note(self, ev: str, site: str, inc: str, **fields: object) -> None:
        self.memory.life(f"{inc}.{site}", site=site).record(ev, **fields)  # type: ignore[arg-type]

    def reader(self, ev: str, site: str, **fields: object) -> None:
        self.note(ev, site, f"reader{self.lives[site]}", sub=f"one@{site}", **fields)

    def register(self, site: str) -> None:
        self.reader("reg", site, ch="hub")

    def place(self, site: str, seq: int) -> dict[str, object]:
        return {"ch": "hub", "prod": "p", "origin": f"p~{site}~1", "pinc": 1, "seq": seq, "id": f"{site}-{seq}"}

    def inv(self, site: str, kind: str = "") -> int:
        self.seqs[site] += 1
        message = f"{site}-{self.seqs[site]}"
        self.note("inv", site, "sender", ch="hub", prod="p", id=message, sha=f"sha of {message}", kind=kind)
        return self.seqs[site]

    def ack(self, site: str, seq: int) -> None:
        self.note("ack", site, "sender", level="local", **self.place(site, seq))

    def pub(self, site: str, kind: str = "") -> int:
        seq = self.inv(site, kind)
        self.ack(site, seq)
        return seq

    def handle(self, at: str, site: str, seq: int, *, redel: bool = False) -> None:
        self.reader("start", at, redel=redel, sha=f"sha of {site}-{seq}", **self.place(site, seq))
        self.reader("done", at, **self.place(site, seq))

    def kill(self, site: str) -> None:
        self.note("fault", site, "harness", kind="kill")
        self.memory.record("fault", kind="kill", inc=f"reader{self.lives[site]}.{site}")
        self.lives[site] += 1
        self.register(site)

    def kinds(self) -> set[str]:
        return {violation.kind for violation in check(self.memory.events)}


def clean() -> list[Event]:
    """Both sites publish in turn; what one publishes reaches its own site at once, and the other in bursts."""
    sites, rng = Sites(), random.Random(3)
    behind: dict[str, list[int]] = {site: [] for site in SITES}
    for number in range(COUNT):
        for site, other in zip(SITES, reversed(SITES), strict=True):
            seq = sites.pub(site)
            sites.handle(site, site, seq)
            behind[site].append(seq)
            if rng.random() < 0.4 or number == COUNT - 1:
                for late in behind[site]:
                    sites.handle(other, site, late)
                behind[site].clear()
    sites.memory.record("quiet")
    return sites.memory.events


def far(events: list[Event], ev: str, seq: int) -> int:
    """Where the subscription of the second site met a message of the first."""
    return next(i for i, e in enumerate(events) if (e.ev, e.sub, e.id) == (ev, "one@s2", f"s1-{seq}"))


def test_two_sites_that_hear_each_other_are_clean() -> None:
    assert check(clean()) == []


def lose(*seqs: int) -> list[Event]:
    return [e for e in clean() if not (e.sub == "one@s2" and e.id in {f"s1-{seq}" for seq in seqs})]


def double() -> list[Event]:
    events = clean()
    begin = far(events, "start", 5)
    return [*events, events[begin], events[begin + 1]]


def flag() -> list[Event]:
    events = clean()
    at = far(events, "start", 4)
    events[at] = replace(events[at], redel=True)
    return events


def swap() -> list[Event]:
    events = clean()
    first, second = far(events, "start", 6), far(events, "start", 7)
    events[first : first + 2], events[second : second + 2] = events[second : second + 2], events[first : first + 2]
    return events


def spoil() -> list[Event]:
    events = clean()
    at = far(events, "start", 3)
    events[at] = replace(events[at], sha="of something else")
    return events


def move() -> list[Event]:
    events = clean()
    return [replace(e, ch="agent-a") if e.sub == "one@s2" and e.id == "s1-8" else e for e in events]


def gap() -> list[Event]:
    events = lose(9)
    at = far(events, "start", 10)
    return [*events[:at], replace(events[at], ev="gap", first=9, last=9, sha="", id=""), *events[at:]]


def skip() -> list[Event]:
    events = lose(9)
    at = far(events, "start", 10)
    return [*events[:at], replace(events[at], ev="expired", first=9, seq=9, sha="", id=""), *events[at:]]


PLANTED: list[tuple[Callable[[], list[Event]], set[str]]] = [
    (lambda: lose(5), {"lost"}), (lambda: lose(COUNT), {"stuck"}), (lambda: lose(*range(1, COUNT + 1)), {"stuck"}),
    (double, {"doubled"}), (flag, {"false_flag", "flag_budget"}), (swap, {"order", "producer_order"}),
    (spoil, {"payload"}), (move, {"wrong_channel", "lost"}), (gap, {"gap", "lost"}), (skip, {"lost"}),
]


@pytest.mark.parametrize(("plant", "kinds"), PLANTED)
def test_what_goes_wrong_between_sites_is_named(plant: Callable[[], list[Event]], kinds: set[str]) -> None:
    assert {violation.kind for violation in check(plant())} == kinds


def test_another_site_owes_what_was_acknowledged_behind_its_registration() -> None:
    for site, owed in (("s2", {"stuck"}), ("s1", set())):
        sites = Sites()
        sites.memory.events.clear()
        seq = sites.inv("s1")
        sites.register(site)
        sites.ack("s1", seq)
        assert sites.kinds() == owed


def test_another_site_does_not_owe_what_was_acknowledged_before_its_registration() -> None:
    sites = Sites()
    sites.memory.events.clear()
    sites.pub("s1")
    sites.register("s2")
    assert sites.kinds() == set()


def test_what_expired_before_it_was_sent_is_settled_by_the_marker_that_came_instead() -> None:
    sites = Sites()
    seq = sites.pub("s1", "ttl")
    sites.handle("s1", "s1", seq)
    assert sites.kinds() == {"stuck"}
    sites.reader("expired", "s2", first=1, ch="hub", prod="p", origin="p~s1~1", pinc=1, seq=seq)
    assert sites.kinds() == set()


def test_a_crash_on_one_site_explains_no_flag_on_another() -> None:
    sites = Sites()
    first, second = sites.pub("s1"), sites.pub("s1")
    for seq in (first, second):
        sites.handle("s1", "s1", seq)
    sites.handle("s2", "s1", first)
    sites.kill("s1")
    sites.handle("s2", "s1", second, redel=True)
    assert sites.kinds() == {"false_flag", "flag_budget"}


def test_a_crash_on_a_site_leaves_one_message_of_another_in_doubt() -> None:
    sites = Sites()
    first = sites.pub("s1")
    sites.handle("s1", "s1", first)
    sites.reader("start", "s2", sha=f"sha of s1-{first}", **sites.place("s1", first))
    sites.kill("s2")
    sites.handle("s2", "s1", first, redel=True)
    assert sites.kinds() == set()
    sites.handle("s2", "s1", first)
    assert sites.kinds() == {"doubled"}
