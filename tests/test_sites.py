"""Two sites at one Redis: what a durable subscription is owed of the other one, whatever the Redis kept of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from lemegeton import Message, MessageBus
from lemegeton.events import Event
from lemegeton.testing.proxy import Proxy
from lemegeton.testing.servers import RedisServer

WAIT_S = 15.0
STREAM = "message-stream:hub"


@pytest.fixture
async def proxy(server: RedisServer, tmp_path: Path) -> AsyncIterator[Proxy]:
    async with Proxy(server.path, path=str(tmp_path / "p")) as proxy:
        yield proxy


class Far:
    """A bus on the far site, behind a proxy; what its durable subscription got, over several lives."""

    def __init__(self, home: Path, url: str) -> None:
        self.got: list[int] = []
        self.events: list[Event] = []
        self._home = str(home)
        self._url = url

    async def begin(self) -> MessageBus:
        bus = MessageBus("far", home=self._home, redis_url=self._url, local_redis="off")
        await bus.start()
        bus.on("gap", self.events.append)
        await bus.subscribe("hub", self._handle, durable="d", start="earliest")
        return bus

    async def _handle(self, message: Message) -> None:
        self.got.append(message.payload)


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not what():
            await asyncio.sleep(0.01)


async def publish(bus: MessageBus, numbers: range) -> None:
    for number in numbers:
        await bus.publish("hub", number)


def cut(proxy: Proxy) -> None:
    proxy.refuse()
    proxy.kill()


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_lane_that_began_and_was_trimmed_while_a_subscription_was_cut_off_is_owed_from_its_beginning(
    server: RedisServer, proxy: Proxy, tmp_path: Path, restarted: bool
) -> None:
    far = Far(tmp_path / "far", proxy.url)
    bus = await far.begin()
    async with MessageBus("near", home=str(tmp_path / "near"), redis_url=server.url(), local_redis="off") as near:
        if restarted:
            await bus.stop()
        cut(proxy)
        await publish(near, range(20))
        await until(lambda: server.cli("XLEN", STREAM) == 20)
        server.cli("XTRIM", STREAM, "MAXLEN", 1)
        proxy.heal()
        if restarted:
            bus = await far.begin()
        await until(lambda: len(far.got) >= 20)
        assert far.got == list(range(20))
        assert far.events == []
    await bus.stop()


async def test_a_subscription_takes_a_lane_that_was_there_before_it_from_the_oldest_in_the_stream(
    server: RedisServer, proxy: Proxy, tmp_path: Path
) -> None:
    async with MessageBus("near", home=str(tmp_path / "near"), redis_url=server.url(), local_redis="off") as near:
        await publish(near, range(20))
        await until(lambda: server.cli("XLEN", STREAM) == 20)
        server.cli("XTRIM", STREAM, "MAXLEN", 5)
        far = Far(tmp_path / "far", proxy.url)
        bus = await far.begin()
        await publish(near, range(20, 25))
        await until(lambda: far.got[-1:] == [24])
        assert far.got == list(range(15, 25))
    await bus.stop()


async def test_a_subscription_begins_beside_a_server_that_refuses_and_hears_its_own_site_meanwhile(
    server: RedisServer, proxy: Proxy, tmp_path: Path
) -> None:
    far = Far(tmp_path / "far", proxy.url)
    server.cli("CONFIG", "SET", "maxmemory", "1")
    try:
        bus = await far.begin()
        await publish(bus, range(3))
        await until(lambda: far.got == [0, 1, 2])
    finally:
        server.cli("CONFIG", "SET", "maxmemory", "0")
    async with MessageBus("near", home=str(tmp_path / "near"), redis_url=server.url(), local_redis="off") as near:
        await publish(near, range(3, 6))
        await until(lambda: far.got == [0, 1, 2, 3, 4, 5])
        await until(lambda: server.cli("HLEN", "subscriptions") == 1)
    await bus.stop()
