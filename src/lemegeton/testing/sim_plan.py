"""Plans: what a seed decides before the simulation begins.

Everything is drawn up front, each fault with a seed of its own, so that a fault can be left out and the others stay what
they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

HEAL_S = 60.0
"""When the last fault is healed."""
QUIET_S = 15.0
"""Within which everything acknowledged has to be delivered after that."""
LONG = "long-" + "x" * 150
CHANNELS = ("hub", "agent-a", "agent-b", "news:eu", "Äpfel")
PATTERNS: tuple[tuple[str, ...], ...] = (("hub",), ("agent-a",), ("agent-*",), ("*",), ("hub", "news:*"), ("[Äh]*",),
                                         ("agent-b", "hub"))
MESSAGE_BYTES_MAX = 4096
FAULTS_MIN, FAULTS_MAX = 6, 25
SHARED_URL = "redis://shared"
"""Where the simulated Redis of all sites is."""


@dataclass(frozen=True, slots=True)
class SubSpec:
    """A subscription of a process; ``name`` is None for an ephemeral one."""

    name: str | None
    patterns: tuple[str, ...]
    start: str
    handler_s: float


@dataclass(slots=True)
class Send:
    """A message that a process will publish.  ``tag`` is its name in the history, and its id if that is ``given``."""

    at: float
    tag: str
    channel: str
    given: bool
    priority: int
    ttl: float | None
    ack: str
    size: int
    together: bool
    """Published beside others, in a task of its own, instead of one after the other."""
    tries: int = 1
    timeout: float = 0.0
    """Above 0: it is a request, and so long its sender waits for the reply."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A process: the name of its bus, what it listens to and what it sends."""

    name: str
    bus: str
    begins: float
    subs: tuple[SubSpec, ...]
    sends: tuple[Send, ...]
    settings: Mapping[str, Any]
    origin_wait_s: float


@dataclass(frozen=True, slots=True)
class SiteSpec:
    """A site: a home on a disk of its own."""

    name: str
    processes: tuple[ProcessSpec, ...]
    drop_ins: tuple[tuple[float, str, str], ...]
    """When, on which channel, with which id."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: its place in the plan, when it strikes, its kind, and the seed of all that is random in it."""

    number: int
    at: float
    kind: str
    seed: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything about a run."""

    seed: int
    sites: tuple[SiteSpec, ...]
    faults: tuple[Fault, ...]
    redis: bool = False
    """Whether the sites share a Redis."""

    @property
    def messages(self) -> int:
        """How many messages will be published."""
        return sum(len(process.sends) for site in self.sites for process in site.processes)


def make_plan(seed: int, kinds: tuple[str, ...], *, redis: bool = False) -> Plan:
    """The plan of a seed; ``kinds`` are all kinds of faults there are, a random half of which is switched off.

    With ``redis`` there are two or three sites, which share one."""
    rng = Random(f"redis plan {seed}" if redis else f"plan {seed}")
    left = rng.randint(50, 200)
    names = ("east", "west", "north")[: rng.choice((2, 2, 3))] if redis else ("east", "west")[: rng.choice((1, 1, 2))]
    sites = tuple(_site(rng, name, left // len(names) + 1) for name in names)
    if redis:
        sites = _with_redis(rng, sites)
    _have_some_ask(Random(f"requests {seed} {redis}"), sites)
    enabled = sorted(rng.sample(kinds, (len(kinds) + 1) // 2))
    times = sorted(rng.uniform(0.5, HEAL_S - 2) for _ in range(rng.randint(FAULTS_MIN, FAULTS_MAX)))
    faults = tuple(Fault(n, at, rng.choice(enabled), f"fault {seed} {n}") for n, at in enumerate(times))
    return Plan(seed, sites, faults, redis)


def channels_of(*sites: SiteSpec) -> list[str]:
    """Every channel that anything is published on."""
    return sorted({send.channel for site in sites for process in site.processes for send in process.sends}
                  | {channel for site in sites for _, channel, _ in site.drop_ins})


def local_url(site: str) -> str:
    """Where the simulated Redis of a site's own host is."""
    return f"redis://local-{site}"


def _with_redis(rng: Random, sites: tuple[SiteSpec, ...]) -> tuple[SiteSpec, ...]:
    """The same sites, reaching out."""
    settings = {"redis_url": SHARED_URL, "max_stream_length": rng.choice((5, 50, 1000)),
                "namespace": rng.choice(("", "", "ns")), "mode_cooldown": rng.choice((0.0, 5.0))}
    local, remote = rng.random() < 0.5, rng.choice((0.0, 0.05, 0.2))
    reaching = []
    for site in sites:
        url = local_url(site.name) if local else "off"
        for process in site.processes:
            for send in process.sends:
                if send.ack == "local" and rng.random() < remote:
                    send.ack = "redis"
        processes = tuple(replace(process, settings={**process.settings, **settings, "local_redis": url})
                          for process in site.processes)
        reaching.append(replace(site, processes=processes))
    return tuple(reaching)


