"""Relaying: what this process publishes reaches a Redis as soon as that takes it.

One task.  A record that was appended marks its lane; the task copies marked lanes, several side by side, and asks for
every mark again when the link comes up and every 5 s, because a Redis may forget while nobody sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress

from lemegeton.channels import encode_name
from lemegeton.checkpoint import Checkpoint, CheckpointView, Header, Marks, VolatileMarks, settled_at
from lemegeton.errors import LemegetonError, LogError, NotReached, RedisLost
from lemegeton.events import Observer, RelayStalled
from lemegeton.lane import Lane
from lemegeton.logs.base import Position
from lemegeton.logs.redis_link import Link
from lemegeton.relay import Relay
from lemegeton.seams import Fs

LANES_AT_ONCE = 16
PROBE_S = 5.0
STALL_RETRY_S = 1.0
"""How long a lane that the Redis refused rests."""


Waiter = tuple[int, asyncio.Future[Position]]
"""Who waits for a sequence of a lane."""


class Accepted:
    """How far any Redis accepted each lane, kept over restarts, and who waits for more (`relay.Told`).

    A store that does not survive only means that some who listen without reading are told twice."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._closed = False
        self._shared: dict[Lane, int] = {}
        """How far the shared Redis accepted each lane since this began."""
        self._waiting: dict[Lane, list[Waiter]] = {}

    def get(self, lane: Lane) -> int:
        row = None if self._closed else self._marks.find(lane)
        return 0 if row is None else self._marks.cells[settled_at(row)]

    def put(self, lane: Lane, seq: int) -> None:
        """The shared Redis has it."""
        self.note(lane, seq)
        self._shared[lane] = max(seq, self._shared.get(lane, 0))
        if lane in self._waiting:
            self._wake(lane, seq)

    def note(self, lane: Lane, seq: int) -> None:
        """Some Redis has it."""
        if self._closed:  # an answer that was under way
            return
        row = self._marks.find(lane)
        if row is None:
            with suppress(LemegetonError, OSError):
                row = self._marks.add(lane, 0)
        if row is not None and self._marks.cells[settled_at(row)] < seq:
            self._marks.cells[settled_at(row)] = seq

    def _wake(self, lane: Lane, seq: int) -> None:
        left = [wait for wait in self._waiting.pop(lane) if not wait[1].done()]
        for wanted, reached in left:
            if wanted <= seq:
                reached.set_result(Position(lane, wanted))
        left = [wait for wait in left if not wait[1].done()]
        if left:
            self._waiting[lane] = left

    async def reached(self, lane: Lane, seq: int) -> Position:
        """Return when this record is accepted, with its place: it may have been numbered anew meanwhile.

        `NotReached` as soon as nobody can tell any more."""
        done: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
        self._wait(Position(lane, seq), done)
        return await done

    def _wait(self, place: Position, done: asyncio.Future[Position]) -> None:
        if self._shared.get(place.lane, 0) >= place.seq:
            done.set_result(place)
        else:
            self._waiting.setdefault(place.lane, []).append((place.seq, done))

    def moved(self, lane: Lane, places: Mapping[int, Position]) -> None:
        """The records of this lane are in the log again, there; who waits for one waits for that."""
        for seq, done in self._waiting.pop(lane, ()):
            if done.done():
                continue
            if seq in places:
                self._wait(places[seq], done)
            else:
                done.set_exception(NotReached(
                    f"publish to {lane.channel}: its lane began again before the shared Redis had the record; it is "
                    "stored and still goes"))

    def only(self, lanes: Collection[Lane]) -> None:
        """These are the lanes that are relayed from here; who waits for another is told that it is over."""
        for lane in [lane for lane in self._waiting if lane not in lanes]:
            self.moved(lane, {})

    def close(self) -> None:
        """Let the marks go."""
        self._closed = True
        self._marks.close()


def open_marks(fs: Fs, directory: str, origin: str, boot_id: str, wall_ms: int) -> Marks:
    """The marks of an origin's lanes on disk; a copy in memory where somebody else holds them, or they cannot be had."""
    header = Header(f"told~{origin}", (), boot_id, wall_ms)
    try:
        return Checkpoint(fs, directory, header)
    except (LemegetonError, OSError):
        return _copied(fs, f"{directory}/{encode_name(header.name)}")


