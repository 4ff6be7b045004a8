"""Open a database to read it, in a way that cannot write: for whoever only looks, anywhere.

SQLite opens the file for reading alone, PostgreSQL refuses writes in the session. Each read is
a short transaction of its own, so that a long look holds nothing up. Blocking: no event loop
is served here.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect
from sqlalchemy.exc import DBAPIError

from daemon.store import postgresql
from daemon.store.database import (
    SQLITE_BUSY_SECONDS,
    SQLITE_READER_CACHE_BYTES,
    address_of,
    is_outage,
)
from daemon.store.json_text import to_json
from daemon.store.tables import metadata
from learning.errors import LearningError, NotFoundError
from learning.ports import StoreUnavailableError

T = TypeVar("T")


class NothingStoredError(NotFoundError):
    """There is no database of learnd at the address, and looking makes none."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: nothing is recorded there yet")


class OtherSchemaError(LearningError):
    """The database is of another release, and is not migrated by looking."""

    def __init__(self, missing: str) -> None:
        super().__init__(
            f"the database has no table {missing}, as this release has: start `learnd run` once,"
            " which migrates it"
        )


class ReadOnly:
    """One database that is only read. Whoever opens it closes it."""

    def __init__(self, url: str) -> None:
        """Raises NothingStoredError where there is no SQLite file."""
        address = address_of(url)
        if address.get_backend_name() == "sqlite":
            self._engine = _sqlite(Path(address.database or ""), address)
        else:
            self._engine = postgresql.open_engine(address, connections=1).execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )

    def read(self, query: Callable[[Connection], T]) -> T:
        """Run a function on one snapshot. Raises StoreUnavailableError."""
        try:
            with self._engine.begin() as connection:
                return query(connection)
        except DBAPIError as error:
            if not is_outage(error):
                raise
            said = " ".join(str(error.orig).split())
            raise StoreUnavailableError(f"the database is not available: {said}") from error

    def require_schema(self) -> None:
        """Raises OtherSchemaError unless every table is there."""
        found = self.read(lambda tx: set(inspect(tx).get_table_names()))
        for table in sorted(metadata.tables.keys() - found):
            raise OtherSchemaError(table)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


@contextlib.contextmanager
def opened(url: str) -> Iterator[ReadOnly]:
    """A database with the tables of this release.

    Raises NothingStoredError, OtherSchemaError and StoreUnavailableError.
    """
    database = ReadOnly(url)
    try:
        database.require_schema()
        yield database
    finally:
        database.close()


def _sqlite(file: Path, address: URL) -> Engine:
    if not file.is_file():
        raise NothingStoredError(str(file))
    patience = float(str(address.query.get("timeout", SQLITE_BUSY_SECONDS)))

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(str(file.absolute()))}?mode=ro", uri=True, timeout=patience
        )
        connection.isolation_level = None
        connection.execute("PRAGMA query_only = ON")
        connection.execute(f"PRAGMA cache_size = -{SQLITE_READER_CACHE_BYTES // 1024}")
        return connection

    engine = create_engine("sqlite://", creator=connect, json_serializer=to_json)

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine
