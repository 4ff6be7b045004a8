"""The states of events, batches, runs and versions, and the moves between them.

The tables here are the whole truth: the store asks `require_move` before it
writes a new state, so a move that is not listed cannot happen.
"""

from collections.abc import Mapping
from enum import StrEnum

from learning.errors import IllegalMoveError


class EventState(StrEnum):
    """Where an output event stands on its way into a model."""

    QUEUED = "queued"
    SEALED = "sealed"
    REJECTED = "rejected"
    HELD = "held"
    EXPIRED = "expired"
    QUARANTINED = "quarantined"
    WITHDRAWN = "withdrawn"
    FORGOTTEN = "forgotten"
    """What it said is gone, for ever; its ids stay."""


REJECTED_STATES = frozenset({EventState.REJECTED, EventState.WITHDRAWN})
"""Somebody said no before it was sealed, so that it has no primary role and never will."""
APPROVED_STATES = frozenset({EventState.QUEUED, EventState.SEALED})
"""It may be learned from: that is a verdict when an output comes into one of them from outside."""


class FeedbackState(StrEnum):
    """What became of a feedback event."""

    WAITING = "waiting"
    """Its output has not arrived."""
    JOINED = "joined"
    """It was taken into account for its output's verdict."""
    LATE = "late"
    """Its output was sealed already; it counts for the live verdict and for replay only."""
    QUARANTINED = "quarantined"
    """Several outputs share its (task_type, task_id)."""


class BatchState(StrEnum):
    """What became of a sealed batch."""

    SEALED = "sealed"
    RUNNING = "running"
    SPENT = "spent"
    RETURNED = "returned"


class RunState(StrEnum):
    """How far a fine-tune run has come."""

    PLANNED = "planned"
    LAUNCHING = "launching"
    RUNNING = "running"
    TRAINED = "trained"
    EVALUATING = "evaluating"
    DECIDED = "decided"
    WAITING = "waiting"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def active(self) -> bool:
        """Whether the model line is busy with it."""
        return self in ACTIVE_RUN_STATES


ACTIVE_RUN_STATES = frozenset(
    {RunState.LAUNCHING, RunState.RUNNING, RunState.TRAINED, RunState.EVALUATING}
)
UNFINISHED_RUN_STATES = ACTIVE_RUN_STATES | {RunState.PLANNED, RunState.WAITING}


class VersionState(StrEnum):
    """What may be done with a model version."""

    CANDIDATE = "candidate"
    RELEASED = "released"
    SUPERSEDED = "superseded"
    ROLLED_BACK = "rolled_back"
    REFUSED = "refused"
    TAINTED = "tainted"
    """It knows a forgotten event, itself or through its parents: for ever out of use."""


class Role(StrEnum):
    """Why an event is a member of a batch. The first two are primary: one of them, once."""

    TRAIN = "train"
    HELD_OUT = "held_out"
    REPLAY = "replay"
    RETRY = "retry"
    CROSS_TASK = "cross_task"
    """It trained another line, whose task type is related."""
    PREFERENCE = "preference"
    """It was rejected, and what was wrong with it is learned; never as an answer to give."""


PRIMARY_ROLES = frozenset({Role.TRAIN, Role.HELD_OUT})
TRAINING_ROLES = frozenset({Role.TRAIN, Role.REPLAY, Role.RETRY, Role.CROSS_TASK})
"""Approved, so that its answer is learned."""
LEARNED_ROLES = TRAINING_ROLES | {Role.PREFERENCE}
"""Known to the version that the batch makes."""

_EVENT_MOVES: Mapping[EventState, frozenset[EventState]] = {
    EventState.QUEUED: frozenset({EventState.SEALED, EventState.WITHDRAWN, EventState.QUARANTINED}),
    EventState.HELD: frozenset(
        {EventState.QUEUED, EventState.REJECTED, EventState.EXPIRED, EventState.QUARANTINED}
    ),
    EventState.QUARANTINED: frozenset({EventState.QUEUED, EventState.REJECTED}),
}
_RUN_MOVES: Mapping[RunState, frozenset[RunState]] = {
    RunState.PLANNED: frozenset({RunState.LAUNCHING, RunState.WAITING, RunState.CANCELLED}),
    RunState.WAITING: frozenset({RunState.PLANNED, RunState.RUNNING, RunState.CANCELLED}),
    RunState.LAUNCHING: frozenset(
        {RunState.RUNNING, RunState.PLANNED, RunState.FAILED, RunState.WAITING, RunState.CANCELLED}
    ),
    RunState.RUNNING: frozenset(
        {RunState.TRAINED, RunState.PLANNED, RunState.FAILED, RunState.CANCELLED}
    ),
    RunState.TRAINED: frozenset({RunState.EVALUATING, RunState.FAILED, RunState.CANCELLED}),
    RunState.EVALUATING: frozenset({RunState.DECIDED, RunState.FAILED, RunState.CANCELLED}),
}
_VERSION_MOVES: Mapping[VersionState, frozenset[VersionState]] = {
    VersionState.CANDIDATE: frozenset({VersionState.RELEASED, VersionState.REFUSED}),
    VersionState.REFUSED: frozenset({VersionState.RELEASED}),
    VersionState.RELEASED: frozenset({VersionState.SUPERSEDED, VersionState.ROLLED_BACK}),
    VersionState.SUPERSEDED: frozenset({VersionState.RELEASED, VersionState.ROLLED_BACK}),
    VersionState.ROLLED_BACK: frozenset({VersionState.RELEASED, VersionState.SUPERSEDED}),
}
_BATCH_MOVES: Mapping[BatchState, frozenset[BatchState]] = {
    BatchState.SEALED: frozenset({BatchState.RUNNING, BatchState.RETURNED}),
    BatchState.RUNNING: frozenset({BatchState.SPENT, BatchState.RETURNED}),
    # A version that the gate refused can still be forced.
    BatchState.RETURNED: frozenset({BatchState.SPENT}),
}


def require_event_move(current: EventState, wanted: EventState) -> None:
    """Raise IllegalMoveError unless an event may go from `current` to `wanted`.

    Any may be forgotten, once.
    """
    if wanted is EventState.FORGOTTEN and current is not EventState.FORGOTTEN:
        return
    if wanted not in _EVENT_MOVES.get(current, frozenset()):
        raise IllegalMoveError("event", current, wanted)


def require_batch_move(current: BatchState, wanted: BatchState) -> None:
    """Raise IllegalMoveError unless a batch may go from `current` to `wanted`."""
    if wanted not in _BATCH_MOVES.get(current, frozenset()):
        raise IllegalMoveError("batch", current, wanted)


def require_run_move(current: RunState, wanted: RunState) -> None:
    """Raise IllegalMoveError unless a run may go from `current` to `wanted`."""
    if wanted not in _RUN_MOVES.get(current, frozenset()):
        raise IllegalMoveError("run", current, wanted)


def require_version_move(current: VersionState, wanted: VersionState) -> None:
    """Raise IllegalMoveError unless a version may go from `current` to `wanted`.

    Any may turn out to be tainted, once.
    """
    if wanted is VersionState.TAINTED and current is not VersionState.TAINTED:
        return
    if wanted not in _VERSION_MOVES.get(current, frozenset()):
        raise IllegalMoveError("version", current, wanted)
