"""``lemegeton mode``: what it finds, what it sets, and that looking changes nothing."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from lemegeton.cli.modes import NAMES
from lemegeton.local_redis import LocalRedis
from lemegeton.logs.redis_entries import Keys
from lemegeton.mode_rules import CoordinationMode
from lemegeton.mode_switch import read_switch
from lemegeton.osfs import os_runtime
from lemegeton.testing.servers import RedisServer
from test_cli import Run, lines, running, tree

pytestmark = pytest.mark.usefixtures("no_settings")


@pytest.fixture
def home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / ".lemegeton"
    Run(path, capsys)("pub", "c", "1")
    return path


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(home, capsys)


def switch(home: Path) -> CoordinationMode | None:
    runtime = os_runtime()
    manual = read_switch(runtime.fs, str(home), runtime.uid, runtime.wall_ms()).manual
    return manual.mode if manual else None


def test_without_a_redis_it_is_isolated_and_looking_changes_nothing(run: Run, home: Path) -> None:
    before = tree(home)
    [found] = run("mode")
    assert found == {
        "mode": "isolated", "reason": "shared Redis: no redis_url is set; local Redis: none is running", "manual": None,
        "switch_error": "", "transitions": []}
    assert run("mode", "show") == [found]
    assert tree(home) == before


def test_a_shared_redis_that_answers_tells_the_last_changes(
    run: Run, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = {"from": "isolated", "to": "distributed", "reason": "it answered", "at": 1_700_000_000_000, "by": "alice@s"}
    server.cli("ZADD", Keys("team").history, change["at"], json.dumps(change))
    monkeypatch.setenv("LEMEGETON_REDIS_URL", server.url("redis"))
    monkeypatch.setenv("LEMEGETON_NAMESPACE", "team")
    [found] = run("mode", "show")
    assert (found["mode"], found["reason"], found["transitions"]) == ("distributed", "the shared Redis answers", [change])


def test_a_shared_redis_whose_history_is_none_still_answers(
    run: Run, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cli("SET", Keys().history, "x")
    monkeypatch.setenv("LEMEGETON_REDIS_URL", server.url("unix"))
    [found] = run("mode", "show")
    assert (found["mode"], found["transitions"]) == ("distributed", [])


def test_a_shared_redis_that_does_not_answer_is_a_reason_without_its_password(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEMEGETON_REDIS_URL", f"unix://:canary@{tmp_path}/none")
    monkeypatch.setenv("LEMEGETON_LOCAL_REDIS", "off")
    [found] = run("mode", "show")
    assert found["mode"] == "isolated"
    assert re.match(r"shared Redis: .*none.*; local Redis: none is running", found["reason"])
    assert "canary" not in str(found)


def test_a_local_redis_that_runs_makes_it_degraded_and_is_not_joined(
    run: Run, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = LocalRedis(os_runtime(), str(home))
    assert asyncio.run(local.join()) is not None
    [found] = run("mode", "show")
    assert (found["mode"], found["reason"]) == (
        "degraded", "shared Redis: no redis_url is set; the local Redis answers")
    run("mode", "set", "isolated", "--reason", "night")
    [found] = run("mode", "show")
    assert (found["mode"], found["reason"]) == ("isolated", "by hand: night")
    asyncio.run(local.leave())
    run("mode", "set", "degraded", "--reason", "save it")
    [found] = run("mode", "show")
    assert found["reason"] == "by hand: save it; shared Redis: no redis_url is set; local Redis: none is running"


@pytest.mark.parametrize("name", NAMES)
def test_every_mode_can_be_set(run: Run, home: Path, name: str) -> None:
    assert run("mode", "set", name, "--reason", "because") == [{"mode": name, "reason": "because", "until": None}]
    assert switch(home) is (None if name == "auto" else CoordinationMode(name))
    [found] = run("mode", "show")
    assert (found["manual"] is None) == (name == "auto")


def test_a_switch_has_an_end_if_it_is_given_one(run: Run) -> None:
    now_ms = os_runtime().wall_ms()
    [said] = run("mode", "set", "isolated", "--for", "90.5")
    assert 90_500 <= said["until"] - now_ms <= 100_000
    [found] = run("mode", "show")
    assert found["manual"] == {"mode": "isolated", "reason": "", "until": said["until"]}
    assert found["reason"] == "by hand: no reason given"


@pytest.mark.parametrize("arguments", [
    ("set",), ("set", "off"), ("set", "isolated", "--for", "0"), ("set", "isolated", "--for", "soon"),
    ("set", "auto", "--for", "5"), ("set", "isolated", "--reason", "x" * 201), ("set", "isolated", "--reason", "a\nb"),
    ("unset",),
])
def test_wrong_usage_is_said_and_sets_nothing(run: Run, home: Path, arguments: tuple[str, ...]) -> None:
    run.error("mode", *arguments, code=2)
    assert not (home / "mode").exists()


def test_people_read_lines(run: Run, home: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lemegeton.cli.output.Options.wants_json", False)  # somebody reads it
    change = {"from": "isolated", "to": "distributed", "reason": "it\x1b[31m answered", "at": 1_700_000_000_000, "by": "a@s"}
    server.cli("ZADD", Keys().history, change["at"], json.dumps(change))
    monkeypatch.setenv("LEMEGETON_REDIS_URL", server.url("redis"))
    _, out, _ = run.raw("mode", "set", "isolated", "--reason", "night", "--for", "60")
    assert re.fullmatch(r"isolated until \d{4}-.*; every process of this site follows within a second\n", out)
    _, out, _ = run.raw("mode")
    assert re.fullmatch(
        r"mode    isolated\nreason  by hand: night\nmanual  isolated until \d{4}-\d\d-\d\d .{12}  night\nlast changes\n"
        r"  2023-11-1\d .{12}  isolated → distributed  a@s  it\\x1b\[31m answered\n", out)
    (home / "mode").write_text("?")
    _, out, _ = run.raw("mode")
    assert "mode    distributed\n" in out
    assert "manual  " + str(home / "mode") in out
    run.raw("mode", "set", "auto")
    monkeypatch.delenv("LEMEGETON_REDIS_URL")
    _, out, _ = run.raw("mode")
    assert out.endswith("manual  none\nlast changes\n  none\n")


def test_it_is_a_command_of_the_program(home: Path) -> None:
    with running(home, "mode", "show", "--json") as process:
        assert lines(process, 1)[0]["mode"] == "isolated"
        assert process.wait() == 0


# ---------------------------------------------------------------------------------------------- a Redis that refuses


@pytest.fixture
def shared(own_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> RedisServer:
    """A server to hurt, as the shared Redis of the command line."""
    monkeypatch.setenv("LEMEGETON_REDIS_URL", own_server.url())
    monkeypatch.setenv("LEMEGETON_LOCAL_REDIS", "off")
    return own_server


def test_a_redis_that_takes_nothing_is_said_and_bridge_does_not_claim_that_it_has_it(run: Run, shared: RedisServer) -> None:
    shared.cli("CONFIG", "SET", "maxmemory", "1")
    code, out, said = run.raw("pub", "c", "1")
    assert (code, json.loads(out)["level"]) == (0, "local")
    assert "OOM" in said
    assert "give it more" in said
    assert "OOM" in run.error("pub", "c", "2", "--ack", "redis", "--timeout", "1.5", code=3)
    assert "OOM" in run.error("bridge", "--timeout", "2", code=3)
    assert run("status")[0]["redis"]["lag"] == {"c": 3}
    shared.cli("CONFIG", "SET", "maxmemory", "0")
    assert run("bridge") == [{"relayed": True}]
    assert run("status")[0]["redis"]["lag"] == {}
    assert shared.cli("XLEN", "message-stream:c") == 3


def test_a_redis_without_scripts_is_said_and_bridge_does_not_claim_that_it_has_it(
    run: Run, shared: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.cli("ACL", "SETUSER", "plain", "on", ">secret", "~*", "&*", "+@all", "-@scripting")
    monkeypatch.setenv("LEMEGETON_REDIS_URL", shared.url(user="plain", password="secret"))
    code, _, said = run.raw("pub", "c", "1")
    assert code == 0
    assert "docs/redis.md lists the commands" in said
    assert "docs/redis.md" in run.error("bridge", "--timeout", "2", code=3)
    assert "secret" not in said


def test_a_redis_that_evicts_is_warned_of(run: Run, shared: RedisServer) -> None:
    shared.cli("CONFIG", "SET", "maxmemory", "100mb")
    shared.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    run("pub", "c", "1", "--ack", "redis", "--timeout", "5")
    redis = run("status")[0]["redis"]
    assert (redis["up"], redis["lag"]) == (True, {})
    assert "maxmemory-policy allkeys-lru" in redis["cause"]
    for harmless in ("volatile-lru", "noeviction"):
        shared.cli("CONFIG", "SET", "maxmemory-policy", harmless)
        assert run("status")[0]["redis"]["cause"] == ""


def test_keys_of_another_type_are_said_by_status(run: Run, shared: RedisServer) -> None:
    run("pub", "c", "1", "--ack", "redis", "--timeout", "5")
    shared.cli("SET", "relay:{message-stream:c}", "garbage")
    redis = run("status")[0]["redis"]
    assert redis["up"]
    assert "WRONGTYPE" in redis["cause"]
