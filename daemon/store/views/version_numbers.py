"""The numbers that versions go by, for lists that name many of them."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

from daemon.store.dialect import CHUNK
from daemon.store.registry import CHAMPION
from daemon.store.tables import aliases, versions

number: ColumnElement[Any] = func.coalesce(versions.c.release, versions.c.candidate)
"""In SQL what registry.number_of is in Python."""


def numbers_of(tx: Connection, version_ids: Iterable[int | None]) -> dict[int, str]:
    """The number of each version, by row id."""
    wanted = sorted({version_id for version_id in version_ids if version_id is not None})
    found: dict[int, str] = {}
    for start in range(0, len(wanted), CHUNK):
        rows = tx.execute(
            select(versions.c.id, number.label("number")).where(
                versions.c.id.in_(wanted[start : start + CHUNK])
            )
        )
        found.update({row.id: row.number for row in rows})
    return found


def champion_ids(tx: Connection) -> set[int]:
    """The row ids of all champions."""
    return set(tx.execute(select(aliases.c.version_id).where(aliases.c.name == CHAMPION)).scalars())
