"""Dead letters as records: what is written into the channel ``dead-letter:{channel}``, and read from it.

::

    dead_letter            what no handler could take: the original as it came, and why it is here
    dead_letter_edited     another payload for it
    dead_letter_settled    dead letters, by id, that were published again or dropped: they are not listed any more

Whatever else some program publishes there counts as a dead letter that nothing is known of but what it holds.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress

import msgspec
from msgspec.structs import asdict

from lemegeton.channels import DEAD_LETTER
from lemegeton.codec import Draft, draft_of, encode, encode_raw, with_unknown_fields
from lemegeton.errors import InvalidMessage
from lemegeton.lane import Lane, made_id
from lemegeton.message import Message

LETTER, EDITED, SETTLED = "dead_letter", "dead_letter_edited", "dead_letter_settled"
HANDLER_FAILED = "handler failed"
PROCESS_DIED = "process died"
UNKNOWN = "unknown"
REDRIVEN, DROPPED = "redriven", "dropped"
FROM_HEADER = "redriven-from"
"""The header of a message that was published again: the id of the dead letter it was."""
TRACE_CHARS = 8000
TRACE_HEADERS = ("traceparent", "tracestate")
"""Those of the W3C: whoever follows a trace finds what became of its message."""


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of a dead letter: of which subscription, on which site, and why.

    ``attempts`` counts handler calls, those of processes that ended in one among them.  ``first`` and ``last`` are Unix ms
    of when the first and the last of them was seen to have gone wrong.  ``original`` is the message as it came; None if
    that nearly fills a record by itself: then it is where ``origin``, ``inc``, ``priority`` and ``seq`` say."""

    channel: str = ""
    subscription: str = ""
    site: str = ""
    reason: str = UNKNOWN
    error: str = ""
    trace: str = ""
    attempts: int = 0
    first: int = 0
    last: int = 0
    id: str = ""
    origin: str = ""
    inc: int = 0
    priority: int = 1
    seq: int = 0
    original: str | None = None

    @property
    def lane(self) -> Lane:
        """Where the original was."""
        return Lane(self.channel, self.origin, self.inc, self.priority)

    @property
    def letter_id(self) -> str:
        """The id of the dead letter: one appended twice, by a process that was killed in between, is a copy.

        It names subscription, site and, as the ids that are made do, channel, origin and sequence."""
        reader = f"{self.subscription}@{self.site}" if self.site else self.subscription
        return f"dl:{reader}:{made_id(self.lane, self.seq)}"


class Edit(msgspec.Struct, frozen=True):
    """The payload of an edit: the dead letter it belongs to, and the payload to publish instead."""

    letter: str
    payload: msgspec.Raw


class Settled(msgspec.Struct, frozen=True):
    """The payload of what settles dead letters."""

    letters: list[str]
    how: str


def letter_body(letter: Letter, headers: dict[str, str], sender: str, now_ms: int, bytes_max: int) -> bytes:
    """The record of a dead letter, with those of the message's headers that say of which trace it is a part.

    Of a message that nearly fills a record less is kept, the original last of all."""
    traced = {name: headers[name] for name in TRACE_HEADERS if name in headers}
    less = msgspec.structs.replace(letter, trace="", error=letter.error[: bytes_max // 8])
    for kept in (letter, less, msgspec.structs.replace(less, original=None)):
        with suppress(InvalidMessage):
            return encode(Draft(now_ms, LETTER, sender, asdict(kept), letter.letter_id, headers=traced or None), bytes_max)
    return encode(Draft(now_ms, LETTER, sender, asdict(least_of(letter)), letter.letter_id), bytes_max)


def least_of(letter: Letter) -> Letter:
    """What is kept where hardly anything fits."""
    return msgspec.structs.replace(letter, trace="", error="", original=None)


_letter = msgspec.json.Decoder(Letter).decode
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


class _Payload(msgspec.Struct):
    payload: msgspec.Raw


_payload = msgspec.json.Decoder(_Payload).decode


def payload_of(record: bytes) -> bytes:
    """The payload of a record, byte for byte."""
    return bytes(_payload(record).payload)


def letter_of(message: Message) -> Letter:
    """What a message in a dead-letter channel says; one that some other program put there is its own original."""
    channel = message.channel.removeprefix(DEAD_LETTER)
    if message.type == LETTER:
        try:
            letter = _letter(payload_of(message.raw))
        except _UNREADABLE:
            letter = Letter()
        if letter.channel == channel:
            return letter
    return Letter(channel=channel, first=message.timestamp, last=message.timestamp, id=message.id,
                  original=message.raw.decode())


_edit = msgspec.json.Decoder(Edit).decode
_settled = msgspec.json.Decoder(Settled).decode


def edit_of(message: Message) -> Edit | None:
    """What an edit says; None for one that is none."""
    try:
        return _edit(payload_of(message.raw))
    except _UNREADABLE:
        return None


def settled_of(message: Message) -> list[str]:
    """The dead letters that a record settles."""
    try:
        return _settled(payload_of(message.raw)).letters
    except _UNREADABLE:
        return []


def redrive_id(ident: str) -> str:
    """The id under which a dead letter is published again: twice is once."""
    return f"redrive-{hashlib.blake2b(ident.encode(), digest_size=16).hexdigest()}"


def redriven_body(ident: str, message: Message, payload: bytes, now_ms: int, bytes_max: int) -> bytes:
    """The record that publishes the original of a dead letter again, as its sender and with a time to live that begins
    now."""
    headers = {**message.headers, FROM_HEADER: ident}
    draft = msgspec.structs.replace(draft_of(message), timestamp=now_ms, id=redrive_id(ident), headers=headers)
    return with_unknown_fields(encode_raw(draft, payload, bytes_max), message, bytes_max)
