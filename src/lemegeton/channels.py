"""Channel names, the directories they live in, and the globs that match them.

The directory of a channel is an injective, case-safe encoding of its name, so no two channels ever share one and no
name can leave the home::

    agent-bob      ->  agent-bob              bytes in [a-z0-9_-] stand for themselves
    a:b            ->  a%3Ab                  any other byte is %XX
    h-x            ->  %68-x                  "h-" is kept free for
    (over 120)     ->  h-<sha256 in hex>      names that would be too long; the name itself lies in `.name` beside
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import lru_cache

from lemegeton.errors import InvalidMessage

CHANNEL_BYTES_MAX = 256
NAME_BYTES_MAX = 64
ENCODED_BYTES_MAX = 120
DEAD_LETTER = "dead-letter:"

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_-")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_ESCAPED = re.compile("%([0-9A-F]{2})")


def agent_channel(name: str) -> str:
    """The unicast channel of one agent."""
    return f"agent-{name}"


HUB = "hub"
HUB_BROADCAST = "hub-broadcast"


def check_channel(channel: object) -> str:
    """The channel itself if it can be published to; otherwise `InvalidMessage` says why not.

    Braces are refused because Redis would take them for a cluster hash tag: two names would share what one owns.
    """
    name = _check_text(channel, "channel", _bytes_max(channel))
    if "{" in name or "}" in name:
        raise InvalidMessage(f"channel {name!r}: braces are kept for Redis hash tags; use another character")
    return name


def check_pattern(pattern: object) -> str:
    """The pattern itself if it can be subscribed to; otherwise `InvalidMessage`."""
    return _check_text(pattern, "pattern", _bytes_max(pattern))


def _bytes_max(name: object) -> int:
    """A dead-letter channel is longer than the channel it belongs to."""
    dead = isinstance(name, str) and name.startswith(DEAD_LETTER)
    return CHANNEL_BYTES_MAX + len(DEAD_LETTER) * dead


def check_name(name: object, what: str = "name") -> str:
    """The name of a bus, agent or subscription if it can be used in file names; otherwise `InvalidMessage`."""
    return _check_text(name, what, NAME_BYTES_MAX)


def _check_text(text: object, what: str, bytes_max: int) -> str:
    if not isinstance(text, str) or not text:
        raise InvalidMessage(f"{what} {text!r:.80}: must be a text of at least one character")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidMessage(f"{what} {text!r:.80}: holds half a surrogate pair, which UTF-8 cannot write") from None
    if size > bytes_max:
        raise InvalidMessage(f"{what} {text[:40]!r}…: {size} bytes, at most {bytes_max} are allowed")
    if _CONTROL.search(text):
        raise InvalidMessage(f"{what} {text!r:.80}: control characters are not allowed")
    return text


@lru_cache(maxsize=4096)
def encode_name(name: str) -> str:
    """A file name for ``name``: injective, also where the file system folds case, and at most 120 bytes."""
    data = name.encode()
    text = "".join(chr(b) if b in _PLAIN else f"%{b:02X}" for b in data)
    if text.startswith("h-"):
        text = "%68" + text[1:]
    return text if len(text) <= ENCODED_BYTES_MAX else "h-" + hashlib.sha256(data).hexdigest()


def is_hashed(encoded: str) -> bool:
    """True if ``encoded`` no longer holds the name, so that it has to be read from beside it."""
    return encoded.startswith("h-")


def decode_name(encoded: str) -> str | None:
    """The name that `encode_name` turned into ``encoded``; None for a hash and for anything it never makes."""
    if is_hashed(encoded):
        return None
    data = _ESCAPED.sub(lambda m: chr(int(m[1], 16)), encoded).encode("latin-1", "replace")
    try:
        name = data.decode()
    except UnicodeDecodeError:
        return None
    return name if name and encode_name(name) == encoded else None


# ------------------------------------------------------------------------------------------------ globs

_STAR = None
_Match = Callable[[str], bool]


def is_glob(pattern: str) -> bool:
    """True if the pattern can match a channel other than the one it spells."""
    return any(c in pattern for c in "*?[\\")


def compile_glob(pattern: str) -> Callable[[str], bool]:
    """A matcher for a glob as Redis knows it: ``* ? [ab] [^a] [a-z]`` and a backslash before a character.

    ``?`` and ``[...]`` stand for one character where Redis takes one byte of its UTF-8.

    It runs in time linear in pattern times name, whatever the pattern: no stack, no exponential case
    (CVE-2024-31228 is what the recursive way costs).  A glob matches a dead-letter channel only if it begins with
    ``dead-letter:``, so that ``*`` does not feed failures back.
    """
    if not is_glob(pattern):
        return lambda channel: channel == pattern
    tokens = _tokens(pattern)
    if pattern.startswith(DEAD_LETTER):
        return lambda channel: _matches(tokens, channel)
    return lambda channel: not channel.startswith(DEAD_LETTER) and _matches(tokens, channel)


def _tokens(pattern: str) -> list[_Match | None]:
    tokens: list[_Match | None] = []
    i = 0
    while i < len(pattern):
        token, i = _token(pattern, i)
        if not (token is _STAR and tokens and tokens[-1] is _STAR):
            tokens.append(token)
    return tokens


def _token(pattern: str, i: int) -> tuple[_Match | None, int]:
    c = pattern[i]
    if c == "*":
        return _STAR, i + 1
    if c == "?":
        return (lambda _: True), i + 1
    if c == "[":
        return _char_class(pattern, i + 1)
    if c == "\\" and i + 1 < len(pattern):
        i += 1
    return pattern[i].__eq__, i + 1


def _char_class(pattern: str, i: int) -> tuple[_Match, int]:
    """``[...]`` beginning behind the bracket; as in Redis a missing end closes it at the end of the pattern, and an
    escaped character begins no range."""
    negated = pattern[i : i + 1] == "^"
    i += negated
    ranges: list[tuple[str, str]] = []
    while i < len(pattern) and pattern[i] != "]":
        escaped = pattern[i] == "\\" and i + 1 < len(pattern)
        i += escaped
        low = high = pattern[i]
        if not escaped and pattern[i + 1 : i + 2] == "-" and i + 2 < len(pattern):
            high = pattern[i + 2]
            i += 2
        ranges.append((min(low, high), max(low, high)))
        i += 1
    return (lambda c: any(low <= c <= high for low, high in ranges) != negated), i + 1


def _matches(tokens: list[_Match | None], text: str) -> bool:
    """Greedy match that only ever goes back to the last star."""
    t = i = 0
    star, mark = -1, 0
    while i < len(text):
        token = tokens[t] if t < len(tokens) else None
        if token is not None and token(text[i]):
            t, i = t + 1, i + 1
        elif t < len(tokens) and token is _STAR:
            star, mark, t = t, i, t + 1
        elif star >= 0:
            mark += 1
            t, i = star + 1, mark
        else:
            return False
    return all(token is _STAR for token in tokens[t:])
