"""The migrations make exactly the tables that the code believes in."""

import asyncio
from collections.abc import Callable

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError

from daemon.store.database import Database
from daemon.store.schema import REVISION, comparable, migration_config
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


def by_alembic(tx: Connection) -> None:
    command.upgrade(migration_config(tx), "head")


async def test_the_migrations_lead_to_what_tables_py_says(empty_url: str) -> None:
    database = Database(empty_url)
    try:
        await database.write(by_alembic)
        assert await database.read(differences) == []
        assert await database.read(written_down) == [REVISION]
    finally:
        await database.close()


async def test_an_empty_database_becomes_what_tables_py_says(empty_url: str) -> None:
    database = Database(empty_url)
    try:
        await database.migrate()
        assert await database.read(differences) == []
        assert await database.read(written_down) == [REVISION]
    finally:
        await database.close()


async def test_an_older_schema_is_changed_by_the_migrations(empty_url: str) -> None:
    """Here the oldest: a database in which Alembic was, and that has nothing yet."""
    database = Database(empty_url)
    try:
        await database.write(lambda tx: command.downgrade(migration_config(tx), "base"))
        assert await database.read(written_down) == []
        await database.migrate()
        assert await database.read(differences) == []
        assert await database.read(written_down) == [REVISION]
    finally:
        await database.close()


def written_down(tx: Connection) -> list[str]:
    return list(tx.execute(text("SELECT version_num FROM alembic_version")).scalars())


async def test_indexes_have_the_same_conditions(
    new_empty_url: Callable[[], str],
) -> None:
    """Alembic does not compare them, and the promises hang on them."""
    migrated, wanted = Database(new_empty_url()), Database(new_empty_url())
    try:
        await migrated.write(by_alembic)
        await wanted.write(metadata.create_all)
        expected = await wanted.read(_index_statements)
        assert "WHERE" in expected["one_primary_role"]
        found = await migrated.read(_index_statements)
        found.pop("alembic_version_pkc", None)
        assert found == expected
    finally:
        await migrated.close()
        await wanted.close()


def _index_statements(tx: Connection) -> dict[str, str]:
    if tx.dialect.name == "sqlite":
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql <> ''"
    else:
        query = (
            "SELECT indexname AS name, indexdef AS sql FROM pg_indexes WHERE schemaname = 'public'"
        )
    return {row.name: " ".join(row.sql.replace('"', "").split()) for row in tx.execute(text(query))}


async def test_migrating_again_changes_nothing(empty_url: str) -> None:
    for _ in range(2):
        database = Database(empty_url)
        try:
            await database.migrate()
            assert await database.read(differences) == []
        finally:
            await database.close()


async def test_two_daemons_that_start_together_migrate_once(empty_url: str) -> None:
    daemons = [Database(empty_url) for _ in range(3)]
    try:
        await asyncio.gather(*(daemon.migrate() for daemon in daemons))
        assert await daemons[0].read(differences) == []
    finally:
        for daemon in daemons:
            await daemon.close()


async def test_a_migration_that_fails_leaves_nothing_behind(empty_url: str) -> None:
    database = Database(empty_url)

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
