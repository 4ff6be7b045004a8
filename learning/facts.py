"""What has happened, told once after the transaction that made it true.

Logs, metrics, alerts and the lifecycle topic derive from these. A fact may be lost in a
crash; history may not, and is therefore written inside the transaction.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

from learning.lifecycle import EventState, FeedbackState
from learning.screening import ScreeningOutcome


@dataclass(frozen=True)
class EventsStored:
    """A block of arrivals is in the database."""

    source: str
    outputs: Mapping[tuple[str, EventState], int] = field(default_factory=dict)
    """New outputs by (task_type, state)."""
    feedback: Mapping[tuple[str, FeedbackState], int] = field(default_factory=dict)
    """New feedback by (task_type, state)."""
    rejudged: Mapping[tuple[str, EventState], int] = field(default_factory=dict)
    """Earlier outputs that feedback moved, by (task_type, new state)."""
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    """By reason."""
    duplicates: int = 0


@dataclass(frozen=True)
class EventsRefused:
    """Arrivals that were no events, of a sender who was told so and still has them."""

    source: str
    reasons: Mapping[str, int]


@dataclass(frozen=True)
class TopicRecreated:
    """A partition no longer holds what was read from it; it is read again from its start."""

    topic: str
    partition: int
    stored_offset: int
    restart_offset: int


@dataclass(frozen=True)
class PartitionFenced:
    """A write was refused, because another consumer has claimed the partition since."""

    topic: str
    partition: int
    epoch: int
    """The claim that the write was made under."""


@dataclass(frozen=True)
class EventsExpired:
    """Held events whose time ran out."""

    count: int


@dataclass(frozen=True)
class EventsScreened:
    """Validators that cost time have looked at stored events, before those may be sealed."""

    outcomes: Mapping[tuple[str, ScreeningOutcome], int]
    """Events by (task_type, outcome)."""
    complaints: Mapping[str, int] = field(default_factory=dict)
    """By validator."""
    checks: Mapping[str, int] = field(default_factory=dict)
    """How many events each validator looked at."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """And how long it took for them."""


@dataclass(frozen=True)
class BatchSealed:
    """A batch exists, with its members' roles and its planned run."""

    line: str
    batch_id: str
    run_id: str | None
    """None when every member is held out, so that there is nothing to train."""
    trigger: str
    n_train: int
    n_held_out: int
    n_replay: int
    n_retry: int
    n_cross_task: int = 0
    n_preference: int = 0
    """Rejected outputs that it learns from."""


@dataclass(frozen=True)
class RunLaunched:
    """A provider accepted a job for an attempt of a run."""

    line: str
    run_id: str
    attempt: int
    provider: str
    job_id: str


@dataclass(frozen=True)
class RunFailed:
    """An attempt failed. `retried` tells whether another one follows."""

    line: str
    run_id: str
    attempt: int
    error: str
    message: str
    retried: bool


@dataclass(frozen=True)
class RunWaits:
    """A run cannot go on before a person does something."""

    line: str
    run_id: str
    reason: str


@dataclass(frozen=True)
class RunShortOfMoney:
    """A run waits because it may cost more than a cap leaves, or nobody knows what it costs."""

    line: str
    run_id: str
    reason: str
    """With the amounts, and the setting that would help."""


@dataclass(frozen=True)
class RunCancelAsked:
    """A person wants a run to end; its job is being ended."""

    line: str
    run_id: str
    actor: str
    reason: str


@dataclass(frozen=True)
class RunCancelled:
    """A run is over because a person ended it; its batch is returned."""

    line: str
    run_id: str
    actor: str
    reason: str


@dataclass(frozen=True)
class LaunchResolved:
    """A person said what became of a launch whose reply nobody heard."""

    line: str
    run_id: str
    job_id: str | None
    """None when it made no job."""
    actor: str


@dataclass(frozen=True)
class RunTrained:
    """A provider finished a job, and its artifact is published."""

    line: str
    run_id: str
    seconds: float
    trained_tokens: int


@dataclass(frozen=True)
class RunTakenOver:
    """This daemon goes on with a run whose owner fell silent, or was declared gone."""

    line: str
    run_id: str
    taken_from: str
    """The name of the node that had it."""


