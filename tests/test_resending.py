"""Sending again: every request of ours is answered with what the log has, or with a marker for what it does not have."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from lemegeton.errors import PositionLost
from lemegeton.lane import Lane
from lemegeton.logs.base import GONE, SKIP, Batch, Cursor, Item, Marker
from lemegeton.logs.memory import MemoryLog, MemoryReplica
from lemegeton.logs.redis_entries import Keys, entry_of, lane_field
from lemegeton.logs.redis_link import Link
from lemegeton.logs.redis_replica import RedisReplica
from lemegeton.logs.redis_scan import found_in
from lemegeton.relay import items_of
from lemegeton.resending import BATCH_BYTES, CHUNK, Resending, taken_of
from lemegeton.testing.servers import RedisServer
from test_delivery import body
from test_redis_link import running
from test_redis_side import redis, shared_server

__all__ = ["redis", "shared_server"]

KEYS = Keys()
NACKS = KEYS.nacks("c")


class Rig:
    """A log of the site ``memory``, and a Redis where others ask for it."""

    def __init__(self, server: RedisServer, link: Link, log: MemoryLog) -> None:
        self.server = server
        self.link = link
        self.log = log
        self.now_ms = 1
        self.resending = Resending(log, link, KEYS, "memory", lambda: self.now_ms)

    async def write(self, count: int, **fields: Any) -> Lane:
        for n in range(count):
            lane = (await self.log.append("c", body(n, **fields))).lane
        return lane

    def ask(self, field: str | bytes, text: str | bytes) -> None:
        self.server.cli("HSET", NACKS, field, text)

    def sent(self, site: str = "far") -> list[Any]:
        """What was sent to a site: a sequence for a record, or the marker."""
        entries = [entry_of(raw) for raw in self.server.cli("XRANGE", KEYS.resend("c", site), "-", "+")]
        return [found if isinstance(found := found_in(entry), Marker) else entry.head.seq for entry in entries]


@pytest.fixture
async def rig(redis: RedisServer) -> AsyncIterator[Rig]:
    async with running(redis.url()) as watched:
        await watched.until(True)
        yield Rig(redis, watched.link, MemoryLog("a"))


async def test_a_request_is_answered_once_and_whoever_asked_is_rung(rig: Rig) -> None:
    heard: list[bytes] = []
    rig.link.hear(KEYS.control, lambda _, data: heard.append(data))
    lane = await rig.write(9)
    rig.ask(f"{lane_field(lane)}|far", "3-5")
    rig.ask(f"{lane_field(lane)}|other", "9-9")
    await rig.resending.answer("c")
    assert (rig.sent(), rig.sent("other")) == ([3, 4, 5], [9])
    assert not rig.server.cli("EXISTS", NACKS)
    await rig.resending.answer("c")
    assert rig.sent() == [3, 4, 5]
    assert 0 < rig.server.cli("TTL", KEYS.resend("c", "far")) <= 600
    assert set(heard) <= {b"n c"}


async def test_what_is_asked_of_another_site_is_left_to_that(rig: Rig) -> None:
    rig.ask("x~elsewhere~0.1.1|far", "1-2")
    await rig.resending.answer("c")
    assert rig.server.cli("HLEN", NACKS) == 1
    assert rig.sent() == []


@pytest.mark.parametrize("text", [b"", b"1", b"-", b"2-1", b"0-1", b"x-y", b"\xff", b"9" * 5000 + b"-1", b"1-" + b"9" * 17])
async def test_a_request_of_ours_that_asks_for_nothing_there_can_be_goes_without_an_answer(text: bytes, rig: Rig) -> None:
    lane = await rig.write(3)
    rig.ask(f"{lane_field(lane)}|far", text)
    rig.ask(f"{lane_field(lane)}|", "1-2")
    rig.ask(b"\xff|far", "1-2")
    await rig.resending.answer("c")
    assert rig.sent() == []
    assert rig.server.cli("HKEYS", NACKS) == [b"\xff|far"]


async def test_a_long_request_is_answered_with_a_batch(rig: Rig) -> None:
    lane = await rig.write(3 * BATCH_BYTES // 100_000, headers=None)
    big = (await rig.log.append("c", body("x" * 100_000))).seq
    for _ in range(9):
        await rig.log.append("c", body("x" * 100_000))
    rig.ask(f"{lane_field(lane)}|far", f"{big}-{big + 9}")
    await rig.resending.answer("c")
    assert rig.sent() == [big, big + 1, big + 2, big + 3, big + 4]


async def test_what_expired_meanwhile_is_answered_by_a_skip_marker(rig: Rig) -> None:
    lane = await rig.write(1)
    await rig.write(2, ttl=10)
    await rig.write(1)
    rig.now_ms = 1000
    rig.ask(f"{lane_field(lane)}|far", "2-4")
    await rig.resending.answer("c")
    assert rig.sent() == [Marker(SKIP, 2, 3), 4]


async def test_what_is_trimmed_is_gone_and_the_rest_is_not(rig: Rig) -> None:
    lane = await rig.write(9)
    await rig.log.trim(lane, 4)
    rig.ask(f"{lane_field(lane)}|far", "2-6")
    rig.ask(f"{lane_field(lane)}|other", "2-3")
    await rig.resending.answer("c")
    assert (rig.sent(), rig.sent("other")) == ([Marker(GONE, 2, 4)], [Marker(GONE, 2, 3)])


async def test_a_lane_that_is_not_here_and_what_is_above_its_end_are_gone(rig: Rig) -> None:
    lane = await rig.write(3)
    rig.ask(f"{lane_field(lane._replace(inc=7))}|far", "1-2")
    rig.ask(f"{lane_field(lane)}|other", "4-5")
    await rig.resending.answer("c")
    assert (rig.sent(), rig.sent("other")) == ([Marker(GONE, 1, 2)], [Marker(GONE, 4, 5)])


async def test_a_lane_that_goes_while_it_is_read_is_gone(rig: Rig) -> None:
    class Going(MemoryLog):
        async def read(self, lane: Lane, cursor: Cursor, limit: int = 2**18) -> Batch:
            raise PositionLost("gone", first=1, last=0)

    rig.log = Going("a")
    rig.resending = Resending(rig.log, rig.link, KEYS, "memory", lambda: 1)
    lane = await rig.write(3)
    rig.ask(f"{lane_field(lane)}|far", "2-3")
    await rig.resending.answer("c")
    assert rig.sent() == [Marker(GONE, 2, 2)]


# ------------------------------------------------------------------------------------------------ what both branches have


async def test_what_a_redis_holds_as_our_log_has_it_is_known_up_to_the_last_such_record(rig: Rig) -> None:
    replica = RedisReplica(rig.link, KEYS, 1000, lambda: 1)
    lane = await rig.write(CHUNK + 50)
    records = (await rig.log.read(lane, (0, 0))).records
    assert await taken_of(rig.log, rig.link, KEYS, lane) == 0
    items = items_of(lane, 1, records, 1)
    await replica.accept(lane, items[: CHUNK + 20])
    rig.server.cli("XADD", KEYS.stream("c"), "*", "garbage", "x")
    await replica.accept(lane._replace(inc=2), [Item(1, 1, b'{"origin":"%b","inc":2,"seq":1}' % lane.origin.encode())])
    assert await taken_of(rig.log, rig.link, KEYS, lane) == CHUNK + 20
    other = [Item(seq, seq, bytes(item.record).replace(b"tester", b"nobody")) for seq, item in enumerate(items, 1)]  # type: ignore[arg-type]
    await replica.accept(lane, other[CHUNK + 20 :])
    assert await taken_of(rig.log, rig.link, KEYS, lane) == CHUNK + 20


async def test_a_memory_replica_and_a_redis_answer_alike(rig: Rig) -> None:
    """What the relay is tested with is what it meets."""
    lane = await rig.write(6)
    items = items_of(lane, 1, (await rig.log.read(lane, (0, 0))).records, 1)
    real, model = RedisReplica(rig.link, KEYS, 1000, lambda: 1), MemoryReplica()
    for some, base in (([], False), (items[1:2], False), (items[1:3], True), (items[:3], False), (items[4:], False),
                       (items[2:], False), ([], False), ([Item(7, 9, Marker(SKIP, 7, 9))], False), ([], False)):
        assert await real.accept(lane, some, base=base) == await model.accept(lane, some, base=base)
