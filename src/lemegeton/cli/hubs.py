"""``hub``, ``agent`` and ``assign``: work handed out, done by any command, and waited for."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import click

from lemegeton.assignment import ANY, ASSIGN, Report, Wish, built, parse
from lemegeton.bus import MessageBus
from lemegeton.channels import HUB, check_name
from lemegeton.cli.causes import warn
from lemegeton.cli.fields import value
from lemegeton.cli.output import FAILED, TIMED_OUT, Ended, Options, printable, run
from lemegeton.events import AgentJoined, AgentLost, AssignmentMoved, Event, HubStalled, StaleReport
from lemegeton.message import Message, MessageType

REPLIES = "cli-replies"
"""One channel for the outcomes of all who ever wait: a channel each would stay for ever."""
SENDER = "cli-assign"
"""Not the name of `pub`: whoever waits holds its origin, and `pub` would wait for that."""
TOLD = (AgentJoined, AgentLost, AssignmentMoved, StaleReport, HubStalled)


@click.command()
@click.option("--name", metavar="NAME", default="hub", show_default=True, help="Name of the hub, and of its journal.")
@click.pass_obj
def hub(options: Options, name: str) -> None:
    """Run a hub until Ctrl-C: it hands out what `assign` asks for and watches over the agents.

    What has no outcome yet stays in its journal; the next hub of the name goes on with it.
    """
    run(_hub(options, name))


async def _hub(options: Options, name: str) -> None:
    from lemegeton.hub import Hub
    from lemegeton.ledger import Entry

    def outcome(entry: Entry) -> None:
        if not entry.open and not entry.replied:
            options.show({"event": entry.status, "assignment": entry.id, "agent": entry.agent, "error": entry.error},
                         printable(f"{entry.status}: {entry.id} by {entry.agent} {entry.error}".rstrip()))

    serving = Hub(name, home=options.home)
    for kind in TOLD:
        serving.bus.on(kind.name, lambda event: options.show(_facts(event), str(event)))
    warn(serving.bus, *TOLD)
    async with serving:
        serving.watch(outcome)
        options.show({"event": "started", "hub": name, "pending": serving.pending},
                     f"hub {name} is running, {serving.pending} assignments are open; Ctrl-C ends it")
        await serving.run()


def _facts(event: Event) -> dict[str, Any]:
    return {"event": event.name, **{field: getattr(event, field) for field in event.__struct_fields__}}


@click.command()
@click.argument("name")
@click.option("--exec", "command", metavar="CMD", required=True,
              help="Shell command: the payload is its input, what it prints the result, a code but 0 a failure.")
@click.option("--prefetch", metavar="N", type=click.IntRange(1, 1000), default=4, show_default=True,
              help="How many short assignments the hub may give it at a time.")
@click.pass_obj
def agent(options: Options, name: str, command: str, prefetch: int) -> None:
    """Run an agent NAME that does its work with a command, until Ctrl-C, SIGTERM or a shutdown.

    What it has at hand is finished first.
    """
    check_name(name, "agent")
    run(_agent(options, name, command, prefetch))


async def _agent(options: Options, name: str, command: str, prefetch: int) -> None:
    from lemegeton.cli.command_agent import CommandAgent

    serving = CommandAgent(name, command, prefetch=prefetch, home=options.home)
    warn(serving.bus)
    async with serving:
        options.show({"event": "started", "agent": name}, f"agent {printable(name)} is running; Ctrl-C ends it")
        await serving.run()


@click.command()
@click.argument("agent")
@click.argument("payload")
@click.option("--text", is_flag=True, help="Take the payload as text instead of JSON.")
@click.option("--timeout", metavar="S", type=click.FloatRange(min=0, min_open=True, max=86_400 * 365),
              help="Withdraw it after S seconds without an outcome; exit 3.")
@click.pass_obj
def assign(options: Options, agent: str, payload: str, text: bool, timeout: float | None) -> None:
    """Have AGENT, or any that is free, work on PAYLOAD (JSON); wait for the outcome and print the result.

    If no hub is running it waits for one.
    """
    if agent != ANY:
        check_name(agent, "agent")
    report = run(_assigned(options, Wish(payload=value(payload, text), agent=agent, timeout=timeout)))
    facts = {"assignment": report.assignment, "agent": report.agent, "attempt": report.attempt, "result": report.result}
    options.show(facts, report.result if isinstance(report.result, str) else json.dumps(report.result))


async def _assigned(options: Options, wish: Wish) -> Report:
    """The report of a success; anything else ends the command."""
    ident = uuid.uuid4().hex
    came: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    async def take(message: Message) -> None:
        if message.correlation_id == ident and not came.done():
            came.set_result(message)

    async with MessageBus(SENDER, home=options.home) as bus:
        await bus.subscribe(REPLIES, take)
        await bus.publish(HUB, built(wish), type=ASSIGN, id=ident, reply_to=REPLIES, correlation_id=ident,
                          ttl=wish.timeout)
        try:
            return _judged(await asyncio.wait_for(came, wish.timeout))
        except TimeoutError:
            raise Ended(TIMED_OUT, f"assignment {ident}: no outcome within {wish.timeout} s; it is withdrawn") from None


def _judged(message: Message) -> Report:
    report = parse(message.payload, Report)
    if message.type == MessageType.COMPLETE:
        return report
    code = TIMED_OUT if report.category == "expired" else FAILED
    raise Ended(code, f"assignment {report.assignment}: {report.category}: {report.error}")