def _have_some_ask(rng: Random, sites: tuple[SiteSpec, ...]) -> None:
    """Make requests of some messages, in half of the plans.  What else is random does not depend on it."""
    share = rng.choice((0.0, 0.0, 0.1, 0.4))
    sends = [send for site in sites for process in site.processes for send in process.sends]
    plain = {send.tag for send in sends if send.ack != "local" or send.ttl is not None}
    timeouts: dict[str, float] = {}
    for send in sends:
        asks = rng.random() < share and send.tag not in plain
        timeout = timeouts.setdefault(send.tag, rng.choice((0.2, 3.0, 10.0)) if asks else 0.0)
        send.timeout, send.together = timeout, send.together or timeout > 0


def _site(rng: Random, name: str, messages: int) -> SiteSpec:
    channels = list(CHANNELS[: rng.randint(3, len(CHANNELS))])
    if rng.random() < 0.25:
        channels[0] = LONG
    count = rng.randint(2, 4)
    herd = rng.random() < 0.3
    shared = _shared_settings(rng)
    weights = [rng.choice((0, 1, 1, 2)) for _ in range(count)]
    weights[rng.randrange(count)] = 2
    reader = rng.randrange(count)
    style = _style(rng)
    processes = tuple(
        _process(rng, f"{name}{n}", 0.0 if herd else rng.uniform(0, 4), channels,
                 round(messages * weights[n] / sum(weights)), n == reader or rng.random() < 0.5, shared, style)
        for n in range(count))
    drops = tuple((rng.uniform(2, 50), rng.choice(channels), f"drop-{name}-{n}")
                  for n in range(rng.choice((0, 0, rng.randint(1, 6)))))
    return SiteSpec(name, processes, drops)


def _style(rng: Random) -> dict[str, float]:
    """How likely each peculiarity of a message is."""
    return {
        "given": rng.choice((0.0, 0.1, 0.5)), "twice": rng.choice((0.0, 0.3)), "ttl": rng.choice((0.0, 0.0, 0.15)),
        "disk": rng.choice((0.0, 0.2, 0.6)), "handled": rng.choice((0.0, 0.05)), "together": rng.choice((0.1, 0.6)),
        "priority": rng.choice((0.0, 0.3)), "burst": rng.choice((0.2, 0.7)),
    }


def _shared_settings(rng: Random) -> dict[str, Any]:
    limit = rng.choice((30_000, 2**20, 2**30, 2**30))
    segment = 1024 if limit < 2**20 else rng.choice((512, 1024, 4096, 65536))
    return {
        "max_message_bytes": MESSAGE_BYTES_MAX, "retry_delay": 0.2, "segment_bytes": segment,
        "disk_budget": rng.choice((0, 0, 2048, 16384)), "message_max_age": rng.choice((8.0, 3600.0)),
        "delete_processed_messages": rng.random() < 0.2, "publish_timeout": 0.5,
        "disk_limit": limit, "on_full": rng.choice(("wait", "raise")),
    }


def _process(
    rng: Random, name: str, begins: float, channels: list[str], messages: int, reads: bool, shared: dict[str, Any],
    style: dict[str, float]
) -> ProcessSpec:
    subs: list[SubSpec] = []
    for n in range(rng.choice((1, 1, 2)) if reads else 0):
        patterns = rng.choice((*PATTERNS, (rng.choice(channels),), (channels[0],)))
        subs.append(SubSpec(f"{name}-sub{n}", patterns, rng.choice(("new", "earliest")), rng.choice((0.0, 0.005, 0.1))))
    if rng.random() < 0.2:
        subs.append(SubSpec(None, rng.choice(PATTERNS), rng.choice(("new", "earliest")), 0.01))
    settings = {**shared, "drain_timeout": rng.choice((0.05, 2.0)), "open_files": rng.choice((2, 256)),
                "concurrency": rng.choice((1, 2, 64))}
    bus = rng.choice((name, name, f"{name[:-1]}-bus"))
    sends = _sends(rng, name, channels, messages, style)
    return ProcessSpec(name, bus, begins, tuple(subs), sends, settings, rng.choice((0.0, 0.0, 1.0)))


def _sends(rng: Random, name: str, channels: list[str], messages: int, style: dict[str, float]) -> tuple[Send, ...]:
    sends: list[Send] = []
    at = 0.0
    times = sorted(rng.uniform(0.2, 52) for _ in range(messages))
    for n in range(messages):
        at = at if n and rng.random() < style["burst"] else times[n]
        tag = f"{name}-{n}"
        given = rng.random() < style["given"]
        if given and sends and rng.random() < style["twice"]:
            again = rng.choice(sends)
            if again.given:
                sends.append(Send(at, again.tag, again.channel, True, again.priority, None, "local", again.size, False))
                continue
        ack = "disk" if rng.random() < style["disk"] else "handled" if rng.random() < style["handled"] else "local"
        ttl = rng.choice((0.05, 2.0, 30.0)) if rng.random() < style["ttl"] else None
        priority = rng.randint(0, 3) if rng.random() < style["priority"] else 1
        size = rng.choice((0, 20, 100, 300, 1500))
        sends.append(Send(at, tag, rng.choice(channels), given, priority, ttl, ack, size, rng.random() < style["together"]))
    return tuple(sends)
