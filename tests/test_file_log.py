"""The file log as a whole: taking over, waiting for a name, trimming, doorbells, closing."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lemegeton.codec import Draft, decode, form_of
from lemegeton.config import Settings
from lemegeton.errors import BusClosed, LogError, PositionLost
from lemegeton.events import DoorbellLost, Event, IncarnationBegun
from lemegeton.home import Home, open_home
from lemegeton.lane import Lane
from lemegeton.logs.base import Form, Position
from lemegeton.logs.file import FileLog
from lemegeton.osfs import os_runtime
from lemegeton.testing.fake_fs import FakeDisk, FakeFs
from lemegeton.testing.fake_runtime import runtime
from test_delivery import body, in_virtual_time

NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL


class CountingFs(FakeFs):
    """The simulated file system, which also counts what it is asked for, and remembers which files were synced."""

    def __init__(self, disk: FakeDisk, **options: Any) -> None:
        super().__init__(disk, **options)
        self.writes = 0
        self.synced: list[str] = []
        self.synced_again: list[str] = []
        self._failed: set[int] = set()
        self.most_open = 0

    def write(self, fd: int, data: bytes) -> int:
        self.writes += 1
        return super().write(fd, data)

    def fdatasync(self, fd: int) -> None:
        inode = self._files[fd].inode
        self.synced.append(inode.name)
        if inode.number in self._failed:
            self.synced_again.append(inode.name)
        try:
            super().fdatasync(fd)
        except OSError:
            self._failed.add(inode.number)
            raise

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        fd = super().open(path, flags, mode)
        self.most_open = max(self.most_open, len(self.open_fds()))
        return fd


class Rig:
    """One site on a simulated disk, and the processes that use it."""

    def __init__(self, seed: int = 1) -> None:
        self.disk = FakeDisk(Random(seed))
        self.events: list[Event] = []
        self.fs = CountingFs(self.disk)
        self.home = Home("", "")

    async def log(self, name: str = "a", *, fs: CountingFs | None = None, origin_wait_s: float = 0.0, **settings: Any
                  ) -> FileLog:
        """A log in a process of its own."""
        self.fs = fs or CountingFs(self.disk)
        machine = runtime(self.fs)
        self.home = await open_home(machine, "/home")
        return FileLog(machine, self.home, name, Settings(**settings), self.events.append, origin_wait_s=origin_wait_s)

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def files(self, channel: str = "c") -> list[str]:
        """The segments of a channel."""
        names = FakeFs(self.disk).listdir(f"/home/messages/{channel}")
        return sorted(name for name in names if name.endswith(".log"))

    def edit(self, name: str, data: bytes, channel: str = "c") -> None:
        """Put bytes at the end of a file, behind everybody's back."""
        fs = FakeFs(self.disk)
        fd = fs.open(f"/home/messages/{channel}/{name}", os.O_RDWR | os.O_APPEND | os.O_CREAT)
        fs.write(fd, data)
        fs.close(fd)

    def remove(self, name: str, channel: str = "c") -> None:
        FakeFs(self.disk).unlink(f"/home/messages/{channel}/{name}")


async def read_all(log: FileLog, channel: str = "c") -> list[Any]:
    """What every record of a channel carries, damage as its cause, lane after lane."""
    found: list[Any] = []
    for lane in await log.lanes(channel):
        cursor = await log.seek(lane, (await log.span(lane)).first - 1)
        while (batch := await log.read(lane, cursor)).records:
            cursor = batch.cursor
            found += [decode(r).payload if isinstance(r, bytes) else r.cause for r in batch.records]
    return found


async def write(log: FileLog, *payloads: Any, **options: Any) -> Position:
    for payload in payloads:
        position = await log.append("c", body(payload), **options)
    return position


# ------------------------------------------------------------------------------------------------ takeover (rule 1)


@in_virtual_time
async def test_a_valid_end_of_this_boot_is_continued() -> None:
    rig = Rig()
    first = await rig.log()
    before = await write(first, 1, 2)
    await first.aclose()
    second = await rig.log()
    after = await write(second, 3)
    assert (after.lane, after.seq) == (before.lane, 3)
    assert len(rig.files()) == 1
    assert await read_all(second) == [1, 2, 3]
    assert not rig.of(IncarnationBegun)


@in_virtual_time
async def test_a_line_that_could_have_been_longer_than_the_tail_is_continued() -> None:
    rig = Rig()
    first = await rig.log()
    await write(first, "small", "x" * 200_000)
    await first.aclose()
    position = await write(await rig.log(), "next")
    assert (position.lane.inc, position.seq) == (1, 3)


