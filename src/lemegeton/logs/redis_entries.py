"""Entries: how records lie in a Redis, so that other programs can read and write them.  Pure.

::

    PUBLISH {channel}                        the wire JSON, as in a line of a file
    message-stream:{channel}                 stream: fields id timestamp type from to payload, then the rest of the envelope
    relay:{message-stream:CHANNEL}           hash: lane → sequence:crc, the mark of what the stream took (braces literal)
    acks:{message-stream:CHANNEL}            hash: subscription@site → {lane: settled}
    nacks:{message-stream:CHANNEL}           hash: lane|site → from-to, what a site asks to be sent again
    resend:{message-stream:CHANNEL}:SITE     stream: the answers
    channels                                 set of all channels;  subscriptions  hash: subscription@site → patterns, seen

A field is text where the wire JSON has text under that name (`TEXTS`), and JSON text otherwise; their order is that of the
wire, so a record comes back byte for byte.  ``to`` is always there, empty if nobody is named.  A *marker* is an entry that
stands for records: ``type`` `skip` (expired, not sent) or `gone` (its log does not have them any more), from ``seq`` to
``through``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from lemegeton.codec import Head, head_of
from lemegeton.errors import InvalidMessage
from lemegeton.lane import Lane
from lemegeton.logs.base import GONE, SKIP, Marker
from lemegeton.segment import SUFFIX, SegmentName, parse_segment_name

TEXTS = frozenset((b"id", b"type", b"from", b"to", b"correlationId", b"replyTo", b"origin"))
CONTROL = "system:lemegeton"
"""Where relays and readers ring each other: ``n channel`` (look at it), ``q site`` (it is asked to send again)."""

FIELD_MAX = 256
"""No lane has a longer name."""
NUMBER_DIGITS = 16
"""No sequence has more of them; the scripts know that as well."""
SEQUENCE_END = 2**53
"""From here on the numbers of a script are not exact any more."""

_raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_text = msgspec.json.Decoder(str).decode
_quoted = msgspec.json.Encoder().encode
QUOTE = ord('"')


class Keys:
    """The names of everything in a Redis, under a namespace."""

    def __init__(self, namespace: str = "") -> None:
        self._prefix = f"{namespace}:" if namespace else ""
        self.channels = f"{self._prefix}channels"
        self.subscriptions = f"{self._prefix}subscriptions"
        self.dataset = f"{self._prefix}coordination:dataset"
        self.mode = f"{self._prefix}coordination:mode"
        self.health = f"{self._prefix}coordination:redis_health"
        self.history = f"{self._prefix}coordination:history"
        self.control = self.channel(CONTROL)

    def channel(self, channel: str) -> str:
        """Where a channel, or a pattern of channels, is published."""
        return self._prefix + channel

    def plain(self, published: str) -> str:
        """The channel that is published under this name."""
        return published.removeprefix(self._prefix)

    def stream(self, channel: str) -> str:
        """The stream of a channel."""
        return f"{self._prefix}message-stream:{channel}"

    def marks(self, channel: str) -> str:
        """The relay's marks of a channel; in the slot of its stream, as are the next three."""
        return f"{self._prefix}relay:{{{self.stream(channel)}}}"

    def acks(self, channel: str) -> str:
        """What the durable subscriptions of all sites have settled."""
        return f"{self._prefix}acks:{{{self.stream(channel)}}}"

    def nacks(self, channel: str) -> str:
        """What sites ask to be sent again."""
        return f"{self._prefix}nacks:{{{self.stream(channel)}}}"

    def resend(self, channel: str, site: str) -> str:
        """Where a site finds what it asked for."""
        return f"{self._prefix}resend:{{{self.stream(channel)}}}:{site}"


@lru_cache(maxsize=4096)
def lane_field(lane: Lane) -> str:
    """A lane within its channel, as the hashes name it."""
    return f"{lane.origin}.{lane.inc}.{lane.priority}"


