"""``lemegeton request``: what it prints, how it ends, and that whoever is asked learns when nobody waits any more."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from test_bus import child
from test_cli import Run, on_terminal, running

pytestmark = pytest.mark.usefixtures("no_settings")

SERVE = """
    async def handler(message):
        what = message.payload
        await message.progress("begun")
        if what == "fail":
            await message.fail("no such thing", category="invalid")
        elif what == "wait":
            say("waiting")
            await message.until_cancelled()
            say("cancelled")
        elif what != "say nothing":
            await message.reply({"was": what, "type": message.type, "priority": message.priority, "headers": message.headers})
    await bus.subscribe("c", handler, durable="d")
    say("serving")
    await bus.serve()
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / ".lemegeton"


@pytest.fixture
def responder(home: Path) -> Iterator[subprocess.Popen[str]]:
    process = child(SERVE, home)
    assert process.stdout is not None
    assert process.stdout.readline() == "serving\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def run(home: Path, responder: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(home, capsys)


def test_a_reply_is_printed_as_it_came(run: Run) -> None:
    (reply,) = run("request", "c", '{"n": 1}', "--type", "ask", "--priority", "high", "--header", "k=v", "--to", "child")
    assert (reply["from"], reply["type"], reply["to"], reply["priority"]) == ("child", "complete", "cli-request", 2)
    assert reply["payload"] == {"was": {"n": 1}, "type": "ask", "priority": 2, "headers": {"k": "v"}}


def test_progress_is_printed_where_it_is_asked_for(run: Run) -> None:
    begun, reply = run("request", "c", "x", "--text", "--progress")
    assert (begun["type"], begun["payload"]) == ("progress", "begun")
    assert reply["payload"]["was"] == "x"


def test_the_same_id_has_the_same_reply(run: Run) -> None:
    first, = run("request", "c", "1", "--id", "order-1")
    again, = run("request", "c", "2", "--id", "order-1")
    assert first == again


def test_a_failure_ends_with_1_and_what_was_said(run: Run) -> None:
    assert run.error("request", "c", "fail", "--text", code=1) == (
        "lemegeton: request to c: child: invalid: no such thing\n")


def test_no_reply_in_time_ends_with_3(run: Run) -> None:
    assert run.error("request", "c", "say nothing", "--text", "--timeout", "0.5", code=3) == (
        "lemegeton: request to c: no reply within 0.5 s; it may have been handled\n")


def test_where_the_shared_redis_is_not_reached_that_is_said_as_well(run: Run, tmp_path: Path) -> None:
    where = ("--redis-url", f"unix://{tmp_path}/nobody")
    said = run.error("request", "nobody", "1", "--timeout", "0.5", *where, code=3)
    assert "it may have been handled: redis" in said
    assert "cannot connect" in said


@pytest.mark.parametrize("arguments", [
    ("c", "not json"), ("{c}", "1"), ("c", "1", "--timeout", "0"), ("c", "1", "--priority", "top"), ("c", "1", "--header", "x"),
    ("c",),
])
def test_wrong_usage_ends_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    run.error("request", *arguments, code=2)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_whoever_is_asked_learns_that_the_command_was_ended(
    home: Path, responder: subprocess.Popen[str], number: int, code: int
) -> None:
    assert responder.stdout is not None
    with running(home, "request", "c", "wait", "--text") as asking:
        assert responder.stdout.readline() == "waiting\n"
        asking.send_signal(number)
        assert asking.wait(15.0) == code
        assert responder.stdout.readline() == "cancelled\n"


@pytest.mark.usefixtures("responder")
def test_people_see_what_is_in_a_reply_and_nothing_in_it_moves_the_cursor(home: Path) -> None:
    shown = on_terminal("--home", str(home), "request", "c", "\x9b2J", "--text", "--progress")
    assert shown == 'begun\n{"was": "\\x9b2J", "type": "custom", "priority": 1, "headers": {}}\n'
