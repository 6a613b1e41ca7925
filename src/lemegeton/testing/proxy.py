"""A proxy in front of a server, to play a bad network.

::

    client ──► to_server ──► server          each `Direction` can be shut, slowed down, or cut;
           ◄── to_client ◄──                 shut in both it is a black hole

All switches work at once, also for connections that are there.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self

CHUNK_BYTES = 65536
CHUNKS_MAX = 64
"""What may be under way in one direction while it is delayed; then nothing more is read."""
SLICE_S = 0.02
"""A limited direction passes on what it may in this time."""

Target = str | tuple[str, int]
"""The path of a unix socket, or host and port."""


class Direction:
    """What happens to bytes on their way."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        """How long every byte is under way; of those that are already, nothing changes."""
        self.bytes_s = 0
        """How many bytes a connection passes on in a second; 0: no limit."""
        self.cut_after: int | None = None
        """So many bytes more are passed on, then their connection is cut, once."""
        self.cut_every = 0
        """Every n-th chunk is thrown away and its connection cut; 0: none.

        To the client, with a caller that waits for each answer: after the request and before its answer."""
        self._chunks = 0
        self._open = asyncio.Event()
        self._open.set()

    def shut(self) -> None:
        """Pass on nothing, and close nothing either."""
        self._open.clear()

    def open(self) -> None:
        """Pass on again; also what came meanwhile."""
        self._open.set()

    def cut(self, data: bytes) -> bytes | None:
        """What to pass on of a chunk before its connection is cut; None: it is not."""
        self._chunks += 1
        if self.cut_every and self._chunks % self.cut_every == 0:
            return b""
        if self.cut_after is None:
            return None
        size, self.cut_after = self.cut_after, self.cut_after - len(data)
        if self.cut_after > 0:
            return None
        self.cut_after = None
        return data[:size]

    def chunk_bytes(self) -> int:
        """How much to take at a time."""
        return max(1, int(self.bytes_s * SLICE_S)) if self.bytes_s else CHUNK_BYTES

    async def passes(self, size: int) -> None:
        """Return when so many bytes may go."""
        if self.bytes_s:
            await asyncio.sleep(size / self.bytes_s)
        await self._open.wait()


class Proxy:
    """Listens in front of ``target``: on a unix socket at ``path``, or on a free port.  Use it with ``async with``."""

    def __init__(self, target: Target, *, path: str | None = None) -> None:
        self.target = target
        """Where connections that come now are led."""
        self._path = path
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusing = False
        self.to_server = Direction()
        self.to_client = Direction()
        self.accepted = 0
        """How many connections came."""

    async def __aenter__(self) -> Self:
        if self._path is not None:
            self._server = await asyncio.start_unix_server(self._accept, self._path)
        else:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._refusing = True  # whoever was accepted last and is not served yet
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port it listens on."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return host, port

    @property
    def url(self) -> str:
        """Where it is."""
        return f"unix://{self._path}" if self._path is not None else "redis://{}:{}".format(*self.address)

    # ------------------------------------------------------------------------------------------ switches

    def heal(self) -> None:
        """Pass on everything again: the beginning, for connections that are there as for new ones."""
        self._refusing = False
        for way in (self.to_server, self.to_client):
            way.delay_s, way.bytes_s, way.cut_after, way.cut_every = 0.0, 0, None, 0
            way.open()

    def refuse(self) -> None:
        """Close what comes, at once; what is there stays (`kill` ends it)."""
        self._refusing = True

    def swallow(self) -> None:
        """Be a black hole: accept, and never answer."""
        self.to_server.shut()
        self.to_client.shut()

    def slow(self, *, delay_s: float = 0.0, bytes_s: int = 0) -> None:
        """Both directions take that long, and pass on that much in a second."""
        for way in (self.to_server, self.to_client):
            way.delay_s, way.bytes_s = delay_s, bytes_s

    def kill(self) -> None:
        """End all connections that are there, with a reset."""
        for connection in list(self._connections):
            connection.abort()

    # ------------------------------------------------------------------------------------------ connections

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            if not self._refusing:
                await self._serve(reader, writer)
        except OSError:  # the server is not there, or either side went away
            pass
        except asyncio.CancelledError:
            pass  # we are closed; in Python 3.11 a cancelled task of a stream is shown as an error
        finally:
            _abort(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(self.target, str):
            there = await asyncio.open_unix_connection(self.target)
        else:
            there = await asyncio.open_connection(*self.target)
        connection = _Connection((reader, writer), there, self)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            _abort(there[1])


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Connection:
    """One client and its connection to the server."""

    def __init__(self, client: Ends, server: Ends, proxy: Proxy) -> None:
        self._client = client
        self._server = server
        self._proxy = proxy

    async def run(self) -> None:
        """Return when either end has ended it, or a direction cut it."""
        pumps = [
            asyncio.ensure_future(_pump(self._client[0], self._server[1], self._proxy.to_server)),
            asyncio.ensure_future(_pump(self._server[0], self._client[1], self._proxy.to_client)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    def abort(self) -> None:
        for _, writer in (self._client, self._server):
            _abort(writer)


def _abort(writer: asyncio.StreamWriter) -> None:
    with suppress(AttributeError):  # one that is at its end already has no loop any more in Python 3.11
        writer.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: Direction) -> None:
    """Pass on until the source ends or the direction cuts it."""
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_MAX)
    take = asyncio.ensure_future(_take(source, way, under_way))
    try:
        await _give(sink, way, under_way)
    finally:
        take.cancel()
        await asyncio.gather(take, return_exceptions=True)


async def _take(source: asyncio.StreamReader, way: Direction, under_way: asyncio.Queue[tuple[float, bytes]]) -> None:
    """Read on while what was read before is still under way, so that a delay is no limit of bytes."""
    loop, data = asyncio.get_running_loop(), b"?"
    while data:
        data = b""
        with suppress(OSError):
            data = await source.read(way.chunk_bytes())
        await under_way.put((loop.time() + way.delay_s, data))


async def _give(sink: asyncio.StreamWriter, way: Direction, under_way: asyncio.Queue[tuple[float, bytes]]) -> None:
    loop, rest = asyncio.get_running_loop(), None
    while rest is None:
        due, data = await under_way.get()
        await asyncio.sleep(due - loop.time())
        if not data:
            break
        while data and rest is None:  # the limit may be younger than what was read
            piece, data = data[: way.chunk_bytes()], data[way.chunk_bytes():]
            await way.passes(len(piece))
            rest = way.cut(piece)
            sink.write(piece if rest is None else rest)
            await sink.drain()
    sink.close()  # what was passed on arrives
    with suppress(OSError):
        await sink.wait_closed()
