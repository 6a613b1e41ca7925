"""Foreign messages: what programs that know nothing of lanes publish, XADD, or both.  Pure.

They get a place in lanes that are made for them here::

    heard~{life}        what this process heard and no stream may hold; numbered as it comes, gone with the process
    foreign~{dataset}   entries of a stream without origin; the number is their id, so the sequence has holes

A `dataset` is a Redis from one loss of everything to the next: a random token that the first who misses it leaves there.
A message that was both published and added comes once: its id is remembered as every id is that was given.
"""

from __future__ import annotations

import hashlib

from lemegeton.codec import decode_foreign
from lemegeton.errors import InvalidMessage
from lemegeton.lane import SPARSE, Lane
from lemegeton.logs.redis_link import Script
from lemegeton.segment import NUMBER_MAX

HEARD, FOREIGN = "heard~", SPARSE
NUMBER_BITS = 20
"""Of an id: so many entries of one millisecond are told apart."""

NEW_ENTRIES = Script("""
-- KEYS stream; ARGV begin, count; of so many entries from begin on, the last id and those without a place of their own
local entries, found, last = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2]), {}, ''
for _, entry in ipairs(entries) do
  local origin, seq = false, false
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'origin' and entry[2][i + 1] ~= '' then origin = true end
    if entry[2][i] == 'seq' and #entry[2][i + 1] <= 16 and string.match(entry[2][i + 1], '^%d+$') then seq = true end
  end
  if not (origin and seq) then found[#found + 1] = entry end
  last = entry[1]
end
return {last, #entries, found}
""")
"""Filtered in the server: on a busy channel nearly every entry came by its doorbell already."""


def is_sparse(lane: Lane) -> bool:
    """True if the sequence of a lane has holes that are none."""
    return lane.origin.startswith(FOREIGN)


def heard_lane(channel: str, life: str) -> Lane:
    """The lane of what one process heard."""
    return Lane(channel, HEARD + life, 1, 1)


def foreign_lane(channel: str, dataset: str) -> Lane:
    """The lane of the foreign entries of a stream."""
    return Lane(channel, FOREIGN + dataset, 1, 1)


def sequence_of_id(ident: bytes) -> int:
    """A stream id as a sequence that fits a mark; `InvalidMessage` for one of a time that never comes."""
    milliseconds, _, number = ident.partition(b"-")
    seq = (int(milliseconds) << NUMBER_BITS) + min(int(number), (1 << NUMBER_BITS) - 1)
    if seq >= NUMBER_MAX:
        raise InvalidMessage(f"entry {ident!r:.60}: its id is too high for a message without a place of its own")
    return seq


def placed(wire: bytes, lane: Lane, seq: int, bytes_max: int) -> bytes:
    """A foreign message with a place, and an id if it has none; `InvalidMessage` if it breaks a rule of the envelope."""
    message = decode_foreign(wire, bytes_max)
    made = b"" if message.id else b',"id":"%b"' % (
        f"{lane.origin}-{seq}" if lane.origin.startswith(FOREIGN) else hashlib.sha256(wire + str(seq).encode()).hexdigest()[:32]
    ).encode()
    # The last of two fields of one name counts, so what the sender said of a place that it does not have does no harm.
    return b'%b%b,"origin":"%b","inc":1,"seq":%d}' % (wire.rstrip()[:-1], made, lane.origin.encode(), seq)


def is_heard(lane: Lane) -> bool:
    """True for a lane of what some other program published and this process only heard."""
    return lane.origin.startswith(HEARD)
