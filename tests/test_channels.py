"""Channel names never collide and never escape their directory; globs match as Redis matches them."""

from __future__ import annotations

import re
import time
from hashlib import sha256

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lemegeton.channels import (
    CHANNEL_BYTES_MAX,
    DEAD_LETTER,
    ENCODED_BYTES_MAX,
    NAME_BYTES_MAX,
    agent_channel,
    check_channel,
    check_name,
    check_pattern,
    compile_glob,
    decode_name,
    encode_name,
    is_glob,
    is_hashed,
)
from lemegeton.errors import InvalidMessage

NASTY = [
    "../../etc", ".", "..", "/x", "/", "a:b", "a_b", "a/b", "A", "a", "\u00e9", "e\u0301", "ü", "h-x", "H-x", "h",
    "%68-x", "%", "%41", "%2541", "con", "a b", "~", "-", "_", "x.log", ".lemegeton", "ẞ", "ß", "İ", "\U0001f600",
]
NAMES = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.sampled_from("aAbBhH-_.%/:~é4613"), min_size=1, max_size=12),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64),
)
ENCODED = re.compile(r"(?:[a-z0-9_-]|%[0-9A-F]{2})+")


# Encoding


@given(NAMES)
@example("h-" + "x" * 117)
@example("x" * 120)
@example("x" * 121)
def test_an_encoded_name_is_a_safe_bounded_file_name(name: str) -> None:
    encoded = encode_name(name)
    assert ENCODED.fullmatch(encoded)
    assert len(encoded) <= ENCODED_BYTES_MAX


@given(NAMES)
def test_an_encoded_name_decodes_back_or_is_a_hash(name: str) -> None:
    encoded = encode_name(name)
    if is_hashed(encoded):
        assert encoded == "h-" + sha256(name.encode()).hexdigest()
        assert decode_name(encoded) is None
    else:
        assert decode_name(encoded) == name


@settings(max_examples=500)
@given(NAMES, NAMES)
def test_different_names_never_share_a_directory_also_where_case_is_folded(one: str, other: str) -> None:
    same = one == other
    assert (encode_name(one) == encode_name(other)) == same
    assert (encode_name(one).casefold() == encode_name(other).casefold()) == same


def test_the_nasty_names_are_all_apart_also_where_case_is_folded() -> None:
    assert len({encode_name(name).casefold() for name in NASTY}) == len(NASTY)


@given(NAMES | st.text(st.sampled_from("ab%46Aa8h-é."), max_size=8))
def test_only_what_encoding_makes_is_decoded(text: str) -> None:
    name = decode_name(text)
    assert name is None or encode_name(name) == text


@pytest.mark.parametrize("text", ["", "A", "a.b", "%", "%4", "%4x", "%61", "%3a", "%FF", "é", "h-x", ".", "..", "Ā"])
def test_anything_else_in_the_directory_is_no_channel(text: str) -> None:
    assert decode_name(text) is None


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=121, max_size=256))
def test_a_long_name_becomes_a_hash(name: str) -> None:
    assert is_hashed(encode_name(name))
    assert not is_hashed(encode_name("h-ello"))


# What can be published to


@pytest.mark.parametrize("name", ["hub", "agent-bob", "a:b/c d", "é" * 128, "x" * CHANNEL_BYTES_MAX, "*", "..", "."])
def test_a_channel_is_any_text_of_up_to_256_bytes(name: str) -> None:
    assert check_channel(name) == name


@pytest.mark.parametrize(("name", "why"), [
    ("", "must be a text of at least one character"),
    (None, "channel None: must be a text"),
    (b"hub", "channel b'hub': must be a text"),
    ("x" * 257, "257 bytes, at most 256 are allowed"),
    ("é" * 129, "258 bytes, at most 256 are allowed"),
    ("a\nb", r"channel 'a\\nb': control characters are not allowed"),
    ("a\0b", "control characters"),
    ("\x1b[2J", "control characters"),
    ("\x85", "control characters"),
    ("\u2028", "control characters"),
    ("\ud800", "holds half a surrogate pair"),
    ("a{b}", "braces are kept for Redis hash tags"),
    ("}", "braces"),
])
def test_another_channel_is_refused_with_the_reason(name: object, why: str) -> None:
    with pytest.raises(InvalidMessage, match=why):
        check_channel(name)


@given(st.text())
def test_a_checked_channel_has_a_directory(name: str) -> None:
    refused = ""
    try:
        check_channel(name)
    except InvalidMessage as error:
        refused = str(error)
    assert refused.isprintable()
    assert refused or ENCODED.fullmatch(encode_name(name))


def test_a_pattern_may_have_braces_and_is_bounded() -> None:
    assert check_pattern("a{b}*") == "a{b}*"
    with pytest.raises(InvalidMessage, match=r"pattern '\*"):
        check_pattern("*" * 10_000)


def test_a_name_is_bounded_and_said_by_its_kind() -> None:
    assert check_name("x" * NAME_BYTES_MAX) == "x" * NAME_BYTES_MAX
    with pytest.raises(InvalidMessage, match=r"^durable subscription 'x.*65 bytes, at most 64"):
        check_name("x" * 65, "durable subscription")


