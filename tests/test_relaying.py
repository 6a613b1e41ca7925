"""Relaying: what is appended goes out, what a Redis forgets or refuses goes out again, and who waits for it is woken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from lemegeton.checkpoint import Checkpoint, Header, VolatileMarks
from lemegeton.errors import LogError, NotReached, RedisLost, RedisRefused
from lemegeton.events import Event, LaneForked, RelayStalled
from lemegeton.lane import Lane
from lemegeton.logs.base import Answer, Item, Mark, Position
from lemegeton.logs.memory import MemoryLog, MemoryReplica, MemoryStore
from lemegeton.logs.redis_link import Link
from lemegeton.osfs import OsFs
from lemegeton.relay import Relay
from lemegeton.relaying import LANES_AT_ONCE, PROBE_S, STALL_RETRY_S, Accepted, Relaying, open_marks
from lemegeton.seams import Heard
from lemegeton.testing.fake_fs import FakeDisk, FakeFs
from test_delivery import body, in_virtual_time
from test_relay import held

LANE = Lane("c", "a~s~0", 1, 1)
OTHER = Lane("d", "a~s~0", 1, 1)


class Server:
    """A Redis that answers everything, as far as a link can tell, and can be cut."""

    silent = False

    def __init__(self) -> None:
        self.down = False
        self._lost: list[Callable[[str], None]] = []

    async def dial(self, url: str, heard: Heard | None, lost: Callable[[str], None], /) -> Server:
        if self.down:
            raise ConnectionRefusedError("down")
        self._lost.append(lost)
        return self

    def call(self, *arguments: bytes | str | int, packed: Any = None) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answer.set_result(b"PONG")
        return answer

    def send(self, *arguments: bytes | str | int) -> None:
        """Nobody listens."""

    def close(self) -> None:
        self._lost.clear()

    def cut(self) -> None:
        for lost in self._lost[:1]:
            lost("cut")


class Refusing(MemoryReplica):
    """A replica that raises what it is told to, and notes how many calls it has at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Exception] = []
        self.refused: Exception | None = None
        self.offered = self.inside = self.most = 0
        self.gate: asyncio.Event | None = None
        self.answer: Answer | None = None

    async def accept(self, lane: Lane, items: Sequence[Item], *, base: bool = False, told: int = 0) -> Answer:
        self.offered += bool(items)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.refused is not None or self.errors:
                raise self.refused or self.errors.pop()
            return self.answer or await super().accept(lane, items, base=base, told=told)
        finally:
            self.inside -= 1


class Rig:
    """A log, a replica and what relays between them."""

    def __init__(self, marks: Any = None) -> None:
        self.server = Server()
        self.events: list[Event] = []
        self.link = Link("shared", "redis://x", self.server.dial, lambda _: None)
        self.store = MemoryStore()
        self.log = MemoryLog("a", self.store)
        self.replica = Refusing()
        self.accepted = Accepted(marks or VolatileMarks())
        self.lanes: list[Lane] = []
        self.paused = False
        self.forks: list[Lane] = []
        relay = Relay(self.log, self.replica, self.accepted, self.events.append, wall_ms=lambda: 1, forked=self.forks.append)
        self.relaying = Relaying(relay, self.link, lambda: self.lanes, lambda: self.paused, self.events.append)

    async def publish(self, *payloads: Any, channel: str = "c") -> Lane:
        for payload in payloads:
            lane = (await self.log.append(channel, body(payload))).lane
            if lane not in self.lanes:
                self.lanes.append(lane)
            self.relaying.appended(lane)
        return lane

    async def idle(self) -> None:
        async with asyncio.timeout(60.0):
            while not self.relaying.idle:
                await asyncio.sleep(0.01)

    @property
    def stalls(self) -> list[str]:
        return [event.cause for event in self.events if isinstance(event, RelayStalled)]


@asynccontextmanager
async def relaying(rig: Rig) -> AsyncIterator[Rig]:
    async with asyncio.TaskGroup() as group:
        group.create_task(rig.link.run())
        group.create_task(rig.relaying.run())
        await rig.link.tried()
        try:
            yield rig
        finally:
            rig.relaying.close()
            rig.link.close()


# ------------------------------------------------------------------------------------------------ going out


