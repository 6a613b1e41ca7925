"""The network of a schedule: one proxy for each process, in a thread of its own, between it and the server of the moment."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from lemegeton.testing.proxy import Proxy, Target

ANSWER_S = 10.0


class Network:
    """Proxies by name.  Every switch returns when it is done; use it with ``with``."""

    def __init__(self, directory: Path, target: Target, names: list[str]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)
        self._stack = AsyncExitStack()
        self.proxies = {name: Proxy(target, path=str(directory / f"{number}")) for number, name in enumerate(names)}

    def __enter__(self) -> Network:
        self._thread.start()
        self._run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ANSWER_S)
        self._loop.close()

    async def _open(self) -> None:
        for proxy in self.proxies.values():
            await self._stack.enter_async_context(proxy)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(ANSWER_S)

    def url(self, name: str) -> str:
        """Where a process finds the server."""
        return self.proxies[name].url

    def do(self, names: list[str], switch: Callable[[Proxy], None]) -> None:
        """Turn a switch of these proxies."""

        async def work() -> None:
            for name in names:
                switch(self.proxies[name])

        self._run(work())

    def cut(self, names: list[str]) -> None:
        """No connection lives, none is made."""

        def switch(proxy: Proxy) -> None:
            proxy.refuse()
            proxy.kill()

        self.do(names, switch)

    def reset(self, names: list[str]) -> None:
        """Connections that are there end, with a reset."""
        self.do(names, Proxy.kill)

    def heal(self, names: list[str]) -> None:
        """Everything passes."""
        self.do(names, Proxy.heal)

    def lead_to(self, target: Target) -> None:
        """There is another server now."""

        def switch(proxy: Proxy) -> None:
            proxy.target = target
            proxy.kill()

        self.do(list(self.proxies), switch)
