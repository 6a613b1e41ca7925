"""Handling: retries, dead letters, copies, expiry, damage, and the two marks around the handler."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from random import Random
from typing import Any

import pytest

from lemegeton.channels import DEAD_LETTER
from lemegeton.checkpoint import VolatileMarks, settled_at
from lemegeton.codec import Draft, decode, encode
from lemegeton.errors import LogError, Rejected
from lemegeton.events import CorruptRecord, DeadLettered, Event, Expired, Gap, HandlerFailed, LaneStalled
from lemegeton.handling import DEAD_LETTER_RETRY_S, Handling, LanePlace, Outcome
from lemegeton.lane import SPARSE, Lane, branch_id, made_id
from lemegeton.logs.base import GONE, SKIP, Damage, Found, Marker
from lemegeton.logs.memory import MemoryLog
from lemegeton.message import Message
from lemegeton.osfs import OsFs
from lemegeton.retry import Backoff
from lemegeton.segment import Framer
from lemegeton.testing.fake_fs import FakeDisk, FakeFs
from lemegeton.testing.faulty import FaultyLog
from lemegeton.testing.virtual_loop import run
from lemegeton.window import IdWindow

LANE = Lane("c", "a~s~0", 1, 1)
NOW_MS = 1_000_000


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        run(test(*args, **kwargs))

    return wrapper


def record(seq: int, payload: Any = None, ident: str | None = None, lane: Lane = LANE, **fields: Any) -> bytes:
    draft = Draft(NOW_MS, "custom", "tester", payload if payload is not None else seq, ident, **fields)
    return Framer(lane).line(encode(draft, 1 << 62), seq, ident is None)[9:-1]


class Rig:
    """One lane, its place and a handler."""

    def __init__(self, handler: Callable[[Message], Awaitable[Any]] | None = None, *, attempts: int = 3,
                 lane: Lane = LANE, bytes_max: int = 1 << 20, flagged: int = 0) -> None:
        self.events: list[Event] = []
        self.log = FaultyLog(MemoryLog())
        self.marks = VolatileMarks()
        self.window = IdWindow(OsFs(), None)
        self.now_ms = NOW_MS
        self.got: list[Message] = []
        self.handling = Handling(
            self.log, handler or self.keep, self.window, Backoff(attempts, 1.0), self.events.append, name="sub",
            sender="me", wall_ms=lambda: self.now_ms, bytes_max=bytes_max)
        self.place = LanePlace(lane, self.marks.add(lane, 0), 1, flagged)

    async def keep(self, message: Message) -> None:
        self.got.append(message)

    async def handle(self, *records: Found) -> Outcome:
        return await self.handling.handle(self.place, records, self.marks)

    @property
    def settled(self) -> int:
        return self.marks.cells[settled_at(self.place.row)]

    @property
    def intent(self) -> int:
        return self.marks.cells[settled_at(self.place.row) + 1]

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def dead(self, channel: str = "dead-letter:c") -> list[Message]:
        found = []
        for lane in await self.log.lanes(channel):
            batch = await self.log.read(lane, await self.log.seek(lane, 0))
            found += [decode(each) for each in batch.records if isinstance(each, bytes)]
        return found


def failing(*payloads: Any) -> Callable[[Message], Awaitable[None]]:
    async def handler(message: Message) -> None:
        if message.payload in payloads:
            raise ValueError(f"cannot do {message.payload}")

    return handler


# ------------------------------------------------------------------------------------------------ marks


@in_virtual_time
async def test_intent_is_stored_before_the_handler_and_settled_after_it() -> None:
    seen: list[tuple[int, int]] = []

    async def handler(_: Message) -> None:
        seen.append((rig.intent, rig.settled))

    rig = Rig(handler)
    assert await rig.handle(record(1), record(2)) is Outcome.DONE
    assert seen == [(1, 0), (2, 1)]
    assert (rig.intent, rig.settled, rig.place.next) == (2, 2, 3)
    assert rig.handling.counts.handled == 2


@in_virtual_time
async def test_the_handler_sees_channel_bytes_and_position() -> None:
    rig = Rig()
    await rig.handle(record(1, {"x": 1}))
    (message,) = rig.got
    assert (message.channel, message.raw, message.seq) == ("c", record(1, {"x": 1}), 1)
    assert (message.redelivered, message.attempt) == (False, 1)


@in_virtual_time
async def test_records_that_were_settled_are_not_handled_again() -> None:
    rig = Rig()
    await rig.handle(record(1), record(2))
    assert await rig.handle(record(1), record(2), record(3)) is Outcome.DONE
    assert [message.seq for message in rig.got] == [1, 2, 3]


@in_virtual_time
async def test_stopping_leaves_the_rest_of_a_batch() -> None:
    async def handler(_: Message) -> None:
        rig.handling.stopping = True

    rig = Rig(handler)
    assert await rig.handle(record(1), record(2)) is Outcome.STOPPED
    assert rig.settled == 1


@in_virtual_time
async def test_a_cancelled_handler_leaves_its_record_unsettled() -> None:
    inside = asyncio.Event()

    async def handler(_: Message) -> None:
        inside.set()
        await asyncio.sleep(100.0)

    rig = Rig(handler)
    task = asyncio.create_task(rig.handle(record(1)))
    await inside.wait()
    rig.handling.stopping = True
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (rig.intent, rig.settled) == (1, 0)
    assert not rig.events


@in_virtual_time
async def test_a_handler_that_cancels_itself_has_failed() -> None:
    async def handler(_: Message) -> None:
        raise asyncio.CancelledError("of its own")

    rig = Rig(handler)
    assert await rig.handle(record(1)) is Outcome.LATER
    assert rig.of(HandlerFailed)[0].error == "CancelledError: of its own"


@in_virtual_time
async def test_what_an_earlier_process_may_have_handled_is_flagged_and_counted() -> None:
    rig = Rig(flagged=2)
    await rig.handle(record(1), record(2), record(3))
    assert [message.redelivered for message in rig.got] == [True, True, False]
    assert rig.handling.counts.redelivered == 2


# ------------------------------------------------------------------------------------------------ before the handler


@in_virtual_time
async def test_an_expired_message_is_an_event_and_settled() -> None:
    rig = Rig()
    rig.now_ms = NOW_MS + 5001
    await rig.handle(record(1, ttl=5000), record(2, ttl=6000), record(3))
    assert [message.seq for message in rig.got] == [2, 3]
    (expired,) = rig.of(Expired)
    assert (expired.lane, expired.seq, expired.id) == (LANE, 1, made_id(LANE, 1))
    assert (rig.settled, rig.handling.counts.expired) == (3, 1)


# Forks


class Far(MemoryLog):
    """A log of another site's lanes."""

    def is_near(self, lane: Lane) -> bool:
        return False


