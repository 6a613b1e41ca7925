"""Dead letters: looking at what no handler could take, mending it, publishing it again, dropping it.

::

    dead-letter:{channel}   dead_letter …  dead_letter_edited …  dead_letter_settled …      in any lane, from any site

A dead letter is open until somebody, on any site, appends that it is settled; so it needs no mode and no lock, and two that
settle the same one do no harm: what is published again has an id that is made of the dead letter's, and readers drop copies.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from lemegeton.channels import DEAD_LETTER, check_pattern, compile_glob
from lemegeton.codec import Draft, decode, decode_json, encode
from lemegeton.errors import InvalidMessage, LogError
from lemegeton.letters import (
    DROPPED,
    EDITED,
    REDRIVEN,
    SETTLED,
    Edit,
    Letter,
    Settled,
    edit_of,
    letter_of,
    payload_of,
    redrive_id,
    redriven_body,
    settled_of,
)
from lemegeton.logs.whole import records
from lemegeton.message import Message, Receipt

if TYPE_CHECKING:
    from lemegeton.site import Site

LIMIT_MAX = 100_000
SETTLED_AT_ONCE = 200
"""How many dead letters one record settles at the most; after a kill so many are published again, and dropped as copies."""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message that no handler could take: where it comes from and why it is here.

    ``id`` names the dead letter, ``message_id`` the message it was; ``site`` is that of the subscription.  ``attempts``
    counts every call of the handler; ``first`` and ``last`` are Unix ms of when the first and the last of them was seen to
    have gone wrong, ``trace`` is the traceback of the last, ``traceparent`` names the trace that the message is a part of.
    ``payload`` is what `DeadLetters.redrive` publishes: that of the original, unless it was ``edited``.
    ``original`` is None where the message was so large that it stayed in its log and is not there any more.
    """

    id: str
    channel: str
    subscription: str
    site: str
    reason: str
    error: str
    trace: str
    traceparent: str
    attempts: int
    first: int
    last: int
    message_id: str
    edited: bool
    payload: Any
    original: Message | None


class Redriven(msgspec.Struct, frozen=True):
    """How many dead letters were published again, and which could not be: id and cause."""

    count: int
    kept: dict[str, str]


@dataclass(frozen=True, slots=True)
class Which:
    """Which dead letters are meant; whatever is not given is any."""

    channel: str = "*"
    reason: str | None = None
    subscription: str | None = None
    id: str | None = None
    older_than: float | None = None

    def matcher(self, now_ms: int) -> Callable[[_Open], bool]:
        """True for those meant, as seen at this time."""
        before_ms = now_ms - round(1000 * (self.older_than or 0.0))
        return lambda found: (
            self.reason in (None, found.letter.reason) and self.subscription in (None, found.letter.subscription)
            and self.id in (None, found.id, found.letter.id) and found.letter.last <= before_ms)


@dataclass(frozen=True, slots=True)
class _Open:
    """A dead letter that nobody settled."""

    id: str
    letter: Letter
    traceparent: str
    edit: Edit | None


