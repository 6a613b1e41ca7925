"""The rules of the modes: what is known of each Redis in, the mode out.  Pure.

::

    distributed   the shared Redis answers     ─┐  down at once: its link is down, or two probes in a row went badly
    degraded      a Redis of this host does     │  up: three good probes in a row, five seconds after the last change
    isolated      files alone                  ─┘  by hand: at once, and never above what was asked for

Down is fast because a name that promises too much misleads whoever looks; up is slow because a Redis that flaps would
change the name with every flap.  Nothing else hangs on it: no path follows the mode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum


class CoordinationMode(Enum):
    """``distributed``: the shared Redis answers.  ``degraded``: a local Redis.  ``isolated``: files alone."""

    DISTRIBUTED = "distributed"
    DEGRADED = "degraded"
    ISOLATED = "isolated"


ORDER = tuple(CoordinationMode)
"""The best first."""
_NAMES = {CoordinationMode.DISTRIBUTED: "the shared Redis", CoordinationMode.DEGRADED: "the local Redis"}
PROBE_LONGEST = 5
"""While all is calm a probe waits so many times its interval."""


@dataclass(frozen=True, slots=True)
class Rules:
    """``good_probes`` in a row promote, ``cooldown_s`` after the last change; ``bad_probes`` in a row demote."""

    good_probes: int = 3
    cooldown_s: float = 5.0
    bad_probes: int = 2


@dataclass(frozen=True, slots=True)
class Manual:
    """A switch by hand: nothing above ``mode`` is named until ``until_ms`` (Unix), for ever if that is None."""

    mode: CoordinationMode
    reason: str = ""
    until_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Contact:
    """What is known of one Redis now: whether its link is up, how the probe that just ended went (None: none did), and
    what went wrong, if anything did."""

    up: bool
    good: bool | None = None
    cause: str = ""


MISSING = Contact(up=False, cause="there is none")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known now.  ``manual`` is the switch by hand that is in force, ``ended`` why none is any more."""

    shared: Contact = MISSING
    local: Contact = MISSING
    manual: Manual | None = None
    ended: str = ""

    def of(self, mode: CoordinationMode) -> Contact:
        """What is known of the Redis that a mode stands on; files always work."""
        if mode is CoordinationMode.ISOLATED:
            return Contact(up=True)
        return self.shared if mode is CoordinationMode.DISTRIBUTED else self.local


@dataclass(frozen=True, slots=True)
class Probes:
    """How many probes of a Redis went well, or badly, in a row since its link came up."""

    good: int = 0
    bad: int = 0

    def after(self, contact: Contact) -> Probes:
        """The same, one step later."""
        if not contact.up:
            return Probes()
        if contact.good is None:
            return self
        return Probes(self.good + 1) if contact.good else Probes(0, self.bad + 1)


@dataclass(frozen=True, slots=True)
class State:
    """Where a manager stands: the mode, why, since when (any clock that never goes back), and the probes so far.

    ``changes`` counts the changes of the mode, so that flapping shows."""

    mode: CoordinationMode = CoordinationMode.ISOLATED
    reason: str = "nothing has answered yet"
    since_s: float = -math.inf
    shared: Probes = Probes()
    local: Probes = Probes()
    manual: Manual | None = None
    changes: int = 0


def decide(state: State, facts: Facts, now_s: float, rules: Rules = Rules()) -> State:
    """The state after these facts.  It depends on nothing else."""
    state = replace(state, shared=state.shared.after(facts.shared), local=state.local.after(facts.local))
    by_hand = facts.manual is not None and facts.manual != state.manual
    mode = _best(state, facts, rules, trusted=False) if by_hand else _next(state, facts, now_s, rules)
    reason = _reason(state, mode, facts, by_hand=by_hand)
    state = replace(state, manual=facts.manual)
    if mode is state.mode:
        return state
    return replace(state, mode=mode, reason=reason, since_s=now_s, changes=state.changes + 1)


def _next(state: State, facts: Facts, now_s: float, rules: Rules) -> CoordinationMode:
    """Down to the first that works if this one does not; up to the first that has shown itself."""
    if not _works(state, facts, state.mode, rules):
        return next(mode for mode in ORDER[ORDER.index(state.mode):] if _works(state, facts, mode, rules))
    best = _best(state, facts, rules, trusted=True)
    above = ORDER.index(best) < ORDER.index(state.mode)
    return best if above and now_s - state.since_s >= rules.cooldown_s else state.mode


def _best(state: State, facts: Facts, rules: Rules, *, trusted: bool) -> CoordinationMode:
    """The first that works and, if asked, has had its good probes."""
    return next(mode for mode in _allowed(facts) if _works(state, facts, mode, rules)
                and (not trusted or _good(state, mode) >= rules.good_probes))


def _allowed(facts: Facts) -> tuple[CoordinationMode, ...]:
    return ORDER if facts.manual is None else ORDER[ORDER.index(facts.manual.mode):]


def _works(state: State, facts: Facts, mode: CoordinationMode, rules: Rules) -> bool:
    return facts.of(mode).up and _probes(state, mode).bad < rules.bad_probes


def _probes(state: State, mode: CoordinationMode) -> Probes:
    if mode is CoordinationMode.ISOLATED:
        return Probes()
    return state.shared if mode is CoordinationMode.DISTRIBUTED else state.local


def _good(state: State, mode: CoordinationMode) -> float:
    return math.inf if mode is CoordinationMode.ISOLATED else _probes(state, mode).good


def _reason(state: State, mode: CoordinationMode, facts: Facts, *, by_hand: bool) -> str:
    """Why the mode is what it is now, in words."""
    if by_hand and facts.manual is not None:
        said = f"by hand: {facts.manual.reason or 'no reason given'}"
        missing = [f"{_NAMES[better]}: {facts.of(better).cause or 'probes fail'}"
                   for better in _allowed(facts)[:_allowed(facts).index(mode)]]
        return "; ".join([said, *missing])
    if ORDER.index(mode) > ORDER.index(state.mode):
        return f"{_NAMES[state.mode]} does not answer: {facts.of(state.mode).cause or 'probes fail'}"
    if mode is state.mode:
        return state.reason
    ended = f"{facts.ended}; " if state.manual is not None and facts.manual is None and facts.ended else ""
    return f"{ended}{_NAMES[mode]} answered {_probes(state, mode).good} probes in a row"


def calm(state: State, facts: Facts, rules: Rules = Rules()) -> bool:
    """True while nothing is under way: no Redis that is up has still to show itself, and none went badly."""
    ups = [probes for probes, contact in ((state.shared, facts.shared), (state.local, facts.local)) if contact.up]
    waits = _best(state, facts, rules, trusted=True) is not state.mode
    return not waits and all(probes.good >= rules.good_probes for probes in ups)
