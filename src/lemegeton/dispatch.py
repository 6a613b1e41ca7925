"""Dispatch: what a hub does with what it hears and what it has to give out.

Three parts: handlers turn what agents say into transitions of the ledger; the pump hands out what waits and replies to
who asked; the watch finds who is dead.  Every step is in the journal before it is published, and what is published has
an id made of assignment and attempt, so that a hub that was killed publishes again what was open, and agents drop the
copies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import msgspec

from lemegeton import assignment as say
from lemegeton import ledger as entries
from lemegeton.assignment import (
    ANY,
    AgentInfo,
    Beat,
    Category,
    Leave,
    Registration,
    Report,
    Shutdown,
    Wish,
    Work,
    built,
    parse,
)
from lemegeton.bus import MessageBus
from lemegeton.channels import HUB, agent_channel
from lemegeton.errors import InvalidMessage, LemegetonError, LogError, NoAgent
from lemegeton.events import (
    AgentJoined,
    AgentLost,
    AssignmentMoved,
    HubStalled,
    MessageIgnored,
    StaleReport,
)
from lemegeton.heartbeat import LOOK_S, Presence
from lemegeton.lane import Lane
from lemegeton.ledger import Entry, Journal
from lemegeton.message import Message, MessagePriority, MessageType
from lemegeton.subscription import Subscription

RETRY_S = 1.0
"""How long a hub waits before it tries again to write what the disk refused."""
LANES_LOOK_S = 0.01
LANES_WAIT_S = 10.0
"""How long a dead agent's last words are waited for; longer only where they are damaged and never come."""
QUICK_S = 1.0
"""An agent that finishes within this gets several assignments at a time; one that takes longer gets one, so that none
waits behind it while another agent is free."""
REPLY = ":reply"
Watcher = Callable[[Entry], None]
_change = msgspec.structs.replace


