"""Every promise of a log, checked on every log there is: adding one is a row in `MAKES`."""

from __future__ import annotations

import asyncio
import importlib
import os
import pkgutil
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lemegeton import testing
from lemegeton.config import Settings
from lemegeton.doorbell import SilentDoorbell
from lemegeton.events import Event
from lemegeton.home import open_home
from lemegeton.lane import Lane
from lemegeton.logs.base import Log
from lemegeton.logs.file import FileLog
from lemegeton.logs.memory import MemoryLog, MemoryStore
from lemegeton.osfs import os_runtime
from lemegeton.seams import Runtime
from lemegeton.segment import SegmentName
from lemegeton.testing.conformance import CHECKS, Check, Make, Opener, lacks
from lemegeton.testing.fake_fs import FakeDisk, FakeFs
from lemegeton.testing.fake_runtime import runtime as fake_runtime
from lemegeton.testing.faulty import FaultyLog

MIB = 1024 * 1024
TINY = 1000


def nothing(_: Event) -> None:
    """An observer that has seen it all."""


class MakeMemory:
    """The memory log; its storage is a store that lives as long as this."""

    bytes_max = MIB
    reopens = True
    cross_process: Opener | None = None
    outage: Callable[[], Any] | None = None
    tear: Callable[[Lane], None] | None = None

    def __init__(self, _: Path) -> None:
        self.store = MemoryStore()

    async def __call__(self, name: str = "conformance") -> Log:
        return MemoryLog(name, self.store)

    def wipe(self) -> None:
        self.store.lanes.clear()


