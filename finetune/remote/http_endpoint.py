"""Send one request to a plain fine-tune endpoint, and take nothing that it says on trust.

A request has a limit in time and its answer one in bytes; what may pass is tried again with
back-off, or with the wait that the service asks for, up to a cap. What comes of it is either
an answer that could be read, or an error that tells whether the service may have done what was
asked: who creates something must know. What an answer means is told by http_mapping.py.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final, NoReturn, TypeVar

import httpx2
import stamina

from finetune.remote.address import AddressRefusedError, Resolve
from finetune.remote.connection import http_client
from finetune.remote.http_mapping import BadAnswerError, FineTuneEndpoint, Method, in_one_line

MOST_ANSWER_BYTES: Final = 4 * 1024 * 1024
MOST_ERROR_BYTES: Final = 4 * 1024
"""Of an answer that refuses, so much is read, for its words."""
SLOWEST_BYTES_PER_SECOND: Final = 100_000
"""At which a large request may be sent before it takes too long."""
MASK: Final = "********"
SHORTEST_KEY: Final = 8
"""What is shorter hides nothing, and may be any part of an answer."""

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What is sent. `path` follows the endpoint's address."""

    method: Method
    path: str
    body: Any = None
    """JSON; None is no body."""
    files: Mapping[str, tuple[str, bytes]] = field(default_factory=dict)
    """With any, a form is sent: the files by field, each with a name, beside the body's keys."""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """About as many it is sent as."""
        n_files = sum(len(content) for _, content in self.files.values())
        texts = self.body.values() if isinstance(self.body, Mapping) else ()
        return n_files + sum(len(text) for text in texts if isinstance(text, str))


