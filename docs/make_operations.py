"""Write docs/operations.md: the events and settings, taken from the source so that the page cannot drift from it."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import msgspec

from lemegeton import config, events

PAGE = Path(__file__).with_name("operations.md")
HEAD = """# Operations

Made by `python docs/make_operations.py`; a test holds it against the source.

`lemegeton status` shows channels, bytes, durable subscriptions with their backlog, origins and dead letters, also of a
directory that nobody uses any more. `bus.stats()` has the same for one process, with the handlers that hang and how late
the event loop is. `bus.on(name, callback)` hears events as they happen; each is also a counter in `stats().events` and one
line of the logger `lemegeton`.

## Events

| event | level | fields | what it says |
| --- | --- | --- | --- |
"""
MIDDLE = """
## Settings

Arguments of `MessageBus`, then `LEMEGETON_` and the name in capitals, then `lemegeton.toml` or `[tool.lemegeton]`. Times in
seconds, sizes in bytes.

| setting | default | what it does |
| --- | --- | --- |
"""


def _notes() -> dict[str, str]:
    """The texts under the fields of `Settings`."""
    tree = ast.parse(inspect.getsource(config.Settings)).body[0]
    assert isinstance(tree, ast.ClassDef)
    notes: dict[str, str] = {}
    name = ""
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name:
            notes[name] = " ".join(str(node.value.value).split())
    return notes


def page() -> str:
    """The whole page."""
    rows = [
        f"| `{event.name}` | {event.level} | {', '.join(event.__struct_fields__)} | "
        f"{' '.join((event.__doc__ or '').split())} |\n"
        for event in events.EVENTS
    ]
    notes = _notes()
    settings = [
        f"| `{field.name}` | {field.default!r} | {notes.get(field.name, '')} |\n"
        for field in msgspec.structs.fields(config.Settings)
    ]
    return HEAD + "".join(rows) + MIDDLE + "".join(settings)


if __name__ == "__main__":
    PAGE.write_text(page())
