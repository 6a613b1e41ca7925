"""The simulated Redis answers as the real ones do."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from itertools import groupby
from random import Random
from typing import Any

import hiredis
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lemegeton.logs import redis_foreign, redis_scripts
from lemegeton.logs.redis_foreign import NEW_ENTRIES
from lemegeton.logs.redis_link import Script
from lemegeton.logs.redis_scripts import FORWARD, TRIM
from lemegeton.testing.fake_redis import SILENT, FakeRedisServer, Loss, NotModelled
from lemegeton.testing.fake_redis_scripts import NATIVE
from lemegeton.testing.servers import Found, RedisServer

Arguments = tuple[bytes | str | int, ...]
Step = tuple[str, Arguments]
"""Which client says it, the one that ``asks`` or the one that ``hears``, and what."""
LATE_MS = 10**12
END = b"that is all"
LISTS = 50
"""So many lists of commands for each test and server."""
COMPARED = settings(max_examples=LISTS, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
                    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


class Real:
    """Two connections to a real server."""

    def __init__(self, path: str) -> None:
        self._wires = {name: self._open(path) for name in ("asks", "hears")}

    def _open(self, path: str) -> tuple[socket.socket, hiredis.Reader]:
        wire = socket.socket(socket.AF_UNIX)
        wire.settimeout(5)
        wire.connect(path)
        return wire, hiredis.Reader(notEnoughData=END)

    def close(self) -> None:
        for wire, _ in self._wires.values():
            wire.close()

    def fresh(self) -> None:
        """Nothing in it, nobody subscribed."""
        for arguments in (("FLUSHALL",), ("SCRIPT", "FLUSH")):
            self.ask("asks", [arguments])
        self.hear([("UNSUBSCRIBE",), ("PUNSUBSCRIBE",)])

    def ask(self, name: str, commands: list[Arguments]) -> list[Any]:
        """The answers to some commands, sent all at once."""
        self._send(name, commands)
        return [self._next(name) for _ in commands]

    def hear(self, commands: list[Arguments]) -> list[Any]:
        """All that a subscriber hears until it gets an answer to its last word."""
        self._send("hears", [*commands, ("PING", END)])
        heard = []
        while (answer := self._next("hears")) not in (END, [b"pong", END]):
            heard.append(answer)
        return heard

    def _send(self, name: str, commands: list[Arguments]) -> None:
        self._wires[name][0].sendall(b"".join(hiredis.pack_command(arguments) for arguments in commands))

    def _next(self, name: str) -> Any:
        wire, reader = self._wires[name]
        while (answer := reader.gets()) is END:
            reader.feed(wire.recv(65536))
        return answer


class Fake:
    """The simulated one, asked in the same way."""

    def __init__(self) -> None:
        self.now = 100.0
        self.server = FakeRedisServer(lambda: self.now, Random(1))
        self._heard: list[Any] = []
        self._session = self.server.session(self._heard.append)

    def ask(self, _: str, commands: list[Arguments]) -> list[Any]:
        return [self.server.execute(*arguments) for arguments in commands]

    def hear(self, commands: list[Arguments]) -> list[Any]:
        for arguments in commands:
            answer = self.server.execute(*arguments, session=self._session)
            if answer is not SILENT:
                self._heard.append(answer)
        heard, self._heard[:] = self._heard[:], []
        return heard


@pytest.fixture(scope="module")
def real(session_server: RedisServer) -> Iterator[Real]:
    client = Real(session_server.path)
    yield client
    client.close()


def fair(answer: Any, found: Found, arguments: Arguments = ("",)) -> Any:
    """What of an answer has to be equal."""
    if isinstance(answer, hiredis.ReplyError):
        text = str(answer)
        if arguments[0] in ("EVAL", "EVALSHA") and "NOSCRIPT" not in text:
            return ("error", text.split(" ")[0] if found.version >= (7,) else "in a script")
        whole = found.version >= (7,) and "NOSCRIPT" not in text
        return ("error", text if whole else text.split(" ")[0])
    if isinstance(answer, list):
        if arguments[0] == "SCAN":
            return [answer[0], sorted(answer[1])]
        if arguments[0] in ("SMEMBERS", "HGETALL"):  # their order is the server's own affair
            step = 1 if arguments[0] == "SMEMBERS" else 2
            return sorted(answer[at : at + step] for at in range(0, len(answer), step))
        return [fair(part, found) for part in answer]
    if isinstance(answer, bytes) and (ident := re.fullmatch(rb"([0-9]+)-[0-9]+", answer)) and int(ident[1]) > LATE_MS:
        return "an id of now"
    return answer


def fairly_heard(heard: list[Any], found: Found) -> list[Any]:
    """In which order a server goes through several patterns, or through all channels, is its own affair."""
    told: list[Any] = []
    for kind, group in groupby(heard, key=lambda each: each[0] if isinstance(each, list) else None):
        each = [fair(answer, found) for answer in group]
        if kind == b"pmessage":
            each.sort(key=repr)
        elif kind in (b"unsubscribe", b"punsubscribe"):
            each = [sorted(str(name) for _, name, _ in each), [count for _, _, count in each]]
        told += each
    return told


def played(client: Any, steps: list[Step], found: Found) -> list[Any]:
    """What one of them answers to all steps, and what the subscriber hears meanwhile."""
    answers: list[Any] = []
    at = 0
    while at < len(steps):
        who, end = steps[at][0], at
        while end < len(steps) and steps[end][0] == who:
            end += 1
        commands = [arguments for _, arguments in steps[at:end]]
        if who == "asks":
            answers += [fair(answer, found, arguments)
                        for arguments, answer in zip(commands, client.ask(who, commands), strict=True)]
        else:
            answers.append(fairly_heard(client.hear(commands), found))
        at = end
    answers.append(fairly_heard(client.hear([]), found))
    return answers


# What may be asked

KINDS = ("text", "hash", "set", "scores", "stream", "relay")
TOKEN = st.sampled_from([b"", b"a", b"b", b"7", b"-3", b"x" * 70, b"\x00\xff\r\n"])
SMALL = st.integers(-3, 12)
NUMBERISH = st.one_of(SMALL, st.sampled_from(["x", "", "1.5", "99999999999999999999", "007"]))
CHANNELS = st.sampled_from([b"hub", b"agent-a", b"agent-b", b"a[b", b"a\\b", b"", b"\xc3\x84pfel"])
PATTERNS = st.one_of(
    st.sampled_from([b"*", b"agent-*", b"h?b", b"[^a]ub", b"[a-i]ub", b"agent-[ab]", b"a\\[b", b"a[[]b", b"[", b"h[", b"[]hub",
                     b"hub*", b"a\\\\b", b"*b", b"a[b", b"\\", b"h[u-]b", b"[i-a]ub", b"**u**", b"?*?"]),
    st.lists(st.sampled_from([b"*", b"?", b"[", b"]", b"^", b"-", b"\\", b"a", b"b", b"u", b"h"]), max_size=6).map(b"".join))
IDS = st.one_of(st.builds("{}-{}".format, st.integers(0, 12), st.integers(0, 2)), st.integers(0, 12).map(str),
                st.sampled_from(["x", "1-", "-1", "18446744073709551616"]))
BOUNDS = st.one_of(st.sampled_from(["-", "+", "(", "(-"]), IDS, IDS.map("({}".format))
VALUES = st.one_of(TOKEN, st.integers(-70000, 70000).map(lambda n: b"%d" % n), st.integers(0, 700).map(lambda n: b"v" * n))
LANES = st.sampled_from([b"o.1.1", b"o.1.3", b"p.2.1"])


def key(kind: str) -> st.SearchStrategy[str]:
    return st.sampled_from([kind] * 12 + list(KINDS[:5]))


def entry_fields() -> st.SearchStrategy[list[bytes]]:
    plain = st.lists(st.tuples(st.sampled_from([b"id", b"type", b"7"]), VALUES), min_size=1, max_size=3)
    lane = st.builds(lambda origin, prio, seq, more: [(b"origin", origin), (b"inc", b"1"), (b"priority", prio),
                                                      (b"seq", seq), *more],
                     st.sampled_from([b"o", b"p"]), st.sampled_from([b"1", b"3"]),
                     st.one_of(st.integers(1, 9).map(lambda n: b"%d" % n), st.sampled_from([b"x", b"0x7", b" 4 ", b"1e1"])),
                     st.sampled_from([[], [(b"through", b"5")], [(b"through", b"12"), (b"type", b"skip")], [(b"type", b"gone")],
                                      [(b"origin", b"")]]))
    return st.one_of(plain, lane).map(lambda pairs: [part for pair in pairs for part in pair])


LENGTHS = st.sampled_from([(), ("MAXLEN", 3), ("MAXLEN", "=", 2), ("MAXLEN", "~", 4), ("MAXLEN", "~", 0), ("maxlen", -1),
                           ("MAXLEN", "x"), ("MINID", "~", "20"), ("MINID", "12-1")])
ADDS = st.builds(lambda key, trim, ident, fields: ("XADD", key, *trim, ident, *fields), key("stream"), LENGTHS,
                 IDS, entry_fields())
PLAIN = st.one_of(
    st.builds(lambda key, value, more: ("SET", key, value, *more), key("text"), TOKEN,
              st.sampled_from([(), ("NX",), ("XX",), ("PX", 100_000), ("EX", 0), ("EX", 100, "NX"), ("KEEPTTL",), ("WHAT",),
                               ("NX", "XX")])),
    st.builds(lambda kind: ("GET", kind), key("text")),
    st.builds(lambda kind, value: ("GETSET", kind, value), key("text"), TOKEN),
    st.builds(lambda pattern: ("SCAN", 0, "MATCH", pattern, "COUNT", 1000), st.sampled_from(["*", "s*", "?e[lx]*", "none"])),
    st.builds(lambda name, keys: (name, *keys), st.sampled_from(["DEL", "EXISTS"]),
              st.lists(st.sampled_from(KINDS), min_size=1, max_size=3)),
    st.builds(lambda name, kind, n: (name, kind, n), st.sampled_from(["EXPIRE", "PEXPIRE"]), key("text"),
              st.sampled_from([100_000, 0, -1, "x"])),
)
HASHES = st.one_of(
    st.builds(lambda kind, fields: ("HSET", kind, *fields), key("hash"), st.lists(TOKEN, min_size=2, max_size=5)),
    st.builds(lambda kind, field: ("HGET", kind, field), key("hash"), TOKEN),
    st.builds(lambda kind, fields: ("HDEL", kind, *fields), key("hash"), st.lists(TOKEN, min_size=1, max_size=3)),
    st.builds(lambda name, kind: (name, kind), st.sampled_from(["HGETALL", "HLEN"]), key("hash")),
    st.builds(lambda kind, members: ("SADD", kind, *members), key("set"), st.lists(TOKEN, min_size=1, max_size=3)),
    st.builds(lambda kind: ("SMEMBERS", kind), key("set")),
)
SCORES = st.one_of(
    st.builds(lambda kind, pairs: ("ZADD", kind, *pairs), key("scores"),
              st.lists(st.one_of(SMALL, st.sampled_from(["1.5", "x", "inf", "-0.25", "1e3"])), min_size=2, max_size=4)),
    st.builds(lambda kind, start, stop, more: ("ZRANGE", kind, start, stop, *more), key("scores"), NUMBERISH, SMALL,
              st.sampled_from([(), ("REV",), ("WITHSCORES",), ("REV", "WITHSCORES"), ("WHAT",)])),
    st.builds(lambda kind, start, stop, more: ("ZREVRANGE", kind, start, stop, *more), key("scores"), NUMBERISH, SMALL,
              st.sampled_from([(), ("WITHSCORES",), ("REV",)])),
    st.builds(lambda kind, start, stop: ("ZREMRANGEBYRANK", kind, start, stop), key("scores"), SMALL, NUMBERISH),
    st.builds(lambda kind: ("ZCARD", kind), key("scores")),
)
STREAMS = st.one_of(
    ADDS, ADDS, ADDS,
    st.builds(lambda kind, fields: ("XADD", kind, "*", *fields), key("stream"), entry_fields()),
    st.builds(lambda name, kind, start, end, more: (name, kind, start, end, *more), st.sampled_from(["XRANGE", "XREVRANGE"]),
              key("stream"), BOUNDS, BOUNDS, st.sampled_from([(), ("COUNT", 1), ("COUNT", 3), ("COUNT", 0), ("COUNT", -1),
                                                              ("COUNT", "x"), ("WHAT", 1), ("COUNT",)])),
    st.builds(lambda kind: ("XLEN", kind), key("stream")),
    st.builds(lambda kind, ids: ("XDEL", kind, *ids), key("stream"), st.lists(IDS, min_size=1, max_size=3)),
    st.builds(lambda kind, trim: ("XTRIM", kind, *trim), key("stream"), LENGTHS.filter(bool)),
)
ITEM = st.builds(
    lambda seq, more, crc, wire, fields: [seq, seq + more, crc, wire, len(fields), *fields], st.integers(1, 9),
    st.sampled_from([0, 0, 0, 2]), st.sampled_from(["aa", "bb"]), st.sampled_from([b"", b"wire", b'{"a":1}']), entry_fields())
RUNS = st.builds(
    lambda first, items: [part for n, item in enumerate(items) for part in (first + n, first + n, *item[2:])],
    st.integers(1, 6), st.lists(ITEM, min_size=1, max_size=4))


def said(script: Script) -> st.SearchStrategy[tuple[str, str]]:
    return st.sampled_from([("EVAL", script.text), ("EVALSHA", script.sha), ("EVALSHA", script.sha.upper())])


FORWARDS = st.builds(
    lambda how, keys, lane, base, told, channel, items: (*how, 2, *keys, lane, base, told, channel, 1000, *items),
    said(FORWARD), st.sampled_from([("stream", "relay")] * 6 + [("hash", "relay"), ("stream", "text")]), LANES,
    st.integers(0, 1), st.integers(0, 4), CHANNELS, st.one_of(RUNS, RUNS, RUNS, st.just([]), st.lists(ITEM, max_size=3).map(
        lambda items: [part for item in items for part in item]), st.just([1, 1, "aa", "", 2, "id"])))
TRIMS = st.builds(
    lambda how, kind, keep, batch, settled: (*how, 1, kind, keep, batch, *settled),
    said(TRIM), key("stream"), st.integers(0, 4), st.integers(1, 9),
    st.lists(st.tuples(LANES, st.integers(0, 9)), max_size=3).map(lambda pairs: [part for pair in pairs for part in pair]))
NEWS = st.builds(lambda how, kind, begin, count: (*how, 1, kind, begin, count), said(NEW_ENTRIES), key("stream"),
                 st.one_of(st.just("-"), BOUNDS), st.sampled_from([1, 2, 256, "x"]))
SCRIPTS = st.one_of(
    FORWARDS, FORWARDS, TRIMS, NEWS,
    st.builds(lambda lane, mark: ("HSET", "relay", lane, mark), LANES, st.sampled_from(["3:cc", "0:0", "x", "5", ":3", "2:"])),
    st.sampled_from([("HGETALL", "relay"), ("DEL", "stream"), ("DEL", "relay"), ("XRANGE", "stream", "-", "+"),
                     ("EVAL", FORWARD.text, 3, "a", "b"), ("EVAL", FORWARD.text, -1, "a"), ("EVALSHA", "0" * 40, 0),
                     ("EVAL", TRIM.text, "x", "a"), ("FLUSHALL",)]),
)
ODD = st.sampled_from([("GET",), ("GET", "a", "b"), ("PING",), ("PING", "x"), ("PING", "x", "y"),
                       ("XADD", "stream", "1-1", "a"),
                       ("XADD", "stream", "0-0", "a", "b"), ("HSET", "hash", "a"), ("FLUSHALL",), ("ZADD", "scores", 1),
                       ("xlen", "stream"), ("EVALSHA", "x")])
HEARS = st.one_of(
    st.builds(lambda name, names: (name, *names), st.sampled_from(["SUBSCRIBE", "UNSUBSCRIBE"]),
              st.lists(CHANNELS, min_size=1, max_size=2)),
    st.builds(lambda name, names: (name, *names), st.sampled_from(["PSUBSCRIBE", "PUNSUBSCRIBE"]),
              st.lists(PATTERNS, min_size=1, max_size=1)),
    st.sampled_from([("PING",), ("GET", "text"), ("PING", "x"), ("UNSUBSCRIBE",), ("PUNSUBSCRIBE",)]))
PUBLISHED = st.builds(lambda channel, data: ("PUBLISH", channel, data), CHANNELS, TOKEN)


def steps(*strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Step]]:
    asked = st.one_of(*strategies).map(lambda arguments: ("asks", arguments))
    return st.lists(asked, min_size=10, max_size=40)


def compare(real: Real, found: Found, plan: list[Step]) -> None:
    real.fresh()
    assert played(Fake(), plan, found) == played(real, plan, found)


@given(plan=steps(PLAIN, HASHES, SCORES, ODD))
@COMPARED
def test_keys_answer_as_those_of_a_server(real: Real, found: Found, plan: list[Step]) -> None:
    compare(real, found, plan)


@given(plan=steps(STREAMS, STREAMS, STREAMS, ODD))
@COMPARED
def test_streams_answer_as_those_of_a_server(real: Real, found: Found, plan: list[Step]) -> None:
    if found.version < (7,):  # it fills its nodes by another rule
        plan = [(who, tuple("=" if part == "~" else part for part in arguments)) for who, arguments in plan]
    compare(real, found, plan)


@given(plan=steps(SCRIPTS, SCRIPTS, SCRIPTS, ADDS.filter(lambda arguments: "~" not in arguments)))
@COMPARED
def test_scripts_answer_and_ring_as_those_of_a_server(real: Real, found: Found, plan: list[Step]) -> None:
    compare(real, found, [("hears", ("SUBSCRIBE", b"hub", b"agent-a")), *plan, ("asks", ("XRANGE", "stream", "-", "+")),
                          ("asks", ("HGETALL", "relay"))])


@given(plan=st.lists(st.one_of(HEARS.map(lambda arguments: ("hears", arguments)),
                               PUBLISHED.map(lambda arguments: ("asks", arguments))), min_size=10, max_size=40))
@COMPARED
def test_subscribers_hear_what_those_of_a_server_hear(real: Real, found: Found, plan: list[Step]) -> None:
    compare(real, found, plan)


def test_patterns_match_what_they_match_at_a_server(real: Real, found: Found) -> None:
    patterns = [b"*", b"agent-*", b"h?b", b"[^a]ub", b"[a-i]ub", b"[i-a]ub", b"agent-[ab]", b"a\\[b", b"a[[]b", b"[", b"h[",
                b"[]hub", b"hub*", b"a\\\\b", b"*b", b"a[b", b"\\", b"h[u-]b", b"**u**", b"?*?", b"[^]ub", b"h[\\u]b", b"hu[^",
                b"hu[a-", b"hu[a-]", b"", b"[h-]ub]"]
    channels = [b"hub", b"agent-a", b"agent-b", b"a[b", b"a\\b", b"", b"hub]", b"ub]", b"\\", b"["]
    plan: list[Step] = []
    for pattern in patterns:
        plan += [("hears", ("PSUBSCRIBE", pattern)), *(("asks", ("PUBLISH", channel, b"x")) for channel in channels),
                 ("hears", ("PUNSUBSCRIBE", pattern))]
    compare(real, found, plan)


def test_bounds_of_a_range_mean_what_they_mean_at_a_server(real: Real, found: Found) -> None:
    bounds = ["-", "+", "0", "2", "2-0", "2-1", "3-18446744073709551615", "9", "(", "(-", "(0-0", "(2", "(2-1", "(3-0", "(3-1",
              "(18446744073709551615-18446744073709551615", "x", "1-x", ""]
    plan: list[Step] = [("asks", ("XADD", "stream", ident, "a", "b")) for ident in ("1-0", "2-0", "2-1", "2-2", "3-0", "3-1")]
    plan += [("asks", ("XRANGE", "stream", start, end)) for start in bounds for end in bounds]
    plan += [("asks", ("XREVRANGE", "stream", end, start, "COUNT", 2)) for start in bounds for end in bounds]
    compare(real, found, plan)


@given(settled=st.lists(st.tuples(st.sampled_from([b"o.1.1", b"o.1.3", b"p.1.1"]), st.integers(1, 6)), max_size=3),
       keep=st.integers(0, 3), batch=st.integers(1, 8),
       entries=st.lists(st.tuples(st.sampled_from([b"o", b"p"]), st.sampled_from([b"1", b"3"]), st.integers(1, 6),
                                  st.sampled_from([(), (), ("through", 6), ("type", "skip", "through", 5), ("type", "gone"),
                                                   ("type", "skip", "through", "x")])), max_size=8))
@COMPARED
def test_the_head_of_a_stream_goes_as_at_a_server(real: Real, found: Found, settled: list[tuple[bytes, int]], keep: int,
                                                  batch: int, entries: list[tuple[bytes, bytes, int, tuple[Any, ...]]]) -> None:
    plan: list[Step] = []
    for n, (origin, priority, seq, more) in enumerate(entries, 1):
        plan.append(("asks", ("XADD", "stream", f"{n}-0", "origin", origin, "inc", 1, "priority", priority, "seq", seq, *more)))
    plan += [("asks", ("EVAL", TRIM.text, 1, "stream", keep, batch, *(part for pair in settled for part in pair))),
             ("asks", ("XRANGE", "stream", "-", "+"))]
    compare(real, found, plan)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 260), sizes=st.sampled_from([(0, 3), (0, 200), (100, 400), (0, 2000)]))
@COMPARED
def test_a_trim_removes_the_nodes_that_a_server_removes(real: Real, found: Found, seed: int, count: int,
                                                        sizes: tuple[int, int]) -> None:
    if found.version < (7,):  # it fills its nodes by another rule
        return
    rng = Random(seed)
    plan: list[Step] = []
    ms, seq = 0, 0
    idents: list[str] = []
    for _ in range(count):
        step = rng.choice((0, 1, 1, 1, 200, 2**20))
        ms, seq = ms + step, rng.choice((0, 1, 200)) if step else seq + rng.choice((1, 200))
        idents.append(f"{ms}-{seq}" if ms else f"0-{seq + 1}")
        value = rng.choice((b"v" * rng.randint(*sizes), b"%d" % rng.randint(-(2**40), 2**40)))
        trim = ("MAXLEN", "~", rng.choice((0, 5, 50, 100, 150))) if rng.random() < 0.03 else ()
        fields = rng.choice((("f", value), ("f", value), ("f", value), ("f", value, "g", b"7")))
        plan.append(("asks", ("XADD", "stream", *trim, idents[-1], *fields)))
        if rng.random() < 0.1:
            plan.append(("asks", ("XDEL", "stream", rng.choice(idents))))
        if rng.random() < 0.02:
            plan.append(("asks", ("XTRIM", "stream", "MINID", rng.choice("~="), rng.choice(idents))))
    plan += [("asks", ("XTRIM", "stream", "MAXLEN", "~", 20)), ("asks", ("XRANGE", "stream", "-", "+"))]
    compare(real, found, plan)


@pytest.mark.parametrize("switch", ["oom", "readonly"])
def test_a_server_without_memory_and_a_replica_refuse_the_same(real: Real, found: Found, switch: str) -> None:
    item = (1, 1, "aa", "wire", 2, "id", "x")
    before: list[Step] = [("asks", arguments) for arguments in (
        ("SET", "text", "v"), ("HSET", "hash", "a", "b"), ("SADD", "set", "m"), ("ZADD", "scores", 1, "m"),
        ("XADD", "stream", "1-1", "a", "b"), ("HSET", "gone", "lane", "5:aa"))]
    asked: list[Arguments] = [
        ("PING",), ("GET", "text"), ("SET", "text", "w"), ("SET", "text"), ("HSET", "hash", "a", "c"),
        ("HSET", "set", "a", "c"),
        ("HDEL", "hash", "a"), ("SADD", "set", "n"), ("SMEMBERS", "set"), ("ZADD", "scores", 2, "n"), ("DEL", "set"),
        ("ZREMRANGEBYRANK", "scores", 0, 0), ("XADD", "stream", "2-1", "a", "b"), ("XRANGE", "stream", "-", "+"),
        ("XTRIM", "stream", "MAXLEN", 0), ("XDEL", "stream", "1-1"), ("PEXPIRE", "text", 10), ("PUBLISH", "hub", "x"),
        ("EVAL", FORWARD.text, 2, "stream", "relay", "lane", 0, 0, "hub", 100),
        ("EVAL", FORWARD.text, 2, "stream", "relay", "lane", 0, 0, "hub", 100, *item),
        ("EVAL", FORWARD.text, 2, "missing", "gone", "lane", 0, 0, "hub", 100, *item),
        ("EVAL", TRIM.text, 1, "stream", 0, 5), ("EVALSHA", TRIM.sha, 1, "stream", 0, 5), ("HGETALL", "relay"), ("FLUSHALL",)]
    lines = {"oom": ("CONFIG", "SET", "maxmemory"), "readonly": ("REPLICAOF",)}
    on, off = {"oom": (["1"], ["0"]), "readonly": (["127.0.0.1", "1"], ["NO", "ONE"])}[switch]
    fake = Fake()
    real.fresh()
    assert played(fake, before, found) == played(real, before, found)
    setattr(fake.server, switch, True)
    steps: list[Step] = [("asks", arguments) for arguments in asked]
    try:
        real.ask("asks", [(*lines[switch], *on)])
        assert played(fake, steps, found) == played(real, steps, found)
    finally:
        real.ask("asks", [(*lines[switch], *off)])


# What no real server shows in the time of a test


@pytest.fixture
def fake() -> Fake:
    return Fake()


def do(fake: Fake, *commands: Arguments) -> list[Any]:
    return fake.ask("asks", list(commands))


def test_every_script_has_its_counterpart() -> None:
    scripts = [value for module in (redis_scripts, redis_foreign) for value in vars(module).values()
               if isinstance(value, Script)]
    assert {script.sha for script in scripts} == set(NATIVE)


def test_a_script_that_was_changed_is_named(fake: Fake) -> None:
    with pytest.raises(NotModelled, match="KEYS stream, marks"):
        do(fake, ("EVAL", FORWARD.text.replace("GAP", "gap"), 2, "a", "b", "lane", 0, 0, "hub", 1))


@pytest.mark.parametrize("arguments", [("XREAD", "STREAMS", "a", "0"), ("SET", "a", "b", "GET"), ("ZADD", "a", "NX", 1, "b"),
                                       ("ZRANGE", "a", 0, 1, "BYSCORE"), ("XADD", "a", "NOMKSTREAM", "*", "b", "c"),
                                       ("EXPIRE", "a", 1, "NX"), ("XADD", "a", "1-*", "b", "c")])
def test_what_is_not_modelled_is_no_answer(fake: Fake, arguments: Arguments) -> None:
    with pytest.raises(NotModelled):
        do(fake, arguments)


def test_keys_expire_in_virtual_time(fake: Fake) -> None:
    assert do(fake, ("SET", "a", "x", "PX", 1500), ("HSET", "b", "f", "v"), ("EXPIRE", "b", 3), ("PTTL", "b")) == [
        b"OK", 1, 1, 3000]
    fake.now += 1.4
    assert do(fake, ("GET", "a"), ("PTTL", "a")) == [b"x", 100]
    fake.now += 0.1
    assert do(fake, ("GET", "a"), ("PTTL", "a"), ("EXISTS", "a", "b")) == [None, -2, 1]
    fake.now += 1.5
    assert do(fake, ("HGETALL", "b"), ("EXISTS", "b"), ("HSET", "b", "f", "v"), ("PTTL", "b")) == [[], 0, 1, -1]


def test_a_server_that_loads_hears_and_says_nothing_else(fake: Fake) -> None:
    fake.server.loading = True
    assert [str(answer)[:7] for answer in do(fake, ("PING",), ("GET", "a"))] == ["LOADING"] * 2
    assert fake.hear([("SUBSCRIBE", "c")]) == [[b"subscribe", b"c", 1]]


def add(fake: Fake, *ids: str) -> None:
    do(fake, *(("XADD", "s", ident, "f", "v") for ident in ids))


def ids(fake: Fake) -> list[str]:
    return [entry[0].decode() for entry in do(fake, ("XRANGE", "s", "-", "+"))[0]]


def test_a_crash_without_loss_keeps_all_but_scripts_and_clients(fake: Fake) -> None:
    add(fake, "1-0", "2-0")
    do(fake, ("EVAL", TRIM.text, 1, "s", 5, 5))
    fake.hear([("SUBSCRIBE", "c")])
    fake.server.crash(Loss.NONE)
    assert ids(fake) == ["1-0", "2-0"]
    assert do(fake, ("PUBLISH", "c", "x")) == [0]
    assert "NOSCRIPT" in str(do(fake, ("EVALSHA", TRIM.sha, 1, "s", 5, 5))[0])


def test_an_empty_restart_keeps_nothing(fake: Fake) -> None:
    add(fake, "1-0")
    fake.server.crash(Loss.EMPTY)
    assert do(fake, ("EXISTS", "s")) == [0]


def test_everysec_loses_up_to_two_seconds_and_no_more() -> None:
    left = set()
    for seed in range(30):
        fake = Fake()
        fake.server.rng.seed(seed)
        for n in range(1, 80):
            fake.now += 0.1
            add(fake, f"{n}-0")
        fake.server.crash(Loss.EVERYSEC)
        left.add(len(ids(fake)))
    assert 59 <= min(left) < 64
    assert 75 < max(left) <= 79


def test_it_says_that_it_throws_nothing_away(fake: Fake) -> None:
    assert b"maxmemory_policy:noeviction" in do(fake, ("INFO", "memory"))[0]


def test_what_a_server_was_asked_to_sync_is_not_lost_by_everysec(fake: Fake) -> None:
    assert "appendonly is disabled" in str(do(fake, ("WAITAOF", 1, 0, 100))[0])
    fake.server.appendonly = True
    add(fake, "1-0")
    assert do(fake, ("WAITAOF", 1, 0, 100)) == [[1, 0]]
    for seed in range(20):
        fake.server.rng.seed(seed)
        fake.server.crash(Loss.EVERYSEC)
        assert ids(fake) == ["1-0"]


def test_a_snapshot_restores_what_was_there_when_it_was_saved(fake: Fake) -> None:
    fake.server.store.save_every_s = 5.0
    for n in range(1, 140):
        fake.now += 0.1
        add(fake, f"{n}-0")
    fake.server.crash(Loss.SNAPSHOT)
    last = len(ids(fake))
    assert 139 - 52 < last < 139
    fake.server.crash(Loss.SNAPSHOT)
    assert len(ids(fake)) == last


def test_a_replica_that_lags_is_some_units_behind_and_a_script_is_one_unit(fake: Fake) -> None:
    item = (1, 1, "aa", "", 2, "id", "x")
    do(fake, ("SET", "a", 1), ("EVAL", FORWARD.text, 2, "s", "m", "lane", 0, 0, "c", 10, *item, 2, 2, "bb", "", 2, "id", "y"))
    do(fake, ("GET", "a"), ("SET", "a", 2), ("DEL", "b"))
    assert fake.server.fail_over(1) == 1
    assert do(fake, ("GET", "a"), ("XLEN", "s"), ("HGETALL", "m")) == [b"1", 2, [b"lane", b"2:bb"]]
    add(fake, "99999999999999-0")
    assert fake.server.fail_over(500) == 1
    assert do(fake, ("GET", "a"), ("XLEN", "s")) == [b"1", 2]


def test_what_is_lost_comes_back_as_it_was_and_not_as_it_became(fake: Fake) -> None:
    do(fake, ("HSET", "h", "f", 1), ("SADD", "m", "x"), ("ZADD", "z", 1, "x"), ("SET", "t", "x", "PX", 5000))
    add(fake, "1-0", "2-0")
    before = fake.server.digest()
    do(fake, ("HSET", "h", "f", 2), ("SADD", "m", "y"), ("ZADD", "z", 2, "x"), ("SET", "t", "y"), ("XDEL", "s", "1-0"),
       ("DEL", "s"))
    assert fake.server.digest() != before
    fake.server.fail_over(6)
    assert fake.server.digest() == before


def test_a_unit_that_is_older_than_what_may_be_lost_is_never_lost(fake: Fake) -> None:
    for n in range(1, 400):
        fake.now += 1
        add(fake, f"{n}-0")
    assert fake.server.fail_over(10**6) == 200
    assert len(ids(fake)) == 199


def test_ids_never_go_back_in_a_stream_and_do_after_it_was_forgotten(fake: Fake) -> None:
    first, = do(fake, ("XADD", "s", "*", "f", "v"))
    fake.server.store.step(-3_600_000)
    second, = do(fake, ("XADD", "s", "*", "f", "v"))
    assert second == first.replace(b"-0", b"-1")
    do(fake, ("FLUSHALL",))
    third, = do(fake, ("XADD", "s", "*", "f", "v"))
    assert int(third[:-2]) == int(first[:-2]) - 3_600_000


def test_a_random_key_is_forgotten(fake: Fake) -> None:
    assert fake.server.evict() is None
    do(fake, ("SET", "a", 1), ("SET", "b", 1))
    gone = fake.server.evict()
    assert gone in (b"a", b"b")
    assert do(fake, ("EXISTS", "a", "b")) == [1]


def test_who_is_gone_hears_nothing(fake: Fake) -> None:
    heard: list[Any] = []
    session = fake.server.session(heard.append)
    fake.server.execute("SUBSCRIBE", "c", session=session)
    assert do(fake, ("PUBLISH", "c", 1)) == [1]
    fake.server.forget(session)
    fake.server.forget(session)
    assert do(fake, ("PUBLISH", "c", 2)) == [0]
    assert heard[1:] == [[b"message", b"c", b"1"]]
