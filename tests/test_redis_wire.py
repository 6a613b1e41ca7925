"""The wire, against every server found: answers in order, errors by name, and an end that says what it means."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lemegeton import redis_wire
from lemegeton.errors import InvalidSetting, LogError, RedisLost, RedisRefused
from lemegeton.redis_wire import RedisWire, dial, refused
from lemegeton.seams import Wire
from lemegeton.testing.proxy import Proxy
from lemegeton.testing.servers import Found, RedisServer, free_port, servers, speaks_tls

WAIT_S = 10.0
Dialed = Callable[..., Awaitable[Wire]]


class Calls:
    """What was called, and with what."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self._came = asyncio.Event()

    def __call__(self, what: Any) -> None:
        self.seen.append(what)
        self._came.set()

    async def count(self, count: int) -> list[Any]:
        async with asyncio.timeout(WAIT_S):
            while len(self.seen) < count:
                self._came.clear()
                await self._came.wait()
        return self.seen


@pytest.fixture
async def dialed() -> AsyncIterator[Dialed]:
    """`dial`, and a close for whatever it made."""
    made: list[Wire] = []

    async def connect(url: str, heard: Any = None, lost: Any = lambda cause: None) -> Wire:
        made.append(await dial(url, heard, lost))
        return made[-1]

    yield connect
    for wire in made:
        wire.close()


@pytest.fixture(params=["unix-2", "unix-3", "redis-2", "redis-3"])
def url(request: pytest.FixtureRequest, server: RedisServer) -> str:
    scheme, protocol = request.param.split("-")
    return server.url(scheme, protocol=protocol)


@pytest.fixture
async def proxy(server: RedisServer) -> AsyncIterator[Proxy]:
    async with Proxy(server.path) as made:
        yield made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_wire, "CONNECT_S", 0.2)


# Asking


async def test_answers_come_in_the_order_of_the_questions(url: str, dialed: Dialed) -> None:
    wire = await dialed(url)
    answers = [wire.call("INCR", "n") for _ in range(1000)]
    assert await asyncio.gather(*answers) == list(range(1, 1001))


async def test_every_kind_of_argument_and_answer(url: str, dialed: Dialed) -> None:
    wire = await dialed(url)
    large = os.urandom(1 << 20)
    assert await wire.call("SET", b"k\r\n", large) == b"OK"
    assert await wire.call("GET", b"k\r\n") == large
    assert await wire.call("GET", "nothing") is None
    assert await wire.call("RPUSH", "l", 1, "ü", b"\xff") == 3
    assert await wire.call("LRANGE", "l", 0, -1) == [b"1", "ü".encode(), b"\xff"]


async def test_an_error_is_told_by_its_code_and_what_follows_is_answered(url: str, dialed: Dialed) -> None:
    wire = await dialed(url)
    await wire.call("SET", "text", "x")
    wrong, right = wire.call("INCR", "text"), wire.call("GET", "text")
    with pytest.raises(RedisRefused, match="not an integer") as raised:
        await wrong
    assert (raised.value.code, raised.value.definite) == ("ERR", True)
    assert await right == b"x"
    with pytest.raises(RedisRefused) as raised:
        await wire.call("RPUSH", "text", 1)
    assert raised.value.code == "WRONGTYPE"


async def test_a_wait_that_is_cancelled_harms_nobody(url: str, dialed: Dialed) -> None:
    wire = await dialed(url)
    first = asyncio.ensure_future(wire.call("INCR", "n"))
    second = wire.call("INCR", "n")
    first.cancel()
    assert await second == 2
    wrong = asyncio.ensure_future(wire.call("NO-SUCH-COMMAND"))
    wrong.cancel()
    assert await wire.call("INCR", "n") == 3


# The end


async def test_an_end_between_request_and_answer_means_that_it_may_have_happened(
        server: RedisServer, proxy: Proxy, dialed: Dialed) -> None:
    lost = Calls()
    wire = await dialed(proxy.url, None, lost)
    assert await wire.call("PING") == b"PONG"
    proxy.to_client.cut_every = 1
    first, second = wire.call("INCR", "n"), wire.call("INCR", "n")
    for answer in (first, second):
        with pytest.raises(RedisLost, match="it may have happened") as raised:
            await answer
        assert raised.value.definite is False
    assert server.cli("GET", "n") == b"2"
    assert len(await lost.count(1)) == 1
    with pytest.raises(RedisLost) as raised:
        await wire.call("INCR", "n")
    assert raised.value.definite is True, "nothing was sent"
    assert server.cli("GET", "n") == b"2"


