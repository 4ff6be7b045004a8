"""What trainings cost."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query

from daemon.api.requests import CostsQuery
from daemon.api.v1 import v1_router
from daemon.store.views.costs import Account, CostBooks, Costs


def router(books: CostBooks) -> APIRouter:
    """How the money stands, and where it went. Amounts are texts, so that no cent is lost."""
    routes = v1_router("/costs", "runs")

    @routes.get("")
    async def costs() -> Costs:
        """Spent and reserved against the caps, and the runs that wait for money."""
        return await books.look()

    @routes.get("/accounts")
    async def accounts(query: Annotated[CostsQuery, Query()]) -> Sequence[Account]:
        """By day, month or run, newest first; by line for this month."""
        return await books.accounts(query.by, query.limit)

    return routes
