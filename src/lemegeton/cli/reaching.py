"""``bridge``, and what ``status`` says of the shared Redis."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

import click

from lemegeton.bus import MessageBus
from lemegeton.checkpoint import held
from lemegeton.cli.causes import Why
from lemegeton.cli.output import FAILED, TIMED_OUT, Ended, Options, run, seconds
from lemegeton.config import without_secrets
from lemegeton.errors import LogError
from lemegeton.lane import Lane
from lemegeton.logs.base import Log
from lemegeton.logs.origin import site_of
from lemegeton.logs.redis_entries import Keys, lane_field, marks_of
from lemegeton.logs.redis_evicting import evicts
from lemegeton.logs.redis_link import Link, pairs
from lemegeton.osfs import OsFs, os_runtime
from lemegeton.site import FileSite
from lemegeton.within import within

ANSWER_S = 3.0
"""How long `status` waits for the shared Redis."""
SWEEP_AGAIN_S = 0.2


@dataclass(frozen=True, slots=True)
class Relayed:
    """How the shared Redis and this home stand to each other."""

    url: str
    up: bool
    cause: str = ""
    lag: dict[str, int] = field(default_factory=dict)
    """Records of each channel that it has not taken."""
    stranded: tuple[str, ...] = ()
    """Lanes with such records whose sender is dead: `bridge`, or any live bus of this site, brings them."""

    def lines(self) -> list[str]:
        """For people."""
        if not self.up:
            return [f"{self.url}  does not answer: {self.cause}"]
        waiting = ", ".join(f"{channel} {count}" for channel, count in self.lag.items()) or "none"
        but = f", but: {self.cause}" if self.cause else ""
        return [f"{self.url}  answers{but}; waiting for it: {waiting}", *(f"stranded: {lane}" for lane in self.stranded)]


async def relayed(site: FileSite) -> Relayed | None:
    """Ask the shared Redis; None where none is set."""
    url = site.settings.redis_url
    if url is None:
        return None
    link = Link("shared", url, os_runtime().dial, lambda _: None)
    async with asyncio.TaskGroup() as group:
        group.create_task(link.run())
        try:
            with suppress(TimeoutError):
                async with within(ANSWER_S):
                    await link.tried()
            if not link.up:
                return Relayed(without_secrets(url), False, link.cause)
            try:
                return await _lag(site, link, Relayed(without_secrets(url), True, await evicts(link)))
            except LogError as error:
                return Relayed(without_secrets(url), True, str(error))
        finally:
            link.close()


async def _lag(site: FileSite, link: Link, found: Relayed) -> Relayed:
    keys, fs, stranded = Keys(site.settings.namespace), OsFs(), []
    for channel in await site.log.channels():
        marks = marks_of(pairs(await link.call("HGETALL", keys.marks(channel))))
        for lane, missing in (await _missing(site.log, site.home.site, channel, marks)).items():
            found.lag[channel] = found.lag.get(channel, 0) + missing
            if not held(fs, f"{site.home.origins}/{lane.origin}"):
                stranded.append(str(lane))
    return Relayed(found.url, True, found.cause, lag=found.lag, stranded=tuple(stranded))


async def _missing(log: Log, site: str, channel: str, marks: dict[str, int]) -> dict[Lane, int]:
    found: dict[Lane, int] = {}
    for lane in await log.lanes(channel):
        if site_of(lane.origin) == site:
            span = await log.span(lane)
            missing = span.last - max(span.first - 1, marks.get(lane_field(lane), 0))
            if missing > 0:
                found[lane] = missing
    return found


@click.command()
@click.option("--timeout", metavar="S", type=float, callback=seconds, default=30.0, show_default=True,
              help="Give up after S seconds; exit 3.")
@click.pass_obj
def bridge(options: Options, timeout: float) -> None:
    """Bring everything of this site that the shared Redis lacks to it, also of senders that are dead, then end."""
    brought = run(_bridge(options, timeout))
    options.show({"relayed": brought}, "the shared Redis has everything of this site")


async def _bridge(options: Options, timeout_s: float) -> bool:
    bus = MessageBus("bridge", home=options.home)
    why = Why(bus)
    async with bus:
        site = bus.site
        assert isinstance(site, FileSite), "a bus without a given site has a home on disk"
        if site.redis is None:
            raise Ended(FAILED, "bridge: no redis_url is set; give --redis-url or LEMEGETON_REDIS_URL")
        try:
            async with within(timeout_s):
                while not await site.redis.sweep_when_up():
                    await asyncio.sleep(SWEEP_AGAIN_S)
        except TimeoutError:
            raise Ended(TIMED_OUT, f"bridge: not everything was taken within {timeout_s} s{why}") from None
    return True