class MakeFaulty(MakeMemory):
    """The memory log in a wrapper that fails on cue."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.outage = self._outage
        self.logs: list[FaultyLog] = []

    async def __call__(self, name: str = "conformance") -> Log:
        self.logs.append(FaultyLog(await super().__call__(name)))
        return self.logs[-1]

    @contextmanager
    def _outage(self) -> Iterator[None]:
        for log in self.logs:
            log.outage = True
        yield
        for log in self.logs:
            log.outage = False


async def open_file_log(path: str, segment_bytes: int, silent: bool, name: str) -> Log:
    runtime = os_runtime()
    if silent:
        runtime = replace(runtime, doorbell=lambda: SilentDoorbell("switched off"))
    home = await open_home(runtime, path)
    return FileLog(runtime, home, name, Settings(segment_bytes=segment_bytes), nothing)


class MakeFile:
    """The file log in a directory of its own."""

    bytes_max = MIB
    reopens = True
    outage: Callable[[], Any] | None = None

    def __init__(self, path: Path, segment_bytes: int = 4 * MIB, silent: bool = False) -> None:
        self.home = path / "home"
        self.cross_process: Opener | None = partial(open_file_log, str(self.home), segment_bytes, silent)

    async def __call__(self, name: str = "conformance") -> Log:
        assert self.cross_process is not None
        return await self.cross_process(name)

    def wipe(self) -> None:
        shutil.rmtree(self.home / "messages")

    def tear(self, lane: Lane) -> None:
        directory = self.home / "messages" / lane.channel
        last = max(directory.glob(f"{lane.origin}.{lane.inc}.{lane.priority}.*.log"),
                   key=lambda path: int(path.name.split(".")[-2]))
        with last.open("ab") as file:
            file.write(b'deadbeef {"id":"half a rec')


class MakeSimulated:
    """The file log on the simulated disk, which can refuse to be written to."""

    bytes_max = MIB
    reopens = True
    cross_process: Opener | None = None

    def __init__(self, _: Path) -> None:
        self.disk = FakeDisk(Random(1))

    def runtime(self) -> Runtime:
        return fake_runtime(FakeFs(self.disk))

    async def __call__(self, name: str = "conformance") -> Log:
        runtime = self.runtime()
        return FileLog(runtime, await open_home(runtime, "/home"), name, Settings(segment_bytes=TINY), nothing)

    @contextmanager
    def outage(self) -> Iterator[None]:
        self.disk.read_only = True
        yield
        self.disk.read_only = False

    def wipe(self) -> None:
        fs = FakeFs(self.disk)
        for name in fs.listdir("/home/messages/conformance"):
            fs.unlink(f"/home/messages/conformance/{name}")

    def tear(self, lane: Lane) -> None:
        fs = FakeFs(self.disk)
        path = f"/home/messages/{lane.channel}"
        firsts = [int(name.split(".")[-2]) for name in fs.listdir(path)]
        last = SegmentName(lane.origin, lane.inc, lane.priority, max(firsts))
        fd = fs.open(f"{path}/{last}", os.O_RDWR | os.O_APPEND)
        fs.write(fd, b'deadbeef {"id":"half a rec')
        fs.close(fd)


MAKES: dict[str, Callable[[Path], Make]] = {
    "memory": MakeMemory,
    "faulty": MakeFaulty,
    "file": MakeFile,
    "file in tiny segments": partial(MakeFile, segment_bytes=TINY),
    "file without doorbell": partial(MakeFile, silent=True),
    "simulated disk": MakeSimulated,
}


@pytest.mark.parametrize("kind", MAKES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
async def test_every_log_keeps_every_promise(check: Check, kind: str, tmp_path: Path) -> None:
    make = MAKES[kind](tmp_path)
    if lacks(check, make):
        pytest.skip(f"{kind} cannot be set up for {lacks(check, make)}")
    await check(make)


def test_no_check_is_left_out_everywhere(tmp_path: Path) -> None:
    for check in CHECKS:
        assert any(not lacks(check, make(tmp_path)) for make in MAKES.values()), check
    modules = [importlib.import_module(f"{testing.__name__}.{found.name}") for found in pkgutil.iter_modules(testing.__path__)
               if found.name.startswith("conformance_")]
    assert len(CHECKS) == sum(name.startswith("check_") for module in modules for name in vars(module))


class Broken:
    """A log that breaks one promise: the checks must notice."""

    def __init__(self, log: Log, **broken: Any) -> None:
        self._log = log
        for name, call in broken.items():
            setattr(self, name, partial(call, log))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


async def _twice(log: Log, channel: str, *args: Any, **options: Any) -> Any:
    await log.append(channel, *args, **options)
    return await log.append(channel, *args, **options)


async def _forgetful(log: Log, channel: str, body: bytes, *args: Any, **options: Any) -> Any:
    position = await log.append(channel, body, *args, **options)
    if position.seq % 5 == 0:
        await log.trim(position.lane, position.seq - 2)
    return position


async def _inclusive(log: Log, lane: Lane, after: int) -> Any:
    return await log.seek(lane, max(0, after - 1))


async def _folding(log: Log, channel: str, *args: Any, **options: Any) -> Any:
    return await log.append(channel.lower(), *args, **options)


async def _lenient(log: Log, channel: str, body: bytes, *args: Any, **options: Any) -> Any:
    return await log.append(channel, body[: MIB - 1] + b"}" if len(body) > MIB else body, *args, **options)


async def _silent_end(log: Log) -> None:
    return None


BROKEN = {
    "append": (_twice, _forgetful, _folding, _lenient), "seek": (_inclusive,), "aclose": (_silent_end,),
}


@pytest.mark.parametrize(("verb", "call"), [(verb, call) for verb, calls in BROKEN.items() for call in calls])
async def test_a_broken_log_is_caught(verb: str, call: Callable[..., Any], tmp_path: Path) -> None:
    class MakeBroken(MakeMemory):
        async def __call__(self, name: str = "conformance") -> Any:
            return Broken(await super().__call__(name), **{verb: call})

    caught = 0
    for check in CHECKS:
        make = MakeBroken(tmp_path)
        if not lacks(check, make):
            try:
                await asyncio.wait_for(check(make), 5.0)
            except Exception:
                caught += 1
    assert caught