class RefusedError(Exception):
    """The service says no to the request, and did nothing. The message has its words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _PassingError(ConnectionError):
    """Maybe over soon; `wait_seconds` is how long the service asks to wait."""

    def __init__(self, message: str, wait_seconds: float | None = None) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


class NotDoneError(_PassingError):
    """The request did not reach the service, or the service put it off: nothing was done."""


class UnclearError(_PassingError):
    """Nobody knows whether the service did what was asked. `is_junk`: it answered unreadably."""

    def __init__(
        self, message: str, wait_seconds: float | None = None, *, is_junk: bool = False
    ) -> None:
        super().__init__(message, wait_seconds)
        self.is_junk = is_junk


def unread(content: Any) -> None:
    """For a request whose answer does not matter."""


class HttpEndpoint:
    """An endpoint that can be asked; `connect` makes one."""

    def __init__(self, endpoint: FineTuneEndpoint, client: httpx2.AsyncClient) -> None:
        self._access = endpoint.access
        self._mapping = endpoint.mapping
        self._client = client

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls, endpoint: FineTuneEndpoint, *, resolve: Resolve | None = None
    ) -> AsyncIterator["HttpEndpoint"]:
        """Ready to be asked; nothing is sent yet. Raises AddressRefusedError."""
        timeout = timedelta(seconds=endpoint.mapping.timeout_seconds)
        async with http_client(endpoint.access, timeout=timeout, resolve=resolve) as client:
            yield cls(endpoint, client)

    @property
    def base_url(self) -> str:
        """Its address."""
        return self._access.base_url

    async def ask(
        self, request: Request, read: Callable[[Any], T], *, repeatable: bool = True
    ) -> T:
        """What `read` makes of the answer's JSON; it may raise BadAnswerError.

        `repeatable` says that a second such request does no harm, whatever became of the first.
        Raises RefusedError, and after the last retry NotDoneError and UnclearError.
        """
        mapping = self._mapping

        def wait(error: Exception) -> bool | float:
            again = isinstance(error, NotDoneError) or (
                repeatable and isinstance(error, UnclearError)
            )
            if not again or not isinstance(error, _PassingError) or error.wait_seconds is None:
                return again
            return min(error.wait_seconds, mapping.retry_max_seconds)

        async for attempt in stamina.retry_context(
            on=wait,
            attempts=mapping.retries + 1,
            timeout=None,
            wait_initial=mapping.retry_base_seconds,
            wait_max=mapping.retry_max_seconds,
            wait_jitter=mapping.retry_base_seconds,
        ):
            with attempt:
                return await self._ask_once(request, read)
        raise AssertionError("the loop above ends by itself")

    async def _ask_once(self, request: Request, read: Callable[[Any], T]) -> T:
        seconds = self._mapping.timeout_seconds + request.n_bytes / SLOWEST_BYTES_PER_SECOND
        try:
            async with asyncio.timeout(seconds):
                return read(await self._exchange(request))
        except AddressRefusedError as error:
            raise RefusedError(0, str(error)) from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise NotDoneError(self._said(f"cannot be reached: {_cause(error)}")) from None
        except (TimeoutError, httpx2.TimeoutException):
            raise UnclearError(self._said(f"did not answer within {seconds:g} s")) from None
        except httpx2.TransportError as error:
            raise UnclearError(self._said(f"broke off: {_cause(error)}")) from None
        except BadAnswerError as error:
            raise UnclearError(f"{self._access.base_url}: {error}", is_junk=True) from None

    async def _exchange(self, request: Request) -> Any:
        async with self._client.stream(
            request.method,
            f"{self._access.base_url}{request.path}",
            headers={**self._headers(), **request.headers},
            **_content(request),
        ) as response:
            if not response.is_success:
                self._refuse(response, await _start_of(response, MOST_ERROR_BYTES))
            content = await _start_of(response, MOST_ANSWER_BYTES + 1)
        if len(content) > MOST_ANSWER_BYTES:
            raise self._junk(f"with more than {MOST_ANSWER_BYTES:,} bytes")
        if not content:
            return None  # as to a cancellation; who needs more misses it there
        try:
            return json.loads(self._without_key(content))
        except (ValueError, RecursionError):
            kind = response.headers.get("content-type", "no content type").encode()
            raise self._junk(f"that is no JSON{self._words(kind)}") from None

    def _headers(self) -> Mapping[str, str]:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if (key := self._access.api_key) is not None:
            words = f"{self._mapping.key_scheme} {key.get_secret_value()}"
            headers[self._mapping.key_header] = words.strip()
        return headers

    def _refuse(self, response: httpx2.Response, content: bytes) -> NoReturn:
        """Raise what a status other than success means."""
        status = response.status_code
        wait_seconds = _seconds(response.headers.get("retry-after"))
        said = self._said(f"answered {status}{self._words(content)}")
        if status == 429:
            raise NotDoneError(said, wait_seconds)
        # 503 too: proxies say it of a connection that broke after the request was passed on.
        if status >= 500 or status in (408, 425):
            raise UnclearError(said, wait_seconds)
        if status in (401, 403):
            raise RefusedError(status, f"{said}; the key is {self._access.key_setting}")
        if 300 <= status < 400:
            raise RefusedError(
                status, f"{said}; redirects are not followed: set {self._access.setting} to its end"
            )
        raise RefusedError(status, said)

    def _words(self, content: bytes) -> str:
        """The beginning of what the service says."""
        words = in_one_line(self._without_key(content).decode(errors="replace"))
        return f": {words}" if words else ""

    def _without_key(self, content: bytes) -> bytes:
        """An answer as it is, unless it repeats the key that it was asked with."""
        key = "" if self._access.api_key is None else self._access.api_key.get_secret_value()
        return content.replace(key.encode(), MASK.encode()) if len(key) >= SHORTEST_KEY else content

    def _said(self, words: str) -> str:
        return f"{self._access.base_url} {words}"

    def _junk(self, words: str) -> UnclearError:
        """Perhaps the page of a gateway that is starting."""
        return UnclearError(self._said(f"sent an answer {words}"), is_junk=True)


def _content(request: Request) -> Mapping[str, Any]:
    """How httpx2 is told of a body."""
    if request.files:
        fields = {
            key: each if isinstance(each, str) else json.dumps(each)
            for key, each in (request.body or {}).items()
        }
        files = {
            name: (file, content, "application/jsonl")
            for name, (file, content) in request.files.items()
        }
        return {"data": fields, "files": files}
    return {} if request.body is None else {"json": request.body}


async def _start_of(response: httpx2.Response, most_bytes: int) -> bytes:
    """The first bytes of an answer, as they come: nothing is unpacked."""
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) >= most_bytes:
            break
    return bytes(content[:most_bytes])


def _seconds(retry_after: str | None) -> float | None:
    """What a Retry-After header asks for, in seconds or by date; None when it is neither."""
    if retry_after is None:
        return None
    if retry_after.isdecimal():
        return float(retry_after[:9])
    try:
        at = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    if at.tzinfo is None:
        return None
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__
