"""Every event is one line that names what it is about."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemegeton import events
from lemegeton.events import EVENTS, Event, Gap, Refused
from lemegeton.lane import Lane

LANE = Lane("agent-bob", "hub~site~0", 3, 1)
EXAMPLES: dict[Any, Any] = {str: "why", int: 7, float: 1.5, Lane: LANE}


def example(kind: type[Event]) -> Event:
    hints = get_type_hints(kind)
    return kind(**{field: EXAMPLES[hints[field]] for field in kind.__struct_fields__})


def test_the_table_holds_every_event_once() -> None:
    made = {kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, Event)} - {Event}
    assert set(EVENTS) == made
    assert len({kind.name for kind in EVENTS}) == len(EVENTS)


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.name)
def test_an_event_is_one_line_with_its_name_and_all_its_fields(kind: type[Event]) -> None:
    line = str(example(kind))
    assert line.startswith(f"{kind.name}: ")
    assert all(f"{field}=" in line for field in kind.__struct_fields__)
    assert line.isprintable()


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.name)
def test_an_event_is_frozen_documented_and_of_a_known_level(kind: type[Event]) -> None:
    event = example(kind)
    with pytest.raises(AttributeError):
        setattr(event, kind.__struct_fields__[0], "other")
    assert kind.level in ("info", "warning")
    assert kind.__doc__
    assert event == example(kind)


def test_a_gap_names_channel_origin_sequences_and_cause() -> None:
    assert str(Gap("s", LANE, 3, 9, "no log has it")) == (
        "gap: subscription=s, lane=agent-bob hub~site~0.3.1, first=3, last=9, cause=no log has it")


@given(st.text())
def test_nothing_that_came_from_outside_breaks_the_line_or_floods_it(text: str) -> None:
    line = str(Refused(text, text, text, text))
    assert line.isprintable()
    assert len(line) < 1300


def test_control_characters_are_shown_not_sent() -> None:
    assert "\\x1b[2J\\n" in str(Refused("c", "\x1b[2J\n", "k", "why"))
