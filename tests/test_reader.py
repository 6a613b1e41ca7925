"""The reader: segments in order, damage one record at a time, and never past an end it saw before."""

from __future__ import annotations

import os
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lemegeton.channels import encode_name
from lemegeton.codec import decode
from lemegeton.errors import LogError, PositionLost
from lemegeton.events import StrayEntry, TailDropped
from lemegeton.lane import Lane
from lemegeton.logs.base import Damage, Span
from lemegeton.logs.file import FileLog
from lemegeton.logs.reader import Reader
from lemegeton.segment import Framer, SegmentName
from lemegeton.testing.fake_fs import DAMAGES, FakeFs
from test_delivery import Got, body, in_virtual_time, serving
from test_file_log import Rig, read_all, write

LANE = Lane("c", "a~s~0", 1, 1)


def line(seq: int, payload: Any = None, lane: Lane = LANE) -> bytes:
    return Framer(lane).line(body(seq if payload is None else payload), seq, True)


class Files:
    """Segments as a test lays them out, and a reader of them."""

    def __init__(self, *, line_bytes_max: int = 4096, open_files: int = 8) -> None:
        self.rig = Rig()
        self.line_bytes_max = line_bytes_max
        self.open_files = open_files

    async def open(self) -> Reader:
        log = await self.rig.log()
        await log.aclose()
        fs = FakeFs(self.rig.disk)
        fs.mkdir("/home/messages/c")
        self.fs = fs
        return Reader(fs, self.rig.home, fs.uid, self.rig.events.append, open_files=self.open_files,
                      line_bytes_max=self.line_bytes_max)

    def put(self, first: int, data: bytes, lane: Lane = LANE) -> None:
        self.rig.edit(str(SegmentName(lane.origin, lane.inc, lane.priority, first)), data)


def payloads(records: Any) -> list[Any]:
    return [record.cause if isinstance(record, Damage) else decode(record).payload for record in records]


# ------------------------------------------------------------------------------------------------ moving (rule 3)


@in_virtual_time
async def test_the_earlier_segment_is_read_to_its_end_again_before_moving() -> None:
    files = Files()
    reader = await files.open()
    files.put(1, line(1) + b"torn")
    reader.look("c")
    batch = reader.read(LANE, reader.seek(LANE, 0))
    assert payloads(batch.records) == [1]
    assert reader.read(LANE, batch.cursor).records == ()
    # A record that was written between the look at the end and the look at the directory counts.
    FakeFs(files.rig.disk).unlink("/home/messages/c/a~s~0.1.1.1.log")
    reader.close()
    files.put(1, line(1) + line(2) + b"torn")
    files.put(3, line(3))
    reader.look("c")
    found = []
    cursor = batch.cursor
    while (batch := reader.read(LANE, cursor)).records:
        found += payloads(batch.records)
        cursor = batch.cursor
    assert found == [2, 3]
    (dropped,) = files.rig.of(TailDropped)
    assert (dropped.lane, dropped.length) == (LANE, 4)


@in_virtual_time
async def test_a_torn_tail_is_not_yet_a_record_and_becomes_one_with_its_newline() -> None:
    files = Files()
    reader = await files.open()
    whole = line(2)
    files.put(1, line(1) + whole[:-5])
    cursor = reader.read(LANE, reader.seek(LANE, 0)).cursor
    assert reader.read(LANE, cursor).records == ()
    files.put(1, whole[-5:])
    assert payloads(reader.read(LANE, cursor).records) == [2]
    assert not files.rig.events


@in_virtual_time
async def test_the_torn_end_of_an_incarnation_that_is_over_is_told_once() -> None:
    files = Files()
    reader = await files.open()
    files.put(1, line(1) + b"torn")
    files.put(1, line(1, lane=LANE._replace(inc=2)), LANE._replace(inc=2))
    cursor = reader.read(LANE, reader.seek(LANE, 0)).cursor
    for _ in range(3):
        assert reader.read(LANE, cursor).records == ()
    assert len(files.rig.of(TailDropped)) == 1


@in_virtual_time
async def test_rotation_with_tiny_segments_costs_a_reader_nothing() -> None:
    rig = Rig()
    log = await rig.log(segment_bytes=200)
    readers: list[tuple[FileLog, list[Any]]] = [(await rig.log(f"r{n}"), []) for n in range(3)]
    cursors: dict[int, Any] = {}
    for n in range(300):
        position = await write(log, n)
        for which, (reader, found) in enumerate(readers):
            if (n + which) % (which + 2) == 0:
                await reader.lanes("c")
                cursor = cursors.get(which) or await reader.seek(position.lane, 0)
                while (batch := await reader.read(position.lane, cursor, 300)).records:
                    found += payloads(batch.records)
                    cursor = batch.cursor
                cursors[which] = cursor
    for found in (found for _, found in readers):
        assert found == list(range(len(found)))
        assert len(found) > 290


