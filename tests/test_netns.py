"""Row 21: the network of one site loses every packet in silence, in a network namespace of its own where that may be made.

Elsewhere a proxy swallows everything instead.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from lemegeton.testing.proxy import Proxy
from lemegeton.testing.servers import RedisServer, servers
from test_delivery import Got
from test_redis_side import site, until

NEAR, FAR = "10.231.77.1", "10.231.77.2"
PASSWORD = "between-two-spaces"
PUBLISHER = """
import asyncio, sys
from lemegeton import MessageBus
async def main():
    async with MessageBus("alice", home=sys.argv[1], redis_url=sys.argv[2], local_redis="off") as bus:
        while line := await asyncio.to_thread(sys.stdin.readline):
            for n in range(*map(int, line.split())):
                await bus.publish("c", n)
            print(bus.site.redis.link.up, flush=True)
asyncio.run(main())
"""


class Network(NamedTuple):
    """How a process is put behind it, where it finds the server, and what breaks and mends it."""

    prefix: list[str]
    url: str
    down: Callable[[], object]
    up: Callable[[], object]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def made(name: str, veth: str) -> bool:
    """True if there is a namespace now, with a link to it."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        ip("netns", "add", name)
        ip("link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("addr", "add", f"{NEAR}/30", "dev", veth)
        ip("link", "set", veth, "up")
        ip("-n", name, "addr", "add", f"{FAR}/30", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
    except subprocess.CalledProcessError:
        return False
    return True


def gone(name: str, veth: str) -> None:
    """Nothing is left, however far `made` came."""
    if shutil.which("ip") is not None:
        for words in (("netns", "delete", name), ("link", "delete", veth)):
            subprocess.run(["ip", *words], check=False, capture_output=True)


@asynccontextmanager
async def network() -> AsyncIterator[tuple[RedisServer, Network]]:
    name, veth = f"lemegeton-{os.getpid()}", f"lm{os.getpid()}"
    try:
        spaces = made(name, veth)
        settings = {"bind": f"127.0.0.1 {NEAR}"} if spaces else {}
        with RedisServer(servers()[-1].binary, tcp=True, password=PASSWORD, settings=settings) as server:
            if spaces:
                yield server, Network(["ip", "netns", "exec", name], f"redis://:{PASSWORD}@{NEAR}:{server.port}",
                                      lambda: ip("link", "set", veth, "down"), lambda: ip("link", "set", veth, "up"))
                return
            async with Proxy(server.address) as proxy:
                yield server, Network([], proxy.url.replace("://", f"://:{PASSWORD}@"), proxy.swallow, proxy.heal)
    finally:
        gone(name, veth)


async def test_a_site_whose_network_loses_everything_goes_on_and_loses_nothing(tmp_path: Path) -> None:
    got = Got()
    async with network() as (server, net), site(tmp_path / "b", server.url(), "bob") as b:
        await b.bus.subscribe("c", got, durable="d", start="earliest")
        process = await asyncio.create_subprocess_exec(
            *net.prefix, sys.executable, "-c", PUBLISHER, str(tmp_path / "a"), net.url,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None

        async def publish(first: int, end: int) -> bool:
            process.stdin.write(f"{first} {end}\n".encode())
            return await process.stdout.readline() == b"True\n"

        assert await publish(0, 50)
        await got.reach(50)
        net.down()
        end = 50
        while await publish(end, end + 10):  # until it has noticed
            end += 10
            await asyncio.sleep(0.1)
        end += 10
        net.up()
        await until(lambda: len(got) >= end)
        process.stdin.close()
        await process.wait()
    assert got.payloads == list(range(end))
