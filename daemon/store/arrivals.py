"""Insert the arrivals of a block, and find the outputs of tasks: the store's hot path.

Two ways to the same: PostgreSQL with unique indexes, SQLite with daemon/store/names.py.
Neither decides anything; what is done with an id that was used again is decided in
intake.py, which gets the stored text to compare with.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from operator import attrgetter
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection, Row, Select, Table, func, select, tuple_

from daemon.store.bulk import insert_rows
from daemon.store.dialect import CHUNK
from daemon.store.names import MOST_RECENT, SEVERAL, Names, names_of_events, names_of_tasks
from daemon.store.postgresql import copy_rows
from daemon.store.tables import events, feedback, keepable, microseconds
from learning.events import FeedbackEvent, OutputEvent
from learning.lifecycle import EventState, FeedbackState
from learning.ports import JudgedOutput, Origin, ReceivedFeedback

A = TypeVar("A", JudgedOutput, ReceivedFeedback)


class TaskKey(NamedTuple):
    """What feedback and output are joined on."""

    task_type: str
    task_id: str


@dataclass(frozen=True)
class Inserted(Generic[A]):
    """What became of a block's arrivals of one kind."""

    new: Sequence[A]
    columns: Mapping[str, Sequence[Any]]
    """What was stored of the new ones, by name of the column; empty without any."""
    repeated: Sequence[tuple[A, str]]
    """Arrivals whose id was taken, each with the text that is stored under it."""


class Arrivals(Protocol):
    """One database's way to insert events once, inside a write transaction."""

    def begin(self, tx: Connection) -> None:
        """Comes before everything else in a transaction."""
        ...

    def insert_outputs(
        self, tx: Connection, arrivals: Sequence[JudgedOutput]
    ) -> Inserted[JudgedOutput]:
        """Store the outputs whose (producer, id) is new; of several in a block the first."""
        ...

    def insert_feedback(
        self, tx: Connection, arrivals: Sequence[ReceivedFeedback]
    ) -> Inserted[ReceivedFeedback]:
        """The same for feedback, which is stored as waiting."""
        ...

    def outputs_of(
        self, tx: Connection, tasks: Collection[TaskKey]
    ) -> dict[TaskKey, Row[Any] | None]:
        """The output of each task, locked; None where there are several, unknown ones left out."""
        ...

    def rows_named(
        self, tx: Connection, table: Table, keys: Collection[tuple[str, str]]
    ) -> dict[tuple[str, str], Row[Any]]:
        """The row of each (producer, id) in one of the two tables; unknown ones left out."""
        ...

    def finish(self, tx: Connection) -> None:
        """Comes last in a transaction."""
        ...

    def committed(self) -> None:
        """The transaction was committed. Called in the thread that ran it."""
        ...


