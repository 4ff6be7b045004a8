"""Records -> what the store takes: decode, judge, one row each.

Pure work of the processor, and most of what an event costs. So it may be done in a process
of its own (consumers/reader_process.py): what goes in and comes out is plain.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

from consumers.wire import Decoded, Limits, Reason, Undecodable, decode
from learning.clock import EPOCH
from learning.events import FeedbackEvent, OutputEvent
from learning.policy import Verdict
from learning.ports import DeadLetter, EventKind, JudgedOutput, Origin, ReceivedFeedback

COLLECT_AFTER = 50_000
"""Objects made, and not yet freed, between two looks for young cycles, wherever events are read
or stored: they are many, and acyclic."""


class Record(NamedTuple):
    """One record as a source read it."""

    kind: EventKind
    value: bytes | None
    origin: Origin
    fault: Undecodable | None = None
    """What the source found wrong with it; then the value is kept, and not read."""
    identity: Origin | None = None
    """What the id of an event without one is derived from; the origin unless given here."""


@dataclass(frozen=True)
class Stretch:
    """Records of one kind from one partition, in their order: what a log is read in.

    An object for each record would cost as much as storing its row.
    """

    kind: EventKind
    source: str
    topic: str
    partition: int
    offsets: Sequence[int]
    values: Sequence[bytes | None]
    faults: Mapping[int, Undecodable] = field(default_factory=dict)
    """By offset, what the source found wrong; then the value is kept, and not read."""

    def __len__(self) -> int:
        return len(self.offsets)

    def __iter__(self) -> Iterator[Record]:
        for offset, value in zip(self.offsets, self.values, strict=True):
            origin = Origin(self.source, self.topic, self.partition, offset)
            yield Record(self.kind, value, origin, self.faults.get(offset))


@dataclass
class Reading:
    """What records became, each sort in their order."""

    outputs: Sequence[JudgedOutput] = ()
    feedback: Sequence[ReceivedFeedback] = ()
    dead_letters: Sequence[DeadLetter] = ()
    task_types: set[str] = field(default_factory=set)
    """Of the outputs and the feedback."""

    def refuse_unknown(self, is_known: Callable[[str], bool]) -> None:
        """Make dead letters of the events whose task type no model line owns.

        Dead letters stand in the order of their origins afterwards.
        """
        unknown = {task_type for task_type in self.task_types if not is_known(task_type)}
        if unknown:
            self.dead_letters = [
                *self.dead_letters,
                *_refused(EventKind.OUTPUT, self.outputs, unknown),
                *_refused(EventKind.FEEDBACK, self.feedback, unknown),
            ]
            self.outputs = [one for one in self.outputs if one.task_type not in unknown]
            self.feedback = [one for one in self.feedback if one.task_type not in unknown]
        self.dead_letters = sorted(self.dead_letters, key=attrgetter("origin"))


def _refused(
    kind: EventKind, arrivals: Iterable[JudgedOutput | ReceivedFeedback], unknown: Container[str]
) -> Iterator[DeadLetter]:
    for arrival in arrivals:
        if arrival.task_type in unknown:
            yield DeadLetter(
                kind,
                Reason.UNKNOWN_TASK_TYPE,
                f"no model line owns {arrival.task_type!r}",
                arrival.text.encode(),
                arrival.origin,
                EPOCH + timedelta(microseconds=arrival.received_at),
            )


class Reader:
    """Reads records in the thread that calls it. Keeps nothing."""

    def __init__(
        self, judge: Callable[[OutputEvent], Verdict], limits: Limits, *, texts: bool = True
    ) -> None:
        self._judge = judge
        self._limits = limits
        self._texts = texts
        """Whether arrivals get their text; without, whoever asked has the bytes."""

    def read(self, records: Iterable[Record], received_at: int) -> Reading:
        """What records that arrived together became; the time in microseconds since 1970."""
        outputs: list[JudgedOutput] = []
        feedback: list[ReceivedFeedback] = []
        dead_letters: list[DeadLetter] = []
        task_types: set[str] = set()
        for record in records:
            kind, value, origin, fault, identity = record
            arrival = fault or self.arrival(kind, value, origin, received_at, identity)
            if isinstance(arrival, Undecodable):
                dead_letters.append(dead(record, arrival, received_at))
                continue
            task_types.add(arrival.task_type)
            if isinstance(arrival, JudgedOutput):
                outputs.append(arrival)
            else:
                feedback.append(arrival)
        return Reading(outputs, feedback, dead_letters, task_types)

    def arrival(
        self,
        kind: EventKind,
        value: bytes | None,
        origin: Origin,
        received_at: int,
        identity: Origin | None = None,
    ) -> JudgedOutput | ReceivedFeedback | Undecodable:
        """What one record became, or why it is no event; see Record."""
        decoded = decode(kind, value, identity or origin, received_at, self._limits)
        if not isinstance(decoded, Decoded):
            return decoded
        event_id, event, sent_at = decoded
        text = value.decode() if self._texts and value is not None else ""
        producer, task_type, task_id, approved, confidence, model_version = _common(event)
        occurred_at = received_at if sent_at is None else sent_at
        if isinstance(event, FeedbackEvent):
            return _received(
                (
                    producer,
                    event_id,
                    task_type,
                    task_id,
                    approved,
                    confidence,
                    text,
                    model_version,
                    *origin,
                    occurred_at,
                    received_at,
                )
            )
        state, reason, by_human = self._judge(event)
        return _judged(
            (
                producer,
                event_id,
                task_type,
                task_id,
                approved,
                confidence,
                text,
                model_version,
                *origin,
                occurred_at,
                received_at,
                state.value,
                received_at,
                reason,
                by_human,
                event.subject,
            )
        )


# As their constructors do, without a call in between: they are made for each event.
_judged: Callable[[tuple[Any, ...]], JudgedOutput] = partial(tuple.__new__, JudgedOutput)
_received: Callable[[tuple[Any, ...]], ReceivedFeedback] = partial(tuple.__new__, ReceivedFeedback)
_common = attrgetter("producer", "task_type", "task_id", "approved", "confidence", "model_version")


def dead(record: Record, fault: Undecodable, received_at: int) -> DeadLetter:
    """The dead letter of a record that arrived then, in microseconds since 1970."""
    return DeadLetter(
        record.kind,
        fault.reason,
        fault.detail,
        bytes(record.value or b""),
        record.origin,
        EPOCH + timedelta(microseconds=received_at),
    )
