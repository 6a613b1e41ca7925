"""Retention: what may go, what stays, and who is in the way."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from lemegeton.channels import DEAD_LETTER, compile_glob
from lemegeton.lane import Lane
from lemegeton.retention import FLOOR_MS, NOBODY, Holder, Policy, SegmentInfo, plan

LANE = Lane("c", "a~s~0", 1, 1)
HOUR_MS = 3_600_000
NOW_MS = 1000 * HOUR_MS


def segment(first: int, *, lane: Lane = LANE, last: int | None = None, size: int = 100, age_ms: int = 0,
            final: bool = False) -> SegmentInfo:
    return SegmentInfo(lane, first, first + 9 if last is None else last, size, NOW_MS - age_ms, final)


def holder(name: str, settled: int | Callable[[Lane], int], pattern: str = "*") -> Holder:
    return Holder(name, compile_glob(pattern), settled if callable(settled) else lambda _: settled)


def policy(budget: int = 0, *, at_once: bool = False, limit: int = 10**9) -> Policy:
    return Policy(budget, HOUR_MS, 30 * 24 * HOUR_MS, at_once, limit)


def test_a_segment_stays_until_every_matching_subscription_has_settled_it() -> None:
    segments = [segment(1), segment(11), segment(21, final=True)]
    decided = plan(segments, [holder("fast", 20), holder("slow", 10), holder("other", 0, "d*")], NOW_MS, policy())
    assert list(decided.remove) == [segments[0]]
    assert (decided.used, decided.holder) == (200, "slow")


def test_a_subscription_that_has_not_seen_a_lane_holds_all_of_it() -> None:
    decided = plan([segment(1)], [holder("new", 0)], NOW_MS, policy())
    assert not decided.remove
    assert decided.holder == "new"


def test_the_last_segment_of_a_chain_always_stays() -> None:
    decided = plan([segment(1, final=True, age_ms=1000 * HOUR_MS)], [], NOW_MS, policy(at_once=True))
    assert not decided.remove
    assert plan([segment(1, final=True)], [holder("all", 10**9)], NOW_MS, policy(at_once=True)).remove == []


def test_settled_segments_go_from_the_oldest_until_the_rest_fits() -> None:
    segments = [segment(1, age_ms=30), segment(11, age_ms=20), segment(21, age_ms=10), segment(31, final=True)]
    all_done = [holder("done", 30)]
    assert list(plan(segments, all_done, NOW_MS, policy(250)).remove) == segments[:1]
    assert list(plan(segments, all_done, NOW_MS, policy(300)).remove) == []
    assert list(plan(segments, all_done, NOW_MS, policy(0)).remove) == segments[:3]
    assert list(plan(segments, all_done, NOW_MS, policy(300, at_once=True)).remove) == segments[:3]


def test_what_is_settled_leaves_as_much_room_under_the_limit_as_it_takes() -> None:
    segments = [segment(1, age_ms=30), segment(11, age_ms=20), segment(21, age_ms=10), segment(31, final=True, size=200)]
    all_done = [holder("done", 30)]
    for limit, kept in ((800, 3), (799, 2), (600, 2), (599, 1), (400, 1), (399, 0), (100, 0)):
        decided = plan(segments, all_done, NOW_MS, policy(300, limit=limit))
        assert list(decided.remove) == segments[: 3 - kept]
        assert decided.used == 200 + 100 * kept


def test_a_coarse_clock_never_lets_a_later_segment_of_a_lane_go_first() -> None:
    segments = [segment(21), segment(1), segment(11)]
    removed = plan(segments, [holder("done", 30)], NOW_MS, policy(200)).remove
    assert [each.first for each in removed] == [1]


def test_without_a_subscription_a_record_stays_for_its_age() -> None:
    young, old, last = segment(1, age_ms=HOUR_MS), segment(11, age_ms=HOUR_MS + 1), segment(21, final=True)
    decided = plan([young, old, last], [holder("elsewhere", 0, "d")], NOW_MS, policy())
    assert list(decided.remove) == [old]
    assert (decided.used, decided.holder) == (200, NOBODY)


def test_dead_letters_stay_for_their_own_age_though_they_are_settled() -> None:
    lane = LANE._replace(channel=DEAD_LETTER + "c")
    young, old = segment(1, lane=lane, age_ms=29 * 24 * HOUR_MS), segment(11, lane=lane, age_ms=31 * 24 * HOUR_MS)
    assert list(plan([young, old], [], NOW_MS, policy()).remove) == [old]
    assert list(plan([young, old], [holder("dlq", 20, DEAD_LETTER + "*")], NOW_MS, policy()).remove) == [old]
    assert not plan([young, old], [holder("dlq", 0, DEAD_LETTER + "*")], NOW_MS, policy()).remove


def test_who_has_not_even_begun_the_last_segment_is_in_the_way_of_it() -> None:
    decided = plan([segment(11, last=10, final=True, size=500)], [holder("behind", 9), holder("reading", 11)], NOW_MS,
                   policy())
    assert decided.holder == "behind"


def test_the_holder_of_the_most_is_named() -> None:
    other = LANE._replace(origin="b~s~0")
    segments = [segment(1, size=1000), segment(1, lane=other, size=10), segment(11, lane=other, size=10)]
    holders = [holder("x", lambda lane: 0 if lane == other else 99), holder("y", lambda lane: 99 if lane == other else 0)]
    assert plan(segments, holders, NOW_MS, policy()).holder == "y"


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2 * HOUR_MS), st.booleans()), max_size=20),
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from(["*", "c", "d*"])), max_size=4), st.integers(0, 3000),
    st.booleans(),
)
def test_nothing_that_somebody_still_needs_ever_goes(
    drawn: list[tuple[int, int, bool]], places: list[tuple[int, str]], budget: int, at_once: bool
) -> None:
    segments = [segment(1 + 10 * n, lane=LANE._replace(channel=f"c{c}"), age_ms=age, final=final)
                for n, (c, age, final) in enumerate(drawn)]
    holders = [holder(f"h{n}", settled, pattern) for n, (settled, pattern) in enumerate(places)]
    decided = plan(segments, holders, NOW_MS, policy(budget, at_once=at_once))
    for gone in decided.remove:
        assert not gone.final
        matching = [h for h in holders if h.matches(gone.lane.channel)]
        assert all(h.settled(gone.lane) >= gone.last for h in matching)
        assert matching or NOW_MS - gone.modified_ms > HOUR_MS
    assert decided.used == sum(s.bytes for s in segments) - sum(s.bytes for s in decided.remove)


def test_what_a_redis_took_stays_ten_minutes_and_goes_sooner_only_for_room() -> None:
    segments = [segment(1, age_ms=FLOOR_MS), segment(11, age_ms=FLOOR_MS - 1), segment(21, final=True)]
    everybody, redis = [holder("done", 30)], holder("redis", 30)
    assert list(plan(segments, everybody, NOW_MS, policy(0), redis).remove) == segments[:1]
    assert list(plan(segments, everybody, NOW_MS, policy(0, limit=599), redis).remove) == segments[:2]
    assert list(plan(segments, everybody, NOW_MS, policy(0)).remove) == segments[:2]


def test_what_the_redis_lacks_stays_though_everybody_has_settled_it_and_nobody_asks_for_it() -> None:
    segments = [segment(1, age_ms=9 * HOUR_MS), segment(11, age_ms=9 * HOUR_MS), segment(21, final=True)]
    for holders in ([holder("done", 30)], []):
        decided = plan(segments, holders, NOW_MS, policy(0), holder("redis", 10))
        assert list(decided.remove) == segments[:1]
        assert decided.holder == "redis"
