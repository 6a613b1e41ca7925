"""The replica: a Redis as the relay sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lemegeton.checksum import crc32
from lemegeton.lane import Lane
from lemegeton.logs.base import Answer, Item, Mark
from lemegeton.logs.redis_entries import Keys, lane_field, sequence_in
from lemegeton.logs.redis_link import Link
from lemegeton.logs.redis_packing import packed_items
from lemegeton.logs.redis_scripts import FORWARD

HARD_LENGTH = 10
"""A stream is cut at so many times ``max_stream_length``, whoever has not read it: then it is sent again on request."""


class RedisReplica:
    """Takes records through the script that moves stream, doorbell and mark together."""

    def __init__(self, link: Link, keys: Keys, length: int, wall_ms: Callable[[], int]) -> None:
        self._link = link
        self._keys = keys
        self._length = length * HARD_LENGTH
        self._wall_ms = wall_ms
        self._known: set[str] = set()
        link.on_change(lambda up: self._known.clear())

    async def accept(self, lane: Lane, items: Sequence[Item], *, base: bool = False, told: int = 0) -> Answer:
        channel = lane.channel
        stream, marks = self._keys.stream(channel), self._keys.marks(channel)
        if items and channel not in self._known:
            await self._introduce(channel)
        packed = packed_items(items, lane, self._wall_ms())
        status, mark = await self._link.script(FORWARD, (stream, marks), lane_field(lane), int(base), told,
                                               self._keys.channel(channel), self._length, packed=packed)
        if items and items[0].seq <= told and status == b"OK":
            # What is only filled in again is not published: whoever hears and does not read must not take it for new.
            await self._link.call("PUBLISH", self._keys.control, f"n {channel}")
        seq, _, crc = mark.partition(b":")
        return Answer(Mark(int(seq), sequence_in(crc) or 0), status == b"GAP")

    async def _introduce(self, channel: str) -> None:
        """Before its first entry a channel is in the set, so that a subscription by glob finds it."""
        if await self._link.call("SADD", self._keys.channels, channel):
            await self._link.call("PUBLISH", self._keys.control, f"n {channel}")
        self._known.add(channel)


class PubSubReplica:
    """A Redis that is only told (``persist_messages`` is off): other sites hear a message at most once."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys

    async def accept(self, lane: Lane, items: Sequence[Item], *, base: bool = False, told: int = 0) -> Answer:
        for item in items:
            if isinstance(item.record, bytes) and item.seq > told:
                await self._link.call("PUBLISH", self._keys.channel(lane.channel), item.record)
        if not items:
            return Answer(Mark(told, 0))
        last = items[-1]
        return Answer(Mark(last.through, crc32(last.record) if isinstance(last.record, bytes) else 0))