@pytest.mark.parametrize(("near", "handled"), [(True, 0), (False, 1)])
def test_what_another_branch_settled_under_a_position_is_no_copy_and_what_was_settled_here_is(near: bool, handled: int) -> None:
    @in_virtual_time
    async def test() -> None:
        rig = Rig()
        if not near:
            rig.log = FaultyLog(Far())
            rig.handling._log = rig.log
        await rig.handle(record(1), record(2), record(3))
        rig.got.clear()
        rig.place = LanePlace(LANE._replace(inc=2), rig.marks.add(LANE._replace(inc=2), 0), 1, 0)
        again = branch_id(made_id(LANE, 3), 7)
        await rig.handle(record(1, "again", again, rig.place.lane), record(2, "again", again, rig.place.lane))
        assert len(rig.got) == handled
        await rig.handle(record(3, "new", branch_id(made_id(LANE, 4), 7), rig.place.lane))
        assert len(rig.got) == handled + 1
        await rig.handle(record(4, "odd", f"{made_id(LANE, 4)}x", rig.place.lane))
        assert len(rig.got) == handled + 2

    test()


# Markers


@in_virtual_time
async def test_what_was_not_sent_because_it_expired_is_settled_and_counted_as_expired() -> None:
    rig = Rig()
    await rig.handle(record(1), Marker(SKIP, 2, 4), record(5))
    assert [message.seq for message in rig.got] == [1, 5]
    (expired,) = rig.of(Expired)
    assert (expired.lane, expired.seq) == (LANE, 4)
    assert (rig.settled, rig.handling.counts.expired, rig.handling.counts.missing) == (5, 3, 0)
    assert not rig.of(Gap)


