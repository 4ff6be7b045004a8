"""The doors of the core: what it needs from a store and from a fine-tune provider.

Only shapes and promises. The store's real implementations are in daemon/store, the
providers in finetune. A value here travels between rooms that may not import each other.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from learning.budget import Quote
from learning.errors import LearningError
from learning.events import FeedbackEvent, OutputEvent, is_same_body
from learning.facts import EventsStored, Promoted
from learning.gate import GateReport, Score, TrainingProof
from learning.lifecycle import Role, RunState
from learning.lines import ModelLine

# --- intake ---------------------------------------------------------------------------
# What is made once for each event is a NamedTuple: a frozen dataclass takes four times as long.


class EventKind(StrEnum):
    """The two kinds of event, and the name that their topics go by."""

    OUTPUT = "output"
    FEEDBACK = "feedback"


class Origin(NamedTuple):
    """Where a record came from. For a source without offsets: a line or request number."""

    source: str
    topic: str
    partition: int
    offset: int


class JudgedOutput(NamedTuple):
    """A decoded output with its verdict, field by field as it is stored.

    Plain values and no objects, so that it is cheap to make, and passes from process to
    process as it is. Times are microseconds since 1970.
    """

    producer: str
    event_id: str
    task_type: str
    task_id: str
    approved: bool | None
    confidence: float | None
    text: str
    """The JSON as it was received."""
    model_version: str | None
    source: str
    topic: str
    partition: int
    offset: int
    occurred_at: int
    """As the sender says; otherwise when it was received."""
    received_at: int
    state: str
    """The verdict's; see learning.lifecycle.EventState."""
    state_since: int
    reason: str
    by_human: bool
    subject: str | None

    @property
    def origin(self) -> Origin:
        """Where it came from."""
        return Origin(self.source, self.topic, self.partition, self.offset)

    def says(self, stored: str) -> bool:
        """Whether it is the same as a stored text, in all but the spelling and the id."""
        return is_same_body(OutputEvent, self.text, stored)


class ReceivedFeedback(NamedTuple):
    """A decoded feedback event, field by field as it is stored; see JudgedOutput."""

    producer: str
    event_id: str
    task_type: str
    task_id: str
    approved: bool | None
    confidence: float | None
    text: str
    """The JSON as it was received."""
    model_version: str | None
    source: str
    topic: str
    partition: int
    offset: int
    occurred_at: int
    """As the sender says; otherwise when it was received."""
    received_at: int

    @property
    def origin(self) -> Origin:
        """Where it came from."""
        return Origin(self.source, self.topic, self.partition, self.offset)

    def says(self, stored: str) -> bool:
        """Whether it is the same as a stored text, in all but the spelling and the id."""
        return is_same_body(FeedbackEvent, self.text, stored)


class ArrivalColumns(NamedTuple):
    """Arrivals of one kind field by field, each field with a value for each arrival."""

    fields: Sequence[Sequence[Any]]
    """In the order of the arrivals' fields."""
    event_names: Sequence[int] | None = None
    """What each is found by (learning.short_names); None when nobody made them yet."""
    task_names: Sequence[int] | None = None
    """What the output of each one's task is found by; None as above."""


@runtime_checkable
class Columnar(Protocol):
    """A sequence of arrivals that can be had field by field at less cost than one by one."""

    def columns(self) -> ArrivalColumns:
        """All of them."""
        ...


@dataclass(frozen=True)
class DeadLetter:
    """A record that could not become an event, kept with its raw bytes."""

    kind: EventKind
    reason: str
    """A short code such as `not_json`; a metric label."""
    detail: str
    """What is wrong and where, in words."""
    raw: bytes
    origin: Origin
    received_at: datetime


@dataclass(frozen=True)
class Position:
    """How far a partition has been stored, and under which claim it may be moved."""

    topic: str
    partition: int
    epoch: int
    """Grows with each claim; a write under an older epoch is refused."""
    next_offset: int | None
    """The offset of the next record to store; None when none was stored yet."""
    fingerprint: bytes | None
    """Of the last stored record, so that a recreated topic is noticed."""


@dataclass(frozen=True)
class PositionMove:
    """The step of a stored position that a block brings with it."""

    claimed: Position
    next_offset: int
    fingerprint: bytes


