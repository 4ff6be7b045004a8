"""What the firewall stopped, and letting it go."""

from http import HTTPStatus

from fastapi import APIRouter

from daemon.api.ports import Operations
from daemon.api.problems import OF_A_CHANGE, problems_of
from daemon.api.requests import Actor, ReleaseRequest
from daemon.api.v1 import v1_router
from daemon.store.releases import Which
from daemon.store.views.firewall import FirewallLook, Firewalls
from learning.facts import QuarantineReleased


def router(firewalls: Firewalls, operations: Operations) -> APIRouter:
    """Look, release."""
    routes = v1_router("/firewall", "events", HTTPStatus.NOT_FOUND)

    @routes.get("")
    async def look() -> FirewallLook:
        """What was stopped in the last day, by rule and producer, with examples."""
        return await firewalls.look()

    @routes.post("/release", responses=problems_of(*OF_A_CHANGE))
    async def release(request: ReleaseRequest, actor: Actor) -> QuarantineReleased:
        """Queue the oldest events that the firewall stopped, of a producer or by a rule."""
        which = Which(request.producer, request.rule, request.task_type)
        return await operations.release(which, request.most, reason=request.reason, actor=actor)

    return routes
