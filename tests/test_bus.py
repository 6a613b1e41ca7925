"""The bus: what users hold in their hands, on memory where that is enough, on files and processes where it is not."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lemegeton.bus import FORMS_MAX, MessageBus
from lemegeton.errors import BusClosed, InvalidMessage, LogError, NameTaken, NotReached
from lemegeton.events import CorruptRecord, Event, Expired, Gap, HandlerFailed
from lemegeton.lane import Lane
from lemegeton.logs.base import Form
from lemegeton.logs.memory import MemoryLog, MemoryStore
from lemegeton.message import Message, MessagePriority
from lemegeton.modes import CoordinationMode
from lemegeton.testing.fake_fs import FakeDisk, FakeFs
from lemegeton.testing.fake_runtime import runtime
from lemegeton.testing.faulty import FaultyLog
from lemegeton.testing.memory import MemorySite
from test_delivery import Gate, Got, in_virtual_time


def child(code: str, home: Path, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own that runs ``code`` with `bus` open; it says things in lines."""
    program = textwrap.dedent("""
        import asyncio, os, signal, sys
        from lemegeton.bus import MessageBus
        def say(*words): os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # print may write word by word
        async def main():
            async with MessageBus("child", home=sys.argv[1]) as bus:
        {code}
        asyncio.run(main())
        say("ended")
    """).replace("{code}", textwrap.indent(textwrap.dedent(code), " " * 8))
    return subprocess.Popen([sys.executable, "-c", program, str(home), *arguments], stdout=subprocess.PIPE, text=True)


async def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), 15.0)).strip()


async def end(process: subprocess.Popen[str]) -> int:
    code = await asyncio.wait_for(asyncio.to_thread(process.wait), 15.0)
    assert process.stdout is not None
    process.stdout.close()
    return code


# ------------------------------------------------------------------------------------------------ life


@in_virtual_time
async def test_a_bus_is_used_between_start_and_stop_and_once() -> None:
    bus = MessageBus("x", site=MemorySite())
    for call in (bus.publish("c", 1), bus.subscribe("c", Got()), bus.history("c"), bus.serve()):
        with pytest.raises(BusClosed, match="not started"):
            await call
    await bus.start()
    with pytest.raises(BusClosed):
        await bus.start()
    await bus.publish("c", 1)
    await bus.stop()
    await bus.stop()
    with pytest.raises(BusClosed, match="stopped"):
        await bus.publish("c", 2)
    with pytest.raises(BusClosed):
        bus.stats()
    with pytest.raises(BusClosed):
        await bus.start()


@in_virtual_time
async def test_one_that_never_started_can_be_stopped() -> None:
    bus = MessageBus("x", site=MemorySite())
    await bus.stop()
    with pytest.raises(BusClosed):
        await bus.start()


def test_a_bad_name_is_refused_at_once() -> None:
    for name in ("", "x" * 65, "a\nb", 7):
        with pytest.raises(InvalidMessage):
            MessageBus(name)  # type: ignore[arg-type]


@in_virtual_time
async def test_stop_lets_handlers_finish_and_cancels_those_that_do_not() -> None:
    store, quick, slow = MemoryStore(), Gate(), Gate()
    bus = MessageBus("x", site=MemorySite(store, drain_timeout=2.0))
    await bus.start()
    await bus.subscribe("quick", quick, durable="quick")
    await bus.subscribe("slow", slow, durable="slow")
    await bus.publish("quick", 1)
    await bus.publish("slow", 1)
    await quick.inside.wait()
    await slow.inside.wait()
    asyncio.get_running_loop().call_later(1.0, quick.opened.set)
    began = asyncio.get_running_loop().time()
    await bus.stop()
    assert asyncio.get_running_loop().time() - began == pytest.approx(2.0, abs=0.1)
    assert quick.got == [1]
    again = Got()
    async with MessageBus("y", site=MemorySite(store)) as bus:
        await bus.subscribe("quick", again, durable="quick")
        await bus.subscribe("slow", again, durable="slow")
        await again.reach(1)
    assert [(m.channel, m.redelivered) for m in again] == [("slow", True)]


