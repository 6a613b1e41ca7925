"""Sharing: what sites tell each other of their durable subscriptions; what cannot be read holds and breaks nothing."""

from __future__ import annotations

import msgspec
import pytest

from lemegeton.lane import Lane
from lemegeton.sharing import (
    Remote,
    RemoteState,
    Shared,
    acks_of,
    decode_state,
    elsewhere,
    encode_state,
    matcher,
    shared_of,
    trim_limits,
)

LANE = Lane("c", "a~s~0", 1, 1)
FIELD = "a~s~0.1.1"
GARBAGE = [b"", b"x", b"[]", b"\xff", b'{"patterns":"c","seen":1}', b'{"patterns":["c"],"seen":NaN}', b"[" * 100_000]


def shared(*patterns: str, seen: int = 100) -> bytes:
    return msgspec.json.encode(Shared(patterns, seen))


def test_a_channel_is_wanted_by_any_of_the_patterns() -> None:
    wanted = matcher(["agent-*", "hub"])
    assert [wanted(channel) for channel in ("agent-bob", "hub", "hub2")] == [True, True, False]
    assert not matcher([])("hub")


# ------------------------------------------------------------------------------------------------ the hash of subscriptions


def test_subscriptions_of_all_sites_are_found_and_those_of_others_told_apart() -> None:
    answer = {b"worker@there": shared("c"), b"worker@here": shared("c"), b"a@b@far": shared("d")}
    found, abandoned = shared_of(answer, 0)
    assert (found, abandoned) == ({"worker@there": Shared(("c",), 100), "worker@here": Shared(("c",), 100),
                                   "a@b@far": Shared(("d",), 100)}, {})
    assert list(elsewhere(found, "here")) == ["worker@there", "a@b@far"]


def test_whoever_was_not_seen_for_too_long_is_abandoned_whatever_site_it_is_of() -> None:
    answer = {b"old@there": shared("c", seen=9), b"old@here": shared("c", seen=9), b"new@there": shared("c", seen=10)}
    found, abandoned = shared_of(answer, 10)
    assert (list(found), list(abandoned)) == (["new@there"], [b"old@there", b"old@here"])


@pytest.mark.parametrize("data", GARBAGE)
def test_a_subscription_that_cannot_be_read_holds_nothing_and_is_left_alone(data: bytes) -> None:
    assert shared_of({b"x@there": data, b"\xff@there": shared("c")}, 0) == ({"�@there": Shared(("c",), 100)}, {})


# ------------------------------------------------------------------------------------------------ acks


@pytest.mark.parametrize("data", [*GARBAGE, b'{"a":"1"}', b'{"a":1.5}'])
def test_acks_that_cannot_be_read_are_none(data: bytes) -> None:
    assert acks_of({b"x@there": data, b"y@there": b'{"%b":7}' % FIELD.encode()}) == {"y@there": {FIELD: 7}}


def test_a_stream_is_trimmed_to_what_every_subscription_that_listens_has_settled() -> None:
    holders = {"a@1": Shared(("c",), 1), "b@2": Shared(("c*",), 1), "other@3": Shared(("d",), 1)}
    acks = {"a@1": {"one": 5, "two": 9}, "b@2": {"one": 7}, "other@3": {"one": 0}}
    assert trim_limits("c", ["one", "two"], holders, acks) == {"one": 5, "two": 0}
    assert trim_limits("d", ["one"], holders, acks) == {"one": 0}


def test_a_subscription_says_nothing_of_the_lanes_of_its_own_site_which_it_reads_from_files() -> None:
    everybody = {"a@1": Shared(("c",), 1), "b@2": Shared(("c",), 1)}
    acks = {"a@1": {"x~2~0.1.1": 4}, "b@2": {"x~1~0.1.1": 7}}
    assert trim_limits("c", ["x~1~0.1.1", "x~2~0.1.1", "x~3~0.1.1"], everybody, acks) == {
        "x~1~0.1.1": 7, "x~2~0.1.1": 4, "x~3~0.1.1": 0}
    assert trim_limits("c", ["x~1~0.1.1", "x~2~0.1.1"], {"a@1": Shared(("c",), 1)}, acks) == {"x~2~0.1.1": 4}


def test_a_stream_that_nobody_listens_to_has_no_limits() -> None:
    assert trim_limits("c", ["one"], {"a@1": Shared(("d",), 1)}, {}) == {}


# ------------------------------------------------------------------------------------------------ the file in the home


def test_the_state_of_a_home_comes_back_as_it_was_stored() -> None:
    state = RemoteState({"c": {FIELD: 9}}, (Remote("a@1", ("c*",), {"c": {FIELD: 4}}),))
    again = decode_state(encode_state(state))
    assert again == state
    assert (again.accepted(LANE), again.accepted(LANE._replace(channel="d")), again.accepted(LANE._replace(inc=2))) == (9, 0, 0)
    (holder,) = again.as_holders()
    assert (holder.name, holder.matches("cat"), holder.matches("dog")) == ("a@1", True, False)
    assert (holder.settled(LANE), holder.settled(LANE._replace(inc=2)), holder.settled(LANE._replace(channel="d"))) == (4, 0, 0)


def test_what_a_redis_does_not_know_any_more_is_owed_as_before() -> None:
    remotes = tuple(Remote(name, ("c",), {"c": {FIELD: 4}}, seen) for name, seen in (("a@1", 9), ("b@2", 10), ("d@3", 11)))
    state = RemoteState({}, remotes)
    assert state.forgotten({"d@3": Shared((), 12)}, 10) == {"b@2": Shared(("c",), 10)}
    assert (state.settled("b@2", "c"), state.settled("b@2", "d"), state.settled("e@5", "c")) == ({FIELD: 4}, {}, {})


@pytest.mark.parametrize("data", [*GARBAGE, b'{"marks":1}', b'{"holders":[{}]}'])
def test_a_damaged_state_knows_nothing(data: bytes) -> None:
    state = decode_state(data)
    assert (state.accepted(LANE), state.as_holders()) == (0, [])
