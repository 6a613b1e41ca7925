"""A Redis in the simulated world: every fault strikes and leaves nothing behind, and a seed is one run."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from random import Random
from typing import Any

import msgspec
import pytest

from lemegeton.testing.history import Event
from lemegeton.testing.sim_faults import FAULTS
from lemegeton.testing.sim_judge import judge
from lemegeton.testing.sim_loop import SimLoop
from lemegeton.testing.sim_plan import SHARED_URL, local_url, make_plan
from lemegeton.testing.sim_redis_faults import REDIS_FAULTS
from lemegeton.testing.sim_world import World
from lemegeton.testing.simulation import STRIKES, observe, plan_of, simulate


def nobody(_: object) -> None:
    """Nobody is told."""


async def strike(world: World, name: str, seed: int) -> list[str]:
    """Strike while a client of each site asks for something every now and then; what became of its commands."""
    net, ends, over = world.net, [], False
    assert net is not None

    async def client(who: str) -> None:
        lost = asyncio.Event()
        while not over:
            await asyncio.sleep(0.1)
            try:
                lost.clear()
                wire = await net.dialer(who)(SHARED_URL, nobody if who.endswith("ear#1") else None, lambda _: lost.set())
                wire.send("SUBSCRIBE", "c")
                while not lost.is_set() and not over:
                    if not who.endswith("ear#1"):
                        await asyncio.wait_for(wire.call("XADD", "message-stream:c", "*", "a", "b"), 5)
                        wire.send("HSET", "relay:{message-stream:c}", "lane", "1:aa")
                        wire.send("PUBLISH", "c", b"x" * 300)
                    await asyncio.sleep(0.05)
            except Exception as error:
                ends.append(type(error).__name__)

    clients = [asyncio.create_task(client(f"{site.name}/{name}")) for site in world.sites
               for name in (f"{site.processes[0].spec.name}#1", "ear#1")]
    await asyncio.sleep(2)
    assert await REDIS_FAULTS[name](world, Random(seed))
    await asyncio.sleep(0.5)
    over = True
    await world.heal()
    await asyncio.gather(*clients)
    for url in (SHARED_URL, *(local_url(site.name) for site in world.sites)):
        wire = await net.dialer("anybody")(url, None, nobody)
        assert await wire.call("SET", "a", 1) == b"OK"
    assert net.fuse is None
    return ends


@pytest.mark.parametrize("name", REDIS_FAULTS)
def test_every_fault_strikes_and_leaves_nothing_behind(name: str) -> None:
    for seed in range(6):
        loop = SimLoop()
        world = World(make_plan(seed, (name,), redis=True), loop)
        world.over = True  # no process of it is to run
        loop.run_until_complete(loop.create_task(strike(world, name, seed), context=world.context))
        assert loop.broken == []
        loop.close()


def test_elsewhere_there_is_nothing_to_strike() -> None:
    async def main() -> None:
        for hit in REDIS_FAULTS.values():
            assert not await hit(world, Random(1))

    loop = SimLoop()
    world = World(make_plan(1, tuple(FAULTS)), loop)
    loop.run_until_complete(main())
    loop.close()


def test_every_kind_is_drawn_and_sites_share_a_redis() -> None:
    plans = [plan_of(seed, redis=True) for seed in range(60)]
    assert {fault.kind for plan in plans for fault in plan.faults} == set(STRIKES) - {"clone"}
    assert {len(plan.sites) for plan in plans} == {2, 3}
    settings = [process.settings for plan in plans for site in plan.sites for process in site.processes]
    assert {each["redis_url"] for each in settings} == {SHARED_URL}
    assert {send.ack for plan in plans for site in plan.sites for process in site.processes for send in process.sends} == {
        "local", "disk", "handled", "redis"}


def test_sites_hear_each_other_and_nothing_breaks() -> None:
    for seed in (0, 4):
        report, world = observe(plan_of(seed, redis=True))
        heard = {(event.site, event.origin.split("~")[1]) for event in world.events if event.ev == "start"}
        assert len(heard) > len(world.sites)
        assert not {"broken", "raised", "untyped", "leak"} & {violation.kind for violation in report.violations}


def test_a_seed_is_the_same_run_whatever_the_hash_seed() -> None:
    answers = {simulate(2, redis=True).trace}
    for hash_seed in ("0", "1"):
        command = [sys.executable, "-m", "lemegeton.testing.simulation", "--redis", "--trace", "--first", "2", "--seeds", "1"]
        environ = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
        answers.add(done.stdout.split()[1])
    assert len(answers) == 1


SEEDS, A_PROCESS = 300, 3


@pytest.mark.parametrize("first", range(0, SEEDS, A_PROCESS))
def test_whatever_a_redis_does_nothing_is_lost(first: int) -> None:
    """In a process of its own: measured coverage makes it three times as slow."""
    command = [sys.executable, "-m", "lemegeton.testing.simulation", "--redis", "--until-failure", "--seeds", str(A_PROCESS)]
    done = subprocess.run([*command, "--first", str(first)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert (done.stdout, done.returncode) == (b"", 0)


# ── what the judge holds a forgetful Redis responsible for ───────────────────────────────────────────────────────────


def event(ev: str, **fields: Any) -> Event:
    return Event(ev=ev, **{"t": 0, "pid": 0, "inc": "w#1", "site": "west", **fields})


def sent(seq: int, ident: str, pinc: int = 1) -> list[Event]:
    about = {"inc": f"e#{pinc}", "site": "east", "ch": "hub", "prod": "e", "id": ident}
    return [event("inv", sha="s", **about), event("ack", origin="e~1~0", pinc=pinc, prio=1, seq=seq, level="local", **about)]


def got(seq: int, ident: str, pinc: int = 1, **fields: Any) -> list[Event]:
    about = {"sub": "s", "ch": "hub", "prod": "e", "origin": "e~1~0", "pinc": pinc, "prio": 1, "seq": seq, "id": ident}
    return [event("start", sha="s", **about, **fields), event("done", **about)]


REG = [event("open", sub="s"), event("reg", sub="s", ch="hub")]
FORGOT = [event("fault", kind="forgot")]
POWER = [event("fault", kind="power"), event("open", sub="s", inc="w#2"), event("reg", sub="s", ch="hub", inc="w#2")]


def kinds(*parts: list[Event]) -> set[str]:
    return {violation.kind for violation in judge([event for part in parts for event in part], set(), set())}


def test_what_a_redis_forgot_before_a_lane_was_met_is_owed_no_more() -> None:
    assert kinds(REG, sent(1, "a"), FORGOT, sent(2, "b"), got(2, "b")) == set()
    assert kinds(REG, sent(1, "a"), sent(2, "b"), got(2, "b")) == {"lost"}
    assert kinds(REG, FORGOT, sent(1, "a"), sent(2, "b"), got(2, "b")) == {"lost"}
    assert kinds(REG, sent(1, "a"), got(1, "a"), sent(2, "b"), FORGOT, sent(3, "c"), got(3, "c")) == {"lost"}


def test_an_incarnation_that_a_redis_had_forgotten_may_come_late() -> None:
    late = [*sent(1, "a"), *sent(1, "b", pinc=2)]
    assert kinds(REG, late, FORGOT, got(1, "b", pinc=2), got(1, "a")) == set()
    assert kinds(REG, late, got(1, "b", pinc=2), got(1, "a")) == {"order"}
    assert "order" in kinds(REG, sent(1, "a"), sent(2, "b"), FORGOT, got(2, "b"), got(1, "a"))


def test_flags_may_be_missing_where_the_marks_went_and_the_redis_did_not_know_either() -> None:
    twice = [sent(1, "a"), got(1, "a")]
    again = got(1, "a", inc="w#2")
    assert kinds(REG, *twice, FORGOT, POWER, again) == set()
    assert kinds(REG, *twice, POWER, again) == {"doubled"}
    assert kinds(REG, FORGOT, *twice, POWER, again) == {"doubled"}
    assert kinds(REG, *twice, FORGOT, again) == {"doubled"}


def gap(first: int, last: int, pinc: int = 1, origin: str = "e~1~0") -> list[Event]:
    return [event("gap", sub="s", ch="hub", prod="e", origin=origin, pinc=pinc, prio=1, first=first, last=last, inc="w#2")]


def test_a_gap_after_a_power_cut_over_what_was_settled_has_a_cause_whichever_way_it_was_settled() -> None:
    about = {"sub": "s", "ch": "hub", "prod": "e", "origin": "e~1~0", "pinc": 1, "prio": 1}
    a, b = sent(1, "a"), sent(2, "b")
    unsent = [msgspec.structs.replace(b[0], kind="ttl"), b[1]]
    skipped = [event("expired", first=2, seq=2, **about)]
    assert kinds(REG, a, unsent, got(1, "a"), skipped, POWER, gap(1, 2)) == set()
    assert kinds(REG, a, unsent, got(1, "a"), skipped, gap(1, 2)) == {"gap"}
    assert kinds(REG, a, unsent, got(1, "a"), POWER, gap(1, 2)) == {"stuck", "gap"}
    assert kinds(REG, a, b, got(1, "a"), skipped, POWER, gap(1, 2)) == {"stuck"}  # it could not expire


def test_gaps_of_two_lanes_over_the_same_numbers_are_judged_apart() -> None:
    assert kinds(REG, sent(1, "a"), got(1, "a"), sent(1, "b", pinc=2), POWER, gap(1, 1), gap(1, 1, pinc=2)) == {"stuck", "gap"}
    assert kinds(REG, sent(1, "a"), sent(1, "b", pinc=2), got(1, "b", pinc=2), POWER, gap(1, 1), gap(1, 1, pinc=2)) == {
        "lost", "gap"}


def test_a_redis_that_forgot_excuses_only_what_it_had_then_and_only_on_its_channel() -> None:
    late, came = [*sent(1, "a"), *sent(1, "b", pinc=2)], [*got(1, "b", pinc=2), *got(1, "a")]
    here, elsewhere = [event("fault", kind="forgot", ch="hub")], [event("fault", kind="forgot", ch="agent-a")]
    assert kinds(REG, late, here, came) == set()
    assert kinds(REG, late, elsewhere, came) == {"order"}
    assert kinds(REG, FORGOT, late, came) == kinds(REG, late, came, FORGOT) == {"order"}
    assert kinds(REG, sent(1, "a"), here, sent(2, "b"), got(2, "b")) == set()
    assert kinds(REG, sent(1, "a"), elsewhere, sent(2, "b"), got(2, "b")) == {"lost"}
    assert kinds(REG, sent(1, "a"), got(1, "a"), elsewhere, POWER, got(1, "a", inc="w#2")) == {"doubled"}


@pytest.mark.parametrize(("name", "channel"), [("redis_stream_gone", "c"), ("redis_entry_gone", "c"), ("redis_flush", "")])
def test_a_fault_says_of_which_channel_the_redis_forgot(name: str, channel: str) -> None:
    loop = SimLoop()
    world = World(make_plan(1, (name,), redis=True), loop)
    assert world.net is not None
    world.net.server(SHARED_URL).execute("XADD", "message-stream:c", "*", "a", "b")
    loop.run_until_complete(REDIS_FAULTS[name](world, Random(1)))
    assert {told.ch for told in world.events if told.kind == "forgot"} == {channel}
    loop.close()


def test_a_replica_that_lacks_nothing_forgot_nothing() -> None:
    loop = SimLoop()
    world = World(make_plan(1, ("redis_failover",), redis=True), loop)
    loop.run_until_complete(REDIS_FAULTS["redis_failover"](world, Random(1)))
    loop.run_until_complete(REDIS_FAULTS["redis_evicts"](world, Random(1)))
    assert world.events == []
    loop.close()
