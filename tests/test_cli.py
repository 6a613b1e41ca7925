"""The command line keeps its word: codes, lines, JSON, and what lies in the home afterwards."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import CDLL
from pathlib import Path
from typing import Any

import pytest

from lemegeton.cli.main import VERBS, outcome

pytestmark = pytest.mark.usefixtures("no_settings")

PROGRAM = (sys.executable, "-m", "lemegeton")
NOBODY = 65534
UNCOUNTED = {key: value for key, value in os.environ.items() if not key.startswith(("COV", "LEMEGETON"))}
"""The environment of a process that is not measured: coverage would take longer to start than the program."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / ".lemegeton"


class Run:
    """Runs a command line in this process: what it printed and how it ended."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> list[Any]:
        found, out, err = self.raw(*arguments)
        assert found == code, err
        assert bool(err) == (code != 0), err
        return [json.loads(line) for line in out.splitlines()]

    def raw(self, *arguments: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        code = outcome(["--home", str(self.home), *arguments])
        out, err = self._capsys.readouterr()
        return code, out, err

    def error(self, *arguments: str, code: int) -> str:
        """The one line that an ending with this code leaves."""
        found, out, err = self.raw(*arguments)
        assert (found, out) == (code, ""), err
        assert re.fullmatch(r"lemegeton: .+\n", err), err
        return err


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(home, capsys)


def started(home: Path, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*PROGRAM, "--home", str(home), *arguments],
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})


@contextmanager
def running(home: Path, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone afterwards, with its pipes."""
    process = started(home, *arguments, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def lines(process: subprocess.Popen[bytes], count: int) -> list[Any]:
    assert process.stdout is not None
    return [json.loads(process.stdout.readline()) for _ in range(count)]


def finished(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """How it ended and what it said about that."""
    assert process.stderr is not None
    return process.wait(), process.stderr.read().decode()


def tree(home: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in home.parent.rglob("*")}


# ---------------------------------------------------------------------------------------------- pub


def test_pub_prints_the_receipt_and_history_the_message(run: Run):
    [receipt] = run("pub", "agent-bob", '{"n": 1}', "--type", "note", "--to", "bob", "--ttl", "60",
                    "--priority", "high", "--id", "mine", "--header", "traceparent=00-a-b", "--header", "k=v=w",
                    "--name", "alice")
    [message] = run("history", "agent-bob")
    assert receipt["id"] == message["id"] == "mine"
    assert (receipt["channel"], receipt["seq"], receipt["priority"], receipt["level"]) == ("agent-bob", 1, 2, "local")
    assert (receipt["origin"], receipt["inc"]) == (message["origin"], message["inc"])
    assert {key: message[key] for key in ("payload", "type", "to", "ttl", "from", "priority")} == {
        "payload": {"n": 1}, "type": "note", "to": "bob", "ttl": 60_000, "from": "alice", "priority": 2}
    assert message["headers"] == {"traceparent": "00-a-b", "k": "v=w"}


@pytest.mark.parametrize(("payload", "options", "stored"), [
    ("[1, null]", [], [1, None]), ("ünï", ["--text"], "ünï"), ("3", ["--text"], "3"), ('"-"', [], "-")])
def test_a_payload_is_json_unless_it_is_said_to_be_text(run: Run, payload: str, options: list[str], stored: object):
    run("pub", "c", payload, *options)
    assert run("history", "c")[0]["payload"] == stored


@pytest.mark.parametrize("ack", ["local", "disk"])
def test_every_line_of_standard_input_is_a_message_in_its_order(home: Path, run: Run, ack: str):
    text = "\n".join(map(str, range(300))) + "\n\n   \n[300]"
    with running(home, "pub", "c", "-", "--ack", ack, stdin=subprocess.PIPE) as process:
        out, err = process.communicate(text.encode())
    assert (process.returncode, err) == (0, b"")
    receipts = [json.loads(line) for line in out.splitlines()]
    assert [receipt["seq"] for receipt in receipts] == list(range(1, 302))
    assert {receipt["level"] for receipt in receipts} == {ack}
    assert [message["payload"] for message in run("history", "c", "-n", "1000")] == [*range(300), [300]]


@pytest.mark.parametrize("ack", ["local", "disk"])
def test_a_bad_line_of_a_file_is_named_and_those_before_it_are_published(
    home: Path, run: Run, tmp_path: Path, ack: str
):
    (tmp_path / "in").write_bytes(b"1\n2\n\nnot json\n")
    with (tmp_path / "in").open("rb") as file, running(home, "pub", "c", "-", "--ack", ack, stdin=file) as process:
        out, err = process.communicate()
    assert process.returncode == 1
    assert re.fullmatch(rb"lemegeton: line 4 of standard input: payload: not JSON.*\n", err)
    assert len(out.splitlines()) == 2
    assert [message["payload"] for message in run("history", "c")] == [1, 2]


def test_a_line_there_is_no_room_for_is_named_and_those_before_it_are_published(home: Path, run: Run):
    settings = {"LEMEGETON_DISK_LIMIT": "20000", "LEMEGETON_ON_FULL": "raise"}
    with running(home, "pub", "c", "-", stdin=subprocess.PIPE, env=UNCOUNTED | settings) as process:
        out, err = process.communicate(b"1\n" * 1000)
    assert process.returncode == 1
    stored = len(out.splitlines())
    assert 0 < stored < 1000
    assert err.startswith(b"lemegeton: line %d of standard input: " % (stored + 1))
    assert len(run("history", "c", "-n", "1000")) == stored


def test_text_lines_that_are_not_text_are_named(home: Path):
    with running(home, "pub", "c", "-", "--text", stdin=subprocess.PIPE) as process:
        _, err = process.communicate(b"fine\n\xff\n")
    assert process.returncode == 1
    assert b"line 2 of standard input" in err


def test_a_line_that_does_not_end_is_refused_before_it_fills_the_memory(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lemegeton.cli.lines.LINE_BYTES_MAX", 100_000)
    (tmp_path / "in").write_bytes(b"1\n" + b"x" * 200_000)
    with (tmp_path / "in").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        code, _, err = run.raw("pub", "c", "-")
    assert (code, err) == (2, "lemegeton: line 2 of standard input: more than 100000 bytes\n")


def test_long_work_on_a_terminal_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from lemegeton.cli import lines as module

    monkeypatch.setattr(module, "BAR_AFTER_S", -1.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with module.Progress() as progress:
        progress.at(1000, 7)
        progress.at(2000, 14)
    assert "14 messages" in capsys.readouterr().err


def test_a_level_that_is_not_reached_ends_with_3_and_the_message_is_kept(run: Run):
    assert "no durable subscription" in run.error("pub", "c", "1", "--ack", "handled", "--timeout", "5", code=3)
    run.error("sub", "c", "--name", "slow", "--timeout", "0", code=3)
    assert "not reached within 0.05 s" in run.error("pub", "c", "2", "--ack", "handled", "--timeout", "0.05", code=3)
    assert [message["payload"] for message in run("sub", "c", "--name", "slow", "--count", "1")] == [2]


def test_handled_is_reached_when_it_was_printed(home: Path, run: Run):
    run.error("sub", "c", "--name", "reader", "--timeout", "0", code=3)
    with running(home, "sub", "c", "--name", "reader"):
        [receipt] = run("pub", "c", "1", "--ack", "handled", "--timeout", "15")
    assert receipt["level"] == "handled"


HUNDRED = """
import os, sys
from lemegeton.cli import messages
from lemegeton.cli.main import outcome

def child(number):
    pid = os.fork()
    if not pid:
        os._exit(outcome(["--home", sys.argv[1], "pub", "c", str(number)]))
    return pid

pids = [child(number) for number in range(100)]
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids))
"""


def test_a_hundred_senders_at_once_leave_one_origin_and_one_segment(home: Path):
    """A hundred processes, forked from one that has loaded the program: that is harder on the origin than a shell."""
    done = subprocess.run([sys.executable, "-c", HUNDRED, str(home)], capture_output=True, env=UNCOUNTED)
    assert (done.returncode, done.stderr) == (0, b"")
    [segment] = (home / "messages" / "c").iterdir()
    assert [path.suffix for path in (home / "origins").iterdir()] == [".lock"]
    payloads = [json.loads(line[9:])["payload"] for line in segment.read_bytes().splitlines()]
    assert sorted(payloads) == list(range(100))


def test_pub_loads_neither_agents_nor_anything_that_draws(home: Path):
    program = ("from lemegeton.cli.main import outcome; import sys; outcome(sys.argv[1:]); "
               "print([m for m in sys.modules if m.split('.')[0] == 'rich' or m in ('lemegeton.hub', 'lemegeton.agent',"
               " 'inotify_simple')], file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", program, "--home", home, "pub", "c", "1"], capture_output=True)
    assert (done.stderr.strip(), done.returncode) == (b"[]", 0)


# ---------------------------------------------------------------------------------------------- wrong usage

WRONG = {
    "no verb": (),
    "unknown verb": ("bogus",),
    "no payload": ("pub", "c"),
    "channel with braces": ("pub", "a{b}", "1"),
    "channel empty": ("pub", "", "1"),
    "channel too long": ("pub", "x" * 300, "1"),
    "channel with a newline": ("pub", "a\nb", "1"),
    "history of such a channel": ("history", "a\x1b[2J"),
    "subscription to such a channel": ("sub", "a\nb"),
    "type empty": ("pub", "c", "1", "--type", ""),
    "type with a control character": ("pub", "c", "1", "--type", "a\tb"),
    "ttl negative": ("pub", "c", "1", "--ttl", "-1"),
    "ttl not a number": ("pub", "c", "1", "--ttl", "soon"),
    "ttl endless": ("pub", "c", "1", "--ttl", "inf"),
    "priority unknown": ("pub", "c", "1", "--priority", "urgent"),
    "priority too high": ("pub", "c", "1", "--priority", "4"),
    "payload not JSON": ("pub", "c", "hello"),
    "payload too deep": ("pub", "c", "[" * 100 + "]" * 100),
    "payload half a surrogate": ("pub", "c", "\udcff", "--text"),
    "payload not a number of JSON": ("pub", "c", "NaN"),
    "payload too large": ("pub", "c", json.dumps("x" * 2**20)),
    "header without a value": ("pub", "c", "1", "--header", "k"),
    "name empty": ("pub", "c", "1", "--name", ""),
    "timeout negative": ("pub", "c", "1", "--ack", "disk", "--timeout", "-1"),
    "timeout not a number": ("sub", "c", "--timeout", "nan"),
    "timeout endless": ("bridge", "--timeout", "inf"),
    "ack unknown": ("pub", "c", "1", "--ack", "nowhere"),
    "count of nothing": ("sub", "c", "--count", "0"),
    "history of nothing": ("history", "c", "-n", "0"),
    "start nowhere": ("sub", "c", "--start", "middle"),
    "no channel": ("sub",),
    "drop without a name": ("subs", "drop"),
    "shell unknown": ("completion", "csh"),
    "agent without a command": ("agent", "a"),
    "agent without a name": ("agent", "", "--exec", "cat"),
    "assignment that is not JSON": ("assign", "any", "hello"),
    "assignment without time": ("assign", "any", "1", "--timeout", "0"),
    "assignment to no name": ("assign", "", "1"),
    "demo without agents": ("demo", "--agents", "0"),
    "demo of nothing": ("demo", "--path", "/nowhere/at/all"),
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG.keys())
def test_wrong_usage_is_one_line_and_2(run: Run, arguments: tuple[str, ...]):
    run.error(*arguments, code=2)


@pytest.mark.parametrize("arguments", [(), ("subs",)])
def test_a_missing_verb_is_said_shortly(run: Run, arguments: tuple[str, ...]):
    assert re.fullmatch(r"lemegeton: .*Missing command; see lemegeton .*--help\n", run.error(*arguments, code=2))


@pytest.mark.parametrize("url", ["redis://:secret@h:99999", "redis://:secret@h/nodb", "redis://[::1", "unix://:secret"])
def test_a_url_that_nobody_can_connect_to_is_wrong_usage(run: Run, monkeypatch: pytest.MonkeyPatch, url: str):
    monkeypatch.setenv("LEMEGETON_REDIS_URL", url)
    said = run.error("pub", "c", "1", code=2)
    assert "LEMEGETON_REDIS_URL" in said
    assert "secret" not in said
    assert not run.home.exists()


def test_a_redis_that_is_not_there_is_named_with_the_cause_and_the_message_kept(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LEMEGETON_REDIS_URL", "redis://:secret@127.0.0.1:1")
    monkeypatch.setenv("LEMEGETON_LOCAL_REDIS", "off")
    code, out, said = run.raw("pub", "c", "1")
    assert (code, json.loads(out)["seq"]) == (0, 1)
    assert "redis://127.0.0.1:1: cannot connect" in said
    assert "cannot connect" in run.error("pub", "c", "2", "--ack", "redis", "--timeout", "0.2", code=3)
    assert "secret" not in said
    assert [message["payload"] for message in run("history", "c")] == [1, 2]


def test_a_wrong_setting_is_named(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LEMEGETON_CONCURRENCY", "-1")
    assert "must be above 0" in run.error("pub", "c", "1", code=2)


# ---------------------------------------------------------------------------------------------- homes


def _a_file(home: Path) -> None:
    home.write_text("")


def _other_owner(home: Path) -> None:
    home.mkdir(mode=0o700)
    os.chown(home, NOBODY, NOBODY)


def _world_writable(home: Path) -> None:
    home.mkdir()
    home.chmod(0o777)


def _symlink(home: Path) -> None:
    (home.parent / "elsewhere").mkdir(mode=0o700)
    home.symlink_to("elsewhere")


def _symlink_inside(home: Path) -> None:
    home.mkdir(mode=0o700)
    (home.parent / "elsewhere").mkdir(mode=0o700)
    (home / "messages").symlink_to(home.parent / "elsewhere")


def _fifo_inside(home: Path) -> None:
    home.mkdir(mode=0o700)
    os.mkfifo(home / "messages")


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.mark.parametrize(("prepare", "says"), [
    (_a_file, "is a file where a directory should be"),
    pytest.param(_other_owner, "is owned by user 65534", marks=as_root),
    (_world_writable, "can be written by others"),
    (_symlink, "is a symbolic link"),
    (_symlink_inside, "is a symbolic link"),
    (_fifo_inside, "is a file where a directory should be"),
])
@pytest.mark.parametrize("arguments", [("pub", "c", "1"), ("sub", "c", "--timeout", "5")], ids=["pub", "sub"])
def test_a_home_that_is_not_safe_is_refused_in_one_line(
    run: Run, prepare: Callable[[Path], None], says: str, arguments: tuple[str, ...]
):
    prepare(run.home)
    assert says in run.error(*arguments, code=1)


def _without_root_rights() -> None:
    """Root that is refused what a user would be: CAP_DAC_OVERRIDE (1) and CAP_DAC_READ_SEARCH (2) are gone for good."""
    for capability in (1, 2):
        CDLL(None).prctl(24, capability, 0, 0, 0)


def _as_a_user(home: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*PROGRAM, "--home", str(home), *arguments], capture_output=True, env=UNCOUNTED,
                          preexec_fn=_without_root_rights if os.geteuid() == 0 else None)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    done = _as_a_user(closed / ".lemegeton", "pub", "c", "1")
    assert (done.returncode, done.stdout) == (1, b"")
    assert re.fullmatch(rb"lemegeton: home .*: Permission denied; give this user write permission.*\n", done.stderr)


def test_a_home_that_became_read_only_can_be_looked_at(run: Run):
    run("pub", "c", "1")
    directories = [run.home, *(path for path in run.home.rglob("*") if path.is_dir())]
    for directory in directories:
        directory.chmod(0o500)
    looked = _as_a_user(run.home, "history", "c")
    refused = _as_a_user(run.home, "pub", "other", "1")
    for directory in directories:
        directory.chmod(0o700)
    assert json.loads(looked.stdout)["payload"] == 1
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)


def test_a_symlink_in_a_channel_is_refused_by_whoever_reads_it(run: Run, tmp_path: Path):
    run("pub", "c", "1")
    [segment] = (run.home / "messages" / "c").iterdir()
    segment.rename(tmp_path / "moved")
    segment.symlink_to(tmp_path / "moved")
    assert "lemegeton" in run.error("history", "c", code=1)
    assert "lemegeton" in run.error("status", code=1)


@as_root
def test_a_home_on_a_read_only_file_system_can_be_looked_at_and_is_refused_for_writing(run: Run):
    run("pub", "c", "1")
    run.error("sub", "c", "--name", "n", "--timeout", "0", code=3)
    looks = ("history", "c"), ("status",), ("subs", "list"), ("mode",)
    with mounted_read_only(run.home):
        for arguments in looks:
            assert run(*arguments)
        for arguments in (("pub", "c", "2"), ("sub", "c", "--name", "n"), ("hub",), ("mode", "set", "isolated")):
            assert "Read-only file system" in run.error(*arguments, code=1)
        assert "choose another home" in run.error("sub", "c", code=1)
    run("pub", "c", "2")


@contextmanager
def mounted_read_only(home: Path) -> Iterator[None]:
    """The home as a mount of itself that nobody can write to."""
    for arguments in (("--bind", home, home), ("-o", "remount,bind,ro", home)):
        if subprocess.run(["mount", *arguments], capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", home], check=True)


@pytest.mark.parametrize("plant", [os.mkfifo, lambda path: os.symlink("/etc/passwd", path), os.mkdir])
@pytest.mark.parametrize("suffix", ["", ".lock"])
def test_what_is_no_file_in_the_place_of_a_checkpoint_is_refused(run: Run, plant: Callable[[Path], None], suffix: str):
    run("pub", "c", "1")
    plant(run.home / "cursors" / f"n{suffix}")
    assert f"cursors/n{suffix} is not a regular file of this user" in run.error("sub", "c", "--name", "n", code=1)
    assert run("history", "c")
    [found] = run("status")
    assert [place["patterns"] for place in found["subscriptions"]] == [[]] * (not suffix)


def test_nothing_is_written_through_a_symlink_in_the_place_of_a_channel(run: Run, tmp_path: Path):
    run("pub", "c", "1")
    outside = tmp_path / "outside"
    outside.mkdir()
    (run.home / "messages" / "evil").symlink_to(outside)
    for arguments in (("pub", "evil", "1"), ("history", "evil")):
        assert "evil is not a directory of this user; move it away" in run.error(*arguments, code=1)
    assert list(outside.iterdir()) == []


def test_too_few_open_files_are_one_line_that_says_what_to_raise_and_lose_nothing(run: Run):
    run("pub", "c", "0")
    for number in range(8, 16):
        done = subprocess.run(
            ["sh", "-c", f'ulimit -n {number}; exec "$@"', "sh", *PROGRAM, "--home", str(run.home), "pub", "c", str(number)],
            capture_output=True, env=UNCOUNTED)
        if done.returncode:
            assert (done.returncode, done.stdout) == (1, b"")
            assert re.fullmatch(rb"lemegeton: .*Too many open files; raise the limit of open files.*\n", done.stderr)
        else:
            assert run("history", "c")[-1]["payload"] == number


def test_a_file_among_the_channels_keeps_nobody_from_the_others(run: Run):
    run("pub", "c", "1")
    (run.home / "messages" / "notes").write_text("")
    [found] = run("status")
    assert [channel["channel"] for channel in found["channels"]] == ["c"]
    code, out, err = run.raw("sub", "*", "--start", "earliest", "--count", "1")
    assert (code, json.loads(out)["payload"]) == (0, 1)
    assert re.fullmatch(r"lemegeton: stray: path=.+/notes, cause=not a directory of this user\n", err)


READING = [("history", "c"), ("status",), ("subs", "list"), ("subs", "drop", "n"), ("mode",), ("mode", "set", "auto")]


@pytest.mark.parametrize("arguments", READING)
def test_looking_never_makes_a_home(run: Run, arguments: tuple[str, ...]):
    assert "make it first" in run.error(*arguments, code=1)
    assert list(run.home.parent.iterdir()) == []


@pytest.mark.parametrize("arguments", READING[:3])
def test_looking_changes_nothing_in_a_home(run: Run, arguments: tuple[str, ...]):
    run("pub", "c", "1")
    run.error("sub", "c", "--name", "n", "--timeout", "0", code=3)
    before = tree(run.home)
    run(*arguments)
    assert tree(run.home) == before


def test_the_home_is_the_nearest_one_upwards_or_what_the_environment_says(tmp_path: Path):
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)

    def pub(directory: Path, **environ: str) -> None:
        subprocess.run([*PROGRAM, "pub", "c", "1"], cwd=directory, check=True, capture_output=True,
                       env={**UNCOUNTED, **environ})

    pub(tmp_path)
    pub(below)
    pub(below, LEMEGETON_HOME=str(tmp_path / "other"))
    assert len(next((tmp_path / ".lemegeton/messages/c").iterdir()).read_bytes().splitlines()) == 2
    assert (tmp_path / "other" / "messages" / "c").is_dir()
    assert list(below.iterdir()) == []


# ---------------------------------------------------------------------------------------------- sub


def test_sub_prints_the_wire_of_one_message_a_line_and_goes_on_where_it_was(run: Run):
    for n in range(5):
        run("pub", "c", str(n))
    first = run("sub", "c", "--name", "n", "--start", "earliest", "--count", "2")
    second = run("sub", "c", "--name", "n", "--count", "3")
    assert [message["payload"] for message in first + second] == [0, 1, 2, 3, 4]
    assert first == run("history", "c")[:2]
    assert "0 messages within 0.0 s" in run.error("sub", "c", "--name", "n", "--timeout", "0", code=3)


def test_what_sub_could_not_give_is_a_line_on_standard_error_and_no_line_is_lost_to_it(run: Run):
    run("pub", "c", "1")
    run("pub", "c", "2")
    [segment] = (run.home / "messages" / "c").iterdir()
    data = segment.read_bytes()
    segment.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    (segment.parent / "new.json").write_text("{nonsense")
    (run.home / "messages" / "notes").write_text("")
    code, out, err = run.raw("sub", "*", "--start", "earliest", "--timeout", "1")
    assert ([json.loads(line)["payload"] for line in out.splitlines()], code) == ([2], 3)
    *warnings, last = err.splitlines()
    assert {line.split(": ")[1] for line in warnings} == {"corrupt_record", "gap", "refused", "stray"}
    assert last == "lemegeton: 1 messages within 1.0 s"


def test_what_was_not_printed_is_not_even_begun(run: Run):
    """The message behind the last one printed is not marked as perhaps handled."""
    for n in range(3):
        run("pub", "c", str(n))
    run("sub", "c", "--name", "n", "--start", "earliest", "--count", "1")
    words = memoryview((run.home / "cursors" / "n").read_bytes()).cast("Q")
    assert words[4 * 4096 // 8 :][1:3].tolist() == [1, 1]


def test_sub_without_a_name_begins_with_what_is_new(home: Path, run: Run):
    run("pub", "a", "1")
    assert run.error("sub", "*", "--timeout", "0", code=3)
    [message] = run("sub", "[ab]", "--start", "earliest", "--count", "1", "--timeout", "15")
    assert message["payload"] == 1


def test_a_name_that_is_held_is_refused(home: Path, run: Run):
    run("pub", "c", "1")
    with running(home, "sub", "c", "--name", "n", "--start", "earliest") as process:
        lines(process, 1)
        assert "another live process holds it" in run.error("sub", "c", "--name", "n", code=1)
        assert "a live process holds it" in run.error("subs", "drop", "n", code=1)
        [found] = run("status")
    assert found["subscriptions"][0]["held"] is True


def test_sub_settles_what_it_printed_and_goes_on_after_a_kill(home: Path, run: Run):
    total = 20_000
    numbers = "\n".join(map(str, range(total))).encode()
    with running(home, "pub", "c", "-", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        process.communicate(numbers)
    with running(home, "sub", "c", "--name", "n", "--start", "earliest") as process:
        printed = lines(process, 500)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read() if process.stdout else b""
    # The kill may have torn the line it was printing: that one is not settled.
    whole = [json.loads(line) for line in rest.split(b"\n")[:-1]]
    first = [message["payload"] for message in printed + whole]
    left = total - first[-1] - 1
    again = run("sub", "c", "--name", "n", "--count", str(left), "--timeout", "15")
    second = [message["payload"] for message in again]
    assert first == list(range(len(first)))
    assert second[0] in (first[-1], first[-1] + 1), "at most the last line, between printing and settling, comes again"
    assert second == list(range(second[0], second[0] + left))


def test_a_closed_pipe_ends_it_quietly_and_unsettled(home: Path, run: Run):
    run("pub", "c", "1")
    with running(home, "sub", "c", "--name", "n", "--start", "earliest") as process:
        assert lines(process, 1)[0]["payload"] == 1
        assert process.stdout is not None
        process.stdout.close()
        run("pub", "c", "2")
        assert finished(process) == (0, "")
    assert [message["payload"] for message in run("sub", "c", "--name", "n", "--count", "1")] == [2]


def test_ctrl_c_ends_a_subscriber_with_one_line(home: Path, run: Run):
    run("pub", "c", "1")
    with running(home, "sub", "c", "--start", "earliest") as process:
        lines(process, 1)
        process.send_signal(signal.SIGINT)
        assert finished(process) == (130, "lemegeton: interrupted\n")


def test_sigterm_ends_a_subscriber_and_a_sender_with_one_line(home: Path, run: Run):
    with running(home, "sub", "c", "--name", "n", "--start", "earliest") as process, \
            running(home, "pub", "c", "-", stdin=subprocess.PIPE) as sender:
        assert sender.stdin is not None
        sender.stdin.write(b"1\n")
        sender.stdin.flush()
        assert lines(process, 1)[0]["payload"] == 1
        for ended in (process, sender):
            ended.terminate()
            assert finished(ended) == (143, "lemegeton: terminated\n")
    run("pub", "c", "2")
    [message] = run("sub", "c", "--name", "n", "--count", "1")
    assert message["payload"] == 2


def test_ctrl_c_ends_a_sender_that_waits_for_input(home: Path, run: Run):
    with running(home, "pub", "c", "-", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"1\n")
        process.stdin.flush()
        assert lines(process, 1)[0]["seq"] == 1
        process.send_signal(signal.SIGINT)
        assert finished(process) == (130, "lemegeton: interrupted\n")
    assert len(run("history", "c")) == 1


@pytest.mark.parametrize("size", [1, 100_000])
def test_output_that_nobody_reads_is_a_failure_in_one_line(home: Path, run: Run, size: int):
    for _ in range(3):
        run("pub", "c", json.dumps("x" * size))
    reader, writer = os.pipe()
    os.close(reader)
    with running(home, "history", "c", stdout=writer) as process:
        os.close(writer)
        code, err = finished(process)
    assert code == 1
    assert re.fullmatch(r"lemegeton: standard output was closed.*\n", err), err


# ---------------------------------------------------------------------------------------------- looking


def test_status_tells_what_is_in_the_home(home: Path, run: Run):
    run.error("sub", "a", "b*", "--name", "n", "--timeout", "0", code=3)
    for channel in ("a", "a", "b1", "c", "dead-letter:a"):
        run("pub", channel, "1", "--name", "Alice")
    [found] = run("status")
    assert (found["home"], found["mode"], found["records"]) == (str(home), "isolated", 5)
    assert re.fullmatch("[0-9a-f]{12}", found["site"])
    assert {c["channel"]: (c["lanes"], c["records"]) for c in found["channels"]} == {
        "a": (1, 2), "b1": (1, 1), "c": (1, 1), "dead-letter:a": (1, 1)}
    assert found["bytes"] == sum(path.stat().st_size for path in (home / "messages").rglob("*.log"))
    [place] = found["subscriptions"]
    assert (place["name"], place["patterns"], place["held"], place["backlog"]) == (
        "n", ["a", "b*"], False, {"a": 2, "b1": 1})
    assert found["origins"] == {f"%41lice~{found['site']}~0": False}
    assert found["dead_letters"] == {"dead-letter:a": 1}
    assert run("subs", "list") == [place]


def test_status_says_who_holds_an_origin(home: Path, run: Run):
    with running(home, "pub", "c", "-", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"1\n")
        process.stdin.flush()
        lines(process, 1)
        [found] = run("status")
    assert list(found["origins"].values()) == [True]


def test_a_copied_home_is_looked_at_without_taking_it_over(run: Run, tmp_path: Path):
    run("pub", "c", "1")
    shutil.copytree(run.home, tmp_path / "copy")
    run.home = tmp_path / "copy"
    assert run("status")[0]["site"] == ""
    assert run("history", "c")[0]["payload"] == 1


def test_a_damaged_place_is_shown_and_can_be_dropped(run: Run):
    run("pub", "c", "1")
    (run.home / "cursors" / "broken").write_bytes(b"x" * 20_000)
    [place] = run("subs", "list")
    assert (place["name"], place["patterns"]) == ("broken", [])
    assert run("subs", "drop", "broken") == [{"dropped": "broken"}]
    assert run("subs", "list") == []


def test_a_dropped_place_is_gone_and_cannot_be_dropped_again(run: Run):
    run.error("sub", "c", "--name", "n", "--timeout", "0", code=3)
    assert run("subs", "drop", "n") == [{"dropped": "n"}]
    assert "there is none of this name" in run.error("subs", "drop", "n", code=2)
    assert run("subs", "list") == []


def on_terminal(*arguments: str, stdin: Any = None) -> str:
    """What a command prints where somebody reads it."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [*PROGRAM, *arguments], stdin=stdin or follower, stdout=follower, stderr=follower
    ) as process:
        os.close(follower)
        found = b""
        try:
            while data := os.read(leader, 65536):
                found += data
        except OSError:  # the other side is closed
            pass
        assert process.wait() == 0, found
    os.close(leader)
    return found.decode().replace("\r\n", "\n")


def test_a_terminal_shows_text_that_cannot_move_the_cursor(home: Path, run: Run):
    where = ("--home", str(home))
    run("pub", "c", json.dumps("\x9b2J\u202edanger" + "x" * 300), "--name", "bob")
    run.error("sub", "c", "--name", "n", "--timeout", "0", code=3)
    shown = on_terminal(*where, "history", "c")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  custom +bob +\"\\x9b2J\\u202edangerx+…\n", shown)
    told = on_terminal(*where, "status")
    assert f"home   {home}\n" in told
    assert re.search(r"\n  c +1 records +\d+ B  1 lanes\n", told)
    assert re.search(r"\n  n +free  c  backlog: none\n", told)
    assert "dead letters\n  none\n" in told
    assert on_terminal(*where, "pub", "c", "1").startswith("published ")
    (home.parent / "in").write_text("1\n2\n")
    with (home.parent / "in").open() as file:
        assert on_terminal(*where, "pub", "c", "-", stdin=file) == "published 2 messages to c (local)\n"
    assert on_terminal(*where, "subs", "list").startswith("n ")
    assert on_terminal(*where, "subs", "drop", "n") == "dropped n\n"
    assert json.loads(on_terminal(*where, "--json", "status"))["home"] == str(home)


def test_sizes_and_times_fit_into_their_columns():
    from lemegeton.cli.looking import _size, time_of

    assert [_size(count) for count in (0, 1023, 1024, 5 * 2**20, 3 * 2**30)] == [
        "0 B", "1023 B", "1.0 KiB", "5.0 MiB", "3.0 GiB"]
    assert time_of(10**18).strip() == str(10**18)
    assert len(time_of(0)) == len(time_of(10**18)) == 23


# ---------------------------------------------------------------------------------------------- hub, agent, assign


@pytest.fixture
def hub(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    with running(home, "hub") as process:
        assert lines(process, 1) == [{"event": "started", "hub": "hub", "pending": 0}]
        yield process


@contextmanager
def working(home: Path, hub: subprocess.Popen[bytes], name: str, command: str) -> Iterator[subprocess.Popen[bytes]]:
    """An agent that the hub knows."""
    with running(home, "agent", name, "--exec", command) as process:
        assert lines(process, 1) == [{"event": "started", "agent": name}]
        [joined] = lines(hub, 1)
        assert (joined["event"], joined["agent"]) == ("agent_joined", name)
        yield process


def test_an_assignment_is_done_by_a_command_and_its_result_printed(
    home: Path, hub: subprocess.Popen[bytes], run: Run
):
    with working(home, hub, "upper", "tr a-z A-Z") as agent:
        [done] = run("assign", "upper", '{"a": "b"}')
        assert (done["agent"], done["attempt"], done["result"]) == ("upper", 1, {"A": "B"})
        assert run("assign", "any", "text", "--text")[0]["result"] == "TEXT"
        agent.send_signal(signal.SIGTERM)
        assert finished(agent) == (0, "")
    assert [line["event"] for line in lines(hub, 2)] == ["completed", "completed"]
    hub.send_signal(signal.SIGINT)
    assert finished(hub) == (0, "")


def test_a_failure_of_the_command_is_that_of_the_assignment(home: Path, hub: subprocess.Popen[bytes], run: Run):
    with working(home, hub, "sorry", "echo bad luck >&2; exit 4"):
        assert "the command ended with code 4: bad luck" in run.error("assign", "sorry", "1", code=1)
    [told] = lines(hub, 1)
    assert (told["event"], told["agent"]) == ("failed", "sorry")


def test_an_agent_that_nobody_knows_is_a_failure(hub: subprocess.Popen[bytes], run: Run):
    assert "nobody" in run.error("assign", "nobody", "1", code=1)


def test_without_a_hub_an_assignment_is_withdrawn_intime_of(run: Run):
    assert "it is withdrawn" in run.error("assign", "any", "1", "--timeout", "0.05", code=3)


def test_an_agent_that_is_told_to_end_finishes_what_it_has_at_hand(
    home: Path, hub: subprocess.Popen[bytes], tmp_path: Path
):
    begun, go_on = tmp_path / "begun", tmp_path / "go on"
    os.mkfifo(begun)
    os.mkfifo(go_on)
    with (working(home, hub, "slow", f"echo > '{begun}'; cat '{go_on}'") as agent,
          running(home, "assign", "slow", "1") as assigning):
        begun.read_bytes()  # opening it waits for the command
        agent.send_signal(signal.SIGTERM)
        go_on.write_text("[7]")
        [done] = lines(assigning, 1)
        assert done["result"] == [7]
        assert finished(assigning) == (0, "")
        assert finished(agent) == (0, "")


def test_a_second_agent_or_hub_of_a_name_is_refused(home: Path, hub: subprocess.Popen[bytes], run: Run):
    assert "another live process" in run.error("hub", code=1)
    with working(home, hub, "a", "cat"):
        assert "another live process" in run.error("agent", "a", "--exec", "cat", code=1)


# ---------------------------------------------------------------------------------------------- the program


def test_help_names_every_verb(run: Run):
    code, out, _ = run.raw("--help")
    assert code == 0
    assert all(f"\n  {verb} " in out for verb in VERBS)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "subs"])
def test_every_verb_explains_itself(run: Run, verb: str):
    code, out, _ = run.raw(verb, "--help")
    assert code == 0
    assert out.startswith(f"Usage: lemegeton {verb}")


def test_the_version_is_that_of_the_package(run: Run):
    assert run.raw("--version")[1] == "lemegeton, version 0.1.0\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_that_shell(run: Run, shell: str):
    code, out, _ = run.raw("completion", shell)
    assert code == 0
    assert "_LEMEGETON_COMPLETE" in out


def test_global_options_are_understood_behind_the_verb(run: Run, capsys: pytest.CaptureFixture[str]):
    assert outcome(["pub", "c", "1", "--home", str(run.home), "--json"]) == 0
    assert outcome(["subs", "list", "--home", str(run.home)]) == 0
    assert (run.home / "messages" / "c").is_dir()


def test_an_error_that_nobody_foresaw_is_not_hidden():
    from lemegeton.cli.main import _explained

    with pytest.raises(ZeroDivisionError):
        _explained(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        _explained(ExceptionGroup("tasks", [ZeroDivisionError()]))


def test_ctrl_c_before_there_is_work_is_one_line(capsys: pytest.CaptureFixture[str]):
    from lemegeton.cli.main import _explained

    assert _explained(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "lemegeton: interrupted\n"


@pytest.mark.parametrize(("error", "says"), [
    (OSError(28, "No space left on device", "/x/y"), "lemegeton: /x/y: No space left on device; free disk space\n"),
    (OSError("odd\nthing"), "lemegeton: odd thing\n"),
    (ExceptionGroup("tasks", [PermissionError(13, "Permission denied")]), "lemegeton: Permission denied\n"),
])
def test_a_system_error_is_one_line_with_its_place(
    error: Exception, says: str, capsys: pytest.CaptureFixture[str]
):
    from lemegeton.cli.main import _explained

    assert _explained(error) == 1
    assert capsys.readouterr().err == says
