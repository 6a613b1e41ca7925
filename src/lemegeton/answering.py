"""Answering: what a bus does for the requests that its handlers are given.

::

    requester                                         responder
    publish ───────────── channel ──────────────────► handler(message)
       │◄──────────────── reply_to ─── progress ───── message.progress(...)
       │◄──────────────── reply_to ─── complete ───── message.reply(...)      the first of these two counts
       │◄──────────────── reply_to ─── failed ─────── message.fail(...), or its dead letter
    cancelled ─────────── channel ─── request_cancelled ► message.cancelled

Replies are messages like all others, from the responder's own log.  A request is known by where its reply goes and its
correlation id, so whoever may write to a channel can take back no requests but those that he has read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Future
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from lemegeton.errors import BusClosed, LemegetonError, NotReached
from lemegeton.events import Observer, ReplyLost, RequestDropped
from lemegeton.message import REQUEST_CANCELLED, Message, MessageType, Receipt

CANCELLED_MAX = 10_000
"""How many requests that were taken back are remembered: one may come after what takes it back."""
THREAD_WAIT_S = 30.0
"""How long a thread waits for its reply to be stored; `publish_timeout` is usually less."""
DEAD_LETTER = "dead_letter"
"""The category of a request whose handler raised until its attempts were used up."""
_set = msgspec.structs.force_setattr
Publish = Callable[..., Awaitable[Receipt]]
"""`MessageBus.publish`."""
_Key = tuple[str | None, str]


class Answers:
    """The requests that one bus has in its handlers."""

    def __init__(self, publish: Publish, observe: Observer) -> None:
        self._publish = publish
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._requesters: WeakValueDictionary[_Key, Waiting] = WeakValueDictionary()
        self._cancelled: dict[_Key, None] = {}

    def begin(self, message: Message) -> bool:
        """Let a request know its requester; false if there is nothing for the handler in it."""
        key = (message.reply_to, correlation_of(message))
        if message.type == REQUEST_CANCELLED:
            self._cancel(key)
            return False
        if key in self._cancelled:
            self._observe(RequestDropped(message.channel, message.sender, message.id))
            return False
        requester = self._requesters.get(key)
        if requester is None:
            requester = self._requesters[key] = Waiting(self)
        _set(message, "requester", requester)
        return True

    def _cancel(self, key: _Key) -> None:
        self._cancelled[key] = None
        while len(self._cancelled) > CANCELLED_MAX:
            del self._cancelled[next(iter(self._cancelled))]
        requester = self._requesters.get(key)
        if requester is not None:
            requester.cancel()

    async def failed(self, message: Message, error: str) -> None:
        """Tell the requester that its request is a dead letter now; where that cannot be stored it is an event."""
        try:
            await self.say(message, MessageType.FAILED, {"category": DEAD_LETTER, "error": error})
        except LemegetonError as lost:
            self._observe(ReplyLost(message.channel, message.id, str(lost)))

    async def say(self, message: Message, type: str, payload: Any) -> Receipt:
        """Publish an answer, with the priority of its request."""
        assert message.reply_to is not None, "only requests have a requester"
        return await self._publish(message.reply_to, payload, type=type, to=message.sender, priority=message.priority,
                                   correlation_id=correlation_of(message))

    def send(self, said: Coroutine[Any, Any, Receipt]) -> Awaitable[Receipt]:
        """The answer as this thread can use it: to be awaited where a loop runs, done when this returns elsewhere."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return Done(self._wait(said))
        return said if running is self._loop else asyncio.wrap_future(self._pass(said))

    def _wait(self, said: Coroutine[Any, Any, Receipt]) -> Receipt:
        passed = self._pass(said)
        try:
            return passed.result(THREAD_WAIT_S)
        except TimeoutError:
            passed.cancel()
            raise NotReached(f"reply: not stored within {THREAD_WAIT_S} s; it may still go") from None

    def _pass(self, said: Coroutine[Any, Any, Receipt]) -> Future[Receipt]:
        try:
            return asyncio.run_coroutine_threadsafe(said, self._loop)
        except RuntimeError:
            said.close()
            raise BusClosed("reply: the event loop of the bus has ended") from None


class Waiting:
    """The requester of a message, for as long as somebody holds that message; see `message.Requester`."""

    __slots__ = ("__weakref__", "_answers", "_news", "cancelled")

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._news: asyncio.Event | None = None
        self.cancelled = False

    def answer(self, message: Message, type: str, payload: Any) -> Awaitable[Receipt]:
        """See `Message.reply`."""
        return self._answers.send(self._answers.say(message, type, payload))

    def cancel(self) -> None:
        """Nobody waits any more."""
        self.cancelled = True
        if self._news is not None:
            self._news.set()

    async def until_cancelled(self) -> None:
        """See `Message.until_cancelled`."""
        if not self.cancelled:
            self._news = self._news or asyncio.Event()
            await self._news.wait()

    def __deepcopy__(self, _: object) -> Waiting:
        return self

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """A message that was pickled into another process has nobody there to reply through."""
        return type(None), ()


class Done:
    """Something that can be awaited and is there already."""

    __slots__ = ("_receipt",)

    def __init__(self, receipt: Receipt) -> None:
        self._receipt = receipt

    def __await__(self) -> Generator[Any, None, Receipt]:
        return _there(self._receipt).__await__()


async def _there(receipt: Receipt) -> Receipt:
    return receipt


def correlation_of(message: Message) -> str:
    """What a reply to this message carries, so that its requester knows it; a foreign one may have given its id alone."""
    return message.correlation_id or message.id