class SqliteArrivals:
    """Inserts many rows at once under ids of its own choosing; see daemon/store/names.py."""

    def __init__(self, most_recent_names: int = MOST_RECENT) -> None:
        self._names = Names(most_recent_names)

    def begin(self, tx: Connection) -> None:
        """See Arrivals."""
        self._names.begin(tx)

    def insert_outputs(
        self, tx: Connection, arrivals: Sequence[JudgedOutput]
    ) -> Inserted[JudgedOutput]:
        """See Arrivals."""
        first_row = self._names.next_id(events)
        inserted = self._insert(tx, events, arrivals, _OUTPUTS)
        if stored := inserted.columns:
            tasks = zip(stored["task_type"], stored["task_id"], strict=True)
            self._names.add_tasks(names_of_tasks(tasks), first_row)
        return inserted

    def insert_feedback(
        self, tx: Connection, arrivals: Sequence[ReceivedFeedback]
    ) -> Inserted[ReceivedFeedback]:
        """See Arrivals."""
        return self._insert(tx, feedback, arrivals, _FEEDBACK)

    def outputs_of(
        self, tx: Connection, tasks: Collection[TaskKey]
    ) -> dict[TaskKey, Row[Any] | None]:
        """See Arrivals."""
        names = names_of_tasks(tasks)
        found = self._names.find_tasks(tx, names)
        row_ids = [row_id for row_id in found.values() if row_id != SEVERAL]
        rows = {row.id: row for row in _rows_by_id(tx, events, row_ids)}
        outputs: dict[TaskKey, Row[Any] | None] = {}
        for task, name in zip(tasks, names, strict=True):
            row_id = found.get(name, 0)
            row = rows.get(row_id)
            if row_id == SEVERAL:
                outputs[task] = None
            elif row is not None and TaskKey(row.task_type, row.task_id) == task:
                outputs[task] = row
        return outputs

    def rows_named(
        self, tx: Connection, table: Table, keys: Collection[tuple[str, str]]
    ) -> dict[tuple[str, str], Row[Any]]:
        """See Arrivals."""
        rows = self._rows(tx, table, names_of_events(table, keys))
        return {key: row for key, row in rows.items() if key in keys}

    def finish(self, tx: Connection) -> None:
        """See Arrivals."""
        self._names.move(tx)

    def committed(self) -> None:
        """See Arrivals."""
        self._names.committed()

    def _insert(
        self, tx: Connection, table: Table, arrivals: Sequence[A], form: "_Form[A]"
    ) -> Inserted[A]:
        block = _Block.of(arrivals, form)
        names = names_of_events(table, block.first)
        stored = self._texts(tx, table, names)
        is_new = [key not in stored for key in block.first] if stored else [True] * len(names)
        rows = [block.rows[at] for at in itertools.compress(block.first.values(), is_new)]
        values: list[Any] = []
        for row_id, row in enumerate(rows, self._names.next_id(table)):
            values.append(row_id)
            values += row
        insert_rows(tx, form.sqlite_insert, len(form.types) + 1, values)
        self._names.add_events(table, list(itertools.compress(names, is_new)))
        return block.inserted(form, is_new, stored)

    def _texts(
        self, tx: Connection, table: Table, names: Sequence[int]
    ) -> dict[tuple[str, str], str]:
        """The stored text under each (producer, id) that may have one of some names."""
        return {key: row.payload for key, row in self._rows(tx, table, names).items()}

    def _rows(
        self, tx: Connection, table: Table, names: Sequence[int]
    ) -> dict[tuple[str, str], Row[Any]]:
        """By (producer, id), the rows that may have one of some names."""
        found = self._names.find_events(tx, names)
        row_ids = [row_id for row_ids in found.values() for row_id in row_ids]
        return {(row.producer, row.event_id): row for row in _rows_by_id(tx, table, row_ids)}


class PostgresArrivals:
    """Copies rows in, and leaves it to unique indexes which of them are new."""

    def begin(self, tx: Connection) -> None:
        """See Arrivals."""

    def insert_outputs(
        self, tx: Connection, arrivals: Sequence[JudgedOutput]
    ) -> Inserted[JudgedOutput]:
        """See Arrivals."""
        return self._insert(tx, events, arrivals, _OUTPUTS)

    def insert_feedback(
        self, tx: Connection, arrivals: Sequence[ReceivedFeedback]
    ) -> Inserted[ReceivedFeedback]:
        """See Arrivals."""
        return self._insert(tx, feedback, arrivals, _FEEDBACK)

    def outputs_of(
        self, tx: Connection, tasks: Collection[TaskKey]
    ) -> dict[TaskKey, Row[Any] | None]:
        """See Arrivals."""
        counts = select(
            events.c.task_type,
            events.c.task_id,
            func.count().label("n"),
            func.min(events.c.id).label("first"),
        )
        found = by_task(tx, counts, tasks)
        single = [row.first for row in found if row.n == 1]
        rows = {row.id: row for row in _rows_by_id(tx, events, single)}
        return {TaskKey(row.task_type, row.task_id): rows.get(row.first) for row in found}

    def rows_named(
        self, tx: Connection, table: Table, keys: Collection[tuple[str, str]]
    ) -> dict[tuple[str, str], Row[Any]]:
        """See Arrivals."""
        wanted = sorted(keys)
        return {
            (row.producer, row.event_id): row
            for start in range(0, len(wanted), CHUNK)
            for row in tx.execute(
                select(table).where(
                    tuple_(table.c.producer, table.c.event_id).in_(wanted[start : start + CHUNK])
                )
            )
        }

    def finish(self, tx: Connection) -> None:
        """See Arrivals."""

    def committed(self) -> None:
        """See Arrivals."""

    def _insert(
        self, tx: Connection, table: Table, arrivals: Sequence[A], form: "_Form[A]"
    ) -> Inserted[A]:
        block = _Block.of(arrivals, form)
        if not block.first:
            return block.inserted(form, [], {})
        tx.exec_driver_sql(form.postgres_stage)
        copy_rows(tx, form.postgres_copy, [block.rows[at] for at in block.first.values()])
        inserted = set(map(tuple, tx.exec_driver_sql(form.postgres_insert)))
        is_new = [key in inserted for key in block.first]
        known = self.rows_named(tx, table, [key for key in block.first if key not in inserted])
        return block.inserted(form, is_new, {key: row.payload for key, row in known.items()})


