"""Assignments: what hub and agents say to each other, as shapes of message payloads.

::

    agent                                    hub
      │ register ──────────────── hub ────►│   once a session; the hub answers registered or refused
      │◄──────────── agent-{name} ── assignment    id "{assignment}:{attempt}"
      │ confirm ──────────────────────────►│   if it may not be mine any more; answered confirmed or revoked
      │ progress … complete | failed ─────►│
      │ heartbeat ────────────────────────►│   from a thread
      │◄─────────────────────────── shutdown
      │ unregister ───────────────────────►│   what it still had goes to others at once

A *session* is one run of an agent.  An assignment is made out to a session; the number of its attempt grows each time
it is handed out, so what a lost session says later is told apart from what the present one says.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from lemegeton.errors import InvalidMessage

ANY = "any"
"""In place of an agent's name: whoever is free."""
HEARTBEAT_S = 30.0
BEATS_MISSED = 3
"""An agent that cannot be looked at is dead after so many heartbeats that did not come."""
TEXT_CHARS_MAX = 2000

REGISTER, REGISTERED, REFUSED, UNREGISTER = "register", "registered", "refused", "unregister"
CONFIRM, CONFIRMED, REVOKED = "confirm", "confirmed", "revoked"
ASSIGN = "assign"
"""A request to the hub from somebody who is neither hub nor agent; the outcome goes to ``replyTo``."""


class AgentState(StrEnum):
    """What an agent is doing."""

    INITIALIZING = "initializing"
    IDLE = "idle"
    WORKING = "working"
    COMPLETING = "completing"
    FAILED = "failed"
    SHUTTING_DOWN = "shutting_down"
    STOPPED = "stopped"


class Category(StrEnum):
    """Why an assignment failed.  The first three may go away by themselves: the hub hands it out again."""

    CONNECTION = "connection"
    TIMEOUT = "timeout"
    RESOURCE = "resource"
    INVALID = "invalid"
    CANCELLED = "cancelled"
    RESULT = "result"
    WORK = "work"
    LOST = "lost"
    EXPIRED = "expired"


RECOVERABLE = frozenset((Category.CONNECTION, Category.TIMEOUT, Category.RESOURCE))
_CATEGORIES: tuple[tuple[type[BaseException], Category], ...] = (
    (TimeoutError, Category.TIMEOUT), (ConnectionError, Category.CONNECTION), (MemoryError, Category.RESOURCE),
    (OSError, Category.RESOURCE), (TypeError, Category.INVALID), (ValueError, Category.INVALID),
    (LookupError, Category.INVALID),
)


def category_of(error: BaseException) -> str:
    """The category an exception of `BaseAgent.work` belongs to."""
    return next((category for kind, category in _CATEGORIES if isinstance(error, kind)), Category.WORK).value


class Assignment(msgspec.Struct, frozen=True):
    """What `BaseAgent.work` is given.  ``attempt`` is above 1 when it was handed out before."""

    id: str
    attempt: int
    payload: Any
    hub: str


# ------------------------------------------------------------------------------------------ payloads


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """Payload of ``register``.  ``durable`` is the place that the agent holds for as long as it lives, on ``site``;
    ``heartbeat`` is the milliseconds between two, ``started`` Unix ms."""

    agent: str
    session: str
    site: str = ""
    durable: str = ""
    pid: int = 0
    host: str = ""
    version: str = ""
    prefetch: int = 1
    heartbeat: int = int(HEARTBEAT_S * 1000)
    started: int = 0


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """Payload of ``heartbeat``; ``lag`` is the ms that the event loop of the agent took, or has taken so far, to
    answer."""

    agent: str
    session: str
    state: str = AgentState.IDLE
    assignment: str = ""
    lag: int = 0


class Leave(msgspec.Struct, frozen=True, kw_only=True):
    """Payload of ``unregister``."""

    agent: str
    session: str


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """Payload of ``assignment``."""

    assignment: str
    attempt: int
    payload: Any
    hub: str = ""
    session: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Payload of ``progress``, ``complete``, ``failed``, ``confirm``, and of the hub's ``confirmed`` and ``revoked``.

    Only the fields of its own type mean something."""

    assignment: str
    attempt: int
    hub: str = ""
    agent: str = ""
    session: str = ""
    result: Any = None
    category: str = Category.WORK
    error: str = ""
    fraction: float = 0.0
    text: str = ""


class Shutdown(msgspec.Struct, frozen=True, kw_only=True):
    """Payload of ``shutdown``, ``registered`` and ``refused``; an empty session means whoever reads it."""

    session: str = ""
    reason: str = ""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """Payload of ``assign``; ``timeout`` in seconds.  The message's id becomes the id of the assignment."""

    payload: Any
    agent: str = ANY
    timeout: float | None = None
    attempts: int | None = None


Shape = TypeVar("Shape", bound=msgspec.Struct)


def parse(payload: Any, shape: type[Shape]) -> Shape:
    """The payload in its shape; `InvalidMessage` says what is wrong with it."""
    try:
        return msgspec.convert(payload if isinstance(payload, Mapping) else {}, shape)
    except msgspec.ValidationError as error:
        raise InvalidMessage(f"payload {payload!r:.80}: not that of a {shape.__name__.lower()}: {error}") from None


def built(shape: msgspec.Struct) -> dict[str, Any]:
    """A shape as the payload to publish; what is in it stays what it is, so that `publish` can refuse it."""
    fields = msgspec.structs.fields(shape)
    return {f.name: value for f in fields if (value := getattr(shape, f.name)) is not f.default or f.required}


# ------------------------------------------------------------------------------------------ what the hub knows


class AgentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An agent as the hub sees it.

    ``presence`` is ``live``, ``dead`` or ``left``; ``open`` how many assignments it has; ``state``, ``assignment`` and
    ``lag_ms`` are what its last heartbeat said and ``seen_s`` the seconds since its last message.
    """

    registration: Registration
    presence: str = "live"
    open: int = 0
    state: str = AgentState.IDLE
    assignment: str = ""
    lag_ms: int = 0
    seen_s: float = 0.0

    @property
    def name(self) -> str:
        """The name of the agent."""
        return self.registration.agent

    @property
    def session(self) -> str:
        """Its present, or last, run."""
        return self.registration.session

    @property
    def live(self) -> bool:
        """True unless it died or left."""
        return self.presence == "live"
