"""Model lines and versions: look, promote, roll back."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query

from daemon.api.ports import Operations
from daemon.api.problems import OF_A_CHANGE, problems_of
from daemon.api.requests import Actor, PageQuery, PromoteRequest, RollbackRequest
from daemon.api.v1 import v1_router
from daemon.store.registry import CHAMPION
from daemon.store.views.models import AliasMove, LineSummary, Models, VersionDetail, VersionSummary
from daemon.store.views.paging import Page
from daemon.store.views.verdicts import VerdictReport, Verdicts
from learning.facts import Promoted, RolledBack


@dataclass(frozen=True)
class ChampionInUse(VersionDetail):
    """The champion, and how much of the traffic should still go to the version before it."""

    predecessor: str | None
    canary_share: float
    """In [0, 1]; above 0 only while people's verdict on the champion is open."""


def router(models: Models, verdicts: Verdicts, operations: Operations) -> APIRouter:
    """The registry of versions."""
    routes = v1_router("/models", "models", HTTPStatus.NOT_FOUND)

    @routes.get("")
    async def lines() -> Sequence[LineSummary]:
        """Every line that has a version."""
        return await models.lines()

    @routes.get("/{line}/versions")
    async def versions(
        line: str, query: Annotated[PageQuery, Query()]
    ) -> Page[VersionSummary, int]:
        """The versions of a line, newest first, with the gate's numbers."""
        return await models.page(line, before=query.before, limit=query.limit)

    @routes.get("/{line}/champion")
    async def champion(line: str) -> ChampionInUse:
        """The version that is in use, how to load it, and the canary share."""
        served = await verdicts.served(line)
        detail = await models.one(line, CHAMPION)
        parts = {one.name: getattr(detail, one.name) for one in fields(detail)}
        return ChampionInUse(
            **parts, predecessor=served.predecessor, canary_share=served.canary_share
        )

    @routes.get("/{line}/verdict")
    async def verdict(
        line: str, version: Annotated[str | None, Query(max_length=256)] = None
    ) -> VerdictReport:
        """What people say of a version, or of the champion, against the one before it."""
        return await verdicts.one(line, version)

    @routes.get("/{line}/champion/history")
    async def champion_history(line: str) -> Sequence[AliasMove]:
        """How the champion changed, newest first."""
        return await models.champion_moves(line)

    @routes.get("/{line}/versions/{version}")
    async def version(line: str, version: str) -> VersionDetail:
        """One version, by number or as `champion`, and how to load it."""
        return await models.one(line, version)

    @routes.post("/{line}/promote", responses=problems_of(*OF_A_CHANGE))
    async def promote(line: str, request: PromoteRequest, actor: Actor) -> Promoted:
        """Make a version the champion; what the gate did not promote needs force and reason."""
        return await operations.promote(
            line, request.version, force=request.force, reason=request.reason, actor=actor
        )

    @routes.post("/{line}/rollback", responses=problems_of(*OF_A_CHANGE))
    async def rollback(line: str, request: RollbackRequest, actor: Actor) -> RolledBack:
        """Make an earlier version the champion again."""
        return await operations.rollback(line, request.to, reason=request.reason, actor=actor)

    return routes
