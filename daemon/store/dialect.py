"""The few statements that SQLite and PostgreSQL spell in ways of their own."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Insert, Table, func, text
from sqlalchemy.dialects import postgresql, sqlite

CHUNK = 500
"""Values in one IN list, well below either database's limit of bound parameters."""


def insert_new(tx: Connection, table: Table) -> Insert:
    """INSERT that passes over rows whose key exists."""
    if tx.dialect.name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


def add_up(
    tx: Connection, table: Table, keys: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Add the other columns of each row to the row with its key; insert it where none is."""
    if not rows:
        return
    insert: sqlite.Insert | postgresql.Insert
    insert = sqlite.insert(table) if tx.dialect.name == "sqlite" else postgresql.insert(table)
    sums = {
        column.name: func.coalesce(column, 0) + insert.excluded[column.name]
        for column in table.columns
        if column.name not in keys
    }
    tx.execute(insert.on_conflict_do_update(index_elements=list(keys), set_=sums), list(rows))


def database_time(tx: Connection) -> datetime:
    """The database's own clock at this moment, to a millisecond or better.

    All daemons of a database share it, however far their own clocks are apart.
    """
    microseconds: int = tx.execute(
        text(
            "SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000"
            if tx.dialect.name == "sqlite"
            else "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"
        )
    ).scalar_one()
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
