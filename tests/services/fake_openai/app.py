"""The protocol over HTTP: routes, pages, errors as OpenAI words them, and the faults before it."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.services.fake_openai.faults import Fault, Faults
from tests.services.fake_openai.service import ProtocolError, Service

PAGE = "<html><body>Welcome to our gateway. Please log in.</body></html>"
RETRY_AFTER_SECONDS = 0.01

Drop = Callable[[Scope], None]
"""Resets the connection of a request, or raises what its client would get."""
Stall = Callable[[], Awaitable[None]]
"""Does not answer until the client has had enough, or raises what it would get."""


def protocol(service: Service, chat: ASGIApp | None = None) -> ASGIApp:
    """The service over HTTP. `chat` answers what lies below /v1 and is not of fine-tuning."""

    def answered(
        act: Callable[[Request], Awaitable[dict[str, Any]]],
    ) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            if request.headers.get("authorization") != f"Bearer {service.api_key}":
                return _error(401, "Incorrect API key provided", None)
            try:
                return JSONResponse(await act(request))
            except ProtocolError as error:
                return _error(error.status, error.message, error.param)

        return answer

    async def upload(request: Request) -> dict[str, Any]:
        fields = _multipart(request.headers["content-type"], await request.body())
        name, content = fields["file"]
        if request.scope.get("partial"):
            content = content[: len(content) // 2]
        return service.upload(name or "", fields["purpose"][1].decode(), content).shown()

    async def list_files(request: Request) -> dict[str, Any]:
        return _page(request, [file.shown() for file in reversed(service.files.values())], 10_000)

    async def show_file(request: Request) -> dict[str, Any]:
        return service.file(request.path_params["file_id"]).shown()

    async def delete_file(request: Request) -> dict[str, Any]:
        file_id = request.path_params["file_id"]
        service.delete(file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    async def create(request: Request) -> dict[str, Any]:
        return service.create(await request.json()).shown()

    async def list_jobs(request: Request) -> dict[str, Any]:
        wanted = {
            key.removeprefix("metadata[").removesuffix("]"): value
            for key, value in request.query_params.items()
            if key.startswith("metadata[") and service.knows_filter
        }
        found = [
            job.shown()
            for job in service.newest_first()
            if all(job.metadata.get(key) == value for key, value in wanted.items())
        ]
        return _page(request, found, 20)

    async def show_job(request: Request) -> dict[str, Any]:
        job = service.job(request.path_params["job_id"])
        for _ in range(service.stride):
            service.advance(job)
        return service.job(job.id).shown()

    async def cancel_job(request: Request) -> dict[str, Any]:
        return service.cancel(request.path_params["job_id"]).shown()

    async def list_events(request: Request) -> dict[str, Any]:
        job = service.job(request.path_params["job_id"])
        step = -1 if service.newest_first_events else 1
        return _page(request, job.events[::step], 20)

    async def list_checkpoints(request: Request) -> dict[str, Any]:
        return _page(request, service.checkpoints(service.job(request.path_params["job_id"])), 10)

    async def list_models(request: Request) -> dict[str, Any]:
        made = [job.model for job in service.jobs.values() if job.model is not None]
        models = [
            {"id": name, "object": "model", "created": 0, "owned_by": "org"}
            for name in (*service.models, *made)
        ]
        return {"object": "list", "data": models}

    routes: list[BaseRoute] = [
        Route("/v1/files", answered(upload), methods=["POST"]),
        Route("/v1/files", answered(list_files)),
        Route("/v1/files/{file_id}", answered(delete_file), methods=["DELETE"]),
        Route("/v1/files/{file_id}", answered(show_file)),
        Route("/v1/fine_tuning/jobs", answered(create), methods=["POST"]),
        Route("/v1/fine_tuning/jobs", answered(list_jobs)),
        Route("/v1/fine_tuning/jobs/{job_id}", answered(show_job)),
        Route("/v1/fine_tuning/jobs/{job_id}/cancel", answered(cancel_job), methods=["POST"]),
        Route("/v1/fine_tuning/jobs/{job_id}/events", answered(list_events)),
        Route("/v1/fine_tuning/jobs/{job_id}/checkpoints", answered(list_checkpoints)),
        Route("/v1/models", answered(list_models)),
    ]
    if chat is not None:
        routes.append(Mount("/v1", chat))
    return Starlette(routes=routes)


class Front:
    """What stands between the service and who calls it: an account of requests, and faults."""

    def __init__(
        self, inner: ASGIApp, service: Service, faults: Faults, drop: Drop, stall: Stall
    ) -> None:
        self._inner, self._service = inner, service
        self.faults = faults
        self._drop, self._stall = drop, stall
        self.let_go = asyncio.Event()
        """Set, held replies go on their way."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        assert scope["type"] == "http"
        method, path = scope["method"], scope["path"]
        self._service.requests.append((method, path))
        match self.faults.of(method, path):
            case Fault.RATE_LIMIT:
                headers = {"retry-after": str(RETRY_AFTER_SECONDS)}
                await _error(429, "Rate limit reached", None, headers)(scope, receive, send)
            case Fault.RATE_LIMIT_SILENT:
                await _error(429, "Rate limit reached", None)(scope, receive, send)
            case Fault.ERROR:
                await _error(500, "The server had an error", None)(scope, receive, send)
            case Fault.ERROR_AFTER:
                await self._inner(scope, receive, _into_the_void)
                await _error(500, "The server had an error", None)(scope, receive, send)
            case Fault.HTML:
                await HTMLResponse(PAGE)(scope, receive, send)
            case Fault.HTML_AFTER:
                await self._inner(scope, receive, _into_the_void)
                await HTMLResponse(PAGE)(scope, receive, send)
            case Fault.RESET:
                self._drop(scope)
            case Fault.RESET_AFTER:
                await self._inner(scope, receive, _into_the_void)
                self._drop(scope)
            case Fault.PARTIAL:
                await self._inner({**scope, "partial": True}, receive, send)
            case Fault.SLOW:
                await self._inner(scope, receive, _into_the_void)
                await self._stall()
            case Fault.TWICE:
                whole = await _whole(receive)
                await self._inner(scope, _replayed(whole), _into_the_void)
                await self._inner(scope, _replayed(whole), send)
            case Fault.HELD:
                await self._inner(scope, receive, _into_the_void)
                await self.let_go.wait()
                self._drop(scope)
            case None:
                await self._inner(scope, receive, send)


