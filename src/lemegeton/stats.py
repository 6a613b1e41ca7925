"""What a bus can tell of itself at any moment."""

from __future__ import annotations

import msgspec


class Running(msgspec.Struct, frozen=True):
    """A handler that has had the same message for a while: a candidate for one that hangs."""

    subscription: str
    channel: str
    origin: str
    seq: int
    seconds: float


class SubscriptionStats(msgspec.Struct, frozen=True):
    """Counts of one subscription since it began, in records."""

    name: str
    patterns: tuple[str, ...]
    durable: bool
    chains: int
    handled: int
    redelivered: int
    copies: int
    expired: int
    failed: int
    dead: int
    corrupt: int
    missing: int


class Stats(msgspec.Struct, frozen=True):
    """Counts of one bus.

    ``loop_lag_s`` is how late the last one-second tick came and ``loop_lag_max_s`` the worst: a handler that blocks the
    event loop shows here.  ``disk_used`` is bytes of all records of the home.  ``events`` counts every event by name.
    """

    name: str
    mode: str
    origin: str | None
    published: int
    doorbell: bool
    loop_lag_s: float
    loop_lag_max_s: float
    disk_used: int
    disk_limit: int
    disk_holder: str
    waiting_publishers: int
    running: tuple[Running, ...]
    subscriptions: tuple[SubscriptionStats, ...]
    events: dict[str, int]
