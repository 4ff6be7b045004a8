"""The one path from any source into the store: decode, judge, store, tell.

Knows no Kafka, HTTP or file. It does not retry: whoever read the records knows how long
they can wait, so `StoreUnavailableError` and `PositionFencedError` pass through.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from consumers.pressure import Pressure
from consumers.wire import STANDARD_LIMITS, Decoded, Limits, Reason, Undecodable, decode
from learning.clock import Clock
from learning.events import FeedbackEvent, OutputEvent
from learning.facts import Announce, EventsStored
from learning.lifecycle import EventState
from learning.lines import ModelLines
from learning.policy import Verdict
from learning.ports import (
    Block,
    DeadLetter,
    EventKind,
    IntakeStore,
    JudgedOutput,
    Origin,
    PositionMove,
    ReceivedFeedback,
    StoreUnavailableError,
)

_BYTES_BETWEEN_PAUSES = 256_000
"""After decoding so much the event loop gets its turn: some milliseconds of work."""


class Record(NamedTuple):
    """One record as a source read it."""

    kind: EventKind
    value: bytes | None
    origin: Origin
    fault: Undecodable | None = None
    """What the source found wrong with it; then the value is kept, and not read."""
    identity: Origin | None = None
    """What the id of an event without one is derived from; the origin unless given here."""


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
        unpack: Callable[[DeadLetter], Sequence[Record]] | None = None,
    ) -> None:
        self._store = store
        self._lines = lines
        self._judge = judge
        self._announce = announce
        self._clock = clock
        self._limits = limits
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
        now = self._clock()
        outputs: list[JudgedOutput] = []
        feedback: list[ReceivedFeedback] = []
        dead_letters: list[DeadLetter] = []
        unpaused_bytes = 0
        for record in records:
            judged = self._judged(record, now)
            if isinstance(judged, JudgedOutput):
                outputs.append(judged)
            elif isinstance(judged, ReceivedFeedback):
                feedback.append(judged)
            else:
                dead_letters.append(judged)
            unpaused_bytes += len(record.value or b"")
            if unpaused_bytes >= _BYTES_BETWEEN_PAUSES:
                unpaused_bytes = 0
                await asyncio.sleep(0)
        return Block(source, outputs, feedback, dead_letters, move)

    async def store(self, block: Block) -> EventsStored:
        """Store a prepared block and announce it. Raises as `store_block`."""
        try:
            stored = await self._store.append(block)
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
        now = self._clock()
        judged = [self._judged(record, now) for record in self._unpack(dead_letter)]
        outputs = [one for one in judged if isinstance(one, JudgedOutput)]
        feedback = [one for one in judged if isinstance(one, ReceivedFeedback)]
        letters = tuple(one for one in judged if isinstance(one, DeadLetter))
        if not outputs and not feedback:
            return letters[0]
        return Block(dead_letter.origin.source, outputs, feedback, letters)

    def _judged(
        self, record: Record, now: datetime
    ) -> JudgedOutput | ReceivedFeedback | DeadLetter:
        identity = record.identity or record.origin
        decoded = record.fault or decode(record.kind, record.value, identity, now, self._limits)
        if isinstance(decoded, Decoded) and self._lines.owner(decoded.event.task_type) is None:
            decoded = Undecodable(
                Reason.UNKNOWN_TASK_TYPE, f"no model line owns {decoded.event.task_type!r}"
            )
        if isinstance(decoded, Undecodable):
            raw = record.value or b""
            return DeadLetter(record.kind, decoded.reason, decoded.detail, raw, record.origin, now)
        event = decoded.event
        if isinstance(event, FeedbackEvent):
            return ReceivedFeedback(decoded.event_id, event, decoded.text, record.origin, now)
        verdict = self._judge(event)
        return JudgedOutput(decoded.event_id, event, verdict, decoded.text, record.origin, now)


def _as_it_is(dead_letter: DeadLetter) -> Sequence[Record]:
    return [Record(dead_letter.kind, dead_letter.raw, dead_letter.origin)]
