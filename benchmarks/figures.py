"""The figures through files: what is measured, beside what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import PAYLOAD_BYTES
from raw import database
from stand import Found, Ran, Role, Turn, alone, crowd, directory, pair, rate
from table import Pair, Part, beside

SLOW_HZ, FAST_HZ = 500, 5000
TASKS, WRITERS = 64, 8
CHANNELS = (1, 100, 1000)
PAYLOADS = {1024: "1 KiB", 65_536: "64 KiB"}
RAW, BARE, SQLITE = "raw", "raw, 64 lines a write and sync, no tasks", "SQLite"

ONE = "files: one publisher, each publish awaited, msg/s"
ROWS = "files: one publisher, beside SQLite (WAL, NORMAL, a row a commit), msg/s"
GROUPED = "files: one publisher, 64 tasks, msg/s"
EIGHT = "files: eight publishers, each publish awaited, msg/s"
DISK = 'files: ack="disk", 64 tasks, msg/s'
GROUP = 'files: ack="disk", 64 tasks, messages a sync'
MANY = "files: channels in turn, glob subscription, msg/s"
MEMORY = "files: channels in turn, peak memory of the {role}, MB"
LATENCY = "files: latency at {hz:,} msg/s, {part}, µs"
LARGE = "files: payload of {size}, each publish awaited, msg/s"
COSTS = ("CPU of the publisher, µs a message", "CPU of the subscriber, µs a message", "peak memory of the publisher, MB",
         "peak memory of the subscriber, MB")
PARTS = ("p50", "p99", "p99.9")


@dataclass(frozen=True, slots=True)
class Size:
    """How much a run does: messages in the throughput figures, with sync, in SQLite, of each large payload; seconds paced;
    rounds."""

    messages: int = 64_000
    synced: int = 16_000
    rows: int = 20_000
    large: tuple[int, int] = (16_000, 1_600)
    paced_s: float = 2.2
    rounds: int = 5


QUICK = Size(messages=8_000, synced=3_200, rows=2_000, large=(2_000, 200), paced_s=0.6, rounds=1)


def channel_side(count: int) -> str:
    """What a side is called that goes over so many channels."""
    return "1 channel" if count == 1 else f"{count:,} channels"


def among_channels(figures: Sequence[str]) -> list[Pair]:
    """Rows that hold many channels beside one."""
    one, *more = (channel_side(count) for count in CHANNELS)
    return [Pair(figure, side, one) for figure in figures for side in more]


def costs(found: Found, figure: str, side: str, count: int, reader: Ran, writer: Ran) -> None:
    """What a run took of publisher and subscriber, under the name of its figure."""
    values = (writer.cpu_s * 1e6 / count, reader.cpu_s * 1e6 / count, writer.peak_mb, reader.peak_mb)
    for what, value in zip(COSTS, values, strict=True):
        found.add(f"{figure.removesuffix(', msg/s')}, {what}", side, value)


def latencies(found: Found, figure: str, side: str, told: dict[str, Any]) -> None:
    """The percentiles that a reader told; ``figure`` has a place for their name."""
    for part in PARTS:
        if part in told:
            found.add(figure.replace("{part}", part), side, told[part])


@dataclass(slots=True)
class FileBench:
    """Runs the figures."""

    root: Path
    size: Size
    found: Found
    _line_bytes: dict[int, int] = field(default_factory=dict)

    def line_bytes(self, payload: int = PAYLOAD_BYTES) -> int:
        """How many bytes one of our lines takes with such a payload: an average, sequences grow."""
        if payload not in self._line_bytes:
            count = min(self.size.messages, 100 * 2**20 // payload)
            with directory(self.root) as path:
                alone(Role("ours.py", "publish", home=str(path), count=count, payload_bytes=payload))
                total = sum(file.stat().st_size for file in path.glob("messages/*/*.log"))
            self._line_bytes[payload] = round(total / count)
        return self._line_bytes[payload]

    # ------------------------------------------------------------------------------------------ runs

    def ours(self, figure: str, side: str, count: int, *, patterns: tuple[str, ...] = ("load-0",), costly: bool = False,
             memory: str = "", **more: Any) -> None:
        """Publisher to durable subscriber, full delivery; ``memory`` is the figure of its memory, if it has one."""
        with directory(self.root) as path:
            home = str(path)
            reader = Role("ours.py", "subscribe", home=home, count=count, latency="rate" in more, patterns=patterns)
            read, wrote = pair(reader, Role("ours.py", "publish", home=home, count=count, **more))
        self._add(figure, side, count, read, wrote, costly)
        if memory:
            for role, ran in (("publisher", wrote), ("subscriber", read)):
                self.found.add(memory.format(role=role), side, ran.peak_mb)

    def raw(self, figure: str, count: int, payload: int = PAYLOAD_BYTES, costly: bool = False, **more: Any) -> None:
        """One write a line to a reader that splits lines."""
        line_bytes = self.line_bytes(payload)
        with directory(self.root) as path:
            file = str(path / "log")
            reader = Role("raw.py", "read", paths=[file], count=count, latency="rate" in more)
            read, wrote = pair(reader, Role("raw.py", "write", path=file, count=count, line_bytes=line_bytes, **more))
        self._add(figure, RAW, count, read, wrote, costly)

    def _add(self, figure: str, side: str, count: int, read: Ran, wrote: Ran, costly: bool) -> None:
        if "p50" in read.told:
            latencies(self.found, figure, side, read.told)
        else:
            self.found.add(figure, side, rate(count, wrote.told["begun"], read.told["ended"]))
        if costly:
            costs(self.found, figure, side, count, read, wrote)

    def eight(self, side: str, count: int) -> None:
        """Eight publisher processes to one subscriber, a log each."""
        line_bytes = self.line_bytes()
        with directory(self.root) as path:
            files, each = [str(path / f"log{n}") for n in range(WRITERS)], count // WRITERS
            if side == RAW:
                reader = Role("raw.py", "read", paths=files, count=count)
                writers = [Role("raw.py", "write", path=file, count=each, line_bytes=line_bytes) for file in files]
            else:
                reader = Role("ours.py", "subscribe", home=str(path), count=count)
                writers = [Role("ours.py", "publish", home=str(path), count=each, name=f"sender{n}") for n in range(WRITERS)]
            ran = crowd([reader], writers)
        self.found.add(EIGHT, side, rate(count, ran.begun, ran.ended))

    def ours_disk(self) -> None:
        """64 tasks that each wait for the disk; nobody reads."""
        count = self.size.synced
        with directory(self.root) as path:
            told = alone(Role("ours.py", "publish", home=str(path), count=count, tasks=TASKS, ack="disk")).told
        self.found.add(DISK, "ours", rate(count, told["begun"], told["ended"]))
        self.found.add(GROUP, "ours", count / max(1, told["syncs"]))

    def raw_disk(self, side: str, role: str, **more: Any) -> None:
        """Lines that are synced in groups of 64; nobody reads."""
        count, line_bytes = self.size.synced, self.line_bytes()
        with directory(self.root) as path:
            told = alone(Role("raw.py", role, path=str(path / "log"), count=count, line_bytes=line_bytes, **more)).told
        self.found.add(DISK, side, rate(count, told["begun"], told["ended"]))

    def sqlite(self) -> None:
        """A row a commit."""
        count, line_bytes = self.size.rows, self.line_bytes()
        with directory(self.root) as path:
            file = str(path / "log.db")
            database(file).close()
            reader = Role("raw.py", "select", path=file, count=count)
            read, wrote = pair(reader, Role("raw.py", "insert", path=file, count=count, line_bytes=line_bytes))
        self._add(ROWS, SQLITE, count, read, wrote, False)

    def channels(self, channel_count: int) -> None:
        """The same messages over so many channels, always read through a glob."""
        self.ours(MANY, channel_side(channel_count), self.size.messages, patterns=("load-*",), channel_count=channel_count,
                  memory=MEMORY)

    # ------------------------------------------------------------------------------------------ turns

    def turns(self) -> list[Turn]:
        """All figures."""
        count, rows = self.size.messages, self.size.rows
        one = (lambda: self.ours(ONE, "ours", count, costly=True), lambda: self.raw(ONE, count, costly=True))
        grouped = (lambda: self.ours(GROUPED, "ours", count, tasks=TASKS, costly=True),
                   lambda: self.raw(GROUPED, count, batch=TASKS, costly=True))
        disk = (self.ours_disk, lambda: self.raw_disk(RAW, "tasks", tasks=TASKS),
                lambda: self.raw_disk(BARE, "write", batch=TASKS, sync=True))
        return [
            self._turn("one", *one), self._turn("tasks", *grouped),
            self._turn("sqlite", self.sqlite, lambda: self.ours(ROWS, "ours", rows)),
            self._turn("eight", lambda: self.eight("ours", count), lambda: self.eight(RAW, count)),
            *(self._latency(hz) for hz in (SLOW_HZ, FAST_HZ)), self._turn("disk", *disk),
            self._turn("channels", *[_with(self.channels, channels) for channels in CHANNELS]),
            *(self._large(payload, count) for payload, count in zip(PAYLOADS, self.size.large, strict=True)),
        ]

    def _turn(self, name: str, *sides: Callable[[], None]) -> Turn:
        return Turn(f"files.{name}", sides, self.size.rounds)

    def _latency(self, hz: int) -> Turn:
        count, figure = int(hz * self.size.paced_s), LATENCY.replace("{hz:,}", f"{hz:,}")
        return self._turn(f"latency-{hz}", lambda: self.ours(figure, "ours", count, rate=hz),
                          lambda: self.raw(figure, count, rate=hz))

    def _large(self, payload: int, count: int) -> Turn:
        figure = LARGE.format(size=PAYLOADS[payload])
        return self._turn(f"payload-{payload}", lambda: self.ours(figure, "ours", count, payload_bytes=payload),
                          lambda: self.raw(figure, count, payload))

    # ------------------------------------------------------------------------------------------ the section

    def part(self) -> Part:
        """Everything that was measured."""
        figures = [name for name in self.found.samples if name.startswith("files: ")]
        compared = [name for name in figures if self.found.values(name, channel_side(CHANNELS[0]))]
        pairs = [*beside(self.found, [name for name in figures if name not in compared]), *among_channels(compared)]
        measured = self._line_bytes.get(PAYLOAD_BYTES)
        return Part("files", "Files", TEXT + (LINE.format(measured) if measured else ""), pairs)


ROLES = ("publisher", "subscriber")
TEXT = """Ours: publish awaited → file → inotify → checksum, decode, intent, handler, settled, in a durable subscription of
another process. Raw: `os.write` of lines of as many bytes → inotify → split. Raw with the disk: 64 asyncio tasks that append
a ready line and share one write and one `fdatasync` in a thread."""
LINE = " {} bytes a line with a payload of 256."


def _with(call: Callable[[int], None], value: int) -> Callable[[], None]:
    return lambda: call(value)

