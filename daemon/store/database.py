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

from daemon.store.tables import POSTGRESQL_INDEXES
from learning.failpoints import reached
from learning.ports import StoreUnavailableError

T = TypeVar("T")

SQLITE_BUSY_SECONDS = 15.0
READERS = 4


class Database:
    """One database. Whoever opens it closes it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        self._writer = _sqlite_engine(url, "BEGIN IMMEDIATE") if self.is_sqlite else _engine(url)
        self._reader = _sqlite_engine(url, "BEGIN") if self.is_sqlite else self._writer
        self._write_threads = ThreadPoolExecutor(
            1 if self.is_sqlite else READERS, thread_name_prefix="store-write"
        )
        self._read_threads = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")

    async def write(
        self,
        transaction: Callable[[Connection], T],
        *,
        committed: Callable[[], None] = lambda: None,
    ) -> T:
        """Run a function in one transaction; its result is durable when this returns.

        `committed` is called in the same thread once it is, before any other transaction.

        Raises StoreUnavailableError when the database cannot be reached, is locked or is
        full; whatever the function raises rolls back and is raised here. Cancelling the
        caller does not interrupt the transaction: it ends, one way or the other, first.
        """
        step = transaction.__qualname__.partition(".<locals>")[0]

        def work(tx: Connection) -> T:
            result = transaction(tx)
            reached(f"{step} before its commit")
            return result

        def done() -> None:
            reached(f"{step} after its commit")
            committed()

        return await _run(self._write_threads, self._writer, work, done)

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run a function that only reads, on one snapshot. Errors as in `write`."""
        return await _run(self._read_threads, self._reader, query)

    async def migrate(self) -> None:
        """Bring the schema up to this release's, in one transaction. Errors as in `write`."""
        await self.write(lambda tx: command.upgrade(migration_config(tx), "head"))

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


def comparable(connection: Connection) -> Callable[..., bool]:
    """Alembic's `include_object`: it does not see by itself which database an index is for."""

    def include(_object: Any, name: str | None, kind: str, *_others: Any) -> bool:
        on_sqlite = connection.dialect.name == "sqlite"
        return not (on_sqlite and kind == "index" and name in POSTGRESQL_INDEXES)

    return include


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


async def _run(
    threads: ThreadPoolExecutor,
    engine: Engine,
    work: Callable[[Connection], T],
    committed: Callable[[], None] = lambda: None,
) -> T:
    def transaction() -> T:
        try:
            with engine.begin() as connection:
                result = work(connection)
        except OperationalError as error:
            if _is_our_mistake(error.orig):
                raise
            raise StoreUnavailableError(f"the database did not answer: {error.orig}") from error
        committed()
        return result

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
    engine = create_engine(
        url, connect_args={"timeout": SQLITE_BUSY_SECONDS}, json_serializer=to_json
    )

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
