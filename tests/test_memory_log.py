"""The memory log and the replica in memory; what every log promises is checked in `conformance`."""

from __future__ import annotations

from zlib import crc32

import pytest

from lemegeton.errors import BusClosed, LogError, PositionLost
from lemegeton.lane import Lane
from lemegeton.logs.base import SKIP, Answer, Item, Mark, Marker, Span
from lemegeton.logs.memory import MemoryLog, MemoryReplica, MemoryStore
from test_delivery import body, in_virtual_time, record

LANE = Lane("c", "a~s~0", 1, 1)
RECORDS = [record(LANE, seq, seq) for seq in range(1, 11)]


@in_virtual_time
async def test_logs_of_one_store_see_each_other_and_never_share_a_lane() -> None:
    store = MemoryStore()
    a, b = MemoryLog("same", store), MemoryLog("same", store)
    first, second = await a.append("c", body(1)), await b.append("c", body(2))
    assert first.lane != second.lane
    assert set(await a.lanes("c")) == {first.lane, second.lane}
    assert await MemoryLog("other").channels() == []


@in_virtual_time
async def test_an_unknown_lane_is_a_lost_position() -> None:
    log = MemoryLog()
    for call in (log.span(LANE), log.seek(LANE, 0), log.read(LANE, (0, 0))):
        with pytest.raises(PositionLost) as caught:
            await call
        assert (caught.value.first, caught.value.last) == (1, 0)


@in_virtual_time
async def test_a_cursor_before_what_was_trimmed_is_lost() -> None:
    log = MemoryLog()
    for n in range(5):
        position = await log.append("c", body(n))
    await log.trim(position.lane, 3)
    for call in (log.seek(position.lane, 1), log.read(position.lane, (1, 0))):
        with pytest.raises(PositionLost) as caught:
            await call
        assert (caught.value.first, caught.value.last) == (4, 5)


@in_virtual_time
async def test_rings_tell_the_lane_the_new_lane_and_the_new_channel() -> None:
    log = MemoryLog()
    rung: list[tuple[str, Lane | None]] = []
    ends = [log.listen("c", lambda channel, lane: rung.append((channel, lane))),
            log.listen_new((), lambda channel, lane: rung.append((channel, lane)))]
    position = await log.append("c", body(1))
    assert rung == [("c", None), ("c", None), ("c", position.lane)]
    rung.clear()
    await log.append("c", body(1), 3)
    assert [lane for _, lane in rung] == [None, position.lane._replace(priority=3)]
    for end in ends + ends:
        end()
    rung.clear()
    await log.append("d", body(1))
    assert not rung
    await log.aclose()
    with pytest.raises(BusClosed):
        log.listen("c", lambda *_: None)


@in_virtual_time
async def test_too_large_is_refused() -> None:
    with pytest.raises(LogError, match="at most 100"):
        await MemoryLog(bytes_max=100).append("c", body("x" * 100))


def items(first: int, last: int) -> list[Item]:
    return [Item(seq, seq, RECORDS[seq - 1]) for seq in range(first, last + 1)]


@in_virtual_time
async def test_a_replica_takes_only_the_next_sequence() -> None:
    replica = MemoryReplica()
    assert await replica.accept(LANE, ()) == Answer(Mark(0, 0))
    assert (await replica.accept(LANE, items(3, 4))) == Answer(Mark(0, 0), gap=True)
    assert (await replica.accept(LANE, items(1, 3))) == Answer(Mark(3, crc32(RECORDS[2])))
    assert (await replica.accept(LANE, items(2, 5))).mark == Mark(5, crc32(RECORDS[4]))
    assert (await replica.accept(LANE, items(1, 2))).mark == Mark(5, crc32(RECORDS[4]))
    assert (await replica.accept(LANE, items(7, 7))).gap
    assert replica.store.lanes[LANE].records == RECORDS[:5]
    assert replica.published == RECORDS[:5]


@in_virtual_time
async def test_a_base_is_the_oldest_there_is_and_closes_the_gap() -> None:
    replica = MemoryReplica()
    await replica.accept(LANE, items(1, 2))
    answer = await replica.accept(LANE, items(5, 6), base=True)
    assert answer == Answer(Mark(6, crc32(RECORDS[5])))
    log = MemoryLog("r", replica.store)
    assert await log.span(LANE) == Span(5, 6)


@in_virtual_time
async def test_a_marker_stands_for_its_records_and_what_was_told_is_not_published_again() -> None:
    replica = MemoryReplica()
    marker = Marker(SKIP, 1, 3)
    assert await replica.accept(LANE, [Item(1, 3, marker)]) == Answer(Mark(3, 0))
    await replica.accept(LANE, items(4, 6), told=5)
    assert replica.store.lanes[LANE].records == [marker] * 3 + RECORDS[3:6]
    assert replica.published == [RECORDS[5]]
