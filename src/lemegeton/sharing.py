"""Sharing: what sites tell each other of their durable subscriptions through a Redis, so that nobody trims too much.

::

    subscriptions                 hash: subscription@site → {"patterns": […], "seen": Unix ms}; one without patterns was dropped
    acks:{message-stream:C}       hash: subscription@site → {lane: settled}

    {home}/redis/remote.json      the last answer, for whoever cleans this home while no Redis is in reach

Pure: bytes in, values out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from lemegeton.channels import compile_glob
from lemegeton.lane import Lane
from lemegeton.logs.origin import site_of
from lemegeton.logs.redis_entries import lane_field
from lemegeton.retention import Holder

NOTHING_KNOWN = 0
STATE_FILE = "redis/remote.json"
"""Where the last answer lies in a home."""


class Shared(msgspec.Struct, frozen=True):
    """A durable subscription as its site describes it."""

    patterns: tuple[str, ...]
    seen: int


class Remote(msgspec.Struct, frozen=True):
    """A durable subscription of another site; settled by channel and lane."""

    name: str
    patterns: tuple[str, ...]
    settled: dict[str, dict[str, int]]
    seen: int = 0


class RemoteState(msgspec.Struct, frozen=True):
    """What the shared Redis said last: how far it took our lanes, and how far other sites settled them."""

    marks: dict[str, dict[str, int]] = {}
    holders: tuple[Remote, ...] = ()

    def accepted(self, lane: Lane) -> int:
        """The last sequence of a lane that the shared Redis took."""
        return self.marks.get(lane.channel, {}).get(lane_field(lane), NOTHING_KNOWN)

    def forgotten(self, everybody: Mapping[str, Shared], oldest_ms: int) -> dict[str, Shared]:
        """The subscriptions that the Redis does not know any more, though nobody dropped them: they are owed what they were.

        Their site may be away, and tells it again when it is back."""
        return {remote.name: Shared(remote.patterns, remote.seen) for remote in self.holders
                if remote.name not in everybody and remote.seen >= oldest_ms}

    def settled(self, name: str, channel: str) -> dict[str, int]:
        """What a subscription of another site had settled in a channel."""
        return next((remote.settled.get(channel, {}) for remote in self.holders if remote.name == name), {})

    def as_holders(self) -> list[Holder]:
        """The subscriptions, as retention asks them."""
        return [Holder(remote.name, matcher(remote.patterns), _settled(remote)) for remote in self.holders]


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """True for a channel that any of the patterns matches."""
    matches = [compile_glob(pattern) for pattern in patterns]
    return lambda channel: any(match(channel) for match in matches)


def _settled(remote: Remote) -> Callable[[Lane], int]:
    return lambda lane: remote.settled.get(lane.channel, {}).get(lane_field(lane), NOTHING_KNOWN)


encode_state = msgspec.json.Encoder().encode
_shared = msgspec.json.Decoder(Shared).decode
_lanes = msgspec.json.Decoder(dict[str, int]).decode
_state = msgspec.json.Decoder(RemoteState).decode


def decode_state(data: bytes) -> RemoteState:
    """The state in the file; nothing is known where it is missing or damaged, so everything is kept."""
    try:
        return _state(data)
    except (msgspec.MsgspecError, ValueError):
        return RemoteState()


def shared_of(answer: Mapping[bytes, bytes], oldest_ms: int) -> tuple[dict[str, Shared], dict[bytes, Shared]]:
    """The subscriptions in the hash, and, by their fields, those that nobody has seen for too long.

    One that cannot be read holds nothing back: it is some other program's."""
    found: dict[str, Shared] = {}
    abandoned: dict[bytes, Shared] = {}
    for field, data in answer.items():
        name = field.decode("utf-8", "replace")
        try:
            shared = _shared(data)
        except (msgspec.MsgspecError, ValueError):
            continue
        if shared.seen < oldest_ms:
            abandoned[field] = shared
        else:
            found[name] = shared
    return found, abandoned


def elsewhere(everybody: Mapping[str, Shared], site: str) -> dict[str, Shared]:
    """The subscriptions of other sites."""
    return {name: shared for name, shared in everybody.items() if _site_of(name) != site}


def _site_of(name: str) -> str:
    return name.rpartition("@")[2]


def acks_of(answer: Mapping[bytes, bytes]) -> dict[str, dict[str, int]]:
    """What each subscription has settled in a channel."""
    found: dict[str, dict[str, int]] = {}
    for field, data in answer.items():
        try:
            found[field.decode("utf-8", "replace")] = _lanes(data)
        except (msgspec.MsgspecError, ValueError):
            continue
    return found


def trim_limits(channel: str, lanes: Iterable[str], everybody: Mapping[str, Shared],
                acks: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """How far each lane of a stream may be trimmed: to what every subscription that listens has settled.

    Those of the lane's own site read it from a file.  A lane that nobody else listens to has no limit."""
    listening = [name for name, shared in everybody.items() if matcher(shared.patterns)(channel)]
    limits: dict[str, int] = {}
    for lane in lanes:
        settled = [acks.get(name, {}).get(lane, 0) for name in listening if _site_of(name) != site_of(lane)]
        if settled:
            limits[lane] = min(settled)
    return limits
