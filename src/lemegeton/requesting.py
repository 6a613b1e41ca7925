"""Requesting: what a bus does for those who wait for replies.

Replies come to an *inbox*, a channel that is read from before the first request to it is published.  There are two::

    reply:{origin}         of this process, which alone holds the origin.  Ephemeral: what nobody read ages away; the next
                           process of this name has the same one, so there are never more of them than origins
    reply:{name}~{site}    for requests with an id.  Durable: a reply waits there for whoever asks again under that id

A request is known by its correlation id.  The first reply counts; whatever comes later is an event and nothing else.
Its time to live is its timeout, so that nobody begins to work for a requester who has stopped waiting; and one who stops
waiting says so, for those who have begun.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from lemegeton.answering import Publish
from lemegeton.channels import check_name, encode_name
from lemegeton.errors import BusClosed, InvalidMessage, LemegetonError, LogError, NoReply, RequestFailed
from lemegeton.events import Observer, ObserverFailed, ReplyIgnored
from lemegeton.history import newest
from lemegeton.logs.origin import site_of
from lemegeton.logs.segments import log_error
from lemegeton.message import REQUEST_CANCELLED, Message, MessagePriority, MessageType
from lemegeton.replies import ANSWERED, KEPT_MAX, LATE, UNKNOWN, Kept, Open, Pending, Progress
from lemegeton.site import Site
from lemegeton.subscription import Subscription
from lemegeton.within import within

TIMEOUT_MAX_S = 365 * 86_400.0
CANCEL_WAIT_S = 1.0
"""How long a requester who stops waiting takes at the most to say so."""
CANCEL_TTL_S = 60.0
"""Whoever has not heard of it by then is told by the time to live of the request, if at all."""
INBOX = "reply:"
TEXT_CHARS_MAX = 2000
Begin = Callable[[Callable[[], Subscription]], Awaitable[object]]
"""Serve a subscription of the bus itself."""


class Requests:
    """The requests of one bus."""

    def __init__(self, name: str, site: Site, publish: Publish, begin: Begin, observe: Observer) -> None:
        self._name = name
        self._site = site
        self._publish = publish
        self._begin = begin
        self._observe = observe
        self._token = site.token(8)
        self._asked = 0
        self._opening = asyncio.Lock()
        self._inboxes: dict[bool, str] = {}
        self._durable_inbox = ""
        self._open = Open()
        self._kept = Kept()

    async def ask(
        self, channel: str, payload: Any, timeout_s: float, progress: Progress | None, ident: str | None,
        fields: Mapping[str, Any]
    ) -> Message:
        """See `MessageBus.request`."""
        _check(channel, timeout_s, ident, fields)
        ttl_s = timeout_s if fields.get("ttl") is None else fields["ttl"]
        try:
            async with within(timeout_s):
                reply = await self._reply(channel, payload, progress, ident, {**fields, "ttl": ttl_s})
        except TimeoutError:
            again = "" if ident is None else f"; ask again with the id {ident!r}"
            raise NoReply(f"request to {channel}: no reply within {timeout_s} s; it may have been handled{again}") from None
        if reply.type == MessageType.FAILED:
            raise _failure(channel, reply)
        return reply

    async def _reply(
        self, channel: str, payload: Any, progress: Progress | None, ident: str | None, fields: Mapping[str, Any]
    ) -> Message:
        reply_to = await self._inbox(durable=ident is not None)
        if ident is not None and (kept := await self._find(ident, reply_to)) is not None:
            return kept
        self._asked += 1
        pending = self._open.enter(ident if ident is not None else f"{self._token}-{self._asked:x}", progress)
        try:
            await self._publish(channel, payload, id=ident, reply_to=reply_to, correlation_id=pending.correlation, **fields)
            await asyncio.wait((pending.reply,))
        except asyncio.CancelledError:
            if ident is None and not pending.reply.done():  # one with an id may be asked for again
                await self._cancel(channel, reply_to, pending, fields)
            raise
        finally:
            self._open.leave(pending, progress)
        reply = pending.reply.result()
        if reply is None:
            if ident is None:
                await self._cancel(channel, reply_to, pending, fields)
            closed = BusClosed(f"request to {channel}: the bus {self._name} ended before a reply; it may have been handled")
            closed.definite = False
            raise closed
        return reply

    async def _cancel(self, channel: str, reply_to: str, pending: Pending, fields: Mapping[str, Any]) -> None:
        """Say that nobody waits any more, in a lane where this does not wait behind the request."""
        urgent, ttl_s = fields.get("priority") == MessagePriority.CRITICAL, fields["ttl"]
        with suppress(LemegetonError, TimeoutError):
            async with within(CANCEL_WAIT_S):
                await self._publish(
                    channel, None, type=REQUEST_CANCELLED, to=fields.get("to"), reply_to=reply_to,
                    correlation_id=pending.correlation, ttl=max(CANCEL_TTL_S, ttl_s),
                    priority=MessagePriority.HIGH if urgent else MessagePriority.CRITICAL)

    def close(self) -> None:
        """No reply is heard any more: everybody who waits gets `BusClosed`."""
        self._open.close()

    # ------------------------------------------------------------------------------------------ the inboxes

    async def _inbox(self, *, durable: bool) -> str:
        """The channel that replies come to; it is read when this returns."""
        if durable in self._inboxes:
            return self._inboxes[durable]
        async with self._opening:
            if durable not in self._inboxes:
                try:
                    self._inboxes[durable] = await (self._open_durable() if durable else self._open_own())
                except LemegetonError:
                    raise
                except OSError as error:
                    raise log_error("opening the inbox", error) from error
            return self._inboxes[durable]

    async def _open_own(self) -> str:
        channel = INBOX + await self._site.take_origin()
        await self._begin(partial(self._subscription, channel, self._on_reply, name=None, start="new"))
        return channel

    async def _open_durable(self) -> str:
        """The one that a later process finds again, with what came meanwhile and what an earlier one has read."""
        name = check_name(f"reply-{self._name}", "the durable subscription of requests with an id")
        channel = f"{INBOX}{encode_name(self._name)}~{site_of(await self._site.take_origin())}"
        if not self._durable_inbox:
            await self._begin(partial(self._subscription, channel, self._on_durable_reply, name=name, start="earliest"))
            self._durable_inbox = channel
        await self._recall(channel)
        return channel

    async def _recall(self, channel: str) -> None:
        """Look up what an earlier process has read.  It is settled, so it is there for as long as retention keeps it."""
        with suppress(LogError, OSError):
            found = await newest(self._site.log, channel, KEPT_MAX)
            self._kept.put_before(message for message in found if message.type != MessageType.PROGRESS)

    async def _find(self, ident: str, channel: str) -> Message | None:
        """The reply to an earlier request with this id; looked up once more if one has waited for it in vain."""
        if self._kept.get(ident) is None and self._open.why_not(ident) == LATE:
            await self._recall(channel)
        return self._kept.get(ident)

    def _subscription(self, channel: str, handler: Callable[[Message], Awaitable[None]], **how: Any) -> Subscription:
        return Subscription(self._site, [channel], handler, self._observe, sender=self._name, inner=True, **how)

    async def _on_reply(self, message: Message) -> None:
        correlation = message.correlation_id or ""
        pending = self._open.find(correlation)
        if pending is None:
            self._ignore(message, self._open.why_not(correlation))
        elif message.type == MessageType.PROGRESS:
            self._tell(pending, message)
        else:
            pending.reply.set_result(message)

    async def _on_durable_reply(self, message: Message) -> None:
        """Somebody may ask for it later: that nobody waits now is no reason to say anything."""
        if not message.correlation_id:
            self._ignore(message, UNKNOWN)
        elif message.type != MessageType.PROGRESS and not self._kept.put(message):
            self._ignore(message, ANSWERED)
        elif self._open.find(message.correlation_id) is not None:
            await self._on_reply(message)

    def _tell(self, pending: Pending, message: Message) -> None:
        for progress in list(pending.progress):
            try:
                progress(message)
            except Exception as error:
                self._observe(ObserverFailed("progress", f"{type(error).__name__}: {error}"))

    def _ignore(self, message: Message, cause: str) -> None:
        self._observe(ReplyIgnored(message.channel, message.sender, message.correlation_id or "", cause))


def _check(channel: str, timeout_s: object, ident: object, fields: Mapping[str, Any]) -> None:
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s <= TIMEOUT_MAX_S:
        raise InvalidMessage(f"request to {channel!r:.80}: timeout {timeout_s!r:.40}: must be seconds above 0, at most a year")
    if ident is not None and not isinstance(ident, str):
        raise InvalidMessage(f"request to {channel!r:.80}: id {ident!r:.80}: must be a text")
    if fields.get("type") == REQUEST_CANCELLED:
        raise InvalidMessage(f"request to {channel!r:.80}: type {REQUEST_CANCELLED!r} takes requests back; use another")


def _failure(channel: str, reply: Message) -> RequestFailed:
    """The error in a reply; whoever sent it may have put anything there."""
    said = reply.payload if isinstance(reply.payload, dict) else {}
    category, error = str(said.get("category") or "failed"), said.get("error") or reply.payload
    return RequestFailed(f"request to {channel}: {reply.sender}: {category}: {error}"[:TEXT_CHARS_MAX], category=category,
                         payload=reply.payload)
