"""The one path from any source into the store: decode, judge, store, tell.

Knows no Kafka, HTTP or file. It does not retry: whoever read the records knows how long
they can wait, so `StoreUnavailableError` and `PositionFencedError` pass through.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from consumers.pressure import Pressure
from consumers.reader_process import ReaderProcess
from consumers.reading import Reader, Reading, Record, Stretch
from consumers.wire import STANDARD_LIMITS, Limits
from learning.clock import Clock, microseconds
from learning.events import OutputEvent
from learning.facts import Announce, EventsStored
from learning.lifecycle import EventState
from learning.lines import ModelLines
from learning.policy import Verdict
from learning.ports import Block, DeadLetter, IntakeStore, PositionMove, StoreUnavailableError

_LARGE = 100
"""Records that are worth the way to another process; a source has more only when it is behind."""
_BYTES_BETWEEN_PAUSES = 256_000
"""After decoding so much the event loop gets its turn: some milliseconds of work."""


class Ingest:
    """Turns records into stored events. Holds nothing between two calls."""

    def __init__(
        self,
        store: IntakeStore,
        lines: ModelLines,
        judge: Callable[[OutputEvent], Verdict],
        announce: Announce,
        clock: Clock,
        *,
        limits: Limits = STANDARD_LIMITS,
        pressure: Pressure | None = None,
        process: ReaderProcess | None = None,
        unpack: Callable[[DeadLetter], Sequence[Record]] | None = None,
    ) -> None:
        self._store = store
        self._lines = lines
        self._reader = Reader(judge, limits)
        self._process = process
        self._announce = announce
        self._clock = clock
        self._unpack = unpack or _as_it_is
        self.pressure = pressure or Pressure(time.monotonic)
        """Told of each attempt to store; a source asks it before it takes more."""

    async def store_block(
        self, source: str, records: Iterable[Record], move: PositionMove | None = None
    ) -> EventsStored:
        """Decode, judge and store records in one transaction; durable when this returns.

        Raises PositionFencedError and StoreUnavailableError; then nothing was stored.
        """
        return await self.store(await self.prepare(source, records, move))

    async def prepare(
        self, source: str, records: Iterable[Record], move: PositionMove | None = None
    ) -> Block:
        """The block that `store` takes, and may be given again after a failure."""
        received_at = microseconds(self._clock())
        reading = None
        if isinstance(records, Stretch) and self._process is not None and len(records) >= _LARGE:
            reading = await self._process.read(records, received_at)
        if reading is None:
            reading = await self._read(records, received_at)
        reading.refuse_unknown(self._is_known)
        return Block(source, reading.outputs, reading.feedback, reading.dead_letters, move)

    async def store(self, *blocks: Block) -> EventsStored:
        """Store prepared blocks in one transaction and announce them. Raises as `store_block`."""
        try:
            stored = await self._store.append(*blocks)
        except StoreUnavailableError as error:
            self.pressure.store_failed(str(error))
            raise
        self.pressure.store_answered()
        self.pressure.add(
            sum(n for (_, state), n in stored.outputs.items() if state is EventState.QUEUED)
        )
        self._announce(stored)
        return stored

    def replay(self, dead_letter: DeadLetter) -> Block | DeadLetter:
        """Read a dead letter again, under its original origin, as if it arrived now.

        The block moves no position. It has one event; when the dead letter was a batch, all
        that can be read, with dead letters for those that are no events. When there is no
        event at all, the first of them comes back, with today's reason.
        """
        reading = self._reader.read(self._unpack(dead_letter), microseconds(self._clock()))
        reading.refuse_unknown(self._is_known)
        if not reading.outputs and not reading.feedback:
            return reading.dead_letters[0]
        return Block(
            dead_letter.origin.source,
            reading.outputs,
            reading.feedback,
            tuple(reading.dead_letters),
        )

    def _is_known(self, task_type: str) -> bool:
        return self._lines.owner(task_type) is not None

    async def _read(self, records: Iterable[Record], received_at: int) -> Reading:
        parts = []
        for part in _parts(records):
            parts.append(self._reader.read(part, received_at))
            await asyncio.sleep(0)
        return Reading(
            [output for part in parts for output in part.outputs],
            [one for part in parts for one in part.feedback],
            [letter for part in parts for letter in part.dead_letters],
            {task_type for part in parts for task_type in part.task_types},
        )


def _parts(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records in their order, as many at a time as may be read without a pause."""
    part: list[Record] = []
    n_bytes = 0
    for record in records:
        part.append(record)
        n_bytes += len(record.value or b"")
        if n_bytes >= _BYTES_BETWEEN_PAUSES:
            yield part
            part, n_bytes = [], 0
    if part:
        yield part


def _as_it_is(dead_letter: DeadLetter) -> Sequence[Record]:
    return [Record(dead_letter.kind, dead_letter.raw, dead_letter.origin)]
