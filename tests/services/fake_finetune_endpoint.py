"""A plain fine-tune endpoint on a real port: POST /jobs, GET /jobs/ID, POST /jobs/ID/cancel.

Speaks what finetune/remote/http_mapping.py expects without a setting, knows idempotency keys and
lists of jobs where it is told to, and misbehaves as `Faults` says: what goes wrong follows from a
seed, so that a failure can be played again. A job goes one step further each time it is asked for.
"""

import contextlib
import itertools
import json
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

STEPS = 3
OVER = frozenset({"succeeded", "failed", "invalid", "cancelled"})
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Fault(StrEnum):
    """What happens to one request instead of its answer."""

    BUSY = "busy"
    """429, without a word on when."""
    BUSY_UNTIL = "busy_until"
    """429 with Retry-After."""
    BROKEN = "broken"
    """500, and nothing was done."""
    BROKEN_AFTER = "broken_after"
    """500, and it was done."""
    HTML = "html"
    """It was done, and answered with a page and status 200."""
    RESET = "reset"
    """The connection is reset, and nothing was done."""
    RESET_AFTER = "reset_after"
    """It was done; the connection is reset before the answer."""
    SLOW = "slow"
    """It was done; there is no answer until the client gives up."""


@dataclass(frozen=True)
class Faults:
    """Which requests go wrong: a share of them, each kind as likely, at most so many in a row."""

    seed: int = 0
    share: float = 0.0
    kinds: Sequence[Fault] = tuple(Fault)
    in_a_row: int = 3

    def draw(self) -> Iterator[Fault | None]:
        """What becomes of one request after the other."""
        chance, row = random.Random(self.seed), 0
        while True:
            wrong = row < self.in_a_row and chance.random() < self.share
            row = row + 1 if wrong else 0
            yield chance.choice(self.kinds) if wrong else None


class Asked(NamedTuple):
    """A request as it came in."""

    method: str
    path: str
    headers: Mapping[str, str]
    content: bytes


@dataclass
class Job:
    """A job, as it is now."""

    id: str
    body: Mapping[str, Any]
    ends_as: str
    status: str = "queued"
    step: int = 0
    error: str | None = None

    @property
    def attempt(self) -> tuple[str, int]:
        """Whose it is."""
        return str(self.body.get("run_id")), int(self.body.get("attempt", 0))

    def shown(self) -> dict[str, Any]:
        """As the endpoint shows it."""
        done = self.status == "succeeded"
        return {
            "id": self.id,
            "run_id": self.body.get("run_id"),
            "attempt": self.body.get("attempt"),
            "status": self.status,
            "step": self.step,
            "total_steps": STEPS,
            "loss": 2 / (1 + self.step),
            "error": self.error,
            "fine_tuned_model": f"tuned-{self.id}" if done else None,
            "trained_tokens": 1_000 if done else None,
        }

    def advance(self) -> None:
        """One step of its life."""
        if self.status in OVER or (self.ends_as == "hang" and self.step):
            return
        self.status = "running"
        self.step += 1
        if self.step >= STEPS:
            self.status = self.ends_as
            self.error = "out of luck" if self.ends_as == "failed" else None


