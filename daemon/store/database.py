"""Open a database and run transactions in threads, so that the event loop never waits.

Knows engines, threads and locks; knows no table. A transaction is a plain function of a
connection: `await database.write(seal_batch)`. SQLite has one writer, as a file has, and
takes its lock at BEGIN; PostgreSQL has a pool of them.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import stamina
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, OperationalError

from daemon.store import postgresql, schema
from daemon.store.json_text import to_json
from learning.failpoints import reached
from learning.ports import StoreUnavailableError

T = TypeVar("T")

SQLITE_BUSY_SECONDS = 15.0
SQLITE_PAGE_BYTES = 16_384
SQLITE_WAL_BYTES = 64 * 2**20
"""A page that is written several times meanwhile is copied into the file once."""
SQLITE_CACHE_BYTES = 8 * 2**20
SQLITE_READER_CACHE_BYTES = 2 * 2**20
READERS = 4
SCRUB_SECONDS = 10.0
SCRUB_PAUSE_SECONDS = 0.1
ATTEMPTS = 5
"""How often a transaction is run that PostgreSQL rolls back for another one's sake."""


class Database:
    """One database. Whoever opens it closes it."""

    def __init__(self, url: str) -> None:
        self.url = url
        address = address_of(url)
        self.is_sqlite = address.get_backend_name() == "sqlite"
        in_file = self.is_sqlite and address.database not in (None, "", ":memory:")
        self._file = Path(str(address.database)) if in_file else None
        self._inode: tuple[int, int] | None = None
        if self.is_sqlite:
            self._writer = _sqlite_engine(address, "BEGIN IMMEDIATE", SQLITE_CACHE_BYTES)
            self._reader = _sqlite_engine(address, "BEGIN", SQLITE_READER_CACHE_BYTES)
        else:
            self._writer = postgresql.open_engine(address, connections=2 * READERS)
            self._reader = self._writer.execution_options(isolation_level="REPEATABLE READ")
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

        The function is run again when PostgreSQL rolled it back for another transaction's
        sake. When the connection breaks at the commit, nobody knows whether it happened: a
        caller that tries again must be ready to find it done.
        """
        step = transaction.__qualname__.partition(".<locals>")[0]
        in_its_file = self._in_its_file(transaction)

        def work(tx: Connection) -> T:
            result = in_its_file(tx)
            reached(f"{step} before its commit")
            return result

        def done() -> None:
            reached(f"{step} after its commit")
            committed()

        return await _run(self._write_threads, self._writer, work, done)

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

    async def scrub(self, tables: Sequence[str], *, rewrite: bool) -> bool:
        """Clear what files still hold of rows that were overwritten or deleted.

        SQLite: its log is moved into the file and emptied, and with `rewrite` the file written
        anew. PostgreSQL: the tables are vacuumed, with `rewrite` written anew. False when others
        were in the way for SCRUB_SECONDS. Errors as in `write`.
        """
        attempts = round(SCRUB_SECONDS / SCRUB_PAUSE_SECONDS)
        for attempt in range(attempts):
            work = partial(self._scrub_sqlite, rewrite=rewrite and attempt == 0)
            if not self.is_sqlite:
                work = partial(postgresql.vacuum, self._writer, tables, rewrite=rewrite)
            loop = asyncio.get_running_loop()
            if await loop.run_in_executor(self._write_threads, _outages_named(work)):
                return True
            await asyncio.sleep(SCRUB_PAUSE_SECONDS)
        return False

    def _scrub_sqlite(self, *, rewrite: bool) -> bool:
        # Outside of the transaction that a connection of the engine's would begin.
        connection = self._writer.raw_connection()
        try:
            session = connection.driver_connection
            assert isinstance(session, sqlite3.Connection), "another driver"
            if rewrite:
                session.execute("VACUUM")
            (busy, *_pages) = session.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy
        finally:
            connection.close()

    async def migrate(self) -> None:
        """Bring the schema up to this release's, in one transaction. Errors as in `write`."""

        def upgrade(tx: Connection) -> None:
            if not self.is_sqlite:
                postgresql.prepare_to_migrate(tx)
            schema.bring_up(tx)

        await self.write(upgrade)

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


def address_of(url: str) -> URL:
    """The address of a database, with the driver that it is reached by.

    Raises sqlalchemy.exc.ArgumentError for what is none.
    """
    address = make_url(url)
    if address.drivername in ("postgres", "postgresql"):
        return address.set(drivername=postgresql.DRIVER)
    return address


def sqlite_url(path: Path) -> str:
    """The address of a SQLite file."""
    return f"sqlite:///{path}"


async def _run(
    threads: ThreadPoolExecutor,
    engine: Engine,
    work: Callable[[Connection], T],
    committed: Callable[[], None] = lambda: None,
) -> T:
    def transaction() -> T:
        result = _repeated(engine, work)
        committed()
        return result

    future = asyncio.get_running_loop().run_in_executor(threads, transaction)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


def _repeated(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Run a transaction, again when PostgreSQL rolled it back for another one's sake."""
    attempt = 1
    while True:
        try:
            with engine.begin() as connection:
                return work(connection)
        except DBAPIError as error:
            if attempt < ATTEMPTS and postgresql.was_rolled_back(error):
                attempt += 1
            elif is_outage(error):
                said = " ".join(str(error.orig).split())
                raise StoreUnavailableError(f"the database is not available: {said}") from error
            else:
                raise


def _outages_named(work: Callable[[], T]) -> Callable[[], T]:
    """Work outside of a transaction, with the errors of one."""

    def named() -> T:
        try:
            return work()
        except sqlite3.OperationalError as error:
            raise StoreUnavailableError(f"the database is not available: {error}") from error
        except DBAPIError as error:
            if not is_outage(error):
                raise
            said = " ".join(str(error.orig).split())
            raise StoreUnavailableError(f"the database is not available: {said}") from error

    return named


def is_outage(error: DBAPIError) -> bool:
    if isinstance(error.orig, sqlite3.Error):
        # SQLite reports wrong SQL like an outage; trying again would hide it for ever.
        code = getattr(error.orig, "sqlite_errorcode", None)
        return isinstance(error, OperationalError) and code != sqlite3.SQLITE_ERROR
    return postgresql.is_outage(error)


def _is_locked(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY


def _sqlite_engine(url: URL, begin: str, cache_bytes: int) -> Engine:
    patience = {} if "timeout" in url.query else {"timeout": SQLITE_BUSY_SECONDS}
    engine = create_engine(url, connect_args=patience, json_serializer=to_json)

    @event.listens_for(engine, "connect")
    def on_connect(connection: sqlite3.Connection, _record: Any) -> None:
        # The driver would begin by itself, and late; `on_begin` takes the lock at once.
        connection.isolation_level = None
        # Of an empty file only: an event is a third of a small page, and fills a large one.
        connection.execute(f"PRAGMA page_size = {SQLITE_PAGE_BYTES}")
        # Of two that open a new file at once one is refused, whatever its timeout.
        for attempt in stamina.retry_context(
            on=_is_locked,
            attempts=None,
            timeout=SQLITE_BUSY_SECONDS,
            wait_initial=0.01,
            wait_max=0.2,
        ):
            with attempt:
                connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {SQLITE_WAL_BYTES // SQLITE_PAGE_BYTES}")
        connection.execute(f"PRAGMA cache_size = -{cache_bytes // 1024}")
        connection.execute("PRAGMA foreign_keys = ON")
        # What is overwritten or deleted is overwritten in the file too: forgetting needs it.
        connection.execute("PRAGMA secure_delete = ON")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
