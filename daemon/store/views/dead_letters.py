"""Records that could not become events: a list, and one with its raw bytes."""

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

from daemon.store.database import Database
from daemon.store.tables import FORGOTTEN_LETTER, dead_letters
from daemon.store.views.paging import Page, newest

SHOWN_BYTES = 64 * 1024
"""Of a raw record at most so much is shown; all of it stays stored and is replayed."""

_WITHOUT_RAW: list[ColumnElement[Any]] = [
    column for column in dead_letters.columns if column.name != "raw"
]


@dataclass(frozen=True)
class DeadLetterSummary:
    """One dead letter on one line."""

    id: int
    kind: str
    reason: str
    detail: str
    source: str
    topic: str
    partition: int
    offset: int
    received_at: datetime
    replayed_at: datetime | None


@dataclass(frozen=True)
class DeadLetterDetail:
    """One dead letter with its first SHOWN_BYTES bytes, as text and exactly."""

    summary: DeadLetterSummary
    n_bytes: int
    text: str
    """UTF-8; what is not is shown as U+FFFD."""
    raw_base64: str
    truncated: bool


class DeadLetters:
    """The dead letters of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self,
        *,
        reason: str | None = None,
        replayed: bool | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> Page[DeadLetterSummary, int]:
        """Dead letters with an id below `before`, newest first."""

        def query(tx: Connection) -> Page[DeadLetterSummary, int]:
            conditions: list[ColumnElement[bool]] = []
            if reason is not None:
                conditions.append(dead_letters.c.reason == reason)
            if replayed is not None:
                is_open = dead_letters.c.replayed_at.is_(None) & (
                    dead_letters.c.reason != FORGOTTEN_LETTER
                )
                conditions.append(~is_open if replayed else is_open)
            rows = newest(tx, select(*_WITHOUT_RAW), dead_letters.c.id, conditions, before, limit)
            return Page([_summary(row) for row in rows.items], rows.next)

        return await self._database.read(query)

    async def one(self, letter_id: int) -> DeadLetterDetail | None:
        """One dead letter, or None."""

        def query(tx: Connection) -> DeadLetterDetail | None:
            row = tx.execute(
                select(
                    *_WITHOUT_RAW,
                    func.length(dead_letters.c.raw).label("n_bytes"),
                    func.substr(
                        dead_letters.c.raw, 1, SHOWN_BYTES, type_=dead_letters.c.raw.type
                    ).label("shown"),
                ).where(dead_letters.c.id == letter_id)
            ).first()
            if row is None:
                return None
            shown = bytes(row.shown or b"")  # SQLite: nothing of nothing is null
            return DeadLetterDetail(
                summary=_summary(row),
                n_bytes=row.n_bytes,
                text=shown.decode("utf-8", errors="replace"),
                raw_base64=base64.b64encode(shown).decode("ascii"),
                truncated=row.n_bytes > SHOWN_BYTES,
            )

        return await self._database.read(query)


def _summary(row: Any) -> DeadLetterSummary:
    return DeadLetterSummary(
        id=row.id,
        kind=row.kind,
        reason=row.reason,
        detail=row.detail,
        source=row.source,
        topic=row.topic,
        partition=row.partition,
        offset=row.offset,
        received_at=row.received_at,
        replayed_at=row.replayed_at,
    )
