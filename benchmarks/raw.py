"""The raw limit, and a peer: what one write a message costs when nothing is promised.

Writer: one ``os.write`` of a line of as many bytes as ours, or of 64 of them.  Reader: inotify, read, split; nothing is
decoded, numbered or remembered.  The peer is SQLite: WAL, ``synchronous=NORMAL``, one row a commit.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any

import inotify_simple
from common import STAMP_CHARS, leave, percentiles, ready, run, spec, tell, wait_until

READ_BYTES = 256 * 1024
FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND
POLL_MS = 1000


def write(*, path: str, count: int, line_bytes: int, rate: float = 0.0, batch: int = 1, sync: bool = False) -> None:
    """Append ``count`` lines, ``batch`` in a write, each batch followed by a sync if asked."""
    fd = os.open(path, FLAGS, 0o600)
    fill = b"x" * (line_bytes - STAMP_CHARS - 1) + b"\n"
    stamp = time.perf_counter_ns
    ready()
    begun = stamp()
    if rate:
        for n in range(count):
            wait_until(begun + int(n * 1e9 / rate))
            os.write(fd, b"%020d" % stamp() + fill)
    elif batch == 1:
        for _ in range(count):
            os.write(fd, b"%020d" % stamp() + fill)
    else:
        for _ in range(count // batch):
            os.write(fd, b"".join([b"%020d" % stamp() + fill for _ in range(batch)]))
            if sync:
                os.fdatasync(fd)
    tell(begun=begun, ended=stamp())


class GroupSync:
    """Lines of many tasks of one loop: one write and one sync for all that came since the last, by hand.

    A thread of its own waits for the next file to sync: an executor's way there and back takes 10 µs more.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._lines: list[bytes] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._running = False
        self._work: SimpleQueue[list[asyncio.Future[None]]] = SimpleQueue()
        self.count = 0
        Thread(target=self._serve, daemon=True).start()

    def append(self, line: bytes) -> asyncio.Future[None]:
        """Done when the line is on disk."""
        done = self._loop.create_future()
        self._lines.append(line)
        self._waiting.append(done)
        if not self._running:
            self._running = True
            self._loop.call_soon(self._begin)
        return done

    def _begin(self) -> None:
        self._running = bool(self._lines)
        if self._running:
            os.write(self._fd, b"".join(self._lines))
            self._work.put(self._waiting)
            self._lines, self._waiting = [], []

    def _serve(self) -> None:
        while True:
            waiting = self._work.get()
            os.fdatasync(self._fd)
            self.count += 1
            self._loop.call_soon_threadsafe(self._answer, waiting)

    def _answer(self, waiting: list[asyncio.Future[None]]) -> None:
        for done in waiting:
            done.set_result(None)
        self._loop.call_soon(self._begin)  # behind those that wake now, so that their next lines are in it


async def tasks(*, path: str, count: int, line_bytes: int, tasks: int) -> None:
    """So many tasks, each of which appends a line and waits until it is on disk, again and again."""
    group = GroupSync(os.open(path, FLAGS, 0o600))
    fill = b"x" * (line_bytes - STAMP_CHARS - 1) + b"\n"
    stamp = time.perf_counter_ns

    async def some(count: int) -> None:
        for _ in range(count):
            await group.append(b"%020d" % stamp() + fill)

    ready()
    begun = stamp()
    await asyncio.gather(*[some(count // tasks) for _ in range(tasks)])
    tell(begun=begun, ended=stamp(), syncs=group.count)


def _news(directory: str) -> Callable[[], None]:
    """What waits until something in the directory was written to."""
    bell = inotify_simple.INotify()
    bell.add_watch(directory, inotify_simple.flags.MODIFY)

    def wait() -> None:
        bell.read(timeout=POLL_MS)

    return wait


def read(*, paths: Sequence[str], count: int, latency: bool = False) -> None:
    """Split lines of all these files until there were ``count``."""
    wait = _news(os.path.dirname(paths[0]))
    fds = [os.open(path, os.O_RDONLY | os.O_CREAT, 0o600) for path in paths]
    ready()
    seen, latencies, begun, first = 0, [], time.perf_counter_ns(), 0
    for lines in _batches(fds, wait):
        first = first or time.perf_counter_ns()
        if latency:
            now = time.perf_counter_ns()
            latencies += [now - int(line[:STAMP_CHARS]) for line in lines]
        seen += len(lines)
        if seen >= count:
            ended = time.perf_counter_ns()
            tell(ended=ended, first=(first - begun) / 1e9, last=(ended - begun) / 1e9, **percentiles(latencies))
            return


def _batches(fds: Sequence[int], wait: Callable[[], None]) -> Iterator[list[bytes]]:
    rests, ended = [b""] * len(fds), 0
    while True:
        for n, fd in enumerate(fds):
            data = os.read(fd, READ_BYTES)
            if data:
                *lines, rests[n] = (rests[n] + data).split(b"\n")
                yield lines
            ended = 0 if data else ended + 1
        if ended >= len(fds):
            wait()


def database(path: str) -> sqlite3.Connection:
    """A connection to the file, made if it is missing; two processes must not make it at once."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute("CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY, line BLOB)")
    return db


def insert(*, path: str, count: int, line_bytes: int) -> None:
    """One row a commit."""
    db = database(path)
    fill = b"x" * (line_bytes - STAMP_CHARS)
    ready()
    begun = time.perf_counter_ns()
    for _ in range(count):
        db.execute("INSERT INTO messages (line) VALUES (?)", (b"%020d" % time.perf_counter_ns() + fill,))
    tell(begun=begun, ended=time.perf_counter_ns())


def select(*, path: str, count: int) -> None:
    """Rows behind the last one, whenever the file rings."""
    db = database(path)
    wait = _news(os.path.dirname(path))
    ready()
    last = 0
    while last < count:
        rows = db.execute("SELECT id, line FROM messages WHERE id > ? ORDER BY id LIMIT 1000", (last,)).fetchall()
        if rows:
            last = rows[-1][0]
        else:
            wait()
    tell(ended=time.perf_counter_ns())


ROLES: dict[str, Callable[..., Any]] = {
    "write": write, "tasks": lambda **given: run(tasks(**given)), "read": read, "insert": insert,
    "select": select,
}

if __name__ == "__main__":
    given = spec()
    ROLES[given.pop("role")](**given)
    leave()
