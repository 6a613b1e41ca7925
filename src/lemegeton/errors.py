"""Every error the library raises, in one tree.

    LemegetonError
    ├── InvalidMessage      a message, channel, pattern or name that breaks a rule of the envelope
    ├── InvalidSetting      a setting with a value it cannot have
    ├── BusClosed           the bus (or log) was used before start, after stop, or in a forked child
    ├── HomeRefused         the home directory, or something in it, is not safe or not usable
    ├── NameTaken           another live process holds this durable subscription
    ├── LogError            the log could not do what was asked
    │   ├── BusFull         a limit is reached; names what holds the records in place
    │   ├── DiskFull        the disk refused the bytes
    │   ├── PositionLost    records behind this position are gone; carries the span that is left
    │   ├── RedisLost       the connection ended before the answer: what was asked may have happened
    │   └── RedisRefused    the server answered with an error; ``code`` is its first word
    ├── CheckpointFull      a place could not be stored
    ├── NotReached          the message is stored and still goes, the asked level was not reached in time
    ├── NoReply             nobody replied to a request in time
    ├── RequestFailed       whoever handles a request says that it failed; carries its category
    ├── Rejected            raised by a handler: the message becomes a dead letter without another attempt
    ├── NoAgent             nobody can take this assignment
    └── AssignmentFailed    an assignment ended without a result; carries its category

Two questions that every error answers in code: may I try again, and did it happen?  ``definite`` is true when what
was asked for certainly did not happen and never will; false when it may have.
"""

from __future__ import annotations


class LemegetonError(Exception):
    """The root of all errors of this library; catch it to catch them all."""

    definite: bool = True


class InvalidMessage(LemegetonError, ValueError):
    """Refused before anything was written: the message breaks a rule of the envelope."""


class InvalidSetting(LemegetonError, ValueError):
    """Refused at start: a setting has a value it cannot have."""


class BusClosed(LemegetonError, RuntimeError):
    """The bus is not running: never started, stopped, or inherited through ``fork``."""


class HomeRefused(LemegetonError, OSError):
    """The home directory cannot be used; the text says what to mend."""


class NameTaken(LemegetonError):
    """Another live process holds the durable name; two holders would each settle half."""


class LogError(LemegetonError):
    """The log could not do what was asked."""

    def __init__(self, text: str, *, definite: bool = True) -> None:
        super().__init__(text)
        self.definite = definite


class BusFull(LogError):
    """A limit is reached and stayed so for the publish timeout; nothing was written."""


class DiskFull(LogError):
    """The disk refused the bytes; the message was not published."""


class PositionLost(LogError):
    """Records behind the asked position are gone; ``first`` and ``last`` are the sequences that are left."""

    def __init__(self, text: str, *, first: int, last: int) -> None:
        super().__init__(text)
        self.first = first
        self.last = last


class RedisLost(LogError):
    """No answer: the connection is down, or ended while the answer was under way."""

    def __init__(self, text: str, *, definite: bool = False) -> None:
        super().__init__(text, definite=definite)


class RedisRefused(LogError):
    """The server's answer is an error; ``code`` is its first word, such as READONLY, OOM, NOAUTH or NOPERM."""

    def __init__(self, text: str, *, code: str) -> None:
        super().__init__(text)
        self.code = code


class CheckpointFull(LemegetonError):
    """A place could not be stored: the disk refused the bytes or a limit is reached."""


class NotReached(LemegetonError):
    """The message is stored and still goes, but the asked level was not reached in time."""

    definite = False


class NoReply(LemegetonError, TimeoutError):
    """Nobody replied to the request within its timeout; it may have been handled all the same."""

    definite = False


class RequestFailed(LemegetonError):
    """The reply to a request says that it failed; ``category`` says why in one word, ``payload`` is that of the reply."""

    definite = False

    def __init__(self, text: str, *, category: str, payload: object = None) -> None:
        super().__init__(text)
        self.category = category
        self.payload = payload


class Rejected(LemegetonError):
    """A handler raises it: no attempt at this message can succeed, so it becomes a dead letter at once.

    ``reason`` is what the dead letter is found by, the text says more."""

    def __init__(self, text: str, *, reason: str = "rejected") -> None:
        super().__init__(text)
        self.reason = reason


class NoAgent(LemegetonError):
    """Nobody can take this assignment: no such agent, or none registered."""


class AssignmentFailed(LemegetonError):
    """An assignment ended without a result; ``category`` says why in one word."""

    def __init__(self, text: str, *, category: str) -> None:
        super().__init__(text)
        self.category = category