@dataclass(frozen=True)
class Block:
    """Arrivals that are stored in one transaction, with the position they move."""

    source: str
    outputs: Sequence[JudgedOutput] = ()
    feedback: Sequence[ReceivedFeedback] = ()
    dead_letters: Sequence[DeadLetter] = ()
    move: PositionMove | None = None


class PositionFencedError(LearningError):
    """The position was claimed by another consumer, or moved, since this one claimed it."""

    def __init__(self, topic: str, partition: int, epoch: int) -> None:
        super().__init__(
            f"{topic}[{partition}]: the claim of epoch {epoch} is no longer the owner's;"
            " nothing was written"
        )
        self.topic, self.partition, self.epoch = topic, partition, epoch


class StoreUnavailableError(LearningError):
    """The database did not answer, is locked or is full; try again.

    Nothing was written, unless the connection broke at the commit: then who tries again
    finds it done.
    """


@dataclass(frozen=True)
class OutgoingLetter:
    """A stored dead letter that is on its way to a topic."""

    id: int
    letter: DeadLetter
    """With the beginning of its raw bytes."""
    n_bytes: int
    """As many it has."""


class Outbox(Protocol):
    """Dead letters that were not published yet."""

    async def take(self, most: int) -> Sequence[OutgoingLetter]:
        """The oldest that nobody has taken, at most `most`; this caller's for some seconds.

        What is not marked by then is taken again, by whoever asks first.
        """
        ...

    async def mark(self, letter_ids: Collection[int]) -> None:
        """These are published, for good. Repeated, it changes nothing."""
        ...


ID_REUSED = "id_reused"
"""The reason of a dead letter whose (producer, event_id) names another body already."""


class IntakeStore(Protocol):
    """Where arrivals become durable."""

    async def claim(
        self, source: str, partitions: Collection[tuple[str, int]]
    ) -> Sequence[Position]:
        """Take over the positions of (topic, partition) pairs, in the order given.

        Each claim raises the epoch, so that whoever claimed before can no longer write.
        """
        ...

    async def rewind(self, source: str, claimed: Position, next_offset: int) -> Position:
        """Set a claimed position back, because its topic was recreated.

        Returns the position as it is now. Raises PositionFencedError when the claim is stale.
        """
        ...

    async def append(self, *blocks: Block) -> EventsStored:
        """Store blocks of one source and move their positions, all of it or nothing.

        An event that is stored already is counted as a duplicate; one whose id was used
        for another body becomes a dead letter. Raises PositionFencedError when the
        claim is stale and StoreUnavailableError when the database is: then nothing changed,
        and the same blocks may be appended again.
        """
        ...


@dataclass(frozen=True)
class Receipt:
    """What the store has under one (producer, event_id)."""

    row_id: int
    state: str
    """Of an output its EventState, of feedback its FeedbackState."""
    reason: str
    """Why an output is in its state; empty for feedback."""
    text: str
    """The JSON that was stored."""
    origin: Origin


class Receipts(Protocol):
    """Where a source that has to answer its sender looks up what it has stored."""

    async def receipts(
        self, kind: EventKind, keys: Collection[tuple[str, str]]
    ) -> Mapping[tuple[str, str], Receipt]:
        """The receipts of (producer, event_id) pairs; unknown ones are left out.

        Raises StoreUnavailableError.
        """
        ...


class KnownPositions(Protocol):
    """Where a source looks up how far everything was read, its own claims or not."""

    async def of(self, source: str) -> Sequence[Position]:
        """The positions of a source, as stored now. Raises StoreUnavailableError."""
        ...


# --- fine-tuning ----------------------------------------------------------------------


@dataclass(frozen=True)
class ModelReference:
    """A model that can be loaded: a base by path or hub name, and maybe a LoRA adapter.

    Or a remote one: a base by its service's name, and maybe an artifact that names another.
    """

    base_model: str
    adapter: Path | None = None
    """Of a remote version the folder that names it: see finetune/remote/model.py."""


