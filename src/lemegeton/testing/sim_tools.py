"""What simulated messages carry, and other programs on a simulated disk: one copies a home, one drops a message in."""

from __future__ import annotations

import errno
import hashlib
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from lemegeton.channels import encode_name
from lemegeton.lane import Lane
from lemegeton.testing.fake_disk import FakeDisk
from lemegeton.testing.fake_fs import FakeFs
from lemegeton.testing.fake_inode import Directory, File
from lemegeton.testing.sim_plan import Send

if TYPE_CHECKING:
    from lemegeton.testing.sim_world import SimSite


TAG = "m"


def digest(payload: Any) -> str:
    """What the history keeps of a payload."""
    return hashlib.blake2b(msgspec.json.encode(payload), digest_size=6).hexdigest()


def payload_of(send: Send) -> dict[str, Any]:
    """The payload of a planned message: its tag, and something to fill it."""
    return {TAG: send.tag, "pad": "p" * send.size}


def again(send: Send, at: float) -> Send:
    """The same message, published once more."""
    return Send(at, send.tag, send.channel, True, send.priority, None, "local", send.size, send.timeout > 0, tries=0,
                timeout=send.timeout)


def lane_fields(lane: Lane) -> dict[str, Any]:
    """A lane as the history writes it down."""
    return {"ch": lane.channel, "prod": lane.origin.partition("~")[0], "origin": lane.origin, "pinc": lane.inc,
            "prio": lane.priority}


def drop_in(site: SimSite, n: int, channel: str, ident: str) -> None:
    """Another program renames a message into a channel."""
    tool = FakeFs(site.disk, rng=Random(n))
    payload = {TAG: ident, "n": n}
    wire = {"id": ident, "timestamp": 1_700_000_000_000, "type": "custom", "from": ident, "payload": payload}
    directory = f"{site.home}/messages/{encode_name(channel)}"
    site.history.life(f"{site.name}/tool#{n}").record("inv", ch=channel, prod=ident, id=ident, sha=digest(payload))
    try:
        fd = tool.open(f"/user/{ident}.json", 0o102, 0o600)
        tool.write(fd, msgspec.json.encode(wire))
        tool.close(fd)
        tool.rename(f"/user/{ident}.json", f"{directory}/{ident}.json")
    except OSError as error:
        site.world.note(f"drop-in: {errno.errorcode.get(error.errno or 0)}")
    finally:
        tool.kill()


def copy_disk(source: FakeDisk, target: FakeDisk) -> None:
    """Copy every file and directory, as ``cp -a`` does."""
    tool = FakeFs(target)
    _copy(tool, source.root, "")
    target.sync()
    tool.kill()


def _copy(tool: FakeFs, directory: Directory, path: str) -> None:
    for name, inode in sorted(directory.entries.items()):
        there = f"{path}/{name}"
        if isinstance(inode, Directory):
            tool.mkdir(there, 0o700)
            _copy(tool, inode, there)
        elif isinstance(inode, File):
            fd = tool.open(there, 0o101, 0o600)
            tool.write(fd, inode.read(inode.size, 0))
            tool.close(fd)
