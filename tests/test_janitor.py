"""The janitor: one process of a site cleans up, by what the others have settled, and tells them what it counted."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from lemegeton.bus import MessageBus
from lemegeton.config import Settings
from lemegeton.errors import BusFull
from lemegeton.events import Event, Gap, RetentionFailed, SubscriptionExpired
from lemegeton.home import Home, open_home
from lemegeton.logs.janitor import UNRELAYED, Holders, Janitor
from lemegeton.sharing import STATE_FILE, Remote, RemoteState, encode_state
from lemegeton.testing.fake_fs import FakeDisk, FakeFs
from lemegeton.testing.fake_runtime import FakeClock, runtime
from test_delivery import Got, in_virtual_time

HOME = "/.lemegeton"


class Site:
    """A disk with a clock, and buses in processes of their own."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.disk = FakeDisk(Random(1), clock=self.now_s)
        self.events: list[Event] = []

    def now_s(self) -> float:
        return FakeClock(self.loop).wall_ms() / 1000

    def bus(self, name: str = "a", **settings: Any) -> MessageBus:
        self.fs = FakeFs(self.disk)
        bus = MessageBus(name, runtime=runtime(self.fs), **settings)
        bus.on("*", self.events.append)
        return bus

    async def janitor(self, **settings: Any) -> Janitor:
        machine = runtime(FakeFs(self.disk))
        self.home = await open_home(machine, HOME)
        return Janitor(machine, self.home, Settings(**settings), self.events.append)

    def segments(self, channel: str = "c") -> list[str]:
        names = FakeFs(self.disk).listdir(f"{HOME}/messages/{channel}")
        return sorted((n for n in names if n.endswith(".log")), key=lambda n: [int(x) for x in n.split(".")[1:4]])

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


async def fill(bus: MessageBus, count: int = 100) -> None:
    for n in range(count):
        await bus.publish("c", n)


SMALL: dict[str, Any] = {"segment_bytes": 1000, "disk_budget": 0, "message_max_age": 60.0}


@in_virtual_time
async def test_what_a_durable_subscription_has_not_settled_stays_however_old() -> None:
    site, got = Site(), Got()
    async with site.bus(**SMALL) as bus:
        sub = await bus.subscribe("c", got, durable="worker")
        await bus.unsubscribe(sub)
        await fill(bus)
        before = site.segments()
        await asyncio.sleep(600.0)
        assert site.segments() == before
        await bus.subscribe("c", got, durable="worker")
        await got.reach(100)
        await asyncio.sleep(10.0)
        assert site.segments() == before[-1:]
    assert got.payloads == list(range(100))
    assert not site.of(Gap)


@in_virtual_time
async def test_without_a_durable_subscription_records_stay_for_message_max_age() -> None:
    site = Site()
    async with site.bus(segment_bytes=1000, message_max_age=600.0) as bus:
        await fill(bus)
        before = site.segments()
        await asyncio.sleep(590.0)
        assert site.segments() == before
        await asyncio.sleep(20.0)
        assert site.segments() == before[-1:]
        await bus.publish("c", "more")
        assert [m.payload for m in await bus.history("c")][-1] == "more"


@in_virtual_time
async def test_settled_records_are_kept_up_to_the_budget() -> None:
    site, got = Site(), Got()
    async with site.bus(segment_bytes=1000, disk_budget=5000) as bus:
        await bus.subscribe("c", got, durable="worker")
        await fill(bus, 200)
        await got.reach(200)
        await asyncio.sleep(10.0)
        sizes = [len(site.disk.read(f"{HOME}/messages/c/{name}")) for name in site.segments()]
        assert 3000 < sum(sizes[:-1]) <= 5000


@in_virtual_time
async def test_delete_processed_messages_removes_settled_segments_at_once() -> None:
    site, got = Site(), Got()
    async with site.bus(segment_bytes=1000, delete_processed_messages=True) as bus:
        await bus.subscribe("c", got, durable="worker")
        await fill(bus)
        await got.reach(100)
        await asyncio.sleep(10.0)
        assert len(site.segments()) == 1


@in_virtual_time
async def test_on_full_wait_lets_publishers_in_when_the_subscription_has_caught_up() -> None:
    site, got = Site(), Got()
    async with site.bus(segment_bytes=1000, disk_budget=0, disk_limit=20_000, publish_timeout=60.0) as bus:
        sub = await bus.subscribe("c", got, durable="slow")
        await bus.unsubscribe(sub)
        filling = asyncio.create_task(fill(bus, 300))
        await asyncio.sleep(20.0)
        assert not filling.done()
        stats = bus.stats()
        assert (stats.disk_holder, stats.waiting_publishers) == ("slow", 1)
        await bus.subscribe("c", got, durable="slow")
        await filling
        await got.reach(300)
    assert got.payloads == list(range(300))