@in_virtual_time
async def test_a_handler_that_ignores_cancellation_does_not_keep_stop_for_ever() -> None:
    inside, over = asyncio.Event(), asyncio.Event()

    async def stubborn(_: Message) -> None:
        inside.set()
        while not over.is_set():
            with suppress(asyncio.CancelledError):
                await over.wait()

    bus = MessageBus("x", site=MemorySite(drain_timeout=1.0))
    await bus.start()
    await bus.subscribe("c", stubborn)
    await bus.publish("c", 1)
    await inside.wait()
    await asyncio.wait_for(bus.stop(), 10.0)
    over.set()


async def test_stopping_a_bus_with_much_to_do_is_quick_and_loses_nothing(tmp_path: Path) -> None:
    got, all_of_it = Got(), 10_000
    async with MessageBus("x", home=str(tmp_path / "h")) as bus:
        await bus.subscribe("c", got, durable="worker")
        await asyncio.gather(*(bus.publish("c", n) for n in range(all_of_it)))
    async with MessageBus("x", home=str(tmp_path / "h")) as bus:
        await bus.subscribe("c", got, durable="worker")
        await got.reach(all_of_it)
    assert got.payloads == list(range(all_of_it))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_returns_on_a_signal_and_leaving_drains(number: int, tmp_path: Path) -> None:
    process = child("""
        async def handler(message):
            say("inside")
            os.kill(os.getpid(), int(sys.argv[2]))
            await asyncio.sleep(0.3)
            say("handled")
        await bus.subscribe("c", handler, durable="worker")
        await bus.publish("c", 1)
        await bus.serve()
        say("served")
    """, tmp_path / "h", str(int(number)))
    assert sorted([await line(process) for _ in range(4)][:3]) == ["handled", "inside", "served"]
    assert await end(process) == 0


