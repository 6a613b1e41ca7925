"""The switch by hand: one file that is whole or not there, and that misleads nobody who finds something else."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from lemegeton.errors import HomeRefused, InvalidSetting
from lemegeton.events import Event, ModeSwitchIgnored
from lemegeton.mode_rules import CoordinationMode, Manual
from lemegeton.mode_switch import AUTO, BYTES_MAX, Position, Switch, read_switch, set_mode
from lemegeton.osfs import OsFs, os_runtime
from lemegeton.seams import Runtime

ISOLATED, DEGRADED = CoordinationMode.ISOLATED, CoordinationMode.DEGRADED
NOW_MS = 1_700_000_000_000


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir(mode=0o700)
    return tmp_path / "home"


@pytest.fixture
def runtime() -> Runtime:
    return replace(os_runtime(), wall_ms=lambda: NOW_MS)


def read(home: Path, runtime: Runtime, now_ms: int = NOW_MS) -> Position:
    return read_switch(runtime.fs, str(home), runtime.uid, now_ms)


def test_what_was_set_is_read_with_its_reason_and_its_end(home: Path, runtime: Runtime) -> None:
    manual = set_mode(runtime, str(home), ISOLATED, "moving the server", 90.5)
    assert manual == Manual(ISOLATED, "moving the server", NOW_MS + 90_500)
    assert read(home, runtime) == Position(manual, "moving the server")
    assert json.loads((home / "mode").read_text()) == {
        "mode": "isolated", "reason": "moving the server", "until": NOW_MS + 90_500}
    assert os.stat(home / "mode").st_mode & 0o777 == 0o600
    assert os.listdir(home) == ["mode"]


def test_without_a_file_and_at_auto_nothing_is_by_hand(home: Path, runtime: Runtime) -> None:
    assert read(home, runtime) == Position(None)
    set_mode(runtime, str(home), DEGRADED)
    assert read(home, runtime).manual == Manual(DEGRADED)
    assert set_mode(runtime, str(home), AUTO, "done") is None
    assert read(home, runtime) == Position(None, "done")


def test_at_its_end_it_is_over(home: Path, runtime: Runtime) -> None:
    set_mode(runtime, str(home), ISOLATED, "", 1.0)
    assert read(home, runtime, NOW_MS + 999).manual is not None
    assert read(home, runtime, NOW_MS + 1000) == Position(None, "its time is over")


@pytest.mark.parametrize(("mode", "reason", "for_s", "text"), [
    ("isolated", "", None, "mode 'isolated': must be a CoordinationMode or 'auto'"),
    (ISOLATED, "x" * 201, None, "reason 'x"), (ISOLATED, "two\nlines", None, "reason 'two"),
    (ISOLATED, "", 0.0, "for 0.0: must be seconds above 0"), (ISOLATED, "", float("nan"), "for nan"),
    (ISOLATED, "", float("inf"), "for inf"), (AUTO, "", 5.0, "for 5.0: must be seconds above 0 and at most ten years, and"),
])
def test_what_makes_no_sense_is_refused_and_changes_nothing(
    home: Path, runtime: Runtime, mode: CoordinationMode, reason: str, for_s: float | None, text: str
) -> None:
    set_mode(runtime, str(home), DEGRADED, "before")
    with pytest.raises(InvalidSetting) as caught:
        set_mode(runtime, str(home), mode, reason, for_s)
    assert str(caught.value).startswith(text)
    assert read(home, runtime).reason == "before"


class FullDisk(OsFs):
    """Takes half of what is written."""

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:  # type: ignore[override]
        return os.pwrite(fd, data[:len(data) // 2], offset)


def test_a_full_disk_leaves_the_switch_where_it_stood(home: Path, runtime: Runtime) -> None:
    set_mode(runtime, str(home), DEGRADED, "before")
    with pytest.raises(OSError, match="short write"):
        set_mode(replace(runtime, fs=FullDisk()), str(home), ISOLATED)
    assert read(home, runtime).reason == "before"
    assert os.listdir(home) == ["mode"]


def test_a_home_that_is_not_ours_alone_is_not_written_to(home: Path, runtime: Runtime) -> None:
    home.chmod(0o777)
    with pytest.raises(HomeRefused, match="can be written by others"):
        set_mode(runtime, str(home), ISOLATED)
    assert os.listdir(home) == []


GARBAGE = [b"", b"\x00" * 64, b"isolated", b"[]", b'{"mode": "off"}', b'{"mode": "isolated", "until": "soon"}', b'{"mode": 5}',
           b'{"mode": "isolated"', b"\xff\xfe", b"[" * BYTES_MAX, b" " * BYTES_MAX + b'{"mode": "isolated"}']


@pytest.mark.parametrize("data", GARBAGE, ids=lambda data: repr(data[:20]))
def test_what_is_no_switch_means_auto_and_is_told_of_once(home: Path, runtime: Runtime, data: bytes) -> None:
    (home / "mode").write_bytes(data)
    with pytest.raises(InvalidSetting, match="write it with lemegeton mode set"):
        read(home, runtime)
    events: list[Event] = []
    switch = Switch(runtime.fs, str(home), runtime.uid, runtime.wall_ms, events.append)
    assert switch.look() == switch.look() == Position(None)
    assert [type(event) for event in events] == [ModeSwitchIgnored]


def test_a_link_a_pipe_and_a_directory_are_not_followed(home: Path, runtime: Runtime, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text('{"mode": "isolated"}')
    events: list[Event] = []
    switch = Switch(runtime.fs, str(home), runtime.uid, runtime.wall_ms, events.append)
    for plant in (lambda path: path.symlink_to(target), os.mkfifo, os.mkdir, lambda path: os.link(target, path)):
        plant(home / "mode")
        assert switch.look() == Position(None)
        (home / "mode").rmdir() if (home / "mode").is_dir() else (home / "mode").unlink()
        assert switch.look() == Position(None)
    assert len(events) == 4


def test_looking_follows_every_move_and_the_clock(home: Path, runtime: Runtime) -> None:
    now = [NOW_MS]
    switch = Switch(runtime.fs, str(home), runtime.uid, lambda: now[0], lambda _: None)
    assert switch.look() == Position(None)
    for mode in (ISOLATED, DEGRADED, ISOLATED):
        set_mode(runtime, str(home), mode, "x", 10.0)
        found = switch.look().manual
        assert found is not None
        assert found.mode is mode
    now[0] += 10_000
    assert switch.look() == Position(None, "its time is over")
    now[0] -= 10_000  # a clock that steps back does not bring back what was over
    assert switch.look().manual is None
    set_mode(runtime, str(home), AUTO, "all done")
    assert switch.look() == Position(None, "all done")
    (home / "mode").unlink()
    assert switch.look() == Position(None)


class Counting(OsFs):
    """Counts the files that are opened."""

    opened = 0

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        self.opened += 1
        return super().open(path, flags, mode)


def test_a_switch_that_nobody_moves_is_not_opened_again(home: Path, runtime: Runtime) -> None:
    set_mode(runtime, str(home), ISOLATED)
    fs = Counting()
    switch = Switch(fs, str(home), runtime.uid, runtime.wall_ms, lambda _: None)
    for _ in range(100):
        assert switch.look().manual is not None
    assert fs.opened == 1
