"""Events over HTTP: one JSON object, or a stream of NDJSON with an answer per line.

Only what is FastAPI's and JSON's; what is taken, and when, consumers/http_source.py says.
"""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field, StringConstraints
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from consumers.content_encoding import ENCODINGS, IDENTITY
from consumers.http_source import (
    Accepted,
    Body,
    BodyTooSlowError,
    HttpRefusal,
    HttpSource,
    Refused,
    Result,
    Sender,
    Taken,
)
from daemon.api.event_schema import ONE_EVENT, STREAM, events_body
from daemon.api.problems import RETRY_AFTER_SECONDS, problem, problems_of
from daemon.api.spool import Spool
from daemon.api.v1 import v1_router
from learning.ports import ID_REUSED, EventKind, StoreUnavailableError

LINGER_SECONDS = 5.0
"""The rest of a stream that was stopped is read for so long, so that its sender, who may
still be sending, gets to see the answer."""
MOST_UNREAD_BYTES = 268_435_456
"""Of an answer that its client does not take; two million lines or so."""
PATHS = ("/v1/outputs", "/v1/feedback")

IdempotencyKey = Annotated[
    Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[!-~]+$")] | None,
    Header(
        description="Of a request whose events have no event_id: repeated with the same key and"
        " body it adds nothing; under another key equal events are further events."
    ),
]


