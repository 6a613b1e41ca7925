"""The message as handlers see it, and the words for its parts."""

from __future__ import annotations

from collections.abc import Awaitable
from enum import IntEnum, StrEnum
from typing import Any, Protocol, runtime_checkable

import msgspec

from lemegeton.errors import InvalidMessage
from lemegeton.lane import Lane, made_id


class MessageType(StrEnum):
    """The types of the original plan; any other text is a type as well."""

    ASSIGNMENT = "assignment"
    PROGRESS = "progress"
    COMPLETE = "complete"
    FAILED = "failed"
    HEARTBEAT = "heartbeat"
    MODE_CHANGE = "mode_change"
    SHUTDOWN = "shutdown"
    CUSTOM = "custom"


class MessagePriority(IntEnum):
    """Four levels; each has lanes of its own, so CRITICAL never waits behind LOW."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


REQUEST_CANCELLED = "request_cancelled"
"""The type of a message that takes a request back; handlers never see it."""


@runtime_checkable
class Requester(Protocol):
    """Who waits for the reply to a message."""

    cancelled: bool

    def answer(self, message: Message, type: str, payload: Any) -> Awaitable[Receipt]: ...
    async def until_cancelled(self) -> None: ...


_WIRE_NAMES = {"sender": "from", "correlation_id": "correlationId", "reply_to": "replyTo"}
# What delivery adds has names that no sender would use: a field "attempt" of a foreign message stays what it was.
_OURS = {name: f"~lemegeton.{name}" for name in ("channel", "redelivered", "attempt", "raw", "requester")}


class Message(msgspec.Struct, frozen=True, kw_only=True, rename={**_WIRE_NAMES, **_OURS}):
    """One message, inert: it knows where it came from, who waits for a reply, and nothing about how it is settled.

    ``timestamp`` and ``ttl`` are milliseconds (Unix, and from the timestamp on).  ``redelivered`` is true only if an
    earlier process may have handled this message already; ``attempt`` counts the calls within this process from 1.
    ``origin``, ``inc`` and ``seq`` are its position; empty and 0 for a foreign message that has none yet.
    ``after`` names the record of another origin that is settled first (origin, incarnation, sequence).

    One that has a ``reply_to`` is a request: `reply`, `progress` and `fail` answer it, in a coroutine to be awaited, in a
    thread (a handler that is a plain function) done when they return.  The first `reply` or `fail` counts.
    """

    id: str = ""
    timestamp: int
    type: str
    sender: str
    payload: Any
    to: str | None = None
    priority: int = 1
    ttl: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    headers: dict[str, str] = {}
    after: tuple[str, int, int] | None = None
    origin: str = ""
    inc: int = 0
    seq: int = 0
    channel: str = ""
    redelivered: bool = False
    attempt: int = 1
    raw: bytes = b""
    requester: Requester | None = None

    def reply(self, payload: Any = None, *, type: str = MessageType.COMPLETE) -> Awaitable[Receipt]:
        """Publish the answer to this request: what its `MessageBus.request` returns.

        What `MessageBus.publish` raises comes from here as well, and `InvalidMessage` if this is no request that a
        handler, or a stream, was given."""
        return self._requester().answer(self, type, payload)

    def progress(self, payload: Any = None) -> Awaitable[Receipt]:
        """Publish how far this request is; its requester goes on waiting."""
        return self._requester().answer(self, MessageType.PROGRESS, payload)

    def fail(self, error: str, *, category: str = "failed") -> Awaitable[Receipt]:
        """Answer that there is no answer: `RequestFailed` at the requester.  No retry, no dead letter."""
        return self._requester().answer(self, MessageType.FAILED, {"category": category, "error": error})

    @property
    def cancelled(self) -> bool:
        """True once the requester has said that nobody waits any more: it was cancelled, or its timeout passed."""
        return self.requester is not None and self.requester.cancelled

    async def until_cancelled(self) -> None:
        """Return when `cancelled` becomes true."""
        await self._requester().until_cancelled()

    def _requester(self) -> Requester:
        if self.requester is None:
            why = "it names no reply_to" if self.reply_to is None else "only one that a handler was given can be answered"
            raise InvalidMessage(f"reply to message {self.id!r:.80} of {self.sender!r:.80}: {why}")
        return self.requester

    def expired(self, now_ms: int) -> bool:
        """True once the time to live has passed, counted from the sender's stamp."""
        return self.ttl is not None and self.timestamp + self.ttl < now_ms

    @property
    def unknown(self) -> dict[str, Any]:
        """The fields of the wire JSON that this version does not know; they are kept, not understood.

        `InvalidMessage` if one of them is a value that cannot be read, such as 1e400: decoding passes over it.
        """
        try:
            fields: dict[str, Any] = msgspec.json.decode(self.raw) if self.raw else {}
        except (msgspec.MsgspecError, ValueError) as error:
            raise InvalidMessage(f"message {self.id!r}: a field that is not known cannot be read: {error}") from None
        return {key: value for key, value in fields.items() if key not in WIRE_FIELDS}


WIRE_FIELDS = frozenset(f.encode_name for f in msgspec.structs.fields(Message) if f.name not in _OURS)


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """What `publish` acknowledged: the position of the message and the level it reached.

    ``level`` is ``"local"``, ``"disk"`` or ``"handled"``.
    """

    lane: Lane
    seq: int
    level: str
    given_id: str | None = None

    @property
    def id(self) -> str:
        """The id of the message on the wire."""
        return self.given_id or made_id(self.lane, self.seq)

    @property
    def channel(self) -> str:
        """The channel it was published to."""
        return self.lane.channel
