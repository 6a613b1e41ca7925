"""What the demo shows: a live board on a terminal, plain lines anywhere else, and the table at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

BAR_WIDTH = 30
PLAIN_STEPS = 10
"""How many lines tell of the progress where there is no terminal."""
_COLOURS = {"working": "green", "joined": "cyan", "killed": "red", "stopped": "dim"}


@dataclass(slots=True)
class Worker:
    """An agent on the board."""

    name: str
    pid: int
    state: str = "starting"
    done: int = 0


@dataclass(slots=True)
class Board:
    """Everything the live display shows, at one moment."""

    total: int
    done: int = 0
    messages: int = 0
    workers: dict[str, Worker] = field(default_factory=dict)
    opened: float = field(default_factory=time.monotonic)
    began: float = field(default_factory=time.monotonic)
    took_s: float = 0.0

    def begin(self) -> None:
        """The work begins now."""
        self.began = time.monotonic()

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.seconds

    @property
    def age_s(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self.opened

    def end(self) -> None:
        """The work is done."""
        self.took_s = self.seconds

    @property
    def seconds(self) -> float:
        """How long the work has been going on, or took."""
        return self.took_s or max(1e-9, time.monotonic() - self.began)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the closing table: what, how much, as text and as JSON has it, and whether it is right (None: no number
    that could be wrong)."""

    what: str
    value: str
    fact: object
    right: bool | None = None

    @property
    def key(self) -> str:
        """What, as a key of JSON."""
        return self.what.replace(" ", "_")


class View(Protocol):
    """Shows a board."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def update(self) -> None: ...
    def note(self, text: str) -> None: ...


class Plain:
    """Lines, where nobody watches."""

    def __init__(self, board: Board, out: TextIO) -> None:
        self._board = board
        self._out = out
        self._shown = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self) -> None:
        """A line for every tenth of the work."""
        board = self._board
        step = board.done * PLAIN_STEPS // max(1, board.total)
        if step > self._shown:
            self._shown = step
            self.note(f"{board.done} of {board.total} files, {board.rate:.0f} messages/s")

    def note(self, text: str) -> None:
        """Something happened."""
        self._out.write(f"{self._board.age_s:6.2f} s  {text}\n")
        self._out.flush()


class Live:
    """A board that is drawn again a few times a second."""

    def __init__(self, board: Board) -> None:
        from rich.console import Console
        from rich.live import Live as Drawn

        self._board = board
        self._console: Console = Console()
        self._live = Drawn(console=self._console, refresh_per_second=10, transient=True, get_renderable=self._draw)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def update(self) -> None:
        """Nothing to do: the board is drawn when it is time."""

    def note(self, text: str) -> None:
        """Something happened: it stays on the screen, above the board."""
        self._console.print(f"{self._board.age_s:6.2f} s  {text}", highlight=False, markup=False)

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        board = self._board
        workers = Table("agent", "process", "state", "files", box=None, pad_edge=False)
        for worker in board.workers.values():
            state = Text(worker.state, style=_COLOURS.get(worker.state, ""))
            workers.add_row(worker.name, str(worker.pid), state, str(worker.done))
        line = Table.grid(padding=(0, 1))
        line.add_row(ProgressBar(total=max(1, board.total), completed=board.done, width=BAR_WIDTH),
                     f"{board.done}/{board.total} files  {board.rate:,.0f} messages/s  {board.seconds:.1f} s")
        return Group(workers, line)


def open_view(board: Board, *, quiet: bool) -> View:
    """The view that fits where standard output goes; ``quiet`` leaves that to the result."""
    if quiet:
        return Plain(board, sys.stderr)
    return Live(board) if sys.stdout.isatty() else Plain(board, sys.stdout)


def show_closing(rows: Sequence[Row], longest: Sequence[tuple[int, str, str]], commands: Sequence[str]) -> None:
    """The numbers, the longest functions, and how to look into what is left."""
    if sys.stdout.isatty():
        _draw_closing(rows, longest)
    else:
        _tell_closing(rows, longest)
    _put("\nlook into what it left:")
    for command in commands:
        _put(f"  {command}")


def _tell_closing(rows: Sequence[Row], longest: Sequence[tuple[int, str, str]]) -> None:
    for row in rows:
        _put(f"{row.what:<34} {row.value:<40} {_verdict(row)}".rstrip())
    _put("\nlongest functions")
    for length, name, path in longest:
        _put(f"{length:>6} lines  {name:<40} {path}")


def _draw_closing(rows: Sequence[Row], longest: Sequence[tuple[int, str, str]]) -> None:
    from rich.console import Console

    console = Console()
    console.print(_numbers(rows))
    console.print(_functions(longest))


def _numbers(rows: Sequence[Row]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("", "", "", show_header=False)
    for row in rows:
        table.add_row(row.what, Text(row.value), Text(_verdict(row), style="red" if row.right is False else "green"))
    return table


def _functions(longest: Sequence[tuple[int, str, str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("lines", "longest functions", "file")
    for length, name, path in longest:
        table.add_row(str(length), Text(name), Text(path))
    return table


def _verdict(row: Row) -> str:
    return "" if row.right is None else "right" if row.right else "WRONG"


def _put(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
