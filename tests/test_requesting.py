"""Request and reply, on memory: who gets which reply, what a late one does, and how everything that waits ends."""

from __future__ import annotations

import asyncio
import copy
import errno
import pickle
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from lemegeton import replies
from lemegeton.answering import THREAD_WAIT_S, Answers
from lemegeton.bus import MessageBus
from lemegeton.errors import (
    BusClosed,
    BusFull,
    HomeRefused,
    InvalidMessage,
    LogError,
    NameTaken,
    NoReply,
    NotReached,
    RequestFailed,
)
from lemegeton.events import Event, ObserverFailed, ReplyIgnored, ReplyLost, RequestDropped
from lemegeton.logs.memory import MemoryLog, MemoryStore
from lemegeton.message import REQUEST_CANCELLED, Message, MessagePriority, Receipt
from lemegeton.requesting import CANCEL_WAIT_S
from lemegeton.testing.faulty import FaultyLog
from lemegeton.testing.memory import MemorySite
from test_delivery import Got, in_virtual_time

Handler = Callable[[Message], Any]


class Pair:
    """Two buses of one site, the events of both, and what was said in the inbox of the one that asks."""

    def __init__(self, store: MemoryStore, near: MessageBus, far: MessageBus) -> None:
        self.store, self.near, self.far = store, near, far
        self.events: list[Event] = []
        for bus in (near, far):
            bus.on("*", self.events.append)

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, kind: type[Event], count: int = 1) -> list[Any]:
        while len(found := self.of(kind)) < count:
            await asyncio.sleep(0.01)
        return found

    async def serve(self, handler: Handler, channel: str = "c", **how: Any) -> None:
        await self.serve_as("d", handler, channel, **how)

    async def serve_as(self, name: str, handler: Handler, channel: str = "c", **how: Any) -> None:
        await self.far.subscribe(channel, handler, durable=name, **how)


@asynccontextmanager
async def pair(handler: Handler | None = None, **settings: Any) -> AsyncIterator[Pair]:
    store = MemoryStore()
    site = {"retry_delay": 0.1, **settings}
    async with MessageBus("near", site=MemorySite(store, **site)) as near, MessageBus(
            "far", site=MemorySite(store, **site)) as far:
        both = Pair(store, near, far)
        if handler is not None:
            await both.serve(handler)
        yield both


async def double(message: Message) -> None:
    await message.reply(message.payload * 2)


# ------------------------------------------------------------------------------------------------ replies


@in_virtual_time
async def test_a_request_returns_what_its_handler_replied() -> None:
    async with pair(double) as both:
        reply = await both.near.request("c", 21, timeout=5.0, headers={"a": "b"}, priority=MessagePriority.HIGH)
        assert (reply.payload, reply.type, reply.sender, reply.to, reply.priority) == (42, "complete", "far", "near", 2)
        assert reply.channel.startswith("reply:")


@in_virtual_time
async def test_many_requests_at_a_time_get_each_its_own_reply() -> None:
    async with pair(double) as both:
        found = await asyncio.gather(*(both.near.request("c", number) for number in range(200)))
        assert [reply.payload for reply in found] == [number * 2 for number in range(200)]
        assert not both.of(ReplyIgnored)


@in_virtual_time
async def test_two_handlers_of_one_bus_may_both_reply_and_the_first_counts() -> None:
    held: list[Message] = []

    async def one(message: Message) -> None:
        held.append(message)
        await message.reply(42)

    async def other(message: Message) -> None:
        held.append(message)
        await message.reply("other")

    async with pair(one) as both:
        await both.serve_as("other", other)
        assert (await both.near.request("c", 21)).payload in (42, "other")
        (ignored,) = await both.until(ReplyIgnored)
        assert ignored.cause == replies.ANSWERED
        assert held[0].requester is held[1].requester


