"""SQLite statements over many values at once: the driver's own SQL, where it is hot.

One INSERT of many rows is several times as quick as many of one, and while it runs the
interpreter's lock is free. Statements come in few lengths, so that SQLite, which keeps the
ones it prepared, need not prepare a new one for each block.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection

_LENGTHS = (256, 16, 1)
_NO_VALUE = -1


def insert_rows(tx: Connection, statement: str, n_columns: int, values: Sequence[Any]) -> None:
    """Run an INSERT whose rows stand at `{}`. `values`: the rows' values, one after another."""
    at = 0
    for length in _LENGTHS:
        size = length * n_columns
        while len(values) - at >= size:
            rows = _rows(length, n_columns)
            tx.exec_driver_sql(statement.format(rows), tuple(values[at : at + size]))
            at += size


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
