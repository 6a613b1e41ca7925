"""The site: settings and home found and checked, memories handed out exclusively, upkeep told as events."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lemegeton import site as site_module
from lemegeton.bus import MessageBus
from lemegeton.checkpoint import settled_at
from lemegeton.errors import HomeRefused, InvalidSetting, NameTaken
from lemegeton.events import Event, HomeLost, RetentionFailed
from lemegeton.home import open_home
from lemegeton.lane import Lane
from lemegeton.osfs import os_runtime
from lemegeton.site import FileSite, open_site, settings_here
from lemegeton.testing.fake_fs import FakeDisk, FakeFs
from lemegeton.testing.fake_runtime import runtime
from test_delivery import Got, in_virtual_time

LANE = Lane("agent-1", "a~s~0", 1, 1)


class Machine:
    """Processes on one disk."""

    def __init__(self) -> None:
        self.disk = FakeDisk(Random(1))
        self.events: list[Event] = []

    async def site(self, **settings: Any) -> FileSite:
        self.fs = FakeFs(self.disk)
        return await open_site("x", runtime(self.fs), settings, self.events.append, 0.0)


# ------------------------------------------------------------------------------------------------ opening


@pytest.mark.parametrize("again", [True, False])
async def test_a_home_that_somebody_removed_in_use_is_told_once(again: bool, tmp_path: Path) -> None:
    home, events = tmp_path / "home", []
    site = await open_site("x", None, {"home": str(home)}, events.append, 0.0)
    await site.tick()
    assert events == []
    shutil.move(home, tmp_path / "gone")  # moved, not removed, so that no new directory gets its inode
    if again:
        await open_home(os_runtime(), str(home))
    for _ in range(2):
        await site.tick()
    (lost,) = [event for event in events if isinstance(event, HomeLost)]
    assert (lost.path, lost.cause.split(";")[0]) == (str(home), "another one is in its place" if again else "it is gone")
    await site.aclose()


async def test_the_home_is_found_by_walking_up_and_else_made_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    async with MessageBus("x") as bus:
        await bus.publish("c", 1)
    assert (deep / ".lemegeton" / "messages" / "c").is_dir()
    assert (deep / ".lemegeton" / ".gitignore").read_text() == "*\n"
    deeper = deep / "c"
    deeper.mkdir()
    monkeypatch.chdir(deeper)
    async with MessageBus("x") as bus:
        assert [m.payload for m in await bus.history("c")] == [1]
    assert not (deeper / ".lemegeton").exists()


async def test_the_environment_and_the_files_give_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.lemegeton]\nretry_attempts = 9\nretry_delay = 8.0\n")
    assert (settings_here({}).retry_attempts, settings_here({}).retry_delay) == (9, 8.0)
    (tmp_path / "lemegeton.toml").write_text("retry_attempts = 7\n")
    assert (settings_here({}).retry_attempts, settings_here({}).retry_delay) == (7, 1.0)
    monkeypatch.setenv("LEMEGETON_RETRY_ATTEMPTS", "5")
    assert settings_here({}).retry_attempts == 5
    assert settings_here({"retry_attempts": 4}).retry_attempts == 4
    monkeypatch.setenv("LEMEGETON_HOME", str(tmp_path / "elsewhere"))
    async with MessageBus("x") as bus:
        await bus.publish("c", 1)
    assert (tmp_path / "elsewhere" / "messages" / "c").is_dir()
    with pytest.raises(InvalidSetting):
        await MessageBus("x", retry_attempts=0).start()


def test_file_messaging_dir_sets_the_home_to_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings_here({"file_messaging_dir": "/x/y/messages"}).home == "/x/y"
    assert settings_here({"file_messaging_dir": "/x/y/messages", "home": "/z"}).home == "/z"
    assert settings_here({}).home is None


async def test_a_home_on_a_network_is_refused_unless_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_module, "network_fs", lambda mounts, device: "nfs4")
    with pytest.raises(HomeRefused, match="nfs4"):
        await MessageBus("x", home=str(tmp_path / "h")).start()
    async with MessageBus("x", home=str(tmp_path / "h"), allow_network_fs=True):
        pass


async def test_everything_in_the_home_is_private(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        async with MessageBus("x", home=str(tmp_path / "h")) as bus:
            await bus.subscribe("c", Got(), durable="worker")
            await bus.publish("c", 1)
            await bus.publish("x" * 200, 1, id="given")
    finally:
        os.umask(old)
    for path in (tmp_path / "h").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


# ------------------------------------------------------------------------------------------------ memories


@in_virtual_time
async def test_an_ephemeral_memory_knows_nothing() -> None:
    memory = (await Machine().site()).remember(None, ["c"])
    assert not memory.known("c")
    assert not memory.flag_all
    assert memory.marks.lanes() == []


@in_virtual_time
async def test_a_durable_memory_is_exclusive_and_knows_its_channels_when_it_comes_back() -> None:
    machine = Machine()
    first, second = await machine.site(), await machine.site()
    memory = first.remember("worker", ["agent-*"])
    assert not memory.known("agent-1")
    row = memory.marks.add(LANE, 7)
    with pytest.raises(NameTaken):
        second.remember("worker", ["agent-*"])
    memory.begun()
    memory.marks.close()
    again = second.remember("worker", ["other"])
    assert again.known("agent-1")
    assert not again.known("other")
    assert not again.flag_all
    assert again.marks.find(LANE) == row
    assert again.marks.cells[settled_at(row)] == 7


@in_virtual_time
async def test_another_boot_flags_all_until_the_marks_are_of_this_boot() -> None:
    machine = Machine()
    memory = (await machine.site()).remember("worker", ["c"])
    memory.begun()
    machine.disk.sync()
    machine.disk.power(Random(1))
    first = (await machine.site()).remember("worker", ["c"])
    assert first.flag_all
    machine.fs.kill()  # before it had begun: the next one has to flag as well
    second = (await machine.site()).remember("worker", ["c"])
    assert second.flag_all
    second.begun()
    machine.fs.kill()
    third = (await machine.site()).remember("worker", ["c"])
    assert not third.flag_all
    machine.fs.kill()  # whatever becomes of it: what other sites sent before that boot may be met much later
    fourth = (await machine.site()).remember("worker", ["c"])
    assert [memory.rebooted, first.rebooted, second.rebooted, third.rebooted, fourth.rebooted] == [False, *[True] * 4]


@in_virtual_time
async def test_a_damaged_header_flags_all_and_owes_everything() -> None:
    machine = Machine()
    memory = (await machine.site()).remember("worker", ["c"])
    memory.begun()
    machine.fs.kill()
    fs = FakeFs(machine.disk)
    fs.pwrite(fs.open("/.lemegeton/cursors/worker", os.O_RDWR), b"damage", 0)
    again = (await machine.site()).remember("worker", ["c"])
    assert again.flag_all
    assert again.known("anything")


@in_virtual_time
async def test_held_subscriptions_are_stamped_and_ended_ones_are_not() -> None:
    machine = Machine()
    site = await machine.site()
    held, ended = site.remember("held", ["c"]), site.remember("ended", ["c"])
    held.begun()
    ended.begun()
    ended.marks.close()
    site._durable["ended"][0].closed = True
    before = machine.disk.read("/.lemegeton/cursors/held")[:200]
    for _ in range(site_module.SEEN_EVERY):
        await site.tick()
    assert machine.disk.read("/.lemegeton/cursors/held")[:200] != before
    await site.aclose()


# ------------------------------------------------------------------------------------------------ upkeep


@in_virtual_time
async def test_errors_of_upkeep_are_events_and_pass() -> None:
    machine = Machine()
    site = await machine.site()
    await site.log.append("c", b'{"timestamp":1,"type":"custom","from":"x","payload":1}')
    machine.fs.fail_next("lstat", errno.EIO)
    await site.tick()
    assert [type(event) for event in machine.events] == [RetentionFailed]
    await site.tick()
    assert len(machine.events) == 1
    usage = site.usage()
    assert usage.used > 0
    assert usage.limit == site.settings.disk_limit
    assert (usage.holder, usage.waiting) != ("", 1)
    assert site.origin() == (await site.log.lanes("c"))[0].origin
    await site.aclose()


@in_virtual_time
async def test_a_site_that_opens_knows_what_the_janitor_counted() -> None:
    machine = Machine()
    first = await machine.site()
    await first.log.append("c", b'{"timestamp":1,"type":"custom","from":"x","payload":1}')
    await first.tick()
    assert (await machine.site()).usage().used == first.usage().used > 0


async def test_the_threads_end_with_the_site(tmp_path: Path) -> None:
    site = await open_site("x", None, {"home": str(tmp_path / "h")}, lambda _: None, 0.0)
    pool = site.threads()
    assert site.threads() is pool
    await site.aclose()
    with pytest.raises(RuntimeError):
        pool.submit(print)
