"""Talk to a running daemon over its HTTP API, as the command line does.

Answers are the API's JSON as it is. Every failure is one error with what to do about it.
"""

import getpass
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from daemon.exit_status import ExitStatus
from learning.errors import LearningError

TIMEOUT_SECONDS = 30.0
FILE_TIMEOUT_SECONDS = 300.0
CONNECT_SECONDS = 5.0
LONGEST_PAGE = 500


class DaemonUnreachableError(LearningError):
    """Nobody answers at the daemon's address, or not in time."""

    exit_status = ExitStatus.UNREACHABLE

    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            f"no daemon answers at {url} ({why}): start one with `learnd run`,"
            " or name its address with --url or LEARND_URL"
        )
        self.url = url


class TokenRefusedError(LearningError):
    """The daemon does not know the token that it was sent."""

    exit_status = ExitStatus.UNREACHABLE

    def __init__(self, url: str) -> None:
        super().__init__(
            f"the daemon at {url} refuses the token: it made one in the file `token` of its data"
            " directory; name that with --data-dir, or give the token in LEARND_TOKEN"
        )
        self.url = url


class DaemonUnavailableError(LearningError):
    """The daemon answers, but cannot do it now: it starts, stops or has lost its database."""

    exit_status = ExitStatus.UNREACHABLE


class RefusedError(LearningError):
    """The daemon understood, and said no. Its message is the daemon's own."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class NotUnderstoodError(RefusedError):
    """What was asked for is malformed, such as a state or a version that cannot exist."""

    exit_status = ExitStatus.USAGE


class TooManyError(RefusedError):
    """More was sent than the daemon allows; it says when to come back."""

    def __init__(self, detail: str, retry_after_seconds: float) -> None:
        super().__init__(httpx.codes.TOO_MANY_REQUESTS, detail)
        self.retry_after_seconds = retry_after_seconds


class Client:
    """One daemon. Whoever opens it closes it. Raises DaemonUnreachableError for a bad address."""

    def __init__(
        self, url: str, token: str, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url = url.rstrip("/")
        try:
            self._http = httpx.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {token}", "X-Actor": who_asks()},
                timeout=httpx.Timeout(TIMEOUT_SECONDS, connect=CONNECT_SECONDS),
                transport=transport,
                # A proxy of the environment is not on the way to this machine itself.
                trust_env=urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"),
            )
        except (ValueError, httpx.InvalidURL) as error:
            raise DaemonUnreachableError(self.url, str(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> Any:
        """The answer to a GET; parameters that are None are left out.

        Raises the errors of this module, all of them LearningError.
        """
        given = {name: value for name, value in query.items() if value is not None}
        return self._ask("GET", path, params=given)

    def get_text(self, path: str) -> str:
        """The answer to a GET that is no JSON. Errors as in `get`."""
        return self._request("GET", path).text

    def post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        seconds: float = TIMEOUT_SECONDS,
    ) -> Any:
        """The answer to a POST of a JSON document, within so many seconds. Errors as in `get`."""
        limits = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        return self._ask("POST", path, json=body, timeout=limits)

    def post_file(self, path: str, file: Path, /, **query: Any) -> Any:
        """The answer to a POST of a file's bytes; without parameters that are None.

        Waits for it as long as storing a large file takes. Errors as in `get`.
        """
        given = {name: value for name, value in query.items() if value is not None}
        timeout = httpx.Timeout(FILE_TIMEOUT_SECONDS, connect=CONNECT_SECONDS)
        return self._ask("POST", path, content=file.read_bytes(), params=given, timeout=timeout)

    def deliver(self, path: str, body: bytes, headers: Mapping[str, str]) -> None:
        """POST exactly these bytes as a stranger does, without the token. Errors as in `get`."""
        named = {"Content-Type": "application/json", **headers}
        self._request("POST", path, as_stranger=True, content=body, headers=named)

    def post_lines(self, path: str, lines: bytes) -> list[dict[str, Any]]:
        """The answer to each line of an NDJSON body, in order. Errors as in `get`.

        Waits as long as the daemon asks when it is sent more than it allows. An answer that
        stops early is a DaemonUnavailableError, though lines before may be stored.
        """
        headers = {"Content-Type": "application/x-ndjson"}
        while True:
            try:
                answer = self._request("POST", path, content=lines, headers=headers)
            except TooManyError as error:
                time.sleep(error.retry_after_seconds)
                continue
            *told, end = [json.loads(line) for line in answer.text.splitlines()] or [{}]
            if end.get("status") != "done":
                why = end.get("detail", "it ended in the middle of its answer")
                raise DaemonUnavailableError(f"the daemon did not take all of it: {why}")
            return told

    def pages(
        self, path: str, most: int, *, before: int | None = None, **query: Any
    ) -> Iterator[Any]:
        """The items of a long list, page after page, at most `most` of them."""
        key: Any = before
        while most > 0:
            page = self.get(path, limit=min(most, LONGEST_PAGE), before=key, **query)
            yield from page["items"]
            most -= len(page["items"])
            key = page["next"]
            if key is None:
                return

    def _ask(self, method: str, path: str, **request: Any) -> Any:
        return self._request(method, path, **request).json()

    def _request(
        self, method: str, path: str, *, as_stranger: bool = False, **given: Any
    ) -> httpx.Response:
        try:
            request = self._http.build_request(method, path, **given)
            if as_stranger:
                del request.headers["Authorization"], request.headers["X-Actor"]
            answer = self._http.send(request)
        except (httpx.ConnectError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise DaemonUnreachableError(self.url, str(error)) from error
        except httpx.TimeoutException as error:
            raise DaemonUnreachableError(self.url, "no answer in time") from error
        except httpx.HTTPError as error:
            raise DaemonUnreachableError(self.url, str(error)) from error
        if answer.is_success:
            return answer
        detail = _detail(answer)
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise TokenRefusedError(self.url)
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise TooManyError(detail, float(answer.headers.get("Retry-After", 1)))
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            raise DaemonUnavailableError(f"the daemon cannot do it now: {detail}")
        if answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
            raise NotUnderstoodError(answer.status_code, detail)
        raise RefusedError(answer.status_code, detail)


def part(text: str) -> str:
    """A text as one part of an address."""
    return quote(text, safe="")


def who_asks() -> str:
    """Who asks, for the daemon's history."""
    try:
        return f"cli:{getpass.getuser()}"
    except (OSError, KeyError):  # a container's user may have no name
        return "cli"


def _detail(answer: httpx.Response) -> str:
    try:
        document = answer.json()
    except ValueError:
        document = None
    if isinstance(document, dict) and isinstance(document.get("detail"), str):
        return str(document["detail"])
    return f"HTTP {answer.status_code} from {answer.url}: is this a learnd daemon?"
