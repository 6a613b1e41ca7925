"""Lines are what was framed, and only names that an origin makes are segments."""

from __future__ import annotations

import json
from zlib import crc32

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lemegeton.lane import Lane, made_id
from lemegeton.segment import LINE_OVERHEAD, NUMBER_MAX, Framer, SegmentName, parse_line, parse_segment_name

ORIGINS = st.text(st.sampled_from("abz09_%-~AF"), min_size=1, max_size=160)
NUMBERS = st.integers(1, NUMBER_MAX - 1)
LANES = st.builds(Lane, st.just("c"), ORIGINS, NUMBERS, st.integers(0, 3))
BODY = b'{"timestamp":1,"type":"custom","from":"a","payload":{"n":[1,"}"]}}'


# Names


@given(st.builds(SegmentName, ORIGINS, NUMBERS, st.integers(0, 3), NUMBERS))
def test_a_segment_name_is_read_back(name: SegmentName) -> None:
    assert parse_segment_name(str(name)) == name


@given(st.text(max_size=40) | st.lists(
    st.sampled_from(["a", "~", "é", ".", "..", "0", "1", "01", "+1", " 1", "1_0", "\u0661", "-1", "4", "log"]),
    max_size=9).map("".join) | st.lists(st.sampled_from(["a", "1", "2", "log", "01", ""]), max_size=7).map(".".join))
@example("a.1.1.1.log.")
def test_whatever_is_read_is_exactly_what_a_name_makes(text: str) -> None:
    found = parse_segment_name(text)
    assert found is None or str(found) == text


@pytest.mark.parametrize("text", [
    "", "job.json", ".1.1.1.log", "a.1.1.log", "a.1.1.1.1.log", "a.1.1.1.LOG", "a.0.1.1.log", "a.1.4.1.log",
    "a.1.-1.1.log", "a.1.1.0.log", "a.01.1.1.log", "a.1.1.1_0.log", "a.+1.1.1.log", f"a.{NUMBER_MAX}.1.1.log",
    f"a.1.1.{NUMBER_MAX}.log", "a.1.1." + "9" * 5000 + ".log", "a.x.1.1.log", 'a".1.1.1.log', "a\\.1.1.1.log",
    "a\udcff.1.1.1.log", "a\n.1.1.1.log", "é.1.1.1.log", "x" * 161 + ".1.1.1.log", "a.1.1.1.log\n",
])
def test_another_file_is_no_segment(text: str) -> None:
    assert parse_segment_name(text) is None


# Lines


@given(LANES, NUMBERS)
def test_a_made_line_holds_the_body_its_id_and_its_position(lane: Lane, seq: int) -> None:
    line = Framer(lane).line(BODY, seq, made=True)
    assert line.endswith(b"\n")
    wire = parse_line(line[:-1])
    assert wire is not None
    fields = json.loads(wire)
    assert fields == {"id": made_id(lane, seq), **json.loads(BODY), "origin": lane.origin, "inc": lane.inc, "seq": seq}
    assert len(line) - len(BODY) <= LINE_OVERHEAD


@given(LANES, NUMBERS)
def test_a_given_id_stays(lane: Lane, seq: int) -> None:
    body = BODY[:-1] + b',"id":"mine"}'
    wire = parse_line(Framer(lane).line(body, seq, made=False)[:-1])
    assert wire is not None
    assert json.loads(wire)["id"] == "mine"


@given(LANES, NUMBERS, st.booleans())
def test_a_record_can_move_to_another_place_with_its_id(lane: Lane, seq: int, made: bool) -> None:
    body = BODY if made else BODY[:-1] + b',"id":"mine"}'
    framer = Framer(lane)
    wire = parse_line(framer.line(body, seq, made)[:-1])
    assert wire is not None
    moved = framer.body(wire, seq)
    again = parse_line(Framer(lane._replace(inc=lane.inc + 1)).line(moved, 1, made=False)[:-1])
    assert again is not None
    assert json.loads(again) == {**json.loads(wire), "inc": lane.inc + 1, "seq": 1}


@given(LANES, NUMBERS, st.data())
def test_a_changed_byte_is_noticed(lane: Lane, seq: int, data: st.DataObject) -> None:
    line = Framer(lane).line(BODY, seq, made=True)[:-1]
    at = data.draw(st.integers(0, len(line) - 1))
    bad = line[:at] + bytes((line[at] ^ data.draw(st.integers(1, 255)),)) + line[at + 1 :]
    assert parse_line(bad) is None


@given(LANES, NUMBERS, st.data())
def test_a_line_cut_short_is_noticed(lane: Lane, seq: int, data: st.DataObject) -> None:
    line = Framer(lane).line(BODY, seq, made=True)[:-1]
    assert parse_line(line[: data.draw(st.integers(0, len(line) - 1))]) is None
    assert parse_line(line[data.draw(st.integers(1, len(line))) :]) is None


@given(st.binary(max_size=60))
def test_garbage_is_no_record_unless_it_carries_its_sum(garbage: bytes) -> None:
    assert parse_line(garbage) is None
    assert parse_line(b"%08X %b" % (0xABCDEF01, garbage)) is None
    assert parse_line(b"%08x %b" % (crc32(garbage), garbage)) == garbage