@in_virtual_time
async def test_what_no_log_has_any_more_is_a_gap_and_the_next_begins_with_its_first_attempt() -> None:
    rig = Rig(failing(1), attempts=3)
    assert await rig.handle(record(1)) is Outcome.LATER
    assert rig.place.attempt == 2
    await rig.handle(Marker(GONE, 1, 3))
    assert [(gap.first, gap.last, gap.cause) for gap in rig.of(Gap)] == [(1, 3, "its log does not have it any more")]
    assert (rig.settled, rig.place.next, rig.place.attempt, rig.handling.counts.missing) == (3, 4, 1, 3)


@in_virtual_time
@pytest.mark.parametrize("kind", [SKIP, GONE])
async def test_of_a_marker_only_the_part_above_what_is_settled_counts(kind: str) -> None:
    rig = Rig()
    await rig.handle(record(1), record(2), record(3), Marker(kind, 2, 5))
    assert (rig.settled, rig.handling.counts.expired + rig.handling.counts.missing) == (5, 2)
    await rig.handle(Marker(kind, 2, 5), Marker(kind, 4, 4))
    assert (rig.settled, rig.place.next, len(rig.of(Expired)) + len(rig.of(Gap))) == (5, 6, 1)


@in_virtual_time
async def test_a_hole_before_a_marker_is_a_gap_of_its_own() -> None:
    rig = Rig()
    await rig.handle(record(1), Marker(SKIP, 4, 5), record(6))
    assert [(gap.first, gap.last) for gap in rig.of(Gap)] == [(2, 3)]
    assert (rig.settled, rig.handling.counts.missing, rig.handling.counts.expired) == (6, 2, 2)


@in_virtual_time
async def test_a_lane_that_somebody_else_numbers_has_no_gaps_and_goes_only_forward() -> None:
    lane = LANE._replace(origin=f"{SPARSE}s~0")
    rig = Rig(lane=lane)
    await rig.handle(record(10, lane=lane), record(400, lane=lane), record(20, lane=lane), record(401, lane=lane))
    assert [message.seq for message in rig.got] == [10, 400, 401]
    assert (rig.settled, rig.of(Gap)) == (401, [])


@in_virtual_time
async def test_missing_sequences_are_a_gap_that_names_the_cause() -> None:
    rig = Rig()
    await rig.handle(record(1), record(5), Damage("wrong checksum"), record(8))
    gaps = [(gap.first, gap.last, gap.cause) for gap in rig.of(Gap)]
    assert gaps == [(2, 4, "no log has it"), (6, 7, "wrong checksum")]
    assert (rig.settled, rig.handling.counts.missing, rig.handling.counts.corrupt) == (8, 5, 1)


@in_virtual_time
async def test_damage_json_and_strangers_cost_one_record_each_and_are_reported() -> None:
    stranger = record(3, lane=LANE._replace(origin="b~s~0"))
    older = record(3, lane=LANE._replace(inc=7))
    rig = Rig()
    await rig.handle(record(1), b"{not json", stranger, older, Damage("wrong checksum"), record(2))
    assert [message.seq for message in rig.got] == [1, 2]
    causes = [event.cause for event in rig.of(CorruptRecord)]
    assert [event.expected for event in rig.of(CorruptRecord)] == [2] * 4
    assert causes[1:] == ["a record of b~s~0.1 does not belong here", "a record of a~s~0.7 does not belong here",
                          "wrong checksum"]
    assert not rig.of(Gap)


@in_virtual_time
async def test_a_gap_ends_the_attempts_at_the_record_that_is_missing() -> None:
    rig = Rig(failing(1))
    assert await rig.handle(record(1)) is Outcome.LATER
    assert rig.place.attempt == 2
    await rig.handle(record(2))
    assert (rig.place.attempt, rig.settled) == (1, 2)


