"""Entries: a record lies in a Redis as other programs expect it and comes back byte for byte; no entry breaks a reader."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lemegeton.codec import Draft, decode, decode_foreign, encode, with_unknown_fields
from lemegeton.errors import InvalidMessage
from lemegeton.lane import Lane
from lemegeton.logs.redis_entries import SEQUENCE_END, Keys, entry_of, fields_of, lane_field, lane_of, wire_of
from lemegeton.segment import Framer, parse_line
from lemegeton.testing.servers import RedisServer
from test_codec import BYTES_MAX, DRAFTS, JSON, LANES

LANE = Lane("hub", "alice~1f~1", 2, 1)
SEQUENCES = st.integers(1, SEQUENCE_END - 1)
ANSWER_S = 2.0


def framed(body: bytes, lane: Lane, seq: int, made: bool) -> bytes:
    wire = parse_line(Framer(lane).line(body, seq, made)[:-1])
    assert wire is not None
    return wire


def stored(fields: list[bytes | str]) -> list[bytes]:
    """As a server gives them back."""
    return [field.encode() if isinstance(field, str) else field for field in fields]


def entry(**fields: str | bytes) -> Any:
    """An entry of another program: what the original publishes, and what is given."""
    whole: dict[str, str | bytes] = {"id": "x1", "timestamp": "1", "type": "custom", "from": "bob", "to": "", "payload": "1"}
    pairs = ((name, value) for name, value in {**whole, **fields}.items())
    return [b"1-1", stored([part for pair in pairs for part in pair])]


def ours(**fields: str) -> Any:
    return entry(**{"origin": LANE.origin, "inc": "2", "seq": "7", **fields})


# There and back


@given(DRAFTS, LANES, SEQUENCES)
@example(Draft(1, "custom", "jörg", 'quote " and \\ and \n', to='bob "x"', headers={"ä": '"'}), LANE, 1)
@example(Draft(1, "custom", "a", {"to": "", "id": None}, id='x"\\', priority=3, ttl=5), LANE, SEQUENCE_END - 1)
def test_a_record_comes_back_byte_for_byte(sent: Draft, lane: Lane, seq: int) -> None:
    wire = framed(encode(sent, BYTES_MAX), lane, seq, sent.id is None)
    fields = stored(fields_of(wire))
    assert wire_of(fields) == wire
    got = entry_of([b"5-0", fields])
    assert (got.id, got.wire, got.through) == (b"5-0", wire, seq)
    assert (got.head.origin, got.head.inc, got.head.seq, got.head.priority) == (*lane[1:3], seq, sent.priority)


@given(st.dictionaries(st.text(min_size=1, max_size=8).map("x".__add__), JSON, max_size=4))
def test_fields_that_nobody_knows_come_back_too(unknown: dict[str, Any]) -> None:
    raw = msgspec.json.encode({"timestamp": 1, "type": "t", "from": "bob", "payload": None, "id": "1", **unknown})
    message = decode_foreign(raw, BYTES_MAX)
    body = with_unknown_fields(encode(Draft(1, "t", "bob", None, id="1"), BYTES_MAX), msgspec.structs.replace(message, raw=raw),
                               BYTES_MAX)
    wire = framed(body, LANE, 1, False)
    assert wire_of(stored(fields_of(wire))) == wire


def test_other_programs_find_the_fields_they_know() -> None:
    sent = Draft(1700, "assignment", "hub", {"task": "ünï", "n": [1]}, to="bob")
    fields = stored(fields_of(framed(encode(sent, BYTES_MAX), LANE, 7, True)))
    assert dict(zip(fields[::2], fields[1::2], strict=True)) == {
        b"id": fields[1], b"timestamp": b"1700", b"type": b"assignment", b"from": b"hub", b"to": b"bob",
        b"payload": '{"task":"ünï","n":[1]}'.encode(), b"origin": b"alice~1f~1", b"inc": b"2", b"seq": b"7"}


def test_to_is_there_even_if_it_names_nobody() -> None:
    fields = fields_of(framed(encode(Draft(1, "custom", "a", 1), BYTES_MAX), LANE, 1, True))
    assert fields[fields.index("to") + 1] == ""


def test_a_text_that_is_null_is_no_text() -> None:
    assert wire_of(stored(fields_of(b'{"to":null,"replyTo":null,"payload":null}'))) == b'{"payload":null}'


# What others write


def test_an_entry_of_the_original_is_a_foreign_message() -> None:
    got = entry_of(entry(payload='{"status":"ready"}', to="hub"))
    assert (got.head.origin, got.head.seq, got.through) == ("", 0, 0)
    message = decode(got.wire)
    assert (message.id, message.sender, message.to, message.payload) == ("x1", "bob", "hub", {"status": "ready"})


@pytest.mark.parametrize("missing", [{"seq": ""}, {"origin": ""}, {"origin": "", "seq": "-1"}, {"seq": "0"}])
def test_without_origin_or_sequence_it_is_foreign(missing: dict[str, str]) -> None:
    try:
        got = entry_of(ours(**missing))
    except InvalidMessage:
        assert missing == {"seq": ""}, "an empty field is no number"
    else:
        assert (got.head.origin, got.head.inc, got.head.seq, got.through) == ("", 0, 0, 0)


@pytest.mark.parametrize("wrong", [
    {"seq": "-1"}, {"seq": str(2**53)}, {"seq": str(2**63)}, {"seq": "9" * 5000}, {"seq": "1.5"}, {"seq": "NaN"}, {"seq": "x"},
    {"seq": "1e400"}, {"inc": "0"}, {"inc": "-1"}, {"inc": str(2**63)},
    {"priority": "4"}, {"priority": "-1"}, {"priority": "high"},
    {"origin": "../../etc"}, {"origin": "a.b"}, {"origin": "x" * 161}, {"origin": "a\nb"},
    {"type": "skip", "through": str(2**53)}, {"through": "x"},
], ids=lambda wrong: "-".join(f"{name}={value:.12}" for name, value in wrong.items()))
def test_a_place_that_no_record_can_have_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(InvalidMessage):
        entry_of(ours(**wrong))


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("wrong", [
    {"payload": "hello"}, {"payload": "NaN"}, {"payload": DEEP}, {"payload": '"\ud800"'.encode("utf-8", "surrogatepass")},
    {"payload": b'"\xff"'}, {"payload": '1,"x":'}, {"payload": "1}"}, {"timestamp": "soon"}, {"timestamp": ""}, {"id": b"\xff"},
    {"from": b"\xfe"}, {"timestamp": "1e400"}, {"headers": "[1]"}, {"ttl": "x"}, {b"\xff".decode("latin-1"): "x"},
], ids=lambda wrong: "-".join(f"{name}={value!s:.12}" for name, value in wrong.items()))
def test_what_is_no_message_is_refused_and_nothing_else_happens(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage):
        decode_foreign(entry_of(entry(**wrong)).wire, BYTES_MAX)


@pytest.mark.parametrize("fields", [None, [], [b"payload", b"1"], [b"", b""], [b"id", b"1", b"id", b"2"]])
def test_missing_fields_are_refused(fields: Any) -> None:
    with pytest.raises(InvalidMessage):
        decode(entry_of([b"1-1", fields]).wire)


NAMES = b"id timestamp type from to payload origin inc seq priority through".split()
VALUES = [b"", b"1", b"-1", b"null", b'"x"', b"x", b"[", b'"', b"\\", b"\xff", b"1e999", b"skip", b"9223372036854775808"]


@given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=40))
                | st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=12))
def test_whatever_lies_in_a_stream_is_a_message_or_refused(pairs: list[tuple[bytes, bytes]]) -> None:
    try:
        got = entry_of([b"1-1", [part for pair in pairs for part in pair]])
        decode(got.wire)
    except InvalidMessage:
        return
    assert 0 <= got.head.seq <= got.through < SEQUENCE_END


def test_what_redis_cli_writes_can_be_read(server: RedisServer) -> None:
    server.cli("XADD", "message-stream:hub", "*", "id", "c-1", "timestamp", "1700", "type", "progress", "from", "carol",
               "to", "hub", "payload", '{"done": 3}')
    server.cli("XADD", "message-stream:hub", "*", "note", b"\xff\xfe")
    good, bad = server.cli("XRANGE", "message-stream:hub", "-", "+")
    assert decode_foreign(entry_of(good).wire, BYTES_MAX).payload == {"done": 3}
    with pytest.raises(InvalidMessage):
        decode_foreign(entry_of(bad).wire, BYTES_MAX)


# Markers


@pytest.mark.parametrize("kind", ["skip", "gone"])
def test_a_marker_stands_for_all_up_to_its_last(kind: str) -> None:
    got = entry_of(ours(type=kind, payload="null", through="12"))
    assert (got.head.type, got.head.seq, got.through) == (kind, 7, 12)


def test_a_marker_that_ends_before_it_begins_stands_for_one() -> None:
    assert entry_of(ours(type="skip", through="3")).through == 7


def test_a_field_through_of_any_other_record_means_nothing() -> None:
    assert entry_of(ours(through="12")).through == 7


# Names


@given(LANES)
def test_a_lane_is_found_by_its_field(lane: Lane) -> None:
    assert lane_of(lane.channel, lane_field(lane)) == lane


@pytest.mark.parametrize("field", ["", "a", "a.1", "a.1.4", "a.01.1", "a.1.1.1", "a.-1.1", "a.1.1.", "a/b.1.1", ".1.1", "a.0.1",
                                   "a." + "9" * 5000 + ".1", "a.²" + ".1"])
def test_any_other_field_is_no_lane(field: str) -> None:
    assert lane_of("hub", field) is None


def test_all_keys_of_a_channel_share_a_slot_and_the_names_are_the_original_ones() -> None:
    keys = Keys()
    assert [keys.stream("hub"), keys.channel("agent-bob"), keys.mode] == [
        "message-stream:hub", "agent-bob", "coordination:mode"]
    assert [keys.marks("hub"), keys.acks("hub"), keys.nacks("hub"), keys.resend("hub", "s1")] == [
        "relay:{message-stream:hub}", "acks:{message-stream:hub}", "nacks:{message-stream:hub}",
        "resend:{message-stream:hub}:s1"]


def test_a_namespace_is_before_everything() -> None:
    keys = Keys("ns")
    names = [keys.channels, keys.subscriptions, keys.mode, keys.health, keys.history, keys.control, keys.channel("hub"),
             keys.stream("hub"), keys.marks("hub"), keys.acks("hub"), keys.nacks("hub"), keys.resend("hub", "s")]
    assert all(name.startswith("ns:") for name in names)
    assert keys.marks("hub") == "ns:relay:{ns:message-stream:hub}"
    assert keys.plain(keys.channel("hub")) == "hub"
    assert Keys().plain("hub") == "hub"
