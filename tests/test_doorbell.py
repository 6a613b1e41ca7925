"""The doorbell on real inotify, and the one that never rings."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lemegeton.doorbell import InotifyDoorbell, SilentDoorbell, open_doorbell
from lemegeton.seams import Doorbell

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux")

QUEUE = Path("/proc/sys/fs/inotify/max_queued_events")
WAIT_S = 10.0


class Rings:
    """What a directory rang; `until` waits for a certain ring."""

    def __init__(self) -> None:
        self.seen: list[tuple[str | None, bool]] = []
        self._came = asyncio.Event()

    def __call__(self, name: str | None, created: bool) -> None:
        self.seen.append((name, created))
        self._came.set()

    async def until(self, name: str | None, created: bool) -> None:
        async with asyncio.timeout(WAIT_S):
            while (name, created) not in self.seen:
                self._came.clear()
                await self._came.wait()


@pytest.fixture
async def bell() -> AsyncIterator[InotifyDoorbell]:
    made = InotifyDoorbell()
    yield made
    made.close()


def put(path: Path, data: bytes = b"") -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, data)
    os.close(fd)


async def passed(bell: Doorbell, directory: Path) -> None:
    """Return once everything that happened before this call was rung."""
    marker = directory / "marker"
    marker.mkdir()
    rings = Rings()
    bell.watch(str(marker), rings)
    put(marker / "x")
    await rings.until("x", True)


async def test_a_new_file_rings_as_created(bell: InotifyDoorbell, tmp_path: Path) -> None:
    rings = Rings()
    bell.watch(str(tmp_path), rings)
    assert (bell.working, bell.cause) == (True, "")
    put(tmp_path / "a")
    await rings.until("a", True)
    (tmp_path / "directory").mkdir()
    await rings.until("directory", True)


async def test_a_write_rings_with_the_name(bell: InotifyDoorbell, tmp_path: Path) -> None:
    put(tmp_path / "ä b")
    rings = Rings()
    bell.watch(str(tmp_path), rings)
    put(tmp_path / "ä b", b"more")
    await rings.until("ä b", False)
    assert ("ä b", True) not in rings.seen


async def test_a_rename_into_the_directory_rings_as_created(bell: InotifyDoorbell, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    put(there / "a")
    rings = Rings()
    bell.watch(str(here), rings)
    os.rename(there / "a", here / "b")
    await rings.until("b", True)


async def test_reading_and_removing_ring_nothing(bell: InotifyDoorbell, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    put(here / "a", b"x")
    rings = Rings()
    bell.watch(str(here), rings)
    assert (here / "a").read_bytes() == b"x"
    os.unlink(here / "a")
    await passed(bell, tmp_path)
    assert rings.seen == []


async def test_every_directory_has_a_ring_of_its_own(bell: InotifyDoorbell, tmp_path: Path) -> None:
    rings = {name: Rings() for name in "ab"}
    for name, ring in rings.items():
        (tmp_path / name).mkdir()
        bell.watch(str(tmp_path / name), ring)
    put(tmp_path / "a" / "x")
    put(tmp_path / "b" / "y")
    await rings["a"].until("x", True)
    await rings["b"].until("y", True)
    assert {name for name, _ in rings["a"].seen} == {"x"}


async def test_watching_again_replaces_the_ring(bell: InotifyDoorbell, tmp_path: Path) -> None:
    old, new = Rings(), Rings()
    bell.watch(str(tmp_path), old)
    bell.watch(str(tmp_path), new)
    put(tmp_path / "a")
    await new.until("a", True)
    assert old.seen == []


async def test_an_unwatched_directory_is_silent_at_once(bell: InotifyDoorbell, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    rings = Rings()
    bell.watch(str(here), rings)
    put(here / "a")  # rung, but not read yet
    bell.unwatch(str(here))
    bell.unwatch(str(here))
    put(here / "b")
    await passed(bell, tmp_path)
    assert rings.seen == []


async def test_a_directory_that_cannot_be_watched_is_said_until_it_can(bell: InotifyDoorbell, tmp_path: Path) -> None:
    missing, file = tmp_path / "missing", tmp_path / "file"
    put(file)
    rings = Rings()
    bell.watch(str(missing), rings)
    assert not bell.working
    assert bell.cause == f"watching {missing}: No such file or directory"
    bell.watch(str(file), rings)
    missing.mkdir()
    bell.watch(str(missing), rings)
    assert (bell.working, bell.cause) == (False, f"watching {file}: Not a directory")
    bell.unwatch(str(file))
    assert (bell.working, bell.cause) == (True, "")
    put(missing / "a")
    await rings.until("a", True)


async def test_a_directory_that_was_removed_can_be_unwatched(bell: InotifyDoorbell, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    bell.watch(str(here), Rings())
    here.rmdir()
    bell.unwatch(str(here))
    assert bell.working


async def test_another_directory_of_the_same_name_is_watched_anew(bell: InotifyDoorbell, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    old, new = Rings(), Rings()
    bell.watch(str(here), old)
    os.rename(here, tmp_path / "away")
    here.mkdir()
    bell.watch(str(here), new)
    put(tmp_path / "away" / "a")
    put(here / "b")
    await new.until("b", True)
    assert old.seen == []


async def test_the_end_of_a_directory_rings_as_a_change_of_anything(bell: InotifyDoorbell, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    rings = Rings()
    bell.watch(str(here), rings)
    shutil.rmtree(here)
    await rings.until(None, False)


async def test_when_the_kernel_lost_events_everything_rings(bell: InotifyDoorbell, tmp_path: Path) -> None:
    limit = int(QUEUE.read_text())
    rings = {name: Rings() for name in "abc"}
    for name, ring in rings.items():
        (tmp_path / name).mkdir()
        bell.watch(str(tmp_path / name), ring)
    fds = [os.open(tmp_path / name / "x", os.O_WRONLY | os.O_CREAT, 0o600) for name in "ab"]
    for n in range(limit + 10):  # equal neighbours count as one event, so they alternate
        os.write(fds[n % 2], b"x")
    for ring in rings.values():
        await ring.until(None, True)
    assert rings["c"].seen == [(None, True)]
    for fd in fds:
        os.close(fd)


async def test_a_wake_up_with_nothing_to_read_is_harmless(bell: InotifyDoorbell, tmp_path: Path) -> None:
    rings = Rings()
    bell.watch(str(tmp_path), rings)
    bell._read()
    assert rings.seen == []


async def test_a_closed_doorbell_rings_no_more_and_gives_its_descriptor_back(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    rings = Rings()
    closed, other = InotifyDoorbell(), InotifyDoorbell()
    closed.watch(str(tmp_path), rings)
    closed.close()
    put(tmp_path / "a")
    await passed(other, tmp_path)
    other.close()
    assert rings.seen == []
    assert len(os.listdir("/proc/self/fd")) == len(before)


async def test_the_best_doorbell_is_inotify() -> None:
    bell = open_doorbell()
    assert isinstance(bell, InotifyDoorbell)
    bell.close()


async def test_without_a_free_descriptor_the_doorbell_is_silent_and_says_why() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        bell = open_doorbell()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert isinstance(bell, SilentDoorbell)
    assert bell.cause.startswith("inotify: [Errno 24] Too many open files")


async def test_without_the_binding_the_doorbell_is_silent_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inotify_simple", None)
    bell = open_doorbell()
    assert not bell.working
    assert bell.cause.startswith("inotify: import of inotify_simple halted")


def test_the_silent_doorbell_does_nothing_and_says_so(tmp_path: Path) -> None:
    bell: Doorbell = SilentDoorbell("why")
    rings: list[object] = []
    bell.watch(str(tmp_path), lambda *ring: rings.append(ring))
    put(tmp_path / "a")
    bell.unwatch(str(tmp_path))
    bell.close()
    assert (bell.working, bell.cause, rings) == (False, "why", [])