async def test_a_handler_that_is_a_plain_function_replies_from_its_thread() -> None:
    def handler(message: Message) -> None:
        message.progress("begun")
        message.reply(message.payload + 1)

    progress: list[Any] = []
    async with pair(handler) as both:
        reply = await both.near.request("c", 1, progress=lambda message: progress.append(message.payload))
        assert (reply.payload, progress) == (2, ["begun"])


async def test_a_plain_function_may_return_its_reply_and_a_loop_of_its_own_may_await_it() -> None:
    async def elsewhere(message: Message) -> None:
        await message.reply("from a loop of its own")

    async with pair(lambda message: message.reply("returned")) as both:
        assert (await both.near.request("c", 1)).payload == "returned"
        await both.far.subscribe("other", lambda message: asyncio.run(elsewhere(message)))
        assert (await both.near.request("other", 1)).payload == "from a loop of its own"


@in_virtual_time
async def test_a_message_of_a_stream_can_be_replied_to() -> None:
    async with pair() as both:
        async def serve() -> None:
            async for message in both.far.stream("c"):
                await message.reply("from the stream")

        serving = asyncio.ensure_future(serve())
        await asyncio.sleep(0.1)
        assert (await both.near.request("c", 1)).payload == "from the stream"
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving


@in_virtual_time
async def test_progress_comes_in_order_before_the_reply_and_a_callback_that_raises_costs_nothing() -> None:
    async def handler(message: Message) -> None:
        for part in range(3):
            await message.progress(part)
        await message.reply("done")

    seen: list[Any] = []

    def progress(message: Message) -> None:
        seen.append(message.payload)
        if message.payload == 1:
            raise ValueError("no")

    async with pair(handler) as both:
        assert (await both.near.request("c", 1, progress=progress)).payload == "done"
        assert seen == [0, 1, 2]
        assert [event.event for event in both.of(ObserverFailed)] == ["progress"]


@in_virtual_time
async def test_the_first_reply_counts_and_the_others_are_events() -> None:
    async def handler(message: Message) -> None:
        for part in ("first", "second"):
            await message.reply(part)
        await message.progress("third")

    async with pair(handler) as both:
        assert (await both.near.request("c", 1)).payload == "first"
        assert [event.cause for event in await both.until(ReplyIgnored, 2)] == [replies.ANSWERED] * 2


@in_virtual_time
async def test_a_reply_that_comes_after_the_timeout_is_an_event() -> None:
    async def handler(message: Message) -> None:
        await asyncio.sleep(2.0)
        await message.reply("late")

    async with pair(handler) as both:
        with pytest.raises(NoReply, match=r"request to c: no reply within 1.0 s; it may have been handled$") as caught:
            await both.near.request("c", 1, timeout=1.0)
        assert not caught.value.definite
        assert isinstance(caught.value, TimeoutError)
        (ignored,) = await both.until(ReplyIgnored)
        assert (ignored.sender, ignored.cause) == ("far", replies.LATE)


@in_virtual_time
async def test_what_somebody_else_puts_into_an_inbox_is_an_event() -> None:
    async with pair(double) as both:
        reply = await both.near.request("c", 1)
        await both.far.publish(reply.channel, "hello")
        await both.far.publish(reply.channel, "hello", correlation_id="none of ours")
        assert [event.cause for event in await both.until(ReplyIgnored, 2)] == [replies.UNKNOWN] * 2


@in_virtual_time
async def test_a_foreign_request_without_a_correlation_id_is_answered_with_its_id() -> None:
    came: asyncio.Queue[Message] = asyncio.Queue()
    async with pair(double) as both:
        await both.near.subscribe("answers", came.put)
        await both.near.publish("c", 4, id="my-4", reply_to="answers")
        reply = await came.get()
        assert (reply.payload, reply.correlation_id) == (8, "my-4")


