"""Drop-ins: a file renamed into a channel is published once, whoever dies on the way (rule 13)."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from typing import Any

import pytest

from lemegeton.codec import decode
from lemegeton.events import LaneStalled, Refused
from lemegeton.logs.dropin import TAKE_MAX
from lemegeton.logs.file import FileLog
from lemegeton.message import Message
from lemegeton.testing.fake_fs import FakeFs
from test_delivery import Got, body, in_virtual_time, serving
from test_file_log import CountingFs, Rig, read_all, write

MESSAGE = {"timestamp": 1, "type": "custom", "from": "cron", "payload": {"n": 1}}


def drop(rig: Rig, name: str, content: Any = MESSAGE) -> None:
    """Write beside, then rename in, as a program should."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    fs = FakeFs(rig.disk)
    fd = fs.open("/home/tmp", os.O_RDWR | os.O_CREAT)
    fs.write(fd, data)
    fs.close(fd)
    fs.rename("/home/tmp", f"/home/messages/c/{name}")


def names(rig: Rig) -> list[str]:
    return sorted(name for name in FakeFs(rig.disk).listdir("/home/messages/c") if not name.endswith(".log"))


async def listening(rig: Rig, name: str = "a", **settings: Any) -> FileLog:
    log = await rig.log(name, **settings)
    log.listen("c", lambda *_: None)
    return log


async def messages(log: FileLog) -> list[Message]:
    found: list[Message] = []
    for lane in await log.lanes("c"):
        batch = await log.read(lane, await log.seek(lane, 0))
        found += [decode(record) for record in batch.records if isinstance(record, bytes)]
    return found


@in_virtual_time
async def test_a_file_that_is_renamed_in_is_delivered_to_a_subscription() -> None:
    rig, got = Rig(), Got()
    log = await rig.log()
    async with serving(log, got):
        drop(rig, "job.json", {**MESSAGE, "id": "mine", "later": "a field we do not know"})
        await got.reach(1)
    (message,) = got
    assert (message.id, message.sender, message.payload) == ("mine", "cron", {"n": 1})
    assert message.unknown == {"later": "a field we do not know"}
    assert names(rig) == []


@in_virtual_time
async def test_a_missing_id_is_the_hash_of_name_and_bytes() -> None:
    ids = []
    for name, payload in (("a.json", 1), ("a.json", 1), ("b.json", 1), ("a.json", 2)):
        rig = Rig()
        log = await listening(rig)
        drop(rig, name, {**MESSAGE, "payload": payload})
        (message,) = await messages(log)
        ids.append(message.id)
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert ids[0].startswith("drop-")


@in_virtual_time
async def test_the_order_of_names_is_the_order_of_publishing_and_one_look_is_bounded() -> None:
    rig = Rig()
    log = await listening(rig)
    for n in reversed(range(TAKE_MAX + 5)):
        drop(rig, f"{n:04}.json", {**MESSAGE, "payload": n})
    assert [m.payload for m in await messages(log)] == list(range(TAKE_MAX))
    assert [m.payload for m in await messages(log)] == list(range(TAKE_MAX + 5))


@in_virtual_time
async def test_a_priority_has_its_lane() -> None:
    rig = Rig()
    log = await listening(rig)
    drop(rig, "job.json", {**MESSAGE, "priority": 3})
    (lane,) = await log.lanes("c")
    assert lane.priority == 3


@pytest.mark.parametrize("content", [
    b"not json", b"[]", b"{}", b"\xff\xfe", json.dumps({**MESSAGE, "priority": 9}).encode(),
    json.dumps({**MESSAGE, "timestamp": -1}).encode(), json.dumps({**MESSAGE, "from": ""}).encode(),
    json.dumps({**MESSAGE, "payload": "x" * 2000}).encode(), b"[" * 100_000, b"",
])
def test_a_file_that_is_no_message_is_set_aside_and_told(content: bytes) -> None:
    @in_virtual_time
    async def test() -> None:
        rig = Rig()
        log = await listening(rig, max_message_bytes=1000)
        drop(rig, "bad.json", content)
        drop(rig, "good.json")
        assert [m.payload for m in await messages(log)] == [{"n": 1}]
        (kept,) = names(rig)
        assert kept.startswith("bad.json.")
        assert kept.endswith(".refused")
        (event,) = rig.of(Refused)
        assert (event.channel, event.source, event.kept) == ("c", "bad.json", kept)
        assert await messages(log)
        assert len(rig.of(Refused)) == 1

    test()


