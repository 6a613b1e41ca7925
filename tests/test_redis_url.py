"""URLs of a Redis: what they say, and that neither an error nor a repr ever shows a password."""

from __future__ import annotations

import traceback

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lemegeton.errors import InvalidSetting
from lemegeton.redis_url import Target, parse_url, shown

CANARY = "CaNaRy"


@pytest.mark.parametrize(("url", "target"), [
    ("redis://", Target((("localhost", 6379),))),
    ("redis://example/", Target((("example", 6379),))),
    ("redis://example:7000/2", Target((("example", 7000),), db=2)),
    ("redis://[::1]:7000", Target((("::1", 7000),))),
    ("redis://:p%40ss%2F%25@h?protocol=3", Target((("h", 6379),), password="p@ss/%", protocol=3)),
    ("redis://bob:secret@h?db=4", Target((("h", 6379),), user="bob", password="secret", db=4)),
    ("redis://h?username=bob&password=s%40", Target((("h", 6379),), user="bob", password="s@")),
    ("rediss://h?ssl_ca_certs=/etc/ca.pem", Target((("h", 6379),), tls=True, files=(("ssl_ca_certs", "/etc/ca.pem"),))),
    ("unix:///run/redis.sock", Target(path="/run/redis.sock")),
    ("unix://bob:x@/run/a%20b?db=1", Target(path="/run/a b", user="bob", password="x", db=1)),
    ("redis+sentinel://:x@a,b:27000/main?db=1",
     Target((("a", 26379), ("b", 27000)), service="main", password="x", db=1)),
])
def test_a_url_says_where_and_as_whom(url: str, target: Target) -> None:
    assert parse_url(url) == target


@pytest.mark.parametrize("url", [
    "", "example", "http://h", "redis:/h", "redis://h:x", "redis://h:0", "redis://h:70000", "redis://h/x", "redis://h?db=x",
    "redis://h?db=-1", "redis://h?protocol=4", "redis://h?protocol=", "redis://h?timeout=1", "redis://h?x", "redis://a,b",
    "redis://h?ssl_ca_certs=x", "rediss://h?ssl_cert_reqs=none", "rediss://h?ssl_check_hostname=false", "redis://h#x",
    "unix://", "unix:///", "unix://run/redis.sock", "redis+sentinel://a,b", "redis+sentinel://a:x/main", "redis://[::1",
    "redis://a:1:2",
])
def test_what_cannot_be_used_is_refused_before_anything_is_tried(url: str) -> None:
    with pytest.raises(InvalidSetting, match="redis_url"):
        parse_url(url)


def test_a_verified_connection_cannot_be_made_an_unverified_one() -> None:
    with pytest.raises(InvalidSetting, match=r"cannot use ssl_cert_reqs; known options: .*ssl_ca_certs"):
        parse_url("rediss://h?ssl_cert_reqs=none")


def told(url: str) -> str:
    """All that is said about it, with what a traceback would show."""
    try:
        return repr(parse_url(url))
    except InvalidSetting as error:
        return "".join(traceback.format_exception(error)).replace(repr(url), "")


@pytest.mark.parametrize("url", [
    f"redis://:{CANARY}@h:1/0", f"redis://{CANARY}:{CANARY}@h", f"unix://:{CANARY}@/run/s", f"redis://h?password={CANARY}",
    f"redis+sentinel://:{CANARY}@a,b/main", f"redis://:{CANARY}/x@h", f"redis://:x/{CANARY}@h", f"redis://:x#{CANARY}@h",
    f"redis://:x?{CANARY}@h", f"redis://:{CANARY}", f"redis://u:{CANARY}", f"redis://:x/{CANARY}?y@h", f"redis://:1/{CANARY}@h",
    f"redis://:a@{CANARY}@h", f"redis://:[{CANARY}@h", f"redis://h:1?password=x@{CANARY}", f"http://:{CANARY}@h", CANARY,
    f"redis://:{CANARY}@h?x=1", f"redis://:{CANARY}@h:x", f"unix://:{CANARY}", f"redis://:{CANARY}\u2100@h",
])
def test_no_password_is_ever_shown(url: str) -> None:
    assert CANARY not in shown(url)
    assert CANARY not in told(url).replace(f"user='{CANARY}'", "")


@given(st.text(max_size=60) | st.text("redis:/@?#[]%&=,0x", max_size=30).map("redis://".__add__))
@example("redis://[")
@example("redis://h:²")
def test_any_text_is_a_url_or_refused(url: str) -> None:
    shown(url)
    told(url)
