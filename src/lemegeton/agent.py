"""The agent: takes assignments from a hub, one after the other, and answers for each.

::

    initializing ──► idle ──► working ──► completing ──► idle
                      ▲          └──────► failed ─────────┘
                      └── any of them ──► shutting_down ──► stopped

An assignment is settled when its outcome was published: an agent that is killed gets it again, and asks the hub first
whether it still is its own, as it does with everything that was made out to an earlier run of it.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import socket
import uuid
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import Any, Self

from lemegeton import assignment as say
from lemegeton.assignment import AgentState, Assignment, Beat, Category, Report, Shutdown, Work, built, parse
from lemegeton.bus import MessageBus
from lemegeton.channels import HUB, HUB_BROADCAST, agent_channel, check_name
from lemegeton.errors import BusClosed, InvalidMessage, InvalidSetting, LemegetonError, LogError, NameTaken
from lemegeton.events import HubStalled, MessageIgnored
from lemegeton.heartbeat import Heart, file_site
from lemegeton.message import Message, MessageType
from lemegeton.version import VERSION
from lemegeton.within import within

PREFETCH = 4
PREFETCH_MAX = 1000
REVOKED_MAX = 10_000
STORE_RETRY_S = 1.0
_S = AgentState

TRANSITIONS: dict[AgentState, frozenset[AgentState]] = {
    _S.INITIALIZING: frozenset((_S.IDLE, _S.SHUTTING_DOWN)),
    _S.IDLE: frozenset((_S.WORKING, _S.SHUTTING_DOWN)),
    _S.WORKING: frozenset((_S.COMPLETING, _S.FAILED, _S.IDLE, _S.SHUTTING_DOWN)),
    _S.COMPLETING: frozenset((_S.IDLE, _S.FAILED, _S.SHUTTING_DOWN)),
    _S.FAILED: frozenset((_S.IDLE, _S.SHUTTING_DOWN)),
    _S.SHUTTING_DOWN: frozenset((_S.STOPPED,)),
    _S.STOPPED: frozenset(),
}

Outcome = tuple[str, dict[str, Any]]
"""Message type and the fields of its `Report`."""


class BaseAgent:
    """An agent of this name; subclass it and write `work`.

    ``async with`` starts and stops it, `run` serves until a shutdown comes.  `NameTaken` if a live agent has the name.
    ``prefetch`` is how many assignments the hub may give it at a time while they are short; they are worked on one
    after the other.  ``heartbeat`` is in seconds.  Settings are those of `MessageBus`.
    """

    def __init__(
        self, name: str, *, prefetch: int = PREFETCH, heartbeat: float = say.HEARTBEAT_S, **settings: Any
    ) -> None:
        self.name = check_name(name, "agent")
        check_name(f"broadcast-{name}", "agent")
        if not 1 <= prefetch <= PREFETCH_MAX or not 0.001 <= heartbeat <= 86_400:
            raise InvalidSetting(f"agent {name}: prefetch is {prefetch!r} and must be 1 to {PREFETCH_MAX}; heartbeat "
                                 f"is {heartbeat!r} and must be 0.001 to 86400 seconds")
        self.session = uuid.uuid4().hex
        self.bus = MessageBus(name, **settings)
        self.state = AgentState.INITIALIZING
        self._prefetch = prefetch
        self._interval_s = heartbeat
        self._settings = settings
        self._heart: Heart | None = None
        self._started_ms = 0
        self._turn = asyncio.Lock()
        self._leaving = asyncio.Event()
        self._stopped = asyncio.Event()
        self._why_left: LemegetonError | None = None
        self._current: Work | None = None
        self._running: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answers: dict[tuple[str, int], asyncio.Future[bool]] = {}
        self._revoked: dict[tuple[str, int], None] = {}
        self._observers: list[Callable[[AgentState], None]] = []
        self._routes: dict[str, Callable[[Message], Coroutine[Any, Any, None]]] = {
            MessageType.ASSIGNMENT: self._on_assignment, MessageType.SHUTDOWN: self._on_shutdown,
            say.CONFIRMED: self._on_answer, say.REVOKED: self._on_answer, say.REFUSED: self._on_refused,
            say.REGISTER: self._on_register, say.REGISTERED: self._on_nothing,
        }

    # ------------------------------------------------------------------------------------------ to be written

    def work(self, assignment: Assignment) -> Any:
        """Do it; what this returns (any JSON) is the result, what it raises is reported as a failure.

        Write it as ``async def``: cancelled when the hub takes the assignment back.  Or as a plain function: it runs
        in a thread, and what it does after that is not reported."""
        raise NotImplementedError(f"{type(self).__name__} needs a method work(assignment)")

    async def on_message(self, message: Message) -> None:
        """Everything that came to this agent or to all agents and is not about assignments."""

    def category(self, error: BaseException) -> str:
        """The category of a failure; ``connection``, ``timeout`` and ``resource`` are tried again by the hub."""
        return say.category_of(error)

    # ------------------------------------------------------------------------------------------ life

    async def start(self) -> None:
        """Join: hold the name, register with the hub, begin to take assignments."""
        self._loop = asyncio.get_running_loop()
        await self.bus.start()
        self._started_ms = self.bus.site.wall_ms()
        try:
            await self._subscribe()
            await self._on_register(None)
            self._heart = Heart(self.name, {**self._settings, "home": file_site(self.bus).home.path}, self._beat,
                                self._interval_s)
        except BaseException:
            await self.bus.stop()
            raise
        if self.state is AgentState.INITIALIZING:
            self._enter(AgentState.IDLE)

    async def _subscribe(self) -> None:
        try:
            await self.bus.subscribe(agent_channel(self.name), self._receive, start="earliest",
                                     durable=f"agent-{self.name}")
        except NameTaken:
            raise NameTaken(f"agent {self.name!r}: another live process is this agent; stop that one or use another "
                            "name") from None
        await self.bus.subscribe(HUB_BROADCAST, self._receive, durable=f"broadcast-{self.name}")

    async def run(self, *, signals: bool = True) -> None:
        """Serve until a shutdown message, `stop`, or (with ``signals``) SIGINT or SIGTERM comes, then stop.

        `NameTaken` if the hub refused this agent because another site has a live one of its name."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM) if signals else ()
        for number in numbers:
            with suppress(RuntimeError, ValueError):  # only the main thread hears signals
                loop.add_signal_handler(number, self._leaving.set)
        try:
            await self._leaving.wait()
        finally:
            for number in numbers:
                with suppress(RuntimeError, ValueError):
                    loop.remove_signal_handler(number)
        await self.stop()
        if self._why_left is not None:
            raise self._why_left

    async def stop(self) -> None:
        """Finish the assignment at hand (up to ``drain_timeout``, then it is handed back), say goodbye, leave.

        A second call waits for the first."""
        if self.state in (AgentState.SHUTTING_DOWN, AgentState.STOPPED):
            if self.state is AgentState.SHUTTING_DOWN:
                await self._stopped.wait()
            return
        self._enter(AgentState.SHUTTING_DOWN)
        self._leaving.set()
        try:
            if self._heart is not None:
                await self._drain()
                with suppress(LemegetonError):  # then the hub finds out by itself
                    await self._tell(say.UNREGISTER, say.Leave(agent=self.name, session=self.session))
                await self._heart.stop()
        finally:
            await self.bus.stop()
            self._enter(AgentState.STOPPED)
            self._stopped.set()

    async def _drain(self) -> None:
        """Until nothing is at hand; work that does not end in time is cancelled and not reported."""
        with suppress(TimeoutError):
            async with within(self.bus.site.settings.drain_timeout), self._turn:
                return
        if self._running is not None:
            self._running.cancel()
        with suppress(TimeoutError):
            async with within(self.bus.site.settings.drain_timeout), self._turn:
                return

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def on_state(self, callback: Callable[[AgentState], None]) -> None:
        """Call with every state this agent enters."""
        self._observers.append(callback)

    def _enter(self, state: AgentState) -> None:
        if state is self.state or (self.state is AgentState.SHUTTING_DOWN and state is not AgentState.STOPPED):
            return  # what is still at hand while it leaves does not change that it leaves
        if state not in TRANSITIONS[self.state]:
            raise BusClosed(f"agent {self.name}: cannot become {state} while {self.state}")
        self.state = state
        for callback in self._observers:
            callback(state)

    # ------------------------------------------------------------------------------------------ saying

    async def progress(self, fraction: float, text: str = "") -> None:
        """Tell the hub how far the assignment at hand is, 0 to 1."""
        if self._current is None:
            raise InvalidMessage(f"agent {self.name}: progress outside of work: there is no assignment at hand")
        await self._tell(MessageType.PROGRESS, self._report(self._current, fraction=fraction, text=text))

    def progress_from_thread(self, fraction: float, text: str = "") -> None:
        """`progress` for a `work` that is a plain function."""
        assert self._loop is not None, "work runs after start"
        asyncio.run_coroutine_threadsafe(self.progress(fraction, text), self._loop).result()

    async def _tell(self, kind: str, what: Any) -> None:
        await self.bus.publish(HUB, built(what), type=kind)

    def _report(self, work: Work, **said: Any) -> Report:
        return Report(assignment=work.assignment, attempt=work.attempt, hub=work.hub, agent=self.name,
                      session=self.session, **said)

    def _beat(self, lag_ms: int) -> Beat:
        current = self._current
        return Beat(agent=self.name, session=self.session, state=self.state, lag=lag_ms,
                    assignment=current.assignment if current else "")

    # ------------------------------------------------------------------------------------------ hearing

    async def _receive(self, message: Message) -> None:
        route = self._routes.get(message.type)
        if route is None:
            return await self.on_message(message)
        try:
            await route(message)
        except InvalidMessage as error:
            self.bus.observe(MessageIgnored(message.channel, message.sender, message.type, str(error)))

    async def _on_nothing(self, message: Message) -> None:
        """The hub knows this agent; nothing to do."""

    async def _on_register(self, _: Message | None) -> None:
        """At the start, and again when a hub asks who this is."""
        site = file_site(self.bus)
        await self._tell(say.REGISTER, say.Registration(
            agent=self.name, session=self.session, site=site.home.site, durable=f"agent-{self.name}", pid=os.getpid(),
            host=socket.gethostname(), version=VERSION, prefetch=self._prefetch,
            heartbeat=max(1, int(self._interval_s * 1000)), started=self._started_ms))

    async def _on_shutdown(self, message: Message) -> None:
        said = parse(message.payload, Shutdown)
        if said.session == self.session or (not said.session and message.timestamp >= self._started_ms):
            self._leaving.set()

    async def _on_refused(self, message: Message) -> None:
        said = parse(message.payload, Shutdown)
        if said.session == self.session:
            self._why_left = NameTaken(f"agent {self.name!r}: {said.reason}; stop that one or use another name")
            self._leaving.set()

    async def _on_answer(self, message: Message) -> None:
        said = parse(message.payload, Report)
        key = (said.assignment, said.attempt)
        mine = message.type == say.CONFIRMED
        if not mine:
            self._revoked[key] = None
            while len(self._revoked) > REVOKED_MAX:
                del self._revoked[next(iter(self._revoked))]
            if self._current is not None and (self._current.assignment, self._current.attempt) == key:
                self._cancel_work()
        answer = self._answers.get(key)
        if answer is not None and not answer.done() and said.session == self.session:
            answer.set_result(mine)

    def _cancel_work(self) -> None:
        if self._running is not None:
            self._running.cancel()

    # ------------------------------------------------------------------------------------------ working

    async def _on_assignment(self, message: Message) -> None:
        work = parse(message.payload, Work)
        async with self._turn:  # two hubs, or two origins of one, send side by side
            if await self._mine(message, work) and not self._leaving.is_set():
                await self._perform(work)

    async def _mine(self, message: Message, work: Work) -> bool:
        """False if the hub took it back meanwhile; asks where that is possible."""
        key = (work.assignment, work.attempt)
        heart = self._heart
        doubtful = message.redelivered or work.session not in ("", self.session)
        if doubtful or heart is None or heart.doubts(message.timestamp):
            return await self._confirmed(work)
        return key not in self._revoked

    async def _confirmed(self, work: Work) -> bool:
        """Ask the hub and wait for its answer, or for the end."""
        key = (work.assignment, work.attempt)
        answer = self._answers[key] = asyncio.get_running_loop().create_future()
        leaving = asyncio.ensure_future(self._leaving.wait())
        try:
            await self._keep_telling(say.CONFIRM, self._report(work))
            await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
            return answer.done() and answer.result()
        finally:
            leaving.cancel()
            del self._answers[key]

    async def _perform(self, work: Work) -> None:
        self._enter(AgentState.WORKING)
        self._current = work
        try:
            outcome = await self._outcome(work)
            if outcome is not None:
                await self._answer_for(work, *outcome)
        finally:
            self._current = None
            self._enter(AgentState.IDLE)

    async def _outcome(self, work: Work) -> Outcome | None:
        """How it ended; None if it is nobody's business any more because the hub took it back or this agent leaves."""
        running = self._running = asyncio.ensure_future(self._call(work))
        try:
            return MessageType.COMPLETE, {"result": await running}
        except Exception as error:
            return MessageType.FAILED, {"category": self.category(error), "error": f"{type(error).__name__}: {error}"}
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            if (work.assignment, work.attempt) in self._revoked or self._leaving.is_set():
                return None
            return MessageType.FAILED, {"category": Category.CANCELLED, "error": "the work cancelled itself"}
        finally:
            self._running = None
            running.cancel()

    async def _call(self, work: Work) -> Any:
        given = Assignment(work.assignment, work.attempt, work.payload, work.hub)
        if inspect.iscoroutinefunction(self.work):
            return await self.work(given)
        call = partial(copy_context().run, self.work, given)
        result = await asyncio.get_running_loop().run_in_executor(self.bus.site.threads(), call)
        return await result if inspect.isawaitable(result) else result

    async def _answer_for(self, work: Work, kind: str, said: dict[str, Any]) -> None:
        if kind == MessageType.FAILED:
            self._enter(AgentState.FAILED)
            said = {**said, "error": said["error"].encode("utf-8", "replace").decode()[: say.TEXT_CHARS_MAX]}
        else:
            self._enter(AgentState.COMPLETING)
        try:
            await self._keep_telling(kind, self._report(work, **said))
        except InvalidMessage as error:  # the result cannot be written as a message
            self._enter(AgentState.FAILED)
            said = {"category": Category.RESULT, "error": str(error)}
            await self._keep_telling(MessageType.FAILED, self._report(work, **said))

    async def _keep_telling(self, kind: str, what: Report) -> None:
        """Publish; while the disk refuses it this lane waits, and the work is not done a second time for it."""
        while True:
            try:
                return await self._tell(kind, what)
            except LogError as error:
                self.bus.observe(HubStalled(self.name, str(error)))
                if self.state in (AgentState.SHUTTING_DOWN, AgentState.STOPPED):
                    raise
            with suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), STORE_RETRY_S)
