"""Faults of disks: rot, torn ends, power cuts, full disks and failing calls."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable
from random import Random

from lemegeton.segment import parse_segment_name
from lemegeton.testing.fake_inode import PAGE, File
from lemegeton.testing.sim_world import SimSite, World

CODES = (errno.EIO, errno.EACCES, errno.EMFILE, errno.ENOSPC)
OPS = ("*", "*", "open", "write", "pwrite", "pread", "fdatasync", "fsync", "listdir", "lstat", "fstat", "mkdir", "unlink",
       "allocate", "rename", "lock", "close")


def _damage(site: SimSite, path: str, file: File, change: Callable[[bytes], bytes]) -> bool:
    """Change a segment and tell the history which messages are not whole any more."""
    before = site.present()
    old = file.read(file.size, 0)
    new = change(old)
    if site.holder_lives(_origin(path)) and not new.endswith(b"\n"):
        new += b"\n"  # else the next record, which nobody touched, would be damaged as well
    if new == old:
        return False
    site.disk.used += len(new) - len(old)
    file.replace(new)
    gone = site.missing_since(before)
    site.history.record("fault", kind="corrupted", ids=gone)
    site.world.say(f"  {path} damaged: {', '.join(gone) or 'no record'}")
    return True


def _origin(path: str) -> str:
    name = parse_segment_name(path.rpartition("/")[2])
    assert name is not None, "a segment"
    return name.origin


async def rot(world: World, rng: Random) -> bool:
    """31: a flipped bit, a zeroed page, garbage at the end, a block twice."""
    site = rng.choice(world.sites)
    found = [(path, file) for path, _, file in site.segments() if file.size]
    if not found:
        return False
    path, file = rng.choice(found)
    kind = rng.choice(("flip", "flip", "zero", "garbage", "duplicate"))
    return _damage(site, path, file, lambda data: rotten(data, kind, rng))


def rotten(data: bytes, kind: str, rng: Random) -> bytes:
    start = rng.randrange(len(data))
    if kind == "flip":
        return data[:start] + bytes((data[start] ^ 1 << rng.randrange(8),)) + data[start + 1 :]
    if kind == "garbage":
        return data + rng.randbytes(rng.randint(1, 600))
    start -= start % rng.choice((512, PAGE))
    end = min(start + PAGE, len(data))
    if kind == "zero":
        return data[:start] + bytes(end - start) + data[end:]
    return data[:end] + data[start:]


async def torn(world: World, rng: Random) -> bool:
    """30: the last segment of a dead origin ends somewhere inside its last two records."""
    site = rng.choice(world.sites)
    newest: dict[tuple[str, str, int], tuple[tuple[int, int], str, File]] = {}
    for path, channel, file in site.segments():
        name = parse_segment_name(path.rpartition("/")[2])
        if name is not None and file.size and not site.holder_lives(name.origin):
            key = (channel, name.origin, name.priority)
            newest[key] = max(newest.get(key, ((0, 0), "", file)), ((name.inc, name.first), path, file),
                              key=lambda entry: entry[0])
    if not newest:
        return False
    _, path, file = newest[rng.choice(sorted(newest))]
    return _damage(site, path, file, lambda data: cut_tail(data, rng))


def cut_tail(data: bytes, rng: Random) -> bytes:
    """Without the end; never at the end of a record, which no crash does: a record that was read may not go whole."""
    lines = data.split(b"\n")
    tail = sum(len(line) + 1 for line in lines[-3:-1])
    at = len(data) - rng.randint(1, max(1, tail))
    return data[:at + 1] if at and data[at - 1 : at] == b"\n" else data[:max(1, at)]


async def power(world: World, rng: Random) -> bool:
    """32: the power goes; what was not synced is lost in part."""
    site = rng.choice(world.sites)
    if rng.random() < 0.3:
        site.disk.sync()
        await asyncio.sleep(rng.uniform(0, 2))
    cut_power(world, site, rng)
    return True


def cut_power(world: World, site: SimSite, rng: Random) -> None:
    """Every process of the site is dead, and the messages that are not on its disk are declared."""
    before = site.present()
    for process in site.processes:
        if process.alive:
            process.vanish()
            world.crashes += 1
    site.disk.power(rng)
    if world.watch is not None:
        world.watch.power(site.name)
    site.disk.read_only, site.disk.capacity = False, None
    lost = site.missing_since(before)
    site.history.record("fault", kind="power", ids=lost)
    world.say(f"  power of {site.name} cut: {', '.join(lost) or 'nothing'} lost")
    known = {event.id for event in site.history.events if event.ev == "inv"}
    for process in site.processes:
        # Who remembered a given id may have forgotten it: publishing it again would rightly be a second message.
        process.outbox = deque(send for send in process.outbox if send.tag not in known)
        if process.spec.subs and rng.random() < 0.4:  # and once more, soon after it is up
            process.traps.handler.extend([("", 0.0)] * rng.choice((0, 1, 3)))
            process.traps.handler.append((rng.choice(("kill inside", "kill after")), 0.0))
        world.later(rng.uniform(0.05, 3.0), process.start)


async def full(world: World, rng: Random) -> bool:
    """33: the disk is full for a while."""
    site = rng.choice(world.sites)
    site.disk.capacity = site.disk.used + rng.choice((0, 100, 1000, 20_000))
    await asyncio.sleep(rng.uniform(0.5, 10))
    site.disk.capacity = None
    return True


async def read_only(world: World, rng: Random) -> bool:
    """35: the home cannot be written to for a while, perhaps while processes start."""
    site = rng.choice(world.sites)
    site.disk.read_only = True
    if rng.random() < 0.3:
        for process in site.processes[:2]:
            process.kill()
    await asyncio.sleep(rng.uniform(0.5, 8))
    site.disk.read_only = False
    return True


async def failing_call(world: World, rng: Random) -> bool:
    """34: a call fails."""
    process = world.alive(rng)
    if process is not None and process.life is not None:
        world.mark_failed(process)
        for _ in range(rng.choice((1, 1, 3))):
            process.life.fs.fail_next(rng.choice(OPS), rng.choice(CODES), rng.randint(1, 12))
    return process is not None


async def bad_disk(world: World, rng: Random) -> bool:
    """34, 32: for a while writes are short and syncs fail."""
    process = world.alive(rng)
    if process is None or process.life is None:
        return False
    fs = process.life.fs
    world.mark_failed(process)
    fs.short_writes = rng.choice((0.0, 0.2, 0.5))
    fs.fsync_errors = rng.choice((0.0, 0.4, 0.4, 1.0))
    await asyncio.sleep(rng.uniform(1, 10))
    fs.short_writes = fs.fsync_errors = 0.0
    if rng.random() < 0.5:
        cut_power(world, process.site, rng)
    return True


async def few_files(world: World, rng: Random) -> bool:
    """34: no more open files than there are now."""
    process = world.alive(rng)
    if process is None or process.life is None:
        return False
    fs = process.life.fs
    world.mark_failed(process)
    fs.fd_limit = len(fs.open_fds()) + rng.choice((0, 1, 2))
    await asyncio.sleep(rng.uniform(1, 8))
    fs.fd_limit = 1024
    return True
