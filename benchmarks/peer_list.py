"""The peers: what each is called, what it needs, and what has to be known about its figures."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from typing import Any

from redis_figures import redis_server

REDIS = "a Redis"


@dataclass(frozen=True, slots=True)
class Peer:
    """One row: what people call it, the roles it has, and what must be here for it."""

    name: str
    package: str
    writer: str
    reader: str
    server: str = ""
    note: str = ""
    after: bool = False
    """Its reader begins when its writer has ended; the rate counts the time of both."""
    paced: bool = True
    """Its latency is measured: it takes one message at a time, while its reader reads."""
    files: bool = False
    """It lives on files, as ours does on one site."""

    def lacks(self) -> str:
        """What is not here; empty if all is."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"the package {self.package}"
        here = redis_server() is not None if self.server == REDIS else not self.server or program(self.server) is not None
        return "" if here else self.server


def program(name: str) -> str | None:
    """The path of a server; Debian puts some where only root looks."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def _files(name: str, package: str, role: str, note: str, **more: Any) -> Peer:
    return Peer(name, package, f"{role}_publish", f"{more.pop('reader', role)}_subscribe", "", note, files=True, **more)


def _server(name: str, package: str, role: str, server: str, note: str, **more: Any) -> Peer:
    return Peer(name, package, f"{role}_publish", f"{more.pop('reader', role)}_subscribe", server, note, **more)


KOMBU_FILES, DIRQ, LITEQUEUE, JETSTREAM, OUTSTANDING = (
    "Kombu, filesystem", "dirq", "litequeue", "JetStream", "JetStream, 256 outstanding")
"""Those with a bar: they promise as much, and are waited for as ours is."""
PEERS = (
    _files("SQLite, a row a commit", "", "sqlite_row", "WAL, NORMAL", reader="sqlite"),
    _files("SQLite, 64 rows a commit", "", "sqlite", "WAL, NORMAL", paced=False),
    _files(KOMBU_FILES, "kombu", "kombu", "reader after writer: beside it, it reads half-written files and fails",
           after=True, paced=False),
    _files(DIRQ, "dirq", "dirq", "a file a message"),
    _files(LITEQUEUE, "litequeue", "litequeue", "SQLite, NORMAL, done after the handler"),
    _files("persist-queue", "persistqueue", "persist_queue", "SQLite, acknowledged, each commit waits for the disk"),
    _files("huey", "huey", "huey", "SQLite, a task a message, each commit waits for the disk"),
    _server("NATS core", "nats", "nats", "nats-server", "nothing is kept, nothing awaited"),
    _server(JETSTREAM, "nats", "jetstream", "nats-server", "on files, each awaited"),
    _server(OUTSTANDING, "nats", "jetstream_outstanding", "nats-server", "on files", reader="jetstream", paced=False),
    _server("MQTT, QoS 1", "aiomqtt", "mqtt", "mosquitto", "session kept in memory, each awaited"),
    _server("redis-py, PUBLISH", "redis", "pubsub", REDIS, "nothing is kept, each awaited"),
    _server("redis-py, XADD + XREAD", "redis", "stream", REDIS, "each awaited"),
    _server("redis-py, XADD in pipelines of 64", "redis", "pipeline", REDIS, "read with XREAD", reader="stream", paced=False),
    _server("FastStream, pub/sub", "faststream", "faststream", REDIS, "nothing is kept, each awaited"),
    _server("Kombu, Redis", "kombu", "kombu", REDIS, "acknowledged"),
    _server("taskiq, Redis streams", "taskiq_redis", "taskiq", REDIS, "acknowledged, a task a message"),
    _server("ZeroMQ over ipc", "zmq", "zeromq", "", "no broker, nothing is kept"),
)
