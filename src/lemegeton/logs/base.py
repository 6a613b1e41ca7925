"""The log: named channels of numbered lanes, and the contract that every kind of log keeps.

A log keeps no subscriptions, no handlers and no readers' places: the reader owns its cursor.  The behaviour above
(`delivery`, `retention`, `relay`) knows this Protocol and no kind of log; `lemegeton.testing.conformance` checks it.

1. `append` returns once the record is in the log as durably as asked; ``definite`` of what it raises says whether the
   record is certainly absent.  Cancelled, it is either wholly in or not.
2. `read` returns the records behind a cursor, in sequence order, and never removes or remembers.
3. Order of position is order of visibility: once a record was read, nothing ever appears before it in its lane.
4. A cursor behind which records were removed raises `PositionLost` with what is left; nothing is skipped silently.
5. `trim` is permission, not command: it may keep more, never less, than what lies behind ``through``.
6. Positions are never given twice, channel names never collide, `aclose` may be called twice and later calls raise
   `BusClosed`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from lemegeton.lane import Lane

READ_BYTES = 256 * 1024
"""How much one `read` takes at the most, unless a single record is larger."""

Cursor = tuple[int, int]
"""A place in a lane; only the log that gave it may look inside.  A reader begins with `Log.seek`."""

Ring = Callable[[str, Lane | None], None]
"""``ring(channel, lane)``: something may be new in this lane, or (None) anywhere in the channel."""


class Position(msgspec.Struct, frozen=True, gc=False):
    """Where a record lies: its lane and its sequence, from 1."""

    lane: Lane
    seq: int


class Span(NamedTuple):
    """The sequences a lane can supply, both inclusive; ``last < first`` when it holds none.

    ``contact`` is what it had when this log first saw it; 0 where that was before there could be a reader."""

    first: int
    last: int
    contact: int = 0


class Damage(NamedTuple):
    """Bytes that are not the record they should be, in the place of one."""

    cause: str


SKIP, GONE = "skip", "gone"


class Marker(NamedTuple):
    """Stands for the records ``first`` to ``through``: `SKIP`, they expired unsent; `GONE`, no log has them any more.

    A reader takes the part above what it has settled, so two that overlap do no harm."""

    kind: str
    first: int
    through: int


Found = bytes | Damage | Marker
"""What lies in the place of a record: its wire JSON, usually."""


class Batch(NamedTuple):
    """What `Log.read` found, in order, and the cursor behind it.

    ``more`` is false if there was nothing behind them that this log knows of; what comes later rings."""

    records: Sequence[Found]
    cursor: Cursor
    more: bool = True


Placed = Position | asyncio.Future[Position] | None
"""A record that is written, one that has its number and is written with others of this turn of the loop, or None: it would
have to wait, and nothing was done."""


class Form(msgspec.Struct, eq=False):
    """What the usual messages of a sender to a channel have in common; ``body`` is from `codec.form_of`.

    ``lane`` is for the log that is given it: where it writes such messages, so that it looks for that once."""

    channel: str
    priority: int
    body: bytes
    lane: Any = None


class Log(Protocol):
    """Append-only lanes; see the module for the contract."""

    @property
    def rings(self) -> bool:
        """True while doorbells work; then a slow poll behind them is enough."""
        ...

    async def append(
        self, channel: str, body: bytes, priority: int = 1, *, made: bool = True, disk: bool = False
    ) -> Position:
        """Put a record at the end of this sender's own lane.

        ``body`` is a JSON object without position; the log adds that, and the id when it is to be ``made``.  ``disk``
        waits until the record survives a power cut.  Number, line and place in the queue are one step: cancellation
        after it does not withdraw the record."""
        ...

    def append_now(self, form: Form, stamp_ms: int, payload: bytes, disk: bool = False) -> Placed:
        """`append` ``form.body % (stamp_ms, payload)``, its id made here, without a coroutine and framed from its parts: a
        publish of one task takes a seventh less, and one of many tasks a fifth."""
        ...

    async def channels(self) -> Sequence[str]:
        """The channels that have lanes."""
        ...

    async def lanes(self, channel: str) -> Sequence[Lane]:
        """The lanes of a channel as they are now; those of one chain in the order of their incarnations."""
        ...

    async def span(self, lane: Lane) -> Span: ...

    async def of_earlier_boot(self, lane: Lane) -> bool:
        """True if the lane was, or may have been, written before the machine was started last: it never grows again,
        and marks of it may have been lost."""
        ...

    async def seek(self, lane: Lane, after: int) -> Cursor:
        """The cursor behind sequence ``after``; `PositionLost` if the record behind it is gone."""
        ...

    async def read(self, lane: Lane, cursor: Cursor, limit: int = READ_BYTES) -> Batch:
        """Up to ``limit`` bytes of records behind the cursor, but at least one record if there is any."""
        ...

    async def trim(self, lane: Lane, through: int) -> None:
        """Records up to ``through`` are not needed any more."""
        ...

    async def ended(self, lane: Lane, later: Lane, settled: int) -> bool:
        """True if no record of ``lane`` behind ``settled`` will ever come.

        Asked with ``later``, a later incarnation that was there before a read of ``lane`` found nothing more."""
        ...

    def is_near(self, lane: Lane) -> bool:
        """True if the lane is read from where its sender writes, so that no other branch of it was ever read here."""
        ...

    async def vanished(self, lane: Lane) -> bool:
        """True if the lane is not there and never will be again: its marks can go."""
        ...

    def listen(self, channel: str, ring: Ring) -> Callable[[], None]:
        """Ring for news in a channel; returns what ends it.  Only a hint."""
        ...

    def listen_new(self, globs: Sequence[str], ring: Ring) -> Callable[[], None]:
        """Ring for channels that are new and may match one of the globs (also for others; an empty name is any)."""
        ...

    async def aclose(self) -> None: ...


class Mark(NamedTuple):
    """What a replica has of a lane: its last sequence (0: nothing) and the checksum of that record (0: of a marker)."""

    seq: int
    crc: int


class Item(NamedTuple):
    """What a replica is offered: a record's wire JSON, or a marker; it stands for ``seq`` to ``through``."""

    seq: int
    through: int
    record: bytes | Marker


