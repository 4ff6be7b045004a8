"""The statements that SQLite and PostgreSQL spell, or need, in different ways."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Insert, Table, func, text
from sqlalchemy.dialects import postgresql, sqlite

from learning.events import digest

CHUNK = 500
"""Values in one IN list, well below either database's limit of bound parameters."""


def insert_new(tx: Connection, table: Table, *returned: str) -> Insert:
    """INSERT that passes over rows whose key exists; of the others it returns some columns."""
    return _insert_new(tx.dialect.name, table, returned)


# Statements are kept: to put one together takes longer than to run it on a few rows.


@lru_cache(maxsize=64)
def _insert_new(dialect: str, table: Table, returned: Sequence[str]) -> Insert:
    insert: sqlite.Insert | postgresql.Insert
    insert = sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
    insert = insert.on_conflict_do_nothing()
    return insert.returning(*(table.c[name] for name in returned)) if returned else insert


def add_up(
    tx: Connection, table: Table, keys: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Add the other columns of each row to the row with its key; insert it where none is."""
    if rows:
        tx.execute(_add_up(tx.dialect.name, table, tuple(keys)), list(rows))


@lru_cache(maxsize=64)
def _add_up(dialect: str, table: Table, keys: Sequence[str]) -> Insert:
    insert: sqlite.Insert | postgresql.Insert
    insert = sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
    sums = {
        column.name: func.coalesce(column, 0) + insert.excluded[column.name]
        for column in table.columns
        if column.name not in keys
    }
    return insert.on_conflict_do_update(index_elements=list(keys), set_=sums)


def replace_all(
    tx: Connection, table: Table, keys: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Insert rows; one whose key exists takes the place of the row that has it."""
    if not rows:
        return
    insert: sqlite.Insert | postgresql.Insert
    insert = sqlite.insert(table) if tx.dialect.name == "sqlite" else postgresql.insert(table)
    others = {
        column.name: insert.excluded[column.name]
        for column in table.columns
        if column.name not in keys
    }
    tx.execute(insert.on_conflict_do_update(index_elements=list(keys), set_=others), list(rows))


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


def take_turns(tx: Connection, names: Iterable[str]) -> None:
    """Wait until no other transaction has taken one of some names; keep them to the end.

    For what no row's lock can guard, because the rows are still to come. What is read after
    it was committed by whoever had the turn before. SQLite has one writer, whose turn it
    always is. Names are taken in one order, so that two cannot wait for each other.
    """
    if tx.dialect.name == "sqlite":
        return
    keys = sorted({int.from_bytes(digest(f"learnd:{name}")[:8], signed=True) for name in names})
    if keys:
        tx.execute(
            text("SELECT pg_advisory_xact_lock(key) FROM unnest(CAST(:keys AS bigint[])) AS key"),
            {"keys": keys},
        )
