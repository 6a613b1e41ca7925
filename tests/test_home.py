"""The home is private, is refused in one line that says what to mend, and has one site id that no copy shares."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemegeton.errors import HomeRefused
from lemegeton.home import (
    DIRECTORY,
    NETWORK_FS,
    Home,
    check_directory,
    check_file,
    find_home,
    network_fs,
    open_home,
    sync_directory,
    write_new,
)
from lemegeton.osfs import OsFs, os_runtime
from lemegeton.seams import Runtime
from lemegeton.testing.fake_fs import FakeDisk, FakeFs
from lemegeton.testing.fake_runtime import runtime as fake_runtime
from lemegeton.testing.virtual_loop import run

UID = os.geteuid()
NOBODY = 65534
needs_root = pytest.mark.skipif(UID != 0, reason="only root can make what belongs to another user")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / DIRECTORY)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def runtime() -> Runtime:
    return os_runtime()


async def refusal(runtime: Runtime, path: str, *, create: bool = True) -> str:
    """Why the home is refused: one line."""
    with pytest.raises(HomeRefused) as caught:
        await open_home(runtime, path, create=create)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("home")
    return text


# Making and finding


async def test_a_home_is_made_with_its_directories_and_keeps_out_of_git(runtime: Runtime, path: str) -> None:
    home = await open_home(runtime, path)
    assert sorted(os.listdir(path)) == [".gitignore", "cursors", "messages", "origins", "site"]
    assert Path(path, ".gitignore").read_bytes() == b"*\n"
    assert (home.messages, home.origins, home.cursors) == (f"{path}/messages", f"{path}/origins", f"{path}/cursors")
    assert len(home.site) == 12
    assert await open_home(runtime, path) == home


@pytest.mark.usefixtures("open_umask")
async def test_everything_is_private_also_without_a_umask(runtime: Runtime, tmp_path: Path) -> None:
    await open_home(runtime, str(tmp_path / "new" / "parents" / DIRECTORY))
    modes = {}
    for directory, _, files in os.walk(tmp_path / "new"):
        modes[directory] = stat.S_IMODE(os.stat(directory).st_mode) == 0o700
        modes.update({file: stat.S_IMODE(os.stat(f"{directory}/{file}").st_mode) == 0o600 for file in files})
    assert len(modes) == 8
    assert all(modes.values()), modes


async def test_a_home_that_is_there_is_completed_and_nothing_in_it_is_touched(runtime: Runtime, path: str) -> None:
    os.mkdir(path, 0o700)
    home = await open_home(runtime, path)
    assert not os.path.exists(f"{path}/.gitignore")
    Path(home.messages, "keep").write_bytes(b"me")
    os.rmdir(home.cursors)
    assert await open_home(runtime, path) == home
    assert Path(home.messages, "keep").read_bytes() == b"me"
    assert os.path.isdir(home.cursors)


async def test_without_leave_to_create_nothing_is_made(runtime: Runtime, path: str, tmp_path: Path) -> None:
    text = await refusal(runtime, path, create=False)
    assert text == (f"home {path}: {path}: No such file or directory; make it first with any command that publishes or "
                    "subscribes, or choose another with --home")
    assert os.listdir(tmp_path) == []
    home = await open_home(runtime, path)
    assert await open_home(runtime, path, create=False) == home


async def test_without_leave_to_create_a_home_without_an_id_gets_none(runtime: Runtime, path: str) -> None:
    os.mkdir(path, 0o700)
    assert (await open_home(runtime, path, create=False)).site == "0" * 12
    assert os.listdir(path) == []


def test_the_nearest_home_upwards_is_found(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (tmp_path / "a" / DIRECTORY).mkdir()
    (tmp_path / DIRECTORY).mkdir()
    assert find_home(OsFs(), str(deep), UID) == str(tmp_path / "a" / DIRECTORY)
    assert find_home(OsFs(), str(tmp_path), UID) == str(tmp_path / DIRECTORY)


@pytest.mark.parametrize("kind", ["file", "link", "other owner"])
def test_what_is_no_home_of_this_user_is_passed_over(kind: str) -> None:
    fs = FakeFs(FakeDisk(Random(1)))
    for directory in ("/.lemegeton", "/a", "/a/b"):
        fs.mkdir(directory)
    if kind == "file":
        fs.close(fs.open("/a/.lemegeton", os.O_CREAT | os.O_WRONLY))
    elif kind == "link":
        fs.disk.plant("/a/.lemegeton", "symlink", "/.lemegeton")
    else:
        fs.mkdir("/a/.lemegeton")
        fs.disk.chown("/a/.lemegeton", 4242)
    assert find_home(fs, "/a/b", fs.uid) == "/.lemegeton"


def test_where_there_is_none_the_home_is_here() -> None:
    fs = FakeFs(FakeDisk(Random(1)))
    assert find_home(fs, "/a/b", fs.uid) == "/a/b/.lemegeton"
    assert find_home(fs, "/", fs.uid) == "/.lemegeton"


# What is refused


def as_another_user(call: Callable[[], str]) -> str:
    """What a call returns in a process that may not write everywhere: another user if this one is root."""
    came, went = os.pipe()
    child = os.fork()
    if not child:
        try:
            if UID == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            text = call()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(went, text.encode())
        os._exit(0)
    os.close(went)
    with os.fdopen(came, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    return text


@pytest.fixture
def shared() -> Iterator[str]:
    """A directory that other users may enter."""
    with tempfile.TemporaryDirectory() as made:
        for path in (f"{made}/warm", f"{made}/warm", f"{made}/warm/site"):
            # What Python loads on the way it loads now: the other user may not be allowed to read it.
            with suppress(HomeRefused):
                asyncio.run(open_home(os_runtime(), path))
        shutil.rmtree(f"{made}/warm")
        os.chmod(made, 0o755)
        yield made


@pytest.mark.parametrize("inside", ["", "/new/parents"])
def test_a_place_that_cannot_be_written_is_refused(shared: str, inside: str) -> None:
    if UID:
        os.chmod(shared, 0o500)
    path = f"{shared}{inside}/{DIRECTORY}"
    text = as_another_user(lambda: asyncio.run(open_home(os_runtime(), path)).site)
    os.chmod(shared, 0o700)
    assert text.startswith(f"HomeRefused: home {path}: ")
    assert text.endswith(": Permission denied; give this user write permission, or choose another home with --home or "
                         "LEMEGETON_HOME")
    assert os.listdir(shared) == []


def test_a_home_in_a_directory_that_may_be_entered_and_not_read_is_used(shared: str) -> None:
    path = f"{shared}/{DIRECTORY}"
    os.mkdir(path, 0o700)
    if UID == 0:
        os.chown(path, NOBODY, NOBODY)
    os.chmod(shared, 0o711 if UID == 0 else 0o300)
    text = as_another_user(lambda: asyncio.run(open_home(os_runtime(), path)).site)
    os.chmod(shared, 0o700)
    assert len(text) == 12, text


@needs_root
async def test_a_home_of_another_user_is_refused(runtime: Runtime, path: str) -> None:
    os.mkdir(path, 0o700)
    os.chown(path, NOBODY, NOBODY)
    text = await refusal(runtime, path)
    assert text == (f"home: {path} is owned by user {NOBODY}, this process is user 0; choose another home with --home "
                    "or LEMEGETON_HOME")
    assert os.listdir(path) == []


async def test_a_home_that_this_process_does_not_own_is_refused(runtime: Runtime, path: str) -> None:
    os.mkdir(path, 0o700)
    text = await refusal(dataclasses.replace(runtime, uid=UID + 1), path)
    assert f"is owned by user {UID}, this process is user {UID + 1}" in text


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
@pytest.mark.parametrize("name", ["", "/messages", "/cursors"])
async def test_a_directory_that_others_can_write_is_refused(runtime: Runtime, path: str, name: str, mode: int) -> None:
    await open_home(runtime, path)
    os.chmod(path + name, mode)
    assert await refusal(runtime, path) == (
        f"home: {path}{name} can be written by others (mode {mode:04o}); run: chmod 700 {path}{name}")


@pytest.mark.parametrize("name", ["", "/messages", "/origins", "/cursors"])
async def test_a_file_in_the_place_of_a_directory_is_refused(runtime: Runtime, path: str, name: str) -> None:
    if name:
        os.mkdir(path, 0o700)
    Path(path + name).write_bytes(b"precious")
    assert await refusal(runtime, path) == (
        f"home: {path}{name} is a file where a directory should be; move it, or choose another home")
    assert Path(path + name).read_bytes() == b"precious"


async def test_a_file_above_the_home_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    path = f"{tmp_path}/file/{DIRECTORY}"
    assert await refusal(runtime, path) == (
        f"home {path}: {path}: Not a directory; a file is in the way; move it, or choose another home with --home or "
        "LEMEGETON_HOME")


@pytest.mark.parametrize("name", ["", "/messages"])
@pytest.mark.parametrize("target", ["there", "missing"])
async def test_a_symbolic_link_in_the_place_of_a_directory_is_refused(
    runtime: Runtime, path: str, tmp_path: Path, name: str, target: str
) -> None:
    there = tmp_path / "there"
    there.mkdir(0o700)
    if name:
        os.mkdir(path, 0o700)
    os.symlink(tmp_path / target, path + name)
    assert await refusal(runtime, path) == (
        f"home: {path}{name} is a symbolic link; give the directory it points to instead")
    assert os.listdir(there) == []
    assert not (tmp_path / "missing").exists()


async def test_a_home_below_a_link_to_nowhere_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    os.symlink(tmp_path / "missing", tmp_path / "link")
    text = await refusal(runtime, f"{tmp_path}/link/{DIRECTORY}")
    assert "No such file or directory" in text
    assert not (tmp_path / "missing").exists()


PLANTS: dict[str, Callable[[str, str], object]] = {
    "symlink": lambda victim, path: os.symlink(victim, path),
    "hardlink": lambda victim, path: os.link(victim, path),
    "fifo": lambda victim, path: os.mkfifo(path, 0o600),
    "directory": lambda victim, path: os.mkdir(path, 0o700),
}


@pytest.mark.parametrize("kind", PLANTS)
async def test_a_planted_site_file_is_refused_and_nothing_is_written_through_it(
    runtime: Runtime, path: str, tmp_path: Path, kind: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    os.mkdir(path, 0o700)
    PLANTS[kind](str(victim), f"{path}/site")
    assert f"{path}/site" in await refusal(runtime, path)
    assert victim.read_bytes() == b"precious"


@needs_root
async def test_a_site_file_of_another_user_is_refused(runtime: Runtime, path: str) -> None:
    await open_home(runtime, path)
    os.chown(f"{path}/site", NOBODY, NOBODY)
    assert await refusal(runtime, path) == (
        f"home: {path}/site is not a regular file of this user with one name; move it away")


def test_a_regular_file_of_ours_with_one_name_is_taken(tmp_path: Path) -> None:
    fs = OsFs()
    assert write_new(fs, str(tmp_path / "file"), b"x")
    fd = fs.open(str(tmp_path / "file"), os.O_RDONLY)
    check_file(fs, fd, "file", UID)
    with pytest.raises(HomeRefused, match=r"^home: file is not a regular file of this user with one name; move"):
        check_file(fs, fd, "file", UID + 1)
    fs.close(fd)


@pytest.mark.parametrize("kind", ["hardlink", "fifo", "directory", "device", "socket"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, kind: str) -> None:
    fs = OsFs()
    path = str(tmp_path / "file")
    if kind == "socket":
        one, other = socket.socketpair()
        fd = os.dup(one.fileno())
        one.close()
        other.close()
    else:
        (tmp_path / "victim").write_bytes(b"")
        if kind == "device":
            path = "/dev/null"
        else:
            PLANTS[kind](str(tmp_path / "victim"), path)
        fd = fs.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(HomeRefused, match="is not a regular file of this user with one name"):
        check_file(fs, fd, path, os.fstat(fd).st_uid)
    fs.close(fd)


def test_a_new_file_never_replaces_another(tmp_path: Path) -> None:
    fs, path = OsFs(), str(tmp_path / "file")
    assert write_new(fs, path, b"first")
    assert not write_new(fs, path, b"second")
    assert Path(path).read_bytes() == b"first"
    os.symlink(tmp_path / "missing", tmp_path / "link")
    assert not write_new(fs, str(tmp_path / "link"), b"x")
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize(("op", "code"), [
    ("mkdir", errno.EROFS), ("open", errno.EMFILE), ("write", errno.ENOSPC), ("pwrite", errno.ENOSPC),
    ("fsync", errno.EIO), ("lock", errno.ENOLCK), ("pread", errno.EIO), ("lstat", errno.EIO),
])
async def test_every_other_error_of_the_disk_is_a_refusal_that_leaves_nothing_open(op: str, code: int) -> None:
    fs = FakeFs(FakeDisk(Random(1)))
    fs.fail_next(op, code)
    text = await refusal(fake_runtime(fs), "/home")
    assert os.strerror(code) in text
    assert text.endswith("; mend that, or choose another home with --home or LEMEGETON_HOME")
    assert fs.open_fds() == []
    assert (await open_home(fake_runtime(fs), "/home")).site


async def test_a_refused_permission_is_a_refusal() -> None:
    fs = FakeFs(FakeDisk(Random(1)))
    fs.fail_next("mkdir", errno.EACCES)
    assert "Permission denied; give this user write permission" in await refusal(fake_runtime(fs), "/home")


def test_a_directory_is_synced_by_its_path() -> None:
    fs = FakeFs(FakeDisk(Random(1)))
    fs.mkdir("/d")
    sync_directory(fs, "/d")
    sync_directory(fs, "")  # the parent of a home at the root
    with pytest.raises(FileNotFoundError):
        sync_directory(fs, "/missing")
    assert fs.open_fds() == []


async def test_a_home_with_an_id_survives_a_power_cut() -> None:
    for seed in range(20):
        disk = FakeDisk(Random(seed))
        home = await open_home(fake_runtime(FakeFs(disk)), "/a/b/.lemegeton")
        disk.power(Random(seed))
        again = FakeFs(disk)
        check_directory(again, home.messages, again.uid)
        assert (await open_home(fake_runtime(again), home.path)).site == home.site


# The site id


async def test_a_copied_home_gets_a_site_id_of_its_own(runtime: Runtime, path: str, tmp_path: Path) -> None:
    original = await open_home(runtime, path)
    copied = str(tmp_path / "copy")
    shutil.copytree(path, copied, copy_function=shutil.copy2)
    os.chmod(copied, 0o700)
    copy = await open_home(runtime, copied)
    assert copy.site != original.site
    assert await open_home(runtime, copied) == copy
    assert await open_home(runtime, path) == original


async def test_a_moved_home_keeps_its_id(runtime: Runtime, path: str, tmp_path: Path) -> None:
    before = await open_home(runtime, path)
    os.rename(path, tmp_path / "moved")
    assert (await open_home(runtime, str(tmp_path / "moved"))).site == before.site


async def test_a_home_on_another_machine_gets_another_id(runtime: Runtime, path: str) -> None:
    here = await open_home(runtime, path)
    assert (await open_home(dataclasses.replace(runtime, machine_id="other"), path)).site != here.site


@pytest.mark.parametrize("damage", [
    b"", b"\n", b"x", b"garbage " * 40, b"a b c", b"00000000 abcdefabcdef 0123456789abcdef\n", b"\0" * 4096,
    b"a b c d\n", b"\xff" * 300, b"x" * 39 + b" and more behind the first line",
])
async def test_a_damaged_site_file_is_written_anew(runtime: Runtime, path: str, damage: bytes) -> None:
    before = await open_home(runtime, path)
    Path(path, "site").write_bytes(damage)
    after = await open_home(runtime, path)
    assert after.site != before.site
    assert await open_home(runtime, path) == after


async def test_a_changed_byte_in_the_site_file_is_noticed(runtime: Runtime, path: str) -> None:
    before = await open_home(runtime, path)
    data = Path(path, "site").read_bytes()
    for at in range(len(data) - 1):
        Path(path, "site").write_bytes(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :])
        assert (await open_home(runtime, path)).site != before.site, at


async def test_while_another_process_writes_the_id_one_waits_for_it(path: str) -> None:
    os.mkdir(path, 0o700)
    fs, other = OsFs(), OsFs()
    fd = other.open(f"{path}/site", os.O_RDWR | os.O_CREAT)
    assert other.lock(fd)
    task = asyncio.create_task(open_home(dataclasses.replace(os_runtime(), fs=fs), path))
    await asyncio.sleep(0)  # it found the lock taken
    assert not task.done()
    other.close(fd)
    assert len((await task).site) == 12


def test_a_process_that_keeps_the_lock_for_ever_is_reported() -> None:
    disk = FakeDisk(Random(1))
    stopped, fs = FakeFs(disk), FakeFs(disk)
    stopped.mkdir("/home")
    assert stopped.lock(stopped.open("/home/site", os.O_RDWR | os.O_CREAT))

    async def refused() -> str:
        return await refusal(fake_runtime(fs), "/home")

    text = run(refused())  # five virtual seconds
    assert text == "home: /home/site is locked by a process that does not go on; end it, or choose another home"
    assert fs.open_fds() == []


def test_fifty_processes_that_open_one_new_home_at_once_agree(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "parents" / DIRECTORY)
    starting, start = os.pipe()
    came, went = os.pipe()
    children = []
    for _ in range(50):
        child = os.fork()
        if not child:
            try:
                os.close(start)
                os.read(starting, 1)  # until the parent lets all of them go
                text = asyncio.run(open_home(os_runtime(), path)).site
            except BaseException as error:
                text = f"{type(error).__name__}: {error}"
            os.write(went, f"{text}\n".encode())
            os._exit(0)
        children.append(child)
    os.close(starting)
    os.close(went)
    os.close(start)
    with os.fdopen(came, "rb") as pipe:
        answers = pipe.read().decode().splitlines()
    for child in children:
        os.waitpid(child, 0)
    assert len(answers) == 50
    assert len(set(answers)) == 1, set(answers)
    assert len(answers[0]) == 12
    assert Path(path, ".gitignore").exists()


class Race(FakeFs):
    """Another process is always a moment faster."""

    site = b""

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        super().mkdir(path, mode)
        if path == "/a/b":
            FakeFs(self.disk, uid=self.uid).mkdir("/a/b/c")

    def lock(self, fd: int, *, shared: bool = False) -> bool:
        if self.site:
            other = FakeFs(self.disk, uid=self.uid)
            other.write(other.open("/a/b/c/site", os.O_WRONLY), self.site)
        return super().lock(fd, shared=shared)


async def test_a_parent_and_a_home_that_another_process_makes_meanwhile_are_no_error() -> None:
    fs = Race(FakeDisk(Random(1)))
    home = await open_home(fake_runtime(fs), "/a/b/c")
    assert home == Home("/a/b/c", home.site)


async def test_an_id_that_another_process_writes_meanwhile_is_the_one() -> None:
    fs = Race(FakeDisk(Random(1)))
    home = await open_home(fake_runtime(fs), "/a/b/c")
    fs.site = fs.disk.read("/a/b/c/site")
    fs.unlink("/a/b/c/site")
    assert await open_home(fake_runtime(fs), "/a/b/c") == home
    assert fs.disk.read("/a/b/c/site") == fs.site


# Network file systems


def mountinfo(kind: str, device: str = "0:42", optional: str = "shared:5 master:1") -> str:
    return ("22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
            f"36 22 {device} / /mnt/a\\040-\\040b rw {optional} - {kind} server:/export rw\n"
            "37 22 0:43 / /proc rw - proc proc rw\n")


@pytest.mark.parametrize("kind", [*sorted(NETWORK_FS), "fuse.sshfs"])
@pytest.mark.parametrize("optional", ["shared:5 master:1", ""])
def test_a_network_file_system_is_named(kind: str, optional: str) -> None:
    assert network_fs(mountinfo(kind, optional=optional), os.makedev(0, 42)) == kind


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "fuseblk", "zfs"])
def test_a_local_file_system_is_not(kind: str) -> None:
    assert network_fs(mountinfo(kind), os.makedev(0, 42)) is None


def test_only_the_file_system_of_this_device_counts() -> None:
    assert network_fs(mountinfo("nfs"), os.makedev(8, 1)) is None
    assert network_fs(mountinfo("nfs"), os.makedev(9, 9)) is None
    assert network_fs(mountinfo("nfs", "259:1048575"), os.makedev(259, 1048575)) == "nfs"


@given(st.text() | st.lists(st.sampled_from(["36", "22", "0:42", " ", " - ", "nfs", "\n", "-", "/"])).map("".join))
def test_a_mount_table_that_makes_no_sense_is_no_error(text: str) -> None:
    found = network_fs(text, os.makedev(0, 42))
    assert found is None or found in text


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has this table")
def test_the_mount_table_of_this_machine_can_be_read(tmp_path: Path) -> None:
    network_fs(Path("/proc/self/mountinfo").read_text(), os.stat(tmp_path).st_dev)
