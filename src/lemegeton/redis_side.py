"""The Redis side of a site: everything that reaches out, put together for one bus.

::

    own log ──► relay ──► shared Redis ──► RedisLog ──► subscriptions here     (other sites)
          └───► relay ──► local Redis                                          (other programs of this host, meanwhile)
    CoordinationModeManager   names the best of them
    Bridge                    what one process does for the whole site
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from lemegeton.backlog import Backlog
from lemegeton.bridge import Bridge
from lemegeton.config import Settings
from lemegeton.errors import LogError, NotReached, RedisLost, RedisRefused
from lemegeton.events import Observer
from lemegeton.home import Home, check_directory
from lemegeton.lane import Lane
from lemegeton.local_redis import LocalRedis
from lemegeton.logs.base import Position, Replica
from lemegeton.logs.file import FileLog
from lemegeton.logs.joined import JoinedLog
from lemegeton.logs.redis import RedisLog
from lemegeton.logs.redis_entries import Keys
from lemegeton.logs.redis_link import Link
from lemegeton.logs.redis_replica import PubSubReplica, RedisReplica
from lemegeton.modes import CoordinationModeManager
from lemegeton.relay import Relay, Told
from lemegeton.relaying import Accepted, Relaying, open_marks
from lemegeton.resending import taken_of
from lemegeton.seams import Runtime
from lemegeton.within import within

FIRST_TRY_S = 2.0
"""How long `start` waits for the first attempt to connect, so that a bus usually begins in the mode it will stay in."""
LEAVE_S = 2.0
"""How long `stop` waits for the relay."""
LOCAL_AFTER_S = 0.5
"""How long the shared Redis may be away before the local one is asked for."""
LOCAL_AGAIN_S = 5.0
LOCAL_MEND_S = (0.5, 8.0)
"""The first and the longest time between two looks at whether it still answers; doubled while it does not."""
LINGER_S = 30.0
"""How long the local Redis is kept once the shared one is back: it may go again."""
WAITAOF_MS = 2000


class RedisSide:
    """Both Redises of one bus: links, relays, the log of what other sites brought, modes."""

    def __init__(self, runtime: Runtime, home: Home, name: str, settings: Settings, files: FileLog, observe: Observer
                 ) -> None:
        assert settings.redis_url is not None, "without a URL there is nothing to reach"
        with suppress(FileExistsError):
            runtime.fs.mkdir(f"{home.path}/redis", 0o700)
        check_directory(runtime.fs, f"{home.path}/redis", runtime.uid)
        self._runtime = runtime
        self._home = home
        self._settings = settings
        self._files = files
        self._observe = observe
        self._accepted: Accepted | None = None
        self._forks: set[Lane] = set()
        self._closing = asyncio.Event()
        self._backlog = Backlog(settings.max_pending_messages, files.room.hold)
        self.keys = Keys(settings.namespace)
        self.link = Link("shared", settings.redis_url, runtime.dial, observe)
        self.modes = CoordinationModeManager(self.link, None, home=home.path, settings=settings, name=name,
                                             site=home.site, observe=observe, runtime=runtime)
        self._redis_log = RedisLog(self.link, self.keys, home.site, observe, gap_timeout_s=settings.gap_timeout,
                                   life=runtime.token(6), bytes_max=settings.max_message_bytes, token=runtime.token)
        self.log = JoinedLog(files, self._redis_log, home.site)
        self._relaying = self._relaying_to(self.link, self)
        self._bridge = Bridge(
            runtime, home, settings, files, self.link, self.keys,
            lambda told: self._relay_to(self.link, told), files.own_lanes, self._paused, observe)
        self._local = LocalRedis(runtime, home.path, settings.local_redis, observe)
        self._local_relaying: Relaying | None = None
        files.tell(self._appended)

    def _relay_to(self, link: Link, told: Told) -> Relay:
        replica: Replica = PubSubReplica(link, self.keys)
        if self._settings.persist_messages:
            replica = RedisReplica(link, self.keys, self._settings.max_stream_length, self._runtime.wall_ms)
        return Relay(self._files, replica, told, self._observe, wall_ms=self._runtime.wall_ms,
                     forked=self._forked if link is self.link else lambda lane: None)

    def _relaying_to(self, link: Link, told: Told) -> Relaying:
        return Relaying(self._relay_to(link, told), link, self._files.own_lanes, self._paused, self._observe)

    def _paused(self) -> bool:
        return self.modes.relay_paused

    def _appended(self, lane: Lane) -> None:
        self._backlog.written(lane, self._files.last_of(lane), self.get(lane))
        self._relaying.appended(lane)
        if self._local_relaying is not None:
            self._local_relaying.appended(lane)

    # ------------------------------------------------------------------------------------------ what was accepted

    @property
    def marks(self) -> Accepted:
        """How far our own lanes were accepted; the file is opened with the first record, when the origin is known."""
        if self._accepted is None:
            origin = self._files.origin
            assert origin is not None, "only what was written is relayed"
            self._accepted = Accepted(open_marks(
                self._runtime.fs, f"{self._home.path}/redis", origin, self._runtime.boot_id, self._runtime.wall_ms()))
        return self._accepted

    def get(self, lane: Lane) -> int:
        """See `relay.Told`."""
        return self.marks.get(lane)

    def put(self, lane: Lane, seq: int) -> None:
        """See `relay.Told`."""
        self.marks.put(lane, seq)
        self._backlog.accepted(lane, seq)

    def _forked(self, lane: Lane) -> None:
        """Somebody else grew this lane from the same point: ours goes on under another incarnation."""
        self._forks.add(lane)

    async def tick(self) -> None:
        """Once a second: mend what was found meanwhile."""
        self._forks.intersection_update(self._files.own_lanes())  # of those we help, their own writer sees it as well
        for lane in list(self._forks):
            common = max(self.get(lane), await taken_of(self._files, self.link, self.keys, lane))
            places = await self._files.begin_again(lane, "the mark in the shared Redis is not a record of this log", common)
            self.marks.moved(lane, places)
            self._forks.discard(lane)
        lanes = frozenset(self._files.own_lanes())  # a lane also begins again when its segment was removed
        self._backlog.only(lanes)
        if self._accepted is not None:
            self._accepted.only(lanes)

    # ------------------------------------------------------------------------------------------ life

    async def start(self, group: asyncio.TaskGroup) -> None:
        """Serve; returns after the first attempt to connect, at the latest after 2 s."""
        for serve in (self.link.run, self._redis_log.run, self._relaying.run, self._bridge.run, self.modes.run,
                      self._keep_local):
            group.create_task(serve())
        with suppress(TimeoutError):
            async with within(FIRST_TRY_S):
                await self.link.tried()

    async def _keep_local(self) -> None:
        """Have the local Redis while the shared one is away, and some seconds longer."""
        await self.link.tried()
        while not self._closing.is_set():
            if not await self._stays(False, LOCAL_AFTER_S):
                continue
            url = await self._local.join()
            if url is None:
                await _comes(self._closing, LOCAL_AGAIN_S if self._settings.local_redis == "auto" else None)
                continue
            await self._serve_local(Link("local", url, self._runtime.dial, self._observe))

    async def _serve_local(self, link: Link) -> None:
        """Relay to it, and let it be named, until the shared one has been back for a while."""
        relaying = self._local_relaying = self._relaying_to(link, Quiet(self))
        self.modes.use_local(link)
        async with asyncio.TaskGroup() as group:
            group.create_task(link.run())
            group.create_task(relaying.run())
            over = asyncio.Event()
            group.create_task(self._mend_local(link, over))
            while not self._closing.is_set() and not await self._stays(True, LINGER_S):
                pass
            over.set()
            self._local_relaying = None
            relaying.close()
            link.close()
        self.modes.use_local(None)
        await self._local.leave()

    async def _mend_local(self, link: Link, over: asyncio.Event) -> None:
        """Have it begun again in the same place whenever it was ended behind our back, until ``over``."""
        pause_s, longest_s = LOCAL_MEND_S
        while not await _comes(over, pause_s):
            if link.up:
                pause_s = LOCAL_MEND_S[0]
                continue
            await self._local.join()
            pause_s = min(longest_s, pause_s * 2)

    async def _stays(self, up: bool, seconds: float) -> bool:
        """True if the shared Redis is up (or down) and stays so for so long; returns early where it is not."""
        changed = asyncio.Event()
        end = self.link.on_change(lambda _: changed.set())
        try:
            closing, change = (asyncio.ensure_future(event.wait()) for event in (self._closing, changed))
            done, left = await asyncio.wait((closing, change), timeout=seconds if self.link.up is up else None,
                                            return_when=asyncio.FIRST_COMPLETED)
            for task in left:
                task.cancel()
            return not done
        finally:
            end()

    async def reach(self, position: Position, level: str) -> Position:
        """Return when the shared Redis has the record (``redis``), or has it on its disk (``redis-disk``), with its place."""
        position = await self.marks.reached(position.lane, position.seq)
        if level != "redis-disk":
            return position
        where = f"publish to {position.lane.channel}: the shared Redis has the message"
        try:
            synced = await self.link.call("WAITAOF", 1, 0, WAITAOF_MS)
        except (RedisRefused, RedisLost) as error:
            raise NotReached(f"{where}, and cannot say that its disk has: {error}") from None
        if not synced[0]:
            raise NotReached(f"{where}, its disk had not within {WAITAOF_MS} ms (appendonly, appendfsync)")
        return position

    async def leave(self) -> bool:
        """Give the relay a moment; false if the shared Redis still lacks something of ours."""
        if not self._relaying.idle:
            with suppress(TimeoutError):
                async with within(LEAVE_S):
                    while not self._relaying.idle:
                        await asyncio.sleep(0.005)
        return self._relaying.idle

    def close(self) -> None:
        """Have every task return."""
        self._closing.set()
        self._relaying.close()
        self._bridge.close()
        self._redis_log.close()
        self.modes.close()
        self.link.close()
        if self._accepted is not None:
            self._accepted.close()

    async def sweep_when_up(self) -> bool:
        """Relay everything of this site once; true if the shared Redis has it all then."""
        if not self.link.up:
            return False
        try:
            return not await self._bridge.sweep() and self._relaying.idle
        except LogError:
            return False


async def _comes(event: asyncio.Event, seconds: float | None) -> bool:
    """True if it is set within this time (None: whenever it is)."""
    with suppress(TimeoutError):
        async with within(seconds):
            await event.wait()
    return event.is_set()


class Quiet:
    """What the local Redis accepted counts as told, and as nothing else: nobody who waits for the shared one is woken."""

    def __init__(self, side: RedisSide) -> None:
        self._side = side

    def get(self, lane: Lane) -> int:
        return self._side.marks.get(lane)

    def put(self, lane: Lane, seq: int) -> None:
        self._side.marks.note(lane, seq)

