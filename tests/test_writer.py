"""The writer: numbers are given in order, groups share a write, and what went wrong is never tried in the same place."""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress

import pytest

from lemegeton.errors import DiskFull, LogError
from lemegeton.events import IncarnationBegun, SegmentSealed
from lemegeton.logs import file as file_module
from lemegeton.logs import writer as writer_module
from lemegeton.segment import Framer
from test_delivery import body, in_virtual_time
from test_file_log import CountingFs, Rig, read_all, write


@in_virtual_time
async def test_tasks_that_publish_in_one_turn_share_one_write() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, "first")
    rig.fs.writes = 0
    positions = await asyncio.gather(*(write(log, n) for n in range(200)))
    assert rig.fs.writes == 1
    assert [position.seq for position in positions] == list(range(2, 202))
    assert await read_all(log) == ["first", *range(200)]


@in_virtual_time
async def test_one_task_writes_each_record_in_its_own_step() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, 0, 1)
    rig.fs.writes = 0
    await write(log, *range(10))
    assert rig.fs.writes == 10


@in_virtual_time
async def test_a_task_that_never_waits_lets_the_others_run() -> None:
    rig = Rig()
    log = await rig.log()
    ran = asyncio.Event()

    async def other() -> None:
        ran.set()

    await write(log, 0)
    task = asyncio.create_task(other())
    for n in range(file_module.YIELD_EVERY + 1):
        await log.append("c", body(n))
    assert ran.is_set()
    await task


@in_virtual_time
async def test_cancelling_after_the_number_was_given_does_not_withdraw_the_record() -> None:
    rig = Rig()
    log = await rig.log()
    tasks = [asyncio.create_task(write(log, n)) for n in range(5)]
    await asyncio.sleep(0)
    tasks[2].cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task
    assert await read_all(log) == [0, 1, 2, 3, 4]


@in_virtual_time
async def test_a_group_that_cannot_be_written_fails_and_its_numbers_are_given_again() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, 0)
    rig.disk.capacity = rig.disk.used
    results = await asyncio.gather(*(write(log, n) for n in range(1, 6)), return_exceptions=True)
    assert all(isinstance(result, DiskFull) and result.definite for result in results)
    rig.disk.capacity = None
    positions = await asyncio.gather(*(write(log, n) for n in range(10, 13)))
    assert [position.seq for position in positions] == [2, 3, 4]
    assert await read_all(log) == [0, 10, 11, 12]
    assert not rig.of(SegmentSealed)
    assert log.room.used == sum(len(rig.disk.read(f"/home/messages/c/{name}")) for name in rig.files())


@in_virtual_time
async def test_after_a_short_write_the_complete_lines_count_and_the_rest_goes_into_a_new_segment() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, 0)
    line = len(rig.disk.read(f"/home/messages/c/{rig.files()[0]}"))
    rig.disk.capacity = rig.disk.used + 2 * line + line // 2
    room = asyncio.get_running_loop().call_soon

    tasks = [asyncio.create_task(write(log, n)) for n in range(1, 6)]
    del room
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [getattr(result, "seq", type(result)) for result in results] == [2, 3, DiskFull, DiskFull, DiskFull]
    assert len(rig.of(SegmentSealed)) == 1
    rig.disk.capacity = None
    assert (await write(log, 10)).seq == 4
    first, second = sorted(rig.files(), key=lambda name: int(name.split(".")[-2]))
    assert second.endswith(".4.log")
    assert not rig.disk.read(f"/home/messages/c/{first}").endswith(b"\n")
    assert await read_all(log) == [0, 1, 2, 10]


@in_virtual_time
async def test_short_writes_by_chance_lose_nothing_and_tear_nothing_that_counts() -> None:
    rig = Rig()
    log = await rig.log()
    rig.fs.short_writes = 0.3
    for start in range(0, 200, 20):
        await asyncio.gather(*(write(log, n) for n in range(start, start + 20)))
    assert await read_all(log) == list(range(200))
    assert rig.of(SegmentSealed)


@in_virtual_time
async def test_short_writes_without_end_are_given_up() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, 0)
    rig.fs.short_writes = 1.0
    with pytest.raises(LogError, match="short write") as caught:
        await write(log, 1)
    assert caught.value.definite
    rig.fs.short_writes = 0.0
    await write(log, 2)
    assert await read_all(log) == [0, 2]


@in_virtual_time
async def test_a_sealed_segment_without_a_complete_line_begins_a_new_incarnation() -> None:
    rig = Rig()
    log = await rig.log()
    await log.append("other", body("x"))
    rig.disk.capacity = rig.disk.used + 20  # not even the first line fits
    with pytest.raises(DiskFull):
        await write(log, 1)
    rig.disk.capacity = None
    position = await write(log, 2)
    assert (position.lane.inc, position.seq) == (2, 1)
    assert [name.split(".")[1] for name in rig.files()] == ["1", "2"]
    assert await read_all(log) == [2]
    (begun,) = rig.of(IncarnationBegun)
    assert "taken" in begun.cause


