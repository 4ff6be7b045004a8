"""What the command line prints: tables for people, JSON for scripts.

Reads well at 100 columns and when piped: no colours then, and ids are never cut. Text
that producers sent is shown without its control characters: it is for reading, not for
steering a terminal.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPED_COLUMNS = 100

_STEERING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters but tab and newline, marks of writing direction, lone surrogates."""


@dataclass(frozen=True)
class Column:
    """A column's head. One that is not `whole` may be wrapped to fit."""

    head: str
    whole: bool = True
    justify: Literal["left", "right"] = "left"


def number(head: str) -> Column:
    """A column of numbers."""
    return Column(head, justify="right")


def words(head: str) -> Column:
    """A column of longer texts, which wrap."""
    return Column(head, whole=False)


def console(*, stderr: bool = False) -> Console:
    """Where to print; as wide as the terminal, or PIPED_COLUMNS without one."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPED_COLUMNS
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


def show_json(answer: Any) -> None:
    """An answer as it came, for scripts."""
    print(json.dumps(answer, indent=2))  # ASCII: safe to show, whatever a producer sent


def say(text: str) -> None:
    """One line or paragraph, not wrapped."""
    print(plain(text))


def complain(text: str) -> None:
    """An error, on stderr."""
    print(f"error: {plain(text)}", file=sys.stderr)


def show_table(
    columns: Sequence[Column], rows: Iterable[Sequence[Any]], title: str | None = None
) -> None:
    """Print a table; cells are texts, numbers, booleans or None."""
    cells = [[plain(text_of(cell)) for cell in row] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        longest = max((len(row[index]) for row in cells), default=0)
        table.add_column(
            Text(column.head),
            justify=column.justify,
            no_wrap=column.whole,
            min_width=longest if column.whole else min(longest, 16),
            overflow="fold",
        )
    for row in cells:
        table.add_row(*map(Text, row))
    out = console()
    if title is not None:
        out.print(Text(title), style="bold")
    out.print(table)
    out.print()


def show_pairs(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print names with their values, one pair a line; a value of None is left out."""
    given = [(name, plain(text_of(value))) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in given), default=0)
    for name, value in given:
        print(f"{name:<{width}}  {value}")


def text_of(value: Any) -> str:
    """A cell as text: None is a dash, numbers have four digits that count."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text_of(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(text_of(item) for item in value) or "-"
    return str(value)


def plain(text: str) -> str:
    """A text without characters that steer a terminal or reorder what it shows."""
    return _STEERING.sub("\ufffd", text)


def when(text: str | None) -> str:
    """A time of the API, in UTC and to the second."""
    if text is None:
        return "-"
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """A length of time in the two units that matter."""
    for unit, length, smaller, part in (
        ("d", 86_400, "h", 3_600),
        ("h", 3_600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} {int(seconds % length // part)} {smaller}"
    return f"{seconds:.0f} s"


def some_of(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def change(before: float | None, after: float | None, form: str = ".3f") -> str:
    """`before -> after`."""
    if before is None or after is None:
        return "-"
    return f"{before:{form}} -> {after:{form}}"
