"""The public names are those that are written down here, and no others."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lemegeton
from lemegeton import errors

PUBLIC = {
    "AssignmentFailed", "BaseAgent", "BusClosed", "BusFull", "CheckpointFull", "CoordinationMode",
    "CoordinationModeManager", "DeadLetter", "DeadLetters", "DiskFull", "HomeRefused", "Hub", "InvalidMessage",
    "InvalidSetting", "LemegetonError",
    "LogError", "Message", "MessageBus", "MessagePriority", "MessageType", "NameTaken", "NoAgent", "NoReply", "NotReached",
    "PositionLost", "Receipt", "RedisLost", "RedisRefused", "Redriven", "Rejected", "RequestFailed", "Settings", "Stats",
    "Subscription", "__version__",
    "events", "run",
}


def test_the_public_names_are_these():
    assert set(lemegeton.__all__) == PUBLIC
    assert lemegeton.__all__ == sorted(lemegeton.__all__)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there_and_says_what_it_is(name: str):
    found = getattr(lemegeton, name)
    assert name in dir(lemegeton)
    assert name == "__version__" or found.__doc__


def test_every_error_is_public():
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert tree <= PUBLIC


def test_a_name_that_is_not_there_is_an_ordinary_attribute_error():
    with pytest.raises(AttributeError, match="'lemegeton' has no attribute 'Bus'"):
        _ = lemegeton.Bus


def test_importing_the_package_loads_none_of_it_but_the_version():
    program = "import sys, lemegeton; print([m for m in sys.modules if m.startswith('lemegeton.')])"
    assert subprocess.check_output([sys.executable, "-c", program]).strip() in (b"[]", b"['lemegeton.version']")


def test_the_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert version("lemegeton") == lemegeton.__version__
