"""The watch at the simulated Redis: what is right is silent, and each thing that is wrong is named."""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from lemegeton.lane import Lane
from lemegeton.logs.redis_scripts import FORWARD, TRIM
from lemegeton.sharing import Shared
from lemegeton.testing.fake_redis import FakeRedisServer
from lemegeton.testing.sim_watch import SETTLE_S, Watch

STREAM, MARKS = "ns:message-stream:hub", "ns:relay:{ns:message-stream:hub}"
LANE = Lane("hub", "a~east~0", 1, 1)


class Watched:
    """A server that is watched; the log has the records up to ``last``."""

    def __init__(self) -> None:
        self.now = 0.0
        self.last = 100
        self.remembers = True
        self.kinds: list[str] = []
        self.server = FakeRedisServer(lambda: self.now, Random(1))
        self.watch = Watch(self.server, lambda: self.now, lambda lane, seq: lane == LANE and seq <= self.last,
                           lambda: self.remembers, lambda kind, text: self.kinds.append(kind))

    def forward(self, *seqs: int, base: bool = False, told: int = 0) -> None:
        items = [part for seq in seqs for part in (
            seq, seq, "crc", b'{"origin":"a~east~0","inc":1,"seq":%d}' % seq, 8, *fields(seq))]
        self.server.execute("EVAL", FORWARD.text, 2, STREAM, MARKS, "a~east~0.1.1", int(base), told, "ns:hub", 1000, *items)

    def in_script(self, *arguments: str | int) -> None:
        """What a script that is wrong would do."""
        args = [str(argument).encode() for argument in arguments]
        self.watch.see(args, True)
        self.server.watch = None
        self.server.execute(*args)
        self.server.watch = self.watch.see

    def add(self, seq: int) -> None:
        self.in_script("XADD", STREAM, "*", *fields(seq))


def fields(seq: int) -> tuple[str | int, ...]:
    return "origin", "a~east~0", "inc", 1, "seq", seq, "payload", "null"


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.mark.parametrize("forget", [("FLUSHALL",), ("DEL", STREAM), ("DEL", MARKS)])
def test_what_the_scripts_do_is_right_whatever_is_forgotten(watched: Watched, forget: tuple[str, ...]) -> None:
    watched.forward(1, 2, 3)
    watched.forward(2, 3, 4)
    watched.forward(9)
    watched.server.execute(*forget)
    watched.forward(5)
    watched.forward(1, 2, 3, 4, 5, told=4)
    watched.server.execute("EVAL", TRIM.text, 1, STREAM, 2, 10, "a~east~0.1.1", 5)
    assert watched.kinds == []
    assert watched.server.execute("XLEN", STREAM) == 2


def test_a_base_behind_what_the_log_has_not_is_right_and_one_behind_what_it_has_is_a_hole(watched: Watched) -> None:
    watched.last = 0
    watched.forward(5, base=True)
    assert watched.kinds == []
    watched.last = 7
    watched.forward(8, base=True)
    assert watched.kinds == ["hole"]


def test_a_record_that_is_in_the_stream_must_not_come_again(watched: Watched) -> None:
    watched.forward(1, 2)
    watched.add(2)
    assert watched.kinds == ["twice"]


def test_a_mark_is_what_was_appended_last(watched: Watched) -> None:
    watched.forward(1)
    watched.server.execute("EVAL", FORWARD.text, 2, STREAM, MARKS, "a~east~0.1.1", 0, 0, "ns:hub", 1000)
    watched.in_script("HSET", MARKS, "a~east~0.1.1", "2:crc")
    assert watched.kinds == ["mark"]


def test_a_stream_that_begins_has_no_marks(watched: Watched) -> None:
    watched.forward(1)
    watched.server.execute("DEL", STREAM)
    watched.add(1)
    assert watched.kinds == ["mark"]


def test_what_the_relay_knows_as_accepted_is_not_published_again_but_after_a_disk_lost_that(watched: Watched) -> None:
    watched.forward(1, 2)
    watched.server.execute("FLUSHALL")
    watched.forward(1)
    assert watched.kinds == [], "nobody knew that it had arrived"
    watched.watch.acknowledged("east", LANE, 2)
    watched.server.execute("FLUSHALL")
    watched.forward(1, 2, told=1)
    assert watched.kinds == ["told"]
    watched.remembers = False
    watched.server.execute("FLUSHALL")
    watched.forward(1, 2)
    assert watched.kinds == ["told"]
    watched.remembers = True
    watched.watch.power("east")
    watched.server.execute("FLUSHALL")
    watched.forward(1, 2)
    assert watched.kinds == ["told"]


def test_a_receipt_is_for_what_arrived(watched: Watched) -> None:
    watched.forward(1)
    watched.server.execute("FLUSHALL")
    watched.watch.acknowledged("east", LANE, 1)
    assert watched.kinds == []
    watched.watch.acknowledged("east", LANE, 2)
    assert watched.kinds == ["receipt"]


@pytest.mark.parametrize(("site", "patterns", "since_s", "kinds"), [
    ("west", ("h*",), 0.0, ["trimmed"]), ("east", ("hub",), 0.0, []), ("west", ("other",), 0.0, []),
    ("west", ("hub",), 5.0, [])])
def test_what_a_subscription_elsewhere_has_not_settled_is_not_trimmed(
    watched: Watched, site: str, patterns: tuple[str, ...], since_s: float, kinds: list[str]
) -> None:
    watched.now = since_s
    watched.server.execute("HSET", "ns:subscriptions", f"s@{site}", msgspec.json.encode(Shared(patterns, 1)))
    watched.forward(1, 2)
    watched.now = SETTLE_S + 1
    for settled in (1, 0):  # what was settled once is, whatever is told later
        watched.server.execute("HSET", "ns:acks:{ns:message-stream:hub}", f"s@{site}", b'{"a~east~0.1.1":%d}' % settled)
    watched.server.execute("EVAL", TRIM.text, 1, STREAM, 0, 10, "a~east~0.1.1", 9)
    assert watched.kinds == kinds
