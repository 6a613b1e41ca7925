"""``ack="handled"``: when every durable subscription of a site has settled a record."""

from __future__ import annotations

import asyncio

from lemegeton.errors import NotReached
from lemegeton.logs.base import Position
from lemegeton.retention import Holder
from lemegeton.site import Site

HANDLED_POLL_S = (0.001, 0.05)


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
