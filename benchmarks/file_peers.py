"""Peers on files: the same payload from one process to a handler in another, as their own documentation says.

Each is as durable as it is by itself: every one of them survives a kill of its processes.  persist-queue and huey leave
SQLite's ``synchronous`` as it is, so that each of their commits waits for the disk; the others wait for no disk.
Where a peer has nothing to wait on, its reader asks again after `POLL_S`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Handled, Work, leave, payload, ready, spec, tell, wait_until
from raw import database

POLL_S = 0.0005
BATCH = 64
QUEUE = "load-0"
LOCKED_S = 60.0
"""How long huey waits for the other process: its own 5 s are too short on a machine that has much to do."""


def timed(publish: Callable[[], Any], work: Work) -> None:
    """Publish one after the other."""
    ready()
    begun = time.perf_counter_ns()
    for n in range(work.count):
        if work.hz:
            wait_until(begun + int(n * 1e9 / work.hz))
        publish()
    tell(begun=begun, ended=time.perf_counter_ns())


def polled(take: Callable[[Handled], bool], handler: Handled) -> None:
    """Call the handler with what there is until there was all."""
    ready()
    while not handler.done:
        if not take(handler):
            time.sleep(POLL_S)
    handler.tell()


# ── SQLite, a row a commit, 64 rows a commit ─────────────────────────────────────────────────────────────────────────


def sqlite_row_publish(path: str, work: Work) -> None:
    """By hand: WAL, ``synchronous=NORMAL``."""
    db = database(f"{path}/log.db")
    timed(lambda: db.execute("INSERT INTO messages (line) VALUES (?)", (json.dumps(payload()).encode(),)), work)


def sqlite_publish(path: str, work: Work) -> None:
    """The same in transactions."""
    db = database(f"{path}/log.db")
    ready()
    begun = time.perf_counter_ns()
    for at in range(0, work.count, BATCH):
        rows = [(json.dumps(payload()).encode(),) for _ in range(min(BATCH, work.count - at))]
        with db:
            db.execute("BEGIN")
            db.executemany("INSERT INTO messages (line) VALUES (?)", rows)
    tell(begun=begun, ended=time.perf_counter_ns())


def sqlite_subscribe(path: str, work: Work) -> None:
    """Rows behind the last one."""
    db, last = database(f"{path}/log.db"), 0

    def take(handler: Handled) -> bool:
        nonlocal last
        rows = db.execute("SELECT id, line FROM messages WHERE id > ? ORDER BY id LIMIT 1000", (last,)).fetchall()
        for _, line in rows:
            handler(json.loads(line))
        last = rows[-1][0] if rows else last
        return bool(rows)

    polled(take, Handled(work))


# ── Kombu ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _kombu(path: str) -> tuple[Any, Any]:
    from kombu import Connection, Exchange, Queue

    connection = Connection("filesystem://", transport_options={
        "data_folder_in": path, "data_folder_out": path, "control_folder": f"{path}/control", "polling_interval": POLL_S})
    return connection, Queue(QUEUE, Exchange(QUEUE, "direct"), QUEUE)


def kombu_publish(path: str, work: Work) -> None:
    """Its producer."""
    connection, queue = _kombu(path)
    producer = connection.Producer()
    timed(lambda: producer.publish(payload(), exchange=queue.exchange, routing_key=QUEUE, declare=[queue]), work)


def kombu_subscribe(path: str, work: Work) -> None:
    """Its consumer, each message acknowledged."""
    connection, queue = _kombu(path)
    handler = Handled(work)

    def handle(body: dict[str, str], message: Any) -> None:
        handler(body)
        message.ack()

    with connection.Consumer(queue, callbacks=[handle]):
        ready()
        while not handler.done:
            connection.drain_events()
    handler.tell()


# ── dirq, persist-queue, litequeue, huey ─────────────────────────────────────────────────────────────────────────────


def dirq_publish(path: str, work: Work) -> None:
    """A file a message."""
    from dirq.QueueSimple import QueueSimple

    queue = QueueSimple(f"{path}/dirq")
    timed(lambda: queue.add(json.dumps(payload())), work)


def dirq_subscribe(path: str, work: Work) -> None:
    """Lock, get, remove."""
    from dirq.QueueSimple import QueueSimple

    queue = QueueSimple(f"{path}/dirq")

    def take(handler: Handled) -> bool:
        name, took = queue.first(), False
        while name:
            if queue.lock(name):
                handler(json.loads(queue.get(name)))
                queue.remove(name)
                took = True
            name = queue.next()
        return took

    polled(take, Handled(work))


def _persist_queue(path: str) -> Any:
    from persistqueue import SQLiteAckQueue
    from persistqueue.serializers import json as serializer

    return SQLiteAckQueue(path, multithreading=True, auto_commit=True, serializer=serializer)


def persist_queue_publish(path: str, work: Work) -> None:
    """Its queue on SQLite."""
    queue = _persist_queue(path)
    timed(lambda: queue.put(payload()), work)


def persist_queue_subscribe(path: str, work: Work) -> None:
    """Its queue with acknowledgements."""
    from persistqueue import Empty

    queue = _persist_queue(path)

    def take(handler: Handled) -> bool:
        try:
            message = queue.get(block=False)
        except Empty:
            return False
        handler(message)
        queue.ack(message)
        return True

    polled(take, Handled(work))


def litequeue_publish(path: str, work: Work) -> None:
    """A row a message."""
    from litequeue import LiteQueue

    queue = LiteQueue(f"{path}/queue.db")
    timed(lambda: queue.put(json.dumps(payload())), work)


def litequeue_subscribe(path: str, work: Work) -> None:
    """Pop, then done."""
    from litequeue import LiteQueue

    queue = LiteQueue(f"{path}/queue.db")

    def take(handler: Handled) -> bool:
        message = queue.pop()
        if message is None:
            return False
        handler(json.loads(message.data))
        queue.done(message.message_id)
        return True

    polled(take, Handled(work))


def _huey(path: str, handler: Handled) -> tuple[Any, Any]:
    from huey import SqliteHuey

    huey = SqliteHuey(filename=f"{path}/huey.db", results=False, timeout=LOCKED_S)
    return huey, huey.task(name="handle")(handler.__call__)


def huey_publish(path: str, work: Work) -> None:
    """A task a message."""
    _, task = _huey(path, Handled(work))
    timed(lambda: task(payload()), work)


def huey_subscribe(path: str, work: Work) -> None:
    """What its worker does, without waiting between two tasks."""
    called = Handled(work)
    huey, _ = _huey(path, called)

    def take(_: Handled) -> bool:
        task = huey.dequeue()
        if task is not None:
            huey.execute(task)
        return task is not None

    polled(take, called)


ROLES: dict[str, Callable[[str, Work], None]] = {
    name: role for name, role in list(globals().items()) if name.endswith(("_publish", "_subscribe"))}

if __name__ == "__main__":
    given = spec()
    Path(given["path"]).mkdir(exist_ok=True)
    ROLES[given["role"]](given["path"], Work(given["count"], given["hz"]))
    leave()
