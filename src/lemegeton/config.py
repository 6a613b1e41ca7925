"""Settings: arguments, then ``LEMEGETON_*`` variables, then ``lemegeton.toml`` or ``[tool.lemegeton]``, then defaults.

Pure: the environment and the text of the files are handed in, so that what a process runs with can be told from them.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from typing import Any, Literal, get_type_hints

import msgspec

from lemegeton.errors import InvalidSetting
from lemegeton.redis_url import SCHEMES, parse_url

PREFIX = "LEMEGETON_"
MIB = 1024 * 1024


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting with its default; times in seconds, sizes in bytes."""

    home: str | None = None
    """The directory that holds everything; None: the nearest `.lemegeton` upwards, else a new one here."""
    file_messaging_dir: str | None = None
    """The original plan's name: sets `home` to its parent."""
    message_timeout: float | None = None
    """Time to live of a message published without one; None: it never expires."""
    message_max_age: float = 3600.0
    """How long a record stays that no durable subscription asks for."""
    max_message_bytes: int = MIB
    """The largest message, encoded."""
    polling_interval: float = 1.0
    """The idle poll behind the doorbells."""
    delete_processed_messages: bool = False
    """True: a settled segment goes at once instead of by `disk_budget`."""
    retry_attempts: int = 3
    """How often a handler gets a message in all before it becomes a dead letter; processes that ended meanwhile count."""
    retry_delay: float = 1.0
    """The wait before the second attempt; it doubles with each further one, up to a minute."""
    disk_budget: int = 10 * MIB
    """How much of the settled records is kept for history; less when `disk_limit` is near."""
    disk_limit: int = 1024 * MIB
    """How much all records may take; then publishers wait or are refused."""
    on_full: Literal["wait", "raise"] = "wait"
    """At the limit: wait up to `publish_timeout` for room, or raise at once."""
    publish_timeout: float = 5.0
    """How long `publish` waits for room."""
    segment_bytes: int = 4 * MIB
    """A segment of this size is followed by a new one."""
    concurrency: int = 64
    """How many lanes of one subscription are in a handler at the same time."""
    handler_threads: int = 16
    """How many synchronous handlers run at the same time."""
    drain_timeout: float = 5.0
    """How long `stop` lets running handlers finish."""
    abandoned_after: float = 7 * 86400.0
    """A durable subscription that nobody held for so long loses its place."""
    dead_letter_max_age: float = 30 * 86400.0
    """How long dead letters are kept."""
    open_files: int = 0
    """How many segments are kept open for writing, and as many for reading; 0: an eighth of the process's limit of files."""
    allow_network_fs: bool = False
    """True: a home on a network file system is used; its locks and visibility are then what that system makes them."""
    redis_url: str | None = None
    """The shared Redis, which carries messages to other sites; None: there are no other sites."""
    local_redis: str = "auto"
    """The Redis of this host while the shared one is away: `auto` starts one when it is needed, `off`, or a URL."""
    namespace: str = ""
    """Put before every name in Redis, so that several systems can share one."""
    max_stream_length: int = 1000
    """How many entries of a channel Redis keeps; what durable readers have not settled is kept up to ten times that."""
    persist_messages: bool = True
    """False: Redis only passes messages on, so other sites see each at most once."""
    max_pending_messages: int = 1_000_000
    """How many records may wait for the shared Redis; then publishers wait or are refused."""
    gap_timeout: float | None = None
    """How long a reader waits for records that Redis lost and that their site could send again; None: as long as it takes."""
    mode_probe_interval: float = 1.0
    """The time between two probes of a Redis; five times that while all is calm."""
    mode_good_probes: int = 3
    """So many good probes in a row promote the mode."""
    mode_cooldown: float = 5.0
    """The least time between a change of the mode and a promotion."""

    def __repr__(self) -> str:
        """As it would be made, without the users, passwords and options of URLs."""
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """What `repr` shows, for whoever prints it in colours."""
        return [(name, without_secrets(value) if name in _SECRET and value is not None else value)
                for name in self.__struct_fields__ for value in (getattr(self, name),)]


_PATHS = frozenset(("home", "file_messaging_dir"))
"""Settings that may be given as any path object."""
_SECRET = frozenset(("redis_url", "local_redis"))
"""Settings whose value may hold a password."""
_URL = re.compile(r"(?P<scheme>[a-z+]+)://(?:[^/?#]*@)?(?P<place>[^/?#@]*(?:/[^?#@]*)?)(?:\?[^@#]*)?")
_NAMESPACE_BYTES_MAX = 64
_NOT_PLAIN = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029\ud800-\udfff{}*?\[\]\\]")
"""Braces are hash tags to Redis, and the next five are patterns to it: a namespace stands before both."""


