"""Messages to bytes and back.  Whatever is wrong with either, the one exception is `InvalidMessage`.

Encoding makes the *body*: the wire JSON without its position, and without an id if none was given; `segment.Framer`
splices those in.  Limits are checked in the order of their cost: size, then depth, then content.
"""

from __future__ import annotations

import math
import re
from itertools import accumulate
from typing import Any

import msgspec

from lemegeton.channels import check_name
from lemegeton.errors import InvalidMessage
from lemegeton.message import Message, MessagePriority, MessageType

DEPTH_MAX = 64
TEXT_MAX = 256
HEADERS_BYTES_MAX = 16 * 1024
TTL_MAX_MS = 10 * 365 * 86_400_000
UNKNOWN_FIELDS_MAX = 1000
"""A script of a Redis can pass on a few thousand fields of an entry and no more."""
FLAT_FIELDS_MAX = 8
STAMP_BYTES_MAX = 20
_NORMAL = MessagePriority.NORMAL
_TYPES = frozenset(kind.value for kind in MessageType)
_FLAT = (str, bool, type(None))
"""Payloads that can neither nest nor arrive as something else."""


class Draft(msgspec.Struct, omit_defaults=True, rename={"sender": "from", "correlation_id": "correlationId",
                                                        "reply_to": "replyTo"}):
    """The fields a sender gives; the meaning and units are those of `Message`."""

    timestamp: int
    type: str
    sender: str
    payload: Any
    id: str | None = None
    to: str | None = None
    priority: int = 1
    ttl: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    headers: dict[str, str] | None = None


class Head(msgspec.Struct, frozen=True, rename={"said_through": "through", "said_after": "after"}):
    """Where a record says it belongs, and until when it counts; a foreign one has no origin.

    A sender that is not ours may use the names ``through`` and ``after`` for anything: that makes no record unreadable."""

    origin: str = ""
    inc: int = 0
    seq: int = 0
    priority: int = 1
    type: str = ""
    timestamp: int = 0
    ttl: int | None = None
    said_through: Any = 0
    said_after: Any = None

    @property
    def through(self) -> int:
        """Of markers: the last sequence that one stands for."""
        return self.said_through if self.said_through.__class__ is int else 0

    @property
    def after(self) -> tuple[str, int, int] | None:
        """Origin, incarnation and last sequence of what comes before the first record of an incarnation."""
        try:
            return _after(self.said_after)
        except msgspec.ValidationError:
            return None


def _after(said: Any) -> tuple[str, int, int] | None:
    return msgspec.convert(said, tuple[str, int, int] | None)


