"""Settings come from four places, in one order, and a wrong one is named with its place and value."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import pytest

from lemegeton.config import MIB, PREFIX, Settings, load_settings, without_secrets
from lemegeton.errors import InvalidSetting

EXAMPLES: dict[str, tuple[str, Any]] = {
    "home": ("/h", "/h"),
    "file_messaging_dir": ("/h/messages", "/h/messages"),
    "message_timeout": ("2.5", 2.5),
    "message_max_age": ("7", 7.0),
    "max_message_bytes": ("4096", 4096),
    "polling_interval": ("0.25", 0.25),
    "delete_processed_messages": ("true", True),
    "retry_attempts": ("9", 9),
    "retry_delay": ("0", 0.0),
    "disk_budget": ("0", 0),
    "disk_limit": ("123456", 123456),
    "on_full": ("raise", "raise"),
    "publish_timeout": ("1", 1.0),
    "segment_bytes": ("8192", 8192),
    "concurrency": ("3", 3),
    "handler_threads": ("2", 2),
    "drain_timeout": ("0", 0.0),
    "abandoned_after": ("60", 60.0),
    "dead_letter_max_age": ("61", 61.0),
    "open_files": ("17", 17),
    "allow_network_fs": ("1", True),
    "redis_url": ("redis://:secret@host:6379/2", "redis://:secret@host:6379/2"),
    "local_redis": ("off", "off"),
    "namespace": ("team-1", "team-1"),
    "max_stream_length": ("50", 50),
    "persist_messages": ("false", False),
    "max_pending_messages": ("77", 77),
    "gap_timeout": ("90", 90.0),
    "mode_probe_interval": ("0.5", 0.5),
    "mode_good_probes": ("1", 1),
    "mode_cooldown": ("0", 0.0),
}
POSITIVE = ("message_timeout", "message_max_age", "polling_interval", "publish_timeout", "retry_attempts",
            "max_message_bytes", "segment_bytes", "concurrency", "handler_threads", "disk_limit",
            "abandoned_after", "dead_letter_max_age", "max_stream_length", "max_pending_messages", "gap_timeout",
            "mode_probe_interval", "mode_good_probes")
NOT_NEGATIVE = ("open_files", "retry_delay", "disk_budget", "drain_timeout", "mode_cooldown")


def test_the_defaults_are_those_of_the_original_plan() -> None:
    found = load_settings({})
    assert found == Settings()
    assert (found.message_max_age, found.polling_interval, found.retry_attempts, found.retry_delay) == (3600, 1, 3, 1)
    assert (found.max_message_bytes, found.disk_budget, found.disk_limit) == (MIB, 10 * MIB, 1024 * MIB)
    assert (found.message_timeout, found.delete_processed_messages, found.on_full) == (None, False, "wait")
    assert (found.redis_url, found.local_redis, found.namespace, found.gap_timeout) == (None, "auto", "", None)
    assert (found.max_stream_length, found.persist_messages, found.max_pending_messages) == (1000, True, 1_000_000)
    assert (found.mode_probe_interval, found.mode_good_probes, found.mode_cooldown) == (1, 3, 5)


def test_every_setting_has_an_example_here() -> None:
    assert EXAMPLES.keys() == set(Settings.__struct_fields__)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_setting_has_its_variable(name: str) -> None:
    text, value = EXAMPLES[name]
    found = load_settings({}, {PREFIX + name.upper(): text})
    assert getattr(found, name) == value
    assert type(getattr(found, name)) is type(value)
    assert found != Settings()


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_setting_can_be_an_argument_and_a_line_of_either_file(name: str) -> None:
    _, value = EXAMPLES[name]
    line = f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}\n"
    found = [load_settings({name: value}), load_settings({}, toml_text=line),
             load_settings({}, toml_text="[tool.lemegeton]\n" + line, pyproject=True)]
    assert [getattr(one, name) for one in found] == [value] * 3


def test_arguments_win_over_variables_over_toml_over_defaults() -> None:
    toml = "retry_attempts = 7\nconcurrency = 7\nopen_files = 7\n"
    environ = {"LEMEGETON_RETRY_ATTEMPTS": "8", "LEMEGETON_CONCURRENCY": "8"}
    found = load_settings({"retry_attempts": 9}, environ, toml)
    assert (found.retry_attempts, found.concurrency, found.open_files, found.handler_threads) == (9, 8, 7, 16)


def test_an_argument_of_none_and_an_empty_variable_are_not_given() -> None:
    assert load_settings({"concurrency": None}, {"LEMEGETON_CONCURRENCY": ""}, "concurrency = 5").concurrency == 5


def test_variables_of_others_are_left_alone() -> None:
    assert load_settings({}, {"LEMEGETON_PLUGIN": "x", "PATH": "/bin", "concurrency": "1"}) == Settings()


def test_the_rest_of_a_pyproject_file_is_left_alone() -> None:
    assert load_settings({}, toml_text="[project]\nname = 'x'\n", pyproject=True) == Settings()
    assert load_settings({}, toml_text="[tool.other]\nhome = 1\n", pyproject=True) == Settings()


@pytest.mark.parametrize(("arguments", "environ", "toml", "text"), [
    ({"concurrency": "many"}, {}, "", "argument concurrency is 'many': Expected `int`, got `str`"),
    ({}, {"LEMEGETON_CONCURRENCY": "many"}, "", "LEMEGETON_CONCURRENCY is 'many': Expected `int`, got `str`"),
    ({}, {}, "concurrency = 'many'", "lemegeton.toml: concurrency is 'many': Expected `int`, got `str`"),
    ({"on_full": "drop"}, {}, "", "argument on_full is 'drop': Invalid enum value 'drop'"),
    ({"home": 5}, {}, "", "argument home is 5: Expected `str | null`, got `int`"),
    ({"concurency": 5}, {}, "", "argument concurency: there is no such setting; known: abandoned_after, "),
    ({}, {}, "concurency = 5", "lemegeton.toml: concurency: there is no such setting; known: "),
    ({}, {}, "home = ", "lemegeton.toml: not TOML: Invalid value (at end of document)"),
])
def test_an_error_names_the_place_the_setting_and_the_value(
    arguments: dict[str, Any], environ: dict[str, str], toml: str, text: str
) -> None:
    with pytest.raises(InvalidSetting) as caught:
        load_settings(arguments, environ, toml)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(("toml", "text"), [
    ("tool = 5", "pyproject.toml: tool is 5; it must be a table"),
    ("[tool]\nlemegeton = 'x'", "pyproject.toml: lemegeton is 'x'; it must be a table"),
    ("[tool.lemegeton]\nconcurrency = 0", "pyproject.toml: concurrency is 0; it must be above 0"),
    ("[tool", "pyproject.toml: not TOML: "),
])
def test_an_error_in_a_pyproject_file_names_that_file(toml: str, text: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        load_settings({}, toml_text=toml, pyproject=True)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("value", [0, -1])
def test_a_limit_must_be_above_zero(name: str, value: int) -> None:
    with pytest.raises(InvalidSetting, match=rf"^argument {name} is {value}; it must be above 0$"):
        load_settings({name: value})


@pytest.mark.parametrize("name", NOT_NEGATIVE)
def test_a_delay_or_budget_may_be_zero_and_not_negative(name: str) -> None:
    assert getattr(load_settings({name: 0}), name) == 0
    with pytest.raises(InvalidSetting, match=rf"^argument {name} is -1; it must not be negative$"):
        load_settings({name: -1})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["polling_interval", "message_timeout", "retry_delay", "abandoned_after", "gap_timeout"])
def test_a_time_is_a_finite_number(name: str, value: str) -> None:
    with pytest.raises(InvalidSetting, match=rf"^LEMEGETON_{name.upper()} is '{value}'"):
        load_settings({}, {PREFIX + name.upper(): value})


@pytest.mark.parametrize("name", ["redis_url", "local_redis"])
@pytest.mark.parametrize("value", [
    "redis://h", "rediss://user:pw@h:6380/1?ssl_ca_certs=/ca.pem", "unix://:pw@/run/redis.sock?db=1",
    "redis+sentinel://:pw@a:1,b/main",
])
def test_a_redis_is_named_by_a_url(name: str, value: str) -> None:
    assert getattr(load_settings({name: value}), name) == value


@pytest.mark.parametrize("value", ["secret", "http://secret", "redis://", "://secret", "secret://redis://", "Auto"])
@pytest.mark.parametrize("name", ["redis_url", "local_redis"])
def test_what_is_no_url_of_a_redis_is_refused_without_showing_it(name: str, value: str) -> None:
    with pytest.raises(InvalidSetting, match=r"is \*\*\*; it must be .*redis://, rediss://") as caught:
        load_settings({}, {PREFIX + name.upper(): value})
    assert str(caught.value).startswith(f"LEMEGETON_{name.upper()} is ***")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://h:99999", "redis://:secret@h/nodb", "redis://h?timeout=1", "unix://x", "redis://[::1",
                                 "redis+sentinel://:secret@h"])
def test_a_url_that_nobody_can_connect_to_is_refused_at_start(url: str) -> None:
    with pytest.raises(InvalidSetting, match=r"^LEMEGETON_REDIS_URL: redis_url [^ ]+: \w+") as caught:
        load_settings({}, {PREFIX + "REDIS_URL": url})
    assert "secret" not in str(caught.value)


def test_a_url_of_the_wrong_type_is_refused_without_showing_it() -> None:
    with pytest.raises(InvalidSetting, match=r"^argument redis_url is \*\*\*: Expected") as caught:
        load_settings({"redis_url": ["redis://:secret@h"]})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", [
    "a{b", "a}b", "a b", "a\nb", "a\x00", "a*", "a?", "[a]", "a\\b", "\u2028", "\ud800", "a" * 65])
def test_a_namespace_is_plain_text(value: str) -> None:
    with pytest.raises(InvalidSetting, match=r"^argument namespace is .* it must be plain text of at most 64 bytes"):
        load_settings({"namespace": value})


@pytest.mark.parametrize("value", ["", "team", "team:1", "größe", "a" * 64])
def test_a_namespace_may_be_any_plain_text(value: str) -> None:
    assert load_settings({"namespace": value}).namespace == value


@pytest.mark.parametrize(("url", "shown"), [
    ("redis://h:6379/2", "redis://h:6379/2"),
    ("redis://bob:secret@h", "redis://h"),
    ("redis://:se@secret@h/1", "redis://h/1"),
    ("rediss://h/0?password=secret", "rediss://h/0"),
    ("unix://:secret@/run/r.sock?db=1", "unix:///run/r.sock"),
    ("redis+sentinel://:secret@a:1,b:2/main", "redis+sentinel://a:1,b:2/main"),
    ("redis://h?password=sec@secret", "redis://***"),
    ("redis://:secret?@h", "redis://***"),
    ("redis://:secret/more@h", "redis://***"),
    ("redis://:secret#@h", "redis://***"),
    ("secret://x", "secret://x"),
    ("secret:x@://a?@", "://***"),
    ("secret", "***"),
    ("auto", "auto"),
])
def test_a_url_is_shown_without_user_password_and_options(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_settings_show_themselves_without_secrets() -> None:
    found = Settings(redis_url="redis://bob:secret@h/1", local_redis="unix:///x?password=secret", namespace="team")
    for text in (repr(found), str(found), f"{found}", str(dict(found.__rich_repr__()))):
        assert "secret" not in text
        assert "bob" not in text
    assert "redis_url='redis://h/1', local_redis='unix:///x', namespace='team', max_stream_length=1000" in repr(found)
    assert "redis_url=None, local_redis='auto'" in repr(Settings())


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        load_settings({}).concurrency = 5  # type: ignore[misc]


@pytest.mark.parametrize("name", ["home", "file_messaging_dir"])
def test_a_place_may_be_given_as_a_path(name: str) -> None:
    assert getattr(load_settings({name: PurePosixPath("/a/b")}), name) == "/a/b"


def test_a_path_is_no_value_of_another_setting() -> None:
    with pytest.raises(InvalidSetting, match="namespace"):
        load_settings({"namespace": PurePosixPath("/a")})
