"""The migrations make exactly the tables that the code believes in."""

import asyncio

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

from daemon.store.database import Database, comparable
from daemon.store.tables import metadata


def differences(tx: Connection) -> list[object]:
    context = MigrationContext.configure(
        tx,
        opts={
            "compare_type": True,
            "compare_server_default": True,
            "include_object": comparable(tx),
        },
    )
    return list(compare_metadata(context, metadata))


async def test_an_empty_database_is_migrated_to_what_tables_py_says(store_url: str) -> None:
    database = Database(store_url)
    try:
        await database.migrate()
        assert await database.read(differences) == []
    finally:
        await database.close()


async def test_indexes_have_the_same_conditions(store_url: str) -> None:
    """Alembic does not compare them, and the promises hang on them."""
    migrated = Database(store_url)
    try:
        await migrated.migrate()
        if not store_url.startswith("sqlite"):
            return
        wanted = create_engine("sqlite://")
        with wanted.begin() as tx:
            metadata.create_all(tx)
            expected = _index_statements(tx)
        wanted.dispose()
        assert await migrated.read(_index_statements) == expected
    finally:
        await migrated.close()


def _index_statements(tx: Connection) -> dict[str, str]:
    rows = tx.execute(
        text("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql <> ''")
    )
    return {row.name: " ".join(row.sql.replace('"', "").split()) for row in rows}


async def test_migrating_again_changes_nothing(store_url: str) -> None:
    for _ in range(2):
        database = Database(store_url)
        try:
            await database.migrate()
            assert await database.read(differences) == []
        finally:
            await database.close()


async def test_two_daemons_that_start_together_migrate_once(store_url: str) -> None:
    daemons = [Database(store_url) for _ in range(3)]
    try:
        await asyncio.gather(*(daemon.migrate() for daemon in daemons))
        assert await daemons[0].read(differences) == []
    finally:
        for daemon in daemons:
            await daemon.close()


async def test_a_migration_that_fails_leaves_nothing_behind(store_url: str) -> None:
    database = Database(store_url)

    def taken(tx: Connection) -> None:
        tx.execute(text("CREATE TABLE versions (id INTEGER)"))

    try:
        await database.write(taken)
        with pytest.raises(DBAPIError, match="versions"):
            await database.migrate()
        names = await database.read(lambda tx: inspect(tx).get_table_names())
        assert names == ["versions"]
    finally:
        await database.close()
