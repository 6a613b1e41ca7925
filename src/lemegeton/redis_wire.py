"""The wire: one connection to a Redis, on which commands go out in order and answers come back in order.

It packs and parses with hiredis and does the rest itself, which is little: connect, TLS, log in.  A client library above
it costs about five times what one in-order connection costs (17,700 against 95,000 messages a second where both were
measured) and a tenth of a second to load, and its defaults bite here: silent retries of every command, a socket timeout
of 5 s, reconnects that tell nobody, error answers without their code.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import hiredis

from lemegeton.errors import LogError, RedisLost, RedisRefused
from lemegeton.redis_url import Target, parse_url, shown
from lemegeton.seams import Heard, Packed, Wire
from lemegeton.within import within

CONNECT_S = 2.0
"""How long a server may take to accept, shake hands and authenticate."""
_NOT_YET = object()


class RedisWire(asyncio.Protocol):
    """See `seams.Wire`."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._heard: Heard | None = None
        self._lost: Callable[[str], None] = _nobody
        self._reader = hiredis.Reader(notEnoughData=_NOT_YET)
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._transport: asyncio.Transport | None = None
        self._cause = "not connected"
        self._loop = asyncio.get_running_loop()
        self.silent = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is connected; nobody is logged in yet."""
        self._transport = cast(asyncio.Transport, transport)  # that of uvloop is one by its methods only

    def begin(self, heard: Heard | None, lost: Callable[[str], None]) -> None:
        """It is logged in: from now on it hears, and its end is told."""
        if self._transport is None:
            raise RedisLost(f"redis {self._where}: {self._cause}")
        self._heard = heard
        self._lost = lost

    def call(self, *arguments: bytes | str | int, packed: Packed | None = None) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = self._loop.create_future()
        if self._transport is None:
            answer.set_exception(RedisLost(f"redis {self._where}: {self._cause}", definite=True))
            return answer
        self._write(arguments, packed)
        self._waiting.append(answer)
        return answer

    def send(self, *arguments: bytes | str | int) -> None:
        if self._transport is not None:
            self._write(arguments)

    def _write(self, arguments: tuple[bytes | str | int, ...], packed: Packed | None = None) -> None:
        assert self._transport is not None, "both callers looked"
        self.silent |= arguments[0] == "PING"
        data = hiredis.pack_command(arguments)  # type: ignore[arg-type]  # its stub says a tuple of one
        if packed is not None:  # an array says first how many it has
            data = b"*%d%b%b" % (len(arguments) + packed.number, data[data.index(b"\r") :], packed.data)
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Hand every whole answer to whoever waits for it."""
        self.silent = False
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not _NOT_YET:
                if self._heard is not None:
                    self._heard(refused(self._where, str(answer)) if isinstance(answer, hiredis.ReplyError) else answer)
                elif self._waiting:
                    self._settle(self._waiting.popleft(), answer)
        except hiredis.HiredisError as error:
            self._end(f"it does not speak the protocol: {error}")

    def _settle(self, waiting: asyncio.Future[Any], answer: Any) -> None:
        if waiting.done():
            return
        if isinstance(answer, hiredis.ReplyError):
            waiting.set_exception(refused(self._where, str(answer)))
            waiting.exception()  # whoever waits hears it; nobody has to
        else:
            waiting.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        """The server or the network ended it."""
        self._end(str(error) if error else "closed by the server")

    def _end(self, cause: str) -> None:
        transport, self._transport = self._transport, None
        if transport is None:
            return
        self._cause = cause
        transport.abort()
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(RedisLost(f"redis {self._where}: no answer: {cause}; it may have happened"))
                waiting.exception()  # whoever waits hears it; nobody has to
        self._waiting.clear()
        self._lost(cause)

    def close(self) -> None:
        self._lost = _nobody
        self._end("closed by us")


def _nobody(_: str) -> None:
    """Nobody is told."""


# ---------------------------------------------------------------------------------------------- errors