@in_virtual_time
async def test_a_given_id_is_handled_once_within_its_window() -> None:
    rig = Rig()
    await rig.handle(record(1, ident="mine"), record(2, ident="mine"), record(3, ident="other"))
    assert [message.seq for message in rig.got] == [1, 3]
    assert (rig.handling.counts.copies, rig.settled) == (1, 3)
    rig.now_ms += 25 * 3_600_000
    await rig.handle(record(4, ident="mine"))
    assert [message.seq for message in rig.got] == [1, 3, 4]


@pytest.mark.parametrize("flagged", [0, 1])
def test_a_copy_of_one_that_expired_in_doubt_is_flagged(flagged: int) -> None:
    @in_virtual_time
    async def test() -> None:
        rig = Rig(flagged=flagged)
        rig.now_ms += 10_000
        await rig.handle(record(1, ident="mine", ttl=5000))
        await rig.handle(record(2, ident="mine"), record(3, ident="other"), record(4, ident="mine"))
        assert [(m.seq, m.redelivered) for m in rig.got] == [(2, bool(flagged)), (3, False)]
        counts = rig.handling.counts
        assert (counts.expired, counts.redelivered, counts.copies, rig.settled) == (1, flagged, 1, 4)

    test()


@in_virtual_time
async def test_what_could_not_be_remembered_is_not_given_to_the_handler() -> None:
    rig, disk = Rig(), FakeDisk(Random(1))
    rig.handling._window = IdWindow(FakeFs(disk), "/sub.ids")
    disk.capacity = 0
    with pytest.raises(OSError, match="No space"):
        await rig.handle(record(1), record(2, ident="mine"))
    assert [message.seq for message in rig.got] == [1]
    assert (rig.settled, rig.intent) == (1, 1)  # not in doubt: whoever comes next has nothing to flag
    disk.capacity = None
    await rig.handle(record(2, ident="mine"))
    assert [message.seq for message in rig.got] == [1, 2]


@in_virtual_time
async def test_a_record_that_moved_is_known_by_the_position_in_its_id() -> None:
    rig = Rig()
    old = LANE._replace(inc=3)
    row = rig.marks.add(old, 17)
    moved = [made_id(old, 17), made_id(old, 18), made_id(LANE._replace(inc=9), 1), made_id(old, 1)[:17] + "zz",
             "short-1", "0123456789abcdef-"]
    await rig.handle(*(record(seq, ident=ident) for seq, ident in enumerate(moved, 1)))
    assert [message.id for message in rig.got] == moved[1:]
    rig.marks.drop(old)
    del row
    await rig.handle(record(7, ident=made_id(old, 2)))
    assert len(rig.got) == 6


# ------------------------------------------------------------------------------------------------ retries


@in_virtual_time
async def test_a_failing_handler_is_tried_again_with_growing_delays_and_counted_attempts() -> None:
    attempts: list[tuple[int, bool]] = []

    async def handler(message: Message) -> None:
        attempts.append((message.attempt, message.redelivered))
        raise ValueError("no")

    rig = Rig(handler, attempts=4)
    delays = []
    for _ in range(3):
        assert await rig.handle(record(1)) is Outcome.LATER
        delays.append(rig.place.delay_s)
    assert await rig.handle(record(1)) is Outcome.DONE
    assert attempts == [(1, False), (2, False), (3, False), (4, False)]
    assert delays == [1.0, 2.0, 4.0]
    assert [event.attempt for event in rig.of(HandlerFailed)] == [1, 2, 3, 4]
    assert rig.settled == 1


@in_virtual_time
async def test_a_record_that_succeeds_at_last_leaves_the_next_one_its_attempts() -> None:
    tries: list[tuple[int, int]] = []

    async def handler(message: Message) -> None:
        tries.append((message.seq, message.attempt))
        if message.attempt == 1 and message.seq == 1:
            raise ValueError("no")

    rig = Rig(handler)
    await rig.handle(record(1))
    await rig.handle(record(1), record(2))
    assert tries == [(1, 1), (1, 2), (2, 1)]
    assert not await rig.dead()


