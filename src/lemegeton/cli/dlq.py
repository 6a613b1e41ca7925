"""``dlq``: what no handler could take.  Looking changes nothing; where a shared Redis is set, it shows that of all sites."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import click

from lemegeton.bus import MessageBus
from lemegeton.cli.causes import Why
from lemegeton.cli.fields import value
from lemegeton.cli.looking import time_of
from lemegeton.cli.messages import ORIGIN_WAIT_S
from lemegeton.cli.output import FAILED, Ended, Options, printable, run, say, seconds, to_json
from lemegeton.cli.survey import open_existing
from lemegeton.deadletters import LIMIT_MAX, DeadLetter, DeadLetters, Redriven
from lemegeton.message import Receipt
from lemegeton.site import FileSite

SENDER = "cli-dlq"
KEPT_SHOWN = 3
C = TypeVar("C", bound=Callable[..., Any])


def _filters(command: C) -> C:
    """The options that say which are meant."""
    for option in (
        click.option("--older-than", metavar="S", type=float, callback=seconds, help="Last tried at least S seconds ago."),
        click.option("--id", metavar="ID", help="Of this id, or of a message of this id."),
        click.option("--subscription", metavar="NAME", help="Of this subscription."),
        click.option("--reason", metavar="TEXT", help="For this reason, such as 'handler failed' or 'process died'."),
        click.option("--channel", metavar="GLOB", help="Of messages to these channels (a glob as in Redis)."),
    ):
        command = option(command)
    return command


def _given(filters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in filters.items() if value is not None}


@asynccontextmanager
async def _looking(options: Options) -> AsyncIterator[DeadLetters]:
    """Those of a home that is there; a bus is needed only to see those of other sites."""
    site = await open_existing(options.home)
    try:
        if site.settings.redis_url is None:
            yield DeadLetters(site, SENDER)
            return
    finally:
        await site.aclose()
    bus = MessageBus(SENDER, home=options.home)
    why = Why(bus)
    async with bus:
        assert isinstance(bus.site, FileSite), "a bus without a given site has a home on disk"
        if bus.site.redis is not None and not bus.site.redis.link.up:
            say(f"the shared Redis does not answer: this is only what the site itself has{why}")
        yield bus.dead_letters


@asynccontextmanager
async def _changing(options: Options) -> AsyncIterator[DeadLetters]:
    """Those of a home that is there, and a sender's log to say in what becomes of them."""
    await (await open_existing(options.home)).aclose()
    bus = MessageBus(SENDER, home=options.home, origin_wait_s=ORIGIN_WAIT_S)
    why = Why(bus)
    async with bus:
        yield bus.dead_letters
    if not bus.relayed:
        say(f"the shared Redis was not reached; it is kept and goes as soon as any bus of this home reaches it{why}")


@click.group(no_args_is_help=False)
def dlq() -> None:
    """Dead letters: messages that no handler could take.  Look at them, mend them, publish them again or drop them."""


@dlq.command("list")
@_filters
@click.option("-n", "--count", metavar="N", type=click.IntRange(1, LIMIT_MAX), default=1000, show_default=True,
              help="How many, counted from the newest.")
@click.pass_obj
def list_letters(options: Options, /, count: int, **filters: Any) -> None:
    """Show the dead letters that match, the newest last."""
    for letter in run(_find(options, count, _given(filters))):
        options.show(_facts(letter), _line(letter), flush=False)


async def _find(options: Options, count: int, filters: dict[str, Any]) -> list[DeadLetter]:
    async with _looking(options) as letters:
        return await letters.find(**filters, limit=count)


def _facts(letter: DeadLetter) -> dict[str, Any]:
    names = ("id", "channel", "subscription", "site", "reason", "error", "attempts", "first", "last", "message_id", "edited",
             "payload")
    return {name: getattr(letter, name) for name in names}


def _line(letter: DeadLetter) -> str:
    told = f"{letter.reason}, {letter.attempts} attempts  {letter.error}"
    edited = "  (edited)" if letter.edited else ""
    return f"{time_of(letter.last)}  {printable(f'{letter.channel:<16} {letter.subscription:<12} {told}{edited}  {letter.id}')}"