def refused(where: str, text: str) -> RedisRefused:
    """The typed error for an error reply."""
    inner = _IN_SCRIPT.match(text)
    code = inner[1] if inner else text.partition(" ")[0]
    return RedisRefused(f"redis {where}: {text}{_ADVICE.get(code, '')}", code=code)


_IN_SCRIPT = re.compile(r"ERR Error running script .*?: @?user_script: ?\d+: -([A-Z]+) ")
"""Before 7.0 the error of a command in a script is told within the error of the script."""

_ADVICE = {
    "NOAUTH": "; give user and password in redis_url",
    "WRONGPASS": "; mend user or password in redis_url",
    "NOPERM": "; docs/redis.md lists the commands and patterns this user needs",
    "OOM": "; the server is at its maxmemory: give it more, everything is kept here meanwhile",
    "READONLY": "; it is a replica: give the primary or a Sentinel URL",
}


# ---------------------------------------------------------------------------------------------- connecting


async def dial(url: str, heard: Heard | None, lost: Callable[[str], None], /) -> Wire:
    """Connect to what `redis_url` describes and log in.

    ``OSError`` or `RedisRefused` says why not, `InvalidSetting` that the URL cannot be used.  Cancelled or failed, it
    leaves no connection behind."""
    target, where = parse_url(url), shown(url)
    try:
        async with within(CONNECT_S):
            if target.service:
                target = await _primary(target, where)
            wire = await _ready(target, where)
            wire.begin(heard, lost)
            return wire
    except TimeoutError:
        raise OSError(f"redis {where}: no answer within {CONNECT_S} s") from None
    except OSError as error:
        raise OSError(f"redis {where}: cannot connect: {error}") from error
    except RedisLost as error:
        raise OSError(str(error)) from None


async def _ready(target: Target, where: str) -> RedisWire:
    """A connection that is logged in."""
    wire = RedisWire(where)
    loop = asyncio.get_running_loop()
    try:
        if target.path:
            await loop.create_unix_connection(lambda: wire, target.path)
        else:
            host, port = target.places[0]
            await loop.create_connection(lambda: wire, host, port, ssl=_trust(target) if target.tls else None)
        for command in _login(target):
            await wire.call(*command)
    except BaseException:
        wire.close()
        raise
    return wire


def _login(target: Target) -> list[tuple[str | int, ...]]:
    """What has to be said before anything else."""
    commands: list[tuple[str | int, ...]] = []
    known = bool(target.user or target.password)
    if target.protocol == 3:
        commands.append(("HELLO", 3, *(("AUTH", target.user or "default", target.password) if known else ())))
    elif known:
        commands.append(("AUTH", target.user, target.password) if target.user else ("AUTH", target.password))
    if target.db:
        commands.append(("SELECT", target.db))
    return commands


def _trust(target: Target) -> ssl.SSLContext:
    """What a server's certificate is held against; its host name is checked too."""
    files = dict(target.files)
    try:
        context = ssl.create_default_context(cafile=files.get("ssl_ca_certs"))
        if "ssl_certfile" in files:
            context.load_cert_chain(files["ssl_certfile"], files.get("ssl_keyfile"))
    except OSError as error:
        raise OSError(f"the files of TLS ({', '.join(files)}): {error}") from error
    return context


async def _primary(target: Target, where: str) -> Target:
    """The primary that the first Sentinel to answer names; each has its share of the time."""
    causes = []
    for host, port in target.places:
        try:
            async with within(CONNECT_S / (len(target.places) + 1)):
                asked = await _ready(Target(places=((host, port),)), where)
                try:
                    found = await asked.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", target.service)
                finally:
                    asked.close()
        except TimeoutError:
            causes.append(f"{host}:{port}: no answer")
        except (OSError, LogError) as error:
            causes.append(f"{host}:{port}: {error}")
        else:
            if found:
                return replace(target, places=((found[0].decode(), int(found[1])),))
            causes.append(f"{host}:{port}: does not know {target.service}")
    raise OSError(f"no Sentinel names the primary: {'; '.join(causes)}")
