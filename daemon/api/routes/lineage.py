"""Lineage, both ways."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from daemon.api.requests import LineageQuery
from daemon.api.v1 import v1_router
from daemon.store.views.lineage import BatchLineage, EventLineage, Lineages, VersionLineage

AnyLineage = Annotated[EventLineage | BatchLineage | VersionLineage, Field(discriminator="kind")]


def router(lineages: Lineages) -> APIRouter:
    """One address for every kind of id."""
    routes = v1_router("", "lineage", HTTPStatus.NOT_FOUND)

    @routes.get("/lineage/{text:path}", response_model=AnyLineage)
    async def lineage(
        text: str, query: Annotated[LineageQuery, Query()]
    ) -> EventLineage | BatchLineage | VersionLineage:
        """An event (number or PRODUCER/EVENT_ID), b-BATCH, r-RUN or LINE@VERSION."""
        return await lineages.of(text, after=query.after, limit=query.limit)

    return routes
