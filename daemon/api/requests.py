"""What a request may say: strict models, unknown fields and parameters refused."""

import re
from datetime import timedelta
from typing import Annotated, Self

from fastapi import Depends, Header, Path
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from daemon.learner import MAX_NEW_TOKENS, PRODUCER
from daemon.store.releases import MOST_RELEASED
from daemon.store.views.costs import CostsBy
from daemon.store.views.statistics import LONGEST as LONGEST_WINDOW
from learning.events import Confidence, Identifier, LongText, Name, Number, ShortText
from learning.firewall import Rule
from learning.lifecycle import EventState, RunState

LARGEST_PAGE = 500
MOST_TASKS = 1_000
"""Of one batch learning cycle, whose sender waits for all of them."""

Reason = Annotated[str, StringConstraints(strip_whitespace=True, max_length=2_000)]
JobId = Annotated[str, StringConstraints(max_length=256, pattern=r"^[\x21-\x7e]+$")]
WebhookType = Annotated[str, StringConstraints(max_length=128, pattern=r"^[!-~]+$")]
VersionText = Annotated[str, StringConstraints(min_length=1, max_length=64)]

_NOT_IN_ACTOR = re.compile(r"[^A-Za-z0-9_.:@-]")


def _actor(x_actor: Annotated[str | None, Header()] = None) -> str:
    """Who asks, for the history: the header X-Actor, which is a hint and no proof."""
    return _NOT_IN_ACTOR.sub("_", x_actor or "api")[:64]


Actor = Annotated[str, Depends(_actor)]

RowId = Annotated[int, Path(ge=1, le=2**63 - 1)]
"""The number of a stored event or dead letter."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class FlushRequest(_Body):
    """Which queue to seal now; without a task type, all."""

    task_type: Name | None = None


class BatchSizeRequest(_Body):
    """Events in a line's batch from now on; null lets it adapt again."""

    size: int | None = Field(ge=1, le=1_000_000)
    reason: Reason = ""


class FeedbackResetRequest(_Body):
    """Of which task type everything that feedback has changed is taken back, and why."""

    task_type: Name
    reason: Reason = ""


class VerdictRequest(_Body):
    """A person's word on a stored output."""

    approved: bool
    reason: Reason = ""


class ReleaseRequest(_Body):
    """Which events behind the firewall an operator lets go; a producer or a rule is needed."""

    producer: Name | None = None
    rule: Annotated[Rule, Field(strict=False)] | None = None
    task_type: Name | None = None
    most: int = Field(100, ge=1, le=MOST_RELEASED)
    reason: Reason = ""

    @model_validator(mode="after")
    def _narrowed(self) -> Self:
        if self.producer is None and self.rule is None:
            raise ValueError("name a producer or a rule: everything at once is too much")
        return self


class PromoteRequest(_Body):
    """Which version becomes the champion; overruling the gate needs a reason."""

    version: VersionText
    force: bool = False
    reason: Reason = ""

    @model_validator(mode="after")
    def _reason_for_force(self) -> Self:
        if self.force and not self.reason:
            raise ValueError("force needs a reason, which is recorded")
        return self


Nameable = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00]+$")]
"""What the ids of stored events are made of."""


class ForgetRequest(_Body):
    """What is to be forgotten: exactly one of an event, a producer and a subject."""

    event: Nameable | None = Field(None, max_length=400)
    producer: Name | None = None
    subject: Nameable | None = Field(None, max_length=256)
    reason: Reason = ""
    dry_run: bool = False
    retrain: bool = False
    delete_weights: bool = False
    scrub_files: bool = False

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if [self.event, self.producer, self.subject].count(None) != 2:
            raise ValueError("name an event, a producer or a subject, and only one of them")
        return self


class CancelRequest(_Body):
    """Why a run is to end."""

    reason: Reason = ""


class ResolveRequest(_Body):
    """Which job a launch of unknown outcome made; null when it made none."""

    job_id: JobId | None


class RollbackRequest(_Body):
    """Which version becomes the champion again; without one, the one before."""

    to: VersionText | None = None
    reason: Reason = ""


class _ProcessRequest(_Body):
    producer: Name = PRODUCER


class ProcessOutput(_ProcessRequest):
    """An output as daemon.learner.Learner.process_output takes it."""

    task_type: Name
    prompt: LongText
    output: LongText | dict[str, JsonValue] | list[JsonValue]
    context: dict[str, JsonValue] | None = None
    approved: bool | None = None
    confidence: Confidence | None = None
    task_id: Identifier | None = None
    event_id: Identifier | None = None
    model_version: ShortText | None = None
    subject: Identifier | None = None


class ProcessFeedback(_ProcessRequest):
    """A feedback as daemon.learner.Learner.process_feedback takes it."""

    task_type: Name
    task_id: Identifier
    approved: bool | None = None
    user_rating: Annotated[int, Field(ge=1, le=5)] | None = None
    engagement_metrics: dict[Name, Number] | None = Field(None, max_length=64)
    quality_metrics: dict[Name, Number] | None = Field(None, max_length=64)
    trust_delta: Annotated[Number, Field(ge=-1.0, le=1.0)] = 0.0
    confidence_adjustment: Annotated[Number, Field(ge=-1.0, le=1.0)] = 0.0
    mood_adjustment: ShortText | None = None
    event_id: Identifier | None = None
    model_version: ShortText | None = None


