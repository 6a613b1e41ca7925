"""The takeover: a new incarnation says where the one before it ended, in its first record and in no other."""

from __future__ import annotations

from random import Random

import pytest

from lemegeton.codec import decode, head_of
from lemegeton.errors import LogError
from lemegeton.lane import BRANCH, Lane, made_id
from lemegeton.logs import writer as writer_module
from lemegeton.logs.file import FileLog
from test_delivery import body, in_virtual_time
from test_file_log import Rig, read_all, write


async def afters(log: FileLog, lane: Lane) -> list[tuple[str, int, int] | None]:
    """What each record of a lane says of the incarnation before."""
    batch = await log.read(lane, await log.seek(lane, 0))
    return [head_of(record).after for record in batch.records if isinstance(record, bytes)]


@in_virtual_time
async def test_after_another_boot_the_first_record_names_the_last_of_the_earlier_incarnation() -> None:
    rig = Rig()
    old = (await write(await rig.log(), 1, 2, 3)).lane
    rig.disk.sync()
    rig.disk.power(Random(1))
    log = await rig.log()
    new = (await write(log, 4, 5)).lane
    assert await afters(log, new) == [(old.origin, old.inc, 3), None]
    assert await read_all(log) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("end", "last"), [(b"deadbeef torn", 2), (b"deadbeef bad\n", 2)])
def test_a_damaged_end_counts_for_nothing_in_what_is_named(end: bytes, last: int) -> None:
    @in_virtual_time
    async def test() -> None:
        rig = Rig()
        first = await rig.log()
        old = (await write(first, 1, 2)).lane
        await first.aclose()
        rig.edit(rig.files()[0], end)
        log = await rig.log()
        new = (await write(log, 3)).lane
        assert await afters(log, new) == [(old.origin, old.inc, last)]

    test()


@pytest.mark.parametrize(("damage", "named"), [(b"bad\n", 0), (b"bad\n" * 100_000, None)])
def test_where_only_damage_is_left_the_end_is_what_comes_before_it_or_is_not_known(damage: bytes, named: int | None) -> None:
    @in_virtual_time
    async def test() -> None:
        rig = Rig()
        first = await rig.log()
        old = (await write(first, 1)).lane
        await first.aclose()
        name = rig.files()[0]
        rig.remove(name)
        rig.edit(name, damage)
        log = await rig.log()
        new = (await write(log, 2, 3)).lane
        assert new.inc == old.inc + 1
        assert await afters(log, new) == [None if named is None else (old.origin, old.inc, named), None]

    test()


@in_virtual_time
async def test_a_lane_that_is_new_names_nothing() -> None:
    rig = Rig()
    log = await rig.log()
    assert await afters(log, (await write(log, 1)).lane) == [None]


@in_virtual_time
async def test_an_incarnation_that_begins_without_a_record_names_the_end_in_the_first_that_comes() -> None:
    rig = Rig()
    log = await rig.log()
    old = (await write(log, 1, "x" * writer_module.ROTATE_BYTES_MIN)).lane
    rig.edit(f"{old.origin}.{old.inc}.1.3.log", b"")
    assert log._writer is not None
    log._writer.rotate()
    new = (await write(log, 3, 4)).lane
    assert new.inc == old.inc + 1
    assert await afters(log, new) == [(old.origin, old.inc, 2), None]


@in_virtual_time
async def test_a_removed_segment_goes_on_behind_what_is_written_again() -> None:
    rig = Rig()
    log = await rig.log()
    old = (await write(log, 1, 2)).lane
    log.upkeep()
    await write(log, 3)
    rig.remove(rig.files()[0])
    log.upkeep()
    (new,) = await log.lanes("c")
    assert await afters(log, new) == [(old.origin, old.inc, 2)]
    assert await read_all(log) == [3]


# ------------------------------------------------------------------------------------------------ beginning again


@in_virtual_time
async def test_a_lane_that_begins_again_holds_every_record_under_its_id_and_goes_on() -> None:
    rig = Rig()
    log = await rig.log()
    told: list[Lane] = []
    log.tell(told.append)
    old = (await write(log, 1, 2)).lane
    await log.append("c", body(3, id="given"), made=False)
    await log.append("other", body(0))
    await log.begin_again(old, "forked")
    position = await write(log, 4)
    new = position.lane
    assert (new.inc, position.seq) == (old.inc + 1, 4)
    assert await read_all(log) == [1, 2, 3, 1, 2, 3, 4]
    assert await afters(log, new) == [(old.origin, old.inc, 0), None, None, None]
    assert new in told[4:], "it is relayed, though nobody published"
    assert set(log.own_lanes()) == {new, old._replace(channel="other")}


@in_virtual_time
async def test_what_came_behind_a_fork_gets_an_id_that_no_other_branch_has_unless_its_sender_gave_one() -> None:
    rig = Rig()
    log = await rig.log()
    old = (await write(log, 1, 2, 3)).lane
    await log.append("c", body(4, id="given"), made=False)
    await log.begin_again(old, "forked", 2)
    new = (await write(log, 5)).lane
    batch = await log.read(new, await log.seek(new, 0))
    ids = [decode(record).id for record in batch.records if isinstance(record, bytes)]
    assert ids[:2] == [made_id(old, 1), made_id(old, 2)]
    assert ids[2].startswith(made_id(old, 3) + BRANCH)
    assert ids[3:] == ["given", made_id(new, 5)]


@in_virtual_time
async def test_a_lane_that_is_not_written_to_does_not_begin_again() -> None:
    rig = Rig()
    log = await rig.log()
    await log.begin_again(Lane("c", "a~s~0", 1, 1), "nothing was written yet")
    lane = (await write(log, 1)).lane
    await log.begin_again(lane._replace(inc=7), "not this one")
    assert await read_all(log) == [1]


@in_virtual_time
async def test_a_lane_that_cannot_be_written_again_says_so_and_loses_nothing() -> None:
    rig = Rig()
    log = await rig.log()
    lane = (await write(log, 1, 2)).lane
    rig.disk.capacity = rig.disk.used
    with pytest.raises(LogError):
        await log.begin_again(lane, "forked")
    rig.disk.capacity = None
    assert (await write(log, 3)).lane == lane
    await log.begin_again(lane, "forked")
    new = (await write(log, 4)).lane
    assert await read_all(log) == [1, 2, 3, 1, 2, 3, 4]
    assert await afters(log, new) == [(lane.origin, lane.inc, 0), None, None, None]
