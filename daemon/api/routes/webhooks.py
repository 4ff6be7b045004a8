"""Webhooks: the address that a provider sends them to, and a list of what came.

The first is open, because a signature vouches for what comes; daemon/webhooks.py says what
is taken. The list needs the token, like everything else.
"""

from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from daemon.api.problems import problem, problems_of
from daemon.api.requests import RowId, WebhooksQuery
from daemon.api.v1 import v1_router
from daemon.store.views.paging import Page
from daemon.store.views.webhooks import Webhooks, WebhookSummary
from daemon.webhook_signature import (
    ID_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    DeliveryRefusedError,
    RefusalReason,
)
from daemon.webhooks import WebhookIntake
from learning.errors import NotFoundError

PATH = "/webhooks/openai"

_STATUS_OF = {
    RefusalReason.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    RefusalReason.TOO_SLOW: HTTPStatus.REQUEST_TIMEOUT,
}
"""400 for every other reason."""


class WebhookAnswer(BaseModel):
    """That a webhook is in the database, since now or since before."""

    status: Literal["stored", "duplicate"]
    id: int | None = Field(description="The number of its row; null when it was there before.")


def receiver(intake: WebhookIntake | None) -> APIRouter:
    """The address for the provider. Without an intake nothing is received."""
    routes = APIRouter(tags=["webhooks"])

    @routes.post(
        PATH,
        response_model=WebhookAnswer,
        responses=problems_of(
            HTTPStatus.BAD_REQUEST,
            HTTPStatus.NOT_FOUND,
            HTTPStatus.REQUEST_TIMEOUT,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.SERVICE_UNAVAILABLE,
        ),
        openapi_extra=_DESCRIBED,
    )
    async def receive(request: Request) -> Response:
        """Take a signed event of a fine-tuning service (Standard Webhooks).

        Repeats are harmless, and answered 200 as well.
        """
        if intake is None:
            return problem(
                HTTPStatus.NOT_FOUND,
                "webhooks are not set up here: set remote.openai_webhook_secret",
            )
        try:
            taken = await intake.take(request.headers.raw, request.stream())
        except DeliveryRefusedError as error:
            status = _STATUS_OF.get(error.reason, HTTPStatus.BAD_REQUEST)
            closing = {"Connection": "close"} if error.reason in _STATUS_OF else None
            return problem(status, str(error), closing, reason=error.reason.value)
        except ClientDisconnect:
            return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody is there to be told
        became = "duplicate" if taken.row_id is None else "stored"
        return JSONResponse({"status": became, "id": taken.row_id})

    return routes


def router(webhooks: Webhooks) -> APIRouter:
    """List and show."""
    routes = v1_router("/webhooks", "webhooks", HTTPStatus.NOT_FOUND)

    @routes.get("")
    async def page(query: Annotated[WebhooksQuery, Query()]) -> Page[WebhookSummary, int]:
        """Received webhooks, newest first; each is kept for seven days."""
        return await webhooks.page(types=query.type, before=query.before, limit=query.limit)

    @routes.get("/{row_id}")
    async def one(row_id: RowId) -> WebhookSummary:
        """One received webhook."""
        found = await webhooks.one(row_id)
        if found is None:
            raise NotFoundError(f"no webhook {row_id}; `learnd webhook list` shows them")
        return found

    return routes


_DESCRIBED: dict[str, Any] = {
    "parameters": [
        {
            "name": name,
            "in": "header",
            "required": True,
            "description": description,
            "schema": {"type": "string"},
        }
        for name, description in (
            (ID_HEADER, "Names the delivery; the same when it is sent again."),
            (TIMESTAMP_HEADER, "When it is sent, in seconds since 1970."),
            (SIGNATURE_HEADER, "`v1,` and the signature in base64; several with spaces between."),
        )
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["type"],
                    "properties": {"type": {"type": "string"}, "data": {"type": "object"}},
                }
            }
        },
    },
}