@in_virtual_time
async def test_what_is_appended_goes_out_at_once() -> None:
    async with relaying(Rig()) as rig:
        lane = await rig.publish(1, 2, 3)
        began = asyncio.get_running_loop().time()
        await rig.idle()
        assert asyncio.get_running_loop().time() - began < 0.1
        assert held(rig.replica, lane) == [1, 2, 3]
        assert rig.accepted.get(lane) == 3


@in_virtual_time
async def test_what_was_appended_while_it_was_down_goes_out_when_it_is_up() -> None:
    rig = Rig()
    rig.server.down = True
    async with relaying(rig):
        lane = await rig.publish(1)
        await asyncio.sleep(30.0)
        assert not rig.relaying.idle
        assert rig.replica.offered == 0
        rig.server.down = False
        await rig.idle()
        assert held(rig.replica, lane) == [1]


@in_virtual_time
async def test_many_lanes_go_out_side_by_side_and_never_too_many() -> None:
    async with relaying(Rig()) as rig:
        rig.replica.gate = asyncio.Event()
        for n in range(3 * LANES_AT_ONCE):
            await rig.publish(n, channel=f"c{n}")
        await asyncio.sleep(1.0)
        assert rig.replica.inside == LANES_AT_ONCE
        rig.replica.gate.set()
        await rig.idle()
        assert rig.replica.most == LANES_AT_ONCE
        assert len(rig.replica.store.lanes) == 3 * LANES_AT_ONCE


@in_virtual_time
async def test_paused_it_sends_nothing_and_then_everything() -> None:
    async with relaying(Rig()) as rig:
        rig.paused = True
        lane = await rig.publish(1)
        await asyncio.sleep(30.0)
        assert (rig.replica.offered, rig.relaying.idle) == (0, False)
        rig.paused = False
        await rig.publish(2)
        await rig.idle()
        assert held(rig.replica, lane) == [1, 2]


# ------------------------------------------------------------------------------------------------ forgetting, refusing


@in_virtual_time
async def test_what_is_forgotten_while_nobody_sends_is_noticed_and_sent_again() -> None:
    async with relaying(Rig()) as rig:
        lane = await rig.publish(1, 2, 3)
        await rig.idle()
        rig.replica.store.lanes.clear()
        await asyncio.sleep(PROBE_S + 1.0)
        await rig.idle()
        assert held(rig.replica, lane) == [1, 2, 3]
        assert len(rig.replica.published) == 3, "nobody is told a second time"


@in_virtual_time
async def test_after_a_reconnect_every_lane_is_asked_for_its_mark() -> None:
    async with relaying(Rig()) as rig:
        lanes = [await rig.publish(1), await rig.publish(2, channel="d")]
        await rig.idle()
        rig.replica.store.lanes.clear()
        rig.server.cut()
        await asyncio.sleep(PROBE_S / 2)
        await rig.idle()
        assert [held(rig.replica, lane) for lane in lanes] == [[1], [1]]


@in_virtual_time
async def test_no_answer_is_no_event_and_is_asked_again() -> None:
    async with relaying(Rig()) as rig:
        rig.replica.errors = [RedisLost("no answer")] * 3
        lane = await rig.publish(1)
        await asyncio.sleep(STALL_RETRY_S / 2)
        assert not rig.relaying.idle, "nobody may think that it is there"
        await rig.idle()
        assert (held(rig.replica, lane), rig.stalls) == ([1], [])


@in_virtual_time
async def test_a_connection_that_ends_under_a_call_costs_nothing() -> None:
    async with relaying(Rig()) as rig:
        rig.replica.gate = asyncio.Event()
        rig.replica.errors = [RedisLost("cut")]
        lane = await rig.publish(1)
        await asyncio.sleep(0.01)
        rig.server.cut()
        while rig.link.up:
            await asyncio.sleep(0)
        rig.replica.gate.set()
        await asyncio.sleep(STALL_RETRY_S / 2)
        assert held(rig.replica, lane) == [1], "it did not rest longer than the connection"


@in_virtual_time
async def test_it_ends_while_a_lane_rests() -> None:
    async with relaying(Rig()) as rig:
        rig.replica.refused = RedisRefused("OOM", code="OOM")
        await rig.publish(1)
        await asyncio.sleep(0.1)
        assert len(rig.stalls) == 1
    await asyncio.sleep(2 * STALL_RETRY_S)
    assert rig.replica.offered == 0