class Answer(NamedTuple):
    """A replica's answer: the mark it has now, and whether it could not take the items because some are missing."""

    mark: Mark
    gap: bool = False


class Replica(Protocol):
    """Where the relay copies lanes to: it takes only the next sequence, so whatever it forgets shows itself."""

    async def accept(self, lane: Lane, items: Sequence[Item], *, base: bool = False, told: int = 0) -> Answer:
        """Take consecutive items; with none it only answers its mark.

        Those at or below the mark are skipped with success; a first one above the next is a gap, unless it is the
        ``base``, the oldest that there is.  What is above ``told`` is also published, to those who only listen.
        `LogError` that is not definite means that they may have been taken."""
        ...


async def read_wait(log: Log, lane: Lane, cursor: Cursor, wait_s: float, poll_s: float = 0.02) -> Batch:
    """`Log.read` that waits up to ``wait_s`` for the first record; cancelling it has no effect on the log."""
    news = asyncio.Event()
    silence = log.listen(lane.channel, lambda *_: news.set())
    deadline = asyncio.get_running_loop().time() + wait_s
    try:
        while True:
            news.clear()
            batch = await log.read(lane, cursor)
            if not batch.records:  # it may lie in a segment that is newer than what this log knows of the lane
                await log.lanes(lane.channel)
                batch = await log.read(lane, cursor)
            left = deadline - asyncio.get_running_loop().time()
            if batch.records or left <= 0:
                return batch
            try:
                await asyncio.wait_for(news.wait(), min(left, poll_s))
            except TimeoutError:
                continue
    finally:
        silence()