def test_an_agent_has_a_channel_of_its_own() -> None:
    assert agent_channel("bob") == "agent-bob"


# Globs


def redis_match(p: str, s: str) -> bool:
    """A port of ``stringmatchlen`` of Redis, character for byte, as slow as it is."""
    while p and s:
        if p[0] == "*":
            while p[1:2] == "*":
                p = p[1:]
            if len(p) == 1:
                return True
            return any(redis_match(p[1:], s[i:]) for i in range(len(s)))
        if p[0] == "[":
            matched, p = redis_class(p[1:], s[0])
            if not matched:
                return False
        else:
            if p[0] == "\\" and len(p) >= 2:
                p = p[1:]
                literal = True
            else:
                literal = p[0] != "?"
            if literal and p[0] != s[0]:
                return False
        s, p = s[1:], p[1:]
        if not s:
            p = p.lstrip("*")
            break
    return not p and not s


def redis_class(p: str, c: str) -> tuple[bool, str]:
    """The part for ``[``; the pattern comes back at the closing bracket, or empty."""
    negated = p[:1] == "^"
    p = p[negated:]
    match = False
    while True:
        if p[:1] == "\\" and len(p) >= 2:
            p = p[1:]
            match |= p[0] == c
        elif p[:1] in ("]", ""):
            break
        elif len(p) >= 3 and p[1] == "-":
            low, high = sorted((p[0], p[2]))
            match |= low <= c <= high
            p = p[2:]
        else:
            match |= p[0] == c
        p = p[1:]
    return match != negated, p


GLOBS = st.lists(st.sampled_from(["*", "**", "?", "[", "]", "^", "-", "\\", "a", "b", "c", "z", "[a-c]", "[^b]", "é"]),
                 min_size=1, max_size=9).map("".join)
TEXTS = st.text(st.sampled_from("abcz-]^[\\*?é"), min_size=1, max_size=7)


@settings(max_examples=2000)
@given(GLOBS, TEXTS)
@example("[\\a-z]", "m")
@example("[a-\\z]", "b")
@example("[z-a]", "m")
@example("[a", "a")
@example("[", "a")
@example("[^", "a")
@example("[\\", "\\")
@example("[]a]", "]a]")
@example("a\\", "a\\")
@example("a*\\*", "ab*")
@example("*a*b", "aab")
@example("[a-]]", "]")
def test_a_glob_matches_what_redis_matches(pattern: str, text: str) -> None:
    assert compile_glob(pattern)(text) == redis_match(pattern, text)


@pytest.mark.parametrize(("pattern", "yes", "no"), [
    ("hub", ["hub"], ["hub2", "Hub", "hu"]),
    ("agent-*", ["agent-", "agent-bob"], ["agent", "xagent-"]),
    ("*", ["hub", "x"], ["dead-letter:hub"]),
    ("?ead-letter:*", [], ["dead-letter:hub"]),
    ("dead-letter:*", ["dead-letter:", "dead-letter:hub"], ["hub"]),
    ("dead-letter:hub", ["dead-letter:hub"], ["hub"]),
    ("\\*", ["*"], ["a"]),
    ("[a-c]?", ["ab", "cz"], ["da", "a", "abc"]),
    ("caf?", ["café"], ["cafés"]),
])
def test_a_glob_matches_what_one_expects(pattern: str, yes: list[str], no: list[str]) -> None:
    matches = compile_glob(pattern)
    assert [name for name in [*yes, *no] if matches(name)] == yes


@given(GLOBS, TEXTS)
def test_a_pattern_that_is_no_glob_matches_only_itself(pattern: str, text: str) -> None:
    if not is_glob(pattern):
        assert compile_glob(pattern)(text) == (pattern == text)
        assert compile_glob(pattern)(pattern)


@given(GLOBS, TEXTS)
def test_only_a_pattern_for_dead_letters_matches_one(pattern: str, text: str) -> None:
    assert not is_glob(pattern) or not compile_glob(pattern)(DEAD_LETTER + text)


@pytest.mark.parametrize("pattern", [
    "*a" * 128, "*?" * 128, "*" * 256, "a*" * 127 + "b", "[" + "a-z" * 84 + "]*x", "*[^a]" * 51, "**a" * 85 + "b",
])
def test_a_hostile_pattern_costs_no_more_than_pattern_times_name(pattern: str) -> None:
    matches = compile_glob(check_pattern(pattern))
    began = time.process_time()
    for _ in range(5):
        matches("a" * CHANNEL_BYTES_MAX)
    assert time.process_time() - began < 5.0  # an exponential matcher would need centuries


def test_a_glob_looks_at_no_more_than_pattern_times_name_characters() -> None:
    class Counting(str):
        looks = 0

        def __getitem__(self, key: object) -> str:
            Counting.looks += 1
            return str.__getitem__(self, key)  # type: ignore[index]

    pattern, name = "*a" * 100 + "b", "a" * 200
    assert not compile_glob(pattern)(Counting(name))
    assert 0 < Counting.looks <= len(pattern) * len(name)
