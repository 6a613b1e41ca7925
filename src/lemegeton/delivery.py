"""Delivery: from the lanes of a log to a handler, in order, once, and never past a record that is not settled.

A subscription has *chains* (channel, origin, priority), each with the lanes of its incarnations.  A chain is served by
one worker at a time, so its records are handled one after the other; different chains are served side by side, at most
``concurrency`` of them.  For each record::

    decode ─► copy? gap? expired? ─► intent := seq ─► handler ─► settled := seq

Both marks are stores into the checkpoint's mapping.  What a handler needs twice (its process died in between, it
raised) starts again from the settled mark, so there is no state to restore.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from lemegeton.channels import check_channel, compile_glob, is_glob
from lemegeton.checkpoint import Marks, settled_at
from lemegeton.crew import ChainState, Crew
from lemegeton.errors import InvalidMessage, LemegetonError, LogError, PositionLost, RedisLost, RedisRefused
from lemegeton.events import Gap, LaneStalled, Observer
from lemegeton.handling import Handling, LanePlace, Outcome
from lemegeton.lane import Chain, Lane, chain_of
from lemegeton.logs.base import Batch, Log, Span

ACTIVE_POLL_S = 0.02
"""How often a subscription looks when doorbells do not work and messages came lately."""
ACTIVE_FOR_S = 1.0
POLL_SHARE = 10
"""A look at every channel may take at most this part of the time between two of them."""
BATCHES_A_TURN = 8
"""How many batches a chain may handle before the next chain has its turn."""
STALL_RETRY_S = 1.0
DOUBT = 2**62
"""Added to an intent: everything that its lane has when it is reached is in doubt.  No sequence comes near it."""
SEEKS_MAX = 3
"""How often one read looks for its place again when records are removed under it."""


class Delivery:
    """The reading side of one subscription.

    ``start`` applies to lanes that `open` finds in channels that are not ``known`` from an earlier life; every other
    lane without a mark starts at its oldest record, an ``ephemeral`` one of another site where the first contact with the
    Redis found it.  ``flag_all`` (another boot, or marks that cannot be trusted) has everything up to the logs' end at
    `open` delivered as redelivered, and so is a lane of an earlier boot that shows itself only later and has no marks, or,
    ``rebooted``, one of another site.
    Cancelling a worker leaves its record with an intent and unsettled: it is delivered again.
    """

    def __init__(
        self, log: Log, marks: Marks, handling: Handling, patterns: Sequence[str], observe: Observer, *, name: str,
        start: str, known: Callable[[str], bool], flag_all: bool, poll_s: float, concurrency: int,
        ephemeral: bool = False, rebooted: bool = False
    ) -> None:
        self._log = log
        self._marks = marks
        self._handling = handling
        self._patterns = tuple(patterns)
        self._matchers = [compile_glob(pattern) for pattern in patterns]
        self._observe = observe
        self._name = name
        self._start = start
        self._known = known
        self._from_contact = ephemeral and start == "new"
        self._flag_all = flag_all
        self._rebooted = rebooted
        self._poll_s = poll_s
        self._chains: dict[Chain, ChainState] = {}
        self._newest: dict[Lane, ChainState] = {}
        """The chains by their last lane, for rings."""
        self._channels: dict[str, list[ChainState]] = {}
        self._silences: list[Callable[[], None]] = []
        self._dirty: set[str] = set()
        self._look_for_channels = False
        self._news = asyncio.Event()
        self._crew = Crew(self._serve, concurrency)
        self._stopping = False
        self._active_until = 0.0
        self._timers: set[asyncio.TimerHandle] = set()

    # ------------------------------------------------------------------------------------------ finding lanes

    async def open(self) -> None:
        """Find the channels and lanes there are and fix where each begins."""
        marked = dict.fromkeys(lane.channel for lane in self._marks.lanes())
        for lane in self._marks.lanes():
            if await self._log.vanished(lane):
                self._marks.drop(lane)
        for lane in self._marks.lanes() if self._flag_all else ():
            self._doubt(lane)
        globs = [pattern for pattern in self._patterns if is_glob(pattern)]
        if globs:
            self._silences.append(self._log.listen_new(globs, self._on_channel))
        # Also those that only the marks name: a log may have to be told the name of a channel before it finds it.
        for channel in dict.fromkeys([*await self._matching(), *sorted(filter(self._matches, marked))]):
            # A lane that a known subscription has no mark for came while it was away: it is owed all of it.
            await self._add_channel(channel, "earliest" if self._known(channel) else self._start)
        self._flag_all = False

    async def _matching(self) -> Iterable[str]:
        """The channels the patterns name, and those that exist and match."""
        exact = [p for p in self._patterns if not is_glob(p)]
        if len(exact) == len(self._patterns):
            return dict.fromkeys(exact)
        found = [channel for channel in await self._log.channels() if self._matches(channel)]
        return dict.fromkeys([*exact, *found])

    def _matches(self, channel: str) -> bool:
        return any(matches(channel) for matches in self._matchers) and _is_channel(channel)

    async def _add_channel(self, channel: str, start: str) -> None:
        if channel not in self._channels:
            check_channel(channel)
            self._channels[channel] = []
            self._silences.append(self._log.listen(channel, self._on_ring))
        await self._look(channel, start)

    async def _look(self, channel: str, start: str) -> None:
        """Find new lanes of a channel, and have every chain of it read."""
        out_of_reach: set[Chain] = set()
        for lane in await self._log.lanes(channel):
            chain = self._chains.get(chain_of(lane))
            if chain is None:
                chain = self._chains[chain_of(lane)] = ChainState(chain_of(lane))
                self._channels[channel].append(chain)
            if lane.inc not in chain.seen and chain.key not in out_of_reach:
                try:
                    place = await self._begin(lane, start)
                except (RedisLost, RedisRefused):  # it is found when that Redis answers; those of this site wait for nobody
                    out_of_reach.add(chain.key)
                    continue
                self._join(chain, place)
        for chain in self._channels[channel]:
            if chain.lanes:
                self._crew.queue(chain)

    def _join(self, chain: ChainState, place: LanePlace) -> None:
        """Put a lane into its chain.

        One before those that are there comes late where a Redis had forgotten it: then it is the next, for out of order is
        better than not at all."""
        lane, last = place.lane, max(chain.seen, default=0)
        chain.seen.add(lane.inc)
        chain.lanes.insert(sum(each.lane.inc < lane.inc for each in chain.lanes), place)
        if lane.inc > last:
            self._newest.pop(lane._replace(inc=last), None)
            self._newest[lane] = chain

    def _doubt(self, lane: Lane) -> None:
        """Its marks are of another boot and may be older than what was handled: kept with them until it is reached."""
        row = self._marks.find(lane)
        assert row is not None, "it is one of those that have marks"
        at = settled_at(row) + 1
        self._marks.cells[at] = self._marks.cells[at] % DOUBT + DOUBT

    async def _begin(self, lane: Lane, start: str) -> LanePlace:
        """Where to begin in a lane: behind what is settled, or where ``start`` says."""
        row = self._marks.find(lane)
        # One that was hidden when this boot began: the marks that said what was handled of it are lost.
        doubtful = self._flag_all or (row is not None and self._marks.cells[settled_at(row) + 1] >= DOUBT) or (
            row is None and self._known(lane.channel)
            and (await self._log.of_earlier_boot(lane) or (self._rebooted and not self._log.is_near(lane))))
        span = await self._log.span(lane) if row is None or doubtful else None
        if row is None:
            assert span is not None
            row = self._marks.add(lane, self._first_settled(span, start, self._known(lane.channel)))
        cells = self._marks.cells
        settled, intent = cells[settled_at(row)], cells[settled_at(row) + 1] % DOUBT
        flagged = max(intent, span.last if span is not None and doubtful else 0)
        cells[settled_at(row) + 1] = flagged  # kept: this process may die before it comes to the last of them
        begun = settled + 1 if intent == settled + 1 and not doubtful else 0
        return LanePlace(lane, row, settled + 1, flagged, begun)

    def _first_settled(self, span: Span, start: str, known: bool) -> int:
        """What counts as settled of a lane that has no mark yet."""
        if start == "new":
            return span.last
        if self._from_contact:
            return max(span.first - 1, span.contact)
        # A subscription that was here before is owed also what the stream of that Redis does not hold any more.
        return 0 if known and span.contact else span.first - 1

    # ------------------------------------------------------------------------------------------ news

    def _on_ring(self, channel: str, lane: Lane | None) -> None:
        chain = None if lane is None else self._newest.get(lane)
        if chain is not None:
            self._crew.queue(chain)
        else:
            self._dirty.add(channel)
            self._news.set()

    def _on_channel(self, channel: str, _: Lane | None) -> None:
        if not channel:
            self._look_for_channels = True
            self._news.set()
        elif self._matches(channel):
            self._dirty.add(channel)
            self._news.set()

    async def run(self, group: asyncio.TaskGroup) -> None:
        """Serve until `stop`; workers are born in ``group``."""
        loop = asyncio.get_running_loop()
        self._crew.begin(group)
        next_poll = loop.time() + self._interval(0.0)
        while not self._stopping:
            await self._wait_for_news(next_poll - loop.time())
            began = loop.time()
            polled = began >= next_poll
            dirty, self._dirty = self._dirty, set()
            try:
                if polled or self._look_for_channels:
                    self._look_for_channels = False
                    dirty.update(await self._matching())
                if polled:
                    dirty.update(self._channels)
                for channel in sorted(dirty):
                    await self._add_channel(channel, "earliest")
            except (LemegetonError, OSError) as error:
                self._observe(LaneStalled(self._name, Lane(",".join(self._patterns), "", 0, 0), str(error)))
                self._dirty |= dirty
                next_poll = began + STALL_RETRY_S
                continue
            if polled:
                next_poll = loop.time() + self._interval(loop.time() - began)  # not since it was due: we may have slept

    async def _wait_for_news(self, timeout_s: float) -> None:
        if timeout_s > 0 and not self._news.is_set():
            timer = asyncio.get_running_loop().call_later(timeout_s, self._news.set)
            try:
                await self._news.wait()
            finally:
                timer.cancel()
        self._news.clear()

    def _interval(self, took_s: float) -> float:
        """Seconds until the next look at everything."""
        active = not self._log.rings and asyncio.get_running_loop().time() < self._active_until
        return max(min(ACTIVE_POLL_S, self._poll_s) if active else self._poll_s, POLL_SHARE * took_s)

    # ------------------------------------------------------------------------------------------ workers

    async def _serve(self, chain: ChainState) -> bool:
        """Give a chain one turn; true if there may be more in it."""
        try:
            return await self._drain(chain)
        except (LemegetonError, OSError) as error:
            self._stall(chain, str(error))
            return False
        except BaseException:
            _read_again(chain)
            raise

    def _stall(self, chain: ChainState, cause: str) -> None:
        self._observe(LaneStalled(self._name, chain.lanes[0].lane, cause))
        _read_again(chain)
        self._later(chain, STALL_RETRY_S)

    def _later(self, chain: ChainState, delay_s: float) -> None:
        chain.waiting = True
        timer = asyncio.get_running_loop().call_later(delay_s, self._waited, chain)
        self._timers = {t for t in self._timers if not t.cancelled() and t.when() > timer.when() - delay_s}
        self._timers.add(timer)

    def _waited(self, chain: ChainState) -> None:
        chain.waiting = False
        self._crew.queue(chain)

    async def _drain(self, chain: ChainState) -> bool:
        """Handle what the chain has, for one turn; true if there may be more."""
        for _ in range(BATCHES_A_TURN):
            place = chain.lanes[0]
            later_known = len(chain.lanes) > 1
            batch = await self._read(place)
            if not batch.records:
                if not later_known or not await self._log.ended(place.lane, chain.lanes[1].lane, place.next - 1):
                    return False
                chain.lanes.remove(place)  # maybe not the first any more
                continue
            outcome = await self._handling.handle(place, batch.records, self._marks)
            self._active_until = asyncio.get_running_loop().time() + ACTIVE_FOR_S
            if outcome is not Outcome.DONE:
                place.cursor = None
                if outcome is Outcome.LATER:
                    self._later(chain, place.delay_s)
                return False
            await asyncio.sleep(0)
            if not batch.more and not later_known:
                return False  # what came meanwhile has rung, and a read that finds nothing costs as much as a record
        return True

    async def _read(self, place: LanePlace) -> Batch:
        """The next batch of a lane; what is gone is reported as a gap, and reading goes on behind it."""
        for _ in range(SEEKS_MAX):
            try:
                if place.cursor is None:
                    place.cursor = await self._log.seek(place.lane, place.next - 1)
                batch = await self._log.read(place.lane, place.cursor)
            except PositionLost as lost:
                place.cursor = None
                if lost.first > place.next:
                    self._skip_to(place, lost.first)
                elif lost.last < place.next:
                    return Batch((), (0, 0))
            else:
                place.cursor = batch.cursor
                return batch
        raise LogError(f"{place.lane}: it is trimmed faster than it can be read")

    def _skip_to(self, place: LanePlace, first: int) -> None:
        """Go on behind records that are gone; the attempts at the next one were attempts at one of those."""
        self._observe(Gap(self._name, place.lane, place.next, first - 1, "removed before it was read"))
        self._handling.counts.missing += first - place.next
        place.next = first
        place.forget_trouble()
        self._marks.cells[settled_at(place.row)] = first - 1

    # ------------------------------------------------------------------------------------------ end

    async def stop(self, timeout_s: float) -> None:
        """Let running handlers finish for ``timeout_s``, then cancel them; their messages come again."""
        self._stopping = True
        self._handling.stopping = True
        self._news.set()
        for timer in self._timers:
            timer.cancel()
        for silence in self._silences:
            silence()
        await self._crew.stop(timeout_s)
        for chain in self._chains.values():
            for place in tuple(chain.lanes)[:1]:
                self._handling.forgive(place, self._marks)

    def caught_up(self, lanes: dict[Lane, int]) -> bool:
        """True if every given lane is settled up to its given sequence."""
        for lane, last in lanes.items():
            row = self._marks.find(lane)
            if row is None or self._marks.cells[settled_at(row)] < last:
                return False
        return True

    def tick(self) -> None:
        """Note which record every busy chain is at, so that `running` can tell how long it has been there."""
        now = asyncio.get_running_loop().time()
        for chain in self._chains.values():
            seq = chain.lanes[0].next if chain.busy else 0
            if seq != chain.stuck_seq:
                chain.stuck_seq, chain.stuck_since = seq, now

    def running(self) -> list[tuple[Lane, int, float]]:
        """The lanes whose handler had the same record at the last tick: lane, sequence, seconds since it was noted."""
        now = asyncio.get_running_loop().time()
        return [
            (chain.lanes[0].lane, chain.stuck_seq, now - chain.stuck_since)
            for chain in self._chains.values()
            if chain.busy and chain.stuck_seq == chain.lanes[0].next
        ]

    @property
    def lanes(self) -> int:
        """How many chains this subscription reads."""
        return len(self._chains)


def _is_channel(name: str) -> bool:
    """False for a directory that somebody made and no channel can have: it must not stop a glob."""
    try:
        check_channel(name)
    except InvalidMessage:
        return False
    return True


def _read_again(chain: ChainState) -> None:
    """What was read and not settled is read again."""
    for place in chain.lanes:
        place.cursor = None