@dlq.command()
@click.argument("ident", metavar="ID")
@click.pass_obj
def show(options: Options, ident: str) -> None:
    """Show everything about the dead letter ID (its own id, or that of its message)."""
    letter = run(_get(options, ident))
    original = None if letter.original is None else letter.original.raw
    facts = {**_facts(letter), "traceparent": letter.traceparent, "trace": letter.trace}
    if options.wants_json:
        options.show({**facts, "original": None if original is None else json.loads(original)}, "")
        return
    for name in ("first", "last"):
        facts[name] = time_of(facts[name])
    facts["payload"] = to_json(letter.payload).decode("utf-8", "replace")
    facts["original"] = "gone" if original is None else original.decode("utf-8", "replace")
    trace = facts.pop("trace")
    options.show(None, "\n".join([*(f"{name:<13} {printable(str(value))}" for name, value in facts.items()),
                                  *(f"  {printable(line)}" for line in trace.splitlines())]))


async def _get(options: Options, ident: str) -> DeadLetter:
    async with _looking(options) as letters:
        return await letters.get(ident)


@dlq.command()
@click.argument("ident", metavar="ID")
@click.argument("payload")
@click.option("--text", is_flag=True, help="Take the payload as text instead of JSON.")
@click.pass_obj
def edit(options: Options, ident: str, payload: str, text: bool) -> None:
    """Have PAYLOAD (JSON) published instead when the dead letter ID is redriven."""
    letter = run(_edit(options, ident, value(payload, text)))
    options.show(_facts(letter), f"edited {printable(letter.id)}")


async def _edit(options: Options, ident: str, payload: Any) -> DeadLetter:
    async with _changing(options) as letters:
        return await letters.edit(ident, payload)


def _all(command: C) -> C:
    return click.option("--all", "everything", is_flag=True, help="All that match; without a filter, all there are.")(command)


def _chosen(idents: tuple[str, ...], everything: bool, filters: dict[str, Any]) -> dict[str, Any]:
    """The filters, where no ids are given; asking for neither or both is wrong usage."""
    given = _given(filters)
    if bool(idents) == bool(everything or given):
        raise click.UsageError("name dead letters by their ids, or all that match by --all or a filter",
                               click.get_current_context())
    return given


@dlq.command()
@click.argument("idents", nargs=-1, metavar="[ID]...")
@_filters
@_all
@click.pass_obj
def redrive(options: Options, /, idents: tuple[str, ...], everything: bool, **filters: Any) -> None:
    """Publish dead letters again to their channels: those named, or all that match.

    Doing it twice delivers each once.  What cannot be published stays, and the exit code is 1.
    """
    given = _chosen(idents, everything, filters)
    if idents:
        run(_redrive(options, idents))
        return
    done = run(_redrive_all(options, given))
    options.show({"redriven": done.count, "kept": done.kept}, f"redriven: {done.count}")
    if done.kept:
        causes = "; ".join(list(done.kept.values())[:KEPT_SHOWN])
        raise Ended(FAILED, f"{len(done.kept)} dead letters could not be redriven: {causes}")


async def _redrive(options: Options, idents: tuple[str, ...]) -> None:
    async with _changing(options) as letters:
        for ident in idents:
            receipt: Receipt = await letters.redrive(ident)
            options.show({"redriven": ident, "id": receipt.id, "channel": receipt.channel},
                         f"redriven {printable(ident)} to {receipt.channel} as {receipt.id}")


async def _redrive_all(options: Options, given: dict[str, Any]) -> Redriven:
    async with _changing(options) as letters:
        return await letters.redrive_all(**given)


@dlq.command()
@click.argument("idents", nargs=-1, metavar="[ID]...")
@_filters
@_all
@click.pass_obj
def drop(options: Options, /, idents: tuple[str, ...], everything: bool, **filters: Any) -> None:
    """Settle dead letters for good: those named, or all that match.  They are never published again."""
    given = _chosen(idents, everything, filters)
    run(_drop(options, idents, given))


async def _drop(options: Options, idents: tuple[str, ...], given: dict[str, Any]) -> None:
    async with _changing(options) as letters:
        for ident in idents:
            await letters.drop(ident)
            options.show({"dropped": ident}, f"dropped {printable(ident)}")
        if not idents:
            count = await letters.drop_all(**given)
            options.show({"dropped": count}, f"dropped: {count}")
