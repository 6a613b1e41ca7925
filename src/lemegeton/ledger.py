"""The ledger: every assignment from its first attempt to its outcome, in a journal that survives the hub.

The state is pure: a `Ledger` takes an entry in its new form and keeps its indexes; the functions beside it make the new
form from the old, or None where what was said does not count any more.

::

               assigned                          completed
    queued ────────────────► assigned ─────────────────────────► completed
      ▲                         │  └─ failed, recoverable ─┐
      │    lost, released       │                          │
      └─────────────────────────┴──────────────────────────┘ ──► failed   (attempts used up, final, expired)

The journal is a file of lines, each written by one call before its transition counts::

    {home}/hub/{name}.journal       crc32 in hex, a space, {"entry":{"id":…, the fields that changed}} or {"agent":…}

A torn last line never counted.  It is written anew, as the state it amounts to, at every start and when it has grown.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import msgspec

from lemegeton.assignment import ANY, RECOVERABLE, TEXT_CHARS_MAX, AgentInfo, Category, Report
from lemegeton.channels import encode_name
from lemegeton.checksum import crc32
from lemegeton.errors import NameTaken
from lemegeton.home import sync_directory
from lemegeton.seams import Fs
from lemegeton.segment import parse_line

OPEN_MAX = 100_000
FINISHED_MAX = 10_000
FINISHED_BYTES_MAX = 16 * 1024 * 1024
"""Of finished assignments so many, with results of so many bytes, are remembered."""
AGENTS_MAX = 10_000
COMPACT_BYTES = 16 * 1024 * 1024
RETRY_S = 1.0
"""A recoverable failure is handed out again after this, doubled with every further one."""
RETRY_MAX_S = 60.0

QUEUED, ASSIGNED, COMPLETED, FAILED = "queued", "assigned", "completed", "failed"


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One assignment.  ``attempt`` is the current one, ``losses`` how many ended in death or failure; times in Unix ms.

    The payload is dropped once it is finished."""

    id: str
    want: str = ANY
    payload: Any = None
    created: int = 0
    deadline: int = 0
    attempts: int = 3
    reply_to: str = ""
    correlation: str = ""
    status: str = QUEUED
    attempt: int = 0
    agent: str = ""
    session: str = ""
    losses: int = 0
    ready: int = 0
    result: Any = None
    category: str = ""
    error: str = ""
    replied: bool = False

    @property
    def open(self) -> bool:
        """True while it is queued or assigned."""
        return self.status in (QUEUED, ASSIGNED)


_change: Callable[..., Entry] = msgspec.structs.replace

# ------------------------------------------------------------------------------------------ transitions


def assigned(entry: Entry, agent: str, session: str) -> Entry:
    """Handed out to a session of an agent: its next attempt."""
    return _change(entry, status=ASSIGNED, attempt=entry.attempt + 1, agent=agent, session=session, ready=0)


def completed(entry: Entry | None, report: Report) -> Entry | None:
    """The first ``complete`` of the current attempt counts, also while it waits for the next one to be handed out."""
    if entry is None or not entry.open or report.attempt != entry.attempt:
        return None
    return _change(entry, status=COMPLETED, result=report.result, payload=None, category="", error="")


def failed(entry: Entry | None, report: Report, now_ms: int) -> Entry | None:
    """A failure of the current attempt: queued again if its category may go away, else the end."""
    if entry is None or entry.status != ASSIGNED or report.attempt != entry.attempt:
        return None
    error = report.error[:TEXT_CHARS_MAX]
    if report.category not in RECOVERABLE:
        return ended(entry, report.category, error)
    delay_s = min(RETRY_MAX_S, RETRY_S * float(2 ** min(entry.losses, 16)))
    return _again(entry, report.category, error, now_ms + int(delay_s * 1000))


def lost(entry: Entry) -> Entry:
    """The session that had it is dead."""
    return _again(entry, Category.LOST, f"agent {entry.agent} was lost during attempt {entry.attempt}", 0)


def released(entry: Entry) -> Entry:
    """The session that had it gave it back; that is nobody's failure."""
    return _change(entry, status=QUEUED, agent="", session="")


def ended(entry: Entry, category: str, error: str) -> Entry:
    """It failed for good."""
    return _change(entry, status=FAILED, category=str(category), error=error, payload=None)


def _again(entry: Entry, category: str, error: str, ready_ms: int) -> Entry:
    losses = entry.losses + 1
    if losses >= entry.attempts:
        return ended(_change(entry, losses=losses), category, f"{error} ({losses} of {entry.attempts} attempts)")
    return _change(entry, status=QUEUED, agent="", session="", losses=losses, ready=ready_ms, category=str(category),
                   error=error)


