"""What became of arrivals, by the ids that they came under; implements learning.ports.Receipts."""

from collections import defaultdict
from collections.abc import Collection, Mapping

from sqlalchemy import Connection, literal, select

from daemon.store.database import Database
from daemon.store.dialect import CHUNK
from daemon.store.tables import events, feedback
from learning.ports import EventKind, Origin, Receipt


class StoredReceipts:
    """The receipts of one open database, which somebody else closes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(
        self, kind: EventKind, keys: Collection[tuple[str, str]]
    ) -> Mapping[tuple[str, str], Receipt]:
        """See learning.ports.Receipts."""
        return await self._database.read(lambda tx: _receipts(tx, kind, keys))


def _receipts(
    tx: Connection, kind: EventKind, keys: Collection[tuple[str, str]]
) -> dict[tuple[str, str], Receipt]:
    table = events if kind is EventKind.OUTPUT else feedback
    reason = events.c.reason if kind is EventKind.OUTPUT else literal("").label("reason")
    # One producer at a time: of a list of pairs SQLite would scan the whole index.
    by_producer: defaultdict[str, list[str]] = defaultdict(list)
    for producer, event_id in sorted(keys):
        by_producer[producer].append(event_id)
    return {
        (row.producer, row.event_id): Receipt(
            row.id,
            row.state,
            row.reason,
            row.content_hash,
            Origin(row.source, row.topic, row.partition, row.offset),
        )
        for producer, ids in by_producer.items()
        for start in range(0, len(ids), CHUNK)
        for row in tx.execute(
            select(
                table.c.id,
                table.c.producer,
                table.c.event_id,
                table.c.state,
                reason,
                table.c.content_hash,
                table.c.source,
                table.c.topic,
                table.c.partition,
                table.c.offset,
            ).where(
                table.c.producer == producer,
                table.c.event_id.in_(ids[start : start + CHUNK]),
            )
        )
    }
