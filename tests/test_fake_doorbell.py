"""Hints that come late, twice or never, and the machine of one simulated process."""

from __future__ import annotations

import asyncio
import os
from random import Random

import pytest

from lemegeton import seams
from lemegeton.testing.fake_fs import FakeDisk, FakeFs, Hints
from lemegeton.testing.fake_runtime import EPOCH_MS, FakeClock, runtime
from lemegeton.testing.virtual_loop import run

NEW = os.O_RDWR | os.O_CREAT


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


def test_a_doorbell_rings_for_writes_creations_and_renames_into_its_directory(disk: FakeDisk, fs: FakeFs):
    rung: list[tuple[str | None, bool]] = []

    async def main() -> None:
        other = FakeFs(disk)
        other.mkdir("/d")
        other.mkdir("/e")
        bell: seams.Doorbell = fs.doorbell()
        assert bell.working
        bell.watch("/d", lambda name, created: rung.append((name, created)))
        fd = other.open("/d/f", NEW)
        await asyncio.sleep(1)
        other.write(fd, b"x")
        other.write(fd, b"y")
        put(other, "/e/g", b"")
        await asyncio.sleep(1)
        other.rename("/e/g", "/d/h")
        assert len(rung) == 2
        await asyncio.sleep(1)
        bell.unwatch("/d")
        other.write(fd, b"z")
        await asyncio.sleep(1)
        bell.close()

    run(main())
    assert rung == [("f", True), ("f", False), ("h", True)]


def ring_count(hints: Hints, *, kill: bool = False) -> list[tuple[str | None, bool]]:
    rung: list[tuple[str | None, bool]] = []

    async def main() -> None:
        disk = FakeDisk(Random(1))
        fs, other = FakeFs(disk, hints=hints), FakeFs(disk)
        bell = fs.doorbell()
        bell.watch("/", lambda name, created: rung.append((name, created)))
        assert bell.working == hints.working
        assert bool(bell.cause) != hints.working
        for number in range(100):
            other.close(other.open(f"/{number}", NEW))
        if kill:
            fs.kill()
        await asyncio.sleep(1)

    run(main())
    return rung


def test_hints_are_lost_doubled_blurred_or_switched_off():
    assert len(ring_count(Hints())) == 100
    assert 20 < len(ring_count(Hints(loss=0.5))) < 80
    assert 120 < len(ring_count(Hints(double=0.5))) < 180
    assert (None, True) in ring_count(Hints(overflow=0.5))
    assert ring_count(Hints(working=False)) == []


def test_the_doorbell_of_the_dead_is_silent():
    assert ring_count(Hints(), kill=True) == []


def test_a_doorbell_that_cannot_watch_says_why(fs: FakeFs):
    async def main() -> None:
        put(fs, "/f", b"")
        for path, cause in (("/none", "No such file"), ("/f", "Not a directory")):
            bell = fs.doorbell()
            bell.watch(path, lambda name, created: None)
            assert not bell.working
            assert cause in bell.cause

    run(main())


def test_a_runtime_has_virtual_time_seeded_tokens_and_the_boot_of_its_disk():
    async def look(seed: int) -> tuple[object, ...]:
        disk = FakeDisk(Random(seed))
        fs = FakeFs(disk, uid=7)
        clock = FakeClock()
        world: seams.Runtime = runtime(fs, clock=clock, machine_id="m")
        first = world.wall_ms()
        await asyncio.sleep(2)
        clock.step(-500)
        assert (first, world.wall_ms()) == (EPOCH_MS, EPOCH_MS + 1500)
        assert (world.uid, world.machine_id, world.fs) == (7, "m", fs)
        disk.power(Random(1))
        assert world.boot_id != disk.boot_id
        return world.token(8), world.token(8), world.boot_id

    assert run(look(1)) == run(look(1)) != run(look(2))


def test_a_blocking_call_takes_time_and_brings_result_or_error(fs: FakeFs):
    async def main() -> None:
        world = runtime(fs, blocking_s=(1.0, 2.0))
        loop = asyncio.get_running_loop()
        assert await world.blocking(lambda: 5) == 5
        assert 1.0 <= loop.time() <= 2.0
        with pytest.raises(FileNotFoundError):
            await world.blocking(lambda: fs.lstat("/none"))

    run(main())


def test_a_blocking_call_goes_on_when_cancelled_and_not_when_killed(disk: FakeDisk):
    async def main() -> None:
        for name, end, made in (("cancel", asyncio.Task.cancel, True), ("kill", None, False)):
            fs = FakeFs(disk)
            world = runtime(fs, blocking_s=(1.0, 2.0))

            async def wait(world: seams.Runtime = world, name: str = name) -> None:
                await world.blocking(lambda: world.fs.mkdir(f"/{name}"))

            task = asyncio.create_task(wait())
            await asyncio.sleep(0)
            end(task) if end else fs.kill()
            await asyncio.sleep(5)
            assert (name in FakeFs(disk).listdir("/")) == made
            assert task.cancelled() == made

    run(main())