@in_virtual_time
async def test_only_a_request_that_a_handler_was_given_can_be_answered() -> None:
    got = Got()
    async with pair(got) as both:
        await both.near.publish("c", 1)
        with pytest.raises(NoReply):
            await both.near.request("c", 2, timeout=1.0)
        for verb in (got[0].reply, got[0].progress, lambda: got[0].fail("x")):
            with pytest.raises(InvalidMessage, match="it names no reply_to"):
                verb()
        with pytest.raises(InvalidMessage, match="it names no reply_to"):
            await got[0].until_cancelled()
        assert not got[0].cancelled
        (_, seen, *_) = await both.near.history("c")
        with pytest.raises(InvalidMessage, match="only one that a handler was given"):
            seen.reply()


@in_virtual_time
async def test_a_request_can_be_copied_and_one_in_another_process_has_nobody_to_reply_to() -> None:
    async def handler(message: Message) -> None:
        assert pickle.loads(pickle.dumps(message)).requester is None  # noqa: S301
        await copy.deepcopy(message).reply("copied")

    async with pair(handler) as both:
        assert (await both.near.request("c", 1)).payload == "copied"


# ------------------------------------------------------------------------------------------------ failures


@in_virtual_time
async def test_a_handler_says_that_a_request_failed_and_why_in_one_word() -> None:
    async def handler(message: Message) -> None:
        await message.fail("no such file", category="invalid")

    async with pair(handler) as both:
        with pytest.raises(RequestFailed, match="request to c: far: invalid: no such file") as caught:
            await both.near.request("c", 1)
        assert (caught.value.category, caught.value.definite) == ("invalid", False)
        assert caught.value.payload == {"category": "invalid", "error": "no such file"}
        assert both.far.stats().subscriptions[0].dead == 0


@pytest.mark.parametrize(("payload", "category", "text"), [
    (None, "failed", "failed: None"), ("gone", "failed", "failed: gone"), ({"error": "e"}, "failed", "failed: e"),
    ({"category": 7}, "7", "7: {'category': 7}"),
])
def test_a_failure_is_understood_whatever_its_sender_put_into_it(payload: Any, category: str, text: str) -> None:
    async def handler(message: Message) -> None:
        await message.reply(payload, type="failed")

    @in_virtual_time
    async def test() -> None:
        async with pair(handler) as both:
            with pytest.raises(RequestFailed) as caught:
                await both.near.request("c", 1)
            assert (caught.value.category, str(caught.value)) == (category, f"request to c: far: {text}")

    test()


@in_virtual_time
async def test_a_request_that_becomes_a_dead_letter_answers_at_once() -> None:
    async def handler(message: Message) -> None:
        raise ValueError(f"cannot do {message.payload}")

    async with pair(handler) as both:
        began = asyncio.get_running_loop().time()
        with pytest.raises(RequestFailed, match="dead_letter: ValueError: cannot do 1") as caught:
            await both.near.request("c", 1, timeout=60.0)
        assert caught.value.category == "dead_letter"
        assert asyncio.get_running_loop().time() - began < 1.0
        assert len(await both.near.history("dead-letter:c")) == 1


@in_virtual_time
async def test_a_handler_that_raises_and_then_succeeds_answers_once() -> None:
    async def handler(message: Message) -> None:
        if message.attempt < 3:
            raise ValueError("not yet")
        await message.reply(message.attempt)

    async with pair(handler) as both:
        assert (await both.near.request("c", 1)).payload == 3


@in_virtual_time
async def test_a_failure_that_cannot_be_told_is_an_event_and_the_lane_goes_on() -> None:
    async def handler(message: Message) -> None:
        if message.payload == 1:
            raise ValueError("no")
        await message.reply("next")

    async with pair() as both:
        log = FaultyLog(MemoryLog("faulty", both.store))
        async with MessageBus("third", site=MemorySite(both.store, log=log, retry_attempts=1)) as third:
            events: list[Event] = []
            third.on("reply_lost", events.append)
            await third.subscribe("c", handler, durable="third")
            log.fail("append", at=2)
            with pytest.raises(NoReply):
                await both.near.request("c", 1, timeout=1.0)
            assert (await both.near.request("c", 2)).payload == "next"
            assert [type(event) for event in events] == [ReplyLost]


