"""Webhooks that were received: a list by type, and one."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, select

from daemon.store.database import Database
from daemon.store.tables import run_attempts, webhook_deliveries
from daemon.store.views.paging import Page, newest


@dataclass(frozen=True)
class WebhookSummary:
    """One received webhook: what is kept of it."""

    id: int
    delivery_id: str
    """The sender's; the same when it was sent again."""
    type: str
    object_id: str | None
    """What the event is about: of `fine_tuning.job.*` the job."""
    run_id: str | None
    """The run here that has, or had, that job."""
    received_at: datetime
    """The first time that it came."""


class Webhooks:
    """The received webhooks of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self, *, types: Sequence[str] = (), before: int | None = None, limit: int = 50
    ) -> Page[WebhookSummary, int]:
        """Webhooks of some types, or of all, with an id below `before`, newest first."""

        def query(tx: Connection) -> Page[WebhookSummary, int]:
            conditions: list[ColumnElement[bool]] = []
            if types:
                conditions.append(webhook_deliveries.c.type.in_(types))
            rows = newest(tx, _SUMMARIES, webhook_deliveries.c.id, conditions, before, limit)
            return Page([_summary(row) for row in rows.items], rows.next)

        return await self._database.read(query)

    async def one(self, row_id: int) -> WebhookSummary | None:
        """One webhook, or None."""

        def query(tx: Connection) -> WebhookSummary | None:
            row = tx.execute(_SUMMARIES.where(webhook_deliveries.c.id == row_id)).first()
            return None if row is None else _summary(row)

        return await self._database.read(query)


_RUN = (
    select(run_attempts.c.run_id)
    .where(run_attempts.c.job_id == webhook_deliveries.c.object_id)
    .limit(1)
    .scalar_subquery()
    .label("run_id")
)
_SUMMARIES = select(webhook_deliveries, _RUN)


def _summary(row: Row[Any]) -> WebhookSummary:
    return WebhookSummary(
        id=row.id,
        delivery_id=row.delivery_id,
        type=row.type,
        object_id=row.object_id,
        run_id=row.run_id,
        received_at=row.received_at,
    )
