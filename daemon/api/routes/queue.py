"""The queue: how it stands, and sealing it now."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query

from daemon.api.ports import FlushResult, Operations
from daemon.api.problems import OF_A_CHANGE, problems_of
from daemon.api.requests import Actor, BatchSizeRequest, FlushRequest, StatsQuery
from daemon.api.v1 import v1_router
from daemon.store.batch_sizes import LineBatchSize
from daemon.store.views.batch_sizes import BatchSizeDetail, BatchSizes
from daemon.store.views.overview import Overview, Overviews
from daemon.store.views.statistics import LearningStats, StatisticsBooks
from learning.errors import NotFoundError
from learning.facts import BatchSizeChanged
from learning.ports import TrainerCondition


@dataclass(frozen=True)
class Status(Overview):
    """Everything that `learnd status` shows: what is stored, and what this daemon holds."""

    trainer: TrainerCondition | None
    """The local trainer process; None where there can be none."""


def router(
    overviews: Overviews,
    sizes: BatchSizes,
    statistics: StatisticsBooks,
    operations: Operations,
    trainer: Callable[[], TrainerCondition | None],
) -> APIRouter:
    """Status, statistics, batch sizes and flush."""
    routes = v1_router("", "queue")

    @routes.get("/status")
    async def status() -> Status:
        """Everything that goes on."""
        return Status(**vars(await overviews.look()), trainer=trainer())

    @routes.get("/stats", responses=problems_of(HTTPStatus.NOT_FOUND))
    async def stats(query: Annotated[StatsQuery, Query()]) -> LearningStats:
        """Queue, runs and champions, what was learned, what feedback says, and what to do."""
        return await statistics.look(query.length, query.task_type)

    @routes.post("/queue/flush", responses=problems_of(*OF_A_CHANGE))
    async def flush(request: FlushRequest, actor: Actor) -> Sequence[FlushResult]:
        """Seal what waits; says for each line which batch that made, or why none."""
        return await operations.flush(request.task_type, actor=actor)

    @routes.get("/queue/batch-sizes")
    async def batch_sizes() -> Sequence[LineBatchSize]:
        """The batch size of every line, and why."""
        return await sizes.every_line()

    @routes.get("/queue/batch-sizes/{line}", responses=problems_of(HTTPStatus.NOT_FOUND))
    async def batch_size(line: str) -> BatchSizeDetail:
        """The batch size of one line with every change of it."""
        found = await sizes.one(line)
        if found is None:
            raise NotFoundError(f"there is no model line {line!r}; `learnd status` lists them")
        return found

    @routes.post("/queue/batch-sizes/{line}", responses=problems_of(*OF_A_CHANGE))
    async def set_batch_size(
        line: str, request: BatchSizeRequest, actor: Actor
    ) -> BatchSizeChanged:
        """Pin a line's batch size, or let it adapt again."""
        return await operations.set_batch_size(
            line, request.size, reason=request.reason, actor=actor
        )

    return routes
