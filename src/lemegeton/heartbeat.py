"""Heartbeats: how an agent shows that it lives, and how the hub finds out that it does not.

An agent's heartbeats come from a thread with an event loop and a bus of its own: one whose event loop is blocked by
its work is late, not dead.  (Code that holds the interpreter lock for longer than the hub waits looks dead all the
same.)  On the site of the hub death shows at once: the agent holds its durable name with `flock`, which the kernel lets
go when the process ends, however that happens.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lemegeton.assignment import BEATS_MISSED, AgentInfo, Beat, built
from lemegeton.bus import MessageBus
from lemegeton.channels import HUB, encode_name
from lemegeton.checkpoint import held
from lemegeton.errors import InvalidSetting, LemegetonError
from lemegeton.message import MessageType
from lemegeton.osfs import OsFs
from lemegeton.site import FileSite

JOIN_S = 10.0
LOOK_S = 0.25
"""How often the hub looks whether agents of its site are there."""
STALL_S = 5.0
"""A hub that was not running itself for so long first gives every agent time to be heard."""


def file_site(bus: MessageBus) -> FileSite:
    """The home of a bus; hubs and agents need one on disk."""
    site = bus.site
    if not isinstance(site, FileSite):
        raise InvalidSetting(f"bus {bus.name}: hubs and agents need a home on disk, not {type(site).__name__}")
    return site


class Heart:
    """The heartbeats of one agent, from a thread, until `stop`.

    ``describe`` makes the heartbeat and is called in the thread.  A heartbeat that cannot be published is left out.
    """

    def __init__(self, name: str, settings: dict[str, Any], describe: Callable[[int], Beat], interval_s: float) -> None:
        self._name = name
        self._settings = settings
        self._describe = describe
        self._interval_s = interval_s
        self._agent_loop = asyncio.get_running_loop()
        self._asked = self._answered = time.monotonic()
        self._last_ms = _now_ms()
        self._woke_ms = 0
        self._lock = threading.Lock()
        self._ending: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._main, name=f"lemegeton-heart-{name}", daemon=True)
        self._thread.start()

    def doubts(self, sent_ms: int) -> bool:
        """True if no heartbeat came for so long, since a message was sent, that the hub may think the agent dead."""
        patience_ms = BEATS_MISSED * self._interval_s * 1000
        return sent_ms <= self._woke_ms or _now_ms() - self._last_ms > patience_ms

    async def stop(self) -> None:
        """End the thread."""
        with self._lock:
            self._stopped = True
            if self._ending is not None:
                loop, event = self._ending
                loop.call_soon_threadsafe(event.set)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, JOIN_S)

    # ------------------------------------------------------------------------------------------ in the thread

    def _main(self) -> None:
        with suppress(LemegetonError, OSError):
            asyncio.run(self._beat())

    async def _beat(self) -> None:
        ending = asyncio.Event()
        with self._lock:
            if self._stopped:
                return
            self._ending = asyncio.get_running_loop(), ending
        try:
            async with MessageBus(self._name, **self._settings) as bus:
                while not await _within(ending.wait(), self._interval_s):
                    self._note_gap()
                    with suppress(LemegetonError):
                        await self._publish(bus)
        finally:
            with self._lock:
                self._ending = None

    async def _publish(self, bus: MessageBus) -> None:
        beat = self._describe(self._lag_ms())
        await bus.publish(HUB, built(beat), type=MessageType.HEARTBEAT, ttl=BEATS_MISSED * self._interval_s)

    def _note_gap(self) -> None:
        now = _now_ms()
        if now - self._last_ms > BEATS_MISSED * self._interval_s * 1000:
            self._woke_ms = now
        self._last_ms = now

    def _lag_ms(self) -> int:
        """How late the agent's event loop answered last time, or is by now; asks it again."""
        late_s = (self._answered if self._answered > self._asked else time.monotonic()) - self._asked
        if self._answered >= self._asked:
            self._asked = time.monotonic()
            with suppress(RuntimeError):  # the loop is closed: the agent is ending
                self._agent_loop.call_soon_threadsafe(self._answer)
        return max(0, int(late_s * 1000))

    def _answer(self) -> None:
        self._answered = time.monotonic()


async def _within(waiting: Any, timeout_s: float) -> bool:
    """True if it ended within the time."""
    try:
        await asyncio.wait_for(waiting, timeout_s)
    except TimeoutError:
        return False
    return True


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Presence:
    """Which agents live, as the hub knows it; times are those of its own clock only."""

    def __init__(self, cursors: str, site: str, clock: Callable[[], float]) -> None:
        self._fs = OsFs()
        self._cursors = cursors
        self._site = site
        self._clock = clock
        self._seen: dict[str, float] = {}
        self._beats: dict[str, Beat] = {}
        self._looked = clock()

    def saw(self, session: str, beat: Beat | None = None) -> None:
        """Something came from a session."""
        self._seen[session] = self._clock()
        if beat is not None:
            self._beats[session] = beat

    def forget(self, session: str) -> None:
        """A session ended."""
        self._seen.pop(session, None)
        self._beats.pop(session, None)

    def woke(self) -> bool:
        """To be called at every look: true if the hub itself did not run since the last one; then nobody is late."""
        now = self._clock()
        stalled = now - self._looked > STALL_S
        self._looked = now
        if stalled:
            self._seen = dict.fromkeys(self._seen, now)
        return stalled

    def why_dead(self, agent: AgentInfo) -> str:
        """Why an agent that counts as live is not; empty while it is."""
        said = agent.registration
        here = said.durable and said.site == self._site
        if here and not held(self._fs, f"{self._cursors}/{encode_name(said.durable)}"):
            return "its process ended"
        silent_s = self._clock() - self._seen.setdefault(agent.session, self._clock())
        if silent_s > BEATS_MISSED * said.heartbeat / 1000:
            return f"no heartbeat for {silent_s:.1f} s"
        return ""

    def shown(self, agent: AgentInfo, open_now: int) -> AgentInfo:
        """The agent with what its last heartbeat said."""
        beat = self._beats.get(agent.session)
        now = self._clock()
        return AgentInfo(
            registration=agent.registration, presence=agent.presence, open=open_now,
            state=beat.state if beat else agent.state, assignment=beat.assignment if beat else "",
            lag_ms=beat.lag if beat else 0, seen_s=round(now - self._seen.get(agent.session, now), 3))
