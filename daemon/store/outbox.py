"""Dead letters on their way to a topic: taken for a while by one daemon, then marked.

A letter that was taken and not marked is taken again when its time is up, so that a crash
sends one twice at worst, and several daemons do not send each of them.
"""

from collections.abc import Collection, Sequence
from datetime import timedelta

from sqlalchemy import Connection, func, or_, select, update

from daemon.store.database import Database
from daemon.store.tables import dead_letters
from learning.clock import Clock
from learning.ports import DeadLetter, EventKind, Origin, OutgoingLetter

TAKEN_FOR = timedelta(seconds=20)
SENT_BYTES = 1_000_000
"""Of a letter's raw bytes: what Kafka takes by default. The database has all of them."""

_WITHOUT_RAW = [column for column in dead_letters.columns if column.name != "raw"]


class Outbox:
    """The unpublished dead letters of one database; implements learning.ports.Outbox."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def take(self, most: int) -> Sequence[OutgoingLetter]:
        """See learning.ports.Outbox."""

        def transaction(tx: Connection) -> Sequence[OutgoingLetter]:
            now = self._clock()
            due = (
                select(dead_letters.c.id)
                .where(
                    dead_letters.c.published_at.is_(None),
                    or_(dead_letters.c.taken_until.is_(None), dead_letters.c.taken_until <= now),
                )
                .order_by(dead_letters.c.id)
                .limit(most)
                .with_for_update(skip_locked=True)
            )
            rows = tx.execute(
                update(dead_letters)
                .where(dead_letters.c.id.in_(due))
                .values(taken_until=now + TAKEN_FOR)
                .returning(
                    *_WITHOUT_RAW,
                    func.length(dead_letters.c.raw).label("n_bytes"),
                    func.substr(
                        dead_letters.c.raw, 1, SENT_BYTES, type_=dead_letters.c.raw.type
                    ).label("beginning"),
                )
            ).all()
            return [
                OutgoingLetter(
                    row.id,
                    DeadLetter(
                        EventKind(row.kind),
                        row.reason,
                        row.detail,
                        bytes(row.beginning or b""),  # SQLite: nothing of nothing is null
                        Origin(row.source, row.topic, row.partition, row.offset),
                        row.received_at,
                    ),
                    row.n_bytes,
                )
                for row in sorted(rows, key=lambda row: int(row.id))
            ]

        return await self._database.write(transaction)

    async def mark(self, letter_ids: Collection[int]) -> None:
        """See learning.ports.Outbox."""
        await self._database.write(
            lambda tx: tx.execute(
                update(dead_letters)
                .where(dead_letters.c.id.in_(sorted(letter_ids)))
                .values(published_at=self._clock(), taken_until=None)
            )
        )
