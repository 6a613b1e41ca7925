"""The link, against every server found: it comes up, notices every kind of end, and comes up again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from lemegeton.errors import RedisLost, RedisRefused
from lemegeton.events import Event, RedisDown, RedisUp
from lemegeton.logs import redis_link
from lemegeton.logs.redis_link import Link, Script, pairs
from lemegeton.redis_wire import dial
from lemegeton.seams import Heard, Wire
from lemegeton.testing.proxy import Proxy
from lemegeton.testing.servers import Found, RedisServer

WAIT_S = 15.0
CHECK_S = 0.05
ADD = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")


class Watched:
    """A link, the changes it told of, and what it observed."""

    def __init__(self, url: str) -> None:
        self.events: list[Event] = []
        self.begun = 0
        self.link = Link("shared", url, self._dial, self.events.append)
        self.link.again_s = (0.01, 0.05)
        self.changes: list[bool] = []
        self._came = asyncio.Event()
        self.link.on_change(self._on_change)

    def _on_change(self, up: bool) -> None:
        self.changes.append(up)
        self._came.set()

    async def _dial(self, url: str, heard: Heard | None, lost: Callable[[str], None], /) -> Wire:
        self.begun += heard is not None  # the first of two connections
        return await dial(url, heard, lost)

    async def until(self, *changes: bool) -> None:
        """Wait for the changes so far to be these."""
        async with asyncio.timeout(WAIT_S):
            while len(self.changes) < len(changes):
                self._came.clear()
                await self._came.wait()
        assert self.changes[: len(changes)] == list(changes)

    async def tried(self, tries: int) -> None:
        """Wait until so many attempts have ended."""
        async with asyncio.timeout(WAIT_S):
            while self.begun <= tries:
                await asyncio.sleep(0.001)


@asynccontextmanager
async def running(url: str) -> AsyncIterator[Watched]:
    watched = Watched(url)
    task = asyncio.ensure_future(watched.link.run())
    try:
        yield watched
    finally:
        watched.link.close()
        async with asyncio.timeout(WAIT_S):
            await task


@pytest.fixture(autouse=True)
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "CHECK_S", CHECK_S)


@pytest.fixture(params=["unix-2", "unix-3", "redis-2", "redis-3"])
def url(request: pytest.FixtureRequest, server: RedisServer) -> str:
    scheme, protocol = request.param.split("-")
    return server.url(scheme, protocol=protocol)


class Ear:
    """An ear."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

    def __call__(self, channel: str, data: bytes) -> None:
        self.queue.put_nowait((channel, data))

    async def next(self) -> tuple[str, bytes]:
        async with asyncio.timeout(WAIT_S):
            return await self.queue.get()


# Life


async def test_it_comes_up_answers_and_goes(url: str) -> None:
    async with running(url) as watched:
        await watched.until(True)
        assert watched.link.up
        await watched.link.tried()
        assert await watched.link.call("INCR", "n") == 1
    assert watched.changes == [True, False]
    assert watched.events == [RedisUp("shared")], "an end that is wanted is no event"
    assert (watched.link.up, watched.link.cause) == (False, "closed")


async def test_while_it_is_down_nothing_is_sent_and_it_says_so(url: str) -> None:
    watched = Watched(url)
    with pytest.raises(RedisLost, match="not tried yet") as raised:
        await watched.link.call("PING")
    assert raised.value.definite is True
    with pytest.raises(RedisLost):
        await watched.link.script(ADD, ["n"], 1)


async def test_a_server_that_comes_later_is_found(own_server: RedisServer) -> None:
    own_server.stop()
    async with running(own_server.url("redis")) as watched:
        await watched.link.tried()
        await watched.tried(3)
        assert "cannot connect" in watched.link.cause
        assert watched.changes == []
        own_server.start()
        await watched.until(True)


@pytest.mark.parametrize("empty", [True, False])
async def test_it_is_up_again_after_a_restart(own_server: RedisServer, empty: bool) -> None:
    async with running(own_server.url()) as watched:
        await watched.until(True)
        await watched.link.call("SET", "k", 1)
        own_server.restart(empty=empty)
        await watched.until(True, False, True)
        assert [type(event) for event in watched.events] == [RedisUp, RedisDown, RedisUp]
        assert await watched.link.call("GET", "k") == (None if empty else b"1")


