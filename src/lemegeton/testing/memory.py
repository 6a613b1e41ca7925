"""The in-memory test bus: `MessageBus("x", site=MemorySite(store))` keeps everything in the process.

Buses that are given one `MemoryStore` see each other as processes of one site do; the store plays the home, so a
durable place outlives the bus that held it.  What passes here passes on files: the same conformance checks say so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from secrets import token_hex
from typing import Any
from weakref import WeakKeyDictionary

from lemegeton.channels import compile_glob, encode_name
from lemegeton.checkpoint import VolatileMarks, settled_at
from lemegeton.config import load_settings
from lemegeton.errors import NameTaken, NotReached
from lemegeton.lane import Lane
from lemegeton.logs.base import Log, Position
from lemegeton.logs.memory import MemoryLog, MemoryStore
from lemegeton.modes import CoordinationMode
from lemegeton.osfs import OsFs
from lemegeton.poison import Turn
from lemegeton.retention import NOBODY, Holder
from lemegeton.site import Memory, Usage
from lemegeton.window import IdWindow

Matcher = Callable[[str], bool]


class _Place:
    """A durable subscription as the store remembers it, held or not."""

    def __init__(self) -> None:
        self.marks = VolatileMarks()
        self.window = IdWindow(OsFs(), None)
        self.matchers: list[Matcher] = []
        self.held = False

    def matches(self, channel: str) -> bool:
        return any(matches(channel) for matches in self.matchers)

    def settled(self, lane: Lane) -> int:
        row = self.marks.find(lane)
        return 0 if row is None else self.marks.cells[settled_at(row)]


_places: WeakKeyDictionary[MemoryStore, dict[str, _Place]] = WeakKeyDictionary()


class _HeldMarks:
    """`checkpoint.Marks` of a place while one subscription holds it; letting go keeps what is in it."""

    def __init__(self, places: dict[str, _Place], name: str) -> None:
        self._places = places
        self._name = name
        self._marks = places[name].marks
        self.cells = self._marks.cells

    def find(self, lane: Lane) -> int | None:
        return self._marks.find(lane)

    def add(self, lane: Lane, settled: int) -> int:
        row = self._marks.add(lane, settled)
        self.cells = self._marks.cells
        return row

    def drop(self, lane: Lane) -> None:
        self._marks.drop(lane)

    def lanes(self) -> Sequence[Lane]:
        return self._marks.lanes()

    def close(self) -> None:
        self._places[self._name].held = False

    def forget(self) -> None:
        del self._places[self._name]


class MemorySite:
    """`site.Site` over a shared `MemoryStore`; settings are keywords, ``wall_ms`` is the clock of stamps and TTL.

    Nothing is cleaned up by age or budget: a test ends before that matters.
    """

    def __init__(
        self, store: MemoryStore | None = None, *, name: str = "memory", log: Log | None = None,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000, **settings: Any
    ) -> None:
        self._store = store if store is not None else MemoryStore()
        self.settings = load_settings(settings)
        self.site_id = "memory"
        self.turn = Turn()
        self.wall_ms = wall_ms
        self.token = token_hex
        self.log: Log = log or MemoryLog(name, self._store, bytes_max=self.settings.max_message_bytes)
        self._origin = f"{encode_name(name)}~memory~{token_hex(4)}"
        self._places = _places.setdefault(self._store, {})
        self._threads: ThreadPoolExecutor | None = None

    def remember(self, name: str | None, patterns: Sequence[str]) -> Memory:
        """The memory of a durable subscription, taken exclusively (`NameTaken`), or of an ephemeral one."""
        if name is None:
            return Memory(VolatileMarks(), IdWindow(OsFs(), None), lambda _: False, False)
        place = self._places.setdefault(name, _Place())
        if place.held:
            raise NameTaken(f"durable subscription {name!r}: another bus of this store holds it; stop that one or use "
                            "another name")
        before, place.matchers = place.matchers, [compile_glob(pattern) for pattern in patterns]
        place.held = True
        return Memory(_HeldMarks(self._places, name), place.window,
                      lambda channel: any(matches(channel) for matches in before), False)

    def holders(self) -> list[Holder]:
        """The durable subscriptions of the store, held or not."""
        return [Holder(name, place.matches, place.settled) for name, place in sorted(self._places.items())]

    def usage(self) -> Usage:
        """The bytes of all records; there is no limit that anybody would wait for."""
        used = sum(len(record) for lane in self._store.lanes.values() for record in lane.records)
        return Usage(used, self.settings.disk_limit, NOBODY, 0)

    def origin(self) -> str | None:
        """None: a test that needs the origin finds it in the receipt."""
        return None

    async def take_origin(self) -> str:
        """A name that no other bus has."""
        return self._origin

    def threads(self) -> ThreadPoolExecutor:
        """Where synchronous handlers run."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.settings.handler_threads, "lemegeton-handler")
        return self._threads

    async def start(self, group: asyncio.TaskGroup) -> None:
        """Nothing has tasks of its own."""

    async def reach(self, position: Position, level: str) -> Position:
        """There is no Redis."""
        raise NotReached(f"publish to {position.lane.channel}: level {level!r} needs a redis_url; the message is stored")

    async def leave(self) -> bool:
        """Nothing is under way."""
        return True

    def end_tasks(self) -> None:
        """There are none."""

    def mode(self) -> CoordinationMode:
        """Memory reaches nobody else."""
        return CoordinationMode.ISOLATED

    async def tick(self) -> None:
        """Nothing to clean up."""

    async def aclose(self) -> None:
        """Let the log and the threads go; the store keeps the records and places."""
        await self.log.aclose()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
