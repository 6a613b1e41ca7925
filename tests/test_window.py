"""The id window remembers what was handled, bounded by number and age, also over a SIGKILL."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemegeton.osfs import OsFs
from lemegeton.testing.fake_fs import FakeDisk, FakeFs
from lemegeton.window import AGE_MAX_MS, AHEAD_SLOTS, GROW_SLOTS, IDS_MAX, IdWindow

NOW = 1_700_000_000_000


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "sub.ids")


def known(window: IdWindow, *ids: str, now_ms: int = NOW) -> list[bool]:
    return [("c", ident, now_ms) in window for ident in ids]


def test_an_id_is_known_once_it_was_added_and_only_in_its_channel() -> None:
    window = IdWindow(OsFs(), None)
    assert known(window, "a") == [False]
    window.add("c", "a", NOW)
    assert known(window, "a", "b") == [True, False]
    assert ("d", "a", NOW) not in window
    window.close()


@given(st.tuples(st.text(max_size=3), st.text(max_size=3)), st.tuples(st.text(max_size=3), st.text(max_size=3)))
def test_channel_and_id_are_told_apart(one: tuple[str, str], other: tuple[str, str]) -> None:
    window = IdWindow(OsFs(), None)
    channel, ident = (part.replace("\0", "").encode("utf-8", "replace").decode() for part in one)
    window.add(channel, ident, NOW)
    channel2, ident2 = (part.replace("\0", "").encode("utf-8", "replace").decode() for part in other)
    assert ((channel2, ident2, NOW) in window) == ((channel, ident) == (channel2, ident2))


def test_an_id_is_known_for_24_hours() -> None:
    window = IdWindow(OsFs(), None)
    window.add("c", "a", NOW)
    assert known(window, "a", now_ms=NOW + AGE_MAX_MS - 1) == [True]
    assert known(window, "a", now_ms=NOW + AGE_MAX_MS) == [False]
    assert known(window, "a", now_ms=NOW - 5_000) == [True]  # a clock that was set back


def test_an_id_that_comes_again_is_young_again(path: str) -> None:
    window = IdWindow(OsFs(), path)
    window.add("c", "a", NOW)
    window.add("c", "a", NOW + AGE_MAX_MS)
    assert known(window, "a", now_ms=NOW + AGE_MAX_MS + 1) == [True]
    window.close()
    again = IdWindow(OsFs(), path)
    assert known(again, "a", now_ms=NOW + AGE_MAX_MS + 1) == [True]
    again.close()


def test_the_window_holds_100_000_ids() -> None:
    window = IdWindow(OsFs(), None)
    for n in range(IDS_MAX + 1):
        window.add("c", str(n), NOW)
    assert known(window, "0", "1", str(IDS_MAX)) == [False, True, True]


@pytest.mark.parametrize("stored", [True, False])
def test_the_oldest_id_gives_way(path: str, stored: bool) -> None:
    window = IdWindow(OsFs(), path if stored else None, ids_max=3)
    for ident in "abcd":
        window.add("c", ident, NOW)
    assert known(window, *"abcd") == [False, True, True, True]
    window.add("c", "b", NOW)
    window.add("c", "e", NOW)
    assert known(window, *"bcde") == [True, False, True, True]
    window.close()


def test_ids_survive_closing_and_the_ring_wraps_on_disk(path: str) -> None:
    for round_ in range(4):
        window = IdWindow(OsFs(), path, ids_max=3)
        for n in range(round_ + 1):
            window.add("c", f"{round_}.{n}", NOW)
        window.close()
    assert os.path.getsize(path) == 3 * 32
    window = IdWindow(OsFs(), path, ids_max=3)
    assert known(window, "2.2", "3.0", "3.1", "3.2", "3.3") == [False, False, True, True, True]
    window.add("c", "next", NOW)
    assert known(window, "3.1", "3.2", "3.3", "next") == [False, True, True, True]
    window.close()
    window.close()


def test_after_loading_an_id_that_was_repeated_gives_way_last(path: str) -> None:
    window = IdWindow(OsFs(), path, ids_max=3)
    for ident in "aba":
        window.add("c", ident, NOW)
    window.close()
    window = IdWindow(OsFs(), path, ids_max=3)
    for ident in "xy":
        window.add("c", ident, NOW)
    assert known(window, *"abxy") == [True, False, True, True]
    window.close()


def test_there_is_no_file_before_the_first_id_and_it_is_private(path: str) -> None:
    window = IdWindow(OsFs(), path)
    assert not os.path.exists(path)
    window.add("c", "a", NOW)
    assert os.stat(path).st_mode & 0o777 == 0o600
    window.close()


CHILD = """
import sys
from lemegeton.osfs import OsFs
from lemegeton.window import IdWindow
window = IdWindow(OsFs(), sys.argv[1])
for n in range(100):
    window.add("c", str(n), 1_700_000_000_000)