# ------------------------------------------------------------------------------------------ state


class Ledger:
    """All entries that are open and the last ones that are finished, and every agent that ever registered."""

    def __init__(self, *, finished_max: int = FINISHED_MAX, finished_bytes_max: int = FINISHED_BYTES_MAX) -> None:
        self.entries: dict[str, Entry] = {}
        self.agents: dict[str, AgentInfo] = {}
        self.sessions: dict[str, dict[str, None]] = {}
        """Session to the assignments it has."""
        self.queues: dict[str, dict[str, None]] = {}
        """Wanted agent to what waits for it, in order."""
        self.unreplied: dict[str, None] = {}
        self._delayed: list[tuple[int, str]] = []
        self._deadlines: list[tuple[int, str]] = []
        self._finished: dict[str, int] = {}
        self._finished_bytes = 0
        self._finished_max = finished_max
        self._finished_bytes_max = finished_bytes_max

    @property
    def open(self) -> int:
        """How many assignments have no outcome yet."""
        return len(self.entries) - len(self._finished)

    def put(self, entry: Entry, size: int = 0) -> None:
        """An entry in its new form, which takes ``size`` bytes to remember."""
        old = self.entries.get(entry.id)
        if old is not None:
            self._unlink(old)
        elif entry.deadline:
            heapq.heappush(self._deadlines, (entry.deadline, entry.id))
        self.entries[entry.id] = entry
        if entry.status == ASSIGNED:
            self.sessions.setdefault(entry.session, {})[entry.id] = None
        elif entry.status == QUEUED:
            self._queue(entry)
        else:
            self._finish(entry, size)

    def _unlink(self, old: Entry) -> None:
        for index, key in ((self.sessions, old.session), (self.queues, old.want)):
            ids = index.get(key)
            if ids is not None and ids.pop(old.id, 0) is None and not ids:
                del index[key]

    def _queue(self, entry: Entry) -> None:
        if entry.ready:
            heapq.heappush(self._delayed, (entry.ready, entry.id))
        else:
            self.queues.setdefault(entry.want, {})[entry.id] = None

    def _finish(self, entry: Entry, size: int) -> None:
        self._finished_bytes += size - self._finished.get(entry.id, 0)
        self._finished[entry.id] = size
        if entry.reply_to and not entry.replied:
            self.unreplied[entry.id] = None
        else:
            self.unreplied.pop(entry.id, None)
        while len(self._finished) > self._finished_max or self._finished_bytes > self._finished_bytes_max:
            oldest = next(iter(self._finished))
            self._finished_bytes -= self._finished.pop(oldest)
            self.unreplied.pop(oldest, None)
            del self.entries[oldest]

    def wake(self, now_ms: int) -> bool:
        """Queue what waited for its time; true if there was any."""
        due = list(_due(self._delayed, now_ms))
        for ident in due:
            entry = self.entries.get(ident)
            if entry is not None and entry.status == QUEUED:
                self.queues.setdefault(entry.want, {})[ident] = None
        return bool(due)

    def overdue(self, now_ms: int) -> list[Entry]:
        """Open entries whose deadline has passed; each is told once."""
        found = (self.entries.get(ident) for ident in _due(self._deadlines, now_ms))
        return [entry for entry in found if entry is not None and entry.open]

    def of_session(self, session: str) -> list[Entry]:
        """What is assigned to a session."""
        return [self.entries[ident] for ident in self.sessions.get(session, ())]


def _due(heap: list[tuple[int, str]], now_ms: int) -> Iterator[str]:
    while heap and heap[0][0] <= now_ms:
        yield heapq.heappop(heap)[1]


