"""The bus: what users hold in their hands.

It puts the pieces together and decides nothing itself: a site with a log to append to, subscriptions that read, and
one task that owns every other task.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from lemegeton.channels import HUB_BROADCAST, agent_channel, check_channel, check_name, check_pattern
from lemegeton.codec import Draft, check_draft, encode_payload, fill, form_of, ttl_ms
from lemegeton.deadletters import DeadLetters
from lemegeton.errors import BusClosed, InvalidMessage
from lemegeton.events import BusBroken, Event
from lemegeton.handled import Ack, reach
from lemegeton.history import newest
from lemegeton.logs.base import Form, Position
from lemegeton.message import Message, MessagePriority, Receipt
from lemegeton.modes import CoordinationMode
from lemegeton.observing import Observing
from lemegeton.osfs import at_fork
from lemegeton.seams import Runtime
from lemegeton.signals import until_signalled
from lemegeton.site import Site, open_site
from lemegeton.stats import Stats
from lemegeton.stream import Hand
from lemegeton.subscription import Start, Subscription, UserHandler, take_name
from lemegeton.typed import PLAIN, as_published

if TYPE_CHECKING:  # only who answers or asks pays for loading what that takes
    from lemegeton.answering import Answers
    from lemegeton.replies import Progress
    from lemegeton.requesting import Requests

FORMS_MAX = 10_000
AT_ONCE = ("local", "disk")
"""Levels that the log itself reaches."""
TICK_S = 1.0
LEAVING = "stopped, and only lets running handlers finish"
BROKEN = "broken: its tasks ended by an error of their own, which `stop` raises"


class MessageBus:
    """A bus of this name in the home of this site.

    ``async with MessageBus("alice") as bus`` starts and stops it.  Settings are given as keywords, by ``LEMEGETON_*``
    variables, or in ``lemegeton.toml`` (see `config.Settings`).  It belongs to the event loop it was started in, and
    not to a forked child: there every call raises `BusClosed`.

    ``site`` and ``runtime`` are for tests: another place to keep messages (`testing.memory`), another machine.
    """

    def __init__(
        self, name: str, *, site: Site | None = None, runtime: Runtime | None = None, origin_wait_s: float = 0.0,
        **settings: Any
    ) -> None:
        self.name = check_name(name)
        self._arguments = settings
        self._runtime = runtime
        self._origin_wait_s = origin_wait_s
        self._given_site = site
        self._opened: Site | None = None
        self._observing = Observing()
        self._subscriptions: list[Subscription] = []
        self._answers: Answers | None = None
        self._requests: Requests | None = None
        self._forms: dict[tuple[str, str, int], Form] = {}
        self._root: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None
        self._stopping = asyncio.Event()
        self._state = "not started"
        self._default_ttl: float | None = None
        self.relayed = True
        """After `stop`: false if the shared Redis still lacks something of what this bus published."""
        self._published = 0
        self._loop_lag_s = self._loop_lag_max_s = 0.0

    # ------------------------------------------------------------------------------------------ life

    async def start(self) -> None:
        """Open the home and begin to serve; `HomeRefused` or `InvalidSetting` says what is wrong."""
        if self._state != "not started":
            raise BusClosed(f"bus {self.name}: it was {self._state} already; make a new MessageBus")
        self._opened = self._given_site or await open_site(
            self.name, self._runtime, self._arguments, self._observing.observe, self._origin_wait_s)
        self._default_ttl = self._opened.settings.message_timeout
        at_fork(self, MessageBus._forked)
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._root = asyncio.get_running_loop().create_task(self._serve(ready), name=f"lemegeton {self.name}")
        await ready
        self._state = "running"
        self._root.add_done_callback(self._root_ended)

    async def _serve(self, ready: asyncio.Future[None]) -> None:
        """The root of all tasks of this bus; `stop` waits for it."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await self._site.start(group)
            except BaseException as error:
                ready.set_exception(error)
                raise
            group.create_task(self._ticks())
            ready.set_result(None)
            await self._stopping.wait()

    async def stop(self) -> None:
        """Let running handlers finish (up to ``drain_timeout``), write what waits, let everything go.

        A second call does nothing.  What was published is in the log whether or not this is ever called."""
        if self._state not in ("running", BROKEN):
            self._state = "stopped" if self._state == "not started" else self._state
            return
        self._state = LEAVING if self._state == "running" else "stopped"
        self._end_requests()
        site = self._site
        subscriptions, self._subscriptions = self._subscriptions, []
        try:
            async with asyncio.TaskGroup() as group:
                for subscription in subscriptions:
                    group.create_task(subscription.stop(site.settings.drain_timeout))
            self.relayed = await site.leave()
        finally:
            self._state = "stopped"
            self._stopping.set()
            site.end_tasks()
            await self._end_root(site.settings.drain_timeout)
            await site.aclose()

    async def _end_root(self, timeout_s: float) -> None:
        """Wait for every task; one that ignores its cancellation is left behind after ``timeout_s``."""
        assert self._root is not None, "a running bus has a root task"
        done, _ = await asyncio.wait([self._root], timeout=timeout_s)
        if not done:
            self._root.cancel()
            await asyncio.wait([self._root], timeout=timeout_s)
        elif not self._root.cancelled() and (error := self._root.exception()) is not None:
            raise error

    def _root_ended(self, root: asyncio.Task[None]) -> None:
        """An error that no task should have ends them all: say so, and refuse everything from here on."""
        if self._state == "running" and not root.cancelled() and (error := root.exception()) is not None:
            self._state = BROKEN
            self._end_requests()
            self._observing.observe(BusBroken(self.name, f"{type(error).__name__}: {error}"))

    def _end_requests(self) -> None:
        if self._requests is not None:
            self._requests.close()

    def _forked(self) -> None:
        self._state = "inherited by a forked child"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def serve(self) -> None:
        """Return when SIGINT or SIGTERM comes; leaving ``async with`` then drains."""
        self._running()
        await until_signalled()

    async def _ticks(self) -> None:
        """Once a second: notice a blocked loop, look after what is written, clean up."""
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            due = loop.time() + TICK_S
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), TICK_S)
                return
            self._loop_lag_s = loop.time() - due
            self._loop_lag_max_s = max(self._loop_lag_max_s, self._loop_lag_s)
            await self._site.tick()
            for subscription in self._subscriptions:
                subscription.tick()

    @property
    def _site(self) -> Site:
        assert self._opened is not None, "a bus that runs has opened its site"
        return self._opened

    def _running(self, *, or_leaving: bool = False) -> Site:
        if self._state != "running" and not (or_leaving and self._state is LEAVING):
            raise BusClosed(f"bus {self.name}: {self._state}; use it inside `async with`, in the process that began it")
        return self._site

    # ------------------------------------------------------------------------------------------ publishing

    async def publish(
        self, channel: str, payload: Any, *, type: str = "custom", to: str | None = None, ttl: float | None = None,
        priority: int = MessagePriority.NORMAL, id: str | None = None, correlation_id: str | None = None,
        reply_to: str | None = None, headers: dict[str, str] | None = None, ack: Ack = "local",
        timeout: float | None = None
    ) -> Receipt:
        """Store a message; once this returns every durable subscription of the channel settles it.

        ``ack="local"``: it survives SIGKILL of everything, not a power cut.  ``"disk"``: a power cut as well.
        ``"handled"``: all known durable subscriptions have settled it.  ``ttl`` and ``timeout`` are seconds.  A payload that
        is a msgspec Struct, a dataclass or a pydantic model says its class and version in the headers.

        `InvalidMessage` and `BusFull` and `DiskFull`: nothing was written.  `NotReached`: the level was not reached
        within ``timeout`` (None: no limit); the message is stored and still goes.  Cancelled after it was numbered, it
        is published all the same.
        """
        site = self._opened if self._state == "running" else None
        if site is None:
            site = self._running(or_leaving=True)
        if payload.__class__ not in PLAIN:
            payload, headers = as_published(payload, headers)
        if (ack in AT_ONCE and id is None and to is None and ttl is None and correlation_id is None and reply_to is None
                and headers is None and timeout is None):
            try:
                form = self._forms.get((channel, type, priority)) or self._form(channel, type, priority)
            except TypeError:  # one of them cannot be a key
                form = self._form(channel, type, priority)
            bytes_max, stamp_ms, disk = site.settings.max_message_bytes, site.wall_ms(), ack == "disk"
            data = encode_payload(payload, bytes_max)
            placed = site.log.append_now(form, stamp_ms, data, disk)
            if isinstance(placed, Position):
                position = placed
            elif placed is not None:
                position = await placed
            else:
                position = await site.log.append(channel, fill(form.body, stamp_ms, data, bytes_max), priority, disk=disk)
        else:
            check_channel(channel)
            life_ms = ttl_ms(self._default_ttl if ttl is None else ttl)
            draft = Draft(site.wall_ms(), type, self.name, payload, id, to, priority, life_ms, correlation_id,
                          reply_to, headers)
            check_draft(draft)
            position = await reach(site, channel, draft, ack, timeout)
        self._published += 1
        return Receipt(position.lane, position.seq, ack, id)

    def _form(self, channel: str, type: str, priority: int) -> Form:
        """The form of a message to a channel of which nothing else is given."""
        check_channel(channel)
        draft = Draft(0, type, self.name, None, priority=priority, ttl=ttl_ms(self._default_ttl))
        check_draft(draft)
        if len(self._forms) >= FORMS_MAX:
            self._forms.clear()
        form = self._forms[channel, type, priority] = Form(channel, priority, form_of(draft))
        return form

    async def publish_to_agent(self, agent: str, payload: Any, **options: Any) -> Receipt:
        """`publish` to the channel of one agent."""
        return await self.publish(agent_channel(check_name(agent, "agent")), payload, **{"to": agent, **options})

    async def broadcast(self, payload: Any, **options: Any) -> Receipt:
        """`publish` to ``hub-broadcast``, which every agent listens to."""
        return await self.publish(HUB_BROADCAST, payload, **options)

    async def request(
        self, channel: str, payload: Any, *, timeout: float = 30.0, progress: Progress | None = None,
        id: str | None = None, **options: Any
    ) -> Message:
        """Publish a message and wait for the reply that its handler gives with `Message.reply`; the first one counts.

        ``progress`` is called with every `Message.progress` until then.  ``options`` are those of `publish`; ``ttl`` is
        the timeout unless given.  `NoReply` after ``timeout`` seconds; `RequestFailed` if the handler used `Message.fail`
        or its message became a dead letter; `BusFull` while 10,000 wait; `BusClosed` when this bus stops meanwhile.
        Cancelled, or after its timeout, it has `Message.cancelled` say so to the handler.

        With an ``id`` the reply is durable: whoever asks again under this name and id, also after a restart, has the
        same reply, and the handler runs once.  `NameTaken` if another live process of this name does so.
        """
        site = self._running()
        if self._requests is None:
            from lemegeton.requesting import Requests

            self._requests = Requests(self.name, site, self.publish, self._begin, self.observe)
        return await self._requests.ask(channel, payload, timeout, progress, id, options)

    # ------------------------------------------------------------------------------------------ subscribing

    async def subscribe(
        self, patterns: str | Sequence[str], handler: UserHandler, *, start: Start = "new", durable: str | None = None,
        concurrency: int | None = None
    ) -> Subscription:
        """Give every message of the channels to ``handler``, in order per sender; globs as in Redis.

        A message counts as settled when the handler returned; when it raises it comes again (``retry_attempts``,
        ``retry_delay``) and then becomes a dead letter.  A handler whose first parameter is annotated with anything but
        `Message` is given the payload, decoded to that.  ``durable`` names a place that survives the process: it goes
        on there, whatever ``start`` says; `NameTaken` if a live process holds it.  Every message published after this
        returned is delivered.
        """
        site = self._running()
        wanted = [patterns] if isinstance(patterns, str) else list(patterns)
        if not wanted or start not in ("new", "earliest"):
            raise InvalidMessage(f"subscribe to {wanted}, start {start!r}: name a channel, and 'new' or 'earliest'")
        for pattern in wanted:
            check_pattern(pattern)
        if durable is not None:
            check_name(durable, "durable subscription")
        return await self._begin(partial(
            Subscription, site, wanted, handler, self._observing.observe, name=durable, start=start, sender=self.name,
            concurrency=concurrency, answers=self._answering()))

    def _answering(self) -> Answers:
        if self._answers is None:
            from lemegeton.answering import Answers

            self._answers = Answers(self.publish, self.observe)
        return self._answers

    async def _begin(self, make: Callable[[], Subscription]) -> Subscription:
        subscription = await take_name(make)
        assert self._group is not None, "a running bus has a task group"
        await subscription.open(self._group)
        self._subscriptions.append(subscription)
        return subscription

    async def stream(
        self, patterns: str | Sequence[str], *, start: Start = "new", durable: str | None = None
    ) -> AsyncIterator[Message]:
        """Messages one after the other; each is settled when the next is asked for."""
        hand = Hand()
        subscription = await self.subscribe(patterns, hand.give, start=start, durable=durable)
        try:
            async with aclosing(hand.take()) as messages:
                async for message in messages:
                    yield message
        finally:
            # The message in hand was not asked past, so it is not settled: nobody waits for it.
            await self._end(subscription, forget=False, drain_s=0.0)

    async def unsubscribe(self, patterns: str | Sequence[str] | Subscription, *, forget: bool = False) -> int:
        """End the subscriptions with exactly these patterns; how many they were.  ``forget`` drops durable places."""
        if isinstance(patterns, Subscription):
            ended = [s for s in self._subscriptions if s is patterns]
        else:
            wanted = (patterns,) if isinstance(patterns, str) else tuple(patterns)
            ended = [s for s in self._subscriptions if s.patterns == wanted and not s.inner]
        for subscription in ended:
            await self._end(subscription, forget=forget)
        return len(ended)

    async def unsubscribe_all(self, *, forget: bool = False) -> int:
        """End every subscription; how many they were."""
        return sum([await self.unsubscribe(s, forget=forget) for s in [s for s in self._subscriptions if not s.inner]])

    async def _end(self, subscription: Subscription, *, forget: bool, drain_s: float | None = None) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        await subscription.stop(self._site.settings.drain_timeout if drain_s is None else drain_s, forget=forget)

    # ------------------------------------------------------------------------------------------ looking

    async def history(self, channel: str, count: int = 100) -> list[Message]:
        """The last ``count`` messages of a channel that are still there, oldest first, by the senders' stamps."""
        return await newest(self._running().log, check_channel(channel), count)

    @property
    def dead_letters(self) -> DeadLetters:
        """What no handler could take: to look at, edit, publish again or drop."""
        return DeadLetters(self._running(), self.name)

    @property
    def mode(self) -> CoordinationMode:
        """The best path to other sites that works now."""
        return CoordinationMode.ISOLATED if self._opened is None else self._opened.mode()

    @property
    def connected(self) -> bool:
        """True while a Redis carries messages; False in isolated mode, where files do."""
        return self.mode is not CoordinationMode.ISOLATED

    @property
    def site(self) -> Site:
        """What the buses of one home share, for what is built upon the bus, such as `Hub` and `BaseAgent`."""
        return self._running()

    def observe(self, event: Event) -> None:
        """Count, log and tell an event of what is built upon the bus."""
        self._observing.observe(event)

    def on(self, event: str, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Call ``callback`` with every event of this name (``"*"``: of any); returns what ends it."""
        return self._observing.on(event, callback)

    def stats(self) -> Stats:
        """What this bus did and what it is doing."""
        site = self._running()
        usage = site.usage()
        return Stats(
            name=self.name, mode=self.mode.value, origin=site.origin(), published=self._published,
            doorbell=site.log.rings, loop_lag_s=self._loop_lag_s, loop_lag_max_s=self._loop_lag_max_s,
            disk_used=usage.used, disk_limit=usage.limit, disk_holder=usage.holder, waiting_publishers=usage.waiting,
            running=tuple(running for s in self._subscriptions for running in s.running()),
            subscriptions=tuple(s.stats() for s in self._subscriptions), events=dict(self._observing.counts))