@in_virtual_time
async def test_an_input_output_error_seals_and_the_record_is_absent() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, 0, 1)
    rig.fs.fail_next("write", errno.EIO)
    with pytest.raises(LogError) as caught:
        await write(log, 2)
    assert caught.value.definite
    assert (await write(log, 3)).seq == 3
    assert await read_all(log) == [0, 1, 3]
    assert len(rig.files()) == 2
    assert len(rig.of(SegmentSealed)) == 1


@in_virtual_time
async def test_a_segment_whose_size_cannot_be_told_after_an_error_is_sealed() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, 0, 1)
    rig.fs.fail_next("write", errno.ENOSPC)
    rig.fs.fail_next("fstat", errno.EIO)
    with pytest.raises(DiskFull):
        await write(log, 2)
    await write(log, 3)
    assert await read_all(log) == [0, 1, 3]
    assert len(rig.files()) == 2


@in_virtual_time
async def test_a_segment_is_left_when_it_is_large_enough() -> None:
    rig = Rig()
    log = await rig.log(segment_bytes=500)
    for n in range(50):
        await write(log, n)
    await asyncio.gather(*(write(log, n) for n in range(50, 80)))
    firsts = sorted(int(name.split(".")[-2]) for name in rig.files())
    assert len(firsts) > 5
    assert firsts[0] == 1
    assert await read_all(log) == list(range(80))


@in_virtual_time
async def test_a_segment_that_was_removed_is_noticed_when_it_is_left() -> None:
    rig = Rig()
    log = await rig.log(segment_bytes=500)
    await write(log, 0)
    log.upkeep()
    while len(rig.disk.read(f"/home/messages/c/{rig.files()[0]}")) < 500:
        position = await write(log, "filler")
    rig.remove(rig.files()[0])
    await write(log, "a", "b", "c")
    found = await read_all(log)
    assert found[-3:] == ["a", "b", "c"]
    assert found[:-3] == ["filler"] * (position.seq - 1)


@in_virtual_time
async def test_a_group_that_finds_its_segment_removed_is_numbered_behind_what_was_saved() -> None:
    rig = Rig()
    log = await rig.log(segment_bytes=500)
    await write(log, 0)
    while len(rig.disk.read(f"/home/messages/c/{rig.files()[0]}")) < 500:
        await write(log, "filler")
    rig.remove(rig.files()[0])
    positions = await asyncio.gather(*(write(log, n) for n in (1, 2, 3)))
    assert (await read_all(log))[-3:] == [1, 2, 3]
    for position in positions:
        (record,) = (await log.read(position.lane, await log.seek(position.lane, position.seq - 1), 1)).records
        assert isinstance(record, bytes)


@in_virtual_time
async def test_a_segment_that_gave_way_and_was_removed_begins_a_new_incarnation() -> None:
    rig = Rig()
    log = await rig.log(open_files=1)
    await write(log, 1)
    await log.append("other", body("x"))
    rig.remove(rig.files()[0])
    position = await write(log, 2)
    assert (position.lane.inc, position.seq) == (2, 1)
    assert await read_all(log) == [2]


@in_virtual_time
async def test_a_channel_directory_that_was_removed_is_made_again() -> None:
    rig = Rig()
    log = await rig.log(segment_bytes=100)
    await write(log, 1)
    rig.remove(rig.files()[0])
    rig.fs.rename("/home/messages/c", "/home/messages/moved")
    await write(log, 2, 3)
    assert (await read_all(log))[-2:] == [2, 3]


@in_virtual_time
async def test_a_lane_that_cannot_be_opened_is_a_definite_error() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, 1)
    for op in ("mkdir", "listdir"):
        rig.fs.fail_next(op, errno.EACCES)
        with pytest.raises(LogError, match="mend the home") as caught:
            await log.append("other", body(1))
        assert caught.value.definite
    assert (await log.append("other", body(1))).seq == 1


@in_virtual_time
async def test_a_segment_that_is_not_ours_alone_is_refused() -> None:
    rig = Rig()
    first = await rig.log()
    await write(first, 1)
    await first.aclose()
    rig.disk.plant("/home/messages/c/link", "hardlink", f"/home/messages/c/{rig.files()[0]}")
    log = await rig.log()
    with pytest.raises(LogError, match="not a regular file"):
        await write(log, 2)


