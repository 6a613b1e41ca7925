"""What a check says when a promise was broken."""

from __future__ import annotations

from dataclasses import dataclass

from lemegeton.testing.history import Key, LaneKey


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise: its kind (see `checker`), a text for people, and what it is about."""

    kind: str
    text: str
    key: tuple[str, ...]


def where(lane: LaneKey, seq: int) -> str:
    """A position, for people."""
    return f"{lane[0]} {lane[1]}.{lane[2]}.{lane[3]}:{seq}"


def violation(kind: str, sub: str, key: Key, text: str) -> Violation:
    """What a subscription did with a message that it should not have done."""
    return Violation(kind, f"subscription {sub}, message {key[1]} on {key[0]}: {text}", (sub, *key))