def without_secrets(text: str) -> str:
    """A URL with its scheme and place alone, for eyes; one that could be read in two ways loses its place as well."""
    scheme, found = text.partition("://")[0], _URL.fullmatch(text)
    if "://" not in text:
        return text if text in ("auto", "off") else "***"
    return f"{found['scheme']}://{found['place']}" if found else f"{scheme if scheme in SCHEMES else ''}://***"


_POSITIVE = ("message_timeout", "message_max_age", "polling_interval", "publish_timeout", "retry_attempts",
             "max_message_bytes", "segment_bytes", "concurrency", "handler_threads", "disk_limit",
             "abandoned_after", "dead_letter_max_age", "max_stream_length", "max_pending_messages", "gap_timeout",
             "mode_probe_interval", "mode_good_probes")
_NOT_NEGATIVE = ("open_files", "retry_delay", "disk_budget", "drain_timeout", "mode_cooldown")


def load_settings(
    arguments: Mapping[str, Any], environ: Mapping[str, str] | None = None, toml_text: str = "", *,
    pyproject: bool = False
) -> Settings:
    """The settings from all sources; `InvalidSetting` names the source and the value that is wrong.

    ``pyproject`` says that ``toml_text`` is a ``pyproject.toml``, whose table ``[tool.lemegeton]`` counts.
    """
    given = {
        **_from_toml(toml_text, pyproject),
        **_from_environ(environ or {}),
        **{key: (f"argument {key}", value) for key, value in arguments.items() if value is not None},
    }
    return Settings(**{name: _checked(name, where, value) for name, (where, value) in given.items()})


_Given = dict[str, tuple[str, Any]]
"""Name to where it comes from and what it is."""


def _from_toml(text: str, pyproject: bool) -> _Given:
    file = "pyproject.toml" if pyproject else "lemegeton.toml"
    try:
        table: Any = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidSetting(f"{file}: not TOML: {error}") from None
    for key in ("tool", "lemegeton") if pyproject else ():
        table = table.get(key, {})
        if not isinstance(table, dict):
            raise InvalidSetting(f"{file}: {key} is {table!r:.80}; it must be a table")
    return {key: (f"{file}: {key}", value) for key, value in table.items()}


def _from_environ(environ: Mapping[str, str]) -> _Given:
    known = {PREFIX + name.upper(): name for name in Settings.__struct_fields__}
    return {known[key]: (key, value) for key, value in environ.items() if key in known and value}


_TYPES = get_type_hints(Settings)


def _checked(name: str, where: str, given: Any) -> Any:
    """The value as its setting takes it."""
    if name not in _TYPES:
        raise InvalidSetting(f"{where}: there is no such setting; known: {', '.join(sorted(_TYPES))}")
    shown = "***" if name in _SECRET else f"{given!r:.80}"
    if name in _PATHS and hasattr(given, "__fspath__"):
        given = given.__fspath__()
    try:
        value = msgspec.convert(given, _TYPES[name], strict=False)
    except msgspec.ValidationError as error:
        raise InvalidSetting(f"{where} is {shown}: {error}") from None
    wrong = _wrong(name, value)
    if wrong:
        raise InvalidSetting(f"{where} is {shown}; it must {wrong}")
    if name in _SECRET and value not in (None, "auto", "off"):
        _check_url(where, value)
    return value


def _check_url(where: str, url: str) -> None:
    """A URL that nobody can connect to is refused at start: later it would look like a Redis that is away."""
    try:
        parse_url(url)
    except InvalidSetting as error:
        raise InvalidSetting(f"{where}: {error}") from None


def _wrong(name: str, value: Any) -> str:
    """What the value of a setting must be and is not; empty if nothing is wrong with it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "be a finite number"
    if name in _POSITIVE and value is not None and not value > 0:
        return "be above 0"
    if name in _NOT_NEGATIVE and not value >= 0:
        return "not be negative"
    if name == "namespace" and (_NOT_PLAIN.search(value) or len(value.encode()) > _NAMESPACE_BYTES_MAX):
        return f"be plain text of at most {_NAMESPACE_BYTES_MAX} bytes, without spaces, braces or any of *?[]\\"
    if name in _SECRET and value is not None and not _is_redis(name, value):
        what = "be auto, off or" if name == "local_redis" else "be"
        return f"{what} a URL that begins with one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}"
    return ""


def _is_redis(name: str, value: str) -> bool:
    scheme, separator, place = value.partition("://")
    return (scheme in SCHEMES and bool(separator and place)) or (
        name == "local_redis" and value in ("auto", "off"))