# ------------------------------------------------------------------------------------------------ cancel


@in_virtual_time
async def test_a_handler_learns_that_its_requester_was_cancelled() -> None:
    ended: asyncio.Queue[str] = asyncio.Queue()

    async def handler(message: Message) -> None:
        assert not message.cancelled
        await message.until_cancelled()
        await message.until_cancelled()
        assert message.cancelled
        await ended.put(message.payload)

    async with pair(handler) as both:
        for priority in MessagePriority:
            asking = asyncio.ensure_future(both.near.request("c", priority.name, priority=priority))
            await asyncio.sleep(0.5)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert await ended.get() == priority.name


@in_virtual_time
async def test_a_handler_learns_that_the_timeout_of_its_request_has_passed() -> None:
    ended = asyncio.Event()

    async def handler(message: Message) -> None:
        while not message.cancelled:
            await asyncio.sleep(0.1)
        ended.set()

    async with pair(handler) as both:
        with pytest.raises(NoReply):
            await both.near.request("c", 1, timeout=1.0)
        await ended.wait()


@in_virtual_time
async def test_what_was_cancelled_before_its_handler_was_called_is_dropped_with_an_event() -> None:
    got: list[Any] = []

    async def handler(message: Message) -> None:
        got.append((message.type, message.payload))
        await asyncio.sleep(2.0)

    async with pair(handler) as both:
        first = asyncio.ensure_future(both.near.request("c", "first"))
        await asyncio.sleep(0.1)
        second = asyncio.ensure_future(both.near.request("c", "second"))
        await asyncio.sleep(0.1)
        for asking in (first, second):
            asking.cancel()
        await asyncio.wait((first, second))
        (dropped,) = await both.until(RequestDropped)
        assert (dropped.channel, dropped.sender) == ("c", "near")
        assert got == [("custom", "first")]
        assert both.far.stats().events["request_dropped"] == 1


@in_virtual_time
async def test_what_expired_before_its_handler_was_called_is_not_worked_on() -> None:
    now_ms = [0]
    store, got = MemoryStore(), Got()
    async with MessageBus("near", site=MemorySite(store, wall_ms=lambda: now_ms[0])) as near:
        with pytest.raises(NoReply):
            await near.request("c", 1, timeout=1.0)
    now_ms[0] = 2000
    async with MessageBus("far", site=MemorySite(store, wall_ms=lambda: now_ms[0])) as far:
        await far.subscribe("c", got, start="earliest")
        await asyncio.sleep(1.0)
        (stats,) = far.stats().subscriptions
        assert (stats.expired, got.payloads) == (1, [])


@in_virtual_time
async def test_of_requests_that_were_cancelled_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lemegeton.answering.CANCELLED_MAX", 2)
    got = Got()
    async with pair(got) as both:
        for ident in ("a", "b", "c"):
            await both.near.publish("c", None, type=REQUEST_CANCELLED, reply_to="r", correlation_id=ident)
        for ident in ("a", "b", "c"):
            await both.near.publish("c", ident, reply_to="r", correlation_id=ident)
        await both.until(RequestDropped, 2)
        await asyncio.sleep(0.1)
        assert got.payloads == ["a"]


@in_virtual_time
async def test_a_message_of_that_type_that_is_about_no_request_is_a_message() -> None:
    got = Got()
    async with pair(got) as both:
        await both.near.publish("c", 1, type=REQUEST_CANCELLED)
        await asyncio.sleep(0.1)
        assert got.payloads == [1]


