"""The Redis log: what other sites brought to a Redis, read like any other log.

A doorbell brings a record at once; what it did not bring is in the stream, read by explicit ids; what is not there (it
was trimmed, deleted, forgotten) is asked for, and the site that has it sends it again.  Ids are never trusted: a Redis
that began anew may give lower ones, so whoever finds nothing behind his id looks through the whole stream, which is a
cache of bounded length.

It never appends: `relay` does that, from the log of the sender's own site.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from lemegeton.channels import check_channel
from lemegeton.codec import Head, head_of
from lemegeton.errors import BusClosed, InvalidMessage, LogError, RedisLost, RedisRefused
from lemegeton.events import Observer, Refused
from lemegeton.lane import Lane
from lemegeton.logs.base import GONE, READ_BYTES, Batch, Cursor, Form, Marker, Placed, Position, Ring, Span
from lemegeton.logs.origin import site_of
from lemegeton.logs.redis_ears import Ears
from lemegeton.logs.redis_entries import Keys, entry_of, lane_of, marks_of
from lemegeton.logs.redis_feed import Feed, Shelf
from lemegeton.logs.redis_foreign import NEW_ENTRIES, foreign_lane, heard_lane, is_heard, is_sparse, placed
from lemegeton.logs.redis_link import Link, answered, pairs
from lemegeton.logs.redis_scan import CALL_S, Scan
from lemegeton.segment import NUMBER_MAX, is_origin

REFRESH_S = 5.0
"""How often every mark is looked at again: a doorbell may have been lost, the last one of a lane without a trace."""
FOREIGN_CHUNK = 1000
STREAMS_S = 60.0
SCANS_MAX, SCAN_COUNT = 100, 1000
"""How much of the key space is looked through for streams that nobody announced."""
AT_ONCE = 16
"""How many channels are looked at side by side."""


class RedisLog:
    """The lanes of other sites, as one Redis has them; see `logs.base.Log`."""

    rings = True

    def __init__(
        self, link: Link, keys: Keys, site: str, observe: Observer, *, gap_timeout_s: float | None = None,
        life: str = "here", bytes_max: int = 1024 * 1024, token: Callable[[int], str] = secrets.token_hex
    ) -> None:
        self._link = link
        self._keys = keys
        self._site = site
        self._observe = observe
        self._feeds: dict[str, Feed] = {}
        self._shelf = Shelf()
        self._rings: dict[str, list[Ring]] = {}
        self._new_rings: list[Ring] = []
        self._ears = Ears(link, keys, self._on_doorbell)
        self._scan_streams_at = 0.0
        self._lanes: dict[tuple[str, str, int, int], Lane] = {}
        self._life = life
        self._token = token
        self._bytes_max = bytes_max
        self._scan = Scan(link, keys, site, self._shelf, self._lane, observe, gap_timeout_s, bytes_max)
        self._due = asyncio.Event()
        self._looking: set[str] = set()
        self._closed = False
        self._ends = [link.hear(keys.control, self._on_control), link.on_change(self._on_change)]

    # ------------------------------------------------------------------------------------------ hearing

    def _on_change(self, up: bool) -> None:
        """A Redis that is new may have forgotten, or another one: everything is looked at again."""
        self._shelf.clear()
        self._scan_streams_at = 0.0
        for feed in self._feeds.values():
            feed.seen = False
            feed.asked.clear()
            feed.holes.clear()
            feed.marks = {lane: last if is_heard(lane) else 0 for lane, last in feed.marks.items()}
        self._due.set()

    def _on_control(self, _: str, data: bytes) -> None:
        word, _, channel = data.decode("utf-8", "replace").partition(" ")
        if word == "n" and channel in self._rings:
            self._looking.add(channel)
            self._due.set()
        elif word == "n":
            self._ring_new(channel)

    def _ring_new(self, channel: str) -> None:
        for ring in tuple(self._new_rings):
            ring(channel, None)

    def _on_doorbell(self, channel: str, data: bytes) -> None:
        try:
            head = head_of(data)
            if head.origin and head.seq:
                lane, seq = self._lane(channel, head), head.seq
            else:
                lane, seq, data = self._place_heard(channel, data)
        except InvalidMessage as error:
            self._observe(Refused(channel, "redis doorbell", "", str(error)))
            return
        if lane is None:
            return
        (feed := self._feed(channel)).herald(lane, head.after)
        if feed.note(lane, seq) and channel not in self._rings:
            self._ring_new(channel)
        self._shelf.put(lane, seq, seq, data)
        self._ring(channel, lane)

    def _place_heard(self, channel: str, data: bytes) -> tuple[Lane, int, bytes]:
        """Some other program published; whether it is in the stream as well is seen later, by its id."""
        lane = heard_lane(check_channel(channel), self._life)
        seq = self._feed(channel).marks.get(lane, 0) + 1
        return lane, seq, placed(data, lane, seq, self._bytes_max)

    async def _find_foreign(self, feed: Feed) -> None:
        """Look for entries of other programs behind those that were seen."""
        key = self._keys.stream(feed.channel)
        lane = foreign_lane(feed.channel, self._scan.dataset)
        while True:
            begin = "(" + feed.foreign_at.decode() if feed.foreign_at else "-"
            last, count, entries = await self._answer(self._link.script(NEW_ENTRIES, (key,), begin, FOREIGN_CHUNK))
            for raw in entries:
                try:
                    entry = self._scan.foreign(feed.channel, entry_of(raw))
                except InvalidMessage as error:
                    self._scan.report(feed.channel, raw[0], str(error))
                    continue
                feed.note(lane, entry.through)
                self._shelf.follow(lane, entry.through, entry.wire)
            feed.foreign_at = last or feed.foreign_at
            if count < FOREIGN_CHUNK:
                return

    async def _identify(self) -> None:
        """Learn which life of the Redis this is; after a loss of everything the first who comes begins another."""
        key = self._keys.dataset
        await self._answer(self._link.call("SET", key, self._token(6), "NX"))
        dataset = (await self._answer(self._link.call("GET", key)) or b"").decode("ascii", "replace")
        if dataset != self._scan.dataset:
            self._scan.dataset = dataset
            for feed in self._feeds.values():
                feed.foreign_at = b""

    def _lane(self, channel: str, head: Head) -> Lane | None:
        """The lane of a record of another site; None for one of ours, which we have in a file."""
        key = (channel, head.origin, head.inc, head.priority)
        lane = self._lanes.get(key)
        if lane is None:
            if site_of(head.origin) == self._site:
                return None
            if not (is_origin(head.origin) and 0 < head.inc < NUMBER_MAX and 0 <= head.priority <= 3):
                raise InvalidMessage(f"record of {head.origin[:80]!r}.{head.inc}.{head.priority}: no such lane")
            check_channel(channel)
            lane = self._lanes[key] = Lane(channel, head.origin, head.inc, head.priority)
        if not 0 < head.seq < NUMBER_MAX:
            raise InvalidMessage(f"record {head.seq} of {lane}: a sequence is 1 or more, below 2^62")
        return lane

    def _ring(self, channel: str, lane: Lane | None) -> None:
        for ring in tuple(self._rings.get(channel, ())):
            ring(channel, lane)

    def listen(self, channel: str, ring: Ring) -> Callable[[], None]:
        rings = self._rings.setdefault(channel, [])
        rings.append(ring)
        self._ears.want(channel)

        def end() -> None:
            if ring in rings:
                rings.remove(ring)
                if not rings and self._rings.pop(channel, None) is not None:
                    self._ears.leave(channel)
                    self._feeds.pop(channel, None)

        return end

    def listen_new(self, globs: Sequence[str], ring: Ring) -> Callable[[], None]:
        self._new_rings.append(ring)
        unhear = self._ears.want_globs(globs)
        self._due.set()

        def end() -> None:
            if ring in self._new_rings:
                self._new_rings.remove(ring)
                unhear()

        return end

    # ------------------------------------------------------------------------------------------ marks

    async def run(self) -> None:
        """Look at the marks of every channel somebody listens to: when the link comes up, when rung, every 5 s."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not self._closed:
            left = due - loop.time()
            if left > 0 and not self._due.is_set():
                timer = loop.call_later(left, self._due.set)
                await self._due.wait()
                timer.cancel()
            self._due.clear()
            looking, self._looking = self._looking, set()
            everything = loop.time() >= due or any(not feed.seen for feed in self._feeds.values())
            if everything:
                due = loop.time() + REFRESH_S
            if self._link.up:
                await self._look(sorted(self._rings if everything else looking & self._rings.keys()), everything)

    async def _look(self, channels: Sequence[str], everything: bool) -> None:
        try:
            if everything:
                await self._identify()
            if everything and self._new_rings:
                for channel in await self._known_channels():
                    if channel not in self._rings:
                        self._ring_new(channel)
            for at in range(0, len(channels), AT_ONCE):
                some = channels[at : at + AT_ONCE]
                asked = [self._answer(self._link.call("HGETALL", self._keys.marks(channel))) for channel in some]
                answers = await asyncio.gather(*asked, return_exceptions=True)
                for channel, answer in zip(some, answers, strict=True):
                    await self._look_at(channel, answer)
        except LogError:
            return  # it went down meanwhile, or refuses: `link` says so, and the next round comes

    async def _look_at(self, channel: str, answer: Any) -> None:
        """Take what the Redis said of a channel; what it refuses, as a key of another type, stops no other channel."""
        try:
            if isinstance(answer, BaseException):
                raise answer
            await self._find_foreign(self._take_marks(channel, answer))
        except RedisRefused as error:
            self._observe(Refused(channel, "redis", "", str(error)))
        else:
            self._ring(channel, None)

    async def _known_channels(self) -> set[str]:
        """The channels in the set; once a minute also those of streams that some other program began."""
        found = {name.decode("utf-8", "replace")
                 for name in await self._answer(self._link.call("SMEMBERS", self._keys.channels))}
        now = asyncio.get_running_loop().time()
        if now < self._scan_streams_at:
            return found
        self._scan_streams_at = now + STREAMS_S
        prefix, at = self._keys.stream(""), "0"
        with suppress(RedisRefused):  # a user without SCAN finds what other programs began when they publish
            for _ in range(SCANS_MAX):
                at, names = await self._answer(self._link.call("SCAN", at, "MATCH", f"{prefix}*", "COUNT", SCAN_COUNT))
                found.update(name.decode("utf-8", "replace").removeprefix(prefix) for name in names)
                if at == b"0":
                    break
        return found

    def _take_marks(self, channel: str, answer: Any) -> Feed:
        feed = self._feed(channel)
        first = not feed.met
        feed.seen = feed.met = True
        for field, seq in marks_of(pairs(answer)).items():
            lane = lane_of(channel, field)
            if lane is not None and site_of(lane.origin) != self._site:
                feed.marks[lane] = seq
        if first:
            feed.contact = dict(feed.marks)
        return feed

    def _feed(self, channel: str) -> Feed:
        feed = self._feeds.get(channel)
        if feed is None:
            feed = self._feeds[channel] = Feed(channel)
        return feed

    async def _answer(self, asked: Awaitable[Any]) -> Any:
        return await answered(asked, CALL_S, f"redis ({self._link.name})")

    # ------------------------------------------------------------------------------------------ the log

    def append_now(self, form: Form, stamp_ms: int, payload: bytes, disk: bool = False) -> Placed:
        """Never: see `append`."""
        return None

    async def append(
        self, channel: str, body: bytes, priority: int = 1, *, made: bool = True, disk: bool = False
    ) -> Position:
        raise LogError("redis log: nothing is appended here; the relay brings what is in a file")

    async def channels(self) -> Sequence[str]:
        self._check_open()
        if not self._link.up:
            return sorted(self._feeds)
        found = await self._answer(self._link.call("SMEMBERS", self._keys.channels))
        return sorted({name.decode("utf-8", "replace") for name in found} | self._feeds.keys())

    async def lanes(self, channel: str) -> Sequence[Lane]:
        """What was seen last; a channel that nobody listens to, or that is new since the link came up, is looked at now."""
        self._check_open()
        feed = self._feed(channel)
        if (not feed.seen or channel not in self._rings) and self._link.up:
            if not self._scan.dataset:
                await self._identify()
            marks = await self._answer(self._link.call("HGETALL", self._keys.marks(channel)))
            await self._find_foreign(self._take_marks(channel, marks))
        feed.heralded.clear()
        return sorted(feed.marks)

    async def span(self, lane: Lane) -> Span:
        """From the oldest that the stream has to the mark.

        A lane that came after the first contact begins with 1: what the stream lost of it is sent again."""
        self._check_open()
        feed = self._feed(lane.channel)
        last, contact = feed.marks.get(lane, 0), feed.contact.get(lane, 0)
        if is_heard(lane):
            return Span(self._shelf.first(lane) or last + 1, last, contact)
        if not feed.seen:
            raise RedisLost(f"redis ({self._link.name}): {lane} was not looked at since it came up", definite=True)
        if not contact and not is_sparse(lane):
            return Span(1, last)
        if last:
            async for entries in self._scan.entries(lane.channel, self._keys.stream(lane.channel)):
                for entry_lane, entry in entries:
                    if entry_lane == lane:
                        return Span(entry.head.seq, max(last, entry.through), contact)
        return Span(self._shelf.first(lane) or last + 1, last, contact)  # what was only heard is nowhere else

    async def of_earlier_boot(self, lane: Lane) -> bool:
        """Not of ours: what it holds does not depend on when this machine was started."""
        return False

    async def seek(self, lane: Lane, after: int) -> Cursor:
        self._check_open()
        return (after, 0)

    async def read(self, lane: Lane, cursor: Cursor, limit: int = READ_BYTES) -> Batch:
        """What comes behind the cursor; nothing while it, or an incarnation before it, has to be sent again."""
        self._check_open()
        batch = await self._read(lane, cursor, limit)
        first = batch.records[0] if batch.records and cursor[0] == 0 else None
        if isinstance(first, bytes) and self._feed(lane.channel).herald(lane, head_of(first).after):
            self._ring(lane.channel, None)
            return Batch((), cursor)
        return batch

    async def _read(self, lane: Lane, cursor: Cursor, limit: int) -> Batch:
        after, ident = cursor
        found, last = self._shelf.take(lane, after, limit)
        feed = self._feed(lane.channel)
        if found:
            return Batch(found, (last, ident), last < feed.marks.get(lane, 0))
        if is_heard(lane) and (first := self._shelf.first(lane)) is not None and first > after + 1:
            return Batch((Marker(GONE, after + 1, first - 1),), (first - 1, 0))  # nobody else has what was only heard
        if feed.marks.get(lane, 0) <= after or is_heard(lane) or not self._link.up:
            return Batch((), cursor)
        return await self._scan.find(feed, lane, after, ident, limit)

    async def trim(self, lane: Lane, through: int) -> None:
        """Nothing: what was settled is trimmed by the bridge of the sender's site."""

    async def ended(self, lane: Lane, later: Lane, settled: int) -> bool:
        """True once the first record of the later incarnation says that the earlier one ended here.

        It may arrive first: its sender is alive, and the end of the earlier one waits for a helper.  Where that record
        is gone, what the Redis has of the earlier one is its end."""
        found = await self.read(later, (0, 0), 1)
        first = found.records[0] if found.records else None
        after = head_of(first).after if isinstance(first, bytes) else None
        if after is not None and (after[0], after[1]) == (lane.origin, lane.inc):
            self._feed(lane.channel).note(lane, after[2])  # where the Redis forgot it, it is asked for
            return settled >= after[2]
        known = self._feed(lane.channel).marks.get(lane, 0)
        return (first is not None or (await self.span(later)).first > 1) and settled >= known

    def is_near(self, lane: Lane) -> bool:
        return False

    async def vanished(self, lane: Lane) -> bool:
        """Only what an earlier process heard; of all else this Redis may have forgotten, or be out of reach."""
        return is_heard(lane) and lane != heard_lane(lane.channel, self._life)

    def close(self) -> None:
        """Have `run` return; nothing is read any more."""
        self._closed = True
        self._due.set()
        self._ears.close()
        for end in self._ends:
            end()

    async def aclose(self) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise BusClosed("redis log: used after aclose")
