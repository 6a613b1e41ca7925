"""Where a Redis is, as a URL says it; and how to show such a URL to eyes that may not see the password.  Pure.

::

    redis://[[user]:password@]host[:port][/db]          TCP
    rediss://…?ssl_ca_certs=file                        TLS; certificate and host name are always verified
    unix://[[user]:password@]/path[?db=n]               a unix socket
    redis+sentinel://[…@]host[:port],host…/service      the primary that a Sentinel names

A password in it is percent-encoded.  What does not fit is refused without repeating any of it: a password with an ``@``,
``/``, ``#`` or ``?`` in it makes a URL whose parts are not what they seem.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from lemegeton.errors import InvalidSetting

PORT = 6379
SENTINEL_PORT = 26379
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel")
OPTIONS = frozenset(("db", "username", "password", "protocol"))
TLS_OPTIONS = frozenset(("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"))
_NO_PORT = re.compile(r":(?!\d{1,5}(?:[,/]|$))[^,/\]]*(?=[,/]|$)")


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect and as whom."""

    places: tuple[tuple[str, int], ...] = ()
    """Host and port; several with ``service``, then they are Sentinels."""
    path: str = ""
    service: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    db: int = 0
    protocol: int = 2
    tls: bool = False
    files: tuple[tuple[str, str], ...] = ()
    """The files of TLS, by the names of their options."""


def shown(url: str) -> str:
    """A URL for eyes: no user, no password, no options, and nothing that may be part of one by mistake."""
    scheme, _, rest = url.partition("://")
    place = re.split(r"[?#]", rest, maxsplit=1)[0]
    if scheme not in SCHEMES or "@" in rest[len(place):]:
        return f"{scheme}://…" if scheme in SCHEMES else "(not a URL of a Redis)"
    place = place.rpartition("@")[2]
    return f"{scheme}://{place if scheme == 'unix' and place[:1] == '/' else _NO_PORT.sub('', place)}"


def parse_url(url: str) -> Target:
    """What a URL says; `InvalidSetting` if it says nothing that can be used."""
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query), keep_blank_values=True))
    except ValueError:  # its text may repeat a part of the password
        raise _refused(url, "cannot be read") from None
    if parts.scheme not in SCHEMES:
        raise _refused(url, f"must begin with one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
    if "@" in parts.path + parts.query or parts.fragment:
        raise _refused(url, "cannot be read")
    known = OPTIONS | TLS_OPTIONS if parts.scheme == "rediss" else OPTIONS
    if unknown := options.keys() - known:
        raise _refused(url, f"cannot use {', '.join(sorted(unknown))}; known options: {', '.join(sorted(known))}")
    return _target(url, parts, options)


def _target(url: str, parts: SplitResult, options: dict[str, str]) -> Target:
    login, _, place = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    unix, service = parts.scheme == "unix", parts.path.strip("/") if parts.scheme == "redis+sentinel" else ""
    if unix and (place or len(parts.path) < 2):
        raise _refused(url, "needs the whole path of the socket, unix:///path")
    if parts.scheme == "redis+sentinel" and not service:
        raise _refused(url, "needs the name of the service, redis+sentinel://host,host/service")
    if "," in place and not service:
        raise _refused(url, "names several hosts: only redis+sentinel:// can")
    db = "" if unix or service else parts.path.strip("/")
    return Target(
        places=() if unix else tuple(_place(url, one, SENTINEL_PORT if service else PORT) for one in place.split(",")),
        path=unquote(parts.path) if unix else "",
        service=unquote(service),
        user=options.get("username", unquote(user)),
        password=options.get("password", unquote(password)),
        db=_number(url, "db", options.get("db", db or "0"), 0, 1_000_000),
        protocol=_number(url, "protocol", options.get("protocol", "2"), 2, 3),
        tls=parts.scheme == "rediss",
        files=tuple(sorted((name, value) for name, value in options.items() if name in TLS_OPTIONS)),
    )


def _place(url: str, text: str, port: int) -> tuple[str, int]:
    """Host and port of ``host``, ``host:port`` or ``[::1]:port``."""
    found = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(\d+))?", text)
    if found is None:
        raise _refused(url, "cannot be read")
    return unquote(found[1].strip("[]")) or "localhost", _number(url, "port", found[2] or str(port), 1, 65_535)


def _number(url: str, what: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 9 and least <= int(text) <= most):
        raise _refused(url, f"{what} must be a number from {least} to {most}")
    return int(text)


def _refused(url: str, why: str) -> InvalidSetting:
    return InvalidSetting(f"redis_url {shown(url)}: {why}; a password has to be percent-encoded")
