"""The wire: one connection to a Redis, taken over once it is there.

redis-py finds the server, connects, does TLS and authenticates; its command layer is passed by, because it costs about
five times what packing and one in-order connection cost (17,700 against 95,000 messages a second where both were
measured).  Its defaults are all set here, because they bite: ten silent retries of every command, a socket timeout of
5 s, reconnects that tell nobody, maintenance notifications.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis
from redis.asyncio import connection as redis_connection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from lemegeton.errors import InvalidSetting, RedisLost, RedisRefused
from lemegeton.seams import Heard, Wire

CONNECT_S = 2.0
"""How long a server may take to accept, shake hands and authenticate."""
SENTINEL_PORT = 26379
_NOT_YET = object()


class RedisWire(asyncio.Protocol):
    """See `seams.Wire`."""

    def __init__(self, where: str, heard: Heard | None, lost: Callable[[str], None]) -> None:
        self._where = where
        self._heard = heard
        self._lost = lost
        self._reader = hiredis.Reader(notEnoughData=_NOT_YET)
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._silent = 0
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()

    def begin(self, stream: Any, writer: Any) -> None:
        """Take over the transport of streams that are connected and authenticated."""
        self._kept = stream, writer  # collected, they would close the transport
        self._transport = writer.transport
        writer.transport.set_protocol(self)
        writer.transport.resume_reading()
        if stream._buffer:
            self.data_received(bytes(stream._buffer))

    @property
    def unanswered(self) -> int:
        return len(self._waiting) if self._heard is None else self._silent

    def call(self, *arguments: bytes | str | int) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = self._loop.create_future()
        if self._transport is None:
            answer.set_exception(RedisLost(f"redis {self._where}: not connected", definite=True))
            return answer
        self._transport.write(hiredis.pack_command(arguments))  # type: ignore[arg-type]  # its stub says a tuple of one
        self._waiting.append(answer)
        return answer

    def send(self, *arguments: bytes | str | int) -> None:
        if self._transport is not None:
            self._silent += arguments[0] == "PING"
            self._transport.write(hiredis.pack_command(arguments))  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        """Hand every whole answer to whoever waits for it."""
        self._silent = 0
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not _NOT_YET:
                if self._heard is not None:
                    self._heard(answer)
                elif self._waiting:
                    self._settle(self._waiting.popleft(), answer)
        except hiredis.HiredisError as error:
            self._end(f"it does not speak the protocol: {error}")

    def _settle(self, waiting: asyncio.Future[Any], answer: Any) -> None:
        if waiting.done():
            return
        if isinstance(answer, hiredis.ReplyError):
            waiting.set_exception(refused(self._where, str(answer)))
        else:
            waiting.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        """The server or the network ended it."""
        self._end(str(error) if error else "closed by the server")

    def _end(self, cause: str) -> None:
        transport, self._transport = self._transport, None
        if transport is None:
            return
        transport.abort()
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(RedisLost(f"redis {self._where}: no answer: {cause}; it may have happened"))
                waiting.exception()  # whoever waits hears it; nobody has to
        self._waiting.clear()
        self._lost(cause)

    def close(self) -> None:
        self._lost = lambda _: None
        self._end("closed by us")


def refused(where: str, text: str) -> RedisRefused:
    """The typed error for an error reply."""
    code = text.partition(" ")[0]
    return RedisRefused(f"redis {where}: {text}{_ADVICE.get(code, '')}", code=code)


_ADVICE = {
    "NOAUTH": "; give user and password in redis_url",
    "WRONGPASS": "; mend user or password in redis_url",
    "NOPERM": "; docs/redis.md lists the commands and patterns this user needs",
    "OOM": "; the server is at its maxmemory: give it more, everything is kept here meanwhile",
    "READONLY": "; it is a replica: give the primary or a Sentinel URL",
}


def shown(url: str) -> str:
    """A URL for eyes: no user, no password, no options."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}{parts.path}"


