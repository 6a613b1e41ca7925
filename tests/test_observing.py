"""Every event is counted, logged and given to whoever asked."""

from __future__ import annotations

import logging

import pytest

from lemegeton.errors import InvalidMessage
from lemegeton.events import Event, Expired, Gap, LimitReached, RetentionFailed
from lemegeton.lane import Lane
from lemegeton.observing import NAMES, Observing

LANE = Lane("c", "o", 1, 1)
GAP = Gap("s", LANE, 1, 2, "why")


def fail(_: Event) -> None:
    raise ZeroDivisionError("division by zero")


EXPIRED = Expired("s", LANE, 4, "an-id")


def test_an_event_is_counted_by_name() -> None:
    observing = Observing()
    for event in (GAP, GAP, EXPIRED):
        observing.observe(event)
    assert observing.counts == {"gap": 2, "expired": 1}


def test_an_event_is_one_log_line_of_its_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lemegeton")
    observing = Observing()
    observing.observe(GAP)
    observing.observe(EXPIRED)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", str(GAP)), ("INFO", str(EXPIRED))]


def test_a_callback_gets_the_events_it_asked_for() -> None:
    observing = Observing()
    gaps: list[Event] = []
    everything: list[Event] = []
    observing.on("gap", gaps.append)
    observing.on("*", everything.append)
    for event in (GAP, EXPIRED):
        observing.observe(event)
    assert gaps == [GAP]
    assert everything == [GAP, EXPIRED]


def test_a_callback_ends_once_and_only_itself() -> None:
    observing = Observing()
    seen: list[Event] = []
    end = observing.on("gap", seen.append)
    observing.on("gap", seen.append)
    end()
    end()
    observing.observe(GAP)
    assert seen == [GAP]


def test_a_callback_may_end_itself_while_it_is_called() -> None:
    observing = Observing()
    seen: list[str] = []
    ends = [observing.on("gap", lambda _: ends[0]()), observing.on("gap", lambda event: seen.append(event.name))]
    observing.observe(GAP)
    observing.observe(GAP)
    assert seen == ["gap", "gap"]


def test_a_callback_that_raises_is_counted_and_the_others_are_called(caplog: pytest.LogCaptureFixture) -> None:
    observing = Observing()
    seen: list[Event] = []
    observing.on("gap", fail)
    observing.on("gap", seen.append)
    observing.observe(GAP)
    assert seen == [GAP]
    assert observing.counts == {"gap": 1, "observer_failed": 1}
    assert "observer_failed: event=gap, error=ZeroDivisionError: division by zero" in caplog.text


def test_a_failing_observer_of_everything_does_not_observe_its_own_failure() -> None:
    observing = Observing()
    observing.on("*", fail)
    observing.observe(RetentionFailed("why"))
    assert observing.counts == {"retention_failed": 1, "observer_failed": 1}


def test_an_unknown_event_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidMessage, match=r"event 'gaps': there is none of this name; known: .*\bgap\b"):
        Observing().on("gaps", print)
    assert LimitReached.name in NAMES
