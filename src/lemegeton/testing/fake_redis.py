"""A Redis in a simulation: it executes commands one after the other and answers what hiredis gives for RESP2.

`FakeRedisServer` is synchronous and knows no connections but `Session`: whom to push what was published.
`fake_redis_net` puts time, and everything that goes wrong, between it and a process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import Enum
from random import Random

import hiredis

from lemegeton.testing.fake_redis_commands import NotModelled, Reply, integer, wrong_arity
from lemegeton.testing.fake_redis_glob import matches
from lemegeton.testing.fake_redis_scripts import NATIVE
from lemegeton.testing.fake_redis_store import Refusal, Store
from lemegeton.testing.fake_redis_stream import Stream, id_text
from lemegeton.testing.fake_redis_streams import COMMANDS
from lemegeton.testing.fake_runtime import EPOCH_MS

__all__ = ["SILENT", "FakeRedisServer", "Loss", "NotModelled", "Reply", "Session"]

EVERYSEC_S = 2.0
"""What ``appendfsync everysec`` may lose: a write is put off for so long behind a slow one."""
SILENT = object()
"""The answer of commands that answer by what they push."""
Argument = bytes | str | int


class Loss(Enum):
    """What a server still has after a crash."""

    NONE = "everything"
    EMPTY = "nothing"
    EVERYSEC = "all but the last 0 to 2 s"
    SNAPSHOT = "what it last saved"


class Session:
    """A client: ``push`` takes everything that it is sent without asking, and the answers to subscribing."""

    def __init__(self, push: Callable[[Reply], None]) -> None:
        self.push = push
        self.channels: dict[bytes, None] = {}
        self.patterns: dict[bytes, None] = {}

    @property
    def count(self) -> int:
        """How many subscriptions it has."""
        return len(self.channels) + len(self.patterns)


class FakeRedisServer:
    """See the module.

    ``clock`` gives virtual seconds.  Switches, to be set at any time: ``oom`` (its memory is used up), ``readonly`` (it is
    a replica), ``loading`` (it reads its data), ``appendonly`` (it can wait for its disk; an answer to WAITAOF comes at once).
    """

    def __init__(self, clock: Callable[[], float], rng: Random) -> None:
        self._clock = clock
        self.rng = rng
        self.store = Store(clock, EPOCH_MS)
        self.oom = self.readonly = self.loading = self.appendonly = False
        self._known: set[str] = set()
        self._sessions: list[Session] = []
        self._in_script = False
        self.watch: Callable[[list[bytes], bool], None] | None = None
        """Told of every command that is about to be executed, and whether a script does it."""
        self._own = {b"PING": (self._ping, -1), b"PUBLISH": (self._publish, 3), b"SUBSCRIBE": (self._subscribe, -2),
                     b"PSUBSCRIBE": (self._psubscribe, -2), b"UNSUBSCRIBE": (self._unsubscribe, -1),
                     b"PUNSUBSCRIBE": (self._punsubscribe, -1), b"EVAL": (self._eval, -3), b"EVALSHA": (self._evalsha, -3),
                     b"FLUSHALL": (self._flushall, -1), b"WAITAOF": (self._waitaof, 4),
                     b"INFO": (self._info, -1)}

    # ------------------------------------------------------------------------------------------ executing

    def session(self, push: Callable[[Reply], None]) -> Session:
        """A client connects."""
        session = Session(push)
        self._sessions.append(session)
        return session

    def forget(self, session: Session) -> None:
        """A client is gone."""
        if session in self._sessions:
            self._sessions.remove(session)

    def execute(self, *arguments: Argument, session: Session | None = None) -> Reply:
        """Do it and answer; an error is a `hiredis.ReplyError`, and `SILENT` says that the answer was pushed."""
        args = [argument if isinstance(argument, bytes) else str(argument).encode() for argument in arguments]
        try:
            return self._do(args, session)
        except Refusal as refusal:
            return hiredis.ReplyError(str(refusal))
        finally:
            self.store.commit()

    def _do(self, args: list[bytes], session: Session | None) -> Reply:
        name = args[0].upper()
        command = COMMANDS.get(name)
        if command is None and name not in self._own:
            raise NotModelled(f"fake redis: command {args[0]!r:.40}")
        arity = command.arity if command else self._own[name][1]
        if len(args) != arity and (arity >= 0 or len(args) < -arity):
            raise wrong_arity(name.decode().lower())
        self._admit(name, session, writes=command is not None and command.writes,
                    grows=command is not None and command.grows)
        if self.watch is not None:
            self.watch(args, self._in_script)
        if command is not None:
            return command.handler(self.store, args[1:])
        return self._own[name][0](args[1:], session)

    def _admit(self, name: bytes, session: Session | None, *, writes: bool, grows: bool) -> None:
        """Refuse what cannot be done now."""
        if grows and self.oom and not (self._in_script and self.store.changed):
            raise Refusal("OOM command not allowed when used memory > 'maxmemory'.")
        if self.readonly and (writes or name == b"FLUSHALL"):
            raise Refusal("READONLY You can't write against a read only replica.")
        if session is not None and session.count and name not in _WHILE_SUBSCRIBED:
            raise Refusal(f"ERR Can't execute '{name.decode().lower()}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / "
                          "QUIT / RESET are allowed in this context")
        if self.loading and name not in _WHILE_LOADING:
            raise Refusal("LOADING Redis is loading the dataset in memory")

    def _ping(self, args: list[bytes], session: Session | None) -> Reply:
        if len(args) > 1:
            raise wrong_arity("ping")
        if session is not None and session.count:
            return [b"pong", args[0] if args else b""]
        return args[0] if args else b"PONG"

    def _info(self, args: list[bytes], session: Session | None) -> Reply:
        """As much as is asked for: that it never throws anything away."""
        return b"# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n"

    def _flushall(self, args: list[bytes], _: Session | None) -> Reply:
        if any(arg.upper() not in (b"SYNC", b"ASYNC") for arg in args) or len(args) > 1:
            raise Refusal("ERR syntax error")
        self.store.clear()
        return b"OK"

    def _waitaof(self, args: list[bytes], _: Session | None) -> Reply:
        local, replicas, _wait_ms = (integer(arg) for arg in args)
        if replicas or local not in (0, 1):
            raise NotModelled(f"WAITAOF {local} {replicas}")
        if local and not self.appendonly:
            raise Refusal("ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.")
        self.store.sync()
        return [int(self.appendonly), 0]

    # ------------------------------------------------------------------------------------------ publish and subscribe

    def _publish(self, args: list[bytes], _: Session | None) -> Reply:
        channel, data = args
        heard = 0
        for session in self._sessions:
            if channel in session.channels:
                session.push([b"message", channel, data])
                heard += 1
        for session in self._sessions:
            for pattern in session.patterns:
                if matches(pattern, channel):
                    session.push([b"pmessage", pattern, channel, data])
                    heard += 1
        return heard

    def _subscribe(self, args: list[bytes], session: Session | None) -> Reply:
        return _add(session, b"subscribe", args)

    def _psubscribe(self, args: list[bytes], session: Session | None) -> Reply:
        return _add(session, b"psubscribe", args)

    def _unsubscribe(self, args: list[bytes], session: Session | None) -> Reply:
        return _remove(session, b"unsubscribe", args)

    def _punsubscribe(self, args: list[bytes], session: Session | None) -> Reply:
        return _remove(session, b"punsubscribe", args)

    # ------------------------------------------------------------------------------------------ scripts

    def _eval(self, args: list[bytes], session: Session | None) -> Reply:
        sha = hashlib.sha1(args[0], usedforsecurity=False).hexdigest()
        if sha not in NATIVE:
            raise NotModelled(f"fake redis: no function in fake_redis_scripts.NATIVE for {sha}, the script {args[0]!r:.100}")
        keys, values = _keys_of(args)
        self._known.add(sha)
        return self._run(sha, keys, values)

    def _evalsha(self, args: list[bytes], session: Session | None) -> Reply:
        keys, values = _keys_of(args)
        sha = args[0].decode("latin-1").lower()
        if sha not in self._known:
            raise Refusal("NOSCRIPT No matching script. Please use EVAL.")
        return self._run(sha, keys, values)

    def _run(self, sha: str, keys: list[bytes], values: list[bytes]) -> Reply:
        self._in_script = True
        try:
            return NATIVE[sha](self._call, keys, values)
        except Refusal as refusal:
            raise Refusal(f"{refusal} script: {sha}, on @user_script:1.") from None
        finally:
            self._in_script = False

    def _call(self, *args: bytes) -> Reply:
        return self._do(list(args), None)

    # ------------------------------------------------------------------------------------------ losing

    def crash(self, loss: Loss) -> None:
        """It ends at once and comes back with what is left; nobody is connected any more."""
        if loss is Loss.EMPTY:
            self.store.lose_all()
        elif loss is Loss.EVERYSEC:
            self.store.lose_since(self._clock() - self.rng.uniform(0, EVERYSEC_S))
        elif loss is Loss.SNAPSHOT:
            self.store.lose_since_save()
        self._known.clear()
        self._sessions.clear()

    def fail_over(self, lag: int) -> int:
        """A replica that is up to ``lag`` commands behind takes over; how many are lost."""
        lost = self.store.lose_units(lag)
        self._known.clear()
        self._sessions.clear()
        return lost

    def evict(self) -> bytes | None:
        """Forget a random key, as ``allkeys-random`` does."""
        keys = self.store.names()
        key = self.rng.choice(keys) if keys else None
        if key is not None:
            self.execute(b"DEL", key)
        return key

    def streams(self) -> list[bytes]:
        """The keys of all streams that are there."""
        return [key for key in self.store.names() if isinstance(self.store.peek(key), Stream)]

    def digest(self) -> str:
        """One text for all its data."""
        total = hashlib.sha256()
        for key in self.store.names():
            value = self.store.peek(key)
            if isinstance(value, Stream):
                shown: object = [(id_text(entry.id), entry.fields) for entry in value]
            else:
                shown = sorted(value.items()) if isinstance(value, dict) else value
            total.update(repr((key, shown, self.store.expires_ms(key))).encode())
        return total.hexdigest()


_WHILE_SUBSCRIBED = frozenset((b"PING", b"SUBSCRIBE", b"PSUBSCRIBE", b"UNSUBSCRIBE", b"PUNSUBSCRIBE"))
_WHILE_LOADING = frozenset((b"PUBLISH", b"SUBSCRIBE", b"PSUBSCRIBE", b"UNSUBSCRIBE", b"PUNSUBSCRIBE"))


def _add(session: Session | None, kind: bytes, names: list[bytes]) -> Reply:
    assert session is not None, "only a connection can subscribe"
    for name in names:
        (session.channels if kind == b"subscribe" else session.patterns)[name] = None
        session.push([kind, name, session.count])
    return SILENT


def _remove(session: Session | None, kind: bytes, names: list[bytes]) -> Reply:
    assert session is not None, "only a connection can unsubscribe"
    held = session.channels if kind == b"unsubscribe" else session.patterns
    going = names or list(held)
    for name in going:
        held.pop(name, None)
        session.push([kind, name, session.count])
    if not going:
        session.push([kind, None, session.count])
    return SILENT


def _keys_of(args: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """The keys and the arguments of a script."""
    count = integer(args[1])
    if count > len(args) - 2:
        raise Refusal("ERR Number of keys can't be greater than number of args")
    if count < 0:
        raise Refusal("ERR Number of keys can't be negative")
    return args[2 : 2 + count], args[2 + count :]
