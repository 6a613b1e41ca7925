"""What several test files share: the servers that are found on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lemegeton.testing.servers import Found, RedisServer, servers


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