print("added", flush=True)
sys.stdin.read()
"""


def test_ids_survive_sigkill(path: str) -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"added\n"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    window = IdWindow(OsFs(), path)
    assert known(window, "0", "99", "100") == [True, True, False]
    window.close()


@pytest.mark.parametrize("damage", [
    b"", b"x", b"\xff" * 32, b"\0" * 320, b"\xff" * 320, struct.pack("<16sQQ", b"d" * 16, 2**64 - 1, 2**64 - 1),
    struct.pack("<16sQQ", b"d" * 16, 2**62, NOW), struct.pack("<16sQQ", b"d" * 16, 3, NOW),
])
def test_a_damaged_slot_counts_as_empty_and_the_window_goes_on(path: str, damage: bytes) -> None:
    Path(path).write_bytes(damage)
    window = IdWindow(OsFs(), path, ids_max=8)
    for ident in "ab":
        window.add("c", ident, NOW)
    window.close()
    again = IdWindow(OsFs(), path, ids_max=8)
    assert known(again, *"abc") == [True, True, False]
    again.close()


def test_a_damaged_slot_costs_only_itself(path: str) -> None:
    window = IdWindow(OsFs(), path, ids_max=8)
    for ident in "abcd":
        window.add("c", ident, NOW)
    window.close()
    with open(path, "r+b") as file:
        file.seek(32)
        file.write(b"\xff" * 32)
    again = IdWindow(OsFs(), path, ids_max=8)
    assert known(again, *"abcd") == [True, False, True, True]
    again.add("c", "e", NOW)
    again.close()
    last = IdWindow(OsFs(), path, ids_max=8)
    assert known(last, *"acde") == [True] * 4
    last.close()


def test_a_symbolic_link_is_not_followed(path: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    os.symlink(victim, path)
    with pytest.raises(OSError, match="symbolic"):
        IdWindow(OsFs(), path)
    assert victim.read_bytes() == b"precious"


def test_on_a_full_disk_an_id_is_remembered_while_the_process_lives() -> None:
    disk = FakeDisk(Random(1))
    fs = FakeFs(disk)
    window = IdWindow(fs, "/sub.ids")
    fs.fail_next("allocate", errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        window.add("c", "a", NOW)
    assert known(window, "a") == [True]
    assert known(IdWindow(FakeFs(disk), "/sub.ids"), "a") == [False]
    window.save()
    window.add("c", "b", NOW)
    window.close()
    again = IdWindow(fs, "/sub.ids")
    assert known(again, "a", "b") == [True, True]
    again.close()
    assert fs.open_fds() == []


def test_what_room_was_taken_for_is_remembered_on_a_full_disk() -> None:
    disk = FakeDisk(Random(1))
    fs = FakeFs(disk)
    window = IdWindow(fs, "/sub.ids", ids_max=5000)
    window.reserve()
    disk.capacity = disk.used
    for n in range(GROW_SLOTS - AHEAD_SLOTS + 1):
        window.reserve()
        window.add("c", str(n), NOW)
    with pytest.raises(OSError, match="No space"):
        window.reserve()
    window.add("c", "of a handler that was called before", NOW)
    disk.capacity = None
    for n in range(5000):
        window.reserve()
        window.add("c", f"more {n}", NOW)
    window.close()
    assert len(disk.read("/sub.ids")) == 5000 * 32
    again = IdWindow(fs, "/sub.ids", ids_max=5000)
    again.reserve()
    assert known(again, "of a handler that was called before", "more 0", "more 4999") == [False, True, True]
    again.close()


def test_room_that_is_not_used_yet_holds_no_id(path: str) -> None:
    window = IdWindow(OsFs(), path)
    window.reserve()
    window.close()
    again = IdWindow(OsFs(), path)
    again.add("c", "a", NOW)
    again.close()
    assert Path(path).read_bytes()[:32] != bytes(32)
    assert os.path.getsize(path) == GROW_SLOTS * 32


def test_in_memory_there_is_room() -> None:
    IdWindow(OsFs(), None).reserve()


def test_no_room_is_taken_while_an_id_waits_for_the_disk() -> None:
    fs = FakeFs(FakeDisk(Random(1)))
    window = IdWindow(fs, "/sub.ids")
    window.reserve()
    window.close()
    for at in (1, 2):
        fs.fail_next("open", errno.EROFS, after=at)
    with pytest.raises(OSError, match="Read-only"):
        window.add("c", "a", NOW)
    with pytest.raises(OSError, match="Read-only"):
        window.reserve()
    window.reserve()
    assert known(IdWindow(fs, "/sub.ids"), "a") == [True]


def test_what_room_was_taken_for_is_remembered_on_a_disk_that_failed() -> None:
    disk = FakeDisk(Random(1))
    fs = FakeFs(disk)
    window = IdWindow(fs, "/sub.ids")
    window.reserve()
    disk.read_only = True
    fs.short_writes = 1.0
    fs.fail_next("*", errno.EIO)
    window.add("c", "a", NOW)
    fs.kill()
    disk.read_only = False
    assert known(IdWindow(FakeFs(disk), "/sub.ids"), "a") == [True]


def test_a_slot_that_was_being_stored_counts_as_empty(path: str) -> None:
    class Killed(Exception):
        pass

    class Dying:
        """The words of a window whose process dies at the n-th store."""

        def __init__(self, words: memoryview, left: int) -> None:
            self.words = words
            self.left = left

        def __len__(self) -> int:
            return len(self.words)

        def __setitem__(self, at: int, value: int) -> None:
            if not self.left:
                raise Killed
            self.left -= 1
            self.words[at] = value

        def release(self) -> None:
            self.words.release()

    for stores in range(5):
        path_of = f"{path}{stores}"
        window = IdWindow(OsFs(), path_of, ids_max=2)
        for ident in "ab":
            window.add("c", ident, NOW)
        window._cells = Dying(window._cells, stores)  # type: ignore[assignment]
        with pytest.raises(Killed):
            window.add("c", "d", NOW)
        window.close()
        again = IdWindow(OsFs(), path_of, ids_max=2)
        assert known(again, *"abd") == [stores == 0, True, False]
        again.add("c", "e", NOW)
        assert known(again, *"be") == [True, True]
        again.close()