@pytest.mark.parametrize("size", [1, 4, 100, 5000])
async def test_half_an_answer_is_none(server: RedisServer, proxy: Proxy, dialed: Dialed, size: int) -> None:
    server.cli("SET", "k", b"x" * 10_000)
    wire = await dialed(proxy.url)
    proxy.to_client.cut_after = size
    with pytest.raises(RedisLost):
        await wire.call("GET", "k")


async def test_an_answer_in_small_pieces_is_whole(server: RedisServer, proxy: Proxy, dialed: Dialed) -> None:
    server.cli("RPUSH", "l", *(f"item {n}" for n in range(50)))
    wire = await dialed(proxy.url)
    proxy.to_client.bytes_s = 5000  # a hundred bytes at a time
    assert await wire.call("LRANGE", "l", 0, -1) == [b"item %d" % n for n in range(50)]


async def test_a_killed_server_ends_everything_that_waits(own_server: RedisServer, dialed: Dialed) -> None:
    lost = Calls()
    wire = await dialed(own_server.url("redis"), None, lost)
    ear = await dialed(own_server.url(), lambda answer: None, lost)
    own_server.freeze()
    answer = wire.call("INCR", "n")
    own_server.kill()
    with pytest.raises(RedisLost):
        await answer
    await lost.count(2)
    ear.send("PING")  # to nobody


async def test_whoever_closes_is_told_by_nobody_but_the_one_who_waits(own_server: RedisServer, dialed: Dialed) -> None:
    lost = Calls()
    wire = await dialed(own_server.url(), None, lost)
    own_server.freeze()
    answer = wire.call("GET", "k")
    wire.close()
    wire.close()
    with pytest.raises(RedisLost, match="closed by us"):
        await answer
    assert lost.seen == []
    own_server.kill()


async def test_what_does_not_speak_the_protocol_is_ended(tmp_path: Path, dialed: Dialed) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.transport.abort()

    async with await asyncio.start_unix_server(answer, str(tmp_path / "s")):
        lost = Calls()
        wire = await dialed(f"unix://{tmp_path}/s", None, lost)
        with pytest.raises(RedisLost, match="does not speak the protocol"):
            await wire.call("PING")
        assert "protocol" in (await lost.count(1))[0]


async def test_answers_to_nobody_are_passed_over() -> None:
    wire = RedisWire("here")
    wire.data_received(b"+OK\r\n")
    with pytest.raises(RedisLost, match="not connected"):
        wire.begin(None, lambda cause: None)


# Hearing


async def test_what_is_published_is_heard(url: str, server: RedisServer, dialed: Dialed) -> None:
    heard = Calls()
    ear = await dialed(url, heard)
    ear.send("SUBSCRIBE", "a")
    ear.send("PSUBSCRIBE", "b*")
    await heard.count(2)
    server.cli("PUBLISH", "a", b"\xff1")
    server.cli("PUBLISH", "bc", "2")
    assert (await heard.count(4))[2:] == [[b"message", b"a", b"\xff1"], [b"pmessage", b"b*", b"bc", b"2"]]


async def test_an_error_is_heard_as_one(url: str, dialed: Dialed) -> None:
    heard = Calls()
    ear = await dialed(url, heard)
    ear.send("SUBSCRIBE")
    assert [type(answer) for answer in await heard.count(1)] == [RedisRefused]


async def test_silence_is_a_ping_after_which_nothing_came(own_server: RedisServer, dialed: Dialed) -> None:
    heard = Calls()
    wire, ear = await dialed(own_server.url()), await dialed(own_server.url(), heard)
    own_server.freeze()
    wire.call("GET", "k")
    ear.send("SUBSCRIBE", "a")
    assert (wire.silent, ear.silent) == (False, False)
    answer = wire.call("PING")
    ear.send("PING")
    wire.call("GET", "k")
    assert (wire.silent, ear.silent) == (True, True)
    own_server.thaw()
    await answer
    await heard.count(1)
    assert (wire.silent, ear.silent) == (False, False)