class DeadLetters:
    """The dead letters that this site can see, of all its subscriptions and, through the shared Redis, of other sites.

    Filters are ``channel`` (a glob, of the channel the message was in), ``reason``, ``subscription``, ``id`` (of the dead
    letter or of the message) and ``older_than`` (seconds since the last attempt).  Whatever was published again or dropped,
    by whomever, is not there any more; neither is what is older than ``dead_letter_max_age``.
    """

    def __init__(self, site: Site, sender: str) -> None:
        self._log = site.log
        self._sender = sender
        self._wall_ms = site.wall_ms
        self._bytes_max = site.settings.max_message_bytes
        self._max_age_ms = round(1000 * site.settings.dead_letter_max_age)

    # ------------------------------------------------------------------------------------------ looking

    async def find(
        self, channel: str = "*", *, reason: str | None = None, subscription: str | None = None, id: str | None = None,
        older_than: float | None = None, limit: int = 1000
    ) -> list[DeadLetter]:
        """The newest ``limit`` of those that match, oldest first."""
        if not 0 < limit <= LIMIT_MAX:
            raise InvalidMessage(f"dead letters: limit {limit}: must be 1 to {LIMIT_MAX}")
        found: list[_Open] = []
        async for letter in self._open(Which(channel, reason, subscription, id, older_than)):
            found.append(letter)
            if len(found) >= 2 * limit:
                found = _newest(found, limit)
        return [await self._shown(letter) for letter in _newest(found, limit)]

    async def get(self, id: str) -> DeadLetter:
        """The one with this id, its own or that of its message; `InvalidMessage` if there is none or several."""
        return await self._shown(await self._one(id))

    async def counts(self) -> dict[str, int]:
        """How many there are of each channel that has any."""
        found: dict[str, int] = {}
        async for letter in self._open(Which()):
            found[letter.letter.channel] = found.get(letter.letter.channel, 0) + 1
        return found

    # ------------------------------------------------------------------------------------------ settling

    async def edit(self, id: str, payload: Any) -> DeadLetter:
        """Have another payload published when it is redriven; the newest edit counts."""
        found = await self._one(id)
        draft = Draft(self._wall_ms(), EDITED, self._sender, {"letter": found.id, "payload": payload})
        await self._log.append(DEAD_LETTER + found.letter.channel, encode(draft, self._bytes_max))
        return await self.get(found.id)

    async def redrive(self, id: str) -> Receipt:
        """Publish the message again, to its channel, for every subscription of it; then it is settled.

        Doing it twice delivers it once.  It has a new id, ``redriven-from`` in its headers, and its time to live begins now.
        """
        found = await self._one(id)
        receipt = await self._publish(found)
        await self._settle(found.letter.channel, [found.id], REDRIVEN)
        return receipt

    async def redrive_all(
        self, channel: str = "*", *, reason: str | None = None, subscription: str | None = None, id: str | None = None,
        older_than: float | None = None
    ) -> Redriven:
        """`redrive` all that match, in the order they came here."""
        kept: dict[str, str] = {}

        async def publish(found: _Open) -> bool:
            try:
                await self._publish(found)
            except InvalidMessage as error:
                kept[found.id] = str(error)
            return found.id not in kept

        count = await self._settle_all(Which(channel, reason, subscription, id, older_than), REDRIVEN, publish)
        return Redriven(count, kept)

    async def drop(self, id: str) -> None:
        """Settle it for good: it is never published again."""
        found = await self._one(id)
        await self._settle(found.letter.channel, [found.id], DROPPED)

    async def drop_all(
        self, channel: str = "*", *, reason: str | None = None, subscription: str | None = None, id: str | None = None,
        older_than: float | None = None
    ) -> int:
        """`drop` all that match; how many they were."""
        async def nothing(_: _Open) -> bool:
            return True

        return await self._settle_all(Which(channel, reason, subscription, id, older_than), DROPPED, nothing)

    async def _settle_all(self, which: Which, how: str, act: Callable[[_Open], Any]) -> int:
        """Settle those that ``act`` is true of, some at a time; what it was done for is settled also when an error ends it."""
        count = 0
        done: dict[str, list[str]] = {}
        try:
            async for found in self._open(which):
                if await act(found):
                    count += 1
                    ids = done.setdefault(found.letter.channel, [])
                    ids.append(found.id)
                    if len(ids) >= SETTLED_AT_ONCE:
                        await self._settle(found.letter.channel, done.pop(found.letter.channel), how)
        finally:
            for channel, ids in done.items():
                await self._settle(channel, ids, how)
        return count

    async def _settle(self, channel: str, ids: list[str], how: str) -> None:
        settled = msgspec.to_builtins(Settled(ids, how))
        try:
            body = encode(Draft(self._wall_ms(), SETTLED, self._sender, settled), self._bytes_max)
        except InvalidMessage:
            if len(ids) == 1:
                raise
            for half in (ids[: len(ids) // 2], ids[len(ids) // 2 :]):
                await self._settle(channel, half, how)
        else:
            await self._log.append(DEAD_LETTER + channel, body)

    async def _publish(self, found: _Open) -> Receipt:
        message = await self._original(found.letter)
        if message is None:
            raise InvalidMessage(f"dead letter {found.id!r}: {_why_without(found.letter)}; it can be dropped")
        payload = payload_of(message.raw) if found.edit is None else bytes(found.edit.payload)
        body = redriven_body(found.id, message, payload, self._wall_ms(), self._bytes_max)
        position = await self._log.append(found.letter.channel, body, message.priority, made=False)
        return Receipt(position.lane, position.seq, "local", redrive_id(found.id))

    # ------------------------------------------------------------------------------------------ reading

    async def _one(self, ident: str) -> _Open:
        found = [letter async for letter in self._open(Which(id=ident))]
        if not found:
            raise InvalidMessage(f"dead letter {ident!r}: there is none of this id, or it was settled; `lemegeton dlq list` "
                                 "shows those there are")
        exact = [letter for letter in found if letter.id == ident] or found
        if len(exact) > 1:
            raise InvalidMessage(f"dead letter {ident!r}: {len(exact)} match; give the id of one of them, or its channel: "
                                 f"{', '.join(f'{letter.id} ({letter.letter.channel})' for letter in exact)}")
        return exact[0]

    async def _open(self, which: Which) -> AsyncIterator[_Open]:
        """Those that match and that nobody has settled, channel by channel."""
        check_pattern(which.channel)
        in_channel, wanted = compile_glob(which.channel), which.matcher(self._wall_ms())
        for channel in await self._log.channels():
            if channel.startswith(DEAD_LETTER) and in_channel(channel.removeprefix(DEAD_LETTER)):
                async for found in self._of(channel):
                    if wanted(found):
                        yield found

    async def _of(self, channel: str) -> AsyncIterator[_Open]:
        over, edits = await self._said(channel)
        oldest_ms = self._wall_ms() - self._max_age_ms
        async for _, message in records(self._log, channel):
            if message.type in (EDITED, SETTLED) or message.id in over or message.timestamp < oldest_ms:
                continue
            over.add(message.id)  # a copy of it is none
            yield _Open(message.id, letter_of(message), message.headers.get("traceparent", ""), edits.get(message.id))

    async def _said(self, channel: str) -> tuple[set[str], dict[str, Edit]]:
        """What was settled, and the newest edits."""
        over: set[str] = set()
        edits: dict[str, tuple[tuple[int, str, int], Edit]] = {}
        async for stamp, message in records(self._log, channel):
            if message.type == SETTLED:
                over.update(settled_of(message))
            elif message.type == EDITED and (edit := edit_of(message)) is not None:
                order = (stamp, message.origin, message.seq)
                if edit.letter not in edits or edits[edit.letter][0] < order:
                    edits[edit.letter] = order, edit
        return over, {ident: edit for ident, (_, edit) in edits.items()}

    async def _original(self, letter: Letter) -> Message | None:
        """The message as it came; what is too large for a dead letter is looked for where it was."""
        if letter.original is not None:
            return _decoded(letter.original.encode(), letter.channel)
        try:
            await self._log.lanes(letter.channel)
            batch = await self._log.read(letter.lane, await self._log.seek(letter.lane, letter.seq - 1))
        except LogError:
            return None
        found = [_decoded(record, letter.channel) for record in batch.records[:1] if isinstance(record, bytes)]
        return next((message for message in found if message is not None and message.seq == letter.seq), None)

    async def _shown(self, found: _Open) -> DeadLetter:
        letter, message = found.letter, await self._original(found.letter)
        payload = message.payload if message is not None else None
        return DeadLetter(
            id=found.id, channel=letter.channel, subscription=letter.subscription, site=letter.site, reason=letter.reason,
            error=letter.error, trace=letter.trace, traceparent=found.traceparent, attempts=letter.attempts,
            first=letter.first, last=letter.last, message_id=letter.id, edited=found.edit is not None, original=message,
            payload=payload if found.edit is None else decode_json(bytes(found.edit.payload)))


def _decoded(record: bytes, channel: str) -> Message | None:
    try:
        message = decode(record)
    except InvalidMessage:
        return None
    return msgspec.structs.replace(message, channel=channel, raw=record)


def _why_without(letter: Letter) -> str:
    if letter.original is not None:
        return "its message cannot be read"
    return f"its message was too large to be kept in it, and record {letter.seq} of {letter.lane} is not to be had any more"


def _newest(letters: Iterable[_Open], limit: int) -> list[_Open]:
    return sorted(letters, key=lambda found: (found.letter.last, found.id))[-limit:]
