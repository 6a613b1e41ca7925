"""Back-off: how long to wait before a handler gets its message again."""

from __future__ import annotations

from dataclasses import dataclass

DELAY_MAX_S = 60.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delays: ``delay_s``, twice that, four times …, at most 60 s; ``attempts`` handler calls in all.

    No jitter: a lane has one reader, so there is no herd to spread.
    """

    attempts: int
    delay_s: float

    def after(self, attempt: int) -> float | None:
        """Seconds to wait after the failed ``attempt`` (the first is 1); None when no further one is allowed."""
        if attempt >= self.attempts:
            return None
        return min(DELAY_MAX_S, self.delay_s * float(2 ** min(attempt - 1, 16)))
