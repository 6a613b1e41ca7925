"""A simulated process: a real bus on a simulated machine, its handlers and what it publishes.

A process has lives, one after the other.  What a life does goes into the history before its effect; what is random in
it comes from the seed of the process.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from lemegeton.bus import MessageBus
from lemegeton.channels import compile_glob
from lemegeton.errors import LemegetonError, NameTaken
from lemegeton.events import CorruptRecord, DeadLettered, Event, Expired, Gap, TailDropped
from lemegeton.lane import Lane
from lemegeton.message import Message, Receipt
from lemegeton.requesting import INBOX
from lemegeton.subscription import EPHEMERAL
from lemegeton.testing.fake_doorbell import FakeDoorbell
from lemegeton.testing.fake_fs import FakeFs, Killed
from lemegeton.testing.fake_runtime import FakeClock, runtime
from lemegeton.testing.sim_loop import Gate, SimDoorbell
from lemegeton.testing.sim_plan import ProcessSpec, Send, SubSpec
from lemegeton.testing.sim_requests import ask, reply
from lemegeton.testing.sim_tools import TAG, again, digest, lane_fields, payload_of

if TYPE_CHECKING:
    from lemegeton.testing.sim_world import SimSite

ACK_TIMEOUT_S = 3.0
OWN = ("coordination:", INBOX)
"""How channels begin on which buses publish of their own accord: nobody is owed what they say there."""
NOWHERE = Lane("", "", 0, 1)


class SimFs(FakeFs):
    """A file system that can kill its process in the middle of a call."""

    fuse = 0
    on_fuse: Callable[[], None]

    def light(self, calls: int) -> None:
        """Kill the process at this call from now on."""
        self.fuse = calls
        self._trapped = True

    def _sprung(self, op: str) -> int:
        if self.fuse and not self.killed:
            self.fuse -= 1
            if not self.fuse:
                self.on_fuse()
        code = super()._sprung(op)
        self._trapped = self._trapped or self.fuse > 0
        return code

    def write(self, fd: int, data: bytes) -> int:
        """A killed process leaves what the kernel had taken from it so far."""
        if self.fuse == 1 and not self.killed:
            self.fuse = 0
            super().write(fd, data[: self.rng.randint(0, len(data))])
            self.on_fuse()
            raise Killed
        return super().write(fd, data)

    def doorbell(self) -> FakeDoorbell:
        self.check_alive()
        bell = SimDoorbell(self)
        self._bells.append(bell)
        return bell

    def heal(self) -> None:
        """Nothing fails any more."""
        self.fuse = 0
        self._plans.clear()
        self._trapped = self.killed
        self.short_writes, self.fsync_errors, self.fd_limit = 0.0, 0.0, 1024
        self.hints.working = True
        self.hints.loss = self.hints.double = self.hints.overflow = 0.0


@dataclass(slots=True)
class Traps:
    """What will happen the next time that this process comes by."""

    after_ack: bool = False
    handler: deque[tuple[str, float]] = field(default_factory=deque)
    cancels: int = 0


class SimProcess:
    """A process of a site, through all its lives."""

    def __init__(self, site: SimSite, spec: ProcessSpec, outbox: tuple[Send, ...]) -> None:
        self.site = site
        self.world = site.world
        self.spec = spec
        self.rng = Random(f"process {self.world.plan.seed} {site.name} {spec.name}")
        self.clock = FakeClock(self.world.loop)
        self.outbox = deque(outbox)
        self.traps = Traps()
        self.lives = 0
        self.life: Life | None = None
        self.away_until = 0.0
        self.restart_s = (0.05, 3.0)

    @property
    def alive(self) -> bool:
        return self.life is not None and not self.life.gate.dead

    @property
    def durable(self) -> list[SubSpec]:
        return [sub for sub in self.spec.subs if sub.name]

    def start(self) -> None:
        """Begin a life, unless one is under way or it is too early."""
        if self.alive or self.world.over:
            return
        if self.world.loop.time() < self.away_until and not self.world.healed:
            self.world.later(self.away_until - self.world.loop.time(), self.start)
            return
        self.lives += 1
        self.life = Life(self, f"{self.site.name}/{self.spec.name}#{self.lives}")
        self.world.run_life(self.life.gate, self.life.run())

    def kill(self) -> None:
        """SIGKILL; the supervisor starts it again."""
        if self.life is None or not self.alive:
            return
        self.life.record("fault", kind="kill", inc=self.life.gate.name)
        self.world.crashes += 1
        self.vanish()
        self.world.later(self.rng.uniform(*self.restart_s), self.start)

    def vanish(self) -> None:
        """End the life without a word."""
        if self.life is not None:
            self.life.gate.kill()
            self.life.fs.kill()
            self.world.hang_up(self.life.gate)
            self.traps = Traps()

    def stop(self) -> None:
        """SIGSTOP."""
        if self.life is not None and self.alive:
            self.life.gate.halted = True

    def resume(self) -> None:
        """SIGCONT."""
        if self.life is not None:
            self.life.resumed_at = self.world.loop.time()
            self.world.loop.resume(self.life.gate)

    def heal(self) -> None:
        """No fault is left in it; it runs."""
        self.traps = Traps()
        if self.life is not None and self.alive:
            self.life.fs.heal()
            self.resume()
        self.start()


class Life:
    """One life of a process."""

    def __init__(self, process: SimProcess, name: str) -> None:
        self.process = process
        self.site = process.site
        self.world = process.world
        self.rng = process.rng
        self.gate = Gate(name)
        self.fs = SimFs(self.site.disk, rng=Random(process.rng.getrandbits(64)))
        self.fs.on_fuse = process.kill
        self.recorder = self.site.history.life(name, site=self.site.name)
        self.bus: MessageBus | None = None
        self.failing: dict[tuple[str, str], int] = {}
        self.serving: set[str] = set()
        self.sending = 0
        self.leaving = False
        self.resumed_at = -1.0

    def record(self, ev: Any, **fields: Any) -> None:
        """Write an event of this life down; a dead one has nothing to say."""
        if not self.gate.dead:
            self.recorder.record(ev, **fields)

    async def run(self) -> None:
        """Start the bus, subscribe, publish; whoever cannot start dies and is started again."""
        spec = self.process.spec
        dial = self.world.dial_of(self.gate.name)
        machine = runtime(self.fs, clock=self.process.clock, machine_id=self.site.machine, dial=dial)
        self.bus = MessageBus(spec.bus, runtime=machine, origin_wait_s=spec.origin_wait_s, home=self.site.home,
                              **spec.settings)
        self.bus.on("*", self._observed)
        try:
            await self.bus.start()
            for sub in spec.subs:
                await self._subscribe(self.bus, sub)
        except (LemegetonError, OSError) as error:
            self.world.note(f"start failed: {type(error).__name__}")
            if isinstance(error, NameTaken) and not self.world.imposters:
                self.world.violate("refused", f"{self.gate.name}: {error}, though nobody lives who could hold it")
            self.process.kill()
            return
        self.world.create(self.gate, self._send_all())

    async def leave(self) -> None:
        """A graceful end: stop the bus with whatever is under way, then exit."""
        assert self.bus is not None, "it runs"
        self.leaving = True
        try:
            await self.bus.stop()
        except (LemegetonError, OSError) as error:
            self.world.note(f"stop failed: {type(error).__name__}")
        if self.gate.dead:
            return
        for sub in sorted(self.serving):
            self.record("stop", sub=sub)
        await asyncio.sleep(0)
        leaked = self.fs.open_fds()
        if leaked and not self.sending and not self.world.note_faulty(self):
            self.world.violate("leak", f"{self.gate.name}: {len(leaked)} descriptors are open after stop()")
        self.process.vanish()
        self.world.later(self.rng.uniform(*self.process.restart_s), self.process.start)

    # ------------------------------------------------------------------------------------------ publishing

    async def _send_all(self) -> None:
        loop = self.world.loop
        while not self.leaving:
            outbox = self.process.outbox
            if not outbox:
                if self.world.healed and not self.sending:
                    return
                await asyncio.sleep(0.5)
                continue
            delay = outbox[0].at - loop.time()
            if delay > 0 and not self.world.healed:
                await asyncio.sleep(min(delay, 5.0))
                continue
            send = outbox.popleft()
            if send.together or send.ack == "handled":
                self.world.create(self.gate, self._send(send))
            else:
                await self._send(send)

    async def _send(self, send: Send) -> None:
        self.sending += 1
        if send.given and send.tries and self.rng.random() < 0.3 and not self.world.healed:
            self.process.outbox.append(again(send, self.world.loop.time() + self.rng.uniform(0.1, 5)))
        try:
            receipt = await self._maybe_cancelled(ask(self, send) if send.timeout else self._publish(send))
        except LemegetonError as error:
            self.world.note(f"publish: {type(error).__name__}")
            self.record("fail" if error.definite else "info", ch=send.channel, id=send.tag)
        except (TimeoutError, asyncio.CancelledError):
            self.record("info", ch=send.channel, id=send.tag)
        except Exception as error:
            self.world.violate("untyped", f"{self.gate.name}: publish raised {type(error).__name__}: {error}")
        else:
            if receipt is not None:
                self._acknowledged(send, receipt)
        finally:
            self.sending -= 1
        if self.process.traps.after_ack:
            self.process.traps.after_ack = False
            self.process.kill()
            await _for_ever()

    def begin(self, send: Send) -> Any:
        """Write down what is about to be published; its payload."""
        payload = payload_of(send)
        self.record("inv", ch=send.channel, prod=self.process.spec.bus, id=send.tag, sha=digest(payload),
                    kind="ttl" if send.ttl is not None or send.timeout else "")
        self.world.published += 1
        return payload

    async def _publish(self, send: Send) -> Receipt:
        assert self.bus is not None, "it runs"
        payload = self.begin(send)
        return await self.bus.publish(
            send.channel, payload, priority=send.priority, id=send.tag if send.given else None, ttl=send.ttl,
            ack=send.ack, timeout=None if send.ack == "local" else ACK_TIMEOUT_S)  # type: ignore[arg-type]

    async def _maybe_cancelled(self, call: Awaitable[Receipt | None]) -> Receipt | None:
        """The answer of publish, unless it is to be cancelled at one of its await points."""
        traps = self.process.traps
        if not traps.cancels:
            return await call
        traps.cancels -= 1
        return await asyncio.wait_for(call, self.rng.choice((0.0, 1e-6, 0.000_2, 0.003)))

    def _acknowledged(self, send: Send, receipt: Receipt) -> None:
        lane = receipt.lane
        self.site.learn(lane, receipt.seq, send.tag)
        self.record("ack", ch=lane.channel, prod=self.process.spec.bus, origin=lane.origin, pinc=lane.inc,
                    prio=lane.priority, seq=receipt.seq, id=send.tag, level=receipt.level)
        if self.world.watch is not None and receipt.level == "redis":
            self.world.watch.acknowledged(self.site.name, lane, receipt.seq)

    # ------------------------------------------------------------------------------------------ handling

    async def _subscribe(self, bus: MessageBus, sub: SubSpec) -> None:
        shown = sub.name or f"eph-{self.gate.name}"
        if sub.name:
            self.record("open", sub=sub.name)

        async def handle(message: Message) -> None:
            await self._handle(sub, shown, message)

        await bus.subscribe(sub.patterns, handle, start=sub.start, durable=sub.name)  # type: ignore[arg-type]
        self.serving.add(shown)
        if sub.name:
            matchers = [compile_glob(pattern) for pattern in sub.patterns]
            for channel in self.site.channels:
                if any(matches(channel) for matches in matchers):
                    self.record("reg", sub=sub.name, ch=channel)

    async def _handle(self, sub: SubSpec, shown: str, message: Message) -> None:
        if self.gate.dead:  # in the very step in which another handler was killed
            await _for_ever()
        if message.channel.startswith(OWN):
            return
        trap, value = self._trap()
        if trap == "kill before":
            await self._die()
        tag = message.payload.get(TAG, message.id) if isinstance(message.payload, dict) else message.id
        lane = Lane(message.channel, message.origin, message.inc, message.priority)
        self.site.learn(lane, message.seq, tag)
        key = {"sub": shown, "ch": message.channel, "prod": message.sender, "origin": message.origin,
               "pinc": message.inc, "prio": message.priority, "seq": message.seq, "id": tag}
        self.record("start", **key, sha=digest(message.payload), redel=message.redelivered, attempt=message.attempt)
        self.world.handled(message)
        if trap == "kill inside":
            await self._die()
        if trap == "raise":
            self.failing[shown, tag] = int(value)
        pause_s = value if trap == "hang" else self.rng.uniform(0, sub.handler_s) if sub.handler_s else 0.0
        if pause_s:
            await asyncio.sleep(pause_s)
        await self._misbehave(trap, key)
        if message.reply_to is not None:
            await reply(self, message, tag)
        self.record("done", **key)
        if trap == "kill after":
            await self._die()

    async def _misbehave(self, trap: str, key: dict[str, Any]) -> None:
        left = self.failing.get((key["sub"], key["id"]), 0)
        if left and not self.world.healed:
            self.failing[key["sub"], key["id"]] = left - 1
            self.record("error", **key)
            raise RuntimeError("this handler fails")
        if trap == "raise cancelled":
            self.record("error", **key)
            raise asyncio.CancelledError
        task = asyncio.current_task()
        if trap == "cancel" and task is not None:
            self.record("error", **key)
            task.cancel()
            await asyncio.sleep(0)

    def _trap(self) -> tuple[str, float]:
        traps = self.process.traps.handler
        return traps.popleft() if traps else ("", 0.0)

    async def _die(self) -> None:
        self.process.kill()
        await _for_ever()

    # ------------------------------------------------------------------------------------------ events

    def _observed(self, event: Event) -> None:
        self.world.seen[event.name] += 1
        if isinstance(event, TailDropped):
            self.site.tails.add(event.lane)
        sub = getattr(event, "subscription", "")
        if sub == EPHEMERAL and isinstance(event, Expired | DeadLettered):
            sub = f"eph-{self.gate.name}"
        if not sub or sub == EPHEMERAL or getattr(event, "lane", NOWHERE).channel.startswith(OWN):
            return
        if isinstance(event, Gap):
            self.record("gap", sub=sub, **lane_fields(event.lane), first=event.first, last=event.last,
                        cause=event.cause)
        elif isinstance(event, CorruptRecord):
            self.record("corrupt", sub=sub, **lane_fields(event.lane), seq=event.expected, cause=event.cause)
        elif isinstance(event, Expired) and event.first:
            self.record("expired", sub=sub, **lane_fields(event.lane), first=event.first, seq=event.seq)
        elif isinstance(event, Expired | DeadLettered):
            tag = self.world.tag_at(event.lane, event.seq) or event.id
            self.record("expired" if isinstance(event, Expired) else "dead", sub=sub,
                        **lane_fields(event.lane), seq=event.seq, id=tag)


async def _for_ever() -> None:
    await asyncio.get_running_loop().create_future()
