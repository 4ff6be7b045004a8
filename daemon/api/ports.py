"""The doors of the API: what it needs from the daemon it runs in.

Only shapes and promises; the daemon's real ones are handed to `create_app`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from daemon.settings import Setting
from daemon.store.forgettings import Counts as Counts  # parts of these ports
from daemon.store.forgettings import KnowingVersion as KnowingVersion
from daemon.store.imports import EarlierImport as EarlierImport  # a part of these ports
from daemon.store.queue import HeldOutImport as HeldOutImport  # and this one
from daemon.store.releases import Which
from daemon.store.setting_changes import SettingChange
from daemon.store.views.paging import Page
from learning.facts import (
    BatchSealed,
    BatchSizeChanged,
    EventsStored,
    FeedbackReset,
    LaunchResolved,
    Promoted,
    QuarantineReleased,
    RolledBack,
    RunCancelAsked,
    RunCancelled,
)
from learning.simulation import Report
from monitoring.health import Check, HealthReport


@dataclass(frozen=True)
class FlushResult:
    """What a flush did to one model line: the batch it sealed, or why none."""

    line: str
    batch: BatchSealed | None
    reason: str


@dataclass(frozen=True)
class NodeGone:
    """A node that was given up, and the runs that were taken from it."""

    node: str
    run_ids: Sequence[str]


@dataclass(frozen=True)
class DatasetImport:
    """What the import of a dataset file did."""

    line: str
    batch: BatchSealed | None
    """None when no row of it is new and may train."""
    added: int
    """Events that were stored."""
    duplicates: int
    """Rows that were stored before, or stand in the file twice."""
    set_aside: int
    """Events that were stored and do not train: rejected, held or quarantined."""
    n_refused: int
    refused: Sequence[tuple[int, str]]
    """(line, why) of the first rows that are no events."""
    earlier: EarlierImport | None
    """When a file with the same bytes was imported before."""


@dataclass(frozen=True)
class SettingsNow:
    """The settings that hold, as of one revision of those in the store."""

    revision: int
    """0 while nothing was changed at run time."""
    settings: Sequence[Setting]
    fault: str
    """Why those of this revision do not hold in this daemon; empty when they do."""


@dataclass(frozen=True)
class SettingTried:
    """A setting that a simulation changes."""

    key: str
    today: str
    simulated: str


class Source(StrEnum):
    """What a simulation replays."""

    RECORD = "record"
    """What the daemon stored; beside the simulation stands what did happen."""
    FILE = "file"
    """Events in a file, or sent along; beside the simulation stands what the settings of today
    would do."""


@dataclass(frozen=True)
class LeftOut:
    """Lines of a file that are no events, or none that are new."""

    n_refused: int
    refused: Sequence[tuple[int, str]]
    """(line, why) of the first of them."""
    duplicates: int


@dataclass(frozen=True)
class SimulationAnswer:
    """What a simulation found; see docs/simulate.md."""

    source: Source
    settings: Sequence[SettingTried]
    setting_changes: int
    """How often settings were changed in the time that was replayed."""
    report: Report
    left_out: LeftOut | None = None
    """Of a file."""


class SimulationOperations(Protocol):
    """What a person may ask of the record."""

    async def simulate(
        self,
        values: Mapping[str, Any],
        *,
        events: Sequence[Mapping[str, Any]] | None,
        since: str | None,
        until: str | None,
        line: str | None,
        task_type: str | None,
        run_seconds: float,
    ) -> SimulationAnswer:
        """Replay what was recorded in a stretch of time under other settings; changes nothing.

        With `events` those, and not the record: beside stands what the settings of today would do.
        Raises LearningError: NotFoundError for a key, a line or a task type that is none,
        ConflictError while another simulation runs or when it takes too long, SettingsError for a
        value that is wrong, SimulationError for a stretch that is none or too long.
        """
        ...


class SettingOperations(Protocol):
    """What a person may ask of the settings while the daemon runs.

    A change is validated together with all other settings, stored, and holds in this daemon
    when the call returns. `if_revision` refuses it with ConflictError unless the settings are at
    that revision. All raise LearningError: NotFoundError for a key that is none, ConflictError for
    one that cannot be changed, SettingsError for a value that is wrong.
    """

    def now(self) -> SettingsNow:
        """Every setting with its value, secrets masked, and where it was set."""
        ...

    async def history(
        self, *, key: str | None, before: int | None, limit: int
    ) -> Page[SettingChange, int]:
        """Changes with a revision below `before`, of one setting or of all, newest first."""
        ...

    async def change(
        self, values: Mapping[str, Any], *, reason: str, actor: str, if_revision: int | None
    ) -> SettingChange:
        """Set values by key; None takes back what the store says, so that it is as configured."""
        ...

    async def undo(
        self,
        *,
        revision: int | None,
        key: str | None,
        reason: str,
        actor: str,
        if_revision: int | None,
    ) -> SettingChange:
        """Take one change back, as a new change: that revision, or the last one of a key or of
        any. All that was set together is taken back together."""
        ...


class Operations(Protocol):
    """What a person may ask the running daemon to do.

    `actor` says who asked and goes into the history. Each is one transaction: it happened
    when the call returns, and nothing happened when it raises. All raise LearningError:
    NotFoundError for a name that is not there, ConflictError or IllegalMoveError for a
    state that does not allow it, StoreUnavailableError when the database does not answer.
    """

    async def flush(self, task_type: str | None, *, actor: str) -> Sequence[FlushResult]:
        """Seal what waits: of one task type's line, or of every line where something waits.

        A batch under way does not stop it: the new batch's run waits for its turn.
        """
        ...

    async def set_batch_size(
        self, line: str, size: int | None, *, reason: str, actor: str
    ) -> BatchSizeChanged:
        """Pin a line's batch size, in events, or release it with None: it adapts again."""
        ...

    async def reset_feedback(self, task_type: str, *, reason: str, actor: str) -> FeedbackReset:
        """Take back everything that feedback has changed for a task type."""
        ...

    async def promote(
        self, line: str, version: str, *, force: bool, reason: str, actor: str
    ) -> Promoted:
        """Make a version the champion. Without `force` only one that passed the gate."""
        ...

    async def rollback(self, line: str, to: str | None, *, reason: str, actor: str) -> RolledBack:
        """Make an earlier version the champion again: `to`, or the one before."""
        ...

    async def cancel_run(
        self, run_id: str, *, reason: str, actor: str
    ) -> RunCancelled | RunCancelAsked:
        """End a run that is not over: at once, or as soon as its job is ended.

        The wish is stored when this returns; a daemon that dies then goes on with it.
        """
        ...

    async def resolve_run(self, run_id: str, job_id: str | None, *, actor: str) -> LaunchResolved:
        """Say which job a launch of unknown outcome made, or with None that it made none."""
        ...

    async def give_up_node(self, node: str, *, reason: str, actor: str) -> NodeGone:
        """Take a node's unfinished runs away from it, for good: whatever it still says of
        them is refused, and a local one starts again on another node."""
        ...

    async def judge(self, event_row_id: int, *, approved: bool, reason: str, actor: str) -> str:
        """Give a held or quarantined event a person's verdict; returns its new state.

        A "no" also withdraws one that is queued.
        """
        ...

    async def release(
        self, which: Which, most: int, *, reason: str, actor: str
    ) -> QuarantineReleased:
        """Queue the oldest `most` of some events that the firewall stopped."""
        ...

    async def replay(self, dead_letter_id: int, *, actor: str) -> EventsStored:
        """Send a dead letter down the path of intake again."""
        ...

    async def import_dataset(
        self,
        content: bytes,
        *,
        line: str,
        task_type: str | None,
        file: str,
        approved: bool,
        actor: str,
    ) -> DatasetImport:
        """Bring a dataset file in as one sealed batch of a line, with a run.

        Rows that are known are passed over, so that repeating it is harmless. `approved` says
        that people approved its rows: then some of them are held out, and judge.
        """
        ...

    async def import_held_out(self, rows: bytes, *, task_type: str, actor: str) -> HeldOutImport:
        """Add JSONL rows that a person labelled to the frozen held-out set."""
        ...


