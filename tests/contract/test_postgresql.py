"""PostgreSQL as an operator meets it: what is an outage, what is a mistake, what is kept secret."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Connection, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from daemon.store import Store, postgresql
from daemon.store.database import Database
from daemon.store.postgresql import UnsuitableDatabaseError
from daemon.store.tables import events, split_sides
from learning.ports import PositionFencedError, PositionMove, StoreUnavailableError
from tests.builders import JUDGE, NOON, block, output
from tests.services.postgres import PASSWORD, ROLE, PostgresServer
from tests.waiting import wait_until

ROW = {"key": bytes(16), "side": "train"}


def add_row(tx: Connection) -> None:
    tx.execute(insert(split_sides), ROW)


def sides(tx: Connection) -> list[str]:
    return list(tx.execute(select(split_sides.c.side)).scalars())


def ask(statement: str) -> Callable[[Connection], Any]:
    return lambda tx: tx.execute(text(statement)).scalar()


@pytest.fixture(params=["postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """All of this is PostgreSQL's own."""
    return str(request.param)


# --- outages ----------------------------------------------------------------------------


async def test_a_server_that_is_down_is_an_outage_and_its_return_the_end_of_it(
    database: Database, postgres_server: PostgresServer
) -> None:
    await database.write(add_row)

    with postgres_server.outage():
        for _ in range(2):  # the sessions that were open, and new ones
            with pytest.raises(StoreUnavailableError, match="not available"):
                await database.write(add_row)
            with pytest.raises(StoreUnavailableError, match="not available"):
                await database.read(sides)

    assert await database.read(sides) == ["train"]


async def test_a_session_that_ends_in_a_transaction_leaves_nothing_of_it(
    database: Database,
) -> None:
    def cut_off(tx: Connection) -> None:
        add_row(tx)
        tx.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(StoreUnavailableError):
        await database.write(cut_off)

    assert await database.read(sides) == []


