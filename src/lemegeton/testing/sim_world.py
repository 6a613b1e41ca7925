"""The simulated world: sites with disks, processes that live on them, and a harness that knows what it damaged."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from random import Random
from typing import Any
from zlib import crc32

import msgspec

from lemegeton.channels import decode_name
from lemegeton.lane import Lane
from lemegeton.logs.segments import NAME_FILE
from lemegeton.message import Message
from lemegeton.seams import Dial
from lemegeton.segment import parse_segment_name
from lemegeton.testing.fake_disk import FakeDisk
from lemegeton.testing.fake_fs import FakeFs
from lemegeton.testing.fake_inode import Directory, File
from lemegeton.testing.fake_redis import FakeRedisServer
from lemegeton.testing.fake_redis_net import FakeRedisNet
from lemegeton.testing.fake_runtime import EPOCH_MS
from lemegeton.testing.history import Event, MemoryHistory
from lemegeton.testing.history import Life as Stamp
from lemegeton.testing.sim_loop import LIFE, Gate, SimLoop
from lemegeton.testing.sim_plan import SHARED_URL, Plan, Send, SiteSpec, channels_of, local_url
from lemegeton.testing.sim_process import Life, SimProcess
from lemegeton.testing.sim_tools import copy_disk, drop_in
from lemegeton.testing.sim_watch import Watch
from lemegeton.testing.violation import Violation

NS = 1_000_000_000
Story = tuple[list[Event], set[tuple[Lane, int]], set[Lane]]
"""A history, the places in it that were damaged, and the lanes whose ends were torn off."""


class _Wire(msgspec.Struct):
    seq: int = 0
    payload: Any = None


_decode = msgspec.json.Decoder(_Wire).decode


class World:
    """One run.  ``context`` is that of the harness, which belongs to no process."""

    def __init__(self, plan: Plan, loop: SimLoop) -> None:
        self.plan = plan
        self.loop = loop
        self.context = contextvars.copy_context()
        self.sites: list[SimSite] = []
        self.gates: list[Gate] = []
        self.healed = self.over = False
        self.imposters = 0
        self.crashes = self.published = self.deliveries = self.redelivered = 0
        self.faults: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self.log: list[str] = []
        """What the harness did, for people."""
        self.events: list[Event] = []
        """The history of all sites, in a plan where they reach each other; else each has its own."""
        self.net: FakeRedisNet | None = None
        """The way to the Redis that all sites share, in a plan with one."""
        self.watch: Watch | None = None
        if plan.redis:
            self.net = FakeRedisNet(loop, Random(f"net {plan.seed}"))
            for url in (SHARED_URL, *(local_url(spec.name) for spec in plan.sites)):
                self.net.add(url, FakeRedisServer(loop.time, Random(f"redis {plan.seed} {url}")))
            self.watch = Watch(self.net.server(SHARED_URL), loop.time, self.has, self.remembers, self.violate)
        for spec in plan.sites:
            self.sites.append(SimSite(self, spec))

    @property
    def processes(self) -> list[SimProcess]:
        """All processes of all sites."""
        return [process for site in self.sites for process in site.processes]

    def alive(self, rng: Random, wanted: Callable[[SimProcess], bool] = lambda _: True) -> SimProcess | None:
        """One of the processes that live, if any is wanted."""
        found = [process for process in self.processes if process.alive and wanted(process)]
        return rng.choice(found) if found else None

    def tag_at(self, lane: Lane, seq: int) -> str | None:
        """Which message lies where, on any site."""
        return next((tag for site in self.sites if (tag := site.tag_at(lane, seq)) is not None), None)

    def has(self, lane: Lane, seq: int) -> bool:
        """True if a whole record lies there now, on any site."""
        return any((lane, seq) in site.present() for site in self.sites)

    def remembers(self) -> bool:
        """True while no disk has refused to take anything."""
        return not any(self.faults[kind] for kind in ("full", "read_only", "failing_call", "bad_disk", "few_files"))

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call it in the name of the harness."""
        self.loop.call_later(delay_s, call, context=self.context)

    def run_life(self, gate: Gate, main: Coroutine[Any, Any, None]) -> None:
        """Begin a life with its first task."""
        self.gates.append(gate)
        self.create(gate, main)

    def create(self, gate: Gate, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task in the name of a life."""
        context = self.context.copy()
        context.run(LIFE.set, gate)
        return self.loop.create_task(coro, context=context)

    def dial_of(self, who: str) -> Dial | None:
        """How a process connects to a Redis."""
        return self.net.dialer(who) if self.net is not None else None

    def hang_up(self, gate: Gate) -> None:
        """Every connection of a life ends."""
        if self.net is not None:
            self.net.forget(gate)

    def note(self, what: str) -> None:
        """Count something that is no violation."""
        self.notes[what] += 1

    def note_faulty(self, life: Life) -> bool:
        """True if descriptors may have leaked because a call was made to fail."""
        return bool(life.fs._plans) or life.process.spec.name in self._failed

    _failed: frozenset[str] | set[str] = frozenset()

    def mark_failed(self, process: SimProcess) -> None:
        """A call of this process was made to fail."""
        self._failed = {*self._failed, process.spec.name}

    def forgot(self, channel: str = "") -> None:
        """The Redis that all sites share has lost something that it had, of one channel or of any."""
        self.sites[0].history.record("fault", kind="forgot", ch=channel)

    def violate(self, kind: str, text: str) -> None:
        """Something that the history cannot tell."""
        self.violations.append(Violation(kind, text, (kind,)))

    def handled(self, message: Message) -> None:
        self.deliveries += 1
        self.redelivered += message.redelivered

    # ------------------------------------------------------------------------------------------ the end

    async def heal(self) -> None:
        """No fault is left, every process runs."""
        self.healed = True
        self.say("healed")
        for site in self.sites:
            site.disk.read_only, site.disk.capacity = False, None
        if self.net is not None:
            self.net.heal()
        for process in self.processes:
            process.heal()
        await asyncio.sleep(0)

    def unsent(self) -> list[str]:
        """The processes that have publishes ahead or under way, or do not run yet."""
        return [process.spec.name for process in self.processes
                if process.outbox or not process.alive or process.life is None or process.life.sending]

    def quiet(self) -> None:
        """From here on all must be delivered; what was dropped in and is in a log counts as acknowledged."""
        self.say("quiet")
        for site in self.sites:
            site.acknowledge_drop_ins()
            site.history.record("quiet")

    def end(self) -> None:
        """The last look at the processes."""
        for process in self.processes:
            if not process.alive:
                self.violate("dead", f"{process.spec.name} does not live at the end")

    def clone(self, source: SimSite, rng: Random) -> None:
        """Copy a home as it is now, and have it used by processes of its own; to them all others have just died."""
        name = f"{source.name}-copy{len(self.sites)}"
        disk = FakeDisk(Random(rng.getrandbits(64)), clock=source.clock, device=1 + len(self.sites))
        if rng.random() < 0.7:
            disk._machine, disk.boots = source.disk._machine, source.disk.boots
        copy_disk(source.disk, disk)
        site = SimSite(self, replace(source.spec, name=name), disk=disk)
        site.take_over(source)
        self.sites.append(site)
        for process in site.processes:
            self.later(rng.uniform(0.05, 3.0), process.start)

    def stories(self) -> list[Story]:
        """What is to be judged: one history if the sites reach each other, else one a site."""
        if not self.plan.redis:
            return [(site.history.events, site.gone, site.tails) for site in self.sites]
        return [(self.events, {place for site in self.sites for place in site.gone},
                 {lane for site in self.sites for lane in site.tails})]

    def say(self, text: str) -> None:
        """Put a line into the schedule."""
        self.log.append(f"{self.loop.time():9.4f} {text}")


class SimSite:
    """A home on a disk, its processes, and the history of both."""

    def __init__(self, world: World, spec: SiteSpec, *, disk: FakeDisk | None = None) -> None:
        self.world = world
        self.spec = spec
        self.name = spec.name
        self.home = "/user/.lemegeton"
        self.machine = f"machine-{spec.name}"
        self.rng = Random(f"site {world.plan.seed} {spec.name}")
        self.disk = disk or FakeDisk(self.rng, clock=self.clock)
        stamp = Stamp(site=spec.name, clock=self._now_ns)
        self.history = MemoryHistory(stamp, world.events) if world.plan.redis else MemoryHistory(stamp)
        self.tags: dict[tuple[Lane, int], str] = {}
        self.gone: set[tuple[Lane, int]] = set()
        """Places whose records the harness damaged or a power cut took."""
        self.tails: set[Lane] = set()
        """Lanes of which a dropped tail was reported."""
        self.channels = channels_of(*world.plan.sites) if world.plan.redis else channels_of(spec)
        if disk is None:
            tool = FakeFs(self.disk)
            tool.mkdir("/user", 0o700)
            self.disk.sync()
            tool.kill()
        self.processes = [SimProcess(self, process, process.sends) for process in spec.processes]

    def clock(self) -> float:
        return EPOCH_MS / 1000 + self.world.loop.time()

    def _now_ns(self) -> int:
        return round(self.world.loop.time() * NS)

    def begin(self) -> None:
        """Have every process started at its time, and drop-ins dropped."""
        for process in self.processes:
            self.world.later(process.spec.begins, process.start)
        for n, (at, channel, ident) in enumerate(self.spec.drop_ins):
            self.world.later(at, lambda n=n, c=channel, i=ident: drop_in(self, n, c, i))  # type: ignore[misc]

    def learn(self, lane: Lane, seq: int, tag: str) -> None:
        """Remember which message lies where."""
        self.tags[lane, seq] = tag

    def take_over(self, source: SimSite) -> None:
        """This is a copy of another site: what happened there happened here, until now."""
        self.machine = source.machine
        self.tags.update(source.tags)
        self.gone |= source.gone
        self.tails |= source.tails
        self.history.events.extend(replace_site(source.history.events, self.name))
        for process, original in zip(self.processes, source.processes, strict=True):
            process.outbox.clear()
            for send in original.outbox:
                process.outbox.append(renamed(send, f"{send.tag}+{self.name}"))
            if original.alive and original.life is not None:
                self.history.record("fault", kind="kill", inc=original.life.gate.name)
        if self.disk.boot_id != source.disk.boot_id:
            self.history.record("fault", kind="power")

    def acknowledge_drop_ins(self) -> None:
        """A drop-in that lies in a log has been published."""
        found = {tag: place for place, tag in self.present().items()}
        for _, channel, ident in self.spec.drop_ins:
            if ident in found:
                lane, seq = found[ident]
                self.history.record("ack", ch=channel, prod=ident, origin=lane.origin, pinc=lane.inc, prio=lane.priority,
                                    seq=seq, id=ident, level="local")

    # ------------------------------------------------------------------------------------------ looking at the disk

    def segments(self) -> Iterator[tuple[str, str, File]]:
        """Path, channel and inode of every segment, in the order of their names."""
        for path, file in self.files():
            directory, _, name = path.rpartition("/")
            if parse_segment_name(name) is not None and directory.startswith(f"{self.home}/messages/"):
                yield path, self.channel_of(directory), file

    def channel_of(self, directory: str) -> str:
        """The channel of a directory; of one with a hashed name, what is written inside."""
        name = decode_name(directory.rpartition("/")[2])
        if name is not None:
            return name
        try:
            return self.disk.read(f"{directory}/{NAME_FILE}").decode()
        except OSError:
            return ""

    def files(self) -> Iterator[tuple[str, File]]:
        """Every regular file of the disk."""
        ahead: list[tuple[str, Directory]] = [("", self.disk.root)]
        while ahead:
            path, directory = ahead.pop()
            for name, inode in sorted(directory.entries.items()):
                if isinstance(inode, Directory):
                    ahead.append((f"{path}/{name}", inode))
                elif isinstance(inode, File):
                    yield f"{path}/{name}", inode

    def present(self) -> dict[tuple[Lane, int], str]:
        """What lies where: the tags of all whole records on the disk."""
        found: dict[tuple[Lane, int], str] = {}
        for path, channel, file in self.segments():
            name = parse_segment_name(path.rpartition("/")[2])
            assert name is not None, "only segments are listed"
            lane = Lane(channel, name.origin, name.inc, name.priority)
            for tag, seq in records(file.read(file.size, 0)):
                found[lane, seq] = tag
        return found

    def missing_since(self, before: dict[tuple[Lane, int], str]) -> tuple[str, ...]:
        """The tags of which nothing is left; all places that are gone are remembered."""
        after = self.present()
        gone = {place: tag for place, tag in before.items() if place not in after}
        self.gone.update(gone)
        left = set(after.values())
        return tuple(dict.fromkeys(tag for tag in gone.values() if tag not in left))

    def holder_lives(self, origin: str) -> bool:
        """True while a process holds this origin."""
        place = self.disk.find(f"{self.home}/origins/{origin}.lock")
        return place.inode is not None and place.inode.exclusive is not None

    def tag_at(self, lane: Lane, seq: int) -> str | None:
        """Which message lies where."""
        if (lane, seq) not in self.tags:
            for place, tag in self.present().items():
                self.tags.setdefault(place, tag)
        return self.tags.get((lane, seq))

    # ------------------------------------------------------------------------------------------ judging

    def files_digest(self) -> str:
        """One text for everything that lies on the disk."""
        total = hashlib.sha256()
        for path, file in self.files():
            total.update(f"{path} {file.size} ".encode())
            total.update(file.read(file.size, 0))
        return total.hexdigest()


def records(data: bytes) -> list[tuple[str, int]]:
    """Tag and sequence of every whole record in the bytes of a segment; looks for itself, not through the bus."""
    found: list[tuple[str, int]] = []
    for line in data.split(b"\n")[:-1]:
        if len(line) > 9 and line[:9] == b"%08x " % crc32(line[9:]):
            message = _decode(line[9:])
            if isinstance(message.payload, dict) and "m" in message.payload:
                found.append((message.payload["m"], message.seq))
    return found


def replace_site(events: list[Event], site: str) -> list[Event]:
    """The same events, at another site."""
    return [msgspec.structs.replace(event, site=site) for event in events]


def renamed(send: Send, tag: str) -> Send:
    """The same message under another name, but for one with a given id: that is published at both places."""
    return send if send.given else replace(send, tag=tag)