async def test_an_answer_under_way_when_it_ends_may_have_happened(own_server: RedisServer) -> None:
    async with running(own_server.url()) as watched:
        await watched.until(True)
        own_server.freeze()
        answer = asyncio.ensure_future(watched.link.script(ADD, ["n"], 1))
        await asyncio.sleep(0)
        own_server.kill()
        with pytest.raises(RedisLost) as raised:
            await answer
        assert raised.value.definite is False
        await watched.until(True, False)
        own_server.start()
        await watched.until(True, False, True)


async def test_a_frozen_server_is_noticed_within_some_checks_and_taken_again(own_server: RedisServer) -> None:
    loop = asyncio.get_running_loop()
    async with running(own_server.url("redis")) as watched:
        await watched.until(True)
        began = loop.time()
        own_server.freeze()
        answer = asyncio.ensure_future(watched.link.call("INCR", "n"))  # type: ignore[arg-type]
        await watched.until(True, False)
        assert loop.time() - began < 20 * CHECK_S
        assert "no answer for 3 checks" in watched.link.cause
        with pytest.raises(RedisLost) as raised:
            await answer
        assert raised.value.definite is False
        own_server.thaw()
        await watched.until(True, False, True)


@pytest.mark.parametrize("way", ["to_server", "to_client", "both"])
async def test_a_black_hole_is_noticed_and_left(server: RedisServer, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Proxy(server.path) as proxy, running(proxy.url) as watched:
        await watched.until(True)
        if way == "both":
            proxy.swallow()
        else:
            getattr(proxy, way).shut()
        await watched.until(True, False)
        await watched.tried(2)
        assert "no answer within" in watched.link.cause, "it is accepted, and that is not enough"
        proxy.heal()
        await watched.until(True, False, True)


async def test_a_slow_server_that_answers_stays(server: RedisServer) -> None:
    server.cli("SET", "large", b"x" * 20_000)
    async with Proxy(server.path) as proxy, running(proxy.url) as watched:
        await watched.until(True)
        proxy.to_client.bytes_s = 40_000  # half a second for what comes: many checks without a whole answer
        assert len(await watched.link.call("GET", "large")) == 20_000
        assert watched.changes == [True]


async def test_a_busy_one_stays(server: RedisServer) -> None:
    loop = asyncio.get_running_loop()
    async with running(server.url()) as watched:
        await watched.until(True)
        end = loop.time() + 10 * CHECK_S
        under_way: list[Any] = [watched.link.call("INCR", "n") for _ in range(50)]
        while loop.time() < end:  # at every moment something is not answered yet
            under_way.append(watched.link.call("INCR", "n"))
            await under_way.pop(0)
        await asyncio.gather(*under_way)
        assert watched.changes == [True]


async def test_connections_that_are_killed_are_replaced_both(own_server: RedisServer) -> None:
    async with running(own_server.url()) as watched:
        changes = [True]
        for kind in ("normal", "pubsub"):
            await watched.until(*changes)
            heard = Ear()
            watched.link.hear("a", heard)
            await told(own_server, "a", heard)
            own_server.cli("CLIENT", "KILL", "TYPE", kind)
            changes += [False, True]
        await watched.until(*changes)


async def test_a_server_that_always_ends_it_is_not_asked_without_a_pause(server: RedisServer) -> None:
    async with Proxy(server.path) as proxy, running(proxy.url) as watched:
        await watched.until(True)
        loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        watched.link.on_change(lambda up: loop.call_soon(proxy.kill) and None)
        proxy.kill()
        await watched.tried(20)
        assert loop.time() - began > 15 * 0.05, "as often as again_s says at the most"


async def test_a_wrong_password_is_no_link_and_is_told(found: Found) -> None:
    with RedisServer(found.binary, password="canary") as server:
        for wrong in (server.url(password="wrong"), server.url(password=""), "nonsense://canary"):
            async with running(wrong) as watched:
                await watched.tried(2)
                assert watched.changes == []
                assert "redis_url" in watched.link.cause
                assert "canary" not in watched.link.cause


async def test_who_may_not_hear_has_no_link(found: Found) -> None:
    with RedisServer(found.binary, users=["deaf on >x ~* resetchannels &other +@all"]) as server:
        watched = Watched(server.url(user="deaf", password="x"))
        watched.link.hear("a", Ear())
        task = asyncio.ensure_future(watched.link.run())
        await watched.tried(2)
        assert "NOPERM" in watched.link.cause
        assert watched.changes == []
        watched.link.close()
        await task


async def test_a_run_that_is_cancelled_leaves_no_connection(own_server: RedisServer) -> None:
    watched = Watched(own_server.url())
    task = asyncio.ensure_future(watched.link.run())
    await watched.until(True)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(RedisLost):
        await watched.link.call("PING")
    async with asyncio.timeout(WAIT_S):
        while b"cmd=" in (rest := own_server.cli("CLIENT", "LIST").strip()) and rest.count(b"\n"):
            await asyncio.sleep(0.001)


async def test_who_does_not_want_to_be_told_any_more_is_not(server: RedisServer) -> None:
    watched = Watched(server.url())
    more: list[bool] = []
    end = watched.link.on_change(more.append)
    end()
    end()
    task = asyncio.ensure_future(watched.link.run())
    await watched.until(True)
    watched.link.close()
    await task
    assert more == []


# Scripts


async def test_a_server_that_does_not_know_a_script_is_given_it(url: str, server: RedisServer) -> None:
    async with running(url) as watched:
        await watched.until(True)
        assert [await watched.link.script(ADD, ["n"], 2) for _ in range(2)] == [2, 4]
        server.cli("SCRIPT", "FLUSH")
        assert await watched.link.script(ADD, ["n"], 2) == 6
        assert server.cli("EVALSHA", ADD.sha, 1, "n", 1) == 7


async def test_an_error_of_a_script_is_not_tried_again(url: str, server: RedisServer) -> None:
    server.cli("SET", "n", "text")
    async with running(url) as watched:
        await watched.until(True)
        with pytest.raises(RedisRefused, match="not an integer"):
            await watched.link.script(ADD, ["n"], 2)


async def test_a_server_without_scripts_refuses_them_by_name(found: Found) -> None:
    with RedisServer(found.binary, settings={"rename-command EVALSHA": '""'}) as server:
        async with running(server.url()) as watched:
            await watched.until(True)
            with pytest.raises(RedisRefused, match=r"unknown command .EVALSHA") as raised:
                await watched.link.script(ADD, ["n"], 2)
            assert raised.value.code == "ERR"


# Hearing


async def told(server: RedisServer, channel: str, heard: Ear) -> None:
    """Publish until it is heard: the answer to a subscription is not waited for."""
    async with asyncio.timeout(WAIT_S):
        while not server.cli("PUBLISH", channel, "told"):
            await asyncio.sleep(0.001)
    assert await heard.next() == (channel, b"told")


async def test_channels_and_patterns_are_heard(url: str, server: RedisServer) -> None:
    async with running(url) as watched:
        await watched.until(True)
        one, other, glob = Ear(), Ear(), Ear()
        end = watched.link.hear("agent-bob", one)
        watched.link.hear("agent-bob", other)
        await told(server, "agent-bob", one)
        assert await other.next() == ("agent-bob", b"told")
        end_glob = watched.link.hear_pattern("system:*", glob)
        await told(server, "system:x", glob)
        end()
        end()
        server.cli("PUBLISH", "agent-bob", "2")
        assert await other.next() == ("agent-bob", b"2")
        assert one.queue.empty()
        end_glob()
        async with asyncio.timeout(WAIT_S):
            while server.cli("PUBLISH", "system:x", "3"):
                await asyncio.sleep(0.001)


async def test_what_is_heard_is_heard_over_restarts(own_server: RedisServer) -> None:
    watched = Watched(own_server.url())
    before, glob, ended = Ear(), Ear(), Ear()
    watched.link.hear("a", before)
    watched.link.hear_pattern("b*", glob)
    watched.link.hear("a", ended)()
    task = asyncio.ensure_future(watched.link.run())
    await watched.until(True)
    await told(own_server, "a", before)
    own_server.restart(empty=True)
    await watched.until(True, False, True)
    await told(own_server, "a", before)
    await told(own_server, "bc", glob)
    assert ended.queue.empty()
    watched.link.close()
    await task


async def test_a_channel_that_was_left_can_be_heard_again(server: RedisServer) -> None:
    async with running(server.url()) as watched:
        await watched.until(True)
        first, second = Ear(), Ear()
        end = watched.link.hear("a", first)
        await told(server, "a", first)
        end()
        watched.link.hear("a", second)
        end()
        await told(server, "a", second)
        assert first.queue.empty()


def test_a_hash_is_one_in_either_version_of_the_protocol() -> None:
    assert pairs([b"a", b"1", b"b", b"2"]) == pairs({b"a": b"1", b"b": b"2"}) == {b"a": b"1", b"b": b"2"}
    assert pairs([]) == {}
