"""Group sync: many wait for one `fdatasync`, and a failed one is never asked again on the same segment."""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress
from random import Random

import pytest

from lemegeton.errors import LogError
from lemegeton.events import SegmentSealed
from lemegeton.lane import Lane
from lemegeton.logs.base import Position, Span
from lemegeton.logs.file import FileLog
from lemegeton.logs.sync import SYNC_TRIES
from test_delivery import body, in_virtual_time
from test_file_log import CountingFs, FakeFs, Rig, read_all, write


@in_virtual_time
async def test_any_number_of_publishers_share_a_sync() -> None:
    rig = Rig()
    log = await rig.log()
    await asyncio.gather(*(write(log, n, disk=True) for n in range(100)))
    assert len(rig.fs.synced) == 1


@in_virtual_time
async def test_whoever_comes_during_a_sync_is_served_by_the_next() -> None:
    rig = Rig()
    log = await rig.log()
    first = asyncio.create_task(write(log, 1, disk=True))
    while log._syncer is None or log._syncer._task is None:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    later = [asyncio.create_task(write(log, n, disk=True)) for n in range(2, 10)]
    await asyncio.gather(first, *later)
    assert len(rig.fs.synced) == 2


@pytest.mark.parametrize("seed", range(20))
def test_what_reached_the_disk_survives_a_power_cut(seed: int) -> None:
    @in_virtual_time
    async def test() -> None:
        rig = Rig(seed)
        log = await rig.log()
        for n in range(5):
            await write(log, f"local {n}")
            await write(log, f"disk {n}", disk=True)
            await log.append("x" * 200, body(n), disk=True)
        rig.disk.power(Random(seed))
        again = await rig.log("reader")
        found = await read_all(again)
        assert [value for value in found if "disk" in str(value)] == [f"disk {n}" for n in range(5)]
        assert await read_all(again, "x" * 200) == list(range(5))

    test()


@in_virtual_time
async def test_after_a_failed_sync_the_records_are_written_again_elsewhere_under_their_numbers() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, 0)
    rig.fs.fail_next("fdatasync", errno.EIO)
    positions = await asyncio.gather(*(write(log, n, disk=True) for n in (1, 2)))
    assert [position.seq for position in positions] == [2, 3]
    assert len(rig.of(SegmentSealed)) == 1
    first, second = rig.fs.synced
    assert first != second
    assert (await write(log, 3)).seq == 4
    # Each record is there again; a reader that has settled a number skips it.
    assert await read_all(log) == [0, 1, 2, 0, 1, 2, 3]
    lane = positions[0].lane
    assert await log.span(lane) == Span(1, 4)
    for after, expected in ((0, 0), (1, 1), (2, 2), (3, 3)):
        batch = await log.read(lane, await log.seek(lane, after), 1)
        assert f'"payload":{expected}'.encode() in batch.records[0]


@in_virtual_time
async def test_a_segment_whose_sync_failed_is_never_synced_again() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, "first", disk=True)
    rig.fs.synced.clear()
    for n in range(4):
        for at in range(1, SYNC_TRIES + 1):
            rig.fs.fail_next("fdatasync", errno.EIO, after=at)
        with pytest.raises(LogError, match="kept and still goes") as caught:
            await write(log, n, disk=True)
        assert not caught.value.definite
        rig.fs._plans.clear()
        await write(log, f"good {n}", disk=True)
    assert rig.fs.synced_again == []
    rig.disk.power(Random(3))
    assert {f"good {n}" for n in range(4)} <= set(await read_all(await rig.log("reader")))


@in_virtual_time
async def test_whoever_wrote_while_the_sync_failed_is_not_told_of_a_success_that_is_none() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, "before", disk=True)
    rig.fs.synced.clear()
    rig.fs.fail_next("fdatasync", errno.EIO)
    first = asyncio.create_task(write(log, "first", disk=True))
    while not log._syncer._wanted:  # type: ignore[union-attr]
        await asyncio.sleep(0)
    while log._syncer._wanted:  # type: ignore[union-attr]
        await asyncio.sleep(0)
    second = asyncio.create_task(write(log, "second", disk=True))
    await asyncio.gather(first, second)
    assert rig.fs.synced_again == []
    rig.disk.power(Random(5))
    assert set(await read_all(await rig.log("reader"))) == {"before", "first", "second"}


@in_virtual_time
async def test_where_it_cannot_be_written_again_the_level_is_not_reached() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, "x" * 2000)
    rig.fs.fail_next("fdatasync", errno.EIO)
    rig.disk.capacity = rig.disk.used + 600
    with pytest.raises(LogError) as caught:
        await write(log, "y", disk=True)
    assert not caught.value.definite
    rig.disk.capacity = None
    assert await write(log, "z", disk=True)
    assert rig.fs.synced_again == []
    found = await read_all(log)
    assert [value for value in found if value in ("y", "z")][-1] == "z"


async def begin_sync(log: FileLog, payload: object) -> asyncio.Task[Position]:
    """A publish to disk whose sync is under way."""
    task = asyncio.create_task(write(log, payload, disk=True))
    while log._syncer is None or log._syncer._task is None or log._syncer._wanted:
        await asyncio.sleep(0)
    return task


