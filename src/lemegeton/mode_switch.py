"""The switch by hand: one file ``mode`` in the home, which every manager of the site looks at.

::

    {"mode": "isolated", "reason": "moving the server", "until": 1700000000000}     until: Unix ms, or null

``mode`` may also be ``auto``, which is what a missing file means; it is written so that its reason is told.  The file
is replaced by a rename, so nobody ever reads half of one, and anything that is not one is passed over with an event.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import msgspec

from lemegeton.errors import HomeRefused, InvalidSetting
from lemegeton.events import ModeSwitchIgnored, Observer
from lemegeton.home import check_directory, check_file, replace_file
from lemegeton.mode_rules import CoordinationMode, Manual
from lemegeton.seams import Fs, Runtime

FILE = "mode"
AUTO: Literal["auto"] = "auto"
REASON_MAX = 200
BYTES_MAX = 4096
FOR_MAX_S = 10 * 365 * 86_400.0
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
Wanted = CoordinationMode | Literal["auto"]


class _File(msgspec.Struct, frozen=True, kw_only=True):
    mode: Literal["distributed", "degraded", "isolated", "auto"]
    reason: str = ""
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """Where the switch stands: at ``manual``, or at auto if that is None; ``reason`` is that of whoever moved it."""

    manual: Manual | None
    reason: str = ""


def set_mode(
    runtime: Runtime, home: str, mode: Wanted, reason: str = "", for_s: float | None = None
) -> Manual | None:
    """Move the switch of a home; every manager of the site follows within a second.

    ``for_s`` ends it by itself after so many seconds.  Once this returns the file is in place and survives SIGKILL;
    when it raises (`InvalidSetting`, `HomeRefused`, ``OSError``) the switch stands where it stood."""
    _check(mode, reason, for_s)
    until = None if for_s is None else runtime.wall_ms() + math.ceil(for_s * 1000)
    manual = Manual(mode, reason, until) if isinstance(mode, CoordinationMode) else None
    file = _File(mode=AUTO if manual is None else manual.mode.value, reason=reason, until=until)
    check_directory(runtime.fs, home, runtime.uid)
    replace_file(runtime.fs, f"{home}/{FILE}", msgspec.json.encode(file) + b"\n", runtime.token(8))
    return manual


def _check(mode: Wanted, reason: str, for_s: float | None) -> None:
    if mode != AUTO and not isinstance(mode, CoordinationMode):
        raise InvalidSetting(f"mode {mode!r:.40}: must be a CoordinationMode or {AUTO!r}")
    if len(reason) > REASON_MAX or not reason.isprintable():
        raise InvalidSetting(f"reason {reason!r:.80}: must be at most {REASON_MAX} characters in one line")
    if for_s is not None and (mode == AUTO or not 0 < for_s <= FOR_MAX_S):
        raise InvalidSetting(f"for {for_s!r:.40}: must be seconds above 0 and at most ten years, and {AUTO} has no end")


def read_switch(fs: Fs, home: str, uid: int, now_ms: int) -> Position:
    """Where the switch stands now; `InvalidSetting` or `HomeRefused` if the file is there and says nothing."""
    path = f"{home}/{FILE}"
    try:
        fd = fs.open(path, _READ)
    except FileNotFoundError:
        return Position(None)
    except OSError as error:
        raise HomeRefused(f"{path}: {error.strerror}; move it away") from None
    try:
        check_file(fs, fd, path, uid)
        return _parsed(path, fs.pread(fd, BYTES_MAX + 1, 0), now_ms)
    finally:
        fs.close(fd)


def _parsed(path: str, data: bytes, now_ms: int) -> Position:
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidSetting(f"{path}: {error}; write it with lemegeton mode set") from None
    reason = file.reason[:REASON_MAX]
    if file.mode == AUTO:
        return Position(None, reason)
    if file.until is not None and file.until <= now_ms:
        return Position(None, "its time is over")
    return Position(Manual(CoordinationMode(file.mode), reason, file.until), reason)


class Switch:
    """The switch of one home as one process sees it: looking costs one `lstat` while nobody moves it."""

    def __init__(self, fs: Fs, home: str, uid: int, wall_ms: Callable[[], int], observe: Observer) -> None:
        self._fs = fs
        self._home = home
        self._uid = uid
        self._wall_ms = wall_ms
        self._observe = observe
        self._seen: tuple[int, int, float] | None = None
        self._position = Position(None)

    def look(self) -> Position:
        """Where it stands now.  A file that says nothing is told of once, and means auto."""
        seen = self._identity()
        if seen != self._seen:
            self._seen = seen
            self._position = self._read()
        manual = self._position.manual
        if manual is not None and manual.until_ms is not None and manual.until_ms <= self._wall_ms():
            self._position = Position(None, "its time is over")
        return self._position

    def _identity(self) -> tuple[int, int, float] | None:
        with suppress(OSError):
            state = self._fs.lstat(f"{self._home}/{FILE}")
            return state.st_ino, state.st_size, state.st_mtime
        return None

    def _read(self) -> Position:
        try:
            return read_switch(self._fs, self._home, self._uid, self._wall_ms())
        except (OSError, InvalidSetting) as error:
            self._observe(ModeSwitchIgnored(str(error)))
            return Position(None)
