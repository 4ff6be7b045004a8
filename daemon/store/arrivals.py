"""Insert the arrivals of a block, and find the outputs of tasks: the store's hot path.

Two ways to the same: PostgreSQL with unique indexes, SQLite with daemon/store/names.py.
Neither decides anything; what is done with an id that was used again is decided in
intake.py, which gets the stored text to compare with.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection, Row, Select, Table, func, select, tuple_

from daemon.store.bulk import insert_rows
from daemon.store.dialect import CHUNK
from daemon.store.names import MOST_RECENT, SEVERAL, Names, names_of_events, names_of_tasks
from daemon.store.postgresql import copy_rows
from daemon.store.tables import events, feedback, microseconds
from learning.lifecycle import EventState, FeedbackState
from learning.ports import JudgedOutput, ReceivedFeedback

A = TypeVar("A", JudgedOutput, ReceivedFeedback)


class TaskKey(NamedTuple):
    """What feedback and output are joined on."""

    task_type: str
    task_id: str


@dataclass(frozen=True)
class Inserted(Generic[A]):
    """What became of a block's arrivals of one kind."""

    new: Sequence[A]
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
        self._names.add_tasks(
            names_of_tasks((item.event.task_type, item.event.task_id) for item in inserted.new),
            first_row,
        )
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

    def finish(self, tx: Connection) -> None:
        """See Arrivals."""
        self._names.move(tx)

    def committed(self) -> None:
        """See Arrivals."""
        self._names.committed()

    def _insert(
        self, tx: Connection, table: Table, arrivals: Sequence[A], columns: "_Columns[A]"
    ) -> Inserted[A]:
        firsts, repeated = _first_of_each(arrivals)
        if not firsts:
            return Inserted([], [])
        names = names_of_events(table, firsts)
        stored = self._texts(tx, table, names)
        new, new_names = list(firsts.values()), names
        if stored:
            is_new = [key not in stored for key in firsts]
            new = list(itertools.compress(new, is_new))
            new_names = list(itertools.compress(names, is_new))
        if new:
            ids = range(self._names.next_id(table), self._names.next_id(table) + len(new))
            rows = zip(ids, *columns.values(new), strict=True)
            values = list(itertools.chain.from_iterable(rows))
            insert_rows(tx, columns.sqlite_insert, len(columns.types) + 1, values)
        self._names.add_events(table, new_names)
        return _sorted_out(firsts, new, repeated, stored)

    def _texts(
        self, tx: Connection, table: Table, names: Sequence[int]
    ) -> dict[tuple[str, str], str]:
        """The stored text under each (producer, id) that may have one of some names."""
        found = self._names.find_events(tx, names)
        row_ids = [row_id for row_ids in found.values() for row_id in row_ids]
        return {
            (row.producer, row.event_id): row.payload for row in _rows_by_id(tx, table, row_ids)
        }


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

    def finish(self, tx: Connection) -> None:
        """See Arrivals."""

    def committed(self) -> None:
        """See Arrivals."""

    def _insert(
        self, tx: Connection, table: Table, arrivals: Sequence[A], columns: "_Columns[A]"
    ) -> Inserted[A]:
        firsts, repeated = _first_of_each(arrivals)
        if not firsts:
            return Inserted([], [])
        tx.exec_driver_sql(columns.postgres_stage)
        rows = zip(*columns.values(list(firsts.values())), strict=True)
        copy_rows(tx, columns.postgres_copy, rows)
        inserted = set(map(tuple, tx.exec_driver_sql(columns.postgres_insert)))
        new = [arrival for key, arrival in firsts.items() if key in inserted]
        known = [key for key in firsts if key not in inserted]
        stored = {
            (row.producer, row.event_id): row.payload
            for start in range(0, len(known), CHUNK)
            for row in tx.execute(
                select(table.c.producer, table.c.event_id, table.c.payload).where(
                    tuple_(table.c.producer, table.c.event_id).in_(known[start : start + CHUNK])
                )
            )
        }
        return _sorted_out(firsts, new, repeated, stored)


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


def _first_of_each(arrivals: Sequence[A]) -> tuple[dict[_Key, A], list[A]]:
    """The first arrival under each (producer, id) of a block, and all the others."""
    keys = [(arrival.event.producer, arrival.event_id) for arrival in arrivals]
    firsts = dict(zip(keys, arrivals, strict=True))
    if len(firsts) == len(keys):
        return firsts, []
    firsts, others = {}, []
    for key, arrival in zip(keys, arrivals, strict=True):
        if firsts.setdefault(key, arrival) is not arrival:
            others.append(arrival)
    return firsts, others


def _sorted_out(
    firsts: dict[_Key, A], new: Sequence[A], others: Iterable[A], stored: dict[_Key, str]
) -> Inserted[A]:
    repeated = [(firsts[key], text) for key, text in stored.items() if key in firsts]
    for arrival in others:
        key = (arrival.event.producer, arrival.event_id)
        repeated.append((arrival, stored.get(key, firsts[key].text)))
    return Inserted(new, repeated)


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
class _Columns(Generic[A]):
    """The columns of a table that arrivals fill."""

    table: str
    types: Mapping[str, str]
    """By name, in PostgreSQL's words."""
    values: Callable[[Sequence[A]], Sequence[Sequence[Any]]]
    """For each column what it holds, by index of the arrivals. Made by column, because that
    takes a third of the time that making rows takes."""

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


def _common_values(arrivals: Sequence[JudgedOutput] | Sequence[ReceivedFeedback]) -> list[Any]:
    events_sent = [item.event for item in arrivals]
    received = [item.received_at for item in arrivals]
    # A block's events arrived together: one conversion for all of them.
    received_at = {time: microseconds(time) for time in set(received)}
    return [
        [event.producer for event in events_sent],
        [item.event_id for item in arrivals],
        [event.task_type for event in events_sent],
        [event.task_id for event in events_sent],
        [event.approved for event in events_sent],
        [event.confidence for event in events_sent],
        [item.text for item in arrivals],
        [event.model_version for event in events_sent],
        *zip(*(item.origin for item in arrivals), strict=True),
        [
            received_at[time] if (sent := event.timestamp) is None else microseconds(sent)
            for event, time in zip(events_sent, received, strict=True)
        ],
        [received_at[time] for time in received],
    ]


def _output_values(arrivals: Sequence[JudgedOutput]) -> list[Any]:
    common = _common_values(arrivals)
    states, reasons, by_human = zip(*(item.verdict for item in arrivals), strict=True)
    return [
        *common,
        [_PLAIN[state] for state in states],
        common[-1],
        reasons,
        by_human,
        [item.event.subject for item in arrivals],
    ]


def _feedback_values(arrivals: Sequence[ReceivedFeedback]) -> list[Any]:
    return [*_common_values(arrivals), [FeedbackState.WAITING.value] * len(arrivals)]


_OUTPUTS = _Columns("events", _OF_OUTPUTS, _output_values)
_FEEDBACK = _Columns("feedback", _COMMON, _feedback_values)
