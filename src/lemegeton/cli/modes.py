"""``mode``: which path works now, as this process finds it, and the switch by hand.  Nothing is started or joined."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import click

from lemegeton.cli.looking import section, time_of
from lemegeton.cli.output import Options, printable, run
from lemegeton.cli.survey import open_existing
from lemegeton.errors import HomeRefused, InvalidSetting, LogError
from lemegeton.local_redis import find
from lemegeton.logs.redis_entries import Keys
from lemegeton.logs.redis_link import Link
from lemegeton.mode_board import Transition, read_history
from lemegeton.mode_rules import ORDER, Contact, CoordinationMode, Facts, Manual, State, decide
from lemegeton.mode_switch import AUTO, read_switch, set_mode
from lemegeton.osfs import os_runtime
from lemegeton.seams import Runtime

SHOWN = 10
NAMES = [*(mode.value for mode in ORDER), AUTO]


@dataclass(frozen=True, slots=True)
class Looked:
    """One Redis, as it answered once."""

    contact: Contact
    history: list[Transition] = field(default_factory=list)


@click.group(invoke_without_command=True)
@click.pass_context
def mode(ctx: click.Context) -> None:
    """Which path to other sites works, and the switch by hand; without a verb: show."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(show)


@mode.command()
@click.pass_obj
def show(options: Options) -> None:
    """Show the mode, why, the switch by hand, and the last changes that a Redis was told of."""
    facts = run(_looked(options))
    options.show(facts, _report(facts))


@mode.command("set")
@click.argument("name", metavar="MODE", type=click.Choice(NAMES))
@click.option("--reason", metavar="TEXT", default="", help="Why; everybody who looks at the mode is told.")
@click.option("--for", "for_s", metavar="SECONDS", type=click.FloatRange(0, min_open=True), help="End it after so long.")
@click.pass_obj
def switch(options: Options, name: str, reason: str, for_s: float | None) -> None:
    """Name no better mode than MODE on this site: distributed, degraded, isolated (relays pause), or auto again."""
    path = run(_home(options))[0]
    manual = set_mode(os_runtime(), path, AUTO if name == AUTO else CoordinationMode(name), reason, for_s)
    facts = {"mode": name, "reason": reason, "until": manual.until_ms if manual else None}
    options.show(facts, f"{name}{_until(facts['until'])}; every process of this site follows within a second")


async def _home(options: Options) -> tuple[str, Any]:
    """The home that is there, and its settings."""
    site = await open_existing(options.home)
    try:
        return site.home.path, site.settings
    finally:
        await site.aclose()


async def _looked(options: Options) -> dict[str, Any]:
    home, settings = await _home(options)
    runtime, keys = os_runtime(), Keys(settings.namespace)
    local_url = await find(runtime, home) if settings.local_redis == "auto" else settings.local_redis
    shared = await _look(runtime, "shared", settings.redis_url, keys, "no redis_url is set")
    local = await _look(runtime, "local", None if local_url == "off" else local_url, keys, "none is running")
    manual, trouble = _manual(runtime, home)
    # By hand the rules wait for nothing: that is what looking once can say.
    asked = manual or Manual(CoordinationMode.DISTRIBUTED)
    best = decide(State(), Facts(shared.contact, local.contact, asked), 0.0).mode
    return {
        "mode": best.value, "reason": _reason(best, shared.contact, local.contact, manual),
        "manual": None if manual is None else {
            "mode": manual.mode.value, "reason": manual.reason, "until": manual.until_ms},
        "switch_error": trouble,
        "transitions": [{"from": t.old, "to": t.new, "reason": t.reason, "at": t.at, "by": t.by}
                        for t in shared.history or local.history]}


async def _look(runtime: Runtime, name: str, url: str | None, keys: Keys, missing: str) -> Looked:
    """Ask a Redis once; bounded by what connecting may take."""
    if url is None:
        return Looked(Contact(up=False, cause=missing))
    link = Link(name, url, runtime.dial, lambda _: None)
    async with asyncio.TaskGroup() as group:
        group.create_task(link.run())
        await link.tried()
        try:
            looked = Looked(Contact(up=True), await read_history(link, keys, SHOWN)) if link.up else \
                Looked(Contact(up=False, cause=link.cause))
        except LogError as error:
            looked = Looked(Contact(up=link.up, cause=str(error)))
        link.close()
    return looked


def _manual(runtime: Runtime, home: str) -> tuple[Manual | None, str]:
    """The switch by hand, or what is wrong with its file."""
    try:
        return read_switch(runtime.fs, home, runtime.uid, runtime.wall_ms()).manual, ""
    except (HomeRefused, InvalidSetting) as error:
        return None, str(error)


def _reason(best: CoordinationMode, shared: Contact, local: Contact, manual: Manual | None) -> str:
    hand = f"by hand: {manual.reason or 'no reason given'}; " if manual else ""
    if manual is not None and manual.mode is best:
        return hand.removesuffix("; ")
    if best is CoordinationMode.DISTRIBUTED:
        return f"{hand}the shared Redis answers"
    found = [] if shared.up else [f"shared Redis: {shared.cause}"]
    found += ["the local Redis answers"] if best is CoordinationMode.DEGRADED else \
        ([] if local.up else [f"local Redis: {local.cause}"])
    return hand + "; ".join(found)


def _until(until: object) -> str:
    return f" until {time_of(until)}" if isinstance(until, int) else ""


def _report(facts: dict[str, Any]) -> str:
    manual = facts["manual"]
    hand = facts["switch_error"] or "none"
    if manual is not None:
        hand = f"{manual['mode']}{_until(manual['until'])}  {manual['reason']}".rstrip()
    transitions = [f"{time_of(t['at'])}  {t['from']} → {t['to']}  {t['by']}  {t['reason']}" for t in facts["transitions"]]
    lines = [f"mode    {facts['mode']}", f"reason  {facts['reason']}", f"manual  {hand}",
             *section("last changes", transitions)]
    return "\n".join(map(printable, lines))