@in_virtual_time
async def test_a_file_of_somebody_else_or_with_a_second_name_is_set_aside() -> None:
    rig = Rig()
    log = await listening(rig)
    drop(rig, "theirs.json")
    rig.disk.chown("/home/messages/c/theirs.json", 7)
    rig.disk.plant("/home/messages/c/link.json", "symlink", "/home/messages/c/theirs.json")
    assert await messages(log) == []
    assert len(rig.of(Refused)) == 2
    assert all(name.endswith(".refused") for name in names(rig))


@in_virtual_time
async def test_hidden_files_and_other_suffixes_are_left_alone() -> None:
    rig = Rig()
    log = await listening(rig)
    for name in (".job.json", "job.json.tmp", "notes.txt", "job.json.abc.refused"):
        drop(rig, name)
    assert await messages(log) == []
    assert len(names(rig)) == 4


@in_virtual_time
async def test_nobody_takes_drop_ins_who_does_not_listen() -> None:
    rig = Rig()
    log = await rig.log()
    await log.append("c", body(0))
    drop(rig, "job.json")
    assert await read_all(log) == [0]
    assert names(rig) == ["job.json"]


@in_virtual_time
async def test_of_two_that_see_it_one_publishes_it() -> None:
    rig = Rig()
    logs = [await listening(rig, name) for name in "ab"]
    for n in range(50):
        drop(rig, f"{n}.json", {**MESSAGE, "payload": n})
    await asyncio.gather(*(log.lanes("c") for log in logs))
    assert sorted(m.payload for m in await messages(logs[0])) == list(range(50))


@in_virtual_time
async def test_the_claim_of_a_dead_origin_is_taken_up_and_its_copy_dropped() -> None:
    rig, got = Rig(), Got()
    dying = await listening(rig, "dying")
    dying_fs = rig.fs
    await write(dying, "alive")
    drop(rig, "job.json")
    dying_fs.fail_next("unlink", errno.EIO)  # published; it dies before it can remove the claim
    await dying.lanes("c")
    (claimed,) = names(rig)
    assert claimed == f"job.json.{dying.origin}.claimed"
    other = await rig.log("other")
    async with serving(other, got) as served:
        await got.reach(2)
        await asyncio.sleep(5.0)
        assert names(rig) == [claimed]  # its owner lives: hands off
        dying_fs.kill()
        await asyncio.sleep(5.0)
        assert names(rig) == []
        assert served.handling.counts.copies == 1
    assert got.payloads == ["alive", {"n": 1}]


@in_virtual_time
async def test_a_claim_of_its_own_is_taken_up_by_the_next_life_of_an_origin() -> None:
    rig = Rig()
    first = await listening(rig)
    first_fs = rig.fs
    await write(first, 0)
    drop(rig, "job.json")
    first_fs.fail_next("write", errno.EIO)
    await first.lanes("c")
    assert rig.of(LaneStalled)
    assert names(rig)[0].endswith(".claimed")
    first_fs.kill()
    again = await listening(rig)
    assert [m.payload for m in await messages(again)] == [0, {"n": 1}]
    assert again.origin == first.origin
    assert names(rig) == []


@in_virtual_time
async def test_while_there_is_no_room_drop_ins_wait_and_reading_goes_on() -> None:
    rig = Rig()
    log = await listening(rig)
    await write(log, 0)
    drop(rig, "job.json")
    log.room.counted(log.room.limit, "slow")
    assert [m.payload for m in await messages(log)] == [0]
    assert names(rig) == ["job.json"]
    log.room.counted(0, "")
    assert [m.payload for m in await messages(log)] == [0, {"n": 1}]


@in_virtual_time
async def test_one_that_vanishes_before_it_is_claimed_is_no_error() -> None:
    rig = Rig()
    log = await listening(rig)
    drop(rig, "a.json")
    drop(rig, "b.json")
    assert isinstance(rig.fs, CountingFs)
    rig.fs.fail_next("rename", errno.ENOENT)
    assert len(await messages(log)) == 1
    assert not rig.events
