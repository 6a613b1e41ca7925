"""The backlog: how many of our records the shared Redis lacks, and whether publishers wait for it.

Counted from the first contact of a lane with this process on; what a Redis accepted once and forgot is filled in again
from the files and is no backlog a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from lemegeton.lane import Lane


class Backlog:
    """Says ``hold`` with the cause when ``limit`` records wait, and with an empty one when fewer do."""

    def __init__(self, limit: int, hold: Callable[[str], None]) -> None:
        self.count = 0
        self._limit = limit
        self._hold = hold
        self._held = False
        self._places: dict[Lane, list[int]] = {}
        """The last sequence that was written, and the last that was accepted."""

    def written(self, lane: Lane, last: int, accepted: int) -> None:
        """The lane goes to ``last``; ``accepted`` is how far it was accepted if it was never written before."""
        place = self._places.get(lane)
        if place is None:
            place = self._places[lane] = [min(accepted, last)] * 2
        self.count += last - place[0]
        place[0] = last
        if self.count >= self._limit:
            self._look()

    def accepted(self, lane: Lane, seq: int) -> None:
        """The shared Redis has the lane up to ``seq``."""
        place = self._places.get(lane)
        if place is not None and (seq := min(seq, place[0])) > place[1]:
            self.count -= seq - place[1]
            place[1] = seq
            if self._held:
                self._look()

    def only(self, lanes: Collection[Lane]) -> None:
        """These are the lanes that are relayed from here; what others lack is sent by whoever helps the site."""
        for lane in [lane for lane in self._places if lane not in lanes]:
            written, accepted = self._places.pop(lane)
            self.count -= written - accepted
        self._look()

    def _look(self) -> None:
        held = self.count >= self._limit
        if held != self._held:
            self._held = held
            self._hold(f"the shared Redis, which lacks {self.count} records (max_pending_messages {self._limit})"
                       if held else "")
