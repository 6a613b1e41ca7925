"""``history``, ``status`` and ``subs``: looking at a home.  Nothing here makes a home or anything in one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from lemegeton.channels import check_channel
from lemegeton.cli.output import Options, flush, printable, put_line, run
from lemegeton.cli.survey import Place, Survey, drop_place, open_existing, survey, surveyed_places
from lemegeton.history import newest
from lemegeton.message import Message

if TYPE_CHECKING:
    from lemegeton.cli.reaching import Relayed

PAYLOAD_SHOWN = 200


@click.command()
@click.argument("channel")
@click.option("-n", "--count", metavar="N", type=click.IntRange(1, 100_000), default=100, show_default=True,
              help="How many messages, counted from the end.")
@click.pass_obj
def history(options: Options, channel: str, count: int) -> None:
    """Print the last messages of CHANNEL that are still there, oldest first."""
    check_channel(channel)
    for message in run(_newest(options, channel, count)):
        put_line(message.raw if options.wants_json else _told(message).encode(), flush=False)
    flush()


async def _newest(options: Options, channel: str, count: int) -> list[Message]:
    site = await open_existing(options.home)
    try:
        return await newest(site.log, channel, count)
    finally:
        await site.aclose()


def _told(message: Message) -> str:
    """A message in one line for people."""
    from lemegeton.cli.output import to_json

    payload = to_json(message.payload).decode()
    shown = payload if len(payload) <= PAYLOAD_SHOWN else payload[:PAYLOAD_SHOWN] + "…"
    return f"{time_of(message.timestamp)}  {printable(f'{message.type:<11} {message.sender:<16} {shown}')}"


def time_of(unix_ms: int) -> str:
    """A stamp as people here read it."""
    try:
        at = datetime.fromtimestamp(unix_ms / 1000, UTC).astimezone()
    except (OverflowError, ValueError, OSError):
        return f"{unix_ms:<23}"
    return at.isoformat(" ", "milliseconds")[:23]


@click.command()
@click.pass_obj
def status(options: Options) -> None:
    """Show what is in the home: channels, durable subscriptions and their backlog, origins, dead letters."""
    from dataclasses import asdict

    found, redis = run(_surveyed(options))
    facts = found.facts() if redis is None else {**found.facts(), "redis": asdict(redis)}
    options.show(facts, _report(found, [] if redis is None else redis.lines()))


async def _surveyed(options: Options) -> tuple[Survey, Relayed | None]:
    from lemegeton.cli.reaching import relayed

    site = await open_existing(options.home)
    try:
        redis = await relayed(site)
        return await survey(site, redis is not None and redis.up), redis
    finally:
        await site.aclose()


def _report(found: Survey, redis: list[str]) -> str:
    channels = [f"{c.channel:<32} {c.records:>9} records  {_size(c.bytes):>10}  {c.lanes} lanes"
                for c in found.channels]
    origins = [f"{origin:<48} {_holding(held)}" for origin, held in found.origins.items()]
    dead = [f"{channel:<48} {count}" for channel, count in found.dead_letters.items()]
    lines = [
        f"home   {found.home}",
        f"site   {found.site or 'none here: the directory was copied, or is new; the next sender makes one'}",
        f"mode   {found.mode}",
        *(f"redis  {line}" for line in redis),
        f"holds  {found.records} records, {_size(found.bytes)}",
        *section("channels", channels),
        *section("durable subscriptions", [_place(place) for place in found.subscriptions]),
        *section("origins", origins),
        *section("dead letters", dead),
    ]
    return "\n".join(map(printable, lines))


def section(title: str, lines: list[str]) -> list[str]:
    """A title and what stands under it."""
    return [title, *(f"  {line}" for line in lines or ["none"])]


def _place(place: Place) -> str:
    backlog = ", ".join(f"{channel} {count}" for channel, count in place.backlog.items()) or "none"
    patterns = " ".join(place.patterns) or "(header damaged)"
    return f"{place.name:<32} {_holding(place.held)}  {patterns}  backlog: {backlog}"


def _holding(held: bool) -> str:
    return "held" if held else "free"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


@click.group(no_args_is_help=False)
def subs() -> None:
    """Durable subscriptions: they keep records in place until they have settled them."""


@subs.command("list")
@click.pass_obj
def list_places(options: Options) -> None:
    """Show every durable subscription, whether it is held, and its backlog."""
    from dataclasses import asdict

    for place in run(surveyed_places(options.home)):
        options.show(asdict(place), printable(_place(place)))


@subs.command("drop")
@click.argument("name")
@click.pass_obj
def drop(options: Options, name: str) -> None:
    """Drop the place of NAME: records are no longer kept for it.  Refused while a process holds it."""
    run(drop_place(options.home, name))
    options.show({"dropped": name}, f"dropped {printable(name)}")
