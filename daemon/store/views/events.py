"""Stored outputs: a list by state, and one with everything that is known of it."""

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, select

from daemon.store.database import Database
from daemon.store.tables import (
    batch_members,
    evaluation_examples,
    events,
    feedback,
    is_one_of,
    screenings,
    tallies,
)
from daemon.store.views.history import Step, history_of
from daemon.store.views.paging import Page, newest
from learning.events import OutputEvent, answer_text
from learning.lifecycle import EventState
from learning.ports import EventKind

INDEXED_STATES = frozenset({EventState.QUEUED, EventState.HELD, EventState.QUARANTINED})
"""States whose events are found by an index of their own, by task type."""

PREVIEW_CHARACTERS = 160
MOST_FEEDBACK = 100


@dataclass(frozen=True)
class EventSummary:
    """One output on one line."""

    id: int
    producer: str
    event_id: str
    task_type: str
    task_id: str
    state: str
    reason: str
    by_human: bool
    confidence: float | None
    received_at: datetime
    prompt: str
    output: str


@dataclass(frozen=True)
class Joined:
    """Feedback that met its output."""

    producer: str
    event_id: str
    state: str
    approved: bool | None
    received_at: datetime


@dataclass(frozen=True)
class Membership:
    """That the event is a member of a batch, and as what."""

    batch_id: str
    role: str


@dataclass(frozen=True)
class ScreeningFinding:
    """What a costly validator has against the event, or scrubbed in it."""

    validator: str
    message: str
    scrubbed: bool


@dataclass(frozen=True)
class EventScreening:
    """What came of it when costly validators looked at the event."""

    outcome: str
    findings: Sequence[ScreeningFinding]
    cost: Mapping[str, float]
    """Seconds by validator."""
    at: datetime


@dataclass(frozen=True)
class EventDetail:
    """Everything that is stored about one output."""

    summary: EventSummary
    payload: Mapping[str, Any]
    approved: bool | None
    subject: str | None
    model_version: str | None
    source: str
    topic: str
    partition: int
    offset: int
    occurred_at: datetime
    feedback: Sequence[Joined]
    batches: Sequence[Membership]
    frozen: bool
    """Whether it stands in the frozen held-out set, and judges candidates."""
    screening: EventScreening | None
    """None as long as no batch needed it."""
    history: Sequence[Step]


class Events:
    """The outputs of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self,
        *,
        state: EventState | None = None,
        task_type: str | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> Page[EventSummary, int]:
        """Outputs with a row id below `before`, newest first."""

        def query(tx: Connection) -> Page[EventSummary, int]:
            if state in INDEXED_STATES:
                rows = _by_index(tx, state, task_type, before, limit)
            else:
                conditions: list[ColumnElement[bool]] = []
                if state is not None:
                    conditions.append(events.c.state == state)
                if task_type is not None:
                    conditions.append(events.c.task_type == task_type)
                rows = newest(tx, select(events), events.c.id, conditions, before, limit)
            return Page([summary_of(row) for row in rows.items], rows.next)

        return await self._database.read(query)

    async def one(self, row_id: int) -> EventDetail | None:
        """One output by its row id, or None."""

        def query(tx: Connection) -> EventDetail | None:
            row = tx.execute(select(events).where(events.c.id == row_id)).first()
            return None if row is None else _detail(tx, row)

        return await self._database.read(query)


def summary_of(row: Row[Any]) -> EventSummary:
    """A row of the events table on one line."""
    prompt, output = _texts(row.payload)
    return EventSummary(
        id=row.id,
        producer=row.producer,
        event_id=row.event_id,
        task_type=row.task_type,
        task_id=row.task_id,
        state=row.state,
        reason=row.reason,
        by_human=row.by_human,
        confidence=row.confidence,
        received_at=row.received_at,
        prompt=_preview(prompt),
        output=_preview(output),
    )


def _by_index(
    tx: Connection, state: EventState, task_type: str | None, before: int | None, limit: int
) -> Page[Row[Any], int]:
    """The newest of each task type by the state's own index, merged."""
    task_types = [task_type] if task_type is not None else _task_types_with(tx, state)
    found: list[Row[Any]] = []
    for name in task_types:
        query = (
            select(events)
            .where(is_one_of(events.c.state, state), events.c.task_type == name)
            .order_by(events.c.id.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(events.c.id < before)
        found.extend(tx.execute(query))
    rows = heapq.nlargest(limit, found, key=lambda row: row.id)
    return Page(rows, rows[-1].id if len(rows) == limit else None)


def _task_types_with(tx: Connection, state: EventState) -> Sequence[str]:
    return (
        tx.execute(
            select(tallies.c.task_type).where(
                tallies.c.kind == EventKind.OUTPUT, tallies.c.state == state, tallies.c.n > 0
            )
        )
        .scalars()
        .all()
    )


def _detail(tx: Connection, row: Row[Any]) -> EventDetail:
    joined = tx.execute(
        select(feedback)
        .where(feedback.c.output_id == row.id)
        .order_by(feedback.c.id)
        .limit(MOST_FEEDBACK)
    )
    members = tx.execute(
        select(batch_members.c.batch_id, batch_members.c.role)
        .where(batch_members.c.event_id == row.id)
        .order_by(batch_members.c.batch_id)
    )
    frozen = tx.execute(
        select(evaluation_examples.c.id).where(evaluation_examples.c.event_id == row.id)
    ).first()
    screened = tx.execute(select(screenings).where(screenings.c.event_id == row.id)).first()
    return EventDetail(
        summary=summary_of(row),
        payload=json.loads(row.payload),
        approved=row.approved,
        subject=row.subject,
        model_version=row.model_version,
        source=row.source,
        topic=row.topic,
        partition=row.partition,
        offset=row.offset,
        occurred_at=row.occurred_at,
        feedback=[
            Joined(one.producer, one.event_id, one.state, one.approved, one.received_at)
            for one in joined
        ],
        batches=[Membership(one.batch_id, one.role) for one in members],
        frozen=frozen is not None,
        screening=None if screened is None else _screening(screened),
        history=history_of(tx, "event", str(row.id)),
    )


def _screening(row: Row[Any]) -> EventScreening:
    findings = [ScreeningFinding(**finding) for finding in row.findings]
    return EventScreening(row.outcome, findings, row.cost, row.at)


def _texts(payload: str) -> tuple[str, str]:
    event = OutputEvent.model_validate_json(payload)
    if event.messages is not None:
        asked = [message.content for message in event.messages if message.role == "user"]
        return asked[-1], answer_text(event)
    return event.prompt or "", answer_text(event)


def _preview(content: str) -> str:
    line = " ".join(content[: 4 * PREVIEW_CHARACTERS].split())
    if len(line) > PREVIEW_CHARACTERS or len(content) > 4 * PREVIEW_CHARACTERS:
        return line[: PREVIEW_CHARACTERS - 1] + "…"
    return line
