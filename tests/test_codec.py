"""Messages to bytes and back: what goes in comes out, and whatever is wrong is one exception."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import json
import math
import time
import uuid
from collections import OrderedDict
from contextlib import nullcontext, suppress
from enum import Enum
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lemegeton.channels import NAME_BYTES_MAX
from lemegeton.checksum import crc32
from lemegeton.codec import (
    DEPTH_MAX,
    HEADERS_BYTES_MAX,
    TEXT_MAX,
    TTL_MAX_MS,
    UNKNOWN_FIELDS_MAX,
    Draft,
    check_draft,
    decode,
    decode_foreign,
    decode_json,
    draft_of,
    encode,
    encode_payload,
    fill,
    form_of,
    head_of,
    priority_of,
    ttl_ms,
    with_unknown_fields,
)
from lemegeton.errors import InvalidMessage
from lemegeton.lane import Lane, made_id
from lemegeton.message import Message, MessagePriority, MessageType
from lemegeton.segment import Framer, parse_line

MUTATED_FRAMES = 20_000
"""How many damaged frames are tried; a longer run is this number and nothing else."""
BYTES_MAX = 64 * 1024
LANE = Lane("hub", "alice~0123456789ab~0", 3, 1)
LANES = st.builds(Lane, st.just("hub"), st.text(st.sampled_from("abz09_%-~AF"), min_size=1, max_size=160),
                  st.integers(1, 2**62 - 1), st.integers(0, 3))

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT | st.sampled_from(['"', "\\", "[", "{", "]", '\\"[', "\\\\", "\0", "null", "😀"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=20)
FIELD = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=TEXT_MAX)
DRAFTS = st.builds(
    Draft, timestamp=st.integers(0, 2**53 - 1), type=st.sampled_from([*MessageType]) | FIELD, sender=FIELD,
    payload=JSON, id=st.none() | FIELD, to=st.none() | FIELD, priority=st.sampled_from([*MessagePriority, 0, 1, 2, 3]),
    ttl=st.none() | st.integers(1, TTL_MAX_MS), correlation_id=st.none() | FIELD, reply_to=st.none() | FIELD,
    headers=st.none() | st.dictionaries(TEXT, TEXT, max_size=4))


def draft(payload: Any = None, **fields: Any) -> Draft:
    return Draft(**{"timestamp": 1, "type": "custom", "sender": "a", "payload": payload, **fields})


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def refused(why: str) -> Any:
    return pytest.raises(InvalidMessage, match=why)


# There and back


@settings(max_examples=300)
@given(DRAFTS, LANES, st.integers(1, 2**62 - 1))
def test_a_message_arrives_as_it_was_sent(sent: Draft, lane: Lane, seq: int) -> None:
    check_draft(sent)
    line = Framer(lane).line(encode(sent, BYTES_MAX), seq, made=sent.id is None)
    assert line.count(b"\n") == 1
    wire = parse_line(line[:-1])
    assert wire is not None
    got = decode(wire)
    assert got == Message(
        id=sent.id or made_id(lane, seq), timestamp=sent.timestamp, type=sent.type, sender=sent.sender,
        payload=sent.payload, to=sent.to, priority=sent.priority, ttl=sent.ttl, correlation_id=sent.correlation_id,
        reply_to=sent.reply_to, headers=sent.headers or {}, origin=lane.origin, inc=lane.inc, seq=seq)
    json.loads(wire, parse_constant=lambda _: pytest.fail("not JSON"))


@given(DRAFTS)
def test_what_was_published_can_be_published_again(sent: Draft) -> None:
    message = decode(encode(sent, BYTES_MAX))
    again = decode(encode(draft_of(message), BYTES_MAX))
    assert again == message
    if len(sent.sender.encode()) <= NAME_BYTES_MAX:
        assert decode_foreign(encode(draft_of(message), BYTES_MAX), BYTES_MAX) == message


def test_what_was_not_given_takes_no_room() -> None:
    assert encode(draft({"n": 1}), BYTES_MAX) == b'{"timestamp":1,"type":"custom","from":"a","payload":{"n":1}}'


# What cannot be sent


class Colour(Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int = 1


LOSSY = [
    b"bytes", bytearray(b"x"), {1, 2}, frozenset("a"), {1: "a"}, {1: "a", "1": "b"}, {None: 1}, datetime.date.min,
    datetime.timedelta(1), datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), uuid.UUID(int=0),
    decimal.Decimal("1.5"), Colour.RED, Point(), object(), print, Exception("x"),
    msgspec.Raw(b'{"a":1}'), msgspec.Raw(b'{"a":'), 1j, range(3), iter([1]), "\ud800", {"\udfff": 1}, 10**5000,
    math.nan, math.inf, -math.inf,
]


@pytest.mark.parametrize("value", LOSSY, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [None, x], lambda x: {"a": {"b": (1, x)}}],
                         ids=["bare", "in a list", "deeper"])
def test_a_payload_that_would_not_arrive_as_it_is_is_refused(value: Any, wrap: Any) -> None:
    with refused("^payload") as caught:
        encode(draft(wrap(value)), BYTES_MAX)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("value", "why"), [
    (math.nan, "^payload: nan is not a JSON number$"),
    ([1, -math.inf], "^payload: -inf is not a JSON number$"),
    (b"x", "^payload: b'x' would arrive as 'eA=='; give what JSON has: text"),
    (object(), "^payload of type object: cannot be written as JSON"),
    (nested(5000), "nested deeper than 64 levels"),
])
def test_a_refusal_says_what_is_wrong(value: Any, why: str) -> None:
    with refused(why):
        encode(draft(value), BYTES_MAX)


@pytest.mark.parametrize(("sent", "got"), [
    ((1, 2), [1, 2]), ({"a": (1, (2,))}, {"a": [1, [2]]}), (MessageType.FAILED, "failed"), (MessagePriority.HIGH, 2),
    (OrderedDict(a=1), {"a": 1}), (-0.0, 0.0), (1e308, 1e308), (2**64, 2**64), (10**400, 10**400), (None, None),
    ([None, "null"], [None, "null"]),
])
def test_what_json_can_say_is_sent(sent: Any, got: Any) -> None:
    assert decode(encode(draft(sent), BYTES_MAX)).payload == got


def test_a_message_at_the_limit_is_sent_and_one_byte_more_is_refused() -> None:
    size = len(encode(draft("x" * 100), BYTES_MAX))
    assert len(encode(draft("x" * 100), size)) == size
    with refused(rf"^message: {size} bytes encoded, at most {size - 1} \(max_message_bytes\) are allowed$"):
        encode(draft("x" * 100), size - 1)


@pytest.mark.parametrize("bulk", [[], [[0]] * 100], ids=["alone", "beside many"])
def test_a_payload_of_64_levels_is_sent_and_one_of_65_is_refused(bulk: list[Any]) -> None:
    fits = {"deep": nested(DEPTH_MAX - 1), "bulk": bulk}
    assert decode(encode(draft(fits), BYTES_MAX)).payload == fits
    with refused("nested deeper than 64 levels"):
        encode(draft({"deep": nested(DEPTH_MAX), "bulk": bulk}), BYTES_MAX)


@given(st.lists(st.sampled_from(['"', "\\", "[", "{", "]", "}", "é", "x"]), max_size=400).map("".join))
def test_brackets_inside_strings_do_not_nest(text: str) -> None:
    assert decode(encode(draft([text, {text: text}, "[" * 100]), BYTES_MAX)).payload == [text, {text: text}, "[" * 100]


def test_a_payload_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with refused("nested deeper than 64 levels"):
        encode(draft(endless), BYTES_MAX)


# Fields


@pytest.mark.parametrize("name", ["type", "id", "to", "correlation_id", "reply_to"])
@pytest.mark.parametrize("value", ["", "x" * (TEXT_MAX + 1), "a\nb", "\x1b", "\ud800", 5, b"x"])
def test_a_field_is_printable_text_of_up_to_256_characters(name: str, value: object) -> None:
    with refused(f"^{name} "):
        check_draft(draft(**{name: value}))


def test_an_id_that_looks_like_a_path_is_only_text() -> None:
    check_draft(draft(id="../../x", to="x" * TEXT_MAX))


@pytest.mark.parametrize("headers", [["a"], {"a": 1}, {1: "a"}, "a", {"a": None}])
def test_headers_map_text_to_text(headers: object) -> None:
    with refused("^headers .*must map text to text"):
        check_draft(draft(headers=headers))


def test_headers_are_bounded() -> None:
    check_draft(draft(headers={"k": "v" * (HEADERS_BYTES_MAX - 1)}))
    with refused("headers: more than 16384 characters in all"):
        check_draft(draft(headers={"k": "v" * HEADERS_BYTES_MAX}))


def test_headers_that_utf8_cannot_write_are_refused() -> None:
    headers = {"a": "\ud800"}
    check_draft(draft(headers=headers))
    with refused("cannot be written as JSON"):
        encode(draft(headers=headers), BYTES_MAX)


@pytest.mark.parametrize("value", [-1, 4, True, "high", 1.0, None, 10**30])
def test_a_priority_is_one_of_four(value: Any) -> None:
    with refused(r"must be one of 0 \(LOW\), 1 \(NORMAL\), 2 \(HIGH\), 3 \(CRITICAL\)$"):
        priority_of(value)
    with refused("^priority "):
        check_draft(draft(priority=value))


def test_a_priority_is_a_number_or_its_name() -> None:
    assert [priority_of(value) for value in (0, MessagePriority.CRITICAL)] == [0, 3]
    assert type(priority_of(MessagePriority.CRITICAL)) is int


@pytest.mark.parametrize(("ttl_s", "ms"), [
    (None, None), (1, 1000), (0.5, 500), (1e-9, 1), (10 * 365 * 86400, TTL_MAX_MS),
])
def test_a_time_to_live_is_whole_milliseconds_on_the_wire(ttl_s: float | None, ms: int | None) -> None:
    assert ttl_ms(ttl_s) == ms


@pytest.mark.parametrize("ttl_s", [0, -1, math.nan, math.inf, True, "1", 10**400, 10 * 365 * 86400 + 1])
def test_a_time_to_live_is_positive_and_at_most_ten_years(ttl_s: Any) -> None:
    with refused("must be seconds above 0 and at most ten years"):
        ttl_ms(ttl_s)


# What comes in


BASE = b'{"id":"i","timestamp":1,"type":"custom","from":"a","payload":null,"origin":"o~s~0","inc":1,"seq":1%b}'
CORPUS = [
    b"", b"\0", b"null", b"1", b'"x"', b"[]", b"{}", b"{", b"}", b"nan", b"\xef\xbb\xbf{}", b"\xff", b"{" * 100_000,
    b"[" * 100_000, b'{"a":' * 100_000, b'"' * 10_001, b'"\\' * 10_000, BASE % b"" + b"x", BASE % b"," + b"}",
    *(BASE % (b"," + field) for field in (
        b'"payload":' + b"[" * 5000 + b"]" * 5000, b'"payload":NaN', b'"payload":Infinity', b'"payload":-Infinity',
        b'"payload":1e400', b'"payload":-1e400', b'"payload":' + b"1" * 4301, b'"payload":"\\ud800"',
        b'"payload":"\\udc00\\ud800"', b'"payload":"\xed\xa0\x80"', b'"payload":"\xff"', b'"payload":01',
        b'"payload":{"a":1,"a":2}', b'"payload":"\x01"', b'"payload":"\\x"', b'"payload":tru', b'"x":1e400', b'"x":NaN',
        b'"x":"\xff"', b'"x":' + b"9" * 4301, b'"x":' + b"[" * 5000 + b"]" * 5000, b'"id":1', b'"id":"j"',
        b'"seq":"1"', b'"seq":1.5', b'"seq":-1', b'"seq":' + b"9" * 400, b'"seq":true', b'"inc":null',
        b'"timestamp":1e3',
        b'"timestamp":' + b"9" * 4301, b'"ttl":-5', b'"ttl":' + b"9" * 400, b'"priority":7', b'"headers":null',
        b'"headers":{"a":1}', b'"headers":[]', b'"to":7', b'"after":[1,2,3]', b'"after":["a",1]', b'"origin":7',
        b'"from":null', b'"type":["x"]', b'"~lemegeton.attempt":"x"', b'"~lemegeton.raw":"***"', b'"\xc3\x28":1',
    )),
]


def answers(data: bytes) -> list[Message]:
    """What each way in makes of it; anything but a message or `InvalidMessage` fails the test."""
    found = []
    for way_in in (decode, lambda data: decode_foreign(data, BYTES_MAX)):
        with suppress(InvalidMessage):
            found.append(way_in(data))
    with suppress(InvalidMessage):
        decode_json(data)
    return found


@pytest.mark.parametrize("data", CORPUS, ids=range(len(CORPUS)))
def test_known_bad_input_is_a_message_or_an_invalid_message(data: bytes) -> None:
    for message in answers(data):
        assert isinstance(message, Message)


@settings(max_examples=500)
@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_garbage_is_a_message_or_an_invalid_message(data: bytes) -> None:
    answers(data)
    answers(BASE % (b',"x":' + data))


PIECES = [b'"', b"\\", b"\\u", b"\\ud800", b"{", b"}", b"[", b"]", b",", b":", b"null", b"NaN", b"1e400", b"-", b"0",
          b"9" * 400, b"\xff", b"\xed\xa0\x80", b"\0", b"\n", b'"seq"', b'"~lemegeton.raw"', b'"payload"', b"[" * 70]


def mutated(frame: bytes, rng: Random) -> bytes:
    data = bytearray(frame)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 1:
            data[at:at] = rng.choice(PIECES)
        elif kind == 2:
            del data[at : at + rng.randrange(1, 20)]
        elif kind == 3:
            data[at:at] = data[at : at + rng.randrange(1, 40)]
        else:
            data[at : at + 3] = rng.choice(PIECES)
    return bytes(data)


def test_a_mutated_frame_is_a_message_or_an_invalid_message() -> None:
    rng = Random(20)
    payload = {"text": 'q"uo\\te', "n": [1, -2.5e10, True, None], "deep": nested(20), "é": "😀"}
    full = draft(payload, id="mine", to="bob", priority=3, ttl=1000, correlation_id="c", reply_to="r",
                 headers={"a": "b"})
    framer = Framer(LANE)
    frames = [framer.line(encode(one, BYTES_MAX), 7, one.id is None)[9:-1] for one in (full, draft(payload), draft())]
    accepted = slowest = 0.0
    for _ in range(MUTATED_FRAMES):
        data = mutated(rng.choice(frames), rng)
        began = time.process_time()
        accepted += bool(answers(data))
        slowest = max(slowest, time.process_time() - began)
    assert 0 < accepted < MUTATED_FRAMES
    assert slowest < 1.0


@pytest.mark.parametrize("data", [
    b'{"a":"' + b'\\"' * 500_000, b'"' * 1_000_000, b"[" * 1_000_000, b"[]," * 300_000,
    b"[" + b"[" * 60 + b"]" * 60 + (b"," + b"[" * 60 + b"]" * 60) * 8000 + b"]",
    b'["' + b"\\\\" * 400_000 + b'",' + b"[1]," * 100 + b"1]",
], ids=["no end", "quotes", "deep", "wide and broken", "wide and deep", "backslashes"])
def test_large_hostile_json_costs_time_in_proportion(data: bytes) -> None:
    began = time.process_time()
    for read in (decode_json, lambda data: decode_foreign(data, 2_000_000)):
        with suppress(InvalidMessage):
            read(data)
    assert time.process_time() - began < 2.0  # a quadratic check needs minutes


def test_of_a_field_given_twice_the_last_counts() -> None:
    assert decode(BASE % b',"payload":1,"payload":2,"seq":9').payload == 2
    assert decode(BASE % b',"seq":9').seq == 9


@pytest.mark.parametrize("escape", [b"~", b"\\u007e"])
def test_a_sender_cannot_say_what_only_delivery_knows(escape: bytes) -> None:
    fields = b'"%blemegeton.%%b":%%b' % escape
    for name, value in ((b"redelivered", b"true"), (b"attempt", b"7"), (b"channel", b'"x"'), (b"raw", b'"eA=="')):
        message = decode(BASE % (b"," + fields % (name, value)))
        assert (message.channel, message.redelivered, message.attempt, message.raw) == ("", False, 1, b"")


# From outside


FOREIGN = b'{"timestamp":1,"type":"custom","from":"a","payload":{"n":1}%b}'


def test_a_foreign_message_needs_no_id_and_no_position() -> None:
    message = decode_foreign(FOREIGN % b"", BYTES_MAX)
    assert (message.id, message.origin, message.inc, message.seq) == ("", "", 0, 0)
    assert draft_of(message) == draft({"n": 1})


@pytest.mark.parametrize(("field", "why"), [
    (b'"from":""', "^from '': must be a text"),
    (b'"from":"' + b"x" * 65 + b'"', "65 bytes, at most 64"),
    (b'"type":""', "^type ''"),
    (b'"id":"a\\nb"', "^id .*control characters"),
    (b'"to":"' + b"x" * 257 + b'"', "^to "),
    (b'"priority":4', "^priority 4"),
    (b'"headers":{"a":"' + b"x" * HEADERS_BYTES_MAX + b'"}', "^headers"),
    (b'"ttl":0', "^ttl 0: must be milliseconds above 0 and at most ten years"),
    (b'"ttl":-1', "^ttl -1"),
    (b'"ttl":' + b"9" * 400, "^ttl 999"),
    (b'"timestamp":-1', "^timestamp -1: must be Unix milliseconds"),
    (b'"timestamp":9007199254740992', "^timestamp"),
    (b'"payload":' + b"[" * 65 + b"]" * 65, "nested deeper than 64 levels"),
    (b'"x":' + b"[" * 65 + b"]" * 65, "nested deeper than 64 levels"),
    (b'"x":1e400', "^message: not JSON: Number out of range"),
    (b'"x":"\xff"', "^message: not JSON"),
])
def test_a_foreign_message_is_held_to_every_rule(field: bytes, why: str) -> None:
    with refused(why):
        decode_foreign(FOREIGN % (b"," + field), BYTES_MAX)


def test_a_foreign_message_is_bounded() -> None:
    data = FOREIGN % b""
    assert decode_foreign(data, len(data)).payload == {"n": 1}
    with refused(rf"^message: {len(data)} bytes"):
        decode_foreign(data, len(data) - 1)


def test_unknown_fields_of_a_foreign_message_are_kept_in_the_record() -> None:
    data = FOREIGN % b',"colour":"red","channel":"x","attempt":7,"big":123456789012345678901234567890,"inc":9'
    message = msgspec.structs.replace(decode_foreign(data, BYTES_MAX), raw=data)
    body = with_unknown_fields(encode(draft_of(message), BYTES_MAX), message, BYTES_MAX)
    wire = parse_line(Framer(LANE).line(body, 5, made=True)[:-1])
    assert wire is not None
    got = decode(wire)
    assert (got.origin, got.seq, got.payload, got.channel, got.attempt) == (LANE.origin, 5, {"n": 1}, "", 1)
    again = msgspec.structs.replace(got, raw=wire).unknown
    assert again == {"colour": "red", "channel": "x", "attempt": 7, "big": 123456789012345678901234567890}


def test_a_record_without_unknown_fields_is_the_body_itself() -> None:
    message = decode_foreign(FOREIGN % b"", BYTES_MAX)
    assert with_unknown_fields(b"{}", msgspec.structs.replace(message, raw=FOREIGN % b""), 1) == b"{}"


def test_unknown_fields_count_for_the_limit() -> None:
    data = FOREIGN % b',"x":"long enough"'
    message = msgspec.structs.replace(decode_foreign(data, BYTES_MAX), raw=data)
    body = encode(draft_of(message), BYTES_MAX)
    with refused(r"\(max_message_bytes\)"):
        with_unknown_fields(body, message, len(body) + 5)


def test_more_unknown_fields_than_a_redis_passes_on_are_refused() -> None:
    fields = [b',"x%d":1' % n for n in range(UNKNOWN_FIELDS_MAX + 1)]
    for count, ok in ((UNKNOWN_FIELDS_MAX, True), (UNKNOWN_FIELDS_MAX + 1, False)):
        data = FOREIGN % b"".join(fields[:count])
        message = msgspec.structs.replace(decode_foreign(data, BYTES_MAX), raw=data)
        with nullcontext() if ok else refused("1001 fields that are not known"):
            assert with_unknown_fields(b"{}", message, BYTES_MAX)


# Any JSON


@given(JSON)
@example("\\")
def test_any_json_value_can_be_read(value: Any) -> None:
    text = json.dumps(value)
    assert decode_json(text) == decode_json(text.encode()) == value


@pytest.mark.parametrize("text", ["", "{", "NaN", "\ud800", '"\\ud800"', b"\xff", "1e400", "[" * 65 + "]" * 65,
                                  "[" * 100_000])
def test_what_is_not_json_or_too_deep_is_refused(text: str | bytes) -> None:
    with refused("^payload: "):
        decode_json(text)


def test_64_levels_of_json_can_be_read() -> None:
    value = json.loads("[" * 64 + "]" * 64)
    assert decode_json("[" * 64 + "]" * 64) == value


# ------------------------------------------------------------------------------------------------ heads


@pytest.mark.parametrize("said", [b'"noon"', b'[1,2]', b'["o",1,2,3]', b'{"a":[[]]}', b"1.5", b"true", b"null", b'["o","1",2]'])
def test_what_somebody_else_says_under_our_names_makes_no_record_unreadable(said: bytes) -> None:
    head = head_of(b'{"origin":"o","inc":1,"seq":2,"priority":1,"through":%b,"after":%b}' % (said, said))
    assert (head.origin, head.inc, head.seq, head.through, head.after) == ("o", 1, 2, 0, None)


def test_a_head_says_where_a_record_belongs_and_what_comes_before_it() -> None:
    head = head_of(b'{"origin":"o","inc":2,"seq":1,"through":7,"after":["o",1,9],"payload":{"seq":3},"ttl":5,"timestamp":4}')
    assert (head.through, head.after, head.seq, head.ttl, head.timestamp) == (7, ("o", 1, 9), 1, 5, 4)
    assert (head_of(b"{}").after, head_of(b"{}").through) == (None, 0)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"seq":"1"}', b'{"seq":NaN}', b"\xff", b'{"payload":' + b"[" * 100_000])
def test_what_is_no_message_has_no_head(data: bytes) -> None:
    with pytest.raises(InvalidMessage):
        head_of(data)


@given(JSON, FIELD, st.integers(0, 3), st.integers(0, 2**45))
def test_a_form_filled_in_is_what_encoding_makes(payload: Any, kind: str, priority: int, stamp: int) -> None:
    one = Draft(stamp, kind, "se%nder", payload, priority=priority, ttl=5 if priority else None)
    form = form_of(Draft(0, kind, "se%nder", None, priority=priority, ttl=5 if priority else None))
    body = encode(one, BYTES_MAX)
    assert fill(form, stamp, encode_payload(payload, BYTES_MAX), BYTES_MAX) == body
    framer = Framer(LANE)
    wire = framer.blank(form) % (7, stamp, encode_payload(payload, BYTES_MAX), 7)
    assert b"%08x %b\n" % (crc32(wire), wire) == framer.line(body, 7, made=True)
    with refused("max_message_bytes"):
        fill(form, stamp, b'"' + b"x" * BYTES_MAX + b'"', BYTES_MAX)
