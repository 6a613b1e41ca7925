"""The manager names the best path that works, tells everybody who asks, and changes nothing else.

Most of it runs on a virtual clock with a stand-in for the connection (not for the link); what a Redis does is asked of
real ones.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from lemegeton.codec import decode
from lemegeton.config import Settings
from lemegeton.errors import RedisLost, RedisRefused
from lemegeton.events import Event, ModeChanged, ModeSwitchIgnored, ModeUntold
from lemegeton.logs.redis_entries import Keys
from lemegeton.logs.redis_link import Link
from lemegeton.mode_board import ANSWER_S, HISTORY_MAX, read_history
from lemegeton.mode_rules import CoordinationMode
from lemegeton.mode_switch import AUTO, set_mode
from lemegeton.modes import FIRST_S, SWITCH_S, CoordinationModeManager
from lemegeton.osfs import os_runtime
from lemegeton.seams import Heard, Runtime, Wire
from lemegeton.testing.fake_fs import FakeDisk, FakeFs
from lemegeton.testing.fake_runtime import runtime
from lemegeton.testing.servers import Found, RedisServer
from test_delivery import in_virtual_time

DISTRIBUTED, DEGRADED, ISOLATED = CoordinationMode
KEYS = Keys()


class Server:
    """What a link connects to: up, down, frozen or refusing, with what it was told."""

    def __init__(self) -> None:
        self.down = self.frozen = False
        self.refuse: dict[str, str] = {}
        self.mute: set[str] = set()
        self.strings: dict[str, bytes] = {}
        self.history: dict[bytes, int] = {}
        self.published: list[tuple[str, bytes]] = []
        self.asked: list[str] = []
        self.wires: list[FakeWire] = []

    async def dial(self, url: str, heard: Heard | None, lost: Callable[[str], None], /) -> Wire:
        if self.down:
            raise ConnectionRefusedError("connection refused")
        self.wires.append(FakeWire(self, lost))
        return self.wires[-1]

    def fail(self) -> None:
        """It dies, and every link hears it."""
        self.down = True
        wires, self.wires = self.wires, []
        for wire in wires:
            wire.lost("closed by the server")

    def answer(self, command: str, *arguments: Any) -> Any:
        self.asked.append(command)
        if command in self.refuse:
            raise RedisRefused(self.refuse[command], code=self.refuse[command].split()[0])
        return getattr(self, f"on_{command.lower()}")(*arguments)

    def on_ping(self) -> bytes:
        return b"PONG"

    def on_getset(self, key: str, value: bytes) -> bytes | None:
        before = self.strings.get(key)
        self.strings[key] = value
        return before

    def on_set(self, key: str, value: str) -> bytes:
        self.strings[key] = value.encode()
        return b"OK"

    def on_zadd(self, key: str, *pairs: Any) -> int:
        self.history.update(zip(pairs[1::2], pairs[::2], strict=True))
        return 0

    def on_zremrangebyrank(self, key: str, first: int, last: int) -> int:
        for member in sorted(self.history, key=self.history.__getitem__)[:last + 1]:
            del self.history[member]
        return 0

    def on_publish(self, channel: str, data: bytes) -> int:
        self.published.append((channel, data))
        return 1


class FakeWire:
    def __init__(self, server: Server, lost: Callable[[str], None]) -> None:
        self.server = server
        self.lost = lost
        self.silent = False

    def call(self, *arguments: Any, packed: Any = None) -> asyncio.Future[Any]:
        answer = asyncio.get_running_loop().create_future()
        if self.server.frozen or arguments[0] in self.server.mute:
            return answer
        try:
            answer.set_result(self.server.answer(*arguments))
        except RedisRefused as error:
            answer.set_exception(error)
        return answer

    def send(self, *arguments: Any) -> None:
        """Nobody listens."""

    def close(self) -> None:
        if self in self.server.wires:
            self.server.wires.remove(self)


class World:
    """A manager, its two servers, and everything that was told."""

    def __init__(self, run: Runtime, home: str | None, settings: Settings, local: bool) -> None:
        self.runtime = run
        self.home = home
        self.events: list[Event] = []
        self.shared, self.local = Server(), Server()
        self.links = [Link("shared", "redis://s", self.shared.dial, self.events.append)]
        if local:
            self.links.append(Link("local", "redis://l", self.local.dial, self.events.append))
        self.manager = CoordinationModeManager(
            self.links[0], self.links[1] if local else None, home=home, settings=settings, name="alice", site="s1",
            observe=self.events.append, runtime=run)
        self.times: list[tuple[float, str]] = []
        self.manager.on_change(lambda: self.times.append((asyncio.get_running_loop().time(), self.manager.mode.value)))

    async def reach(self, mode: CoordinationMode, within_s: float = 60.0) -> None:
        async with asyncio.timeout(within_s):
            while self.manager.mode is not mode:
                await asyncio.sleep(0.01)

    @property
    def changed(self) -> list[tuple[str, str]]:
        return [(event.old, event.new) for event in self.events if isinstance(event, ModeChanged)]


@asynccontextmanager
async def world(
    *, local: bool = True, home: str | None = None, shared_down: bool = False, **settings: Any
) -> AsyncIterator[World]:
    fs = FakeFs(FakeDisk(Random(7)))
    if home is not None:
        fs.mkdir(home)
    found = World(runtime(fs), home, Settings(**settings), local)
    found.shared.down = shared_down
    async with asyncio.TaskGroup() as group:
        for link in found.links:
            group.create_task(link.run())
        group.create_task(found.manager.run())
        yield found
        for link in found.links:
            link.close()
        found.manager.close()


# ---------------------------------------------------------------------------------------------- the mode


@in_virtual_time
async def test_the_first_three_probes_follow_closely_and_make_it_distributed() -> None:
    async with world() as w:
        assert (w.manager.mode, w.manager.reason) == (ISOLATED, "nothing has answered yet")
        await w.reach(DISTRIBUTED)
        assert w.times == [(pytest.approx(2 * FIRST_S), "distributed")]
        assert w.changed == [("isolated", "distributed")]
        assert w.manager.reason == "the shared Redis answered 3 probes in a row"


@in_virtual_time
async def test_the_settings_say_how_many_probes_how_often_and_how_long_after() -> None:
    async with world(mode_probe_interval=0.5, mode_good_probes=2, mode_cooldown=20.0) as w:
        await w.reach(DISTRIBUTED)
        assert w.times[-1][0] == pytest.approx(FIRST_S)
        w.shared.fail()
        w.shared.down = False
        await w.reach(DEGRADED, 0.1)
        fallen = w.times[-1][0]
        await w.reach(DISTRIBUTED)
        assert 20.0 <= w.times[-1][0] - fallen <= 20.6


@in_virtual_time
async def test_it_falls_in_the_step_that_loses_the_link() -> None:
    async with world() as w:
        await w.reach(DISTRIBUTED)
        await asyncio.sleep(30.0)
        before = asyncio.get_running_loop().time()
        w.shared.fail()
        await w.reach(DEGRADED, 1.0)
        w.local.fail()
        await w.reach(ISOLATED, 1.0)
        assert asyncio.get_running_loop().time() - before < 0.1
        assert w.changed[1:] == [("distributed", "degraded"), ("degraded", "isolated")]
        assert [t.reason for t in w.manager.history][1:] == [
            "the shared Redis does not answer: closed by the server", "the local Redis does not answer: closed by the server"]
        assert w.manager.changes == 3


@in_virtual_time
async def test_a_frozen_redis_is_noticed_within_five_seconds() -> None:
    async with world(local=False) as w:
        await w.reach(DISTRIBUTED)
        await asyncio.sleep(30.0)
        w.shared.frozen = True
        await w.reach(ISOLATED, 5.0 + 2 * ANSWER_S)
        assert "no answer" in w.manager.reason


@pytest.mark.parametrize("refusal", ["READONLY You can't write against a read only replica.", "OOM command not allowed",
                                     "LOADING server is loading", "MISCONF errors writing to disk"])
@in_virtual_time
async def test_a_redis_that_takes_no_record_is_not_named_and_does_not_flap(refusal: str) -> None:
    async with world() as w:
        await w.reach(DISTRIBUTED)
        w.shared.refuse["GETSET"] = refusal
        await w.reach(DEGRADED)
        assert refusal in w.manager.reason
        await asyncio.sleep(300.0)
        assert w.manager.changes == 2
        del w.shared.refuse["GETSET"]
        await w.reach(DISTRIBUTED)


@in_virtual_time
async def test_flapping_is_damped_and_counted() -> None:
    async with world() as w:
        for _ in range(100):
            w.shared.down = False
            await asyncio.sleep(1.0)
            w.shared.fail()
            await asyncio.sleep(0.2)
        assert w.manager.changes <= 3  # first contact, its loss, the local one: never again three good probes in a row
        w.shared.down = False
        await w.reach(DISTRIBUTED)
        for _ in range(10):
            w.shared.fail()
            await asyncio.sleep(0.01)
            w.shared.down = False
            await asyncio.sleep(7.0)
        assert 10 <= w.manager.changes <= 24  # two a turn, and those of the first contact
        assert w.changed == [(t.old, t.new) for t in w.manager.history]


@in_virtual_time
async def test_without_any_redis_it_is_isolated_and_waits_for_nothing() -> None:
    async with asyncio.TaskGroup() as group:
        manager = CoordinationModeManager(None, None, runtime=runtime(FakeFs(FakeDisk(Random(7)))))
        running = group.create_task(manager.run())
        await asyncio.sleep(60.0)
        assert (manager.mode, manager.reason, manager.manual) == (ISOLATED, "no Redis is set", None)
        assert not manager.relay_paused
        manager.close()
        await asyncio.wait_for(running, 0.1)


@in_virtual_time
async def test_a_local_redis_may_come_and_go_later() -> None:
    async with world(local=False, shared_down=True) as w, asyncio.TaskGroup() as group:
        local = Link("local", "redis://l", w.local.dial, w.events.append)
        group.create_task(local.run())
        w.manager.use_local(local)
        await w.reach(DEGRADED, 10.0)
        w.manager.use_local(None)
        assert (w.manager.mode, w.manager.reason) == (ISOLATED, "the local Redis does not answer: there is none")
        local.close()
        await asyncio.sleep(60.0)
        assert w.manager.changes == 2


@in_virtual_time
async def test_after_close_nothing_moves_and_no_link_holds_it() -> None:
    async with world() as w:
        await w.reach(DISTRIBUTED)
        w.manager.close()
        await asyncio.sleep(2.0)
        assert [link._on_change for link in w.links] == [[], []]
        w.shared.fail()
        await asyncio.sleep(2.0)
        assert w.manager.mode is DISTRIBUTED


# ---------------------------------------------------------------------------------------------- cost


@in_virtual_time
async def test_idle_it_asks_once_in_five_seconds_and_at_once_when_something_happens() -> None:
    async with world(local=False) as w:
        await w.reach(DISTRIBUTED)
        await asyncio.sleep(60.0)
        before = w.shared.asked.count("GETSET")
        await asyncio.sleep(600.0)
        assert 115 <= w.shared.asked.count("GETSET") - before <= 121
        assert w.shared.asked.count("SET") == 2
        w.shared.fail()
        w.shared.down = False
        await w.reach(ISOLATED, 0.1)
        await w.reach(DISTRIBUTED, 6.5)


@in_virtual_time
async def test_a_redis_that_is_down_is_not_probed() -> None:
    async with world(shared_down=True) as w:
        await asyncio.sleep(100.0)
        assert w.shared.asked == []
        assert w.manager.mode is DEGRADED


# ---------------------------------------------------------------------------------------------- by hand


@in_virtual_time
async def test_isolated_by_hand_pauses_the_relay_and_ends_by_itself() -> None:
    async with world(home="/h") as w:
        await w.reach(DISTRIBUTED)
        set_mode(w.runtime, "/h", ISOLATED, "moving the server", 30.0)
        await w.reach(ISOLATED, SWITCH_S + 0.1)
        assert w.manager.relay_paused
        assert w.manager.manual is not None
        assert w.manager.reason == "by hand: moving the server"
        await asyncio.sleep(28.0)
        assert w.manager.relay_paused
        await w.reach(DISTRIBUTED, 3.1)
        assert not w.manager.relay_paused
        assert w.manager.reason.startswith("the switch by hand ended: its time is over; the shared Redis answered ")


@in_virtual_time
async def test_degraded_by_hand_names_the_local_one_and_pauses_nothing() -> None:
    async with world(home="/h") as w:
        await w.reach(DISTRIBUTED)
        set_mode(w.runtime, "/h", DEGRADED, "try it")
        await w.reach(DEGRADED, SWITCH_S + 0.1)
        assert not w.manager.relay_paused
        await asyncio.sleep(120.0)
        assert w.manager.mode is DEGRADED
        set_mode(w.runtime, "/h", AUTO, "tried")
        await w.reach(DISTRIBUTED, SWITCH_S + 0.1)
        assert "the switch by hand ended: tried; " in w.manager.reason


@in_virtual_time
async def test_a_switch_that_was_set_before_is_in_force_from_the_first_step() -> None:
    fs = FakeFs(FakeDisk(Random(7)))
    fs.mkdir("/h")
    run = runtime(fs)
    set_mode(run, "/h", ISOLATED, "night")
    told: list[bool] = []
    async with asyncio.TaskGroup() as group:
        manager = CoordinationModeManager(None, None, home="/h", runtime=run)
        end = manager.on_change(lambda: told.append(manager.relay_paused))
        group.create_task(manager.run())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert manager.relay_paused
        set_mode(run, "/h", AUTO)
        await asyncio.sleep(SWITCH_S)
        assert told == [True, False]
        end()
        end()
        set_mode(run, "/h", ISOLATED)
        await asyncio.sleep(SWITCH_S)
        assert told == [True, False]
        manager.close()


@in_virtual_time
async def test_a_switch_that_says_nothing_is_an_event_and_changes_nothing() -> None:
    async with world(home="/h") as w:
        await w.reach(DISTRIBUTED)
        fs = w.runtime.fs
        fd = fs.open("/h/mode", 0o101)
        fs.write(fd, b"isolated!")
        fs.close(fd)
        await asyncio.sleep(10.0)
        assert [type(event) for event in w.events if isinstance(event, ModeSwitchIgnored)] == [ModeSwitchIgnored]
        assert w.manager.mode is DISTRIBUTED


# ---------------------------------------------------------------------------------------------- telling


def payloads(server: Server) -> list[tuple[str, str]]:
    return [(message.payload["from"], message.payload["to"])
            for message in (decode(data) for _, data in server.published)]


@in_virtual_time
async def test_each_redis_is_told_every_change_once_also_of_those_it_missed() -> None:
    async with world(namespace="team") as w:
        await w.reach(DISTRIBUTED)
        await asyncio.sleep(10.0)
        w.shared.fail()
        await asyncio.sleep(10.0)
        keys = Keys("team")
        assert w.local.strings[keys.mode] == b"degraded"
        assert payloads(w.local) == [("isolated", "distributed"), ("distributed", "degraded")]
        assert payloads(w.shared) == [("isolated", "distributed")]
        w.shared.down = False
        await w.reach(DISTRIBUTED)
        await asyncio.sleep(10.0)
        for server in (w.shared, w.local):
            assert server.strings[keys.mode] == b"distributed"
            assert payloads(server) == [("isolated", "distributed"), ("distributed", "degraded"), ("degraded", "distributed")]
            assert [json.loads(member)["to"] for member in server.history] == ["distributed", "degraded", "distributed"]
            assert {channel for channel, _ in server.published} == {"team:coordination:mode_change"}
        ids = [[decode(data).id for _, data in server.published] for server in (w.shared, w.local)]
        assert ids[0] == ids[1]
        assert len(set(ids[0])) == 3


@in_virtual_time
async def test_a_change_is_published_as_a_foreign_message_of_its_type() -> None:
    async with world() as w:
        await w.reach(DISTRIBUTED)
        await asyncio.sleep(0.1)
        [(channel, data)] = w.shared.published
        message = decode(data)
        assert (channel, message.type, message.sender, message.origin, message.seq) == (
            "coordination:mode_change", "mode_change", "alice", "", 0)
        assert message.payload == {
            "from": "isolated", "to": "distributed", "reason": "the shared Redis answered 3 probes in a row",
            "at": message.timestamp, "by": "alice@s1"}
        [(member, score)] = w.shared.history.items()
        assert (json.loads(member), score) == (message.payload, message.timestamp)


@in_virtual_time
async def test_the_health_is_that_of_the_shared_redis() -> None:
    async with world() as w:
        await w.reach(DISTRIBUTED)
        await asyncio.sleep(10.0)
        health = json.loads(w.shared.strings[KEYS.health])
        assert (health["up"], health["cause"], health["latency"], health["by"]) == (True, "", 0, "alice@s1")
        assert 0 <= w.runtime.wall_ms() - health["at"] <= 5000
        w.shared.fail()
        await asyncio.sleep(10.0)
        health = json.loads(w.local.strings[KEYS.health])
        assert (health["up"], health["cause"], health["latency"]) == (False, "connection refused", None)


@in_virtual_time
async def test_a_redis_that_was_emptied_is_told_again_but_nothing_is_published_again() -> None:
    async with world(local=False) as w:
        await w.reach(DISTRIBUTED)
        await asyncio.sleep(10.0)
        w.shared.strings.clear()
        w.shared.history.clear()
        await asyncio.sleep(5.1)
        assert w.shared.strings[KEYS.mode] == b"distributed"
        assert len(w.shared.history) == len(w.shared.published) == 1


@in_virtual_time
async def test_a_redis_that_refuses_these_names_still_counts_and_it_is_said_once() -> None:
    async with world(local=False) as w:
        for command in ("GETSET", "SET", "ZADD", "ZREMRANGEBYRANK", "PUBLISH"):
            w.shared.refuse[command] = "NOPERM this user has no permissions"
        await w.reach(DISTRIBUTED, 3.0)
        await asyncio.sleep(600.0)
        assert [event.redis for event in w.events if isinstance(event, ModeUntold)] == ["shared"]
        asked = w.shared.asked.count("SET")
        assert asked == 2
        w.shared.fail()
        w.shared.down = False
        await w.reach(ISOLATED, 0.1)
        await w.reach(DISTRIBUTED)
        assert len([event for event in w.events if isinstance(event, ModeUntold)]) == 2


@in_virtual_time
async def test_what_could_not_be_told_in_time_is_told_later() -> None:
    async with world(local=False) as w:
        await w.reach(DISTRIBUTED)
        w.shared.published.clear()
        w.shared.mute.add("PUBLISH")
        w.shared.frozen = True
        await w.reach(ISOLATED)
        w.shared.frozen = False
        await w.reach(DISTRIBUTED)
        await asyncio.sleep(3.0)
        assert w.shared.published == []
        w.shared.mute.clear()
        await asyncio.sleep(10.0)
        assert payloads(w.shared)[-2:] == [("distributed", "isolated"), ("isolated", "distributed")]


@in_virtual_time
async def test_the_history_is_bounded_here_and_there() -> None:
    async with world(local=False, mode_good_probes=1, mode_cooldown=0.0) as w:
        for _ in range(80):
            w.shared.down = False
            await w.reach(DISTRIBUTED)
            w.shared.fail()
            await w.reach(ISOLATED)
        assert w.manager.changes == 160
        assert len(w.manager.history) == HISTORY_MAX
        w.shared.down = False
        await w.reach(DISTRIBUTED)
        await asyncio.sleep(0.1)
        assert len(w.shared.history) == HISTORY_MAX


# ---------------------------------------------------------------------------------------------- real servers


@asynccontextmanager
async def linked(server: RedisServer, events: list[Event], **url: Any) -> AsyncIterator[Link]:
    link = Link("shared", server.url("redis", **url), os_runtime().dial, events.append)
    async with asyncio.TaskGroup() as group:
        group.create_task(link.run())
        yield link
        link.close()


@asynccontextmanager
async def managed(link: Link, events: list[Event]) -> AsyncIterator[CoordinationModeManager]:
    settings = Settings(mode_probe_interval=0.05, mode_cooldown=0.1)
    manager = CoordinationModeManager(link, None, settings=settings, name="alice", site="s1", observe=events.append)
    async with asyncio.TaskGroup() as group:
        group.create_task(manager.run())
        yield manager
        manager.close()


async def eventually(check: Callable[[], bool], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not check():
            await asyncio.sleep(0.005)


async def test_a_real_redis_knows_the_mode_its_health_and_the_history(server: RedisServer) -> None:
    events: list[Event] = []
    heard: list[bytes] = []
    async with linked(server, events) as link:
        link.hear("coordination:mode_change", lambda _, data: heard.append(data))
        await eventually(lambda: link.up)
        async with managed(link, events) as manager:
            await eventually(lambda: manager.mode is DISTRIBUTED)
            await eventually(lambda: bool(heard) and server.cli("ZCARD", KEYS.history) == 1)
            assert server.cli("GET", KEYS.mode) == b"distributed"
            await eventually(lambda: json.loads(server.cli("GET", KEYS.health))["latency"] is not None)
            assert decode(heard[0]).type == "mode_change"
            assert await read_history(link, KEYS, 10) == list(manager.history)
            server.cli("FLUSHALL")
            await eventually(lambda: server.cli("GET", KEYS.mode) == b"distributed")
            assert [event for event in events if isinstance(event, ModeUntold)] == []


async def test_a_real_redis_that_dies_and_comes_back_takes_the_mode_with_it(own_server: RedisServer) -> None:
    events: list[Event] = []
    async with linked(own_server, events) as link, managed(link, events) as manager:
        await eventually(lambda: manager.mode is DISTRIBUTED)
        own_server.kill()
        await eventually(lambda: manager.mode is ISOLATED)
        own_server.start()
        await eventually(lambda: manager.mode is DISTRIBUTED)
        await eventually(lambda: own_server.cli("ZCARD", KEYS.history) == 3)


async def test_a_real_redis_without_room_is_not_named(own_server: RedisServer) -> None:
    events: list[Event] = []
    async with linked(own_server, events) as link, managed(link, events) as manager:
        await eventually(lambda: manager.mode is DISTRIBUTED)
        own_server.cli("CONFIG", "SET", "maxmemory", 1)
        await eventually(lambda: manager.mode is ISOLATED)
        assert "OOM" in manager.reason
        own_server.cli("CONFIG", "SET", "maxmemory", 0)
        await eventually(lambda: manager.mode is DISTRIBUTED)


async def test_a_user_who_may_not_write_these_names_still_has_a_mode(found: Found) -> None:
    events: list[Event] = []
    with RedisServer(found.binary, tcp=True, users=["bob on >pw ~none &* +ping +getset +set +subscribe"]) as server:
        async with linked(server, events, user="bob", password="pw") as link, managed(link, events) as manager:
            await eventually(lambda: manager.mode is DISTRIBUTED)
            await eventually(lambda: any(isinstance(event, ModeUntold) for event in events))


async def test_a_history_that_cannot_be_had_is_an_error_of_redis(server: RedisServer) -> None:
    events: list[Event] = []
    async with linked(server, events) as link:
        await eventually(lambda: link.up)
        server.cli("ZADD", KEYS.history, 1, "garbage", 2, '{"from": 5}')
        assert await read_history(link, KEYS, 10) == []
        server.cli("DEL", KEYS.history)
        server.cli("SET", KEYS.history, "x")
        with pytest.raises(RedisRefused, match="WRONGTYPE"):
            await read_history(link, KEYS, 10)
        server.cli("CLIENT", "PAUSE", 1500, "ALL")
        with pytest.raises(RedisLost, match="no answer within"):
            await read_history(link, KEYS, 10)
