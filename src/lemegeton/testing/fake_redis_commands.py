"""What the simulated Redis does with its keys: strings, hashes, sets, sorted sets and their expiry.

A command gets the store and its arguments, and answers what hiredis makes of a server's reply; `Refusal` is an error.
Options that no part of the bus uses raise `NotModelled`: an answer that is made up would prove nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from lemegeton.testing.fake_redis_glob import matches
from lemegeton.testing.fake_redis_store import Hash, Members, Refusal, Scores, Store, Text
from lemegeton.testing.fake_redis_stream import integer_of

Reply = Any
"""bytes, int, None, a list of such, or `hiredis.ReplyError`."""
Handler = Callable[[Store, list[bytes]], Reply]
H = TypeVar("H", bound=Handler)


class NotModelled(NotImplementedError):
    """A real server would answer this; the simulated one cannot."""


class Command(NamedTuple):
    """``arity`` as `COMMAND INFO` tells it: the exact count with the name, or minus the least.

    ``writes``: refused by a replica.  ``grows``: refused without memory."""

    handler: Handler
    arity: int
    writes: bool
    grows: bool


COMMANDS: dict[bytes, Command] = {}


def command(name: str, arity: int, *, writes: bool = False, grows: bool = False) -> Callable[[H], H]:
    """Enter a function into `COMMANDS`."""

    def enter(handler: H) -> H:
        COMMANDS[name.encode()] = Command(handler, arity, writes or grows, grows)
        return handler

    return enter


# ── reading arguments ────────────────────────────────────────────────────────────────────────────────────────────────


def wrong_arity(name: str) -> Refusal:
    """Too few arguments, too many, or an odd number."""
    return Refusal(f"ERR wrong number of arguments for '{name}' command")


def integer(data: bytes) -> int:
    """A whole number."""
    number = integer_of(data)
    if number is None:
        raise Refusal("ERR value is not an integer or out of range")
    return number


_FLOAT = re.compile(rb"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?inf(inity)?", re.IGNORECASE)


def real(data: bytes) -> float:
    """A score."""
    if not _FLOAT.fullmatch(data):
        raise Refusal("ERR value is not a valid float")
    return float(data)


def shown(score: float) -> bytes:
    """A score as it is answered."""
    if math.isinf(score):
        return b"inf" if score > 0 else b"-inf"
    if score == int(score) and abs(score) < 1e17:
        return b"%d" % score
    return repr(score).encode()


# ── keys and strings ─────────────────────────────────────────────────────────────────────────────────────────────────


@command("SET", -3, grows=True)
def set_(store: Store, args: list[bytes]) -> Reply:
    key, value, *options = args
    expires_ms: int | None = None
    names = [option.upper() for option in options]
    at = 0
    while at < len(names):
        if names[at] in (b"EX", b"PX") and at + 1 < len(names):
            length = integer(options[at + 1])
            if length <= 0:
                raise Refusal("ERR invalid expire time in 'set' command")
            expires_ms = store.wall_ms() + length * (1000 if names[at] == b"EX" else 1)
            at += 1
        elif names[at] in (b"GET", b"EXAT", b"PXAT", b"IFEQ"):
            raise NotModelled(f"SET with {options[at]!r}")
        elif names[at] not in (b"NX", b"XX", b"KEEPTTL"):
            raise Refusal("ERR syntax error")
        at += 1
    there = store.peek(key) is not None
    if {b"NX", b"XX"} <= set(names) or (b"KEEPTTL" in names and expires_ms is not None):
        raise Refusal("ERR syntax error")
    if (b"NX" in names and there) or (b"XX" in names and not there):
        return None
    store.put(key, Text(value), store.expires_ms(key) if b"KEEPTTL" in names else expires_ms)
    return b"OK"


@command("GET", 2)
def get(store: Store, args: list[bytes]) -> Reply:
    value = store.get(args[0], Text)
    return None if value is None else bytes(value)


@command("GETSET", 3, grows=True)
def getset(store: Store, args: list[bytes]) -> Reply:
    before = get(store, args)
    store.put(args[0], Text(args[1]))
    return before


@command("DEL", -2, writes=True)
def del_(store: Store, args: list[bytes]) -> Reply:
    return sum(store.peek(key) is not None and store.delete(key) for key in args)


@command("EXISTS", -2)
def exists(store: Store, args: list[bytes]) -> Reply:
    return sum(store.peek(key) is not None for key in args)


@command("PEXPIRE", -3, writes=True)
def pexpire(store: Store, args: list[bytes]) -> Reply:
    return _expire(store, args, 1)


@command("EXPIRE", -3, writes=True)
def expire(store: Store, args: list[bytes]) -> Reply:
    return _expire(store, args, 1000)


def _expire(store: Store, args: list[bytes], unit_ms: int) -> int:
    if len(args) > 2:
        raise NotModelled(f"an expiry with {args[2]!r}")
    length = integer(args[1])
    value = store.peek(args[0])
    if value is None:
        return 0
    if length <= 0:
        store.delete(args[0])
    else:
        store.put(args[0], value, store.wall_ms() + length * unit_ms)
    return 1


@command("SCAN", -2)
def scan(store: Store, args: list[bytes]) -> Reply:
    """All that match, whatever the cursor and the count say: that is within what a server may do."""
    if not args[0].isdigit():
        raise Refusal("ERR invalid cursor")
    pattern = b"*"
    for name, value in zip(args[1::2], args[2::2], strict=False):
        if name.upper() == b"MATCH":
            pattern = value
        elif name.upper() != b"COUNT":
            raise NotModelled(f"SCAN with {name!r}")
    if len(args) % 2 == 0:
        raise Refusal("ERR syntax error")
    return [b"0", [name for name in store.names() if pattern == b"*" or matches(pattern, name)]]


@command("PTTL", 2)
def pttl(store: Store, args: list[bytes]) -> Reply:
    if store.peek(args[0]) is None:
        return -2
    expires_ms = store.expires_ms(args[0])
    return -1 if expires_ms is None else expires_ms - store.wall_ms()


# ── hashes and sets ──────────────────────────────────────────────────────────────────────────────────────────────────


def _paired(args: list[bytes], name: str) -> Iterable[tuple[bytes, bytes]]:
    if len(args) % 2:
        raise wrong_arity(name)
    return zip(args[::2], args[1::2], strict=True)


@command("HSET", -4, grows=True)
def hset(store: Store, args: list[bytes]) -> Reply:
    fields = _paired(args[1:], "hset")
    value = store.to_change(args[0], Hash)
    before = len(value)
    value.update(fields)
    return len(value) - before


@command("HGET", 3)
def hget(store: Store, args: list[bytes]) -> Reply:
    return (store.get(args[0], Hash) or Hash()).get(args[1])


@command("HGETALL", 2)
def hgetall(store: Store, args: list[bytes]) -> Reply:
    return [part for field in (store.get(args[0], Hash) or {}).items() for part in field]


@command("HDEL", -3, writes=True)
def hdel(store: Store, args: list[bytes]) -> Reply:
    if store.get(args[0], Hash) is None:
        return 0
    value = store.to_change(args[0], Hash)
    gone = sum(value.pop(field, None) is not None for field in args[1:])
    store.tidy(args[0])
    return gone


@command("HLEN", 2)
def hlen(store: Store, args: list[bytes]) -> Reply:
    return len(store.get(args[0], Hash) or ())


@command("SADD", -3, grows=True)
def sadd(store: Store, args: list[bytes]) -> Reply:
    value = store.to_change(args[0], Members)
    before = len(value)
    value.update(dict.fromkeys(args[1:]))
    return len(value) - before


@command("SMEMBERS", 2)
def smembers(store: Store, args: list[bytes]) -> Reply:
    return list(store.get(args[0], Members) or ())


# ── sorted sets ──────────────────────────────────────────────────────────────────────────────────────────────────────

_ZADD_OPTIONS = frozenset((b"NX", b"XX", b"CH", b"INCR", b"GT", b"LT"))
_ZRANGE_OPTIONS = frozenset((b"BYSCORE", b"BYLEX", b"LIMIT"))


@command("ZADD", -4, grows=True)
def zadd(store: Store, args: list[bytes]) -> Reply:
    key, *pairs = args
    if pairs[0].upper() in _ZADD_OPTIONS:
        raise NotModelled(f"ZADD with {pairs[0]!r}")
    if len(pairs) % 2:
        raise Refusal("ERR syntax error")
    scores = {member: real(score) for score, member in zip(pairs[::2], pairs[1::2], strict=True)}
    value = store.to_change(key, Scores)
    before = len(value)
    value.update(scores)
    return len(value) - before


@command("ZCARD", 2)
def zcard(store: Store, args: list[bytes]) -> Reply:
    return len(store.get(args[0], Scores) or ())


@command("ZRANGE", -4)
def zrange(store: Store, args: list[bytes]) -> Reply:
    options = [option.upper() for option in args[3:]]
    if _ZRANGE_OPTIONS.intersection(options):
        raise NotModelled(f"ZRANGE with {options!r}")
    if not {b"REV", b"WITHSCORES"}.issuperset(options):
        raise Refusal("ERR syntax error")
    start, stop = integer(args[1]), integer(args[2])
    ranked = _ranked(store.get(args[0], Scores))
    if b"REV" in options:
        ranked.reverse()
    found = ranked[_span(start, stop, len(ranked))]
    if b"WITHSCORES" not in options:
        return [member for _, member in found]
    return [part for score, member in found for part in (member, shown(score))]


@command("ZREVRANGE", -4)
def zrevrange(store: Store, args: list[bytes]) -> Reply:
    if [option.upper() for option in args[3:]] not in ([], [b"WITHSCORES"]):
        raise Refusal("ERR syntax error")
    return zrange(store, [*args, b"REV"])


@command("ZREMRANGEBYRANK", 4, writes=True)
def zremrangebyrank(store: Store, args: list[bytes]) -> Reply:
    start, stop = integer(args[1]), integer(args[2])
    if store.get(args[0], Scores) is None:
        return 0
    value = store.to_change(args[0], Scores)
    ranked = _ranked(value)
    gone = ranked[_span(start, stop, len(ranked))]
    for _, member in gone:
        del value[member]
    store.tidy(args[0])
    return len(gone)


def _ranked(value: Scores | None) -> list[tuple[float, bytes]]:
    return sorted((score, member) for member, score in (value or {}).items())


def _span(start: int, stop: int, count: int) -> slice:
    """Both ends included; negative ones are counted from the end."""
    start = max(0, start + count if start < 0 else start)
    stop = stop + count if stop < 0 else stop
    return slice(start, max(start, stop + 1))