@pytest.mark.parametrize("end", [b"deadbeef torn", b"00000000 {}\n", b"\n", b"garbage" * 20_000])
def test_a_torn_or_corrupt_end_is_a_new_incarnation_from_one(end: bytes) -> None:
    @in_virtual_time
    async def test() -> None:
        rig = Rig()
        first = await rig.log()
        await write(first, 1, 2)
        await first.aclose()
        rig.edit(rig.files()[0], end)
        second = await rig.log()
        position = await write(second, 3)
        assert (position.lane.inc, position.seq) == (2, 1)
        assert [value for value in await read_all(second) if isinstance(value, int)] == [1, 2, 3]
        assert len(rig.of(IncarnationBegun)) == 1

    test()


@in_virtual_time
async def test_another_boot_is_a_new_incarnation() -> None:
    rig = Rig()
    first = await rig.log()
    await write(first, 1)
    await first.aclose()
    rig.disk.sync()
    rig.disk.power(Random(1))
    position = await write(await rig.log(), 2)
    assert (position.lane.inc, position.seq) == (2, 1)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_survives_a_power_cut_in_a_channel_with_a_long_name_is_found(seed: int) -> None:
    @in_virtual_time
    async def test() -> None:
        rig, channel = Rig(seed), "x" * 200
        first = await rig.log("reader")
        first.listen(channel, lambda *_: None)  # a reader made the directory, and nothing of it is synced
        log = await rig.log(segment_bytes=512)
        for n in range(20):
            await log.append(channel, body(n))
        rig.disk.power(Random(seed))
        again = await rig.log("reader")
        assert await again.channels() == [channel] or not await again.lanes(channel)

    test()


@in_virtual_time
async def test_the_lanes_of_another_boot_are_told_from_those_of_this() -> None:
    rig = Rig()
    old = (await write(await rig.log(), 1)).lane
    rig.disk.sync()
    rig.disk.power(Random(1))
    log = await rig.log()
    new = (await write(log, 2)).lane
    assert [await log.of_earlier_boot(lane) for lane in (old, new)] == [True, False]


@in_virtual_time
async def test_no_segment_left_is_a_new_incarnation() -> None:
    rig = Rig()
    first = await rig.log()
    before = await write(first, 1)
    await first.aclose()
    rig.remove(rig.files()[0])
    position = await write(await rig.log(), 2)
    assert (position.lane.origin, position.lane.inc, position.seq) == (before.lane.origin, 2, 1)


@in_virtual_time
async def test_another_site_id_is_another_origin() -> None:
    rig = Rig()
    first = await rig.log()
    before = await write(first, 1)
    await first.aclose()
    FakeFs(rig.disk).unlink("/home/site")
    position = await write(await rig.log(), 2)
    assert position.lane.origin != before.lane.origin
    assert position.seq == 1


def test_two_hundred_short_lives_leave_one_origin_and_one_segment(tmp_path: Path) -> None:
    async def life(n: int) -> None:
        machine = os_runtime()
        home = await open_home(machine, str(tmp_path / "home"))
        log = FileLog(machine, home, "shell", Settings(), lambda _: None, origin_wait_s=5.0)
        assert (await log.append("c", body(n))).seq == n
        await log.aclose()

    for n in range(1, 221):
        asyncio.run(life(n))
    assert len(list((tmp_path / "home" / "origins").iterdir())) == 1
    assert len(list((tmp_path / "home" / "messages" / "c").iterdir())) == 1


@in_virtual_time
async def test_a_held_name_is_waited_for() -> None:
    rig = Rig()
    first = await rig.log()
    before = await write(first, 1)
    second = await rig.log(origin_wait_s=5.0)
    waiting = asyncio.create_task(write(second, 2))
    await asyncio.sleep(1.0)
    assert not waiting.done()
    await first.aclose()
    position = await waiting
    assert (position.lane, position.seq) == (before.lane, 2)


@in_virtual_time
async def test_a_name_that_stays_held_is_another_origin_after_the_wait() -> None:
    rig = Rig()
    first = await rig.log()
    before = await write(first, 1)
    second = await rig.log(origin_wait_s=5.0)
    began = asyncio.get_running_loop().time()
    position = await write(second, 2)
    assert asyncio.get_running_loop().time() - began == pytest.approx(5.0, abs=0.1)
    assert position.lane.origin == before.lane.origin[:-1] + "1"
    assert second.origin == position.lane.origin


@in_virtual_time
async def test_many_first_appends_take_one_origin() -> None:
    rig = Rig()
    log = await rig.log()
    assert log.origin is None
    positions = await asyncio.gather(*(write(log, n) for n in range(20)))
    assert {position.lane for position in positions} == {positions[0].lane}


@in_virtual_time
async def test_an_origin_that_cannot_be_taken_is_a_definite_error() -> None:
    rig = Rig()
    log = await rig.log()
    rig.fs.fail_next("open", errno.EMFILE)
    with pytest.raises(LogError, match="open_files") as caught:
        await write(log, 1)
    assert caught.value.definite
    assert (await write(log, 1)).seq == 1