# ------------------------------------------------------------------------------------------------ dead letters


@in_virtual_time
async def test_a_dead_letter_says_what_failed_and_carries_the_original() -> None:
    rig = Rig(failing("bad"), attempts=1)
    assert await rig.handle(record(1, "good"), record(2, "bad"), record(3, "good")) is Outcome.DONE
    (letter,) = await rig.dead()
    assert letter.id == f"dl:sub:{made_id(LANE, 2)}"
    assert (letter.type, letter.sender) == ("dead_letter", "me")
    trace = letter.payload.pop("trace")
    assert trace.startswith("Traceback (most recent call last):\n")
    assert trace.endswith("in handler\n    raise ValueError(f\"cannot do {message.payload}\")\nValueError: cannot do bad\n")
    assert letter.payload == {
        "channel": "c", "subscription": "sub", "site": "", "reason": "handler failed", "error": "ValueError: cannot do bad",
        "attempts": 1, "first": NOW_MS, "last": NOW_MS, "id": made_id(LANE, 2), "origin": "a~s~0", "inc": 1, "priority": 1,
        "seq": 2, "original": record(2, "bad").decode(),
    }
    (event,) = rig.of(DeadLettered)
    assert (event.lane, event.seq, event.id, event.attempts) == (LANE, 2, made_id(LANE, 2), 1)
    assert (rig.settled, rig.handling.counts.dead, rig.place.attempt, rig.place.failure) == (3, 1, 1, "")


@in_virtual_time
async def test_a_failure_in_a_dead_letter_channel_is_not_dead_lettered_again() -> None:
    lane = LANE._replace(channel=DEAD_LETTER + "c")
    rig = Rig(failing("bad"), attempts=1, lane=lane)
    assert await rig.handle(record(1, "bad", lane=lane)) is Outcome.DONE
    assert rig.settled == 1
    assert "append" not in rig.log.calls
    assert len(rig.of(DeadLettered)) == 1


@pytest.mark.parametrize("error", [LogError("full"), OSError(errno.ENOSPC, "no space")])
def test_a_lane_waits_while_its_dead_letter_cannot_be_stored(error: Exception) -> None:
    @in_virtual_time
    async def test() -> None:
        calls: list[int] = []

        async def handler(message: Message) -> None:
            calls.append(message.seq)
            raise ValueError("no")

        rig = Rig(handler, attempts=1)
        rig.log.fail("append", times=2, error=error)
        for _ in range(2):
            assert await rig.handle(record(1), record(2)) is Outcome.LATER
            assert (rig.place.delay_s, rig.settled) == (DEAD_LETTER_RETRY_S, 0)
        assert await rig.handle(record(1)) is Outcome.DONE
        assert calls == [1]  # the handler had its attempts; only the burial was tried again
        assert len(rig.of(LaneStalled)) == 2
        assert [letter.payload["id"] for letter in await rig.dead()] == [made_id(LANE, 1)]

    test()


@in_virtual_time
async def test_the_copy_of_a_dead_letter_after_a_crash_is_dropped_by_its_reader() -> None:
    rig = Rig(failing("bad"), attempts=1)
    rig.log.fail("append", after=True)
    assert await rig.handle(record(1, "bad")) is Outcome.LATER
    assert await rig.handle(record(1, "bad")) is Outcome.DONE
    first, second = await rig.dead()
    assert first.id == second.id
    lane = LANE._replace(channel=DEAD_LETTER + "c")
    reader = Rig(lane=lane)
    await reader.handle(record(1, "x", first.id, lane), record(2, "x", second.id, lane))
    assert len(reader.got) == 1


@in_virtual_time
async def test_a_dead_letter_of_a_large_message_leaves_the_original_where_it_lies() -> None:
    rig = Rig(failing("x" * 3000), attempts=1, bytes_max=3000)
    assert await rig.handle(record(1, "x" * 3000)) is Outcome.DONE
    (letter,) = await rig.dead()
    assert letter.payload["original"] is None
    assert letter.payload["id"] == made_id(LANE, 1)


