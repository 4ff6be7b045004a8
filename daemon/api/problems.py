"""Errors as problem documents (RFC 9457): what went wrong, and what to do about it."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from consumers.http_source import BodyTooSlowError, HttpRefusal
from learning.errors import (
    ConflictError,
    IllegalMoveError,
    LearningError,
    NotFoundError,
    VersionTextError,
)
from learning.ports import StoreUnavailableError
from learning.screening import CannotScreenError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 5
OF_A_CHANGE = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.CONFLICT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
)
"""What an address that changes something may answer, beside what it is for."""

_STATUS_OF: Sequence[tuple[type[LearningError], HTTPStatus]] = (
    (NotFoundError, HTTPStatus.NOT_FOUND),
    (ConflictError, HTTPStatus.CONFLICT),
    (IllegalMoveError, HTTPStatus.CONFLICT),
    (VersionTextError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (StoreUnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
    (CannotScreenError, HTTPStatus.SERVICE_UNAVAILABLE),
)

_log = structlog.get_logger(__name__)


def problem(
    status: HTTPStatus,
    detail: str,
    headers: Mapping[str, str] | None = None,
    **extensions: Any,
) -> JSONResponse:
    """One problem document."""
    return JSONResponse(
        {
            "type": "about:blank",
            "title": status.phrase,
            "status": status.value,
            "detail": detail,
            **extensions,
        },
        status_code=status.value,
        headers=dict(headers) if headers else None,
        media_type=MEDIA_TYPE,
    )


class Problem(BaseModel):
    """What went wrong, and what to do about it (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str


def problems_of(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """The answers of an address that are problems, for the description of the API."""
    schema = Problem.model_json_schema()
    return {
        status.value: {
            "description": status.phrase,
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
        for status in statuses
    }


def answer_errors(app: FastAPI) -> None:
    """Make every error of an application a problem document."""
    app.add_exception_handler(LearningError, _learning_error)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _defect)


async def _learning_error(_request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HttpRefusal):
        return _not_taken(error)
    for kind, status in _STATUS_OF:
        if isinstance(error, kind):
            wait = {"Retry-After": str(RETRY_AFTER_SECONDS)}
            return problem(
                status,
                str(error),
                wait if status is HTTPStatus.SERVICE_UNAVAILABLE else None,
            )
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))


def _not_taken(error: HttpRefusal) -> JSONResponse:
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, BodyTooSlowError):
        headers["Connection"] = "close"  # whoever stalls would hold it for ever
    return problem(error.status, str(error), headers, reason=error.reason)


async def _bad_request(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # Without the input: it may be long, and it is the sender's to know.
    faults = [
        {"where": ".".join(str(part) for part in fault["loc"]), "message": fault["msg"]}
        for fault in error.errors()
    ]
    detail = "; ".join(f"{fault['where']}: {fault['message']}" for fault in faults)
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=faults)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    detail = str(error.detail)
    if detail == status.phrase:
        detail = {
            HTTPStatus.NOT_FOUND: f"no address {request.url.path}; /openapi.json lists them",
            HTTPStatus.METHOD_NOT_ALLOWED: f"{request.url.path} does not take {request.method}",
        }.get(status, detail)
    return problem(status, detail, error.headers)


async def _defect(request: Request, error: Exception) -> JSONResponse:
    _log.error("request failed", path=request.url.path, exc_info=error)
    return problem(
        HTTPStatus.INTERNAL_SERVER_ERROR, "a defect of learnd; the daemon's log has the details"
    )