# ------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("seed", range(8))
def test_damage_costs_the_touched_records_only_and_is_told(kind: Any, seed: int) -> None:
    @in_virtual_time
    async def test() -> None:
        rig = Rig()
        log = await rig.log()
        await write(log, *(f"{n} {'x' * 100}" for n in range(200)))
        await log.aclose()
        path = f"/home/messages/c/{rig.files()[0]}"
        before = rig.disk.read(path)
        start, end = rig.disk.corrupt(path, kind, Random(seed))
        found = await read_all(await rig.log("reader"))
        good = [value for value in found if value != "wrong checksum"]
        whole = [n for n, at in enumerate(_starts(before)) if not (at < end and start < at + len(_line(before, at)))]
        for n in whole if kind != "duplicate" else range(200):
            assert f"{n} {'x' * 100}" in good, (n, start, end)
        order = [int(value.split()[0]) for value in good]
        assert set(order) <= set(range(200))
        if kind not in ("duplicate",):
            assert order == sorted(set(order))

    test()


def _starts(data: bytes) -> list[int]:
    starts, at = [], 0
    while at < len(data):
        starts.append(at)
        at = data.index(b"\n", at) + 1
    return starts


def _line(data: bytes, at: int) -> bytes:
    return data[at : data.index(b"\n", at) + 1]


@in_virtual_time
async def test_bytes_without_any_newline_are_one_bad_line() -> None:
    files = Files(line_bytes_max=1000)
    reader = await files.open()
    files.put(1, line(1) + b"x" * 2500 + b"\n" + line(2))
    found, cursor = [], reader.seek(LANE, 0)
    while (batch := reader.read(LANE, cursor, 300)).records:
        found += payloads(batch.records)
        cursor = batch.cursor
    assert (found[0], found[-1]) == (1, 2)
    assert set(found[1:-1]) == {"wrong checksum"}


@in_virtual_time
async def test_a_record_longer_than_one_read_is_read_whole() -> None:
    files = Files(line_bytes_max=10_000)
    reader = await files.open()
    files.put(1, line(1, "x" * 5000) + line(2))
    batch = reader.read(LANE, reader.seek(LANE, 0), 64)
    assert payloads(batch.records) == ["x" * 5000]
    assert payloads(reader.read(LANE, batch.cursor, 64).records) == [2]


@in_virtual_time
async def test_the_span_ends_with_a_right_line_and_the_bad_ones_behind_are_counted_apart() -> None:
    files = Files(line_bytes_max=4096)
    reader = await files.open()
    files.put(1, line(1) + line(2) + b"bad\n" * 3)
    assert (reader.span(LANE), reader.last(LANE)) == (Span(1, 2), 5)
    files.put(6, b"")
    assert (reader.span(LANE), reader.last(LANE)) == (Span(1, 2), 5)
    files.put(6, b"bad\n")
    assert (reader.span(LANE), reader.last(LANE)) == (Span(1, 2), 6)
    other = LANE._replace(inc=2)
    files.put(1, b"bad\n" * 5, other)
    assert (reader.span(other), reader.last(other)) == (Span(1, 0), 5)
    far = LANE._replace(inc=3)
    files.put(1, line(1, lane=far) + b"b\n" * 600_000, far)
    assert (reader.span(far), reader.last(far)) == (Span(1, 1), 600_001)


@pytest.mark.parametrize("flag_all", [False, True])
def test_garbage_at_the_end_uses_up_no_number(flag_all: bool) -> None:
    @in_virtual_time
    async def test() -> None:
        rig, got = Rig(), Got()
        log = await rig.log()
        await write(log, 1)
        rig.edit(rig.files()[0], b"garbage\n")
        async with serving(log, got, start="earliest" if flag_all else "new", flag_all=flag_all):
            await write(log, 2)
            await got.reach(1 + flag_all)
        assert [(m.payload, m.redelivered) for m in got] == [*[(1, True)] * flag_all, (2, False)]

    test()


