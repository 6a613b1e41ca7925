"""An agent whose work is a command of the shell: payload in, result out, its code says how it went."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from typing import Any

from lemegeton.agent import BaseAgent
from lemegeton.assignment import Assignment
from lemegeton.within import within

OUTPUT_BYTES_MAX = 1024 * 1024
"""What a command may print as its result: what a message may hold, unless `max_message_bytes` says otherwise."""
ERROR_BYTES = 1000
"""So much of the end of its standard error goes into the report of a failure."""
END_S = 2.0


class CommandAgent(BaseAgent):
    """Runs ``command`` once an assignment.

    The payload is its standard input as JSON.  What it prints is the result: JSON if it is that, else text.
    ``LEMEGETON_ASSIGNMENT`` and ``LEMEGETON_ATTEMPT`` are in its environment.  When the work is cancelled the command
    and everything it began in its process group is ended.
    """

    def __init__(self, name: str, command: str, **settings: Any) -> None:
        super().__init__(name, **settings)
        self._command = command

    async def work(self, assignment: Assignment) -> Any:
        environ = {**os.environ, "LEMEGETON_ASSIGNMENT": assignment.id, "LEMEGETON_ATTEMPT": str(assignment.attempt)}
        process = await _begin(self._command, environ)
        try:
            out, said = await _talk(process, json.dumps(assignment.payload).encode())
            code = await process.wait()
        finally:
            await _end(process)
        if code:
            raise RuntimeError(_why(code, said))
        return _result(out)


async def _begin(command: str, environ: dict[str, str]) -> Process:
    """A command that was begun is known here even if this is cancelled meanwhile: then it is ended."""
    beginning = asyncio.ensure_future(asyncio.create_subprocess_shell(
        command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environ, start_new_session=True))
    try:
        return await asyncio.shield(beginning)
    except asyncio.CancelledError:
        await _end(await beginning)
        raise


async def _talk(process: Process, payload: bytes) -> tuple[bytes, bytes]:
    """Give it the payload and read what it prints, all side by side, so that neither waits for the other."""
    assert process.stdin, "all three are pipes"
    assert process.stdout, "all three are pipes"
    assert process.stderr, "all three are pipes"
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_give(process.stdin, payload))
            out = group.create_task(_all_of(process.stdout))
            said = group.create_task(_end_of(process.stderr))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return out.result(), said.result()


async def _give(stdin: asyncio.StreamWriter, payload: bytes) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # it need not read what it is given
        stdin.write(payload + b"\n")
        await stdin.drain()
    stdin.close()


async def _all_of(stdout: asyncio.StreamReader) -> bytes:
    """Everything, up to one byte more than is allowed: then it is too much."""
    taken = bytearray()
    while len(taken) <= OUTPUT_BYTES_MAX and (data := await stdout.read(65536)):
        taken += data
    if len(taken) > OUTPUT_BYTES_MAX:
        raise ValueError(f"the command printed more than {OUTPUT_BYTES_MAX} bytes")
    return bytes(taken)


async def _end_of(stderr: asyncio.StreamReader) -> bytes:
    """The end of what it says; all of it is passed on."""
    kept = b""
    while data := await stderr.read(65536):
        with suppress(OSError, ValueError):
            sys.stderr.buffer.write(data)
            sys.stderr.flush()
        kept = (kept + data)[-ERROR_BYTES:]
    return kept


async def _end(process: Process) -> None:
    """It has ended when this returns, if need be by force, with its process group."""
    if process.returncode is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(TimeoutError):
            async with within(END_S):
                await asyncio.gather(_discard(process.stdout), _discard(process.stderr), process.wait())
            return


async def _discard(stream: asyncio.StreamReader | None) -> None:
    """Read to the end: a process counts as ended only when its pipes are."""
    while stream is not None and await stream.read(65536):
        pass


def _why(code: int, said: bytes) -> str:
    text = said.decode("utf-8", "replace").strip()
    how = f"ended by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"the command {how}" + (f": {text}" if text else "")


def _result(out: bytes) -> Any:
    text = out.decode("utf-8", "replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text.rstrip("\n")