def by_task(tx: Connection, counts: Select[Any], keys: Collection[TaskKey]) -> list[Row[Any]]:
    """Rows of an aggregate over some tasks, grouped by task.

    Asked for one task type at a time: of a list of pairs SQLite would scan the whole index.
    """
    columns = counts.selected_columns
    by_type: defaultdict[str, list[str]] = defaultdict(list)
    for key in sorted(keys):
        by_type[key.task_type].append(key.task_id)
    return [
        row
        for task_type, task_ids in by_type.items()
        for start in range(0, len(task_ids), CHUNK)
        for row in tx.execute(
            counts.where(
                columns.task_type == task_type,
                columns.task_id.in_(task_ids[start : start + CHUNK]),
            ).group_by(columns.task_type, columns.task_id)
        )
    ]


_Key = tuple[str, str]


@dataclass(frozen=True)
class _Block(Generic[A]):
    """Arrivals with the rows that they would become."""

    arrivals: Sequence[A]
    rows: Sequence[tuple[Any, ...]]
    first: Mapping[_Key, int]
    """The index of the first arrival under each (producer, id)."""

    @classmethod
    def of(cls, arrivals: Sequence[A], form: "_Form[A]") -> "_Block[A]":
        """The rows are made in one pass: each further one would fetch every event again."""
        rows = form.rows(arrivals)
        keys = [row[:2] for row in rows]
        first = dict(zip(keys, range(len(keys)), strict=True))
        if len(first) < len(keys):
            first = {}
            for at, key in enumerate(keys):
                first.setdefault(key, at)
        return cls(arrivals, rows, first)

    def inserted(
        self, form: "_Form[A]", is_new: Sequence[bool], stored: Mapping[_Key, str]
    ) -> Inserted[A]:
        """What became of it, given which of the first ones are new and what is stored else."""
        new = list(itertools.compress(self.first.values(), is_new))
        columns = zip(*(self.rows[at] for at in new), strict=True)
        repeated = []
        if len(new) < len(self.arrivals):
            fresh = set(new)
            for at, arrival in enumerate(self.arrivals):
                if at not in fresh:
                    key = self.rows[at][:2]
                    text = stored.get(key) or self.arrivals[self.first[key]].text
                    repeated.append((arrival, text))
        return Inserted(
            [self.arrivals[at] for at in new],
            dict(zip(form.types, columns, strict=True)) if new else {},
            repeated,
        )


def _rows_by_id(tx: Connection, table: Table, row_ids: Sequence[int]) -> Iterable[Row[Any]]:
    """Rows, locked, in the order of their ids."""
    wanted = sorted(row_ids)
    for start in range(0, len(wanted), CHUNK):
        yield from tx.execute(
            select(table)
            .where(table.c.id.in_(wanted[start : start + CHUNK]))
            .order_by(table.c.id)
            .with_for_update(key_share=True)
        )


