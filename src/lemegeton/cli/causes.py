"""What a bus tells beside messages, for people: every warning, or only why the shared Redis has not taken something."""

from __future__ import annotations

from lemegeton.bus import MessageBus
from lemegeton.cli.output import say
from lemegeton.events import Event, RedisDown, RelayStalled


def warn(bus: MessageBus, *but: type[Event]) -> None:
    """Say every warning of a bus in one line of standard error, except the kinds that are told elsewhere."""

    def heard(event: Event) -> None:
        if event.level == "warning" and not isinstance(event, but):
            say(str(event))

    bus.on("*", heard)


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
