"""Two sites and one Redis: whatever happens to that, what was published on one is handled on the other, once and in order."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lemegeton import bridge, bus, redis_side, relaying
from lemegeton.bus import MessageBus
from lemegeton.errors import NotReached
from lemegeton.events import BusBroken, Event
from lemegeton.lane import Lane
from lemegeton.logs import redis as redis_log
from lemegeton.logs import redis_link, redis_scan
from lemegeton.testing.proxy import Proxy
from lemegeton.testing.servers import RedisServer, servers
from test_delivery import Got

WAIT_S = 15.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done every few seconds is done every few hundredths."""
    for module, name, value in (
        (bridge, "TICK_S", 0.05), (bridge, "SWEEP_S", 0.1), (bridge, "HELP_AFTER_S", 0.2), (bus, "TICK_S", 0.05),
        (redis_side, "FIRST_TRY_S", 0.5), (redis_side, "LEAVE_S", 0.3), (redis_log, "REFRESH_S", 0.3),
        (redis_scan, "ASK_AGAIN_S", 0.3), (relaying, "PROBE_S", 0.2), (relaying, "STALL_RETRY_S", 0.1),
        (redis_link, "CHECK_S", 0.1), (redis_link, "AGAIN_S", (0.01, 0.05)),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    with RedisServer(servers()[-1].binary, tcp=True) as server:
        yield server


@pytest.fixture
def redis(shared_server: RedisServer) -> RedisServer:
    """A server with nothing in it, which a test may hurt as long as it lives on."""
    shared_server.cli("FLUSHALL")
    return shared_server


@pytest.fixture
def fragile() -> Iterator[RedisServer]:
    """A server to kill."""
    with RedisServer(servers()[-1].binary, tcp=True) as server:
        yield server


class Opened:
    """A bus of a site, and what it told."""

    def __init__(self, bus: MessageBus) -> None:
        self.bus = bus
        self.events: list[Event] = []
        bus.on("*", self.events.append)

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def until_up(self, up: bool = True) -> None:
        await until(lambda: self.link.up is up)

    @property
    def link(self) -> redis_link.Link:
        """The shared Redis."""
        return self.bus.site.redis.link  # type: ignore[attr-defined, no-any-return]

    async def relayed(self) -> None:
        """Wait until the shared Redis has everything."""
        await self.until_up()
        await until(lambda: self.bus.site.redis._relaying.idle)  # type: ignore[attr-defined]


async def until(check: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not check():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def site(home: Path, url: str | RedisServer, name: str = "alice", **settings: Any) -> AsyncIterator[Opened]:
    """A bus in a home of its own."""
    url = url.url() if isinstance(url, RedisServer) else url
    opened = Opened(MessageBus(name, **{"home": str(home), "redis_url": url, "local_redis": "off", **settings}))
    async with opened.bus:
        yield opened


async def send(opened: Opened, *payloads: Any, channel: str = "c", **options: Any) -> None:
    for payload in payloads:
        await opened.bus.publish(channel, payload, **options)


# ------------------------------------------------------------------------------------------------ the paths


async def test_a_doorbell_brings_a_message_to_another_site_at_once(redis: RedisServer, tmp_path: Path) -> None:
    got = Got()
    async with site(tmp_path / "a", redis) as a, site(tmp_path / "b", redis, "bob") as b:
        await b.bus.subscribe("c", got, durable="d")
        await send(a, *range(50))
        await got.reach(50)
        assert got.payloads == list(range(50))
        assert {message.redelivered for message in got} == {False}
        await until(lambda: a.bus.mode.value == b.bus.mode.value == "distributed")
    assert a.bus.relayed


async def test_the_history_of_another_site_is_as_it_is_now_though_nobody_listens(redis: RedisServer, tmp_path: Path) -> None:
    async with site(tmp_path / "b", redis, "bob") as b:
        await b.until_up()
        for n in range(3):
            async with site(tmp_path / "a", redis, f"alice-{n}") as a:
                await send(a, n, ack="redis")
            assert [message.payload for message in await b.bus.history("c")] == list(range(n + 1))


async def test_what_came_while_a_reader_was_away_is_in_the_stream(redis: RedisServer, tmp_path: Path) -> None:
    got = Got()
    async with site(tmp_path / "a", redis) as a:
        async with site(tmp_path / "b", redis, "bob") as b:
            await b.bus.subscribe("c", got, durable="d")
            await send(a, 1, 2)
            await got.reach(2)
        await send(a, *range(3, 1000))
        async with site(tmp_path / "b", redis, "bob") as b:
            await b.bus.subscribe("c", got, durable="d")
            await got.reach(999)
            await send(a, 1000)
            await got.reach(1000)
    assert got.payloads == list(range(1, 1001))


async def test_a_glob_finds_channels_of_other_sites_old_and_new(redis: RedisServer, tmp_path: Path) -> None:
    got = Got()
    async with site(tmp_path / "a", redis) as a, site(tmp_path / "b", redis, "bob") as b:
        await send(a, 1, channel="agent-x")
        await a.relayed()
        await b.bus.subscribe("agent-*", got, durable="d", start="earliest")
        await got.reach(1)
        await send(a, 2, channel="agent-y")
        await send(a, 3, channel="other")
        await got.reach(2)
    assert got.payloads == [1, 2]


async def test_traffic_of_one_site_does_not_go_through_redis_twice(redis: RedisServer, tmp_path: Path) -> None:
    here, there = Got(), Got()
    async with site(tmp_path / "a", redis) as a, site(tmp_path / "a", redis, "carol") as c, site(tmp_path / "b", redis) as b:
        await c.bus.subscribe("c", here, durable="d")
        await b.bus.subscribe("c", there, durable="d")
        await send(a, *range(20))
        await send(b, *range(20, 40))
        await here.reach(40)
        await there.reach(40)
        assert sorted(here.payloads) == sorted(there.payloads) == list(range(40))
        assert redis.cli("XLEN", "message-stream:c") == 40


async def test_a_reader_further_behind_than_the_stream_is_long_is_sent_the_rest(redis: RedisServer, tmp_path: Path) -> None:
    got = Got()
    async with site(tmp_path / "a", redis, max_stream_length=20) as a:
        async with site(tmp_path / "b", redis, "bob", max_stream_length=20) as b:
            await b.bus.subscribe("c", got, durable="d")
            await send(a, 0)
            await got.reach(1)
        await send(a, *range(1, 2000))
        await a.relayed()
        assert redis.cli("XLEN", "message-stream:c") < 500
        async with site(tmp_path / "b", redis, "bob", max_stream_length=20) as b:
            await b.bus.subscribe("c", got, durable="d")
            await got.reach(2000)
            assert got.payloads == list(range(2000))
            assert not [event for event in b.events if event.name == "gap"]
            await until(lambda: not redis.cli("EXISTS", "nacks:{message-stream:c}"))


# ------------------------------------------------------------------------------------------------ what a Redis forgets

FORGETS: dict[str, list[tuple[str, ...]]] = {
    "everything": [("FLUSHALL",)],
    "the stream": [("DEL", "message-stream:c")],
    "the marks": [("DEL", "relay:{message-stream:c}")],
    "most of the stream": [("XTRIM", "message-stream:c", "MAXLEN", "1")],
    "the channels": [("DEL", "channels")],
    "the scripts": [("SCRIPT", "FLUSH")],
}


@pytest.mark.parametrize("what", FORGETS)
async def test_whatever_a_redis_forgets_under_load_everything_arrives_once(
    what: str, redis: RedisServer, tmp_path: Path
) -> None:
    got = Got()
    async with site(tmp_path / "a", redis) as a, site(tmp_path / "b", redis, "bob") as b:
        await b.bus.subscribe("c", got, durable="d")
        for n in range(300):
            await send(a, n)
            if n % 100 == 50:
                for command in FORGETS[what]:
                    redis.cli(*command)
            if n % 10 == 0:
                await asyncio.sleep(0.002)
        await got.reach(300)
        assert got.payloads == list(range(300))
        assert not [event for event in b.events if event.name == "gap"]


@pytest.mark.parametrize("what", FORGETS)
async def test_whatever_a_redis_forgets_while_nobody_sends_a_reader_that_was_away_gets_everything(
    what: str, redis: RedisServer, tmp_path: Path
) -> None:
    got = Got()
    async with site(tmp_path / "a", redis) as a:
        async with site(tmp_path / "b", redis, "bob") as b:
            await b.bus.subscribe("c", got, durable="d")
            await send(a, 0)
            await got.reach(1)
        await send(a, *range(1, 30))
        await a.relayed()
        for command in FORGETS[what]:
            redis.cli(*command)
        async with site(tmp_path / "b", redis, "bob") as b:
            await b.bus.subscribe("c", got, durable="d")
            await got.reach(30)
            assert got.payloads == list(range(30))
            assert not [event for event in b.events if event.name == "gap"]


async def test_one_entry_that_was_deleted_is_sent_again(redis: RedisServer, tmp_path: Path) -> None:
    got = Got()
    async with site(tmp_path / "a", redis) as a:
        await send(a, *range(10))
        await a.relayed()
        ident = redis.cli("XRANGE", "message-stream:c", "-", "+")[4][0]
        redis.cli("XDEL", "message-stream:c", ident)
        async with site(tmp_path / "b", redis, "bob") as b:
            await b.bus.subscribe("c", got, durable="d", start="earliest")
            await got.reach(10)
            assert got.payloads == list(range(10))


@pytest.mark.parametrize("load", [True, False])
async def test_a_redis_that_is_killed_and_comes_back_empty_is_filled_again(
    load: bool, fragile: RedisServer, tmp_path: Path
) -> None:
    got = Got()
    async with site(tmp_path / "a", fragile) as a, site(tmp_path / "b", fragile, "bob") as b:
        await b.bus.subscribe("c", got, durable="d")
        await send(a, *range(100))
        if not load:
            await got.reach(100)
        await asyncio.to_thread(fragile.kill)
        await send(a, *range(100, 200))
        await a.until_up(False)
        await until(lambda: a.bus.mode.value == "isolated")
        await asyncio.to_thread(fragile.start)
        await got.reach(200)
        await send(a, 200)
        await got.reach(201)
    assert got.payloads == list(range(201))
    assert [message.redelivered for message in got].count(True) == 0


@pytest.mark.parametrize("load", [True, False])
async def test_a_frozen_redis_keeps_nobody_waiting_and_loses_nothing(load: bool, fragile: RedisServer, tmp_path: Path) -> None:
    got, near = Got(), Got()
    async with site(tmp_path / "a", fragile) as a, site(tmp_path / "b", fragile, "bob") as b:
        await b.bus.subscribe("c", got, durable="d")
        await a.bus.subscribe("c", near, durable="near")
        await send(a, *range(100))
        if not load:
            await got.reach(100)
        fragile.freeze()
        loop = asyncio.get_running_loop()
        longest = 0.0
        for n in range(100, 300):
            began = loop.time()
            await send(a, n)
            longest = max(longest, loop.time() - began)
        await near.reach(300)
        assert longest < 0.5
        await a.until_up(False)
        fragile.thaw()
        await got.reach(300)
    assert got.payloads == near.payloads == list(range(300))


async def test_a_redis_that_never_answers_keeps_nobody_from_beginning_publishing_or_ending(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with Proxy(redis.address) as proxy:
        proxy.swallow()
        loop, got = asyncio.get_running_loop(), Got()
        began = loop.time()
        async with site(tmp_path / "a", proxy.url) as a:
            await a.bus.subscribe("c", got)
            await send(a, *range(100))
            await got.reach(100)
        assert loop.time() - began < 2.0
        assert a.bus.relayed is False


# ------------------------------------------------------------------------------------------------ levels


async def test_the_level_redis_is_pending_while_it_is_down_and_reached_when_it_is_back(
    fragile: RedisServer, tmp_path: Path
) -> None:
    got = Got()
    async with site(tmp_path / "a", fragile) as a:
        assert (await a.bus.publish("c", 0, ack="redis")).level == "redis"
        assert fragile.cli("XLEN", "message-stream:c") == 1
        await asyncio.to_thread(fragile.kill)
        with pytest.raises(NotReached, match="stored and still goes"):
            await a.bus.publish("c", 1, ack="redis", timeout=0.1)
        pending = asyncio.ensure_future(a.bus.publish("c", 2, ack="redis"))
        await a.until_up(False)
        assert not pending.done()
        await asyncio.to_thread(fragile.start)
        await asyncio.wait_for(pending, WAIT_S)
        assert fragile.cli("XLEN", "message-stream:c") == 3
        async with site(tmp_path / "b", fragile, "bob") as b:
            await b.bus.subscribe("c", got, durable="d", start="earliest")
            await got.reach(3)
    assert got.payloads == [0, 1, 2]


async def test_many_who_wait_for_the_level_redis_are_all_answered(redis: RedisServer, tmp_path: Path) -> None:
    async with site(tmp_path / "a", redis) as a:
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*(a.bus.publish(f"c{n % 3}", n, ack="redis") for n in range(300)))
            for n in range(200):
                await a.bus.publish("c0", n, ack="redis")
        assert sum(redis.cli("XLEN", f"message-stream:c{n}") for n in range(3)) == 500


@pytest.mark.parametrize("appendonly", ["yes", "no"])
async def test_the_level_redis_disk_is_reached_only_where_there_is_a_disk(appendonly: str, tmp_path: Path) -> None:
    with RedisServer(servers()[-1].binary, settings={"appendonly": appendonly, "appendfsync": "always"}) as server:
        async with site(tmp_path / "a", server) as a:
            if appendonly == "yes":
                assert (await a.bus.publish("c", 1, ack="redis-disk", timeout=WAIT_S)).level == "redis-disk"
            else:
                with pytest.raises(NotReached, match="the shared Redis has the message, and cannot say"):
                    await a.bus.publish("c", 1, ack="redis-disk", timeout=WAIT_S)
        assert server.cli("XLEN", "message-stream:c") == 1


async def test_a_level_that_nobody_knows_is_refused_before_anything_is_written(redis: RedisServer, tmp_path: Path) -> None:
    async with site(tmp_path / "a", redis) as a:
        with pytest.raises(ValueError, match="must be one of"):
            await a.bus.publish("c", 1, ack="moon")  # type: ignore[arg-type]
        assert not redis.cli("EXISTS", "message-stream:c")


# ------------------------------------------------------------------------------------------------ who only listens


async def test_who_only_listens_hears_each_message_once_whatever_is_filled_in_again(
    fragile: RedisServer, tmp_path: Path
) -> None:
    heard: list[bytes] = []
    listener = redis_link.Link("plain", fragile.url(), dialer(), lambda _: None)
    listener.hear("c", lambda _, data: heard.append(data))
    listening = asyncio.ensure_future(listener.run())
    try:
        await until(lambda: listener.up)
        async with site(tmp_path / "a", fragile) as a:
            await send(a, 1, 2, 3)
            await until(lambda: len(heard) == 3)
            fragile.cli("FLUSHALL")
            await send(a, 4)
            await until(lambda: len(heard) == 4)
            await asyncio.to_thread(fragile.restart, empty=True)
            await until(lambda: listener.up and a.link.up)
            await until(lambda: fragile.cli("XLEN", "message-stream:c") == 4)
        async with site(tmp_path / "a", fragile) as a:  # the next owner of the origin knows what was told as well
            fragile.cli("FLUSHALL")
            await send(a, 5)
            await until(lambda: len(heard) >= 5)
            await a.relayed()
            assert fragile.cli("XLEN", "message-stream:c") == 5
        assert [b'"payload":%d' % n in data for n, data in enumerate(heard, 1)] == [True] * 5
    finally:
        listener.close()
        await listening


def dialer() -> Any:
    from lemegeton.redis_wire import dial

    return dial


async def test_without_persistence_other_sites_hear_what_is_published_and_nothing_is_kept(
    redis: RedisServer, tmp_path: Path
) -> None:
    got = Got()
    options = {"persist_messages": False}
    async with site(tmp_path / "a", redis, **options) as a, site(tmp_path / "b", redis, "bob", **options) as b:
        await b.bus.subscribe("c", got)
        await until(lambda: redis.cli("PUBSUB", "NUMSUB", "c")[1] >= 1)
        await send(a, *range(100))
        await got.reach(100)
        assert got.payloads == list(range(100))
        assert not redis.cli("EXISTS", "message-stream:c", "relay:{message-stream:c}")
        await a.bus.publish("c", 100, ack="redis", timeout=WAIT_S)


# ------------------------------------------------------------------------------------------------ apart


async def test_a_namespace_keeps_two_projects_apart(redis: RedisServer, tmp_path: Path) -> None:
    one, two = Got(), Got()
    async with site(tmp_path / "a", redis, namespace="one") as a, site(tmp_path / "b", redis, namespace="one") as b, \
            site(tmp_path / "c", redis, namespace="two") as c, site(tmp_path / "d", redis, namespace="two") as d:
        await b.bus.subscribe("c?", one, durable="d")
        await c.bus.subscribe("c?", two, durable="d")
        await send(a, 1, 2, channel="c1")
        await send(d, 3, channel="c1")
        await one.reach(2)
        await two.reach(1)
        await send(d, 4, channel="c1")
        await two.reach(2)
        assert (one.payloads, two.payloads) == ([1, 2], [3, 4])
        assert {key.partition(b":")[0] for key in redis.cli("KEYS", "*")} == {b"one", b"two"}


async def test_subscribed_while_redis_is_down_news_begin_at_the_first_contact_and_a_durable_one_at_the_oldest(
    fragile: RedisServer, tmp_path: Path
) -> None:
    news, durable = Got(), Got()
    dump = b""
    async with site(tmp_path / "a", fragile) as a:
        await send(a, *range(10))
        await a.relayed()
        dump = fragile.dump()
        await asyncio.to_thread(fragile.kill)
        async with site(tmp_path / "b", fragile, "bob") as b:
            await b.bus.subscribe("c", news, start="new")
            await b.bus.subscribe("c", durable, start="new", durable="d")
            await asyncio.to_thread(lambda: fragile.start(dump=dump))
            await b.until_up()
            await durable.reach(10)
            await send(a, 10, 11)
            await durable.reach(12)
            await news.reach(2)
    assert (news.payloads, durable.payloads) == ([10, 11], list(range(12)))


# ------------------------------------------------------------------------------------------------ garbage

ENTRIES: list[tuple[bytes | str, ...]] = [
    ("x", "y"),
    ("id", "1", "payload", b"\xff\xfe"),
    ("id", "1", "timestamp", "1", "type", "t", "from", "x", "to", "", "payload", "not json"),
    ("id", b"\xff", "timestamp", "1", "type", "t", "from", "x", "to", "", "payload", "1"),
    *(("id", "1", "timestamp", "1", "type", "t", "from", "x", "to", "", "payload", "1", "origin", "x~far~0", "inc", "1",
       "seq", seq) for seq in ("-1", str(2**63), "NaN", "1e400", "9" * 5000, "[]")),
    ("id", "1", "timestamp", "1", "type", "t", "from", "x", "to", "", "payload", "[" * 100_000),
]


async def test_entries_and_doorbells_that_are_garbage_are_counted_and_the_next_good_one_comes_soon(
    redis: RedisServer, tmp_path: Path
) -> None:
    got = Got()
    async with site(tmp_path / "a", redis) as a, site(tmp_path / "b", redis, "bob") as b:
        await b.bus.subscribe("c", got, durable="d")
        await send(a, 0)
        await got.reach(1)
        for fields in ENTRIES:
            redis.cli("XADD", "message-stream:c", "*", *fields)
        for data in (b"", b"garbage", b"\xff\xfe", b"[" * 100_000, b'{"seq":-1,"origin":"x~far~0","inc":1}',
                     b'{"seq":%d,"origin":"x~far~0","inc":1}' % 2**63, b'{"seq":NaN}',
                     b'{"origin":"../../etc","inc":1,"seq":1}'):
            redis.cli("PUBLISH", "c", data)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await send(a, 1)
        await got.reach(2)
        assert loop.time() - began < 2.0
        await until(lambda: b.bus.stats().events.get("refused", 0) >= len(ENTRIES) + 7)
        await send(a, 2)
        await got.reach(3)
    assert got.payloads == [0, 1, 2]


async def test_an_entry_with_the_highest_id_there_is_stops_nobody(redis: RedisServer, tmp_path: Path) -> None:
    got = Got()
    async with site(tmp_path / "a", redis) as a, site(tmp_path / "b", redis, "bob") as b:
        await b.bus.subscribe("c", got, durable="d")
        await send(a, 0)
        await got.reach(1)
        redis.cli("XADD", "message-stream:c", "9223372036854775807-0", "id", "1", "timestamp", "1", "type", "t", "from", "x",
                  "to", "", "payload", "1")
        await until(lambda: b.bus.stats().events.get("refused", 0) == 1)
        await send(a, 1)
        await got.reach(2)
        async with site(tmp_path / "c", redis, "carol") as c:
            late = Got()
            await c.bus.subscribe("c", late, durable="d", start="earliest")
            await late.reach(2)
            assert late.payloads == got.payloads == [0, 1]


GARBAGE: dict[str, list[tuple[bytes | str, ...]]] = {
    "marks": [("HSET", "relay:{message-stream:c}", b"\xff", b"\xff", "x~far~0.1.1", "9" * 5000, "y~far~0.1.1", "-5:1",
               "z~far~0.1.1", str(2**70) + ":1", "", "")],
    "marks of another type": [("DEL", "relay:{message-stream:c}"), ("SET", "relay:{message-stream:c}", "x")],
    "acks": [("HSET", "acks:{message-stream:c}", b"\xff", b"\xff", "d@far", '{"x":"y"}')],
    "requests": [("HSET", "nacks:{message-stream:c}", b"\xff", b"\xff", "x|y", "1-2", "x~far~0.1.1|", "1-2",
                  "x~far~0.1.1|far", "9" * 5000 + "-1")],
    "subscriptions": [("HSET", "subscriptions", b"\xff", b"\xff", "d@far", f'{{"patterns":["c"],"seen":{2**70}}}')],
    "channels": [("SADD", "channels", b"\xff", "", "x" * 1000, "a\nb")],
    "control": [("PUBLISH", "system:lemegeton", word) for word in (b"\xff", "n", "q")],
}


@pytest.mark.parametrize("where", GARBAGE)
async def test_garbage_where_others_write_their_marks_breaks_nobody(where: str, redis: RedisServer, tmp_path: Path) -> None:
    got = Got()
    async with site(tmp_path / "a", redis) as a, site(tmp_path / "b", redis, "bob") as b:
        await b.bus.subscribe("c", got, durable="d")
        await b.bus.subscribe("c*", Got(), durable="glob")
        await send(a, 0)
        await got.reach(1)
        for command in GARBAGE[where]:
            redis.cli(*command)
        await asyncio.sleep(0.5)
        await send(a, 1)
        if where == "marks of another type":
            await asyncio.sleep(0.2)
            redis.cli("DEL", "relay:{message-stream:c}")
        await got.reach(2)
        await send(b, 2)
    assert got.payloads[:2] == [0, 1]


async def test_our_own_mark_that_somebody_wrote_over_is_a_mark_like_any_other(redis: RedisServer, tmp_path: Path) -> None:
    got = Got()
    async with site(tmp_path / "a", redis) as a, site(tmp_path / "b", redis, "bob") as b:
        await b.bus.subscribe("c", got, durable="d")
        await send(a, 0)
        await got.reach(1)
        (field,) = redis.cli("HKEYS", "relay:{message-stream:c}")
        for mark in (b"1:x", b"x", b"1", b"\xff", b"1:" + b"9" * 5000, b""):
            redis.cli("HSET", "relay:{message-stream:c}", field, mark)
            await asyncio.sleep(0.25)
        await send(a, 1)
        await got.reach(2)
        assert got.payloads == [0, 1]


def copy_home(source: Path, target: Path) -> None:
    """A copy in the place of another, under the same inode: as a backup is restored."""
    import shutil

    for old in target.iterdir() if target.exists() else ():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=lambda d, names: [n for n in names if not os.path.isfile(
        f"{d}/{n}") and not os.path.isdir(f"{d}/{n}")])


# ------------------------------------------------------------------------------------------------ forks


@pytest.mark.parametrize("more", [2, 8])
async def test_a_restored_home_goes_on_in_a_new_incarnation_and_loses_nothing(
    more: int, redis: RedisServer, tmp_path: Path
) -> None:
    got, near = Got(), Got()
    home = tmp_path / "a"
    async with site(tmp_path / "b", redis, "bob") as b:
        await b.bus.subscribe("c", got, durable="d")
        async with site(home, redis) as a:
            await send(a, *range(5))
            await got.reach(5)
        copy_home(home, tmp_path / "copy")
        async with site(home, redis) as a:
            await send(a, *range(5, 10))
            await got.reach(10)
        copy_home(tmp_path / "copy", home)
        async with site(home, redis) as a:
            await a.bus.subscribe("c", near, durable="near", start="earliest")
            await send(a, *range(100, 100 + more))
            await until(lambda: [event for event in a.events if event.name == "lane_forked"])
            await got.reach(10 + more)
            await send(a, 200)
            await got.reach(11 + more)
            await near.reach(6 + more)
        assert got.payloads == [*range(10), *range(100, 100 + more), 200]
        assert near.payloads == [*range(5), *range(100, 100 + more), 200]


async def test_a_fork_of_a_lane_that_is_only_helped_is_its_writers_business(redis: RedisServer, tmp_path: Path) -> None:
    async with site(tmp_path / "a", redis) as a:
        side = a.bus.site.redis  # type: ignore[attr-defined]
        side._forked(Lane("c", f"other~{side.log._site}~0", 1, 1))
        await side.tick()
        await send(a, 1)
        await a.relayed()
    assert a.of(BusBroken) == []


async def test_a_copied_home_is_another_site_and_both_go_on(redis: RedisServer, tmp_path: Path) -> None:
    got, theirs = Got(), Got()
    async with site(tmp_path / "b", redis, "bob") as b:
        await b.bus.subscribe("c", got, durable="d")
        async with site(tmp_path / "a", redis) as a:
            await send(a, *range(5))
            await got.reach(5)
        copy_home(tmp_path / "a", tmp_path / "copy")
        async with site(tmp_path / "a", redis) as a, site(tmp_path / "copy", redis) as copy:
            await copy.bus.subscribe("c", theirs, durable="copy", start="earliest")
            await theirs.reach(5)
            await send(a, "a")
            await got.reach(6)
            await theirs.reach(6)
            await send(copy, "copy")
            await got.reach(7)
            await theirs.reach(7)
    assert got.payloads == theirs.payloads == [*range(5), "a", "copy"]


async def test_who_waits_for_the_level_redis_at_a_fork_gets_it_for_the_new_place(redis: RedisServer, tmp_path: Path) -> None:
    home = tmp_path / "a"
    async with site(home, redis) as a:
        await send(a, 0)
        await a.relayed()
    copy_home(home, tmp_path / "copy")
    async with site(home, redis) as a:
        await send(a, *range(1, 5))
        await a.relayed()
    copy_home(tmp_path / "copy", home)
    async with site(home, redis) as a:
        receipt = await asyncio.wait_for(a.bus.publish("c", 9, ack="redis"), WAIT_S)
        assert (receipt.level, receipt.lane) == ("redis", a.bus.site._file_log.own_lanes()[0])  # type: ignore[attr-defined]
        assert [event for event in a.events if event.name == "lane_forked"]


async def test_who_waits_for_the_level_redis_of_a_record_whose_lane_is_begun_again_is_told_so(
    fragile: RedisServer, tmp_path: Path
) -> None:
    fragile.kill()
    async with site(tmp_path / "a", fragile) as a:
        pending = asyncio.ensure_future(a.bus.publish("c", 0, ack="redis"))
        await until(lambda: list((tmp_path / "a" / "messages").rglob("*.log")))
        for segment in (tmp_path / "a" / "messages").rglob("*.log"):
            segment.unlink()
        await send(a, 1)
        with pytest.raises(NotReached, match="began again"):
            await asyncio.wait_for(pending, WAIT_S)
