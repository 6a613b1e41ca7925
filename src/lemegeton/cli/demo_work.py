"""The work of the demo: read a Python file, count its lines and functions, and find its longest function.

``python -m lemegeton.cli.demo_work`` does it for the files named on standard input, one a line, in one process: that is
the count that the sum of the agents has to equal.
"""

from __future__ import annotations

import ast
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

SKIPPED = frozenset(("site-packages", "dist-packages", "__pycache__"))
_BODIES = ("body", "orelse", "finalbody", "handlers", "cases")
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Found(NamedTuple):
    """What a file holds; ``parsed`` is 0 for one that is not Python of this version."""

    lines: int
    functions: int
    parsed: int
    longest: int
    name: str


class Total(NamedTuple):
    """What many files hold together."""

    files: int
    lines: int
    functions: int
    parsed: int


def python_files(directory: str) -> list[str]:
    """Every Python file below a directory, in an order that does not change; what was installed later is left out."""
    found: list[str] = []
    for root, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if name not in SKIPPED)
        found += [os.path.join(root, name) for name in sorted(names) if name.endswith(".py")]
    return found


def look_into(path: str) -> Found:
    """Read and parse one file; one that cannot be read counts as one that does not parse."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return Found(0, 0, 0, 0, "")
    lines = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            functions = list(_functions(ast.parse(data)))
    except (SyntaxError, ValueError, RecursionError, MemoryError, SystemError):  # the last: too deep for 3.11
        return Found(lines, 0, 0, 0, "")
    longest = max(functions, key=_length, default=None)
    if longest is None:
        return Found(lines, 0, 1, 0, "")
    return Found(lines, len(functions), 1, _length(longest), longest.name)


def _functions(tree: ast.Module) -> Iterator[Function]:
    """The functions of a module.  They are statements, so only statements are walked through."""
    todo: list[Any] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, Function):
            yield node
        for name in _BODIES:
            below = getattr(node, name, None)
            if isinstance(below, list):
                todo.extend(below)


def _length(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def total(found: Iterable[Found]) -> Total:
    """The sum over files."""
    files = lines = functions = parsed = 0
    for one in found:
        files += 1
        lines += one.lines
        functions += one.functions
        parsed += one.parsed
    return Total(files, lines, functions, parsed)


if __name__ == "__main__":
    paths = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").splitlines()
    sys.stdout.write(json.dumps(total(map(look_into, paths))) + "\n")