@in_virtual_time
async def test_a_cancel_that_cannot_be_stored_changes_nothing_for_who_is_cancelled() -> None:
    store = MemoryStore()
    log = FaultyLog(MemoryLog("faulty", store))
    async with MessageBus("near", site=MemorySite(store, log=log)) as near:
        log.fail("append", at=2)
        with pytest.raises(NoReply):
            await near.request("c", 1, timeout=1.0)
        log.hang("append")
        log.hang("append", at=2)
        began = asyncio.get_running_loop().time()
        with pytest.raises(NoReply):
            await near.request("c", 1, timeout=1.0)
        assert asyncio.get_running_loop().time() - began <= 1.0 + CANCEL_WAIT_S


# ------------------------------------------------------------------------------------------------ limits and ends


@in_virtual_time
async def test_so_many_requests_may_wait_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "REQUESTS_MAX", 2)
    async with pair() as both:
        waiting = [asyncio.ensure_future(both.near.request("c", n, timeout=2.0)) for n in range(2)]
        await asyncio.sleep(0.1)
        with pytest.raises(BusFull, match="2 wait for their replies"):
            await both.near.request("c", 3)
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in found] == [NoReply, NoReply]
        with pytest.raises(NoReply):
            await both.near.request("c", 4, timeout=1.0)


@in_virtual_time
async def test_of_requests_that_ended_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "ENDED_MAX", 1)

    async def handler(message: Message) -> None:
        await asyncio.sleep(2.0)
        await message.reply()

    async with pair(handler) as both:
        for _ in range(2):
            with pytest.raises(NoReply):
                await both.near.request("c", 1, timeout=1.5, ttl=60.0)
        assert [event.cause for event in await both.until(ReplyIgnored, 2)] == [replies.LATE, replies.LATE]


@in_virtual_time
async def test_when_the_bus_stops_everybody_who_waits_is_told() -> None:
    async with pair() as both:
        waiting = [asyncio.ensure_future(both.near.request("c", n, id=ident)) for n, ident in enumerate((None, None, "a"))]
        await asyncio.sleep(0.1)
        await both.near.stop()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [(type(each), each.definite) for each in found if isinstance(each, BusClosed)] == [(BusClosed, False)] * 3
        with pytest.raises(BusClosed):
            await both.near.request("c", 1)


@in_virtual_time
async def test_a_bus_that_stops_says_so_to_those_who_work_for_its_requests() -> None:
    heard = asyncio.Event()

    async def handler(message: Message) -> None:
        await message.until_cancelled()
        heard.set()

    async with pair(handler) as both:
        waiting = asyncio.ensure_future(both.near.request("c", 1))
        await asyncio.sleep(0.1)
        await both.near.stop()
        await heard.wait()
        assert isinstance(waiting.exception(), BusClosed)


@in_virtual_time
async def test_a_handler_that_is_running_when_its_bus_stops_may_still_reply() -> None:
    async def handler(message: Message) -> None:
        await asyncio.sleep(1.0)
        await message.reply("finished")

    async with pair(handler) as both:
        asking = asyncio.ensure_future(both.near.request("c", 1))
        await asyncio.sleep(0.5)
        stopping = asyncio.ensure_future(both.far.stop())
        await asyncio.sleep(0.1)
        with pytest.raises(BusClosed, match="only lets running handlers finish"):
            await both.far.subscribe("d", handler)
        with pytest.raises(BusClosed, match="only lets running handlers finish"):
            await both.far.request("d", 1)
        await both.far.stop()
        assert (await asking).payload == "finished"
        await stopping
        with pytest.raises(BusClosed, match="stopped; use"):
            await both.far.publish("d", 1)


def test_when_the_bus_breaks_everybody_who_waits_is_told() -> None:
    class Broken(MemorySite):
        broken = False

        async def tick(self) -> None:
            if self.broken:
                raise RuntimeError("a mistake of ours")

    @in_virtual_time
    async def test() -> None:
        site = Broken()
        bus = MessageBus("x", site=site)
        await bus.start()
        waiting = asyncio.ensure_future(bus.request("c", 1))
        await asyncio.sleep(0.1)
        site.broken = True
        with pytest.raises(BusClosed):
            await waiting
        with pytest.raises(ExceptionGroup):
            await bus.stop()

    test()


