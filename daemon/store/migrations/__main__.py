"""Draft a migration from the difference between the last one and tables.py.

python -m daemon.store.migrations "What it does"
"""

import sys
import tempfile
from pathlib import Path

from alembic import command
from sqlalchemy import create_engine

from daemon.store.database import sqlite_url
from daemon.store.schema import migration_config


def main(message: str) -> None:
    """Write the draft beside the others; a person reads and corrects it, and names it in
    `daemon.store.schema.REVISION`."""
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(sqlite_url(Path(folder) / "empty.db"))
        with engine.connect() as connection:
            config = migration_config(connection)
            command.upgrade(config, "head")
            number = len(list((Path(__file__).parent / "versions").glob("*.py"))) + 1
            command.revision(config, message, autogenerate=True, rev_id=f"{number:04}")
        engine.dispose()


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