# ------------------------------------------------------------------------------------------------ limits


@in_virtual_time
async def test_descriptors_stay_bounded_with_a_thousand_channels() -> None:
    rig = Rig()
    log = await rig.log(open_files=16)
    for round_ in range(2):
        for n in range(1000):
            await log.append(f"c{n}", body(round_))
    for n in range(1000):
        (lane,) = await log.lanes(f"c{n}")
        assert len((await log.read(lane, await log.seek(lane, 0))).records) == 2
    assert rig.fs.most_open <= 2 * 16 + 4
    await log.aclose()
    assert rig.fs.open_fds() == []


@in_virtual_time
async def test_running_out_of_descriptors_is_definite_and_passes() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, 1)
    rig.fs.fd_limit = len(rig.fs.open_fds())
    with pytest.raises(LogError, match="raise the limit of open files") as caught:
        await log.append("other", body(2))
    assert caught.value.definite
    (lane,) = log._reader.lanes("c")
    with pytest.raises(LogError):
        await log.read(lane, (1, 0))
    rig.fs.fd_limit = 1024
    assert (await log.append("other", body(2))).seq == 1
    assert await read_all(log) == [1]


# ------------------------------------------------------------------------------------------------ trimming, upkeep


@in_virtual_time
async def test_whoever_copies_what_is_appended_follows_into_every_new_segment_without_looking() -> None:
    rig = Rig()
    log = await rig.log(segment_bytes=300)
    copied: list[Any] = []
    cursor = None

    def copy(lane: Lane) -> None:
        nonlocal cursor
        cursor = cursor or log._reader.seek(lane, 0)
        while (batch := log._reader.read(lane, cursor)).records:
            cursor = batch.cursor
            copied.extend(decode(record).payload for record in batch.records if isinstance(record, bytes))

    log.tell(copy)
    await write(log, *range(1, 21))
    assert len(rig.files()) > 3
    assert copied == list(range(1, 21))


@in_virtual_time
async def test_trim_keeps_the_last_segment_and_what_is_behind() -> None:
    rig = Rig()
    log = await rig.log(segment_bytes=300)
    position = await write(log, *range(1, 21))
    segments = len(rig.files())
    assert segments > 3
    await log.trim(position.lane, 10)
    span = await log.span(position.lane)
    assert 1 < span.first <= 11
    assert span.last == 20
    await log.trim(position.lane, 10**9)
    assert len(rig.files()) == 1
    with pytest.raises(PositionLost):
        await log.seek(position.lane, 0)
    assert (await write(log, 21)).seq == 21


@in_virtual_time
async def test_upkeep_publishes_again_what_went_into_a_removed_segment() -> None:
    rig = Rig()
    log = await rig.log()
    await write(log, 1)
    log.upkeep()
    await write(log, 2, 3)
    rig.remove(rig.files()[0])
    log.upkeep()
    await write(log, 4)
    assert await read_all(log) == [2, 3, 4]
    assert [event.lane.inc for event in rig.of(IncarnationBegun)] == [2]


@in_virtual_time
async def test_upkeep_before_the_first_append_does_nothing_and_its_errors_are_typed() -> None:
    rig = Rig()
    log = await rig.log()
    log.upkeep()
    await write(log, 1)
    rig.fs.fail_next("lstat", errno.EIO)
    with pytest.raises(LogError, match="checking segments"):
        log.upkeep()


# ------------------------------------------------------------------------------------------------ doorbells


@in_virtual_time
async def test_the_doorbell_names_the_lane_that_was_written_to() -> None:
    rig = Rig()
    log, other = await rig.log(), await rig.log("b")
    rung: list[tuple[str, Lane | None]] = []
    silence = log.listen("c", lambda channel, lane: rung.append((channel, lane)))
    assert log.rings
    position = await write(other, 1)
    await asyncio.sleep(0.1)
    assert ("c", position.lane) in rung
    assert ("c", None) in rung  # the segment was created
    silence()
    silence()
    rung.clear()
    await write(other, 2)
    await asyncio.sleep(0.1)
    assert not rung


@in_virtual_time
async def test_a_new_channel_rings_for_those_who_listen_for_channels() -> None:
    rig = Rig()
    log, other = await rig.log(), await rig.log("b")
    rung: list[str] = []
    log.listen_new((), lambda channel, _: rung.append(channel))
    await other.append("new one", body(1))
    await asyncio.sleep(0.1)
    assert rung == ["new one"]