@in_virtual_time
async def test_a_request_that_is_refused_waits_for_nothing() -> None:
    async with pair(double) as both:
        for arguments in ({"timeout": 0}, {"timeout": -1.0}, {"timeout": None}, {"timeout": float("nan")}, {"timeout": True},
                          {"id": 7}, {"id": ""}, {"type": REQUEST_CANCELLED}, {"ttl": -1.0}, {"ttl": 0}, {"priority": 9}):
            with pytest.raises(InvalidMessage):
                await both.near.request("c", 1, **arguments)
        with pytest.raises(InvalidMessage):
            await both.near.request("{c}", 1)
        with pytest.raises(TypeError):
            await both.near.request("c", 1, reply_to="mine")
        assert (await both.near.request("c", 1)).payload == 2


@in_virtual_time
async def test_an_inbox_is_not_for_the_user_to_unsubscribe() -> None:
    async with pair(double) as both:
        reply = await both.near.request("c", 1)
        assert await both.near.unsubscribe(reply.channel) == 0
        assert await both.near.unsubscribe_all() == 0
        assert (await both.near.request("c", 2)).payload == 4


@in_virtual_time
async def test_an_inbox_that_cannot_be_opened_now_is_opened_by_the_next_request() -> None:
    store = MemoryStore()
    log = FaultyLog(MemoryLog("faulty", store))
    async with MessageBus("near", site=MemorySite(store, log=log)) as near:
        await near.subscribe("c", double)
        log.fail("lanes")
        with pytest.raises(LogError):
            await near.request("c", 1)
        log.hang("lanes")
        with pytest.raises(NoReply):
            await near.request("c", 1, timeout=1.0)
        log.fail("lanes", error=OSError(errno.EMFILE, "Too many open files"))
        with pytest.raises(LogError, match="opening the inbox: Too many open files"):
            await near.request("c", 1)
        log.fail("lanes", error=HomeRefused("home: not usable"))
        with pytest.raises(HomeRefused):
            await near.request("c", 1)
        assert (await near.request("c", 1)).payload == 2


@in_virtual_time
async def test_first_requests_that_come_together_open_one_inbox() -> None:
    store = MemoryStore()
    log = FaultyLog(MemoryLog("faulty", store))
    async with MessageBus("near", site=MemorySite(store, log=log)) as near:
        await near.subscribe("c", double)
        log.delay("lanes", 0.1)
        found = await asyncio.gather(*(near.request("c", number) for number in range(3)))
        assert [reply.payload for reply in found] == [0, 2, 4]
        assert len(near.stats().subscriptions) == 2


async def test_a_reply_that_came_before_the_end_is_heard() -> None:
    waiting = replies.Open()
    answered, other = waiting.enter("a", None), waiting.enter("b", None)
    answered.reply.set_result(reply("a", 1))
    waiting.close()
    assert answered.reply.result() is not None
    assert other.reply.result() is None


# ------------------------------------------------------------------------------------------------ with an id


@in_virtual_time
async def test_whoever_asks_again_with_an_id_has_the_same_reply_and_the_handler_runs_once() -> None:
    runs: list[Any] = []

    async def handler(message: Message) -> None:
        runs.append(message.payload)
        await message.reply(len(runs))

    async with pair(handler) as both:
        for _ in range(3):
            assert (await both.near.request("c", "x", id="order-1")).payload == 1
        both_at_once = await asyncio.gather(*(both.near.request("c", "y", id="order-2") for _ in range(3)))
        assert [reply.payload for reply in both_at_once] == [2, 2, 2]
        await both.near.stop()
        async with MessageBus("near", site=MemorySite(both.store)) as later:
            assert (await later.request("c", "x", id="order-1")).payload == 1
            assert (await later.request("c", "y", id="order-2")).payload == 2
        assert runs == ["x", "y"]


