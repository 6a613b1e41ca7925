"""Checkpoints survive SIGKILL, belong to one holder, and believe no damaged byte of header or key."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lemegeton.channels import encode_name
from lemegeton.checkpoint import (
    GROW_ROWS,
    HEADER_BYTES,
    ROW_BYTES,
    Checkpoint,
    CheckpointView,
    Header,
    Marks,
    VolatileMarks,
    checkpoint_names,
    forget,
    held,
    read_header,
    settled_at,
)
from lemegeton.errors import CheckpointFull, InvalidMessage, NameTaken
from lemegeton.lane import Lane
from lemegeton.osfs import OsFs
from lemegeton.poison import Past, past_of, remember
from lemegeton.testing.fake_fs import FakeDisk, FakeFs

HEADER = Header("worker", ("hub", "agent-*"), "boot-1", 1_700_000_000_000)
LANE = Lane("agent-é", "hub~0123456789ab~0", 3, 1)
LONGEST = Lane("x" * 256, "o" * 160, 2**62 - 1, 3)


def lane(n: int) -> Lane:
    return Lane(f"channel-{n}", "hub~s~0", n + 1, n % 4)


def store(marks: Marks, row: int, settled: int, intent: int) -> None:
    marks.cells[settled_at(row)] = settled
    marks.cells[settled_at(row) + 1] = intent


def load(marks: Marks, wanted: Lane) -> tuple[int, int] | None:
    row = marks.find(wanted)
    return None if row is None else (marks.cells[settled_at(row)], marks.cells[settled_at(row) + 1])


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path)


@pytest.fixture
def path(directory: str) -> str:
    return f"{directory}/worker"


@pytest.fixture
def fake() -> FakeFs:
    fs = FakeFs(FakeDisk(Random(1)))
    fs.mkdir("/cursors")
    return fs


@pytest.fixture(params=["real", "fake", "volatile"])
def marks(request: pytest.FixtureRequest, directory: str, fake: FakeFs) -> Iterator[Marks]:
    makers: dict[str, Callable[[], Marks]] = {
        "real": lambda: Checkpoint(OsFs(), directory, HEADER),
        "fake": lambda: Checkpoint(fake, "/cursors", HEADER),
        "volatile": VolatileMarks,
    }
    made = makers[request.param]()
    yield made
    made.close()


# Marks of every kind


def test_a_new_lane_begins_behind_what_it_is_given(marks: Marks) -> None:
    assert marks.find(LANE) is None
    row = marks.add(LANE, 41)
    assert marks.find(LANE) == row
    assert load(marks, LANE) == (41, 41)
    assert marks.lanes() == [LANE]


def test_growing_keeps_every_mark(marks: Marks) -> None:
    count = 3 * GROW_ROWS + 1
    for n in range(count):
        store(marks, marks.add(lane(n), 0), 10 * n, 10 * n + 1)
    assert marks.lanes() == [lane(n) for n in range(count)]
    assert [load(marks, lane(n)) for n in range(count)] == [(10 * n, 10 * n + 1) for n in range(count)]
    assert len({marks.find(lane(n)) for n in range(count)}) == count


def test_a_dropped_lane_gives_its_row_back(marks: Marks) -> None:
    row = marks.add(LANE, 5)
    other = marks.add(lane(1), 6)
    marks.drop(LANE)
    assert marks.find(LANE) is None
    assert marks.add(lane(2), 7) == row
    assert (load(marks, lane(1)), load(marks, lane(2))) == ((6, 6), (7, 7))
    assert marks.find(lane(1)) == other


def test_the_largest_sequence_fits(marks: Marks) -> None:
    store(marks, marks.add(LANE, 0), 2**64 - 1, 2**64 - 1)
    assert load(marks, LANE) == (2**64 - 1, 2**64 - 1)


def test_closing_and_forgetting_twice_is_harmless(marks: Marks) -> None:
    marks.add(LANE, 1)
    marks.forget()
    marks.close()
    marks.close()
    with pytest.raises(ValueError, match="released"):
        marks.cells[0]


# Over the end of the holder


def test_marks_survive_closing(directory: str) -> None:
    first = Checkpoint(OsFs(), directory, HEADER)
    assert (first.previous, first.new, first.closed) == (None, True, False)
    store(first, first.add(LANE, 7), 8, 9)
    first.add(LONGEST, 2)
    first.add(lane(3), 1)
    first.drop(lane(3))
    first.close()
    assert first.closed
    second = Checkpoint(OsFs(), directory, Header("worker", ("other",), "boot-2", 5))
    assert (second.previous, second.new) == (HEADER, False)
    assert set(second.lanes()) == {LANE, LONGEST}
    assert (load(second, LANE), load(second, LONGEST), load(second, lane(3))) == ((8, 9), (2, 2), None)
    second.close()


def test_the_file_is_private_and_holds_whole_rows(directory: str, path: str) -> None:
    checkpoint = Checkpoint(OsFs(), directory, HEADER)
    checkpoint.add(LANE, 1)
    assert os.path.getsize(path) == HEADER_BYTES + GROW_ROWS * ROW_BYTES
    assert {os.stat(f"{directory}/{name}").st_mode & 0o777 for name in os.listdir(directory)} == {0o600}
    checkpoint.close()


CHILD = """
import os, sys
from lemegeton.checkpoint import Checkpoint, Header, settled_at
from lemegeton.lane import Lane
from lemegeton.osfs import OsFs
checkpoint = Checkpoint(OsFs(), sys.argv[1], Header("worker", ("hub",), "boot-1", 5))
for n in range(100):
    row = checkpoint.add(Lane("hub", f"o{n}", 1, 1), 0)
    checkpoint.cells[settled_at(row)] = 1000 + n
    checkpoint.cells[settled_at(row) + 1] = 1001 + n
