"""`learnd send`: a file or standard input to Kafka, with a progress bar for a person."""

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from aiokafka.errors import KafkaError
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from consumers.send import ReadableFile, SendFailedError, SendReport, read_lines, send
from daemon.exit_status import ExitStatus
from daemon.kafka import kafka_connection
from daemon.printing import console
from daemon.settings import KafkaSettings
from learning.errors import LearningError
from learning.ports import EventKind

STANDARD_INPUT = "-"


class BrokerUnreachableError(LearningError):
    """Kafka did not take what it was sent."""

    exit_status = ExitStatus.UNREACHABLE


class FileUnreadableError(LearningError):
    """The file to send cannot be read."""

    exit_status = ExitStatus.USAGE

    def __init__(self, name: str, error: OSError) -> None:
        super().__init__(f"{name}: {error.strerror or error}")


def send_file(name: str, kafka: KafkaSettings, *, kind: str | None, validate: bool) -> SendReport:
    """Send the lines of a file; "-" is standard input.

    Raises CertificateError, FileUnreadableError and BrokerUnreachableError.
    """
    connection = kafka_connection(kafka)
    wanted = EventKind(kind) if kind is not None else None
    with opened(name) as file, progress(file) as (counted, on_progress):
        try:
            return asyncio.run(
                send(
                    read_lines(counted),
                    connection,
                    lambda: datetime.now(UTC),
                    kind=wanted,
                    validate=validate,
                    on_progress=on_progress,
                )
            )
        except SendFailedError as error:
            raise BrokerUnreachableError(str(error)) from error
        except KafkaError as error:
            raise BrokerUnreachableError(
                f"no Kafka broker answers at {connection.bootstrap_servers}: {error}"
            ) from error


@contextlib.contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """A file, or for "-" standard input. Raises FileUnreadableError."""
    if name == STANDARD_INPUT:
        yield sys.stdin.buffer
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(Path(name).open("rb"))
        except OSError as error:
            raise FileUnreadableError(name, error) from error
        yield file


class _Counted:
    """A file that tells how many bytes were read from it."""

    def __init__(self, file: BinaryIO, on_bytes: Callable[[int], None]) -> None:
        self._file = file
        self._on_bytes = on_bytes

    def read1(self, size: int, /) -> bytes:
        """What is there now, at most `size` bytes."""
        chunk: bytes = self._file.read1(size)  # type: ignore[attr-defined]
        self._on_bytes(len(chunk))
        return chunk


@contextlib.contextmanager
def progress(file: BinaryIO) -> Iterator[tuple[ReadableFile, Callable[[int], None]]]:
    """A bar on stderr, when somebody watches: bytes read, and events acknowledged."""
    with Progress(
        TextColumn("{task.fields[sent]} events"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        task = bar.add_task("send", total=_size(file), sent=0)
        yield (
            _Counted(file, lambda n: bar.advance(task, n)),
            lambda acknowledged: bar.update(task, sent=acknowledged),
        )


def _size(file: BinaryIO) -> int | None:
    """Bytes in a regular file; None for a pipe or a terminal."""
    if not file.seekable():
        return None
    return Path(file.name).stat().st_size if isinstance(file.name, str) else None
