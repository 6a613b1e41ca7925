"""Back-off doubles, ends and is bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lemegeton.retry import DELAY_MAX_S, Backoff


def test_delays_double_until_the_attempts_are_used_up() -> None:
    backoff = Backoff(4, 1.0)
    assert [backoff.after(attempt) for attempt in (1, 2, 3, 4, 5)] == [1.0, 2.0, 4.0, None, None]


def test_a_single_attempt_is_never_repeated() -> None:
    assert Backoff(1, 1.0).after(1) is None


def test_no_delay_stays_no_delay() -> None:
    assert Backoff(100, 0.0).after(50) == 0.0


@given(st.integers(1, 10**9), st.floats(0, 1e300), st.integers(1, 10**9))
def test_a_delay_is_bounded_and_never_shrinks(attempts: int, delay_s: float, attempt: int) -> None:
    backoff = Backoff(attempts, delay_s)
    first, second = backoff.after(attempt), backoff.after(attempt + 1)
    if attempt >= attempts:
        assert first is None
        assert second is None
    else:
        assert first is not None
        assert 0 <= first <= DELAY_MAX_S
        assert second is None or second >= first