_encode = msgspec.json.Encoder().encode
_head = msgspec.json.Decoder(Head).decode
_decode = msgspec.json.Decoder(Message).decode
_decode_any = msgspec.json.Decoder().decode
_set = msgspec.structs.force_setattr
_UNREADABLE = (msgspec.MsgspecError, RecursionError, ValueError)

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_TO_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""Brackets to +1 and, read as a signed byte, -1."""
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def check_draft(draft: Draft) -> None:
    """Refuse what the envelope does not allow; everything except the payload, which `encode` checks."""
    if draft.type.__class__ is not str or draft.type not in _TYPES:
        _check_field(draft.type, "type")
    if draft.id is not None:
        _check_field(draft.id, "id")
    if draft.to is not None:
        _check_field(draft.to, "to")
    if draft.correlation_id is not None:
        _check_field(draft.correlation_id, "correlation_id")
    if draft.reply_to is not None:
        _check_field(draft.reply_to, "reply_to")
    if draft.headers is not None:
        _check_headers(draft.headers)
    if draft.priority is not _NORMAL:
        priority_of(draft.priority)


def _check_field(text: object, what: str) -> None:
    if not isinstance(text, str) or not 0 < len(text) <= TEXT_MAX:
        raise InvalidMessage(f"{what} {text!r:.80}: must be a text of 1 to {TEXT_MAX} characters")
    if not text.isprintable():
        raise InvalidMessage(f"{what} {text!r:.80}: control characters are not allowed")


def _check_headers(headers: object) -> None:
    if not isinstance(headers, dict) or not all(isinstance(x, str) for pair in headers.items() for x in pair):
        raise InvalidMessage(f"headers {headers!r:.80}: must map text to text")
    if sum(len(key) + len(value) for key, value in headers.items()) > HEADERS_BYTES_MAX:
        raise InvalidMessage(f"headers: more than {HEADERS_BYTES_MAX} characters in all")


def ttl_ms(ttl_s: float | None) -> int | None:
    """Seconds to the milliseconds of the wire, at least 1; refuses what is not a positive time."""
    if ttl_s is None:
        return None
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not 0 < ttl_s * 1000 <= TTL_MAX_MS:
        raise InvalidMessage(f"ttl {ttl_s!r:.40}: must be seconds above 0 and at most ten years")
    return max(1, round(ttl_s * 1000))


def _check_ttl_ms(ttl: int | None) -> None:
    if ttl is not None and not 0 < ttl <= TTL_MAX_MS:
        raise InvalidMessage(f"ttl {ttl!r:.40}: must be milliseconds above 0 and at most ten years")


def priority_of(value: object) -> int:
    """The number of a priority given as number or `MessagePriority`."""
    if value.__class__ in (int, MessagePriority) and 0 <= value <= 3:
        return int(value)
    names = ", ".join(f"{p.value} ({p.name})" for p in MessagePriority)
    raise InvalidMessage(f"priority {value!r:.40}: must be one of {names}")


def encode(draft: Draft, bytes_max: int) -> bytes:
    """The body of a draft whose fields passed `check_draft`; its payload is held to what `encode_payload` says."""
    return encode_raw(draft, encode_payload(draft.payload, bytes_max), bytes_max)


def encode_raw(draft: Draft, payload: bytes, bytes_max: int) -> bytes:
    """The body of a draft with a payload that is JSON already, and was accepted once; it stays what it is, byte for byte."""
    body = _to_json(msgspec.structs.replace(draft, payload=msgspec.Raw(payload)), "message")
    _check_size(len(body), bytes_max)
    return body


def encode_payload(payload: Any, bytes_max: int) -> bytes:
    """A payload as JSON, refused unless it arrives as it was sent.

    msgspec by itself would write NaN as null, bytes as base64 text, a set as a list, and a number that no reader can
    read.  Only a tuple may arrive as something else, a list.
    """
    data = _to_json(payload, "payload")
    kind = payload.__class__
    if kind is dict and len(payload) <= FLAT_FIELDS_MAX:
        # Looking at the fields of a small flat one costs a third of decoding it; it arrives as it is.
        for key, value in payload.items():
            kind = value.__class__
            if key.__class__ is not str or not (kind is str or kind in _FLAT or (kind is int and abs(value) < 2**63)):
                break
        else:
            return data
    elif kind in _FLAT:
        return data
    _check_size(len(data), bytes_max)
    _check_depth(data, DEPTH_MAX)
    _check_arrival(payload, data)
    return data


def _to_json(value: Any, what: str) -> bytes:
    try:
        return _encode(value)
    except RecursionError:
        raise InvalidMessage(f"{what}: nested deeper than {DEPTH_MAX} levels") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidMessage(f"{what} of type {type(value).__name__}: cannot be written as JSON: {error}") from None


def form_of(draft: Draft) -> bytes:
    """The body of a draft with its stamp and its payload left open: ``% (timestamp, payload)`` fills them in."""
    draft.timestamp, draft.payload = 0, None
    body = _encode(draft).replace(b"%", b"%%")
    return body.replace(b'"timestamp":0', b'"timestamp":%d', 1).replace(b',"payload":null', b',"payload":%b', 1)


def fill(form: bytes, stamp_ms: int, payload: bytes, bytes_max: int) -> bytes:
    """The body that `encode` would have made."""
    body = form % (stamp_ms, payload)
    _check_size(len(body), bytes_max)
    return body


def _check_arrival(payload: Any, data: bytes) -> None:
    try:
        arrives = _decode_any(data)
    except _UNREADABLE as error:
        raise InvalidMessage(f"payload: no reader could read it: {error}") from None
    if arrives != payload:
        _refuse_change(payload, arrives)


def _check_size(size: int, bytes_max: int) -> None:
    if size > bytes_max:
        raise InvalidMessage(f"message: {size} bytes encoded, at most {bytes_max} (max_message_bytes) are allowed")


def _refuse_change(sent: Any, arrives: Any) -> None:
    """Find what would not arrive as it was sent and refuse it."""
    pairs = [(sent, arrives)]
    while pairs:
        sent, arrives = pairs.pop()
        if isinstance(sent, float) and not math.isfinite(sent):
            raise InvalidMessage(f"payload: {sent} is not a JSON number")
        if isinstance(sent, list | tuple):
            pairs.extend(zip(sent, arrives, strict=True))
        elif isinstance(sent, dict) and sent.keys() == arrives.keys():
            pairs.extend((value, arrives[key]) for key, value in sent.items())
        elif sent != arrives:
            raise InvalidMessage(f"payload: {sent!r:.80} would arrive as {arrives!r:.80}; give what JSON has: text, "
                                 "numbers, true, false, null, lists, and dicts whose keys are text")


def _check_depth(data: bytes, levels: int) -> None:
    """Refuse valid JSON that nests deeper; brackets inside strings do not count."""
    if data.count(b"[") + data.count(b"{") <= levels:
        return
    steps = _STRING.sub(b"", data).translate(_TO_STEPS, _NO_BRACKETS)
    if max(accumulate(memoryview(steps).cast("b")), default=0) > levels:
        raise InvalidMessage(f"payload: nested deeper than {DEPTH_MAX} levels")


def decode(data: bytes) -> Message:
    """The message in a record's wire JSON; its unknown fields stay in ``raw``."""
    try:
        message = _decode(data)
    except _UNREADABLE as error:
        raise InvalidMessage(f"record of {len(data)} bytes: not a message: {error}") from None
    if message.redelivered or message.attempt != 1 or message.channel or message.raw:
        _clear_ours(message)
    return message


