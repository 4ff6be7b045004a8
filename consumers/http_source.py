"""Take events from HTTP requests into the store, and tell the sender what became of each.

Knows bodies, not frameworks: daemon/api/routes/intake.py hands the bytes in and the
results out. Two things differ from other sources. What is no event is refused and not
kept: the sender is told at once and still has it, and keeping it would keep it again with
every retry. And the id of an event without one is derived from its bytes alone (with an
Idempotency-Key: from the key and the line too), so that a repeated request finds it again.
"""

import asyncio
import contextlib
import itertools
import math
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from http import HTTPStatus
from typing import ClassVar

from consumers.content_encoding import GZIP, CorruptEncodingError, gunzipped
from consumers.ingest import Ingest
from consumers.lines import Line, LineCutter
from consumers.rate_limit import RateLimit
from consumers.reading import Record
from consumers.wire import STANDARD_LIMITS, Limits
from learning.errors import LearningError
from learning.facts import Announce, EventsRefused
from learning.ports import (
    ID_REUSED,
    Block,
    EventKind,
    JudgedOutput,
    Origin,
    Receipt,
    Receipts,
    ReceivedFeedback,
)

SOURCE = "http"
BLOCK_EVENTS = 500
BLOCK_BYTES = 1_000_000
"""A block of lines is stored when it has so many events or bytes, or when no more come."""
PAUSE_SECONDS = 0.1
"""After so long without a byte, the lines that came are stored."""
MOST_UPLOADS = 32
"""Streams that are read at once; each holds up to a block and a line in memory."""
CLOSED_RETRY_SECONDS = 5


class HttpRefusal(LearningError):
    """A request is not taken, or not to its end; its subclasses say why."""

    status: ClassVar[HTTPStatus]
    reason: ClassVar[str]
    retry_after_seconds: int | None = None
    """When it makes sense to try again; None: not as it is."""


class BodyTooLargeError(HttpRefusal):
    """A body is longer than it may be, after decompression."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    reason = "too_large"

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the body may have {max_bytes} bytes here; send less at once")
        self.max_bytes = max_bytes


class BodyTooSlowError(HttpRefusal):
    """A body, or one line of a stream, did not arrive in its time."""

    status = HTTPStatus.REQUEST_TIMEOUT
    reason = "too_slow"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"nothing complete came within {seconds:g} s")
        self.seconds = seconds


class CorruptBodyError(HttpRefusal):
    """The body is not what its Content-Encoding says."""

    status = HTTPStatus.BAD_REQUEST
    reason = "bad_encoding"


class IntakeClosedError(HttpRefusal):
    """No events are taken for now. Nothing of the request's rest was stored."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    reason = "closed"
    retry_after_seconds = CLOSED_RETRY_SECONDS


class TooManyEventsError(HttpRefusal):
    """A client sent more events than it may."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    reason = "rate_limited"

    def __init__(self, wait_seconds: float) -> None:
        super().__init__("more events than http.events_per_second allows; send again later")
        self.retry_after_seconds = math.ceil(wait_seconds)


@dataclass(frozen=True)
class HttpLimits:
    """What one request may cost."""

    max_stream_bytes: int = 1_073_741_824
    body_seconds: float = 30.0
    """For a single event; of a stream, for each line and for each pause between two."""
    wire: Limits = STANDARD_LIMITS


@dataclass(frozen=True)
class Sender:
    """Who sends, and under which key a repeated request is the same request."""

    client: str
    idempotency_key: str | None = None


@dataclass(frozen=True)
class Body:
    """A request's bytes as they come, and how they are encoded: identity or gzip."""

    chunks: AsyncIterator[bytes]
    encoding: str


class Taken(StrEnum):
    """How an event came to be in the store."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    """It was there already, under the same id and with the same body."""


@dataclass(frozen=True)
class Accepted:
    """An event that is in the database."""

    line: int
    status: Taken
    event_id: str
    receipt: Receipt


@dataclass(frozen=True)
class Refused:
    """A line that is no event, and was not stored. `reason` is one of docs/events.md's."""

    line: int
    reason: str
    detail: str


Result = Accepted | Refused