async def dial(url: str, heard: Heard | None, lost: Callable[[str], None], /) -> Wire:
    """Connect to ``redis://``, ``rediss://``, ``unix://`` or ``redis+sentinel://host,host/service``.

    ``rediss`` verifies the certificate and the host name.  ``OSError`` or `RedisRefused` says why not."""
    try:
        async with asyncio.timeout(CONNECT_S):
            connection = await _connection(url)
            await connection.connect_check_health(check_health=False)
    except TimeoutError:
        raise OSError(f"redis {shown(url)}: no answer within {CONNECT_S} s") from None
    except (AuthenticationError, ResponseError) as error:
        text = str(error)
        raise refused(shown(url), text if text.split(" ")[0].isupper() else f"WRONGPASS {text}") from None
    except RedisError as error:
        raise OSError(f"redis {shown(url)}: {error}") from None
    wire = RedisWire(shown(url), heard, lost)
    wire.begin(connection._reader, connection._writer)
    connection._reader = connection._writer = None  # it would close them when it is collected
    return wire


async def _connection(url: str) -> Any:
    if url.startswith("redis+sentinel://"):
        return await _of_sentinel(url)
    options = options_of(url)
    kind = options.pop("connection_class", redis_connection.Connection)
    return kind(**_DELIBERATE, **options)


_DELIBERATE: dict[str, Any] = {
    "socket_timeout": None, "socket_connect_timeout": CONNECT_S, "health_check_interval": 0, "driver_info": None,
    "retry": Retry(NoBackoff(), 0), "maint_notifications_config": MaintNotificationsConfig(enabled=False),
}


def options_of(url: str) -> dict[str, Any]:
    """What redis-py needs to know of a URL, RESP2 unless it asks for ``protocol=3``; `InvalidSetting` if it is none."""
    try:
        options: dict[str, Any] = dict(redis_connection.parse_url(url))
        options["protocol"] = int(options.get("protocol", 2))
    except ValueError as error:
        raise InvalidSetting(f"redis_url {shown(url)}: {error}") from None
    unknown = options.keys() - _OPTIONS
    if unknown or (options.get("connection_class") is redis_connection.UnixDomainSocketConnection
                   and "path" not in options):
        raise InvalidSetting(f"redis_url {shown(url)}: cannot use {', '.join(sorted(unknown)) or 'it: no path'}; known "
                             f"options: {', '.join(sorted(_OPTIONS - {'connection_class'}))}")
    if options.get("connection_class") is redis_connection.SSLConnection:
        options = {"ssl_cert_reqs": "required", "ssl_check_hostname": True, **options}
    return options


_OPTIONS = frozenset((
    "connection_class", "host", "port", "path", "db", "username", "password", "protocol", "ssl_ca_certs", "ssl_certfile",
    "ssl_keyfile",
))


async def _of_sentinel(url: str) -> Any:
    """A connection to the primary that the first Sentinel to answer names."""
    parts = urlsplit(url)
    users, _, places = parts.netloc.rpartition("@")
    service = unquote(parts.path.strip("/"))
    hosts = [(host or "localhost", int(port or SENTINEL_PORT)) for host, _, port in
             (place.partition(":") for place in places.split(","))]
    if not service:
        raise InvalidSetting(f"redis_url {shown(url)}: name the service, redis+sentinel://host,host/service")
    user, _, password = users.partition(":")
    query = {key: values[0] for key, values in parse_qs(parts.query).items()}
    patience = {"socket_timeout": CONNECT_S, "socket_connect_timeout": CONNECT_S}
    sentinel = Sentinel(hosts, sentinel_kwargs=patience)  # type: ignore[no-untyped-call]
    try:
        host, port = await sentinel.discover_master(service)
    finally:
        for client in sentinel.sentinels:
            await client.aclose()
    return redis_connection.Connection(
        host=host, port=port, username=unquote(user) or None, password=unquote(password) or None,
        db=int(query.get("db", 0)), protocol=int(query.get("protocol", 2)), **_DELIBERATE)
