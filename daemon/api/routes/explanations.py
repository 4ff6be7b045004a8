"""The story of one event."""

from http import HTTPStatus

from fastapi import APIRouter

from daemon.api.v1 import v1_router
from daemon.store.views.explanations import Explanation, Explanations


def router(explanations: Explanations) -> APIRouter:
    """One address for every event."""
    routes = v1_router("", "events", HTTPStatus.NOT_FOUND)

    @routes.get("/explanations/{text:path}")
    async def explain(text: str) -> Explanation:
        """Why an event (number or PRODUCER/EVENT_ID) was accepted, held or refused, and what
        became of it."""
        return await explanations.of(text)

    return routes
