"""A few rounds of `chaos/run.py`: real processes, killed and stopped, judged by the checker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / "chaos" / "run.py"
LINUX = sys.platform.startswith("linux")


@pytest.mark.skipif(not LINUX, reason="sends signals as Linux has them")
@pytest.mark.timeout(60)
def test_killed_and_stopped_processes_lose_nothing_and_repeat_only_what_is_flagged() -> None:
    done = subprocess.run(
        [sys.executable, str(RUN), "--rounds", "5", "--seed", "11"], capture_output=True, text=True, timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 rounds, 0 schedules, 0 violations" in done.stdout


@pytest.mark.skipif(not LINUX, reason="sends signals as Linux has them")
@pytest.mark.timeout(60)
def test_sites_around_a_server_in_a_storm_lose_nothing_and_repeat_only_what_is_flagged() -> None:
    done = subprocess.run(
        [sys.executable, str(RUN), "--rounds", "0", "--schedules", "1", "--seconds", "4", "--sites", "2", "--seed", "3"],
        capture_output=True, text=True, timeout=55, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 schedules, 0 violations" in done.stdout


@pytest.mark.skipif(not LINUX, reason="sends signals as Linux has them")
@pytest.mark.timeout(60)
def test_one_kill_and_restart_at_500_messages_a_second_loses_nothing() -> None:
    """The design that publishes straight to Redis lost 1,797 of 2,651 here."""
    done = subprocess.run(
        [sys.executable, str(RUN.with_name("transitions.py")), "--obvious"], capture_output=True, text=True, timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "met      acknowledged = handled" in done.stdout
