"""Faults of the Redis that all sites share, and of the way to it; in the manner of `sim_faults`.

Only in a plan with one (`make_plan` with ``redis``); elsewhere there is nothing to strike.  What they lose is a copy, so
none of them declares a message as damaged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from random import Random

from lemegeton.testing.fake_redis import FakeRedisServer, Loss
from lemegeton.testing.fake_redis_net import LATENCY_S, FakeRedisNet, Trouble
from lemegeton.testing.sim_plan import SHARED_URL, local_url
from lemegeton.testing.sim_world import World

Strike = Callable[[World, Random], Awaitable[bool]]
REDIS_FAULTS: dict[str, Strike] = {}


def _strike(of: Callable[[World, FakeRedisNet, Random], Awaitable[None]]) -> Strike:
    """Enter a fault into `REDIS_FAULTS`."""

    @wraps(of)
    async def strike(world: World, rng: Random) -> bool:
        if world.net is None:
            return False
        await of(world, world.net, rng)
        return True

    REDIS_FAULTS[strike.__name__] = strike
    return strike


def _shared(net: FakeRedisNet) -> FakeRedisServer:
    return net.server(SHARED_URL)


def _channel_of(key: bytes) -> str:
    """The channel that a key is about; that of no channel is about all of them."""
    return key.decode().partition("message-stream:")[2].partition("}")[0]


def _whom(world: World, rng: Random) -> str:
    """One process, one site, or everybody, as `FakeRedisNet` names them."""
    site = rng.choice(world.sites)
    return rng.choice((f"{site.name}/", f"{site.name}/", f"{site.name}/{rng.choice(site.processes).spec.name}#", ""))


def _some_key(net: FakeRedisNet, rng: Random, part: bytes) -> bytes | None:
    """A key with this in its name."""
    found = [key for key in _shared(net).store.names() if part in key]
    return rng.choice(found) if found else None


# ── the server dies: 5, 6, 7, 8, 28 ──────────────────────────────────────────────────────────────────────────────────


async def _away(net: FakeRedisNet, url: str, rng: Random) -> None:
    """It comes back, and now and then says for a while that it loads."""
    await asyncio.sleep(rng.choice((0.0, 0.2, 2.0, 10.0)) * rng.random())
    net.up(url)
    if rng.random() < 0.3:
        net.server(url).loading = True
        await asyncio.sleep(rng.uniform(0, 3))
        net.server(url).loading = False


@_strike
async def redis_empty(world: World, net: FakeRedisNet, rng: Random) -> None:
    """5: the Redis is killed and starts with nothing."""
    net.crash(SHARED_URL, Loss.EMPTY)
    world.forgot()
    await _away(net, SHARED_URL, rng)


@_strike
async def redis_killed(world: World, net: FakeRedisNet, rng: Random) -> None:
    """6: it is killed and still has everything, or all but the last seconds."""
    loss = rng.choice((Loss.NONE, Loss.EVERYSEC, Loss.EVERYSEC))
    net.crash(SHARED_URL, loss)
    if loss is not Loss.NONE:
        world.forgot()
    await _away(net, SHARED_URL, rng)


@_strike
async def redis_restored(world: World, net: FakeRedisNet, rng: Random) -> None:
    """7: it comes back with what it was some seconds ago."""
    store = _shared(net).store
    store.save_every_s = rng.choice((1.0, 5.0))
    await asyncio.sleep(rng.uniform(0, 8))
    net.crash(SHARED_URL, Loss.SNAPSHOT)
    world.forgot()
    store.save_every_s = None
    await _away(net, SHARED_URL, rng)


@_strike
async def redis_failover(world: World, net: FakeRedisNet, rng: Random) -> None:
    """8: a replica takes over that is some commands behind."""
    lost = net.fail_over(SHARED_URL, rng.choice((0, 1, 3, 10, 100)))
    if lost:
        world.forgot()
    world.say(f"  {lost} commands lost")


@_strike
async def redis_clock(world: World, net: FakeRedisNet, rng: Random) -> None:
    """28: the clock of its host is set back, and it forgets everything or a stream: ids go back."""
    server = _shared(net)
    server.store.step(-rng.choice((1000, 60_000, 3_600_000)))
    stream = _some_key(net, rng, b"message-stream:")
    if rng.random() < 0.5 or stream is None:
        world.forgot()
        server.execute("FLUSHALL")
    else:
        world.forgot(_channel_of(stream))
        server.execute("DEL", stream)


# ── somebody else's hand: 9, 10 ──────────────────────────────────────────────────────────────────────────────────────


@_strike
async def redis_flush(world: World, net: FakeRedisNet, rng: Random) -> None:
    """9: FLUSHALL."""
    _shared(net).execute("FLUSHALL")
    world.forgot()


@_strike
async def redis_stream_gone(world: World, net: FakeRedisNet, rng: Random) -> None:
    """9: DEL of a stream, or of most of it (XTRIM MAXLEN 1)."""
    streams = _shared(net).streams()
    if streams:
        key = rng.choice(streams)
        world.forgot(_channel_of(key))
        _shared(net).execute(*rng.choice((("DEL", key), ("XTRIM", key, "MAXLEN", 1), ("XTRIM", key, "MAXLEN", 0))))


@_strike
async def redis_marks_gone(world: World, net: FakeRedisNet, rng: Random) -> None:
    """9: DEL of one hash: marks, acks, requests, subscriptions; or of the set of channels."""
    key = _some_key(net, rng, rng.choice((b"relay:", b"relay:", b"acks:", b"nacks:", b"subscriptions", b"channels")))
    if key is not None:
        world.forgot(_channel_of(key))
        _shared(net).execute("DEL", key)


@_strike
async def redis_entry_gone(world: World, net: FakeRedisNet, rng: Random) -> None:
    """9: XDEL of some entries."""
    server = _shared(net)
    streams = server.streams()
    for _ in range(rng.choice((1, 1, 5))):
        key = rng.choice(streams) if streams else b""
        entries = server.execute("XRANGE", key, "-", "+")
        if entries:
            world.forgot(_channel_of(key))
            server.execute("XDEL", key, rng.choice(entries)[0])


@_strike
async def redis_evicts(world: World, net: FakeRedisNet, rng: Random) -> None:
    """10: keys are evicted."""
    for _ in range(rng.choice((1, 2, 5))):
        key = _shared(net).evict()
        if key is not None:
            world.forgot(_channel_of(key))
        await asyncio.sleep(rng.uniform(0, 1))


# ── it refuses, or does not answer: 11, 12, 13, 14 ───────────────────────────────────────────────────────────────────


@_strike
async def redis_full(world: World, net: FakeRedisNet, rng: Random) -> None:
    """11: its memory is used up for a while."""
    _shared(net).oom = True
    await asyncio.sleep(rng.uniform(0.5, 10))
    _shared(net).oom = False


@_strike
async def redis_replica(world: World, net: FakeRedisNet, rng: Random) -> None:
    """12: it is a replica for a while."""
    _shared(net).readonly = True
    await asyncio.sleep(rng.uniform(0.5, 10))
    _shared(net).readonly = False


@_strike
async def redis_frozen(world: World, net: FakeRedisNet, rng: Random) -> None:
    """13, 14: SIGSTOP for up to 20 s; now and then it is killed meanwhile."""
    net.freeze(SHARED_URL)
    await asyncio.sleep(rng.choice((0.5, 3.0, 20.0)) * rng.random())
    if rng.random() < 0.2:
        net.crash(SHARED_URL, Loss.EVERYSEC)
        world.forgot()
        await _away(net, SHARED_URL, rng)
    net.thaw(SHARED_URL)


# ── the way to it: 15 to 20, 22, 26 ──────────────────────────────────────────────────────────────────────────────────


@_strike
async def redis_client_kill(world: World, net: FakeRedisNet, rng: Random) -> None:
    """15: CLIENT KILL TYPE normal or pubsub, every 50 ms for a while."""
    hearing = rng.choice((True, False, None))
    for _ in range(rng.choice((1, 1, 20))):
        net.cut(SHARED_URL, hearing=hearing)
        await asyncio.sleep(0.05)


@_strike
async def redis_reset(world: World, net: FakeRedisNet, rng: Random) -> None:
    """16: connections are reset after the request and before the answer, or before the request arrives."""
    name, every = rng.choice(("", "EVALSHA", "EVALSHA", "XRANGE")), rng.choice((0, 3, 7))
    net.light(rng.choice((1, 2, 7)), after=rng.random() < 0.7, name=name, every=every)
    await asyncio.sleep(rng.uniform(1, 10))
    net.fuse = None


@_strike
async def redis_black_hole(world: World, net: FakeRedisNet, rng: Random) -> None:
    """17, 19, 20: what some send, or are sent, or both, gets lost on the way."""
    whom, up = _whom(world, rng), rng.random() < 0.6
    net.hurt(whom, Trouble(up_lost=up, down_lost=not up or rng.random() < 0.5))
    await asyncio.sleep(rng.choice((1.0, 5.0, 15.0)) * rng.uniform(0.3, 1))
    net.mend(whom)


@_strike
async def redis_slow(world: World, net: FakeRedisNet, rng: Random) -> None:
    """18: a slow way for some, or a slow network."""
    whom = _whom(world, rng)
    net.hurt(whom, Trouble(delay_s=rng.choice((0.2, 1.0, 3.0))))
    net.latency_s = rng.choice((LATENCY_S, (0.01, 0.2)))
    await asyncio.sleep(rng.uniform(2, 15))
    net.mend(whom)
    net.latency_s = LATENCY_S


@_strike
async def redis_cut_off(world: World, net: FakeRedisNet, rng: Random) -> None:
    """19, 20, 22: some are cut off and refused, once for long or again and again."""
    whom = _whom(world, rng)
    for _ in range(rng.choice((1, 1, 8))):
        net.hurt(whom, Trouble(refuse=True))
        net.cut(whom=whom)
        await asyncio.sleep(rng.choice((0.3, 2.0, 15.0)) * rng.random())
        net.mend(whom)
        await asyncio.sleep(rng.uniform(0.3, 2))


@_strike
async def redis_output_limit(world: World, net: FakeRedisNet, rng: Random) -> None:
    """26: subscribers that do not keep up are cut."""
    net.output_max = rng.choice((200, 2000))
    await asyncio.sleep(rng.uniform(2, 15))
    net.output_max = 32 * 2**20


@_strike
async def local_redis_lost(world: World, net: FakeRedisNet, rng: Random) -> None:
    """5, 10: the Redis of one host starts with nothing; more often than not while the shared one is away."""
    if rng.random() < 0.7:
        net.crash(SHARED_URL, Loss.NONE)
        await asyncio.sleep(rng.uniform(1, 5))
    url = local_url(rng.choice(world.plan.sites).name)
    net.crash(url, Loss.EMPTY)
    await _away(net, url, rng)
    net.up(SHARED_URL)
