"""Settings: what holds, what was changed at run time, and changing it."""

from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query

from daemon.api.ports import SettingOperations, SettingsNow
from daemon.api.problems import OF_A_CHANGE, problems_of
from daemon.api.requests import Actor, SettingHistoryQuery, SettingsRequest, UndoRequest
from daemon.api.v1 import v1_router
from daemon.store.setting_changes import SettingChange
from daemon.store.views.paging import Page
from learning.adaptation import Thought


def router(
    operations: SettingOperations, thoughts: Callable[[], Awaitable[Sequence[Thought]]]
) -> APIRouter:
    """Look, change, undo, history, and what adapts by itself."""
    routes = v1_router("/settings", "settings", HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)

    @routes.get("")
    async def now() -> SettingsNow:
        """Every setting with its value, secrets masked, and where it was set."""
        return operations.now()

    @routes.post("", responses=problems_of(*OF_A_CHANGE))
    async def change(request: SettingsRequest, actor: Actor) -> SettingChange:
        """Set values, all or none; they hold at once and are in the store."""
        return await operations.change(
            request.values, reason=request.reason, actor=actor, if_revision=request.if_revision
        )

    @routes.post("/undo", responses=problems_of(*OF_A_CHANGE))
    async def undo(request: UndoRequest, actor: Actor) -> SettingChange:
        """Take one change back, as a new change."""
        return await operations.undo(
            revision=request.revision,
            key=request.key,
            reason=request.reason,
            actor=actor,
            if_revision=request.if_revision,
        )

    @routes.get("/history")
    async def history(
        query: Annotated[SettingHistoryQuery, Query()],
    ) -> Page[SettingChange, int]:
        """The changes that were made at run time, newest first."""
        return await operations.history(key=query.key, before=query.before, limit=query.limit)

    @routes.get("/adaptation")
    async def adaptation() -> Sequence[Thought]:
        """What this daemon thinks now of each setting that adapts, and what holds it."""
        return await thoughts()

    return routes