@in_virtual_time
async def test_on_full_raise_names_the_subscription_in_the_way() -> None:
    site = Site()
    async with site.bus(segment_bytes=1000, disk_budget=0, disk_limit=10_000, on_full="raise") as bus:
        await bus.unsubscribe(await bus.subscribe("c", Got(), durable="slow"))
        with pytest.raises(BusFull):
            await fill(bus, 200)
        await asyncio.sleep(10.0)
        with pytest.raises(BusFull, match="in the way: slow"):
            await bus.publish("c", "more")


@in_virtual_time
async def test_a_subscription_that_nobody_holds_for_abandoned_after_is_dropped_with_an_event() -> None:
    site = Site()
    async with site.bus(segment_bytes=1000, disk_budget=0, message_max_age=10.0, abandoned_after=300.0) as bus:
        gone = await bus.subscribe("c", Got(), durable="gone")
        await bus.subscribe("c", Got(), durable="held")
        await bus.unsubscribe(gone)
        await fill(bus)
        await asyncio.sleep(290.0)
        assert not site.of(SubscriptionExpired)
        await asyncio.sleep(50.0)
        (event,) = site.of(SubscriptionExpired)
        assert event.subscription == "gone"
        assert event.idle_s == pytest.approx(300.0, abs=40.0)
        assert len(site.segments()) == 1
        assert [holder.name for holder in bus.site.holders()] == ["held"]


@in_virtual_time
async def test_the_end_of_an_incarnation_that_is_over_may_go_and_the_last_one_stays() -> None:
    site, got = Site(), Got()
    async with site.bus(**SMALL) as bus:
        await fill(bus, 5)
    name = site.segments()[0]
    fs = FakeFs(site.disk)
    fd = fs.open(f"{HOME}/messages/c/{name}", os.O_RDWR | os.O_APPEND)
    fs.write(fd, b"torn")
    async with site.bus(**SMALL) as bus:
        await bus.subscribe("c", got, start="earliest", durable="worker")
        await fill(bus, 5)
        await got.reach(10)
        await asyncio.sleep(10.0)
        assert [n.split(".")[1] for n in site.segments()] == ["2"]
    assert got.payloads == [0, 1, 2, 3, 4] * 2


@in_virtual_time
async def test_one_janitor_at_a_time_and_the_others_know_its_count() -> None:
    site = Site()
    async with site.bus(**SMALL) as bus:
        await fill(bus, 50)
    first, second = await site.janitor(disk_budget=0), await site.janitor(disk_budget=0)
    counted = first.tick()
    assert counted is not None
    assert second.tick() == counted
    assert counted[0] == sum(len(site.disk.read(f"{HOME}/messages/c/{name}")) for name in site.segments())
    first.close()
    assert second.tick() == counted
    second.close()
    second.close()


@in_virtual_time
async def test_before_anybody_counted_nothing_is_known() -> None:
    site = Site()
    first, second = await site.janitor(), await site.janitor()
    assert first.counted() is None
    first._fs.lock(first._fd)
    assert second.tick() is None


@in_virtual_time
async def test_a_checkpoint_that_cannot_be_read_holds_everything() -> None:
    site, got = Site(), Got()
    async with site.bus(**SMALL) as bus:
        await bus.unsubscribe(await bus.subscribe("other", got, durable="worker"))
        await fill(bus)
        before = site.segments()
        fs = FakeFs(site.disk)
        fd = fs.open(f"{HOME}/cursors/worker", os.O_RDWR)
        fs.pwrite(fd, b"garbage", 0)
        await asyncio.sleep(300.0)
        assert site.segments() == before


@in_virtual_time
async def test_holders_come_go_and_are_replaced() -> None:
    site = Site()
    async with site.bus() as bus:
        await bus.subscribe("a*", Got(), durable="one")
        machine = runtime(FakeFs(site.disk))
        holders = Holders(machine, Home(HOME, "s"))
        (holder,) = holders.refresh()
        assert (holder.name, holder.matches("abc"), holder.matches("b")) == ("one", True, False)
        assert holders.headers()["one"].patterns == ("a*",)
        await bus.unsubscribe("a*", forget=True)
        assert holders.refresh() == []
        await bus.subscribe(["b", "c"], Got(), durable="one")
        (holder,) = holders.refresh()
        assert (holder.matches("abc"), holder.matches("b")) == (False, True)
        await bus.unsubscribe(("b", "c"), forget=True)
        await bus.subscribe("d", Got(), durable="one")
        (holder,) = holders.refresh()
        assert holder.matches("d")
        machine.fs.fail_next("lstat", errno.ENOENT)  # type: ignore[attr-defined]
        assert holders.refresh() == []
        holders.close()
        holders.close()


@in_virtual_time
async def test_cleaning_up_that_fails_is_an_event_and_tried_again() -> None:
    site = Site()
    async with site.bus(segment_bytes=1000, message_max_age=10.0) as bus:
        await fill(bus)
        site.fs.fail_next("unlink", errno.EIO)
        await asyncio.sleep(20.0)
        assert len(site.of(RetentionFailed)) == 1
        assert len(site.segments()) == 1


