"""The relay against a replica that forgets: the seam where Redis plugs in, proved with the memory log."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lemegeton.codec import decode, head_of
from lemegeton.events import Event, LaneForked
from lemegeton.lane import Lane
from lemegeton.logs.base import GONE, SKIP, Answer, Batch, Cursor, Damage, Found, Item, Mark, Marker
from lemegeton.logs.memory import MemoryLog, MemoryReplica, MemoryStore
from lemegeton.relay import FLIGHTS_MAX, OFFER_BYTES, Place, Relay
from lemegeton.testing.virtual_loop import run
from test_delivery import in_virtual_time
from test_file_log import Rig, write

BODY = b'{"timestamp":1,"type":"custom","from":"alice","payload":null}'


class Told(dict[Lane, int]):
    """What anybody was told of, in memory."""

    def get(self, lane: Lane, default: int = 0) -> int:
        return super().get(lane, default)

    def put(self, lane: Lane, seq: int) -> None:
        self[lane] = max(seq, self.get(lane))


def a_relay(log: Any, replica: Any, observe: Any = print, *, told: Told | None = None, **more: Any) -> Relay:
    return Relay(log, replica, Told() if told is None else told, observe, **{"wall_ms": lambda: 1, **more})


async def a_lane(log: MemoryLog, count: int) -> Lane:
    position = None
    for _ in range(count):
        position = await log.append("c", BODY)
    assert position is not None
    return position.lane


def held(replica: MemoryReplica, lane: Lane) -> list[int]:
    kept = replica.store.lanes.get(lane)
    return [decode(record).seq for record in kept.records if isinstance(record, bytes)] if kept else []


class Cut(MemoryReplica):
    """A replica whose answer is lost once, after or before it took the records."""

    def __init__(self, *, taken: bool) -> None:
        super().__init__()
        self.taken = taken
        self.cuts = 1

    async def accept(self, lane: Lane, items: Sequence[Item], *, base: bool = False, told: int = 0) -> Answer:
        if self.cuts and not self.taken:
            self.cuts -= 1
            raise ConnectionError("refused")
        answer = await super().accept(lane, items, base=base, told=told)
        if self.cuts:
            self.cuts -= 1
            raise ConnectionError("reply lost")
        return answer


async def test_a_lane_is_copied_whole_and_in_order_over_many_calls() -> None:
    log, replica = MemoryLog(), MemoryReplica()
    count = 3 * OFFER_BYTES // len(BODY)
    lane = await a_lane(log, count)
    assert await a_relay(log, replica, print).copy(lane) == count
    assert held(replica, lane) == list(range(1, count + 1))


class Late(MemoryReplica):
    """A replica that takes its time, and at one of its calls something happens to it."""

    def __init__(self, fault: str = "", call: int = 0) -> None:
        super().__init__()
        self.fault, self.call = fault, call
        self.calls = self.waiting = self.most = 0
        self._turn = asyncio.Lock()

    async def accept(self, lane: Lane, items: Sequence[Item], *, base: bool = False, told: int = 0) -> Answer:
        self.calls += 1
        here = self.calls == self.call
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        try:
            async with self._turn:  # in the order of coming, as one connection is
                await asyncio.sleep(0.01)
                if here and self.fault == "forgets":
                    self.store.lanes.clear()
                if here and self.fault == "refuses":
                    raise ConnectionError("refused")
                answer = await super().accept(lane, items, base=base, told=told)
                if here and self.fault == "answer lost":
                    raise ConnectionError("reply lost")
                return answer
        finally:
            self.waiting -= 1


@pytest.mark.parametrize("call", range(1, 9))
@pytest.mark.parametrize("fault", ["", "forgets", "refuses", "answer lost"])
def test_several_offers_are_under_way_and_neither_lose_nor_double_whatever_happens(fault: str, call: int) -> None:
    async def main() -> None:
        log, replica = MemoryLog(), Late(fault, call)
        count = 6 * OFFER_BYTES // len(BODY)
        lane = await a_lane(log, count)
        relay = a_relay(log, replica)
        for _ in range(3):
            with suppress(ConnectionError):
                await relay.copy(lane)
        assert held(replica, lane) == list(range(1, count + 1))
        assert replica.most == FLIGHTS_MAX
        await asyncio.sleep(0.1)
        assert not replica.waiting

    run(main())


class Gone(MemoryReplica):
    """A replica whose connection ends while as many offers are under way as there can be: all of them fail at once."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = asyncio.Event()
        self.waiting = 0

    async def accept(self, lane: Lane, items: Sequence[Item], *, base: bool = False, told: int = 0) -> Answer:
        if base or not items or items[0].seq == 1:
            return await super().accept(lane, items, base=base, told=told)
        self.waiting += 1
        if self.waiting == FLIGHTS_MAX:
            self.ends.set()
        await self.ends.wait()
        raise ConnectionError("gone")


