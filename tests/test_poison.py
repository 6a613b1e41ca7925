"""Poison: a message that ends its process again and again becomes a dead letter, and nothing beside it does."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lemegeton import MessageBus
from lemegeton.checkpoint import GROW_ROWS, VolatileMarks, settled_at
from lemegeton.errors import LogError
from lemegeton.events import DeadLettered
from lemegeton.handling import TURN_WAIT_S, Handling, LanePlace, Outcome
from lemegeton.lane import made_id
from lemegeton.message import Message
from lemegeton.poison import LIVES_MAX, Past, Turn, past_of, remember
from lemegeton.segment import NUMBER_MAX
from lemegeton.testing.memory import MemorySite
from test_handling import LANE, NOW_MS, Rig, in_virtual_time, record

SEQUENCES = st.integers(1, NUMBER_MAX)


async def for_ever(_: Message) -> None:
    await asyncio.get_running_loop().create_future()


class Life(Rig):
    """A process: begins where the marks of the one before say, and may end in a handler."""

    def __init__(self, before: Rig, handler: Callable[[Message], Awaitable[Any]] | None = None, *, attempts: int = 3) -> None:
        super().__init__(handler, attempts=attempts)
        self.log = self.handling._log = before.log
        self.marks = before.marks
        self.place = begin(before.place, self.marks)

    async def dies(self, *records: bytes) -> None:
        """Be killed in the handler: nothing is done any more."""
        assert await died(self.handling, self.place, self.marks, *records)


def begin(place: LanePlace, marks: Any) -> LanePlace:
    settled, intent = marks.cells[settled_at(place.row)], marks.cells[settled_at(place.row) + 1]
    return LanePlace(place.lane, place.row, settled + 1, intent, settled + 1 if intent == settled + 1 else 0)


async def died(handling: Handling, place: LanePlace, marks: Any, *records: bytes) -> bool:
    """A SIGKILL: the marks are what they were when the handler had the record, whatever a task does that is cancelled.

    False if the handler was not given any."""
    task = asyncio.create_task(handling.handle(place, records, marks))
    await asyncio.sleep(0)
    if task.done():
        return False
    cells = bytes(marks.cells)
    handling.stopping = True
    task.cancel()
    await asyncio.wait([task])
    marks.cells[:] = memoryview(cells).cast("Q")
    return True


# ------------------------------------------------------------------------------------------------ the two words


@given(SEQUENCES, st.integers(0, 2 * LIVES_MAX), st.booleans(), st.integers(0, 2**63), st.integers(0, GROW_ROWS - 1))
def test_what_is_remembered_comes_back_for_its_own_record_only(seq: int, lives: int, alone: bool, since: int, row: int) -> None:
    marks = VolatileMarks()
    remember(marks.cells, row, seq, Past(lives, since, alone))
    assert past_of(marks.cells, row, seq, False) == Past(min(lives, LIVES_MAX), since, alone, counted=True)
    assert past_of(marks.cells, row, seq + 1, True) == Past(1)
    assert past_of(marks.cells, row, seq + 1, False) == Past(0)
    others = [other for other in range(GROW_ROWS) if other != row]
    assert all(marks.cells[settled_at(other) - 1 + word] == 0 for other in others for word in range(64))


def test_one_turn_is_taken_by_one() -> None:
    turn = Turn()
    assert turn.take()
    assert not turn.take()
    turn.leave()
    assert turn.take()


# ------------------------------------------------------------------------------------------------ lives


@in_virtual_time
async def test_a_record_that_ends_three_processes_is_a_dead_letter_before_the_fourth_has_it() -> None:
    life = Rig(for_ever)
    await died(life.handling, life.place, life.marks, record(1))
    for ms in (1, 2):
        life = Life(life, for_ever)
        life.now_ms += ms
        await life.dies(record(1))
        assert not await life.dead()
    last = Life(life)
    last.now_ms += 9
    assert await last.handle(record(1), record(2)) is Outcome.DONE
    assert [message.seq for message in last.got] == [2]
    (letter,) = await last.dead()
    assert letter.id == f"dl:sub:{made_id(LANE, 1)}"
    assert (letter.payload["reason"], letter.payload["attempts"], letter.payload["trace"]) == ("process died", 3, "")
    assert letter.payload["error"] == "3 processes ended while their handler had it"
    assert (letter.payload["first"], letter.payload["last"]) == (NOW_MS + 1, NOW_MS + 9)
    (event,) = last.of(DeadLettered)
    assert (event.seq, event.attempts) == (1, 3)


@pytest.mark.parametrize("attempts", [1, 2, 3, 5])
def test_three_processes_or_more_have_it_before_it_is_given_up(attempts: int) -> None:
    @in_virtual_time
    async def test() -> None:
        life, lives = Rig(for_ever, attempts=attempts), 0
        while await died(life.handling, life.place, life.marks, record(1)):
            life, lives = Life(life, for_ever, attempts=attempts), lives + 1
        (letter,) = await life.dead()
        assert letter.payload["attempts"] == lives == max(3, attempts)

    test()


@in_virtual_time
async def test_attempts_of_all_processes_count_together() -> None:
    async def fails(message: Message) -> None:
        raise ValueError("no")

    first = Rig(for_ever)
    await died(first.handling, first.place, first.marks, record(1))
    second = Life(first, fails)
    assert await second.handle(record(1)) is Outcome.LATER
    assert await second.handle(record(1)) is Outcome.DONE
    (letter,) = await second.dead()
    assert (letter.payload["reason"], letter.payload["attempts"]) == ("handler failed", 3)


@in_virtual_time
async def test_a_record_that_was_only_in_doubt_has_all_its_attempts() -> None:
    calls: list[int] = []

    async def fails(message: Message) -> None:
        calls.append(message.attempt)
        raise ValueError("no")

    rig = Rig(fails, flagged=9)
    while await rig.handle(record(1)) is Outcome.LATER:
        pass
    assert calls == [1, 2, 3]


@in_virtual_time
async def test_the_record_behind_poison_begins_without_its_past() -> None:
    life = Rig(for_ever)
    await died(life.handling, life.place, life.marks, record(1))
    life = Life(life)
    assert await life.handle(record(1), record(2)) is Outcome.DONE
    assert [(message.seq, message.redelivered) for message in life.got] == [(1, True), (2, False)]
    assert life.place.past == Past(0)


@in_virtual_time
async def test_a_process_that_ends_in_good_order_is_no_attempt() -> None:
    life = Rig(for_ever)
    for _ in range(9):
        task = asyncio.create_task(life.handle(record(1)))
        await asyncio.sleep(0)
        life.handling.stopping = True
        task.cancel()
        await asyncio.wait([task])
        life.handling.forgive(life.place, life.marks)
        life = Life(life, for_ever)
    assert not await life.dead()
    for _ in range(3):
        assert past_of(life.marks.cells, life.place.row, 1, True).alone is False
        await life.dies(record(1))
        life = Life(life, for_ever)
    assert await life.handle(record(1)) is Outcome.DONE
    (letter,) = await life.dead()
    assert letter.payload["attempts"] == 3


@in_virtual_time
async def test_forgiving_changes_nothing_where_no_handler_was_called() -> None:
    rig = Rig()
    await rig.handle(record(1))
    before = bytes(rig.marks.cells)
    rig.handling.forgive(rig.place, rig.marks)
    rig.place = LanePlace(LANE, rig.place.row, 2, 7)
    rig.handling.forgive(rig.place, rig.marks)
    assert bytes(rig.marks.cells) == before


@in_virtual_time
async def test_marks_that_were_let_go_are_not_written_to() -> None:
    life = Rig(for_ever)
    await died(life.handling, life.place, life.marks, record(1))
    go = asyncio.Event()

    async def ignores(_: Message) -> None:
        await go.wait()
        raise ValueError("late")

    life = Life(life, ignores)
    task = asyncio.create_task(life.handle(record(1)))
    await asyncio.sleep(0)
    life.handling.closed = True
    life.marks.close()
    go.set()
    assert await task is Outcome.STOPPED


# ------------------------------------------------------------------------------------------------ alone


@in_virtual_time
async def test_last_chances_are_taken_one_after_the_other() -> None:
    marks, other = VolatileMarks(), LANE._replace(origin="b~s~0")
    rig = Rig()
    rig.marks = marks
    rig.place = LanePlace(LANE, marks.add(LANE, 0), 1, 1)
    beside = LanePlace(other, marks.add(other, 0), 1, 1)
    for place in (rig.place, beside):
        remember(marks.cells, place.row, 1, Past(2, NOW_MS))
    inside, go = asyncio.Event(), asyncio.Event()

    async def handler(message: Message) -> None:
        rig.got.append(message)
        inside.set()
        await go.wait()

    rig.handling._handler = handler
    first = asyncio.create_task(rig.handle(record(1)))
    await inside.wait()
    assert past_of(marks.cells, rig.place.row, 1, True).alone
    assert await rig.handling.handle(beside, [record(1, lane=other)], marks) is Outcome.LATER
    assert (beside.delay_s, past_of(marks.cells, beside.row, 1, True)) == (TURN_WAIT_S, Past(2, NOW_MS, counted=True))
    go.set()
    assert await first is Outcome.DONE
    assert await rig.handling.handle(beside, [record(1, lane=other)], marks) is Outcome.DONE
    assert [message.origin for message in rig.got] == [LANE.origin, other.origin]


@in_virtual_time
async def test_whoever_waits_for_its_turn_and_expires_leaves_its_past_behind() -> None:
    rig = Rig(flagged=1)
    remember(rig.marks.cells, rig.place.row, 1, Past(2, NOW_MS))
    assert rig.handling._turn.take()
    assert await rig.handle(record(1, ttl=5)) is Outcome.LATER
    rig.now_ms += 10
    assert await rig.handle(record(1, ttl=5), record(2)) is Outcome.DONE
    assert (rig.place.past, [message.seq for message in rig.got]) == (Past(0), [2])


@in_virtual_time
async def test_a_last_chance_that_raises_is_not_alone_while_it_waits() -> None:
    async def fails(message: Message) -> None:
        raise ValueError("no")

    rig = Rig(fails, attempts=4, flagged=1)
    remember(rig.marks.cells, rig.place.row, 1, Past(2, NOW_MS, counted=True))
    assert await rig.handle(record(1)) is Outcome.LATER
    assert past_of(rig.marks.cells, rig.place.row, 1, True) == Past(3, NOW_MS, counted=True)


@in_virtual_time
async def test_poison_waits_while_its_dead_letter_cannot_be_stored_and_is_counted_no_further() -> None:
    rig = Rig(flagged=1)
    rig.marks.cells[settled_at(rig.place.row) + 1] = 1
    remember(rig.marks.cells, rig.place.row, 1, Past(3, NOW_MS, alone=True))
    rig.log.fail("append", times=2, error=LogError("full"))
    assert await rig.handle(record(1)) is Outcome.LATER
    rig.handling.forgive(rig.place, rig.marks)
    life = Life(rig)
    assert await life.handle(record(1)) is Outcome.LATER
    assert await life.handle(record(1)) is Outcome.DONE
    (letter,) = await life.dead()
    assert (letter.payload["reason"], letter.payload["attempts"]) == ("process died", 3)
    assert not life.got


@in_virtual_time
async def test_what_expires_while_its_dead_letter_cannot_be_stored_takes_no_other_with_it() -> None:
    async def fails(message: Message) -> None:
        if message.seq == 1:
            raise ValueError("no")

    rig = Rig(fails, attempts=1)
    rig.log.fail("append", error=LogError("full"))
    assert await rig.handle(record(1, ttl=5)) is Outcome.LATER
    rig.now_ms += 10
    assert await rig.handle(record(1, ttl=5), record(2)) is Outcome.DONE
    assert (rig.handling.counts.expired, rig.handling.counts.handled, rig.handling.counts.dead) == (1, 1, 0)


class Crowd:
    """Lanes of one subscription whose processes are killed by the one record that is poison."""

    def __init__(self, attempts: int, turns: list[int]) -> None:
        self.attempts = attempts
        self.turns = turns
        """How long the handler of each lane's record takes; the first one is the poison."""
        self.marks = VolatileMarks()
        self.lanes = [LANE._replace(origin=f"o{n}~s~0") for n in range(len(turns))]
        self.places = [LanePlace(lane, self.marks.add(lane, 0), 1, 0) for lane in self.lanes]
        self.begun = 0
        self.handled: list[str] = []
        self.events: list[Any] = []
        self.log = Rig().log

    async def live(self, order: list[int]) -> bool:
        """One process; true if it comes to the end of every lane."""
        killed = asyncio.Event()

        async def handler(message: Message) -> None:
            at = [lane.origin for lane in self.lanes].index(message.origin)
            for _ in range(self.turns[at]):
                await asyncio.sleep(0)
            if at == 0:
                self.begun += 1
                killed.set()
                await for_ever(message)
            self.handled.append(message.origin)

        rig = Rig(handler, attempts=self.attempts)
        rig.handling._log, rig.handling._observe = self.log, self.events.append
        self.places = [begin(place, self.marks) for place in self.places]
        tasks = [asyncio.create_task(self.drain(rig.handling, self.places[at])) for at in order]
        ended = asyncio.gather(*tasks)
        while not ended.done() and not killed.is_set():
            await asyncio.sleep(0)
        cells = bytes(self.marks.cells)
        rig.handling.stopping = True
        ended.cancel()
        await asyncio.wait(tasks)
        self.marks.cells[:] = memoryview(cells).cast("Q")
        return not killed.is_set()

    async def drain(self, handling: Handling, place: LanePlace) -> None:
        while place.next == 1 and await handling.handle(place, [record(1, lane=place.lane)], self.marks) is Outcome.LATER:
            await asyncio.sleep(0)


