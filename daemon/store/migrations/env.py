"""Run by Alembic: apply the migrations on the connection that the daemon hands over.

A new migration is drafted with `python -m daemon.store.migrations "What it does"` and
then read and corrected by a person.
"""

from typing import Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext

from daemon.store.schema import comparable
from daemon.store.tables import UtcTime, Words, metadata


def plain_types(kind: str, item: object, _context: AutogenContext) -> str | Literal[False]:
    """Write a column type of ours as what it is in the database: migrations outlive code."""
    match kind, item:
        case "type", UtcTime():
            return "sa.BigInteger()"
        case "type", Words():
            return "sa.Text()"
        case _:
            return False


connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    include_object=comparable(connection),
    render_as_batch=True,
    render_item=plain_types,
)
with context.begin_transaction():
    context.run_migrations()
