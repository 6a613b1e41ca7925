"""The board: what one Redis is told of the mode, for eyes and for programs that know only Redis.

::

    coordination:mode           the mode that the last manager to change went to
    coordination:redis_health   {"up", "latency", "cause", "at", "by"} of the shared Redis, as the last prober saw it
    coordination:history        sorted set of {"from", "to", "reason", "at", "by"}, score ``at``; the newest 100
    coordination:mode_change    published: each change once, as a message of type mode_change that has no origin

A probe is the write of the health: it goes the way that records go, so a replica, a full server or one that still
loads shows itself, and a server that was emptied shows that as well, because the probe gets back what it replaced.
Latency and times are milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from lemegeton.codec import Draft, encode
from lemegeton.errors import LogError, RedisRefused
from lemegeton.events import ModeUntold, Observer
from lemegeton.logs.redis_entries import Keys
from lemegeton.logs.redis_link import Link, answered
from lemegeton.message import MessageType
from lemegeton.mode_rules import CoordinationMode
from lemegeton.within import within

CHANNEL = "coordination:mode_change"
HISTORY_MAX = 100
ANSWER_S = 1.0
"""How long a Redis has for a probe, and for what it is told."""
MESSAGE_BYTES_MAX = 64 * 1024
_UNABLE = frozenset(("READONLY", "OOM", "MISCONF", "LOADING", "MASTERDOWN", "NOREPLICAS", "NOAUTH", "CLUSTERDOWN", "BUSY"))
"""Refusals that a record would meet as well.  Any other is about these names alone: the Redis answered."""


class Health(msgspec.Struct, frozen=True):
    """How the shared Redis was when somebody looked last."""

    up: bool
    latency: float | None
    cause: str
    at: int
    by: str


class Transition(msgspec.Struct, frozen=True, rename={"old": "from", "new": "to"}):
    """One change of the mode: ``at`` is Unix ms, ``by`` the bus and site it was noticed at."""

    old: str
    new: str
    reason: str
    at: int
    by: str


@dataclass(frozen=True, slots=True)
class Answer:
    """How a probe went, and how long it took."""

    good: bool
    cause: str = ""
    latency_s: float | None = None


class Board:
    """See the module.  One manager's hand on one Redis; errors are answers or events, none is raised."""

    def __init__(self, link: Link, keys: Keys, sender: str, life: str, observe: Observer) -> None:
        self.link = link
        self.answer: Answer | None = None
        """How the last probe went; None before the first since the link came up."""
        self._keys = keys
        self._sender = sender
        self._life = life
        self._observe = observe
        self._blank = True
        self._published = 0
        self._complained = False

    def changed(self, up: bool) -> None:
        """The link came up or went down: what the Redis knew before may be gone."""
        self.answer = None
        self._blank = True
        if up:
            self._complained = False

    async def probe(self, health: Health) -> Answer:
        """Ask whether it takes a record; bounded."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with within(ANSWER_S):
                before = await self.link.call("GETSET", self._keys.health, msgspec.json.encode(health))
            self._blank = self._blank or before is None
            self.answer = Answer(True, "", loop.time() - began)
        except TimeoutError:
            self.answer = Answer(False, f"no answer within {ANSWER_S} s")
        except RedisRefused as error:
            self._complain(error)
            self.answer = Answer(error.code not in _UNABLE, str(error), loop.time() - began)
        except LogError as error:
            self.answer = Answer(False, str(error))
        return self.answer

    async def tell(self, mode: CoordinationMode, transitions: Sequence[Transition], changes: int) -> None:
        """Have it know the mode and the last ``transitions``, of which there were ``changes`` in all.

        Each is published whenever the Redis can be told, again if the answer did not come, but always under the same
        id.  Nothing is sent while it knows everything."""
        if not self.link.up or not (changes > self._published or self._blank):
            return
        first = changes - len(transitions) + 1
        news = [(number, each) for number, each in enumerate(transitions, first) if number > self._published]
        try:
            async with within(ANSWER_S):
                await self._write(mode, transitions if self._blank else [each for _, each in news], news)
        except RedisRefused as error:
            self._complain(error)  # asking again would be refused again
        except (LogError, TimeoutError):
            return
        self._blank = False
        self._published = changes

    async def _write(
        self, mode: CoordinationMode, known: Sequence[Transition], news: Sequence[tuple[int, Transition]]
    ) -> None:
        keys = self._keys
        scores = [part for each in known for part in (each.at, msgspec.json.encode(each))]
        commands: list[tuple[bytes | str | int, ...]] = [("SET", keys.mode, mode.value)]
        if scores:
            commands += [("ZADD", keys.history, *scores), ("ZREMRANGEBYRANK", keys.history, 0, -1 - HISTORY_MAX)]
        commands += [("PUBLISH", keys.channel(CHANNEL), self._message(*each)) for each in news]
        answers = await asyncio.gather(*(self.link.call(*command) for command in commands), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    def _message(self, number: int, change: Transition) -> bytes:
        payload: dict[str, Any] = msgspec.to_builtins(change)
        return encode(Draft(change.at, MessageType.MODE_CHANGE.value, self._sender, payload,
                            id=f"mode:{self._life}:{number}"), MESSAGE_BYTES_MAX)

    def _complain(self, error: RedisRefused) -> None:
        """Once while it is up: it will say the same every time."""
        if error.code not in _UNABLE and not self._complained:
            self._complained = True
            self._observe(ModeUntold(self.link.name, str(error)))


async def read_history(link: Link, keys: Keys, count: int) -> list[Transition]:
    """The newest ``count`` transitions a Redis was told of, oldest first; what is none is left out.

    `RedisLost` and `RedisRefused` say why they cannot be had."""
    asked = link.call("ZRANGE", keys.history, 0, count - 1, "REV")
    answer = await answered(asked, ANSWER_S, f"redis ({link.name})")
    found: list[Transition] = []
    for data in reversed(answer):
        with suppress(msgspec.MsgspecError, ValueError):
            found.append(msgspec.json.decode(data, type=Transition))
    return found