class Dispatch:
    """The running part of one hub; `Hub` starts and stops it."""

    def __init__(
        self, name: str, bus: MessageBus, journal: Journal, presence: Presence,
        admit: Callable[[Message, Wish], Entry], changed: Callable[[Entry], None], told: Callable[[Report], None]
    ) -> None:
        self._name = name
        self._bus = bus
        self._journal = journal
        self._ledger = journal.ledger
        self._presence = presence
        self._admit = admit
        self._changed = changed
        self._told = told
        self._subscription: Subscription | None = None
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._unsent: dict[tuple[str, int], None] = {}
        self._given: dict[str, float] = {}
        self._quick: set[str] = set()
        self._routes: dict[str, Callable[[Message], Coroutine[Any, Any, None]]] = {
            say.REGISTER: self._on_register, say.UNREGISTER: self._on_unregister, say.CONFIRM: self._on_confirm,
            say.ASSIGN: self._on_wish, MessageType.HEARTBEAT: self._on_beat, MessageType.PROGRESS: self._on_progress,
            MessageType.COMPLETE: self._on_outcome, MessageType.FAILED: self._on_outcome,
        }

    async def open(self) -> dict[Lane, int]:
        """Begin to listen; returns how far every lane reached before."""
        before = await self._lanes()
        self._subscription = await self._bus.subscribe(
            HUB, self._receive, start="earliest", durable=f"hub-{self._name}")
        return before

    async def serve(self, before: dict[Lane, int]) -> None:
        """Hand out and watch until `stop`.  What agents said while no hub was there counts before anything else."""
        await self._settled(before)
        for ids in self._ledger.sessions.values():
            for ident in ids:
                self._unsent[ident, self._ledger.entries[ident].attempt] = None
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pump())
            group.create_task(self._watch())

    def stop(self) -> None:
        """Let `serve` return."""
        self._stopping.set()
        self._wake.set()

    def commit(self, entry: Entry) -> None:
        """Into the journal, then into the ledger, then to whoever waits."""
        self._journal.commit(entry)
        self._wake.set()
        self._changed(entry)

    async def tell(self, agent: str, kind: str, what: Any) -> None:
        """Something other than work, for an agent: in lanes of its own, so that it does not wait behind the work."""
        await self._bus.publish(agent_channel(agent), built(what), type=kind, to=agent,
                                priority=MessagePriority.CRITICAL)

    # ------------------------------------------------------------------------------------------ hearing

    async def _receive(self, message: Message) -> None:
        """Act on a message.  While the disk refuses what that takes, its lane waits: an outcome is not lost for it."""
        route = self._routes.get(message.type)
        while route is not None:
            try:
                return await route(message)
            except InvalidMessage as error:
                self._bus.observe(MessageIgnored(message.channel, message.sender, message.type, str(error)))
                return None
            except (LogError, OSError) as error:
                self._bus.observe(HubStalled(self._name, str(error)))
                if await self._stopped_within(RETRY_S):
                    raise
        return None

    async def _stopped_within(self, timeout_s: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), timeout_s)
        return self._stopping.is_set()

    async def _on_register(self, message: Message) -> None:
        said = parse(message.payload, Registration)
        known = self._ledger.agents.get(said.agent)
        if known is not None and known.session != said.session:
            if known.registration.started > said.started:
                return  # an earlier run of it, heard late
            if known.live and known.registration.site != said.site and not self._presence.why_dead(known):
                refusal = Shutdown(session=said.session, reason="a live agent of this name is on another site")
                await self.tell(said.agent, say.REFUSED, refusal)
                return
            if known.live:
                self._lose(known, "a new run of it registered")
        if known is None or known.session != said.session or not known.live:
            self._journal.commit_agent(AgentInfo(registration=said))
            self._bus.observe(AgentJoined(said.agent, said.session, said.site))
        self._presence.saw(said.session)
        self._wake.set()
        await self.tell(said.agent, say.REGISTERED, Shutdown(session=said.session))

    async def _on_unregister(self, message: Message) -> None:
        said = parse(message.payload, Leave)
        known = self._ledger.agents.get(said.agent)
        if known is None or known.session != said.session:
            return
        for entry in self._ledger.of_session(said.session):
            self._move(entry, entries.released(entry), "handed back")
        self._end_session(known, "left")

    async def _on_beat(self, message: Message) -> None:
        said = parse(message.payload, Beat)
        known = self._ledger.agents.get(said.agent)
        if known is not None and known.session == said.session and known.live:
            self._presence.saw(said.session, said)
        elif known is None or known.session != said.session or known.presence == "dead":
            await self.tell(said.agent, say.REGISTER, Shutdown(session=said.session))

    async def _on_progress(self, message: Message) -> None:
        said = parse(message.payload, Report)
        self._presence.saw(said.session)
        entry = self._ledger.entries.get(said.assignment)
        if said.hub == self._name and entry is not None and entry.attempt == said.attempt:
            self._told(said)

    async def _on_outcome(self, message: Message) -> None:
        said = parse(message.payload, Report)
        if said.hub != self._name:
            return
        self._presence.saw(said.session)
        old = self._ledger.entries.get(said.assignment)
        if message.type == MessageType.COMPLETE:
            new = entries.completed(old, said)
        else:
            new = entries.failed(old, said, self._bus.site.wall_ms())
        if new is None or old is None:
            current = old.attempt if old else 0
            self._bus.observe(StaleReport(said.agent, message.type, said.assignment, said.attempt, current))
            return
        self._learn(said)
        if new.status == entries.QUEUED:
            self._move(old, new, new.error)
        else:
            self.commit(new)

    def _learn(self, said: Report) -> None:
        """How long this agent takes decides how many assignments it gets at a time."""
        took_s = asyncio.get_running_loop().time() - self._given.pop(said.assignment, 0.0)
        if took_s < QUICK_S:
            self._quick.add(said.session)
        else:
            self._quick.discard(said.session)

    async def _on_confirm(self, message: Message) -> None:
        said = parse(message.payload, Report)
        if said.hub != self._name:
            return
        entry = self._ledger.entries.get(said.assignment)
        mine = entry is not None and entry.status == entries.ASSIGNED and entry.session == said.session
        kind = say.CONFIRMED if mine and entry is not None and entry.attempt == said.attempt else say.REVOKED
        answer = Report(assignment=said.assignment, attempt=said.attempt, session=said.session)
        await self.tell(said.agent, kind, answer)

    async def _on_wish(self, message: Message) -> None:
        """An assignment from somebody who is neither hub nor agent."""
        if message.id in self._ledger.entries:
            return
        try:
            self.commit(self._admit(message, parse(message.payload, Wish)))
        except (InvalidMessage, NoAgent) as error:
            if message.reply_to is None:
                raise InvalidMessage(str(error)) from error
            report = Report(assignment=message.id, attempt=0, hub=self._name, category=Category.INVALID,
                            error=str(error))
            await self._bus.publish(message.reply_to, built(report), type=MessageType.FAILED,
                                    correlation_id=message.correlation_id, id=f"{message.id}{REPLY}")

    # ------------------------------------------------------------------------------------------ handing out

    async def _pump(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                self._expire()
                self._hand_out()
                await self._send()
                await self._reply()
                if self._journal.grown():
                    self._journal.compact()
            except (LogError, OSError) as error:
                self._bus.observe(HubStalled(self._name, str(error)))
            timer = asyncio.get_running_loop().call_later(RETRY_S, self._wake.set)
            await self._wake.wait()
            timer.cancel()

    def _expire(self) -> None:
        now_ms = self._bus.site.wall_ms()
        self._ledger.wake(now_ms)
        for entry in self._ledger.overdue(now_ms):
            self.commit(entries.ended(entry, Category.EXPIRED, "no outcome within its timeout"))

    def _hand_out(self) -> None:
        """Give what waits to whoever has room, the agent with the least at hand first."""
        free = {a.name: self._room(a) for a in self._ledger.agents.values() if a.live}
        for name in [name for name in self._ledger.queues if name != ANY]:
            while free.get(name, 0) > 0 and name in self._ledger.queues:
                self._give(name, next(iter(self._ledger.queues[name])), free)
        while ANY in self._ledger.queues and (best := max(free, key=lambda n: free[n], default=None)) is not None:
            if free[best] <= 0:
                return
            self._give(best, next(iter(self._ledger.queues[ANY])), free)

    def _room(self, agent: AgentInfo) -> int:
        limit = agent.registration.prefetch if agent.session in self._quick else 1
        return limit - len(self._ledger.sessions.get(agent.session, ()))

    def _give(self, name: str, ident: str, free: dict[str, int]) -> None:
        new = entries.assigned(self._ledger.entries[ident], name, self._ledger.agents[name].session)
        self.commit(new)
        free[name] -= 1
        self._given[ident] = asyncio.get_running_loop().time()
        self._unsent[ident, new.attempt] = None

    async def _send(self) -> None:
        """Publish what is assigned; what cannot be published now stays for the next time."""
        for ident, attempt in list(self._unsent):
            entry = self._ledger.entries.get(ident)
            if entry is not None and entry.status == entries.ASSIGNED and entry.attempt == attempt:
                work = Work(assignment=ident, attempt=attempt, payload=entry.payload, hub=self._name,
                            session=entry.session)
                await self._bus.publish(agent_channel(entry.agent), built(work), type=MessageType.ASSIGNMENT,
                                        to=entry.agent, id=f"{ident}:{attempt}")
            del self._unsent[ident, attempt]

    async def _reply(self) -> None:
        """Tell who asked through a message how it ended."""
        for ident in list(self._ledger.unreplied):
            entry = self._ledger.entries[ident]
            good = entry.status == entries.COMPLETED
            report = Report(assignment=ident, attempt=entry.attempt, hub=self._name, agent=entry.agent,
                            result=entry.result, category=entry.category or Category.WORK, error=entry.error)
            await self._bus.publish(entry.reply_to, built(report), id=f"{ident}{REPLY}",
                                    type=MessageType.COMPLETE if good else MessageType.FAILED,
                                    correlation_id=entry.correlation or None)
            self.commit(_change(entry, replied=True))

    # ------------------------------------------------------------------------------------------ the dead

    async def _watch(self) -> None:
        while not await self._stopped_within(LOOK_S):
            self._presence.woke()
            for agent in [a for a in self._ledger.agents.values() if a.live]:
                cause = self._presence.why_dead(agent)
                if cause:
                    await self._bury(agent, cause)

    async def _bury(self, agent: AgentInfo, cause: str) -> None:
        """Read what a dead agent said to its end, then give what is still open to others."""
        await self._settled(await self._lanes())
        known = self._ledger.agents.get(agent.name)
        if known is not None and known.session == agent.session and known.live and self._presence.why_dead(known):
            try:
                self._lose(known, cause)
            except OSError as error:
                self._bus.observe(HubStalled(self._name, str(error)))

    def _lose(self, agent: AgentInfo, cause: str) -> None:
        open_now = self._ledger.of_session(agent.session)
        self._bus.observe(AgentLost(agent.name, agent.session, len(open_now), cause))
        for entry in open_now:
            self._move(entry, entries.lost(entry), cause)
        self._end_session(agent, "dead")

    def _end_session(self, agent: AgentInfo, presence: str) -> None:
        self._presence.forget(agent.session)
        self._quick.discard(agent.session)
        self._journal.commit_agent(AgentInfo(registration=agent.registration, presence=presence))

    def _move(self, old: Entry, new: Entry, cause: str) -> None:
        self.commit(new)
        self._bus.observe(AssignmentMoved(old.id, old.attempt, old.agent, new.status, cause))

    async def _lanes(self) -> dict[Lane, int]:
        """How far every lane of the hub's channel reaches now."""
        log = self._bus.site.log
        found: dict[Lane, int] = {}
        for lane in await log.lanes(HUB):
            with suppress(LemegetonError):
                found[lane] = (await log.span(lane)).last
        return found

    async def _settled(self, lanes: dict[Lane, int]) -> None:
        """Return when everything up to there was acted on; after 10 s also if it was not, because it never will be."""
        assert self._subscription is not None, "a hub that serves listens"
        deadline = asyncio.get_running_loop().time() + LANES_WAIT_S
        while not self._subscription.caught_up(lanes) and asyncio.get_running_loop().time() < deadline:
            if await self._stopped_within(LANES_LOOK_S):
                return
