"""Delivery: lanes are found, served in order and side by side, and nothing is passed over without a word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any

import pytest

from lemegeton.channels import DEAD_LETTER
from lemegeton.checkpoint import Marks, VolatileMarks, settled_at
from lemegeton.codec import Draft, encode
from lemegeton.delivery import Delivery
from lemegeton.errors import LogError, RedisLost
from lemegeton.events import Event, Gap, LaneStalled
from lemegeton.handling import Handling
from lemegeton.lane import Lane
from lemegeton.logs.base import Item, Log, Span
from lemegeton.logs.memory import MemoryLog, MemoryReplica, MemoryStore
from lemegeton.message import Message
from lemegeton.osfs import OsFs
from lemegeton.retry import Backoff
from lemegeton.segment import Framer
from lemegeton.testing.faulty import FaultyLog
from lemegeton.testing.virtual_loop import run
from lemegeton.window import IdWindow

LIMIT = 1 << 20


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run the test on a virtual clock: an hour of polling takes no time, and a deadlock is an error."""
    @wraps(test)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        run(test(*args, **kwargs))

    return wrapper


class Got(list[Message]):
    """A handler that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self._news = asyncio.Event()

    async def __call__(self, message: Message) -> None:
        self.append(message)
        self._news.set()

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(60.0):
            while len(self) < count:
                self._news.clear()
                await self._news.wait()

    @property
    def payloads(self) -> list[Any]:
        return [message.payload for message in self]


class Gate:
    """A handler that stays in a message until it is opened."""

    def __init__(self) -> None:
        self.inside = asyncio.Event()
        self.opened = asyncio.Event()
        self.got: list[Any] = []

    async def __call__(self, message: Message) -> None:
        self.inside.set()
        await self.opened.wait()
        self.got.append(message.payload)


def body(payload: Any, **fields: Any) -> bytes:
    return encode(Draft(1, "custom", "tester", payload, **fields), LIMIT)


def record(lane: Lane, seq: int, payload: Any) -> bytes:
    return Framer(lane).line(body(payload), seq, True)[9:-1]


async def put(store: MemoryStore, lane: Lane, first: int, payloads: Sequence[Any]) -> None:
    """Records of a lane as they are, wherever they begin."""
    items = [Item(seq, seq, record(lane, seq, payload)) for seq, payload in enumerate(payloads, first)]
    await MemoryReplica(store).accept(lane, items, base=True)


class Served:
    """A delivery being served, and everything around it."""

    def __init__(self, log: Log, handler: Any, patterns: Sequence[str] = ("c",), *, start: str = "earliest",
                 marks: Marks | None = None, known: Callable[[str], bool] = lambda _: False, flag_all: bool = False,
                 poll_s: float = 1.0, concurrency: int = 64, attempts: int = 3, delay_s: float = 1.0,
                 ephemeral: bool = False, rebooted: bool = False) -> None:
        self.events: list[Event] = []
        self.marks = marks or VolatileMarks()
        self.handling = Handling(log, handler, IdWindow(OsFs(), None), Backoff(attempts, delay_s), self.events.append,
                                 name="sub", sender="tester", wall_ms=lambda: 1000, bytes_max=LIMIT)
        self.delivery = Delivery(log, self.marks, self.handling, patterns, self.events.append, name="sub", start=start,
                                 known=known, flag_all=flag_all, poll_s=poll_s, concurrency=concurrency,
                                 ephemeral=ephemeral, rebooted=rebooted)

    def settled(self, lane: Lane) -> int:
        row = self.marks.find(lane)
        assert row is not None
        return self.marks.cells[settled_at(row)]

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@asynccontextmanager
async def serving(log: Log, handler: Any, patterns: Sequence[str] = ("c",), **options: Any) -> AsyncIterator[Served]:
    served = Served(log, handler, patterns, **options)
    await served.delivery.open()
    async with asyncio.TaskGroup() as group:
        group.create_task(served.delivery.run(group))
        try:
            yield served
        finally:
            await served.delivery.stop(5.0)


# ------------------------------------------------------------------------------------------------ finding lanes


@in_virtual_time
async def test_records_come_in_the_order_of_their_lane() -> None:
    log, got = MemoryLog(), Got()
    async with serving(log, got):
        for n in range(500):
            await log.append("c", body(n))
        await got.reach(500)
    assert got.payloads == list(range(500))


@in_virtual_time
async def test_start_new_skips_what_was_there_and_earliest_does_not() -> None:
    log, new, earliest = MemoryLog(), Got(), Got()
    await log.append("c", body("old"))
    async with serving(log, new, start="new"), serving(log, earliest):
        await log.append("c", body("young"))
        await new.reach(1)
        await earliest.reach(2)
    assert new.payloads == ["young"]
    assert earliest.payloads == ["old", "young"]


@in_virtual_time
async def test_a_lane_seen_after_subscribing_starts_at_its_oldest_record() -> None:
    store = MemoryStore()
    got = Got()
    async with serving(MemoryLog("a", store), got, start="new"):
        await put(store, Lane("c", "late~s~0", 1, 1), 1, ["first", "second"])
        await got.reach(2)
    assert got.payloads == ["first", "second"]


@in_virtual_time
async def test_a_lane_that_came_while_a_known_subscription_was_away_is_owed_wholly() -> None:
    log, got = MemoryLog(), Got()
    await log.append("c", body("while away"))
    async with serving(log, got, start="new", known=lambda channel: channel == "c"):
        await got.reach(1)


@in_virtual_time
async def test_a_glob_finds_channels_that_are_created_later() -> None:
    log, got = MemoryLog(), Got()
    async with serving(log, got, ("agent-*",), start="new", poll_s=3600.0):
        await log.append("other", body("no"))
        await log.append("agent-1", body("one"))
        await got.reach(1)
        await log.append("agent-2", body("two"))
        await got.reach(2)
    assert [(m.channel, m.payload) for m in got] == [("agent-1", "one"), ("agent-2", "two")]


@in_virtual_time
async def test_a_hint_without_a_name_has_every_channel_looked_for() -> None:
    log, got = MemoryLog(), Got()
    async with serving(log, got, ("agent-*",), poll_s=3600.0) as served:
        log._store.rings.clear()  # the doorbell is lost
        await log.append("agent-1", body("one"))
        served.delivery._on_channel("", None)
        await got.reach(1)


@in_virtual_time
async def test_a_lost_doorbell_delays_until_the_poll_and_no_longer() -> None:
    log, got = MemoryLog(), Got()
    async with serving(log, got, ("c", "agent-*"), poll_s=2.0):
        log._store.rings.clear()
        await log.append("c", body("one"))
        await log.append("agent-1", body("two"))
        began = asyncio.get_running_loop().time()
        await got.reach(2)
        assert asyncio.get_running_loop().time() - began <= 2.0


class Unringing(FaultyLog):
    """A log whose doorbells do not work."""

    @property
    def rings(self) -> bool:
        return False

    def listen(self, channel: str | None, ring: Any) -> Callable[[], None]:
        return lambda: None


@in_virtual_time
async def test_without_doorbells_an_active_subscription_looks_every_twenty_milliseconds() -> None:
    log, got = Unringing(MemoryLog()), Got()
    await log.append("c", body(0))
    async with serving(log, got, poll_s=2.0):
        await got.reach(1)
        clock = asyncio.get_running_loop().time
        await log.append("c", body(1))
        began = clock()
        await got.reach(2)
        assert clock() - began <= 2.0
        for n in range(2, 5):
            await log.append("c", body(n))
            began = clock()
            await got.reach(n + 1)
            assert clock() - began <= 0.021
        log.calls.clear()
        await asyncio.sleep(60.0)
        assert log.calls.count("lanes") < 60.0 / 0.02 / 10  # idle again: it looks at its leisure


@in_virtual_time
async def test_several_patterns_name_a_channel_once() -> None:
    log, got = MemoryLog(), Got()
    await log.append("agent-1", body("one"))
    async with serving(log, got, ("agent-1", "agent-*", "*")):
        await log.append("agent-1", body("two"))
        await got.reach(2)
    assert got.payloads == ["one", "two"]


@in_virtual_time
async def test_a_channel_nobody_could_have_made_does_not_stop_a_glob() -> None:
    store = MemoryStore()
    log, got = MemoryLog("a", store), Got()
    await put(store, Lane("bad\nname", "x~s~0", 1, 1), 1, ["bad"])
    await log.append("good", body("good"))
    async with serving(log, got, ("*",)) as served:
        await put(store, Lane("brace{", "x~s~0", 1, 1), 1, ["bad"])
        await log.append("later", body("later"))
        await got.reach(2)
    assert got.payloads == ["good", "later"]
    assert not served.events


@in_virtual_time
async def test_the_dead_letters_of_the_longest_channel_can_be_read() -> None:
    log, got = MemoryLog(), Got()
    await log.append(DEAD_LETTER + "x" * 256, body("dead"))
    async with serving(log, got, ("dead-letter:*",)):
        await got.reach(1)


@in_virtual_time
async def test_the_place_in_a_lane_that_is_gone_for_good_is_given_back() -> None:
    marks, lane = VolatileMarks(), Lane("c", "gone~s~0", 1, 1)
    marks.add(lane, 7)
    async with serving(MemoryLog(), Got(), marks=marks):
        assert marks.find(lane) is None


@in_virtual_time
async def test_a_log_that_cannot_be_looked_into_now_is_looked_into_again() -> None:
    log, got = FaultyLog(MemoryLog()), Got()
    async with serving(log, got, ("c", "d"), poll_s=3600.0) as served:
        log.fail("lanes", times=2)
        await log.append("c", body("one"))
        await log.append("d", body("two"))
        await got.reach(2)
        assert [event.cause for event in served.of(LaneStalled)] == ["faulty log: lanes was told to fail"] * 2


@in_virtual_time
async def test_opening_fails_when_the_log_does() -> None:
    log = FaultyLog(MemoryLog())
    log.fail("lanes")
    with pytest.raises(LogError, match="told to fail"):
        await Served(log, Got()).delivery.open()


# ------------------------------------------------------------------------------------------------ order


@in_virtual_time
async def test_a_later_incarnation_is_handled_after_the_end_of_the_earlier() -> None:
    store, got = MemoryStore(), Got()
    first, second, third = (Lane("c", "a~s~0", inc, 1) for inc in (1, 2, 5))
    await put(store, second, 1, range(100, 105))
    await put(store, first, 1, range(5))
    async with serving(MemoryLog("r", store), got):
        await got.reach(10)
        await put(store, third, 1, [200])
        await got.reach(11)
    assert got.payloads == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104, 200]


class Reaching(MemoryLog):
    """A log whose lanes of another site are sometimes out of reach, and were first seen at ``contact``."""

    lost = False
    contact = 0

    async def span(self, lane: Lane) -> Span:
        if lane.origin.startswith("far"):
            if self.lost:
                raise RedisLost("redis: down")
            return (await super().span(lane))._replace(contact=self.contact)
        return await super().span(lane)


@in_virtual_time
async def test_lanes_out_of_reach_keep_nobody_waiting_and_come_later_in_order() -> None:
    store, got = MemoryStore(), Got()
    log = Reaching("r", store)
    log.lost = True
    await put(store, Lane("c", "far~s~0", 1, 1), 1, [1, 2])
    await put(store, Lane("c", "far~s~0", 2, 1), 1, [3])
    await put(store, Lane("c", "near~s~0", 1, 1), 1, [0])
    async with serving(log, got) as served:
        await got.reach(1)
        await asyncio.sleep(5.0)
        assert got.payloads == [0]
        log.lost = False
        await got.reach(4)
        assert not served.of(LaneStalled)
    assert got.payloads == [0, 1, 2, 3]


@pytest.mark.parametrize(("ephemeral", "start", "first"), [(True, "new", 4), (True, "earliest", 1), (False, "new", 1)])
def test_a_lane_of_another_site_that_shows_later_begins_at_the_first_contact_for_an_ephemeral_reader_of_news(
    ephemeral: bool, start: str, first: int
) -> None:
    @in_virtual_time
    async def test() -> None:
        store, got = MemoryStore(), Got()
        log = Reaching("r", store)
        log.contact = 3
        async with serving(log, got, start=start, ephemeral=ephemeral):
            await put(store, Lane("c", "far~s~0", 1, 1), 1, [1, 2, 3, 4, 5])
            await got.reach(6 - first)
        assert got.payloads == list(range(first, 6))

    test()


@in_virtual_time
async def test_critical_overtakes_a_backlog_of_low() -> None:
    log, got = MemoryLog(), Got()
    for n in range(400):
        await log.append("c", body(f"{n} {'x' * 10_000}"), 0)
    async with serving(log, got, concurrency=1):
        await got.reach(1)
        await log.append("c", body("urgent"), 3)
        await got.reach(401)
    assert got.payloads.index("urgent") < 300


@in_virtual_time
async def test_low_does_not_starve_behind_an_endless_critical() -> None:
    log, low = MemoryLog(), asyncio.Event()
    count = 0

    async def handler(message: Message) -> None:
        nonlocal count
        if message.payload == "low":
            low.set()
        elif not low.is_set():
            count += 1
            await log.append(f"c{count % 3}", body(count), 3)

    for n in range(3):
        await log.append(f"c{n}", body(n), 3)
    await log.append("c0", body("low"), 0)
    async with serving(log, handler, ("c*",), concurrency=1):
        async with asyncio.timeout(60.0):
            await low.wait()
        assert count < 5000


@in_virtual_time
async def test_a_handler_that_hangs_delays_its_lane_only_and_shows() -> None:
    gate, got, store = Gate(), Got(), MemoryStore()
    log, slow, quick = MemoryLog("r", store), MemoryLog("slow", store), MemoryLog("quick", store)

    async def handler(message: Message) -> None:
        await (gate if message.payload == "hang" else got)(message)

    async with serving(log, handler) as served:
        position = await slow.append("c", body("hang"))
        await slow.append("c", body("behind"))
        await gate.inside.wait()
        served.delivery.tick()
        for n in range(20):
            await quick.append("c", body(n))
        await got.reach(20)
        await asyncio.sleep(3.0)
        served.delivery.tick()
        ((lane, seq, seconds),) = served.delivery.running()
        assert (lane, seq) == (position.lane, 1)
        assert seconds == pytest.approx(3.0, abs=0.1)
        gate.opened.set()
        await got.reach(21)
        await asyncio.sleep(0.1)
        served.delivery.tick()
        assert served.delivery.running() == []
        assert served.delivery.lanes == 2


@in_virtual_time
async def test_at_most_so_many_lanes_are_in_a_handler_at_a_time() -> None:
    store = MemoryStore()
    inside = most = 0

    async def handler(_: Message) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.01)
        inside -= 1
        done.release()

    done = asyncio.Semaphore(0)
    for n in range(10):
        await put(store, Lane("c", f"{n}~s~0", 1, 1), 1, range(3))
    async with serving(MemoryLog("r", store), handler, concurrency=4):
        for _ in range(30):
            await done.acquire()
    assert most == 4


@in_virtual_time
async def test_news_that_come_while_a_worker_has_the_lane_are_not_missed() -> None:
    log, gate = MemoryLog(), Gate()
    async with serving(log, gate, poll_s=3600.0) as served:
        position = await log.append("c", body(0))
        await gate.inside.wait()
        await log.append("c", body(1))
        served.delivery._on_ring("c", position.lane)
        gate.opened.set()
        while len(gate.got) < 2:
            await asyncio.sleep(0.001)


# ------------------------------------------------------------------------------------------------ gaps


@in_virtual_time
async def test_what_was_removed_before_it_was_read_is_a_gap_and_the_rest_is_delivered() -> None:
    log, got = MemoryLog(), Got()
    for n in range(1, 11):
        position = await log.append("c", body(n))
    served = Served(log, got)
    await served.delivery.open()
    await log.trim(position.lane, 6)
    async with asyncio.TaskGroup() as group:
        group.create_task(served.delivery.run(group))
        await got.reach(4)
        await served.delivery.stop(1.0)
    assert got.payloads == [7, 8, 9, 10]
    (gap,) = served.of(Gap)
    assert (gap.lane, gap.first, gap.last) == (position.lane, 1, 6)
    assert served.settled(position.lane) == 10
    assert served.handling.counts.missing == 6


@in_virtual_time
async def test_a_gap_at_the_begin_of_an_earlier_incarnation_does_not_cost_the_rest_of_it() -> None:
    store, got = MemoryStore(), Got()
    old, new = Lane("c", "a~s~0", 1, 1), Lane("c", "a~s~0", 2, 1)
    await put(store, old, 1, range(1, 11))
    await put(store, new, 1, ["new"])
    log = MemoryLog("r", store)
    served = Served(log, got)
    await served.delivery.open()
    await log.trim(old, 6)
    async with asyncio.TaskGroup() as group:
        group.create_task(served.delivery.run(group))
        await got.reach(1)
        await asyncio.sleep(5.0)
        await served.delivery.stop(1.0)
    assert got.payloads == [7, 8, 9, 10, "new"]


@in_virtual_time
async def test_everything_removed_is_a_gap_and_what_comes_after_is_delivered() -> None:
    log, got = MemoryLog(), Got()
    for n in range(1, 6):
        position = await log.append("c", body(n))
    served = Served(log, got)
    await served.delivery.open()
    await log.trim(position.lane, 5)
    async with asyncio.TaskGroup() as group:
        group.create_task(served.delivery.run(group))
        await asyncio.sleep(0.1)
        await log.append("c", body("after"))
        await got.reach(1)
        await served.delivery.stop(1.0)
    assert [(gap.first, gap.last) for gap in served.of(Gap)] == [(1, 5)]
    assert got.payloads == ["after"]


@in_virtual_time
async def test_a_removed_record_takes_its_failed_attempts_with_it() -> None:
    log, seen = MemoryLog(), asyncio.Queue[tuple[Any, int]]()

    async def handler(message: Message) -> None:
        seen.put_nowait((message.payload, message.attempt))
        if message.payload == 1:
            raise ValueError("no")

    for n in (1, 2):
        position = await log.append("c", body(n))
    async with serving(log, handler, delay_s=1.0):
        assert await seen.get() == (1, 1)
        await log.trim(position.lane, 1)
        assert await seen.get() == (2, 1)


@in_virtual_time
async def test_a_lane_that_was_removed_altogether_stops_nothing() -> None:
    store, got = MemoryStore(), Got()
    lane = Lane("c", "a~s~0", 1, 1)
    await put(store, lane, 1, [1])
    async with serving(MemoryLog("r", store), got, poll_s=1.0) as served:
        await got.reach(1)
        del store.lanes[lane]
        served.delivery._on_ring("c", lane)
        await asyncio.sleep(3.0)
        await put(store, lane._replace(inc=2), 1, [2])
        await got.reach(2)
        assert served.delivery.caught_up({lane._replace(inc=2): 1})


@in_virtual_time
async def test_a_lane_that_loses_its_position_again_and_again_waits_and_goes_on() -> None:
    from lemegeton.errors import PositionLost

    log, got = FaultyLog(MemoryLog()), Got()
    lost = PositionLost("told to", first=1, last=5)
    for n in range(1, 6):
        await log.append("c", body(n))
    log.fail("seek", times=4, error=lost)
    async with serving(log, got) as served:
        await got.reach(5)
        assert served.of(LaneStalled)
    assert got.payloads == [1, 2, 3, 4, 5]
    assert not served.of(Gap)


@in_virtual_time
async def test_a_lane_that_cannot_be_read_now_is_tried_again_a_second_later() -> None:
    log, got = FaultyLog(MemoryLog()), Got()
    await log.append("c", body(1))
    log.fail("read", times=2)
    async with serving(log, got, poll_s=3600.0) as served:
        began = asyncio.get_running_loop().time()
        await got.reach(1)
        assert asyncio.get_running_loop().time() - began == pytest.approx(2.0, abs=0.1)
        assert len(served.of(LaneStalled)) == 2


# ------------------------------------------------------------------------------------------------ places


@in_virtual_time
async def test_a_record_with_intent_and_not_settled_comes_again_as_redelivered_and_no_other() -> None:
    log, got, marks = MemoryLog(), Got(), VolatileMarks()
    for n in range(1, 6):
        position = await log.append("c", body(n))
    row = marks.add(position.lane, 2)
    marks.cells[settled_at(row) + 1] = 3
    async with serving(log, got, marks=marks) as served:
        await got.reach(3)
    assert [(m.payload, m.redelivered) for m in got] == [(3, True), (4, False), (5, False)]
    assert served.handling.counts.redelivered == 1


@in_virtual_time
async def test_after_another_boot_everything_up_to_the_end_at_start_is_flagged() -> None:
    log, got, marks = MemoryLog(), Got(), VolatileMarks()
    for n in range(1, 4):
        position = await log.append("c", body(n))
    marks.add(position.lane, 1)
    async with serving(log, got, marks=marks, flag_all=True):
        await log.append("c", body(4))
        await got.reach(3)
    assert [(m.payload, m.redelivered) for m in got] == [(2, True), (3, True), (4, False)]


class OutOfReach(MemoryLog):
    """A log that cannot be asked for a lane's place before a while has passed."""

    until_s = 0.0

    async def span(self, lane: Lane) -> Span:
        if asyncio.get_running_loop().time() < self.until_s:
            raise RedisLost("not there yet")
        return await super().span(lane)


