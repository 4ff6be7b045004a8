"""What is PostgreSQL's own: how to connect, how long to wait, and what its errors mean.

Writers run under READ COMMITTED: each statement sees what others have committed before it,
and whoever waited for a row's lock sees the row as it is then. Where rows to lock are not
there yet, writers take turns (daemon/store/dialect.py). Readers get one snapshot.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, OperationalError

from daemon.store.dialect import take_turns
from daemon.store.json_text import to_json
from learning.errors import LearningError

if TYPE_CHECKING:  # imported where it is used: 10 MiB that a daemon on SQLite does without
    import psycopg

DRIVER = "postgresql+psycopg"

CONNECT_SECONDS = 5
STATEMENT_SECONDS = 30
LOCK_SECONDS = 10
IDLE_IN_TRANSACTION_SECONDS = 15
"""A daemon that was put to sleep in a transaction may hold its locks so long; the others wait."""
MIGRATION_LOCK_SECONDS = 60

# A server that vanished without a word is noticed within about 25 s.
_CONNECTION = {
    "connect_timeout": CONNECT_SECONDS,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
    "fallback_application_name": "learnd",
    # Of several hosts the one that is not a standby; of one, an error that says so.
    "target_session_attrs": "read-write",
}

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_OUTAGES = {
    "08",  # connection exception
    "28",  # invalid authorization: somebody changed the password or pg_hba.conf
    "3D",  # no such database
    "40",  # rolled back: deadlock, serialization failure
    "53",  # insufficient resources: disk full, out of memory, too many connections
    "57",  # operator intervention: shutdown, cancelled, not accepting connections yet
    "58",  # system error outside the server: input/output
    "25006",  # read-only transaction: it has become a standby
    "25P03",  # idle in transaction for too long: we were asleep
    "25P04",  # transaction timeout
    "42501",  # insufficient privilege
    "55P03",  # lock not available in time
}
_ROLLED_BACK = {"40001", "40P01"}


class UnsuitableDatabaseError(LearningError):
    """The database cannot hold every event."""

    def __init__(self, encoding: str) -> None:
        super().__init__(
            f"the database keeps text as {encoding}, and events are UTF-8;"
            " make it anew with CREATE DATABASE ... TEMPLATE template0 ENCODING 'UTF8'"
        )
        self.encoding = encoding


def open_engine(url: URL, connections: int) -> Engine:
    """An engine with up to `connections` of them. What the address says itself stands."""
    own = {key: value for key, value in _CONNECTION.items() if key not in url.query}
    engine = create_engine(
        url,
        connect_args=own,
        pool_size=connections,
        max_overflow=0,
        pool_pre_ping=True,
        isolation_level="READ COMMITTED",
        json_serializer=to_json,
        hide_parameters=True,  # what an event says is no business of the log's
    )

    @event.listens_for(engine, "connect")
    def on_connect(connection: "psycopg.Connection[Any]", _record: Any) -> None:
        limits = {
            "statement_timeout": STATEMENT_SECONDS,
            "lock_timeout": LOCK_SECONDS,
            "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_SECONDS,
        }
        for name, seconds in limits.items():
            connection.execute("SELECT set_config(%s, %s, false)", [name, f"{seconds}s"])
        connection.commit()

    return engine


def prepare_to_migrate(tx: Connection) -> None:
    """One daemon migrates at a time, for as long as it takes, in a database that can hold it.

    Raises UnsuitableDatabaseError.
    """
    encoding = tx.execute(text("SHOW server_encoding")).scalar_one()
    if encoding != "UTF8":
        raise UnsuitableDatabaseError(encoding)
    tx.execute(text("SET LOCAL statement_timeout = 0"))
    tx.execute(text(f"SET LOCAL lock_timeout = '{MIGRATION_LOCK_SECONDS}s'"))
    take_turns(tx, ["migrate"])


def vacuum(engine: Engine, tables: Sequence[str], *, rewrite: bool) -> bool:
    """Have the server give up the dead rows of some tables; `rewrite` writes them anew, and
    keeps everybody else out of each meanwhile. True. Raises DBAPIError."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as session:
        session.exec_driver_sql("SET statement_timeout = 0")
        try:
            for table in tables:
                session.exec_driver_sql(f"VACUUM {'(FULL)' if rewrite else ''} {table}")
        finally:
            session.exec_driver_sql(f"SET statement_timeout = '{STATEMENT_SECONDS}s'")
    return True


def copy_rows(tx: Connection, statement: str, rows: Iterable[Sequence[Any]]) -> None:
    """Run a COPY FROM STDIN, which SQLAlchemy has no word for. Raises DBAPIError."""
    import psycopg

    session = tx.connection.driver_connection
    assert isinstance(session, psycopg.Connection), "another driver"
    try:
        with session.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            for row in rows:
                copy.write_row(row)
    except psycopg.Error as error:
        raise DBAPIError.instance(
            statement, None, error, psycopg.Error, hide_parameters=True, dialect=tx.dialect
        ) from error


def is_outage(error: DBAPIError) -> bool:
    """Whether trying again later may help; otherwise the statement is wrong, or the data is."""
    code = _sqlstate(error)
    if code is None:  # no answer came from the server
        return error.connection_invalidated or isinstance(error, OperationalError)
    return code in _OUTAGES or code[:2] in _OUTAGES


def was_rolled_back(error: DBAPIError) -> bool:
    """Whether the server ended this transaction for another one's sake; it can run again."""
    return _sqlstate(error) in _ROLLED_BACK


def _sqlstate(error: DBAPIError) -> str | None:
    """PostgreSQL's code for an error; None from another driver, or without an answer."""
    state: str | None = getattr(error.orig, "sqlstate", None)
    return state
