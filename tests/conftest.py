"""What several test files share: the servers that are found on this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from lemegeton.testing.servers import Found, RedisServer, servers


def pytest_configure() -> None:
    """A shell starts what it puts into the background deaf to Ctrl-C, and every program that a test starts would be."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", params=servers(), ids=lambda found: found.name)
def found(request: pytest.FixtureRequest) -> Found:
    """A server program; what asks for it runs with each of them."""
    program: Found = request.param
    return program


@pytest.fixture(scope="session")
def session_server(found: Found) -> Iterator[RedisServer]:
    """One server for all tests: those that hurt it start their own."""
    with RedisServer(found.binary, tcp=True) as server:
        yield server


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the settings that a machine may have in its environment."""
    for key in [key for key in os.environ if key.startswith("LEMEGETON")]:
        monkeypatch.delenv(key)


@pytest.fixture
def server(session_server: RedisServer) -> RedisServer:
    """A server with nothing in it."""
    session_server.cli("FLUSHALL")
    session_server.cli("SCRIPT", "FLUSH")
    return session_server


@pytest.fixture
def own_server(found: Found) -> Iterator[RedisServer]:
    """A server to hurt."""
    with RedisServer(found.binary, tcp=True) as server:
        yield server