@in_virtual_time
async def test_a_dead_letter_fits_however_small_messages_must_be() -> None:
    async def handler(_: Message) -> None:
        raise ValueError("\U0001f600" * 5000)

    rig = Rig(handler, attempts=1, bytes_max=1000)
    assert await rig.handle(record(1, "x" * 500)) is Outcome.DONE, rig.events
    (letter,) = await rig.dead()
    assert letter.payload["error"].startswith("ValueError: \U0001f600")


@in_virtual_time
async def test_a_copy_waits_while_its_twin_of_another_lane_is_in_the_handler() -> None:
    inside, go = asyncio.Event(), asyncio.Event()

    async def handler(message: Message) -> None:
        rig.got.append(message)
        inside.set()
        await go.wait()

    rig = Rig(handler)
    other = LANE._replace(origin="b~s~0")
    place = LanePlace(other, rig.marks.add(other, 0), 1, 0)
    first = asyncio.create_task(rig.handle(record(1, ident="mine")))
    await inside.wait()
    copy = [record(1, ident="mine", lane=other)]
    assert await rig.handling.handle(place, copy, rig.marks) is Outcome.LATER
    go.set()
    assert await first is Outcome.DONE
    assert await rig.handling.handle(place, copy, rig.marks) is Outcome.DONE
    assert (len(rig.got), rig.handling.counts.copies) == (1, 1)


@in_virtual_time
async def test_a_given_id_that_failed_is_handled_again() -> None:
    rig = Rig(failing(1))
    assert await rig.handle(record(1, 1, "mine")) is Outcome.LATER
    assert rig.handling.counts.copies == 0
    assert await rig.handle(record(1, 2, "mine")) is Outcome.DONE


@in_virtual_time
async def test_a_given_id_that_died_is_not_handled_again() -> None:
    rig = Rig(failing("bad"), attempts=1)
    await rig.handle(record(1, "bad", "mine"), record(2, "bad", "mine"))
    assert rig.handling.counts.copies == 1
    assert len(await rig.dead()) == 1


@in_virtual_time
async def test_a_handler_that_cancels_its_own_task_has_failed_and_the_worker_lives() -> None:
    async def handler(_: Message) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        task.cancel()
        await asyncio.sleep(1.0)

    rig = Rig(handler)
    assert await asyncio.create_task(rig.handle(record(1))) is Outcome.LATER
    assert len(rig.of(HandlerFailed)) == 1


@in_virtual_time
async def test_a_message_that_its_handler_rejects_is_a_dead_letter_at_once() -> None:
    async def handler(message: Message) -> None:
        if message.seq < 3:
            raise Rejected(f"not {message.payload}", **({"reason": "too old"} if message.seq == 1 else {}))

    rig = Rig(handler)
    assert await rig.handle(record(1), record(2), record(3)) is Outcome.DONE
    assert [(d.payload["reason"], d.payload["error"], d.payload["attempts"]) for d in await rig.dead()] == [
        ("too old", "Rejected: not 1", 1), ("rejected", "Rejected: not 2", 1)]


@in_virtual_time
async def test_a_dead_letter_is_part_of_the_trace_of_its_message() -> None:
    rig = Rig(failing("bad"), attempts=1)
    headers = {"traceparent": "00-1-2-01", "tracestate": "k=v", "other": "x"}
    await rig.handle(record(1, "bad", headers=headers), record(2, "bad", headers={"traceparent": "t" * 9000}))
    (first, second) = await rig.dead()
    assert (first.headers, len(second.headers["traceparent"])) == ({"traceparent": "00-1-2-01", "tracestate": "k=v"}, 9000)


@in_virtual_time
async def test_a_dead_letter_fits_though_what_it_is_a_part_of_does_not() -> None:
    rig = Rig(failing("bad"), attempts=1, bytes_max=700)
    await rig.handle(record(1, "bad", headers={"traceparent": "t" * 900}))
    (letter,) = await rig.dead()
    assert (letter.headers, letter.payload["error"], letter.payload["original"]) == ({}, "", None)