@in_virtual_time
async def test_a_last_segment_that_holds_only_what_was_written_again_does_not_end_its_lane() -> None:
    files = Files()
    reader = await files.open()
    files.put(1, line(1) + line(2) + line(3))
    files.put(4, line(2))  # and 3, which a power cut took
    assert reader.span(LANE) == Span(1, 3)
    assert reader.last(LANE) == 3
    files.put(4, line(3) + line(4))
    assert reader.span(LANE) == Span(1, 4)


@in_virtual_time
async def test_seeking_behind_damage_finds_the_next_good_record() -> None:
    files = Files()
    reader = await files.open()
    files.put(1, line(1) + b"half" + line(3) + line(4) + line(5))
    reader.look("c")
    for after, expected in ((3, [4, 5]), (4, [5]), (1, ["wrong checksum", 4, 5])):
        found = payloads(reader.read(LANE, reader.seek(LANE, after)).records)
        assert found == expected or (after == 1 and found == [4, 5])
    assert reader.read(LANE, reader.seek(LANE, 9)).records == ()


@in_virtual_time
async def test_seeking_in_a_segment_whose_first_line_is_damaged_begins_with_it() -> None:
    files = Files()
    reader = await files.open()
    files.put(4, b"damaged\n" + line(5))
    reader.look("c")
    assert payloads(reader.read(LANE, reader.seek(LANE, 3)).records) == ["wrong checksum", 5]


# ------------------------------------------------------------------------------------------------ places


@in_virtual_time
async def test_what_was_removed_is_lost_with_the_span_that_is_left() -> None:
    files = Files()
    reader = await files.open()
    for first in (1, 3, 5):
        files.put(first, line(first) + line(first + 1))
    cursor = reader.seek(LANE, 0)
    reader.close()
    FakeFs(files.rig.disk).unlink("/home/messages/c/a~s~0.1.1.1.log")
    with pytest.raises(PositionLost) as caught:
        reader.read(LANE, cursor)
    assert (caught.value.first, caught.value.last) == (3, 6)
    with pytest.raises(PositionLost):
        reader.seek(LANE, 1)
    assert payloads(reader.read(LANE, reader.seek(LANE, 2)).records) == [3, 4]
    with pytest.raises(PositionLost) as nothing:
        reader.seek(LANE._replace(inc=9), 0)
    assert (nothing.value.first, nothing.value.last) == (1, 0)


@in_virtual_time
async def test_a_segment_removed_between_the_look_and_the_read_is_lost_too() -> None:
    files = Files()
    reader = await files.open()
    files.put(1, line(1))
    files.put(2, line(2))
    reader.look("c")
    files.fs.unlink("/home/messages/c/a~s~0.1.1.1.log")
    with pytest.raises(PositionLost) as caught:
        reader.seek(LANE, 0)
    assert (caught.value.first, caught.value.last) == (2, 2)
    files.fs.unlink("/home/messages/c/a~s~0.1.1.2.log")
    reader.close()
    assert reader.last(LANE) == 1


@in_virtual_time
async def test_few_descriptors_are_enough_for_many_lanes() -> None:
    files = Files(open_files=2)
    reader = await files.open()
    lanes = [LANE._replace(origin=f"{n}~s~0") for n in range(10)]
    for lane in lanes:
        files.put(1, line(1, lane=lane) + line(2, lane=lane), lane)
    reader.look("c")
    assert len(reader.lanes("c")) == 10
    for _ in range(2):
        for lane in lanes:
            assert payloads(reader.read(lane, reader.seek(lane, 1)).records) == [2]
    assert len(files.fs.open_fds()) <= 2
    reader.close()
    assert files.fs.open_fds() == []


@in_virtual_time
async def test_a_view_is_taken_when_none_is_there() -> None:
    files = Files()
    reader = await files.open()
    files.put(1, line(1))
    assert reader.lanes("c") == [LANE]
    assert reader.lanes("never seen") == []


# ------------------------------------------------------------------------------------------------ hostile files


@in_virtual_time
async def test_symbolic_links_pipes_and_second_names_are_refused() -> None:
    for kind in ("symlink", "fifo", "hardlink"):
        files = Files()
        reader = await files.open()
        files.put(1, line(1), LANE._replace(origin="real~s~0"))
        planted = str(SegmentName(LANE.origin, 1, 1, 1))
        files.rig.disk.plant(f"/home/messages/c/{planted}", kind, "/home/messages/c/real~s~0.1.1.1.log",  # type: ignore[arg-type]
                             uid=files.fs.uid)
        reader.look("c")
        with pytest.raises(LogError):
            reader.read(LANE, (1, 0))
        assert files.fs.open_fds() == []


