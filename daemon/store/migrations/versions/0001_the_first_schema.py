"""The first schema

Revision: 0001, after nothing.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "batches",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("line", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("trigger", sa.String(length=16), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column(
            "queued_so_far",
            sa.BigInteger(),
            nullable=True,
            comment="Events of the line ever queued when it was sealed: two batches tell the rate.",
        ),
        sa.Column(
            "weights",
            sa.JSON(),
            nullable=True,
            comment="By task type, where feedback made it other than 1 when examples were drawn.",
        ),
        sa.Column("sealed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
        sa.UniqueConstraint("line", "sequence", name=op.f("uq_batches_line_sequence")),
    )
    op.create_table(
        "imports",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("line", sa.String(length=64), nullable=False),
        sa.Column("batch_id", sa.String(length=32), nullable=True),
        sa.Column("file", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column(
            "n_events",
            sa.Integer(),
            nullable=False,
            comment="Those that went into the batch.",
        ),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_imports_batch_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_imports")),
        sqlite_autoincrement=True,
        comment="Dataset files that were brought in; batch_id is null when none of it may train.",
    )
    with op.batch_alter_table("imports", schema=None) as batch_op:
        batch_op.create_index("ix_imports_file", ["line", "sha256"], unique=False)
        batch_op.create_index("ix_imports_batch", ["batch_id"], unique=False)
    op.create_table(
        "batch_sizes",
        sa.Column("line", sa.String(length=64), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("needed", sa.Integer(), nullable=False),
        sa.Column("configured", sa.Integer(), nullable=False),
        sa.Column("pinned", sa.Boolean(), nullable=False),
        sa.Column("cause", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=True),
        sa.Column("cause_since", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("line", name=op.f("pk_batch_sizes")),
        comment="The batch size of each line that has a reason for one; its past is in"
        " transitions.",
    )
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("topic", sa.String(length=256), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("raw_digest", sa.LargeBinary(length=16), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column("replayed_at", sa.BigInteger(), nullable=True),
        sa.Column(
            "published_at",
            sa.BigInteger(),
            nullable=True,
            comment="When the dead-letter topic had it.",
        ),
        sa.Column(
            "taken_until",
            sa.BigInteger(),
            nullable=True,
            comment="So long one daemon is trying to publish it.",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letters")),
        sa.UniqueConstraint(
            "source",
            "topic",
            "partition",
            "offset",
            "raw_digest",
            name=op.f("uq_dead_letters_source_topic_partition_offset_raw_digest"),
        ),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("dead_letters", schema=None) as batch_op:
        batch_op.create_index(
            "ix_dead_letters_unpublished",
            ["id"],
            unique=False,
            sqlite_where=sa.text("published_at IS NULL"),
            postgresql_where=sa.text("published_at IS NULL"),
        )

    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("producer", sa.String(length=64), nullable=False),
        sa.Column("event_id", sa.String(length=256), nullable=False),
        sa.Column("task_type", sa.String(length=64), nullable=False),
        sa.Column("task_id", sa.String(length=256), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("state_since", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("by_human", sa.Boolean(), nullable=False),
        sa.Column("approved", sa.Boolean(), nullable=True),
        sa.Column("confidence", sa.Float(), nullable=True),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("subject", sa.String(length=256), nullable=True),
        sa.Column("model_version", sa.String(length=256), nullable=True),
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("topic", sa.String(length=256), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("occurred_at", sa.BigInteger(), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index(
            "ix_events_held",
            ["task_type", "id"],
            unique=False,
            sqlite_where=sa.text("state = 'held'"),
            postgresql_where=sa.text("state = 'held'"),
        )
        batch_op.create_index(
            "ix_events_held_since",
            ["state_since"],
            unique=False,
            sqlite_where=sa.text("state = 'held'"),
            postgresql_where=sa.text("state = 'held'"),
        )
        batch_op.create_index(
            "ix_events_quarantined",
            ["task_type", "id"],
            unique=False,
            sqlite_where=sa.text("state = 'quarantined'"),
            postgresql_where=sa.text("state = 'quarantined'"),
        )
        batch_op.create_index(
            "ix_events_queued",
            ["task_type", "id"],
            unique=False,
            sqlite_where=sa.text("state = 'queued'"),
            postgresql_where=sa.text("state = 'queued'"),
        )
        batch_op.create_index(
            "ix_events_queued_since",
            ["task_type", "state_since"],
            unique=False,
            sqlite_where=sa.text("state = 'queued'"),
            postgresql_where=sa.text("state = 'queued'"),
        )
        batch_op.create_index(
            "ix_events_rejected_since",
            ["task_type", "state_since"],
            unique=False,
            sqlite_where=sa.text("state IN ('rejected', 'withdrawn')"),
            postgresql_where=sa.text("state IN ('rejected', 'withdrawn')"),
        )
    op.create_table(
        "event_names",
        sa.Column("name", sa.BigInteger(), nullable=False),
        sa.Column("row_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", "row_id", name=op.f("pk_event_names")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "deployment",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_deployment")),
        comment="What all daemons of this database have in common outside of it.",
    )

    op.create_table(
        "setting_changes",
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("item", sa.Integer(), nullable=False),
        sa.Column(
            "path",
            sa.Text(),
            nullable=False,
            comment="The setting's place: names in a JSON array.",
        ),
        sa.Column(
            "before",
            sa.Text(),
            nullable=True,
            comment="What the store said of it, as JSON; null: nothing.",
        ),
        sa.Column(
            "after",
            sa.Text(),
            nullable=True,
            comment="What it says since, as JSON; null: nothing, as configured.",
        ),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column(
            "undoes", sa.Integer(), nullable=True, comment="The revision that this one takes back."
        ),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("revision", "item", name=op.f("pk_setting_changes")),
        comment="Settings that were changed at run time: append only, one revision for each"
        " change.",
    )

    op.create_table(
        "model_lines",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_model_lines")),
    )
    op.create_table(
        "positions",
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("topic", sa.String(length=256), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("next_offset", sa.BigInteger(), nullable=True),
        sa.Column("fingerprint", sa.LargeBinary(length=16), nullable=True),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("source", "topic", "partition", name=op.f("pk_positions")),
    )
    op.create_table(
        "split_sides",
        sa.Column("key", sa.LargeBinary(length=16), nullable=False),
        sa.Column("side", sa.String(length=16), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_split_sides")),
        comment="On which side of the split a prompt or a split group stands, for ever.",
    )
    op.create_table(
        "tallies",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("task_type", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=64), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("confidence_sum", sa.Float(), nullable=False),
        sa.Column("confidence_n", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "task_type", "state", name=op.f("pk_tallies")),
        comment="Running counts of events (kind output, feedback, dead_letter), so that no page"
        " and no probe has to count rows.",
    )
    op.create_table(
        "outputs_over_time",
        sa.Column("task_type", sa.String(length=64), nullable=False),
        sa.Column("span", sa.String(length=8), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("outputs", sa.BigInteger(), nullable=False),
        sa.Column("confidence_sum", sa.Float(), nullable=False),
        sa.Column("confidence_n", sa.BigInteger(), nullable=False),
        sa.Column("approved", sa.BigInteger(), nullable=False, comment="By a person."),
        sa.Column("rejected", sa.BigInteger(), nullable=False, comment="By a person."),
        sa.Column("auto_approved", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("task_type", "span", "since", name=op.f("pk_outputs_over_time")),
        comment="Outputs that arrived and verdicts that were given, by hour; hours become days, and"
        " days one row. Without the rows of dataset files.",
    )
    op.create_table(
        "feedback_over_time",
        sa.Column("task_type", sa.String(length=64), nullable=False),
        sa.Column("span", sa.String(length=8), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("yes", sa.BigInteger(), nullable=False),
        sa.Column("no", sa.BigInteger(), nullable=False),
        sa.Column(
            "late_yes", sa.BigInteger(), nullable=False, comment="The first about a sealed output."
        ),
        sa.Column(
            "late_no", sa.BigInteger(), nullable=False, comment="The first about a sealed output."
        ),
        sa.Column("rated_1", sa.BigInteger(), nullable=False),
        sa.Column("rated_2", sa.BigInteger(), nullable=False),
        sa.Column("rated_3", sa.BigInteger(), nullable=False),
        sa.Column("rated_4", sa.BigInteger(), nullable=False),
        sa.Column("rated_5", sa.BigInteger(), nullable=False),
        sa.Column(
            "sure", sa.BigInteger(), nullable=False, comment="Verdicts on outputs that were sure."
        ),
        sa.Column("sure_no", sa.BigInteger(), nullable=False),
        sa.Column(
            "unsure", sa.BigInteger(), nullable=False, comment="Verdicts on outputs that were not."
        ),
        sa.Column("unsure_yes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("task_type", "span", "since", name=op.f("pk_feedback_over_time")),
        comment="What digested feedback said, by the hour in which it came; kept as"
        " outputs_over_time.",
    )
    op.create_table(
        "engagement_over_time",
        sa.Column("task_type", sa.String(length=64), nullable=False),
        sa.Column("metric", sa.String(length=64), nullable=False),
        sa.Column("span", sa.String(length=8), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("total", sa.Float(), nullable=False),
        sa.Column("squares", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint(
            "task_type", "metric", "span", "since", name=op.f("pk_engagement_over_time")
        ),
        comment="Sums of the engagement metrics of digested feedback, on a logarithmic scale; of"
        " each task type the first few names. Kept as outputs_over_time.",
    )
    op.create_table(
        "transitions",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("ref", sa.String(length=64), nullable=False),
        sa.Column("from_state", sa.String(length=16), nullable=True),
        sa.Column("to_state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_transitions")),
        comment="The history of events, batches, runs, versions and batch sizes after they were"
        " first stored. That an event was sealed is told by batch_members.",
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("transitions", schema=None) as batch_op:
        batch_op.create_index("ix_transitions_ref", ["kind", "ref"], unique=False)

    op.create_table(
        "batch_members",
        sa.Column("batch_id", sa.String(length=32), nullable=False),
        sa.Column("event_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column(
            "preferred_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=True,
            comment="Of a rejected output in a pair: the member of the batch that is the better"
            " answer.",
        ),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.id"], name=op.f("fk_batch_members_batch_id")
        ),
        sa.ForeignKeyConstraint(
            ["event_id"], ["events.id"], name=op.f("fk_batch_members_event_id")
        ),
        sa.ForeignKeyConstraint(
            ["preferred_id"], ["events.id"], name=op.f("fk_batch_members_preferred_id")
        ),
        sa.PrimaryKeyConstraint("batch_id", "event_id", name=op.f("pk_batch_members")),
    )
    with op.batch_alter_table("batch_members", schema=None) as batch_op:
        batch_op.create_index("ix_batch_members_event", ["event_id"], unique=False)
        batch_op.create_index(
            "one_primary_role",
            ["event_id"],
            unique=True,
            sqlite_where=sa.text("role IN ('held_out', 'train')"),
            postgresql_where=sa.text("role IN ('held_out', 'train')"),
        )

    op.create_table(
        "rejected_outputs",
        sa.Column(
            "event_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column("task_type", sa.String(length=64), nullable=False),
        sa.Column("prompt_key", sa.LargeBinary(length=16), nullable=False),
        sa.Column("use", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(
            ["event_id"], ["events.id"], name=op.f("fk_rejected_outputs_event_id")
        ),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_rejected_outputs")),
        comment="What becomes of rejected outputs, in lines that learn from such: known since a"
        " batch of the line was sealed.",
    )
    with op.batch_alter_table("rejected_outputs", schema=None) as batch_op:
        batch_op.create_index(
            "ix_rejected_outputs_free",
            ["task_type", "event_id"],
            unique=False,
            sqlite_where=sa.text("use = 'free'"),
            postgresql_where=sa.text("use = 'free'"),
        )
        batch_op.create_index(
            "ix_rejected_outputs_free_prompt",
            ["task_type", "prompt_key", "event_id"],
            unique=False,
            sqlite_where=sa.text("use = 'free'"),
            postgresql_where=sa.text("use = 'free'"),
        )

    op.create_table(
        "evaluation_examples",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("task_type", sa.String(length=64), nullable=False),
        sa.Column("event_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.Column("prompt_key", sa.LargeBinary(length=16), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("producer", sa.String(length=64), nullable=False),
        sa.Column("category", sa.String(length=256), nullable=True),
        sa.Column("batch_id", sa.String(length=32), nullable=True),
        sa.Column("added_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.id"], name=op.f("fk_evaluation_examples_batch_id")
        ),
        sa.ForeignKeyConstraint(
            ["event_id"], ["events.id"], name=op.f("fk_evaluation_examples_event_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluation_examples")),
        sa.UniqueConstraint("event_id", name=op.f("uq_evaluation_examples_event_id")),
        sa.UniqueConstraint(
            "task_type", "prompt_key", name=op.f("uq_evaluation_examples_task_type_prompt_key")
        ),
        comment="The frozen held-out set: append-only, never trained.",
        sqlite_autoincrement=True,
    )
    op.create_table(
        "screenings",
        sa.Column(
            "event_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column("ruleset", sa.String(length=32), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column(
            "findings",
            sa.JSON(),
            nullable=False,
            comment="A list of {validator, message, scrubbed}.",
        ),
        sa.Column("cost", sa.JSON(), nullable=False, comment="Seconds by validator."),
        sa.Column(
            "text",
            sa.Text(),
            nullable=True,
            comment="The event as it is learned from, where something in it was scrubbed.",
        ),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["event_id"], ["events.id"], name=op.f("fk_screenings_event_id")),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_screenings")),
        comment="What the costly validators said of an event, under which rules; none is sealed"
        " without. It does not change any more once the event is in a batch.",
    )
    op.create_table(
        "feedback",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("producer", sa.String(length=64), nullable=False),
        sa.Column("event_id", sa.String(length=256), nullable=False),
        sa.Column("task_type", sa.String(length=64), nullable=False),
        sa.Column("task_id", sa.String(length=256), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("output_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("approved", sa.Boolean(), nullable=True),
        sa.Column("confidence", sa.Float(), nullable=True),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("model_version", sa.String(length=256), nullable=True),
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("topic", sa.String(length=256), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("occurred_at", sa.BigInteger(), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column(
            "digested_at",
            sa.BigInteger(),
            nullable=True,
            comment="When what follows from it was done.",
        ),
        sa.ForeignKeyConstraint(["output_id"], ["events.id"], name=op.f("fk_feedback_output_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feedback")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "names_covered",
        sa.Column("table_name", sa.String(length=16), nullable=False),
        sa.Column("row_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("table_name", name=op.f("pk_names_covered")),
        comment="The row up to which the names of a table are in event_names and task_names.",
    )
    op.create_table(
        "task_names",
        sa.Column(
            "name",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column("row_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_task_names")),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.create_index("one_output_per_id", "events", ["producer", "event_id"], unique=True)
        op.create_index("one_feedback_per_id", "feedback", ["producer", "event_id"], unique=True)
        op.create_index("ix_events_task", "events", ["task_type", "task_id"], unique=False)
    with op.batch_alter_table("feedback", schema=None) as batch_op:
        batch_op.create_index("ix_feedback_output", ["output_id"], unique=False)
        batch_op.create_index(
            "ix_feedback_late_no",
            ["task_type", "id"],
            unique=False,
            sqlite_where=sa.text("state = 'late' AND approved IS 0"),
            postgresql_where=sa.text("state = 'late' AND approved IS false"),
        )
        batch_op.create_index(
            "ix_feedback_undigested",
            ["id"],
            unique=False,
            sqlite_where=sa.text("state IN ('joined', 'late') AND digested_at IS NULL"),
            postgresql_where=sa.text("state IN ('joined', 'late') AND digested_at IS NULL"),
        )
        batch_op.create_index(
            "ix_feedback_waiting",
            ["task_type", "task_id"],
            unique=False,
            sqlite_where=sa.text("state = 'waiting'"),
            postgresql_where=sa.text("state = 'waiting'"),
        )

    op.create_table(
        "replay_memory",
        sa.Column("task_type", sa.String(length=64), nullable=False),
        sa.Column("priority", sa.BigInteger(), nullable=False),
        sa.Column("event_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("batch_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.id"], name=op.f("fk_replay_memory_batch_id")
        ),
        sa.ForeignKeyConstraint(
            ["event_id"], ["events.id"], name=op.f("fk_replay_memory_event_id")
        ),
        sa.PrimaryKeyConstraint("task_type", "priority", "event_id", name=op.f("pk_replay_memory")),
        comment="A bounded, even sample of the events of each task type that made a version.",
    )
    op.create_table(
        "returned_events",
        sa.Column("line", sa.String(length=64), nullable=False),
        sa.Column("event_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("batch_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.id"], name=op.f("fk_returned_events_batch_id")
        ),
        sa.ForeignKeyConstraint(
            ["event_id"], ["events.id"], name=op.f("fk_returned_events_event_id")
        ),
        sa.PrimaryKeyConstraint("line", "event_id", name=op.f("pk_returned_events")),
        comment="Training rows of a batch that made no version; the line's next batch takes them.",
    )
    op.create_table(
        "versions",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("line", sa.String(length=64), nullable=False),
        sa.Column("candidate", sa.String(length=64), nullable=True),
        sa.Column("release", sa.String(length=64), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("parent_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("run_id", sa.String(length=32), nullable=True),
        sa.Column("method", sa.String(length=16), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column(
            "foundation",
            sa.Text(),
            nullable=False,
            comment="What an adapter sits on: the base model, or artifact:NAME of a full version.",
        ),
        sa.Column("artifact", sa.Text(), nullable=True),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=True),
        sa.Column("training_digest", sa.String(length=64), nullable=True),
        sa.Column("task_types", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("released_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["line"], ["model_lines.name"], name=op.f("fk_versions_line")),
        sa.ForeignKeyConstraint(["parent_id"], ["versions.id"], name=op.f("fk_versions_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_versions")),
        sa.UniqueConstraint("line", "candidate", name=op.f("uq_versions_line_candidate")),
        sa.UniqueConstraint("line", "release", name=op.f("uq_versions_line_release")),
        sa.UniqueConstraint("run_id", name=op.f("uq_versions_run_id")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("versions", schema=None) as batch_op:
        batch_op.create_index("ix_versions_line", ["line", "id"], unique=False)
        batch_op.create_index("ix_versions_parent", ["parent_id"], unique=False)

    op.create_table(
        "alias_history",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("line", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("from_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("to_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("cause", sa.String(length=16), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["from_id"], ["versions.id"], name=op.f("fk_alias_history_from_id")
        ),
        sa.ForeignKeyConstraint(["to_id"], ["versions.id"], name=op.f("fk_alias_history_to_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_history")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("alias_history", schema=None) as batch_op:
        batch_op.create_index("ix_alias_history_line", ["line", "name", "id"], unique=False)

    op.create_table(
        "aliases",
        sa.Column("line", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column(
            "version_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["line"], ["model_lines.name"], name=op.f("fk_aliases_line")),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_aliases_version_id")
        ),
        sa.PrimaryKeyConstraint("line", "name", name=op.f("pk_aliases")),
    )
    op.create_table(
        "evaluations",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "version_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column(
            "champion_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("scores", sa.JSON(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["champion_id"], ["versions.id"], name=op.f("fk_evaluations_champion_id")
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_evaluations_version_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("evaluations", schema=None) as batch_op:
        batch_op.create_index("ix_evaluations_champion", ["champion_id"], unique=False)
        batch_op.create_index("ix_evaluations_version", ["version_id"], unique=False)

    op.create_table(
        "runs",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("batch_id", sa.String(length=32), nullable=False),
        sa.Column("line", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("provider", sa.String(length=64), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=True),
        sa.Column("foundation", sa.Text(), nullable=True),
        sa.Column("training", sa.JSON(), nullable=True),
        sa.Column("training_digest", sa.String(length=64), nullable=True),
        sa.Column("parent_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("progress", sa.JSON(), nullable=True),
        sa.Column("artifact", sa.Text(), nullable=True),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=True),
        sa.Column("method", sa.String(length=16), nullable=True),
        sa.Column("measurements", sa.JSON(), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("error", sa.String(length=64), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("not_before", sa.BigInteger(), nullable=True),
        sa.Column(
            "short_of_money",
            sa.Boolean(),
            nullable=True,
            comment="Whether it waits for money, and goes on by itself when there is some.",
        ),
        sa.Column("cancel_asked_at", sa.BigInteger(), nullable=True),
        sa.Column("cancel_actor", sa.String(length=64), nullable=True),
        sa.Column("cancel_reason", sa.Text(), nullable=True),
        sa.Column("planned_at", sa.BigInteger(), nullable=False),
        sa.Column("launched_at", sa.BigInteger(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_runs_batch_id")),
        sa.ForeignKeyConstraint(["parent_id"], ["versions.id"], name=op.f("fk_runs_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("batch_id", name=op.f("uq_runs_batch_id")),
    )
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.create_index("ix_runs_line", ["line", "planned_at"], unique=False)
        batch_op.create_index(
            "ix_runs_unfinished",
            ["line", "planned_at"],
            unique=False,
            sqlite_where=sa.text(
                "state IN ('evaluating', 'launching', 'planned', 'running', 'trained', 'waiting')"
            ),
            postgresql_where=sa.text(
                "state IN ('evaluating', 'launching', 'planned', 'running', 'trained', 'waiting')"
            ),
        )
        batch_op.create_index(
            "one_active_run",
            ["line"],
            unique=True,
            sqlite_where=sa.text("state IN ('evaluating', 'launching', 'running', 'trained')"),
            postgresql_where=sa.text("state IN ('evaluating', 'launching', 'running', 'trained')"),
        )

    op.create_table(
        "run_leases",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("owner", sa.String(length=32), nullable=False),
        sa.Column("node", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.Column("bound", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_leases_run_id")),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_run_leases")),
        comment="Which daemon works on a run, until when by the database's clock, and whether the"
        " files that it needs are on that daemon's node. A write about the run needs its epoch.",
    )

    op.create_table(
        "run_attempts",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("result", sa.String(length=16), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_attempts_run_id")),
        sa.PrimaryKeyConstraint("run_id", "attempt", name=op.f("pk_run_attempts")),
        comment="One row an attempt: the intent, then the job that it adopted, then how it ended.",
    )
    with op.batch_alter_table("run_attempts", schema=None) as batch_op:
        batch_op.create_index("ix_run_attempts_job", ["job_id"], unique=False)

    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("delivery_id", sa.String(length=256), nullable=False),
        sa.Column("type", sa.String(length=128), nullable=False),
        sa.Column(
            "object_id",
            sa.String(length=256),
            nullable=True,
            comment="What the event is about: a job, or something else.",
        ),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_deliveries")),
        sa.UniqueConstraint("delivery_id", name=op.f("uq_webhook_deliveries_delivery_id")),
        sqlite_autoincrement=True,
        comment="Signed webhooks that were received, each once, for as long as it may come again.",
    )
    with op.batch_alter_table("webhook_deliveries", schema=None) as batch_op:
        batch_op.create_index("ix_webhook_deliveries_object", ["object_id"], unique=False)
        batch_op.create_index("ix_webhook_deliveries_received", ["received_at"], unique=False)
    op.create_table(
        "spending",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("line", sa.String(length=64), nullable=False),
        sa.Column("provider", sa.String(length=64), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("price", sa.JSON(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False, comment="That it may train, at most."),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.Column(
            "actual", sa.BigInteger(), nullable=True, comment="Null as long as nobody knows."
        ),
        sa.Column(
            "trained_tokens",
            sa.BigInteger(),
            nullable=True,
            comment="As its service counted them, if it did.",
        ),
        sa.Column("basis", sa.String(length=16), nullable=True),
        sa.Column("reserved_at", sa.BigInteger(), nullable=False),
        sa.Column("settled_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["run_id", "attempt"],
            ["run_attempts.run_id", "run_attempts.attempt"],
            name=op.f("fk_spending_run_id_attempt"),
        ),
        sa.PrimaryKeyConstraint("run_id", "attempt", name=op.f("pk_spending")),
        comment="What an attempt of a run that has a price may cost, and what it did cost.",
    )
    with op.batch_alter_table("spending", schema=None) as batch_op:
        batch_op.create_index("ix_spending_time", ["reserved_at"], unique=False)
    op.create_table(
        "firewall_memory",
        sa.Column("task_type", sa.String(length=64), nullable=False),
        sa.Column(
            "content",
            sa.LargeBinary(),
            nullable=False,
            comment="See learning.task_memory.TaskMemory.",
        ),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("task_type", name=op.f("pk_firewall_memory")),
        comment="What is usual in a task type, as counts: one row of bounded size for each.",
    )
    op.create_table(
        "firewall_kinds",
        sa.Column(
            "event_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column("task_type", sa.String(length=64), nullable=False),
        sa.Column("producer", sa.String(length=64), nullable=False),
        sa.Column("prompt_key", sa.LargeBinary(length=16), nullable=False),
        sa.Column("answer_key", sa.LargeBinary(length=16), nullable=False),
        sa.Column("by_human", sa.Boolean(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("answer_signature", sa.LargeBinary(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False, comment="Events that are exactly this."),
        sa.Column("n_near", sa.Integer(), nullable=False, comment="Others that are nearly this."),
        sa.ForeignKeyConstraint(
            ["event_id"], ["events.id"], name=op.f("fk_firewall_kinds_event_id")
        ),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_firewall_kinds")),
        comment="Events that were cleared lately, of those that are alike the first: what new ones"
        " are compared with. So many of a task type as firewall.remembered says.",
    )
    with op.batch_alter_table("firewall_kinds", schema=None) as batch_op:
        batch_op.create_index(
            "ix_firewall_kinds_task_type", ["task_type", "event_id"], unique=False
        )
        batch_op.create_index("ix_firewall_kinds_prompt", ["prompt_key"], unique=False)
        batch_op.create_index(
            "ix_firewall_kinds_answer", ["answer_key", "task_type", "producer"], unique=False
        )
    op.create_table(
        "firewall_bands",
        sa.Column("key", sa.LargeBinary(length=16), nullable=False),
        sa.Column("event_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(
            ["event_id"], ["firewall_kinds.event_id"], name=op.f("fk_firewall_bands_event_id")
        ),
        sa.PrimaryKeyConstraint("key", "event_id", name=op.f("pk_firewall_bands")),
        comment="By which of these keys prompts that are alike meet; see learning.likeness.",
    )
    with op.batch_alter_table("firewall_bands", schema=None) as batch_op:
        batch_op.create_index("ix_firewall_bands_event", ["event_id"], unique=False)
    op.create_table(
        "firewall_stops",
        sa.Column(
            "event_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column("task_type", sa.String(length=64), nullable=False),
        sa.Column("producer", sa.String(length=64), nullable=False),
        sa.Column("rule", sa.String(length=16), nullable=False),
        sa.Column(
            "other_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=True,
            comment="An event that it should be looked at beside.",
        ),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column(
            "released_at",
            sa.BigInteger(),
            nullable=True,
            comment="When an operator let it go, with others.",
        ),
        sa.ForeignKeyConstraint(
            ["event_id"], ["events.id"], name=op.f("fk_firewall_stops_event_id")
        ),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_firewall_stops")),
        comment="Which rule stopped an event; its reason in words is the event's own.",
    )
    with op.batch_alter_table("firewall_stops", schema=None) as batch_op:
        batch_op.create_index("ix_firewall_stops_at", ["at"], unique=False)
        batch_op.create_index(
            "ix_firewall_stops_rule",
            ["rule", "event_id"],
            unique=False,
            sqlite_where=sa.text("released_at IS NULL"),
            postgresql_where=sa.text("released_at IS NULL"),
        )
        batch_op.create_index(
            "ix_firewall_stops_producer",
            ["producer", "event_id"],
            unique=False,
            sqlite_where=sa.text("released_at IS NULL"),
            postgresql_where=sa.text("released_at IS NULL"),
        )
    op.create_table(
        "feedback_memory",
        sa.Column("task_type", sa.String(length=64), nullable=False),
        sa.Column("memory", sa.JSON(), nullable=False),
        sa.Column(
            "score",
            sa.Float(),
            nullable=True,
            comment="What the evidence says; null while there is too little.",
        ),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("task_type", name=op.f("pk_feedback_memory")),
        comment="What is remembered of the feedback on a task type, bounded: who said what, and"
        " what is usual for its metrics (learning/feedback.py).",
    )
    op.create_table(
        "feedback_dials",
        sa.Column("task_type", sa.String(length=64), nullable=False),
        sa.Column("dial", sa.String(length=16), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column(
            "value",
            sa.Float(),
            nullable=False,
            comment="When it was turned last; it fades since.",
        ),
        sa.Column("turned_at", sa.BigInteger(), nullable=False),
        sa.Column(
            "rests_at",
            sa.BigInteger(),
            nullable=False,
            comment="From then on the row says nothing.",
        ),
        sa.PrimaryKeyConstraint("task_type", "dial", "subject", name=op.f("pk_feedback_dials")),
        comment="What feedback has turned and has not faded yet: bars, trust, style, weights.",
    )
    with op.batch_alter_table("feedback_dials", schema=None) as batch_op:
        batch_op.create_index("ix_feedback_dials_value", ["dial", "value"], unique=False)
        batch_op.create_index("ix_feedback_dials_rests", ["rests_at"], unique=False)
    op.create_table(
        "feedback_moves",
        sa.Column("task_type", sa.String(length=64), nullable=False),
        sa.Column("dial", sa.String(length=16), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("producer", sa.String(length=64), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False, comment="Since 1970, in UTC."),
        sa.Column("moved", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint(
            "task_type", "dial", "subject", "producer", name=op.f("pk_feedback_moves")
        ),
        comment="How far a dial was turned on a day, by whose feedback; by all: the producer ''.",
    )
    with op.batch_alter_table("feedback_moves", schema=None) as batch_op:
        batch_op.create_index("ix_feedback_moves_day", ["day"], unique=False)
    op.create_table(
        "feedback_effects",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "feedback_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=True,
            comment="Null: an operator did it.",
        ),
        sa.Column("task_type", sa.String(length=64), nullable=False),
        sa.Column("dial", sa.String(length=16), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("change", sa.String(length=64), nullable=False),
        sa.Column("before", sa.Float(), nullable=False),
        sa.Column(
            "after",
            sa.Float(),
            nullable=False,
            comment="Equal to before: a wish was not followed.",
        ),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["feedback_id"], ["feedback.id"], name=op.f("fk_feedback_effects_feedback_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feedback_effects")),
        sqlite_autoincrement=True,
        comment="The history of the dials, and the wishes of feedback that were not followed.",
    )
    with op.batch_alter_table("feedback_effects", schema=None) as batch_op:
        batch_op.create_index("ix_feedback_effects_feedback", ["feedback_id"], unique=False)
        batch_op.create_index("ix_feedback_effects_task_type", ["task_type", "id"], unique=False)
    op.create_table(
        "forgettings",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column(
            "name",
            sa.Text(),
            nullable=True,
            comment="Of an event or a producer, whose ids stay; never a subject.",
        ),
        sa.Column("name_digest", sa.LargeBinary(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("delete_weights", sa.Boolean(), nullable=False),
        sa.Column(
            "last_event", sa.BigInteger(), nullable=False, comment="What came later is not meant."
        ),
        sa.Column("last_feedback", sa.BigInteger(), nullable=False),
        sa.Column("last_letter", sa.BigInteger(), nullable=False),
        sa.Column("n_outputs", sa.BigInteger(), nullable=False),
        sa.Column("n_feedback", sa.BigInteger(), nullable=False),
        sa.Column("n_dead_letters", sa.BigInteger(), nullable=False),
        sa.Column("n_held_out", sa.BigInteger(), nullable=False),
        sa.Column("n_versions", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("asked_at", sa.BigInteger(), nullable=False),
        sa.Column("purged_at", sa.BigInteger(), nullable=True),
        sa.Column("complete_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_forgettings")),
        sqlite_autoincrement=True,
        comment="What somebody wanted to be forgotten, and how far that is: asked, purged from the"
        " tables, complete when no file has it either.",
    )
    op.create_table(
        "retired_examples",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column("task_type", sa.String(length=64), nullable=False),
        sa.Column("event_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("batch_id", sa.String(length=32), nullable=True),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column(
            "forgetting_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("added_at", sa.BigInteger(), nullable=False),
        sa.Column("retired_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.id"], name=op.f("fk_retired_examples_batch_id")
        ),
        sa.ForeignKeyConstraint(
            ["event_id"], ["events.id"], name=op.f("fk_retired_examples_event_id")
        ),
        sa.ForeignKeyConstraint(
            ["forgetting_id"], ["forgettings.id"], name=op.f("fk_retired_examples_forgetting_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_retired_examples")),
        comment="What left the frozen held-out set, under the ids that evaluations name: each"
        " forgetting that retires some makes a revision of the set.",
    )
    with op.batch_alter_table("retired_examples", schema=None) as batch_op:
        batch_op.create_index(
            "ix_retired_examples_task_type", ["task_type", "retired_at"], unique=False
        )
    op.create_table(
        "live_judgements",
        sa.Column(
            "output_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column(
            "version_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column(
            "producer",
            sa.String(length=64),
            nullable=False,
            comment="Of the feedback; empty: of many.",
        ),
        sa.Column("approved", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["output_id"], ["events.id"], name=op.f("fk_live_judgements_output_id")
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_live_judgements_version_id")
        ),
        sa.PrimaryKeyConstraint("output_id", name=op.f("pk_live_judgements")),
        comment="What people said of an output of a released version: it counts once.",
    )
    op.create_table(
        "live_counts",
        sa.Column(
            "version_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("producer", sa.String(length=64), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("yes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_live_counts_version_id")
        ),
        sa.PrimaryKeyConstraint("version_id", "producer", name=op.f("pk_live_counts")),
        comment="Those, counted by version and producer; a bounded number of producers by name.",
    )
    op.create_table(
        "live_looks",
        sa.Column(
            "version_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column(
            "predecessor_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("mark", sa.BigInteger(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("yes", sa.BigInteger(), nullable=False),
        sa.Column("before_n", sa.BigInteger(), nullable=False),
        sa.Column("before_yes", sa.BigInteger(), nullable=False),
        sa.Column("log_e", sa.Float(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_live_looks_version_id")
        ),
        sa.ForeignKeyConstraint(
            ["predecessor_id"], ["versions.id"], name=op.f("fk_live_looks_predecessor_id")
        ),
        sa.PrimaryKeyConstraint("version_id", "predecessor_id", "mark", name=op.f("pk_live_looks")),
        comment="The live verdict over time, at numbers of verdicts that grow by a seventh.",
    )
    op.create_table(
        "rollback_reports",
        sa.Column(
            "move_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column(
            "n", sa.BigInteger(), nullable=False, comment="Verdicts on the version that was left."
        ),
        sa.Column("yes", sa.BigInteger(), nullable=False),
        sa.Column(
            "before_n", sa.BigInteger(), nullable=False, comment="On the one that was gone back to."
        ),
        sa.Column("before_yes", sa.BigInteger(), nullable=False),
        sa.Column("log_e", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["move_id"], ["alias_history.id"], name=op.f("fk_rollback_reports_move_id")
        ),
        sa.PrimaryKeyConstraint("move_id", name=op.f("pk_rollback_reports")),
        comment="What the live verdict knew at each rollback, by hand or by itself.",
    )