@in_virtual_time
async def test_after_another_boot_a_known_lane_that_is_in_reach_only_later_is_flagged_as_well() -> None:
    log, got, marks = OutOfReach(), Got(), VolatileMarks()
    for n in range(1, 4):
        position = await log.append("c", body(n))
    marks.add(position.lane, 1)
    log.until_s = asyncio.get_running_loop().time() + 5.0
    async with serving(log, got, marks=marks, flag_all=True):
        await got.reach(2)
    assert [(m.payload, m.redelivered) for m in got] == [(2, True), (3, True)]


class Far(OutOfReach):
    """The same of another site."""

    def is_near(self, lane: Lane) -> bool:
        return False


@pytest.mark.parametrize(("known", "rebooted"), [(True, True), (True, False), (False, True)])
def test_a_lane_of_another_site_without_marks_is_flagged_after_a_power_cut(known: bool, rebooted: bool) -> None:
    @in_virtual_time
    async def test() -> None:
        log, got = Far(), Got()
        for n in range(1, 4):
            await log.append("c", body(n))
        log.until_s = asyncio.get_running_loop().time() + 5.0
        async with serving(log, got, known=lambda _: known, rebooted=rebooted):
            await got.reach(3)
            await log.append("c", body(4))
            await got.reach(4)
        flagged = known and rebooted
        assert [(m.payload, m.redelivered) for m in got] == [*((n, flagged) for n in range(1, 4)), (4, False)]

    test()


