"""The home: one directory on one kernel that holds everything, and the rules that keep it private.

Directories are 0700 and files 0600, all owned by the user of the process; a symbolic link, a FIFO or a file of
somebody else inside is refused.  The site id names the home in every record; it is bound to machine, device and inode,
so that a copied home gets a new one: two sites with one id would skip each other's messages.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import dataclass

from lemegeton.checksum import crc32
from lemegeton.errors import HomeRefused
from lemegeton.seams import Fs, Runtime, Stat

DIRECTORY = ".lemegeton"
_DIRS = ("messages", "origins", "cursors")
_SITE_FILE = "site"
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
OWN_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""How a small file of ours is opened that is there or is made, such as a lock or a checkpoint."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
NETWORK_FS = frozenset(("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "ceph", "afs", "glusterfs", "lustre"))


@dataclass(frozen=True, slots=True)
class Home:
    """An opened home: its directory and the site id."""

    path: str
    site: str

    @property
    def messages(self) -> str:
        """The directory of channels."""
        return f"{self.path}/messages"

    @property
    def origins(self) -> str:
        """The directory of origin locks."""
        return f"{self.path}/origins"

    @property
    def cursors(self) -> str:
        """The directory of checkpoints."""
        return f"{self.path}/cursors"


def find_home(fs: Fs, start: str, uid: int) -> str:
    """The nearest ``.lemegeton`` of this user at or above ``start``, as git looks for ``.git``; else one in ``start``.

    A ``.lemegeton`` of another owner is passed over: it is somebody else's bus.
    """
    directory = start
    while True:
        candidate = os.path.join(directory, DIRECTORY)
        with suppress(OSError):
            if is_own_directory(fs, candidate, uid):
                return candidate
        parent = os.path.dirname(directory)
        if parent == directory:
            return os.path.join(start, DIRECTORY)
        directory = parent


async def open_home(runtime: Runtime, path: str, *, create: bool = True) -> Home:
    """Open the home at ``path``, made with all its directories if it is missing and ``create`` allows it.

    `HomeRefused` says in one line what is wrong and how to mend it.
    """
    fs = runtime.fs
    try:
        made = create and _make_private(fs, path)
        check_directory(fs, path, runtime.uid)
        for name in _DIRS if create else ():
            _make_private(fs, f"{path}/{name}")
            check_directory(fs, f"{path}/{name}", runtime.uid)
        if made:
            write_new(fs, f"{path}/.gitignore", b"*\n")
        return Home(path, await _site_id(runtime, path, create))
    except HomeRefused:
        raise
    except OSError as error:
        raise refused(path, error) from error


def refused(path: str, error: OSError) -> HomeRefused:
    """What the system did not allow in the home at ``path``, and what to do about it."""
    return HomeRefused(f"home {path}: {error.filename or path}: {error.strerror}; {_advice(error)}")


def _advice(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "give this user write permission, or choose another home with --home or LEMEGETON_HOME"
    if isinstance(error, FileNotFoundError):
        return "make it first with any command that publishes or subscribes, or choose another with --home"
    if isinstance(error, NotADirectoryError):
        return "a file is in the way; move it, or choose another home with --home or LEMEGETON_HOME"
    return "mend that, or choose another home with --home or LEMEGETON_HOME"


def _make_private(fs: Fs, path: str) -> bool:
    """Make a directory of mode 0700 with its parents; false if it is there already."""
    try:
        fs.mkdir(path, 0o700)
    except FileExistsError:
        return False
    except FileNotFoundError:
        parent = os.path.dirname(path)
        if _make_private(fs, parent):
            sync_directory(fs, os.path.dirname(parent))
        try:
            fs.mkdir(path, 0o700)
        except FileExistsError:  # another process was as fast
            return False
    return True


def check_directory(fs: Fs, path: str, uid: int) -> None:
    """Refuse anything but a directory of our own that nobody else can write to."""
    found = fs.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        raise HomeRefused(f"home: {path} is a symbolic link; give the directory it points to instead")
    if not stat.S_ISDIR(found.st_mode):
        raise HomeRefused(f"home: {path} is a file where a directory should be; move it, or choose another home")
    if found.st_uid != uid:
        raise HomeRefused(f"home: {path} is owned by user {found.st_uid}, this process is user {uid}; "
                          "choose another home with --home or LEMEGETON_HOME")
    if found.st_mode & 0o022:
        raise HomeRefused(f"home: {path} can be written by others (mode {stat.S_IMODE(found.st_mode):04o}); "
                          f"run: chmod 700 {path}")


def is_own_directory(fs: Fs, path: str, uid: int) -> bool:
    """True for a directory of this user; a symbolic link to one is none, for what it leads to is not in the home."""
    found = fs.lstat(path)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid


def whereabouts(fs: Fs, path: str) -> tuple[int, int] | None:
    """What tells a directory from every other that may come to its place: device and inode; None if there is none."""
    try:
        found = fs.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def check_file(fs: Fs, fd: int, path: str, uid: int) -> None:
    """Refuse an open file that is not a regular one of our own with a single name."""
    _check_regular(fs.fstat(fd), path, uid)


def check_own(fs: Fs, path: str, uid: int) -> None:
    """`check_file` before a file is opened; one that is not there may be made."""
    with suppress(FileNotFoundError):
        _check_regular(fs.lstat(path), path, uid)


def _check_regular(found: Stat, path: str, uid: int) -> None:
    if not stat.S_ISREG(found.st_mode) or found.st_uid != uid or found.st_nlink > 1:
        raise HomeRefused(f"home: {path} is not a regular file of this user with one name; move it away")


def read_file(fs: Fs, path: str, uid: int, bytes_max: int | None = None) -> bytes:
    """All of a file of ours, or no more than its first ``bytes_max`` bytes."""
    fd = fs.open(path, _READ)
    try:
        check_file(fs, fd, path, uid)
        return fs.pread(fd, fs.fstat(fd).st_size if bytes_max is None else bytes_max, 0)
    finally:
        fs.close(fd)


def store(fs: Fs, fd: int, data: bytes, offset: int) -> None:
    """Write all of it in one call; a short write is the ``OSError`` of a full disk, never half a success."""
    if fs.pwrite(fd, data, offset) != len(data):
        raise OSError(errno.ENOSPC, f"short write: {os.strerror(errno.ENOSPC)}")


def write_new(fs: Fs, path: str, data: bytes) -> bool:
    """Write a small new file; false if the name is taken."""
    try:
        fd = fs.open(path, _NEW, 0o600)
    except FileExistsError:
        return False
    try:
        fs.write(fd, data)
    finally:
        fs.close(fd)
    return True


def replace_file(fs: Fs, path: str, data: bytes, token: str) -> None:
    """Write a small file of mode 0600 in place of what has this name; nobody ever reads half of it.

    Survives SIGKILL; when it raises, what was there is still there.  ``token`` must be new."""
    temporary = f"{os.path.dirname(path)}/.{os.path.basename(path)}.{token}"
    fd = fs.open(temporary, _NEW, 0o600)
    try:
        store(fs, fd, data, 0)
        fs.rename(temporary, path)
    except OSError:
        with suppress(OSError):
            fs.unlink(temporary)
        raise
    finally:
        fs.close(fd)


async def _site_id(runtime: Runtime, path: str, create: bool) -> str:
    """The id in the file ``site``, or a new one if that file is missing, damaged or belongs to another place."""
    fs = runtime.fs
    here = fs.lstat(path)
    bound = hashlib.sha256(f"{runtime.machine_id} {here.st_dev} {here.st_ino}".encode()).hexdigest()[:16]
    file = f"{path}/{_SITE_FILE}"
    for _ in range(SITE_TRIES):
        known = _read_site(runtime, file, bound)
        if known is not None or not create:
            return known or "0" * 12
        if _write_site(runtime, file, f"{runtime.token(6)} {bound}".encode(), bound):
            continue
        await asyncio.sleep(SITE_WAIT_S)
    raise HomeRefused(f"home: {file} is locked by a process that does not go on; end it, or choose another home")


SITE_TRIES = 1000
SITE_WAIT_S = 0.005


def _write_site(runtime: Runtime, file: str, text: bytes, bound: str) -> bool:
    """Write the id under the lock of its file, unless somebody did; false while another process holds the lock."""
    fs = runtime.fs
    fd = fs.open(file, OWN_FILE, 0o600)
    try:
        if not fs.lock(fd):
            return False
        if _read_site(runtime, file, bound) is None:
            # A record that survives a power cut needs every directory above it to survive as well: they are synced
            # before the id is there, so a home with an id is a home on disk.
            home = os.path.dirname(file)
            sync_directory(fs, home)
            with suppress(PermissionError):  # whoever may not read it had to find the home in it
                sync_directory(fs, os.path.dirname(home))
            store(fs, fd, b"%08x %b\n" % (crc32(text), text), 0)
            fs.fsync(fd)
        return True
    finally:
        fs.close(fd)


def sync_directory(fs: Fs, path: str) -> None:
    """Put the names in a directory on disk."""
    fd = fs.open(path or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fs.fsync(fd)
    finally:
        fs.close(fd)


def _read_site(runtime: Runtime, path: str, bound: str) -> str | None:
    """The id in the first line; what a damaged file holds behind it does not matter."""
    fs = runtime.fs
    try:
        fd = fs.open(path, _READ)
    except FileNotFoundError:
        return None
    try:
        check_file(fs, fd, path, runtime.uid)
        parts = fs.pread(fd, 256, 0).partition(b"\n")[0].split()
    finally:
        fs.close(fd)
    if len(parts) != 3 or parts[2] != bound.encode() or b"%08x" % crc32(b" ".join(parts[1:])) != parts[0]:
        return None
    return parts[1].decode("ascii", "replace")


def network_fs(mountinfo: str, device: int) -> str | None:
    """The type of the file system with this device number, if it is one that crosses a network.

    Its `flock` and its view of what others wrote are not those of one kernel, on which every rule here rests.
    """
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) > 2 and kind and fields[2] == wanted:
            return kind[0] if kind[0] in NETWORK_FS or kind[0].startswith("fuse.") else None
    return None
