"""Dead letters are found, mended, published again once, or dropped, by whomever, wherever, for good."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lemegeton import InvalidMessage, Message, MessageBus
from lemegeton.codec import Draft, decode, encode
from lemegeton.deadletters import SETTLED_AT_ONCE, DeadLetter, Redriven
from lemegeton.letters import (
    EDITED,
    FROM_HEADER,
    LETTER,
    SETTLED,
    Letter,
    edit_of,
    letter_body,
    letter_of,
    payload_of,
    redrive_id,
    redriven_body,
    settled_of,
)
from lemegeton.logs import whole
from lemegeton.logs.memory import MemoryStore
from lemegeton.testing.memory import MemorySite
from lemegeton.testing.servers import RedisServer
from test_delivery import Got
from test_redis_side import fragile, quick, redis, shared_server, until  # noqa: F401  fixtures

BIG = 3000
WAIT_S = 15.0


class Fragile:
    """A handler that cannot take some payloads until it is mended."""

    def __init__(self, *bad: Any) -> None:
        self.bad = list(bad)
        self.got: list[Message] = []

    async def __call__(self, message: Message) -> None:
        if message.payload in self.bad:
            raise ValueError(f"cannot do {message.payload}")
        self.got.append(message)

    @property
    def payloads(self) -> list[Any]:
        return [message.payload for message in self.got]


def bus_of(store: MemoryStore, name: str = "a", **options: Any) -> MessageBus:
    return MessageBus(name, site=MemorySite(store, **{"retry_attempts": 1, "retry_delay": 0.0, **options}))


async def dead(bus: MessageBus, count: int, **filters: Any) -> list[DeadLetter]:
    """Those there are, once there are so many."""
    async with asyncio.timeout(WAIT_S):
        while len(found := await bus.dead_letters.find(**filters)) != count:
            await asyncio.sleep(0.005)
    return found


@asynccontextmanager
async def broken(*bad: Any, channel: str = "c", **options: Any) -> AsyncIterator[tuple[MessageBus, Fragile]]:
    """A bus with a handler that has made dead letters of ``bad``."""
    async with bus_of(MemoryStore(), **options) as bus:
        handler = Fragile(*bad)
        await bus.subscribe(channel, handler, durable="work")
        for payload in bad:
            await bus.publish(channel, payload, headers={"n": "1", "traceparent": "00-ab-cd-01"})
        await dead(bus, len(bad))
        handler.bad.clear()
        yield bus, handler


@contextmanager
def failing_append(bus: MessageBus, channel: str, number: int) -> Iterator[None]:
    """The append of this number to a channel finds no room."""
    log = bus.site.log
    append, calls = log.append, 0

    async def failing(where: str, body: bytes, *args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += where == channel
        if where == channel and calls == number:
            raise OSError("no space")
        return await append(where, body, *args, **options)

    log.append = failing  # type: ignore[method-assign]
    try:
        yield
    finally:
        log.append = append  # type: ignore[method-assign]


# ------------------------------------------------------------------------------------------------ looking


async def test_a_dead_letter_says_where_it_comes_from_and_why_it_is_here() -> None:
    async with broken("bad", retry_attempts=3) as (bus, _):
        (letter,) = await bus.dead_letters.find()
        assert letter.original is not None
        original = letter.original
        assert letter == DeadLetter(
            id=f"dl:work@memory:{original.id}", channel="c", subscription="work", site="memory", reason="handler failed",
            error="ValueError: cannot do bad", trace=letter.trace, traceparent="00-ab-cd-01", attempts=3,
            first=letter.first, last=letter.last, message_id=original.id, edited=False, payload="bad", original=original)
        assert original.timestamp <= letter.first <= letter.last
        assert "cannot do bad" in letter.trace
        assert (original.channel, original.payload, original.headers["n"]) == ("c", "bad", "1")
        assert await bus.dead_letters.get(letter.id) == await bus.dead_letters.get(letter.message_id) == letter
        assert await bus.dead_letters.counts() == {"c": 1}


@pytest.mark.parametrize(("filters", "found"), [
    ({}, [1, 2, 3]), ({"channel": "a?"}, [1, 2]), ({"channel": "a1"}, [1]), ({"channel": "b*"}, [3]), ({"channel": "x"}, []),
    ({"reason": "handler failed"}, [1, 2, 3]), ({"reason": "process died"}, []), ({"subscription": "work"}, [1, 2, 3]),
    ({"subscription": "other"}, []), ({"older_than": 5.0}, [1, 2]), ({"older_than": 15.0}, [1]), ({"limit": 1}, [3]),
    ({"id": "mine"}, [2]),
])
async def test_filters_find_what_they_say(filters: dict[str, Any], found: list[int]) -> None:
    now_ms = 1_000_000
    site = MemorySite(wall_ms=lambda: now_ms, retry_attempts=1)
    async with MessageBus("a", site=site) as bus:
        await bus.subscribe(["a*", "b*"], Fragile(1, 2, 3), durable="work")
        for n, channel in enumerate(("a1", "a2", "b1"), 1):
            await bus.publish(channel, n, id="mine" if n == 2 else None)
            await dead(bus, n)
            now_ms += 10_000 if n < 3 else 0
        now_ms += 1
        assert [letter.payload for letter in await bus.dead_letters.find(**filters)] == found


async def test_what_matches_nothing_or_too_much_is_said() -> None:
    async with broken("bad") as (bus, _):
        other = Fragile("bad")
        await bus.subscribe("c", other, durable="other", start="earliest")
        first, second = await dead(bus, 2)
        with pytest.raises(InvalidMessage, match="'nothing': there is none of this id, or it was settled; `lemegeton"):
            await bus.dead_letters.get("nothing")
        with pytest.raises(InvalidMessage, match=rf"2 match; .*: {first.id} \(c\), {second.id} \(c\)$"):
            await bus.dead_letters.redrive(first.message_id)
        with pytest.raises(InvalidMessage, match="limit 0: must be 1 to 100000"):
            await bus.dead_letters.find(limit=0)
        with pytest.raises(InvalidMessage, match="pattern ''"):
            await bus.dead_letters.find("")


async def test_the_newest_are_found_of_more_than_are_asked_for() -> None:
    async with broken(*range(20)) as (bus, _):
        assert [letter.payload for letter in await bus.dead_letters.find(limit=3)] == [17, 18, 19]


async def test_what_some_other_program_puts_there_is_a_dead_letter_of_which_little_is_known() -> None:
    async with bus_of(MemoryStore()) as bus:
        await bus.publish("dead-letter:c", {"x": 1}, type="job", headers={"k": "v"})
        await bus.publish("dead-letter:c", 7, type=LETTER)
        await bus.publish("dead-letter:c", 8, type=EDITED)
        await bus.publish("dead-letter:c", 9, type=SETTLED)
        await bus.publish("dead-letter:c", {"channel": "d", "reason": "x"}, type=LETTER)
        first, second, third = await bus.dead_letters.find()
        assert [(d.channel, d.reason, d.payload) for d in (first, second, third)] == [
            ("c", "unknown", {"x": 1}), ("c", "unknown", 7), ("c", "unknown", {"channel": "d", "reason": "x"})]
        got = Got()
        await bus.subscribe("c", got)
        await bus.dead_letters.redrive(first.id)
        await got.reach(1)
        assert (got[0].payload, got[0].type, got[0].headers) == ({"x": 1}, "job", {"k": "v", FROM_HEADER: first.id})


async def test_a_dead_letter_of_the_first_format_is_read() -> None:
    async with bus_of(MemoryStore()) as bus:
        original = json.dumps({"id": "m", "timestamp": 5, "type": "custom", "from": "x", "payload": [1]})
        payload = {"channel": "c", "subscription": "s", "reason": "handler failed", "error": "E: x", "attempts": 3, "id": "m",
                   "original": original}
        await bus.publish("dead-letter:c", payload, type=LETTER, id="dl:s:o.1.1:1")
        (letter,) = await bus.dead_letters.find()
        assert (letter.id, letter.subscription, letter.site, letter.attempts, letter.first) == ("dl:s:o.1.1:1", "s", "", 3, 0)
        assert (letter.payload, letter.message_id) == ([1], "m")
        await bus.publish("dead-letter:c", {**payload, "original": "no message"}, type=LETTER, id="dl:s:o.1.1:2")
        second = await bus.dead_letters.get("dl:s:o.1.1:2")
        assert (second.payload, second.original) == (None, None)
        with pytest.raises(InvalidMessage, match="cannot be read"):
            await bus.dead_letters.redrive(second.id)


async def test_what_is_older_than_dead_letters_are_kept_is_not_listed() -> None:
    now_ms = 10**12
    async with MessageBus("a", site=MemorySite(wall_ms=lambda: now_ms, retry_attempts=1, dead_letter_max_age=60.0)) as bus:
        await bus.subscribe("c", Fragile(1))
        await bus.publish("c", 1)
        await dead(bus, 1)
        now_ms += 60_001
        assert await bus.dead_letters.find() == []


# ------------------------------------------------------------------------------------------------ settling


async def test_what_is_redriven_comes_again_as_it_was_and_is_not_listed_any_more() -> None:
    async with bus_of(MemoryStore()) as bus:
        handler = Fragile("bad")
        await bus.subscribe("c", handler, durable="work")
        await bus.publish("c", "bad", type="progress", to="x", priority=2, ttl=99.0, correlation_id="k", reply_to="r",
                          headers={"n": "1"})
        (letter,) = await dead(bus, 1)
        handler.bad.clear()
        receipt = await bus.dead_letters.redrive(letter.id)
        assert await bus.dead_letters.find() == []
        await until(lambda: handler.got)
        (message,) = handler.got
        assert message.id == receipt.id == redrive_id(letter.id)
        assert message.headers == {"n": "1", "redriven-from": letter.id}
        assert letter.original is not None
        assert message.timestamp >= letter.original.timestamp
        kept = ("type", "sender", "to", "priority", "ttl", "correlation_id", "reply_to", "payload", "channel")
        assert [getattr(message, name) for name in kept] == [getattr(letter.original, name) for name in kept]
        with pytest.raises(InvalidMessage, match="or it was settled"):
            await bus.dead_letters.redrive(letter.id)


async def test_what_is_redriven_twice_because_nobody_could_say_so_is_delivered_once() -> None:
    async with broken("bad") as (bus, handler):
        (letter,) = await bus.dead_letters.find()
        with failing_append(bus, "dead-letter:c", 1), pytest.raises(OSError, match="no space"):
            await bus.dead_letters.redrive(letter.id)
        receipt = await bus.dead_letters.redrive(letter.id)
        assert receipt.id == redrive_id(letter.id)
        await bus.publish("c", "end")
        await until(lambda: "end" in handler.payloads)
        assert handler.payloads == ["bad", "end"]


async def test_what_fails_again_is_another_dead_letter() -> None:
    async with broken("bad") as (bus, handler):
        (letter,) = await bus.dead_letters.find()
        handler.bad.append("bad")
        await bus.dead_letters.redrive(letter.id)
        (again,) = await dead(bus, 1)
        assert again.id != letter.id
        assert again.original is not None
        assert (again.message_id, again.original.headers[FROM_HEADER]) == (redrive_id(letter.id), letter.id)
        handler.bad.clear()
        await bus.dead_letters.redrive(again.id)
        await until(lambda: handler.payloads == ["bad"])


async def test_what_is_dropped_is_gone_for_good() -> None:
    async with broken("one", "two") as (bus, handler):
        first, second = await bus.dead_letters.find()
        await bus.dead_letters.drop(first.message_id)
        assert [letter.id for letter in await bus.dead_letters.find()] == [second.id]
        assert await bus.dead_letters.drop_all("x*") == 0
        assert await bus.dead_letters.drop_all("c", reason="handler failed", subscription="work", older_than=0.0) == 1
        assert await bus.dead_letters.counts() == {}
        assert handler.payloads == []


async def test_an_edit_is_what_is_published() -> None:
    async with broken("bad") as (bus, handler):
        (letter,) = await bus.dead_letters.find()
        await bus.dead_letters.edit(letter.id, {"n": 1})
        edited = await bus.dead_letters.edit(letter.message_id, {"n": 2})
        assert (edited.edited, edited.payload, edited.id) == (True, {"n": 2}, letter.id)
        assert edited.original is not None
        assert edited.original.payload == "bad"
        with pytest.raises(InvalidMessage, match="not a JSON number"):
            await bus.dead_letters.edit(letter.id, float("nan"))
        await bus.dead_letters.redrive(letter.id)
        await until(lambda: handler.payloads == [{"n": 2}])


async def test_all_that_match_are_redriven_in_their_order_and_few_records_settle_them() -> None:
    bad = list(range(2 * SETTLED_AT_ONCE + 7))
    async with broken(*bad) as (bus, handler):
        assert await bus.dead_letters.redrive_all(subscription="other") == Redriven(0, {})
        assert await bus.dead_letters.redrive_all("c") == Redriven(len(bad), {})
        assert await bus.dead_letters.find() == []
        await until(lambda: len(handler.got) == len(bad))
        assert handler.payloads == bad
        marks = [message for message in await bus.history("dead-letter:c", 1000) if message.type == SETTLED]
        assert [len(settled_of(mark)) for mark in marks] == [SETTLED_AT_ONCE, SETTLED_AT_ONCE, 7]


async def test_what_is_settled_fits_however_small_messages_must_be() -> None:
    bad = list(range(20))
    async with broken(*bad, max_message_bytes=700) as (bus, _):
        assert await bus.dead_letters.redrive_all() == Redriven(20, {})
        assert await bus.dead_letters.find() == []


async def test_what_cannot_be_published_again_stays_and_the_others_go() -> None:
    async with broken("x" * (BIG - 180), "ok", max_message_bytes=BIG) as (bus, _):
        big, _ = sorted(await bus.dead_letters.find(), key=lambda letter: letter.payload == "ok")
        assert big.payload == "x" * (BIG - 180)
        done = await bus.dead_letters.redrive_all()
        assert (done.count, list(done.kept)) == (1, [big.id])
        assert "at most 3000" in done.kept[big.id]
        assert [letter.id for letter in await bus.dead_letters.find()] == [big.id]


async def test_a_message_too_large_for_its_dead_letter_is_taken_from_its_log_while_that_has_it() -> None:
    payload = "x" * 2700
    async with broken(payload, max_message_bytes=BIG) as (bus, handler):
        (record,) = await bus.history("dead-letter:c")
        assert record.payload["original"] is None
        (letter,) = await bus.dead_letters.find()
        assert (letter.payload, letter.original.payload if letter.original else "") == (payload, payload)
        await bus.dead_letters.redrive(letter.id)
        await until(lambda: handler.payloads == [payload])


async def test_a_message_too_large_for_its_dead_letter_whose_log_is_gone_can_only_be_dropped() -> None:
    async with broken("x" * 2700, max_message_bytes=BIG) as (bus, _):
        (letter,) = await bus.dead_letters.find()
        (lane,) = await bus.site.log.lanes("c")
        await bus.site.log.trim(lane, 1)
        (letter,) = await bus.dead_letters.find()
        assert (letter.payload, letter.original) == (None, None)
        with pytest.raises(InvalidMessage, match=f"record 1 of {lane}"):
            await bus.dead_letters.redrive(letter.id)
        await bus.dead_letters.drop(letter.id)


async def test_an_error_on_the_way_settles_what_was_published_before_it() -> None:
    async with broken(1, 2, 3) as (bus, handler):
        with failing_append(bus, "c", 3), pytest.raises(OSError, match="no space"):
            await bus.dead_letters.redrive_all()
        assert [letter.payload for letter in await bus.dead_letters.find()] == [3]
        await until(lambda: handler.payloads == [1, 2])


# ------------------------------------------------------------------------------------------------ the records

TEXT = st.text(max_size=50)
JSON = st.recursive(st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
                    | TEXT, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8)


@given(JSON, st.dictionaries(st.text("abc", min_size=1, max_size=5), TEXT, max_size=3), TEXT, st.integers(0, 99))
@settings(max_examples=50)
def test_whatever_was_published_is_published_again_byte_for_byte(
    payload: Any, headers: dict[str, str], error: str, attempts: int
) -> None:
    raw = encode(Draft(5, "custom", "me", payload, "m", headers=headers), 1 << 20)
    letter = Letter(channel="c", subscription="s", error=error, attempts=attempts, id="m", original=raw.decode())
    record = decode(letter_body(letter, {}, "me", 6, 1 << 20))
    message = with_raw(record, letter_body(letter, {}, "me", 6, 1 << 20), "dead-letter:c")
    assert letter_of(message) == letter
    again = redriven_body(message.id, with_raw(decode(raw), raw, "c"), payload_of(raw), 7, 1 << 20)
    assert payload_of(again) == payload_of(raw)
    assert decode(again).headers == {**headers, FROM_HEADER: message.id}
    assert decode(again).id == redrive_id(message.id) != redrive_id(message.id + "x")


def with_raw(message: Message, raw: bytes, channel: str) -> Message:
    return msgspec.structs.replace(message, raw=raw, channel=channel)


def test_what_an_unknown_field_said_is_said_again() -> None:
    raw = b'{"id":"m","timestamp":5,"type":"t","from":"x","payload":1e2,"origin":"o","seq":4,"after":["o",1,2],"zz":{"k":[1]}}'
    again = redriven_body("dl", with_raw(decode(raw), raw, "c"), payload_of(raw), 7, 1000)
    assert json.loads(again) == {"id": redrive_id("dl"), "timestamp": 7, "type": "t", "from": "x", "payload": 100.0,
                                 "headers": {FROM_HEADER: "dl"}, "zz": {"k": [1]}}
    assert b'"payload":1e2' in again


@pytest.mark.parametrize("payload", ["7", '{"letters":7}', '{"letter":1}', "{}"])
def test_records_that_say_nothing_settle_and_edit_nothing(payload: str) -> None:
    raw = f'{{"id":"m","timestamp":5,"type":"t","from":"x","payload":{payload}}}'.encode()
    message = with_raw(decode(raw), raw, "dead-letter:c")
    assert settled_of(message) == []
    assert edit_of(message) is None


# ------------------------------------------------------------------------------------------------ files, sites, modes


async def test_what_was_settled_stays_settled_after_a_restart(tmp_path: Path) -> None:
    home = str(tmp_path / "h")
    async with MessageBus("a", home=home, retry_attempts=1) as bus:
        await bus.subscribe("c", Fragile(1, 2, 3), durable="work")
        for n in (1, 2, 3):
            await bus.publish("c", n)
        letters = {letter.payload: letter.id for letter in await dead(bus, 3)}
        await bus.dead_letters.drop(letters[1])
    async with MessageBus("b", home=home) as bus:
        await bus.dead_letters.edit(letters[3], "three")
        await bus.dead_letters.redrive(letters[2])
    got = Got()
    async with MessageBus("a", home=home) as bus:
        assert [(letter.payload, letter.edited) for letter in await bus.dead_letters.find()] == [("three", True)]
        await bus.subscribe("c", got, durable="work")
        await bus.dead_letters.redrive_all()
        await got.reach(2)
        assert (sorted(got.payloads, key=str), await bus.dead_letters.find()) == ([2, "three"], [])


@pytest.fixture(params=["isolated", "degraded", "distributed"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_one_poison_message_among_a_thousand_is_one_dead_letter_and_redriven_in_every_mode(
    mode: str, redis: RedisServer, tmp_path: Path  # noqa: F811
) -> None:
    options: dict[str, Any] = {"retry_attempts": 3, "retry_delay": 0.0, "local_redis": "off"}
    if mode == "distributed":
        options["redis_url"] = redis.url()
    elif mode == "degraded":
        options |= {"redis_url": f"unix://{tmp_path}/nobody.sock", "local_redis": redis.url()}
    async with MessageBus("a", home=str(tmp_path / "h"), **options) as bus:
        await until(lambda: bus.mode.value == mode)
        handler = Fragile(500)
        await bus.subscribe("c", handler, durable="work")
        for n in range(1000):
            await bus.publish("c", n)
        await until(lambda: len(handler.got) == 999)
        (letter,) = await dead(bus, 1)
        assert (letter.reason, letter.attempts, letter.error) == ("handler failed", 3, "ValueError: cannot do 500")
        assert handler.payloads == [n for n in range(1000) if n != 500]
        handler.bad.clear()
        assert await bus.dead_letters.redrive_all("c", reason="handler failed") == Redriven(1, {})
        await until(lambda: len(handler.got) == 1000)
        assert (handler.payloads[-1], await bus.dead_letters.find()) == (500, [])
        assert bus.mode.value == mode


async def test_the_other_site_sees_them_settles_them_and_both_know(redis: RedisServer, tmp_path: Path) -> None:  # noqa: F811
    def site(name: str) -> MessageBus:
        return MessageBus(name, home=str(tmp_path / name), redis_url=redis.url(), local_redis="off", retry_attempts=1)

    async with site("a") as a, site("b") as b:
        for bus in (a, b):
            await until(lambda bus=bus: bus.mode.value == "distributed")
        here, there = Fragile(1, 2, 3), Got()
        await a.subscribe("c", here, durable="work")
        await b.subscribe("c", there, durable="work")
        for n in (1, 2, 3):
            await b.publish("c", n)
        letters = {letter.payload: letter for letter in await dead(b, 3)}
        assert {letter.site for letter in letters.values()} == {a.site.site_id}
        here.bad.clear()
        await b.dead_letters.drop(letters[1].id)
        await b.dead_letters.edit(letters[2].id, "two")
        (two,) = [letter for letter in await dead(a, 2) if letter.id == letters[2].id]
        async with asyncio.timeout(WAIT_S):
            while not two.edited:
                two = await a.dead_letters.get(two.id)
        assert (await b.dead_letters.redrive_all()).count == 2
        await dead(a, 0)
        await until(lambda: len(here.got) == 2)
        assert here.payloads == ["two", 3]
        await there.reach(5)
    async with site("a") as a:
        assert await a.dead_letters.find() == []


async def test_what_the_stream_does_not_hold_any_more_is_asked_for(
    redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    def site(name: str) -> MessageBus:
        return MessageBus(name, home=str(tmp_path / name), redis_url=redis.url(), local_redis="off", retry_attempts=1)

    async with site("a") as a:
        await a.subscribe("c", Fragile(*range(50)), durable="work")
        for n in range(50):
            await a.publish("c", n)
        await dead(a, 50)
        await until(lambda: redis.cli("XLEN", "message-stream:dead-letter:c") == 50)
        redis.cli("XTRIM", "message-stream:dead-letter:c", "MAXLEN", 1)
        async with site("b") as b:
            assert len(await dead(b, 50)) == 50
            site_id = b.site.site_id
    redis.cli("DEL", "message-stream:dead-letter:c")
    redis.cli("DEL", f"resend:{{message-stream:dead-letter:c}}:{site_id}")
    monkeypatch.setattr(whole, "WAIT_S", 0.2)
    async with site("b") as b:
        assert await b.dead_letters.find() == []  # it is neither here nor there, and its site is not there either
    async with site("a") as a:
        assert len(await a.dead_letters.find()) == 50
