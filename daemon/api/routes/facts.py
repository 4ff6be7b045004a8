"""What has happened lately."""

from collections.abc import Sequence

from fastapi import APIRouter

from daemon.api.v1 import v1_router
from daemon.recent_facts import RecentFacts, ToldFact


def router(facts: RecentFacts) -> APIRouter:
    """The last facts."""
    routes = v1_router("", "facts")

    @routes.get("/facts")
    async def newest() -> Sequence[ToldFact]:
        """The last facts of this daemon since its start, newest first; history is elsewhere."""
        return facts.newest()

    return routes