@in_virtual_time
async def test_a_segment_that_somebody_else_removed_is_no_error() -> None:
    site = Site()
    async with site.bus(segment_bytes=1000, message_max_age=10.0) as bus:
        await fill(bus)
        for op in ("lstat", "unlink"):
            for at in range(1, 4):
                site.fs.fail_next(op, errno.ENOENT, after=at)
        await asyncio.sleep(20.0)
        assert not site.of(RetentionFailed)


@in_virtual_time
async def test_an_ephemeral_reader_holds_nothing_and_its_gap_is_an_event() -> None:
    site = Site()
    inside, go = asyncio.Event(), asyncio.Event()
    seen: list[Any] = []

    async def slow(message: Any) -> None:
        seen.append(message.payload)
        inside.set()
        await go.wait()

    async with site.bus(segment_bytes=1000, message_max_age=10.0, concurrency=1) as bus:
        await bus.subscribe("c", slow)
        await bus.publish("c", 0)
        await inside.wait()
        for n in range(1, 3000):
            await bus.publish("c", f"{n} {'x' * 300}")
        await asyncio.sleep(60.0)
        go.set()
        await asyncio.sleep(10.0)
        gaps = site.of(Gap)
        assert gaps
        missing = sum(gap.last - gap.first + 1 for gap in gaps)
        assert len(seen) + missing == 3000


@in_virtual_time
async def test_the_dead_letters_of_a_settled_channel_stay_for_their_own_age() -> None:
    site = Site()

    async def failing(_: Any) -> None:
        raise ValueError("no")

    async with site.bus(segment_bytes=500, disk_budget=0, retry_attempts=1, message_max_age=5.0,
                        dead_letter_max_age=500.0) as bus:
        await bus.subscribe("c", failing, durable="worker")
        await fill(bus, 20)
        await asyncio.sleep(400.0)
        assert len(site.segments()) == 1
        assert len(await bus.history("dead-letter:c")) == 20
        await asyncio.sleep(200.0)
        assert len(await bus.history("dead-letter:c")) < 20




@in_virtual_time
async def test_the_last_segments_of_a_copied_home_go_once_they_are_settled() -> None:
    site, got = Site(), Got()
    async with site.bus(**SMALL) as bus:
        await bus.subscribe("c", got, durable="worker")
        await bus.publish("c", 1)
        await got.reach(1)
    janitor = await site.janitor(**SMALL)
    janitor.tick()
    assert len(site.segments()) == 1
    janitor.close()
    FakeFs(site.disk).unlink(f"{HOME}/site")  # what a copy finds is not bound to it: it gets an id of its own
    janitor = await site.janitor(**SMALL)
    janitor.tick()
    assert site.segments() == []


@in_virtual_time
async def test_the_last_segment_of_a_live_sender_stays_whatever_site_it_was_opened_in() -> None:
    site, got = Site(), Got()
    async with site.bus(**SMALL) as bus:
        await bus.subscribe("c", got, durable="worker")
        await bus.publish("c", 1)
        await got.reach(1)
        FakeFs(site.disk).unlink(f"{HOME}/site")
        janitor = await site.janitor(**SMALL)
        janitor.tick()
        assert len(site.segments()) == 1


def remote_state(site: Site, **state: Any) -> None:
    """What the bridge of a site leaves for its janitor."""
    fs = FakeFs(site.disk)
    with suppress(FileExistsError):
        fs.mkdir(f"{HOME}/redis")
    fd = fs.open(f"{HOME}/{STATE_FILE}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    fs.write(fd, encode_state(RemoteState(**state)))


@in_virtual_time
async def test_what_the_shared_redis_or_another_site_lacks_stays_and_then_the_floor_counts() -> None:
    site, got = Site(), Got()
    async with site.bus(**SMALL) as bus:
        await bus.subscribe("c", got, durable="worker")
        await fill(bus)
        await got.reach(100)
        lane = (await bus.history("c", 1))[0]
        before = site.segments()
    field = f"{lane.origin}.{lane.inc}.1"
    relays = {**SMALL, "redis_url": "redis://nowhere"}

    async def left(**settings: Any) -> int:
        janitor = await site.janitor(**relays, **settings)
        counted = janitor.tick()
        janitor.close()
        assert counted is not None
        holder.append(counted[1])
        return len(site.segments())

    holder: list[str] = []
    await asyncio.sleep(3600.0)
    assert await left() == len(before)
    assert holder == [UNRELAYED]
    remote_state(site, marks={"c": {field: 50}})
    assert 1 < (half := await left()) < len(before)
    remote_state(site, marks={"c": {field: 100}}, holders=(Remote("far@site", ("c",), {"c": {field: 50}}),))
    assert await left() == half
    assert holder[-1] == "far@site"
    remote_state(site, marks={"c": {field: 100}}, holders=(Remote("far@site", ("c",), {"c": {field: 100}}),))
    assert await left() == 1