def _copied(fs: Fs, path: str) -> Marks:
    marks = VolatileMarks()
    with suppress(OSError):
        view = CheckpointView(fs, path)
        try:
            view.refresh()
        finally:
            view.close()
        for lane, seq in view.all_settled().items():
            marks.add(lane, seq)
    return marks


class Relaying:
    """See the module.  ``paused`` stops it (isolated by hand); nothing is lost meanwhile."""

    def __init__(
        self, relay: Relay, link: Link, own_lanes: Callable[[], Sequence[Lane]], paused: Callable[[], bool],
        observe: Observer
    ) -> None:
        self._relay = relay
        self._link = link
        self._own_lanes = own_lanes
        self._paused = paused
        self._observe = observe
        self._marked: dict[Lane, None] = {}
        self._resting: dict[Lane, asyncio.TimerHandle] = {}
        self._news = asyncio.Event()
        self._closing = False
        self._busy = 0
        self._probe_due = False
        self._end = link.on_change(self._on_change)

    def appended(self, lane: Lane) -> None:
        """There is something new in this lane."""
        if lane not in self._marked and lane not in self._resting:
            self._marked[lane] = None
            self._news.set()

    def _on_change(self, up: bool) -> None:
        self._relay.forget()
        if up:
            self.mark(self._own_lanes())

    def mark(self, lanes: Iterable[Lane]) -> None:
        """Have these lanes looked at now."""
        self._wake_all()
        self._marked.update(dict.fromkeys(lanes))
        self._news.set()

    @property
    def idle(self) -> bool:
        """True while everything that was appended has been accepted."""
        return not self._marked and not self._resting and not self._busy

    async def run(self) -> None:
        """Relay until `close`."""
        # A timer that runs through is cheaper than one that is set anew at every message.
        timer = self._probe_later()
        while not self._closing:
            await self._news.wait()
            self._news.clear()
            if self._probe_due:
                await self._probe()
                timer = self._probe_later()
            while self._marked and self._link.up and not self._paused() and not self._closing:
                lanes = list(self._marked)[:LANES_AT_ONCE]
                for lane in lanes:
                    del self._marked[lane]
                self._busy = len(lanes)
                if len(lanes) == 1:  # the usual case, without a task of its own
                    await self._copy(lanes[0])
                else:
                    async with asyncio.TaskGroup() as group:
                        for lane in lanes:
                            group.create_task(self._copy(lane))
                self._busy = 0
        timer.cancel()

    def _probe_later(self) -> asyncio.TimerHandle:
        self._probe_due = False
        return asyncio.get_running_loop().call_later(PROBE_S, self._probe_now)

    def _probe_now(self) -> None:
        self._probe_due = True
        self._news.set()

    async def _probe(self) -> None:
        """Lanes whose mark went back are copied again from there."""
        if not self._link.up or self._paused():
            return
        for lane in self._own_lanes():
            try:
                if await self._relay.probe(lane) is not None:
                    self.appended(lane)
            except (LogError, OSError):
                return

    async def _copy(self, lane: Lane) -> None:
        try:
            await self._relay.copy(lane)
        except RedisLost:  # unknown: it is asked for its mark when the link is up again
            self._rest(lane)
        except (LogError, OSError) as error:
            self._observe(RelayStalled(self._link.name, lane, str(error)))
            self._rest(lane)

    def _rest(self, lane: Lane) -> None:
        """Ask again in a while, whatever is appended meanwhile: a Redis that refuses is not asked at every message."""
        self._marked.pop(lane, None)
        self._resting[lane] = asyncio.get_running_loop().call_later(STALL_RETRY_S, self._rested, lane)

    def _rested(self, lane: Lane) -> None:
        del self._resting[lane]
        self.appended(lane)

    def _wake_all(self) -> None:
        resting, self._resting = self._resting, {}
        for lane, timer in resting.items():
            timer.cancel()
            self._marked[lane] = None

    def close(self) -> None:
        """Have `run` return."""
        self._closing = True
        self._end()
        for timer in self._resting.values():
            timer.cancel()
        self._news.set()
