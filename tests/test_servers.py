"""The servers of the test kit: found, started, hurt and gone without a trace."""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lemegeton.errors import LogError, RedisRefused
from lemegeton.testing.servers import PORTS, Found, RedisServer, free_port, servers, until

ALIVE_AS_LONG = """
import sys, time
from lemegeton.testing.servers import RedisServer
server = RedisServer(sys.argv[1]).start()
print(server.cli("CONFIG", "GET", "dir")[1].decode(), server._process.pid, flush=True)
sys.stdin.read()
"""


def test_every_server_is_found_once() -> None:
    names = [found.name for found in servers()]
    assert len(names) == len(set(names)) > 0
    assert all(found.version >= (6,) for found in servers())


def test_it_answers_on_its_socket_and_its_port(server: RedisServer) -> None:
    assert server.cli("PING") == b"PONG"
    assert server.port != 6379
    assert server.cli("CONFIG", "GET", "port")[1] == str(server.port).encode()
    assert server.running


def test_everything_of_it_is_closed_to_others(found: Found) -> None:
    with RedisServer(found.binary, password="canary") as server:
        assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
        assert stat.S_IMODE((server.directory / "conf").stat().st_mode) == 0o600
        assert stat.S_IMODE(os.stat(server.path).st_mode) == 0o700
        pid = server.cli("INFO", "server").decode().split("process_id:")[1].split()[0]
        assert b"canary" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert not server.directory.exists()


def test_it_comes_back_with_what_it_had_or_with_nothing(own_server: RedisServer) -> None:
    address = own_server.address
    own_server.cli("SET", "a", 1)
    own_server.restart(empty=False)
    assert own_server.cli("GET", "a") == b"1"
    own_server.restart(empty=True)
    assert own_server.cli("GET", "a") is None
    assert own_server.address == address


def test_an_older_state_can_be_brought_back(own_server: RedisServer) -> None:
    own_server.cli("SET", "a", "old")
    dump = own_server.dump()
    own_server.cli("SET", "a", "new")
    own_server.kill()
    own_server.start(dump=dump)
    assert own_server.cli("GET", "a") == b"old"


def test_settings_say_what_it_keeps(found: Found) -> None:
    with RedisServer(found.binary, settings={"appendonly": "yes", "appendfsync": "always"}) as server:
        server.cli("SET", "a", 1)
        server.kill()
        server.start()
        assert server.cli("GET", "a") == b"1"


def test_a_frozen_one_can_be_thawed_and_killed(own_server: RedisServer) -> None:
    own_server.freeze()
    own_server.freeze()
    assert own_server.running
    own_server.thaw()
    assert own_server.cli("PING") == b"PONG"
    own_server.freeze()
    own_server.kill()
    assert not own_server.running


def test_a_replica_follows(own_server: RedisServer, found: Found) -> None:
    with RedisServer(found.binary, tcp=True, replica_of=own_server.address) as replica:
        until(lambda: replica.cli("ROLE")[3] == b"connected", "connected")
        with pytest.raises(RedisRefused, match="READONLY"):
            replica.cli("SET", "a", 1)


def test_a_setting_it_does_not_know_is_told_with_its_log(found: Found) -> None:
    server = RedisServer(found.binary, settings={"no-such": "x"})
    with pytest.raises(LogError, match="no-such"):
        server.start()
    server.close()
    assert not server.directory.exists()


def test_a_killed_parent_leaves_no_server(found: Found, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ALIVE_AS_LONG, found.binary], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)}) as parent:
        assert parent.stdout is not None
        _, pid = parent.stdout.readline().split()
        watch = os.pidfd_open(int(pid))
        parent.send_signal(signal.SIGKILL)
        ended, _, _ = select.select([watch], [], [], 10)
        os.close(watch)
        assert ended


def test_a_free_port_is_none_that_connections_take() -> None:
    assert PORTS[0] <= free_port() < PORTS[1]


def test_what_does_not_come_true_is_told() -> None:
    with pytest.raises(LogError, match="the moon not within"):
        until(lambda: False, "the moon", 0.01)
