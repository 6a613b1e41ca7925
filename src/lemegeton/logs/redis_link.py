"""The link: one Redis, kept connected, and what everybody in this process asks of it.

Two connections: commands go through one, in order; a subscriber's connection hears.  They live and die together, so
that whoever is told of a new `up` knows that both are new, and looks for what was missed (a reconnect tells nobody of
the messages it lost).  Nothing is sent again by itself: an answer that did not come means that it may have happened.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from lemegeton.errors import InvalidSetting, LogError, RedisLost, RedisRefused
from lemegeton.events import Observer, RedisDown, RedisUp
from lemegeton.seams import Dial, Packed, Wire
from lemegeton.within import within

CHECK_S = 1.0
"""How often both connections are asked whether they live."""
CHECKS_MISSED_MAX = 2
"""So many checks without a sign of life end the link.  Counted, not timed: after a sleep of this process the answers
that came meanwhile are read before the next check."""
AGAIN_S = (0.05, 1.0)
"""The first and the longest wait between two attempts to connect; doubled in between."""

Ear = Callable[[str, bytes], None]
"""``ear(channel, data)``: a message that somebody published."""


class Script:
    """A Lua script and the name its server knows it by."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Link:
    """See the module.  ``run`` keeps it; everything else may be called at any time and never waits for a connection."""

    def __init__(self, name: str, url: str, dial: Dial, observe: Observer) -> None:
        self.name = name
        self.up = False
        self.cause = "not tried yet"
        self._tried = asyncio.Event()
        self._url = url
        self._dial = dial
        self._observe = observe
        self._commands: Wire | None = None
        self._hearing: Wire | None = None
        self._ears: dict[str, list[Ear]] = {}
        self._pattern_ears: dict[str, list[Ear]] = {}
        self._on_change: list[Callable[[bool], None]] = []
        self._lost = asyncio.Event()
        self._closing = asyncio.Event()
        self.again_s = AGAIN_S

    # ------------------------------------------------------------------------------------------ life

    async def run(self) -> None:
        """Connect, stay connected, connect again, until `close`."""
        wait_s, longest_s = self.again_s
        try:
            while not self._closing.is_set():
                lasted = await self._once()
                wait_s = self.again_s[0] if lasted else wait_s
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), wait_s)
                wait_s = min(longest_s, wait_s * 2)
        finally:
            self._end("closed")

    async def _once(self) -> bool:
        """One connection, from its beginning to its end; false if it did not last for a check."""
        try:
            await self._connect()
        except (OSError, LogError, InvalidSetting) as error:
            self._end(str(error) or type(error).__name__)
            if not self._tried.is_set() and not self._closing.is_set():
                self._observe(RedisDown(self.name, self.cause))
            self._tried.set()
            return False
        self._change(True)
        self._tried.set()
        checks = await self._watch()
        self._change(False)
        return checks > 1

    async def _connect(self) -> None:
        self._lost.clear()
        self._hearing = await self._dial(self._url, self._on_heard, self._on_lost)
        if self._ears:
            self._hearing.send("SUBSCRIBE", *self._ears)
        if self._pattern_ears:
            self._hearing.send("PSUBSCRIBE", *self._pattern_ears)
        self._commands = await self._dial(self._url, None, self._on_lost)
        wait_s = CHECK_S * CHECKS_MISSED_MAX
        try:
            async with within(wait_s):
                await self._commands.call("PING")
        except TimeoutError:
            raise OSError(f"redis ({self.name}): connected, but no answer within {wait_s} s") from None
        if self._lost.is_set():  # what was refused to hear, was refused before this answer: it is no link
            raise RedisLost(self.cause)

    def _on_lost(self, cause: str) -> None:
        self.cause = cause
        self._lost.set()

    async def _watch(self) -> int:
        """Return when it is lost or closed, with the number of checks; a connection that is silent is lost."""
        missed = checks = 0
        while not self._lost.is_set() and not self._closing.is_set():
            commands, hearing = self._commands, self._hearing
            assert commands is not None, "a link that is up has a connection for commands"
            assert hearing is not None, "and one that hears"
            missed = missed + 1 if commands.silent or hearing.silent else 0
            if missed > CHECKS_MISSED_MAX:
                self._on_lost(f"no answer for {missed} checks of {CHECK_S} s")
                break
            checks += 1
            if not commands.silent:
                _unheard(commands.call("PING"))
            if not hearing.silent:
                hearing.send("PING")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), CHECK_S)
        self._end(self.cause)
        return checks

    def _change(self, up: bool) -> None:
        self.up = up
        if not self._closing.is_set():
            self._observe(RedisUp(self.name) if up else RedisDown(self.name, self.cause))
        for call in list(self._on_change):
            call(up)

    def _end(self, cause: str) -> None:
        self.up = False
        self.cause = cause
        for wire in (self._commands, self._hearing):
            if wire is not None:
                wire.close()
        self._commands = self._hearing = None

    async def tried(self) -> None:
        """Return when the first attempt to connect has ended, well or badly."""
        await self._tried.wait()

    def close(self) -> None:
        """Have `run` return."""
        self.cause = "closed"
        self._closing.set()
        self._lost.set()

    def on_change(self, call: Callable[[bool], None]) -> Callable[[], None]:
        """Call when it came up or went down; returns what ends that."""
        self._on_change.append(call)
        return lambda: self._on_change.remove(call) if call in self._on_change else None

    # ------------------------------------------------------------------------------------------ asking

    def call(self, *arguments: bytes | str | int, packed: Packed | None = None) -> Awaitable[Any]:
        """Send a command now; `RedisLost` (definite: nothing was sent) while it is down."""
        if self._commands is None or not self.up:
            raise RedisLost(f"redis ({self.name}): {self.cause}", definite=True)
        return self._commands.call(*arguments) if packed is None else self._commands.call(*arguments, packed=packed)

    async def script(
        self, script: Script, keys: Sequence[str], *arguments: bytes | str | int, packed: Packed | None = None
    ) -> Any:
        """Run a script; a server that does not know it (it forgot, it is another one) is given its text."""
        try:
            return await self.call("EVALSHA", script.sha, len(keys), *keys, *arguments, packed=packed)
        except RedisRefused as error:
            if error.code != "NOSCRIPT":
                raise
        return await self.call("EVAL", script.text, len(keys), *keys, *arguments, packed=packed)

    # ------------------------------------------------------------------------------------------ hearing

    def hear(self, channel: str, ear: Ear) -> Callable[[], None]:
        """Hear what is published to a channel, over reconnects; returns what ends it.  A hint: nobody repeats it."""
        return self._add("SUBSCRIBE", self._ears, channel, ear)

    def hear_pattern(self, pattern: str, ear: Ear) -> Callable[[], None]:
        """`hear` for every channel that matches a glob."""
        return self._add("PSUBSCRIBE", self._pattern_ears, pattern, ear)

    def _add(self, command: str, ears: dict[str, list[Ear]], what: str, ear: Ear) -> Callable[[], None]:
        heard = ears.setdefault(what, [])
        heard.append(ear)
        if len(heard) == 1 and self._hearing is not None:
            self._hearing.send(command, what)

        def end() -> None:
            if ear not in heard:
                return
            heard.remove(ear)
            if not heard and ears.pop(what, None) is not None and self._hearing is not None:
                self._hearing.send(command.replace("SUB", "UNSUB"), what)

        return end

    def _on_heard(self, answer: Any) -> None:
        if isinstance(answer, RedisRefused):  # it may not subscribe
            self._on_lost(str(answer))
        if not isinstance(answer, list):
            return
        if answer[0] == b"message":
            channel = answer[1].decode("utf-8", "replace")
            for ear in tuple(self._ears.get(channel, ())):
                ear(channel, answer[2])
        elif answer[0] == b"pmessage":
            channel = answer[2].decode("utf-8", "replace")
            for ear in tuple(self._pattern_ears.get(answer[1].decode("utf-8", "replace"), ())):
                ear(channel, answer[3])


def _unheard(answer: Awaitable[Any]) -> None:
    """Nobody waits for this answer; that it comes is what counts."""
    asyncio.ensure_future(answer).add_done_callback(lambda done: done.cancelled() or done.exception())


async def answered(asked: Awaitable[Any], wait_s: float, where: str) -> Any:
    """The answer, or `RedisLost` that says where none came within ``wait_s``."""
    try:
        async with within(wait_s):
            return await asked
    except TimeoutError:
        raise RedisLost(f"{where}: no answer within {wait_s} s") from None


def pairs(answer: Any) -> dict[bytes, bytes]:
    """A hash as either version of the protocol answers it."""
    return answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))
