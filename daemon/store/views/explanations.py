"""Why an event was accepted, held or refused, and what became of it: `learnd explain EVENT`.

Puts together what the other views know of one event. Reasons are read as they were stored, with
the verdict and with each step since, so that whoever moves an event is heard here too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select

from daemon.store.database import Database
from daemon.store.tables import feedback
from daemon.store.views.history import Step, history_of
from daemon.store.views.lineage import EventLineage, event_row, lineage_of_event


@dataclass(frozen=True)
class Voices:
    """How many people said what of an output; each feedback is one."""

    yes: int
    no: int
    without_verdict: int


@dataclass(frozen=True)
class Explanation:
    """Everything that an event's story is made of."""

    stated: bool | None
    """What its producer said of it: the event's own `approved`."""
    said_at: datetime
    """When its producer says that it was made."""
    source: str
    topic: str
    voices: Voices
    steps: Sequence[Step]
    """Each move since it was stored, with its reason and its actor, oldest first."""
    lineage: EventLineage


class Explanations:
    """The stories of the events of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, text: str) -> Explanation:
        """The story of an event, by its row id or as PRODUCER/EVENT_ID.

        Raises UnreadableIdError, and NotFoundError when there is no such event.
        """

        def query(tx: Connection) -> Explanation:
            row = event_row(tx, text)
            return Explanation(
                stated=row.approved,
                said_at=row.occurred_at,
                source=row.source,
                topic=row.topic,
                voices=_voices(tx, row),
                steps=history_of(tx, "event", str(row.id)),
                lineage=lineage_of_event(tx, row),
            )

        return await self._database.read(query)


def _voices(tx: Connection, row: Row[Any]) -> Voices:
    counted = {
        one.approved: one.n
        for one in tx.execute(
            select(feedback.c.approved, func.count().label("n"))
            .where(feedback.c.output_id == row.id)
            .group_by(feedback.c.approved)
        )
    }
    return Voices(counted.get(True, 0), counted.get(False, 0), counted.get(None, 0))
