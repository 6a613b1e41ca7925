"""The scan: whatever order the entries of a stream are in, a reader gets the next ones, or asks for them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lemegeton.codec import Head, decode, head_of
from lemegeton.errors import RedisLost
from lemegeton.events import Event, Refused
from lemegeton.lane import Lane
from lemegeton.logs import redis_scan
from lemegeton.logs.base import GONE, SKIP, Item, Marker
from lemegeton.logs.redis_entries import Keys, fields_of, lane_field
from lemegeton.logs.redis_feed import Feed, Shelf
from lemegeton.logs.redis_link import Link
from lemegeton.logs.redis_replica import RedisReplica
from lemegeton.logs.redis_scan import CHUNK, Scan, id_number, id_text
from lemegeton.testing.servers import RedisServer
from test_delivery import record
from test_redis_link import running
from test_redis_side import redis, shared_server

__all__ = ["redis", "shared_server"]

KEYS = Keys()
LANE = Lane("c", "a~far~0", 1, 1)
OTHER = LANE._replace(inc=2)
STREAM = KEYS.stream("c")


def lane_at(channel: str, head: Head) -> Lane | None:
    return None if head.origin.startswith("ours") else Lane(channel, head.origin, head.inc, head.priority)


class Rig:
    """A stream with records of another site, and a scan of this one's."""

    def __init__(self, server: RedisServer, link: Link) -> None:
        self.server = server
        self.link = link
        self.events: list[Event] = []
        self.shelf = Shelf()
        self.feed = Feed("c")
        self.replica = RedisReplica(link, KEYS, 100_000, lambda: 1)
        self.scan = self.scan_with(None)
        self.read: Counter[object] = Counter()
        call = link.call

        def counted(*arguments: Any, **packed: Any) -> Any:
            self.read.update(arguments[1:2] if arguments[0] == "XRANGE" else ())
            return call(*arguments, **packed)

        link.call = counted  # type: ignore[method-assign]

    def scan_with(self, gap_timeout_s: float | None) -> Scan:
        return Scan(self.link, KEYS, "here", self.shelf, lane_at, self.events.append, gap_timeout_s, 1 << 20)

    async def fill(self, first: int, last: int, lane: Lane = LANE) -> None:
        await self.replica.accept(lane, [Item(seq, seq, record(lane, seq, seq)) for seq in range(first, last + 1)], base=True)
        self.feed.note(lane, last)

    async def put(self, *seqs: int, key: str = STREAM, lane: Lane = LANE) -> None:
        """Entries in any order, as no relay would add them."""
        for seq in seqs:
            scratch = Keys(f"s{seq}")
            await RedisReplica(self.link, scratch, 100, lambda: 1).accept(
                lane, [Item(seq, seq, record(lane, seq, seq))], base=True)
            ((_, fields),) = self.server.cli("XRANGE", scratch.stream("c"), "-", "+")
            self.server.cli("XADD", key, "*", *fields)
            self.server.cli("DEL", scratch.stream("c"), scratch.marks("c"))

    async def find(self, after: int, ident: int = 0, limit: int = 1 << 20, lane: Lane = LANE) -> tuple[list[Any], Any]:
        batch = await self.scan.find(self.feed, lane, after, ident, limit)
        return [head_of(each).seq if isinstance(each, bytes) else each for each in batch.records], batch.cursor

    def fields(self, seq: int) -> list[bytes | str]:
        return fields_of(record(LANE, seq, seq))

    def reads(self, key: str) -> int:
        """How often a stream was read so far."""
        return self.read[key]

    def asked(self) -> str:
        return (self.server.cli("HGET", KEYS.nacks("c"), f"{lane_field(LANE)}|here") or b"").decode()


@pytest.fixture
async def rig(redis: RedisServer) -> AsyncIterator[Rig]:
    async with running(redis.url()) as watched:
        await watched.until(True)
        yield Rig(redis, watched.link)


async def test_records_come_from_behind_the_place_and_the_cursor_goes_on_there(rig: Rig) -> None:
    await rig.fill(1, CHUNK + 20)
    found, (last, ident) = await rig.find(0)
    assert (found, last) == (list(range(1, CHUNK + 21)), CHUNK + 20)
    await rig.fill(CHUNK + 21, CHUNK + 23)
    rig.server.cli("XTRIM", STREAM, "MAXLEN", "3")
    assert (await rig.find(last, ident))[0] == [CHUNK + 21, CHUNK + 22, CHUNK + 23]