@in_virtual_time
async def test_incarnations_that_are_all_taken_are_an_error_and_not_a_loop() -> None:
    rig = Rig()
    log = await rig.log(segment_bytes=100)
    position = await write(log, 1)
    origin = position.lane.origin
    rig.edit(f"{origin}.1.1.2.log", b"")
    for inc in range(2, 2 + writer_module.RENEWALS_MAX):
        rig.edit(f"{origin}.{inc}.1.1.log", b"")
    with pytest.raises(LogError, match="incarnations are taken"):
        await write(log, 2)
    assert (await write(log, 3)).lane.inc > 1 + writer_module.RENEWALS_MAX
    assert await read_all(log) == [1, 3]


@in_virtual_time
async def test_rotating_leaves_the_old_segment_behind_and_goes_on_in_the_same_lane() -> None:
    rig = Rig()
    log = await rig.log()
    before = await write(log, "x" * writer_module.ROTATE_BYTES_MIN)
    await log.append("small", body(1))
    assert log._writer is not None
    log._writer.rotate()
    after = await write(log, "y")
    assert (after.lane, after.seq) == (before.lane, before.seq + 1)
    assert len(rig.files()) == 2
    assert len(rig.files("small")) == 1


class TearingFs(CountingFs):
    """Its next write stores a part and then fails, as a process that is stopped in the middle sees it."""

    tear_at = 0

    def write(self, fd: int, data: bytes) -> int:
        if self.tear_at:
            part, self.tear_at = data[: self.tear_at], 0
            super().write(fd, part)
            raise OSError(errno.EIO, "Input/output error")
        return super().write(fd, data)


@in_virtual_time
async def test_what_a_failed_write_has_stored_all_the_same_counts() -> None:
    rig = Rig()
    fs = TearingFs(rig.disk)
    log = await rig.log(fs=fs)
    await write(log, 0)
    length = fs.fstat(fs.open_fds()[-1]).st_size
    fs.tear_at = 2 * length + 5
    tasks = [asyncio.create_task(write(log, n)) for n in range(1, 5)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [getattr(result, "seq", type(result)) for result in results] == [2, 3, LogError, LogError]
    assert (await write(log, 9)).seq == 4
    assert await read_all(log) == [0, 1, 2, 9]


@in_virtual_time
async def test_bytes_that_somebody_else_put_into_a_segment_are_no_proof_of_a_failed_write() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, 0)
    rig.edit(rig.files()[0], b"x" * 500 + b"\n")
    rig.disk.capacity = rig.disk.used
    with pytest.raises(DiskFull) as caught:
        await write(log, "refused")
    assert caught.value.definite
    rig.disk.capacity = None
    assert (await write(log, 2)).seq == 2
    assert await read_all(log) == [0, "wrong checksum", 2]


@in_virtual_time
async def test_a_segment_of_another_length_than_was_written_is_sealed() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, 0)
    rig.edit(rig.files()[0], b"x" * 500 + b"\n")
    log.upkeep()
    await write(log, 1)
    assert [event.cause for event in rig.events if isinstance(event, SegmentSealed)]
    assert len(rig.files()) == 2
    assert await read_all(log) == [0, "wrong checksum", 1]


@pytest.mark.parametrize("room", [0, 130], ids=["for nothing", "for a part of a record"])
@in_virtual_time
async def test_records_of_a_removed_segment_are_saved_as_soon_as_there_is_room(room: int) -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, 0)
    log.upkeep()
    await write(log, "acknowledged", "as well")
    rig.remove(rig.files()[0])
    rig.disk.capacity = rig.disk.used + room
    with pytest.raises(LogError, match=r"was removed and cannot be written again: .*No space left"):
        log.upkeep()
    rig.disk.capacity = None
    await write(log, 2)
    log.upkeep()
    assert await read_all(log) == ["acknowledged", "as well", 2]


@in_virtual_time
async def test_a_record_with_a_right_checksum_that_is_no_message_is_no_end_to_go_on_from() -> None:
    rig = Rig()
    first = await rig.log()
    position = await write(first, 1)
    await first.aclose()
    rig.edit(rig.files()[0], Framer(position.lane).line(b'{"not":"a message"}', 2, True))
    assert (await write(await rig.log(), 2)).lane.inc == 2


@in_virtual_time
async def test_what_was_used_since_it_was_opened_gives_way_last() -> None:
    rig = Rig()
    log = await rig.log(open_files=2)
    for channel in ("a", "b", "c"):  # opening c passes over a and b, and takes a
        await log.append(channel, body(channel))
    await log.append("b", body("again"))
    await log.append("d", body("d"))
    files = log._writer._files  # type: ignore[union-attr]
    assert {segment.path.split("/")[-2] for segment in files._open} == {"b", "d"}
    await log.append("a", body("opened again"))
    assert await read_all(log, "a") == ["a", "opened again"]
