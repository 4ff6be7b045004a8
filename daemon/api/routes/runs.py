"""Fine-tune runs: look, cancel, and say what became of a launch."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from daemon.api.ports import Operations
from daemon.api.problems import OF_A_CHANGE, problems_of
from daemon.api.requests import Actor, CancelRequest, ResolveRequest, RunsQuery
from daemon.api.v1 import v1_router
from daemon.store.views.paging import Page
from daemon.store.views.runs import RunDetail, Runs, RunSummary
from learning.errors import NotFoundError
from learning.facts import LaunchResolved, RunCancelled


class CancelAnswer(BaseModel):
    """Whether a run is cancelled, or will be as soon as its job is ended; by whom and why."""

    line: str
    run_id: str
    cancelled: bool
    actor: str
    reason: str


def router(runs: Runs, operations: Operations) -> APIRouter:
    """List, show, cancel, resolve."""
    routes = v1_router("/runs", "runs", HTTPStatus.NOT_FOUND)

    @routes.get("")
    async def page(query: Annotated[RunsQuery, Query()]) -> Page[RunSummary, str]:
        """Runs, newest first."""
        return await runs.page(
            line=query.line, state=query.state, before=query.before, limit=query.limit
        )

    @routes.get("/{run_id}")
    async def one(run_id: str) -> RunDetail:
        """One run with its attempts, steps and measurements."""
        found = await runs.one(run_id)
        if found is None:
            raise NotFoundError(f"no run {run_id}; `learnd runs` lists them")
        return found

    @routes.post("/{run_id}/cancel", responses=problems_of(*OF_A_CHANGE))
    async def cancel(run_id: str, request: CancelRequest, actor: Actor) -> CancelAnswer:
        """End a run and return its batch; 409 when it is over already."""
        done = await operations.cancel_run(run_id, reason=request.reason, actor=actor)
        return CancelAnswer(cancelled=isinstance(done, RunCancelled), **vars(done))

    @routes.post("/{run_id}/resolve", responses=problems_of(*OF_A_CHANGE))
    async def resolve(run_id: str, request: ResolveRequest, actor: Actor) -> LaunchResolved:
        """Say what became of a launch whose reply nobody heard: a job, or none."""
        return await operations.resolve_run(run_id, request.job_id, actor=actor)

    return routes