async def test_a_limit_ends_a_look_after_the_chunk_that_reaches_it(rig: Rig) -> None:
    await rig.fill(1, 2 * CHUNK)
    assert (await rig.find(0, limit=1))[0] == list(range(1, CHUNK + 1))


async def test_an_id_that_is_too_high_is_not_trusted(rig: Rig) -> None:
    """A Redis that began anew under an earlier clock gives lower ids."""
    await rig.fill(1, 5)
    assert (await rig.find(3, id_number(b"99999999999999-0")))[0] == [4, 5]


async def test_what_was_filled_in_behind_later_records_is_found(rig: Rig) -> None:
    await rig.put(4, 5, 1, 2, 3, 4, 5, 6)
    rig.feed.note(LANE, 6)
    found, (last, _) = await rig.find(0)
    assert found[:3] == [1, 2, 3]
    while last < 6:
        more, (last, _) = await rig.find(last)
        found += more
    assert found == [1, 2, 3, 4, 5, 6]


async def test_what_is_missing_is_asked_for_up_to_the_next_there_is_and_not_again_at_once(rig: Rig) -> None:
    await rig.fill(1, 9)
    for ident, _ in rig.server.cli("XRANGE", STREAM, "-", "+")[3:6]:
        rig.server.cli("XDEL", STREAM, ident)
    assert (await rig.find(0))[0] == [1, 2, 3]
    assert (await rig.find(3)) == ([], (3, 0))
    assert rig.asked() == "4-6"
    rig.server.cli("DEL", KEYS.nacks("c"))
    await rig.find(3)
    assert rig.asked() == "", "it was asked a moment ago"


async def test_the_answer_is_found_where_it_is_sent_and_the_place_in_the_stream_stays(rig: Rig) -> None:
    await rig.fill(1, 9)
    rig.server.cli("XTRIM", STREAM, "MAXLEN", "3")
    await rig.find(0, 5)
    assert rig.asked() == "1-6"
    await rig.put(1, 2, 3, 4, key=KEYS.resend("c", "here"))
    assert await rig.find(0, 5) == ([1, 2, 3, 4], (4, 5))
    assert not rig.feed.asked
    assert (await rig.find(4, 5)) == ([], (4, 5))
    assert rig.asked() == "5-6"


async def test_a_hole_that_is_filled_piece_by_piece_is_not_looked_for_in_the_stream_again(rig: Rig) -> None:
    await rig.fill(1, 4 * CHUNK)
    rig.server.cli("XTRIM", STREAM, "MAXLEN", str(2 * CHUNK))
    resend, cursor = KEYS.resend("c", "here"), (0, 0)
    await rig.find(*cursor)
    reads = rig.reads(STREAM)
    for piece in range(2):
        asked = f"{piece * CHUNK + 1}-{2 * CHUNK}"
        assert rig.asked() == asked
        for seq in range(piece * CHUNK + 1, (piece + 1) * CHUNK + 1):
            rig.server.cli("XADD", resend, "*", *rig.fields(seq))
        found, cursor = await rig.find(*cursor)
        assert found == list(range(piece * CHUNK + 1, (piece + 1) * CHUNK + 1))
        if not piece:
            assert (await rig.find(*cursor)) == ([], cursor)
            assert (await rig.find(*cursor)) == ([], cursor), "it waits for the next piece"
    assert rig.reads(STREAM) == reads
    assert (await rig.find(*cursor))[0][:1] == [2 * CHUNK + 1]
    assert rig.reads(STREAM) > reads


async def test_what_a_relay_filled_in_while_it_was_asked_for_is_found_in_the_stream(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.fill(1, 3)
    rig.server.cli("XTRIM", STREAM, "MAXLEN", "1")
    assert (await rig.find(0)) == ([], (0, 0))
    await rig.put(1, 2, 3)
    assert (await rig.find(0)) == ([], (0, 0))
    monkeypatch.setattr(redis_scan, "ASK_AGAIN_S", 0.0)
    assert (await rig.find(0))[0] == [1, 2, 3]


async def test_a_request_that_is_not_heard_is_made_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_scan, "ASK_AGAIN_S", 0.0)
    rig.feed.note(LANE, 3)
    for _ in range(2):
        rig.server.cli("DEL", KEYS.nacks("c"))
        assert (await rig.find(0))[0] == []
        assert rig.asked() == "1-3"


