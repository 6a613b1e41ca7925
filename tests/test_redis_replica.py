"""The replica: what a Redis takes of a lane, what it tells those who only listen, and what it is told only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from zlib import crc32

import pytest

from lemegeton.lane import Lane
from lemegeton.logs.base import SKIP, Answer, Item, Mark, Marker
from lemegeton.logs.redis_entries import Keys
from lemegeton.logs.redis_link import Link
from lemegeton.logs.redis_replica import HARD_LENGTH, PubSubReplica, RedisReplica
from lemegeton.testing.servers import RedisServer
from test_delivery import record
from test_redis_link import running
from test_redis_side import redis, shared_server, until

__all__ = ["redis", "shared_server"]

KEYS = Keys("ns")
LANE = Lane("c", "a~far~0", 1, 1)


def items(first: int, last: int) -> list[Item]:
    return [Item(seq, seq, record(LANE, seq, seq)) for seq in range(first, last + 1)]


def crc(item: Item) -> int:
    assert isinstance(item.record, bytes)
    return crc32(item.record)


@pytest.fixture
async def link(redis: RedisServer) -> AsyncIterator[Link]:
    async with running(redis.url()) as watched:
        await watched.until(True)
        yield watched.link


async def ears(link: Link, redis: RedisServer) -> tuple[list[bytes], list[bytes]]:
    """What is heard on the channel and on the control channel, from now on."""
    heard: list[bytes] = []
    control: list[bytes] = []
    link.hear(KEYS.channel("c"), lambda _, data: heard.append(data))
    link.hear(KEYS.control, lambda _, data: control.append(data))
    await until(lambda: redis.cli("PUBSUB", "NUMSUB", KEYS.control)[1] == 1)
    return heard, control


async def test_the_answer_is_the_mark_and_a_hole_is_a_gap(link: Link) -> None:
    replica = RedisReplica(link, KEYS, 100, lambda: 1)
    some = items(1, 3)
    assert await replica.accept(LANE, []) == Answer(Mark(0, 0))
    assert await replica.accept(LANE, some) == Answer(Mark(3, crc(some[2])))
    assert await replica.accept(LANE, items(5, 5)) == Answer(Mark(3, crc(some[2])), gap=True)
    assert await replica.accept(LANE, [Item(4, 9, Marker(SKIP, 4, 9))]) == Answer(Mark(9, 0))


async def test_a_channel_is_announced_with_its_first_record_and_not_again(link: Link, redis: RedisServer) -> None:
    heard, control = await ears(link, redis)
    replica = RedisReplica(link, KEYS, 100, lambda: 1)
    await replica.accept(LANE, [])
    assert not redis.cli("EXISTS", KEYS.channels)
    await replica.accept(LANE, items(1, 1))
    await replica.accept(LANE, items(2, 2))
    await RedisReplica(link, KEYS, 100, lambda: 1).accept(LANE, items(3, 3))
    await until(lambda: len(heard) == 3)
    assert redis.cli("SMEMBERS", KEYS.channels) == [b"c"]
    assert control == [b"n c"]


async def test_what_was_told_is_filled_in_silently_and_readers_are_rung(link: Link, redis: RedisServer) -> None:
    heard, control = await ears(link, redis)
    replica = RedisReplica(link, KEYS, 100, lambda: 1)
    await replica.accept(LANE, items(1, 3), told=2)
    await until(lambda: heard)
    await until(lambda: control.count(b"n c") == 2)
    assert heard == [record(LANE, 3, 3)]


async def test_after_a_loss_of_everything_the_channel_is_in_the_set_again(redis: RedisServer) -> None:
    async with running(redis.url()) as watched:
        await watched.until(True)
        replica = RedisReplica(watched.link, KEYS, 100, lambda: 1)
        await replica.accept(LANE, items(1, 1))
        redis.cli("FLUSHALL")
        redis.cli("CLIENT", "KILL", "TYPE", "normal")
        await watched.until(True, False, True)
        await replica.accept(LANE, items(1, 1))
        assert redis.cli("SMEMBERS", KEYS.channels) == [b"c"]


async def test_a_stream_is_cut_whoever_has_not_read_it(link: Link, redis: RedisServer) -> None:
    replica = RedisReplica(link, KEYS, 20, lambda: 1)
    for first in range(1, 2000, 100):
        await replica.accept(LANE, items(first, first + 99))
    assert 20 * HARD_LENGTH <= redis.cli("XLEN", KEYS.stream("c")) < 20 * HARD_LENGTH + 150


async def test_a_redis_that_is_only_told_keeps_nothing_and_hears_each_record_once(link: Link, redis: RedisServer) -> None:
    heard, _ = await ears(link, redis)
    replica = PubSubReplica(link, KEYS)
    some = items(1, 3)
    assert await replica.accept(LANE, [], told=7) == Answer(Mark(7, 0))
    assert await replica.accept(LANE, some, told=1) == Answer(Mark(3, crc(some[2])))
    assert await replica.accept(LANE, [Item(4, 5, Marker(SKIP, 4, 5))], told=3) == Answer(Mark(5, 0))
    await until(lambda: len(heard) == 2)
    await asyncio.sleep(0)
    assert heard == [record(LANE, 2, 2), record(LANE, 3, 3)]
    assert redis.cli("KEYS", "*") == []
