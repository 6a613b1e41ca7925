"""``lemegeton dlq``: dead letters from the command line."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from lemegeton import MessageBus
from lemegeton.testing.servers import RedisServer
from test_cli import PROGRAM, Run, home, on_terminal, run  # noqa: F401  fixtures
from test_deadletters import Fragile, dead
from test_redis_side import redis, shared_server, until  # noqa: F401  fixtures

pytestmark = pytest.mark.usefixtures("no_settings")


@pytest.fixture
async def letters(home: Path) -> dict[Any, str]:  # noqa: F811
    """A home with three dead letters; payload → id."""
    async with MessageBus("worker", home=str(home), retry_attempts=1) as bus:
        await bus.subscribe(["a1", "b1"], Fragile(1, 2, 3), durable="work")
        for n, channel in enumerate(("a1", "a1", "b1"), 1):
            await bus.publish(channel, n)
            await dead(bus, n)
        return {letter.payload: letter.id for letter in await bus.dead_letters.find()}


def payloads(found: list[Any]) -> list[Any]:
    return [letter["payload"] for letter in found]


def test_list_shows_what_matches(letters: dict[Any, str], run: Run) -> None:  # noqa: F811
    found = run("dlq", "list")
    assert payloads(found) == [1, 2, 3]
    first = found[0]
    assert set(first) == {"id", "channel", "subscription", "site", "reason", "error", "attempts", "first", "last", "message_id",
                          "edited", "payload"}
    assert (first["id"], first["channel"], first["subscription"], first["reason"], first["error"], first["attempts"]) == (
        letters[1], "a1", "work", "handler failed", "ValueError: cannot do 1", 1)
    for filters, expected in (
        (["--channel", "a*"], [1, 2]), (["--reason", "process died"], []), (["--subscription", "work", "-n", "1"], [3]),
        (["--id", letters[2]], [2]), (["--id", first["message_id"]], [1]), (["--older-than", "3600"], []),
    ):
        assert payloads(run("dlq", "list", *filters)) == expected
    assert run("status")[0]["dead_letters"] == {"dead-letter:a1": 2, "dead-letter:b1": 1}


def test_show_tells_everything(letters: dict[Any, str], run: Run) -> None:  # noqa: F811
    (shown,) = run("dlq", "show", letters[3])
    assert shown["original"]["payload"] == 3
    assert shown["trace"].startswith("Traceback")
    told = on_terminal("--home", str(run.home), "dlq", "show", letters[3])
    assert re.search(r"^reason +handler failed$", told, re.M)
    assert re.search(r"^original +\{\"id\":", told, re.M)
    assert "\n  ValueError: cannot do 3\n" in told


def test_what_is_edited_redriven_or_dropped_says_so_and_is_not_listed(letters: dict[Any, str], run: Run) -> None:  # noqa: F811
    (edited,) = run("dlq", "edit", letters[1], '{"n": 1}')
    assert (edited["edited"], edited["payload"]) == (True, {"n": 1})
    assert run("dlq", "edit", letters[1], "one", "--text")[0]["payload"] == "one"
    assert run("dlq", "drop", letters[2]) == [{"dropped": letters[2]}]
    (done,) = run("dlq", "redrive", letters[1])
    assert (done["redriven"], done["channel"]) == (letters[1], "a1")
    assert payloads(run("dlq", "list")) == [3]
    again = run("history", "a1")[-1]
    assert (again["payload"], again["id"], again["headers"]) == ("one", done["id"], {"redriven-from": letters[1]})
    assert again["from"] == "worker"
    for verb in ("redrive", "drop", "show"):
        assert "there is none of this id, or it was settled" in run.error("dlq", verb, letters[1], code=2)


def test_all_that_match_are_redriven_or_dropped(letters: dict[Any, str], run: Run) -> None:  # noqa: F811
    assert run("dlq", "redrive", "--channel", "a*", "--reason", "handler failed") == [{"redriven": 2, "kept": {}}]
    assert payloads(run("dlq", "list")) == [3]
    assert run("dlq", "drop", "--all") == [{"dropped": 1}]
    assert run("dlq", "list") == []
    assert run("dlq", "redrive", "--all") == [{"redriven": 0, "kept": {}}]
    assert run("status")[0]["dead_letters"] == {}


def test_what_cannot_be_redriven_is_a_failure_that_says_why(
    letters: dict[Any, str], run: Run, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    monkeypatch.setenv("LEMEGETON_MAX_MESSAGE_BYTES", "180")
    code, out, err = run.raw("dlq", "redrive", "--all")
    assert (code, json.loads(out)["redriven"]) == (1, 0)
    assert set(json.loads(out)["kept"]) == set(letters.values())
    assert re.fullmatch(r"lemegeton: 3 dead letters could not be redriven: (.*at most 180.*; ){2}.*at most 180.*\n", err)


@pytest.mark.parametrize(("arguments", "said"), [
    (("redrive",), "dlq redrive: name dead letters by their ids, or all that match by --all or a filter; see"),
    (("drop", "x", "--all"), "dlq drop: name dead letters by their ids"), (("drop", "x", "--channel", "c"), "dlq drop: name"),
    (("list", "--older-than", "nan"), "nan is not a number of seconds"), (("list", "--count", "0"), "0 is not in the range"),
    (("list", "--channel", ""), "pattern ''"), (("edit", "x", "no"), "not JSON"),
    (("edit", "x", "1"), "there is none of this id"),
])
def test_wrong_usage_is_two(letters: dict[Any, str], run: Run, arguments: tuple[str, ...], said: str) -> None:  # noqa: F811
    assert said in run.error("dlq", *arguments, code=2)


@pytest.mark.parametrize("arguments", [("list",), ("show", "x"), ("edit", "x", "1"), ("redrive", "x"), ("drop", "--all")])
def test_a_home_that_is_not_there_is_not_made(run: Run, arguments: tuple[str, ...]) -> None:  # noqa: F811
    run.error("dlq", *arguments, code=1)
    assert not run.home.exists()


def test_looking_changes_nothing(letters: dict[Any, str], run: Run) -> None:  # noqa: F811
    before = sorted((str(path), path.stat().st_mtime_ns) for path in run.home.rglob("*") if path.is_file())
    run("dlq", "list")
    run("dlq", "show", letters[1])
    assert before == sorted((str(path), path.stat().st_mtime_ns) for path in run.home.rglob("*") if path.is_file())


def test_people_see_a_line_for_each(letters: dict[Any, str], run: Run) -> None:  # noqa: F811
    where = ("--home", str(run.home), "dlq")
    assert re.fullmatch(r"\d{4}-\S+ \S+  a1 +work +handler failed, 1 attempts  ValueError: cannot do 1  \S+\n",
                        on_terminal(*where, "list", "--id", letters[1]))
    assert on_terminal(*where, "edit", letters[1], "7") == f"edited {letters[1]}\n"
    assert "(edited)" in on_terminal(*where, "list")
    assert re.fullmatch(r"redriven \S+ to a1 as redrive-\w+\n", on_terminal(*where, "redrive", letters[1]))
    assert on_terminal(*where, "redrive", "--channel", "b*") == "redriven: 1\n"
    assert on_terminal(*where, "drop", letters[2]) == f"dropped {letters[2]}\n"
    assert on_terminal(*where, "drop", "--all") == "dropped: 0\n"


async def test_the_other_site_is_looked_at_through_redis(
    redis: RedisServer, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    async with MessageBus("far", home=str(tmp_path / "far"), redis_url=redis.url(), local_redis="off", retry_attempts=1) as far:
        await far.subscribe("c", Fragile(1), durable="work")
        await far.publish("c", 1)
        await dead(far, 1)
        await until(lambda: redis.cli("XLEN", "message-stream:dead-letter:c") == 1)
        async with MessageBus("near", home=str(home)):
            pass
        monkeypatch.setenv("LEMEGETON_REDIS_URL", redis.url())
        monkeypatch.setenv("LEMEGETON_LOCAL_REDIS", "off")

        async def program(*arguments: str) -> Any:
            process = await asyncio.create_subprocess_exec(*PROGRAM, "--home", str(home), "dlq", *arguments, stdout=PIPE)
            out, _ = await process.communicate()
            assert process.returncode == 0
            return json.loads(out)

        letter = await program("list")
        assert (letter["payload"], letter["site"]) == (1, far.site.site_id)
        assert await program("drop", letter["id"]) == {"dropped": letter["id"]}
        await dead(far, 0)


def test_a_redis_that_is_away_is_said_and_this_site_shown(
    letters: dict[Any, str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    monkeypatch.setenv("LEMEGETON_REDIS_URL", f"unix://{tmp_path}/nobody.sock")
    monkeypatch.setenv("LEMEGETON_LOCAL_REDIS", "off")
    code, out, err = run.raw("dlq", "list")
    assert (code, payloads([json.loads(line) for line in out.splitlines()])) == (0, [1, 2, 3])
    assert re.fullmatch("lemegeton: the shared Redis does not answer: this is only what the site itself has: .+\n", err)
    code, out, err = run.raw("dlq", "drop", letters[1])
    assert (code, json.loads(out)) == (0, {"dropped": letters[1]})
    assert re.fullmatch("lemegeton: the shared Redis was not reached; it is kept and goes .+\n", err)


async def test_a_redrive_that_is_killed_on_the_way_and_begun_again_delivers_each_once(home: Path) -> None:  # noqa: F811
    count = 400
    async with MessageBus("worker", home=str(home), retry_attempts=1) as bus:
        handler = Fragile(*range(count))
        await bus.subscribe("c", handler, durable="work")
        for n in range(count):
            await bus.publish("c", n)
        await dead(bus, count)
        handler.bad.clear()
        codes = []
        for killed_at in (1, count // 3, 2 * count // 3, 2 * count):
            process = await asyncio.create_subprocess_exec(
                *PROGRAM, "--home", str(home), "dlq", "redrive", "--all", stdout=PIPE, stderr=PIPE)
            while process.returncode is None and len(handler.got) < killed_at:
                await asyncio.sleep(0.001)
            if process.returncode is None:
                process.kill()
            await process.communicate()
            codes.append(process.returncode)
        assert codes[-1] == 0
        await bus.publish("c", "end")
        await until(lambda: "end" in handler.payloads)
        assert sorted(handler.payloads, key=str) == sorted([*range(count), "end"], key=str)
        assert await bus.dead_letters.find() == []
