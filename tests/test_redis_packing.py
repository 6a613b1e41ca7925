"""Packed arguments are those that packing one by one gives, whatever the record."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import hiredis
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lemegeton.codec import Draft, encode
from lemegeton.lane import Lane
from lemegeton.logs.base import SKIP, Item, Marker
from lemegeton.logs.redis_entries import fields_of, marker_fields
from lemegeton.logs.redis_packing import packed_items
from lemegeton.segment import Framer
from test_redis_entries import BYTES_MAX, DRAFTS, LANE, LANES, SEQUENCES


def unpacked(data: bytes, number: int) -> Any:
    """What a server reads."""
    reader = hiredis.Reader()
    reader.feed(b"*%d\r\n%b" % (number, data))
    return reader.gets()


def expected(wire: bytes, seq: int) -> list[bytes]:
    fields = fields_of(wire)
    arguments = [str(seq), str(seq), str(crc32(wire)), wire, str(len(fields)), *fields]
    return [argument.encode() if isinstance(argument, str) else argument for argument in arguments]


def framed(draft: Draft, lane: Lane, seq: int) -> bytes:
    return Framer(lane).line(encode(draft, BYTES_MAX), seq, draft.id is None)[9:-1]


@given(st.lists(DRAFTS, min_size=1, max_size=3), LANES, SEQUENCES)
@example([Draft(1, "custom", "jörg", {"a": [1, "ü"]}, to="bob", priority=2)], LANE, 1)
@example([Draft(1, "custom", 'a"b', "x"), Draft(1700, "custom", "a", None), Draft(1, "x", "a", 1, id="ü")], LANE, 9)
def test_records_are_packed_as_one_by_one(drafts: list[Draft], lane: Lane, seq: int) -> None:
    wires = [framed(draft, lane, seq + n) for n, draft in enumerate(drafts)]
    items = [Item(seq + n, seq + n, wire) for n, wire in enumerate(wires)]
    packed = packed_items(items, lane, 0)
    assert unpacked(packed.data, packed.number) == [
        argument for n, wire in enumerate(wires) for argument in expected(wire, seq + n)]


@pytest.mark.parametrize("change", [
    {"payload": 1, "x": 2}, {"payload": 1, "to": ""}, {"payload": 1, "priority": 1}, {"payload": {"payload": 3}, "ttl": 5},
    {"payload": 1, "to": None}, {"to": "bob", "payload": 1}, {"payload": 'a","origin":"b'}, {"payload": 1, "id": "é"}])
def test_what_looks_almost_as_usual_comes_out_the_same(change: dict[str, Any]) -> None:
    usual = {"id": "1", "timestamp": 1, "type": "t", "from": "a"}
    wire = msgspec.json.encode({**usual, **change, "origin": "o", "inc": 1, "seq": 7})
    packed = packed_items([Item(7, 7, wire)], LANE, 0)
    assert unpacked(packed.data, packed.number) == expected(wire, 7)


@pytest.mark.parametrize("payload", [b'1,"payload":2', b'1, "payload":2', b' 1', b'1.0', b'1,"seq":7', b'1,"origin":"p"'])
def test_a_member_that_is_there_twice_comes_out_the_same(payload: bytes) -> None:
    wire = b'{"id":"1","timestamp":1,"type":"t","from":"a","payload":%b,"origin":"o","inc":1,"seq":7}' % payload
    packed = packed_items([Item(7, 7, wire)], LANE, 0)
    assert unpacked(packed.data, packed.number) == expected(wire, 7)


def test_a_marker_has_no_checksum_and_nothing_to_publish() -> None:
    marker = Marker(SKIP, 3, 5)
    packed = packed_items([Item(3, 5, marker)], LANE, 99)
    fields = [str(field).encode() for field in marker_fields(marker, LANE, 99)]
    assert unpacked(packed.data, packed.number) == [b"3", b"5", b"0", b"", str(len(fields)).encode(), *fields]
