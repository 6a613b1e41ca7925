"""The user that docs/redis.md describes can do all that is done, and nothing else."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lemegeton.errors import RedisRefused
from lemegeton.logs.redis_scripts import FORWARD, TRIM
from lemegeton.redis_wire import dial
from lemegeton.testing.servers import Found, RedisServer

ROOT = Path(__file__).parent.parent
WAIT_S = 10.0
MORE = {"waitaof", "scan", "info"}
"""What only a level needs that not every server has, and what is done without where it is refused."""
USED = {
    "exists": ["ns:k"], "get": ["ns:k"], "set": ["ns:k", 1], "getset": ["ns:k", 1],
    "expire": ["ns:k", 1], "pexpire": ["ns:k", 1], "del": ["ns:k"],
    "hset": ["ns:h", "f", 1], "hget": ["ns:h", "f"], "hgetall": ["ns:h"], "hdel": ["ns:h", "f"],
    "sadd": ["ns:s", 1], "smembers": ["ns:s"],
    "zadd": ["ns:z", 1, "m"], "zrange": ["ns:z", 0, -1], "zremrangebyrank": ["ns:z", 0, 0],
    "xadd": ["ns:x", "*", "a", 1], "xrange": ["ns:x", "-", "+"], "xrevrange": ["ns:x", "+", "-"], "xlen": ["ns:x"],
    "xdel": ["ns:x", "1-1"], "xtrim": ["ns:x", "MAXLEN", 0],
    "publish": ["ns:hub", "x"], "ping": [], "select": [0],
    "eval": [FORWARD.text, 2, "ns:message-stream:hub", "ns:relay:{ns:message-stream:hub}", "a.1.1", 0, 0, "ns:hub", 100,
             1, 1, "c1", "wire", 6, "origin", "a", "inc", 1, "seq", 1],
}
HEARD = {"subscribe": ["ns:hub"], "psubscribe": ["ns:*"], "unsubscribe": ["ns:hub"], "punsubscribe": ["ns:*"]}


def rule() -> str:
    found = re.search(r"```\n(user lemegeton .*?)```", (ROOT / "docs/redis.md").read_text(), re.S)
    assert found is not None
    return " ".join(found[1].split()).removeprefix("user ").replace("PASSWORD", "secret")


def allowed() -> set[str]:
    return set(re.findall(r"\+([a-z]+)", rule()))


@pytest.fixture
def guarded(found: Found) -> Iterator[RedisServer]:
    with RedisServer(found.binary, users=[rule()]) as server:
        yield server


def test_every_command_of_the_source_is_in_the_list() -> None:
    used: set[str] = set()
    for path in (ROOT / "src/lemegeton").rglob("*.py"):
        if "testing" not in path.parts and path.name != "demo_redis.py":  # a server of its own, to be hurt
            used |= set(re.findall(r"\b(?:call|send|_add)\(\s*[\"']([A-Z]+)[\"']", path.read_text()))
    assert {name.lower() for name in used} - MORE - {"sentinel"} <= allowed()
    assert {"XADD", "XRANGE", "PING", "EVALSHA", "SUBSCRIBE"} <= used, "the pattern finds them"


def test_this_file_tries_all_of_the_list() -> None:
    assert allowed() == {*USED, *HEARD, "evalsha"}


@pytest.mark.parametrize("protocol", [2, 3])
async def test_the_user_can_do_all_of_it(guarded: RedisServer, protocol: int) -> None:
    url = guarded.url(user="lemegeton", password="secret", protocol=protocol)
    wire = await dial(url, None, lambda cause: None)
    for command, arguments in USED.items():
        await wire.call(command, *arguments)
    assert await wire.call("EVALSHA", FORWARD.sha, *USED["eval"][1:]) == [b"OK", b"1:c1"]
    assert await wire.call("EVAL", TRIM.text, 1, "ns:message-stream:hub", 0, 100, "a.1.1", 1) == 1
    wire.close()
    heard: asyncio.Queue[Any] = asyncio.Queue()
    ear = await dial(url, heard.put_nowait, lambda cause: None)
    for command, arguments in HEARD.items():
        ear.send(command, *arguments)
        async with asyncio.timeout(WAIT_S):
            assert (await heard.get())[0] == command.encode()
    ear.close()


@pytest.mark.parametrize("command", [
    ("GET", "other"), ("XADD", "message-stream:hub", "*", "a", 1), ("PUBLISH", "hub", "x"), ("KEYS", "*"), ("FLUSHALL",),
    ("CONFIG", "GET", "*"), ("SHUTDOWN",), ("REPLICAOF", "NO", "ONE"), ("SCRIPT", "FLUSH"), ("ACL", "LIST"), ("MONITOR",),
    ("EVAL", "return redis.call('GET', 'other')", 0), ("EVAL", "return redis.call('PUBLISH', 'hub', 'x')", 0),
    ("EVAL", "return redis.call('FLUSHALL')", 0),
], ids=lambda command: " ".join(map(str, command)))
async def test_and_nothing_else(guarded: RedisServer, command: tuple[Any, ...]) -> None:
    wire = await dial(guarded.url(user="lemegeton", password="secret"), None, lambda cause: None)
    with pytest.raises(RedisRefused):
        await wire.call(*command)
    assert await wire.call("PING") == b"PONG"
    wire.close()


async def test_nor_hear_anything_else(guarded: RedisServer) -> None:
    heard: asyncio.Queue[Any] = asyncio.Queue()
    ear = await dial(guarded.url(user="lemegeton", password="secret"), heard.put_nowait, lambda cause: None)
    for command, what in (("SUBSCRIBE", "hub"), ("PSUBSCRIBE", "*")):
        ear.send(command, what)
        async with asyncio.timeout(WAIT_S):
            assert (await heard.get()).code == "NOPERM"
    ear.close()