async def test_a_commit_whose_answer_was_lost_is_found_done(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one case in which "unavailable" does not say that nothing was written."""
    commit = psycopg.Connection.commit

    def commit_and_break(connection: psycopg.Connection[Any]) -> None:
        monkeypatch.undo()
        commit(connection)
        connection.close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    (claimed,) = await store.intake.claim("test", [("learnd.outputs", 0)])
    arrivals = block(output(), move=PositionMove(claimed, 1, bytes(16)))
    monkeypatch.setattr(psycopg.Connection, "commit", commit_and_break)

    with pytest.raises(StoreUnavailableError):
        await store.intake.append(arrivals)
    with pytest.raises(PositionFencedError):
        await store.intake.append(arrivals)

    (again,) = await store.intake.claim("test", [("learnd.outputs", 0)])
    assert again.next_offset == 1
    assert await store.database.read(lambda tx: len(tx.execute(select(events)).all())) == 1


@pytest.mark.parametrize(
    ("limit", "statement"),
    [
        ("STATEMENT_SECONDS", "SELECT pg_sleep(30)"),
        ("LOCK_SECONDS", "LOCK TABLE split_sides"),
    ],
)
async def test_what_takes_too_long_is_an_outage(
    store_url: str, monkeypatch: pytest.MonkeyPatch, limit: str, statement: str
) -> None:
    monkeypatch.setattr(postgresql, limit, 0.1)
    database = Database(store_url)
    with psycopg.connect(store_url) as other:
        other.execute("LOCK TABLE split_sides")
        with pytest.raises(StoreUnavailableError, match="timeout"):
            await database.write(ask(statement))
    await database.write(add_row)
    await database.close()


async def test_who_sleeps_in_a_transaction_does_not_hold_its_locks_for_ever(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "IDLE_IN_TRANSACTION_SECONDS", 0.1)
    database = Database(store_url)

    def sleep(tx: Connection) -> None:
        tx.execute(text("LOCK TABLE split_sides"))
        with psycopg.connect(store_url) as other:  # gets the lock when we have lost it
            other.execute("LOCK TABLE split_sides")
        add_row(tx)

    with pytest.raises(StoreUnavailableError):
        await database.write(sleep)

    assert await database.read(sides) == []
    await database.close()


async def test_a_standby_is_an_outage(database: Database) -> None:
    def become_a_standby(tx: Connection) -> None:
        tx.execute(text("SET TRANSACTION READ ONLY"))
        add_row(tx)

    with pytest.raises(StoreUnavailableError, match="read-only"):
        await database.write(become_a_standby)


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        ("CONNECTION LIMIT 0", "too many connections"),
        ("PASSWORD 'another'", "authentication failed"),
        ("NOLOGIN", "not permitted to log in"),
        ("SET default_transaction_read_only = on", "read-only"),
    ],
)
async def test_a_database_that_takes_nobody_is_an_outage_told_without_the_password(
    store_url: str, tmp_path: Path, postgres_server: PostgresServer, attribute: str, said: str
) -> None:
    def alter(change: str) -> None:
        with postgres_server.session() as session:
            session.execute(f"ALTER ROLE {ROLE} {change}".encode())

    alter(attribute)
    try:
        with pytest.raises(StoreUnavailableError, match=said) as raised:
            await Store.open(store_url, artifacts_dir=tmp_path, judge=JUDGE, clock=lambda: NOON)
    finally:
        alter(f"CONNECTION LIMIT -1 PASSWORD '{PASSWORD}' LOGIN")
        alter("RESET default_transaction_read_only")

    assert PASSWORD not in str(raised.value)
    assert not any(thread.name.startswith("store-") for thread in threading.enumerate())


async def test_a_missing_right_is_told_and_may_be_given_meanwhile(
    postgres_server: PostgresServer,
) -> None:
    with postgres_server.database() as url, postgres_server.session(url.rpartition("/")[2]) as root:
        root.execute("ALTER SCHEMA public OWNER TO postgres")
        database = Database(url)
        with pytest.raises(StoreUnavailableError, match="permission denied for schema public"):
            await database.migrate()
        root.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(sql.Identifier(ROLE)))
        await database.migrate()
        await database.close()


# --- mistakes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement", ["SELECT 1 / 0", "SELECT * FROM nonsense", "SELEC", "SELECT CAST('x' AS int)"]
)
async def test_a_wrong_statement_is_our_mistake(database: Database, statement: str) -> None:
    with pytest.raises(DBAPIError):
        await database.write(ask(statement))


async def test_a_broken_constraint_is_raised_and_the_connection_goes_on(
    database: Database,
) -> None:
    await database.write(add_row)
    for _ in range(20):  # more often than there are connections
        with pytest.raises(IntegrityError):
            await database.write(add_row)

    assert await database.read(sides) == ["train"]


async def test_what_an_event_says_is_not_in_an_error(database: Database) -> None:
    with pytest.raises(DBAPIError) as raised:
        await database.write(
            lambda tx: tx.execute(text("SELECT :word FROM nonsense"), {"word": "a secret"})
        )

    assert "a secret" not in str(raised.value)


# --- waiting for one another ------------------------------------------------------------


async def test_two_that_wait_for_each_other_both_get_done(store_url: str) -> None:
    """PostgreSQL ends one of them, which is run again."""
    first, second = Database(store_url), Database(store_url)
    keys = bytes(16), bytes(15) + b"\x01"
    rows = [{"key": key, "side": "train"} for key in keys]
    await first.write(lambda tx: tx.execute(insert(split_sides), rows))
    both_hold_one = threading.Barrier(2)
    tries: list[bytes] = []

    def lock(tx: Connection, key: bytes) -> None:
        tx.execute(select(split_sides).where(split_sides.c.key == key).with_for_update())

    def crosswise(mine: bytes, yours: bytes) -> Callable[[Connection], None]:
        def transaction(tx: Connection) -> None:
            lock(tx, mine)
            tries.append(mine)
            if tries.count(mine) == 1:
                both_hold_one.wait()
            lock(tx, yours)

        return transaction

    await asyncio.gather(first.write(crosswise(*keys)), second.write(crosswise(*keys[::-1])))

    assert len(tries) == 3
    await first.close()
    await second.close()


async def test_a_migration_waits_for_the_one_under_way(
    postgres_server: PostgresServer,
) -> None:
    with postgres_server.database() as url:
        database, other = Database(url), Database(url)
        prepared, may_end = threading.Event(), threading.Event()

        def migrate_slowly(tx: Connection) -> None:
            postgresql.prepare_to_migrate(tx)
            prepared.set()
            may_end.wait()

        migrating = asyncio.create_task(other.write(migrate_slowly))
        await asyncio.to_thread(prepared.wait)
        second = asyncio.create_task(database.migrate())
        waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        with psycopg.connect(url, autocommit=True) as session:
            await asyncio.to_thread(
                wait_until, "a lock that is waited for", lambda: _number(session, waits)
            )
        assert not second.done()

        may_end.set()
        await asyncio.gather(migrating, second)
        await database.close()
        await other.close()


def _number(session: psycopg.Connection[Any], query: str) -> int:
    row = session.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


# --- connecting -------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
async def test_each_common_spelling_of_an_address_is_understood(
    store_url: str, scheme: str
) -> None:
    database = Database(store_url.replace("postgresql", scheme, 1))
    assert await database.read(ask("SELECT 1")) == 1
    await database.close()


async def test_every_session_has_its_limits_and_a_name(database: Database) -> None:
    assert await database.write(ask("SHOW statement_timeout")) == "30s"
    assert await database.write(ask("SHOW lock_timeout")) == "10s"
    assert await database.write(ask("SHOW idle_in_transaction_session_timeout")) == "15s"
    assert await database.read(ask("SHOW application_name")) == "learnd"


async def test_what_the_address_says_stands(store_url: str) -> None:
    database = Database(f"{store_url}?application_name=mine&target_session_attrs=any")
    assert await database.read(ask("SHOW application_name")) == "mine"
    await database.close()


async def test_of_several_servers_the_one_that_answers_is_taken(store_url: str) -> None:
    user, _, place = store_url.rpartition("@")
    host, _, name = place.partition("/")
    database = Database(f"{user}@/{name}?host=127.0.0.1:9&host={host}")
    assert await database.read(ask("SELECT 1")) == 1
    await database.close()


async def test_isolation_does_not_depend_on_the_server(
    store_url: str, postgres_server: PostgresServer
) -> None:
    def alter(change: str) -> None:
        with postgres_server.session() as session:
            session.execute(f"ALTER ROLE {ROLE} {change}".encode())

    alter("SET default_transaction_isolation = serializable")
    database = Database(store_url)
    try:
        assert await database.write(ask("SHOW transaction_isolation")) == "read committed"
        assert await database.read(ask("SHOW transaction_isolation")) == "repeatable read"
    finally:
        await database.close()
        alter("RESET default_transaction_isolation")


async def test_a_database_that_cannot_hold_every_text_is_refused(
    postgres_server: PostgresServer,
) -> None:
    name = "latin"
    with postgres_server.session() as root:
        root.execute(
            f"CREATE DATABASE {name} OWNER {ROLE} TEMPLATE template0 ENCODING 'LATIN1'"
            " LOCALE 'C' LOCALE_PROVIDER libc".encode()
        )
    database = Database(postgres_server.url(name))
    try:
        with pytest.raises(UnsuitableDatabaseError, match="LATIN1"):
            await database.migrate()
    finally:
        await database.close()
        postgres_server.drop_database(name)
