"""Packing: records as arguments of the relay's script, in the bytes that the wire takes.

A record has 23 arguments; taking them out of it and packing them one by one takes 6.8 µs.  Most records of a sender differ
only in id, time, payload and sequence: the rest is packed once, and putting it together takes 3.0.  Whether a record is such
a one is not guessed: what is put together is compared with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import hiredis
import msgspec

from lemegeton.checksum import crc32
from lemegeton.lane import Lane
from lemegeton.logs.base import Item, Marker
from lemegeton.logs.redis_entries import fields_of, marker_fields
from lemegeton.seams import Packed


class Usual(msgspec.Struct, forbid_unknown_fields=True, rename={"sender": "from"}):
    """A record as most are."""

    id: str
    timestamp: int
    type: str
    sender: str
    payload: msgspec.Raw
    origin: str
    inc: int
    seq: int
    to: str = ""
    priority: int | None = None


_usual = msgspec.json.Decoder(Usual).decode


class Shape(NamedTuple):
    """What records of a sender have in common: between time and payload, and between payload and sequence.

    ``wire_…`` as in the wire JSON, ``packed_…`` as fields of an entry; ``head`` is their number and the name of the first."""

    wire_middle: str
    wire_end: str
    head: str
    packed_middle: str
    packed_end: str
    arguments: int


def packed_items(items: Iterable[Item], lane: Lane, now_ms: int) -> Packed:
    """The arguments of some items."""
    parts: list[bytes] = []
    count = 0
    for item in items:
        if isinstance(item.record, Marker):
            fields: list[bytes | str] = marker_fields(item.record, lane, now_ms)
            found = _packed(item.seq, item.through, 0, b"", len(fields), *fields)
        else:
            found = _packed_record(item.record, item.seq)
        count += found.number
        parts.append(found.data)
    return Packed(count, b"".join(parts))


def _packed_record(wire: bytes, seq: int) -> Packed:
    """The five arguments of a record and its fields."""
    try:
        usual = _usual(wire)
    except msgspec.MsgspecError:
        return _packed_any(wire, seq)
    ident, stamp, number = usual.id, str(usual.timestamp), str(seq)
    shape = _shape(usual.type, usual.sender, usual.to, usual.priority, usual.origin, usual.inc)
    begin, end = f'{{"id":"{ident}","timestamp":{stamp}{shape.wire_middle}'.encode(), f"{shape.wire_end}{number}}}".encode()
    payload = wire[len(begin) : -len(end)]
    if not (wire.startswith(begin) and wire.endswith(end) and payload == bytes(usual.payload) and ident.isascii()):
        return _packed_any(wire, seq)
    crc = str(crc32(wire))
    place = f"${len(number)}\r\n{number}\r\n"
    return Packed(shape.arguments, b"".join((
        f"{place}{place}${len(crc)}\r\n{crc}\r\n${len(wire)}\r\n".encode(), wire,
        f"{shape.head}${len(ident)}\r\n{ident}\r\n$9\r\ntimestamp\r\n${len(stamp)}\r\n{stamp}{shape.packed_middle}"
        f"${len(payload)}\r\n".encode(), payload, f"{shape.packed_end}{place}".encode())))


def _packed_any(wire: bytes, seq: int) -> Packed:
    fields = fields_of(wire)
    return _packed(seq, seq, crc32(wire), wire, len(fields), *fields)


@lru_cache(maxsize=1024)
def _shape(kind: str, sender: str, to: str, priority: int | None, origin: str, inc: int) -> Shape:
    middle, end = f',"type":"{kind}","from":"{sender}","payload":', f',"origin":"{origin}","inc":{inc},"seq":'
    before: tuple[str | int, ...] = ("type", kind, "from", sender)
    after: tuple[str | int, ...] = ("origin", origin, "inc", inc, "seq")
    if priority is not None:
        end, after = f',"priority":{priority}{end}', ("priority", priority, *after)
    if to:
        end, after = f',"to":"{to}"{end}', ("to", to, *after)
    else:
        before = (*before, "to", "")
    count = 4 + len(before) + 2 + len(after) + 1
    return Shape(middle, end, _text(count, "id"), _text(*before, "payload"), _text(*after), 5 + count)


def _text(*arguments: str | int) -> str:
    """Arguments behind the end of another one."""
    return f"\r\n{_packed(*arguments).data.decode()}"


def _packed(*arguments: bytes | str | int) -> Packed:
    data = hiredis.pack_command(arguments)  # type: ignore[arg-type]  # its stub says a tuple of one
    return Packed(len(arguments), data[data.index(b"\n") + 1 :])
