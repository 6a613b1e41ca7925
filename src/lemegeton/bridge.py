"""The bridge: what one process of a site does for all of them at a shared Redis, while it holds ``bridge.lock``.

::

    every second   tells what this site's durable subscriptions have settled
    every 5 s      relays what is stranded: lanes of senders that are dead, or cut off from the Redis for a second
                   sends again what other sites ask for
                   learns what other sites have settled, for retention here and for trimming the streams

Everything it does may be done twice, by anybody, at any time; the lock only spares the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from lemegeton.checkpoint import VolatileMarks, held
from lemegeton.config import Settings
from lemegeton.errors import LogError, RedisRefused
from lemegeton.events import Observer, RedisEvicts, RelayStalled, SubscriptionExpired
from lemegeton.home import OWN_FILE, Home, read_file, replace_file
from lemegeton.lane import Lane
from lemegeton.logs.base import Log
from lemegeton.logs.janitor import Holders
from lemegeton.logs.origin import site_of
from lemegeton.logs.redis_entries import SEQUENCE_END, Keys, lane_field, lane_of, marks_of
from lemegeton.logs.redis_evicting import evicts
from lemegeton.logs.redis_link import Link, pairs
from lemegeton.logs.redis_scripts import TRIM
from lemegeton.relay import Relay
from lemegeton.relaying import Accepted, open_marks
from lemegeton.resending import Resending
from lemegeton.seams import Runtime
from lemegeton.sharing import (
    STATE_FILE,
    Remote,
    RemoteState,
    Shared,
    acks_of,
    decode_state,
    elsewhere,
    encode_state,
    shared_of,
    trim_limits,
)

TICK_S = 1.0
SWEEP_S = 5.0
SEEN_S = 30.0
"""How often a durable subscription is described anew, so that it does not count as abandoned."""
HELP_AFTER_S = 1.0
AT_ONCE = 16
TRIM_BATCH = 512


class ToldOfAll:
    """`relay.Told` for lanes of any origin; the marks of each are opened when they are asked for.

    Those of a sender that lives only it may write: what is brought for it is remembered here until it is gone."""

    def __init__(self, runtime: Runtime, directory: str) -> None:
        self._runtime = runtime
        self._directory = directory
        self._open: dict[str, Accepted] = {}
        self._brought: dict[str, dict[Lane, int]] = {}

    def _of(self, origin: str) -> Accepted:
        if origin not in self._open:
            marks = open_marks(self._runtime.fs, self._directory, origin, self._runtime.boot_id, self._runtime.wall_ms())
            accepted = self._open[origin] = Accepted(marks)
            brought = self._brought.pop(origin, {})
            for lane, seq in brought.items():
                accepted.note(lane, seq)
            if isinstance(marks, VolatileMarks):
                self._brought[origin] = brought
        return self._open[origin]

    def get(self, lane: Lane) -> int:
        return self._of(lane.origin).get(lane)

    def put(self, lane: Lane, seq: int) -> None:
        self._of(lane.origin).put(lane, seq)
        if (brought := self._brought.get(lane.origin)) is not None:
            brought[lane] = max(seq, brought.get(lane, 0))

    def close(self) -> None:
        """Let all go: their owners may come."""
        for accepted in self._open.values():
            accepted.close()
        self._open.clear()


class Bridge:
    """See the module."""

    def __init__(
        self, runtime: Runtime, home: Home, settings: Settings, log: Log, link: Link, keys: Keys,
        make_relay: Callable[[ToldOfAll], Relay], own_lanes: Callable[[], Sequence[Lane]], paused: Callable[[], bool],
        observe: Observer
    ) -> None:
        self._runtime = runtime
        self._fs = runtime.fs
        self._home = home
        self._settings = settings
        self._log = log
        self._link = link
        self._keys = keys
        self._own_lanes = own_lanes
        self._paused = paused
        self._observe = observe
        self._told = ToldOfAll(runtime, f"{home.path}/redis")
        self._relay = make_relay(self._told)
        self._resending = Resending(log, link, keys, home.site, runtime.wall_ms)
        self._holders = Holders(runtime, home)
        self._fd = -1
        self.holds = False
        self._behind: dict[Lane, float] = {}
        self._shared: dict[str, tuple[Shared, float]] = {}
        self._acks: dict[tuple[str, str], dict[str, int]] = {}
        self._wake = asyncio.Event()
        self._asked: set[str] = set()
        self._closing = self._looked = False
        self._ends = [link.hear(keys.control, self._on_control), link.on_change(self._on_change)]

    def _on_control(self, _: str, data: bytes) -> None:
        word, _, channel = data.decode("utf-8", "replace").partition(" ")
        if word == "q" and self.holds:
            self._asked.add(channel)
            self._wake.set()

    def _on_change(self, up: bool) -> None:
        self._relay.forget()
        self._shared.clear()
        self._acks.clear()
        self._looked = False
        self._wake.set()

    async def _look(self) -> None:
        """Say so once a connection if that Redis throws away what it is given."""
        self._looked = True
        if cause := await evicts(self._link):
            self._observe(RedisEvicts(self._link.name, cause))

    # ------------------------------------------------------------------------------------------ life

    async def run(self) -> None:
        """Serve until `close`."""
        loop = asyncio.get_running_loop()
        sweep_at = loop.time()
        while not self._closing:
            try:
                if self._link.up and not self._paused() and self._take_lock():
                    if not self._looked:
                        await self._look()
                    if self._asked:
                        asked, self._asked = self._asked, set()
                        for channel in sorted(asked):
                            await self._resending.answer(channel)
                    await self._share()
                    if loop.time() >= sweep_at:
                        sweep_at = loop.time() + SWEEP_S
                        await self.sweep()
            except (LogError, OSError) as error:
                if self._link.up:
                    self._observe(RelayStalled(self._link.name, Lane("(bridge)", "", 0, 0), str(error)))
            timer = loop.call_later(TICK_S, self._wake.set)
            await self._wake.wait()
            timer.cancel()
            self._wake.clear()

    def _take_lock(self) -> bool:
        if self._fd < 0:
            self._fd = self._fs.open(f"{self._home.path}/bridge.lock", OWN_FILE, 0o600)
        self.holds = self.holds or self._fs.lock(self._fd)
        return self.holds

    def close(self) -> None:
        """Have `run` return and let everything go."""
        self._closing = True
        for end in self._ends:
            end()
        self._holders.close()
        self._told.close()
        if self._fd >= 0:
            self._fs.close(self._fd)
            self._fd, self.holds = -1, False
        self._wake.set()

    # ------------------------------------------------------------------------------------------ telling

    async def _share(self) -> None:
        """Tell what changed in what this site's durable subscriptions have settled of other sites."""
        now = asyncio.get_running_loop().time()
        calls = []
        self._holders.refresh()
        for name, header, settled in self._holders.durable():
            field = f"{name}@{self._home.site}"
            known = self._shared.get(field)
            if known is None or known[0].patterns != header.patterns or now - known[1] > SEEN_S:
                shared = Shared(header.patterns, self._runtime.wall_ms())
                self._shared[field] = shared, now
                calls.append(self._link.call("HSET", self._keys.subscriptions, field, msgspec.json.encode(shared)))
            for channel, lanes in self._of_others(settled).items():
                if self._acks.get((field, channel)) != lanes:
                    self._acks[field, channel] = lanes
                    calls.append(self._link.call("HSET", self._keys.acks(channel), field, msgspec.json.encode(lanes)))
        for gone in [field for field in self._shared if field.rpartition("@")[0] not in self._holders.names()]:
            del self._shared[gone]
            # Said, and not only taken away: what a Redis has lost is no word of anybody.
            dropped = msgspec.json.encode(Shared((), self._runtime.wall_ms()))
            calls.append(self._link.call("HSET", self._keys.subscriptions, gone, dropped))
        try:
            await asyncio.gather(*calls)
        except LogError:  # what it refused was not told, whatever else was
            self._shared.clear()
            self._acks.clear()
            raise

    def _of_others(self, settled: dict[Lane, int]) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for lane, seq in settled.items():
            if site_of(lane.origin) != self._home.site:
                found.setdefault(lane.channel, {})[lane_field(lane)] = seq
        return found

    # ------------------------------------------------------------------------------------------ sweeping

    async def sweep(self) -> int:
        """Relay, send again, learn, trim: all channels of the home; how many lanes the Redis still lacks something of."""
        before = self._stored()
        everybody = await self._everybody(before)
        holders = elsewhere(everybody, self._home.site)
        marks: dict[str, dict[str, int]] = {}
        settled: dict[str, dict[str, dict[str, int]]] = {name: {} for name in holders}
        lacking = 0
        channels = await self._log.channels()
        for at in range(0, len(channels), AT_ONCE):
            some = channels[at : at + AT_ONCE]
            asked = [self._link.call("HGETALL", key(channel)) for channel in some
                     for key in (self._keys.marks, self._keys.acks)]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            for channel, mark_answer, ack_answer in zip(some, answers[::2], answers[1::2], strict=True):
                try:
                    marks[channel] = marks_of(pairs(_checked(mark_answer)))
                    acks = acks_of(pairs(_checked(ack_answer)))
                    for name in holders:
                        settled[name][channel] = acks.get(name) or before.settled(name, channel)
                    lacking += await self._help(channel, marks[channel])
                    await self._resending.answer(channel)
                    await self._trim(channel, marks[channel], everybody, acks)
                except RedisRefused as error:  # another program has a key of that name, say: it stops no other channel
                    lacking += 1
                    self._observe(RelayStalled(self._link.name, Lane(channel, "", 0, 0), str(error)))
        self._store(RemoteState(marks, tuple(
            Remote(name, shared.patterns, settled[name], shared.seen) for name, shared in holders.items())))
        self._told.close()
        return lacking

    async def _everybody(self, before: RemoteState) -> dict[str, Shared]:
        """The durable subscriptions of all sites, whatever this Redis has lost; those nobody has seen for too long go."""
        oldest_ms = self._runtime.wall_ms() - round(self._settings.abandoned_after * 1000)
        found, abandoned = shared_of(pairs(await self._link.call("HGETALL", self._keys.subscriptions)), oldest_ms)
        for field, shared in abandoned.items():
            await self._link.call("HDEL", self._keys.subscriptions, field)
            if shared.patterns:
                self._observe(SubscriptionExpired(field.decode("utf-8", "replace"), self._settings.abandoned_after))
        self._holders.refresh()
        own = {f"{name}@{self._home.site}": Shared(header.patterns, 0) for name, header, _ in self._holders.durable()}
        return found | before.forgotten(found, oldest_ms) | own

    def _stored(self) -> RemoteState:
        """What the shared Redis said before."""
        with suppress(FileNotFoundError):
            return decode_state(read_file(self._fs, f"{self._home.path}/{STATE_FILE}", self._runtime.uid))
        return RemoteState()

    async def _help(self, channel: str, marks: dict[str, int]) -> int:
        """Relay the lanes of a channel that nobody else relays."""
        now = asyncio.get_running_loop().time()
        own = set(self._own_lanes())
        lacking = 0
        for lane in await self._log.lanes(channel):
            if site_of(lane.origin) != self._home.site or lane in own:
                continue
            mark = marks.get(lane_field(lane), 0)
            last = (await self._log.span(lane)).last
            if last <= mark:
                self._behind.pop(lane, None)
                continue
            since = self._behind.setdefault(lane, now)
            if now - since < HELP_AFTER_S and held(self._fs, f"{self._home.origins}/{lane.origin}"):
                lacking += 1
                continue
            await self._relay.probe(lane)  # the Redis may have forgotten what we brought
            marks[lane_field(lane)] = await self._relay.copy(lane)
            lacking += marks[lane_field(lane)] < last
        return lacking

    async def _trim(self, channel: str, marks: dict[str, int], everybody: dict[str, Shared], acks: Any) -> None:
        ours = [field for field in marks if (lane := lane_of(channel, field)) and site_of(lane.origin) == self._home.site]
        if not ours:
            return
        limits = trim_limits(channel, marks, everybody, acks)
        arguments: list[str | int] = []
        for lane_name in marks:
            arguments += (lane_name, limits.get(lane_name, SEQUENCE_END))
        await self._link.script(TRIM, (self._keys.stream(channel),), self._settings.max_stream_length, TRIM_BATCH,
                                *arguments)

    def _store(self, state: RemoteState) -> None:
        """Leave it for the janitor of this home."""
        replace_file(self._fs, f"{self._home.path}/{STATE_FILE}", encode_state(state), self._runtime.token(4))


def _checked(answer: Any) -> Any:
    if isinstance(answer, BaseException):
        raise answer
    return answer
