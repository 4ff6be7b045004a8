"""SQLite statements over many values at once: the driver's own SQL, where it is hot.

One INSERT of many rows is several times as quick as many of one, and while it runs the
interpreter's lock is free. Statements come in few lengths, so that SQLite, which keeps the
ones it prepared, need not prepare a new one for each block.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from sqlalchemy import Connection

_LENGTHS = (256, 64, 16, 4, 1)
_NO_VALUE = -1
_NUMBER_OF = {None: None, False: 0, True: 1}


def insert_rows(tx: Connection, statement: str, rows: Sequence[Sequence[Any]]) -> None:
    """Run an INSERT of rows, which stand at `{}` in it."""
    at = 0
    for length in _LENGTHS:
        while len(rows) - at >= length:
            values = tuple(chain.from_iterable(rows[at : at + length]))
            tx.exec_driver_sql(statement.format(_rows(length, len(rows[at]))), values)
            at += length


def insert_columns(
    tx: Connection, table: str, columns: Mapping[str, Sequence[Any]], booleans: Collection[str]
) -> None:
    """Insert rows that are given column by column, all of one length; some hold truth values.

    For each None and each truth value the driver looks for an adapter, which takes ten times
    as long as binding a number. So the ones are bound as the numbers that SQLite makes of
    them, and a column without any value is left out.
    """
    plain = {
        name: list(map(_NUMBER_OF.get, column)) if name in booleans else column
        for name, column in columns.items()
        if column.count(None) < len(column)
    }
    names = ", ".join(f'"{name}"' for name in plain)
    statement = f"INSERT INTO {table} ({names}) VALUES {{}}"  # noqa: S608  # our own names
    insert_rows(tx, statement, list(zip(*plain.values(), strict=True)))


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
