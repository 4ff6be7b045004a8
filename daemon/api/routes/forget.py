"""Forget what events said, by event, producer or subject."""

from http import HTTPStatus

from fastapi import APIRouter

from daemon.api.ports import ForgetOrder, ForgetReport, Forgetter
from daemon.api.problems import OF_A_CHANGE, problems_of
from daemon.api.requests import Actor, ForgetRequest
from daemon.api.v1 import v1_router


def router(forgetter: Forgetter) -> APIRouter:
    """One request for all three."""
    routes = v1_router("", "events", HTTPStatus.NOT_FOUND)

    @routes.post("/forget", responses=problems_of(*OF_A_CHANGE))
    async def forget(request: ForgetRequest, actor: Actor) -> ForgetReport:
        """Purge what the events say for good, and take out of use whatever learned from them.

        It answers when it is done, which takes minutes where there is much. Asked again it goes
        on where it was, and changes nothing more.
        """
        return await forgetter.forget(ForgetOrder(**request.model_dump()), actor=actor)

    return routes
