"""Open a database and run transactions in threads, so that the event loop never waits.

Knows engines, threads and locks; knows no table. A transaction is a plain function of a
connection: `await database.write(seal_batch)`. SQLite has one writer, as a file has, and
takes its lock at BEGIN; PostgreSQL has a pool of them.
"""

import asyncio
import json
import math
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
        address = make_url(url)
        self._is_sqlite = address.get_backend_name() == "sqlite"
        in_file = self._is_sqlite and address.database not in (None, "", ":memory:")
        self._file = Path(str(address.database)) if in_file else None
        self._inode: tuple[int, int] | None = None
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
        return await _run(self._write_threads, self._writer, self._in_its_file(transaction))

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run a function that only reads, on one snapshot. Errors as in `write`."""
        return await _run(self._read_threads, self._reader, query)

    def _in_its_file(self, transaction: Callable[[Connection], T]) -> Callable[[Connection], T]:
        """The transaction, refused when the SQLite file is not where it was.

        SQLite goes on writing to a file that was deleted or moved, and nobody finds it again.
        """
        if self._file is None:
            return transaction
        file = self._file

        def guarded(connection: Connection) -> T:
            here = _identity(file)
            self._inode = self._inode or here
            if here != self._inode:
                raise StoreUnavailableError(
                    f"the database file {file} is gone"
                    if here is None
                    else f"the database file {file} is another one: restart the daemon"
                )
            return transaction(connection)

        return guarded

    async def migrate(self) -> None:
        """Bring the schema up to this release's, in one transaction. Errors as in `write`."""
        await self.write(lambda tx: command.upgrade(migration_config(tx), "head"))

    async def close(self) -> None:
        """Wait for the transactions under way, then close every connection."""
        await asyncio.to_thread(self._write_threads.shutdown)
        await asyncio.to_thread(self._read_threads.shutdown)
        self._writer.dispose()
        self._reader.dispose()


def _identity(file: Path) -> tuple[int, int] | None:
    """What tells a file from another one under its name; None when there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def migration_config(connection: Connection) -> Config:
    """Alembic's configuration for the migrations of this package, on one connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def sqlite_url(path: Path) -> str:
    """The address of a SQLite file."""
    return f"sqlite:///{path}"


def to_json(value: Any) -> str:
    """JSON in which a number that is not finite is null: JSON has none, PostgreSQL refuses it.

    A loss that became NaN is a measurement like any other, and must not stop a run.
    """
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value


async def _run(threads: ThreadPoolExecutor, engine: Engine, work: Callable[[Connection], T]) -> T:
    def transaction() -> T:
        try:
            with engine.begin() as connection:
                return work(connection)
        except OperationalError as error:
            if _is_our_mistake(error.orig):
                raise
            raise StoreUnavailableError(f"the database did not answer: {error.orig}") from error

    future = asyncio.get_running_loop().run_in_executor(threads, transaction)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


def _is_our_mistake(error: BaseException | None) -> bool:
    """SQLite reports wrong SQL like an outage; trying again would hide it for ever."""
    code = getattr(error, "sqlite_errorcode", None)
    return code == sqlite3.SQLITE_ERROR


def _engine(url: str) -> Engine:
    return create_engine(url, pool_pre_ping=True, json_serializer=to_json)


def _sqlite_engine(url: str, begin: str) -> Engine:
    is_said = "timeout" in make_url(url).query
    patience = {} if is_said else {"timeout": SQLITE_BUSY_SECONDS}
    engine = create_engine(url, connect_args=patience, json_serializer=to_json)

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
