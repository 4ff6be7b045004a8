"""Small makers of events and arrivals: every field has a value until a test needs another."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from consumers.reading import Reader, Reading, Record
from consumers.wire import Limits
from learning.clock import microseconds
from learning.events import FeedbackEvent, OutputEvent
from learning.judge import Judge
from learning.policy import Policy
from learning.ports import (
    Block,
    DeadLetter,
    EventKind,
    JudgedOutput,
    Origin,
    PositionMove,
    ReceivedFeedback,
)
from learning.validators import built_in

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
"""By any real clock, such as the database's."""
HERE = Origin("test", "learnd.outputs", 0, 0)

ANY_LIMITS = Limits(max_bytes=2**31, max_depth=1_000)

JUDGE = Judge(Policy, built_in(max_output_characters=1_000))
"""The policy as shipped, with the validators as shipped."""


def later(**duration: float) -> datetime:
    """A time after NOON: `later(minutes=5)`."""
    return NOON + timedelta(**duration)


def output(task_id: str = "task-1", **fields: Any) -> OutputEvent:
    """An output that a person approved, with a prompt of its own for each task."""
    return OutputEvent(
        **{
            "producer": "studio",
            "task_id": task_id,
            "task_type": "normalize",
            "prompt": f"normalize {task_id}",
            "output": f"normal {task_id}",
            "approved": True,
            **fields,
        }
    )


def feedback(task_id: str = "task-1", **fields: Any) -> FeedbackEvent:
    """A person's approval of that task's output."""
    return FeedbackEvent(
        **{
            "producer": "audience",
            "task_id": task_id,
            "task_type": "normalize",
            "approved": True,
            **fields,
        }
    )


def judged(
    event: OutputEvent, *, at: datetime = NOON, origin: Origin = HERE, judge: Judge = JUDGE
) -> JudgedOutput:
    """The output as intake hands it to the store. Without an id its task's name is its id."""
    event_id = event.event_id or f"{event.task_type}/{event.task_id}"
    (judged,) = _read(EventKind.OUTPUT, event, at, origin, judge).outputs
    return judged._replace(event_id=event_id)


def received(
    event: FeedbackEvent, *, at: datetime = NOON, origin: Origin = HERE
) -> ReceivedFeedback:
    """The feedback as intake hands it to the store; one approval and one refusal per task."""
    event_id = event.event_id or f"{event.task_type}/{event.task_id}/{event.approved}"
    (received,) = _read(EventKind.FEEDBACK, event, at, origin, JUDGE).feedback
    return received._replace(event_id=event_id)


def _read(
    kind: EventKind, event: OutputEvent | FeedbackEvent, at: datetime, origin: Origin, judge: Judge
) -> Reading:
    record = Record(kind, event.model_dump_json().encode(), origin)
    return Reader(judge, ANY_LIMITS).read([record], microseconds(at))


def dead_letter(raw: bytes = b"{", *, reason: str = "not_json", at: datetime = NOON) -> DeadLetter:
    """A record that could not become an output."""
    return DeadLetter(EventKind.OUTPUT, reason, "it ends too early", raw, HERE, at)


def block(
    *arrivals: OutputEvent | FeedbackEvent | DeadLetter,
    at: datetime = NOON,
    move: PositionMove | None = None,
) -> Block:
    """Arrivals as one block, in the order given."""
    return Block(
        source="test",
        outputs=[judged(each, at=at) for each in arrivals if isinstance(each, OutputEvent)],
        feedback=[received(each, at=at) for each in arrivals if isinstance(each, FeedbackEvent)],
        dead_letters=[each for each in arrivals if isinstance(each, DeadLetter)],
        move=move,
    )


def outputs(task_ids: Iterable[int], **fields: Any) -> list[OutputEvent]:
    """One approved output for each number."""
    return [output(f"task-{number}", **fields) for number in task_ids]
