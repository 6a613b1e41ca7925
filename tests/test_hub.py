"""Hub and agents in one process, and in processes that are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lemegeton.agent import BaseAgent
from lemegeton.assignment import AgentState, Assignment, Registration, Report, built
from lemegeton.bus import MessageBus
from lemegeton.errors import AssignmentFailed, BusClosed, InvalidMessage, InvalidSetting, NameTaken, NoAgent, NotReached
from lemegeton.events import Event
from lemegeton.hub import Hub
from lemegeton.message import MessageType

SOON_S = 10.0


async def until(condition: Callable[[], Any]) -> None:
    """Wait for a condition; fails after ten seconds."""
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.005)


class Doubler(BaseAgent):
    async def work(self, assignment: Assignment) -> Any:
        await self.progress(0.5, "half")
        return assignment.payload * 2


class Slow(BaseAgent):
    """Works until it is let go."""

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(name, **settings)
        self.go = asyncio.Event()
        self.got: list[Assignment] = []

    async def work(self, assignment: Assignment) -> Any:
        self.got.append(assignment)
        await self.go.wait()
        return self.name


class Failing(BaseAgent):
    def __init__(self, name: str, errors: list[BaseException], **settings: Any) -> None:
        super().__init__(name, **settings)
        self.errors = errors

    async def work(self, assignment: Assignment) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        return "fine"


@pytest.fixture
def home(tmp_path: Path) -> str:
    return str(tmp_path / "home")


async def joined(hub: Hub, *names: str) -> None:
    await until(lambda: {a.name for a in hub.agents() if a.live} >= set(names))


async def test_an_assignment_for_one_agent_comes_back_as_its_result(home: str) -> None:
    async with Hub(home=home) as hub, Doubler("ada", home=home) as agent:
        await joined(hub, "ada")
        handle = await hub.assign("ada", 21)
        assert await handle.result(SOON_S) == 42
        assert handle.done
        assert (handle.fraction, handle.text) in ((0.5, "half"), (0.0, ""))
        await until(lambda: agent.state is AgentState.IDLE)
        assert hub.pending == 0


async def test_many_assignments_for_any_are_each_done_once_by_several(home: str) -> None:
    done: list[str] = []
    async with Hub(home=home) as hub, Doubler("ada", home=home), Doubler("bob", home=home):
        await joined(hub, "ada", "bob")
        hub.watch(lambda entry: done.append(entry.agent) if entry.status == "completed" else None)
        handles = [await hub.assign("any", n) for n in range(100)]
        assert [await handle.result(SOON_S) for handle in handles] == [2 * n for n in range(100)]
        assert sorted(set(done)) == ["ada", "bob"]
        assert len(done) == 100


async def test_what_nobody_can_do_yet_waits_until_an_agent_comes(home: str) -> None:
    async with Hub(home=home) as hub:
        handle = await hub.assign("any", 1)
        assert not handle.done
        with pytest.raises(NotReached):
            await handle.result(0.01)
        async with Doubler("ada", home=home):
            assert await handle.result(SOON_S) == 2


async def test_an_unknown_agent_is_refused(home: str) -> None:
    async with Hub(home=home) as hub:
        with pytest.raises(NoAgent, match="nobody"):
            await hub.assign("nobody", 1)
        with pytest.raises(NoAgent):
            hub.handle("unknown")
        with pytest.raises(NoAgent):
            await hub.shutdown("nobody")


async def test_what_cannot_be_published_is_refused_before_it_is_in_the_ledger(home: str) -> None:
    async with Hub(home=home) as hub:
        for arguments in ({"payload": {1, 2}}, {"payload": 1, "attempts": 0}, {"payload": 1, "timeout": -1.0}):
            with pytest.raises(InvalidMessage):
                await hub.assign("any", **arguments)
        assert hub.pending == 0


async def test_a_failure_that_may_go_away_is_tried_again_and_another_is_not(home: str) -> None:
    async with Hub(home=home) as hub:
        async with Failing("ada", [ConnectionError("no line")], home=home):
            await joined(hub, "ada")
            handle = await hub.assign("ada", 1)
            assert await handle.result(SOON_S) == "fine"
            assert (handle.entry.attempt, handle.entry.losses) == (2, 1)
        async with Failing("bob", [ValueError("bad")], home=home):
            await joined(hub, "bob")
            with pytest.raises(AssignmentFailed, match="bad"):
                await (await hub.assign("bob", 2)).result(SOON_S)


async def test_the_same_id_is_the_same_assignment(home: str) -> None:
    async with Hub(home=home) as hub:
        one, two = await hub.assign("any", 1, id="job"), await hub.assign("any", 1, id="job")
        assert one is two
        assert hub.handle("job") is one
        assert hub.pending == 1


async def test_an_assignment_expires_after_its_timeout(home: str) -> None:
    async with Hub(home=home) as hub:
        handle = await hub.assign("any", 1, timeout=0.05)
        with pytest.raises(AssignmentFailed) as caught:
            await handle.result(SOON_S)
        assert caught.value.category == "expired"


async def test_a_result_that_is_no_json_is_a_failure(home: str) -> None:
    class Odd(BaseAgent):
        async def work(self, assignment: Assignment) -> Any:
            return {1, 2}

    async with Hub(home=home) as hub, Odd("ada", home=home):
        await joined(hub, "ada")
        with pytest.raises(AssignmentFailed) as caught:
            await (await hub.assign("ada", 1)).result(SOON_S)
        assert caught.value.category == "result"


async def test_synchronous_work_runs_in_a_thread_and_tells_its_progress(home: str) -> None:
    class Plain(BaseAgent):
        def work(self, assignment: Assignment) -> Any:
            self.progress_from_thread(0.25, "begun")
            return assignment.payload + 1

    async with Hub(home=home) as hub, Plain("ada", home=home):
        await joined(hub, "ada")
        assert await (await hub.assign("ada", 1)).result(SOON_S) == 2


async def test_an_agent_that_leaves_hands_back_what_it_has(home: str) -> None:
    async with Hub(home=home) as hub:
        slow = Slow("ada", home=home, drain_timeout=0.2)
        await slow.start()
        await joined(hub, "ada")
        handle = await hub.assign("any", 1)
        await until(lambda: slow.got)
        await slow.stop()
        assert slow.state is AgentState.STOPPED
        await until(lambda: handle.entry.status == "queued")
        async with Doubler("bob", home=home):
            assert await handle.result(SOON_S) == 2
        assert handle.entry.losses == 0


async def test_shutdown_ends_the_agents_that_run(home: str) -> None:
    async with Hub(home=home) as hub:
        agents = [Doubler(name, home=home) for name in ("ada", "bob")]
        for agent in agents:
            await agent.start()
        runs = [asyncio.create_task(agent.run(signals=False)) for agent in agents]
        await joined(hub, "ada", "bob")
        assert await hub.shutdown(reason="done") == 2
        await asyncio.gather(*runs)
        await until(lambda: {a.presence for a in hub.agents()} == {"left"})


async def test_a_second_agent_of_a_name_is_refused(home: str) -> None:
    async with Doubler("ada", home=home):
        twin = Doubler("ada", home=home)
        with pytest.raises(NameTaken, match="ada"):
            await twin.start()


async def test_a_second_hub_of_a_name_is_refused(home: str) -> None:
    async with Hub(home=home):
        with pytest.raises(NameTaken, match="hub"):
            await Hub(home=home).start()


async def test_a_hub_that_stopped_refuses_and_tells_who_waits(home: str) -> None:
    async with Hub(home=home) as hub:
        handle = await hub.assign("any", 1)
        waiting = asyncio.create_task(handle.result())
        await asyncio.sleep(0)
    with pytest.raises(BusClosed):
        await waiting
    with pytest.raises(BusClosed):
        await hub.assign("any", 1)


async def test_open_assignments_survive_the_hub(home: str) -> None:
    async with Hub(home=home) as hub:
        await hub.assign("any", 20, id="kept")
    async with Hub(home=home) as hub, Doubler("ada", home=home):
        assert await hub.handle("kept").result(SOON_S) == 40


async def test_a_message_nobody_understands_is_reported_and_costs_nothing(home: str) -> None:
    seen: list[Event] = []
    async with Hub(home=home) as hub, MessageBus("odd", home=home) as odd, Doubler("ada", home=home):
        hub.bus.on("message_ignored", seen.append)
        hub.bus.on("stale_report", seen.append)
        await joined(hub, "ada")
        await odd.publish("hub", {"agent": 5}, type="register")
        await odd.publish("hub", "nonsense", type=MessageType.COMPLETE)
        stale = Report(assignment="unknown", attempt=3, hub="hub", agent="odd")
        await odd.publish("hub", built(stale), type=MessageType.COMPLETE)
        await until(lambda: len(seen) == 3)
        assert await (await hub.assign("ada", 2)).result(SOON_S) == 4


async def test_a_wish_through_a_message_gets_its_reply(home: str) -> None:
    replies: list[Any] = []
    async with Hub(home=home) as hub, MessageBus("cli", home=home) as cli, Doubler("ada", home=home):
        await joined(hub, "ada")
        await cli.subscribe("replies", lambda message: replies.append((message.type, message.payload)))
        await cli.publish("hub", {"payload": 4}, type="assign", reply_to="replies", id="w1", correlation_id="w1")
        await cli.publish("hub", {"payload": 4, "agent": "nobody"}, type="assign", reply_to="replies", id="w2")
        await until(lambda: len(replies) == 2)
        outcomes = {payload["assignment"]: kind for kind, payload in replies}
        assert outcomes == {"w1": "complete", "w2": "failed"}


async def test_a_new_run_of_an_agent_gets_what_the_lost_one_had_with_the_next_attempt(home: str) -> None:
    async with Hub(home=home) as hub, MessageBus("ghost", home=home) as ghost:
        said = Registration(agent="ada", session="old", site="elsewhere", heartbeat=60_000, started=1)
        await ghost.publish("hub", built(said), type="register")
        await joined(hub, "ada")
        handle = await hub.assign("ada", 5)
        await until(lambda: handle.entry.attempt == 1)
        again = Registration(agent="ada", session="new", site="elsewhere", heartbeat=60_000, started=2)
        await ghost.publish("hub", built(again), type="register")
        await until(lambda: handle.entry.attempt == 2)
        late = Report(assignment=handle.id, attempt=1, hub="hub", agent="ada", session="old", result="late")
        await ghost.publish("hub", built(late), type=MessageType.COMPLETE)
        good = Report(assignment=handle.id, attempt=2, hub="hub", agent="ada", session="new", result="good")
        await ghost.publish("hub", built(good), type=MessageType.COMPLETE)
        assert await handle.result(SOON_S) == "good"


async def test_an_agent_elsewhere_that_falls_silent_is_dead(home: str) -> None:
    lost: list[Event] = []
    async with Hub(home=home) as hub, MessageBus("ghost", home=home) as ghost:
        hub.bus.on("agent_lost", lost.append)
        said = Registration(agent="ada", session="s", site="elsewhere", heartbeat=50, started=1)
        await ghost.publish("hub", built(said), type="register")
        await until(lambda: lost)
        assert [a.presence for a in hub.agents()] == ["dead"]


async def test_heartbeats_of_an_agent_whose_loop_is_blocked_go_on(home: str) -> None:
    class Blocking(BaseAgent):
        async def work(self, assignment: Assignment) -> Any:
            subprocess.run([sys.executable, "-c", "import sys; sys.stdin.read()"], input=b"", check=True)  # noqa: ASYNC221
            return "done"

    beats: list[str] = []
    async with Hub(home=home) as hub, MessageBus("ear", home=home) as ear:
        await ear.subscribe("hub", lambda m: beats.append(m.sender) if m.type == "heartbeat" else None)
        async with Blocking("ada", home=home, heartbeat=0.02):
            await joined(hub, "ada")
            assert await (await hub.assign("ada", 1)).result(SOON_S) == "done"
            await until(lambda: len(beats) >= 3)


async def test_settings_of_an_agent_are_checked() -> None:
    for settings in ({"prefetch": 0}, {"heartbeat": 0}):
        with pytest.raises(InvalidSetting):
            Doubler("ada", **settings)


# ------------------------------------------------------------------------------------------ real processes

AGENT = """
import asyncio, os, sys
from lemegeton.agent import BaseAgent