@in_virtual_time
async def test_files_that_are_no_segments_are_handed_to_whoever_asks() -> None:
    files = Files()
    reader = await files.open()
    for name in ("job.json", "a~s~0.1.1.0.log", "a~s~0.01.1.1.log", "a.b.c.d.log", "x.log", ".name"):
        files.rig.edit(name, b"")
    assert sorted(reader.look("c")) == sorted(
        ["job.json", "a~s~0.1.1.0.log", "a~s~0.01.1.1.log", "a.b.c.d.log", "x.log", ".name"])
    assert reader.lanes("c") == []


@in_virtual_time
async def test_a_hashed_directory_is_the_channel_that_its_name_file_says() -> None:
    rig = Rig()
    log = await rig.log()
    name = "x" * 200
    await log.append(name, body(1))
    fs = FakeFs(rig.disk)
    fs.mkdir("/home/messages/h-" + "0" * 64)
    fs.mkdir("/home/messages/h-" + "1" * 64)
    fd = fs.open("/home/messages/h-" + "1" * 64 + "/.name", os.O_RDWR | os.O_CREAT)
    fs.write(fd, b"lie")
    fs.mkdir("/home/messages/NOT-ENCODED")
    assert await log.channels() == [name]


@in_virtual_time
async def test_what_is_no_channel_is_told_once_and_hides_nothing() -> None:
    rig = Rig()
    log = await rig.log()
    await log.append("c", body(1))
    fs = FakeFs(rig.disk)
    nameless = f"/home/messages/h-{'0' * 64}"
    for directory in (nameless, "/home/messages/NOT-ENCODED", f"/home/messages/h-{'1' * 64}"):
        fs.mkdir(directory)
    for file in ("/home/messages/file", f"{nameless}/a~s~0.1.1.1.log", f"/home/messages/h-{'1' * 64}/.name"):
        fs.close(fs.open(file, os.O_RDWR | os.O_CREAT))
    for _ in range(2):
        assert await log.channels() == ["c"]
    assert {(stray.path.removeprefix("/home/messages/"), stray.cause) for stray in rig.of(StrayEntry)} == {
        ("file", "not a directory of this user"), ("NOT-ENCODED", "not the encoded name of a channel"),
        (nameless.removeprefix("/home/messages/"), "its file .name does not say which channel it is")}
    assert len(rig.of(StrayEntry)) == 3
    with pytest.raises(LogError, match="file is not a directory of this user; move it away"):
        await log.lanes("file")


@in_virtual_time
async def test_a_hashed_channel_without_its_name_has_it_again_with_the_next_sender() -> None:
    rig = Rig()
    log = await rig.log()
    name = "x" * 200
    await log.append(name, body(1))
    await log.aclose()
    FakeFs(rig.disk).unlink(f"/home/messages/{encode_name(name)}/.name")
    again = await rig.log()
    assert await again.channels() == []
    await again.append(name, body(2))
    assert await again.channels() == [name]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=40), st.integers(100, 800), st.integers(1, 900))
def test_whatever_is_written_is_read_back_in_any_pieces(sizes: list[int], segment_bytes: int, limit: int) -> None:
    @in_virtual_time
    async def test() -> None:
        rig = Rig()
        log = await rig.log(segment_bytes=segment_bytes)
        items = [f"{n} {'x' * size}" for n, size in enumerate(sizes)]
        position = await write(log, *items)
        await log.lanes("c")
        for after in (0, len(items) // 2, len(items)):
            found, cursor = [], await log.seek(position.lane, after)
            while (batch := await log.read(position.lane, cursor, limit)).records:
                found += payloads(batch.records)
                cursor = batch.cursor
            assert found == items[after:]

    test()


@in_virtual_time
async def test_a_lane_that_is_not_there_has_an_empty_span() -> None:
    reader = await Files().open()
    assert reader.span(LANE) == Span(1, 0)


@in_virtual_time
async def test_a_batch_says_whether_there_was_more() -> None:
    files = Files()
    reader = await files.open()
    files.put(1, line(1) + line(2))
    cursor = reader.seek(LANE, 0)
    assert reader.read(LANE, cursor, len(line(1)) + 1).more
    assert not reader.read(LANE, cursor).more
    files.put(3, line(3))
    assert not reader.read(LANE, cursor).more, "a segment that nobody has looked for is not known"
    reader.look("c")
    assert reader.read(LANE, cursor).more
