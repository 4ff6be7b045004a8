"""What stands before every request: the token, the limit of its body, careful headers.

Plain ASGI, and closed by default: an address that is not listed as open needs the token,
whether it exists or not.
"""

import contextlib
import hmac
from collections.abc import Collection
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon.api.problems import problem

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


class RequireToken:
    """Answers 401 to a request without the bearer token, unless its path is open."""

    def __init__(self, app: ASGIApp, token: str, open_paths: Collection[str]) -> None:
        self._app = app
        self._token = token.encode()
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it."""
        if scope["type"] != "http" or scope["path"] in self._open_paths or self._has_token(scope):
            await self._app(scope, receive, send)
            return
        refusal = problem(
            HTTPStatus.UNAUTHORIZED,
            "send the header `Authorization: Bearer TOKEN`; the daemon made the token in the"
            " file `token` of its data directory",
            {"WWW-Authenticate": 'Bearer realm="learnd"'},
        )
        await refusal(scope, receive, send)

    def _has_token(self, scope: Scope) -> bool:
        given = Headers(scope=scope).get("authorization", "")
        scheme, _, token = given.partition(" ")
        # Constant time: how long the comparison takes must not tell how much of it was right.
        matches = hmac.compare_digest(token.strip().encode(), self._token)
        return scheme.lower() == "bearer" and matches


class PlainAddress:
    """Answers 400 to an address with U+0000 in it: no name here has one, and no database."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it."""
        if scope["type"] == "http" and ("\x00" in scope["path"] or b"%00" in scope["query_string"]):
            refusal = problem(HTTPStatus.BAD_REQUEST, "the address has U+0000 (%00) in it")
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


class LimitBody:
    """Answers 413 to a request whose body is longer than allowed, whatever it declares."""

    def __init__(
        self, app: ASGIApp, max_bytes: int, max_bytes_of: dict[str, int] | None = None
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_bytes_of = max_bytes_of or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._max_bytes_of.get(scope["path"], self._max_bytes)
        refusal = problem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body may have {limit} bytes here; send less at once",
        )
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit:
            await refusal(scope, receive, send)
            return

        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _BodyTooLongError
            return message

        async def unless_too_long(message: Message) -> None:
            # The application may have turned our error into an answer of its own.
            if received <= limit:
                await send(message)

        with contextlib.suppress(_BodyTooLongError):
            await self._app(scope, counted, unless_too_long)
        if received > limit:
            await refusal(scope, receive, send)


class _BodyTooLongError(Exception):
    """More of a body came than is allowed."""


class SecureHeaders:
    """Adds SECURITY_HEADERS to every answer that does not set them itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and add to its answer."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers)
