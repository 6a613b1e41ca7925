"""The simulated disk loses, refuses and damages exactly what a real one may."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from lemegeton.testing.fake_fs import DAMAGES, FakeDisk, FakeFs, Killed

NEW = os.O_RDWR | os.O_CREAT
APPEND = NEW | os.O_APPEND
PAGE = 4096
SEEDS = range(200)


@pytest.fixture
def disk() -> FakeDisk:
    return FakeDisk(Random(1))


@pytest.fixture
def fs(disk: FakeDisk) -> FakeFs:
    return FakeFs(disk)


def put(fs: FakeFs, path: str, data: bytes, *, sync: bool = False) -> None:
    fd = fs.open(path, NEW)
    assert fs.pwrite(fd, data, 0) == len(data)
    if sync:
        fs.fsync(fd)
    fs.close(fd)


def sync_directory(fs: FakeFs, path: str) -> None:
    fd = fs.open(path, os.O_RDONLY | os.O_DIRECTORY)
    fs.fsync(fd)
    fs.close(fd)


def refused(code: int) -> Any:
    return pytest.raises(OSError, match=rf"^\[Errno {code}\]")


def after_power(seed: int, prepare: Callable[[FakeFs], None]) -> FakeFs:
    disk = FakeDisk(Random(seed))
    prepare(FakeFs(disk))
    disk.power(Random(seed))
    return FakeFs(disk)


def test_what_was_synced_with_its_directory_survives_every_power_cut():
    def prepare(fs: FakeFs) -> None:
        fs.mkdir("/d")
        sync_directory(fs, "/")
        put(fs, "/d/f", b"kept" * 3000, sync=True)
        sync_directory(fs, "/d")
        fd = fs.open("/d/f", os.O_RDWR | os.O_APPEND)
        fs.write(fd, b"lost" * 3000)

    lengths = set()
    for seed in SEEDS:
        found = after_power(seed, prepare).disk.read("/d/f")
        assert found[:12000] == b"kept" * 3000
        assert set(found[12000:]) <= set(b"lost\0")
        lengths.add(len(found))
    assert {12000, 24000} < lengths
    assert any(length % 512 for length in lengths - {12000, 24000})


def test_unsynced_entries_are_kept_or_lost_each_whole():
    def prepare(fs: FakeFs) -> None:
        fs.mkdir("/d")
        sync_directory(fs, "/")
        put(fs, "/d/a", b"a", sync=True)
        put(fs, "/d/b", b"b", sync=True)

    seen = {tuple(sorted(after_power(seed, prepare).listdir("/d"))) for seed in SEEDS}
    assert seen == {(), ("a",), ("b",), ("a", "b")}


def test_a_rename_is_whole_before_or_after():
    def prepare(fs: FakeFs) -> None:
        put(fs, "/new", b"new", sync=True)
        put(fs, "/old", b"old", sync=True)
        sync_directory(fs, "/")
        fs.rename("/new", "/old")
        fs.rename("/old", "/last")

    states = set()
    for seed in SEEDS:
        fs = after_power(seed, prepare)
        states.add(tuple(sorted((name, fs.disk.read(f"/{name}")) for name in fs.listdir("/"))))
        assert all(fs.lstat(f"/{name}").st_nlink == 1 for name in fs.listdir("/"))
    assert states == {(("new", b"new"), ("old", b"old")), (("old", b"new"),), (("last", b"new"),),
                      (("last", b"new"), ("old", b"old"))}


def test_a_renamed_file_brings_both_directories_to_the_disk():
    def prepare(fs: FakeFs) -> None:
        fs.mkdir("/d")
        fs.mkdir("/e")
        sync_directory(fs, "/")
        put(fs, "/d/f", b"x", sync=True)
        fs.rename("/d/f", "/e/f")
        sync_directory(fs, "/e")

    for seed in SEEDS:
        fs = after_power(seed, prepare)
        assert (fs.listdir("/d"), fs.listdir("/e"), fs.disk.read("/e/f")) == ([], ["f"], b"x")


def test_a_truncated_file_may_come_back_whole_or_empty_and_nothing_else():
    def prepare(fs: FakeFs) -> None:
        put(fs, "/f", b"a" * 5000, sync=True)
        sync_directory(fs, "/")
        fs.close(fs.open("/f", os.O_WRONLY | os.O_TRUNC))

    found = {after_power(seed, prepare).disk.read("/f") for seed in SEEDS}
    assert {b"", b"a" * 5000} <= found
    assert all(set(content) <= {97} for content in found)


def test_an_aligned_store_never_tears_and_each_page_is_lost_by_itself():
    low, high = 0x1111111111111111, 0x2222222222222222

    def prepare(fs: FakeFs) -> None:
        fd = fs.open("/f", NEW)
        fs.allocate(fd, 0, 4 * PAGE)
        cells = fs.map(fd, 4 * PAGE).cast("Q")
        for cell in range(len(cells)):
            cells[cell] = low
        fs.fsync(fd)
        sync_directory(fs, "/")
        fs.allocate(fd, 4 * PAGE, PAGE)
        more = fs.map(fd, 5 * PAGE).cast("Q")
        for cell in range(len(more)):
            more[cell] = high

    mixed = 0
    for seed in SEEDS:
        found = after_power(seed, prepare).disk.read("/f")
        assert len(found) >= 4 * PAGE
        assert len(found) % 8 == 0
        words = memoryview(found).cast("Q")
        assert set(words[: 4 * PAGE // 8]) <= {low, high}
        assert set(words[4 * PAGE // 8 :]) <= {0, high}
        mixed += len(set(words[: 4 * PAGE // 8])) == 2
    assert mixed > 20


def test_a_synced_mapped_store_survives_and_views_of_the_dead_change_nothing():
    for seed in SEEDS:
        disk = FakeDisk(Random(seed))
        fs = FakeFs(disk)
        fd = fs.open("/f", NEW)
        fs.allocate(fd, 0, PAGE)
        cells = fs.map(fd, PAGE).cast("Q")
        cells[7] = 7
        fs.fdatasync(fd)
        sync_directory(fs, "/")
        disk.power(Random(seed))
        cells[7] = 666
        assert disk.read("/f")[56:64] == (7).to_bytes(8, "little")


def test_a_power_cut_kills_everybody_and_begins_a_new_boot(disk: FakeDisk, fs: FakeFs):
    fs.mkdir("/d")
    put(fs, "/f", b"x" * 10, sync=True)
    sync_directory(fs, "/")
    fs.lock(fs.open("/f", NEW))
    gone = fs.open("/gone", NEW)
    fs.write(gone, b"y" * 10)
    fs.unlink("/gone")
    before = disk.boot_id
    disk.power(Random(3))
    with pytest.raises(Killed):
        fs.lstat("/f")
    after = FakeFs(disk)
    assert disk.boot_id != before
    assert after.lock(after.open("/f", NEW))
    assert disk.used == sum(after.lstat(f"/{name}").st_size for name in after.listdir("/") if name != "d")
    put(after, "/d/new", b"works")


def test_sync_brings_everything_to_the_disk():
    def prepare(fs: FakeFs) -> None:
        fs.mkdir("/d")
        put(fs, "/d/f", b"x" * 9000)
        fs.disk.sync()

    assert all(after_power(seed, prepare).disk.read("/d/f") == b"x" * 9000 for seed in SEEDS)


def test_after_a_failed_fsync_the_pages_are_clean_and_lost():
    def prepare(fs: FakeFs) -> None:
        fd = fs.open("/f", NEW)
        fs.write(fd, b"a" * PAGE)
        fs.fsync(fd)
        sync_directory(fs, "/")
        fs.write(fd, b"b" * PAGE)
        fs.fail_next("fsync", errno.EIO)
        with refused(errno.EIO):
            fs.fsync(fd)
        fs.write(fd, b"c" * PAGE)
        fs.fsync(fd)
        assert fs.pread(fd, PAGE, PAGE) == b"b" * PAGE

    for seed in SEEDS:
        assert after_power(seed, prepare).disk.read("/f") == b"a" * PAGE + bytes(PAGE) + b"c" * PAGE


def test_a_failed_fsync_loses_mapped_pages_too():
    def prepare(fs: FakeFs) -> None:
        fd = fs.open("/f", NEW)
        fs.allocate(fd, 0, 2 * PAGE)
        fs.fsync(fd)
        sync_directory(fs, "/")
        cells = fs.map(fd, 2 * PAGE).cast("Q")
        cells[0] = 1
        fs.fsync_errors = 1.0
        with refused(errno.EIO):
            fs.fdatasync(fd)
        fs.fsync_errors = 0.0
        cells[PAGE // 8] = 2
        fs.fdatasync(fd)
        fs.fdatasync(fd)

    for seed in SEEDS:
        words = memoryview(after_power(seed, prepare).disk.read("/f")).cast("Q")
        assert (words[0], words[PAGE // 8]) == (0, 2)


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_stays_within_the_range_it_names(kind: Any):
    content = Random(0).randbytes(3 * PAGE + 77)
    for seed in range(50):
        disk = FakeDisk(Random(seed))
        fs = FakeFs(disk)
        put(fs, "/f", content, sync=True)
        disk.sync()
        start, end = disk.corrupt("/f", kind, Random(seed))
        found = disk.read("/f")
        assert (disk.used, found == content) == (len(found), False)
        assert found[:start] == content[:start]
        if kind == "truncate":
            assert (len(found), end) == (start, len(content))
        elif kind in ("flip", "zero"):
            assert found[end:] == content[end:]
            assert len(found) == len(content)
        else:
            assert found[end:] == content[start:]
        disk.power(Random(seed))
        assert disk.read("/f") == found


def test_damage_reaches_the_views_of_a_mapped_file(disk: FakeDisk, fs: FakeFs):
    fd = fs.open("/f", NEW)
    fs.allocate(fd, 0, 64)
    view = fs.map(fd, 64)
    disk.corrupt("/f", "garbage", Random(1))
    view[0] = 9
    start, _ = disk.corrupt("/f", "flip", Random(1))
    assert disk.read("/f")[0] == 9
    assert start >= 64 or view[start] != 0
    assert disk.corrupt("/f", "truncate", Random(2))[1] > 64


# Faults


def test_a_full_disk_writes_what_fits_and_then_nothing(disk: FakeDisk, fs: FakeFs):
    disk.capacity = 100
    fd = fs.open("/f", APPEND)
    assert fs.write(fd, b"x" * 60) == 60
    assert fs.write(fd, b"y" * 60) == 40
    with refused(errno.ENOSPC):
        fs.write(fd, b"z")
    with refused(errno.ENOSPC):
        fs.allocate(fd, 0, 101)
    inside = fs.open("/f", os.O_RDWR)
    assert fs.pwrite(inside, b"new", 10) == 3
    put(fs, "/empty", b"")
    disk.capacity = None
    assert fs.write(fd, b"z") == 1
    assert (fs.fstat(fd).st_size, disk.used) == (101, 101)
    fs.close(fs.open("/f", os.O_WRONLY | os.O_TRUNC))
    assert disk.used == 0


def test_a_planned_error_meets_the_nth_call_once(fs: FakeFs):
    fs.fail_next("write", errno.EIO, after=2)
    fd = fs.open("/f", APPEND)
    assert fs.write(fd, b"a") == 1
    with refused(errno.EIO):
        fs.write(fd, b"b")
    assert fs.write(fd, b"c") == 1
    assert fs.disk.read("/f") == b"ac"


def test_a_planned_error_may_count_every_call_and_names_the_path(fs: FakeFs):
    fs.fail_next("*", errno.EACCES, after=3)
    fs.mkdir("/d")
    fs.listdir("/")
    with pytest.raises(PermissionError) as caught:
        fs.rename("/d", "/e")
    assert (caught.value.filename, caught.value.filename2) == ("/d", "/e")
    assert fs.listdir("/") == ["d"]


def test_a_close_that_fails_closes_all_the_same(fs: FakeFs):
    fd = fs.open("/f", NEW)
    fs.fail_next("close", errno.EIO)
    with refused(errno.EIO):
        fs.close(fd)
    assert fs.open_fds() == []


def test_short_writes_store_a_part_and_say_so(fs: FakeFs):
    fs.short_writes = 1.0
    fd = fs.open("/f", APPEND)
    stored = fs.write(fd, b"0123456789")
    assert 0 < stored < 10
    assert fs.disk.read("/f") == b"0123456789"[:stored]
    assert fs.write(fd, b"x") == 1


def test_a_disk_that_turns_read_only_refuses_every_change(disk: FakeDisk, fs: FakeFs):
    put(fs, "/f", b"x")
    fd = fs.open("/f", NEW)
    disk.read_only = True
    for call in (lambda: fs.write(fd, b"y"), lambda: fs.open("/g", NEW), lambda: fs.open("/f", NEW),
                 lambda: fs.mkdir("/d"), lambda: fs.unlink("/f"), lambda: fs.rename("/f", "/g"),
                 lambda: fs.allocate(fd, 0, 10)):
        with refused(errno.EROFS):
            call()
    assert fs.pread(fs.open("/f", os.O_RDONLY), 9, 0) == b"x"
