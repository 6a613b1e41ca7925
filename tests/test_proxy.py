"""The proxy of the test kit: every switch does what it says, to a server that says what it hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from lemegeton.testing.proxy import Proxy

WAIT_S = 10.0


class Echo:
    """A server that sends back what comes, and remembers it."""

    def __init__(self) -> None:
        self.heard = b""
        self._came = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                self.heard += data
                self._came.set()
                writer.write(data)
        writer.transport.abort()

    async def until(self, data: bytes) -> None:
        async with asyncio.timeout(WAIT_S):
            while data not in self.heard:
                self._came.clear()
                await self._came.wait()


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @classmethod
    async def of(cls, proxy: Proxy) -> Client:
        return cls(*await asyncio.open_connection(*proxy.address))

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def hear(self, count: int) -> bytes:
        async with asyncio.timeout(WAIT_S):
            return await self._reader.readexactly(count)

    async def rest(self) -> bytes:
        """All that comes before the end; a reset is an end."""
        heard = b""
        async with asyncio.timeout(WAIT_S):
            with suppress(ConnectionError):
                while data := await self._reader.read(1):
                    heard += data
        self.writer.transport.abort()
        return heard


@pytest.fixture
async def echo(tmp_path: Path) -> AsyncIterator[Echo]:
    made = Echo()
    server = await asyncio.start_unix_server(made.serve, str(tmp_path / "echo"))
    yield made
    server.close()


@pytest.fixture
async def proxy(echo: Echo, tmp_path: Path) -> AsyncIterator[Proxy]:
    async with Proxy(str(tmp_path / "echo")) as made:
        yield made


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[Client]:
    made = await Client.of(proxy)
    yield made
    made.writer.transport.abort()


async def test_it_passes_everything_on(client: Client, proxy: Proxy) -> None:
    data = bytes(range(256)) * 4096
    client.say(data)
    assert await client.hear(len(data)) == data
    assert proxy.accepted == 1


async def test_it_listens_on_a_unix_socket_too(echo: Echo, proxy: Proxy, tmp_path: Path) -> None:
    async with Proxy(proxy.address, path=str(tmp_path / "proxy")) as outer:
        assert outer.url == f"unix://{tmp_path}/proxy"
        client = Client(*await asyncio.open_unix_connection(str(tmp_path / "proxy")))
        client.say(b"hello")
        assert await client.hear(5) == b"hello"
    assert await client.rest() == b""


async def test_refused_connections_end_at_once_and_others_stay(client: Client, proxy: Proxy) -> None:
    client.say(b"a")
    assert await client.hear(1) == b"a"
    proxy.refuse()
    assert await (await Client.of(proxy)).rest() == b""
    client.say(b"b")
    assert await client.hear(1) == b"b"
    proxy.heal()
    again = await Client.of(proxy)
    again.say(b"c")
    assert await again.hear(1) == b"c"
    again.writer.transport.abort()


async def test_a_server_that_is_not_there_ends_the_connection(tmp_path: Path) -> None:
    async with Proxy(str(tmp_path / "nobody")) as proxy:
        assert await (await Client.of(proxy)).rest() == b""


async def test_a_black_hole_answers_once_it_is_healed(client: Client, proxy: Proxy, echo: Echo) -> None:
    proxy.swallow()
    client.say(b"a")
    new = await Client.of(proxy)
    new.say(b"b")
    proxy.heal()
    assert await client.hear(1) == b"a"
    assert await new.hear(1) == b"b"
    new.writer.transport.abort()


async def test_one_direction_alone_can_be_shut(client: Client, proxy: Proxy, echo: Echo) -> None:
    proxy.to_client.shut()
    client.say(b"request")
    await echo.until(b"request")
    proxy.kill()
    assert await client.rest() == b""


async def test_a_delay_is_no_limit_of_bytes(client: Client, proxy: Proxy) -> None:
    loop = asyncio.get_running_loop()
    proxy.slow(delay_s=0.05)
    begin = loop.time()
    for _ in range(20):
        client.say(b"x" * 1000)
    assert await client.hear(20_000) == b"x" * 20_000
    assert loop.time() - begin >= 0.1


async def test_a_limit_of_bytes_takes_its_time(client: Client, proxy: Proxy) -> None:
    loop = asyncio.get_running_loop()
    proxy.to_server.bytes_s = 10_000
    begin = loop.time()
    client.say(b"x" * 1000)
    assert await client.hear(1000) == b"x" * 1000
    assert loop.time() - begin >= 0.09


async def test_a_cut_comes_after_exactly_so_many_bytes_and_once(client: Client, proxy: Proxy) -> None:
    proxy.to_client.cut_after = 3
    client.say(b"answer")
    assert await client.rest() == b"ans"
    again = await Client.of(proxy)
    again.say(b"answer")
    assert await again.hear(6) == b"answer"
    again.writer.transport.abort()


async def test_half_a_request_reaches_the_server(client: Client, proxy: Proxy, echo: Echo) -> None:
    proxy.to_server.cut_after = 3
    client.say(b"request")
    assert await client.rest() in (b"", b"req")
    assert echo.heard == b"req"


async def test_every_nth_answer_is_lost_after_its_request_was_done(client: Client, proxy: Proxy, echo: Echo) -> None:
    proxy.to_client.cut_every = 3
    for name in (b"a", b"b"):
        client.say(name)
        assert await client.hear(1) == name
    client.say(b"c")
    assert await client.rest() == b""
    assert echo.heard == b"abc"
