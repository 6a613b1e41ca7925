"""Request and reply on real files and through a real server: kill -9 of either side, and a Redis that comes and goes."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from lemegeton import BaseAgent, Hub, Message, MessageBus, NoReply, RequestFailed
from lemegeton.assignment import Assignment
from lemegeton.events import Event
from lemegeton.testing.proxy import Proxy
from lemegeton.testing.servers import RedisServer
from test_bus import child, end, line

WAIT_S = 15.0
SERVE = """
    async def handler(message):
        if message.payload < 0:
            say("at", message.payload)
            await asyncio.Event().wait()
        await message.reply(message.payload * 2)
    await bus.subscribe("c", handler, durable="d", concurrency=1)
    say("serving")
    await bus.serve()
"""
ASK = """
    say("asking", os.getpid())
    reply = await bus.request("c", sys.argv[2], id=sys.argv[3], timeout=10.0)
    say(reply.payload)
"""


@pytest.fixture
async def proxy(server: RedisServer, tmp_path: Path) -> AsyncIterator[Proxy]:
    async with Proxy(server.path, path=str(tmp_path / "p")) as proxy:
        yield proxy


def cut(proxy: Proxy) -> None:
    proxy.refuse()
    proxy.kill()


async def until(what: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not what():
            await asyncio.sleep(0.01)


class Replier:
    """A handler that counts how often it ran for each payload."""

    def __init__(self) -> None:
        self.runs: Counter[Any] = Counter()
        self.cancelled: list[Any] = []
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, message: Message) -> None:
        self.runs[message.payload] += 1
        await message.progress("begun")
        waiting = asyncio.ensure_future(message.until_cancelled())
        going = asyncio.ensure_future(self.go.wait())
        try:
            await asyncio.wait((waiting, going), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            going.cancel()
        if message.cancelled:
            self.cancelled.append(message.payload)
        else:
            await message.reply([message.payload, self.runs[message.payload]])


def far_bus(home: Path, name: str, url: str) -> MessageBus:
    return MessageBus(name, home=str(home), redis_url=url, local_redis="off", mode_cooldown=0.1, mode_probe_interval=0.1)


# ------------------------------------------------------------------------------------------------ one site


async def test_requests_that_are_open_when_their_responder_is_killed_are_answered_by_the_next_one(tmp_path: Path) -> None:
    process = child(SERVE, tmp_path / "home")
    assert await line(process) == "serving"
    async with MessageBus("near", home=str(tmp_path / "home")) as near:
        assert (await near.request("c", 1)).payload == 2
        blocking = asyncio.ensure_future(near.request("c", -1, timeout=2.0))
        assert await line(process) == "at -1"
        open_now = [asyncio.ensure_future(near.request("c", number)) for number in range(100)]
        await until(lambda: near.stats().published >= 102)
        process.kill()
        await end(process)
        with pytest.raises(NoReply):
            await blocking
        process = child(SERVE, tmp_path / "home")
        found = await asyncio.gather(*open_now)
        assert [reply.payload for reply in found] == [number * 2 for number in range(100)]
        process.terminate()
        assert await end(process) == 0


async def test_a_requester_that_was_killed_asks_again_with_its_id_and_has_the_reply(tmp_path: Path) -> None:
    replier = Replier()
    replier.go.clear()
    async with MessageBus("near", home=str(tmp_path / "home")) as near:
        await near.subscribe("c", replier, durable="d")
        process = child(ASK, tmp_path / "home", "x", "order-1")
        assert (await line(process)).startswith("asking")
        await until(lambda: replier.runs["x"])
        process.kill()
        await end(process)
        replier.go.set()
        for _ in range(2):
            process = child(ASK, tmp_path / "home", "x", "order-1")
            assert (await line(process)).startswith("asking")
            assert await line(process) == "['x', 1]"
            assert await line(process) == "ended"
            assert await end(process) == 0
        assert replier.runs == {"x": 1}


async def test_processes_of_one_name_one_after_the_other_share_one_inbox(tmp_path: Path) -> None:
    async def reply(message: Message) -> None:
        await message.reply(message.payload)

    async with MessageBus("near", home=str(tmp_path / "home")) as near:
        await near.subscribe("c", reply)
        seen: list[Event] = []
        for number in range(5):
            async with MessageBus("asker", home=str(tmp_path / "home")) as asker:
                asker.on("reply_ignored", seen.append)
                assert (await asker.request("c", number)).payload == number
        inboxes = [name for name in os.listdir(tmp_path / "home/messages") if name.startswith("reply")]
        assert len(inboxes) == 1
        assert seen == []


async def test_two_live_processes_of_one_name_have_each_an_inbox(tmp_path: Path) -> None:
    async def reply(message: Message) -> None:
        await message.reply(message.payload)

    home = str(tmp_path / "home")
    async with MessageBus("near", home=home) as near, MessageBus("x", home=home) as one, MessageBus("x", home=home) as two:
        await near.subscribe("c", reply)
        first, second = await asyncio.gather(one.request("c", 1), two.request("c", 2))
        assert (first.payload, second.payload) == (1, 2)
        assert first.channel != second.channel


class Doubler(BaseAgent):
    async def work(self, assignment: Assignment) -> int:
        if assignment.payload < 0:
            raise ValueError("too small")
        return int(assignment.payload) * 2

    async def on_message(self, message: Message) -> None:
        await message.reply("hello")


async def test_a_hub_answers_for_its_agents_and_an_agent_for_itself(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    async with Hub(home=home), Doubler("bob", home=home), MessageBus("near", home=home) as near:
        reply = await near.request("hub", {"payload": 4}, type="assign", timeout=WAIT_S)
        assert (reply.payload["result"], reply.payload["agent"]) == (8, "bob")
        with pytest.raises(RequestFailed, match="invalid: ValueError: too small") as caught:
            await near.request("hub", {"payload": -4}, type="assign", timeout=WAIT_S)
        assert caught.value.category == "invalid"
        with pytest.raises(RequestFailed, match="no agent of this name"):
            await near.request("hub", {"payload": 4, "agent": "nobody"}, type="assign", timeout=WAIT_S)
        assert (await near.request("agent-bob", None, timeout=WAIT_S)).payload == "hello"


# ------------------------------------------------------------------------------------------------ two sites


async def test_a_request_to_another_site_has_progress_reply_and_cancel(server: RedisServer, tmp_path: Path) -> None:
    replier = Replier()
    async with far_bus(tmp_path / "a", "near", server.url()) as near, far_bus(tmp_path / "b", "far", server.url()) as far:
        await far.subscribe("c", replier, durable="d")
        told: list[Any] = []
        reply = await near.request("c", "x", timeout=WAIT_S, progress=lambda message: told.append(message.payload))
        assert (reply.payload, reply.sender, told) == (["x", 1], "far", ["begun"])
        replier.go.clear()
        asking = asyncio.ensure_future(near.request("c", "y", timeout=WAIT_S))
        await until(lambda: replier.runs["y"])
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: replier.cancelled == ["y"])


async def test_an_inbox_that_was_opened_without_a_redis_has_what_comes_when_that_returns(
    server: RedisServer, proxy: Proxy, tmp_path: Path
) -> None:
    replier = Replier()
    cut(proxy)
    async with far_bus(tmp_path / "a", "near", proxy.url) as near, far_bus(tmp_path / "b", "far", server.url()) as far:
        await far.subscribe("c", replier, durable="d")
        asking = [asyncio.ensure_future(near.request("c", number, timeout=WAIT_S)) for number in range(100)]
        await until(lambda: near.stats().published == 100)
        proxy.heal()
        found = await asyncio.gather(*asking)
        assert [reply.payload for reply in found] == [[number, 1] for number in range(100)]


async def test_a_reply_that_reached_the_redis_before_its_requester_did_is_heard(
    server: RedisServer, proxy: Proxy, tmp_path: Path
) -> None:
    cut(proxy)
    async with far_bus(tmp_path / "a", "near", proxy.url) as near, far_bus(tmp_path / "b", "far", server.url()) as far:
        asking = asyncio.ensure_future(near.request("c", "x", timeout=WAIT_S))
        await until(lambda: near.stats().published == 1)
        (request,) = await near.history("c")
        assert request.reply_to is not None
        await far.publish(request.reply_to, "first", type="complete", correlation_id=request.correlation_id, ack="redis")
        proxy.heal()
        assert (await asking).payload == "first"


async def test_a_reply_from_another_site_waits_for_a_requester_that_restarts(
    server: RedisServer, proxy: Proxy, tmp_path: Path
) -> None:
    replier = Replier()
    replier.go.clear()
    async with far_bus(tmp_path / "b", "far", server.url()) as far:
        await far.subscribe("c", replier, durable="d")
        async with far_bus(tmp_path / "a", "near", proxy.url) as near:
            asking = asyncio.ensure_future(near.request("c", "x", id="order-1"))
            await until(lambda: replier.runs["x"])
        await asyncio.wait((asking,))
        assert asking.exception() is not None
        replier.go.set()
        cut(proxy)
        async with far_bus(tmp_path / "a", "near", proxy.url) as near:
            with pytest.raises(NoReply):
                await near.request("c", "x", id="order-1", timeout=0.5)
            proxy.heal()
            assert (await near.request("c", "x", id="order-1", timeout=WAIT_S)).payload == ["x", 1]
        cut(proxy)
        async with far_bus(tmp_path / "a", "near", proxy.url) as near:
            with pytest.raises(NoReply):
                await near.request("c", "x", id="order-1", timeout=0.5)
            proxy.heal()
            await until(lambda: near.mode.value == "distributed")
            assert (await near.request("c", "x", id="order-1", timeout=WAIT_S)).payload == ["x", 1]
        assert replier.runs == {"x": 1}


async def test_a_thousand_requests_across_isolated_distributed_isolated_end_each_in_one_reply_or_a_timeout(
    server: RedisServer, proxy: Proxy, tmp_path: Path
) -> None:
    """Half of them go to the own site, where nobody notices; the other half to one that is there for a while."""
    here, there = Replier(), Replier()
    cut(proxy)
    async with far_bus(tmp_path / "a", "near", proxy.url) as near, far_bus(tmp_path / "b", "far", server.url()) as far:
        await near.subscribe("here", here, durable="here")
        await far.subscribe("there", there, durable="there")

        assert near.mode.value == "isolated"
        asked = [asyncio.ensure_future(near.request("here" if number % 2 else "there", number, timeout=5.0))
                 for number in range(1000)]
        await until(lambda: near.stats().published >= 1000)
        proxy.heal()
        await until(lambda: near.mode.value == "distributed" and len(there.runs) >= 100)
        cut(proxy)
        await until(lambda: near.mode.value == "isolated")
        async with asyncio.timeout(WAIT_S):
            found = await asyncio.gather(*asked, return_exceptions=True)
    replied = {number: reply.payload for number, reply in enumerate(found) if isinstance(reply, Message)}
    unanswered = [number for number, reply in enumerate(found) if isinstance(reply, NoReply)]
    assert len(replied) + len(unanswered) == 1000
    assert replied == {number: [number, 1] for number in replied}
    assert set(range(1, 1000, 2)) <= replied.keys()
    assert max((*here.runs.values(), *there.runs.values())) == 1