def head_of(data: bytes) -> Head:
    """The head of a wire JSON: everything else is passed over, which takes a third of decoding it."""
    try:
        return _head(data)
    except _UNREADABLE as error:
        raise InvalidMessage(f"record of {len(data)} bytes: not a message: {error}") from None


def _clear_ours(message: Message) -> None:
    """What delivery knows is not for a sender to say, even if it knows the names."""
    for name, value in (("channel", ""), ("redelivered", False), ("attempt", 1), ("raw", b"")):
        _set(message, name, value)


def decode_foreign(data: bytes, bytes_max: int) -> Message:
    """A message from outside, held to every rule that `publish` holds its own to."""
    _check_size(len(data), bytes_max)
    _decode_all(data, "message", DEPTH_MAX + 1)
    message = decode(data)
    check_name(message.sender, "from")
    check_draft(draft_of(message))
    _check_ttl_ms(message.ttl)
    if not 0 <= message.timestamp < 2**53:
        raise InvalidMessage(f"timestamp {message.timestamp}: must be Unix milliseconds")
    return message


def draft_of(message: Message) -> Draft:
    """The draft that would publish this message again, with its id."""
    return Draft(message.timestamp, message.type, message.sender, message.payload, message.id or None, message.to,
                 message.priority, message.ttl, message.correlation_id, message.reply_to, message.headers or None)


def with_unknown_fields(body: bytes, message: Message, bytes_max: int) -> bytes:
    """The body with the fields of a foreign message that this version does not know, so that they are kept."""
    unknown = message.unknown
    if not unknown:
        return body
    if len(unknown) > UNKNOWN_FIELDS_MAX:
        raise InvalidMessage(f"message: {len(unknown)} fields that are not known, at most {UNKNOWN_FIELDS_MAX} are allowed")
    body = body[:-1] + b"," + _encode(unknown)[1:]
    _check_size(len(body), bytes_max)
    return body


def decode_json(text: bytes | str) -> Any:
    """Any JSON value, held to the depth limit; `InvalidMessage` for anything else."""
    return _decode_all(text, "payload", DEPTH_MAX)


def _decode_all(text: bytes | str, what: str, levels: int) -> Any:
    """Every value of it, also those that decoding a message passes over."""
    try:
        data = text.encode() if isinstance(text, str) else text
        value = _decode_any(data)
    except _UNREADABLE as error:
        raise InvalidMessage(f"{what}: not JSON: {error}") from None
    _check_depth(data, levels)  # of valid JSON only: in anything else strings have no end
    return value