class ProcessTask(_ProcessRequest):
    """Something for a model to answer."""

    task_type: Name
    prompt: LongText
    context: dict[str, JsonValue] | None = None
    max_new_tokens: int = Field(MAX_NEW_TOKENS, ge=1, le=1_048_576)


class TaskOfCycle(_Body):
    """One task of a batch learning cycle."""

    task_type: Name
    prompt: LongText
    context: dict[str, JsonValue] | None = None


class CycleRequest(_ProcessRequest):
    """Tasks for a model to answer, one after the other."""

    tasks: list[TaskOfCycle] = Field(min_length=1, max_length=MOST_TASKS)
    max_new_tokens: int = Field(MAX_NEW_TOKENS, ge=1, le=1_048_576)


SettingKey = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Revision = Annotated[int, Field(ge=0, le=2**31 - 1)]


class SettingsRequest(_Body):
    """Values of settings by key; null takes back what the store says of one."""

    values: dict[SettingKey, JsonValue] = Field(min_length=1, max_length=64)
    reason: Reason = ""
    if_revision: Revision | None = None
    """Refuse unless the settings are at this revision."""


class UndoRequest(_Body):
    """Which change to take back: by its revision, or the last of a setting; the last of any."""

    revision: Revision | None = None
    key: SettingKey | None = None
    reason: Reason = ""
    if_revision: Revision | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.revision is not None and self.key is not None:
            raise ValueError("name a revision or a key, not both")
        return self


TimeText = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[0-9A-Za-z:.+-]+$")
]
"""A time with its zone, or how long ago: `7d`."""


class SimulationRequest(_Body):
    """What to replay, and under which settings: a stretch of the record, or these events."""

    since: TimeText | None = None
    """Of the record: 7 days ago, without one. Of events: all of them."""
    until: TimeText | None = None
    events: list[dict[str, JsonValue]] | None = Field(None, min_length=1, max_length=5_000)
    """Outputs and feedback, as producers send them."""
    settings: dict[SettingKey, JsonValue] = Field(default_factory=dict, max_length=64)
    line: Name | None = None
    task_type: Name | None = None
    run_seconds: float = Field(300.0, gt=0, le=31_536_000, allow_inf_nan=False)
    """How long a run lasts, in a line that has none on record."""


class NodeGoneRequest(_Body):
    """Why a node is given up."""

    reason: Reason = ""


class _Query(BaseModel):
    # Not strict: what stands in an address is text.
    model_config = ConfigDict(extra="forbid")


class _Paged(_Query):
    limit: int = Field(50, ge=1, le=LARGEST_PAGE)


class PageQuery(_Paged):
    """A page of a list that is keyed by number."""

    before: int | None = Field(None, ge=0, le=2**63 - 1)


class EventsQuery(PageQuery):
    """Which outputs to list."""

    state: EventState | None = None
    task_type: Name | None = None


class FeedbackEffectsQuery(PageQuery):
    """Whose effects to list."""

    task_type: Name | None = None


class DeadLettersQuery(PageQuery):
    """Which dead letters to list."""

    reason: Name | None = None
    replayed: bool | None = None


class SettingHistoryQuery(PageQuery):
    """Which changes of settings to list."""

    before: Revision | None = None
    key: SettingKey | None = None


class RunsQuery(_Paged):
    """Which runs to list."""

    before: str | None = Field(None, max_length=32)
    line: Name | None = None
    state: RunState | None = None


class CostsQuery(_Paged):
    """What to add costs up by, and how many accounts to show."""

    limit: int = Field(30, ge=1, le=LARGEST_PAGE)
    by: CostsBy = CostsBy.DAY


class StatsQuery(_Query):
    """Over which time, so many hours (24h) or days (7d), and of which task type."""

    window: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,4}[hd]$")] = "24h"
    task_type: Name | None = None

    @property
    def length(self) -> timedelta:
        """The window's."""
        n = int(self.window[:-1])
        return timedelta(hours=n) if self.window.endswith("h") else timedelta(days=n)

    @model_validator(mode="after")
    def _some_time(self) -> Self:
        if not timedelta(hours=1) <= self.length <= LONGEST_WINDOW:
            raise ValueError(f"a window is from 1h to {LONGEST_WINDOW.days}d")
        return self


class WebhooksQuery(PageQuery):
    """Which webhooks to list: of these types, or of all."""

    type: list[WebhookType] = Field([], max_length=20)


class LineageQuery(_Paged):
    """Which page of a lineage's events to show."""

    limit: int = Field(100, ge=1, le=LARGEST_PAGE)
    after: int | None = Field(None, ge=0, le=2**63 - 1)


class HeldOutQuery(_Query):
    """What the imported rows are examples of."""

    task_type: Name


class ImportQuery(_Query):
    """As what a dataset file is imported."""

    line: Name
    task_type: Name | None = None
    file: str = Field("dataset", min_length=1, max_length=256)
    approved: bool = False