if len(sys.argv) > 2:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
print("stored", flush=True)
sys.stdin.read()
"""


def child(directory: str, *more: str) -> subprocess.Popen[bytes]:
    """Another process that holds the name once this returns."""
    process = subprocess.Popen([sys.executable, "-c", CHILD, directory, *more], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"stored\n"
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_marks_survive_sigkill_and_the_name_is_free_at_once(directory: str, path: str) -> None:
    with child(directory) as process:
        assert held(OsFs(), path)
        with pytest.raises(NameTaken, match=r"^durable subscription 'worker': another live process holds it"):
            Checkpoint(OsFs(), directory, HEADER)
        assert not forget(OsFs(), path)
        kill(process)
    assert not held(OsFs(), path)
    checkpoint = Checkpoint(OsFs(), directory, HEADER)
    assert checkpoint.previous == Header("worker", ("hub",), "boot-1", 5)
    assert [load(checkpoint, Lane("hub", f"o{n}", 1, 1)) for n in range(100)] == [
        (1000 + n, 1001 + n) for n in range(100)]
    checkpoint.close()


def test_a_forked_child_that_outlives_its_killed_parent_does_not_hold_the_name(directory: str, path: str) -> None:
    with child(directory, "fork") as process:
        # The forked child reported; it lives until its standard input ends.
        assert held(OsFs(), path)
        kill(process)
        assert not held(OsFs(), path)
        checkpoint = Checkpoint(OsFs(), directory, HEADER)
        assert len(checkpoint.lanes()) == 100
        checkpoint.close()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        assert process.stdout.read() == b""


def test_a_second_holder_in_the_same_process_is_refused_and_leaves_the_first_alone(directory: str, path: str) -> None:
    first = Checkpoint(OsFs(), directory, HEADER)
    first.add(LANE, 7)
    with pytest.raises(NameTaken):
        Checkpoint(OsFs(), directory, Header("worker", ("x",), "boot-2", 9))
    assert held(OsFs(), path)
    view = CheckpointView(OsFs(), path)
    assert view.header() == HEADER
    view.close()
    first.close()
    Checkpoint(OsFs(), directory, HEADER).close()


def test_names_that_would_share_a_file_do_not(directory: str) -> None:
    names = ["a/b", "a_b", "A", "a", "../x", "x.lock", "x"]
    made = [Checkpoint(OsFs(), directory, Header(name, (), "b", 1)) for name in names]
    assert sorted(checkpoint_names(OsFs(), directory)) == sorted(map(encode_name, names))
    for one in made:
        one.close()


# Damage


def stored(directory: str, path: str) -> bytes:
    """The bytes of a checkpoint with one lane at 7."""
    checkpoint = Checkpoint(OsFs(), directory, HEADER)
    checkpoint.add(LANE, 7)
    checkpoint.close()
    return Path(path).read_bytes()


FILES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


def first_row(directory: str) -> int:
    """The offset of the row that the first lane gets."""
    checkpoint = Checkpoint(OsFs(), f"{directory}", Header("probe", (), "b", 1))
    row = checkpoint.add(LANE, 7)
    checkpoint.forget()
    return HEADER_BYTES + row * ROW_BYTES


@FILES
@given(st.sets(st.integers(1, ROW_BYTES // 8 - 1)), st.booleans())
def test_a_row_is_valid_only_by_its_last_store(directory: str, path: str, words: set[int], reused: bool) -> None:
    Path(path).unlink(missing_ok=True)
    data = stored(directory, path)
    at = first_row(directory)
    row = bytearray(b"\xff" * ROW_BYTES if reused else bytes(ROW_BYTES))
    row[:8] = bytes(8)
    for word in words:
        row[8 * word : 8 * word + 8] = data[at + 8 * word : at + 8 * word + 8]
    Path(path).write_bytes(data[:at] + row + data[at + ROW_BYTES :])
    checkpoint = Checkpoint(OsFs(), directory, HEADER)
    assert checkpoint.lanes() == []
    checkpoint.add(LANE, 9)
    assert load(checkpoint, LANE) == (9, 9)
    checkpoint.close()


def test_any_changed_byte_of_mark_length_sum_or_key_makes_the_row_invalid(directory: str, path: str) -> None:
    data = stored(directory, path)
    at = first_row(directory)
    key = "\0".join(map(str, LANE)).encode()
    for offset in [*range(8), *range(24, 40), *range(40, 40 + len(key))]:
        damaged = bytearray(data)
        damaged[at + offset] ^= 0x41
        Path(path).write_bytes(damaged)
        view = CheckpointView(OsFs(), path)
        view.refresh()
        assert view.settled(LANE) == 0, offset
        view.close()


@FILES
@given(st.binary(min_size=ROW_BYTES, max_size=ROW_BYTES) | st.lists(
    st.sampled_from([0, 1, 8, 472, 473, 2**32, 2**64 - 1, 0x4C454D45]), min_size=64, max_size=64,
).map(lambda words: b"".join(word.to_bytes(8, sys.byteorder) for word in words)))
def test_a_garbage_row_is_ignored_and_used_again(directory: str, path: str, row: bytes) -> None:
    Path(path).unlink(missing_ok=True)
    data = stored(directory, path)
    Path(path).write_bytes(data + row)
    checkpoint = Checkpoint(OsFs(), directory, HEADER)
    assert checkpoint.lanes() == [LANE]
    for n in range(GROW_ROWS):
        checkpoint.add(lane(n), n)
    assert [load(checkpoint, lane(n)) for n in range(GROW_ROWS)] == [(n, n) for n in range(GROW_ROWS)]
    checkpoint.close()


def test_an_empty_row_with_the_valid_mark_is_ignored(directory: str, path: str) -> None:
    data = stored(directory, path)
    Path(path).write_bytes(data + 0x4C454D45.to_bytes(8, sys.byteorder) + bytes(ROW_BYTES - 8))
    checkpoint = Checkpoint(OsFs(), directory, HEADER)
    assert checkpoint.lanes() == [LANE]
    checkpoint.close()


def test_of_two_rows_of_one_lane_the_first_counts(directory: str, path: str) -> None:
    data = stored(directory, path)
    at = first_row(directory)
    Path(path).write_bytes(data + data[at : at + ROW_BYTES])
    checkpoint = Checkpoint(OsFs(), directory, HEADER)
    assert checkpoint.lanes() == [LANE]
    checkpoint.close()


def test_half_a_row_at_the_end_is_ignored_and_grown_over(directory: str, path: str) -> None:
    data = stored(directory, path)
    Path(path).write_bytes(data + b"\xff" * 100)
    checkpoint = Checkpoint(OsFs(), directory, HEADER)
    for n in range(GROW_ROWS):
        checkpoint.add(lane(n), n)
    checkpoint.close()
    again = Checkpoint(OsFs(), directory, HEADER)
    assert set(again.lanes()) == {LANE, *map(lane, range(GROW_ROWS))}
    again.close()


@pytest.mark.parametrize("offset", [0, 11, 20, 29, 40])
def test_a_damaged_header_costs_the_header_and_not_the_marks(directory: str, path: str, offset: int) -> None:
    data = bytearray(stored(directory, path))
    data[offset] ^= 0x41
    Path(path).write_bytes(data)
    checkpoint = Checkpoint(OsFs(), directory, HEADER)
    assert (checkpoint.previous, checkpoint.new) == (None, False)
    assert load(checkpoint, LANE) == (7, 7)
    checkpoint.close()
    again = Checkpoint(OsFs(), directory, HEADER)
    assert again.previous == Header("worker", HEADER.patterns, "", HEADER.seen_ms)
    again.close()


def test_the_boot_of_the_last_holder_stays_until_the_next_one_has_acted_on_it(directory: str) -> None:
    Checkpoint(OsFs(), directory, HEADER).close()
    now = Header("worker", ("hub",), "boot-2", 9)
    for _ in range(2):
        checkpoint = Checkpoint(OsFs(), directory, now)
        assert checkpoint.previous is not None
        assert checkpoint.previous.boot_id == "boot-1"
        checkpoint.close()
    checkpoint = Checkpoint(OsFs(), directory, now)
    checkpoint.write_header(now)
    checkpoint.close()
    again = Checkpoint(OsFs(), directory, now)
    assert again.previous == now
    again.close()


@FILES
@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda rest: b"LEMEGETON1 00000000 00000002 " + rest))
def test_a_garbage_header_is_no_header(directory: str, garbage: bytes) -> None:
    file = Path(directory, "garbage")
    file.write_bytes(garbage)
    fs = OsFs()
    fd = fs.open(str(file), os.O_RDONLY)
    try:
        assert read_header(fs, fd) is None
    finally:
        fs.close(fd)


def test_a_header_with_an_impossible_pattern_is_no_header(directory: str, path: str) -> None:
    Checkpoint(OsFs(), directory, Header("worker", ("a\nb",), "b", 1)).close()
    view = CheckpointView(OsFs(), path)
    assert view.header() is None
    view.close()


@pytest.mark.parametrize("size", [0, 1, 4096, HEADER_BYTES - 1, HEADER_BYTES])
def test_a_file_whose_making_was_cut_short_is_made_again(directory: str, path: str, size: int) -> None:
    Path(path).write_bytes(bytes(size))
    checkpoint = Checkpoint(OsFs(), directory, HEADER)
    assert (checkpoint.previous, checkpoint.new) == (None, size == 0)
    checkpoint.add(LANE, 3)
    checkpoint.close()
    again = Checkpoint(OsFs(), directory, HEADER)
    assert again.previous is not None
    # Of a damaged one nobody knows in which boot it was held: in none that is.
    assert again.previous.boot_id == (HEADER.boot_id if size == 0 else "")
    assert load(again, LANE) == (3, 3)
    again.close()


# Refusals leave nothing behind


def test_too_many_patterns_are_refused_before_there_is_a_file(directory: str) -> None:
    patterns = tuple(f"{n:0256}" for n in range(70))
    with pytest.raises(InvalidMessage, match=r"^durable subscription 'worker': 70 patterns take \d+ bytes, at most"):
        Checkpoint(OsFs(), directory, Header("worker", patterns, "b", 1))
    assert os.listdir(directory) == []


def test_the_most_patterns_that_fit_come_back(directory: str) -> None:
    patterns = tuple(f"{n:0250}" for n in range(64))
    Checkpoint(OsFs(), directory, Header("worker", patterns, "b", 1)).close()
    again = Checkpoint(OsFs(), directory, HEADER)
    assert again.previous is not None
    assert again.previous.patterns == patterns
    again.close()


@pytest.mark.parametrize(("op", "code", "error"), [
    ("allocate", errno.ENOSPC, CheckpointFull), ("pwrite", errno.EIO, OSError), ("fsync", errno.EIO, OSError),
    ("fstat", errno.EIO, OSError), ("pread", errno.EIO, OSError), ("lock", errno.ENOLCK, OSError),
])
def test_a_checkpoint_that_cannot_be_made_leaves_no_file_and_no_lock(
    fake: FakeFs, op: str, code: int, error: type[Exception]
) -> None:
    fake.fail_next(op, code)
    with pytest.raises(error):
        Checkpoint(fake, "/cursors", HEADER)
    assert fake.open_fds() == []
    assert not held(fake, "/cursors/worker")
    # Only where not even the size could be had the empty file stays: it might be somebody's.
    assert list(checkpoint_names(fake, "/cursors")) == (["worker"] if op == "fstat" else [])
    Checkpoint(fake, "/cursors", HEADER).close()


def test_an_error_with_an_older_checkpoint_keeps_it(fake: FakeFs) -> None:
    first = Checkpoint(fake, "/cursors", HEADER)
    first.add(LANE, 7)
    first.close()
    fake.fail_next("pwrite", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        Checkpoint(fake, "/cursors", HEADER)
    again = Checkpoint(fake, "/cursors", HEADER)
    assert load(again, LANE) == (7, 7)
    again.close()
    assert fake.open_fds() == []


def test_a_full_disk_says_what_to_do(fake: FakeFs) -> None:
    fake.disk.capacity = 100
    with pytest.raises(CheckpointFull, match=r"^checkpoint /cursors/worker: no room for 16384 bytes: No space left on "
                                             r"device; free disk space$"):
        Checkpoint(fake, "/cursors", HEADER)


@pytest.mark.parametrize(("op", "code"), [("allocate", errno.ENOSPC), ("map", errno.ENOMEM)])
def test_growth_that_fails_keeps_what_there_is_and_works_later(fake: FakeFs, op: str, code: int) -> None:
    checkpoint = Checkpoint(fake, "/cursors", HEADER)
    for n in range(GROW_ROWS):
        checkpoint.add(lane(n), n)
    fake.fail_next(op, code)
    with pytest.raises((CheckpointFull, OSError)):
        checkpoint.add(LANE, 7)
    assert [load(checkpoint, lane(n)) for n in range(GROW_ROWS)] == [(n, n) for n in range(GROW_ROWS)]
    checkpoint.add(LANE, 7)
    assert load(checkpoint, LANE) == (7, 7)
    checkpoint.close()


def test_a_row_that_is_used_again_has_no_past(marks: Marks) -> None:
    row = marks.add(LANE, 7)
    for n in range(1, GROW_ROWS):
        marks.add(lane(n), n)
    remember(marks.cells, row, 8, Past(3, 5, alone=True))
    assert marks.lanes() == [LANE, *map(lane, range(1, GROW_ROWS))]
    marks.drop(LANE)
    assert marks.add(LONGEST, 7) == row
    assert past_of(marks.cells, row, 8, False) == Past(0)


def test_a_row_of_the_first_format_has_no_past(directory: str, path: str) -> None:
    checkpoint = Checkpoint(OsFs(), directory, HEADER)
    row = checkpoint.add(LANE, 7)
    first_format = bytes(checkpoint.cells[row * 64 : row * 64 + 62])  # valid, settled, intent, length, crc, lane key
    remember(checkpoint.cells, row, 8, Past(3, 5))
    checkpoint.close()
    with open(path, "r+b") as file:
        file.seek(HEADER_BYTES + row * ROW_BYTES)
        file.write(first_format + bytes(16))
    checkpoint = Checkpoint(OsFs(), directory, HEADER)
    assert checkpoint.find(LANE) == row
    assert past_of(checkpoint.cells, row, 8, True) == Past(1)
    checkpoint.close()


def test_there_is_a_limit_of_lanes(directory: str) -> None:
    checkpoint = Checkpoint(OsFs(), directory, HEADER, rows_max=GROW_ROWS)
    for n in range(GROW_ROWS):
        checkpoint.add(lane(n), n)
    with pytest.raises(CheckpointFull, match=f"worker: {GROW_ROWS} lanes, the limit; drop what is not needed"):
        checkpoint.add(LANE, 1)
    checkpoint.drop(lane(0))
    checkpoint.add(LANE, 1)
    checkpoint.close()


def test_a_lane_that_no_row_can_hold_is_refused_and_overwrites_nothing(directory: str) -> None:
    checkpoint = Checkpoint(OsFs(), directory, HEADER)
    checkpoint.add(LANE, 7)
    checkpoint.add(LONGEST, 8)
    with pytest.raises(CheckpointFull, match=r"\d+ bytes, at most 456 fit$"):
        checkpoint.add(Lane("x" * 256, "o" * 230, 1, 1), 9)
    assert (load(checkpoint, LANE), load(checkpoint, LONGEST)) == ((7, 7), (8, 8))
    checkpoint.close()


def test_a_symbolic_link_is_not_followed_and_the_lock_is_let_go(directory: str, path: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_bytes(b"precious")
    os.symlink(victim, path)
    with pytest.raises(OSError, match="symbolic"):
        Checkpoint(OsFs(), directory, HEADER)
    assert victim.read_bytes() == b"precious"
    assert not held(OsFs(), path)
    os.unlink(path)
    Checkpoint(OsFs(), directory, HEADER).close()


# Forgetting, and looking from outside


def test_forgetting_begins_anew(directory: str, path: str) -> None:
    checkpoint = Checkpoint(OsFs(), directory, HEADER)
    checkpoint.add(LANE, 7)
    assert checkpoint.ids_path == path + ".ids"
    Path(checkpoint.ids_path).write_bytes(b"ids")
    checkpoint.forget()
    assert os.listdir(directory) == ["worker.lock"]
    again = Checkpoint(OsFs(), directory, HEADER)
    assert (again.previous, again.new, again.lanes()) == (None, True, [])
    again.close()


def test_a_place_is_dropped_from_outside_only_while_nobody_holds_it(directory: str, path: str) -> None:
    checkpoint = Checkpoint(OsFs(), directory, HEADER)
    Path(checkpoint.ids_path).write_bytes(b"ids")
    assert not forget(OsFs(), path)
    assert sorted(os.listdir(directory)) == ["worker", "worker.ids", "worker.lock"]
    checkpoint.close()
    assert forget(OsFs(), path)
    assert os.listdir(directory) == ["worker.lock"]
    assert forget(OsFs(), path)
    assert not held(OsFs(), path)


def test_a_name_that_nobody_ever_took_is_not_held(path: str) -> None:
    assert not held(OsFs(), path)
    assert not os.path.exists(path + ".lock")


def test_looking_who_holds_a_name_does_not_take_it(directory: str, path: str) -> None:
    Checkpoint(OsFs(), directory, HEADER).close()
    looking = OsFs()
    assert not held(looking, path)
    Checkpoint(OsFs(), directory, HEADER).close()


def test_a_view_follows_the_holder(directory: str, path: str) -> None:
    checkpoint = Checkpoint(OsFs(), directory, HEADER)
    view = CheckpointView(OsFs(), path)
    assert (view.header(), view.inode) == (HEADER, os.stat(path).st_ino)
    view.refresh()
    assert view.settled(LANE) == 0
    row = checkpoint.add(LANE, 7)
    assert view.settled(LANE) == 0
    view.refresh()
    assert (view.settled(LANE), view.all_settled()) == (7, {LANE: 7})
    store(checkpoint, row, 8, 9)
    later = Header("worker", ("hub",), "boot-1", 99)
    checkpoint.write_header(later)
    view.refresh()
    assert (view.settled(LANE), view.header()) == (8, later)
    checkpoint.drop(LANE)
    view.refresh()
    assert view.settled(LANE) == 0
    view.close()
    checkpoint.close()


def test_a_view_of_a_file_that_is_being_made_has_no_header(path: str) -> None:
    Path(path).write_bytes(b"")
    view = CheckpointView(OsFs(), path)
    view.refresh()
    assert (view.begun(), view.header(), view.settled(LANE), view.all_settled()) == (False, None, 0, {})
    view.close()


def test_a_view_of_nothing_is_an_error(path: str) -> None:
    with pytest.raises(FileNotFoundError):
        CheckpointView(OsFs(), path)


@FILES
@given(st.lists(st.tuples(st.sampled_from(["add", "settle", "drop", "open"]), st.integers(0, 5), st.integers(0, 2**63)),
                max_size=40))
def test_whatever_is_done_the_file_says_what_a_dictionary_would(directory: str, path: str, steps: list[Any]) -> None:
    Path(path).unlink(missing_ok=True)
    checkpoint = Checkpoint(OsFs(), directory, HEADER)
    model: dict[Lane, int] = {}
    for what, n, value in steps:
        if what == "open":
            checkpoint.close()
            checkpoint = Checkpoint(OsFs(), directory, HEADER)
        elif what == "add" and lane(n) not in model:
            checkpoint.add(lane(n), value)
            model[lane(n)] = value
        elif what == "settle" and lane(n) in model:
            store(checkpoint, checkpoint.find(lane(n)) or 0, value, value)
            model[lane(n)] = value
        elif what == "drop" and lane(n) in model:
            checkpoint.drop(lane(n))
            del model[lane(n)]
    view = CheckpointView(OsFs(), path)
    view.refresh()
    assert {one: checkpoint.cells[settled_at(checkpoint.find(one) or 0)] for one in checkpoint.lanes()} == model
    assert [view.settled(lane(n)) for n in range(6)] == [model.get(lane(n), 0) for n in range(6)]
    view.close()
    checkpoint.close()
