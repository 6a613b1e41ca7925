"""The relay against a replica that forgets: the seam where Redis plugs in, proved with the memory log."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lemegeton.codec import decode
from lemegeton.events import Event, LaneForked
from lemegeton.lane import Lane
from lemegeton.logs.base import Answer, Batch, Cursor, Damage, Mark
from lemegeton.logs.memory import MemoryLog, MemoryReplica, MemoryStore
from lemegeton.relay import RECORDS_A_CALL, Relay
from lemegeton.testing.virtual_loop import run

BODY = b'{"timestamp":1,"type":"custom","from":"alice","payload":null}'


async def a_lane(log: MemoryLog, count: int) -> Lane:
    position = None
    for _ in range(count):
        position = await log.append("c", BODY)
    assert position is not None
    return position.lane


def held(replica: MemoryReplica, lane: Lane) -> list[int]:
    kept = replica.store.lanes.get(lane)
    return [decode(record).seq for record in kept.records] if kept else []


class Cut(MemoryReplica):
    """A replica whose answer is lost once, after or before it took the records."""

    def __init__(self, *, taken: bool) -> None:
        super().__init__()
        self.taken = taken
        self.cuts = 1

    async def accept(self, lane: Lane, first: int, records: Sequence[bytes], *, base: bool = False) -> Answer:
        if self.cuts and not self.taken:
            self.cuts -= 1
            raise ConnectionError("refused")
        answer = await super().accept(lane, first, records, base=base)
        if self.cuts:
            self.cuts -= 1
            raise ConnectionError("reply lost")
        return answer


async def test_a_lane_is_copied_whole_and_in_order_over_many_calls() -> None:
    log, replica = MemoryLog(), MemoryReplica()
    lane = await a_lane(log, 3 * RECORDS_A_CALL + 7)
    assert await Relay(log, replica, print).copy(lane) == 3 * RECORDS_A_CALL + 7
    assert held(replica, lane) == list(range(1, 3 * RECORDS_A_CALL + 8))


async def test_nothing_to_copy_is_no_call() -> None:
    log, replica = MemoryLog(), MemoryReplica()
    lane = await a_lane(log, 1)
    relay = Relay(log, replica, print)
    assert await relay.copy(lane) == 1
    assert await relay.copy(lane) == 1


async def test_a_replica_that_lost_everything_is_filled_again_by_the_next_record() -> None:
    log, replica = MemoryLog(), MemoryReplica()
    lane = await a_lane(log, 5)
    relay = Relay(log, replica, print)
    await relay.copy(lane)
    replica.store.lanes.clear()
    await log.append("c", BODY)
    await relay.copy(lane)
    assert held(replica, lane) == [1, 2, 3, 4, 5, 6]


async def test_a_replica_that_lost_its_end_is_filled_again_by_a_probe_while_nobody_sends() -> None:
    log, replica = MemoryLog(), MemoryReplica()
    lane = await a_lane(log, 5)
    relay = Relay(log, replica, print)
    await relay.copy(lane)
    del replica.store.lanes[lane].records[2:]
    assert await relay.probe(lane)
    await relay.copy(lane)
    assert held(replica, lane) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("taken", [True, False])
async def test_a_lost_answer_neither_loses_nor_doubles(taken: bool) -> None:
    log, replica = MemoryLog(), Cut(taken=taken)
    lane = await a_lane(log, 5)
    relay = Relay(log, replica, print)
    with pytest.raises(ConnectionError):
        await relay.copy(lane)
    assert await relay.copy(lane) == 5
    assert held(replica, lane) == [1, 2, 3, 4, 5]


async def test_two_relays_of_one_lane_bring_each_record_once() -> None:
    log, replica = MemoryLog(), MemoryReplica()
    lane = await a_lane(log, 5)
    owner, helper = Relay(log, replica, print), Relay(log, replica, print)
    await owner.copy(lane)
    await helper.copy(lane)
    await log.append("c", BODY)
    await helper.copy(lane)
    await owner.copy(lane)
    assert held(replica, lane) == [1, 2, 3, 4, 5, 6]


async def test_what_was_trimmed_is_passed_over_with_the_oldest_as_base() -> None:
    log, replica = MemoryLog(), MemoryReplica()
    lane = await a_lane(log, 5)
    await log.trim(lane, 2)
    assert await Relay(log, replica, print).copy(lane) == 5
    assert held(replica, lane) == [3, 4, 5]


async def test_a_mark_on_a_trimmed_record_is_ours() -> None:
    log, replica = MemoryLog(), MemoryReplica()
    lane = await a_lane(log, 2)
    relay = Relay(log, replica, print)
    await relay.copy(lane)
    await a_lane(log, 3)
    await log.trim(lane, 3)
    assert await Relay(log, replica, print).copy(lane) == 5
    assert held(replica, lane)[-2:] == [4, 5]


@pytest.mark.parametrize("mark", [Mark(9, 1), Mark(2, 1)])
async def test_a_mark_that_is_not_ours_is_a_fork_and_nothing_is_sent(mark: Mark) -> None:
    class Forked(MemoryReplica):
        async def mark(self, lane: Lane) -> Mark:
            return mark

    log, replica = MemoryLog(), Forked()
    lane = await a_lane(log, 3)
    events: list[Event] = []
    assert await Relay(log, replica, events.append).copy(lane) == 0
    assert [type(event) for event in events] == [LaneForked]
    assert held(replica, lane) == []


class Damaged(MemoryLog):
    """A log in which some records went bad."""

    def __init__(self, bad: dict[int, bytes | Damage]) -> None:
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
    await Relay(log, replica, print).copy(lane)
    assert held(replica, lane)[-3:] == [4, 5, 6]


async def test_a_mark_on_a_damaged_record_cannot_tell_a_fork() -> None:
    log, replica = Damaged({2: Damage("checksum")}), MemoryReplica()
    lane = await a_lane(log, 2)
    await replica.accept(lane, 1, [b"1", b"2"])
    assert await Relay(log, replica, print).probe(lane)


async def test_a_lane_that_holds_nothing_but_damage_sends_nothing() -> None:
    log, replica = Damaged({1: Damage("checksum")}), MemoryReplica()
    lane = await a_lane(log, 1)
    assert await Relay(log, replica, print).copy(lane) == 0
    assert held(replica, lane) == []


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["append", "copy", "lose all", "lose end", "cut before", "cut after", "probe"]), max_size=30))
def test_whatever_a_replica_forgets_it_ends_with_every_record_in_order(steps: list[str]) -> None:
    async def scenario() -> None:
        log, replica = MemoryLog(store=MemoryStore()), Cut(taken=True)
        replica.cuts = 0
        lane = await a_lane(log, 1)
        relay = Relay(log, replica, print)
        for step in steps:
            kept = replica.store.lanes.get(lane)
            if step == "append":
                await log.append("c", BODY)
            elif step == "lose all":
                replica.store.lanes.clear()
            elif step == "lose end" and kept:
                del kept.records[len(kept.records) // 2 :]
            elif step == "probe":
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
        assert (await replica.mark(lane)).crc == crc32(replica.store.lanes[lane].records[-1])

    run(scenario())
