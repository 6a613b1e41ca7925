"""What every verb shares: the global options, results for people or as JSON lines, and how a run ends.

::

    0  done            2  wrong usage: an argument or a setting
    1  failed          3  timed out                          130  interrupted by Ctrl-C, 143 by SIGTERM

Whatever goes wrong is one line on standard error that says what and where; a traceback is a bug.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import click

T = TypeVar("T")
DONE, FAILED, USAGE, TIMED_OUT, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143
SECONDS_MAX = 365 * 86_400.0


class Ended(Exception):
    """A verb that ends with this code and, if there is something to say, this line on standard error."""

    def __init__(self, code: int, line: str = "") -> None:
        super().__init__(line)
        self.code = code


class OutputClosed(Ended):
    """Nobody reads standard output any more."""

    def __init__(self) -> None:
        super().__init__(FAILED, "standard output was closed before everything was printed")


@dataclass(slots=True)
class Options:
    """The global options, as far as they were given."""

    home: str | None = None
    json: bool = False

    @property
    def wants_json(self) -> bool:
        """True if results are JSON lines: asked for, or nobody sits there to read anything else."""
        return self.json or not sys.stdout.isatty()

    def show(self, facts: Any, text: str, *, flush: bool = True) -> None:
        """Print a result: the facts as one JSON line, or the text."""
        put_line(to_json(facts) if self.wants_json else text.encode("utf-8", "backslashreplace"), flush=flush)


def to_json(facts: Any) -> bytes:
    """One line of JSON."""
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def put_line(line: bytes, *, flush: bool = True) -> None:
    """One line to standard output; flushed, whoever reads it has it when this returns.  `OutputClosed`: nobody does."""
    out = sys.stdout.buffer
    try:
        out.write(line + b"\n")
        if flush:
            out.flush()
    except BrokenPipeError:
        _close_output()
        raise OutputClosed from None


def flush() -> None:
    """What was put is with its reader when this returns."""
    try:
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        _close_output()
        raise OutputClosed from None


def _close_output() -> None:
    """What is still buffered goes nowhere, and the interpreter does not complain at its end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def say(line: str) -> None:
    """One line to standard error, whatever is in it; a closed standard error is nobody's concern."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"lemegeton: {printable(' '.join(line.split()))}\n")


def printable(text: str) -> str:
    """Text of somebody else, fit for a terminal: nothing in it moves the cursor or changes a colour."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run the one coroutine of a verb; Ctrl-C and SIGTERM cancel it, so that it leaves as it would leave anyway."""
    import asyncio  # a third of the time that starting takes, and not every line has work to run
    import signal

    came: list[int] = []

    async def terminable() -> T:
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"

        def terminate() -> None:
            came.append(signal.SIGTERM)
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        return await work

    try:
        return asyncio.run(terminable())
    except KeyboardInterrupt:
        raise Ended(INTERRUPTED, "interrupted") from None
    except asyncio.CancelledError:
        if not came:
            raise
        raise Ended(TERMINATED, "terminated") from None


def seconds(_: Any, __: Any, value: float | None) -> float | None:
    """An option's time if it is one; `click.BadParameter` otherwise (a range takes "nan" for a number)."""
    if value is not None and not 0 <= value <= SECONDS_MAX:
        raise click.BadParameter(f"{value} is not a number of seconds from 0 to {SECONDS_MAX:.0f}, a year")
    return value
