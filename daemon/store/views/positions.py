"""The stored positions of a source; implements learning.ports.KnownPositions."""

from collections.abc import Sequence

from sqlalchemy import select

from daemon.store.database import Database
from daemon.store.tables import positions
from learning.ports import Position


class StoredPositions:
    """The positions of one open database, which somebody else closes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, source: str) -> Sequence[Position]:
        """See learning.ports.KnownPositions."""
        query = select(positions).where(positions.c.source == source)
        return await self._database.read(
            lambda tx: [
                Position(row.topic, row.partition, row.epoch, row.next_offset, row.fingerprint)
                for row in tx.execute(query)
            ]
        )