@in_virtual_time
async def test_an_overflow_rings_for_everything() -> None:
    rig = Rig()
    log, other = await rig.log(), await rig.log("b")
    rung: list[tuple[str, Lane | None]] = []
    log.listen("c", lambda channel, lane: rung.append((channel, lane)))
    log.listen_new((), lambda channel, lane: rung.append((channel, lane)))
    log._runtime.fs.hints.overflow = 1.0  # type: ignore[attr-defined]
    await write(other, 1)
    await asyncio.sleep(0.1)
    assert {("c", None), ("", None)} <= set(rung)


@in_virtual_time
async def test_a_channel_that_cannot_be_watched_is_polled_and_said_so() -> None:
    rig = Rig()
    log = await rig.log()
    rig.fs.hints.working = False
    log.listen("c", lambda *_: None)
    assert not log.rings
    assert rig.of(DoorbellLost)


# ------------------------------------------------------------------------------------------------ end


@in_virtual_time
async def test_closing_writes_what_waits_and_lets_every_descriptor_go() -> None:
    rig = Rig()
    log = await rig.log()
    log.listen("c", lambda *_: None)
    await write(log, 0)
    tasks = [asyncio.create_task(log.append("c", body(n))) for n in (1, 2, 3)]
    await asyncio.sleep(0)
    await log.aclose()
    assert [(await task).seq for task in tasks] == [2, 3, 4]
    assert rig.fs.open_fds() == []
    with pytest.raises(BusClosed):
        await write(log, 5)
    assert await read_all(await rig.log("reader")) == [0, 1, 2, 3]


@in_virtual_time
async def test_closing_a_log_that_never_wrote_leaves_no_origin() -> None:
    rig = Rig()
    log = await rig.log()
    await log.lanes("c")
    await log.aclose()
    assert FakeFs(rig.disk).listdir("/home/origins") == []


@in_virtual_time
async def test_a_record_on_its_way_to_the_disk_is_finished_by_closing() -> None:
    rig = Rig()
    log = await rig.log()
    task = asyncio.create_task(write(log, 1, disk=True))
    while not rig.fs.synced:
        await asyncio.sleep(0.0001)
    await log.aclose()
    assert (await task).seq == 1
    assert rig.fs.open_fds() == []


@in_virtual_time
async def test_whoever_asked_is_told_of_every_record_that_was_written_whatever_its_way() -> None:
    rig = Rig()
    log = await rig.log()
    told: list[Lane] = []
    log.tell(told.append)
    lane = (await write(log, 1)).lane
    assert told == [lane]
    await asyncio.gather(*(write(log, n) for n in range(10)))
    assert set(told[1:]) == {lane}
    told.clear()
    await write(log, 2, disk=True)
    assert told == [lane]
    told.clear()
    tasks = [asyncio.create_task(log.append("d", body(n))) for n in range(3)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert {each.channel for each in told} == {"d"}, "cancelling does not withdraw the record"
    told.clear()
    rig.disk.capacity = rig.disk.used
    with pytest.raises(LogError):
        await asyncio.gather(*(write(log, n) for n in range(3)))


@in_virtual_time
async def test_whoever_reads_what_this_process_writes_reads_over_the_end_of_a_segment() -> None:
    rig = Rig()
    log = await rig.log(segment_bytes=512)
    lane = (await write(log, 0)).lane
    cursor, seen = await log.seek(lane, 0), 0
    for n in range(1, 30):
        while (batch := await log.read(lane, cursor)).records:
            cursor, seen = batch.cursor, seen + len(batch.records)
        assert seen == n
        await write(log, n)
    assert len(rig.files()) > 5


@pytest.mark.parametrize("seed", range(8))
@in_virtual_time
async def test_whoever_copies_at_once_is_given_what_lies_in_the_file(seed: int) -> None:
    rig, chance = Rig(), Random(seed)
    log = await rig.log(segment_bytes=2000)
    other = await rig.log()
    usual = form_of(Draft(0, "custom", "sender", None))
    form, elsewhere = Form("c", 1, usual), Form("d", 1, usual)
    lane = (await write(log, 0)).lane
    marked: list[Lane] = []
    log.tell(marked.append)
    cursor, behind = await log.seek(lane, 0), 0
    for n in range(1, 200):
        if chance.random() < 0.1:
            await asyncio.gather(*(write(log, n) for _ in range(chance.randint(1, 3))))
        elif chance.random() < 0.1:
            log.append_now(elsewhere, n, b"1")
        elif not isinstance(log.append_now(form, n, b'"%b"' % (b"x" * chance.randint(0, 2))), Position):
            await write(log, n)
        if chance.random() < 0.7:
            found = await log.read(lane, cursor)
            await other.lanes("c")
            there = await other.read(lane, cursor)
            assert list(found.records[:1]) == list(there.records[:1])
            assert list(found.records) == list(there.records[: len(found.records)])
            assert found.more or len(found.records) == len(there.records)
            cursor, behind = found.cursor, behind + len(found.records)
    assert {each.channel for each in marked} == {"c", "d"}
    assert behind > 100
