"""Handling: what happens to one record after another of a lane."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import msgspec

from lemegeton.channels import DEAD_LETTER
from lemegeton.checkpoint import Marks, settled_at
from lemegeton.codec import decode
from lemegeton.errors import InvalidMessage, LemegetonError, Rejected
from lemegeton.events import CorruptRecord, DeadLettered, Expired, Gap, HandlerFailed, LaneStalled, Observer
from lemegeton.lane import BRANCH, SPARSE, Lane, lane_token
from lemegeton.letters import HANDLER_FAILED, PROCESS_DIED, TRACE_CHARS, Letter, letter_body
from lemegeton.logs.base import GONE, Cursor, Damage, Found, Log, Marker
from lemegeton.message import Message
from lemegeton.poison import Past, Turn, past_of, remember
from lemegeton.retry import Backoff
from lemegeton.window import IdWindow

if TYPE_CHECKING:
    from lemegeton.answering import Answers

Handler = Callable[[Message], Awaitable[Any]]
"""What a message is given to; a synchronous function is wrapped to run in a thread before it comes here."""

IN_DOUBT = "\0"
"""Before the channel of an id in the window: the id is not handled for sure, but may be.  No channel begins so."""
DEAD_LETTER_RETRY_S = 1.0
COPY_WAIT_S = 0.02
"""How long a copy waits before it looks again whether its twin is settled."""
TURN_WAIT_S = 0.1
"""How long a message that may be poison waits before it looks again whether another one is through."""
ERROR_CHARS = 2000
NO_PAST = Past(0)
_set = msgspec.structs.force_setattr


class Outcome(Enum):
    """How handling a batch ended."""

    DONE = "done"
    LATER = "later"
    STOPPED = "stopped"


@dataclass(slots=True, eq=False)
class LanePlace:
    """Where a subscription is in a lane: its row of marks, the next sequence, and how its next record stands.

    Records up to ``flagged`` may have been handled by an earlier process; ``begun`` is the one that left an intent."""

    lane: Lane
    row: int
    next: int
    flagged: int
    begun: int = 0
    cursor: Cursor | None = None
    attempt: int = 1
    damaged: str = ""
    delay_s: float = 0.0
    failure: str = ""
    """Why the next record becomes a dead letter, once its attempts are used up."""

    reason: str = HANDLER_FAILED
    trace: str = ""
    failed_ms: int = 0
    """When the first failure of the next record was seen, by this process or an earlier one."""

    tried: int = 0
    """The record that came again and whose ``past`` this is."""

    past: Past = NO_PAST

    made_prefix: str = ""
    sparse: bool = False
    """Its sequence has holes that are none: the numbers are somebody else's."""

    def __post_init__(self) -> None:
        self.made_prefix = lane_token(self.lane) + "-"
        self.sparse = self.lane.origin.startswith(SPARSE)

    def forget_trouble(self) -> None:
        """The next record begins with its first attempt, and nothing was damaged before it."""
        self.attempt, self.failure, self.damaged = 1, "", ""
        self.reason, self.trace, self.failed_ms, self.tried, self.past = HANDLER_FAILED, "", 0, 0, NO_PAST


@dataclass(slots=True)
class Counts:
    """What a subscription did, in records."""

    handled: int = 0
    redelivered: int = 0
    copies: int = 0
    expired: int = 0
    failed: int = 0
    dead: int = 0
    corrupt: int = 0
    missing: int = 0


