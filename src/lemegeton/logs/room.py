"""Room: publishers wait in the order they came, before they get a number, while a limit is reached."""

from __future__ import annotations

import asyncio
from collections import deque

from lemegeton.errors import BusFull
from lemegeton.events import LimitReached, Observer


class Room:
    """How many bytes all records of the home take, and who waits for fewer.

    ``used`` is what was last counted plus what this process wrote since.  Bounded: a wait ends after ``timeout_s``
    with `BusFull`, which names the subscription in the way.
    """

    def __init__(self, limit: int, timeout_s: float, observe: Observer) -> None:
        self.limit = limit
        self.used = 0
        self.holder = "no subscription: nothing has been cleaned up yet"
        self.waiters: deque[asyncio.Future[None]] = deque()
        self.held = ""
        """What else publishers wait for; empty: nothing."""
        self.queued = 0
        """How many have not had their turn yet; a newcomer stands behind them."""
        self._timeout_s = timeout_s
        self._observe = observe

    @property
    def full(self) -> bool:
        """True if a publisher has to wait, be it only behind others."""
        return self.used >= self.limit or self.queued > 0 or bool(self.held)

    async def wait(self) -> None:
        """Return when it is this publisher's turn and there is room; `BusFull` after the timeout."""
        if self._timeout_s <= 0:
            raise self._refusal()
        if not self.waiters:
            self._observe(LimitReached(self.used, self.limit, self.held or self.holder))
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiters.append(turn)
        self.queued += 1
        try:
            await asyncio.wait_for(turn, self._timeout_s)
        except TimeoutError:
            raise self._refusal() from None
        finally:
            self.queued -= 1
            if turn in self.waiters:
                self.waiters.remove(turn)
            self.admit()

    def _refusal(self) -> BusFull:
        if self.held:
            return BusFull(f"publish: in the way: {self.held}")
        return BusFull(f"publish: {self.used} of {self.limit} bytes (disk_limit) are taken; in the way: {self.holder}")

    def counted(self, used: int, holder: str) -> None:
        """Take a new count; let publishers in if it leaves room."""
        self.used = used
        self.holder = holder
        self.admit()

    def hold(self, cause: str) -> None:
        """Have publishers wait for something else than room; with an empty cause, no more."""
        self.held = cause
        self.admit()

    def admit(self) -> None:
        """Give the first in the queue its turn; it gives the next one its own when it has its number."""
        while self.waiters and self.used < self.limit and not self.held:
            turn = self.waiters.popleft()
            if not turn.done():
                turn.set_result(None)
                return
