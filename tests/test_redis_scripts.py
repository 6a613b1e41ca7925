"""The scripts, on every server found: what happens at once, and what a server that forgot or refuses makes of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lemegeton.codec import UNKNOWN_FIELDS_MAX
from lemegeton.errors import RedisRefused
from lemegeton.lane import Lane
from lemegeton.logs.redis_entries import Keys, entry_of, lane_field
from lemegeton.logs.redis_scripts import FORWARD, TRIM
from lemegeton.redis_wire import dial
from lemegeton.testing.servers import RedisServer, free_port

KEYS = Keys("ns")
STREAM, MARKS = KEYS.stream("hub"), KEYS.marks("hub")
LANE = Lane("hub", "alice~1f~1", 2, 1)
OTHER = Lane("hub", "bob~1f~1", 1, 3)
WAIT_S = 10.0

Item = list[bytes | str | int]


def item(seq: int, *, lane: Lane = LANE, wire: str = "", **more: str) -> Item:
    """A record, or with ``type`` and ``through`` a marker."""
    fields = {"id": f"i{seq}", "timestamp": "1", "type": "custom", "from": "alice", "to": "", "payload": str(seq),
              "priority": str(lane.priority), "origin": lane.origin, "inc": str(lane.inc), "seq": str(seq), **more}
    flat = [part for pair in fields.items() for part in pair]
    return [seq, more.get("through", seq), f"c{seq}", wire, len(flat), *flat]


def marker(seq: int, through: int) -> Item:
    return item(seq, type="skip", payload="null", through=str(through))


def forward(server: RedisServer, *items: Item, lane: Lane = LANE, base: int = 0, told: int = 0, length: int = 1000
            ) -> tuple[str, str]:
    answer, mark = server.cli("EVAL", FORWARD.text, 2, STREAM, MARKS, lane_field(lane), base, told, "ns:hub", length,
                              *(part for one in items for part in one))
    return answer.decode(), mark.decode()


def lying(server: RedisServer) -> list[tuple[str, int]]:
    """Origin and sequence of all that lies in the stream."""
    heads = [entry_of(entry).head for entry in server.cli("XRANGE", STREAM, "-", "+")]
    return [(head.origin, head.seq) for head in heads]


def of_alice(*sequences: int) -> list[tuple[str, int]]:
    return [(LANE.origin, seq) for seq in sequences]


# Forward


def test_the_next_is_appended_and_moves_the_mark(server: RedisServer) -> None:
    assert forward(server, item(1), item(2)) == ("OK", "2:c2")
    assert forward(server, item(3)) == ("OK", "3:c3")
    assert lying(server) == of_alice(1, 2, 3)
    assert server.cli("HGETALL", MARKS) == [lane_field(LANE).encode(), b"3:c3"]


def test_said_again_it_answers_the_same_and_adds_nothing(server: RedisServer) -> None:
    forward(server, item(1), item(2))
    assert forward(server, item(1), item(2)) == ("OK", "2:c2")
    assert forward(server, item(1)) == ("OK", "2:c2")
    assert forward(server, item(2), item(3)) == ("OK", "3:c3")
    assert lying(server) == of_alice(1, 2, 3)


def test_what_is_not_the_next_is_a_gap_and_changes_nothing(server: RedisServer) -> None:
    assert forward(server, item(2)) == ("GAP", "0:0")
    assert server.cli("EXISTS", STREAM, MARKS) == 0
    forward(server, item(1))
    assert forward(server, item(3)) == ("GAP", "1:c1")
    assert lying(server) == of_alice(1)


def test_a_gap_within_a_call_keeps_what_was_before_it(server: RedisServer) -> None:
    assert forward(server, item(1), item(3)) == ("GAP", "1:c1")
    assert forward(server) == ("OK", "1:c1")
    assert lying(server) == of_alice(1)


def test_a_base_may_begin_anywhere_once(server: RedisServer) -> None:
    assert forward(server, item(5), item(6), base=1) == ("OK", "6:c6")
    assert forward(server, item(8), item(10), base=1) == ("GAP", "8:c8")
    assert lying(server) == of_alice(5, 6, 8)


def test_asked_with_nothing_it_only_answers_the_mark(server: RedisServer) -> None:
    assert forward(server) == ("OK", "0:0")
    forward(server, item(1))
    assert forward(server) == ("OK", "1:c1")
    assert forward(server, lane=OTHER) == ("OK", "0:0")


def test_lanes_have_marks_of_their_own(server: RedisServer) -> None:
    forward(server, item(1))
    assert forward(server, item(1, lane=OTHER), lane=OTHER) == ("OK", "1:c1")
    assert lying(server) == [(LANE.origin, 1), (OTHER.origin, 1)]


def test_a_marker_supplies_all_up_to_its_last(server: RedisServer) -> None:
    assert forward(server, item(1), marker(2, 9), item(10)) == ("OK", "10:c10")
    assert lying(server) == of_alice(1, 2, 10)
    assert forward(server, marker(2, 9)) == ("OK", "10:c10")


def test_a_marker_that_begins_below_the_mark_is_appended_for_its_rest(server: RedisServer) -> None:
    forward(server, item(1), item(2))
    assert forward(server, marker(2, 4), item(5)) == ("OK", "5:c5")
    assert lying(server) == of_alice(1, 2, 2, 5)


def test_sequences_are_exact_to_the_last(server: RedisServer) -> None:
    last = 2**53 - 1
    assert forward(server, item(last - 2), base=1) == ("OK", f"{last - 2}:c{last - 2}")
    assert forward(server, item(last)) == ("GAP", f"{last - 2}:c{last - 2}")
    assert forward(server, item(last - 1), item(last)) == ("OK", f"{last}:c{last}")
    assert forward(server, item(last)) == ("OK", f"{last}:c{last}")
    assert lying(server) == of_alice(last - 2, last - 1, last)


def test_the_stream_is_a_cache_of_bounded_length(server: RedisServer) -> None:
    for first in range(1, 2001, 200):
        forward(server, *(item(seq) for seq in range(first, first + 200)), length=100)
    assert server.cli("XLEN", STREAM) < 400
    assert lying(server)[-1] == (LANE.origin, 2000)


def test_an_entry_may_have_as_many_fields_as_a_message(server: RedisServer) -> None:
    assert forward(server, item(1, **{f"x{n}": "1" for n in range(UNKNOWN_FIELDS_MAX)})) == ("OK", "1:c1")


async def test_what_was_told_is_not_told_again(server: RedisServer) -> None:
    heard: asyncio.Queue[Any] = asyncio.Queue()
    ear = await dial(server.url(), heard.put_nowait, lambda cause: None)
    ear.send("SUBSCRIBE", "ns:hub")
    async with asyncio.timeout(WAIT_S):
        await heard.get()
        forward(server, item(1, wire="one"), item(2, wire="two"), item(3), item(4, wire="four"), told=1)
        forward(server, item(4, wire="four"), item(5, wire="five"))
        assert [(await heard.get())[2] for _ in range(3)] == [b"two", b"four", b"five"]
    assert heard.empty()
    ear.close()


# Forward: a server that forgot or refuses


@pytest.mark.parametrize("forget", [("DEL", STREAM), ("FLUSHALL",)])
def test_a_deleted_stream_takes_the_marks_of_all_lanes_with_it(server: RedisServer, forget: tuple[str, ...]) -> None:
    forward(server, item(1))
    forward(server, item(1, lane=OTHER), lane=OTHER)
    server.cli(*forget)
    assert forward(server) == ("OK", "0:0")
    assert forward(server, item(2)) == ("GAP", "0:0")
    assert forward(server, item(1), item(2)) == ("OK", "2:c2")
    assert forward(server, lane=OTHER) == ("OK", "0:0")


def test_a_new_lane_is_the_first_to_meet_the_deleted_stream(server: RedisServer) -> None:
    forward(server, item(1))
    server.cli("DEL", STREAM)
    forward(server, item(1, lane=OTHER), lane=OTHER)
    assert forward(server) == ("OK", "0:0"), "otherwise what was in the stream is never filled in again"


def test_deleted_marks_alone_are_a_gap_that_is_filled_from_the_files(server: RedisServer) -> None:
    forward(server, item(1), item(2))
    server.cli("DEL", MARKS)
    assert forward(server, item(3)) == ("GAP", "0:0")
    assert forward(server, item(1), item(2), item(3)) == ("OK", "3:c3")
    assert lying(server) == of_alice(1, 2, 1, 2, 3)


@pytest.mark.parametrize("rubbish", ["", "x", "-1:c", ":"])
def test_a_mark_that_is_none_counts_as_nothing(server: RedisServer, rubbish: str) -> None:
    forward(server, item(1))
    server.cli("HSET", MARKS, lane_field(LANE), rubbish)
    assert forward(server) == ("OK", "0:0")
    assert forward(server, item(1)) == ("OK", "1:c1")


def test_an_emptied_stream_keeps_its_marks(server: RedisServer) -> None:
    forward(server, item(1))
    server.cli("XTRIM", STREAM, "MAXLEN", 0)
    assert forward(server, item(2)) == ("OK", "2:c2")


def test_a_full_server_refuses_by_name_and_has_done_nothing(own_server: RedisServer) -> None:
    forward(own_server, item(1))
    own_server.cli("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(RedisRefused, match="maxmemory") as raised:
        forward(own_server, item(2), item(3))
    assert (raised.value.code, raised.value.definite) == ("OOM", True)
    own_server.cli("CONFIG", "SET", "maxmemory", 0)
    assert forward(own_server) == ("OK", "1:c1")
    assert lying(own_server) == of_alice(1)


def test_a_replica_refuses_by_name_and_still_answers_the_mark(own_server: RedisServer) -> None:
    forward(own_server, item(1))
    own_server.cli("REPLICAOF", "127.0.0.1", free_port())
    with pytest.raises(RedisRefused, match="it is a replica") as raised:
        forward(own_server, item(2))
    assert raised.value.code == "READONLY"
    assert forward(own_server) == ("OK", "1:c1")


# Trim


def trim(server: RedisServer, *settled: str | int, keep: int = 0, batch: int = 100) -> int:
    removed: int = server.cli("EVAL", TRIM.text, 1, STREAM, keep, batch, *settled)
    return removed


def test_it_never_goes_past_what_is_not_settled(server: RedisServer) -> None:
    forward(server, item(1), item(2))
    forward(server, item(1, lane=OTHER), lane=OTHER)
    forward(server, item(3))
    assert trim(server, lane_field(LANE), 3, lane_field(OTHER), 0) == 2
    assert lying(server) == [(OTHER.origin, 1), (LANE.origin, 3)]
    assert trim(server, lane_field(LANE), 3, lane_field(OTHER), 1) == 2


def test_a_lane_that_is_not_named_came_later_and_nothing_of_it_goes(server: RedisServer) -> None:
    forward(server, item(1, lane=OTHER), lane=OTHER)
    forward(server, item(1), item(2))
    assert trim(server, lane_field(OTHER), 1) == 1
    assert trim(server) == 0
    assert lying(server) == of_alice(1, 2)


def test_what_is_to_be_kept_stays(server: RedisServer) -> None:
    forward(server, *(item(seq) for seq in range(1, 11)))
    assert trim(server, lane_field(LANE), 10, keep=7) == 3
    assert lying(server) == of_alice(*range(4, 11))
    assert trim(server, lane_field(LANE), 10, keep=7) == 0


def test_a_call_does_no_more_than_its_batch(server: RedisServer) -> None:
    forward(server, *(item(seq) for seq in range(1, 11)))
    assert trim(server, lane_field(LANE), 10, batch=4) == 4
    assert lying(server) == of_alice(*range(5, 11))


def test_foreign_entries_and_nonsense_go(server: RedisServer) -> None:
    server.cli("XADD", STREAM, "*", "id", "1", "payload", "x")
    server.cli("XADD", STREAM, "*", "origin", LANE.origin, "inc", 2, "seq", "never")
    server.cli("XADD", STREAM, "*", "origin", LANE.origin, "inc", 2)
    forward(server, item(1))
    assert trim(server, lane_field(LANE), 0) == 3
    assert lying(server) == of_alice(1)


def test_a_marker_holds_until_its_last_is_settled(server: RedisServer) -> None:
    forward(server, marker(1, 5), item(6, through="99999"), item(7))
    assert trim(server, lane_field(LANE), 4) == 0
    assert trim(server, lane_field(LANE), 6) == 2, "a sender's own field of that name holds nothing"


def test_a_stream_that_is_not_there_is_trimmed(server: RedisServer) -> None:
    assert trim(server) == 0