class Nameless(MemoryLog):
    """A log of which only those who know the names of the channels find any."""

    async def channels(self) -> Sequence[str]:
        return []


@pytest.mark.parametrize("patterns", [("agent-*",), ("agent-b", "hub*")])
def test_a_channel_that_only_the_marks_name_is_found_and_flagged_where_it_matches(patterns: Sequence[str]) -> None:
    @in_virtual_time
    async def test() -> None:
        log, got, marks = Nameless(), Got(), VolatileMarks()
        for n in range(1, 4):
            for channel in ("agent-a", "agent-b"):
                marks_of = (await log.append(channel, body(n))).lane
                if n == 1:
                    marks.add(marks_of, 1)
        async with serving(log, got, patterns, marks=marks, flag_all=True):
            await got.reach(4 if patterns == ("agent-*",) else 2)
            await asyncio.sleep(10.0)
        assert {m.channel for m in got} == ({"agent-a", "agent-b"} if patterns == ("agent-*",) else {"agent-b"})
        assert all(m.redelivered and m.payload > 1 for m in got)

    test()


class Rebooted(MemoryLog):
    """A log whose lanes are of an earlier boot."""

    async def of_earlier_boot(self, lane: Lane) -> bool:
        return lane.origin.startswith("old")


@pytest.mark.parametrize(("origin", "known", "flagged"), [("old", True, True), ("old", False, False), ("a", True, False)])
def test_a_lane_of_an_earlier_boot_that_comes_late_and_has_no_marks_is_flagged(
    origin: str, known: bool, flagged: bool
) -> None:
    @in_virtual_time
    async def test() -> None:
        store, got = MemoryStore(), Got()
        async with serving(Rebooted("a", store), got, known=lambda _: known) as served:
            lane = Lane("c", f"{origin}~s~0", 1, 1)
            await put(store, lane, 1, [1, 2])
            await got.reach(2)
            row = served.marks.find(lane)
            assert row is not None
            await asyncio.sleep(0.1)
            assert served.marks.cells[settled_at(row) + 1] == 2
        assert [(m.payload, m.redelivered) for m in got] == [(1, flagged), (2, flagged)]

    test()


