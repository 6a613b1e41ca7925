"""A subscription: patterns, a handler, a memory, and the delivery that serves them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from lemegeton.delivery import Delivery
from lemegeton.errors import NameTaken
from lemegeton.events import Observer
from lemegeton.handling import Handler, Handling
from lemegeton.lane import Lane
from lemegeton.message import Message
from lemegeton.retry import Backoff
from lemegeton.site import Memory, Site
from lemegeton.stats import Running, SubscriptionStats
from lemegeton.typed import decoding, is_async

if TYPE_CHECKING:
    from lemegeton.answering import Answers

Start = Literal["new", "earliest"]
UserHandler = Callable[[Any], Any] | Callable[[Any, Message], Any]
"""``async`` or not; what it is given depends on the annotation of its first parameter, see `typed`."""
EPHEMERAL = "(ephemeral)"
NAME_TRIES = 5
NAME_PAUSE_S = 0.02


class Subscription:
    """Open it, serve it, stop it.  ``name`` is None for an ephemeral one, whose place dies with the process.

    ``inner`` is one of the bus itself, for replies: `unsubscribe` passes over it, and of other sites' lanes that it meets
    later, however long a Redis was away, it takes all that there is."""

    def __init__(
        self, site: Site, patterns: Sequence[str], handler: UserHandler, observe: Observer, *, name: str | None,
        start: Start, sender: str, concurrency: int | None = None, answers: Answers | None = None, inner: bool = False
    ) -> None:
        settings = site.settings
        shown = name or EPHEMERAL
        self.name = name
        self.inner = inner
        self.patterns = tuple(patterns)
        call = asynchronous(handler, site.threads)  # refused, if it is, before the name is taken
        self._memory: Memory = site.remember(name, patterns)
        self._handling = Handling(
            site.log, call, self._memory.window,
            Backoff(settings.retry_attempts, settings.retry_delay), observe, name=shown, sender=sender,
            wall_ms=site.wall_ms, bytes_max=settings.max_message_bytes, site=site.site_id, turn=site.turn,
            answers=answers,
        )
        self._delivery = Delivery(
            site.log, self._memory.marks, self._handling, patterns, observe, name=shown, start=start,
            known=self._memory.known, flag_all=self._memory.flag_all, rebooted=self._memory.rebooted,
            poll_s=settings.polling_interval,
            concurrency=concurrency or settings.concurrency, ephemeral=name is None and not inner,
        )
        self._served: asyncio.Task[None] | None = None
        self._stopped = False

    async def open(self, group: asyncio.TaskGroup) -> None:
        """Fix where it begins, then serve it; every message published after this returns is delivered."""
        try:
            await self._delivery.open()
            self._memory.begun()
        except BaseException:
            await self.stop(0.0)
            raise
        self._served = group.create_task(self._delivery.run(group))

    async def stop(self, timeout_s: float, *, forget: bool = False) -> None:
        """Stop serving and let the name go; ``forget`` drops the place as well."""
        if self._stopped:
            return
        self._stopped = True
        await self._delivery.stop(timeout_s)
        if self._served is not None:
            await asyncio.wait([self._served])
        self._handling.closed = True
        self._memory.window.close()
        if forget:
            self._memory.marks.forget()
        else:
            self._memory.marks.close()

    def caught_up(self, lanes: dict[Lane, int]) -> bool:
        """True if every given lane is settled up to its given sequence."""
        return self._delivery.caught_up(lanes)

    def stats(self) -> SubscriptionStats:
        """Counts since it began."""
        counts = self._handling.counts
        return SubscriptionStats(
            self.name or EPHEMERAL, self.patterns, self.name is not None, self._delivery.lanes, counts.handled,
            counts.redelivered, counts.copies, counts.expired, counts.failed, counts.dead, counts.corrupt,
            counts.missing,
        )

    def tick(self) -> None:
        """Once a second: note which handlers are still at the same message."""
        self._delivery.tick()

    def running(self) -> list[Running]:
        """Handlers that have had the same message since the last tick."""
        name = self.name or EPHEMERAL
        return [Running(name, lane.channel, lane.origin, seq, round(seconds, 3))
                for lane, seq, seconds in self._delivery.running()]


async def take_name(make: Callable[[], Subscription]) -> Subscription:
    """Make it; whoever only looks whether a name is held has it for a moment, so a refusal is asked again."""
    for _ in range(NAME_TRIES - 1):
        with suppress(NameTaken):
            return make()
        await asyncio.sleep(NAME_PAUSE_S)
    return make()


def asynchronous(handler: UserHandler, threads: Callable[[], ThreadPoolExecutor]) -> Handler:
    """The handler as a coroutine function: a synchronous one runs in a bounded pool of threads."""
    call = decoding(handler)
    if is_async(call):
        return call

    async def in_thread(message: Message) -> Any:
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(threads(), partial(copy_context().run, call, message))
        return await result if inspect.isawaitable(result) else result

    return in_thread