@in_virtual_time
async def test_what_is_written_again_never_lies_behind_records_that_are_newer() -> None:
    rig = Rig()
    log = await rig.log(segment_bytes=512)
    rig.fs.fail_next("fdatasync", errno.EIO)
    task = await begin_sync(log, "x" * 600)
    await write(log, *"abc")  # these go into the next segment while the sync is under way
    await task
    assert len(rig.files()) == 3
    assert (await log.span(Lane("c", log.origin or "", 1, 1))).last == 4
    await log.aclose()
    after = await write(await rig.log(), "next")
    assert (after.lane.inc, after.seq) == (1, 5)


@in_virtual_time
async def test_what_was_half_written_again_gives_no_number_twice() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, 1)
    size = len(rig.disk.read(f"/home/messages/c/{rig.files()[0]}"))
    rig.fs.fail_next("fdatasync", errno.EIO)
    task = await begin_sync(log, 2)
    rig.disk.capacity = rig.disk.used + size  # the first record, whole
    with pytest.raises(LogError):
        await task
    rig.disk.capacity = None
    assert len(rig.files()) == 2
    lane = (await log.lanes("c"))[0]
    assert (await log.span(lane)).last == 2
    rig.fs.kill()
    log = await rig.log()
    after = await write(log, 3)
    assert (after.lane, after.seq) == (lane, 3)
    assert await read_all(log) == [1, 2, 1, 3]


@in_virtual_time
async def test_a_torn_end_is_not_written_again_in_front_of_the_next_record() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, 1)
    line = len(rig.disk.read(f"/home/messages/c/{rig.files()[0]}"))
    rig.fs.fail_next("fdatasync", errno.EIO)
    rig.disk.capacity = rig.disk.used + line + line // 2
    synced, torn = (asyncio.create_task(write(log, n, disk=n == 2)) for n in (2, 3))
    with pytest.raises(LogError):
        await torn
    rig.disk.capacity = None
    await synced
    await write(log, "next")
    assert not rig.disk.read(f"/home/messages/c/{rig.files()[0]}").endswith(b"\n")
    assert [value for value in await read_all(log) if value == "next"] == ["next"]


@in_virtual_time
async def test_bytes_that_somebody_else_put_there_are_not_written_again() -> None:
    rig = Rig()
    log = await rig.log()
    rig.fs.fail_next("fdatasync", errno.EIO)
    task = await begin_sync(log, 1)
    rig.edit(rig.files()[0], b"garbage" * 100 + b"\n")
    await write(log, 2)  # lies behind what its writer takes for the end
    await task
    await write(log, 3)
    assert b"garbage" not in rig.disk.read(f"/home/messages/c/{rig.files()[1]}")
    assert await read_all(log) == [1, "wrong checksum", 2, 1, 2, 3]


@in_virtual_time
async def test_records_of_an_earlier_incarnation_are_written_again_there_and_not_in_the_later_one() -> None:
    rig = Rig()
    log = await rig.log()
    rig.fs.fail_next("fdatasync", errno.EIO)
    task = await begin_sync(log, 1)
    first = begin_incarnation(log)
    assert (await task).lane == first
    assert (await write(log, 2, disk=True)).lane.inc == first.inc + 1
    assert rig.fs.synced_again == []
    rig.disk.power(Random(3))
    assert {1, 2} <= set(await read_all(await rig.log("reader")))


def begin_incarnation(log: FileLog) -> Lane:
    """Have the only lane of a log go on in a new incarnation; the lane it was."""
    assert log._writer is not None
    (writer,) = log._writer._lanes.values()
    lane = writer.lane
    log._writer._begin_incarnation(writer, [], "a test wants it")
    return lane


@in_virtual_time
async def test_where_an_earlier_incarnation_cannot_take_it_again_the_level_is_not_reached() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, "x" * 2000)
    rig.fs.fail_next("fdatasync", errno.EIO)
    task = await begin_sync(log, 1)
    begin_incarnation(log)
    rig.disk.capacity = rig.disk.used + 20
    with pytest.raises(LogError) as caught:
        await task
    assert not caught.value.definite
    rig.disk.capacity = None
    await write(log, 2, disk=True)
    assert [value for value in await read_all(log) if value in (1, 2)] == [1, 2]


@in_virtual_time
async def test_a_failing_sync_of_the_directory_counts_as_well() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, 0)
    rig.fs.fail_next("fsync", errno.EIO)
    await write(log, 1, disk=True)
    assert len(rig.files()) == 2


@in_virtual_time
async def test_cancelling_one_that_waits_leaves_the_sync_to_the_others() -> None:
    rig = Rig()
    log = await rig.log()
    tasks = [asyncio.create_task(write(log, n, disk=True)) for n in range(3)]
    while log._syncer is None or not log._syncer._wanted:
        await asyncio.sleep(0)
    tasks[0].cancel()
    with suppress(asyncio.CancelledError):
        await tasks[0]
    await asyncio.gather(*tasks[1:])
    assert await read_all(log) == [0, 1, 2]


@in_virtual_time
async def test_a_segment_being_synced_keeps_its_descriptor_whatever_else_is_opened() -> None:
    rig = Rig()
    log = await rig.log(open_files=1)
    tasks = [asyncio.create_task(log.append(f"c{n}", body(n), disk=True)) for n in range(30)]
    assert [(await task).seq for task in tasks] == [1] * 30
    await log.append("c0", body("more"))
    await log.aclose()
    assert rig.fs.open_fds() == []
    assert isinstance(rig.fs, CountingFs)
    assert FakeFs(rig.disk).listdir("/home/messages")
