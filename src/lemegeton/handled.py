"""Levels beyond the log itself: ``publish`` returns when a record has come so far.

``handled``: every durable subscription of this site that was known at the start has settled it."""

from __future__ import annotations

import asyncio
from typing import Literal, get_args

from lemegeton.codec import Draft, encode
from lemegeton.errors import InvalidMessage, NotReached
from lemegeton.logs.base import Position
from lemegeton.retention import Holder
from lemegeton.site import Site
from lemegeton.within import within

Ack = Literal["local", "disk", "redis", "redis-disk", "handled"]
HANDLED_POLL_S = (0.001, 0.05)


async def reach(site: Site, channel: str, draft: Draft, ack: str, timeout_s: float | None) -> Position:
    """Append, then wait for the level."""
    if ack not in get_args(Ack):
        raise InvalidMessage(f"ack {ack!r:.40}: must be one of {', '.join(get_args(Ack))}")
    body = encode(draft, site.settings.max_message_bytes)
    made = draft.id is None
    if ack == "local":
        return await site.log.append(channel, body, draft.priority, made=made)
    try:
        async with within(timeout_s):
            position = await site.log.append(channel, body, draft.priority, made=made, disk=ack == "disk")
            if ack == "handled":
                await handled(site, position)
            elif ack != "disk":
                position = await site.reach(position, ack)
            return position
    except TimeoutError:
        raise NotReached(f"publish to {channel}: level {ack!r} not reached within {timeout_s} s; the message is "
                         "stored and still goes") from None


async def handled(site: Site, position: Position) -> None:
    """Return when every durable subscription known at the start has settled the record."""
    pause_s, pause_max_s = HANDLED_POLL_S
    while (holders := _holders(site)) is None:
        await asyncio.sleep(pause_max_s)
    waiting = {holder.name for holder in holders if holder.matches(position.lane.channel)}
    if not waiting:
        raise NotReached(f"publish to {position.lane.channel}: no durable subscription listens, so nobody can have "
                         "handled it; the message is stored and still goes")
    while True:
        holders = _holders(site)
        if holders is not None and not any(
            holder.name in waiting and holder.settled(position.lane) < position.seq for holder in holders
        ):
            return
        await asyncio.sleep(pause_s)
        pause_s = min(pause_max_s, pause_s * 1.5)


def _holders(site: Site) -> list[Holder] | None:
    """The durable subscriptions; None while they cannot be read: the message is stored, only the answer has to wait."""
    try:
        return site.holders()
    except OSError:
        return None
