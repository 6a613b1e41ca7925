"""The janitor: one process of a site cleans up for all of them.

Whoever holds ``janitor.lock`` lists every channel, asks `retention.plan`, removes, and leaves the count of bytes in the
lock file for the others.  It needs no origin's lock: a segment that is followed by another is never written to again.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

from lemegeton.channels import compile_glob
from lemegeton.checkpoint import CheckpointView, Header, checkpoint_names, forget, held
from lemegeton.checksum import crc32
from lemegeton.config import Settings
from lemegeton.events import Observer, SubscriptionExpired
from lemegeton.home import OWN_FILE, Home, read_file
from lemegeton.lane import Chain, Lane, chain_of
from lemegeton.logs.origin import site_of
from lemegeton.logs.reader import Reader
from lemegeton.retention import Holder, Plan, Policy, SegmentInfo, plan
from lemegeton.seams import Runtime
from lemegeton.segment import LINE_OVERHEAD, NUMBER_MAX
from lemegeton.sharing import STATE_FILE, RemoteState, decode_state

UNRELAYED = "the shared Redis, which has not taken it yet"
_RECORD = 512


class Holders:
    """The durable subscriptions of a site, read from their checkpoints without holding them."""

    def __init__(self, runtime: Runtime, home: Home) -> None:
        self._fs = runtime.fs
        self._directory = home.cursors
        self._views: dict[str, CheckpointView] = {}

    def refresh(self) -> list[Holder]:
        """Look at every checkpoint again.  One whose header cannot be read holds everything."""
        names = set(checkpoint_names(self._fs, self._directory))
        for gone in self._views.keys() - names:
            self._views.pop(gone).close()
        return [holder for name in sorted(names) if (holder := self._holder(name)) is not None]

    def _holder(self, name: str) -> Holder | None:
        path = f"{self._directory}/{name}"
        try:
            view = self._views.get(name)
            if view is not None and self._fs.lstat(path).st_ino != view.inode:
                self._views.pop(name).close()
                view = None
            if view is None:
                view = self._views[name] = CheckpointView(self._fs, path)
            header = view.header()
            view.refresh()
        except FileNotFoundError:
            return None
        if header is None:
            return Holder(name, lambda _: True, view.settled) if view.begun() else None
        matchers = [compile_glob(pattern) for pattern in header.patterns]
        return Holder(header.name, lambda channel: any(m(channel) for m in matchers), view.settled)

    def headers(self) -> dict[str, Header]:
        """The readable headers of the last look, by file name."""
        found = ((name, view.header()) for name, view in sorted(self._views.items()))
        return {name: header for name, header in found if header is not None}

    def durable(self) -> list[tuple[str, Header, dict[Lane, int]]]:
        """Name, header and settled sequences of every subscription of the last look."""
        return [(header.name, header, self._views[file].all_settled()) for file, header in self.headers().items()]

    def names(self) -> set[str]:
        """The names of the last look."""
        return {header.name for header in self.headers().values()}

    def close(self) -> None:
        """Let all checkpoints go."""
        for view in self._views.values():
            view.close()
        self._views.clear()


class Janitor:
    """Cleans up while it holds the site's janitor lock, and knows the count of bytes when it does not."""

    def __init__(self, runtime: Runtime, home: Home, settings: Settings, observe: Observer) -> None:
        self._runtime = runtime
        self._fs = runtime.fs
        self._home = home
        self._observe = observe
        self._abandoned_ms = round(settings.abandoned_after * 1000)
        self._policy = Policy(
            settings.disk_budget, round(settings.message_max_age * 1000), round(settings.dead_letter_max_age * 1000),
            settings.delete_processed_messages, settings.disk_limit,
        )
        self._relays = settings.redis_url is not None and settings.persist_messages
        self._fd = -1
        self._holds = False
        self._holders = Holders(runtime, home)
        self._reader = Reader(runtime.fs, home, runtime.uid, observe, open_files=1,
                              line_bytes_max=settings.max_message_bytes + LINE_OVERHEAD)

    def tick(self) -> tuple[int, str] | None:
        """Bytes in use and the subscription that holds most of them; cleans up first if this process is the janitor.

        None while no janitor has counted yet.  Safe to run in a thread: it shares nothing with the log."""
        counted = self.counted()
        self._holds = self._holds or self._fs.lock(self._fd)
        if not self._holds:
            return counted
        holders = self._holders.refresh()
        self._expire_subscriptions()
        elsewhere, relayed = self._elsewhere() if self._relays else ([], None)
        decided = plan(self._segments(), [*holders, *elsewhere], self._runtime.wall_ms(), self._policy, relayed)
        self._remove(decided)
        self._fs.pwrite(self._fd, _format(decided), 0)
        return decided.used, decided.holder

    def _elsewhere(self) -> tuple[list[Holder], Holder]:
        """The subscriptions of other sites and the shared Redis, as the site's bridge saw them last."""
        state = RemoteState()
        with suppress(FileNotFoundError):
            state = decode_state(read_file(self._fs, f"{self._home.path}/{STATE_FILE}", self._runtime.uid))
        return state.as_holders(), Holder(UNRELAYED, lambda _: True, lambda lane: (
            state.accepted(lane) if site_of(lane.origin) == self._home.site else NUMBER_MAX))

    def counted(self) -> tuple[int, str] | None:
        """What the last janitor of this site counted."""
        if self._fd < 0:
            self._fd = self._fs.open(f"{self._home.path}/janitor.lock", OWN_FILE, 0o600)
        return _parse(self._fs.pread(self._fd, _RECORD, 0))

    def _segments(self) -> list[SegmentInfo]:
        """Every segment of the home; the listing of a lane's directory is as new as this call."""
        found: list[SegmentInfo] = []
        for channel in self._reader.channels():
            self._reader.look(channel)
            lanes = self._reader.lanes(channel)
            last_inc: dict[Chain, int] = {}
            for lane in lanes:
                last_inc[chain_of(lane)] = max(lane.inc, last_inc.get(chain_of(lane), 0))
            for lane in lanes:
                newest = lane.inc == last_inc[chain_of(lane)]
                found.extend(self._of_lane(lane, newest and self._goes_on(lane.origin)))
        return found

    def _goes_on(self, origin: str) -> bool:
        """True unless nobody can ever append as this origin again: one of another site, in a home that was copied."""
        return site_of(origin) == self._home.site or held(self._fs, f"{self._home.origins}/{origin}")

    def _of_lane(self, lane: Lane, newest: bool) -> list[SegmentInfo]:
        firsts = self._reader.segments(lane)
        infos = [self._info(lane, first, following - 1, final=False) for first, following in pairwise(firsts)]
        if newest:
            infos.append(self._info(lane, firsts[-1], firsts[-1] - 1, final=True))
        else:
            infos.append(self._info(lane, firsts[-1], self._last_of(lane, firsts[-1]), final=False))
        return [info for info in infos if info is not None]

    def _last_of(self, lane: Lane, first: int) -> int:
        """The last sequence of an incarnation that is over."""
        return max(first - 1, self._reader.last(lane))

    def _info(self, lane: Lane, first: int, last: int, *, final: bool) -> SegmentInfo | None:
        with suppress(FileNotFoundError):
            found = self._fs.lstat(self._reader.path(lane, first))
            return SegmentInfo(lane, first, last, found.st_size, round(found.st_mtime * 1000), final)
        return None

    def _remove(self, decided: Plan) -> None:
        for segment in decided.remove:
            with suppress(FileNotFoundError):
                self._fs.unlink(self._reader.path(segment.lane, segment.first))

    def _expire_subscriptions(self) -> None:
        """Drop the places of subscriptions that nobody has held for longer than ``abandoned_after``."""
        now_ms = self._runtime.wall_ms()
        for name, header in self._holders.headers().items():
            path = f"{self._home.cursors}/{name}"
            idle_ms = now_ms - header.seen_ms
            if idle_ms > self._abandoned_ms and not held(self._fs, path):
                forget(self._fs, path)
                self._observe(SubscriptionExpired(header.name, idle_ms / 1000))

    def close(self) -> None:
        """Let the lock go; another process becomes the janitor."""
        self._holders.close()
        self._reader.close()
        if self._fd >= 0:
            self._fs.close(self._fd)
            self._fd, self._holds = -1, False


def _format(decided: Plan) -> bytes:
    text = f"{decided.used} {decided.holder}".encode()[: _RECORD - 10]
    return (b"%08x %b" % (crc32(text), text)).ljust(_RECORD)


def _parse(data: bytes) -> tuple[int, str] | None:
    text = data[9:].rstrip()
    if data[:9] != b"%08x " % crc32(text):
        return None
    used, _, holder = text.decode("utf-8", "replace").partition(" ")
    return int(used), holder
