"""Import dataset files, each as one sealed batch."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from daemon.api.ports import DatasetImport, Operations
from daemon.api.problems import OF_A_CHANGE, problems_of
from daemon.api.requests import Actor, ImportQuery
from daemon.api.v1 import v1_router

PATH = "/v1/imports"
LONGEST_IMPORT_BYTES = 64 * 1024 * 1024
ROWS = {"requestBody": {"content": {"*/*": {"schema": {"type": "string"}}}, "required": True}}


def router(operations: Operations) -> APIRouter:
    """One address; its body is a dataset file, not a JSON document."""
    routes = v1_router("", "imports")

    @routes.post("/imports", responses=problems_of(*OF_A_CHANGE), openapi_extra=ROWS)
    async def import_dataset(
        request: Request, query: Annotated[ImportQuery, Query()], actor: Actor
    ) -> DatasetImport:
        """Store its rows and seal them; says for each refused one its line and why."""
        return await operations.import_dataset(
            await request.body(),
            line=query.line,
            task_type=query.task_type,
            file=query.file,
            approved=query.approved,
            actor=actor,
        )

    return routes
