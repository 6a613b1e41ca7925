"""The hub: hands out assignments, to one agent or to any that is free, until each has an outcome."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from lemegeton import ledger as entries
from lemegeton.assignment import ANY, AgentInfo, Report, Shutdown, Wish, Work, built
from lemegeton.bus import MessageBus
from lemegeton.channels import check_name
from lemegeton.codec import Draft, check_draft, encode
from lemegeton.dispatch import Dispatch, Watcher
from lemegeton.errors import AssignmentFailed, BusClosed, BusFull, InvalidMessage, NoAgent, NotReached
from lemegeton.events import JournalDamaged, ObserverFailed
from lemegeton.heartbeat import Presence, file_site
from lemegeton.ledger import OPEN_MAX, Entry, Journal, Ledger
from lemegeton.message import Message, MessageType, Receipt
from lemegeton.osfs import OsFs

ATTEMPTS = 3
ATTEMPTS_MAX = 1000


class Handle:
    """One assignment, for whoever waits for it."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.fraction = 0.0
        self.text = ""
        self._done = asyncio.Event()
        self._closed = ""
        self.changed(entry)

    @property
    def id(self) -> str:
        """The id of the assignment; `Hub.handle` finds it again, also after a restart."""
        return self.entry.id

    @property
    def done(self) -> bool:
        """True once it has an outcome."""
        return not self.entry.open

    async def result(self, timeout: float | None = None) -> Any:
        """What the agent returned; `AssignmentFailed` if there is nothing, `NotReached` after ``timeout`` seconds.

        After `NotReached`, and `BusClosed` when the hub stops, the assignment is still open."""
        try:
            await asyncio.wait_for(self._done.wait(), timeout)
        except TimeoutError:
            raise NotReached(f"assignment {self.id}: {self.entry.status}, no outcome within {timeout} s") from None
        entry = self.entry
        if entry.open:
            raise BusClosed(f"assignment {self.id}: {self._closed}; it stays open")
        if entry.status == entries.FAILED:
            raise AssignmentFailed(f"assignment {self.id}: {entry.category}: {entry.error}", category=entry.category)
        return entry.result

    def changed(self, entry: Entry) -> None:
        """Its ledger entry has a new form."""
        self.entry = entry
        if not entry.open:
            self._done.set()

    def close(self, why: str) -> None:
        """Nobody will tell any more."""
        self._closed = why
        self._done.set()


