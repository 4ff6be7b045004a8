"""Send JSONL lines to the topics that learnd reads: each line as it is, one record.

Checks every line first as the reader would (consumers/wire.py), streams files of any
size, and counts a line as sent when Kafka has acknowledged it. Prints nothing.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from consumers.kafka_connection import KafkaConnection
from consumers.lines import LineCutter
from consumers.wire import STANDARD_LIMITS, Limits, Undecodable, decode
from learning.clock import Clock, microseconds
from learning.ports import EventKind, Origin

MAX_LINE_BYTES = 16_000_000
"""A longer line is cut here while reading, and refused: it must not fill the memory."""
MAX_UNACKNOWLEDGED = 5_000
MAX_LISTED = 1_000
"""So many refused lines are listed; all are counted."""
REQUEST_TIMEOUT_SECONDS = 15.0
_CHUNK_BYTES = 65_536
_ENVELOPE_BYTES = 65_536


class ReadableFile(Protocol):
    """A binary file, or standard input's buffer."""

    def read1(self, size: int, /) -> bytes:
        """What is there now, at most `size` bytes; waits only for the first; b"" at the end."""
        ...


class RefusedLine(NamedTuple):
    """A line that was not sent; lines are counted from 1."""

    line: int
    reason: str


@dataclass(frozen=True)
class SendReport:
    """How sending ended. Blank lines are not counted."""

    sent: int
    n_refused: int
    refused: tuple[RefusedLine, ...]
    """The first MAX_LISTED of them."""
    duplicates: int = 0
    """Of those sent, how many the daemon had already; Kafka does not tell."""


class SendFailedError(Exception):
    """Kafka did not take a line, so sending stopped. Later lines may have been taken."""

    def __init__(self, line: int, acknowledged: int, cause: BaseException) -> None:
        super().__init__(
            f"line {line} was not acknowledged ({cause!r}); {acknowledged} lines were."
            " Sending everything again is safe where events have an event_id"
        )
        self.line, self.acknowledged = line, acknowledged


async def read_lines(file: ReadableFile) -> AsyncIterator[bytes]:
    """The lines of a file, without their ends, as they come. The file is read in a thread."""
    cutter = LineCutter(MAX_LINE_BYTES)
    while chunk := await asyncio.to_thread(file.read1, _CHUNK_BYTES):
        for line in cutter.cut(chunk):
            yield line.raw
    if (last := cutter.last()) is not None:
        yield last.raw


async def send(
    lines: AsyncIterable[bytes],
    connection: KafkaConnection,
    clock: Clock,
    *,
    kind: EventKind | None = None,
    validate: bool = True,
    limits: Limits = STANDARD_LIMITS,
    on_progress: Callable[[int], None] = lambda acknowledged: None,
) -> SendReport:
    """Send lines; all are acknowledged when this returns.

    A line goes to the first topic of its kind: as `kind` says, else as `kind_of` guesses.
    It is keyed by its task_id, so that one task's events stay in order. With
    `validate=False` junk is sent too. `on_progress` gets the count of lines acknowledged
    so far. Raises SendFailedError, and KafkaError when Kafka cannot be reached.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": connection.bootstrap_servers,
        "enable_idempotence": True,
        "linger_ms": 5,
        "request_timeout_ms": round(REQUEST_TIMEOUT_SECONDS * 1000),
        "max_request_size": MAX_LINE_BYTES + _ENVELOPE_BYTES,
    }
    topics = {
        EventKind.OUTPUT: connection.outputs_topics[0],
        EventKind.FEEDBACK: connection.feedback_topics[0],
    }
    producer = AIOKafkaProducer(**(options | dict(connection.client)))
    try:
        await producer.start()
        delivery = _Delivery(producer, on_progress)
        number = 0
        async for line in lines:
            number += 1
            if not line.strip():
                continue
            content = parsed(line)
            line_kind = kind or kind_of(content)
            refusal = _refusal(line, line_kind, number, clock, limits if validate else None)
            if refusal is not None:
                delivery.refuse(number, refusal)
            else:
                await delivery.send(number, topics[line_kind], line, _key(content))
        return await delivery.finish()
    finally:
        await producer.stop()


def kind_of(content: object) -> EventKind:
    """The kind of event that a parsed line seems to be; an output when it is no object."""
    if not isinstance(content, dict):
        return EventKind.OUTPUT
    is_feedback = not content.keys().isdisjoint(("feedback", "adaptation"))
    is_output = not content.keys().isdisjoint(("prompt", "messages", "output"))
    return EventKind.FEEDBACK if is_feedback or not is_output else EventKind.OUTPUT


def parsed(line: bytes) -> object:
    """What a line holds, as far as its kind and its task are asked; None when it is no JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None  # what is wrong with it, the check of the whole line says


def _key(content: object) -> bytes | None:
    if not isinstance(content, dict):
        return None
    task_id = content.get("task_id", content.get("taskId"))
    return task_id.encode(errors="replace") if isinstance(task_id, str) else None


def _refusal(
    line: bytes, kind: EventKind, number: int, clock: Clock, limits: Limits | None
) -> str | None:
    if len(line) > MAX_LINE_BYTES:
        return f"too_large: more than {MAX_LINE_BYTES:,} bytes"
    if limits is None:
        return None
    origin, sent_at = Origin("send", kind, 0, number), microseconds(clock())
    decoded = decode(kind, line, origin, sent_at, limits)
    return f"{decoded.reason}: {decoded.detail}" if isinstance(decoded, Undecodable) else None


class _Delivery:
    """Keeps a bounded number of lines under way, and counts what became of all."""

    def __init__(self, producer: Any, on_progress: Callable[[int], None]) -> None:
        self._producer = producer
        self._on_progress = on_progress
        self._under_way: deque[tuple[int, asyncio.Future[Any]]] = deque()
        self._sent = 0
        self._n_refused = 0
        self._refused: list[RefusedLine] = []

    def refuse(self, line: int, reason: str) -> None:
        self._n_refused += 1
        if len(self._refused) < MAX_LISTED:
            self._refused.append(RefusedLine(line, reason))

    async def send(self, line: int, topic: str, value: bytes, key: bytes | None) -> None:
        if len(self._under_way) >= MAX_UNACKNOWLEDGED:
            await self._settle(MAX_UNACKNOWLEDGED // 2)
        try:
            future = await self._producer.send(topic, value, key)
        except MessageSizeTooLargeError as error:
            self.refuse(line, f"too_large: kafka did not take it: {error}")
        except KafkaError as error:
            raise SendFailedError(line, self._sent, error) from error
        else:
            self._under_way.append((line, future))

    async def finish(self) -> SendReport:
        await self._settle(len(self._under_way))
        return SendReport(self._sent, self._n_refused, tuple(self._refused))

    async def _settle(self, count: int) -> None:
        """Wait for the oldest `count` lines."""
        for _ in range(count):
            line, future = self._under_way.popleft()
            try:
                await future
            except MessageSizeTooLargeError as error:
                self.refuse(line, f"too_large: kafka did not take it: {error}")
            except KafkaError as error:
                for _, later in self._under_way:
                    later.add_done_callback(_look_at)
                raise SendFailedError(line, self._sent, error) from error
            else:
                self._sent += 1
        self._on_progress(self._sent)


def _look_at(future: asyncio.Future[Any]) -> None:
    """Take note of a result that nobody waits for any more, or asyncio complains."""
    if not future.cancelled():
        future.exception()