@in_virtual_time
async def test_a_reply_to_an_id_waits_for_who_has_restarted_meanwhile() -> None:
    async def handler(message: Message) -> None:
        await asyncio.sleep(2.0)
        await message.progress("half")
        await message.reply("done")
        await message.reply("done again")

    async with pair(handler) as both:
        with pytest.raises(NoReply, match="ask again with the id 'order-1'"):
            await both.near.request("c", 1, timeout=1.0, id="order-1")
        await both.near.stop()
        await asyncio.sleep(5.0)
        async with MessageBus("near", site=MemorySite(both.store)) as later:
            later.on("*", both.events.append)
            assert (await later.request("c", 1, timeout=1.0, id="order-1")).payload == "done"
            assert [event.cause for event in await both.until(ReplyIgnored)] == [replies.ANSWERED]


@in_virtual_time
async def test_a_late_reply_to_an_id_is_kept_and_a_progress_nobody_hears_is_nothing() -> None:
    async def handler(message: Message) -> None:
        await message.progress("begun")
        await asyncio.sleep(2.0)
        await message.progress("half")
        await message.reply("done")

    seen: list[Any] = []
    async with pair(handler) as both:
        with pytest.raises(NoReply):
            await both.near.request("c", 1, timeout=1.0, id="order-1", progress=lambda m: seen.append(m.payload))
        await asyncio.sleep(2.0)
        assert (await both.near.request("c", 1, timeout=1.0, id="order-1")).payload == "done"
        assert seen == ["begun"]
        assert not both.of(ReplyIgnored)
        assert not both.of(RequestDropped)


@in_virtual_time
async def test_what_expired_before_anybody_was_there_is_handled_when_it_is_asked_again() -> None:
    async with pair() as both:
        with pytest.raises(NoReply):
            await both.near.request("c", 1, timeout=1.0, id="order-1")
        await asyncio.sleep(1.0)
        await both.serve(double, start="earliest")
        assert (await both.near.request("c", 1, timeout=1.0, id="order-1")).payload == 2


@in_virtual_time
async def test_what_somebody_else_puts_into_a_durable_inbox_is_an_event() -> None:
    async with pair(double) as both:
        reply = await both.near.request("c", 1, id="a")
        await both.far.publish(reply.channel, "hello")
        (ignored,) = await both.until(ReplyIgnored)
        assert (ignored.cause, ignored.correlation) == (replies.UNKNOWN, "")


@in_virtual_time
async def test_a_requester_that_is_cancelled_when_its_reply_is_there_says_nothing() -> None:
    async with pair(double) as both:
        await both.near.request("c", 1)
        requests = both.near._requests
        assert requests is not None
        asking = asyncio.ensure_future(both.near.request("c", 2))
        await asyncio.sleep(0)
        (pending,) = requests._open._pending.values()
        pending.reply.add_done_callback(lambda _: asking.cancel())
        await asyncio.wait((asking,))
        assert asking.cancelled()
        assert [message.type for message in await both.near.history("c")] == ["custom", "custom"]


@in_virtual_time
async def test_two_processes_of_one_name_cannot_both_ask_with_ids() -> None:
    async with pair(double) as both, MessageBus("near", site=MemorySite(both.store)) as other:
        assert (await both.near.request("c", 1, id="a")).payload == 2
        with pytest.raises(NameTaken):
            await other.request("c", 1, id="b")
        assert (await other.request("c", 3)).payload == 6


@in_virtual_time
async def test_a_name_that_is_too_long_for_a_durable_inbox_is_refused() -> None:
    async with MessageBus("n" * 64, site=MemorySite()) as bus:
        with pytest.raises(InvalidMessage, match="the durable subscription of requests with an id"):
            await bus.request("c", 1, id="a")