@dataclass(frozen=True)
class RunLost:
    """Another daemon took a run from this one, whose writes about it are refused now."""

    run_id: str


@dataclass(frozen=True)
class CandidateDecided:
    """The gate spoke. `version` is the candidate's pre-release number."""

    line: str
    run_id: str
    version: str
    outcome: str
    reason: str
    champion_loss: float | None
    candidate_loss: float | None


@dataclass(frozen=True)
class Promoted:
    """The champion of a line is another version. `version` is its release number."""

    line: str
    version: str
    replaced: str
    forced: bool
    actor: str


@dataclass(frozen=True)
class RolledBack:
    """The champion of a line is an earlier version again."""

    line: str
    version: str
    left: str
    actor: str
    reason: str


@dataclass(frozen=True)
class QuarantineReleased:
    """An operator let go what the firewall had stopped."""

    count: int
    producer: str | None
    """Whose; None stands for anybody's."""
    rule: str | None
    """What had stopped them; None stands for any rule."""
    task_type: str | None
    more: bool
    """Whether more of them wait."""
    actor: str
    reason: str


@dataclass(frozen=True)
class EventsForgotten:
    """What events and feedback said is gone from the store; their ids stay."""

    forgetting_id: int
    outputs: int
    feedback: int
    dead_letters: int
    held_out: int
    """Examples that left the frozen held-out set."""
    versions: Sequence[str]
    """LINE@VERSION of those that are tainted by it, and were not before."""
    actor: str


@dataclass(frozen=True)
class RollbackHeldBack:
    """People like a champion less than the version before it, and it stays nevertheless."""

    line: str
    version: str
    predecessor: str
    evidence: str
    """With the numbers."""
    reason: str
    """Why it stays, and which setting would help."""


@dataclass(frozen=True)
class BatchSizeChanged:
    """A line seals other batches from now on. `cause` is a learning.batch_sizing.SizeCause."""

    line: str
    before: int
    after: int
    cause: str
    reason: str
    actor: str


@dataclass(frozen=True)
class LoopAdapted:
    """Feedback changed something in the loop. `change` is a learning.feedback.LoopChange."""

    task_type: str
    change: str
    times: int
    """So often, of some feedback that was digested together."""
    reason: str
    """Of the last time, with what it is now."""


@dataclass(frozen=True)
class FeedbackReset:
    """Everything that feedback had changed for a task type was taken back."""

    task_type: str
    dials: int
    """So many were not at rest."""
    actor: str
    reason: str


@dataclass(frozen=True)
class SettingsChanged:
    """Settings were changed while learnd runs, and hold from now on."""

    revision: int
    keys: Sequence[str]
    actor: str
    reason: str
    undoes: int | None
    """The revision that was taken back."""


@dataclass(frozen=True)
class ModelShutsDown:
    """A service will soon offer a model no longer that a line uses, or does not any more."""

    line: str
    model: str
    on: date
    """The first day without it."""
    days_left: int
    """Until then; negative when it is past."""


@dataclass(frozen=True)
class WebhookReceived:
    """A signed webhook is in the database; of what it says only this is kept."""

    event_type: str
    known: bool
    """Whether it is a type that this release knows, of which there are few."""
    delivery_id: str
    object_id: str | None
    """What it is about: a provider's job, or something else."""
    is_new: bool
    """False when its delivery was stored before: then nothing happened."""


@dataclass(frozen=True)
class WebhookRefused:
    """A webhook was not taken; its sender was told so."""

    reason: str


Fact = (
    EventsStored
    | EventsRefused
    | TopicRecreated
    | PartitionFenced
    | EventsExpired
    | EventsScreened
    | BatchSealed
    | RunLaunched
    | RunFailed
    | RunWaits
    | RunShortOfMoney
    | RunCancelAsked
    | RunCancelled
    | LaunchResolved
    | RunTrained
    | RunTakenOver
    | RunLost
    | CandidateDecided
    | Promoted
    | RolledBack
    | QuarantineReleased
    | EventsForgotten
    | RollbackHeldBack
    | BatchSizeChanged
    | LoopAdapted
    | FeedbackReset
    | SettingsChanged
    | ModelShutsDown
    | WebhookReceived
    | WebhookRefused
)

Announce = Callable[[Fact], None]
"""Tells everyone who listens. It must not raise and must not block."""
