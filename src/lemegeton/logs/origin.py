"""Origins: who may append.  One sender's log on one site, held by `flock`, never by pid or clock.

::

    origins/{encoded name}~{site}~{n}.lock      two slots of 128 bytes, the valid one with the higher version counts
    5f3b9c01 17 <boot id> 4 3\\n                 crc, version, boot of the last new incarnation, incarnation, floor

An *incarnation* is drawn whenever a lane cannot be continued: a reader that has settled 50 records of a lane must never
see a second record 7 in it.  The counter is on disk, synced, before the first record of the incarnation is written,
so a power cut cannot take back a number that readers may have seen.  Lanes at or below the *floor* are of an earlier
boot: what their tail held may be gone, so they are never continued.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from lemegeton.channels import encode_name
from lemegeton.checksum import crc32
from lemegeton.errors import LogError
from lemegeton.home import OWN_FILE, Home, check_file, store, sync_directory
from lemegeton.seams import Fs, Runtime

ORIGINS_MAX = 10_000
_SLOT = 128
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_NONE_CONTINUABLE = 2**62


@dataclass(frozen=True, slots=True)
class _State:
    version: int
    boot_id: str
    inc: int
    floor: int


class Origin:
    """A held origin; `release` lets it go, and so does the end of the process."""

    def __init__(self, runtime: Runtime, home: Home, name: str, fd: int, state: _State | None) -> None:
        self._fs = runtime.fs
        self._fd = fd
        self._boot_id = runtime.boot_id
        self._directory = home.origins
        self._version = state.version if state else 0
        self._inc = state.inc if state else 0
        self.name = name
        if state is None:
            self._floor = _NONE_CONTINUABLE
        else:
            self._floor = state.floor if state.boot_id == runtime.boot_id else state.inc

    def continuable(self, inc: int) -> bool:
        """True if a lane of this incarnation was written in this boot, so that its end can be trusted."""
        return inc > self._floor

    def fresh(self, above: int = 0) -> int:
        """A new incarnation, above every one of this origin and above ``above``; on disk when this returns."""
        inc = max(self._inc, above) + 1
        floor = min(self._floor, inc - 1)
        version = self._version + 1
        text = f"{version} {self._boot_id} {inc} {floor}".encode()
        line = (b"%08x %b\n" % (crc32(text), text)).ljust(_SLOT)
        store(self._fs, self._fd, line, version % 2 * _SLOT)
        self._fs.fsync(self._fd)
        # Every time: whoever made the file may have died, or met an error, before its name was on disk.
        sync_directory(self._fs, self._directory)
        self._inc, self._floor, self._version = inc, floor, version
        return inc

    def release(self) -> None:
        """Let somebody else take it over."""
        self._fs.close(self._fd)


def site_of(origin: str) -> str:
    """The site an origin belongs to; an encoded name holds no tilde."""
    return origin.split("~")[1] if "~" in origin else ""


def take_origin(runtime: Runtime, home: Home, name: str, *, first_only: bool = False) -> Origin | None:
    """The first free origin of a name on this site; None if it is only to be the first and that is held.

    One whose lock file is damaged is passed over: its incarnations are not known.
    """
    for n in range(1 if first_only else ORIGINS_MAX):
        origin = try_origin(runtime, home, f"{encode_name(name)}~{home.site}~{n}")
        if origin is not None:
            return origin
    if first_only:
        return None
    raise LogError(f"origin {name}: all {ORIGINS_MAX} are held by live processes; use other names")


def try_origin(runtime: Runtime, home: Home, origin: str) -> Origin | None:
    """Take this origin if nobody holds it and its lock file can be trusted."""
    fs = runtime.fs
    path = f"{home.origins}/{origin}.lock"
    fd = fs.open(path, OWN_FILE, 0o600)
    try:
        check_file(fs, fd, path, runtime.uid)
        if fs.lock(fd):
            state = _read_state(fs, fd)
            if state is not None or fs.fstat(fd).st_size == 0:
                return Origin(runtime, home, origin, fd, state)
    except BaseException:
        fs.close(fd)
        raise
    fs.close(fd)
    return None


def of_this_boot(runtime: Runtime, home: Home, origin: str, inc: int) -> bool:
    """True if this incarnation is known to have begun since the machine was started; asked without holding the origin."""
    fs = runtime.fs
    path = f"{home.origins}/{origin}.lock"
    try:
        fd = fs.open(path, _READ)
    except FileNotFoundError:
        return False
    try:
        check_file(fs, fd, path, runtime.uid)
        state = _read_state(fs, fd)
    finally:
        fs.close(fd)
    return state is not None and state.boot_id == runtime.boot_id and state.floor < inc <= state.inc


def _read_state(fs: Fs, fd: int) -> _State | None:
    data = fs.pread(fd, 2 * _SLOT, 0)
    found = [state for slot in (data[:_SLOT], data[_SLOT:]) if (state := _parse(slot)) is not None]
    return max(found, key=lambda state: state.version, default=None)


def _parse(slot: bytes) -> _State | None:
    checksum, _, text = slot.rstrip().partition(b" ")
    if checksum != b"%08x" % crc32(text):
        return None
    version, boot_id, inc, floor = text.decode().split(" ")
    return _State(int(version), boot_id, int(inc), int(floor))
