"""The scripts of `logs.redis_scripts` once more, for the simulated Redis, which knows no Lua.

Each stands under the sha of the text that it was written after: a script that is changed is unknown here, and says so,
until its function has been looked at again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from lemegeton.testing.fake_redis_store import Refusal

Call = Callable[..., Any]
"""``redis.call``: a command and its arguments; an error ends the script, what it did so far stays."""
Native = Callable[[Call, list[bytes], list[bytes]], Any]


def tonumber(value: bytes | None) -> float | None:
    """``tonumber``; None for nil."""
    if value is None or not (found := _WORD.fullmatch(value)):
        return None
    text = found[1].decode()
    try:
        return float(int(text, 16)) if text.lower().startswith("0x") else float(text)
    except ValueError:
        return None


_WORD = re.compile(rb"[ \t-\r]*([-+.0-9a-zA-Z]+)[ \t-\r]*")


def number(value: bytes | None) -> float:
    """``tonumber``, of what is then compared or counted: that it is none ends the script."""
    found = tonumber(value)
    if found is None:
        raise Refusal("ERR user_script: attempt to compare nil with number")
    return found


def _at(args: list[bytes], place: int) -> bytes:
    """``ARGV[place]``, counted from one."""
    if place > len(args):
        raise Refusal("ERR user_script: attempt to index or compare nil")
    return args[place - 1]


def forward(call: Call, keys: list[bytes], args: list[bytes]) -> Any:
    """`FORWARD`."""
    stream, marks = keys
    mark, there = call(b"HGET", marks, args[0]), bool(call(b"EXISTS", stream))
    if mark is None or not there or not re.match(rb"[0-9]{1,16}:", mark):
        mark = b"0:0"
    if len(args) == 5:
        return [b"OK", mark]
    if not there:
        call(b"DEL", marks)
    last, told, base = number(mark.partition(b":")[0]), number(args[2]), args[1] == b"1"
    answer, moved, place = b"OK", False, 6
    while place <= len(args):
        seq, through, crc, wire, counted = (_at(args, place + n) for n in range(5))
        count = int(number(counted))
        if number(through) > last:
            if number(seq) > last + 1 and not base:
                answer = b"GAP"
                break
            fields = [_at(args, place + 5 + n) for n in range(count)]
            call(b"XADD", stream, b"MAXLEN", b"~", args[4], b"*", *fields)
            if wire and number(seq) > told:
                call(b"PUBLISH", args[3], wire)
            base, moved, last, mark = False, True, number(through), through + b":" + crc
        place += 5 + count
    if moved:
        call(b"HSET", marks, args[0], mark)
    return [answer, mark]


def trim(call: Call, keys: list[bytes], args: list[bytes]) -> Any:
    """`TRIM`."""
    settled = {lane: tonumber(last) for lane, last in zip(args[2::2], args[3::2], strict=False)}
    left = int(call(b"XLEN", keys[0]) - number(_at(args, 1)))
    if left <= 0:
        return 0
    gone: list[bytes] = []
    for ident, entry in call(b"XRANGE", keys[0], b"-", b"+", b"COUNT", b"%d" % min(left, number(_at(args, 2)))):
        field = dict(zip(entry[::2], entry[1::2], strict=True))
        last = settled.get(b".".join((field.get(b"origin", b""), field.get(b"inc", b""), field.get(b"priority", b"1"))))
        last = 0 if last is None and field.get(b"origin") else last
        through = field.get(b"through") if field.get(b"type") in (b"skip", b"gone") else None
        if last is not None and (tonumber(field.get(b"seq") if through is None else through) or 0) > last:
            break
        gone.append(ident)
    if gone:
        call(b"XDEL", keys[0], *gone)
    return len(gone)


def new_entries(call: Call, keys: list[bytes], args: list[bytes]) -> Any:
    """`NEW_ENTRIES`."""
    entries = call(b"XRANGE", keys[0], _at(args, 1), b"+", b"COUNT", _at(args, 2))
    found = [entry for entry in entries if not _has_place(entry[1])]
    return [entries[-1][0] if entries else b"", len(entries), found]


def _has_place(fields: list[bytes]) -> bool:
    pairs = list(zip(fields[::2], fields[1::2], strict=True))
    placed = any(name == b"seq" and re.fullmatch(rb"[0-9]{1,16}", value) for name, value in pairs)
    return placed and any(name == b"origin" and value for name, value in pairs)


NATIVE: dict[str, Native] = {
    "1420ba052d4a86b3486aa6108b7aa4d814093b5d": forward,
    "1112789c49c957d97f92062b575011dd457bdff8": trim,
    "ff09a4fec5f356d43d90ae671905372036cefc13": new_entries,
}
"""The sha of a script's text, and what it does."""
