"""Pages of long lists, newest first, by key: the millionth page costs as much as the first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, Select, func, select

T = TypeVar("T")
K = TypeVar("K", int, str)

SCAN_WINDOW = 50_000
"""Rows that one page looks at, at most, when no index serves its filter."""


@dataclass(frozen=True)
class Page(Generic[T, K]):
    """Some items of a list, and the key to ask for the next ones with; None at the end.

    A page may be short, or empty, and still not be the last one.
    """

    items: Sequence[T]
    next: K | None


def newest(
    tx: Connection,
    query: Select[Any],
    key: ColumnElement[int],
    conditions: Sequence[ColumnElement[bool]],
    before: int | None,
    limit: int,
) -> Page[Row[Any], int]:
    """The newest rows with a key below `before` that meet the conditions.

    Looks at no more than SCAN_WINDOW keys, so that a rare state in a long table costs
    several short pages and never one long query.
    """
    top = before
    if top is None:
        highest = tx.execute(select(func.max(key))).scalar()
        if highest is None:
            return Page((), None)
        top = highest + 1
    bottom = top - SCAN_WINDOW
    rows = tx.execute(
        query.where(key < top, key >= bottom, *conditions).order_by(key.desc()).limit(limit)
    ).all()
    if len(rows) == limit:
        return Page(rows, rows[-1].id)
    return Page(rows, bottom if bottom > 1 else None)


def finite(value: Any) -> Any:
    """A JSON value in which a number that is not finite is None: JSON has no NaN."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
