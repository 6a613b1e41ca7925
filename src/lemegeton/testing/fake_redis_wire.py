"""One simulated connection to a simulated Redis; `fake_redis_net` is the network that it goes through."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import hiredis

from lemegeton.errors import RedisLost
from lemegeton.redis_wire import refused
from lemegeton.seams import Heard, Packed
from lemegeton.testing.fake_fs import Killed
from lemegeton.testing.fake_redis import SILENT, FakeRedisServer, Reply
from lemegeton.testing.sim_loop import LIFE, Gate

if TYPE_CHECKING:
    from lemegeton.testing.fake_redis_net import FakeRedisNet

RESET = "connection reset by peer"
CLOSED = "closed by the server"


class _End(NamedTuple):
    """The last that comes down a connection."""

    cause: str


class Place:
    """A server where it can be dialled."""

    def __init__(self, url: str, server: FakeRedisServer) -> None:
        self.url = url
        self.server = server
        self.down = self.frozen = False


class FakeWire:
    """See `seams.Wire`.  It belongs to the life that dialled it."""

    def __init__(self, net: FakeRedisNet, place: Place, who: str, heard: Heard | None, lost: Callable[[str], None]) -> None:
        self.who = who
        self.place = place
        self.gate: Gate | None = LIFE.get()
        self._net = net
        self._heard = heard
        self._lost = lost
        self._context = contextvars.copy_context()
        self._session = place.server.session(self._pushed)
        self._open = True
        self._severed = False
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._cause = "not connected"
        self.silent = False
        self._up: deque[tuple[bytes | str | int, ...]] = deque()
        self._down: deque[Any] = deque()
        self._up_at = self._down_at = 0.0
        self._up_held = self._down_held = 0
        self._waiting_bytes = 0

    # ------------------------------------------------------------------------------------------ the process's side

    @property
    def hearing(self) -> bool:
        """True if it is a subscriber's connection."""
        return self._heard is not None

    def call(self, *arguments: bytes | str | int, packed: Packed | None = None) -> asyncio.Future[Any]:
        self._check_alive()
        answer: asyncio.Future[Any] = self._net.loop.create_future()
        if not self._open:
            answer.set_exception(RedisLost(f"redis {self.place.url}: {self._cause}", definite=True))
            return answer
        self._waiting.append(answer)
        self._send(arguments if packed is None else (*arguments, *unpacked(packed)))
        return answer

    def send(self, *arguments: bytes | str | int) -> None:
        self._check_alive()
        if self._open:
            self._send(arguments)

    def _check_alive(self) -> None:
        if self.gate is not None and self.gate.dead:
            raise Killed

    def _send(self, arguments: tuple[bytes | str | int, ...]) -> None:
        self.silent |= arguments[0] == "PING"
        if not self._severed:
            self._up.append(arguments)
            self._up_at = max(self._up_at, self._net.later(self.who))
            self._net.loop.call_at(self._up_at, self.arrive, context=self._net.context)

    def close(self) -> None:
        if self._open:
            self._lost = lambda _: None
            self._finish("closed by us")
            self.sever()

    def _finish(self, cause: str) -> None:
        self._open = False
        self._cause = cause
        self._down.clear()
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(RedisLost(f"redis {self.place.url}: no answer: {cause}; it may have happened"))
                waiting.exception()  # whoever waits hears it; nobody has to
        self._waiting.clear()
        self._lost(cause)

    def _deliver(self) -> None:
        """The next of what has come down, if it gets through."""
        if not self._down or not self._open:
            return
        if self._net.trouble_of(self.who).down_lost:
            self._down_held += 1
            return
        value = self._down.popleft()
        if isinstance(value, _End):
            self._finish(value.cause)
            return
        self.silent = False
        if self._heard is not None:
            self._waiting_bytes -= _bytes_of(value)
            self._heard(refused(self.place.url, str(value)) if isinstance(value, hiredis.ReplyError) else value)
        elif self._waiting:
            self._settle(self._waiting.popleft(), value)

    def _settle(self, waiting: asyncio.Future[Any], answer: Any) -> None:
        if waiting.done():
            return
        if isinstance(answer, hiredis.ReplyError):
            waiting.set_exception(refused(self.place.url, str(answer)))
        else:
            waiting.set_result(answer)

    # ------------------------------------------------------------------------------------------ the server's side

    @property
    def over(self) -> bool:
        """True once nothing can come of it any more."""
        return self._severed and not self._up and not (self._open and self._down)

    def arrive(self) -> None:
        """The next command reaches the server, if it gets through."""
        if not self._up:
            return
        if self.place.frozen or self._net.trouble_of(self.who).up_lost:
            self._up_held += 1
            return
        self.execute_next()

    def execute_next(self) -> None:
        """Execute the next command that is under way."""
        arguments = self._up.popleft()
        fuse = None if self._severed else self._net.sprung(arguments)
        if fuse is not None and not fuse.after:
            self.cut(RESET)
            self.sever(at_once=True)  # what was sent behind it cannot arrive either
            return
        answer = self.place.server.execute(*arguments, session=self._session)
        if fuse is not None:
            self.cut(RESET)
        elif answer is not SILENT:
            self._pushed(answer)
        if self._severed and not self._up:
            self.place.server.forget(self._session)

    def _pushed(self, value: Reply) -> None:
        if self._severed:
            return
        if self.hearing:
            self._waiting_bytes += _bytes_of(value)
            if self._waiting_bytes > self._net.output_max:
                self._net.loop.call_soon(self.cut, CLOSED, context=self._net.context)
        self._come_down(value)

    def _come_down(self, value: Any) -> None:
        self._down.append(value)
        self._down_at = max(self._down_at, self._net.later(self.who))
        self._net.loop.call_at(self._down_at, self._deliver, context=self._context)

    # ------------------------------------------------------------------------------------------ the network's side

    def release(self) -> None:
        """Whatever was held is under way again."""
        held, self._up_held = self._up_held, 0
        for _ in range(held):
            self.arrive()
        held, self._down_held = self._down_held, 0
        for _ in range(held):
            self._net.loop.call_soon(self._deliver, context=self._context)

    def cut(self, cause: str) -> bool:
        """End it: of what is under way either way, some may still come through.  False if it had ended."""
        if self._severed:
            return False
        self.sever()
        _keep_some(self._down, self._net.rng)
        if self._open:
            self._come_down(_End(cause))
        return True

    def sever(self, *, at_once: bool = False) -> None:
        """Nothing goes up any more but what is under way, or some of it; with ``at_once`` nothing."""
        if self._severed and not at_once:
            return
        self._severed = True
        if at_once:
            self._up.clear()
        elif self._net.rng.random() < 0.5:
            _keep_some(self._up, self._net.rng)
        if not self._up:
            self.place.server.forget(self._session)

    def vanish(self) -> None:
        """Its process is dead."""
        self._open = False
        self.sever()

    def run_some(self) -> None:
        """Execute some of what is under way, because the server is about to end."""
        if not self.place.frozen and not self._net.trouble_of(self.who).up_lost:
            for _ in range(self._net.rng.randint(0, len(self._up))):
                if self._up:
                    self.execute_next()


def _keep_some(queue: deque[Any], rng: Random) -> None:
    """Drop some of it, from the end."""
    for _ in range(rng.randint(0, len(queue))):
        queue.pop()


def _bytes_of(value: Any) -> int:
    return sum(len(part) for part in value if isinstance(part, bytes)) if isinstance(value, list) else 0


def unpacked(packed: Packed) -> list[bytes]:
    """The arguments again that were packed as bulk strings."""
    found: list[bytes] = []
    at = 0
    while at < len(packed.data):
        end = packed.data.index(b"\r\n", at)
        size = int(packed.data[at + 1 : end])
        found.append(packed.data[end + 2 : end + 2 + size])
        at = end + 4 + size
    assert len(found) == packed.number, f"{len(found)} arguments were packed as {packed.number}"
    return found