@dataclass(frozen=True)
class ForgetOrder:
    """What is to be forgotten: exactly one of an event, a producer and a subject."""

    event: str | None = None
    producer: str | None = None
    subject: str | None = None
    reason: str = ""
    dry_run: bool = False
    """Only tell what would go."""
    retrain: bool = False
    """Learn again what tainted versions had learned, without what was forgotten."""
    delete_weights: bool = False
    """Delete the files of the tainted versions too."""
    scrub_files: bool = False
    """Write the database's files anew, so that no remains of old rows are left in them."""


@dataclass(frozen=True)
class LearnedAgain:
    """What is learned again in a line with tainted versions."""

    line: str
    batch: BatchSealed | None
    reason: str
    """Why there is none."""


@dataclass(frozen=True)
class ForgetReport:
    """What was forgotten, or of a dry run what would be."""

    forgetting_id: int | None
    """None of a dry run."""
    kind: str
    counts: Counts
    """Rows that something was taken from, by kind."""
    versions: Sequence[KnowingVersion]
    """Those that know it, each as it was before."""
    champions: Sequence[RolledBack]
    """What became champion in the place of such."""
    runs: Sequence[str]
    """Runs that were called off, because they learned from it."""
    files: Sequence[str]
    """Runs whose dataset and work folders were removed."""
    pending: Sequence[str]
    """Runs whose folders are removed as soon as they are over."""
    artifacts: Sequence[str]
    """Weights that were deleted."""
    scrubbed: bool
    """Whether what the database's log held was cleared too."""
    learned_again: Sequence[LearnedAgain]


class Forgetter(Protocol):
    """Forgets what events said."""

    async def forget(self, order: ForgetOrder, *, actor: str) -> ForgetReport:
        """Forget, or tell what would be forgotten.

        Repeated it changes nothing more; after a crash it goes on where that was. Raises
        NotFoundError when there is no such event, and StoreUnavailableError: then the same may
        be asked again.
        """
        ...


class Probes(Protocol):
    """How the daemon feels."""

    def live(self) -> Sequence[Check]:
        """Whether the process works at all: its loops. Asks nobody outside the process."""
        ...

    async def ready(self) -> Sequence[Check]:
        """Whether it can take work: `live`, and the servers that it needs. Does not raise."""
        ...

    async def health(self) -> HealthReport:
        """The detail of OP2. Does not raise: a store that is away is an unhealthy check."""
        ...


class MetricsPage(Protocol):
    """The text that Prometheus reads."""

    async def render(self) -> bytes:
        """The page, in Prometheus' text format 0.0.4. Does not raise."""
        ...
