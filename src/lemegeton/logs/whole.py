"""A channel from its first record to its last: for whoever looks once and keeps no place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec

from lemegeton.codec import decode
from lemegeton.errors import InvalidMessage, PositionLost, RedisLost, RedisRefused
from lemegeton.lane import Lane
from lemegeton.logs.base import Found, Log, Marker
from lemegeton.message import Message

WAIT_S = 3.0
"""How long all records together are waited for that another site has to send again."""
AGAIN_S = 0.02
SEEKS_MAX = 3
"""How often a place is looked for again when records are removed under it."""
_set = msgspec.structs.force_setattr


async def records(log: Log, channel: str) -> AsyncIterator[tuple[int, Message]]:
    """Every message of a channel, lane by lane, with a stamp that never goes back within its lane.

    It ends at what was there when it came to a lane.  Damaged records are passed over, and so is what nobody can supply now:
    that of a Redis that does not answer, and what another site was asked to send again and did not within 3 s."""
    until = asyncio.get_running_loop().time() + WAIT_S
    for lane in await log.lanes(channel):
        stamp = 0
        try:
            async for message in _of_lane(log, lane, until):
                stamp = max(stamp, message.timestamp)
                yield stamp, message
        except (RedisLost, RedisRefused):
            continue


async def _of_lane(log: Log, lane: Lane, until: float) -> AsyncIterator[Message]:
    try:
        span = await log.span(lane)
    except PositionLost:
        return
    after, seeks = 0, 0
    cursor = None
    while after < span.last and seeks < SEEKS_MAX:
        try:
            cursor = cursor or await log.seek(lane, after)
            batch = await log.read(lane, cursor)
        except PositionLost as lost:
            after, cursor, seeks = max(after, lost.first - 1), None, seeks + 1
            continue
        cursor, seeks = batch.cursor, 0
        for message in _messages(batch.records, lane):
            if message.seq > after:
                after = message.seq
                yield message
        after = max([after, *(record.through for record in batch.records if isinstance(record, Marker))])
        if batch.records:
            await asyncio.sleep(0)  # there may be a great many: whoever else has something to do has a turn between two batches
            continue
        if not log.is_near(lane) and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(AGAIN_S)  # it was asked for; whether it came shows only in reading again
        elif after + 1 < span.first:
            after, cursor = span.first - 1, None
        else:
            return


def _messages(found: Sequence[Found], lane: Lane) -> list[Message]:
    messages = []
    for record in found:
        try:
            message = decode(record) if isinstance(record, bytes) else None
        except InvalidMessage:
            continue
        if message is not None:
            _set(message, "channel", lane.channel)
            _set(message, "raw", record)
            messages.append(message)
    return messages
