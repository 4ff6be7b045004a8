"""Fine-tune runs."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query

from daemon.api.problems import problems_of
from daemon.api.requests import RunsQuery
from daemon.store.views.paging import Page
from daemon.store.views.runs import RunDetail, Runs, RunSummary
from learning.errors import NotFoundError


def router(runs: Runs) -> APIRouter:
    """List and show."""
    routes = APIRouter(prefix="/runs", tags=["runs"], responses=problems_of(HTTPStatus.NOT_FOUND))

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

    return routes