class Worker(BaseAgent):
    async def work(self, assignment):
        if assignment.payload == "hang" and assignment.attempt == 1:
            print("working", flush=True)
            await asyncio.sleep(3600)
        return [self.name, assignment.attempt]

async def main():
    async with Worker(sys.argv[1], home=sys.argv[2]) as agent:
        print("joined", flush=True)
        await agent.run()

asyncio.run(main())
"""

HUB_PROCESS = """
import asyncio, os, signal, sys
from lemegeton.hub import Hub

async def main():
    async with Hub(home=sys.argv[1]) as hub:
        for n in range(50):
            await hub.assign("any", n, id=f"job-{n}")
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def agent_process(home: str, name: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", AGENT, name, home], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "joined\n"
    return process


async def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return await asyncio.to_thread(process.stdout.readline)


def ended(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.terminate()
        process.wait(SOON_S)
        assert process.stdout is not None
        process.stdout.close()


async def test_the_assignment_of_a_killed_agent_goes_to_another(home: str) -> None:
    async with Hub(home=home) as hub:
        first = agent_process(home, "ada")
        await joined(hub, "ada")
        handle = await hub.assign("any", "hang")
        assert await line_of(first) == "working\n"
        os.kill(first.pid, signal.SIGKILL)
        second = agent_process(home, "bob")
        try:
            assert await handle.result(SOON_S) == ["bob", 2]
            assert {a.name: a.presence for a in hub.agents()} == {"ada": "dead", "bob": "live"}
        finally:
            ended(first, second)


async def test_a_killed_agent_that_comes_back_asks_before_it_works_again(home: str) -> None:
    async with Hub(home=home) as hub:
        first = agent_process(home, "ada")
        await joined(hub, "ada")
        handle = await hub.assign("ada", "hang")
        assert await line_of(first) == "working\n"
        os.kill(first.pid, signal.SIGKILL)
        first.wait(SOON_S)
        second = agent_process(home, "ada")
        try:
            assert await handle.result(SOON_S) == ["ada", 2]
        finally:
            ended(first, second)


async def test_a_killed_hub_loses_none_of_its_open_assignments_and_doubles_none(home: str) -> None:
    agent = agent_process(home, "ada")
    try:
        killed = subprocess.run([sys.executable, "-c", HUB_PROCESS, home], check=False, timeout=SOON_S)  # noqa: ASYNC221
        assert killed.returncode == -signal.SIGKILL
        async with Hub(home=home) as hub:
            for n in range(50):
                assert await hub.handle(f"job-{n}").result(SOON_S) == ["ada", 1]
    finally:
        ended(agent)
