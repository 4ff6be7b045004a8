"""Open a database and run transactions in threads, so that the event loop never waits.

Knows engines, threads and locks; knows no table. A transaction is a plain function of a
connection: `await database.write(seal_batch)`. SQLite has one writer, as a file has, and
takes its lock at BEGIN; PostgreSQL has a pool of them.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import OperationalError

from learning.ports import StoreUnavailableError

T = TypeVar("T")

SQLITE_BUSY_SECONDS = 15.0
READERS = 4


class Database:
    """One database. Whoever opens it closes it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._is_sqlite = make_url(url).get_backend_name() == "sqlite"
        self._writer = _sqlite_engine(url, "BEGIN IMMEDIATE") if self._is_sqlite else _engine(url)
        self._reader = _sqlite_engine(url, "BEGIN") if self._is_sqlite else self._writer
        self._write_threads = ThreadPoolExecutor(
            1 if self._is_sqlite else READERS, thread_name_prefix="store-write"
        )
        self._read_threads = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")

    async def write(self, transaction: Callable[[Connection], T]) -> T:
        """Run a function in one transaction; its result is durable when this returns.

        Raises StoreUnavailableError when the database cannot be reached, is locked or is
        full; whatever the function raises rolls back and is raised here. Cancelling the
        caller does not interrupt the transaction: it ends, one way or the other, first.
        """
        return await _run(self._write_threads, self._writer, transaction)

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run a function that only reads, on one snapshot. Errors as in `write`."""
        return await _run(self._read_threads, self._reader, query)

    async def migrate(self) -> None:
        """Bring the schema up to this release's."""
        await asyncio.get_running_loop().run_in_executor(self._write_threads, self._upgrade)

    def _upgrade(self) -> None:
        with self._writer.connect() as connection:
            command.upgrade(migration_config(connection), "head")
            connection.commit()

    async def close(self) -> None:
        """Wait for the transactions under way, then close every connection."""
        await asyncio.to_thread(self._write_threads.shutdown)
        await asyncio.to_thread(self._read_threads.shutdown)
        self._writer.dispose()
        self._reader.dispose()


def migration_config(connection: Connection) -> Config:
    """Alembic's configuration for the migrations of this package, on one connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def sqlite_url(path: Path) -> str:
    """The address of a SQLite file."""
    return f"sqlite:///{path}"


async def _run(threads: ThreadPoolExecutor, engine: Engine, work: Callable[[Connection], T]) -> T:
    def transaction() -> T:
        try:
            with engine.begin() as connection:
                return work(connection)
        except OperationalError as error:
            raise StoreUnavailableError(f"the database did not answer: {error.orig}") from error

    future = asyncio.get_running_loop().run_in_executor(threads, transaction)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


def _engine(url: str) -> Engine:
    return create_engine(url, pool_pre_ping=True)


def _sqlite_engine(url: str, begin: str) -> Engine:
    engine = create_engine(url, connect_args={"timeout": SQLITE_BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def on_connect(connection: sqlite3.Connection, _record: Any) -> None:
        # The driver would begin by itself, and late; `on_begin` takes the lock at once.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