@in_virtual_time
async def test_caught_up_tells_what_is_settled() -> None:
    log, got = MemoryLog(), Got()
    position = await log.append("c", body(1))
    async with serving(log, got) as served:
        await got.reach(1)
        await asyncio.sleep(0.1)
        assert served.delivery.caught_up({position.lane: 1})
        assert not served.delivery.caught_up({position.lane: 2})
        assert not served.delivery.caught_up({Lane("c", "unknown", 1, 1): 1})


# ------------------------------------------------------------------------------------------------ end


@in_virtual_time
async def test_stop_lets_a_running_handler_finish_and_begins_no_other() -> None:
    log, gate = MemoryLog(), Gate()
    for n in (1, 2):
        position = await log.append("c", body(n))
    async with serving(log, gate) as served:
        await gate.inside.wait()
        asyncio.get_running_loop().call_later(1.0, gate.opened.set)
        await served.delivery.stop(5.0)
        served.delivery._on_ring("c", position.lane)
    assert gate.got == [1]
    assert served.settled(position.lane) == 1


@in_virtual_time
async def test_stop_cancels_a_handler_that_does_not_finish_and_its_message_comes_again() -> None:
    log, gate, got, marks = MemoryLog(), Gate(), Got(), VolatileMarks()
    position = await log.append("c", body(1))
    async with serving(log, gate, marks=marks) as served:
        await gate.inside.wait()
        await served.delivery.stop(0.5)
    assert served.settled(position.lane) == 0
    async with serving(log, got, marks=marks):
        await got.reach(1)
    assert got[0].redelivered