# Connecting


async def test_nobody_there_is_an_os_error_that_says_where(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(OSError, match=f"redis redis://127.0.0.1:{port}: cannot connect"):
        await dial(f"redis://127.0.0.1:{port}", None, lambda cause: None)
    with pytest.raises(OSError, match="cannot connect"):
        await dial(f"unix://{tmp_path}/nobody", None, lambda cause: None)
    with pytest.raises(InvalidSetting):
        await dial("nonsense", None, lambda cause: None)


async def test_a_connection_that_ends_in_the_login_is_an_os_error(proxy: Proxy) -> None:
    proxy.refuse()
    with pytest.raises(OSError, match="no answer"):
        await dial(proxy.url + "?protocol=3", None, lambda cause: None)
    proxy.heal()
    proxy.to_client.cut_after = 7
    with pytest.raises(OSError, match="no answer"):
        await dial(proxy.url + "?protocol=3", None, lambda cause: None)


@pytest.mark.usefixtures("impatient")
async def test_a_black_hole_takes_bounded_time_and_leaves_nothing(proxy: Proxy) -> None:
    proxy.swallow()
    with pytest.raises(OSError, match=r"no answer within 0.2 s"):
        await dial(proxy.url + "?protocol=3", None, lambda cause: None)


async def test_a_dial_can_be_cancelled_at_any_step_and_leaves_nothing(server: RedisServer, proxy: Proxy) -> None:
    proxy.swallow()
    for step in range(8):
        task = asyncio.ensure_future(dial(proxy.url + "?protocol=3&db=1", None, lambda cause: None))
        for _ in range(step):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    proxy.heal()
    wire = await dial(proxy.url + "?protocol=3&db=1", None, lambda cause: None)
    assert await wire.call("PING") == b"PONG"
    wire.close()


async def test_a_database_of_its_own(server: RedisServer, dialed: Dialed) -> None:
    server.cli("SET", "k", 0)
    assert await (await dialed(server.url(db=3))).call("GET", "k") is None
    with pytest.raises(RedisRefused, match="ERR"):
        await dialed(server.url(db=999))


# Who one is


@pytest.fixture(scope="module")
def locked(found: Found) -> Iterator[RedisServer]:
    with RedisServer(found.binary, tcp=True, password="canary", users=["bob on >secret ~* +get"]) as server:
        yield server


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_password_opens_and_a_wrong_one_does_not(locked: RedisServer, dialed: Dialed, protocol: int) -> None:
    assert await (await dialed(locked.url("redis", protocol=protocol))).call("PING") == b"PONG"
    with pytest.raises(RedisRefused, match="mend user or password in redis_url") as raised:
        await dialed(locked.url(password="canary-2", protocol=protocol))
    assert raised.value.code == "WRONGPASS"
    assert "canary" not in str(raised.value)


async def test_without_a_password_it_says_that_one_is_needed(locked: RedisServer, dialed: Dialed) -> None:
    wire = await dialed(locked.url(password=""))
    with pytest.raises(RedisRefused, match="give user and password in redis_url") as raised:
        await wire.call("PING")
    assert raised.value.code == "NOAUTH"
    with pytest.raises(RedisRefused) as raised:
        await dialed(locked.url(password="", protocol=3))
    assert raised.value.code == "NOAUTH"


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_user_who_may_not_is_told_so(locked: RedisServer, dialed: Dialed, protocol: int) -> None:
    wire = await dialed(locked.url(user="bob", password="secret", protocol=protocol))
    assert await wire.call("GET", "k") is None
    with pytest.raises(RedisRefused, match=r"docs/redis\.md") as raised:
        await wire.call("SET", "k", 1)
    assert raised.value.code == "NOPERM"
    with pytest.raises(RedisRefused) as raised:
        await dialed(locked.url(user="bob", password="secret", db=1, protocol=protocol))
    assert raised.value.code == "NOPERM", "and not that the password is wrong"


@pytest.mark.parametrize(("text", "code"), [
    ("READONLY You can't write against a read only replica.", "READONLY"),
    ("ERR Error running script (call to f_1): @user_script:12: -OOM command not allowed", "OOM"),
    ("ERR Error running script (call to f_1): @user_script: 3: Script attempted to access a non local key", "ERR"),
    ("NOSCRIPT No matching script. Please use EVAL.", "NOSCRIPT"),
])
def test_the_code_is_that_of_the_inner_error(text: str, code: str) -> None:
    assert refused("here", text).code == code


# TLS


@pytest.fixture(scope="module", params=[found for found in servers() if speaks_tls(found.binary)], ids=lambda found: found.name)
def secured(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with RedisServer(request.param.binary, tls=True, password="x") as server:
        yield server


async def test_a_certificate_of_the_right_authority_is_taken(secured: RedisServer, dialed: Dialed) -> None:
    lost = Calls()
    wire = await dialed(secured.url("rediss"), None, lost)
    assert await wire.call("SET", "k", b"x" * 100_000) == b"OK"
    assert await wire.call("GET", "k") == b"x" * 100_000
    secured.cli("CLIENT", "KILL", "TYPE", "normal")
    await lost.count(1)


async def test_any_other_is_refused(secured: RedisServer, tmp_path: Path) -> None:
    import trustme

    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    for wrong in (secured.url("rediss", ssl_ca_certs=tmp_path / "other.pem"), secured.url("rediss").partition("?")[0]):
        with pytest.raises(OSError, match="certificate verify failed"):
            await dial(wrong, None, lambda cause: None)


async def test_a_certificate_for_another_name_is_refused(secured: RedisServer) -> None:
    elsewhere = secured.url("rediss").replace("127.0.0.1", "127.1")  # the same address, and not the name that was signed
    with pytest.raises(OSError, match="certificate verify failed"):
        await dial(elsewhere, None, lambda cause: None)


async def test_files_that_are_not_there_are_named_by_their_option(secured: RedisServer, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="ssl_ca_certs"):
        await dial(secured.url("rediss", ssl_ca_certs=tmp_path / "none.pem"), None, lambda cause: None)
    with pytest.raises(OSError, match="ssl_certfile"):
        await dial(secured.url("rediss", ssl_certfile=tmp_path / "none.pem"), None, lambda cause: None)


# Sentinel


@pytest.fixture(scope="module")
def watched(found: Found) -> Iterator[tuple[RedisServer, RedisServer]]:
    with RedisServer(found.binary, tcp=True, password="x") as primary, \
            RedisServer(found.binary, sentinel_of={"main": primary.address}) as sentinel:
        yield primary, sentinel


def places(*ports: int) -> str:
    return ",".join(f"127.0.0.1:{port}" for port in ports)


async def test_a_sentinel_names_the_primary(watched: tuple[RedisServer, RedisServer], dialed: Dialed) -> None:
    primary, sentinel = watched
    wire = await dialed(f"redis+sentinel://:x@{places(sentinel.port)}/main?db=1&protocol=3")
    assert await wire.call("CONFIG", "GET", "port") == {b"port": str(primary.port).encode()}


@pytest.mark.usefixtures("impatient")
async def test_a_sentinel_that_is_dead_or_deaf_is_passed_over(watched: tuple[RedisServer, RedisServer], dialed: Dialed) -> None:
    _, sentinel = watched
    async with Proxy(sentinel.address) as deaf:
        deaf.swallow()
        wire = await dialed(f"redis+sentinel://:x@{places(free_port(), deaf.address[1], sentinel.port)}/main")
        assert await wire.call("PING") == b"PONG"


@pytest.mark.usefixtures("impatient")
async def test_no_sentinel_that_knows_is_an_os_error(watched: tuple[RedisServer, RedisServer]) -> None:
    _, sentinel = watched
    with pytest.raises(OSError, match="does not know other"):
        await dial(f"redis+sentinel://:x@{places(sentinel.port)}/other", None, lambda cause: None)
    async with Proxy(sentinel.address) as deaf:
        deaf.swallow()
        with pytest.raises(OSError, match=r"no Sentinel names the primary: .*no answer"):
            await dial(f"redis+sentinel://:x@{places(free_port(), deaf.address[1])}/main", None, lambda cause: None)


async def test_every_error_of_a_dial_is_one_that_its_caller_expects(locked: RedisServer) -> None:
    for url in (locked.url(password="wrong"), f"redis://127.0.0.1:{free_port()}", "nonsense"):
        with pytest.raises((OSError, LogError, InvalidSetting)):
            await dial(url, None, lambda cause: None)
