"""The queue: how it stands, and sealing it now."""

from collections.abc import Sequence

from fastapi import APIRouter

from daemon.api.ports import FlushResult, Operations
from daemon.api.problems import OF_A_CHANGE, problems_of
from daemon.api.requests import Actor, FlushRequest
from daemon.store.views.overview import Overview, Overviews, Stats


def router(overviews: Overviews, operations: Operations) -> APIRouter:
    """Status, statistics and flush."""
    routes = APIRouter(tags=["queue"])

    @routes.get("/status")
    async def status() -> Overview:
        """Everything that goes on."""
        return await overviews.look()

    @routes.get("/stats")
    async def stats() -> Stats:
        """Queue, active and completed runs, champions."""
        return await overviews.stats()

    @routes.post("/queue/flush", responses=problems_of(*OF_A_CHANGE))
    async def flush(request: FlushRequest, actor: Actor) -> Sequence[FlushResult]:
        """Seal what waits; says for each line which batch that made, or why none."""
        return await operations.flush(request.task_type, actor=actor)

    return routes
