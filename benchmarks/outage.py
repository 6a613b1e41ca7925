"""What a killed Redis costs: SIGKILL while messages come, back empty a second later."""

from __future__ import annotations

import time
from pathlib import Path

from figures import SLOW_HZ
from stand import Found, Role, directory

from lemegeton.testing.servers import RedisServer

SECONDS = 5.0
PAUSE_S = 1.0
NEAR = "Redis: server SIGKILLed, until the next delivery on the same site, ms"
FAR = "Redis: server back empty, until the next delivery on the other site, ms"


def outage(root: Path, server: RedisServer, found: Found) -> None:
    """One kill: from it to the next delivery on the sender's site, and from the return to the next on the other site.

    The next delivery is that of a message which was published after the kill."""
    server.cli("FLUSHALL")
    with directory(root) as path:
        count, url = int(SLOW_HZ * SECONDS), server.url("unix")
        readers = [Role("ours.py", "subscribe", home=str(path / home), count=count, name=home, stamps=True, url=url)
                   for home in "ab"]
        writer = Role("ours.py", "publish", home=str(path / "a"), count=count, rate=SLOW_HZ, url=url)
        try:
            for role in (*readers, writer):
                role.hear()
            for role in (*readers, writer):
                role.go()
            time.sleep(PAUSE_S)
            killed = time.perf_counter_ns()
            server.kill()
            time.sleep(PAUSE_S)
            server.start()
            back = time.perf_counter_ns()
            here, there = (role.hear()["stamps"] for role in readers)
        finally:
            for role in (*readers, writer):
                role.end()
            if not server.running:
                server.start()
    found.add(NEAR, "ours", (_next(here, killed) - killed) / 1e6)
    found.add(FAR, "ours", (_next(there, killed) - back) / 1e6)


def _next(stamps: list[tuple[int, int]], after: int) -> int:
    """When the first message was handled that was published after that."""
    return min(handled for published, handled in stamps if published > after)
