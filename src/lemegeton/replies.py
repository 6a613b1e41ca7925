"""Replies as their requester holds them: who waits for which, how those ended that nobody waits for, and what is kept.

No clock and no I/O: `requesting` has both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from lemegeton.errors import BusFull
from lemegeton.message import Message

REQUESTS_MAX = 10_000
"""How many requests of one bus may wait at a time."""
ENDED_MAX = 10_000
"""Of how many requests it is remembered how they ended, to tell a late reply from one that nobody asked for."""
KEPT_MAX = 1000
"""How many replies to requests with an id are kept for whoever asks again."""
KEPT_BYTES_MAX = 16 * 1024 * 1024
ANSWERED = "another one came before it"
LATE = "nobody waited any more"
UNKNOWN = "nobody here asked for it"
Progress = Callable[[Message], None]


class Pending:
    """One request and everybody here who waits for its reply."""

    __slots__ = ("correlation", "progress", "reply", "waiting")

    def __init__(self, correlation: str) -> None:
        self.correlation = correlation
        self.reply: asyncio.Future[Message | None] = asyncio.get_running_loop().create_future()
        """None: it will not be heard, for the bus has ended."""
        self.progress: list[Progress] = []
        self.waiting = 0


class Open:
    """The requests that wait for their reply, by correlation id."""

    def __init__(self) -> None:
        self._pending: dict[str, Pending] = {}
        self._ended: dict[str, str] = {}

    def enter(self, correlation: str, progress: Progress | None) -> Pending:
        """Wait from now on; `BusFull` if too many do.  Whoever asks the same waits for the same reply."""
        pending = self._pending.get(correlation)
        if pending is None:
            if len(self._pending) >= REQUESTS_MAX:
                raise BusFull(f"request: {REQUESTS_MAX} wait for their replies, the limit; wait for some to end")
            pending = self._pending[correlation] = Pending(correlation)
        pending.waiting += 1
        if progress is not None:
            pending.progress.append(progress)
        return pending

    def leave(self, pending: Pending, progress: Progress | None) -> None:
        """One of those who wait for it does not any more."""
        pending.waiting -= 1
        if progress is not None:
            pending.progress.remove(progress)
        if pending.waiting:
            return
        del self._pending[pending.correlation]
        self._ended[pending.correlation] = ANSWERED if pending.reply.done() else LATE
        while len(self._ended) > ENDED_MAX:
            del self._ended[next(iter(self._ended))]

    def find(self, correlation: str) -> Pending | None:
        """The request that this reply belongs to, if it has none yet."""
        pending = self._pending.get(correlation)
        return None if pending is None or pending.reply.done() else pending

    def why_not(self, correlation: str) -> str:
        """Why nobody waits for this reply."""
        return ANSWERED if correlation in self._pending else self._ended.get(correlation, UNKNOWN)

    def close(self) -> None:
        """Tell everybody that no reply will be heard."""
        for pending in self._pending.values():
            if not pending.reply.done():
                pending.reply.set_result(None)


class Kept:
    """The first reply to each request with an id, for whoever asks again; the oldest go where they are too many."""

    def __init__(self) -> None:
        self._replies: dict[str, Message] = {}
        self._bytes = 0

    def get(self, correlation: str) -> Message | None:
        """The reply, if it came and is still kept."""
        return self._replies.get(correlation)

    def put(self, reply: Message) -> bool:
        """Keep it; false if another one came before it."""
        first = self._replies.setdefault(reply.correlation_id or "", reply)
        if first is not reply:
            return (first.origin, first.inc, first.seq) == (reply.origin, reply.inc, reply.seq)
        self._bytes += len(reply.raw)
        while len(self._replies) > KEPT_MAX or (self._bytes > KEPT_BYTES_MAX and len(self._replies) > 1):
            self._bytes -= len(self._replies.pop(next(iter(self._replies))).raw)
        return True

    def put_before(self, earlier: Iterable[Message]) -> None:
        """Keep what came in an earlier life: it came before everything that is here."""
        since, self._replies, self._bytes = self._replies, {}, 0
        for reply in (*earlier, *since.values()):
            self.put(reply)
