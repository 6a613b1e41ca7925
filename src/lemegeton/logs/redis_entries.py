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
wire, so a record comes back byte for byte.  A *marker* is an entry that stands for records: ``type`` `skip` (expired, not
sent) or `gone` (its log does not have them any more), from ``seq`` to ``through``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from lemegeton.errors import InvalidMessage
from lemegeton.lane import Lane

TEXTS = frozenset((b"id", b"type", b"from", b"to", b"correlationId", b"replyTo", b"origin"))
SKIP, GONE = "skip", "gone"
CONTROL = "system:lemegeton"
"""Where relays and readers ring each other: ``n channel`` (look at it), ``q site`` (it is asked to send again)."""

_raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_text = msgspec.json.Decoder(str).decode
_quoted = msgspec.json.Encoder().encode
_MADE = re.compile(rb'[^"\\]*')


class Keys:
    """The names of everything in a Redis, under a namespace."""

    def __init__(self, namespace: str = "") -> None:
        self._prefix = f"{namespace}:" if namespace else ""
        self.channels = f"{self._prefix}channels"
        self.subscriptions = f"{self._prefix}subscriptions"
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
    parts = field.split(".")
    if len(parts) != 3 or not (parts[1].isascii() and parts[1].isdigit() and parts[2] in ("0", "1", "2", "3")):
        return None
    return Lane(channel, parts[0], int(parts[1]), int(parts[2]))


class Head(msgspec.Struct, frozen=True):
    """Where a record says it belongs; a foreign one has no origin."""

    origin: str = ""
    inc: int = 0
    seq: int = 0
    priority: int = 1
    type: str = ""
    through: int = 0


read_head = msgspec.json.Decoder(Head).decode
"""The head of a wire JSON; everything else is passed over, which takes a third of decoding it."""


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
    for name in ("id", "timestamp", "type", "from"):
        fields += (name, _value(name, found[name]))
    to = found.get("to")
    fields += ("to", "" if to is None else _value("to", to), "payload", bytes(found["payload"]))
    for name, raw in found.items():
        if name not in _FIRST:
            fields += (name, _value(name, raw))
    return fields


_FIRST = frozenset(("id", "timestamp", "type", "from", "to", "payload"))


def _value(name: str, raw: msgspec.Raw) -> bytes | str:
    data = bytes(raw)
    if name.encode() not in TEXTS or data[:1] != b'"':
        return data
    return data[1:-1] if _MADE.fullmatch(data, 1, len(data) - 1) else _text(data)


def marker_fields(kind: str, lane: Lane, seq: int, through: int, stamp_ms: int) -> list[bytes | str]:
    """The fields of a marker."""
    return [
        "id", f"{kind}:{lane.origin}:{seq}", "timestamp", str(stamp_ms), "type", kind, "from", lane.origin, "to", "",
        "payload", "null", "priority", str(lane.priority), "origin", lane.origin, "inc", str(lane.inc), "seq", str(seq),
        "through", str(through),
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
    """An entry as XRANGE answers it; `InvalidMessage` if it is no message."""
    ident, fields = entry
    wire = wire_of(fields or ())
    try:
        head = read_head(wire)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidMessage(f"entry {ident!r:.60}: not a message: {error}") from None
    return Entry(ident, head, wire, max(head.seq, head.through if head.type in (SKIP, GONE) else 0))
