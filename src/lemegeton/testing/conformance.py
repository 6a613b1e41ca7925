"""The promises of a `Log`, each as a small coroutine that raises `AssertionError` where it is broken.

A further kind of log is one file and a `Make` for it; there is no pytest in here, so run the checks with anything::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_my_log(check, tmp_path):
        await check(MakeMine(tmp_path))

A log that cannot keep a promise is not a `Log`.  What only some can be *set up* for (another process, an outage) is
named by `lacks`, to be skipped.
"""

from __future__ import annotations

from lemegeton.testing import conformance_keeping, conformance_reading, conformance_writing
from lemegeton.testing.conformance_kit import Check, Make, Opener, lacks

__all__ = ["CHECKS", "Check", "Make", "Opener", "lacks"]

CHECKS: tuple[Check, ...] = tuple(
    check for module in (conformance_reading, conformance_writing, conformance_keeping)
    for name, check in vars(module).items() if name.startswith("check_")
)
