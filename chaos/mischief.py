"""Mischief: what others do in a server that the sites share: they delete, trim, and write what is no message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sites import CHANNELS, Sites

_WIRE = b'{"id":"%b","timestamp":1,"type":"custom","from":"x","payload":%b%b}'
GARBAGE: tuple[bytes, ...] = (
    b"\xff\xfe\x00", b"", b"{", b"null", b"[1,2", b'{"id":1}', _WIRE % (b"a", b"NaN", b""), _WIRE % (b"b", b"[" * 100_000, b""),
    _WIRE % (b"c", b"1", b',"origin":"evil~s~1","inc":1,"seq":-1'),
    _WIRE % (b"d", b"1", b',"origin":"evil~s~1","inc":1,"seq":9223372036854775808'),
    _WIRE % (b"e", b"1", b',"origin":"../../evil","inc":1,"seq":1'), _WIRE % (b"f", b"1", b',"origin":"evil~s~1","inc":1'),
    _WIRE % (b"g", b"1", b',"ttl":1e400'), _WIRE % (b"h", b'"good, and nobody\'s"', b""),
)


class Mischief:
    """Everything is done by a client of its own, without a word to the bus."""

    def __init__(self, sites: Sites) -> None:
        self.sites = sites
        self.ask = sites.ask

    def losses(self) -> list[tuple[str, Callable[[], Any]]]:
        """What takes data away: a name, and how."""
        channel = self.sites.rng.choice(CHANNELS)
        stream = f"message-stream:{channel}"
        return [
            ("FLUSHALL", lambda: self.ask("FLUSHALL") is not None),
            ("DEL of a stream", lambda: bool(self.ask("DEL", stream))),
            ("DEL of marks", lambda: bool(self.ask("DEL", f"relay:{{{stream}}}"))),
            ("XTRIM MAXLEN 1", lambda: bool(self.ask("XTRIM", stream, "MAXLEN", 1))),
            ("XDEL", lambda: self._delete_entries(stream)),
            ("marks that are none", lambda: self._spoil_mark(f"relay:{{{stream}}}")),
        ]

    def _delete_entries(self, stream: str) -> bool:
        entries = self.ask("XREVRANGE", stream, "+", "-", "COUNT", 30) or []
        chosen = [entry[0] for entry in entries if self.sites.rng.random() < 0.2]
        return bool(chosen) and bool(self.ask("XDEL", stream, *chosen))

    def _spoil_mark(self, marks: str) -> bool:
        fields = self.ask("HKEYS", marks) or []
        return bool(fields) and self.ask("HSET", marks, self.sites.rng.choice(fields), "nonsense") is not None

    def garbage(self, text: bytes, channel: str) -> bool:
        """Published, added, or both."""
        self.ask("PUBLISH", channel, text)
        fields = self.sites.rng.choice((("x", text), ("id", text, "origin", "evil~s~1", "seq", "-1"), (
            "id", "z", "timestamp", "1", "type", "custom", "from", "x", "to", "", "payload", text)))
        return self.ask("XADD", f"message-stream:{channel}", "*", *fields) is not None

    def stands_twice(self) -> list[str]:
        """Records that stand in a stream more than once."""
        found: list[str] = []
        for channel in CHANNELS:
            seen: set[tuple[bytes, ...]] = set()
            for _, fields in self.ask("XRANGE", f"message-stream:{channel}", "-", "+") or []:
                entry = dict(zip(fields[::2], fields[1::2], strict=True))
                if b"origin" in entry and b"inc" in entry:
                    place = entry[b"origin"], entry[b"inc"], entry.get(b"priority", b"1"), entry[b"seq"]
                    if place in seen:
                        found.append(f"{channel} {place}")
                    seen.add(place)
        return found