class Hub:
    """A hub of this name in a home; ``async with`` starts and stops it.

    Settings are those of `MessageBus`.  `NameTaken` if another live process is this hub.
    """

    def __init__(self, name: str = "hub", **settings: Any) -> None:
        self.name = check_name(name, "hub")
        self.bus = MessageBus(name, **settings)
        self._opened: Journal | None = None
        self._dispatch: Dispatch | None = None
        self._presence: Presence | None = None
        self._root: asyncio.Task[None] | None = None
        self._handles: dict[str, Handle] = {}
        self._watchers: dict[object, Watcher] = {}

    # ------------------------------------------------------------------------------------------ life

    async def start(self) -> None:
        """Open the journal and go on where the last hub of this name stopped."""
        await self.bus.start()
        try:
            site = file_site(self.bus)
            self._opened = Journal(OsFs(), site.home.path, self.name)
            if self._opened.damaged:
                self.bus.observe(JournalDamaged(self.name, self._opened.damaged))
            self._presence = Presence(site.home.cursors, site.home.site, time.monotonic)
            self._dispatch = Dispatch(self.name, self.bus, self._opened, self._presence, self._wished, self._changed,
                                      self._progress)
            before = await self._dispatch.open()
        except BaseException:
            await self._close()
            raise
        self._root = asyncio.get_running_loop().create_task(self._dispatch.serve(before), name=f"hub {self.name}")

    async def stop(self) -> None:
        """Stop handing out and let everything go; what is open stays in the journal for the next hub."""
        root, self._root = self._root, None
        if root is not None and self._dispatch is not None:
            self._dispatch.stop()
            await asyncio.wait([root])
        await self._close()
        if root is not None and not root.cancelled() and (error := root.exception()) is not None:
            raise error

    async def _close(self) -> None:
        try:
            await self.bus.stop()
        finally:
            if self._opened is not None:
                self._opened.close()
            for handle in self._handles.values():
                handle.close(f"hub {self.name} stopped")
            self._handles.clear()

    async def run(self) -> None:
        """Serve until SIGINT or SIGTERM comes; leaving ``async with`` then stops it."""
        await self.bus.serve()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # ------------------------------------------------------------------------------------------ for users

    async def assign(
        self, agent: str, payload: Any, *, timeout: float | None = None, attempts: int = ATTEMPTS, id: str | None = None
    ) -> Handle:
        """Give work to one agent, or to ``"any"`` that is free; in the journal when this returns.

        One that is away or busy gets it when it can; `NoAgent` if none of this name ever registered.  It is handed out
        again after a death or a recoverable failure, ``attempts`` times in all.  After ``timeout`` seconds without an
        outcome it fails as ``expired``.  A second call with the same ``id`` gives the same assignment.  `BusFull` when
        100,000 are open.
        """
        self._running()
        entry = self._entry(agent, payload, timeout, attempts, id)
        known = self.ledger.entries.get(entry.id)
        if known is None:
            self._running().commit(entry)
        return self._handle(known or entry)

    def handle(self, id: str) -> Handle:
        """The handle of an assignment that is open or was finished lately; `NoAgent` if the ledger has none."""
        entry = self.ledger.entries.get(id)
        if entry is None:
            raise NoAgent(f"assignment {id!r:.80}: not in the ledger of hub {self.name}")
        return self._handle(entry)

    def _handle(self, entry: Entry) -> Handle:
        return self._handles.setdefault(entry.id, Handle(entry)) if entry.open else Handle(entry)

    def agents(self) -> tuple[AgentInfo, ...]:
        """Every agent that ever registered, with what is known of it now."""
        sessions = self.ledger.sessions
        self._running()
        presence = self._presence
        assert presence is not None, "a hub that runs has looked who is there"
        agents = self.ledger.agents.values()
        return tuple(presence.shown(agent, len(sessions.get(agent.session, ()))) for agent in agents)

    @property
    def ledger(self) -> Ledger:
        """All assignments: to be read only."""
        return self._journal.ledger

    @property
    def pending(self) -> int:
        """How many assignments have no outcome yet."""
        return self.ledger.open

    def watch(self, callback: Watcher) -> Callable[[], None]:
        """Call with every assignment that changes, in its new form; returns what ends it."""
        key = object()
        self._watchers[key] = callback
        return lambda: self._watchers.pop(key, None) and None

    async def broadcast(self, payload: Any, **options: Any) -> Receipt:
        """Publish to every agent."""
        return await self.bus.broadcast(payload, **options)

    async def shutdown(self, agent: str | None = None, reason: str = "") -> int:
        """Tell one agent, or all, to finish what they have at hand and leave; how many live ones were told."""
        dispatch = self._running()
        live = [a for a in self.ledger.agents.values() if a.live and agent in (None, a.name)]
        if agent is not None and not live:
            raise NoAgent(f"shutdown: no live agent {agent!r}")
        for told in live:
            await dispatch.tell(told.name, MessageType.SHUTDOWN, Shutdown(session=told.session, reason=reason))
        return len(live)

    # ------------------------------------------------------------------------------------------ state

    @property
    def _journal(self) -> Journal:
        if self._opened is None:
            raise BusClosed(f"hub {self.name}: not started")
        return self._opened

    def _running(self) -> Dispatch:
        if self._root is None or self._root.done() or self._dispatch is None:
            raise BusClosed(f"hub {self.name}: not running; use it inside `async with`")
        return self._dispatch

    def _entry(self, agent: str, payload: Any, timeout_s: float | None, attempts: int, ident: str | None) -> Entry:
        """A new entry, if a message with it could be published."""
        if agent != ANY and agent not in self.ledger.agents:
            raise NoAgent(f"assign to {agent!r:.80}: no agent of this name ever registered with hub {self.name}")
        if not 1 <= attempts <= ATTEMPTS_MAX:
            raise InvalidMessage(f"attempts {attempts!r}: must be 1 to {ATTEMPTS_MAX}")
        if timeout_s is not None and not 0 < timeout_s < 1e9:
            raise InvalidMessage(f"timeout {timeout_s!r}: must be seconds above 0")
        if self.ledger.open >= OPEN_MAX:
            raise BusFull(f"assign: {OPEN_MAX} assignments are open, the limit; wait for some to end")
        site = self.bus.site
        now, ident = site.wall_ms(), ident or uuid.uuid4().hex
        sent = Work(assignment=ident, attempt=10**9, payload=payload, hub=self.name, session="0" * 64)
        draft = Draft(now, MessageType.ASSIGNMENT, self.name, built(sent), f"{ident}:{10**9}", ANY)
        check_draft(draft)
        encode(draft, site.settings.max_message_bytes)
        deadline = 0 if timeout_s is None else now + max(1, int(timeout_s * 1000))
        return Entry(id=ident, want=agent, payload=payload, created=now, deadline=deadline, attempts=attempts)

    def _wished(self, message: Message, wish: Wish) -> Entry:
        """The entry for an assignment that came as a message."""
        entry = self._entry(wish.agent, wish.payload, wish.timeout, wish.attempts or ATTEMPTS, message.id)
        reply_to, correlation = message.reply_to or "", message.correlation_id or ""
        return Entry(id=entry.id, want=entry.want, payload=entry.payload, created=entry.created,
                     deadline=entry.deadline, attempts=entry.attempts, reply_to=reply_to, correlation=correlation)

    def _changed(self, entry: Entry) -> None:
        handle = self._handles.get(entry.id) if entry.open else self._handles.pop(entry.id, None)
        if handle is not None:
            handle.changed(entry)
        for watcher in list(self._watchers.values()):
            try:
                watcher(entry)
            except Exception as error:
                self.bus.observe(ObserverFailed("watch", f"{type(error).__name__}: {error}"))

    def _progress(self, report: Report) -> None:
        handle = self._handles.get(report.assignment)
        if handle is not None:
            handle.fraction, handle.text = report.fraction, report.text
