"""Lanes: what a record is to its reader, and ids that name a position."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lemegeton.lane import Chain, Lane, Step, chain_of, lane_token, made_id, step

SEQUENCES = st.integers(1, 2**62)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
LANES = st.builds(Lane, TEXTS, TEXTS, st.integers(1, 2**62), st.integers(0, 3))


@given(SEQUENCES, SEQUENCES)
def test_a_record_is_next_or_a_copy_or_behind_a_gap(expected: int, seq: int) -> None:
    found = step(expected, seq)
    assert (found is Step.NEXT) == (seq == expected)
    assert (found is Step.COPY) == (seq < expected)
    assert (found is Step.GAP) == (seq > expected)


def test_a_lane_shows_everything_that_tells_it_apart() -> None:
    assert str(Lane("agent-bob", "hub~ab~0", 7, 3)) == "agent-bob hub~ab~0.7.3"


def test_incarnations_of_one_origin_are_one_chain() -> None:
    assert chain_of(Lane("c", "o", 1, 2)) == chain_of(Lane("c", "o", 9, 2)) == Chain("c", "o", 2)
    assert chain_of(Lane("c", "o", 1, 2)) != chain_of(Lane("c", "o", 1, 3))


@given(LANES, LANES, SEQUENCES, SEQUENCES)
def test_a_made_id_names_one_position(one: Lane, other: Lane, seq: int, another: int) -> None:
    assert (made_id(one, seq) == made_id(other, another)) == ((one, seq) == (other, another))
    assert made_id(one, seq).startswith(lane_token(one) + "-")


def test_a_made_id_is_the_same_in_every_process_and_version() -> None:
    # On disk in the logs of everybody: another value here makes every reader deliver copies.
    assert made_id(Lane("hub", "alice~0123456789ab~0", 1, 1), 255) == "8407339077352681-ff"