# --- rows -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form(Generic[A]):
    """The columns of a table that arrivals fill, producer and event id first."""

    table: str
    types: Mapping[str, str]
    """By name, in PostgreSQL's words."""
    rows: Callable[[Iterable[A]], list[tuple[Any, ...]]]
    """For each arrival what the columns hold, in their order."""

    @property
    def sqlite_insert(self) -> str:
        """INSERT of rows, the id first, that stand at `{}`."""
        names = ", ".join(f'"{name}"' for name in ("id", *self.types))
        return f"INSERT INTO {self.table} ({names}) VALUES {{}}"  # noqa: S608  # our own names

    @property
    def postgres_stage(self) -> str:
        """Make the table, of this session and empty in each transaction, to copy rows into."""
        types = ", ".join(f'"{name}" {type_}' for name, type_ in self.types.items())
        return f"CREATE TEMPORARY TABLE IF NOT EXISTS {self._stage} ({types}) ON COMMIT DELETE ROWS"

    @property
    def postgres_copy(self) -> str:
        """COPY of rows."""
        return f"COPY {self._stage} FROM STDIN"

    @property
    def postgres_insert(self) -> str:
        """INSERT of what is new among the rows that were copied; returns its keys."""
        names = ", ".join(f'"{name}"' for name in self.types)
        return (
            f"INSERT INTO {self.table} ({names}) SELECT * FROM {self._stage}"  # noqa: S608
            " ON CONFLICT (producer, event_id) DO NOTHING RETURNING producer, event_id"
        )

    @property
    def _stage(self) -> str:
        return f"arriving_{self.table}"


_COMMON = {
    "producer": "text",
    "event_id": "text",
    "task_type": "text",
    "task_id": "text",
    "approved": "boolean",
    "confidence": "float8",
    "payload": "text",
    "model_version": "text",
    "source": "text",
    "topic": "text",
    "partition": "int4",
    "offset": "int8",
    "occurred_at": "int8",
    "received_at": "int8",
    "state": "text",
}
_OF_OUTPUTS = _COMMON | {
    "state_since": "int8",
    "reason": "text",
    "by_human": "boolean",
    "subject": "text",
}
# The drivers take an enum's member for an unknown type, and ask around what to do with it.
_PLAIN = {state: state.value for state in (*EventState, *FeedbackState)}


_fields = attrgetter(
    "producer",
    "task_type",
    "task_id",
    "approved",
    "confidence",
    "model_version",
    "timestamp",
)


def _output_rows(outputs: Iterable[JudgedOutput]) -> list[tuple[Any, ...]]:
    rows = []
    for event_id, event, (state, reason, by_human), text, origin, received_at in outputs:
        common = _common_row(event_id, event, text, origin, received_at)
        rows.append((*common, _PLAIN[state], common[-1], keepable(reason), by_human, event.subject))
    return rows


def _feedback_rows(feedback: Iterable[ReceivedFeedback]) -> list[tuple[Any, ...]]:
    return [(*_common_row(*item), FeedbackState.WAITING.value) for item in feedback]


def _common_row(
    event_id: str,
    event: OutputEvent | FeedbackEvent,
    text: str,
    origin: Origin,
    received_at: datetime,
) -> tuple[Any, ...]:
    producer, task_type, task_id, approved, confidence, model_version, sent = _fields(event)
    received = _arrival(received_at)
    return (
        producer,
        event_id,
        task_type,
        task_id,
        approved,
        confidence,
        text,
        model_version,
        *origin,
        received if sent is None else microseconds(sent),
        received,
    )


_arrival = lru_cache(maxsize=64)(microseconds)
"""A block's events arrived together: one conversion for all of them."""

_OUTPUTS = _Form("events", _OF_OUTPUTS, _output_rows)
_FEEDBACK = _Form("feedback", _COMMON, _feedback_rows)
