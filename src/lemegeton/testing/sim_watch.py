"""Watching the shared Redis: what no reader notices, because readers drop copies and ask for what is missing.

========= ==============================================================================================================
kind      what was seen
========= ==============================================================================================================
twice     a record that is in a stream was appended again
hole      a record was appended, the one before it was not, and a log has that
mark      a mark that is not the last record appended, or one of a stream that is gone
told      a record was published to those who only hear, although the relay knew that a Redis had accepted it
trimmed   a record was trimmed that a durable subscription of another site has not settled
receipt   a publish was acknowledged as in the shared Redis, which was never given the record
========= ==============================================================================================================

A record may be there twice once somebody deleted the marks alone, and be told again after a power cut or where a disk
failed: both take what the relay knew.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from lemegeton.codec import Head, head_of
from lemegeton.lane import Lane
from lemegeton.logs.origin import site_of
from lemegeton.logs.redis_entries import Entry, entry_of, lane_field, sequence_in
from lemegeton.sharing import Shared, acks_of, matcher
from lemegeton.testing.fake_redis import FakeRedisServer
from lemegeton.testing.fake_redis_store import Hash
from lemegeton.testing.fake_redis_stream import Stream, id_text

STREAM, MARKS = b"message-stream:", b"relay:{"
SETTLE_S = 30.0
"""How long a subscription is known before a bridge has to: its sweep may have begun before, and hang in a slow network."""


class Watch:
    """See the module.  ``has(lane, seq)`` says whether a log has a record, ``remembers()`` whether relays could write down
    what they know, ``violate(kind, text)`` is told what is wrong."""

    def __init__(self, server: FakeRedisServer, clock: Callable[[], float], has: Callable[[Lane, int], bool],
                 remembers: Callable[[], bool], violate: Callable[[str, str], None]) -> None:
        self._server = server
        self._clock = clock
        self._has = has
        self._remembers = remembers
        self._violate = violate
        self._running: dict[tuple[bytes, Lane], int] = {}
        """What the script under way has appended last."""
        self._unmarked: set[bytes] = set()
        """The streams whose marks somebody deleted."""
        self._taken: dict[Lane, int] = {}
        self._told: dict[Lane, set[int]] = {}
        self._accepted: dict[Lane, int] = {}
        """Up to which sequence the relay of a lane knows that a Redis accepted it."""
        self._site: dict[Lane, str] = {}
        self._since: dict[bytes, float] = {}
        """Since when each subscription is in the Redis."""
        self._settled: dict[tuple[bytes, str, str], int] = {}
        server.watch = self.see

    def see(self, args: list[bytes], in_script: bool) -> None:
        """A command that is about to be executed."""
        name, key = args[0].upper(), args[1] if len(args) > 1 else b""
        if in_script:
            if name == b"XADD":
                self._added(key, args[args.index(b"*") + 1 :])
            elif name == b"PUBLISH":
                self._published(key, args[2])
            elif name == b"HSET":
                self._marked(key, args[2], args[3])
            elif name == b"XDEL":
                self._trimmed(key, args[2:])
        elif name in (b"EVAL", b"EVALSHA"):
            self._running.clear()
        elif name == b"DEL":
            self._unmarked.update(each.partition(MARKS)[2][:-1] for each in args[1:] if MARKS in each)
        elif name == b"HSET":
            self._shared(key, args[2], args[3])

    # ------------------------------------------------------------------------------------------ the script

    def _added(self, key: bytes, fields: list[bytes]) -> None:
        entry = entry_of((b"0-1", fields))
        lane, seq = _lane(key, entry.head), entry.head.seq
        if self._server.store.peek(key) is None:
            self._unmarked.discard(key)
            if self._marks(key) is not None:
                self._violate("mark", f"{lane}: {seq} begins a stream that has marks already")
        elif self._lies(key, lane, seq) and key not in self._unmarked:
            self._violate("twice", f"{lane}: {seq} is in the stream and was appended again")
        marks = self._marks(key)
        mark = marks.get(lane_field(lane).encode(), b"") if marks is not None else b""
        after = self._running.get((key, lane), sequence_in(mark.partition(b":")[0]) or 0)
        if missing := next((each for each in range(after + 1, seq) if self._has(lane, each)), 0):
            self._violate("hole", f"{lane}: {seq} was appended behind {after}, and a log has {missing}")
        self._running[key, lane] = entry.through
        self._taken[lane] = max(entry.through, self._taken.get(lane, 0))

    def _marks(self, key: bytes) -> Hash | None:
        """The marks beside a stream."""
        found = self._server.store.peek(key.partition(STREAM)[0] + MARKS + key + b"}")
        return found if isinstance(found, Hash) else None

    def _entries(self, key: bytes) -> list[Entry]:
        stream = self._server.store.peek(key)
        return [entry_of((id_text(each.id), each.fields)) for each in stream] if isinstance(stream, Stream) else []

    def _lies(self, key: bytes, lane: Lane, seq: int) -> bool:
        """Whether a record is in the stream."""
        if self._taken.get(lane, 0) < seq:
            return False
        return any(each.head.seq <= seq <= each.through and _lane(key, each.head) == lane for each in self._entries(key))

    def _marked(self, key: bytes, field: bytes, mark: bytes) -> None:
        stream = key.partition(MARKS)[2][:-1]
        last = next((seq for (of, lane), seq in self._running.items() if (of, lane_field(lane)) == (stream, field.decode())), 0)
        if sequence_in(mark.partition(b":")[0]) != last:
            self._violate("mark", f"{stream!r} {field!r}: the mark became {mark!r}, appended last was {last}")

    def _published(self, channel: bytes, data: bytes) -> None:
        head = head_of(data)
        lane = next(lane for _, lane in self._running if (lane.origin, lane.inc, lane.priority) == (
            head.origin, head.inc, head.priority))
        told = self._told.setdefault(lane, set())
        if head.seq in told and head.seq <= self._accepted.get(lane, 0) and self._remembers():
            self._violate("told", f"{lane}: {head.seq} was accepted before and is published again")
        told.add(head.seq)

    # ------------------------------------------------------------------------------------------ trimming

    def _shared(self, key: bytes, field: bytes, data: bytes) -> None:
        """What a site tells of its subscriptions: what was settled once may be trimmed whatever is told later."""
        if key.endswith(b"subscriptions"):
            there = self._server.store.peek(key)
            if not isinstance(there, Hash) or field not in there:
                self._since[field] = self._clock()
        elif b"acks:{" in key:
            for lane, seq in acks_of({field: data}).get(field.decode(), {}).items():
                place = key.partition(b"acks:{")[2][:-1], field.decode(), lane
                self._settled[place] = max(seq, self._settled.get(place, 0))

    def _trimmed(self, key: bytes, idents: list[bytes]) -> None:
        known = self._server.store.peek(key.partition(STREAM)[0] + b"subscriptions")
        for entry in self._entries(key):
            if entry.id not in idents:
                continue
            lane = _lane(key, entry.head)
            for field, data in known.items() if isinstance(known, Hash) else ():
                shared, name = msgspec.json.decode(data, type=Shared), field.decode()
                if (matcher(shared.patterns)(lane.channel) and name.rpartition("@")[2] != site_of(lane.origin)
                        and self._clock() - self._since[field] > SETTLE_S
                        and self._settled.get((key, name, lane_field(lane)), 0) < entry.through):
                    self._violate("trimmed", f"{lane}: {entry.through} was trimmed, and {name} has not settled it")

    # ------------------------------------------------------------------------------------------ the publishers

    def acknowledged(self, site: str, lane: Lane, seq: int) -> None:
        """A publisher of a site was told that the shared Redis has it."""
        if self._taken.get(lane, 0) < seq:
            self._violate("receipt", f"{lane}: {seq} is acknowledged as in the shared Redis, which was never given it")
        self._accepted[lane] = max(seq, self._accepted.get(lane, 0))
        self._site[lane] = site

    def power(self, site: str) -> None:
        """What the relay of this site remembered of its lanes may be lost."""
        for lane in [lane for lane in self._accepted if self._site[lane] == site]:
            del self._accepted[lane]


def _lane(key: bytes, head: Head) -> Lane:
    return Lane(key.decode().partition("message-stream:")[2], head.origin, head.inc, head.priority)
