"""The bridge: what one process does for its site, whoever it is, and what the sites tell each other through it."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from random import Random

import msgspec
import pytest

from lemegeton.bridge import ToldOfAll
from lemegeton.events import Expired, Gap, IncarnationBegun, RedisEvicts, Refused, RelayStalled, SubscriptionExpired
from lemegeton.lane import Lane
from lemegeton.relaying import Accepted, open_marks
from lemegeton.sharing import Shared, decode_state
from lemegeton.testing.fake_fs import FakeDisk, FakeFs
from lemegeton.testing.fake_runtime import runtime
from lemegeton.testing.proxy import Proxy
from lemegeton.testing.servers import RedisServer
from test_bus import child, end, line
from test_delivery import Gate, Got
from test_redis_side import Opened, fragile, quick, redis, send, shared_server, site, until

__all__ = ["fragile", "quick", "redis", "shared_server"]

MARKS, STREAM, ACKS = "relay:{message-stream:c}", "message-stream:c", "acks:{message-stream:c}"


def holds(opened: Opened) -> bool:
    return opened.bus.site.redis._bridge.holds  # type: ignore[attr-defined, no-any-return]


def hash_of(redis: RedisServer, key: str) -> dict[bytes, bytes]:
    answer = redis.cli("HGETALL", key)
    return dict(zip(answer[::2], answer[1::2], strict=True))


# ------------------------------------------------------------------------------------------------ one for all


async def test_what_was_brought_for_a_sender_that_lives_is_remembered_until_it_can_be_written_down() -> None:
    machine = runtime(FakeFs(FakeDisk(Random(1))))
    machine.fs.mkdir("/redis", 0o700)
    lanes = [Lane(channel, "a~s~0", 1, 1) for channel in "cde"]
    told = ToldOfAll(machine, "/redis")

    def known() -> list[int]:
        told.close()
        return [told.get(lane) for lane in lanes]

    owner = Accepted(open_marks(machine.fs, "/redis", "a~s~0", machine.boot_id, 1))
    owner.put(lanes[0], 7)
    told.put(lanes[1], 3)
    told.put(lanes[1], 2)
    owner.put(lanes[2], 4)
    assert known() == [7, 3, 4]
    owner.close()
    assert known() == [7, 3, 4]
    assert [ToldOfAll(machine, "/redis").get(lane) for lane in lanes] == [7, 3, 4]
    told.close()


async def test_one_process_of_a_site_holds_the_bridge_and_another_takes_it_over(redis: RedisServer, tmp_path: Path) -> None:
    async with site(tmp_path / "a", redis, "second") as second:
        async with site(tmp_path / "a", redis, "first") as first:
            await until(lambda: holds(first) or holds(second))
            await asyncio.sleep(0.2)
            assert holds(first) != holds(second)
        await until(lambda: holds(second))


async def test_what_a_dead_process_did_not_bring_another_of_its_site_does(fragile: RedisServer, tmp_path: Path) -> None:
    got = Got()
    process = child("""
        for n in range(20): await bus.publish("c", n)
        say("published")
        os.kill(os.getpid(), signal.SIGKILL)
    """, tmp_path / "a")
    assert await line(process) == "published"
    assert await end(process) == -signal.SIGKILL
    async with site(tmp_path / "b", fragile, "bob") as b:
        await b.bus.subscribe("c", got, durable="d", start="earliest")
        async with site(tmp_path / "a", fragile):
            await got.reach(20)
    assert got.payloads == list(range(20))


async def test_what_a_process_that_is_cut_off_cannot_bring_another_of_its_site_does(
    redis: RedisServer, tmp_path: Path
) -> None:
    got = Got()
    async with Proxy(redis.address) as proxy, site(tmp_path / "a", redis, "helper"), \
            site(tmp_path / "a", proxy.url, "cut") as cut, site(tmp_path / "b", redis, "bob") as b:
        await b.bus.subscribe("c", got, durable="d")
        await send(cut, 0)
        await got.reach(1)
        proxy.refuse()
        proxy.kill()
        await cut.until_up(False)
        await send(cut, *range(1, 30))
        await got.reach(30)
        proxy.heal()
        await cut.until_up()
        await send(cut, 30)
        await got.reach(31)
        assert got.payloads == list(range(31))
        assert redis.cli("XLEN", STREAM) == 31


async def test_what_was_brought_for_a_dead_process_is_brought_again_when_the_redis_forgets(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with Proxy(redis.address) as proxy, site(tmp_path / "a", redis, "helper"):
        proxy.refuse()
        async with site(tmp_path / "a", proxy.url, "dead") as dead:
            await send(dead, *range(3))
        await until(lambda: redis.cli("XLEN", STREAM) == 3)
        redis.cli("FLUSHALL")  # no connection is cut: nobody is told of it
        await until(lambda: redis.cli("XLEN", STREAM) == 3)


async def test_an_error_of_the_redis_is_an_event_and_the_bridge_goes_on(redis: RedisServer, tmp_path: Path) -> None:
    async with site(tmp_path / "a", redis) as a:
        await send(a, 1)
        await a.relayed()
        redis.cli("SET", "subscriptions", "text")
        await until(lambda: any(event.lane.channel == "(bridge)" for event in a.of(RelayStalled)))
        redis.cli("DEL", "subscriptions")
        await a.bus.subscribe("c", Got(), durable="d")
        await until(lambda: redis.cli("HLEN", "subscriptions"))


async def test_a_redis_that_evicts_is_an_event_once_a_connection(fragile: RedisServer, tmp_path: Path) -> None:
    fragile.cli("CONFIG", "SET", "maxmemory", "100mb")
    fragile.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
    async with site(tmp_path / "a", fragile) as a:
        await until(lambda: a.of(RedisEvicts))
        assert "maxmemory-policy allkeys-random" in a.of(RedisEvicts)[0].cause


@pytest.mark.parametrize("kind", ["relay:{%s}", "acks:{%s}", "nacks:{%s}", "%s"])
async def test_a_channel_whose_keys_are_of_another_type_stops_no_other(kind: str, redis: RedisServer, tmp_path: Path) -> None:
    got, key = Got(), kind.replace("%s", "message-stream:a")
    redis.cli("SET", key, "text")
    async with site(tmp_path / "a", redis) as a, site(tmp_path / "b", redis, "bob") as b:
        await b.bus.subscribe(["a", "c"], got, durable="d")
        await send(a, 0, channel="a")
        await send(a, 1)
        await until(lambda: 1 in got.payloads)
        async with site(tmp_path / "c", redis, "carol") as c:
            late = Got()
            await c.bus.subscribe("c", late, durable="d", start="earliest")
            await late.reach(1)
        await until(lambda: a.of(RelayStalled) or b.of(Refused))
        redis.cli("DEL", key)
        await got.reach(2)
    assert sorted(got.payloads) == [0, 1]


# ------------------------------------------------------------------------------------------------ subscriptions and acks


async def test_durable_subscriptions_and_what_they_settled_are_told_and_ephemeral_ones_are_not(
    redis: RedisServer, tmp_path: Path
) -> None:
    got = Got()
    async with site(tmp_path / "a", redis) as a, site(tmp_path / "b", redis, "bob") as b:
        await b.bus.subscribe("c", got, durable="d")
        await b.bus.subscribe("c", Got())
        await send(a, *range(7))
        lane = f"{a.bus.stats().origin}.1.1".encode()
        site_id = b.bus.site.home.site  # type: ignore[attr-defined]
        await until(lambda: json.loads(hash_of(redis, ACKS).get(f"d@{site_id}".encode(), b"{}")).get(lane.decode()) == 7)
        (field, data), = hash_of(redis, "subscriptions").items()
        assert field.decode() == f"d@{site_id}"
        assert json.loads(data)["patterns"] == ["c"]
        await b.bus.unsubscribe("c", forget=True)
        await until(lambda: [json.loads(told)["patterns"] for told in hash_of(redis, "subscriptions").values()] == [[]])


async def test_what_a_redis_forgot_of_subscriptions_is_told_again(redis: RedisServer, tmp_path: Path) -> None:
    got = Got()
    async with site(tmp_path / "a", redis) as a, site(tmp_path / "b", redis, "bob") as b:
        await b.bus.subscribe("c", got, durable="d")
        await send(a, 1)
        await until(lambda: redis.cli("HLEN", "subscriptions") and redis.cli("HLEN", ACKS))
        redis.cli("CLIENT", "KILL", "TYPE", "normal")
        redis.cli("FLUSHALL")
        await until(lambda: redis.cli("HLEN", "subscriptions") and redis.cli("HLEN", ACKS))


async def test_a_subscription_of_another_site_that_nobody_sees_any_more_expires_with_an_event(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with site(tmp_path / "a", redis, abandoned_after=3600.0) as a:
        now_ms = a.bus.site.wall_ms()
        for name, ago_s in (("old@far", 3700), ("young@far", 3500)):
            redis.cli("HSET", "subscriptions", name, msgspec.json.encode(Shared(("c",), now_ms - ago_s * 1000)))
        await until(lambda: a.of(SubscriptionExpired))
        assert [event.subscription for event in a.of(SubscriptionExpired)] == ["old@far"]
        assert list(hash_of(redis, "subscriptions")) == [b"young@far"]


async def test_the_stream_keeps_what_a_durable_subscription_elsewhere_has_not_settled(
    redis: RedisServer, tmp_path: Path
) -> None:
    gate = Gate()
    async with site(tmp_path / "a", redis, max_stream_length=5) as a, site(tmp_path / "b", redis, "bob") as b:
        await b.bus.subscribe("c", gate, durable="d")
        await until(lambda: redis.cli("HLEN", "subscriptions"))
        await send(a, *range(40))
        await gate.inside.wait()
        await asyncio.sleep(0.5)
        assert redis.cli("XLEN", STREAM) == 40
        gate.opened.set()
        await until(lambda: redis.cli("XLEN", STREAM) == 5)
        assert gate.got == list(range(40))


async def test_the_stream_keeps_what_a_durable_subscription_here_has_not_settled_of_another_site(
    redis: RedisServer, tmp_path: Path
) -> None:
    """The site that listens sends on that channel as well, so its own bridge trims the stream."""
    gate = Gate()
    async with site(tmp_path / "a", redis, max_stream_length=5) as a, \
            site(tmp_path / "b", redis, "bob", max_stream_length=5) as b:
        await b.bus.subscribe("c", gate, durable="d")
        await until(lambda: redis.cli("HLEN", "subscriptions"))
        await send(a, *range(40))
        await a.relayed()
        await send(b, *range(40, 45))
        await b.relayed()
        await asyncio.sleep(0.5)
        assert redis.cli("XLEN", STREAM) == 45
        gate.opened.set()
        await until(lambda: redis.cli("XLEN", STREAM) == 5)
        assert sorted(gate.got) == list(range(45))


async def test_the_home_keeps_what_the_redis_and_other_sites_said_last(redis: RedisServer, tmp_path: Path) -> None:
    got = Got()
    async with site(tmp_path / "a", redis) as a, site(tmp_path / "b", redis, "bob") as b:
        await b.bus.subscribe("c", got, durable="d")
        await send(a, *range(4))
        await got.reach(4)
        (lane,) = a.bus.site.redis._files.own_lanes()  # type: ignore[attr-defined]
        path = tmp_path / "a" / "redis" / "remote.json"
        await until(lambda: path.exists() and decode_state(path.read_bytes()).accepted(lane) == 4)
        await until(lambda: [h.settled(lane) for h in decode_state(path.read_bytes()).as_holders()] == [4])
        assert not list(path.parent.glob("remote.json.*"))


async def test_a_home_keeps_what_is_owed_to_a_site_that_was_away_when_the_redis_forgot_it(
    redis: RedisServer, tmp_path: Path
) -> None:
    gate = Gate()
    path = tmp_path / "a" / "redis" / "remote.json"

    def holders() -> list[tuple[str, int]]:
        return [(h.name.partition("@")[0], h.settled(lane)) for h in decode_state(path.read_bytes()).as_holders()]

    async with site(tmp_path / "a", redis) as a:
        await send(a, 0)
        (lane,) = a.bus.site.redis._files.own_lanes()  # type: ignore[attr-defined]
        async with site(tmp_path / "b", redis, "bob") as b:
            await b.bus.subscribe("c", gate, durable="d")
            gate.opened.set()
            await send(a, 1)
            await until(lambda: path.exists() and holders() == [("d", 2)])
        redis.cli("FLUSHALL")
        await until(lambda: redis.cli("HLEN", MARKS) == 1)
        sweeps = path.stat().st_mtime_ns
        await until(lambda: path.stat().st_mtime_ns > sweeps)
        assert holders() == [("d", 2)]
        async with site(tmp_path / "b", redis, "bob") as b:
            await b.bus.subscribe("c", gate, durable="d")
            await until(lambda: bool(redis.cli("HLEN", "subscriptions")))
            await b.bus.unsubscribe("c", forget=True)
            await until(lambda: not any(h.matches("c") for h in decode_state(path.read_bytes()).as_holders()))


# ------------------------------------------------------------------------------------------------ markers


async def test_what_expired_before_it_was_sent_is_closed_by_a_marker(fragile: RedisServer, tmp_path: Path) -> None:
    got = Got()
    async with site(tmp_path / "a", fragile) as a, site(tmp_path / "b", fragile, "bob") as b:
        await b.bus.subscribe("c", got, durable="d")
        await send(a, 1)
        await got.reach(1)
        await asyncio.to_thread(fragile.kill)
        await a.until_up(False)
        await send(a, 2, 3, ttl=0.05)
        await send(a, 4)
        await send(a, 5, ttl=0.05)
        await asyncio.sleep(0.1)
        await asyncio.to_thread(fragile.start)
        await got.reach(2)
        await until(lambda: [event.seq for event in b.of(Expired)] == [3, 5])
        assert got.payloads == [1, 4]
        assert b.bus.stats().subscriptions[0].expired == 3
        assert not b.of(Gap)
        assert [m.payload for m in await b.bus.history("c")] == [1, 4]


async def test_what_expired_in_the_log_is_answered_by_a_marker_when_it_is_asked_for(
    redis: RedisServer, tmp_path: Path
) -> None:
    got = Got()
    async with site(tmp_path / "a", redis) as a:
        await send(a, 1)
        await send(a, 2, ttl=0.3)
        await send(a, 3)
        await a.relayed()
        for ident, _ in redis.cli("XRANGE", STREAM, "-", "+")[:2]:
            redis.cli("XDEL", STREAM, ident)
        await asyncio.sleep(0.35)
        async with site(tmp_path / "b", redis, "bob") as b:
            await b.bus.subscribe("c", got, durable="d", start="earliest")
            await got.reach(1)
            assert got.payloads in ([3], [1, 3])


async def test_a_damaged_record_is_a_gap_for_other_sites_and_costs_nothing_else(redis: RedisServer, tmp_path: Path) -> None:
    got = Got()
    async with Proxy(redis.address) as proxy:
        proxy.swallow()
        async with site(tmp_path / "a", proxy.url) as a:
            await send(a, *range(5))
            (segment,) = (tmp_path / "a" / "messages" / "c").glob("*.log")
            data = segment.read_bytes()
            lines = data.split(b"\n")
            at = len(b"\n".join(lines[:2])) + 20
            with open(segment, "r+b") as file:
                file.seek(at)
                file.write(b"#####")
    async with site(tmp_path / "a", redis), site(tmp_path / "b", redis, "bob") as b:
        await b.bus.subscribe("c", got, durable="d", start="earliest")
        await got.reach(4)
        assert got.payloads == [0, 1, 3, 4]
        assert [(gap.first, gap.last) for gap in b.of(Gap)] == [(3, 3)]


async def test_what_no_log_has_any_more_is_a_gap_for_who_asks(redis: RedisServer, tmp_path: Path) -> None:
    got = Got()
    async with site(tmp_path / "a", redis, segment_bytes=4096, max_stream_length=5) as a:
        async with site(tmp_path / "b", redis, "bob") as b:
            await b.bus.subscribe("c", got, durable="d")
            await send(a, 0)
            await got.reach(1)
        await send(a, *range(1, 200))
        await a.relayed()
        (lane,) = a.bus.site.redis._files.own_lanes()  # type: ignore[attr-defined]
        await a.bus.site.redis._files.trim(lane, 150)  # type: ignore[attr-defined]
        redis.cli("XTRIM", STREAM, "MAXLEN", "5")
        async with site(tmp_path / "b", redis, "bob") as b:
            await b.bus.subscribe("c", got, durable="d")
            await until(lambda: got.payloads[-1] == 199)
            gaps = [(gap.first, gap.last) for gap in b.of(Gap)]
            assert (gaps[0][0], gaps[-1][1]) == (2, got[1].seq - 1)
            assert got.payloads == [0, *range(got[1].payload, 200)]
            assert 100 < got[1].payload <= 150


# ------------------------------------------------------------------------------------------------ incarnations


async def test_another_site_handles_incarnations_in_order_though_the_end_of_the_earlier_comes_last(
    redis: RedisServer, tmp_path: Path
) -> None:
    got = Got()
    home = tmp_path / "a"
    async with site(tmp_path / "b", redis, "bob") as b:
        async with site(home, redis) as a:
            await b.bus.subscribe("c", got, durable="d")
            await send(a, 0, 1)
            await got.reach(2)
            await a.relayed()
        async with Proxy(redis.address) as proxy:
            proxy.swallow()
            async with site(home, proxy.url) as a:
                await send(a, 2, 3)
        (segment,) = (home / "messages" / "c").glob("*.log")
        with open(segment, "ab") as file:
            file.write(b"torn")
        heard: list[bytes] = []
        b.link.hear("c", lambda _, data: heard.append(data))
        async with site(home, redis) as a:
            await send(a, 4)  # it goes at once; the end of the earlier one waits for the bridge
            await got.reach(5)
            assert a.of(IncarnationBegun)
            assert got.payloads == [0, 1, 2, 3, 4]
            assert b'"payload":4' in heard[0], "the later came first"


async def test_news_that_come_over_a_reconnect_are_news_for_an_ephemeral_reader(redis: RedisServer, tmp_path: Path) -> None:
    got = Got()
    async with Proxy(redis.address) as proxy, site(tmp_path / "b", proxy.url, "bob") as b:
        await b.until_up()
        await b.bus.subscribe("c", got)
        proxy.refuse()
        proxy.kill()
        await b.until_up(False)
        async with site(tmp_path / "a", redis) as a:
            await send(a, 1, 2)
            await a.relayed()
            proxy.heal()
            await b.until_up()
            await got.reach(2)
    assert got.payloads == [1, 2]


@pytest.mark.parametrize("kind", ["normal", "pubsub"])
async def test_connections_that_are_cut_again_and_again_lose_and_double_nothing(
    kind: str, redis: RedisServer, tmp_path: Path
) -> None:
    got = Got()
    async with site(tmp_path / "a", redis) as a, site(tmp_path / "b", redis, "bob") as b:
        await b.bus.subscribe("c", got, durable="d")
        for n in range(200):
            await send(a, n)
            if n % 40 == 0:
                redis.cli("CLIENT", "KILL", "TYPE", kind)
            await asyncio.sleep(0.002)
        await got.reach(200)
    assert got.payloads == list(range(200))


async def test_answers_that_are_lost_on_the_way_double_nothing_in_the_stream(redis: RedisServer, tmp_path: Path) -> None:
    got = Got()
    async with Proxy(redis.address) as proxy, site(tmp_path / "a", proxy.url) as a, site(tmp_path / "b", redis, "bob") as b:
        await b.bus.subscribe("c", got, durable="d")
        proxy.to_client.cut_every = 700
        for n in range(100):
            await send(a, n)
            await asyncio.sleep(0.003)
        proxy.heal()
        await got.reach(100)
        assert got.payloads == list(range(100))
        assert redis.cli("XLEN", STREAM) == 100
