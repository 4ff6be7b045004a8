"""How the demo looks: chapters, paragraphs, tables, and bars where there is a terminal.

Piped into a file it has the same words without colours, and a line for every quarter of a
bar. Knows nothing of learnd.
"""

import contextlib
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.rule import Rule
from rich.text import Text

from daemon.printing import Column, console, plain, show_table

WIDEST: Final = 100
QUARTERS: Final = 4


class Board(Protocol):
    """What is under way, by name."""

    def show(self, name: str, label: str, done: int, total: int, detail: str = "") -> None:
        """Say how far something is; `total` 0 when that is not known yet."""
        ...

    def end(self, name: str) -> None:
        """It is over: its bar goes."""
        ...


class Screen:
    """Prints to stdout."""

    def __init__(self) -> None:
        self._out = console()
        self._out.width = min(self._out.width, WIDEST)
        self._n_chapters = 0
        self._after_gap = True

    def chapter(self, title: str) -> None:
        """Begin a chapter."""
        self._n_chapters += 1
        self._gap()
        self._out.print(
            Rule(Text(f"{self._n_chapters}  {title}", style="bold"), align="left", style="dim")
        )

    def say(self, text: str, style: str = "") -> None:
        """A paragraph; a line break in it stays one."""
        self._write(text, "", style)

    def point(self, text: str, style: str = "") -> None:
        """A paragraph that is set in."""
        self._write(text, "  ", style)

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[Any]]) -> None:
        """A table between empty lines."""
        self._gap()
        show_table(columns, rows)
        self._after_gap = True

    def _write(self, text: str, indent: str, style: str) -> None:
        for line in plain(text).split("\n"):
            wrapped = textwrap.fill(
                line,
                self._out.width,
                initial_indent=indent,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
                replace_whitespace=False,
                drop_whitespace=True,
            )
            self._out.print(Text(wrapped, style=style), soft_wrap=True)
        self._after_gap = False

    def _gap(self) -> None:
        """An empty line, unless there is one already."""
        if not self._after_gap:
            self._out.print()
        self._after_gap = True

    @contextlib.contextmanager
    def board(self) -> Iterator[Board]:
        """A board that is shown while the context lasts."""
        if not self._out.is_terminal or self._out.is_dumb_terminal:
            yield _Lines(self)
            return
        bars = Bars(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[detail]}", style="dim"),
            console=self._out,
            transient=True,
        )
        with bars:
            yield _Bars(bars)


class _Bars:
    """The board of a terminal."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def show(self, name: str, label: str, done: int, total: int, detail: str = "") -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(label, total=None, detail="")
        self._bars.update(
            self._tasks[name],
            description=label,
            completed=done,
            total=total or None,
            detail=detail,
        )

    def end(self, name: str) -> None:
        if name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))


class _Lines:
    """The board of a file: a line when a label changes, and at each quarter."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._said: dict[str, tuple[str, int]] = {}

    def show(self, name: str, label: str, done: int, total: int, detail: str = "") -> None:
        quarter = done * QUARTERS // total if total else 0
        if self._said.get(name) == (label, quarter):
            return
        self._said[name] = (label, quarter)
        share = f" {quarter * 100 // QUARTERS} %" if quarter else ""
        self._screen.point(f"{label}{share}" + (f"  {detail}" if share and detail else ""))

    def end(self, name: str) -> None:
        self._said.pop(name, None)
