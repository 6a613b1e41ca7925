"""The documents say what the source says, and their examples run."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_operations_page_is_what_the_source_makes_it() -> None:
    made = runpy.run_path(str(ROOT / "docs/make_operations.py"))
    assert (ROOT / "docs/operations.md").read_text() == made["page"](), "run: python docs/make_operations.py"


def test_the_example_of_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    found = re.search(r"<!-- example.*?-->\n```python\n(.*?)```", text, re.S)
    assert found is not None
    (tmp_path / "example.py").write_text(found[1])
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=15)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alice says hello\n"


def test_the_example_of_the_page_of_requests_runs_as_it_stands(tmp_path: Path) -> None:
    found = re.search(r"<!-- example.*?-->\n```python\n(.*?)```", (ROOT / "docs/requests.md").read_text(), re.S)
    assert found is not None
    (tmp_path / "example.py").write_text(found[1])
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=15)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "so far 0.0", "so far 0.3", "so far 0.7", "5 says bob", "invalid",
        "request to agent-nobody: no reply within 0.2 s; it may have been handled", "True"]


def test_the_examples_of_the_page_of_handlers_run_as_they_stand(tmp_path: Path) -> None:
    text = (ROOT / "docs/handlers.md").read_text()
    example, lines = (re.search(rf"<!-- {kind}: .*?-->\n```\w*\n(.*?)```", text, re.S) for kind in ("example", "lines"))
    assert example is not None
    assert lines is not None
    (tmp_path / "example.py").write_text(example[1])
    environ = {key: value for key, value in os.environ.items() if not key.startswith("LEMEGETON")}
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"

    def printed(*command: str) -> str:
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, env=environ, timeout=15).stdout

    assert printed(sys.executable, "example.py") == (
        "order 1 from shop, version 2\norder 3 from shop, version None\n"
        "Rejected: Order: Expected `int`, got `str` - at `$.id`\n")
    assert printed("lemegeton", "dlq", "list") == ""
    printed("bash", "-c", "lemegeton pub dead-letter:orders '{\"id\": \"x\"}' --id ID; lemegeton pub dead-letter:orders 1")
    shown = [json.loads(line) for line in printed("bash", "-ec", lines[1]).splitlines()]
    assert [line.get("id") for line in shown[:2]] == ["ID", "ID"]
    assert shown[1]["payload"] == {"id": 2}
    assert (shown[2]["redriven"], shown[3:]) == ("ID", [{"redriven": 0, "kept": {}}, {"dropped": 1}])


def block(kind: str) -> str:
    found = re.search(rf"<!-- {kind}: .*?-->\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert found is not None
    return found[1]


def test_the_lines_of_the_readme_run_as_they_stand(tmp_path: Path) -> None:
    end = "\ncd ../../..; lemegeton sub agent-bob --name late --start earliest --count 4 --timeout 15\nkill %1 %2 %3; wait"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = {key: value for key, value in os.environ.items() if not key.startswith("LEMEGETON")}
    done = subprocess.run(["bash", "-c", block("lines") + block("drop-in") + end], cwd=tmp_path, capture_output=True, text=True,
                          env={**environ, "PATH": path}, timeout=18)
    printed = done.stdout.splitlines()
    assert any(line.endswith('"result":17}') for line in printed), done
    for text in ("hello", "dropped"):
        assert any(f'"payload":{{"text":"{text}"}}' in line for line in printed), done
    assert [line for line in done.stderr.splitlines() if line.startswith("lemegeton:")] == ["lemegeton: terminated"]


@pytest.mark.parametrize("page", ["trouble.md", "requests.md"])
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    named = re.findall(r"`(test_\w+\.py)`", (ROOT / "docs" / page).read_text())
    assert named
    assert [name for name in named if not (ROOT / "tests" / name).exists()] == []


def test_every_file_a_document_names_is_there() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)|`((?:tests|benchmarks|chaos|docs)/[\w./]+)`", document.read_text()):
            name = target[0] or target[1]
            base = document.parent if target[0] else ROOT
            assert (base / name).exists(), f"{document.name} names {name}"
