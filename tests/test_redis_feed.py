"""The feed: the last consecutive records of each lane, bounded, and never with a hole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lemegeton.lane import Lane
from lemegeton.logs.base import GONE, SKIP, Found, Marker
from lemegeton.logs.redis_feed import MARKER_BYTES, Feed, Shelf

LANE, OTHER, THIRD = (Lane(channel, "a~s~0", 1, 1) for channel in "cde")
ALL = 1 << 20


def stocked(*seqs: int, shelf: Shelf | None = None, lane: Lane = LANE, size: int = 10) -> Shelf:
    shelf = shelf or Shelf()
    for seq in seqs:
        shelf.put(lane, seq, seq, b"%d" % seq + b" " * (size - len(str(seq))))
    return shelf


def taken(shelf: Shelf, after: int, limit: int = ALL, lane: Lane = LANE) -> list[int]:
    found, last = shelf.take(lane, after, limit)
    seqs = [int(record) for record in found if isinstance(record, bytes)]
    assert last == (seqs[-1] if seqs else after)
    return seqs


def test_what_was_kept_is_taken_behind_any_place_in_it() -> None:
    shelf = stocked(3, 4, 5)
    assert [taken(shelf, after) for after in range(7)] == [[], [], [3, 4, 5], [4, 5], [5], [], []]
    assert taken(shelf, 2) == [3, 4, 5], "taking removes nothing"
    assert taken(shelf, 2, lane=OTHER) == []


def test_a_copy_is_dropped_and_a_hole_begins_anew() -> None:
    shelf = stocked(3, 4, 4, 3)
    assert taken(shelf, 2) == [3, 4]
    assert taken(stocked(6, 7, shelf=shelf), 5) == [6, 7]
    assert taken(shelf, 2) == []
    assert shelf.first(LANE) == 6
    assert shelf.first(OTHER) is None


def test_a_limit_takes_at_least_one_and_no_more_than_fits() -> None:
    shelf = stocked(1, 2, 3, 4)
    assert [taken(shelf, 0, limit) for limit in (0, 10, 19, 20, 35, 40)] == [[1], [1], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]


def test_a_marker_stands_for_all_its_sequences() -> None:
    shelf = Shelf()
    shelf.put(LANE, 1, 1, b"1")
    shelf.put(LANE, 2, 5, Marker(SKIP, 2, 5))
    shelf.put(LANE, 4, 6, Marker(GONE, 4, 6))
    shelf.put(LANE, 7, 7, b"7")
    assert shelf.take(LANE, 3, ALL) == ([Marker(SKIP, 2, 5), Marker(GONE, 4, 6), b"7"], 7)
    assert shelf.take(LANE, 5, ALL) == ([Marker(GONE, 4, 6), b"7"], 7)
    assert shelf.take(LANE, 0, MARKER_BYTES) == ([b"1"], 1)


def test_a_lane_keeps_its_newest_half_when_it_has_too_much() -> None:
    shelf = stocked(*range(1, 11), shelf=Shelf(lane_bytes=95))
    assert taken(shelf, 4) == []
    assert taken(shelf, 5) == [6, 7, 8, 9, 10]


def test_one_record_that_is_too_large_is_not_kept() -> None:
    shelf = stocked(1, shelf=Shelf(lane_bytes=5))
    assert taken(shelf, 0) == []
    assert taken(stocked(2, shelf=shelf, size=4), 1) == [2]


def test_the_lane_that_got_nothing_for_longest_gives_way() -> None:
    shelf = Shelf(all_bytes=55)
    for lane in (LANE, OTHER, THIRD):
        stocked(1, 2, shelf=shelf, lane=lane, size=10)
    assert [taken(shelf, 0, lane=lane) for lane in (LANE, OTHER, THIRD)] == [[], [1, 2], [1, 2]]
    stocked(3, 4, shelf=shelf, lane=OTHER)
    assert [taken(shelf, 0, lane=lane) for lane in (OTHER, THIRD)] == [[1, 2, 3, 4], []]


def test_a_busy_lane_keeps_its_place_though_it_came_first() -> None:
    shelf = Shelf(all_bytes=45)
    for lane in (LANE, OTHER):
        stocked(1, shelf=shelf, lane=lane)
    stocked(2, shelf=shelf)
    stocked(1, 2, shelf=shelf, lane=THIRD)
    assert [taken(shelf, 0, lane=lane) for lane in (LANE, OTHER, THIRD)] == [[1, 2], [], [1, 2]]


def test_cleared_it_has_nothing_and_is_as_new() -> None:
    shelf = stocked(1, 2, shelf=Shelf(all_bytes=25))
    shelf.clear()
    assert taken(shelf, 0) == []
    assert taken(stocked(1, 2, shelf=shelf), 0) == [1, 2]


def test_a_sequence_with_holes_is_kept_as_if_it_had_none() -> None:
    shelf = Shelf()
    for seq in (100, 200, 150, 300):
        shelf.follow(LANE, seq, b"%d" % seq)
    assert (taken(shelf, 99), taken(shelf, 100), taken(shelf, 250)) == ([100, 200, 300], [200, 300], [300])


def test_the_first_sight_of_a_lane_is_told_and_a_mark_never_goes_back() -> None:
    feed = Feed("c")
    assert (feed.note(LANE, 5), feed.note(LANE, 3), feed.note(OTHER, 1)) == (True, False, True)
    assert feed.marks == {LANE: 5, OTHER: 1}


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3), st.booleans()), max_size=60), st.integers(20, 400))
def test_whatever_comes_what_is_taken_has_no_hole_and_is_what_was_put(
    puts: list[tuple[int, int, bool]], lane_bytes: int
) -> None:
    shelf = Shelf(lane_bytes=lane_bytes, all_bytes=3 * lane_bytes)
    for first, more, marker in puts:
        through = first + more if marker else first
        record: Found = Marker(SKIP, first, through) if marker else b"%d" % first
        shelf.put(LANE, first, through, record)
        for after in range(34):
            found, last = shelf.take(LANE, after, ALL)
            following = after + 1
            for each in found:
                each_first, each_through = each[1:] if isinstance(each, Marker) else (int(each), int(each))  # type: ignore[arg-type]
                assert each_first <= following <= each_through
                following = each_through + 1
            assert last == following - 1


def test_the_first_record_of_an_incarnation_tells_of_the_one_before_it() -> None:
    first, second, feed = Lane("c", "o~s~0", 1, 1), Lane("c", "o~s~0", 4, 1), Feed("c")
    assert not feed.herald(second, None)
    assert not feed.herald(second, ("other~s~0", 1, 7))
    assert not feed.herald(second, ("o~s~0", 4, 7))
    assert not feed.herald(second, ("o~s~0", 1, 0)), "nothing was in it"
    assert feed.marks == {}
    assert feed.herald(second, ("o~s~0", 1, 7))
    assert feed.herald(second, ("o~s~0", 1, 7)), "until somebody was told"
    assert (feed.marks, feed.contact) == ({first: 7}, {})
    feed.heralded.clear()
    assert not feed.herald(second, ("o~s~0", 1, 7))


def test_what_came_before_an_incarnation_that_was_there_at_first_is_owed_as_far_as_the_stream_has_it() -> None:
    first, second, feed = Lane("c", "o~s~0", 1, 1), Lane("c", "o~s~0", 4, 1), Feed("c")
    feed.contact[second] = 3
    assert feed.herald(second, ("o~s~0", 1, 7))
    assert feed.contact[first] == 7
