"""The ears: subscriptions of this process to channels and patterns, so that each message is heard once.

Two patterns may match one channel, and a channel may be subscribed to by itself as well; the server then sends a message
as often.  Of a record that would be a copy; of a foreign message nobody could tell that it is not a second one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lemegeton.channels import compile_glob
from lemegeton.logs.redis_entries import Keys
from lemegeton.logs.redis_link import Link

OnDoorbell = Callable[[str, bytes], None]
"""``on_doorbell(channel, data)``"""


class Ears:
    """Calls ``on_doorbell`` with what is published to any channel that is wanted."""

    def __init__(self, link: Link, keys: Keys, on_doorbell: OnDoorbell) -> None:
        self._link = link
        self._keys = keys
        self._on_doorbell = on_doorbell
        self._wanted: set[str] = set()
        self._channels: dict[str, Callable[[], None]] = {}
        self._globs: dict[str, Glob] = {}

    def want(self, channel: str) -> None:
        """Hear a channel."""
        self._wanted.add(channel)
        self._hear(channel)

    def leave(self, channel: str) -> None:
        """Hear it no more, unless by a pattern."""
        self._wanted.discard(channel)
        if channel in self._channels:
            self._channels.pop(channel)()

    def _hear(self, channel: str) -> None:
        if channel not in self._channels and self._glob_of(channel) is None:
            self._channels[channel] = self._link.hear(
                self._keys.channel(channel), lambda _, data: self._on_doorbell(channel, data))

    def want_globs(self, globs: Sequence[str]) -> Callable[[], None]:
        """Hear every channel that one of the patterns matches; returns what ends that."""
        for text in globs:
            glob = self._globs.setdefault(text, Glob(text))
            glob.users += 1
            if glob.users == 1:
                glob.end = self._link.hear_pattern(self._keys.channel(text), self._ear_of(glob))

        def end() -> None:
            for text in globs:
                self._end_glob(text)
            for channel in self._wanted:
                self._hear(channel)

        return end

    def _end_glob(self, text: str) -> None:
        glob = self._globs.get(text)
        if glob is not None:
            glob.users -= 1
            if not glob.users:
                del self._globs[text]
                glob.end()

    def _ear_of(self, glob: Glob) -> Callable[[str, bytes], None]:
        def ear(published: str, data: bytes) -> None:
            channel = self._keys.plain(published)
            if channel not in self._channels and self._glob_of(channel) is glob:
                self._on_doorbell(channel, data)

        return ear

    def _glob_of(self, channel: str) -> Glob | None:
        """The first pattern that brings a channel."""
        return next((glob for glob in self._globs.values() if glob.matches(channel)), None)

    def close(self) -> None:
        """Hear nothing any more."""
        for end in [*self._channels.values(), *(glob.end for glob in self._globs.values())]:
            end()
        self._channels.clear()
        self._globs.clear()


class Glob:
    """A pattern that is heard, and how many want it."""

    def __init__(self, text: str) -> None:
        self.matches = compile_glob(text)
        self.users = 0
        self.end: Callable[[], None] = lambda: None
