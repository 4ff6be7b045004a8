"""The nodes that daemons of this database run on."""

from typing import Annotated

from fastapi import APIRouter, Path

from daemon.api.ports import NodeGone, Operations
from daemon.api.problems import OF_A_CHANGE, problems_of
from daemon.api.requests import Actor, NodeGoneRequest
from daemon.api.v1 import v1_router
from learning.events import Name


def router(operations: Operations) -> APIRouter:
    """Give one up."""
    routes = v1_router("/nodes", "runs")

    @routes.post("/{node}/gone", responses=problems_of(*OF_A_CHANGE))
    async def gone(
        node: Annotated[Name, Path()], request: NodeGoneRequest, actor: Actor
    ) -> NodeGone:
        """Take a node's unfinished runs away from it; the next daemon that looks takes them."""
        return await operations.give_up_node(node, reason=request.reason, actor=actor)

    return routes