class Handling:
    """Gives the records of a lane to the handler, one at a time, and settles them."""

    def __init__(
        self, log: Log, handler: Handler, window: IdWindow, backoff: Backoff, observe: Observer, *, name: str,
        sender: str, wall_ms: Callable[[], int], bytes_max: int, site: str = "", turn: Turn | None = None,
        answers: Answers | None = None
    ) -> None:
        self._log = log
        self._handler = handler
        self._window = window
        self._backoff = backoff
        self._observe = observe
        self._name = name
        self._site = site
        self._turn = turn or Turn()
        self._sender = sender
        self._wall_ms = wall_ms
        self._bytes_max = bytes_max
        self._answers = answers
        self._tokens: dict[str, Lane] = {}
        self._in_hand: set[tuple[str, str]] = set()
        self.counts = Counts()
        self.stopping = False
        self.closed = False

    async def handle(self, place: LanePlace, records: Sequence[Found], marks: Marks) -> Outcome:
        """Handle a batch; stops before the first record that cannot be settled now."""
        at = settled_at(place.row)
        lane = place.lane
        for record in records:
            if self.stopping:
                return Outcome.STOPPED
            message = self._decoded(place, record, marks)
            if message is None:
                continue
            seq = message.seq
            if (seq != place.next or message.origin != lane.origin or message.inc != lane.inc) and not self._in_place(
                place, message, marks
            ):
                continue
            given = not message.id.startswith(place.made_prefix)
            if message.ttl is not None and message.expired(self._wall_ms()):
                self._expire(place, message, given)
            elif given and self._is_copy(place, message, marks):
                self._window.save()
                self.counts.copies += 1
                place.forget_trouble()
            elif given and self._twin_in_hand(lane.channel, message.id):
                place.delay_s = COPY_WAIT_S  # its twin is in the handler: what this one is shows when that returned
                return Outcome.LATER
            else:
                _set(message, "channel", lane.channel)
                _set(message, "raw", record)
                deliver = self._deliver_given if given else self._deliver
                if seq > place.flagged:
                    marks.cells[at + 1] = seq
                    outcome = await deliver(place, message)
                else:
                    outcome = await self._deliver_again(place, message, deliver, marks)
                if outcome is not Outcome.DONE or self.closed:  # closed: it ignored its cancellation until marks were let go
                    return Outcome.STOPPED if self.closed else outcome
            marks.cells[at] = seq
            place.next = seq + 1
            if place.attempt > 1 or place.damaged:
                place.forget_trouble()
        return Outcome.DONE

    def _decoded(self, place: LanePlace, record: Found, marks: Marks) -> Message | None:
        """The message of a record; None, and reported, if it is none."""
        if isinstance(record, bytes):
            try:
                return decode(record)
            except InvalidMessage as error:
                self._report_damage(place, str(error))
        elif isinstance(record, Damage):
            self._report_damage(place, record.cause)
        else:
            self._pass(place, record, marks)
        return None

    # ------------------------------------------------------------------------------------------ before the handler

    def _pass(self, place: LanePlace, marker: Marker, marks: Marks) -> None:
        """Settle the records that a marker stands for, and say why they do not come."""
        first = place.next if marker.kind == GONE else max(place.next, marker.first)
        if first > place.next:
            self._miss(place, marker.first - 1, "no log has it")
        if marker.through < first:
            return
        if marker.kind == GONE:
            self._miss(place, marker.through, "its log does not have it any more")
        else:
            self.counts.expired += marker.through - first + 1
            self._observe(Expired(self._name, place.lane, marker.through, "", first))
        marks.cells[settled_at(place.row)] = marker.through
        place.next = marker.through + 1
        place.forget_trouble()

    def _miss(self, place: LanePlace, last: int, cause: str) -> None:
        self.counts.missing += last - place.next + 1
        self._observe(Gap(self._name, place.lane, place.next, last, cause))

    def _in_place(self, place: LanePlace, message: Message, marks: Marks) -> bool:
        """False for a record that is not of this lane or was settled; reports the records missing before it."""
        if (message.origin, message.inc) != (place.lane.origin, place.lane.inc):
            self._report_damage(place, f"a record of {message.origin}.{message.inc} does not belong here")
            return False
        if message.seq < place.next or place.sparse:
            place.next = max(place.next, message.seq)
            return message.seq >= place.next
        last = message.seq - 1
        self._miss(place, last, place.damaged or "no log has it")
        place.next = message.seq
        place.forget_trouble()
        marks.cells[settled_at(place.row)] = last
        return True

    def _report_damage(self, place: LanePlace, cause: str) -> None:
        self.counts.corrupt += 1
        place.damaged = cause
        self._observe(CorruptRecord(self._name, place.lane, place.next, cause))

    def _expire(self, place: LanePlace, message: Message, given: bool) -> None:
        place.forget_trouble()
        if given and message.seq <= place.flagged:  # it may have been handled: one published again later is flagged
            self._window.add(IN_DOUBT + place.lane.channel, message.id, self._wall_ms())
        self.counts.expired += 1
        self._observe(Expired(self._name, place.lane, message.seq, message.id))

    def _is_copy(self, place: LanePlace, message: Message, marks: Marks) -> bool:
        """True if a message with a given id was handled: in this window, or under the position its id names."""
        if (place.lane.channel, message.id, self._wall_ms()) in self._window:
            return True
        token, _, number = message.id.partition("-")
        if len(token) != 16 or not number:
            return False
        if token not in self._tokens:
            self._tokens = {lane_token(lane): lane for lane in marks.lanes()}
        lane = self._tokens.get(token)
        row = marks.find(lane) if lane is not None else None
        number, branch, _ = number.partition(BRANCH)
        if lane is None or row is None or (branch and not self._log.is_near(lane)):
            return False  # of a fork the position tells nothing: here the other branch may have been handled
        try:
            return int(number, 16) <= marks.cells[settled_at(row)]
        except ValueError:
            return False

    def _twin_in_hand(self, channel: str, ident: str) -> bool:
        """True while a message with this id is in the handler; if none is, there is room for remembering this one.

        Before the handler, and before the intent: what was handled and cannot be remembered cannot be settled, and would
        come again though nothing crashed."""
        if (channel, ident) in self._in_hand:
            return True
        self._window.reserve()
        return False

    # ------------------------------------------------------------------------------------------ what came before

    async def _deliver_again(
        self, place: LanePlace, message: Message, deliver: Callable[[LanePlace, Message], Awaitable[Outcome]], marks: Marks
    ) -> Outcome:
        """Deliver what an earlier process may have begun, and count this one before it is given to the handler."""
        if place.tried != message.seq:
            self._recall(place, message.seq, marks)
        if place.failure:
            return await deliver(place, message)
        alone = place.past.last_chance(self._backoff.attempts)
        if alone and not self._turn.take():
            place.forget_trouble()
            place.delay_s = TURN_WAIT_S
            return Outcome.LATER
        try:
            self._count(place, marks, 1, alone)
            outcome = await deliver(place, message)
            if outcome is Outcome.DONE:
                place.forget_trouble()
            else:
                self._count(place, marks, 1)
            return outcome
        finally:
            if alone:
                self._turn.leave()

    def _recall(self, place: LanePlace, seq: int, marks: Marks) -> None:
        """What earlier processes had to do with this record; the failure, if the last of them tried it alone."""
        past = past_of(marks.cells, place.row, seq, place.begun == seq)
        since_ms = past.since_ms or self._wall_ms()
        place.past, place.tried = replace(past, since_ms=since_ms), seq
        place.failed_ms = since_ms if past.lives else 0
        if past.alone:
            place.reason, place.attempt = PROCESS_DIED, 0
            place.failure = f"{past.lives} processes ended while their handler had it"

    def _count(self, place: LanePlace, marks: Marks, more: int, alone: bool = False) -> None:
        if not self.closed:
            remember(marks.cells, place.row, place.next, replace(place.past, lives=place.past.lives + more, alone=alone))

    def forgive(self, place: LanePlace, marks: Marks) -> None:
        """This process ends in good order: that is no fault of the record that a handler had."""
        begun = marks.cells[settled_at(place.row) + 1] == place.next > place.flagged
        if (begun or place.tried == place.next) and not place.failure:
            self._count(place, marks, 0)

    # ------------------------------------------------------------------------------------------ the handler

    async def _deliver_given(self, place: LanePlace, message: Message) -> Outcome:
        """`_deliver` for a message whose id was given: no other lane may have the same id in the handler meanwhile."""
        key = (place.lane.channel, message.id)
        self._in_hand.add(key)
        try:
            outcome = await self._deliver(place, message, (IN_DOUBT + key[0], key[1], self._wall_ms()) in self._window)
            if outcome is Outcome.DONE:
                self._window.add(*key, self._wall_ms())
            return outcome
        finally:
            self._in_hand.discard(key)

    async def _deliver(self, place: LanePlace, message: Message, in_doubt: bool = False) -> Outcome:
        """Call the handler; DONE when the record may be settled."""
        if place.failure:
            return await self._bury(place, message)
        if message.reply_to is not None and self._answers is not None and not self._answers.begin(message):
            return Outcome.DONE
        if message.seq <= place.flagged or in_doubt:
            _set(message, "redelivered", True)
            self.counts.redelivered += 1
        if place.attempt > 1:
            _set(message, "attempt", place.attempt)
        try:
            await self._handler(message)
        except Exception as error:
            return await self._failed(place, message, error)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if self.stopping or task is None:
                raise
            while task.uncancel():  # nobody but `stop` cancels us: the handler cancelled itself
                continue
            return await self._failed(place, message, error)
        self.counts.handled += 1
        return Outcome.DONE

    async def _failed(self, place: LanePlace, message: Message, error: BaseException) -> Outcome:
        text = f"{type(error).__name__}: {error}"[:ERROR_CHARS]
        self.counts.failed += 1
        self._observe(HandlerFailed(self._name, place.lane, message.seq, place.attempt, text))
        place.failed_ms = place.failed_ms or self._wall_ms()
        final = isinstance(error, Rejected)
        delay_s = None if final else self._backoff.after(place.past.lives + place.attempt)
        if delay_s is not None:
            place.attempt += 1
            place.delay_s = delay_s
            return Outcome.LATER
        place.failure, place.reason = text, error.reason if isinstance(error, Rejected) else HANDLER_FAILED
        place.trace = "".join(traceback.format_exception(error))[-TRACE_CHARS:]
        return await self._bury(place, message)

    async def _bury(self, place: LanePlace, message: Message) -> Outcome:
        """Put the message into its dead-letter channel; while that cannot be written the lane waits."""
        channel = place.lane.channel
        if not channel.startswith(DEAD_LETTER):
            try:
                await self._log.append(DEAD_LETTER + channel, self._dead_letter(place, message), made=False)
            except (LemegetonError, OSError) as error:
                self._observe(LaneStalled(self._name, place.lane, f"dead letter: {error}"))
                place.delay_s = DEAD_LETTER_RETRY_S
                return Outcome.LATER
        self.counts.dead += 1
        attempts = place.past.lives + place.attempt
        self._observe(DeadLettered(self._name, place.lane, message.seq, message.id, attempts, place.failure))
        if message.reply_to is not None and self._answers is not None:
            await self._answers.failed(message, place.failure)
        place.forget_trouble()
        return Outcome.DONE

    def _dead_letter(self, place: LanePlace, message: Message) -> bytes:
        lane, now_ms = place.lane, self._wall_ms()
        letter = Letter(
            channel=lane.channel, subscription=self._name, site=self._site, reason=place.reason, error=place.failure,
            trace=place.trace, attempts=place.past.lives + place.attempt, first=place.failed_ms or now_ms, last=now_ms,
            id=message.id, origin=lane.origin, inc=lane.inc, priority=lane.priority, seq=message.seq,
            original=message.raw.decode())
        return letter_body(letter, message.headers, self._sender, now_ms, self._bytes_max)
