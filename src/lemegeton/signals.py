"""Signals: what ends a process that serves."""

from __future__ import annotations

import asyncio
import signal

ENDING = (signal.SIGINT, signal.SIGTERM)


async def until_signalled() -> None:
    """Return when SIGINT or SIGTERM comes; before and after that they do what they do otherwise."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    for number in ENDING:
        loop.add_signal_handler(number, came.set)
    try:
        await came.wait()
    finally:
        for number in ENDING:
            loop.remove_signal_handler(number)
