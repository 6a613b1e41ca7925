"""The backlog: publishers are held while the shared Redis lacks as many records as are allowed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lemegeton.backlog import Backlog
from lemegeton.errors import BusFull
from lemegeton.events import LimitReached
from lemegeton.lane import Lane
from lemegeton.testing.servers import RedisServer
from test_delivery import Got
from test_redis_side import WAIT_S, fragile, quick, send, site, until  # noqa: F401  (fixtures)

LANE, OTHER = Lane("c", "a~s~0", 1, 1), Lane("d", "a~s~0", 1, 1)


def test_what_is_written_and_not_accepted_counts_once() -> None:
    told: list[str] = []
    backlog = Backlog(3, told.append)
    backlog.written(LANE, 10, 8)
    assert (backlog.count, told) == (2, [])
    backlog.written(OTHER, 1, 0)
    assert backlog.count == 3
    assert "lacks 3 records (max_pending_messages 3)" in told[0]
    backlog.written(OTHER, 2, 0)
    assert len(told) == 1
    backlog.accepted(LANE, 9)
    assert (backlog.count, told[1:]) == (3, [])
    backlog.accepted(LANE, 50)
    backlog.accepted(LANE, 9)
    backlog.accepted(Lane("e", "a~s~0", 1, 1), 9)
    assert (backlog.count, told[1:]) == (2, [""])


def test_a_lane_that_is_relayed_from_elsewhere_holds_nobody() -> None:
    told: list[str] = []
    backlog = Backlog(3, told.append)
    backlog.written(LANE, 3, 0)
    backlog.written(OTHER, 1, 0)
    backlog.only([OTHER])
    assert (backlog.count, told[1:]) == (1, [""])


async def test_publishers_wait_while_too_much_waits_for_the_shared_redis(
    fragile: RedisServer, tmp_path: Path  # noqa: F811
) -> None:
    got, near = Got(), Got()
    fragile.kill()
    async with site(tmp_path / "a", fragile, max_pending_messages=5, publish_timeout=WAIT_S) as a:
        await a.bus.subscribe("c", near, durable="near")
        await send(a, *range(5))
        waiting = asyncio.ensure_future(send(a, *range(5, 20)))
        await until(lambda: a.of(LimitReached))
        await near.reach(5)
        assert (len(near), waiting.done(), a.bus.stats().waiting_publishers) == (5, False, 1)
        assert "max_pending_messages" in a.of(LimitReached)[0].holder
        await asyncio.to_thread(fragile.start)
        await asyncio.wait_for(waiting, WAIT_S)
        async with site(tmp_path / "b", fragile, "bob") as b:
            await b.bus.subscribe("c", got, durable="d", start="earliest")
            await got.reach(20)
    assert got.payloads == list(range(20))


async def test_publishers_are_refused_where_that_is_set_and_what_was_taken_arrives(
    fragile: RedisServer, tmp_path: Path  # noqa: F811
) -> None:
    got = Got()
    fragile.kill()
    async with site(tmp_path / "a", fragile, max_pending_messages=3, on_full="raise") as a:
        await send(a, *range(3))
        with pytest.raises(BusFull, match="max_pending_messages 3"):
            await send(a, 3)
        await asyncio.to_thread(fragile.start)
        await a.relayed()
        await send(a, 4)
        async with site(tmp_path / "b", fragile, "bob") as b:
            await b.bus.subscribe("c", got, durable="d", start="earliest")
            await got.reach(4)
    assert got.payloads == [0, 1, 2, 4]