class HttpSource:
    """Stores what requests bring. One for all requests."""

    def __init__(
        self,
        ingest: Ingest,
        receipts: Receipts,
        announce: Announce,
        closed: Callable[[EventKind], str | None],
        *,
        limits: HttpLimits,
        rate_limit: RateLimit | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`closed` says why no event of a kind may be taken now, or None."""
        self._ingest = ingest
        self._receipts = receipts
        self._announce = announce
        self._closed = closed
        self._limits = limits
        self._rate_limit = rate_limit
        self._monotonic = monotonic
        self._n_uploads = 0

    async def take_one(self, kind: EventKind, body: Body, sender: Sender) -> Result:
        """Store a body that is one event; durable when this returns.

        Raises HttpRefusal and StoreUnavailableError; then the event was not acknowledged,
        and sending it again is harmless.
        """
        self._require_open(kind)
        self._require_allowed(sender, 1)
        whole = await self._whole(body)
        (result,) = await self._store([_record(kind, whole, _request_id(), 1, sender)])
        return result

    async def take_lines(
        self, kind: EventKind, body: Body, sender: Sender
    ) -> AsyncGenerator[Sequence[Result], None]:
        """Store a stream of lines block by block; yields results that are durable.

        Blank lines have a number and no result. Raises as `take_one`, when that is so:
        the results that came before stand, and sending everything again is harmless.
        """
        with self._one_upload():
            self._require_open(kind)
            self._require_allowed(sender, 0)
            async with contextlib.aclosing(self._blocks(kind, body, sender)) as blocks:
                async for block in blocks:
                    self._require_open(kind)
                    await self._wait_for_allowance(sender, len(block))
                    yield await self._store(block)

    async def _whole(self, body: Body) -> bytes:
        most = self._limits.wire.max_bytes
        whole = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for chunk in _inflated(body, most):
                    whole += chunk
        except TimeoutError:
            raise BodyTooSlowError(self._limits.body_seconds) from None
        return bytes(whole)

    async def _blocks(
        self, kind: EventKind, body: Body, sender: Sender
    ) -> AsyncGenerator[list[Record], None]:
        """The lines of a stream in blocks, as they come, never waiting for a full one."""
        request_id = _request_id()
        numbers = itertools.count(1)
        cutter = LineCutter(self._limits.wire.max_bytes)
        arrivals = _Arrivals(_inflated(body, self._limits.max_stream_bytes))
        block: list[Record] = []
        n_bytes = 0
        deadline = self._deadline()
        try:
            while True:
                left = deadline - self._monotonic()
                chunk = await arrivals.next(PAUSE_SECONDS if block else left)
                if not block and (chunk is None or left <= 0):
                    raise BodyTooSlowError(self._limits.body_seconds)
                for line in _lines(cutter, chunk):
                    number = next(numbers)
                    deadline = self._deadline()
                    if line.raw.strip():
                        block.append(_record(kind, line.raw, request_id, number, sender))
                        n_bytes += len(line.raw)
                    if len(block) >= BLOCK_EVENTS or n_bytes >= BLOCK_BYTES:
                        yield block
                        block, n_bytes, deadline = [], 0, self._deadline()
                if block and not chunk:
                    yield block
                    block, n_bytes, deadline = [], 0, self._deadline()
                if chunk == b"":
                    return
        finally:
            await arrivals.close()

    def _deadline(self) -> float:
        return self._monotonic() + self._limits.body_seconds

    async def _store(self, records: Sequence[Record]) -> list[Result]:
        """Store records and look up what became of them, in their order."""
        block = await self._ingest.prepare(SOURCE, records)
        if block.outputs or block.feedback:
            await self._ingest.store(replace(block, dead_letters=()))
        if block.dead_letters:
            self._announce(EventsRefused(SOURCE, Counter(one.reason for one in block.dead_letters)))
        results = [*await self._accepted(records[0].kind, block), *_refused(block)]
        return sorted(results, key=lambda result: result.line)

    async def _accepted(self, kind: EventKind, block: Block) -> list[Result]:
        arrivals: list[JudgedOutput | ReceivedFeedback] = [*block.outputs, *block.feedback]
        receipts = await self._receipts.receipts(
            kind, {(arrival.producer, arrival.event_id) for arrival in arrivals}
        )
        return [
            _told(arrival, receipts[arrival.producer, arrival.event_id]) for arrival in arrivals
        ]

    # --- what a request may cost ----------------------------------------------------------

    def _require_open(self, kind: EventKind) -> None:
        if (why := self._closed(kind)) is not None:
            raise IntakeClosedError(why)

    def _require_allowed(self, sender: Sender, n_events: int) -> None:
        if self._rate_limit is not None and (
            wait := self._rate_limit.take(sender.client, n_events)
        ):
            raise TooManyEventsError(wait)

    async def _wait_for_allowance(self, sender: Sender, n_events: int) -> None:
        """A stream is not cut off but slowed down: what is not read here waits at the sender."""
        while self._rate_limit is not None:
            wait = self._rate_limit.take(sender.client, n_events)
            if not wait:
                return
            await asyncio.sleep(wait)

    @contextlib.contextmanager
    def _one_upload(self) -> Iterator[None]:
        if self._n_uploads >= MOST_UPLOADS:
            raise IntakeClosedError(f"{MOST_UPLOADS} streams are being read already")
        self._n_uploads += 1
        try:
            yield
        finally:
            self._n_uploads -= 1


class _Arrivals:
    """Chunks as they come; after a pause it goes on waiting for the same one."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._waiting: asyncio.Task[bytes] | None = None

    async def next(self, seconds: float) -> bytes | None:
        """The next chunk, b"" at the end, None when none came in so many seconds."""
        if self._waiting is None:
            self._waiting = asyncio.create_task(self._next(), name="http body")
        done, _ = await asyncio.wait([self._waiting], timeout=max(0.0, seconds))
        if not done:
            return None
        task, self._waiting = self._waiting, None
        return task.result()

    async def _next(self) -> bytes:
        return await anext(self._chunks, b"")

    async def close(self) -> None:
        """Wait for nothing any more."""
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.wait([self._waiting])


async def _inflated(body: Body, max_bytes: int) -> AsyncIterator[bytes]:
    """The bytes as they were before compression, none of them empty; counted on both sides."""
    compressed = _counted(body.chunks, max_bytes)
    if body.encoding != GZIP:
        async for chunk in compressed:
            yield chunk
        return
    try:
        async for chunk in _counted(gunzipped(compressed), max_bytes):
            yield chunk
            await asyncio.sleep(0)  # a chunk of a bomb gives many
    except CorruptEncodingError as error:
        raise CorruptBodyError(str(error)) from error


async def _counted(chunks: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    n_bytes = 0
    async for chunk in chunks:
        n_bytes += len(chunk)
        if n_bytes > max_bytes:
            raise BodyTooLargeError(max_bytes)
        if chunk:
            yield chunk


def _lines(cutter: LineCutter, chunk: bytes | None) -> Iterator[Line]:
    """What a chunk, the end (b"") or a pause (None) completes."""
    if chunk:
        yield from cutter.cut(chunk)
    elif chunk is not None and (last := cutter.last()) is not None:
        yield last


def _request_id() -> str:
    return secrets.token_hex(8)


def _record(kind: EventKind, raw: bytes, request_id: str, line: int, sender: Sender) -> Record:
    """The origin is this request's own, and tells a stored event from one that was there."""
    key = sender.idempotency_key
    identity = Origin(SOURCE, kind, 0, 0) if key is None else Origin(SOURCE, key, 0, line)
    return Record(kind, raw, Origin(SOURCE, f"{kind}/{request_id}", 0, line), identity=identity)


def _refused(block: Block) -> Iterator[Refused]:
    for letter in block.dead_letters:
        yield Refused(letter.origin.offset, letter.reason, letter.detail)


def _told(arrival: JudgedOutput | ReceivedFeedback, receipt: Receipt) -> Result:
    line = arrival.origin.offset
    if receipt.origin == arrival.origin:
        return Accepted(line, Taken.STORED, arrival.event_id, receipt)
    if arrival.says(receipt.text):
        return Accepted(line, Taken.DUPLICATE, arrival.event_id, receipt)
    return Refused(
        line,
        ID_REUSED,
        f"producer {arrival.producer!r} has used event_id {arrival.event_id!r} for another"
        " body; send this one under an id of its own",
    )
