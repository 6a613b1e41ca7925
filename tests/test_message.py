"""The message as handlers see it."""

from __future__ import annotations

import pytest

from lemegeton.codec import decode
from lemegeton.errors import InvalidMessage
from lemegeton.lane import Lane, made_id
from lemegeton.message import WIRE_FIELDS, Message, MessagePriority, MessageType, Receipt

BODY = b'{"timestamp":1000,"type":"custom","from":"a","payload":null%b}'


def message(**fields: object) -> Message:
    return Message(**{"timestamp": 1000, "type": "custom", "sender": "a", "payload": None, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(("ttl", "now_ms", "expired"), [
    (None, 10**15, False), (500, 1500, False), (500, 1501, True), (500, 0, False),
])
def test_a_message_expires_when_its_time_to_live_has_passed(ttl: int | None, now_ms: int, expired: bool) -> None:
    assert message(ttl=ttl).expired(now_ms) is expired


def test_a_message_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        message().payload = 1  # type: ignore[misc]


def test_the_wire_has_the_names_of_the_original_plan() -> None:
    assert {
        "id", "timestamp", "type", "from", "to", "payload", "priority", "ttl", "correlationId", "replyTo", "headers",
        "origin", "inc", "seq", "after",
    } == WIRE_FIELDS
    assert {kind.value for kind in MessageType} == {
        "assignment", "progress", "complete", "failed", "heartbeat", "mode_change", "shutdown", "custom"}
    assert [(p.name, p.value) for p in MessagePriority] == [("LOW", 0), ("NORMAL", 1), ("HIGH", 2), ("CRITICAL", 3)]


def test_unknown_fields_are_kept() -> None:
    raw = BODY % b',"colour":"red","nested":{"a":[1]},"seq":3'
    assert message(raw=raw).unknown == {"colour": "red", "nested": {"a": [1]}}
    assert message().unknown == {}


def test_a_foreign_field_with_one_of_our_names_is_an_unknown_field() -> None:
    fields = b',"channel":"x","attempt":7,"raw":"eA==","redelivered":true,"sender":"mallory","correlation_id":"y"'
    raw = BODY % fields
    found = decode(raw)
    assert (found.channel, found.attempt, found.raw, found.redelivered) == ("", 1, b"", False)
    assert (found.sender, found.correlation_id) == ("a", None)
    assert message(raw=raw).unknown == {
        "channel": "x", "attempt": 7, "raw": "eA==", "redelivered": True, "sender": "mallory", "correlation_id": "y"}


@pytest.mark.parametrize("field", [b',"x":1e400', b',"x":' + b"1" * 5000, b',"x":"\xff"'])
def test_an_unknown_field_that_cannot_be_read_is_an_invalid_message(field: bytes) -> None:
    raw = BODY % field
    assert decode(raw).payload is None
    with pytest.raises(InvalidMessage, match="a field that is not known cannot be read"):
        _ = message(raw=raw).unknown


def test_messages_do_not_share_their_headers() -> None:
    one, other = message(), message()
    one.headers["traceparent"] = "00-x"
    assert other.headers == {}


def test_a_receipt_names_what_was_published() -> None:
    lane = Lane("agent-bob", "a~s~0", 1, 2)
    receipt = Receipt(lane, 17, "local")
    assert (receipt.id, receipt.channel, receipt.seq, receipt.level) == (made_id(lane, 17), "agent-bob", 17, "local")
    assert Receipt(lane, 17, "disk", "mine").id == "mine"