@dataclass(frozen=True)
class RunSpec:
    """All that a provider needs to train one candidate."""

    run_id: str
    attempt: int
    line: str
    parent: ModelReference
    """The champion that training continues from."""
    train_file: Path
    """Chat JSONL, the answer last in each row."""
    work_dir: Path
    """The run's own folder: checkpoints survive in it from attempt to attempt."""
    training: Mapping[str, Any]
    seed: int
    timeout: timedelta
    validation_file: Path | None = None
    """Rows like those of `train_file` to watch the loss on, and never to train on."""


@dataclass(frozen=True)
class JobHandle:
    """The provider's job that an attempt of a run has adopted."""

    run_id: str
    attempt: int
    job_id: str


@dataclass(frozen=True)
class JobProgress:
    """How far a job is; `numbers` are whatever the provider measures (loss, tokens/s ...)."""

    step: int
    total_steps: int
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingOutcome:
    """A finished job: its files, not yet published, and what was measured."""

    output_dir: Path
    method: str
    """`lora` (the files are an adapter to the base model), `full`, or `remote` (they name a
    model that a service serves, as finetune/remote/model.py writes it)."""
    proof: TrainingProof
    measurements: Mapping[str, Any]


class TrainerState(StrEnum):
    """Whether a local trainer process is there for the next request."""

    COLD = "cold"
    WARM = "warm"
    BUSY = "busy"


@dataclass(frozen=True)
class TrainerCondition:
    """The local trainer process as it is now, and what became of it since the daemon started."""

    state: TrainerState
    pid: int | None
    resident_bytes: int | None
    """Main memory that it holds; None when there is no process, or the system does not say."""
    warm_uses: int
    """Requests, or groups of them, that found a process ready."""
    cold_uses: int
    ends: Mapping[str, int]
    """Processes that ended, by reason: idle, memory, trainer_died ..."""


class Recovery(StrEnum):
    """How a provider finds out whether a launch whose reply was lost made a job."""

    LOOKUP = "lookup"
    IDEMPOTENCY = "idempotency"
    NONE = "none"


@dataclass(frozen=True)
class Cancellation:
    """That a person asked for the end of a run: who, and why."""

    actor: str
    reason: str


@dataclass(frozen=True)
class RunRecord:
    """A run as the runner finds it, at its start or after a restart."""

    run_id: str
    batch_id: str
    line: str
    state: RunState
    provider: str
    """Of the latest attempt."""
    attempt: int
    """The number of the latest attempt; 0 before the first."""
    failures: int
    seed: int
    job_id: str | None
    artifact: str | None
    method: str | None
    measurements: Mapping[str, Any] | None
    parent: ModelReference | None
    training: Mapping[str, Any] | None
    cancellation: Cancellation | None
    """Stored before anything is ended, so that a restart goes on with it."""
    message: str | None
    """What it waits for, or why its latest attempt ended, in words."""
    short_of_money: bool
    """Whether it waits for money, and may begin as soon as there is some."""


@dataclass(frozen=True)
class TrainingRow:
    """One member of a batch that the candidate trains on."""

    event_id: int
    role: Role
    task_type: str
    event: OutputEvent


@dataclass(frozen=True)
class PreferenceRow:
    """One member of a batch that was rejected."""

    event_id: int
    task_type: str
    event: OutputEvent
    preferred_id: int | None
    """The training row with a better answer to its prompt; None: it is learned from by itself."""


@dataclass(frozen=True)
class HeldOutRow:
    """One frozen example; `messages` end with the answer."""

    id: int
    task_type: str
    messages: Sequence[Mapping[str, str]]
    producer: str | None = None
    category: str | None = None


@dataclass(frozen=True)
class Duel:
    """A candidate and the champion that it is held against."""

    candidate_id: int
    candidate_number: str
    candidate: ModelReference
    champion_id: int
    champion_number: str
    champion: ModelReference
    parent_rolled_back: bool
    look: int
    """How many candidates were compared with this champion, this one included."""


@dataclass(frozen=True)
class Decision:
    """What the gate's verdict did. `promoted` is None unless the champion changed."""

    promoted: Promoted | None


class ChampionMovedError(LearningError):
    """The champion changed while a candidate was held against it; compare again."""

    def __init__(self, was: str, is_now: str) -> None:
        super().__init__(f"the champion was {was} and is {is_now} now")
        self.was, self.is_now = was, is_now