@given(st.integers(1, 5), st.lists(st.integers(0, 4), min_size=1, max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_whatever_is_beside_it_the_poison_is_found_and_nothing_else_is(attempts: int, turns: list[int], rng: Any) -> None:
    crowd = Crowd(attempts, turns)

    async def test() -> None:
        for _ in range(50):
            order = list(range(len(turns)))
            rng.shuffle(order)
            if await crowd.live(order):
                return
        raise AssertionError("it comes for ever")

    asyncio.run(test())
    assert [(event.lane, event.attempts) for event in crowd.events] == [(crowd.lanes[0], crowd.begun)]
    assert crowd.begun == max(3, attempts)
    assert set(crowd.handled) == {lane.origin for lane in crowd.lanes[1:]}


# ------------------------------------------------------------------------------------------------ real processes

WORKER = """
import asyncio, os, signal, sys
from lemegeton import MessageBus

async def main(home, log):
    over = asyncio.Event()
    with open(log, "a", buffering=1) as done:
        async def handler(message):
            if message.payload == "poison":
                print("begun", file=done)
                os.kill(os.getpid(), signal.SIGKILL)
            if message.payload == "slow":
                await asyncio.sleep(0.2)
            print(f"{message.sender} {message.payload} {message.redelivered}", file=done)
            if message.payload == "end":
                over.set()

        async with MessageBus("worker", home=home) as bus:
            await bus.subscribe("c", handler, durable="work", start="earliest")
            await over.wait()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_one_poison_message_among_a_thousand_kills_three_processes_and_no_more(tmp_path: Path) -> None:
    home, log = str(tmp_path / "h"), tmp_path / "log"
    async with MessageBus("a", home=home) as a, MessageBus("b", home=home) as b:
        await b.publish("c", "slow")
        for n in range(1000):
            await a.publish("c", n if n != 500 else "poison")
        await a.publish("c", "end")
    codes = []
    while not codes or codes[-1] < 0:
        ended = await asyncio.create_subprocess_exec(sys.executable, "-c", WORKER, home, str(log), stderr=subprocess.PIPE)
        _, err = await ended.communicate()
        assert ended.returncode is not None
        codes.append(ended.returncode)
        assert len(codes) < 9, err
    assert codes == [-9, -9, -9, 0], err
    lines = log.read_text().splitlines()
    assert lines.count("begun") == 3
    handled = Counter(line.rpartition(" ")[0] for line in lines if line != "begun")
    assert handled == {**{f"a {n}": 1 for n in range(1000) if n != 500}, "a end": 1, "b slow": 1}
    async with MessageBus("look", home=home) as look:
        (letter,) = await look.history("dead-letter:c")
    assert (letter.payload["reason"], letter.payload["attempts"], letter.payload["subscription"]) == ("process died", 3, "work")
    assert json.loads(letter.payload["original"])["payload"] == "poison"


async def test_a_bus_that_stops_in_good_order_takes_no_attempt_away(tmp_path: Path) -> None:
    home = str(tmp_path / "h")
    for _ in range(5):
        inside = asyncio.Event()

        async def handler(message: Message, inside: asyncio.Event = inside) -> None:
            inside.set()
            await asyncio.sleep(60)

        async with MessageBus("a", home=home, drain_timeout=0.0) as bus:
            await bus.subscribe("c", handler, durable="work")
            if not await bus.history("c"):
                await bus.publish("c", 1)
            await inside.wait()
        assert bus._observing.counts["dead_letter"] == 0


@pytest.mark.parametrize("durable", ["work", None])
async def test_subscriptions_of_one_bus_share_the_turn(durable: str | None) -> None:
    site = MemorySite()
    async with MessageBus("a", site=site) as bus:
        first = await bus.subscribe("c", for_ever, durable=durable)
        second = await bus.subscribe("d", for_ever)
        assert first._handling._turn is second._handling._turn is site.turn