async def test_all_offers_under_way_may_fail_at_once_and_only_one_of_the_errors_is_news() -> None:
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    log, replica = MemoryLog(), Gone()
    lane = await a_lane(log, 8 * OFFER_BYTES // len(BODY))
    with pytest.raises(ConnectionError):
        await a_relay(log, replica, print).copy(lane)
    await asyncio.sleep(0)
    gc.collect()
    assert replica.waiting == FLIGHTS_MAX
    assert unheard == []


async def test_nothing_to_copy_is_no_call() -> None:
    log, replica = MemoryLog(), MemoryReplica()
    lane = await a_lane(log, 1)
    relay = a_relay(log, replica, print)
    assert await relay.copy(lane) == 1
    assert await relay.copy(lane) == 1


async def test_a_replica_that_lost_everything_is_filled_again_by_the_next_record() -> None:
    log, replica = MemoryLog(), MemoryReplica()
    lane = await a_lane(log, 5)
    relay = a_relay(log, replica, print)
    await relay.copy(lane)
    replica.store.lanes.clear()
    await log.append("c", BODY)
    await relay.copy(lane)
    assert held(replica, lane) == [1, 2, 3, 4, 5, 6]


async def test_a_replica_that_lost_its_end_is_filled_again_by_a_probe_while_nobody_sends() -> None:
    log, replica = MemoryLog(), MemoryReplica()
    lane = await a_lane(log, 5)
    relay = a_relay(log, replica, print)
    await relay.copy(lane)
    del replica.store.lanes[lane].records[2:]
    assert await relay.probe(lane)
    await relay.copy(lane)
    assert held(replica, lane) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("taken", [True, False])
async def test_a_lost_answer_neither_loses_nor_doubles(taken: bool) -> None:
    log, replica = MemoryLog(), Cut(taken=taken)
    lane = await a_lane(log, 5)
    relay = a_relay(log, replica, print)
    with pytest.raises(ConnectionError):
        await relay.copy(lane)
    assert await relay.copy(lane) == 5
    assert held(replica, lane) == [1, 2, 3, 4, 5]


async def test_two_relays_of_one_lane_bring_each_record_once() -> None:
    log, replica = MemoryLog(), MemoryReplica()
    lane = await a_lane(log, 5)
    owner, helper = a_relay(log, replica, print), a_relay(log, replica, print)
    await owner.copy(lane)
    await helper.copy(lane)
    await log.append("c", BODY)
    await helper.copy(lane)
    await owner.copy(lane)
    assert held(replica, lane) == [1, 2, 3, 4, 5, 6]


async def test_a_relay_that_forgot_asks_for_every_mark_again() -> None:
    log, first = MemoryLog(), MemoryReplica()
    lane = await a_lane(log, 5)
    relay = a_relay(log, first)
    await relay.copy(lane)
    first.store.lanes.clear()
    assert await relay.copy(lane) == 5
    assert held(first, lane) == [], "nobody said that it may have forgotten"
    relay.forget()
    assert await relay.copy(lane) == 5
    assert held(first, lane) == [1, 2, 3, 4, 5]


async def test_what_was_trimmed_is_passed_over_with_the_oldest_as_base() -> None:
    log, replica = MemoryLog(), MemoryReplica()
    lane = await a_lane(log, 5)
    await log.trim(lane, 2)
    assert await a_relay(log, replica, print).copy(lane) == 5
    assert held(replica, lane) == [3, 4, 5]


async def test_a_mark_on_a_trimmed_record_is_ours() -> None:
    log, replica = MemoryLog(), MemoryReplica()
    lane = await a_lane(log, 2)
    relay = a_relay(log, replica, print)
    await relay.copy(lane)
    await a_lane(log, 3)
    await log.trim(lane, 3)
    assert await a_relay(log, replica, print).copy(lane) == 5
    assert held(replica, lane)[-2:] == [4, 5]


@pytest.mark.parametrize("mark", [Mark(9, 1), Mark(2, 1)])
async def test_a_mark_that_is_not_ours_is_a_fork_and_nothing_is_sent(mark: Mark) -> None:
    class Forked(MemoryReplica):
        def mark(self, lane: Lane) -> Mark:
            return mark

    log, replica = MemoryLog(), Forked()
    lane = await a_lane(log, 3)
    events: list[Event] = []
    forked: list[Lane] = []
    assert await a_relay(log, replica, events.append, forked=forked.append).copy(lane) == 0
    assert [type(event) for event in events] == [LaneForked]
    assert forked == [lane]
    assert held(replica, lane) == []


class Damaged(MemoryLog):
    """A log in which some records went bad."""

    def __init__(self, bad: dict[int, Found]) -> None:
        super().__init__()
        self.bad = bad

    async def read(self, lane: Lane, cursor: Cursor, limit: int = 2**18) -> Batch:
        batch = await super().read(lane, cursor, limit)
        records = [self.bad.get(cursor[0] + n, record) for n, record in enumerate(batch.records, 1)]
        return Batch(records, batch.cursor)


@pytest.mark.parametrize("bad", [Damage("checksum"), b"{not json"])
async def test_a_damaged_record_costs_itself_and_not_those_behind_it(bad: bytes | Damage) -> None:
    log, replica = Damaged({3: bad}), MemoryReplica()
    lane = await a_lane(log, 6)
    await a_relay(log, replica, print).copy(lane)
    assert held(replica, lane) == [1, 2, 4, 5, 6]
    assert replica.store.lanes[lane].records[2] == Marker(GONE, 3, 3)


async def test_a_mark_on_a_damaged_record_cannot_tell_a_fork() -> None:
    log, replica = Damaged({2: Damage("checksum")}), MemoryReplica()
    lane = await a_lane(log, 2)
    await replica.accept(lane, [Item(1, 1, b"1"), Item(2, 2, b"2")])
    assert await a_relay(log, replica, print).probe(lane)


@pytest.mark.parametrize("right", [0, 1, 2])
@in_virtual_time
async def test_a_mark_on_damage_at_the_end_of_a_file_is_no_fork_and_one_behind_it_is(right: int) -> None:
    rig, replica = Rig(), MemoryReplica()
    events: list[Event] = []
    log = await rig.log()
    lane = (await write(log, 1, 2, 3)).lane
    assert await a_relay(log, replica, events.append).copy(lane) == 3
    path = f"/home/messages/c/{rig.files()[0]}"
    lines = rig.disk.read(path).split(b"\n")
    rig.remove(rig.files()[0])
    rig.edit(path.rpartition("/")[2], b"\n".join([*lines[:right], *[b"bad"] * (3 - right), b""]))
    log = await rig.log("reader")
    assert await a_relay(log, replica, events.append).probe(lane)
    assert events == []
    await replica.accept(lane, [Item(4, 4, b"4")])
    assert not await a_relay(log, replica, events.append).probe(lane)
    assert [type(event) for event in events] == [LaneForked]


@in_virtual_time
async def test_where_the_record_at_the_mark_is_lost_the_one_behind_it_is_no_fork_and_goes_out() -> None:
    rig, replica = Rig(), MemoryReplica()
    log = await rig.log()
    lane = (await write(log, 1, 2, 3)).lane
    assert await a_relay(log, replica).copy(lane) == 3
    await write(log, 4, 5)
    [name] = rig.files()
    lines = rig.disk.read(f"/home/messages/c/{name}").split(b"\n")
    rig.remove(name)
    rig.edit(name, b"\n".join([*lines[:2], *lines[4:]]))
    log = await rig.log("reader")
    events: list[Event] = []
    assert await a_relay(log, replica, events.append).copy(lane) == 5
    assert (held(replica, lane), events) == ([1, 2, 3, 5], [])


async def test_a_lane_that_holds_nothing_but_damage_sends_nothing() -> None:
    log, replica = Damaged({1: Damage("checksum")}), MemoryReplica()
    lane = await a_lane(log, 1)
    assert await a_relay(log, replica, print).copy(lane) == 0
    assert held(replica, lane) == []


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["append", "copy", "lose all", "lose end", "cut before", "cut after", "probe"]), max_size=30))
def test_whatever_a_replica_forgets_it_ends_with_every_record_in_order(steps: list[str]) -> None:
    async def scenario() -> None:
        log, replica = MemoryLog(store=MemoryStore()), Cut(taken=True)
        replica.cuts = 0
        lane = await a_lane(log, 1)
        relay = a_relay(log, replica, print)
        for step in steps:
            kept = replica.store.lanes.get(lane)
            if step == "append":
                await log.append("c", BODY)
            elif step == "lose all":
                replica.store.lanes.clear()
            elif step == "lose end" and kept:
                del kept.records[len(kept.records) // 2 :]
            elif step == "probe":
                with suppress(ConnectionError):
                    await relay.probe(lane)
            elif step in ("cut before", "cut after"):
                replica.taken, replica.cuts = step == "cut after", 1
            elif step == "copy":
                try:
                    await relay.copy(lane)
                except ConnectionError:
                    continue
        replica.cuts = 0
        await relay.probe(lane)
        last = await relay.copy(lane)
        assert held(replica, lane) == list(range(1, last + 1))
        assert (await log.span(lane)).last == last
        assert replica.mark(lane).crc == crc32(replica.store.lanes[lane].records[-1])

    run(scenario())


TTL = b'{"timestamp":1,"type":"custom","from":"alice","payload":null,"ttl":50}'


async def test_the_first_of_an_incarnation_is_sent_though_it_expired() -> None:
    """It says where the one before ends: without it readers would go on before that is theirs."""
    log, replica = MemoryLog(), MemoryReplica()
    lane = (await log.append("c", TTL[:-1] + b',"after":["o~s~0",1,7]}')).lane
    await log.append("c", TTL)
    await a_relay(log, replica, wall_ms=lambda: 10**6).copy(lane)
    first, second = replica.store.lanes[lane].records
    assert isinstance(first, bytes)
    assert head_of(first).after == ("o~s~0", 1, 7)
    assert second == Marker(SKIP, 2, 2)


async def test_what_expired_on_the_way_is_not_sent_and_its_sequence_is_closed() -> None:
    log, replica = MemoryLog(), MemoryReplica()
    lane = await a_lane(log, 1)
    for body in (TTL, TTL, BODY, TTL):
        await log.append("c", body)
    now = 51
    relay = a_relay(log, replica, wall_ms=lambda: now)
    assert await relay.copy(lane) == 5
    assert held(replica, lane) == [1, 2, 3, 4, 5]
    replica.store.lanes.clear()
    now = 52
    await relay.probe(lane)
    assert await relay.copy(lane) == 5
    assert held(replica, lane) == [1, 4]
    assert [r for r in replica.store.lanes[lane].records if isinstance(r, Marker)] == [
        Marker(SKIP, 2, 3), Marker(SKIP, 2, 3), Marker(SKIP, 5, 5)]
    assert await relay.copy(lane) == 5


async def test_what_any_replica_took_is_filled_in_again_without_telling_anybody() -> None:
    log, told = MemoryLog(), Told()
    lane = await a_lane(log, 3)
    first, second = MemoryReplica(), MemoryReplica()
    await a_relay(log, first, told=told).copy(lane)
    await log.append("c", BODY)
    await a_relay(log, second, told=told).copy(lane)
    assert held(second, lane) == [1, 2, 3, 4]
    assert [decode(record).seq for record in first.published] == [1, 2, 3]
    assert [decode(record).seq for record in second.published] == [4]


async def test_a_lane_that_is_trimmed_while_it_is_copied_goes_on_with_the_oldest_there_is() -> None:
    log, replica = MemoryLog(), MemoryReplica()
    lane = await a_lane(log, 2)
    relay = a_relay(log, replica)
    await relay.copy(lane)
    await a_lane(log, 4)
    await log.trim(lane, 4)
    assert await relay.copy(lane) == 6
    assert held(replica, lane) == [5, 6]


async def test_a_lane_of_which_nothing_is_left_is_no_call_and_no_error() -> None:
    log, replica = MemoryLog(), MemoryReplica()
    lane = await a_lane(log, 3)
    await log.trim(lane, 3)
    assert await a_relay(log, replica).copy(lane) == 0
    assert not replica.store.lanes


async def test_a_mark_whose_record_goes_while_it_is_looked_for_was_ours() -> None:
    class Trimmed(MemoryLog):
        async def seek(self, lane: Lane, after: int) -> Cursor:
            await self.trim(lane, 3)
            return await super().seek(lane, after)

    log, replica = Trimmed(), MemoryReplica()
    lane = await a_lane(log, 3)
    await replica.accept(lane, [Item(1, 1, b"1"), Item(2, 2, b"another")])
    assert await a_relay(log, replica).probe(lane) == Place(3)


async def test_a_lane_that_is_trimmed_faster_than_it_is_copied_waits_for_the_next_time() -> None:
    class Hunted(MemoryLog):
        hunted = True

        async def read(self, lane: Lane, cursor: Cursor, limit: int = 2**18) -> Batch:
            if self.hunted:
                await self.trim(lane, cursor[0] + 1)
            return await super().read(lane, cursor, limit)

    log, replica = Hunted(), MemoryReplica()
    lane = await a_lane(log, 9)
    relay = a_relay(log, replica)
    assert await relay.copy(lane) < 9
    assert held(replica, lane) == []
    log.hunted = False
    assert await relay.copy(lane) == 9
    assert held(replica, lane)[-1] == 9
