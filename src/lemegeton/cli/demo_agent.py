"""An agent of the demo, in a process of its own: ``python -m lemegeton.cli.demo_agent HOME NAME [REDIS_URL LOCAL_REDIS]``.

It leaves when the hub tells it to, at SIGTERM, and when its standard input ends, which is when the demo is gone.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from lemegeton.agent import BaseAgent
from lemegeton.assignment import Assignment
from lemegeton.cli.demo_work import look_into

PREFETCH = 4
HEARTBEAT_S = 1.0


class Reader(BaseAgent):
    """Its work on a file is to parse it."""

    async def work(self, assignment: Assignment) -> Any:
        return list(look_into(assignment.payload["path"]))


async def serve(home: str, name: str, redis_url: str | None = None, local_redis: str | None = None) -> None:
    """Work until there is nobody to work for."""
    agent = Reader(name, prefetch=PREFETCH, heartbeat=HEARTBEAT_S, home=home, redis_url=redis_url,
                   local_redis=local_redis)
    async with agent:
        loop = asyncio.get_running_loop()
        leaving: set[asyncio.Task[None]] = set()

        def alone() -> None:
            loop.remove_reader(0)
            leaving.add(loop.create_task(agent.stop()))

        loop.add_reader(0, alone)
        await agent.run()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
