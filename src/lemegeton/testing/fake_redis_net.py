"""The network between simulated processes and simulated Redis servers, and what goes wrong on it.

::

    process ── call ──► up ──► server executes ──► down ──► answer, or heard
                        each in order, each late; a cut keeps some of what is under way, from the front

What a process has sent is the kernel's affair: it may arrive after the process was killed, or closed the connection, or
connected again.  What comes for a process waits while it is stopped and is dropped once it is dead.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import NamedTuple

from lemegeton.redis_wire import CONNECT_S
from lemegeton.seams import Dial, Heard, Wire
from lemegeton.testing.fake_redis import FakeRedisServer, Loss
from lemegeton.testing.fake_redis_wire import CLOSED, RESET, FakeWire, Place
from lemegeton.testing.sim_loop import Gate

LATENCY_S = (0.000_05, 0.002)
"""The least and the most that a command or an answer takes."""


class Trouble(NamedTuple):
    """What is wrong with the way of some processes: connects are refused, bytes vanish, everything takes longer."""

    refuse: bool = False
    up_lost: bool = False
    down_lost: bool = False
    delay_s: float = 0.0


CALM = Trouble()


@dataclass(slots=True)
class Fuse:
    """The connection of a command that is to come is cut, ``after`` it was executed or before."""

    left: int
    after: bool
    name: str
    every: int


class FakeRedisNet:
    """See the module.

    Processes are told apart by who they say they are when they get their `dialer`; ``whom`` in what follows is the
    beginning of such names, as ``"east/"`` for all of a site or ``""`` for everybody.  ``output_max`` is how many bytes
    may wait for a subscriber before the server ends its connection.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, rng: Random) -> None:
        self.loop = loop
        self.rng = rng
        self.context = contextvars.copy_context()
        self.latency_s = LATENCY_S
        self.output_max = 32 * 2**20
        self.fuse: Fuse | None = None
        self._places: dict[str, Place] = {}
        self._troubles: dict[str, Trouble] = {}
        self._wires: list[FakeWire] = []

    # ------------------------------------------------------------------------------------------ connecting

    def add(self, url: str, server: FakeRedisServer) -> None:
        """Have it found there."""
        self._places[url] = Place(url, server)

    def server(self, url: str) -> FakeRedisServer:
        """The one that is there."""
        return self._places[url].server

    def dialer(self, who: str) -> Dial:
        """`seams.Dial` for a process."""
        return partial(self._dial, who)

    async def _dial(self, who: str, url: str, heard: Heard | None, lost: Callable[[str], None], /) -> Wire:
        await asyncio.sleep(2 * (self.later(who) - self.loop.time()))
        for _ in range(2):
            trouble = self.trouble_of(who)
            if not trouble.up_lost and not trouble.down_lost:
                break
            await asyncio.sleep(CONNECT_S / 2)
        else:
            raise TimeoutError(f"redis {url}: no answer within {CONNECT_S} s")
        place = self._places.get(url)
        if place is None or place.down or trouble.refuse:
            raise ConnectionRefusedError(f"redis {url}: connection refused")
        wire = FakeWire(self, place, who, heard, lost)
        self._wires = [*(wire for wire in self._wires if not wire.over), wire]
        return wire

    def forget(self, gate: Gate) -> None:
        """A life has ended: its connections end, without a word to it."""
        for wire in self._wires:
            if wire.gate is gate:
                wire.vanish()

    def wires(self, url: str = "", whom: str = "", *, hearing: bool | None = None) -> Iterator[FakeWire]:
        """The connections to a server, in the order of connecting; with ``hearing`` only subscribers', or only others'."""
        for wire in list(self._wires):
            there = url in ("", wire.place.url) and wire.who.startswith(whom) and hearing in (None, wire.hearing)
            if there and not wire.over:
                yield wire

    # ------------------------------------------------------------------------------------------ what goes wrong

    def hurt(self, whom: str, trouble: Trouble) -> None:
        """From now on, until `mend`."""
        self._troubles[whom] = trouble

    def mend(self, whom: str) -> None:
        """What was held up comes through."""
        self._troubles.pop(whom, None)
        for wire in self.wires():
            wire.release()

    def trouble_of(self, who: str) -> Trouble:
        """What is wrong with the way of this process."""
        if not self._troubles:
            return CALM
        found = [trouble for whom, trouble in self._troubles.items() if who.startswith(whom)]
        return Trouble(any(each.refuse for each in found), any(each.up_lost for each in found),
                       any(each.down_lost for each in found), sum(each.delay_s for each in found))

    def later(self, who: str) -> float:
        """When what is sent now arrives."""
        delay_s = self.trouble_of(who).delay_s if self._troubles else 0.0
        return self.loop.time() + self.rng.uniform(*self.latency_s) + delay_s * self.rng.uniform(0.5, 1.0)

    def light(self, commands: int, *, after: bool, name: str = "", every: int = 0) -> None:
        """Cut the connection of the n-th command from now, ``after`` it was executed or before; ``name`` counts only such.

        With ``every`` that of each n-th command after it as well, until `fuse` is None."""
        self.fuse = Fuse(commands, after, name, every)

    def sprung(self, arguments: tuple[bytes | str | int, ...]) -> Fuse | None:
        """The fuse, if it is this command's turn."""
        fuse = self.fuse
        if fuse is None or fuse.name not in ("", arguments[0]):
            return None
        fuse.left -= 1
        if fuse.left > 0:
            return None
        fuse.left = fuse.every
        if not fuse.every:
            self.fuse = None
        return fuse

    def cut(self, url: str = "", whom: str = "", *, hearing: bool | None = None) -> int:
        """End connections; how many.  CLIENT KILL TYPE pubsub is ``hearing=True``."""
        return sum(wire.cut(RESET) for wire in self.wires(url, whom, hearing=hearing))

    # ------------------------------------------------------------------------------------------ servers

    def freeze(self, url: str) -> None:
        """SIGSTOP: connecting still works, commands pile up."""
        self._places[url].frozen = True

    def thaw(self, url: str) -> None:
        """SIGCONT: what has piled up is executed, connection by connection, in any order of connections."""
        self._places[url].frozen = False
        wires = list(self.wires(url))
        self.rng.shuffle(wires)
        for wire in wires:
            wire.release()

    def crash(self, url: str, loss: Loss) -> None:
        """SIGKILL: it is down until `up`, and comes back with what is left."""
        place = self._places[url]
        self._end_all(place)
        place.server.crash(loss)
        place.down, place.frozen = True, False

    def up(self, url: str) -> None:
        """It listens again."""
        self._places[url].down = False

    def fail_over(self, url: str, lag: int) -> int:
        """A replica that is up to ``lag`` commands behind takes its place at once; how many are lost."""
        self._end_all(self._places[url])
        return self._places[url].server.fail_over(lag)

    def _end_all(self, place: Place) -> None:
        wires = [wire for wire in self.wires() if wire.place is place]
        for wire in wires:
            wire.run_some()
        for wire in wires:
            wire.cut(CLOSED)
            wire.sever(at_once=True)

    def heal(self) -> None:
        """Nothing is wrong any more."""
        self.fuse = None
        self._troubles.clear()
        self.latency_s = LATENCY_S
        self.output_max = 32 * 2**20
        for place in self._places.values():
            place.down = place.frozen = False
            server = place.server
            server.oom = server.readonly = server.loading = False
        for wire in self.wires():
            wire.release()
