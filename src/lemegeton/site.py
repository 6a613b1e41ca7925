"""The site: what the buses of one home share, as one bus sees it.

The bus above asks it for a log, for the marks of a subscription and for who holds records in place.  There are two:
this one, a home on disk, and `testing.memory.MemorySite`, which keeps everything in the process.
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from lemegeton.channels import compile_glob, encode_name
from lemegeton.checkpoint import LOCK_SUFFIX, Checkpoint, Header, Marks, VolatileMarks
from lemegeton.config import Settings, load_settings
from lemegeton.errors import HomeRefused, LogError, NotReached
from lemegeton.events import Event, HomeLost, Observer, RetentionFailed
from lemegeton.home import Home, check_own, find_home, network_fs, open_home, refused, whereabouts
from lemegeton.logs.base import Log, Position
from lemegeton.logs.file import FileLog
from lemegeton.logs.janitor import Holders, Janitor
from lemegeton.modes import CoordinationMode
from lemegeton.osfs import os_runtime
from lemegeton.poison import Turn
from lemegeton.retention import Holder
from lemegeton.seams import Runtime
from lemegeton.window import IdWindow

if TYPE_CHECKING:
    from lemegeton.redis_side import RedisSide

OPEN_FILES_MIN, OPEN_FILES_MAX = 64, 4096
JANITOR_EVERY = 5
"""Ticks of one second between two looks of the janitor."""
SEEN_EVERY = 30
"""Ticks between two stamps of a durable subscription."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a subscription remembers: marks, handled ids, which channels it knew, and whether to flag what it meets."""

    marks: Marks
    window: IdWindow
    known: Callable[[str], bool]
    flag_all: bool
    rebooted: bool = False
    """It was there before a boot."""
    begun: Callable[[], None] = lambda: None
    """To be called when every lane that was found has its marks."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How full the home is: bytes used, the limit, who holds most of it, and how many publishers wait for room."""

    used: int
    limit: int
    holder: str
    waiting: int


class Site(Protocol):
    """See the module."""

    settings: Settings
    site_id: str
    log: Log
    wall_ms: Callable[[], int]
    token: Callable[[int], str]
    turn: Turn

    def remember(self, name: str | None, patterns: Sequence[str]) -> Memory: ...
    def holders(self) -> list[Holder]: ...
    def usage(self) -> Usage: ...
    def origin(self) -> str | None: ...
    async def take_origin(self) -> str: ...
    def threads(self) -> ThreadPoolExecutor: ...
    async def start(self, group: asyncio.TaskGroup) -> None: ...
    async def reach(self, position: Position, level: str) -> Position: ...
    async def leave(self) -> bool: ...
    def end_tasks(self) -> None: ...
    def mode(self) -> CoordinationMode: ...
    async def tick(self) -> None: ...
    async def aclose(self) -> None: ...