async def test_a_forked_child_is_refused_and_holds_no_lock(tmp_path: Path) -> None:
    process = child("""
        await bus.subscribe("c", lambda m: None, durable="worker")
        receipt = await bus.publish("c", 1)
        pid = os.fork()
        if not pid:
            from lemegeton.errors import BusClosed
            try:
                bus._running()
            except BusClosed as error:
                say("refused", "forked" in str(error))
            signal.pause()
        say("origin", receipt.lane.origin, pid)
        await asyncio.sleep(30)
    """, tmp_path / "h")
    lines = {words[0]: words[1:] for words in [(await line(process)).split() for _ in range(2)]}
    assert lines["refused"] == ["True"]
    origin, forked = lines["origin"]
    try:
        process.kill()
        process.wait()
        async with MessageBus("child", home=str(tmp_path / "h")) as bus:
            await bus.subscribe("c", Got(), durable="worker")
            assert (await bus.publish("c", 2)).lane.origin == origin
    finally:
        os.kill(int(forked), signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()


# ------------------------------------------------------------------------------------------------ publishing


@in_virtual_time
async def test_a_receipt_names_position_level_and_id() -> None:
    got = Got()
    async with MessageBus("x", site=MemorySite()) as bus:
        await bus.subscribe("c", got)
        made, given = await bus.publish("c", 1), await bus.publish("c", 2, id="mine")
        await got.reach(2)
        assert (made.channel, made.seq, made.level) == ("c", 1, "local")
        assert [m.id for m in got] == [made.id, "mine"]
        assert given.id == "mine"
        assert bus.stats().published == 2


@in_virtual_time
async def test_every_field_arrives() -> None:
    got = Got()
    async with MessageBus("x", site=MemorySite()) as bus:
        await bus.subscribe("c", got)
        await bus.publish("c", {"a": [1, None]}, type="progress", to="bob", ttl=60.0, priority=MessagePriority.HIGH,
                          id="i", correlation_id="cor", reply_to="rep", headers={"traceparent": "00-x"})
        await got.reach(1)
    (m,) = got
    assert (m.payload, m.type, m.to, m.ttl, m.priority, m.id, m.correlation_id, m.reply_to, m.headers, m.sender) == (
        {"a": [1, None]}, "progress", "bob", 60_000, 2, "i", "cor", "rep", {"traceparent": "00-x"}, "x")


@pytest.mark.parametrize("options", [
    {"channel": ""}, {"channel": "a{b"}, {"channel": "x" * 257}, {"priority": 4}, {"ttl": 0}, {"ttl": -1.0},
    {"type": ""}, {"id": ""}, {"headers": {"a": 1}}, {"payload": object()}, {"payload": float("nan")},
    {"payload": "x" * 2_000_000}, {"ack": "mail"}, {"to": "a\nb"},
])
def test_what_breaks_a_rule_is_refused_before_anything_is_written(options: dict[str, Any]) -> None:
    @in_virtual_time
    async def test() -> None:
        async with MessageBus("x", site=MemorySite()) as bus:
            with pytest.raises(InvalidMessage):
                await bus.publish(**{"channel": "c", "payload": 1, **options})
            assert await bus.site.log.channels() == []

    test()


@in_virtual_time
async def test_to_an_agent_and_to_all_are_channels_of_their_own() -> None:
    got = Got()
    async with MessageBus("x", site=MemorySite()) as bus:
        await bus.subscribe(["agent-bob", "hub-broadcast"], got)
        await bus.publish_to_agent("bob", 1)
        await got.reach(1)
        await bus.broadcast(2)
        await got.reach(2)
    assert [(m.channel, m.to) for m in got] == [("agent-bob", "bob"), ("hub-broadcast", None)]


@in_virtual_time
async def test_the_known_forms_are_bounded() -> None:
    async with MessageBus("x", site=MemorySite()) as bus:
        bus._forms = {(str(n), "custom", 1): Form(str(n), 1, b"") for n in range(FORMS_MAX)}
        await bus.publish("c", 1)
        assert list(bus._forms) == [("c", "custom", 1)]


@pytest.mark.parametrize("given", [{"type": []}, {"type": {}}, {"priority": []}, {"type": [], "to": "y"}])
@in_virtual_time
async def test_what_cannot_be_a_key_is_refused_as_anything_else_that_is_wrong(given: dict[str, Any]) -> None:
    async with MessageBus("x", site=MemorySite()) as bus:
        with pytest.raises(InvalidMessage, match="must be"):
            await bus.publish("c", 1, **given)
        with pytest.raises(InvalidMessage, match="channel"):
            await bus.publish([], 1)  # type: ignore[arg-type]


@in_virtual_time
async def test_message_timeout_is_the_ttl_of_messages_without_one() -> None:
    events: list[Event] = []
    store, got = MemoryStore(), Got()
    async with MessageBus("x", site=MemorySite(store, message_timeout=1.0, wall_ms=lambda: 0)) as bus:
        await bus.publish("c", "short")
        await bus.publish("c", "long", ttl=10.0)
    async with MessageBus("y", site=MemorySite(store, wall_ms=lambda: 5000)) as bus:
        bus.on("expired", events.append)
        await bus.subscribe("c", got, start="earliest")
        await got.reach(1)
        assert bus.stats().events["expired"] == 1
    assert got.payloads == ["long"]
    assert [type(event) for event in events] == [Expired]


@in_virtual_time
async def test_handled_returns_when_every_durable_subscription_has_settled_it() -> None:
    store, gate, got = MemoryStore(), Gate(), Got()
    async with MessageBus("x", site=MemorySite(store)) as bus, MessageBus("y", site=MemorySite(store)) as other:
        await other.subscribe("c", gate, durable="slow")
        await bus.subscribe("c", got, durable="quick")
        await bus.subscribe("d", got, durable="not asked")
        task = asyncio.create_task(bus.publish("c", 1, ack="handled"))
        await got.reach(1)
        await asyncio.sleep(1.0)
        assert not task.done()
        gate.opened.set()
        assert (await task).level == "handled"


@in_virtual_time
async def test_handled_with_nobody_to_handle_it_is_not_reached_and_the_message_is_kept() -> None:
    got = Got()
    async with MessageBus("x", site=MemorySite()) as bus:
        with pytest.raises(NotReached, match="no durable subscription") as caught:
            await bus.publish("c", 1, ack="handled")
        assert not caught.value.definite
        await bus.subscribe("c", got, start="earliest")
        await got.reach(1)


@in_virtual_time
async def test_a_level_that_is_not_reached_in_time_says_so_and_the_message_still_goes() -> None:
    gate = Gate()
    async with MessageBus("x", site=MemorySite()) as bus:
        await bus.subscribe("c", gate, durable="slow")
        with pytest.raises(NotReached, match="still goes"):
            await bus.publish("c", 1, ack="handled", timeout=2.0)
        gate.opened.set()
        await asyncio.sleep(0.1)
    assert gate.got == [1]


async def test_disk_and_handled_on_files(tmp_path: Path) -> None:
    got = Got()
    async with MessageBus("x", home=str(tmp_path / "h")) as bus:
        assert (await bus.publish("c", 1, ack="disk")).level == "disk"
        await bus.subscribe("c", got, durable="worker")
        assert (await bus.publish("c", 2, ack="handled", timeout=10.0)).level == "handled"
        assert got.payloads == [2]


@in_virtual_time
async def test_an_append_that_fails_is_raised_and_not_counted() -> None:
    log = FaultyLog(MemoryLog())
    async with MessageBus("x", site=MemorySite(log=log)) as bus:
        log.fail("append")
        with pytest.raises(LogError):
            await bus.publish("c", 1)
        log.hang("append")
        with pytest.raises(NotReached):
            await bus.publish("c", 1, ack="disk", timeout=1.0)
        log.delay("append", 3.0)
        began = asyncio.get_running_loop().time()
        await bus.publish("c", 1)
        assert asyncio.get_running_loop().time() - began == pytest.approx(3.0)
        assert bus.stats().published == 1
        for verb in ("channels", "span", "trim"):
            log.fail(verb, after=True)  # type: ignore[arg-type]
        (lane,) = await log.lanes("c")
        for call in (log.channels(), log.span(lane), log.trim(lane, 0)):
            with pytest.raises(LogError) as caught:
                await call
            assert not caught.value.definite


# ------------------------------------------------------------------------------------------------ subscribing


@in_virtual_time
async def test_what_cannot_be_subscribed_to_is_refused() -> None:
    async with MessageBus("x", site=MemorySite()) as bus:
        for call in (
            bus.subscribe([], Got()), bus.subscribe("", Got()), bus.subscribe("c", Got(), start="later"),  # type: ignore[arg-type]
            bus.subscribe("c", Got(), durable=""), bus.subscribe("c", Got(), durable="x" * 65),
        ):
            with pytest.raises(InvalidMessage):
                await call
        with pytest.raises(InvalidMessage):
            bus.on("no such event", lambda _: None)


@in_virtual_time
async def test_unsubscribing_ends_exactly_these_patterns() -> None:
    async with MessageBus("x", site=MemorySite()) as bus:
        a, b = Got(), Got()
        await bus.subscribe(["a", "b"], a)
        await bus.subscribe("a", b)
        assert await bus.unsubscribe("b") == 0
        assert await bus.unsubscribe("a") == 1
        await bus.publish("a", 1)
        await a.reach(1)
        assert not b
        assert await bus.unsubscribe_all() == 1
        assert await bus.unsubscribe_all() == 0


@in_virtual_time
async def test_a_failing_handler_is_an_event_a_counter_and_in_the_end_a_dead_letter() -> None:
    events: list[Event] = []
    dead = Got()

    async def failing(_: Message) -> None:
        raise ValueError("no")

    async with MessageBus("x", site=MemorySite(retry_attempts=3, retry_delay=1.0)) as bus:
        bus.on("*", events.append)
        await bus.subscribe("dead-letter:*", dead)
        await bus.subscribe("*", failing, durable="worker")
        began = asyncio.get_running_loop().time()
        await bus.publish("c", 1)
        await dead.reach(1)
        assert asyncio.get_running_loop().time() - began == pytest.approx(3.0, abs=0.1)  # 1 s, then 2 s
        assert bus.stats().events == {"handler_failed": 3, "dead_letter": 1}
    assert len([event for event in events if isinstance(event, HandlerFailed)]) == 3
    assert dead[0].payload["subscription"] == "worker"


@in_virtual_time
async def test_a_callback_that_raises_is_counted_and_harmless() -> None:
    def broken(_: Event) -> None:
        raise RuntimeError("observer")

    async def failing(_: Message) -> None:
        raise ValueError("no")

    async with MessageBus("x", site=MemorySite(retry_attempts=1)) as bus:
        off = bus.on("dead_letter", broken)
        await bus.subscribe("c", failing)
        await bus.publish("c", 1)
        await asyncio.sleep(1.0)
        off()
        await bus.publish("c", 1)
        await asyncio.sleep(1.0)
        assert bus.stats().events["observer_failed"] == 1


@in_virtual_time
async def test_without_a_redis_the_mode_is_isolated() -> None:
    async with MessageBus("x", site=MemorySite()) as bus:
        assert bus.mode is CoordinationMode.ISOLATED
        assert not bus.connected
        assert bus.stats().mode == "isolated"


# ------------------------------------------------------------------------------------------------ files and processes


async def test_processes_of_a_home_hear_each_other(tmp_path: Path) -> None:
    got = Got()
    async with MessageBus("parent", home=str(tmp_path / "h")) as bus:
        await bus.subscribe("up-*", got)
        process = child("""
            async def handler(message):
                await bus.publish("up-1", message.payload * 2)
            await bus.subscribe("down", handler)
            say("ready")
            await bus.serve()
        """, tmp_path / "h")
        assert await line(process) == "ready"
        for n in range(100):
            await bus.publish("down", n)
        await asyncio.wait_for(got.reach(100), 15.0)
        process.send_signal(signal.SIGTERM)
        assert await end(process) == 0
    assert got.payloads == [2 * n for n in range(100)]


@pytest.mark.parametrize("fatal", [0, 7])
async def test_killed_inside_the_handler_exactly_that_message_comes_again(fatal: int, tmp_path: Path) -> None:
    process = child("""
        async def handler(message):
            say(message.payload)
            if message.payload == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
        await bus.subscribe("c", handler, durable="worker")
        for n in range(10):
            await bus.publish("c", n)
        await bus.serve()
    """, tmp_path / "h", str(fatal))
    assert await end_lines(process) == [str(n) for n in range(fatal + 1)]
    got = Got()
    async with MessageBus("child", home=str(tmp_path / "h")) as bus:
        await bus.subscribe("c", got, durable="worker")
        await asyncio.wait_for(got.reach(10 - fatal), 15.0)
    assert [(m.payload, m.redelivered) for m in got] == [(n, n == fatal) for n in range(fatal, 10)]


async def end_lines(process: subprocess.Popen[str]) -> list[str]:
    out, _ = await asyncio.wait_for(asyncio.to_thread(process.communicate), 15.0)
    assert process.returncode == -signal.SIGKILL
    return out.split()


async def test_a_publisher_that_is_killed_has_published_what_it_was_told(tmp_path: Path) -> None:
    process = child("""
        for n in range(100_000):
            await bus.publish("c", n)
            if n % 50 == 0:
                say(n)
    """, tmp_path / "h")
    while int(told := await line(process)) < 2000:
        continue
    process.kill()
    out, _ = await asyncio.to_thread(process.communicate)
    told = [told, *out.split()][-1]
    got = Got()
    async with MessageBus("reader", home=str(tmp_path / "h")) as bus:
        await bus.subscribe("c", got, start="earliest")
        await asyncio.wait_for(got.reach(int(told) + 1), 15.0)
    assert got.payloads == list(range(len(got)))


async def test_a_name_held_by_another_process_is_refused_and_free_when_that_is_killed(tmp_path: Path) -> None:
    process = child("""
        await bus.subscribe("c", lambda m: None, durable="worker")
        say("held")
        await bus.serve()
    """, tmp_path / "h")
    assert await line(process) == "held"
    async with MessageBus("x", home=str(tmp_path / "h")) as bus:
        with pytest.raises(NameTaken):
            await bus.subscribe("c", Got(), durable="worker")
        process.kill()
        await end(process)
        await bus.subscribe("c", Got(), durable="worker")


async def test_a_corrupt_line_costs_that_record_and_is_told(tmp_path: Path) -> None:
    got, events = Got(), list[Event]()
    async with MessageBus("x", home=str(tmp_path / "h")) as bus:
        for n in range(1, 6):
            await bus.publish("c", n)
    (path,) = (tmp_path / "h" / "messages" / "c").iterdir()
    path.write_bytes(path.read_bytes().replace(b'"payload":3', b'"payload":9'))
    async with MessageBus("y", home=str(tmp_path / "h")) as bus:
        bus.on("*", events.append)
        await bus.subscribe("c", got, start="earliest")
        await asyncio.wait_for(got.reach(4), 15.0)
    assert got.payloads == [1, 2, 4, 5]
    assert [type(event) for event in events] == [CorruptRecord, Gap]
    gap = events[1]
    assert isinstance(gap, Gap)
    assert (gap.first, gap.last, gap.cause) == (3, 3, "wrong checksum")


async def test_segments_that_go_before_an_ephemeral_reader_has_them_are_a_gap(tmp_path: Path) -> None:
    got, gate, events = Got(), asyncio.Event(), list[Event]()
    inside = asyncio.Event()

    async def slow(message: Message) -> None:
        inside.set()
        await gate.wait()
        await got(message)

    async with MessageBus("x", home=str(tmp_path / "h"), segment_bytes=20_000, open_files=1) as bus:
        bus.on("gap", events.append)
        await bus.subscribe("c", slow)
        for n in range(3000):
            await bus.publish("c", f"{n} {'x' * 200}")
        await inside.wait()
        (lane,) = await bus.site.log.lanes("c")
        await bus.site.log.trim(lane, 2500)
        gate.set()
        last = (await bus.site.log.span(lane)).last
        while not got or got[-1].seq != last:
            await asyncio.sleep(0.01)
    missing = sum(event.last - event.first + 1 for event in events if isinstance(event, Gap))
    assert len(got) + missing == 3000
    assert [m.seq for m in got] == sorted({m.seq for m in got})


async def test_the_home_may_vanish_and_come_back_under_a_bus(tmp_path: Path) -> None:
    got: Any = Got()
    async with MessageBus("x", home=str(tmp_path / "h"), polling_interval=0.2) as bus:
        await bus.subscribe("c*", got)
        await bus.publish("c", 1)
        await asyncio.wait_for(got.reach(1), 15.0)
        for path in (tmp_path / "h" / "messages" / "c").iterdir():
            path.unlink()
        (tmp_path / "h" / "messages" / "c").rmdir()
        while not bus.stats().events.get("incarnation_begun"):
            with suppress(LogError):
                await bus.publish("c", 2)
            await asyncio.sleep(0.05)
        await bus.publish("c", "last")
        for _ in range(1000):
            if got.payloads[-1] == "last":
                break
            await asyncio.sleep(0.01)
    assert got.payloads[-1] == "last"


@pytest.mark.parametrize("check", [
    lambda bus: bus.publish("c", 1), lambda bus: bus.subscribe("c", Got()), lambda bus: bus.history("c"),
])
def test_after_an_error_of_its_own_a_bus_is_closed_and_stop_raises_it(check: Callable[[MessageBus], Any]) -> None:
    @in_virtual_time
    async def test() -> None:
        class Broken(MemorySite):
            async def tick(self) -> None:
                raise RuntimeError("a mistake of ours")

        bus = MessageBus("x", site=Broken())
        await bus.start()
        await asyncio.sleep(2.0)
        with pytest.raises(BusClosed, match="error of their own"):
            await check(bus)
        with pytest.raises(ExceptionGroup) as caught:
            await bus.stop()
        assert caught.group_contains(RuntimeError)

    test()


@in_virtual_time
async def test_handled_waits_while_the_checkpoints_cannot_be_read() -> None:
    fs, got = FakeFs(FakeDisk(Random(1))), Got()
    async with MessageBus("x", runtime=runtime(fs)) as bus:
        await bus.subscribe("c", got, durable="worker")
        await bus.publish("c", 0)
        fs.fail_next("listdir", errno.EMFILE, after=1)
        assert (await bus.publish("c", 1, ack="handled", timeout=10.0)).level == "handled"


@in_virtual_time
async def test_what_is_built_upon_the_bus_tells_its_events_through_it() -> None:
    seen: list[Event] = []
    event = Expired("s", Lane("c", "o", 1, 1), 1, "i")
    async with MessageBus("x", site=MemorySite()) as bus:
        bus.on("expired", seen.append)
        bus.observe(event)
        assert bus.site.origin() is None
        assert bus.stats().disk_used == 0
    assert seen == [event]


def test_a_bus_that_is_over_leaves_no_trace_in_its_process(tmp_path: Path) -> None:
    async def once() -> weakref.ref[MessageBus]:
        async with MessageBus("a", home=str(tmp_path / "home")) as bus:
            await bus.publish("c", 1)
        return weakref.ref(bus)

    gone = asyncio.run(once())
    gc.collect()
    assert gone() is None