# ------------------------------------------------------------------------------------------ journal


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line: the changed fields of an entry, or an agent."""

    entry: dict[str, Any] | None = None
    agent: AgentInfo | None = None


_FIELDS = frozenset(Entry.__struct_fields__)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode
_WRITE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1024 * 1024


def patch(old: Entry | None, new: Entry) -> dict[str, Any]:
    """The fields of ``new`` that ``old`` does not have, and the id."""
    if old is None:
        return {name: value for name in Entry.__struct_fields__ if (value := getattr(new, name)) != _DEFAULTS.get(name)}
    changed = {name: value for name in Entry.__struct_fields__ if (value := getattr(new, name)) != getattr(old, name)}
    return {"id": new.id, **changed}


_DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(Entry) if not field.required}


def replay(ledger: Ledger, line: bytes) -> bool:
    """Do again what a line says; false if it is damaged."""
    wire = parse_line(line)
    if wire is None:
        return False
    try:
        said = _decode(wire)
        if said.agent is not None:
            ledger.agents[said.agent.name] = said.agent
        if said.entry is not None:
            fields = {name: value for name, value in said.entry.items() if name in _FIELDS}
            old = ledger.entries.get(fields["id"])
            entry = msgspec.convert(fields, Entry) if old is None else _change(old, **fields)
            ledger.put(entry, len(line))
    except (msgspec.MsgspecError, KeyError, ValueError):
        return False
    return True


class Journal:
    """The journal of one hub, held exclusively (`NameTaken`), and the ledger that it amounts to.

    `commit` returns once the transition survives SIGKILL of everything (not a power cut); if it raises ``OSError``
    nothing changed.  ``damaged`` counts lines that could not be read.
    """

    def __init__(self, fs: Fs, home: str, name: str) -> None:
        self._fs = fs
        self._directory = f"{home}/hub"
        self._path = f"{self._directory}/{encode_name(name)}.journal"
        self.ledger = Ledger()
        self.damaged = 0
        self._torn = False
        self._size = self._base = 0
        self._fd = -1
        with suppress(FileExistsError):
            fs.mkdir(self._directory, 0o700)
        self._lock = fs.open(f"{self._directory}/{encode_name(name)}.lock", _WRITE, 0o600)
        try:
            if not fs.lock(self._lock):
                raise NameTaken(f"hub {name!r}: another live process is this hub; stop that one or use another name")
            for line in lines_of(fs, self._path):
                self.damaged += not replay(self.ledger, line)
            self.compact()
        except BaseException:
            self.close()
            raise

    def commit(self, entry: Entry) -> None:
        """Write an entry in its new form, then put it into the ledger."""
        size = self._append(Line(entry=patch(self.ledger.entries.get(entry.id), entry)))
        self.ledger.put(entry, size)

    def commit_agent(self, agent: AgentInfo) -> None:
        """Write an agent, then put it into the ledger."""
        self._append(Line(agent=agent))
        self.ledger.agents[agent.name] = agent

    def _append(self, line: Line) -> int:
        data = _framed(line)
        # What a failed write left is made a line that is certainly wrong, so that it costs itself and not the next.
        whole = b"#\n" + data if self._torn else data
        written = self._fs.write(self._fd, whole)
        self._torn = written != len(whole)
        self._size += written
        if self._torn:
            raise OSError(f"journal {self._path}: only {written} of {len(whole)} bytes were written")
        return len(data)

    def grown(self) -> bool:
        """True when it should be written anew."""
        return self._size > max(COMPACT_BYTES, 2 * self._base)

    def compact(self) -> None:
        """Write the state into a new file and put that in the place of the old one."""
        new = f"{self._path}.new"
        with suppress(FileNotFoundError):
            self._fs.unlink(new)
        fd = self._fs.open(new, _WRITE | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            size = sum(self._write_all(fd, _framed(line)) for line in self._state())
            self._fs.fsync(fd)
            self._fs.rename(new, self._path)
            sync_directory(self._fs, self._directory)
        except BaseException:
            self._fs.close(fd)
            raise
        if self._fd >= 0:
            self._fs.close(self._fd)
        self._fd, self._torn, self._size, self._base = fd, False, size, size

    def _state(self) -> Iterator[Line]:
        yield from (Line(agent=agent) for agent in list(self.ledger.agents.values())[-AGENTS_MAX:])
        yield from (Line(entry=patch(None, entry)) for entry in self.ledger.entries.values())

    def _write_all(self, fd: int, data: bytes) -> int:
        if (written := self._fs.write(fd, data)) != len(data):
            raise OSError(f"journal {self._path}: only {written} of {len(data)} bytes were written")
        return written

    def close(self) -> None:
        """Let the journal and the name go; a second call does nothing."""
        for fd in (self._fd, self._lock):
            if fd >= 0:
                self._fs.close(fd)
        self._fd = self._lock = -1


def _framed(line: Line) -> bytes:
    wire = _encode(line)
    return b"%08x %b\n" % (crc32(wire), wire)


def lines_of(fs: Fs, path: str) -> Iterator[bytes]:
    """The complete lines of a file; none if there is no file."""
    try:
        fd = fs.open(path, _READ)
    except FileNotFoundError:
        return
    try:
        offset, rest = 0, b""
        while chunk := fs.pread(fd, _CHUNK, offset):
            offset += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
    finally:
        fs.close(fd)
