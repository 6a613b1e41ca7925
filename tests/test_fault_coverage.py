"""Every fault that touches Redis, the network or the mode has a test or a scenario, and each that is named is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = (3, *range(5, 29), 35, 40, 41, 43)
TABLE = (ROOT / "docs/fault-coverage.md").read_text()
LINES = {int(found[1]): found[0] for found in re.finditer(r"^\| (\d+) \|.*$", TABLE, re.M)}


def test_the_table_has_every_row_in_order() -> None:
    assert tuple(LINES) == ROWS


@pytest.mark.parametrize("row", LINES)
def test_what_a_row_names_is_there(row: int) -> None:
    named = re.findall(r"`([\w./]+\.py)::(\w+)`", LINES[row])
    assert named
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text())
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in defined, f"{file} has no {name}"
