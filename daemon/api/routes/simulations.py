"""Simulations: what the record would have become under other settings."""

from http import HTTPStatus

from fastapi import APIRouter

from daemon.api.ports import SimulationAnswer, SimulationOperations
from daemon.api.problems import OF_A_CHANGE, problems_of
from daemon.api.requests import SimulationRequest
from daemon.api.v1 import v1_router


def router(operations: SimulationOperations) -> APIRouter:
    """One address."""
    routes = v1_router("/simulations", "simulations", HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)

    @routes.post("", responses=problems_of(*OF_A_CHANGE))
    async def simulate(request: SimulationRequest) -> SimulationAnswer:
        """Replay a stretch of the record, or events that are sent along; nothing is changed."""
        return await operations.simulate(
            request.settings,
            events=request.events,
            since=request.since,
            until=request.until,
            line=request.line,
            task_type=request.task_type,
            run_seconds=request.run_seconds,
        )

    return routes
