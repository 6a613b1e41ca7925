"""Observing: every event is counted, logged in one line, and given to whoever asked for it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from lemegeton.errors import InvalidMessage
from lemegeton.events import EVENTS, Event, ObserverFailed

Callback = Callable[[Event], None]
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING}
_log = logging.getLogger("lemegeton")
_log.addHandler(logging.NullHandler())
NAMES = frozenset(event.name for event in EVENTS)


class Observing:
    """The observer of one bus.  Callbacks run in the thread and step that met the event: keep them short."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._callbacks: dict[str, dict[object, Callback]] = {}

    def on(self, name: str, callback: Callback) -> Callable[[], None]:
        """Call ``callback`` with every event of this name; returns what ends it.  ``"*"`` stands for all."""
        if name != "*" and name not in NAMES:
            raise InvalidMessage(f"event {name!r}: there is none of this name; known: {', '.join(sorted(NAMES))}")
        callbacks = self._callbacks.setdefault(name, {})
        key = object()  # the same callback may be given twice, and each is ended by its own
        callbacks[key] = callback

        def end() -> None:
            callbacks.pop(key, None)

        return end

    def observe(self, event: Event) -> None:
        """Count, log and pass on."""
        self.counts[event.name] += 1
        _log.log(_LEVELS[event.level], "%s", event)
        for callback in [call for name in (event.name, "*") for call in self._callbacks.get(name, {}).values()]:
            try:
                callback(event)
            except Exception as error:
                self.counts[ObserverFailed.name] += 1
                _log.warning("%s", ObserverFailed(event.name, f"{type(error).__name__}: {error}"))
