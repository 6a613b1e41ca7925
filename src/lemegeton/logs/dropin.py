"""Drop-ins: any program publishes by renaming a one-message JSON file into a channel's directory.

::

    messages/{channel}/job.json  ──rename──►  job.json.{origin}.claimed  ──append to that origin's log──►  removed
                                 ──rename──►  job.json.{token}.refused     (not a message; reported, kept)

Whoever renames it first has it.  The claim names the origin, and whoever holds that origin's lock holds the claim: one
whose owner died is taken up again.  The id (the sender's, or the hash of name and bytes) makes a second copy, appended
just before a crash, one that readers drop.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable
from typing import Protocol

import msgspec

from lemegeton.channels import encode_name
from lemegeton.checkpoint import held
from lemegeton.codec import decode_foreign, draft_of, encode, with_unknown_fields
from lemegeton.errors import HomeRefused, InvalidMessage
from lemegeton.events import Observer, Refused
from lemegeton.home import Home, check_file
from lemegeton.logs.base import Position
from lemegeton.logs.segments import READ_FLAGS
from lemegeton.message import Message
from lemegeton.seams import Runtime

DROP = ".json"
CLAIMED = ".claimed"
REFUSED = ".refused"
TAKE_MAX = 256


class Append(Protocol):
    """`Log.append`."""

    def __call__(self, channel: str, body: bytes, priority: int = 1, *, made: bool = True, disk: bool = False
                 ) -> Awaitable[Position]: ...


class DropIn:
    """Takes the drop-ins of a channel into this origin's log."""

    def __init__(self, runtime: Runtime, home: Home, bytes_max: int, observe: Observer) -> None:
        self._fs = runtime.fs
        self._runtime = runtime
        self._home = home
        self._bytes_max = bytes_max
        self._observe = observe
        self._one_at_a_time = asyncio.Lock()

    @staticmethod
    def wants(name: str) -> bool:
        """True for a file that may be a drop-in, or one that somebody claimed."""
        return not name.startswith(".") and name.endswith((DROP, CLAIMED))

    async def take(self, channel: str, names: list[str], origin: str, append: Append) -> None:
        """Publish up to 256 drop-ins through the held ``origin``, in the order of their names."""
        directory = f"{self._home.messages}/{encode_name(channel)}"
        async with self._one_at_a_time:
            for name in sorted(filter(self.wants, names))[:TAKE_MAX]:
                original = name[: name.find(DROP) + len(DROP)]
                claimed = f"{directory}/{original}.{origin}{CLAIMED}"
                if self._free(name, original, origin) and self._claim(f"{directory}/{name}", claimed):
                    await self._publish(channel, directory, original, claimed, append)

    def _free(self, name: str, original: str, origin: str) -> bool:
        """True for a new drop-in, and for a claim of an origin that nobody holds or that is ours."""
        if name.endswith(DROP):
            return True
        claimer = name[len(original) + 1 : -len(CLAIMED)]
        return claimer == origin or not held(self._fs, f"{self._home.origins}/{claimer}")

    def _claim(self, path: str, claimed: str) -> bool:
        """Rename it to a name of our own; false if somebody was faster."""
        try:
            self._fs.rename(path, claimed)
        except FileNotFoundError:
            return False
        return True

    async def _publish(self, channel: str, directory: str, original: str, path: str, append: Append) -> None:
        try:
            body, message = self._read(path, original)
        except (InvalidMessage, HomeRefused, OSError) as error:
            kept = f"{original}.{self._runtime.token(4)}{REFUSED}"
            self._observe(Refused(channel, original, kept, str(error)))
            self._fs.rename(path, f"{directory}/{kept}")
            return
        await append(channel, body, message.priority, made=False)
        self._fs.unlink(path)

    def _read(self, path: str, original: str) -> tuple[bytes, Message]:
        fd = self._fs.open(path, READ_FLAGS)
        try:
            check_file(self._fs, fd, path, self._runtime.uid)
            data = self._fs.pread(fd, self._bytes_max + 1, 0)
        finally:
            self._fs.close(fd)
        message = decode_foreign(data, self._bytes_max)
        if not message.id:
            digest = hashlib.sha256(original.encode() + b"\0" + data).hexdigest()
            message = msgspec.structs.replace(message, id=f"drop-{digest[:32]}")
        message = msgspec.structs.replace(message, raw=data)
        return with_unknown_fields(encode(draft_of(message), self._bytes_max), message, self._bytes_max), message