class LeaseLostError(LearningError):
    """A daemon wrote about a run that another one works on, or that nobody gave it."""

    def __init__(self, run_id: str, node: str | None) -> None:
        whose = f"node {node} owns it now" if node is not None else "nobody owns it yet"
        super().__init__(f"run {run_id} is not this daemon's: {whose}; nothing was written")
        self.run_id, self.node = run_id, node


@dataclass(frozen=True)
class Hold:
    """A daemon holds the lease of a run, and may write about it."""

    taken_from: str | None = None
    """The node whose daemon had it until now, and fell silent or was declared gone."""


class RunLeases(Protocol):
    """Which runs this daemon works on. Several daemons may share the store.

    A run under way has one owner, for as long as that one renews its lease. Durations are
    measured by the store's clock, not by the daemon's. A lease that lapsed is still the
    owner's until another daemon takes it, and never again afterwards.
    """

    @property
    def duration(self) -> timedelta:
        """How long a lease runs; it should be renewed a few times in between."""
        ...

    async def lapsed(self) -> Sequence[str]:
        """The runs under way that have no owner, so that this daemon may take them.

        A run whose files are on another node is not among them until that node is declared
        gone, or was silent for long.
        """
        ...

    async def hold(self, run_id: str) -> Hold | None:
        """Renew the lease of a run under way, or take it when it is free.

        None when it is another daemon's. Raises LeaseLostError when it was this one's: then
        what is known of the run is out of date.
        """
        ...

    async def renew(self) -> Collection[str]:
        """Renew every lease that is held; returns the runs that turn out to be lost."""
        ...

    async def release(self, run_id: str) -> None:
        """Let go of a run, so that nobody has to wait for its lease. Idempotent."""
        ...

    async def release_all(self) -> None:
        """Let go of everything that this daemon held before it was started anew."""
        ...


class RunStore(Protocol):
    """Where the runner keeps how far it is. Each method is one transaction.

    A method that moves a run raises IllegalMoveError when the run is not in the state
    that the move starts from, and LeaseLostError when the run is under way in the hands of
    another daemon. A run whose cancellation was asked for only goes on to the knowledge of
    its job (`adopt`, `wait_for`) and to its end (`cancel`).
    """

    async def due(self, now: datetime) -> Sequence[RunRecord]:
        """The oldest planned run of each line that is not working on another one.

        And before it the line's runs that wait for money: whether there is some now, `begin`
        tells. Without those whose files are on another node.
        """
        ...

    async def cancelling(self) -> Sequence[RunRecord]:
        """The active runs whose cancellation was asked for and is not done."""
        ...

    async def get(self, run_id: str) -> RunRecord:
        """The run as it is stored now."""
        ...

    async def begin(
        self,
        run_id: str,
        line: ModelLine,
        now: datetime,
        *,
        bound: bool = False,
        quote: Quote | None = None,
    ) -> RunRecord:
        """planned -> launching: the intent of a new attempt, before anything is started.

        Takes the run's lease. `bound` says that its files will be on this node alone. What the
        quote says is reserved in the same step, for this attempt: two daemons together never
        reserve more than a cap. Where it does not fit the run is returned as waiting for money,
        with the reason, and goes on from there when this is called again. What is reserved is
        settled by the step that ends the attempt: it is released when the attempt has no job,
        and kept as long as nobody knows whether it has one.
        """
        ...

    async def wait_for(
        self, run_id: str, reason: str, now: datetime, *, for_money: bool = False
    ) -> None:
        """planned or launching -> waiting, with what it waits for in words.

        One that waits since its launch was left unresolved; only a person may plan it again.
        One that waits `for_money` is due as before, and may be told another reason.
        """
        ...

    async def adopt(self, run_id: str, job_id: str, now: datetime) -> None:
        """launching -> running, with the provider's job."""
        ...

    async def interrupt(self, run_id: str, message: str, now: datetime) -> None:
        """launching or running -> planned: the job is gone through no fault of its own."""
        ...

    async def fail(
        self,
        run_id: str,
        code: str,
        message: str,
        retry_at: datetime | None,
        now: datetime,
        *,
        maybe_a_job: bool = False,
    ) -> None:
        """An attempt failed: -> planned for `retry_at`, or -> failed and the batch returned.

        `maybe_a_job` says that it may have one that was never adopted, and costs money.
        """
        ...

    async def cancel(self, run_id: str, now: datetime) -> None:
        """-> cancelled, after its job was ended: as who asked for it said. Returns the batch."""
        ...

    async def report(self, run_id: str, progress: JobProgress, now: datetime) -> None:
        """Note how far the job is."""
        ...

    async def finish_training(
        self,
        run_id: str,
        artifact: str,
        manifest_sha256: str,
        outcome: TrainingOutcome,
        now: datetime,
    ) -> None:
        """running -> trained, with the published artifact.

        It has cost what its measurement `trained_tokens` makes, or without one what was
        reserved.
        """
        ...

    async def enter(self, run_id: str, now: datetime) -> Duel:
        """trained -> evaluating, with a candidate version; repeated, it renews the duel."""
        ...

    async def training_rows(self, batch_id: str) -> Sequence[TrainingRow]:
        """The members of a batch that train, in the order of their ids."""
        ...

    async def preference_rows(self, batch_id: str) -> Sequence[PreferenceRow]:
        """The rejected members of a batch, in the order of their ids."""
        ...

    async def held_out_rows(self, line: ModelLine) -> Sequence[HeldOutRow]:
        """The line's frozen examples, oldest first."""
        ...

    async def newest_held_out(self, task_type: str, most: int) -> Sequence[HeldOutRow]:
        """The newest frozen examples of a task type, of whatever line, oldest first."""
        ...

    async def decide(
        self,
        run_id: str,
        duel: Duel,
        report: GateReport,
        scores: Mapping[str, Any],
        now: datetime,
    ) -> Decision:
        """evaluating -> decided: promotes, refuses or abstains, and settles the batch.

        Raises ChampionMovedError when the champion is no longer the duel's.
        """
        ...


