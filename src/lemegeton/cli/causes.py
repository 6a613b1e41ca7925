"""Why the shared Redis has not taken what a verb published: the last that a bus heard of it."""

from __future__ import annotations

from lemegeton.bus import MessageBus
from lemegeton.events import Event, RedisDown, RelayStalled


class Why:
    """Listens to a bus; as text it is the end of a sentence, empty while nothing went wrong."""

    def __init__(self, bus: MessageBus) -> None:
        self._cause = ""
        for kind in (RedisDown, RelayStalled):
            bus.on(kind.name, self._heard)

    def _heard(self, event: Event) -> None:
        if isinstance(event, RedisDown | RelayStalled) and event.redis == "shared":
            self._cause = event.cause

    def __str__(self) -> str:
        return f": {self._cause}" if self._cause else ""