@lru_cache(maxsize=4096)
def lane_of(channel: str, field: str) -> Lane | None:
    """The lane that `lane_field` named; None for anything else."""
    found = parse_segment_name(f"{field}.1{SUFFIX}") if len(field) < FIELD_MAX else None
    return found and Lane(channel, found.origin, found.inc, found.priority)


def sequence_in(text: bytes) -> int | None:
    """A sequence that somebody wrote down; None for anything else."""
    return seq if text.isdigit() and len(text) <= NUMBER_DIGITS and (seq := int(text)) < SEQUENCE_END else None


def marks_of(answer: Mapping[bytes, bytes]) -> dict[str, int]:
    """The sequences in a hash of marks; what somebody else put there is none."""
    found = {field.decode("utf-8", "replace"): sequence_in(mark.partition(b":")[0]) for field, mark in answer.items()}
    return {field: seq for field, seq in found.items() if seq is not None}


class Entry(NamedTuple):
    """What lies in a stream: its id there, where it belongs, the wire JSON, and the last sequence it stands for."""

    id: bytes
    head: Head
    wire: bytes
    through: int


def fields_of(wire: bytes) -> list[bytes | str]:
    """The fields of a record, each name followed by its value."""
    found = _raw_fields(wire)
    fields: list[bytes | str] = []
    for name, raw in found.items():
        if name == "payload" and "to" not in found:
            fields += ("to", "")  # the original's programs look for it
        data = bytes(raw)
        if name.encode() not in TEXTS:
            fields += (name, data)
        elif data != b"null":
            fields += (name, _plain(data))
    return fields


def _plain(data: bytes) -> bytes | str:
    """The text that JSON quotes."""
    return data[1:-1] if data.find(b"\\") < 0 and data[0] == QUOTE else _text(data)


def marker_fields(marker: Marker, lane: Lane, stamp_ms: int) -> list[bytes | str]:
    """The fields of a marker."""
    return [
        "id", f"{marker.kind}:{lane.origin}:{marker.first}", "timestamp", str(stamp_ms), "type", marker.kind,
        "from", lane.origin, "to", "", "payload", "null", "priority", str(lane.priority), "origin", lane.origin,
        "inc", str(lane.inc), "seq", str(marker.first), "through", str(marker.through),
    ]


def wire_of(fields: Iterable[bytes]) -> bytes:
    """The wire JSON that `fields_of` took apart; of an entry of somebody else, the JSON that it amounts to."""
    parts: list[bytes] = []
    names = iter(fields)
    for name, value in zip(names, names, strict=True):
        if name == b"to" and not value:
            continue
        if name in TEXTS:
            try:
                value = _quoted(value.decode())
            except UnicodeDecodeError:
                raise InvalidMessage(f"entry: field {name!r:.40} is not UTF-8") from None
        parts.append(_quoted(name.decode("utf-8", "replace")) + b":" + (value or b"null"))
    return b"{" + b",".join(parts) + b"}"


def entry_of(entry: Any) -> Entry:
    """An entry as XRANGE answers it; `InvalidMessage` if it is no message, or at a place that no record can have."""
    ident, fields = entry
    wire = wire_of(fields or ())
    try:
        head = head_of(wire)
    except InvalidMessage as error:
        raise InvalidMessage(f"entry {ident!r:.60}: {error}") from None
    if not head.origin or not head.seq:
        return Entry(ident, msgspec.structs.replace(head, origin="", inc=0, seq=0), wire, 0)
    through = max(head.seq, head.through if head.type in (SKIP, GONE) else 0)
    if not (0 < head.seq <= through < SEQUENCE_END and _is_lane(head.origin, head.inc, head.priority)):
        raise InvalidMessage(f"entry {ident!r:.60}: no record can be at {head.origin!r:.80} {head.inc} {head.seq}")
    return Entry(ident, head, wire, through)


@lru_cache(maxsize=4096)
def _is_lane(origin: str, inc: int, priority: int) -> bool:
    """Whether a lane could be named so: what is in an entry goes into file names and marks."""
    return parse_segment_name(str(SegmentName(origin, inc, priority, 1))) is not None