class Answer(NamedTuple):
    """What a model answered to a conversation."""

    text: str
    confidence: float | None
    """The geometric mean of its tokens' probabilities, in (0, 1]; None where nobody says."""


class JobFailedError(LearningError):
    """A job ended without a model. `retryable` tells whether another attempt makes sense."""

    def __init__(self, code: str, message: str, *, retryable: bool) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.retryable = code, message, retryable


class FineTuneProvider(Protocol):
    """Trains one dataset into one model, outside this process."""

    @property
    def name(self) -> str:
        """The name it is configured and recorded by."""
        ...

    @property
    def recovery(self) -> Recovery:
        """How an unknown outcome of `launch` is resolved."""
        ...

    def check_training(self, training: Mapping[str, Any]) -> None:
        """Raise ValueError, naming the key, when the training settings are not understood."""
        ...

    async def launch(self, spec: RunSpec) -> JobHandle:
        """Start a job. A repeated (run_id, attempt) returns the first job where
        `recovery` is IDEMPOTENCY. Raises JobFailedError when there is no job, and
        ConnectionError or TimeoutError when nobody knows whether there is one."""
        ...

    async def lookup(self, run_id: str, attempt: int) -> JobHandle | None:
        """The job that an earlier `launch` of this attempt made, if it still exists.

        Asked only where `recovery` is LOOKUP. A local job is gone once its daemon is.
        """
        ...

    async def wait(
        self, job: JobHandle, on_progress: Callable[[JobProgress], None]
    ) -> TrainingOutcome:
        """Wait for the end of a job. Raises JobFailedError.

        Cancelling the wait of a local job ends the job after a checkpoint; a remote job
        goes on.
        """
        ...

    async def cancel(self, job: JobHandle) -> None:
        """End a job; a job that has ended stays as it is."""
        ...


class Evaluator(Protocol):
    """Scores models on held-out examples."""

    async def score(
        self, models: Mapping[str, ModelReference], examples_file: Path
    ) -> Mapping[str, Sequence[Score]]:
        """Score each named model on each row of a chat JSONL file, in the file's order.

        Raises JobFailedError when a model cannot be loaded or scored. A loss that is not a
        finite number is returned as it is: the gate refuses it.
        """
        ...