async def _whole(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _replayed(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _into_the_void(message: Message) -> None:
    """A reply that nobody gets."""


def _error(
    status: int, message: str, param: str | None, headers: Mapping[str, str] | None = None
) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": None}}
    return Response(json.dumps(body), status, headers, media_type="application/json")


def _page(request: Request, items: Sequence[Mapping[str, Any]], limit: int) -> dict[str, Any]:
    limit = int(request.query_params.get("limit", limit))
    start = 0
    if (after := request.query_params.get("after")) is not None:
        start = next((n for n, one in enumerate(items, 1) if one["id"] == after), len(items))
    page = items[start : start + limit]
    return {"object": "list", "data": page, "has_more": start + limit < len(items)}


def _multipart(content_type: str, body: bytes) -> dict[str, tuple[str | None, bytes]]:
    """The fields of a form: name -> (file name, content)."""
    boundary = content_type.partition("boundary=")[2].strip('"').encode()
    fields = {}
    for part in body.split(b"--" + boundary)[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        told = dict(
            one.strip().split("=", 1)
            for line in head.decode().splitlines()
            if line.lower().startswith("content-disposition")
            for one in line.split(";")[1:]
        )
        name = told["filename"].strip('"') if "filename" in told else None
        fields[told["name"].strip('"')] = (name, content.removesuffix(b"\r\n"))
    return fields
