"""What there is in a home, told without changing anything: the system that wrote it may be dead, or somebody else's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from lemegeton.channels import DEAD_LETTER, compile_glob, encode_name
from lemegeton.checkpoint import CheckpointView, checkpoint_names, forget, held
from lemegeton.deadletters import DeadLetters
from lemegeton.errors import HomeRefused, InvalidMessage, LemegetonError
from lemegeton.home import check_own
from lemegeton.lane import Lane
from lemegeton.logs.base import Span
from lemegeton.modes import CoordinationMode
from lemegeton.osfs import OsFs
from lemegeton.site import FileSite, open_site

LOCK = ".lock"
NO_SITE = "0" * 12


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel: its lanes, the records they can supply, and the bytes of its directory."""

    channel: str
    lanes: int
    records: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Place:
    """A durable subscription, and how many records of each channel it has not settled."""

    name: str
    patterns: tuple[str, ...]
    held: bool
    seen_ms: int
    backlog: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Survey:
    """Everything `status` shows."""

    home: str
    site: str
    mode: str
    records: int
    bytes: int
    channels: list[Channel]
    subscriptions: list[Place]
    origins: dict[str, bool]
    """Whether a live process holds each origin."""
    dead_letters: dict[str, int]

    def facts(self) -> dict[str, Any]:
        """The survey as JSON has it."""
        return asdict(self)


async def open_existing(home: str | None) -> FileSite:
    """The site of a home that is there; nothing is made."""
    return await open_site("cli-look", None, {"home": home}, lambda _: None, 0.0, create=False)


async def survey(site: FileSite, redis_answers: bool = False) -> Survey:
    """Look at everything once."""
    spans = await _spans(site)
    mode = CoordinationMode.DISTRIBUTED if redis_answers else CoordinationMode.ISOLATED
    channels = [_channel(site, channel, lanes) for channel, lanes in sorted(spans.items())]
    return Survey(
        home=site.home.path, site="" if site.home.site == NO_SITE else site.home.site,
        mode=mode.value, records=sum(c.records for c in channels),
        bytes=sum(c.bytes for c in channels), channels=channels, subscriptions=places(site, spans),
        origins=_origins(site),
        dead_letters={DEAD_LETTER + channel: count
                      for channel, count in sorted((await DeadLetters(site, "").counts()).items())})


async def _spans(site: FileSite) -> dict[str, dict[Lane, Span]]:
    found: dict[str, dict[Lane, Span]] = {}
    for channel in await site.log.channels():
        lanes = await site.log.lanes(channel)
        found[channel] = {lane: await site.log.span(lane) for lane in lanes}
    return found


def _channel(site: FileSite, channel: str, spans: dict[Lane, Span]) -> Channel:
    records = sum(max(0, span.last - span.first + 1) for span in spans.values())
    return Channel(channel, len(spans), records, _bytes_in(f"{site.home.messages}/{encode_name(channel)}"))


def _bytes_in(directory: str) -> int:
    total = 0
    with suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_size
    return total


def places(site: FileSite, spans: dict[str, dict[Lane, Span]]) -> list[Place]:
    """The durable subscriptions; one whose header is damaged, or that is no file of ours, is shown with no patterns."""
    fs = OsFs()
    found: list[Place] = []
    for name in sorted(checkpoint_names(fs, site.home.cursors)):
        with suppress(FileNotFoundError):  # dropped while we look
            found.append(_place(fs, f"{site.home.cursors}/{name}", name, spans))
    return found


def _place(fs: OsFs, path: str, name: str, spans: dict[str, dict[Lane, Span]]) -> Place:
    try:
        check_own(fs, path, os.geteuid())
    except HomeRefused:
        return Place(name, (), False, 0)
    view = CheckpointView(fs, path)
    try:
        header = view.header()
        view.refresh()
        if header is None:
            return Place(name, (), held(fs, path), 0)
        backlog = {channel: behind for channel, lanes in _matching(header.patterns, spans)
                   if (behind := _behind(view, lanes))}
        return Place(header.name, header.patterns, held(fs, path), header.seen_ms, backlog)
    finally:
        view.close()


def _matching(
    patterns: tuple[str, ...], spans: dict[str, dict[Lane, Span]]
) -> Iterable[tuple[str, dict[Lane, Span]]]:
    matchers = [compile_glob(pattern) for pattern in patterns]
    return ((channel, lanes) for channel, lanes in spans.items() if any(matches(channel) for matches in matchers))


def _behind(view: CheckpointView, lanes: dict[Lane, Span]) -> int:
    return sum(max(0, span.last - max(view.settled(lane), span.first - 1)) for lane, span in lanes.items())


def _origins(site: FileSite) -> dict[str, bool]:
    fs = OsFs()
    names = (name.removesuffix(LOCK) for name in sorted(fs.listdir(site.home.origins)) if name.endswith(LOCK))
    return {name: held(fs, f"{site.home.origins}/{name}") for name in names}


async def surveyed_places(home: str | None) -> list[Place]:
    """The durable subscriptions of a home, with their backlog."""
    site = await open_existing(home)
    try:
        return places(site, await _spans(site))
    finally:
        await site.aclose()


async def drop_place(home: str | None, name: str) -> None:
    """Forget a durable subscription that nobody holds; an error says why it could not be."""
    site = await open_existing(home)
    try:
        path = f"{site.home.cursors}/{encode_name(name)}"
        if not os.path.lexists(path):
            raise InvalidMessage(f"subscription {name!r}: there is none of this name; see lemegeton subs list")
        if not forget(OsFs(), path):
            raise LemegetonError(f"subscription {name!r}: a live process holds it; end that one first")
    finally:
        await site.aclose()
