"""The crew: one worker a chain, the highest priority first, and workers that are woken instead of made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lemegeton.crew import ChainState, Crew
from lemegeton.lane import Chain
from test_delivery import in_virtual_time


def chain(name: str, priority: int = 1) -> ChainState:
    return ChainState(Chain(name, "a~s~0", priority))


class Turns:
    """What the crew served, and in which tasks; a chain in ``held`` waits there."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.tasks: set[object] = set()
        self.held: dict[str, asyncio.Event] = {}
        self.more: dict[str, int] = {}

    async def serve(self, chain: ChainState) -> bool:
        self.names.append(chain.key.channel)
        self.tasks.add(asyncio.current_task())
        if chain.key.channel in self.held:
            await self.held[chain.key.channel].wait()
        self.more[chain.key.channel] = self.more.get(chain.key.channel, 0) - 1
        return self.more[chain.key.channel] > 0


@asynccontextmanager
async def serving(turns: Turns, *early: ChainState, workers_max: int = 2) -> AsyncIterator[Crew]:
    crew = Crew(turns.serve, workers_max)
    for found in early:
        crew.queue(found)
    async with asyncio.TaskGroup() as group:
        crew.begin(group)
        yield crew
        await crew.stop(1.0)


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@in_virtual_time
async def test_a_worker_stays_and_is_woken() -> None:
    turns, one = Turns(), chain("a")
    async with serving(turns) as crew:
        for _ in range(3):
            crew.queue(one)
            await turn()
    assert turns.names == ["a"] * 3
    assert len(turns.tasks) == 1


@in_virtual_time
async def test_a_chain_has_one_worker_and_is_served_again_if_it_rang_meanwhile() -> None:
    turns, one, other = Turns(), chain("a"), chain("b")
    turns.held["a"] = asyncio.Event()
    async with serving(turns) as crew:
        crew.queue(one)
        await turn()
        crew.queue(one)
        crew.queue(other)
        await turn()
        assert turns.names == ["a", "b"]
        turns.held["a"].set()
        await turn()
    assert turns.names == ["a", "b", "a"]


@in_virtual_time
async def test_a_chain_that_has_more_stands_behind_the_others() -> None:
    turns = Turns()
    turns.more["a"] = 2
    async with serving(turns, chain("a"), chain("b"), workers_max=1):
        await turn()
    assert turns.names == ["a", "b", "a"]


@in_virtual_time
async def test_the_highest_priority_goes_first_and_the_lowest_does_not_starve() -> None:
    turns = Turns()
    high = [chain(f"high {n}", 3) for n in range(8)]
    async with serving(turns, chain("low", 0), *high, workers_max=1):
        await turn()
    assert turns.names == [*(f"high {n}" for n in range(7)), "low", "high 7"]


@in_virtual_time
async def test_a_callback_of_the_loop_has_the_first_chain_served_before_it_returns() -> None:
    turns, seen = Turns(), []

    def ring(crew: Crew, *chains: ChainState) -> None:
        for found in chains:
            crew.queue(found)
        seen.append(list(turns.names))

    async with serving(turns) as crew:
        crew.queue(chain("first"))
        crew.queue(chain("side by side"))
        await turn()
        turns.names.clear()
        turns.held["a"] = asyncio.Event()
        asyncio.get_running_loop().call_soon(ring, crew, chain("a"), chain("b"))
        await turn()
        assert seen == [["a"]]
        assert turns.names == ["a", "b"]
        turns.held["a"].set()
        crew.queue(chain("c"))
        assert turns.names == ["a", "b"], "not from inside a task"


@in_virtual_time
async def test_a_worker_that_is_cancelled_while_it_rests_is_not_woken() -> None:
    turns, one = Turns(), chain("a")
    async with serving(turns) as crew:
        crew.queue(one)
        await turn()
        for worker in list(crew._workers):
            worker.cancel()
        crew.queue(one)
        await turn()
        assert turns.names == ["a", "a"]
        for worker in list(crew._workers):
            worker.cancel()
        await turn()
        crew.queue(one)
        await turn()
    assert turns.names == ["a", "a", "a"]
    assert len(turns.tasks) == 3


@in_virtual_time
async def test_the_end_does_not_wait_for_a_worker_that_is_being_cancelled() -> None:
    turns = Turns()
    async with serving(turns, chain("a")) as crew:
        await turn()
        for worker in list(crew._workers):
            worker.cancel()
    assert not crew._workers
