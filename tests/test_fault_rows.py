"""Rows of the fault matrix that no other test has: eviction (10), a server that sleeps (14), changes of mode (23)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from lemegeton import CoordinationMode, modes
from lemegeton.mode_switch import set_mode
from lemegeton.osfs import os_runtime
from lemegeton.testing.servers import RedisServer, servers
from test_delivery import Got
from test_redis_side import quick, send, site, until  # noqa: F401  (fixtures)

MESSAGES = 300
CHANGES = 1000
TEXT = "x" * 10_000
ROOM_BYTES = 1_500_000


@pytest.fixture
def small() -> Iterator[RedisServer]:
    """A server that forgets whatever it likes when it holds more than a little."""
    with RedisServer(servers()[-1].binary, tcp=True) as server:
        server.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        yield server


async def test_what_a_server_evicts_is_filled_in_again_and_nothing_is_lost(small: RedisServer, tmp_path: Path) -> None:
    got = Got()
    async with site(tmp_path / "a", small) as a, site(tmp_path / "b", small, "bob") as b:
        await b.bus.subscribe("c[0-9]", got, durable="d", start="earliest")
        await a.until_up()
        await b.until_up()
        memory = dict(line.split(":", 1) for line in small.cli("INFO", "memory").decode().splitlines() if ":" in line)
        small.cli("CONFIG", "SET", "maxmemory", int(memory["used_memory"]) + ROOM_BYTES)
        for n in range(MESSAGES):
            await send(a, [n, TEXT], channel=f"c{n % 3}")
            if n % 10 == 0:
                await asyncio.sleep(0.005)
        await until(lambda: "evicted_keys:0\r" not in small.cli("INFO", "stats").decode())
        small.cli("CONFIG", "SET", "maxmemory", 0)
        await got.reach(MESSAGES)
        for channel in range(3):
            mine = [message.payload[0] for message in got if message.channel == f"c{channel}"]
            assert mine == list(range(channel, MESSAGES, 3))


async def test_a_server_that_sleeps_keeps_nobody_waiting_and_loses_nothing(tmp_path: Path) -> None:
    got, near = Got(), Got()
    with RedisServer(servers()[-1].binary, tcp=True, settings={"enable-debug-command": "yes"}) as server:
        async with site(tmp_path / "a", server) as a, site(tmp_path / "b", server, "bob") as b:
            await b.bus.subscribe("c", got, durable="d")
            await a.bus.subscribe("c", near, durable="near")
            await send(a, *range(50))
            await got.reach(50)
            asleep = asyncio.ensure_future(asyncio.to_thread(server.cli, "DEBUG", "SLEEP", "3"))
            await a.until_up(False)
            await send(a, *range(50, 150))
            await near.reach(150)
            await asleep
            await got.reach(150)
    assert got.payloads == near.payloads == list(range(150))


async def test_a_thousand_changes_of_the_mode_under_load_lose_and_double_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modes, "SWITCH_S", 0.001)
    got, near = Got(), Got()
    with RedisServer(servers()[-1].binary, tcp=True) as server:
        async with site(tmp_path / "a", server) as a, site(tmp_path / "b", server, "bob") as b:
            await b.bus.subscribe("c", got, durable="d")
            await a.bus.subscribe("c", near, durable="near")
            await until(lambda: a.bus.mode is CoordinationMode.DISTRIBUTED)
            for n in range(CHANGES):
                mode = (CoordinationMode.ISOLATED, CoordinationMode.DISTRIBUTED)[n % 2]
                set_mode(os_runtime(), str(tmp_path / "a"), mode, "for a test")
                while a.bus.mode is not mode:
                    await asyncio.sleep(0)
                await send(a, n)
            await got.reach(CHANGES)
            await near.reach(CHANGES)
    assert got.payloads == near.payloads == list(range(CHANGES))
