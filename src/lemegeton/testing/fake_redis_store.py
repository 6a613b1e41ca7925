"""The data of the simulated Redis, and how it is lost.

Every unit of change (a command, a script) is written down as what its keys held after it.  ``base``, the keys as they
were before the oldest unit that is still written down, and the units together give every state of the last seconds::

    base ── unit ── unit ── … ── unit = now
             └ what everysec, or a replica that lags, still has
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from copy import copy
from typing import NamedTuple, TypeVar

from lemegeton.testing.fake_redis_stream import Stream

UNITS_KEPT = 200
"""How far back a replica may be."""
KEPT_S = 2.5
"""Units that are younger than this are written down however many there are: more than everysec may lose."""


class Refusal(Exception):
    """An error reply; its text begins with the code."""


class Text(bytes):
    """A string."""


class Hash(dict[bytes, bytes]):
    """A hash."""


class Members(dict[bytes, None]):
    """A set, in the order of adding."""


class Scores(dict[bytes, float]):
    """A sorted set."""


Value = Text | Hash | Members | Scores | Stream
Kind = TypeVar("Kind", Text, Hash, Members, Scores, Stream)


class Kept(NamedTuple):
    """A value and when it expires, in Unix milliseconds of the server's clock; never if None."""

    value: Value
    expires_ms: int | None


Keys = dict[bytes, Kept]
Unit = dict[bytes, Kept | None]


def copied(kept: Kept) -> Kept:
    """The same, on its own."""
    return Kept(copy(kept.value), kept.expires_ms)


class Store:
    """See the module.  ``clock`` gives seconds; the wall clock that ids and expiries go by can be set (`step`)."""

    def __init__(self, clock: Callable[[], float], epoch_ms: int) -> None:
        self._clock = clock
        self._epoch_ms = epoch_ms
        self._keys: Keys = {}
        self._changed: dict[bytes, None] = {}
        self._base: Keys = {}
        self._units: deque[tuple[float, Unit]] = deque()
        self._saved: Keys = {}
        self._saved_at = 0.0
        self._synced_at = 0.0
        self.save_every_s: float | None = None
        """How often it saves a snapshot; never if None.  Nothing has been saved before the first time."""

    def wall_ms(self) -> int:
        """What the server's clock says."""
        return self._epoch_ms + round(self._clock() * 1000)

    def step(self, by_ms: int) -> None:
        """Set the server's clock."""
        self._epoch_ms += by_ms

    # ------------------------------------------------------------------------------------------ reading and writing

    def get(self, key: bytes, kind: type[Kind]) -> Kind | None:
        """The value of a key, if it is there; WRONGTYPE if it is of another kind."""
        value = self.peek(key)
        if value is not None and not isinstance(value, kind):
            raise Refusal("WRONGTYPE Operation against a key holding the wrong kind of value")
        return value

    def peek(self, key: bytes) -> Value | None:
        """The value of a key, of whatever kind."""
        kept = self._keys.get(key)
        if kept is None:
            return None
        if kept.expires_ms is not None and kept.expires_ms <= self.wall_ms():
            self.delete(key)
            return None
        return kept.value

    def to_change(self, key: bytes, kind: type[Kind]) -> Kind:
        """The value of a key, made if it is not there; whoever asks changes it, and calls `tidy` if it may be empty."""
        value = self.get(key, kind)
        if value is None:
            value = kind()
            self._keys[key] = Kept(value, None)
        self._changed[key] = None
        return value

    def put(self, key: bytes, value: Value, expires_ms: int | None = None) -> None:
        """Set it whole."""
        self._keys[key] = Kept(value, expires_ms)
        self._changed[key] = None

    def tidy(self, key: bytes) -> None:
        """A hash or set without members is none; a stream without entries is one."""
        value = self._keys[key].value
        if not isinstance(value, Stream) and not value:
            self.delete(key)

    def delete(self, key: bytes) -> bool:
        """True if it was there."""
        if self._keys.pop(key, None) is None:
            return False
        self._changed[key] = None
        return True

    def expires_ms(self, key: bytes) -> int | None:
        """When it expires."""
        kept = self._keys.get(key)
        return kept.expires_ms if kept is not None else None

    def names(self) -> list[bytes]:
        """All keys that are there, in order."""
        return [key for key in sorted(self._keys) if self.peek(key) is not None]

    def clear(self) -> None:
        """FLUSHALL."""
        for key in list(self._keys):
            self.delete(key)

    # ------------------------------------------------------------------------------------------ remembering

    @property
    def changed(self) -> bool:
        """Whether the unit under way has changed anything yet."""
        return bool(self._changed)

    def commit(self) -> None:
        """The end of a unit: it is kept, or lost, as a whole."""
        if not self._changed:
            return
        now = self._clock()
        if self.save_every_s is not None and now - self._saved_at >= self.save_every_s:
            self._saved = self._state(len(self._units))
            self._saved_at = now
        unit: Unit = {key: copied(self._keys[key]) if key in self._keys else None for key in self._changed}
        self._changed.clear()
        self._units.append((now, unit))
        while len(self._units) > UNITS_KEPT and self._units[0][0] < now - KEPT_S:
            _apply(self._base, self._units.popleft()[1])

    def sync(self) -> None:
        """What was written until now is on the disk: `lose_since` leaves it."""
        self._synced_at = self._clock()

    def _state(self, count: int) -> Keys:
        """What was there after so many of the units; not to be changed."""
        state = dict(self._base)
        for n in range(count):
            _apply(state, self._units[n][1])
        return state

    # ------------------------------------------------------------------------------------------ losing

    def lose_all(self) -> None:
        """An empty restart."""
        self._become({})

    def lose_since(self, at: float) -> int:
        """Back to what was there at a time of the last `KEPT_S` seconds; how many units are lost."""
        at = max(at, self._synced_at)
        return self.lose_units(sum(when > at for when, _ in self._units))

    def lose_units(self, count: int) -> int:
        """Back by so many units, or by all that are written down."""
        count = min(count, len(self._units))
        self._become(self._state(len(self._units) - count))
        return count

    def lose_since_save(self) -> None:
        """Back to the last snapshot, that is to nothing if there is none."""
        self._become(self._saved)

    def _become(self, state: Keys) -> None:
        self._keys = {key: copied(kept) for key, kept in state.items()}
        self._base = {key: copied(kept) for key, kept in state.items()}
        self._units.clear()
        self._changed.clear()


def _apply(state: Keys, unit: Unit) -> None:
    for key, kept in unit.items():
        if kept is None:
            state.pop(key, None)
        else:
            state[key] = kept
