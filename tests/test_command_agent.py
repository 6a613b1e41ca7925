"""An agent that does its work with a command: payload in, result out, and nothing left running."""

from __future__ import annotations

import asyncio
import os
import select
from pathlib import Path
from typing import Any

import pytest

from lemegeton.assignment import Assignment
from lemegeton.cli.command_agent import CommandAgent


async def result(command: str, payload: Any = None) -> Any:
    return await CommandAgent("a", command).work(Assignment("id-1", 2, payload, "hub"))


@pytest.mark.parametrize(("command", "found"), [
    ("cat", {"n": 1}),
    ("echo '[1, 2]'", [1, 2]),
    ("echo two words", "two words"),
    ("true", ""),
    ("printf '\\377'", "\ufffd"),
    ("echo $LEMEGETON_ASSIGNMENT $LEMEGETON_ATTEMPT", "id-1 2"),
])
async def test_what_it_prints_is_the_result(command: str, found: Any):
    assert await result(command, {"n": 1}) == found


async def test_a_payload_that_nobody_reads_is_no_failure():
    assert await result("exec <&-; echo done", "x" * 500_000) == "done"


async def test_a_large_payload_comes_back_whole():
    assert await result("cat", "x" * 500_000) == "x" * 500_000


@pytest.mark.parametrize(("command", "says"), [
    ("exit 4", "the command ended with code 4"),
    ("echo bad luck >&2; exit 1", "the command ended with code 1: bad luck"),
    ("kill -9 $$", "the command ended by signal 9"),
    ("no-such-program-at-all", "the command ended with code 127: "),
])
async def test_a_code_but_0_is_a_failure_with_the_end_of_what_it_said(command: str, says: str):
    with pytest.raises(RuntimeError, match=f"^{says}"):
        await result(command)


async def test_more_output_than_a_message_holds_is_refused():
    with pytest.raises(ValueError, match="printed more than 1048576 bytes"):
        await result("yes")


async def test_only_the_end_of_a_long_complaint_is_reported(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(RuntimeError) as raised:
        await result("seq 100000 >&2; exit 1")
    assert str(raised.value).endswith("\n100000")
    assert len(str(raised.value)) < 1100
    assert len(capfd.readouterr().err.splitlines()) == 100_000


async def test_cancelled_work_ends_the_command_and_what_it_began(tmp_path: Path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    work = asyncio.ensure_future(result(f"sleep 1000 & echo $$ $! > {fifo}; wait"))
    text = await asyncio.to_thread(fifo.read_text)  # opening it waits for the command
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    shell, sleeper = map(int, text.split())
    assert not Path(f"/proc/{shell}").exists()
    assert ended(sleeper)


def ended(pid: int) -> bool:
    """Wait for the end of a process that is not our child."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], 10)[0])
    finally:
        os.close(fd)


async def test_a_command_that_does_not_want_to_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lemegeton.cli.command_agent.END_S", 0.05)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    work = asyncio.ensure_future(result(f"trap '' TERM; echo $$ > {fifo}; while :; do read x < {fifo}; done"))
    pid = int(await asyncio.to_thread(fifo.read_text))
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert not Path(f"/proc/{pid}").exists()