class AnswerUnreadError(HttpRefusal):
    """A client sends and sends, and does not read what it is told."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    reason = "unread"

    def __init__(self) -> None:
        super().__init__("read the answer while you send, or send less at once")


class Stored(BaseModel):
    """An event that is in the database, under its id, and what became of it."""

    id: int = Field(description="The number of its row.")
    event_id: str = Field(description="As sent, or derived.")
    status: Taken
    state: str = Field(description="queued, held, rejected, ...; of feedback waiting, joined, ...")
    reason: str = Field(description="Why an output is in that state; empty for feedback.")


def router(source: HttpSource) -> APIRouter:
    """One address for each kind of event."""
    routes = v1_router("", "intake")

    @routes.post(PATHS[0].removeprefix("/v1"), **_described(EventKind.OUTPUT))
    async def outputs(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
        """Send what a model produced: one event, or a stream of lines.

        A single event is answered when it is in the database. A stream is stored in blocks and
        answered line by line as they are committed; the last line says `done`, or `stopped` and
        why. Whatever was not answered may be sent again: ids make it harmless.
        """
        return await _take(source, EventKind.OUTPUT, request, idempotency_key)

    @routes.post(PATHS[1].removeprefix("/v1"), **_described(EventKind.FEEDBACK))
    async def feedback(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
        """Send what people made of an output: one event, or a stream of lines.

        It may come before its output. Answered as outputs are.
        """
        return await _take(source, EventKind.FEEDBACK, request, idempotency_key)

    return routes


def _described(kind: EventKind) -> dict[str, Any]:
    return {
        "status_code": HTTPStatus.CREATED,
        "response_model": Stored,
        "response_class": JSONResponse,
        "openapi_extra": {"requestBody": events_body(kind)},
        "responses": {
            HTTPStatus.OK.value: {
                "description": "One event: it was there already. A stream: a result per line,"
                " then one line that says how it ended.",
                "model": Stored,
                "content": {STREAM: {"schema": {"type": "string"}}},
            },
            **problems_of(
                HTTPStatus.BAD_REQUEST,
                HTTPStatus.REQUEST_TIMEOUT,
                HTTPStatus.CONFLICT,
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                HTTPStatus.UNPROCESSABLE_ENTITY,
                HTTPStatus.TOO_MANY_REQUESTS,
            ),
        },
    }


async def _take(source: HttpSource, kind: EventKind, request: Request, key: str | None) -> Response:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", IDENTITY).strip().lower() or IDENTITY
    if media_type not in (ONE_EVENT, STREAM):
        return problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"send {ONE_EVENT} for one event, or {STREAM} for one a line",
            {"Accept-Post": f"{ONE_EVENT}, {STREAM}"},
        )
    if encoding not in ENCODINGS:
        return problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"the Content-Encoding may be one of: {', '.join(ENCODINGS)}",
            {"Accept-Encoding": ", ".join(ENCODINGS)},
        )
    body = Body(request.stream(), encoding)
    sender = Sender(request.client.host if request.client is not None else "", key)
    try:
        if media_type == ONE_EVENT:
            return _answer(await source.take_one(kind, body, sender))
        blocks = source.take_lines(kind, body, sender)
        # What is wrong before anything was stored can still have a status of its own.
        return _LineByLine(request, await _first(blocks), blocks)
    except ClientDisconnect:
        return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody is there to be told


async def _first(blocks: AsyncGenerator[Sequence[Result], None]) -> Sequence[Result]:
    async for results in blocks:
        return results
    return ()


def _answer(result: Result) -> Response:
    match result:
        case Accepted(status=Taken.STORED):
            return JSONResponse(_stored(result), HTTPStatus.CREATED)
        case Accepted():
            return JSONResponse(_stored(result), HTTPStatus.OK)
        case Refused():
            status = (
                HTTPStatus.CONFLICT
                if result.reason == ID_REUSED
                else HTTPStatus.UNPROCESSABLE_ENTITY
            )
            return problem(status, result.detail, reason=result.reason)


def _stored(accepted: Accepted) -> dict[str, Any]:
    return {
        "id": accepted.receipt.row_id,
        "event_id": accepted.event_id,
        "status": accepted.status,
        "state": accepted.receipt.state,
        "reason": accepted.receipt.reason,
    }


class _LineByLine(Response):
    """Reads a stream and answers it at the same time, each line after its commit."""

    def __init__(
        self,
        request: Request,
        first: Sequence[Result],
        blocks: AsyncGenerator[Sequence[Result], None],
    ) -> None:
        # A sender that stalls would hold the connection for ever otherwise.
        super().__init__(media_type=STREAM, headers={"Connection": "close"})
        del self.headers["content-length"]
        self._request = request
        self._first = first
        self._blocks = blocks
        self._counts: Counter[str] = Counter()
        self._is_stopped_early = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer until the stream ends, or its client goes away."""
        await send(
            {
                "type": "http.response.start",
                "status": HTTPStatus.OK.value,
                "headers": self.raw_headers,
            }
        )
        with Spool() as spool:
            reading = asyncio.create_task(self._read(spool), name="http stream")
            try:
                async for chunk in spool.chunks():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await reading
                if self._is_stopped_early:
                    await self._linger()
            finally:
                reading.cancel()
                await asyncio.wait([reading])
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _read(self, spool: Spool) -> None:
        try:
            spool.write(self._told(self._first))
            async with contextlib.aclosing(self._blocks) as blocks:
                async for results in blocks:
                    spool.write(self._told(results))
                    if spool.unread_bytes > MOST_UNREAD_BYTES:
                        raise AnswerUnreadError
            spool.write(_line({"status": "done", **self._totals()}))
        except HttpRefusal as error:
            spool.write(self._stopped(error.reason, str(error), error.retry_after_seconds))
            self._is_stopped_early = not isinstance(error, BodyTooSlowError)
        except StoreUnavailableError as error:
            spool.write(self._stopped("store_unavailable", str(error), RETRY_AFTER_SECONDS))
            self._is_stopped_early = True
        except ClientDisconnect:
            pass  # nobody is there to be told
        finally:
            spool.complete()

    async def _linger(self) -> None:
        # RuntimeError is Starlette's word for a body that was read to its end.
        with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):
            async with asyncio.timeout(LINGER_SECONDS):
                async for _ in self._request.stream():
                    pass

    def _told(self, results: Sequence[Result]) -> bytes:
        self._counts.update(
            result.status if isinstance(result, Accepted) else "refused" for result in results
        )
        return b"".join(map(_result_line, results))

    def _stopped(self, reason: str, detail: str, retry_after_seconds: int | None) -> bytes:
        how = {"reason": reason, "detail": detail, "retry_after_seconds": retry_after_seconds}
        return _line({"status": "stopped", **how, **self._totals()})

    def _totals(self) -> Mapping[str, int]:
        return {name: self._counts[name] for name in (Taken.STORED, Taken.DUPLICATE, "refused")}


def _result_line(result: Result) -> bytes:
    if isinstance(result, Accepted):
        return _line({"line": result.line, **_stored(result)})
    told = {"status": "refused", "reason": result.reason, "detail": result.detail}
    return _line({"line": result.line, **told})


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