@in_virtual_time
async def test_a_lane_that_is_refused_rests_and_the_others_go_on() -> None:
    async with relaying(Rig()) as rig:
        rig.replica.refused = RedisRefused("OOM", code="OOM")
        lane = await rig.publish(1)
        for n in range(2, 100):
            await asyncio.sleep(0.001)
            await rig.publish(n)
        assert len(rig.stalls) == 1, "a busy sender is no reason to ask a full Redis at every message"
        assert not rig.relaying.idle
        rig.replica.refused = None
        other = await rig.publish(1, channel="d")
        await asyncio.sleep(0.01)
        assert held(rig.replica, other) == [1]
        await rig.idle()
        assert held(rig.replica, lane) == list(range(1, 100))


@in_virtual_time
async def test_a_log_that_cannot_be_read_now_is_an_event_and_is_read_later() -> None:
    async with relaying(Rig()) as rig:
        rig.replica.errors = [LogError("no"), OSError(5, "no")]
        lane = await rig.publish(1)
        await rig.idle()
        assert (held(rig.replica, lane), len(rig.stalls)) == ([1], 2)


@pytest.mark.parametrize("error", [RedisRefused("LOADING", code="LOADING"), OSError(24, "too many open files")])
@in_virtual_time
async def test_marks_that_cannot_be_asked_for_now_are_asked_for_later(error: Exception) -> None:
    async with relaying(Rig()) as rig:
        lane = await rig.publish(1)
        await rig.idle()
        rig.replica.store.lanes.clear()
        rig.replica.refused = error
        await asyncio.sleep(PROBE_S + 1.0)
        rig.replica.refused = None
        await asyncio.sleep(PROBE_S + 1.0)
        assert held(rig.replica, lane) == [1]


@in_virtual_time
async def test_a_mark_that_is_not_ours_is_told_once_a_look() -> None:
    async with relaying(Rig()) as rig:
        lane = await rig.publish(1)
        await rig.idle()
        rig.replica.answer = Answer(Mark(9, 9))
        await asyncio.sleep(PROBE_S + 1.0)
        assert [type(event) for event in rig.events] == [LaneForked]
        assert rig.forks == [lane]


# ------------------------------------------------------------------------------------------------ who waits


@in_virtual_time
async def test_whoever_waits_is_woken_when_his_record_is_accepted_and_not_before() -> None:
    async with relaying(Rig()) as rig:
        rig.replica.gate = asyncio.Event()
        lane = await rig.publish(1, 2, 3)
        waiting = [asyncio.ensure_future(rig.accepted.reached(lane, seq)) for seq in (1, 3, 4)]
        given_up = asyncio.ensure_future(rig.accepted.reached(lane, 2))
        await asyncio.sleep(1.0)
        assert not any(task.done() for task in waiting)
        given_up.cancel()
        await asyncio.sleep(0)
        rig.replica.gate.set()
        await rig.idle()
        await asyncio.sleep(0)
        assert [task.done() for task in waiting] == [True, True, False]
        await rig.publish(4)
        await asyncio.wait_for(waiting[2], 5.0)
        assert given_up.cancelled()


