"""Faults: what the harness does to a simulated world, each a small coroutine named after what it is.

A fault answers whether there was anything to strike.  It undoes what it did; `World` undoes it at the end if it is still
under way then.  Numbers are the rows of the fault matrix.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

from lemegeton.bus import MessageBus
from lemegeton.errors import InvalidMessage, LemegetonError, NameTaken
from lemegeton.testing.fake_fs import FakeFs
from lemegeton.testing.fake_inode import Directory
from lemegeton.testing.fake_runtime import runtime
from lemegeton.testing.sim_damage import bad_disk, failing_call, few_files, full, power, read_only, rot, torn
from lemegeton.testing.sim_loop import Gate
from lemegeton.testing.sim_plan import HEAL_S, MESSAGE_BYTES_MAX
from lemegeton.testing.sim_process import SimFs, SimProcess
from lemegeton.testing.sim_world import World

Strike = Callable[[World, Random], Awaitable[bool]]


def reads(process: SimProcess) -> bool:
    """True if it subscribes to anything."""
    return bool(process.spec.subs)


def sends(process: SimProcess) -> bool:
    """True if it has anything left to publish."""
    return bool(process.outbox)


# ── death: 1, 2, 4, 38, 40, 47 ───────────────────────────────────────────────────────────────────────────────────────


async def kill(world: World, rng: Random) -> bool:
    """1, 2: SIGKILL at any moment between two callbacks."""
    process = world.alive(rng)
    if process is not None:
        process.kill()
    return process is not None


async def kill_after_ack(world: World, rng: Random) -> bool:
    """1: the publisher dies right after its next acknowledgement."""
    process = world.alive(rng, sends)
    if process is not None:
        process.traps.after_ack = True
    return process is not None


async def kill_in_handler(world: World, rng: Random) -> bool:
    """2: the subscriber dies before, inside or after a handler soon to be called."""
    process = world.alive(rng, reads)
    if process is not None:
        process.traps.handler.extend([("", 0.0)] * rng.choice((0, 0, 1, 5)))
        process.traps.handler.append((rng.choice(("kill before", "kill inside", "kill after")), 0.0))
    return process is not None


async def kill_in_call(world: World, rng: Random) -> bool:
    """1, 2, 46: SIGKILL inside one of the next calls of the file system; a write may be half done."""
    process = world.alive(rng)
    if process is not None and process.life is not None:
        process.life.fs.light(rng.choice((1, 2, 3, 5, 8, 13, 30, 80)))
    return process is not None


async def kill_at_start(world: World, rng: Random) -> bool:
    """1, 2: a process dies, and again while it starts."""
    process = world.alive(rng)
    if process is None:
        return False
    process.kill()
    await asyncio.sleep(rng.uniform(0, 3))
    process.start()
    if process.life is not None and process.alive:
        process.life.fs.light(rng.randint(1, 60))
    return True


async def kill_site(world: World, rng: Random) -> bool:
    """4, 40: all of a site die and start again in another order, or all at once."""
    site = rng.choice(world.sites)
    at_once = rng.random() < 0.4
    for process in site.processes:
        process.restart_s = (1.0, 1.0) if at_once else (0.05, 3.0)
        process.kill()
        process.restart_s = (0.05, 3.0)
    return True


async def away(world: World, rng: Random) -> bool:
    """38: a durable reader is away for long while retention works."""
    process = world.alive(rng, lambda p: bool(p.durable))
    if process is not None:
        process.away_until = min(HEAL_S, world.loop.time() + rng.uniform(10, 40))
        process.kill()
    return process is not None


async def stop(world: World, rng: Random) -> bool:
    """47: a graceful stop with messages and handlers under way."""
    process = world.alive(rng)
    if process is None or process.life is None or process.life.gate.halted or process.life.leaving:
        return False
    if process.life.bus is None or process.life.bus._state != "running":
        return False
    world.create(process.life.gate, process.life.leave())
    return True


# ── stillness and names: 24, 25 ──────────────────────────────────────────────────────────────────────────────────────


async def pause(world: World, rng: Random) -> bool:
    """24: SIGSTOP for up to 30 s."""
    process = world.alive(rng)
    if process is None:
        return False
    life = process.life
    process.stop()
    await asyncio.sleep(rng.choice((0.1, 1.0, 5.0, 30.0)) * rng.random())
    if life is process.life:
        process.resume()
    return True


async def imposter(world: World, rng: Random) -> bool:
    """25: a second process asks for the durable name of one that lives or is stopped, and must be refused."""
    process = world.alive(rng, lambda p: bool(p.durable) and bool(p.life and p.life.serving))
    if process is None or process.life is None:
        return False
    if rng.random() < 0.5:
        process.stop()
    life = process.life
    name = rng.choice([sub.name for sub in process.durable if sub.name in life.serving] or [None])
    if name is not None:
        world.imposters += 1
        gate = Gate(f"{process.site.name}/imposter-{world.imposters}")
        fs = SimFs(process.site.disk, rng=Random(rng.getrandbits(64)))
        world.run_life(gate, _pose(world, process, gate, fs, name))
        await asyncio.sleep(1.0)
        gate.kill()
        fs.kill()
    if life is process.life:
        process.resume()
    return name is not None


async def _pose(world: World, process: SimProcess, gate: Gate, fs: SimFs, name: str) -> None:
    life = process.life
    bus = MessageBus("imposter", runtime=runtime(fs, machine_id=process.site.machine), home=process.site.home)
    try:
        await bus.start()
        await bus.subscribe("*", _nothing, durable=name)
    except NameTaken:
        return
    except (LemegetonError, OSError) as error:
        world.note(f"imposter: {type(error).__name__}")
        return
    if process.life is life and process.alive and life is not None and name in life.serving:
        world.violate("two_holders", f"{gate.name} took the name {name} of {life.gate.name}, which lives")


async def _nothing(_: object) -> None:
    await asyncio.sleep(3600)


# ── clocks and handlers: 29, 45, 46, 44 ──────────────────────────────────────────────────────────────────────────────


async def clock(world: World, rng: Random) -> bool:
    """29: the wall clock of a process is set by an hour."""
    rng.choice(world.processes).clock.step(rng.choice((-3_600_000, 3_600_000, -90_000, 90_000)))
    return True


async def handler(world: World, rng: Random) -> bool:
    """45: a handler hangs, raises, or cancels itself."""
    process = world.alive(rng, reads)
    if process is not None:
        kind = rng.choice(("hang", "raise", "raise", "raise cancelled", "cancel"))
        process.traps.handler.append((kind, rng.uniform(1, 8) if kind == "hang" else rng.choice((1, 2, 3, 5))))
    return process is not None


async def cancel(world: World, rng: Random) -> bool:
    """46: the next publishes are cancelled at some await point."""
    process = world.alive(rng, sends)
    if process is not None:
        process.traps.cancels = rng.randint(1, 6)
    return process is not None


async def bad_message(world: World, rng: Random) -> bool:
    """44: a message that must be refused, and one that just fits."""
    process = world.alive(rng, lambda p: bool(p.life and p.life.serving))
    if process is None or process.life is None or process.life.bus is None or process.life.leaving:
        return False
    world.create(process.life.gate, _publish_bad(world, process.life.bus, process, rng))
    return True


async def _publish_bad(world: World, bus: MessageBus, process: SimProcess, rng: Random) -> None:
    channel = rng.choice(process.site.channels)
    for wrong in ({"payload": "x" * (MESSAGE_BYTES_MAX + 1)}, {"channel": "a\nb"}, {"channel": ""}, {"channel": "c" * 257},
                  {"payload": object()}, {"priority": 7}, {"ttl": -1.0}, {"id": ""}, {"payload": float("nan")}):
        try:
            await bus.publish(**{"channel": channel, "payload": None, **wrong})  # type: ignore[arg-type]
        except InvalidMessage:
            continue
        except LemegetonError as error:
            world.note(f"bad message: {type(error).__name__}")
            return
        world.violate("accepted", f"publish took a message with {wrong!s:.60}")


# ── doorbells and directories: 36, 41 ────────────────────────────────────────────────────────────────────────────────


async def doorbell(world: World, rng: Random) -> bool:
    """36: inotify is off, loses hints, doubles them, or overflows."""
    process = world.alive(rng, reads)
    if process is None or process.life is None:
        return False
    hints = process.life.fs.hints
    kind = rng.choice(("off", "loss", "double", "overflow"))
    if kind == "off":
        hints.working = False
    else:
        setattr(hints, kind, rng.choice((0.3, 1.0)))
    await asyncio.sleep(rng.uniform(1, 20))
    hints.working, hints.loss, hints.double, hints.overflow = True, 0.0, 0.0, 0.0
    return True


async def new_directory(world: World, rng: Random) -> bool:
    """36: a channel's directory is replaced by another one with the same files in it."""
    site = rng.choice(world.sites)
    place = site.disk.find(f"{site.home}/messages")
    names = sorted(place.inode.entries) if isinstance(place.inode, Directory) else []
    if not names or site.disk.read_only:
        return False
    path = f"{site.home}/messages/{rng.choice(names)}"
    tool = FakeFs(site.disk, rng=Random(rng.getrandbits(64)))
    old = f"/user/old-{world.loop.time():.6f}"
    try:
        tool.rename(path, old)
        tool.mkdir(path, 0o700)
        for name in sorted(tool.listdir(old)):
            tool.rename(f"{old}/{name}", f"{path}/{name}")
    finally:
        tool.kill()
    return True


async def clone(world: World, rng: Random) -> bool:
    """41: the home is copied while it is in use, and both are used from then on."""
    if len(world.sites) > 2:
        return False
    world.clone(rng.choice(world.sites), rng)
    return True


FAULTS: dict[str, Strike] = {strike.__name__: strike for strike in (
    kill, kill_after_ack, kill_in_handler, kill_in_call, kill_at_start, kill_site, away, stop, pause, imposter, clock,
    handler, cancel, bad_message, rot, torn, power, full, read_only, failing_call, bad_disk, few_files, doorbell,
    new_directory, clone)}
