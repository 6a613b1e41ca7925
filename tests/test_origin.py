"""Origins: one writer at a time, and incarnations that are never given twice, power cut or not."""

from __future__ import annotations

import errno
import os
from random import Random

import pytest

from lemegeton.errors import HomeRefused, LogError
from lemegeton.home import Home, open_home
from lemegeton.logs import origin as origin_module
from lemegeton.logs.origin import Origin, of_this_boot, take_origin, try_origin
from lemegeton.seams import Runtime
from lemegeton.testing.fake_fs import FakeDisk, FakeFs
from lemegeton.testing.fake_runtime import runtime
from test_delivery import in_virtual_time


class Machine:
    """One process on a disk of its own."""

    def __init__(self, disk: FakeDisk | None = None) -> None:
        self.disk = disk or FakeDisk(Random(1))
        self.fs = FakeFs(self.disk)

    async def open(self) -> tuple[Runtime, Home]:
        machine = runtime(self.fs)
        return machine, await open_home(machine, "/home")

    async def take(self, name: str = "a") -> Origin:
        origin = take_origin(*await self.open(), name)
        assert origin is not None
        return origin


@in_virtual_time
async def test_a_held_origin_is_passed_over_and_a_free_one_taken_again() -> None:
    disk = FakeDisk(Random(1))
    first, second = Machine(disk), Machine(disk)
    a, b = await first.take(), await second.take()
    assert (a.name[-2:], b.name[-2:]) == ("~0", "~1")
    first.fs.kill()
    assert (await Machine(disk).take()).name == a.name
    assert take_origin(*await second.open(), "a", first_only=True) is None


@in_virtual_time
async def test_incarnations_grow_over_lives_and_power_cuts() -> None:
    disk = FakeDisk(Random(1))
    given = []
    for cut in (False, False, True, False, True, True):
        origin = await Machine(disk).take()
        given += [origin.fresh(), origin.fresh()]
        origin.release()
        if cut:
            disk.power(Random(len(given)))
    assert given == sorted(set(given))


@in_virtual_time
async def test_only_lanes_of_this_boot_can_be_continued() -> None:
    disk = FakeDisk(Random(1))
    origin = await Machine(disk).take()
    assert not origin.continuable(1)  # nothing is known of what came before
    first = origin.fresh()
    assert origin.continuable(first)
    assert not origin.continuable(first - 1)
    origin.release()
    again = await Machine(disk).take()
    assert again.continuable(first)
    again.release()
    disk.sync()
    disk.power(Random(2))
    later = await Machine(disk).take()
    assert not later.continuable(first)
    second = later.fresh()
    assert second > first
    assert later.continuable(second)
    assert not later.continuable(first)


@in_virtual_time
async def test_only_incarnations_begun_since_the_machine_started_are_of_this_boot() -> None:
    disk = FakeDisk(Random(1))
    origin = await Machine(disk).take()
    first = origin.fresh()
    machine, home = await Machine(disk).open()
    assert [of_this_boot(machine, home, origin.name, inc) for inc in (0, first, first + 1)] == [False, True, False]
    assert not of_this_boot(machine, home, f"b~{home.site}~0", 1)
    origin.release()
    disk.power(Random(2))
    machine, home = await Machine(disk).open()
    assert not of_this_boot(machine, home, origin.name, first)
    later = await Machine(disk).take()
    second = later.fresh()
    assert [of_this_boot(machine, home, origin.name, inc) for inc in (first, second)] == [False, True]
    fs = FakeFs(disk)
    fs.pwrite(fs.open(f"/home/origins/{origin.name}.lock", os.O_RDWR), b"garbage" * 40, 0)
    assert not of_this_boot(machine, home, origin.name, second)
    assert len(machine.fs.open_fds()) == 0  # type: ignore[attr-defined]


@in_virtual_time
async def test_an_incarnation_begins_above_what_is_seen_in_the_files() -> None:
    origin = await Machine().take()
    assert origin.fresh(above=41) == 42
    assert origin.fresh() == 43


@in_virtual_time
async def test_a_damaged_lock_file_is_passed_over() -> None:
    disk = FakeDisk(Random(1))
    origin = await Machine(disk).take()
    origin.fresh()
    origin.release()
    path = f"/home/origins/{origin.name}.lock"
    fs = FakeFs(disk)
    fd = fs.open(path, os.O_RDWR)
    fs.pwrite(fd, b"garbage" * 40, 0)
    assert (await Machine(disk).take()).name.endswith("~1")


@in_virtual_time
async def test_one_damaged_slot_leaves_the_other() -> None:
    disk = FakeDisk(Random(1))
    origin = await Machine(disk).take()
    assert [origin.fresh(), origin.fresh()] == [1, 2]
    origin.release()
    fs = FakeFs(disk)
    fd = fs.open(f"/home/origins/{origin.name}.lock", os.O_RDWR)
    fs.pwrite(fd, b"torn", 0)  # the slot of the even versions
    fs.close(fd)
    again = await Machine(disk).take()
    assert again.name == origin.name
    assert again.fresh() == 2


@in_virtual_time
async def test_all_origins_held_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin_module, "ORIGINS_MAX", 3)
    disk = FakeDisk(Random(1))
    for _ in range(3):
        await Machine(disk).take()
    with pytest.raises(LogError, match="all 3 are held"):
        await Machine(disk).take()


@in_virtual_time
async def test_a_lock_file_that_is_not_ours_is_refused_and_no_descriptor_leaks() -> None:
    machine = Machine()
    _, home = await machine.open()
    machine.disk.plant("/home/origins/other", "fifo")
    name = f"a~{home.site}~0"
    fs = machine.fs
    fs.close(fs.open(f"/home/origins/{name}.lock", os.O_RDWR | os.O_CREAT))
    machine.disk.chown(f"/home/origins/{name}.lock", 7)
    before = fs.open_fds()
    with pytest.raises(HomeRefused):
        try_origin(runtime(fs), home, name)
    assert fs.open_fds() == before


@in_virtual_time
async def test_a_new_incarnation_that_cannot_reach_the_disk_is_not_used() -> None:
    machine = Machine()
    origin = await machine.take()
    machine.fs.fail_next("fsync", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        origin.fresh()
    assert origin.fresh() >= 1


@pytest.mark.parametrize("seed", range(8))
def test_an_incarnation_survives_a_power_cut_after_a_sync_of_its_lock_file_failed(seed: int) -> None:
    @in_virtual_time
    async def test() -> None:
        disk = FakeDisk(Random(1))
        machine = Machine(disk)
        failed = await machine.take()
        machine.fs.fail_next("fsync", errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            failed.fresh()
        machine.fs.kill()
        given = (await Machine(disk).take()).fresh()
        disk.power(Random(seed))
        assert (await Machine(disk).take()).fresh() > given

    test()


@in_virtual_time
async def test_an_incarnation_that_was_only_half_written_is_not_given() -> None:
    disk = FakeDisk(Random(1))
    machine = Machine(disk)
    origin = await machine.take()
    first = origin.fresh()
    machine.fs.short_writes = 1.0
    with pytest.raises(OSError, match="short write"):
        origin.fresh()
    machine.fs.short_writes = 0.0
    second = origin.fresh()
    disk.power(Random(2))
    assert first < second < (await Machine(disk).take()).fresh()
