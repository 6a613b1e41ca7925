"""The rules of the modes hold for every sequence of what can happen, and say why they did what they did."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemegeton.mode_rules import MISSING, ORDER, Contact, CoordinationMode, Facts, Manual, Probes, Rules, State, calm, decide

DISTRIBUTED, DEGRADED, ISOLATED = ORDER
DOWN = Contact(up=False, cause="connection refused")
UP = Contact(up=True)
GOOD = Contact(up=True, good=True)
BAD = Contact(up=True, good=False, cause="no answer within 1.0 s")


def after(state: State, *steps: tuple[float, Facts]) -> State:
    for now_s, facts in steps:
        state = decide(state, facts, now_s)
    return state


def probed(count: int, facts: Facts, start_s: float = 0.0, state: State | None = None) -> State:
    """The state after so many probes, one a second."""
    return after(state or State(), *((start_s + n, facts) for n in range(count)))


# ---------------------------------------------------------------------------------------------- up


def test_it_begins_isolated() -> None:
    assert State().mode is ISOLATED
    assert decide(State(), Facts(), 0.0) == State()


@pytest.mark.parametrize(("facts", "mode", "name"), [
    (Facts(shared=GOOD), DISTRIBUTED, "shared"), (Facts(local=GOOD), DEGRADED, "local"),
    (Facts(shared=GOOD, local=GOOD), DISTRIBUTED, "shared"), (Facts(shared=DOWN, local=GOOD), DEGRADED, "local"),
])
def test_three_good_probes_name_the_best_that_has_them(facts: Facts, mode: CoordinationMode, name: str) -> None:
    assert probed(2, facts).mode is ISOLATED
    found = probed(3, facts)
    assert (found.mode, found.since_s, found.changes) == (mode, 2.0, 1)
    assert found.reason == f"the {name} Redis answered 3 probes in a row"


def test_a_link_that_is_up_and_was_not_probed_names_nothing() -> None:
    assert probed(100, Facts(shared=UP, local=UP)).mode is ISOLATED


@pytest.mark.parametrize("between", [BAD, DOWN])
def test_good_probes_count_in_a_row(between: Contact) -> None:
    state = probed(2, Facts(shared=GOOD))
    state = decide(state, Facts(shared=between), 2.0)
    assert probed(2, Facts(shared=GOOD), 3.0, state).mode is ISOLATED
    assert probed(3, Facts(shared=GOOD), 3.0, state).mode is DISTRIBUTED


def test_after_a_change_it_waits_before_it_goes_up() -> None:
    state = probed(3, Facts(local=GOOD))
    state = probed(4, Facts(shared=GOOD, local=GOOD), 3.0, state)
    assert state.mode is DEGRADED
    assert decide(state, Facts(shared=UP, local=UP), 6.999).mode is DEGRADED
    found = decide(state, Facts(shared=UP, local=UP), 7.0)
    assert (found.mode, found.reason) == (DISTRIBUTED, "the shared Redis answered 4 probes in a row")


# ---------------------------------------------------------------------------------------------- down


def test_a_link_that_goes_down_takes_its_mode_with_it_at_once() -> None:
    state = probed(3, Facts(shared=GOOD, local=GOOD))
    found = decide(state, Facts(shared=DOWN, local=UP), 2.0)
    assert (found.mode, found.reason) == (DEGRADED, "the shared Redis does not answer: connection refused")
    found = decide(found, Facts(shared=DOWN, local=DOWN), 2.0)
    assert (found.mode, found.reason) == (ISOLATED, "the local Redis does not answer: connection refused")
    assert found.changes == 3


def test_down_past_a_local_redis_that_is_not_there() -> None:
    assert decide(probed(3, Facts(shared=GOOD)), Facts(shared=DOWN), 3.0).mode is ISOLATED


def test_down_never_leads_up() -> None:
    state = probed(3, Facts(local=GOOD))
    assert decide(state, Facts(shared=UP, local=DOWN), 9.0).mode is ISOLATED


def test_one_bad_probe_is_forgiven_and_two_are_not() -> None:
    state = decide(probed(3, Facts(shared=GOOD)), Facts(shared=BAD), 3.0)
    assert state.mode is DISTRIBUTED
    assert decide(decide(state, Facts(shared=GOOD), 4.0), Facts(shared=BAD), 5.0).mode is DISTRIBUTED
    found = decide(state, Facts(shared=BAD), 4.0)
    assert (found.mode, found.reason) == (ISOLATED, "the shared Redis does not answer: no answer within 1.0 s")


def test_a_redis_whose_probes_fail_is_nothing_to_fall_back_to() -> None:
    state = probed(3, Facts(shared=GOOD, local=BAD))
    assert decide(state, Facts(shared=DOWN, local=UP), 4.0).mode is ISOLATED


# ---------------------------------------------------------------------------------------------- by hand


def test_by_hand_it_goes_at_once_and_comes_back_by_the_rules() -> None:
    hand = Manual(ISOLATED, "moving the server")
    state = decide(probed(3, Facts(shared=GOOD)), Facts(shared=UP, manual=hand), 3.0)
    assert (state.mode, state.reason, state.manual) == (ISOLATED, "by hand: moving the server", hand)
    state = probed(9, Facts(shared=GOOD, manual=hand), 4.0, state)
    assert state.mode is ISOLATED
    found = decide(state, Facts(shared=UP, ended="the switch ended: its time is over"), 13.0)
    assert (found.mode, found.manual) == (DISTRIBUTED, None)
    assert found.reason == "the switch ended: its time is over; the shared Redis answered 12 probes in a row"


def test_degraded_by_hand_names_the_local_one_although_the_shared_one_is_up() -> None:
    state = probed(3, Facts(shared=GOOD, local=GOOD))
    state = decide(state, Facts(shared=UP, local=UP, manual=Manual(DEGRADED)), 3.0)
    assert (state.mode, state.reason) == (DEGRADED, "by hand: no reason given")
    assert probed(20, Facts(shared=GOOD, local=GOOD, manual=Manual(DEGRADED)), 4.0, state).mode is DEGRADED


def test_by_hand_nothing_is_named_that_does_not_work() -> None:
    found = decide(State(), Facts(shared=DOWN, local=DOWN, manual=Manual(DISTRIBUTED, "now")), 0.0)
    assert found.mode is ISOLATED
    state = probed(3, Facts(shared=GOOD))
    found = decide(state, Facts(shared=UP, manual=Manual(DEGRADED, "now")), 3.0)
    assert (found.mode, found.reason) == (ISOLATED, "by hand: now; the local Redis: there is none")


def test_by_hand_nothing_is_waited_for() -> None:
    state = decide(probed(3, Facts(shared=GOOD)), Facts(shared=DOWN), 3.0)
    found = decide(state, Facts(shared=UP, manual=Manual(DISTRIBUTED)), 3.5)
    assert found.mode is DISTRIBUTED


def test_under_a_switch_by_hand_the_rules_hold() -> None:
    hand = Manual(DEGRADED, "save it")
    state = decide(State(), Facts(shared=GOOD, local=UP, manual=hand), 0.0)
    assert state.mode is DEGRADED
    state = decide(state, Facts(shared=GOOD, local=DOWN, manual=hand), 1.0)
    assert (state.mode, state.reason) == (ISOLATED, "the local Redis does not answer: connection refused")
    assert probed(3, Facts(shared=GOOD, local=GOOD, manual=hand), 2.0, state).mode is ISOLATED
    assert probed(5, Facts(shared=GOOD, local=GOOD, manual=hand), 2.0, state).mode is DEGRADED


# ---------------------------------------------------------------------------------------------- calm


def test_calm_is_when_nothing_is_under_way() -> None:
    good, up = Facts(shared=GOOD), Facts(shared=UP)
    assert calm(State(), Facts())
    assert not calm(probed(2, good), up)
    assert calm(probed(3, good), up)
    assert not calm(decide(probed(3, good), Facts(shared=BAD), 3.0), up)
    assert not calm(probed(3, good), Facts(shared=UP, local=UP))
    waiting = decide(probed(3, Facts(local=GOOD)), Facts(shared=GOOD, local=GOOD), 2.5)
    assert not calm(probed(3, Facts(shared=GOOD, local=GOOD), 2.6, waiting), Facts(shared=UP, local=UP))


# ---------------------------------------------------------------------------------------------- whatever happens


@dataclass(frozen=True)
class Step:
    passed_s: float
    facts: Facts


contacts = st.one_of(
    st.just(MISSING), st.just(DOWN),
    st.builds(Contact, up=st.just(True), good=st.sampled_from([None, True, True, True, False])))
manuals = st.one_of(st.none(), st.none(), st.builds(Manual, st.sampled_from(ORDER), st.sampled_from(["", "x"])))
steps = st.lists(st.builds(
    Step, st.sampled_from([0.0, 0.1, 1.0, 1.0, 2.5, 6.0]), st.builds(Facts, contacts, contacts, manuals)), max_size=60)
rules = st.builds(Rules, st.integers(1, 4), st.sampled_from([0.0, 1.0, 5.0]), st.integers(1, 3))


def better(one: CoordinationMode, other: CoordinationMode) -> bool:
    return ORDER.index(one) < ORDER.index(other)


@dataclass
class Counted:
    """What happened to one Redis, counted apart from the rules."""

    good: int = 0
    bad: int = 0

    def hear(self, contact: Contact) -> None:
        if not contact.up or contact.good is False:
            self.good = 0
        if not contact.up or contact.good is True:
            self.bad = 0
        if contact.up and contact.good is not None:
            self.good += contact.good
            self.bad += not contact.good


@given(steps, rules)
def test_nothing_goes_up_without_good_probes_and_cooldown_or_stays_up_without_a_link(taken: list[Step], by: Rules) -> None:
    state, now_s, changed_s, changes = State(), 100.0, -math.inf, 0
    counted = {DISTRIBUTED: Counted(), DEGRADED: Counted()}
    for step in taken:
        now_s += step.passed_s
        for mode, each in counted.items():
            each.hear(step.facts.of(mode))
        before, state = state, decide(state, step.facts, now_s, by)
        by_hand = step.facts.manual is not None and step.facts.manual != before.manual
        works = {mode: step.facts.of(mode).up and each.bad < by.bad_probes for mode, each in counted.items()}
        works[ISOLATED] = True
        # Never a name that does not work, or that is above what was asked for.
        assert works[state.mode]
        assert step.facts.manual is None or not better(state.mode, step.facts.manual.mode)
        if better(state.mode, before.mode) and not by_hand:
            assert counted[state.mode].good >= by.good_probes
            assert now_s - changed_s >= by.cooldown_s
        if better(before.mode, state.mode) and not by_hand:
            assert not works[before.mode]
            assert not any(works[mode] for mode in ORDER if better(before.mode, mode) and better(mode, state.mode))
        if state.mode is not before.mode:
            changes, changed_s = changes + 1, now_s
            assert state.reason
        assert (state.changes, state.manual) == (changes, step.facts.manual)
        assert state.since_s == changed_s


@given(st.lists(st.booleans(), max_size=200), st.sampled_from([0.3, 1.0, 2.0]))
def test_flapping_shows_as_changes_no_more_often_than_the_cooldown_allows(ups: list[bool], every_s: float) -> None:
    state, now_s = State(), 0.0
    for up in ups:
        now_s += every_s
        state = decide(state, Facts(shared=GOOD if up else DOWN), now_s)
        assert state.mode is not DISTRIBUTED or up
    assert state.changes <= 2 * (now_s // Rules().cooldown_s + 1)


@given(steps)
def test_once_all_is_well_the_best_is_named(taken: list[Step]) -> None:
    state, now_s = State(), 0.0
    for step in taken:
        now_s += step.passed_s
        state = decide(state, step.facts, now_s)
    well = Facts(shared=GOOD, local=GOOD)
    for _ in range(9):
        now_s += 1.0
        state = decide(state, well, now_s)
    assert state.mode is DISTRIBUTED
    assert calm(state, replace(well, shared=UP, local=UP))


@given(steps)
def test_the_same_facts_give_the_same_state(taken: list[Step]) -> None:
    one = other = State()
    for n, step in enumerate(taken):
        one, other = decide(one, step.facts, float(n)), decide(other, step.facts, float(n))
    assert one == other


def test_probes_are_counted_from_when_the_link_came_up() -> None:
    assert Probes(5, 0).after(DOWN) == Probes()
    assert Probes(2, 0).after(UP) == Probes(2, 0)
    assert Probes(0, 3).after(GOOD) == Probes(1, 0)
    assert Probes(4, 0).after(BAD) == Probes(0, 1)
