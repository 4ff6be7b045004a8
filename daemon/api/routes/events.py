"""Stored outputs, and a person's verdict on one."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from daemon.api.ports import Operations
from daemon.api.problems import OF_A_CHANGE, problems_of
from daemon.api.requests import Actor, EventsQuery, RowId, VerdictRequest
from daemon.api.v1 import v1_router
from daemon.store.queue import UnknownEventError
from daemon.store.views.events import EventDetail, Events, EventSummary
from daemon.store.views.paging import Page


class Judged(BaseModel):
    """What an event became by a verdict."""

    id: int
    state: str


def router(events: Events, operations: Operations) -> APIRouter:
    """List, show, judge."""
    routes = v1_router("/events", "events", HTTPStatus.NOT_FOUND)

    @routes.get("")
    async def page(query: Annotated[EventsQuery, Query()]) -> Page[EventSummary, int]:
        """Outputs, newest first."""
        return await events.page(
            state=query.state, task_type=query.task_type, before=query.before, limit=query.limit
        )

    @routes.get("/{row_id}")
    async def one(row_id: RowId) -> EventDetail:
        """One output with its feedback, batches and history."""
        found = await events.one(row_id)
        if found is None:
            raise UnknownEventError(row_id)
        return found

    @routes.post("/{row_id}/verdict", responses=problems_of(*OF_A_CHANGE))
    async def judge(row_id: RowId, request: VerdictRequest, actor: Actor) -> Judged:
        """Approve or reject an output that is held, quarantined or queued."""
        state = await operations.judge(
            row_id, approved=request.approved, reason=request.reason, actor=actor
        )
        return Judged(id=row_id, state=state)

    return routes
