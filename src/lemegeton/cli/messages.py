"""``pub`` and ``sub``: messages in and out of the bus, one a line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Literal, get_args

import click

from lemegeton.bus import MessageBus
from lemegeton.channels import check_channel
from lemegeton.cli.causes import Why, warn
from lemegeton.cli.fields import header, message, priority, value
from lemegeton.cli.output import FAILED, TIMED_OUT, Ended, Options, OutputClosed, flush, put_line, run, say, seconds
from lemegeton.errors import InvalidMessage, LogError, NotReached
from lemegeton.handled import Ack
from lemegeton.message import Message, Receipt
from lemegeton.within import within

ORIGIN_WAIT_S = 5.0
"""How long `pub` waits for its name's origin, so that a thousand of them write one log."""
PRINT_DRAIN_S = 0.1
"""Nothing is being worked on when `sub` ends: at most a message that cannot be printed is let go."""


@click.command()
@message
@click.option("--ttl", metavar="S", type=float, help="Seconds after which nobody is given the message any more.")
@click.option("--priority", metavar="P", default="normal", callback=priority, show_default=True,
              help="low, normal, high or critical, or 0 to 3.")
@click.option("--id", metavar="ID", help="Id of the message; a second one with the same id is dropped by readers.")
@click.option("--header", "headers", metavar="K=V", multiple=True, callback=header, help="A header; may be repeated.")
@click.option("--ack", type=click.Choice(get_args(Ack)), default="local", show_default=True,
              help="Return when it survives kill -9 (local) or a power cut (disk), when the shared Redis has it (redis, "
                   "redis-disk), or everybody has handled it.")
@click.option("--timeout", metavar="S", type=float, callback=seconds, help="How long to wait for --ack; exit 3 when it passes.")
@click.option("--name", metavar="NAME", default="cli", show_default=True, help="Name of the sender.")
@click.pass_obj
def pub(options: Options, /, channel: str, payload: str, text: bool, name: str, **fields: Any) -> None:
    """Publish PAYLOAD (JSON) to CHANNEL and print the receipt.

    With PAYLOAD - every line of standard input is published as a message of its own.
    """
    check_channel(channel)
    bus = MessageBus(name, home=options.home, origin_wait_s=ORIGIN_WAIT_S)
    why = Why(bus)
    try:
        if payload == "-":
            run(_publish_lines(options, bus, channel, text, fields))
        else:
            run(_publish_one(options, bus, channel, value(payload, text), fields))
    except NotReached as error:
        raise NotReached(f"{error}{why}") from None
    if not bus.relayed:
        say("the shared Redis was not reached; the message is kept and goes as soon as any bus of this home, or "
            f"`lemegeton bridge`, reaches it{why}")


async def _publish_one(options: Options, bus: MessageBus, channel: str, payload: Any, fields: dict[str, Any]) -> None:
    async with bus:
        _show(options, await bus.publish(channel, payload, **fields))


def _show(options: Options, receipt: Receipt, *, flush: bool = True) -> None:
    lane = receipt.lane
    facts = {"id": receipt.id, "channel": lane.channel, "origin": lane.origin, "inc": lane.inc,
             "priority": lane.priority, "seq": receipt.seq, "level": receipt.level}
    options.show(facts, f"published {receipt.id} to {lane.channel}: number {receipt.seq} of {lane.origin} "
                        f"({receipt.level})", flush=flush)


async def _publish_lines(options: Options, bus: MessageBus, channel: str, text: bool, fields: dict[str, Any]) -> None:
    from lemegeton.cli.lines import Progress, batches

    async def publish(number: int, line: bytes) -> Receipt:
        try:
            return await bus.publish(channel, value(line, text), **fields)
        except (InvalidMessage, LogError, UnicodeDecodeError) as error:
            raise Ended(FAILED, f"line {number} of standard input: {error}") from None

    count = 0
    with Progress() as progress:
        async with bus:
            async for lines, taken in batches():
                async for receipt in _published(publish, lines, together=fields["ack"] != "local"):
                    count += 1
                    if options.wants_json:
                        _show(options, receipt, flush=False)
                flush()
                progress.at(taken, count)
    if not options.wants_json:
        options.show(None, f"published {count} messages to {channel} ({fields['ack']})")


async def _published(
    publish: Callable[[int, bytes], Awaitable[Receipt]], lines: list[tuple[int, bytes]], *, together: bool
) -> AsyncIterator[Receipt]:
    """Publish lines in their order: one after the other, or, where each has to wait, side by side."""
    if not together:
        for number, line in lines:
            yield await publish(number, line)
        return
    outcomes = await asyncio.gather(*(publish(number, line) for number, line in lines), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Receipt):
            yield outcome
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


@click.command()
@click.argument("channels", nargs=-1, required=True, metavar="CHANNEL...")
@click.option("--name", metavar="NAME", help="Keep the place under this name: the next run goes on there.")
@click.option("--start", type=click.Choice(["new", "earliest"]), default="new", show_default=True,
              help="Where to begin in what is there already, without a place to go on from.")
@click.option("--count", metavar="N", type=click.IntRange(min=1), help="End after N messages.")
@click.option("--timeout", metavar="S", type=float, callback=seconds, help="Give up after S seconds; exit 3.")
@click.pass_obj
def sub(
    options: Options, channels: tuple[str, ...], name: str | None, start: Literal["new", "earliest"],
    count: int | None, timeout: float | None
) -> None:
    """Print every message of the channels (globs as in Redis), each as one line of JSON.

    A message is settled when it is printed.  A closed pipe ends it quietly; what could not be printed stays unsettled.
    """
    # Not the name of `pub`: a subscriber that had to write would keep every `pub` waiting for the origin.
    bus = MessageBus(name or "cli-sub", home=options.home, drain_timeout=PRINT_DRAIN_S)
    warn(bus)
    run(_print(bus, channels, name, start, Printer(count), timeout))


async def _print(
    bus: MessageBus, channels: Sequence[str], name: str | None, start: Literal["new", "earliest"], printer: Printer,
    timeout_s: float | None
) -> None:
    async with bus:
        subscription = await bus.subscribe(channels, printer.handle, start=start, durable=name, concurrency=1)
        printer.end = lambda: bus.unsubscribe(subscription)
        try:
            async with within(timeout_s):
                await printer.ended.wait()
        except TimeoutError:
            raise Ended(TIMED_OUT, f"{printer.printed} messages within {timeout_s} s") from None


class Printer:
    """The handler behind `sub`: a message counts as settled only when its line was taken."""

    def __init__(self, count: int | None) -> None:
        self.printed = 0
        self.ended = asyncio.Event()
        self.end: Callable[[], Awaitable[object]] | None = None
        self._count = count
        self._ending: asyncio.Future[object] | None = None

    async def handle(self, message: Message) -> None:
        """Print one; behind the last one nothing is taken any more."""
        try:
            put_line(message.raw)
        except OutputClosed:
            self.ended.set()
            await asyncio.Event().wait()  # never handled: `stop` lets it go, and it comes again
        self.printed += 1
        if self.printed == self._count:
            await self._no_more()

    async def _no_more(self) -> None:
        """End the subscription before this handler returns, so that the next message is not even begun."""
        assert self.end is not None, "set before the loop has its first turn"
        self._ending = asyncio.ensure_future(self.end())
        await asyncio.sleep(0)
        self.ended.set()
