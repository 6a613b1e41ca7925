"""The demo shows what it says: every file once, whoever is killed, and no process is left."""

from __future__ import annotations

import ast
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lemegeton.cli.demo import Demo, _quantile
from lemegeton.cli.demo_view import Board, Live, Plain, Row, Worker, show_closing
from lemegeton.cli.demo_work import Found, Total, look_into, python_files, total
from lemegeton.cli.main import outcome

PROGRAM = (sys.executable, "-m", "lemegeton")
FILES = 40


@pytest.fixture(autouse=True)
def _temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Some dozen Python files of different sizes, two of which do not parse."""
    directory = tmp_path / "sources"
    (directory / "below").mkdir(parents=True)
    for number in range(FILES - 2):
        body = "\n".join(f"    x = {line}" for line in range(number * 20 + 1))
        (directory / "below" / f"m{number}.py").write_text(f"def f{number}():\n{body}\n\n\nasync def g(): ...\n")
    (directory / "broken.py").write_text("def (:\n")
    (directory / "nul.py").write_bytes(b"x = 1\n\0\n")
    (directory / "site-packages").mkdir()
    (directory / "site-packages" / "left_out.py").write_text("x = 1\n")
    return directory


def left_over(home: str) -> list[str]:
    """The command lines of processes that still know of the home."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = process.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if home in text and "demo_agent" in text:
            found.append(text)
    return found