@dataclass
class FakeEndpoint:
    """What the endpoint remembers; `serving` gives it a port."""

    faults: Faults = Faults()
    heeds_keys: bool = False
    """Whether a repeated request with the same Idempotency-Key returns the first job."""
    api_key: str = "the-key-of-the-endpoint"
    ends_as: Callable[[Mapping[str, Any]], str] = lambda body: "succeeded"
    """How a job ends, by the request that made it; `hang` is never."""
    answer: Callable[[Asked], tuple[int, bytes] | None] = lambda asked: None
    """A test's own answer to a request, before anything else."""
    retry_after: str = "0"
    jobs: list[Job] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._draws = self.faults.draw()
        self._by_key: dict[str, Job] = {}
        self._end = threading.Event()

    @contextlib.contextmanager
    def serving(self, port: int = 0) -> Iterator["FakeEndpoint"]:
        """Listens on loopback inside."""
        server = _Server(("127.0.0.1", port), self)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="fake endpoint")
        thread.start()
        try:
            yield self
        finally:
            self._end.set()
            server.shutdown()
            thread.join()
            server.server_close()

    def misbehave(self, faults: Faults) -> None:
        """From the next request on."""
        self._draws = faults.draw()

    def living(self) -> list[Job]:
        """The jobs that still cost something."""
        return [job for job in self.jobs if job.status not in OVER]

    def submissions(self) -> list[Mapping[str, Any]]:
        """The bodies of the requests that were to make a job."""
        return [json.loads(one.content) for one in self.asked if _is_submission(one)]

    def respond(self, asked: Asked) -> tuple[int, bytes, Mapping[str, str]] | None:
        """Status, content and headers; None is a reset."""
        with self._lock:
            self.asked.append(asked)
            if (own := self.answer(asked)) is not None:
                return (*own, {})
            fault = next(self._draws)
            match fault:
                case Fault.BUSY:
                    return 429, b"slow down", {}
                case Fault.BUSY_UNTIL:
                    return 429, b"slow down", {"Retry-After": self.retry_after}
                case Fault.BROKEN:
                    return 500, b"it broke", {}
                case Fault.RESET:
                    return None
            status, content = self._do(asked)
        match fault:
            case Fault.BROKEN_AFTER:
                return 500, b"it broke", {}
            case Fault.HTML:
                return 200, b"<html>welcome</html>", {}
            case Fault.RESET_AFTER:
                return None
            case Fault.SLOW:
                self._end.wait(10)
                return None
        return status, json.dumps(content).encode(), {}

    def _do(self, asked: Asked) -> tuple[int, Any]:
        if asked.headers.get("authorization") != f"Bearer {self.api_key}":
            return 401, {"error": "who are you?"}
        url = urlsplit(asked.path)
        match asked.method, url.path.strip("/").split("/"):
            case "POST", ["jobs"]:
                return 201, self._make(asked).shown()
            case "GET", ["jobs"]:
                wanted = parse_qs(url.query).get("run_id")
                jobs = [job for job in self.jobs if not wanted or job.attempt[0] in wanted]
                return 200, {"jobs": [job.shown() for job in jobs]}
            case "GET", ["jobs", job_id] if job := self._job(job_id):
                job.advance()
                return 200, job.shown()
            case "POST", ["jobs", job_id, "cancel"] if job := self._job(job_id):
                if job.status in OVER:
                    return 409, {"error": f"it is {job.status}"}
                job.status = "cancelled"
                return 200, job.shown()
        return 404, {"error": "there is no such thing"}

    def _job(self, job_id: str) -> Job | None:
        return next((job for job in self.jobs if job.id == job_id), None)

    def _make(self, asked: Asked) -> Job:
        key = asked.headers.get("idempotency-key")
        if self.heeds_keys and key in self._by_key:
            return self._by_key[key]
        is_form = asked.headers.get("content-type", "").startswith("multipart/")
        body = {} if is_form else json.loads(asked.content)
        job = Job(f"job-{next(self._numbers)}", body, self.ends_as(body))
        self.jobs.append(job)
        if key is not None:
            self._by_key[key] = job
        return job


def _is_submission(asked: Asked) -> bool:
    return asked.method == "POST" and asked.path == "/jobs"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, where: tuple[str, int], endpoint: FakeEndpoint) -> None:
        super().__init__(where, _Handler)
        self.endpoint = endpoint


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    disable_nagle_algorithm = True

    def _handle(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.endpoint.respond(Asked(self.command, self.path, headers, content))
        if answer is None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.connection.close()
            self.close_connection = True
            return
        status, body, more = answer
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **more}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the tests ask what was asked."""
