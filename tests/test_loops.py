"""The fastest loop there is, and what of a bus depends on a loop, on each of them."""

from __future__ import annotations

import asyncio
import builtins
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lemegeton
from lemegeton import Message, MessageBus
from lemegeton.loops import fastest_loop, run
from lemegeton.testing.servers import RedisServer

LOOPS: tuple[Callable[[], asyncio.AbstractEventLoop] | None, ...] = (fastest_loop(), None)
COUNT = 200
WAIT_S = 10.0


async def kind_of_loop() -> str:
    return type(asyncio.get_running_loop()).__module__


def test_the_fastest_loop_is_used_where_it_is_installed() -> None:
    pytest.importorskip("uvloop")
    assert run(kind_of_loop()).startswith("uvloop")
    assert lemegeton.run is run


def test_without_it_the_standard_library_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    there = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "uvloop":
            raise ImportError(name)
        return there(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert fastest_loop() is None
    assert run(kind_of_loop()).startswith("asyncio")


async def in_order(sender: MessageBus, receiver: MessageBus) -> list[int]:
    """One message at a time, so that a worker at rest is stepped from the doorbell."""
    seen: list[int] = []
    came = asyncio.Event()

    async def handle(message: Message) -> None:
        seen.append(message.payload)
        came.set()

    async with asyncio.timeout(WAIT_S), sender, receiver:
        await receiver.subscribe("c", handle, durable="d", start="earliest")
        for n in range(COUNT):
            came.clear()
            await sender.publish("c", n, ack="disk" if n % 50 == 0 else "local")
            await came.wait()
    return seen


@pytest.mark.parametrize("loop", LOOPS)
def test_what_is_published_is_handled_in_order_on_every_loop(
    loop: Callable[[], asyncio.AbstractEventLoop] | None, tmp_path: Path
) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(in_order(MessageBus("a", home=tmp_path), MessageBus("b", home=tmp_path))) == list(range(COUNT))


@pytest.mark.parametrize("loop", LOOPS)
def test_what_another_site_published_is_handled_in_order_on_every_loop(
    loop: Callable[[], asyncio.AbstractEventLoop] | None, tmp_path: Path, server: RedisServer
) -> None:
    buses = [MessageBus(name, home=tmp_path / name, redis_url=server.url("redis"), local_redis="off") for name in "ab"]
    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(in_order(*buses)) == list(range(COUNT))


PROGRAM = """
import asyncio, sys
from lemegeton import MessageBus, run

async def main():
    async with MessageBus("a", home=sys.argv[1]) as bus:
        await bus.subscribe("c", lambda message: None, durable="d")
        asyncio.get_running_loop().call_soon(lambda: print("ready", flush=True))  # once `serve` waits
        await bus.serve()
        print("left", flush=True)

run(main())
"""


def test_a_bus_that_serves_leaves_on_a_signal(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.terminate()
    assert child.communicate()[0] == "left\n"
    assert child.returncode == 0
    found = subprocess.run([sys.executable, "-m", "lemegeton", "status", "--home", str(tmp_path), "--json"],
                           capture_output=True, text=True, check=True)
    assert json.loads(found.stdout)
