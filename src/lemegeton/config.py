"""Settings: arguments, then ``LEMEGETON_*`` variables, then ``lemegeton.toml`` or ``[tool.lemegeton]``, then defaults.

Pure: the environment and the text of the files are handed in, so that what a process runs with can be told from them.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from typing import Any, Literal, get_type_hints

import msgspec

from lemegeton.errors import InvalidSetting

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
    """How often a handler gets a message in all before it becomes a dead letter."""
    retry_delay: float = 1.0
    """The wait before the second attempt; it doubles with each further one, up to a minute."""
    disk_budget: int = 10 * MIB
    """How much of the settled records is kept for history."""
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


_POSITIVE = ("message_timeout", "message_max_age", "polling_interval", "publish_timeout", "retry_attempts",
             "max_message_bytes", "segment_bytes", "concurrency", "handler_threads", "disk_limit",
             "abandoned_after", "dead_letter_max_age")
_NOT_NEGATIVE = ("open_files", "retry_delay", "disk_budget", "drain_timeout")


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
    try:
        value = msgspec.convert(given, _TYPES[name], strict=False)
    except msgspec.ValidationError as error:
        raise InvalidSetting(f"{where} is {given!r:.80}: {error}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidSetting(f"{where} is {given!r:.80}; it must be a finite number")
    if name in _POSITIVE and not value > 0:
        raise InvalidSetting(f"{where} is {given!r:.80}; it must be above 0")
    if name in _NOT_NEGATIVE and not value >= 0:
        raise InvalidSetting(f"{where} is {given!r:.80}; it must not be negative")
    return value
