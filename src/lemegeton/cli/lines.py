"""Lines of standard input, without ever blocking the event loop, and how far it is."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lemegeton.errors import InvalidMessage

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

READ_BYTES = 64 * 1024
LINE_BYTES_MAX = 64 * 1024 * 1024
"""A line that does not end is refused instead of filling the memory; `max_message_bytes` is checked afterwards."""
BAR_AFTER_S = 1.0


async def _chunks(fd: int) -> AsyncIterator[bytes]:
    """What comes from a descriptor, as it comes."""
    while data := await _read(fd):
        yield data


async def _read(fd: int) -> bytes:
    """The next bytes; waits for them in the loop.  Woken once a read: a stale wake-up would block the loop."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        loop.remove_reader(fd)
        ready.set_result(None)

    try:
        loop.add_reader(fd, wake)
    except OSError:  # epoll refuses regular files: they are always ready
        return os.read(fd, READ_BYTES)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
    return os.read(fd, READ_BYTES)


async def batches() -> AsyncIterator[tuple[list[tuple[int, bytes]], int]]:
    """Numbered lines of standard input that are not empty, as they come, and the bytes taken so far."""
    rest = b""
    number = taken = 0
    async for data in _chunks(sys.stdin.fileno()):
        *whole, rest = (rest + data).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise InvalidMessage(f"line {number + len(whole) + 1} of standard input: more than {LINE_BYTES_MAX} bytes")
        taken += len(data)
        yield _numbered(whole, number), taken
        number += len(whole)
    yield _numbered([rest], number), taken


def _numbered(lines: list[bytes], before: int) -> list[tuple[int, bytes]]:
    return [(number, line) for number, line in enumerate(lines, before + 1) if line.strip()]


class Progress:
    """A bar on standard error, if that is a terminal and the work takes longer than a moment."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._wanted = sys.stderr.isatty()
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def at(self, taken: int, count: int) -> None:
        """So many bytes were taken, which were so many messages."""
        if self._bar is None and self._wanted and time.monotonic() - self._began > BAR_AFTER_S:
            self._begin()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=taken, count=count)

    def _begin(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn
        from rich.progress import Progress as Bar

        total = None
        with suppress(OSError):
            total = os.fstat(sys.stdin.fileno()).st_size or None
        self._bar = Bar(TextColumn("{task.fields[count]} messages"), BarColumn(), DownloadColumn(),
                        console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("publishing", total=total, count=0)
        self._bar.start()
