"""Import human-labelled examples into the frozen held-out set."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from daemon.api.ports import Operations
from daemon.api.problems import OF_A_CHANGE, problems_of
from daemon.api.requests import Actor, HeldOutQuery
from daemon.api.v1 import v1_router
from daemon.store.queue import HeldOutImport

PATH = "/v1/held-out"
LONGEST_IMPORT_BYTES = 64 * 1024 * 1024
ROWS = {"requestBody": {"content": {"*/*": {"schema": {"type": "string"}}}, "required": True}}


def router(operations: Operations) -> APIRouter:
    """One address; its body is JSONL, not a JSON document."""
    routes = v1_router("", "held-out")

    @routes.post("/held-out", responses=problems_of(*OF_A_CHANGE), openapi_extra=ROWS)
    async def import_held_out(
        request: Request, query: Annotated[HeldOutQuery, Query()], actor: Actor
    ) -> HeldOutImport:
        """Add rows; says for each refused one its line and why."""
        return await operations.import_held_out(
            await request.body(), task_type=query.task_type, actor=actor
        )

    return routes
