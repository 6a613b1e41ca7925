"""One process life of the chaos: it publishes or subscribes as its parent says, and writes down what it does.

The parent talks through stdin and stdout, one JSON object a line; the end of stdin ends the process.  What it did is in
its history file, written as `lemegeton.testing.history` asks: before the effect, so that SIGKILL hides nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import json
import os
import random
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import lemegeton
from lemegeton import LemegetonError, Message, MessageBus, NameTaken, Receipt
from lemegeton.channels import compile_glob
from lemegeton.errors import BusClosed
from lemegeton.events import CorruptRecord, DeadLettered, Event, Expired, Gap, ModeChanged
from lemegeton.lane import Lane
from lemegeton.testing.history import History

PR_SET_PDEATHSIG = 1
CHILD_LIVES_S = 20.0
COMMAND_BYTES = 64 * 1024
POISON = 0.01
"""The share of messages whose handler always raises."""
FLAKY = 0.02
EXPIRING = 0.01
GIVEN_ID = 0.15
ON_DISK = 0.05
IN_REDIS = 0.02
REACHED_S = 1.0
PLAIN_BYTES = 200
BEHIND_S = 0.2
"""How far the pace is caught up with, behind a pause."""
SLOW = 0.05


def die() -> None:
    """End here and now, as nothing else does."""
    os.kill(os.getpid(), signal.SIGKILL)


def tell(**answer: Any) -> None:
    """One line to the parent."""
    os.write(1, json.dumps(answer).encode() + b"\n")


def digest(payload: Any) -> str:
    """The digest of a payload that sender and reader agree on."""
    return hashlib.blake2b(json.dumps(payload, sort_keys=True).encode(), digest_size=8).hexdigest()


def sender_of(lane: Lane) -> str:
    """The name of the bus that writes a lane."""
    return lane.origin.partition("~")[0]


class LimitedHistory:
    """A history in a process whose files may not grow: the limit is lifted for the line, which must be whole."""

    def __init__(self, history: History, file_bytes: int) -> None:
        self._history = history
        self._limits = (file_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)

    def record(self, ev: Any, **fields: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._limits[1], self._limits[1]))
        try:
            self._history.record(ev, **fields)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)


class Publisher:
    """Publishes batches; dies right behind an acknowledgement if it is told to."""

    def __init__(self, bus: MessageBus, record: Callable[..., None], spec: dict[str, Any]) -> None:
        self._bus = bus
        self._record = record
        self._channels: list[str] = spec.get("targets", spec["channels"])
        self._even = spec.get("plain", False)
        self._inc: str = spec["inc"]
        self._rng = random.Random(spec["seed"])
        self._redis = "redis_url" in spec["settings"]
        self._count = 0
        self._acks_left = 0

    async def batch(self, *, count: int, pace_s: float, tasks: int, die_after: int = 0) -> None:
        """Publish ``count`` messages from ``tasks`` tasks; SIGKILL behind the ``die_after``-th receipt."""
        self._acks_left = die_after
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(self._some(count // tasks, pace_s))
        tell(batch=count)

    async def _some(self, count: int, pace_s: float) -> None:
        due = time.monotonic()
        for _ in range(count):
            await self.one()
            if pace_s:
                due = max(due + self._rng.random() * 2 * pace_s, time.monotonic() - BEHIND_S)
                await asyncio.sleep(due - time.monotonic())

    async def one(self) -> None:
        """One message, from the line that says it is coming to the line that says how it ended."""
        self._count += 1
        name, channel = f"{self._inc}-{self._count}", self._rng.choice(self._channels)
        payload, options = self._plain(name) if self._even else self._drawn(name)
        self._record("inv", ch=channel, prod=self._bus.name, id=name, sha=digest(payload),
                     kind="ttl" if "ttl" in options else "")
        try:
            receipt = await self._bus.publish(channel, payload, **options)
        except LemegetonError as error:
            self._record("fail" if error.definite else "info", ch=channel, id=name, cause=str(error))
            return
        self._acknowledged(receipt, name)

    def _plain(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"m": name, "fill": "x" * PLAIN_BYTES}, {}

    def _drawn(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """A message of any kind: what it says, and how it is published."""
        rng = self._rng
        payload: dict[str, Any] = {"m": name, "fill": "x" * rng.choice((0, 10, 200, 200, 1000))}
        options: dict[str, Any] = {"priority": rng.choice((1, 1, 1, 1, 1, 0, 2, 3))}
        draw = rng.random()
        if draw < POISON:
            payload["raise"] = 1_000_000
        elif draw < POISON + FLAKY:
            payload["raise"] = 1
        elif draw < POISON + FLAKY + EXPIRING:
            options.update(ttl=0.02, id=name)
        elif draw < POISON + FLAKY + EXPIRING + GIVEN_ID:
            options["id"] = name
        if rng.random() < ON_DISK:
            options["ack"] = "disk"
        if self._redis and rng.random() < IN_REDIS:
            options.update(ack="redis", timeout=REACHED_S)
        return payload, options

    def _acknowledged(self, receipt: Receipt, name: str) -> None:
        lane = receipt.lane
        self._record("ack", ch=lane.channel, prod=self._bus.name, origin=lane.origin, pinc=lane.inc, prio=lane.priority,
                     seq=receipt.seq, id=name, level=receipt.level)
        self._acks_left -= 1
        if self._acks_left == 0:
            die()


class Subscriber:
    """Holds durable subscriptions; dies before, inside or after a handler if it is told to."""

    def __init__(self, bus: MessageBus, record: Callable[..., None], spec: dict[str, Any]) -> None:
        self._bus = bus
        self._record = record
        self._suffix: str = spec.get("suffix", "")
        self._channels: list[str] = spec["channels"]
        self._rng = random.Random(spec["seed"])
        self._where = ""
        self._calls_left = 0
        self._slow_s = 0.0
        self._even = spec.get("plain", False)
        self._names: dict[tuple[Lane, int], str] = {}
        bus.on("*", self._on_event)

    def arm(self, *, where: str, calls: int) -> None:
        """Die in the handler call that comes ``calls`` from now; 0: not at all."""
        self._where, self._calls_left = where, calls

    def slow(self, *, seconds: float) -> None:
        """Have every handler take so long."""
        self._slow_s = seconds

    async def open(self, subscriptions: dict[str, list[str]]) -> None:
        """Subscribe each durable name to its patterns."""
        for name, patterns in subscriptions.items():
            await self._open(name, patterns)

    async def _open(self, name: str, patterns: list[str]) -> None:
        sub = name + self._suffix
        self._record("open", sub=sub)

        async def handler(message: Message) -> None:
            await self._handle(sub, message)

        await self._bus.subscribe(patterns, handler, durable=name, start="earliest")
        for channel in self._channels:
            if any(compile_glob(pattern)(channel) for pattern in patterns):
                self._record("reg", sub=sub, ch=channel)

    async def _handle(self, sub: str, message: Message) -> None:
        payload = message.payload
        if not isinstance(payload, dict) or "m" not in payload:
            return  # from a program that is no bus, without a place in a lane: nothing is promised that is judged here
        key = {"sub": sub, "ch": message.channel, "prod": message.sender, "origin": message.origin, "pinc": message.inc,
               "prio": message.priority, "seq": message.seq, "id": payload["m"]}
        self._calls_left -= 1
        self._die_here("before")
        self._record("start", sha=digest(payload), redel=message.redelivered, attempt=message.attempt, **key)
        self._die_here("inside")
        if self._slow_s:
            await asyncio.sleep(self._slow_s)
        if not self._even and self._rng.random() < SLOW:
            await asyncio.sleep(self._rng.random() * 0.01)
        if message.attempt <= payload.get("raise", 0):
            lane = Lane(message.channel, message.origin, message.inc, message.priority)
            self._names[lane, message.seq] = payload["m"]
            self._record("error", **key)
            raise RuntimeError("asked to")
        self._record("done", **key)
        self._die_here("after")

    def _die_here(self, where: str) -> None:
        if self._calls_left == 0 and self._where == where:
            die()

    def _on_event(self, event: Event) -> None:
        if isinstance(event, ModeChanged):
            self._record("mode", kind=f"{event.old} > {event.new}")
        elif getattr(event, "lane", None) is None or event.lane.origin.partition("~")[0] in ("heard", "foreign"):
            return
        elif isinstance(event, Gap):
            self._about("gap", event.subscription, event.lane, first=event.first, last=event.last, cause=event.cause)
        elif isinstance(event, CorruptRecord):
            self._about("corrupt", event.subscription, event.lane, seq=event.expected, cause=event.cause)
        elif isinstance(event, Expired) and event.first:
            self._about("expired", event.subscription, event.lane, first=event.first, seq=event.seq)
        elif isinstance(event, Expired):
            self._about("expired", event.subscription, event.lane, seq=event.seq, id=event.id)
        elif isinstance(event, DeadLettered):
            self._about("dead", event.subscription, event.lane, seq=event.seq, id=self._names[event.lane, event.seq])

    def _about(self, ev: str, name: str, lane: Lane, **fields: Any) -> None:
        self._record(ev, sub=name + self._suffix, ch=lane.channel, prod=sender_of(lane), origin=lane.origin,
                     pinc=lane.inc, prio=lane.priority, **fields)


def fork_a_child(bus: MessageBus) -> None:
    """A child that outlives this process: it may keep no name, and its copy of the bus must refuse to work."""
    if os.fork():
        return
    verdict = "published"
    try:
        bus.publish("hub", None).send(None)
    except BusClosed:
        verdict = "refused"
    except BaseException as error:
        verdict = repr(error)
    tell(child=os.getpid(), verdict=verdict)
    select.select([0], [], [], CHILD_LIVES_S)
    os._exit(0)


class Commands:
    """Runs what the parent says until it says stop, or is gone."""

    def __init__(self, bus: MessageBus, publisher: Publisher, subscriber: Subscriber) -> None:
        self._bus = bus
        self._publisher = publisher
        self._subscriber = subscriber
        self._rest = b""
        self._tasks: set[asyncio.Task[None]] = set()
        self.stopped = asyncio.Event()

    def read(self) -> None:
        """What has come on stdin."""
        data = os.read(0, COMMAND_BYTES)
        if not data:
            os._exit(1)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, command: dict[str, Any]) -> None:
        do = command.pop("do")
        if do == "batch":
            task = asyncio.get_running_loop().create_task(self._publisher.batch(**command))
            self._tasks.add(task)
            task.add_done_callback(_show_error)
        elif do == "arm":
            self._subscriber.arm(**command)
        elif do == "slow":
            self._subscriber.slow(**command)
        elif do == "fork":
            fork_a_child(self._bus)
        elif do == "stop":
            self.stopped.set()


def _show_error(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        raise SystemExit(f"batch: {task.exception()!r}")


async def live(spec: dict[str, Any]) -> None:
    """One life: start, obey, and at a wanted end stop in good order."""
    history: Any = History(spec["history"], inc=spec["inc"], site=spec["site"])
    if spec.get("file_bytes"):
        history = LimitedHistory(history, spec["file_bytes"])
    bus = MessageBus(spec["name"], home=spec["home"], **spec["settings"])
    await bus.start()
    subscriber = Subscriber(bus, history.record, spec)
    commands = Commands(bus, Publisher(bus, history.record, spec), subscriber)
    await subscriber.open(spec.get("subscriptions", {}))
    asyncio.get_running_loop().add_reader(0, commands.read)
    tell(ready=True)
    await commands.stopped.wait()
    await bus.stop()
    for name in spec.get("subscriptions", {}):
        history.record("stop", sub=name + spec.get("suffix", ""))
    tell(stopped=True)


async def rival(spec: dict[str, Any]) -> None:
    """A second process that wants a durable name which is held."""
    async with MessageBus(spec["name"], home=spec["home"], **spec["settings"]) as bus:
        for name, patterns in spec["subscriptions"].items():
            try:
                await bus.subscribe(patterns, lambda message: None, durable=name)
            except NameTaken:
                tell(rival="refused")
            else:
                tell(rival="accepted")


def main() -> None:
    """Run the life that the first argument describes."""
    with suppress(OSError, AttributeError):  # dies with its parent even while it is stopped; Linux only
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is for the parent, which ends us
    spec = json.loads(sys.argv[1])
    run = random.choice((lemegeton.run, asyncio.run))
    run(rival(spec) if spec.get("rival") else live(spec))


if __name__ == "__main__":
    main()
