"""Bring a database's schema up to this release's.

What has to be changed is done by Alembic. It is imported only then: most starts change
nothing, or make a schema in an empty database, and its 11 MiB would stay for as long as the
daemon runs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, inspect, text

from daemon.store.tables import POSTGRESQL_INDEXES, metadata

if TYPE_CHECKING:
    from alembic.config import Config

REVISION: Final = "0001"
"""The newest of the migrations: what tables.py describes."""
_BOOK: Final = "alembic_version"


def bring_up(tx: Connection) -> None:
    """Make the schema, change it, or leave it as it is; what fails leaves it to a rollback."""
    tables = inspect(tx).get_table_names()
    if not tables:
        metadata.create_all(tx)
        tx.execute(
            text(
                f"CREATE TABLE {_BOOK} (version_num VARCHAR(32) NOT NULL,"
                f" CONSTRAINT {_BOOK}_pkc PRIMARY KEY (version_num))"
            )
        )
        tx.execute(text(f"INSERT INTO {_BOOK} VALUES (:revision)"), {"revision": REVISION})  # noqa: S608  # our own name
    elif _BOOK not in tables or _written_down(tx) != [REVISION]:
        from alembic import command

        command.upgrade(migration_config(tx), "head")


def _written_down(tx: Connection) -> list[str]:
    return list(tx.execute(text(f"SELECT version_num FROM {_BOOK}")).scalars())  # noqa: S608  # our own name


def migration_config(connection: Connection) -> "Config":
    """Alembic's configuration for the migrations of this package, on one connection."""
    from alembic.config import Config

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
