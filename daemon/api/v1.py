"""What every address below /v1 has in common: the token, and what it may answer."""

from http import HTTPStatus

from fastapi import APIRouter, Security
from fastapi.security import HTTPBearer

from daemon.api.problems import problems_of

EVERYWHERE = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
"""What each may answer, beside what it is for."""
DESCRIBED_TOKEN = HTTPBearer(
    auto_error=False,
    description="The daemon's token, in the file `token` of its data directory.",
)
"""For the description of the API only: `guard.RequireToken` asks for it, everywhere."""


def v1_router(prefix: str, tag: str, *problems: HTTPStatus) -> APIRouter:
    """Addresses that begin with /v1 and `prefix`, and may answer these problems as well."""
    return APIRouter(
        prefix=f"/v1{prefix}",
        tags=[tag],
        responses=problems_of(*EVERYWHERE, *problems),
        dependencies=[Security(DESCRIBED_TOKEN)],
    )
