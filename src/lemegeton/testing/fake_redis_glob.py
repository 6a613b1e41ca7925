"""Patterns as a Redis understands them; odd where it is odd."""

from __future__ import annotations

import re
from functools import lru_cache


@lru_cache(maxsize=512)
def _compiled(pattern: bytes) -> re.Pattern[bytes]:
    parts: list[bytes] = []
    at = 0
    while at < len(pattern):
        char = pattern[at : at + 1]
        at += 1
        if char == b"*":
            parts.append(b".*")
        elif char == b"?":
            parts.append(b".")
        elif char == b"[":
            part, at = _class(pattern, at)
            parts.append(part)
        else:
            if char == b"\\" and at < len(pattern):
                char = pattern[at : at + 1]
                at += 1
            parts.append(re.escape(char))
    return re.compile(b"".join(parts), re.DOTALL)


def _class(pattern: bytes, at: int) -> tuple[bytes, int]:
    """One character of a class that begins here; where the pattern goes on.  A class without an end ends with it."""
    other = pattern[at : at + 1] == b"^"
    at += other
    wanted: set[int] = set()
    while at < len(pattern):
        char = pattern[at]
        if char == 0x5C and at + 1 < len(pattern):
            wanted.add(pattern[at + 1])
            at += 2
        elif char == 0x5D:
            at += 1
            break
        elif at + 2 < len(pattern) and pattern[at + 1] == 0x2D:
            low, high = sorted((char, pattern[at + 2]))
            wanted.update(range(low, high + 1))
            at += 3
        else:
            wanted.add(char)
            at += 1
    wanted = set(range(256)) - wanted if other else wanted
    return (b"[" + b"".join(b"\\x%02x" % char for char in sorted(wanted)) + b"]") if wanted else b"(?!)", at


def matches(pattern: bytes, text: bytes) -> bool:
    """True if a message published to ``text`` goes to whoever subscribed to ``pattern``."""
    if not text:
        return not pattern  # not even * matches it
    return _compiled(pattern).fullmatch(text) is not None