async def test_after_the_gap_timeout_what_is_missing_is_given_up(rig: Rig) -> None:
    rig.scan = rig.scan_with(0.05)
    rig.feed.note(LANE, 3)
    assert (await rig.find(0))[0] == []
    found: list[Any] = []
    async with asyncio.timeout(5.0):
        while not found:
            found, cursor = await rig.find(0)
    assert (found, cursor) == ([Marker(GONE, 1, 3)], (3, 0))
    assert not rig.feed.asked


async def test_where_the_redis_says_nothing_is_missing_nobody_is_asked(rig: Rig) -> None:
    await rig.fill(1, 3)
    assert (await rig.find(3)) == ([], (3, 0))
    assert rig.asked() == ""


async def test_a_marker_supplies_any_sequence_in_it(rig: Rig) -> None:
    await rig.fill(1, 1)
    await rig.replica.accept(LANE, [Item(2, 6, Marker(SKIP, 2, 6)), Item(7, 7, record(LANE, 7, 7))])
    rig.feed.note(LANE, 7)
    assert (await rig.find(4))[0] == [Marker(SKIP, 2, 6), 7]


async def test_entries_of_other_lanes_that_pass_are_kept_for_those_who_come_next(rig: Rig) -> None:
    await rig.fill(1, 2)
    await rig.fill(1, 2, OTHER)
    await rig.find(0)
    assert [head_of(each).seq for each in rig.shelf.take(OTHER, 0, 1 << 20)[0] if isinstance(each, bytes)] == [1, 2]


async def test_entries_of_our_own_site_are_passed_over(rig: Rig) -> None:
    await rig.fill(1, 3, LANE._replace(origin="ours~here~0"))
    await rig.fill(1, 1)
    assert (await rig.find(0))[0] == [1]


async def test_entries_of_other_programs_have_their_id_for_a_place(rig: Rig) -> None:
    rig.scan.dataset = "d1"
    foreign = Lane("c", "foreign~d1", 1, 1)
    fields = ("timestamp", "1", "type", "t", "from", "x", "to", "", "payload", "7")
    for ident in ("5-1", "9-0"):
        rig.server.cli("XADD", STREAM, ident, *fields)
    await rig.fill(1, 1)
    rig.feed.note(foreign, 9 << 20)
    batch = await rig.scan.find(rig.feed, foreign, 0, 0, 1 << 20)
    messages = [decode(each) for each in batch.records if isinstance(each, bytes)]
    assert [(m.seq, m.payload, bool(m.id)) for m in messages] == [((5 << 20) + 1, 7, True), (9 << 20, 7, True)]
    assert messages[0].id != messages[1].id
    assert (await rig.find(0))[0] == [1]
    rig.feed.note(foreign, 10 << 20)
    assert not (await rig.scan.find(rig.feed, foreign, 9 << 20, 0, 1 << 20)).records
    assert not rig.server.cli("EXISTS", KEYS.nacks("c")), "nobody could send it again"


async def test_an_entry_that_is_no_message_is_told_once_and_not_too_many_are_remembered(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_scan, "REPORTED_MAX", 3)
    for _ in range(5):
        rig.server.cli("XADD", STREAM, "*", "x", "y")
    await rig.fill(1, 1)
    assert (await rig.find(0))[0] == [1]
    assert len(rig.events) == 5
    assert all(isinstance(event, Refused) for event in rig.events)
    rig.server.cli("XTRIM", STREAM, "MAXLEN", "3")
    await rig.find(0)
    assert len(rig.events) == 5


async def test_no_answer_in_time_is_an_error_that_says_where(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_scan, "CALL_S", 0.05)
    await rig.fill(1, 1)
    rig.server.freeze()
    try:
        with pytest.raises(RedisLost, match="message-stream:c: no answer within"):
            await rig.find(0)
    finally:
        rig.server.thaw()


def test_ids_keep_their_order_as_numbers() -> None:
    ids = [b"0-1", b"1-0", b"1-18446744073709551615", b"2-0", b"18446744073709551615-18446744073709551615"]
    assert sorted(ids, key=id_number) == ids
    assert [id_text(id_number(each)) for each in ids] == [f"({each.decode()}" for each in ids]
    assert id_text(0) == "-"
