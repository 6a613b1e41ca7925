"""History: the newest messages of a channel, read from the ends of its lanes."""

from __future__ import annotations

import msgspec

from lemegeton.codec import decode
from lemegeton.errors import InvalidMessage, PositionLost
from lemegeton.lane import Lane
from lemegeton.logs.base import Log
from lemegeton.message import Message

COUNT_MAX = 100_000
_set = msgspec.structs.force_setattr


async def newest(log: Log, channel: str, count: int) -> list[Message]:
    """The last ``count`` messages, oldest first; ordered by the senders' stamps, within a lane by sequence."""
    if not 0 < count <= COUNT_MAX:
        raise InvalidMessage(f"history: count {count}: must be 1 to {COUNT_MAX}")
    found: list[tuple[int, Lane, int, Message]] = []
    for lane in await log.lanes(channel):
        stamp = 0
        for message in await _tail(log, lane, count):
            stamp = max(stamp, message.timestamp)  # a clock that was set back must not reorder a lane
            found.append((stamp, lane, message.seq, message))
    found.sort(key=lambda entry: entry[:3])
    return [message for *_, message in found[-count:]]


async def _tail(log: Log, lane: Lane, count: int) -> list[Message]:
    """The last ``count`` messages of one lane; damaged records are passed over."""
    messages: list[Message] = []
    try:
        span = await log.span(lane)
        cursor = await log.seek(lane, max(span.first - 1, span.last - count))
        while (batch := await log.read(lane, cursor)).records:
            cursor = batch.cursor
            for record in batch.records:
                if isinstance(record, bytes):
                    _keep(messages, record, lane.channel)
            del messages[:-count]
    except PositionLost:
        return messages
    return messages


def _keep(messages: list[Message], record: bytes, channel: str) -> None:
    try:
        message = decode(record)
    except InvalidMessage:
        return
    if not messages or message.seq > messages[-1].seq:
        _set(message, "channel", channel)
        _set(message, "raw", record)
        messages.append(message)
