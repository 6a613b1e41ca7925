"""The hand-over behind `MessageBus.stream`: a handler on one side, an iterator on the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from lemegeton.message import Message


class Hand:
    """Passes one message at a time; `give` returns, and so settles it, when the next one is asked for."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._full = asyncio.Event()
        self._message: Message | None = None
        self._taken: asyncio.Future[None] | None = None

    async def give(self, message: Message) -> None:
        """The handler: wait for the turn, hand over, wait until it was used."""
        async with self._turn:
            self._taken = asyncio.get_running_loop().create_future()
            self._message = message
            self._full.set()
            try:
                await self._taken
            finally:
                self._full.clear()
                self._message = None

    async def take(self) -> AsyncGenerator[Message, None]:
        """The iterator: asking for the next message settles the one before."""
        while True:
            await self._full.wait()
            message, taken = self._message, self._taken
            assert message is not None, "a full hand holds a message"
            assert taken is not None, "and somebody waits for it to be taken"
            self._full.clear()
            yield message
            if not taken.done():
                taken.set_result(None)
