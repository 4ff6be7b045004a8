"""The tables, their keys and the constraints that hold the promises.

Definitions only; the queries stand beside the tasks they serve, the migrations in
migrations/. Two partial unique indexes carry weight: `one_primary_role` (an event has
one primary role in one batch, P2) and `one_active_run` (a line works on one run).
"""

import re
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    literal_column,
)

from learning.budget import SMALLEST
from learning.clock import EPOCH, microseconds
from learning.lifecycle import (
    ACTIVE_RUN_STATES,
    PRIMARY_ROLES,
    REJECTED_STATES,
    UNFINISHED_RUN_STATES,
    EventState,
    FeedbackState,
)
from learning.preferences import RejectedUse

_MICROSECOND = timedelta(microseconds=1)
_UNKEEPABLE = re.compile("[\x00\ud800-\udfff]")


class UtcTime(TypeDecorator[datetime]):
    """An aware time, stored as whole microseconds since 1970: exact, sortable, portable."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Aware time to microseconds."""
        return None if value is None else microseconds(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """Microseconds to aware time in UTC."""
        return None if value is None else EPOCH + value * _MICROSECOND


class Amount(TypeDecorator[Decimal]):
    """An amount of money, stored as whole millionths of its currency: exact, and exact in sums."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> int | None:
        """Amount to millionths."""
        return None if value is None else int(value / SMALLEST)

    def process_result_value(self, value: int | None, dialect: Dialect) -> Decimal | None:
        """Millionths to amount; PostgreSQL gives sums as Decimal."""
        return None if value is None else value * SMALLEST


def keepable(words: str) -> str:
    """Words as both databases can keep them; see `Words`."""
    if words.isprintable():  # has none of them, and is quick to tell
        return words
    return _UNKEEPABLE.sub("\N{REPLACEMENT CHARACTER}", words)


class Words(TypeDecorator[str]):
    """What somebody outside said, for people to read: a provider, a validator, an operator.

    U+0000, which PostgreSQL refuses, and lone surrogates, which are no UTF-8, are stored as
    U+FFFD: a strange message must not stop a run. What events say is refused by the decoder.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Text as both databases can keep it."""
        return None if value is None else keepable(value)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

# SQLite numbers rows by itself only in a column of exactly this type.
_Id = BigInteger().with_variant(Integer, "sqlite")
_Key = LargeBinary(16)


def is_one_of(column: ColumnElement[str], *states: str) -> ColumnElement[bool]:
    """`column` holds one of some states, spelt out as in the conditions of partial indexes.

    Bound parameters would hide from the planners that such an index serves a query.
    """
    spelt_out: list[ColumnElement[str]] = [literal_column(f"'{state}'") for state in sorted(states)]
    return column.in_(spelt_out) if len(spelt_out) > 1 else column == spelt_out[0]


def _origin() -> tuple[Column[str], Column[str], Column[int], Column[int]]:
    return (
        Column("source", String(64), nullable=False),
        Column("topic", String(256), nullable=False),
        Column("partition", Integer, nullable=False),
        Column("offset", BigInteger, nullable=False),
    )


events = Table(
    "events",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("producer", String(64), nullable=False),
    Column("event_id", String(256), nullable=False),
    Column("task_type", String(64), nullable=False),
    Column("task_id", String(256), nullable=False),
    Column("state", String(16), nullable=False),
    Column("state_since", UtcTime, nullable=False),
    Column("reason", Words, nullable=False),
    Column("by_human", Boolean, nullable=False),
    Column("approved", Boolean),
    Column("confidence", Float),
    Column("payload", Text, nullable=False),
    Column("subject", String(256)),
    Column("model_version", String(256)),
    *_origin(),
    Column("occurred_at", UtcTime, nullable=False),
    Column("received_at", UtcTime, nullable=False),
    # On SQLite daemon/store/names.py does what these two do.
    Index("one_output_per_id", "producer", "event_id", unique=True).ddl_if("postgresql"),
    Index("ix_events_task", "task_type", "task_id").ddl_if("postgresql"),
    sqlite_autoincrement=True,
)
for _name, _state, _columns in (
    ("ix_events_queued", EventState.QUEUED, (events.c.task_type, events.c.id)),
    ("ix_events_queued_since", EventState.QUEUED, (events.c.task_type, events.c.state_since)),
    ("ix_events_held", EventState.HELD, (events.c.task_type, events.c.id)),
    ("ix_events_held_since", EventState.HELD, (events.c.state_since,)),
    ("ix_events_quarantined", EventState.QUARANTINED, (events.c.task_type, events.c.id)),
):
    Index(
        _name,
        *_columns,
        sqlite_where=is_one_of(events.c.state, _state),
        postgresql_where=is_one_of(events.c.state, _state),
    )
Index(
    "ix_events_rejected_since",
    events.c.task_type,
    events.c.state_since,
    sqlite_where=is_one_of(events.c.state, *REJECTED_STATES),
    postgresql_where=is_one_of(events.c.state, *REJECTED_STATES),
)

screenings = Table(
    "screenings",
    metadata,
    Column("event_id", _Id, ForeignKey("events.id"), primary_key=True, autoincrement=False),
    Column("ruleset", String(32), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("findings", JSON, nullable=False, comment="A list of {validator, message, scrubbed}."),
    Column("cost", JSON, nullable=False, comment="Seconds by validator."),
    Column(
        "text",
        Text,
        comment="The event as it is learned from, where something in it was scrubbed.",
    ),
    Column("at", UtcTime, nullable=False),
    comment="What the costly validators said of an event, under which rules; none is sealed"
    " without. It does not change any more once the event is in a batch.",
)

feedback = Table(
    "feedback",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("producer", String(64), nullable=False),
    Column("event_id", String(256), nullable=False),
    Column("task_type", String(64), nullable=False),
    Column("task_id", String(256), nullable=False),
    Column("state", String(16), nullable=False),
    Column("output_id", _Id, ForeignKey("events.id")),
    Column("approved", Boolean),
    Column("confidence", Float),
    Column("payload", Text, nullable=False),
    Column("model_version", String(256)),
    *_origin(),
    Column("occurred_at", UtcTime, nullable=False),
    Column("received_at", UtcTime, nullable=False),
    Column("digested_at", UtcTime, comment="When what follows from it was done."),
    Index("one_feedback_per_id", "producer", "event_id", unique=True).ddl_if("postgresql"),
    Index("ix_feedback_output", "output_id"),
    sqlite_autoincrement=True,
)
Index(
    "ix_feedback_waiting",
    feedback.c.task_type,
    feedback.c.task_id,
    sqlite_where=is_one_of(feedback.c.state, FeedbackState.WAITING),
    postgresql_where=is_one_of(feedback.c.state, FeedbackState.WAITING),
)

IS_LATE_NO = is_one_of(feedback.c.state, FeedbackState.LATE) & feedback.c.approved.is_(False)
"""Feedback that rejects what a batch has already."""
Index(
    "ix_feedback_late_no",
    feedback.c.task_type,
    feedback.c.id,
    sqlite_where=IS_LATE_NO,
    postgresql_where=IS_LATE_NO,
)

IS_UNDIGESTED = is_one_of(
    feedback.c.state, FeedbackState.JOINED, FeedbackState.LATE
) & feedback.c.digested_at.is_(None)
"""Feedback that has met its output and is still to be taken into account (digest.py)."""
Index(
    "ix_feedback_undigested",
    feedback.c.id,
    sqlite_where=IS_UNDIGESTED,
    postgresql_where=IS_UNDIGESTED,
)

feedback_memory = Table(
    "feedback_memory",
    metadata,
    Column("task_type", String(64), primary_key=True),
    Column("memory", JSON, nullable=False),
    Column("score", Float, comment="What the evidence says; null while there is too little."),
    Column("updated_at", UtcTime, nullable=False),
    comment="What is remembered of the feedback on a task type, bounded: who said what, and what is"
    " usual for its metrics (learning/feedback.py).",
)

feedback_dials = Table(
    "feedback_dials",
    metadata,
    Column("task_type", String(64), nullable=False),
    Column("dial", String(16), nullable=False),
    Column("subject", String(64), nullable=False),
    Column("value", Float, nullable=False, comment="When it was turned last; it fades since."),
    Column("turned_at", UtcTime, nullable=False),
    Column("rests_at", UtcTime, nullable=False, comment="From then on the row says nothing."),
    PrimaryKeyConstraint("task_type", "dial", "subject"),
    Index("ix_feedback_dials_value", "dial", "value"),
    Index("ix_feedback_dials_rests", "rests_at"),
    comment="What feedback has turned and has not faded yet: bars, trust, style, weights.",
)

feedback_moves = Table(
    "feedback_moves",
    metadata,
    Column("task_type", String(64), nullable=False),
    Column("dial", String(16), nullable=False),
    Column("subject", String(64), nullable=False),
    Column("producer", String(64), nullable=False),
    Column("day", Integer, nullable=False, comment="Since 1970, in UTC."),
    Column("moved", Float, nullable=False),
    PrimaryKeyConstraint("task_type", "dial", "subject", "producer"),
    Index("ix_feedback_moves_day", "day"),
    comment="How far a dial was turned on a day, by whose feedback; by all: the producer ''.",
)

feedback_effects = Table(
    "feedback_effects",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("feedback_id", _Id, ForeignKey("feedback.id"), comment="Null: an operator did it."),
    Column("task_type", String(64), nullable=False),
    Column("dial", String(16), nullable=False),
    Column("subject", String(64), nullable=False),
    Column("change", String(64), nullable=False),
    Column("before", Float, nullable=False),
    Column("after", Float, nullable=False, comment="Equal to before: a wish was not followed."),
    Column("reason", Words, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("at", UtcTime, nullable=False),
    Index("ix_feedback_effects_feedback", "feedback_id"),
    Index("ix_feedback_effects_task_type", "task_type", "id"),
    sqlite_autoincrement=True,
    comment="The history of the dials, and the wishes of feedback that were not followed.",
)

# Three tables of daemon/store/names.py: on SQLite they hold the names of events, on
# PostgreSQL they stay empty.
event_names = Table(
    "event_names",
    metadata,
    Column("name", BigInteger, nullable=False),
    Column("row_id", BigInteger, nullable=False),
    PrimaryKeyConstraint("name", "row_id"),
    sqlite_with_rowid=False,
)

task_names = Table(
    "task_names",
    metadata,
    Column("name", _Id, primary_key=True, autoincrement=False),
    Column("row_id", BigInteger, nullable=False),
)

names_covered = Table(
    "names_covered",
    metadata,
    Column("table_name", String(16), primary_key=True),
    Column("row_id", BigInteger, nullable=False),
    comment="The row up to which the names of a table are in event_names and task_names.",
)

POSTGRESQL_INDEXES = frozenset({"one_output_per_id", "ix_events_task", "one_feedback_per_id"})

tallies = Table(
    "tallies",
    metadata,
    Column("kind", String(16), nullable=False),
    Column("task_type", String(64), nullable=False),
    Column("state", String(64), nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("confidence_sum", Float, nullable=False),
    Column("confidence_n", BigInteger, nullable=False),
    PrimaryKeyConstraint("kind", "task_type", "state"),
    comment="Running counts of events (kind output, feedback, dead_letter), so that no page"
    " and no probe has to count rows.",
)

# --- what happened when (daemon/store/over_time.py) -------------------------------------


def _stretch(*more: str) -> tuple[Column[Any] | PrimaryKeyConstraint, ...]:
    """What a count is of: a task type, and a stretch of time: an hour, a day, or all before."""
    keys = ("task_type", *more, "span", "since")
    return (
        Column("task_type", String(64), nullable=False),
        *(Column(name, String(64), nullable=False) for name in more),
        Column("span", String(8), nullable=False),
        Column("since", UtcTime, nullable=False),
        PrimaryKeyConstraint(*keys),
    )


outputs_over_time = Table(
    "outputs_over_time",
    metadata,
    *_stretch(),
    Column("outputs", BigInteger, nullable=False),
    Column("confidence_sum", Float, nullable=False),
    Column("confidence_n", BigInteger, nullable=False),
    Column("approved", BigInteger, nullable=False, comment="By a person."),
    Column("rejected", BigInteger, nullable=False, comment="By a person."),
    Column("auto_approved", BigInteger, nullable=False),
    comment="Outputs that arrived and verdicts that were given, by hour; hours become days, and"
    " days one row. Without the rows of dataset files.",
)

feedback_over_time = Table(
    "feedback_over_time",
    metadata,
    *_stretch(),
    Column("n", BigInteger, nullable=False),
    Column("yes", BigInteger, nullable=False),
    Column("no", BigInteger, nullable=False),
    Column("late_yes", BigInteger, nullable=False, comment="The first about a sealed output."),
    Column("late_no", BigInteger, nullable=False, comment="The first about a sealed output."),
    *(Column(f"rated_{stars}", BigInteger, nullable=False) for stars in range(1, 6)),
    Column("sure", BigInteger, nullable=False, comment="Verdicts on outputs that were sure."),
    Column("sure_no", BigInteger, nullable=False),
    Column("unsure", BigInteger, nullable=False, comment="Verdicts on outputs that were not."),
    Column("unsure_yes", BigInteger, nullable=False),
    comment="What digested feedback said, by the hour in which it came; kept as outputs_over_time.",
)

engagement_over_time = Table(
    "engagement_over_time",
    metadata,
    *_stretch("metric"),
    Column("n", BigInteger, nullable=False),
    Column("total", Float, nullable=False),
    Column("squares", Float, nullable=False),
    comment="Sums of the engagement metrics of digested feedback, on a logarithmic scale; of"
    " each task type the first few names. Kept as outputs_over_time.",
)

positions = Table(
    "positions",
    metadata,
    Column("source", String(64), nullable=False),
    Column("topic", String(256), nullable=False),
    Column("partition", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("next_offset", BigInteger),
    Column("fingerprint", _Key),
    Column("updated_at", UtcTime, nullable=False),
    PrimaryKeyConstraint("source", "topic", "partition"),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("reason", String(64), nullable=False),
    Column("detail", Words, nullable=False),
    Column("raw", LargeBinary, nullable=False),
    *_origin(),
    Column("raw_digest", _Key, nullable=False),
    Column("received_at", UtcTime, nullable=False),
    Column("replayed_at", UtcTime),
    Column("published_at", UtcTime, comment="When the dead-letter topic had it."),
    Column("taken_until", UtcTime, comment="So long one daemon is trying to publish it."),
    # A record that is read again is the same letter; a topic made anew may hold others.
    UniqueConstraint("source", "topic", "partition", "offset", "raw_digest"),
    sqlite_autoincrement=True,
)
Index(
    "ix_dead_letters_unpublished",
    dead_letters.c.id,
    sqlite_where=dead_letters.c.published_at.is_(None),
    postgresql_where=dead_letters.c.published_at.is_(None),
)

FORGOTTEN_LETTER = "forgotten"
"""The reason of a dead letter whose bytes are gone; its digest stops it from coming again."""

transitions = Table(
    "transitions",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("ref", String(64), nullable=False),
    Column("from_state", String(16)),
    Column("to_state", String(16), nullable=False),
    Column("reason", Words, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("at", UtcTime, nullable=False),
    Index("ix_transitions_ref", "kind", "ref"),
    sqlite_autoincrement=True,
    comment="The history of events, batches, runs, versions and batch sizes after they were"
    " first stored. That an event was sealed is told by batch_members.",
)

deployment = Table(
    "deployment",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
    comment="What all daemons of this database have in common outside of it.",
)

setting_changes = Table(
    "setting_changes",
    metadata,
    Column("revision", Integer, nullable=False),
    Column("item", Integer, nullable=False),
    Column("path", Text, nullable=False, comment="The setting's place: names in a JSON array."),
    Column("before", Text, comment="What the store said of it, as JSON; null: nothing."),
    Column("after", Text, comment="What it says since, as JSON; null: nothing, as configured."),
    Column("actor", String(64), nullable=False),
    Column("reason", Words, nullable=False),
    Column("undoes", Integer, comment="The revision that this one takes back."),
    Column("at", UtcTime, nullable=False),
    PrimaryKeyConstraint("revision", "item"),
    comment="Settings that were changed at run time: append only, one revision for each change.",
)

model_lines = Table(
    "model_lines",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("base_model", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("line", String(64), nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("trigger", String(16), nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("actor", String(64), nullable=False),
    Column(
        "queued_so_far",
        BigInteger,
        comment="Events of the line ever queued when it was sealed: two batches tell the rate.",
    ),
    Column(
        "weights",
        JSON,
        comment="By task type, where feedback made it other than 1 when examples were drawn.",
    ),
    Column("sealed_at", UtcTime, nullable=False),
    UniqueConstraint("line", "sequence"),
)

imports = Table(
    "imports",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("line", String(64), nullable=False),
    Column("batch_id", String(32), ForeignKey("batches.id")),
    Column("file", Words, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("n_events", Integer, nullable=False, comment="Those that went into the batch."),
    Column("actor", String(64), nullable=False),
    Column("at", UtcTime, nullable=False),
    Index("ix_imports_file", "line", "sha256"),
    Index("ix_imports_batch", "batch_id"),
    sqlite_autoincrement=True,
    comment="Dataset files that were brought in; batch_id is null when none of it may train.",
)

batch_sizes = Table(
    "batch_sizes",
    metadata,
    Column("line", String(64), primary_key=True),
    Column("size", Integer, nullable=False),
    Column("needed", Integer, nullable=False),
    Column("configured", Integer, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("cause", String(16), nullable=False),
    Column("reason", Words, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("changed_at", UtcTime),
    Column("cause_since", UtcTime, nullable=False),
    comment="The batch size of each line that has a reason for one; its past is in transitions.",
)

batch_members = Table(
    "batch_members",
    metadata,
    Column("batch_id", String(32), ForeignKey("batches.id"), nullable=False),
    Column("event_id", _Id, ForeignKey("events.id"), nullable=False),
    Column("role", String(16), nullable=False),
    Column(
        "preferred_id",
        _Id,
        ForeignKey("events.id"),
        comment="Of a rejected output in a pair: the member of the batch that is the better"
        " answer.",
    ),
    PrimaryKeyConstraint("batch_id", "event_id"),
    Index("ix_batch_members_event", "event_id"),
)
Index(
    "one_primary_role",
    batch_members.c.event_id,
    unique=True,
    sqlite_where=is_one_of(batch_members.c.role, *PRIMARY_ROLES),
    postgresql_where=is_one_of(batch_members.c.role, *PRIMARY_ROLES),
)

rejected_outputs = Table(
    "rejected_outputs",
    metadata,
    Column("event_id", _Id, ForeignKey("events.id"), primary_key=True, autoincrement=False),
    Column("task_type", String(64), nullable=False),
    Column("prompt_key", _Key, nullable=False),
    Column("use", String(16), nullable=False),
    comment="What becomes of rejected outputs, in lines that learn from such: known since a batch"
    " of the line was sealed.",
)
Index(
    "ix_rejected_outputs_free",
    rejected_outputs.c.task_type,
    rejected_outputs.c.event_id,
    sqlite_where=is_one_of(rejected_outputs.c.use, RejectedUse.FREE),
    postgresql_where=is_one_of(rejected_outputs.c.use, RejectedUse.FREE),
)
Index(
    "ix_rejected_outputs_free_prompt",
    rejected_outputs.c.task_type,
    rejected_outputs.c.prompt_key,
    rejected_outputs.c.event_id,
    sqlite_where=is_one_of(rejected_outputs.c.use, RejectedUse.FREE),
    postgresql_where=is_one_of(rejected_outputs.c.use, RejectedUse.FREE),
)

split_sides = Table(
    "split_sides",
    metadata,
    Column("key", _Key, primary_key=True),
    Column("side", String(16), nullable=False),
    comment="On which side of the split a prompt or a split group stands, for ever.",
)

replay_memory = Table(
    "replay_memory",
    metadata,
    Column("task_type", String(64), nullable=False),
    Column("priority", BigInteger, nullable=False),
    Column("event_id", _Id, ForeignKey("events.id"), nullable=False),
    Column("batch_id", String(32), ForeignKey("batches.id"), nullable=False),
    PrimaryKeyConstraint("task_type", "priority", "event_id"),
    comment="A bounded, even sample of the events of each task type that made a version.",
)

returned_events = Table(
    "returned_events",
    metadata,
    Column("line", String(64), nullable=False),
    Column("event_id", _Id, ForeignKey("events.id"), nullable=False),
    Column("batch_id", String(32), ForeignKey("batches.id"), nullable=False),
    PrimaryKeyConstraint("line", "event_id"),
    comment="Training rows of a batch that made no version; the line's next batch takes them.",
)

runs = Table(
    "runs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("batch_id", String(32), ForeignKey("batches.id"), nullable=False, unique=True),
    Column("line", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("provider", String(64), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("base_model", Text),
    Column("foundation", Text),
    Column("training", JSON),
    Column("training_digest", String(64)),
    Column("parent_id", _Id, ForeignKey("versions.id")),
    Column("job_id", Text),
    Column("progress", JSON),
    Column("artifact", Text),
    Column("manifest_sha256", String(64)),
    Column("method", String(16)),
    Column("measurements", JSON),
    Column("outcome", String(16)),
    Column("error", String(64)),
    Column("message", Words),
    Column("not_before", UtcTime),
    Column(
        "short_of_money",
        Boolean,
        comment="Whether it waits for money, and goes on by itself when there is some.",
    ),
    Column("cancel_asked_at", UtcTime),
    Column("cancel_actor", String(64)),
    Column("cancel_reason", Words),
    Column("planned_at", UtcTime, nullable=False),
    Column("launched_at", UtcTime),
    Column("finished_at", UtcTime),
    Column("updated_at", UtcTime, nullable=False),
    Index("ix_runs_line", "line", "planned_at"),
)
Index(
    "one_active_run",
    runs.c.line,
    unique=True,
    sqlite_where=is_one_of(runs.c.state, *ACTIVE_RUN_STATES),
    postgresql_where=is_one_of(runs.c.state, *ACTIVE_RUN_STATES),
)
Index(
    "ix_runs_unfinished",
    runs.c.line,
    runs.c.planned_at,
    sqlite_where=is_one_of(runs.c.state, *UNFINISHED_RUN_STATES),
    postgresql_where=is_one_of(runs.c.state, *UNFINISHED_RUN_STATES),
)

run_leases = Table(
    "run_leases",
    metadata,
    Column("run_id", String(32), ForeignKey("runs.id"), primary_key=True),
    Column("owner", String(32), nullable=False),
    Column("node", String(64), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("until", UtcTime, nullable=False),
    Column("bound", Boolean, nullable=False),
    comment="Which daemon works on a run, until when by the database's clock, and whether the"
    " files that it needs are on that daemon's node. A write about the run needs its epoch.",
)

run_attempts = Table(
    "run_attempts",
    metadata,
    Column("run_id", String(32), ForeignKey("runs.id"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("job_id", Text),
    Column("result", String(16)),
    Column("message", Words),
    Column("started_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
    PrimaryKeyConstraint("run_id", "attempt"),
    Index("ix_run_attempts_job", "job_id"),
    comment="One row an attempt: the intent, then the job that it adopted, then how it ended.",
)

spending = Table(
    "spending",
    metadata,
    Column("run_id", String(32), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("line", String(64), nullable=False),
    Column("provider", String(64), nullable=False),
    Column("model", Text, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("price", JSON, nullable=False),
    Column("tokens", BigInteger, nullable=False, comment="That it may train, at most."),
    Column("reserved", Amount, nullable=False),
    Column("actual", Amount, comment="Null as long as nobody knows."),
    Column("trained_tokens", BigInteger, comment="As its service counted them, if it did."),
    Column("basis", String(16)),
    Column("reserved_at", UtcTime, nullable=False),
    Column("settled_at", UtcTime),
    PrimaryKeyConstraint("run_id", "attempt"),
    ForeignKeyConstraint(["run_id", "attempt"], ["run_attempts.run_id", "run_attempts.attempt"]),
    Index("ix_spending_time", "reserved_at"),
    comment="What an attempt of a run that has a price may cost, and what it did cost.",
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("delivery_id", String(256), nullable=False, unique=True),
    Column("type", String(128), nullable=False),
    Column("object_id", String(256), comment="What the event is about: a job, or something else."),
    Column("received_at", UtcTime, nullable=False),
    Index("ix_webhook_deliveries_object", "object_id"),
    Index("ix_webhook_deliveries_received", "received_at"),
    sqlite_autoincrement=True,
    comment="Signed webhooks that were received, each once, for as long as it may come again.",
)

versions = Table(
    "versions",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("line", String(64), ForeignKey("model_lines.name"), nullable=False),
    Column("candidate", String(64)),
    Column("release", String(64)),
    Column("state", String(16), nullable=False),
    Column("parent_id", _Id, ForeignKey("versions.id")),
    Column("run_id", String(32), unique=True),
    Column("method", String(16), nullable=False),
    Column("base_model", Text, nullable=False),
    Column(
        "foundation",
        Text,
        nullable=False,
        comment="What an adapter sits on: the base model, or artifact:NAME of a full version.",
    ),
    Column("artifact", Text),
    Column("manifest_sha256", String(64)),
    Column("training_digest", String(64)),
    Column("task_types", JSON, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("released_at", UtcTime),
    Index("ix_versions_line", "line", "id"),
    UniqueConstraint("line", "candidate"),
    UniqueConstraint("line", "release"),
    Index("ix_versions_parent", "parent_id"),
    sqlite_autoincrement=True,
)

aliases = Table(
    "aliases",
    metadata,
    Column("line", String(64), ForeignKey("model_lines.name"), nullable=False),
    Column("name", String(64), nullable=False),
    Column("version_id", _Id, ForeignKey("versions.id"), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    PrimaryKeyConstraint("line", "name"),
)

alias_history = Table(
    "alias_history",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("line", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("from_id", _Id, ForeignKey("versions.id")),
    Column("to_id", _Id, ForeignKey("versions.id"), nullable=False),
    Column("cause", String(16), nullable=False),
    Column("actor", String(64), nullable=False),
    Column("reason", Words, nullable=False),
    Column("at", UtcTime, nullable=False),
    Index("ix_alias_history_line", "line", "name", "id"),
    sqlite_autoincrement=True,
)

live_judgements = Table(
    "live_judgements",
    metadata,
    Column("output_id", _Id, ForeignKey("events.id"), primary_key=True, autoincrement=False),
    Column("version_id", _Id, ForeignKey("versions.id"), nullable=False),
    Column("producer", String(64), nullable=False, comment="Of the feedback; empty: of many."),
    Column("approved", Boolean, nullable=False),
    comment="What people said of an output of a released version: it counts once.",
)

live_counts = Table(
    "live_counts",
    metadata,
    Column("version_id", _Id, ForeignKey("versions.id"), nullable=False),
    Column("producer", String(64), nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("yes", BigInteger, nullable=False),
    PrimaryKeyConstraint("version_id", "producer"),
    comment="Those, counted by version and producer; a bounded number of producers by name.",
)

live_looks = Table(
    "live_looks",
    metadata,
    Column("version_id", _Id, ForeignKey("versions.id"), nullable=False),
    Column("predecessor_id", _Id, ForeignKey("versions.id"), nullable=False),
    Column("mark", BigInteger, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("yes", BigInteger, nullable=False),
    Column("before_n", BigInteger, nullable=False),
    Column("before_yes", BigInteger, nullable=False),
    Column("log_e", Float, nullable=False),
    Column("at", UtcTime, nullable=False),
    PrimaryKeyConstraint("version_id", "predecessor_id", "mark"),
    comment="The live verdict over time, at numbers of verdicts that grow by a seventh.",
)

rollback_reports = Table(
    "rollback_reports",
    metadata,
    Column("move_id", _Id, ForeignKey("alias_history.id"), primary_key=True, autoincrement=False),
    Column("n", BigInteger, nullable=False, comment="Verdicts on the version that was left."),
    Column("yes", BigInteger, nullable=False),
    Column("before_n", BigInteger, nullable=False, comment="On the one that was gone back to."),
    Column("before_yes", BigInteger, nullable=False),
    Column("log_e", Float, nullable=False),
    comment="What the live verdict knew at each rollback, by hand or by itself.",
)

evaluation_examples = Table(
    "evaluation_examples",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("task_type", String(64), nullable=False),
    Column("event_id", _Id, ForeignKey("events.id"), unique=True),
    Column("messages", JSON, nullable=False),
    Column("prompt_key", _Key, nullable=False),
    Column("source", String(16), nullable=False),
    Column("producer", String(64), nullable=False),
    Column("category", String(256)),
    Column("batch_id", String(32), ForeignKey("batches.id")),
    Column("added_at", UtcTime, nullable=False),
    UniqueConstraint("task_type", "prompt_key"),
    sqlite_autoincrement=True,
    comment="The frozen held-out set: append-only, never trained.",
)

forgettings = Table(
    "forgettings",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("name", Text, comment="Of an event or a producer, whose ids stay; never a subject."),
    Column("name_digest", _Key, nullable=False),
    Column("state", String(16), nullable=False),
    Column("delete_weights", Boolean, nullable=False),
    Column("last_event", BigInteger, nullable=False, comment="What came later is not meant."),
    Column("last_feedback", BigInteger, nullable=False),
    Column("last_letter", BigInteger, nullable=False),
    Column("n_outputs", BigInteger, nullable=False),
    Column("n_feedback", BigInteger, nullable=False),
    Column("n_dead_letters", BigInteger, nullable=False),
    Column("n_held_out", BigInteger, nullable=False),
    Column("n_versions", BigInteger, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("reason", Words, nullable=False),
    Column("asked_at", UtcTime, nullable=False),
    Column("purged_at", UtcTime),
    Column("complete_at", UtcTime),
    sqlite_autoincrement=True,
    comment="What somebody wanted to be forgotten, and how far that is: asked, purged from the"
    " tables, complete when no file has it either.",
)

retired_examples = Table(
    "retired_examples",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=False),
    Column("task_type", String(64), nullable=False),
    Column("event_id", _Id, ForeignKey("events.id")),
    Column("batch_id", String(32), ForeignKey("batches.id")),
    Column("source", String(16), nullable=False),
    Column("forgetting_id", _Id, ForeignKey("forgettings.id"), nullable=False),
    Column("added_at", UtcTime, nullable=False),
    Column("retired_at", UtcTime, nullable=False),
    Index("ix_retired_examples_task_type", "task_type", "retired_at"),
    comment="What left the frozen held-out set, under the ids that evaluations name: each"
    " forgetting that retires some makes a revision of the set.",
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("version_id", _Id, ForeignKey("versions.id"), nullable=False),
    Column("champion_id", _Id, ForeignKey("versions.id"), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("report", JSON, nullable=False),
    Column("scores", JSON, nullable=False),
    Column("at", UtcTime, nullable=False),
    Index("ix_evaluations_version", "version_id"),
    Index("ix_evaluations_champion", "champion_id"),
    sqlite_autoincrement=True,
)

# Four tables of daemon/store/firewall.py. None of them holds a text of an event.
firewall_memory = Table(
    "firewall_memory",
    metadata,
    Column("task_type", String(64), primary_key=True),
    Column("content", LargeBinary, nullable=False, comment="See learning.task_memory.TaskMemory."),
    Column("updated_at", UtcTime, nullable=False),
    comment="What is usual in a task type, as counts: one row of bounded size for each.",
)

firewall_kinds = Table(
    "firewall_kinds",
    metadata,
    Column("event_id", _Id, ForeignKey("events.id"), primary_key=True, autoincrement=False),
    Column("task_type", String(64), nullable=False),
    Column("producer", String(64), nullable=False),
    Column("prompt_key", _Key, nullable=False),
    Column("answer_key", _Key, nullable=False),
    Column("by_human", Boolean, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("answer_signature", LargeBinary, nullable=False),
    Column("n", Integer, nullable=False, comment="Events that are exactly this."),
    Column("n_near", Integer, nullable=False, comment="Others that are nearly this."),
    Index("ix_firewall_kinds_task_type", "task_type", "event_id"),
    Index("ix_firewall_kinds_prompt", "prompt_key"),
    Index("ix_firewall_kinds_answer", "answer_key", "task_type", "producer"),
    comment="Events that were cleared lately, of those that are alike the first: what new ones"
    " are compared with. So many of a task type as firewall.remembered says.",
)

firewall_bands = Table(
    "firewall_bands",
    metadata,
    Column("key", _Key, nullable=False),
    Column("event_id", _Id, ForeignKey("firewall_kinds.event_id"), nullable=False),
    PrimaryKeyConstraint("key", "event_id"),
    Index("ix_firewall_bands_event", "event_id"),
    comment="By which of these keys prompts that are alike meet; see learning.likeness.",
)

firewall_stops = Table(
    "firewall_stops",
    metadata,
    Column("event_id", _Id, ForeignKey("events.id"), primary_key=True, autoincrement=False),
    Column("task_type", String(64), nullable=False),
    Column("producer", String(64), nullable=False),
    Column("rule", String(16), nullable=False),
    Column("other_id", _Id, comment="An event that it should be looked at beside."),
    Column("at", UtcTime, nullable=False),
    Column("released_at", UtcTime, comment="When an operator let it go, with others."),
    Index("ix_firewall_stops_at", "at"),
    comment="Which rule stopped an event; its reason in words is the event's own.",
)
for _name, _column in (
    ("ix_firewall_stops_rule", firewall_stops.c.rule),
    ("ix_firewall_stops_producer", firewall_stops.c.producer),
):
    Index(
        _name,
        _column,
        firewall_stops.c.event_id,
        sqlite_where=firewall_stops.c.released_at.is_(None),
        postgresql_where=firewall_stops.c.released_at.is_(None),
    )