def demo(capsys: pytest.CaptureFixture[str], sources: Path, *arguments: str) -> dict[str, Any]:
    code = outcome(["--json", "demo", "--path", str(sources), *arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    facts: dict[str, Any] = json.loads(out)
    return facts


def test_with_one_killed_every_file_is_done_once(capsys: pytest.CaptureFixture[str], sources: Path):
    found = demo(capsys, sources, "--seed", "1")
    assert found["right"] is True
    assert (found["files"], found["completed"], found["lost"], found["doubled"]) == (FILES, FILES, 0, 0)
    assert list(found["by_agent"]) == [f"agent-{number}" for number in range(1, 6)]
    assert sum(found["by_agent"].values()) == FILES
    assert (found["functions"], found["files_that_do_not_parse"]) == (2 * (FILES - 2), 2)
    assert not left_over(found["home"])


def test_with_nobody_killed_nothing_is_handed_out_twice(capsys: pytest.CaptureFixture[str], sources: Path):
    found = demo(capsys, sources, "--no-kill", "--agents", "2")
    assert (found["right"], found["handed_out_again"]) == (True, 0)
    assert list(found["by_agent"]) == ["agent-1", "agent-2"]
    assert not left_over(found["home"])


def test_the_only_agent_can_be_killed(capsys: pytest.CaptureFixture[str], sources: Path):
    found = demo(capsys, sources, "--agents", "1")
    assert found["right"] is True
    assert found["by_agent"]["agent-2"] > 0


def test_without_a_terminal_it_tells_its_story_in_lines(sources: Path):
    done = subprocess.run([*PROGRAM, "demo", "--path", str(sources), "--seed", "3"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(rf"\n +\d+\.\d\d s  {FILES} files for 4 agents\n", done.stdout)
    assert re.search(r"\n.* agent-\d is killed: SIGKILL to process \d+\n", done.stdout)
    assert re.search(r"\n.* agent-5 begins, process \d+\n", done.stdout)
    assert re.search(rf"\ncompleted +{FILES} +right\n", done.stdout)
    assert re.search(r"\n +742 lines  f37 +below/m37.py\n", done.stdout)
    assert "WRONG" not in done.stdout
    look = re.search(r"  (\S.+ --home \S+ status)\n", done.stdout)
    assert look is not None
    looked = subprocess.run(look[1], shell=True, capture_output=True, check=True)  # as it stands, whatever PATH is
    assert json.loads(looked.stdout)["records"] > 2 * FILES


def test_on_a_terminal_it_draws_a_board(sources: Path):
    leader, follower = pty.openpty()
    with subprocess.Popen([*PROGRAM, "demo", "--path", str(sources)], stdin=follower, stdout=follower, stderr=follower,
                          env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}) as process:
        os.close(follower)
        seen = b""
        try:
            while data := os.read(leader, 65536):
                seen += data
        except OSError:  # the other side is closed
            pass
        assert process.wait() == 0, seen
    os.close(leader)
    assert f"{FILES}/{FILES} files".encode() in seen
    assert "│ lost".encode() in seen


def test_ctrl_c_leaves_nothing_running(sources: Path):
    with subprocess.Popen([*PROGRAM, "demo", "--path", str(sources)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        home = process.stdout.readline().split()[-1]
        for line in process.stdout:
            if "files for" in line:
                break
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait() == 130
        assert process.stderr.read() == "lemegeton: interrupted\n"
    assert home.endswith(".lemegeton")
    assert not left_over(home)


def test_a_directory_without_python_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert outcome(["demo", "--path", str(tmp_path)]) == 2
    assert re.fullmatch(r"lemegeton: demo: no Python file below .*\n", capsys.readouterr().err)


# ---------------------------------------------------------------------------------------------- numbers


def test_a_number_that_is_not_that_of_one_process_is_wrong(sources: Path):
    files = python_files(str(sources))
    tried = Demo(files, 4, True, random.Random(1), True)
    for path in files[1:]:
        tried._tally.found[path] = look_into(path)
    alone = total(map(look_into, files))
    shown = tried._shown(alone._replace(lines=alone.lines + 1), 1.0)
    assert not shown.right
    assert {row.what for row in shown.rows if row.right is False} >= {"completed", "by agent", "lost", "lines"}


def test_the_longest_functions_are_the_longest(sources: Path):
    files = python_files(str(sources))
    tried = Demo(files, 4, True, random.Random(1), True)
    tried._tally.found = {path: look_into(path) for path in files}
    longest = tried._longest()
    assert [(length, name) for length, name, _ in longest] == [(2 + 20 * n, f"f{n}") for n in range(37, 27, -1)]
    assert longest[0][2] == "below/m37.py"


def test_work_on_a_file_counts_what_is_in_it(tmp_path: Path):
    nested = tmp_path / "nested.py"
    nested.write_text("class A:\n    def f(self):\n        def g():\n            pass\n        try:\n            pass\n"
                      "        except E:\n            def h(): ...\n        match 1:\n            case 1:\n"
                      "                async def i(): ...\nx = lambda: 1")
    found = look_into(str(nested))
    assert found == Found(lines=12, functions=4, parsed=1, longest=10, name="f")
    assert found.functions == sum(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(ast.parse(nested.read_text())))


@pytest.mark.parametrize(("data", "found"), [
    (b"", Found(0, 0, 1, 0, "")), (b"x = 1", Found(1, 0, 1, 0, "")), (b"x = '\\d'\n", Found(1, 0, 1, 0, "")),
    (b"\xff\n", Found(1, 0, 0, 0, "")), (b"def", Found(1, 0, 0, 0, "")),
    (b"(" * 2000 + b")" * 2000, Found(1, 0, 0, 0, "")),
])
def test_odd_files_count_in_the_same_way_everywhere(tmp_path: Path, data: bytes, found: Found):
    (tmp_path / "f.py").write_bytes(data)
    assert look_into(str(tmp_path / "f.py")) == found


def test_a_file_that_cannot_be_read_counts_as_one_that_does_not_parse(tmp_path: Path):
    assert total([look_into(str(tmp_path / "gone.py"))]) == Total(1, 0, 0, 0)


def test_what_was_installed_later_is_left_out(sources: Path):
    assert len(python_files(str(sources))) == FILES


def test_quantiles_are_values_that_were_measured():
    assert [_quantile(range(1, 101), share) for share in (0.5, 0.99)] == [51, 100]
    assert _quantile([], 0.5) == 0


# ---------------------------------------------------------------------------------------------- views


def test_lines_tell_of_every_tenth(capsys: pytest.CaptureFixture[str]):
    board = Board(total=100)
    with Plain(board, sys.stdout) as view:
        for board.done in range(101):
            view.update()
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_a_board_is_drawn_with_every_worker(capsys: pytest.CaptureFixture[str]):
    board = Board(total=10, done=3, workers={"a": Worker("a", 17, "working", 3)})
    with Live(board) as view:
        view.note("something [bold]happened")
        view.update()
        Console(width=100).print(view._draw())
    out = capsys.readouterr().out
    assert "something [bold]happened" in out
    assert re.search(r"a +17 +working +3", out)
    assert "3/10 files" in out


def test_the_closing_says_what_is_wrong(capsys: pytest.CaptureFixture[str]):
    show_closing([Row("lost", "1", 1, False), Row("time", "2 s", 2)], [(10, "f", "m.py")], ["lemegeton status"])
    out = capsys.readouterr().out
    assert re.search(r"lost +1 +WRONG\n", out)
    assert re.search(r"time +2 s\n", out)
    assert "lemegeton status" in out
