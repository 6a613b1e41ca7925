"""The wire against the original: its hub and agent, with Node's own client, talk to ours over every server found.

Not a part of `make test`, because what it needs has to be fetched first: `make wire`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lemegeton import Message, MessageBus, MessagePriority
from lemegeton.events import Event
from lemegeton.testing.servers import RedisServer

WAIT_S = 10.0
ORIGINAL = Path(__file__).parent / "original.js"


class Original:
    """The other program."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._said: list[dict[str, Any]] = []

    async def until(self, what: str) -> Any:
        """The next line that says this; others are kept for later."""
        for index, line in enumerate(self._said):
            if what in line:
                return self._said.pop(index)
        assert self._process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            while data := await self._process.stdout.readline():
                line = json.loads(data)
                assert "error" not in line, line
                if what in line:
                    return line
                self._said.append(line)
        raise AssertionError(f"it ended before it said {what!r}")

    async def ask(self, what: str, **command: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        return await self.until(what)

    async def publish(self, channel: str, message: dict[str, Any], how: str = "both") -> int:
        said = await self.ask("published", do="publish", channel=channel, message=message, how=how)
        return int(said["receivers"])


@pytest.fixture
async def original(server: RedisServer) -> AsyncIterator[Original]:
    process = await asyncio.create_subprocess_exec(
        "node", str(ORIGINAL), server.url("redis"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    made = Original(process)
    await made.until("ready")
    yield made
    assert process.stdin is not None
    process.stdin.close()
    async with asyncio.timeout(WAIT_S):
        await process.wait()


@pytest.fixture
async def bus(server: RedisServer, tmp_path: Path) -> AsyncIterator[MessageBus]:
    made = MessageBus("alice", home=str(tmp_path / "home"), redis_url=server.url("redis"), polling_interval=0.1)
    up = asyncio.Event()

    def on_up(event: Event) -> None:
        up.set()

    made.on("redis_up", on_up)
    async with made:
        async with asyncio.timeout(WAIT_S):
            await up.wait()
        yield made


class Got:
    """What a handler was given."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Message] = asyncio.Queue()

    async def __call__(self, message: Message) -> None:
        self.messages.put_nowait(message)

    async def next(self) -> Message:
        async with asyncio.timeout(WAIT_S):
            return await self.messages.get()


def message(ident: str, **fields: Any) -> dict[str, Any]:
    return {"id": ident, "timestamp": 1_700_000_000_000, "type": "custom", "from": "node", "payload": {"task": "ünï"}, **fields}


async def test_the_original_hears_what_we_publish(bus: MessageBus, original: Original) -> None:
    await original.ask("subscribed", do="subscribe", channel="agent-node")
    await bus.publish("agent-node", {"task": "ünï", "n": [1, None, 2.5]}, type="assignment", priority=MessagePriority.HIGH)
    heard = (await original.until("heard"))["message"]
    assert (heard["type"], heard["from"], heard["payload"]) == ("assignment", "alice", {"task": "ünï", "n": [1, None, 2.5]})
    assert isinstance(heard["timestamp"], int)


async def test_the_original_reads_our_history(bus: MessageBus, original: Original) -> None:
    await original.ask("subscribed", do="subscribe", channel="hub")
    for n in range(5):
        await bus.publish("hub", {"n": n}, type="progress")
    while (await original.until("heard"))["message"]["payload"] != {"n": 4}:
        pass
    past = (await original.ask("history", do="history", channel="hub", count=3))["history"]
    assert [(one["type"], one["from"], one["payload"]) for one in past] == [
        ("progress", "alice", {"n": n}) for n in (2, 3, 4)]


@pytest.mark.parametrize("how", ["both", "publish", "stream"])
async def test_we_hear_what_the_original_publishes_and_once(bus: MessageBus, original: Original, how: str) -> None:
    got = Got()
    await bus.subscribe("agent-alice", got)
    while how == "publish" and not await original.publish("agent-alice", message("probe"), how):
        await asyncio.sleep(0.001)  # nobody listens yet, and a PUBLISH is kept by nobody
    await original.publish("agent-alice", message("one"), how)
    await original.publish("agent-alice", message("two", to="alice", type="assignment"), how)
    first = await got.next()
    if first.id == "probe":
        first = await got.next()
    second = await got.next()
    assert (first.id, first.sender, first.payload, first.type) == ("one", "node", {"task": "ünï"}, "custom")
    assert (second.id, second.to, second.type) == ("two", "alice", "assignment")
    await original.publish("agent-alice", message("end"), how)
    assert (await got.next()).id == "end", "nothing came twice before it"


async def test_a_durable_subscription_keeps_its_place_among_them(
        server: RedisServer, original: Original, tmp_path: Path) -> None:
    for ident in ("one", "two"):
        got = Got()
        await original.publish("agent-alice", message(ident))
        async with MessageBus("alice", home=str(tmp_path / "home"), redis_url=server.url("redis"), polling_interval=0.1) as bus:
            await bus.subscribe("agent-alice", got, durable="alice", start="earliest")
            assert (await got.next()).id == ident


async def test_what_is_asked_there_is_answered_here(bus: MessageBus, original: Original) -> None:
    async def answer(message: Message) -> None:
        assert message.reply_to is not None
        await bus.publish(message.reply_to, {"answer": 42}, type="complete", correlation_id=message.id)

    await bus.subscribe("hub", answer)
    await original.ask("subscribed", do="subscribe", channel="agent-node")
    await original.publish("hub", message("q", replyTo="agent-node", payload={"ask": 1}))
    heard = (await original.until("heard"))["message"]
    assert (heard["correlationId"], heard["type"], heard["payload"]) == ("q", "complete", {"answer": 42})