@in_virtual_time
async def test_stop_waits_a_second_time_for_a_handler_that_cleans_up_and_no_longer() -> None:
    log = MemoryLog()
    inside, over = asyncio.Event(), asyncio.Event()

    async def stubborn(_: Message) -> None:
        inside.set()
        try:
            await asyncio.sleep(100.0)
        finally:
            await asyncio.sleep(3.0)
            over.set()

    await log.append("c", body(1))
    async with serving(log, stubborn) as served:
        await inside.wait()
        began = asyncio.get_running_loop().time()
        await served.delivery.stop(1.0)
        assert asyncio.get_running_loop().time() - began == pytest.approx(2.0)
        assert not over.is_set()


@in_virtual_time
async def test_nothing_is_served_before_run() -> None:
    log, got = MemoryLog(), Got()
    served = Served(log, got)
    await served.delivery.open()
    await log.append("c", body(1))
    await asyncio.sleep(5.0)
    assert not got
    await served.delivery.stop(1.0)


@in_virtual_time
async def test_neither_polls_nor_new_messages_bring_a_retry_forward() -> None:
    log, tried = MemoryLog(), list[tuple[Any, float]]()
    clock = asyncio.get_running_loop().time

    async def handler(message: Message) -> None:
        tried.append((message.payload, clock()))
        if message.payload == 0:
            raise ValueError("no")

    async with serving(log, handler, delay_s=10.0, poll_s=0.5, attempts=3):
        for n in range(200):
            await log.append("c", body(n))
            await asyncio.sleep(0.2)
    first, second, third = (at for payload, at in tried if payload == 0)
    assert (second - first, third - second) == (pytest.approx(10.0), pytest.approx(20.0))
    assert [payload for payload, _ in tried][3:] == list(range(1, 200))


@in_virtual_time
async def test_stop_ends_waiting_for_a_retry() -> None:
    log, tried = MemoryLog(), asyncio.Event()

    async def handler(_: Message) -> None:
        tried.set()
        raise ValueError("no")

    await log.append("c", body(1))
    async with serving(log, handler, delay_s=50.0) as served:
        await tried.wait()
        await asyncio.sleep(0.1)
        began = asyncio.get_running_loop().time()
        await served.delivery.stop(5.0)
        assert asyncio.get_running_loop().time() - began < 1.0