class FileSite:
    """A home on disk."""

    def __init__(
        self, runtime: Runtime, home: Home, name: str, settings: Settings, observe: Observer, origin_wait_s: float,
        *, reaches_out: bool = True
    ) -> None:
        self.settings = settings
        self.home = home
        self.site_id = home.site
        self.turn = Turn()
        self.wall_ms = runtime.wall_ms
        self.token = runtime.token
        self._runtime = runtime
        self._observe = observe
        self._file_log = FileLog(runtime, home, name, settings, observe, origin_wait_s=origin_wait_s)
        self.log: Log = self._file_log
        self.redis: RedisSide | None = None
        if settings.redis_url is not None and reaches_out:
            from lemegeton.redis_side import RedisSide  # only who has a Redis pays for loading all that

            self.redis = RedisSide(runtime, home, name, settings, self._file_log, observe)
            self.log = self.redis.log
        self._reports: list[Event] = []
        self._janitor = Janitor(runtime, home, settings, self._reports.append)
        self._holders = Holders(runtime, home)
        self._durable: dict[str, tuple[Checkpoint, Header]] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._ticks = 0
        self._whereabouts = whereabouts(runtime.fs, home.path)
        if reaches_out:  # whoever only looks opens nothing to be written to: it may lie where nobody can write
            self._count(self._janitor.counted())

    def _count(self, counted: tuple[int, str] | None) -> None:
        if counted is not None:
            self._file_log.room.counted(*counted)

    def remember(self, name: str | None, patterns: Sequence[str]) -> Memory:
        """The memory of a durable subscription, taken exclusively (`NameTaken`), or of an ephemeral one."""
        fs = self._runtime.fs
        if name is None:
            return Memory(VolatileMarks(), IdWindow(fs, None), lambda _: False, False)
        path = f"{self.home.cursors}/{encode_name(name)}"
        for suffix in ("", LOCK_SUFFIX):
            check_own(fs, path + suffix, self._runtime.uid)
        header = Header(name, tuple(patterns), self._runtime.boot_id, self.wall_ms())
        checkpoint = Checkpoint(fs, self.home.cursors, header)
        previous = checkpoint.previous
        matchers = [compile_glob(pattern) for pattern in previous.patterns] if previous else []
        damaged = previous is None and not checkpoint.new
        flag_all = damaged or (previous is not None and previous.boot_id != self._runtime.boot_id)
        rebooted = previous is not None and (previous.boot_id != self._runtime.boot_id or previous.rebooted)
        return Memory(checkpoint, IdWindow(fs, checkpoint.ids_path),
                      lambda channel: damaged or any(matches(channel) for matches in matchers), flag_all, rebooted,
                      lambda: self._begun(checkpoint, msgspec.structs.replace(header, rebooted=rebooted)))

    def _begun(self, checkpoint: Checkpoint, header: Header) -> None:
        """From here on a crash leaves marks of this boot."""
        checkpoint.write_header(header)
        self._durable[header.name] = checkpoint, header

    def holders(self) -> list[Holder]:
        """The durable subscriptions of this site, as they stand now."""
        return self._holders.refresh()

    def usage(self) -> Usage:
        """How full the home is."""
        room = self._file_log.room
        return Usage(room.used, room.limit, room.holder, len(room.waiters))

    def origin(self) -> str | None:
        """The origin this bus writes, once it has written."""
        return self._file_log.origin

    async def take_origin(self) -> str:
        """The origin this bus writes, which nobody else has while it lives, also before anything was written."""
        return await self._file_log.take_origin()

    def threads(self) -> ThreadPoolExecutor:
        """Where synchronous handlers run: bounded by ``handler_threads``."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.settings.handler_threads, "lemegeton-handler")
        return self._threads

    async def start(self, group: asyncio.TaskGroup) -> None:
        """Serve what has tasks of its own, in ``group``."""
        if self.redis is not None:
            await self.redis.start(group)

    async def reach(self, position: Position, level: str) -> Position:
        """Return when the shared Redis has a record, with its place by then; `NotReached` where there is none."""
        if self.redis is None:
            raise NotReached(f"publish to {position.lane.channel}: level {level!r} needs a redis_url; the message is stored")
        return await self.redis.reach(position, level)

    async def leave(self) -> bool:
        """Wait a moment for what is under way; false if the shared Redis was not reached."""
        return self.redis is None or await self.redis.leave()

    def end_tasks(self) -> None:
        """Have everything that `start` began return."""
        if self.redis is not None:
            self.redis.close()

    def mode(self) -> CoordinationMode:
        """The best path to other sites that works now."""
        return CoordinationMode.ISOLATED if self.redis is None else self.redis.modes.mode

    async def tick(self) -> None:
        """Once a second.  Errors are events: what could not be done now is done later."""
        self._ticks += 1
        try:
            self._look_for_home()
            self._file_log.upkeep()
            if self.redis is not None:
                await self.redis.tick()
            if self._file_log.room.full or self._ticks % JANITOR_EVERY == 1:
                self._count(await self._runtime.blocking(self._janitor.tick))
            if self._ticks % SEEN_EVERY == 0:
                self._stamp()
        except (LogError, OSError) as error:
            self._reports.append(RetentionFailed(str(error)))
        while self._reports:  # what the janitor met in its thread is told from the loop, like every other event
            self._observe(self._reports.pop(0))

    def _look_for_home(self) -> None:
        """Say so, once for each change, if what this site holds open is not what lies at its path any more."""
        now = whereabouts(self._runtime.fs, self.home.path)
        if now != self._whereabouts:
            self._whereabouts = now
            what = "it is gone" if now is None else "another one is in its place"
            self._observe(HomeLost(self.home.path, f"{what}; start every process that uses it again"))

    def _stamp(self) -> None:
        for checkpoint, header in self._durable.values():
            if not checkpoint.closed:
                checkpoint.write_header(msgspec.structs.replace(header, seen_ms=self.wall_ms()))

    async def aclose(self) -> None:
        """Let everything go."""
        await self.log.aclose()
        self._janitor.close()
        self._holders.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


async def open_site(
    name: str, runtime: Runtime | None, arguments: Mapping[str, Any], observe: Observer, origin_wait_s: float, *,
    create: bool = True
) -> FileSite:
    """Find the settings and the home, check both, and open them."""
    if runtime is None:
        runtime = os_runtime()
        settings = settings_here(arguments)
        path = settings.home or find_home(runtime.fs, str(Path.cwd()), runtime.uid)
        home = await open_home(runtime, str(Path(path).absolute()), create=create)
        _check_file_system(home.path, settings)
        if not settings.open_files:
            settings = msgspec.structs.replace(settings, open_files=_open_files())
    else:
        settings = load_settings(arguments)
        home = await open_home(runtime, settings.home or "/.lemegeton", create=create)
    try:
        return FileSite(runtime, home, name, settings, observe, origin_wait_s, reaches_out=create)
    except HomeRefused:
        raise
    except OSError as error:
        raise refused(home.path, error) from error


def settings_here(arguments: Mapping[str, Any]) -> Settings:
    """The settings of a process in its working directory."""
    for file, pyproject in (("lemegeton.toml", False), ("pyproject.toml", True)):
        with suppress(FileNotFoundError):
            return _with_home(load_settings(arguments, os.environ, Path(file).read_text(), pyproject=pyproject))
    return _with_home(load_settings(arguments, os.environ))


def _with_home(settings: Settings) -> Settings:
    """``file_messaging_dir`` is the original name: the home is its parent."""
    if settings.home is None and settings.file_messaging_dir is not None:
        return msgspec.structs.replace(settings, home=str(Path(settings.file_messaging_dir).parent))
    return settings


def _open_files() -> int:
    """An eighth of what this process may open: reader and writer take a quarter of it, the rest is the user's."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(OPEN_FILES_MAX, max(OPEN_FILES_MIN, limit // 8))


def _check_file_system(path: str, settings: Settings) -> None:
    with suppress(FileNotFoundError):
        kind = network_fs(Path("/proc/self/mountinfo").read_text(), os.lstat(path).st_dev)
        if kind is not None and not settings.allow_network_fs:
            raise HomeRefused(f"home: {path} lies on {kind}, where locks and visibility are not those of one kernel; "
                              "choose a local directory, or set allow_network_fs")
