"""What the simulated Redis does with its streams."""

from __future__ import annotations

from lemegeton.testing.fake_redis_commands import COMMANDS, NotModelled, Reply, command, integer, wrong_arity
from lemegeton.testing.fake_redis_store import Refusal, Store
from lemegeton.testing.fake_redis_stream import FIRST, LAST, SEQ_MAX, Entry, Stream, StreamId, Trim, id_text

__all__ = ["COMMANDS", "stream_id"]

_INVALID = "ERR Invalid stream ID specified as stream command argument"


def stream_id(data: bytes, seq: int = 0) -> StreamId:
    """An id as it is written; ``seq`` is that of one without its second part."""
    if data.endswith(b"-*"):
        raise NotModelled(f"an id like {data!r}")
    first, dash, second = data.partition(b"-")
    if not first.isdigit() or (dash and not second.isdigit()):
        raise Refusal(_INVALID)
    ident = int(first), int(second) if dash else seq
    if max(ident) > SEQ_MAX:
        raise Refusal(_INVALID)
    return ident


@command("XADD", -5, grows=True)
def xadd(store: Store, args: list[bytes]) -> Reply:
    key = args[0]
    trim, at = _trim(args, 1)
    if at == len(args) or args[at].upper() in (b"NOMKSTREAM", b"LIMIT"):
        raise NotModelled("XADD with NOMKSTREAM or LIMIT")
    given = None if args[at] == b"*" else stream_id(args[at])
    fields = args[at + 1 :]
    if len(fields) < 2 or len(fields) % 2:
        raise wrong_arity("xadd")
    if given == FIRST:
        raise Refusal("ERR The ID specified in XADD must be greater than 0-0")
    there = store.get(key, Stream)
    if given is not None and there is not None and given <= there.last:
        raise Refusal("ERR The ID specified in XADD is equal or smaller than the target stream top item")
    stream = store.to_change(key, Stream)
    ident = given or stream.next_id(store.wall_ms())
    stream.add(ident, fields)
    if trim is not None:
        stream.trim(trim)
    return id_text(ident)


@command("XTRIM", -4, writes=True)
def xtrim(store: Store, args: list[bytes]) -> Reply:
    trim, at = _trim(args, 1)
    if at < len(args) and args[at].upper() == b"LIMIT":
        raise NotModelled("XTRIM with LIMIT")
    if trim is None or at < len(args):
        raise Refusal("ERR syntax error")
    if store.get(args[0], Stream) is None:
        return 0
    return store.to_change(args[0], Stream).trim(trim)


def _trim(args: list[bytes], at: int) -> tuple[Trim | None, int]:
    """What a command says about trimming, and where it goes on."""
    kind = args[at].upper()
    if kind not in (b"MAXLEN", b"MINID") or at + 1 == len(args):
        return None, at
    at += 1
    about = args[at] == b"~"
    if args[at] in (b"~", b"=") and at + 1 < len(args):
        at += 1
    if kind == b"MINID":
        return Trim(about, None, stream_id(args[at])), at + 1
    length = integer(args[at])
    if length < 0:
        raise Refusal("ERR The MAXLEN argument must be >= 0.")
    return Trim(about, length), at + 1


@command("XLEN", 2)
def xlen(store: Store, args: list[bytes]) -> Reply:
    stream = store.get(args[0], Stream)
    return 0 if stream is None else stream.length


@command("XDEL", -3, writes=True)
def xdel(store: Store, args: list[bytes]) -> Reply:
    if store.get(args[0], Stream) is None:
        return 0
    idents = [stream_id(ident) for ident in args[1:]]
    return store.to_change(args[0], Stream).delete(idents)


@command("XRANGE", -4)
def xrange(store: Store, args: list[bytes]) -> Reply:
    return _range(store, args[0], args[1], args[2], args[3:], back=False)


@command("XREVRANGE", -4)
def xrevrange(store: Store, args: list[bytes]) -> Reply:
    return _range(store, args[0], args[2], args[1], args[3:], back=True)


def _range(store: Store, key: bytes, start: bytes, end: bytes, options: list[bytes], *, back: bool) -> Reply:
    first, last = _start(start), _end(end)
    count: int | None = None
    if options:
        if len(options) != 2 or options[0].upper() != b"COUNT":
            raise Refusal("ERR syntax error")
        count = max(0, integer(options[1]))
    stream = store.get(key, Stream)
    if stream is None:
        return []
    if count == 0:
        return None
    return [_shown(entry) for entry in stream.between(first, last, back=back)[:count]]


def _start(data: bytes) -> StreamId:
    if data == b"-":
        return FIRST
    if data == b"+":
        return LAST
    if not data.startswith(b"("):
        return stream_id(data)
    ms, seq = stream_id(data[1:])
    if (ms, seq) == LAST:
        raise Refusal("ERR invalid start ID for the interval")
    return (ms, seq + 1) if seq < SEQ_MAX else (ms + 1, 0)


def _end(data: bytes) -> StreamId:
    if data == b"+":
        return LAST
    if data == b"-":
        return FIRST
    if not data.startswith(b"("):
        return stream_id(data, SEQ_MAX)
    ms, seq = stream_id(data[1:], SEQ_MAX)
    if (ms, seq) == FIRST:
        raise Refusal("ERR invalid end ID for the interval")
    return (ms, seq - 1) if seq else (ms - 1, SEQ_MAX)


def _shown(entry: Entry) -> Reply:
    return [id_text(entry.id), list(entry.fields)]