@in_virtual_time
async def test_who_comes_after_his_record_was_accepted_does_not_wait() -> None:
    accepted = Accepted(VolatileMarks())
    accepted.put(LANE, 3)
    await asyncio.wait_for(accepted.reached(LANE, 3), 1.0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(accepted.reached(LANE, 4), 1.0)


@in_virtual_time
async def test_what_another_redis_has_is_told_and_wakes_nobody() -> None:
    accepted = Accepted(VolatileMarks())
    waiting = asyncio.ensure_future(accepted.reached(LANE, 2))
    await asyncio.sleep(0)
    accepted.note(LANE, 5)
    assert accepted.get(LANE) == 5
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 1.0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(accepted.reached(LANE, 2), 1.0)
    accepted.put(LANE, 2)
    await waiting
    assert accepted.get(LANE) == 5, "nobody is told a second time"


@in_virtual_time
async def test_who_waits_for_a_record_that_is_numbered_anew_waits_for_its_new_place() -> None:
    accepted = Accepted(VolatileMarks())
    later = LANE._replace(inc=LANE.inc + 1)
    waiting = [asyncio.ensure_future(accepted.reached(LANE, seq)) for seq in (1, 2, 3)]
    await asyncio.sleep(0)
    waiting[2].cancel()
    await asyncio.sleep(0)
    accepted.moved(OTHER, {})
    accepted.moved(LANE, {2: Position(later, 1), 3: Position(later, 2)})
    accepted.put(later, 1)
    await asyncio.wait_for(waiting[1], 1.0)
    with pytest.raises(NotReached, match="began again"):
        await asyncio.wait_for(waiting[0], 1.0)


@in_virtual_time
async def test_a_new_place_that_is_accepted_already_is_reached() -> None:
    accepted = Accepted(VolatileMarks())
    later = LANE._replace(inc=LANE.inc + 1)
    waiting = asyncio.ensure_future(accepted.reached(LANE, 1))
    await asyncio.sleep(0)
    accepted.put(later, 1)
    accepted.moved(LANE, {1: Position(later, 1)})
    await asyncio.wait_for(waiting, 1.0)


@in_virtual_time
async def test_who_waits_for_a_lane_that_nobody_relays_any_more_is_told_so() -> None:
    accepted = Accepted(VolatileMarks())
    waiting = [asyncio.ensure_future(accepted.reached(lane, 1)) for lane in (LANE, OTHER)]
    await asyncio.sleep(0)
    accepted.only([OTHER])
    with pytest.raises(NotReached, match="began again"):
        await asyncio.wait_for(waiting[0], 1.0)
    accepted.put(OTHER, 1)
    await asyncio.wait_for(waiting[1], 1.0)


@in_virtual_time
async def test_what_was_accepted_is_known_after_a_restart_and_never_goes_back() -> None:
    fs = FakeFs(FakeDisk(Random(1)))
    fs.mkdir("/redis", 0o700)
    accepted = Accepted(open_marks(fs, "/redis", "a~s~0", "boot", 1))
    accepted.put(LANE, 7)
    accepted.put(LANE, 3)
    assert accepted.get(LANE) == 7
    accepted.close()
    again = Accepted(open_marks(fs, "/redis", "a~s~0", "boot", 1))
    assert (again.get(LANE), again.get(OTHER)) == (7, 0)


@in_virtual_time
async def test_an_answer_that_comes_after_the_end_harms_nothing() -> None:
    fs = FakeFs(FakeDisk(Random(1)))
    fs.mkdir("/redis", 0o700)
    accepted = Accepted(open_marks(fs, "/redis", "a~s~0", "boot", 1))
    accepted.put(LANE, 1)
    accepted.close()
    accepted.put(LANE, 2)
    accepted.put(OTHER, 2)
    assert accepted.get(LANE) in (0, 1)
    accepted.close()


def test_marks_that_cannot_be_had_are_kept_in_memory(tmp_path: Any) -> None:
    directory = str(tmp_path)
    holder = Checkpoint(OsFs(), directory, Header("told~a~s~0", (), "boot", 1))
    for marks in (open_marks(OsFs(), directory, "a~s~0", "boot", 1), open_marks(OsFs(), f"{directory}/none", "a", "boot", 1)):
        accepted = Accepted(marks)
        accepted.put(LANE, 4)
        assert accepted.get(LANE) == 4
        accepted.close()
    holder.close()


def test_of_marks_that_another_process_holds_what_it_wrote_down_is_known() -> None:
    fs = FakeFs(FakeDisk(Random(1)))
    fs.mkdir("/redis", 0o700)
    owner = Accepted(open_marks(fs, "/redis", "a~s~0", "boot", 1))
    owner.put(LANE, 7)
    helper = Accepted(open_marks(fs, "/redis", "a~s~0", "boot", 1))
    assert (helper.get(LANE), helper.get(OTHER)) == (7, 0)
    helper.put(LANE, 9)
    assert (helper.get(LANE), owner.get(LANE)) == (9, 7)


@in_virtual_time
async def test_a_disk_that_takes_no_mark_stops_nobody() -> None:
    disk = FakeDisk(Random(1))
    fs = FakeFs(disk)
    fs.mkdir("/redis", 0o700)
    marks = open_marks(fs, "/redis", "a~s~0", "boot", 1)
    disk.capacity = disk.used
    accepted = Accepted(marks)
    waiting = asyncio.ensure_future(accepted.reached(LANE, 1))
    await asyncio.sleep(0)
    for n in range(200):
        accepted.put(LANE._replace(inc=n + 1), 1)
    await waiting
    assert min(accepted.get(LANE._replace(inc=n + 1)) for n in range(200)) == 0, "the disk was not full"
