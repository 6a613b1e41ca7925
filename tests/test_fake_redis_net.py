"""Simulated connections: in order, late, and cut wherever a real one may be cut."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from random import Random
from typing import Any, TypeVar

import pytest

from lemegeton.errors import RedisLost, RedisRefused
from lemegeton.events import Event
from lemegeton.logs.redis_link import Link
from lemegeton.logs.redis_scripts import FORWARD
from lemegeton.seams import Heard
from lemegeton.testing.fake_fs import Killed
from lemegeton.testing.fake_redis import FakeRedisServer, Loss
from lemegeton.testing.fake_redis_net import FakeRedisNet, Trouble
from lemegeton.testing.fake_redis_wire import FakeWire
from lemegeton.testing.sim_loop import LIFE, Gate, SimLoop

T = TypeVar("T")
URL = "redis://shared"


class Place:
    """A network with one server on it."""

    def __init__(self, seed: int = 1) -> None:
        self.loop = asyncio.get_running_loop()
        self.rng = Random(seed)
        self.net = FakeRedisNet(self.loop, self.rng)
        self.server = FakeRedisServer(self.loop.time, Random(seed + 1))
        self.net.add(URL, self.server)
        self.lost: list[str] = []
        self.heard: list[Any] = []

    async def dial(self, who: str = "east/a", heard: Heard | None = None) -> FakeWire:
        wire = await self.net.dialer(who)(URL, heard, self.lost.append)
        assert isinstance(wire, FakeWire)
        return wire

    async def subscriber(self, who: str = "east/a") -> FakeWire:
        wire = await self.dial(who, self.heard.append)
        wire.send("SUBSCRIBE", "c")
        await asyncio.sleep(0.1)
        self.heard.clear()
        return wire

    def length(self) -> int:
        found = self.server.execute("XLEN", "s")
        assert isinstance(found, int)
        return found


def run(coro: Coroutine[Any, Any, T]) -> T:
    loop = SimLoop()
    try:
        return loop.run_until_complete(coro)
    finally:
        loop.close()
        assert loop.broken == []


def add(wire: FakeWire, *values: object) -> list[asyncio.Future[Any]]:
    return [wire.call("XADD", "s", "*", "n", str(value)) for value in values]


def kept(server: FakeRedisServer) -> list[int]:
    return [int(fields[1]) for _, fields in server.execute("XRANGE", "s", "-", "+")]


def test_answers_come_in_the_order_of_the_commands_and_later() -> None:
    async def main() -> None:
        place = Place()
        wire = await place.dial()
        began = place.loop.time()
        answers = [wire.call("SET", "a", n) for n in range(20)] + [wire.call("GET", "a"), wire.call("HGET", "a", "x")]
        assert not wire.silent
        ping = wire.call("PING")
        assert wire.silent
        assert await answers[20] == b"19"
        assert place.loop.time() > began
        assert [await answer for answer in answers[:20]] == [b"OK"] * 20
        with pytest.raises(RedisRefused, match="WRONGTYPE"):
            await answers[21]
        assert await ping == b"PONG"
        assert not wire.silent

    run(main())


def test_a_subscriber_hears_in_order_and_an_error_as_well() -> None:
    async def main() -> None:
        place = Place()
        wire = await place.subscriber()
        for n in range(20):
            place.server.execute("PUBLISH", "c", n)
        wire.send("PING")
        assert wire.silent
        wire.send("GET", "a")
        await asyncio.sleep(1)
        assert [int(each[2]) for each in place.heard[:20]] == list(range(20))
        assert place.heard[20] == [b"pong", b""]
        assert isinstance(place.heard[21], RedisRefused)
        assert not wire.silent

    run(main())


def test_a_cut_keeps_what_came_first_either_way() -> None:
    async def one(seed: int) -> tuple[int, int]:
        place = Place(seed)
        wire = await place.dial()
        answers = add(wire, *range(20))
        await asyncio.sleep(place.rng.uniform(0, 0.003))
        place.net.cut()
        await asyncio.wait(answers)
        known = [answer.exception() is None for answer in answers]
        assert known == sorted(known, reverse=True)
        assert all(isinstance(answer.exception(), RedisLost | None) for answer in answers)
        assert not any(answer.exception().definite for answer in answers if answer.exception())  # type: ignore[union-attr]
        assert len(place.lost) == 1
        assert place.net.cut() == 0
        with pytest.raises(RedisLost) as failure:
            await wire.call("PING")
        assert failure.value.definite
        await asyncio.sleep(1)
        assert kept(place.server) == list(range(place.length()))
        return sum(known), place.length()

    ended = {run(one(seed)) for seed in range(60)}
    assert all(answered <= executed for answered, executed in ended)
    assert any(answered < executed for answered, executed in ended)
    assert any(executed < 20 for _, executed in ended)
    assert len(ended) > 15


@pytest.mark.parametrize("after", [False, True])
def test_a_fuse_cuts_before_or_after_the_command(after: bool) -> None:
    async def main() -> None:
        place = Place()
        wire = await place.dial()
        place.net.light(2, after=after, name="XADD")
        assert await wire.call("PING") == b"PONG"
        answers = add(wire, 0, 1, 2)
        await asyncio.wait(answers)
        assert isinstance(answers[1].exception(), RedisLost)
        assert isinstance(answers[2].exception(), RedisLost)
        await asyncio.sleep(1)
        assert kept(place.server)[:2] == [0, 1][: 1 + after]
        assert after or kept(place.server) == [0]
        assert place.net.fuse is None

    run(main())


def test_a_fuse_may_stay() -> None:
    async def main() -> None:
        place = Place()
        place.net.light(3, after=True, every=3)
        ends = 0
        for _ in range(3):
            wire = await place.dial()
            for _ in range(2):
                await wire.call("PING")
            with pytest.raises(RedisLost):
                await wire.call("PING")
            ends += 1
        assert len(place.lost) == ends == 3

    run(main())


def test_what_was_sent_may_arrive_after_the_connection_was_closed() -> None:
    async def one(seed: int) -> int:
        place = Place(seed)
        wire = await place.dial()
        answers = add(wire, *range(5))
        wire.close()
        wire.close()
        with pytest.raises(RedisLost):
            await answers[0]
        await asyncio.sleep(1)
        assert place.lost == []
        return place.length()

    assert {run(one(seed)) for seed in range(60)} == {0, 1, 2, 3, 4, 5}


def test_a_frozen_server_executes_later_whatever_came_connection_by_connection() -> None:
    async def one(seed: int) -> list[int]:
        place = Place(seed)
        first = await place.dial()
        place.net.freeze(URL)
        second = await place.dial()
        answers = [*add(first, 0, 1), *add(second, 10, 11), *add(first, 2)]
        await asyncio.sleep(20)
        assert place.length() == 0
        assert not any(answer.done() for answer in answers)
        place.net.thaw(URL)
        await asyncio.gather(*answers)
        return kept(place.server)

    assert {tuple(run(one(seed))) for seed in range(20)} == {(0, 1, 2, 10, 11), (10, 11, 0, 1, 2)}


def test_what_a_frozen_server_was_sent_is_executed_though_nobody_waits_any_more() -> None:
    async def one(seed: int) -> int:
        place = Place(seed)
        wire = await place.dial()
        place.net.freeze(URL)
        answers = add(wire, 0, 1)
        await asyncio.sleep(5)
        wire.close()
        assert all(answer.done() for answer in answers)
        place.net.thaw(URL)
        return place.length()

    assert 2 in {run(one(seed)) for seed in range(10)}


@pytest.mark.parametrize(("trouble", "executed"), [(Trouble(up_lost=True), 0), (Trouble(down_lost=True), 1)])
def test_a_black_hole_holds_one_direction_and_connecting(trouble: Trouble, executed: int) -> None:
    async def main() -> None:
        place = Place()
        wire, other = await place.dial(), await place.dial("west/a")
        place.net.hurt("east/", trouble)
        answer, = add(wire, 0)
        await asyncio.wait(add(other, 1))
        with pytest.raises(OSError, match=r"no answer within 2\.0 s"):
            await place.dial()
        assert place.length() == executed + 1
        assert not answer.done()
        place.net.mend("east/")
        await answer
        assert place.length() == 2

    run(main())


def test_a_connection_may_come_through_once_the_hole_is_gone() -> None:
    async def main() -> None:
        place = Place()
        place.net.hurt("", Trouble(up_lost=True, down_lost=True))
        place.loop.call_later(0.5, place.net.mend, "")
        assert await (await place.dial()).call("PING") == b"PONG"
        assert 1.0 <= place.loop.time() < 1.1

    run(main())


def test_some_are_refused_or_slow_and_others_are_not() -> None:
    async def main() -> None:
        place = Place()
        place.net.hurt("east/", Trouble(refuse=True))
        with pytest.raises(ConnectionRefusedError):
            await place.dial()
        await place.dial("west/a")
        place.net.mend("east/")
        with pytest.raises(ConnectionRefusedError):
            await place.net.dialer("east/a")("redis://elsewhere", None, place.lost.append)
        wire = await place.dial()
        place.net.hurt("east/a", Trouble(delay_s=1.0))
        began = place.loop.time()
        await wire.call("PING")
        assert 1.0 < place.loop.time() - began < 2.1

    run(main())


def test_only_subscribers_are_killed() -> None:
    async def main() -> None:
        place = Place()
        wire = await place.dial()
        await place.subscriber()
        assert place.net.cut(hearing=True) == 1
        await asyncio.sleep(1)
        assert place.lost == ["connection reset by peer"]
        assert await wire.call("PUBLISH", "c", "x") == 0

    run(main())


def test_a_subscriber_that_does_not_read_is_cut() -> None:
    async def main() -> None:
        place = Place()
        await place.subscriber()
        place.net.output_max = 1000
        place.net.hurt("", Trouble(down_lost=True))
        for _ in range(200):
            place.server.execute("PUBLISH", "c", b"x" * 100)
            await asyncio.sleep(0.01)
        place.net.mend("")
        await asyncio.sleep(1)
        assert len(place.heard) <= 10
        assert place.lost == ["closed by the server"]

    run(main())


@pytest.mark.parametrize("loss", [Loss.NONE, Loss.EMPTY])
def test_a_crash_ends_all_connections_and_nothing_arrives_after_it(loss: Loss) -> None:
    async def one(seed: int) -> int:
        place = Place(seed)
        wire = await place.dial()
        await place.subscriber()
        answers = add(wire, *range(10))
        place.net.crash(URL, loss)
        left = place.length()
        with pytest.raises(ConnectionRefusedError):
            await place.dial()
        await asyncio.wait(answers)
        await asyncio.sleep(0.1)
        assert len(place.lost) == 2
        place.net.up(URL)
        wire = await place.dial()
        assert await wire.call("XLEN", "s") == left
        return left

    left = {run(one(seed)) for seed in range(40)}
    assert (left == {0}) if loss is Loss.EMPTY else (min(left) == 0 and max(left) == 10)


def test_a_failover_loses_and_ends_connections() -> None:
    async def main() -> None:
        place = Place()
        wire = await place.dial()
        await asyncio.wait(add(wire, *range(10)))
        assert place.net.fail_over(URL, 3) == 3
        await asyncio.sleep(0.1)
        assert place.lost == ["closed by the server"]
        assert kept(place.server) == list(range(7))
        assert await (await place.dial()).call("PING") == b"PONG"

    run(main())


def test_healing_ends_everything_that_is_wrong() -> None:
    async def main() -> None:
        place = Place()
        wire = await place.dial()
        place.net.hurt("", Trouble(up_lost=True))
        place.net.freeze(URL)
        place.net.light(1, after=True)
        place.server.oom = place.server.readonly = place.server.loading = True
        answers = add(wire, 0)
        await asyncio.sleep(1)
        place.net.heal()
        await asyncio.gather(*answers)
        place.net.crash(URL, Loss.NONE)
        place.net.heal()
        assert await (await place.dial()).call("XLEN", "s") == 1

    run(main())


# Lives


def in_life(place: Place, gate: Gate, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    context = contextvars.copy_context()
    context.run(LIFE.set, gate)
    return place.loop.create_task(coro, context=context)


def test_a_stopped_process_hears_once_it_continues_and_a_dead_one_never() -> None:
    async def main() -> None:
        place, gate = Place(), Gate("east/a")
        wire = await in_life(place, gate, place.subscriber())
        gate.halted = True
        place.server.execute("PUBLISH", "c", 1)
        await asyncio.sleep(30)
        assert place.heard == []
        place.loop.resume(gate)  # type: ignore[attr-defined]
        await asyncio.sleep(1)
        assert place.heard == [[b"message", b"c", b"1"]]
        place.server.execute("PUBLISH", "c", 2)
        gate.kill()
        place.net.forget(gate)
        await asyncio.sleep(1)
        assert place.heard == [[b"message", b"c", b"1"]]
        assert place.lost == []
        assert place.server.execute("PUBLISH", "c", 3) == 0
        for use in (lambda: wire.call("PING"), lambda: wire.send("PING")):
            with pytest.raises(Killed):
                use()
        wire.close()

    run(main())


def test_what_a_process_sent_before_it_was_killed_may_be_executed() -> None:
    async def one(seed: int) -> int:
        place, gate = Place(seed), Gate("east/a")

        async def life() -> None:
            wire = await place.dial()
            add(wire, *range(3))
            await asyncio.sleep(3600)

        in_life(place, gate, life())
        while not list(place.net.wires()):
            await asyncio.sleep(0.000_01)
        gate.kill()
        place.net.forget(gate)
        await asyncio.sleep(1)
        assert list(place.net.wires()) == []
        for task in gate.tasks:
            task.get_coro().close()
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        return place.length()

    assert {run(one(seed)) for seed in range(40)} == {0, 1, 2, 3}


# The link on it


def test_the_link_comes_back_after_whatever_happens_to_it() -> None:
    async def main() -> None:
        place = Place()
        events: list[Event] = []
        link = Link("shared", URL, place.net.dialer("east/a"), events.append)
        told: list[bytes] = []
        link.hear("hub", lambda _, data: told.append(data))
        running = asyncio.create_task(link.run())
        item = (1, 1, "aa", "wire", 2, "id", "x")

        async def works() -> None:
            while not link.up:
                await asyncio.sleep(0.1)
            told.clear()
            place.server.execute("FLUSHALL")
            answer = await link.script(FORWARD, ("s", "m"), "lane", 0, 0, "hub", 100, *item)
            assert answer == [b"OK", b"1:aa"]
            await asyncio.sleep(0.1)
            assert told == [b"wire"]

        await works()
        for hurt, mend in ((lambda: place.net.cut(), lambda: None),
                           (lambda: place.net.cut(hearing=True), lambda: None),
                           (lambda: place.net.freeze(URL), lambda: place.net.thaw(URL)),
                           (lambda: place.net.hurt("", Trouble(down_lost=True)), lambda: place.net.mend("")),
                           (lambda: place.net.crash(URL, Loss.EMPTY), lambda: place.net.up(URL))):
            hurt()
            await asyncio.sleep(10)
            mend()
            await asyncio.sleep(1)
            await works()
        assert sum(event.name == "redis_down" for event in events) == 5
        link.close()
        await running

    run(main())


def test_two_runs_are_equal() -> None:
    async def one() -> list[Any]:
        place = Place(7)
        wires = [await place.dial(f"east/{n}") for n in range(3)]
        answers = [answer for wire in wires for answer in add(wire, *range(5))]
        await asyncio.sleep(0.001)
        place.net.cut(whom="east/1")
        await asyncio.wait(answers)
        return [place.loop.time(), place.server.digest(), [repr(answer) for answer in answers]]

    assert run(one())[:2] == run(one())[:2]
