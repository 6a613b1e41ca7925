"""The simulation: clean, repeatable to the last byte, honest about what it did, and able to find planted bugs."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lemegeton.bus import MessageBus
from lemegeton.lane import Lane
from lemegeton.testing import mutants, simulation
from lemegeton.testing.fake_fs import FakeDisk, FakeFs
from lemegeton.testing.fake_runtime import runtime
from lemegeton.testing.history import Event
from lemegeton.testing.mutants_of_redis import FORK_MUTANTS, NO_REQUEST
from lemegeton.testing.sim_damage import cut_tail, rotten
from lemegeton.testing.sim_faults import FAULTS
from lemegeton.testing.sim_judge import judge
from lemegeton.testing.sim_loop import LIFE, Gate, SimLoop
from lemegeton.testing.sim_plan import MESSAGE_BYTES_MAX, make_plan
from lemegeton.testing.sim_world import records
from lemegeton.testing.simulation import Report, observe, shrink, simulate, usual
from lemegeton.testing.violation import Violation
from lemegeton.testing.virtual_loop import run


@pytest.mark.parametrize("first", range(0, 24, 6))
def test_schedules_are_clean(first: int) -> None:
    for seed in range(first, first + 6):
        report = simulate(seed)
        assert not report.violations, simulation.describe(report)
        assert not usual(report)


def test_a_seed_is_the_same_run_twice() -> None:
    first, second = simulate(3), simulate(3)
    assert first.trace == second.trace
    assert first.log == second.log


def test_a_seed_is_the_same_run_whatever_the_hash_seed() -> None:
    answers = set()
    for hash_seed in ("0", "1"):
        command = [sys.executable, "-m", "lemegeton.testing.simulation", "--trace", "--seeds", "3"]
        environ = {**os.environ, "PYTHONHASHSEED": hash_seed}
        answers.add(subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout)
    assert len(answers) == 1
    assert answers.pop().count("\n") == 3


def test_every_kind_of_fault_is_drawn() -> None:
    kinds = {fault.kind for seed in range(60) for fault in make_plan(seed, tuple(FAULTS)).faults}
    assert kinds == set(FAULTS)


def test_a_plan_switches_off_half_of_the_kinds_and_has_enough_of_the_rest() -> None:
    for seed in range(50):
        plan = make_plan(seed, tuple(FAULTS))
        assert len({fault.kind for fault in plan.faults}) <= (len(FAULTS) + 1) // 2
        assert 6 <= len(plan.faults) <= 25
        assert plan.messages >= 50


def test_leaving_a_fault_out_leaves_the_others_as_they_were() -> None:
    assert simulate(5, frozenset({0})).faults.total() == simulate(5).faults.total() - 1


def test_the_harness_declares_what_it_damaged_and_what_a_power_cut_took() -> None:
    kinds = set()
    for seed in range(30):
        if {"rot", "torn", "power"} & {fault.kind for fault in make_plan(seed, tuple(FAULTS)).faults}:
            _, world = observe(make_plan(seed, tuple(FAULTS)))
            for site in world.sites:
                declared = {ident for event in site.history.events if event.ev == "fault" for ident in event.ids}
                kinds |= {event.kind for event in site.history.events if event.ids}
                assert declared <= {event.id for event in site.history.events if event.ev == "inv"}
        if kinds >= {"corrupted", "power"}:
            return
    pytest.fail(f"only {kinds} were ever declared")


def test_a_torn_tail_never_ends_with_a_record_that_was_not_the_last() -> None:
    data = b"one\ntwo\nthree\n"
    cuts = {cut_tail(data, Random(seed)) for seed in range(200)}
    assert all(not cut.endswith(b"\n") for cut in cuts)
    assert all(data.startswith(cut) and len(cut) < len(data) for cut in cuts)
    assert len(cuts) > 5


@pytest.mark.parametrize("kind", ["flip", "zero", "garbage", "duplicate"])
def test_rot_changes_the_bytes(kind: str) -> None:
    assert rotten(b"some bytes\n" * 20, kind, Random(1)) != b"some bytes\n" * 20


def test_records_are_those_with_a_right_checksum() -> None:
    assert records(b"00000000 {}\nnot a record\n") == []
    assert records(b"") == []
    assert MESSAGE_BYTES_MAX > 0


def test_a_gap_over_a_place_that_was_damaged_is_explained_and_another_is_not() -> None:
    lane = Lane("c", "o", 1, 1)
    gap = Event("gap", sub="s", ch="c", prod="o", origin="o", pinc=1, prio=1, first=2, last=2)
    events = [Event("reg", sub="s", ch="c"), gap]
    assert not list(judge(events, {(lane, 2)}, set()))
    assert [violation.kind for violation in judge(events, {(lane, 3)}, set())] == ["gap"]


def test_a_gap_after_a_power_cut_is_explained_only_where_nothing_in_it_was_owed() -> None:
    def at(seq: int, ident: str) -> dict[str, Any]:
        return {"ch": "c", "prod": "o", "origin": "o", "pinc": 1, "prio": 1, "seq": seq, "id": ident}

    def published(seq: int, ident: str) -> list[Event]:
        return [Event("inv", ch="c", prod="o", id=ident, sha="x"), Event("ack", **at(seq, ident))]

    reg, gap = Event("reg", sub="s", ch="c"), Event("gap", sub="s", **at(0, ""), first=1, last=2)
    handled = [Event("start", sub="s", **at(2, "b"), sha="x"), Event("done", sub="s", **at(2, "b"))]
    cut = Event("fault", kind="power")

    def kinds(*events: Event) -> set[str]:
        return {violation.kind for violation in judge(list(events), set(), set())}

    assert not kinds(*published(1, "a"), reg, *published(2, "b"), *handled, cut, gap)
    assert kinds(*published(1, "a"), reg, *published(2, "b"), *handled, gap) == {"gap"}
    assert "gap" in kinds(*published(1, "a"), reg, *published(2, "b"), cut, gap)
    assert "gap" in kinds(reg, *published(1, "a"), *published(2, "b"), *handled, cut, gap)
    assert "gap" in kinds(Event("inv", ch="c", prod="o", id="a", sha="x"), reg, *published(1, "a"),
                          *published(2, "b"), *handled, cut, gap)


def test_callbacks_of_a_stopped_life_wait_and_those_of_a_dead_one_are_dropped() -> None:
    loop, life, ran = SimLoop(), Gate("life"), list[str]()

    async def main() -> None:
        context = contextvars.copy_context()
        context.run(LIFE.set, life)
        life.halted = True
        loop.call_soon(ran.append, "while stopped", context=context)
        await asyncio.sleep(1)
        assert ran == []
        loop.resume(life)
        await asyncio.sleep(1)
        assert ran == ["while stopped"]
        loop.call_soon(ran.append, "after death", context=context)
        life.kill()
        loop.resume(life)
        await asyncio.sleep(1)

    loop.run_until_complete(main())
    loop.close()
    assert ran == ["while stopped"]


def test_nobody_overtakes_those_who_wait_for_the_first_origin() -> None:
    async def main() -> list[str]:
        disk = FakeDisk(Random(1))
        holder, waiter = (MessageBus("same", runtime=runtime(FakeFs(disk)), home="/home", origin_wait_s=wait)
                          for wait in (0.0, 0.5))
        async with holder, waiter:
            await holder.publish("c", "mine")
            receipts: dict[str, int] = {}

            async def publish(*names: str) -> None:
                for name in names:
                    receipts[name] = (await waiter.publish("c", name)).seq

            await asyncio.gather(publish("first", "third"), publish("second"))
            return sorted(receipts, key=receipts.__getitem__)

    assert run(main()) == ["first", "second", "third"]


def test_a_failure_is_shrunk_to_the_faults_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(seed: int, without: frozenset[int] = frozenset(), redis: bool = False) -> Report:
        return Report(seed, violations=[] if 2 in without else [Violation("lost", "text", ())])

    monkeypatch.setattr(simulation, "simulate", pretend)
    without, report = shrink(pretend(1))
    faults = {fault.number for fault in make_plan(1, tuple(FAULTS)).faults}
    assert without == faults - {2}
    assert "seed=1" in simulation.describe(report, without)


def test_a_poor_schedule_is_told() -> None:
    assert len(usual(Report(1))) == 3


@pytest.mark.timeout(60)
@pytest.mark.parametrize("mutant", FORK_MUTANTS, ids=lambda mutant: mutant.name)
def test_mutants_that_no_seed_can_meet_fail_the_tests_of_the_relay(mutant: mutants.Mutant, tmp_path: Path) -> None:
    mutants.plant((mutant.change,), str(tmp_path))
    test = "tests/test_relay.py::test_a_mark_that_is_not_ours_is_a_fork_and_nothing_is_sent"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "2", test]  # it may never end
    environ = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environ, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert (done.returncode, "FAILED" in done.stdout) == (1, True), done.stdout


@pytest.mark.parametrize("mutant", [*mutants.MUTANTS, *FORK_MUTANTS], ids=lambda mutant: mutant.name)
def test_the_place_of_every_mutant_is_there(mutant: mutants.Mutant, tmp_path: object) -> None:
    mutants.plant((*mutant.healers, mutant.change), str(tmp_path))
    assert set(mutant.faults) <= simulation.STRIKES.keys()
    assert mutant.file != "logs/redis_scripts.py", "the simulated Redis knows no changed script: that is caught for nothing"


def test_seeds_with_the_faults_that_are_preferred_come_first() -> None:
    order = simulation.preferring(("redis_flush", "redis_empty"), range(20), redis=True)
    counts = [sum(fault.kind in ("redis_flush", "redis_empty") for fault in simulation.plan_of(seed, True).faults)
              for seed in order]
    assert (sorted(order), counts) == (list(range(20)), sorted(counts, reverse=True))
    assert counts[0] > 0
    assert simulation.preferring(("",), range(3), redis=True) == [0, 1, 2]


def test_a_healer_that_is_switched_off_is_no_catch() -> None:
    harmless = mutants.Mutant("harmless", "relay.py", "SEEKS_MAX = 3", "SEEKS_MAX = 4", True, healers=(NO_REQUEST,))
    result = mutants.catch(harmless, 1, first=265)
    assert (result.seed, result.kinds) == (None, mutants.AS_WELL), "take a seed at which something is sent again"


@pytest.mark.parametrize("name", ["no intent mark", "flag everything", "later segment before the end",
                                  "plain XADD, no order asked", "every offer is a base"])
def test_quick_mutants_are_caught(name: str) -> None:
    mutant = next(mutant for mutant in mutants.MUTANTS if mutant.name == name)
    assert mutants.catch(mutant, 20).seed is not None
