"""The error tree is what its docstring draws, and every error answers whether it happened."""

from __future__ import annotations

import inspect
import re

import pytest

from lemegeton import errors

ALL = {name: kind for name, kind in vars(errors).items()
       if inspect.isclass(kind) and issubclass(kind, errors.LemegetonError)}


def drawn() -> dict[str, str | None]:
    """Each name in the picture of the module, with the name it hangs under."""
    found: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ([ │├└─]*)([A-Z]\w+)(\s|$)", line)
        if match:
            depth = len(match[1]) // 4
            del path[depth:]
            found[match[2]] = path[-1] if path else None
            path.append(match[2])
    return found


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    picture = drawn()
    assert picture.keys() == ALL.keys()
    for name, parent in picture.items():
        ours = [base.__name__ for base in ALL[name].__bases__ if issubclass(base, errors.LemegetonError)]
        assert ours == ([parent] if parent else [])


@pytest.mark.parametrize(("name", "builtin"), [
    ("InvalidMessage", ValueError), ("InvalidSetting", ValueError), ("BusClosed", RuntimeError),
    ("HomeRefused", OSError), ("NoReply", TimeoutError),
])
def test_an_error_is_also_the_builtin_that_code_would_catch(name: str, builtin: type[Exception]) -> None:
    assert issubclass(ALL[name], builtin)


def test_errors_are_definite_unless_what_was_asked_for_may_have_happened() -> None:
    assert [name for name, kind in ALL.items() if not kind.definite] == ["NotReached", "NoReply", "RequestFailed"]


def test_a_log_error_says_whether_it_is_definite() -> None:
    assert errors.LogError("x").definite
    assert not errors.BusFull("x", definite=False).definite
    assert str(errors.DiskFull("where: what")) == "where: what"


def test_a_lost_position_carries_the_span_that_is_left() -> None:
    lost = errors.PositionLost("gone", first=3, last=9)
    assert (lost.first, lost.last, lost.definite, str(lost)) == (3, 9, True, "gone")


def test_a_failed_assignment_says_why_in_one_word() -> None:
    failed = errors.AssignmentFailed("assignment 7: failed: gone", category="lost")
    assert (failed.category, str(failed)) == ("lost", "assignment 7: failed: gone")


def test_a_failed_request_says_why_in_one_word_and_carries_what_was_said() -> None:
    failed = errors.RequestFailed("request to hub: bob: gone", category="invalid", payload={"error": "gone"})
    assert (failed.category, failed.payload, str(failed)) == ("invalid", {"error": "gone"}, "request to hub: bob: gone")


def test_every_error_has_a_first_sentence() -> None:
    assert all(kind.__doc__ and kind.__doc__.endswith(".") for kind in ALL.values())
