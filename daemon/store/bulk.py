"""SQLite statements over many values at once: the driver's own SQL, where it is hot.

One INSERT of many rows is several times as quick as many of one, and while it runs the
interpreter's lock is free. Statements come in few lengths, so that SQLite, which keeps the
ones it prepared, need not prepare a new one for each block.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection

_LENGTHS = (256, 64, 16, 4, 1)
_NO_VALUE = -1
_NUMBER_OF = {None: None, False: 0, True: 1}


def insert_columns(tx: Connection, statement: str, columns: Sequence[Sequence[Any]]) -> None:
    """Run an INSERT of rows, which stand at `{}` in it and are given column by column.

    Its conflicts should be those of `INSERT OR ROLLBACK` or `OR IGNORE`: so that it can undo
    one statement alone SQLite copies every old page that the statement touches, which is
    more than the rows themselves.
    """
    n, width = len(columns[0]), len(columns)
    values: list[Any] = [None] * (n * width)
    for at, column in enumerate(columns):
        values[at::width] = column
    start = 0
    for length in _LENGTHS:
        while n - start >= length:
            part = tuple(values[start * width : (start + length) * width])
            tx.exec_driver_sql(statement.format(_rows(length, width)), part)
            start += length


def insert_fields(
    tx: Connection, table: str, fields: Mapping[str, Sequence[Any]], booleans: Collection[str]
) -> None:
    """Insert rows into a table, given by the names of its columns; some hold truth values.

    For each None and each truth value the driver looks for an adapter, which takes ten times
    as long as binding a number. So the ones are bound as the numbers that SQLite makes of
    them, and a column without any value is left out.
    """
    plain = {
        name: list(map(_NUMBER_OF.get, column)) if name in booleans else column
        for name, column in fields.items()
        if column[0] is not None or column.count(None) < len(column)
    }
    names = ", ".join(f'"{name}"' for name in plain)
    statement = f"INSERT OR ROLLBACK INTO {table} ({names}) VALUES {{}}"  # noqa: S608  # our own names
    insert_columns(tx, statement, list(plain.values()))


def find_in(tx: Connection, query: str, values: Sequence[int]) -> Iterator[Any]:
    """The rows of a query whose list of values, none of them negative, stands at `{}`."""
    at = 0
    while at < len(values):
        left = len(values) - at
        length = next((n for n in reversed(_LENGTHS) if n >= left), _LENGTHS[0])
        chunk = tuple(values[at : at + length])
        chunk += (_NO_VALUE,) * (length - len(chunk))
        yield from tx.exec_driver_sql(query.format(_rows(1, length)), chunk)
        at += length


@lru_cache(maxsize=64)
def _rows(n: int, n_columns: int) -> str:
    row = f"({','.join('?' * n_columns)})"
    return ",".join([row] * n)
