"""What feedback has changed in the loop, and taking it back."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Query

from daemon.api.ports import Operations
from daemon.api.problems import OF_A_CHANGE, problems_of
from daemon.api.requests import Actor, FeedbackEffectsQuery, FeedbackResetRequest, RowId
from daemon.api.v1 import v1_router
from daemon.store.feedback_dials import FeedbackResult, StoredEffect
from daemon.store.views.feedback import FeedbackLoop, TaskTypeLoop
from daemon.store.views.paging import Page
from learning.errors import NotFoundError
from learning.events import Name
from learning.facts import FeedbackReset


def router(loop: FeedbackLoop, operations: Operations) -> APIRouter:
    """How each task type stands, the history, what came of one feedback, and reset."""
    routes = v1_router("/feedback", "feedback", HTTPStatus.NOT_FOUND)

    @routes.get("/loop")
    async def every_task_type() -> Sequence[TaskTypeLoop]:
        """Bars, trust, weight and style of every task type, and what its feedback says."""
        return await loop.every_task_type()

    @routes.get("/loop/{task_type}")
    async def one(task_type: Annotated[Name, Path()]) -> TaskTypeLoop:
        """Those of one task type."""
        found = await loop.one(task_type)
        if found is None:
            raise NotFoundError(
                f"no model line learns from {task_type!r}; `learnd feedback` lists task types"
            )
        return found

    @routes.get("/effects")
    async def effects(
        query: Annotated[FeedbackEffectsQuery, Query()],
    ) -> Page[StoredEffect, int]:
        """What feedback did, and which of its wishes were not followed, newest first."""
        return await loop.effects(task_type=query.task_type, before=query.before, limit=query.limit)

    @routes.get("/effects/{row_id}")
    async def result(row_id: RowId) -> FeedbackResult:
        """What came of one feedback, by its number; moments after it has met its output."""
        return await loop.result(row_id)

    @routes.post("/reset", responses=problems_of(*OF_A_CHANGE))
    async def reset(request: FeedbackResetRequest, actor: Actor) -> FeedbackReset:
        """Take back everything that feedback has changed for a task type."""
        return await operations.reset_feedback(
            request.task_type, reason=request.reason, actor=actor
        )

    return routes
