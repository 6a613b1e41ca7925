"""Everything that happens and is not a message: one frozen class an event, given to one observer.

Nothing is silent (G5): each of these is also a counter in `MessageBus.stats` and one log line.  ``cause`` says why in
plain words; sequences are inclusive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import msgspec

from lemegeton.lane import Lane


class Event(msgspec.Struct, frozen=True):
    """The root of all events; ``name`` is what `MessageBus.on` takes."""

    name: ClassVar[str] = "event"
    level: ClassVar[str] = "warning"

    def __str__(self) -> str:
        return self.name + ": " + ", ".join(f"{field}={_shown(getattr(self, field))}" for field in self.__struct_fields__)


def _shown(value: object) -> str:
    """A value for one log line: control characters escaped, bounded."""
    text = str(value)
    return (text if text.isprintable() else ascii(text))[:300]


class Gap(Event, frozen=True):
    """No log can supply the records ``first`` to ``last`` to this subscription any more; it goes on behind them."""

    name = "gap"
    subscription: str
    lane: Lane
    first: int
    last: int
    cause: str


class Expired(Event, frozen=True):
    """The time to live of a message passed before its handler was called; it counts as settled.

    ``first`` is above 0 where its site did not even send it, nor those before it from ``first`` on; then there is no id."""

    name = "expired"
    level = "info"
    subscription: str
    lane: Lane
    seq: int
    id: str
    first: int = 0


class CorruptRecord(Event, frozen=True):
    """Bytes in a log are not the record that was written; the records behind them are read on."""

    name = "corrupt_record"
    subscription: str
    lane: Lane
    expected: int
    cause: str


class TailDropped(Event, frozen=True):
    """A segment ends in bytes that never became a record; its origin went on elsewhere."""

    name = "tail_dropped"
    level = "info"
    lane: Lane
    segment: str
    offset: int
    length: int


class StrayEntry(Event, frozen=True):
    """Something among the directories of channels is none of ours: it is left alone, and nothing in it is read."""

    name = "stray"
    path: str
    cause: str


class HandlerFailed(Event, frozen=True):
    """A handler raised; the message is tried again or becomes a dead letter."""

    name = "handler_failed"
    subscription: str
    lane: Lane
    seq: int
    attempt: int
    error: str


class DeadLettered(Event, frozen=True):
    """A message was put into its dead-letter channel and counts as settled."""

    name = "dead_letter"
    subscription: str
    lane: Lane
    seq: int
    id: str
    attempts: int
    cause: str


class LaneStalled(Event, frozen=True):
    """A lane waits: its next step could not be stored.  It is tried again; nothing is lost meanwhile."""

    name = "lane_stalled"
    subscription: str
    lane: Lane
    cause: str


class Refused(Event, frozen=True):
    """Something from outside was not a message; it was set aside under the name in ``kept``."""

    name = "refused"
    channel: str
    source: str
    kept: str
    cause: str


class IncarnationBegun(Event, frozen=True):
    """An origin could not continue a lane where it ended and counts from 1 in a new incarnation."""

    name = "incarnation_begun"
    level = "info"
    lane: Lane
    cause: str


class SegmentSealed(Event, frozen=True):
    """A segment is not written to any more because a write or sync went wrong; its records stay."""

    name = "segment_sealed"
    lane: Lane
    segment: str
    cause: str


class LaneForked(Event, frozen=True):
    """A replica holds another record at sequence ``seq`` than this log: one of them went back and grew again."""

    name = "lane_forked"
    lane: Lane
    seq: int
    cause: str


class SubscriptionExpired(Event, frozen=True):
    """A durable subscription was not seen for so long that its place was dropped."""

    name = "subscription_expired"
    subscription: str
    idle_s: float


class HomeLost(Event, frozen=True):
    """The home was removed or replaced in use: what was in it is gone, and the places in it end with their processes."""

    name = "home_lost"
    path: str
    cause: str


class DoorbellLost(Event, frozen=True):
    """Hints about changed files cannot be had; polling carries on."""

    name = "doorbell_lost"
    cause: str


class LimitReached(Event, frozen=True):
    """Publishers wait for room, or are refused; ``holder`` is the subscription in the way."""

    name = "limit_reached"
    used: int
    limit: int
    holder: str


class RetentionFailed(Event, frozen=True):
    """Cleaning up met an error; it is tried again later and keeps everything meanwhile."""

    name = "retention_failed"
    cause: str


class ModeChanged(Event, frozen=True):
    """The best path that works changed."""

    name = "mode_changed"
    level = "info"
    old: str
    new: str
    reason: str


class ModeSwitchIgnored(Event, frozen=True):
    """The file ``mode`` in the home does not say anything; the mode is what it would be without it."""

    name = "mode_switch_ignored"
    cause: str


class ModeUntold(Event, frozen=True):
    """A Redis that carries messages does not take what it is told of the mode, so nobody can look it up there."""

    name = "mode_untold"
    redis: str
    cause: str


class RedisUp(Event, frozen=True):
    """A Redis answers; what it lacks is brought to it and what was missed is looked for."""

    name = "redis_up"
    level = "info"
    redis: str


class RedisDown(Event, frozen=True):
    """A Redis does not answer, or not any more.  Everything is kept here; whoever shares this site notices nothing."""

    name = "redis_down"
    redis: str
    cause: str


class RedisEvicts(Event, frozen=True):
    """A Redis throws away what it is given when its memory is full; it is brought again, which costs time."""

    name = "redis_evicts"
    redis: str
    cause: str


class LocalRedisStarted(Event, frozen=True):
    """This process started the Redis of this host; the last one that leaves it ends it."""

    name = "local_redis_started"
    level = "info"
    binary: str
    socket: str


class LocalRedisStopped(Event, frozen=True):
    """This process was the last one that used the Redis of this host, and ended it."""

    name = "local_redis_stopped"
    level = "info"
    socket: str


class LocalRedisFailed(Event, frozen=True):
    """There is no Redis of this host to be had, or it could not be ended; files carry the messages meanwhile."""

    name = "local_redis_failed"
    cause: str


class RelayStalled(Event, frozen=True):
    """A Redis did not take the records of a lane; they are kept and offered again."""

    name = "relay_stalled"
    redis: str
    lane: Lane
    cause: str


class AgentJoined(Event, frozen=True):
    """An agent registered with the hub; ``session`` is this run of it."""

    name = "agent_joined"
    level = "info"
    agent: str
    session: str
    site: str


class AgentLost(Event, frozen=True):
    """An agent is dead; ``open`` assignments of it go to others once everything it said has been read."""

    name = "agent_lost"
    agent: str
    session: str
    open: int
    cause: str


class AssignmentMoved(Event, frozen=True):
    """The agent that had an assignment will not finish it: it waits for its next attempt, or failed for good."""

    name = "assignment_moved"
    assignment: str
    attempt: int
    agent: str
    status: str
    cause: str


class StaleReport(Event, frozen=True):
    """An agent reported on an attempt that does not count any more (or that no ledger knows: ``current`` is 0)."""

    name = "stale_report"
    agent: str
    type: str
    assignment: str
    attempt: int
    current: int


class MessageIgnored(Event, frozen=True):
    """A hub or agent got a message of a type that it acts on, with a payload that it cannot understand."""

    name = "message_ignored"
    channel: str
    sender: str
    type: str
    cause: str


class ReplyIgnored(Event, frozen=True):
    """A reply came for which nobody waits here: it is late, or another one came before it."""

    name = "reply_ignored"
    level = "info"
    channel: str
    sender: str
    correlation: str
    cause: str


class ReplyLost(Event, frozen=True):
    """A request became a dead letter, and its requester could not be told: it waits until its timeout."""

    name = "reply_lost"
    channel: str
    id: str
    cause: str


class RequestDropped(Event, frozen=True):
    """A request was cancelled by its requester before its handler was called; it counts as settled."""

    name = "request_dropped"
    level = "info"
    channel: str
    sender: str
    id: str


class HubStalled(Event, frozen=True):
    """A hub or agent could not write what it had to; it tries again, and nothing is lost meanwhile."""

    name = "hub_stalled"
    who: str
    cause: str


class JournalDamaged(Event, frozen=True):
    """Lines of a hub's journal could not be read; what they said is not in its ledger."""

    name = "journal_damaged"
    hub: str
    lines: int


class BusBroken(Event, frozen=True):
    """The tasks of a bus ended by an error they should not have; it delivers nothing more.  What is stored stays."""

    name = "bus_broken"
    bus: str
    cause: str


class ObserverFailed(Event, frozen=True):
    """A callback registered with `MessageBus.on` raised."""

    name = "observer_failed"
    event: str
    error: str


Observer = Callable[[Event], None]

EVENTS: tuple[type[Event], ...] = (
    Gap, Expired, CorruptRecord, TailDropped, StrayEntry, HandlerFailed, DeadLettered, LaneStalled, Refused,
    IncarnationBegun, SegmentSealed, LaneForked, RedisUp, RedisDown, RedisEvicts, RelayStalled, SubscriptionExpired,
    HomeLost, DoorbellLost, LimitReached, RetentionFailed, ModeChanged, ModeSwitchIgnored, ModeUntold, LocalRedisStarted,
    LocalRedisStopped, LocalRedisFailed, BusBroken, ObserverFailed, AgentJoined, AgentLost, AssignmentMoved, StaleReport,
    MessageIgnored, HubStalled, JournalDamaged, ReplyIgnored, ReplyLost, RequestDropped,
)