@in_virtual_time
async def test_what_was_read_before_and_cannot_be_looked_up_now_is_looked_up_by_who_has_waited_in_vain() -> None:
    async with pair(double) as both:
        assert (await both.near.request("c", 1, id="a")).payload == 2
        await both.near.stop()
        log = FaultyLog(MemoryLog("faulty", both.store))
        async with MessageBus("near", site=MemorySite(both.store, log=log)) as near:
            log.fail("lanes", at=2)
            with pytest.raises(NoReply):
                await near.request("c", 1, id="a", timeout=1.0)
            assert (await near.request("c", 1, id="a", timeout=1.0)).payload == 2


@in_virtual_time
async def test_an_inbox_whose_looking_up_took_too_long_is_used_by_the_next_request() -> None:
    store = MemoryStore()
    log = FaultyLog(MemoryLog("faulty", store))
    async with MessageBus("near", site=MemorySite(store, log=log)) as near:
        await near.subscribe("c", double)
        log.hang("lanes", at=2)
        with pytest.raises(NoReply):
            await near.request("c", 1, id="a", timeout=1.0)
        assert (await near.request("c", 1, id="a", timeout=1.0)).payload == 2


# ------------------------------------------------------------------------------------------------ threads


async def test_a_thread_waits_so_long_for_its_reply_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lemegeton.answering.THREAD_WAIT_S", 0.01)
    assert THREAD_WAIT_S > 0.01

    async def never(*_: Any, **__: Any) -> Receipt:
        await asyncio.Event().wait()
        raise AssertionError

    answers = Answers(never, lambda _: None)
    message = Message(timestamp=0, type="custom", sender="s", payload=1, reply_to="r", correlation_id="c")
    assert answers.begin(message)
    with pytest.raises(NotReached, match="reply: not stored within"):
        await asyncio.to_thread(message.reply)


def test_a_reply_from_a_thread_whose_loop_has_ended_is_refused() -> None:
    async def answers() -> Answers:
        async def publish(*_: Any, **__: Any) -> Receipt:
            raise AssertionError

        return Answers(publish, lambda _: None)

    message = Message(timestamp=0, type="custom", sender="s", payload=1, reply_to="r", correlation_id="c")
    ended = asyncio.run(answers())
    assert ended.begin(message)
    with pytest.raises(BusClosed, match="the event loop of the bus has ended"):
        message.reply()


# ------------------------------------------------------------------------------------------------ what is kept


def reply(ident: str, seq: int, payload: Any = None, size: int = 0) -> Message:
    return Message(timestamp=0, type="complete", sender="s", payload=payload, correlation_id=ident, origin="o", inc=1,
                   seq=seq, raw=b"x" * size)


def test_the_first_reply_is_kept_and_the_same_record_is_no_other_one() -> None:
    kept = replies.Kept()
    assert kept.put(reply("a", 1, "first"))
    assert kept.put(reply("a", 1, "first"))
    assert not kept.put(reply("a", 2, "second"))
    kept.put_before([reply("a", 0, "zeroth"), reply("b", 3)])
    found = kept.get("a")
    assert found is not None
    assert found.payload == "zeroth"
    assert kept.get("c") is None


def test_so_many_replies_are_kept_and_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "KEPT_MAX", 3)
    monkeypatch.setattr(replies, "KEPT_BYTES_MAX", 100)
    kept = replies.Kept()
    for seq in range(5):
        kept.put(reply(str(seq), seq + 1))
    assert [ident for ident in "01234" if kept.get(ident)] == ["2", "3", "4"]
    kept.put(reply("big", 9, size=90))
    kept.put(reply("small", 10, size=20))
    assert [ident for ident in ("4", "big", "small") if kept.get(ident)] == ["small"]
    kept.put(reply("huge", 11, size=1000))
    assert [ident for ident in ("small", "huge") if kept.get(ident)] == ["huge"]
