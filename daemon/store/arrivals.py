"""Insert the arrivals of a block, and find the outputs of tasks: the store's hot path.

Two ways to the same: PostgreSQL with unique indexes, SQLite with daemon/store/names.py.
Neither decides anything; what is done with an id that was used again is decided in
intake.py, which gets the stored text to compare with.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection, Row, Select, Table, func, select, tuple_
from sqlalchemy.exc import IntegrityError

from daemon.store.bulk import insert_fields
from daemon.store.columns import Columns
from daemon.store.dialect import CHUNK
from daemon.store.names import MOST_RECENT, SEVERAL, Names, names_of_events, names_of_tasks
from daemon.store.postgresql import copy_rows
from daemon.store.tables import events, feedback, keepable
from learning.lifecycle import FeedbackState
from learning.ports import JudgedOutput, ReceivedFeedback

A = TypeVar("A", JudgedOutput, ReceivedFeedback)

N_LATELY = 32_768
"""Two to four megabytes of names."""
LONGEST_DETOUR = 64


class TaskKey(NamedTuple):
    """What feedback and output are joined on."""

    task_type: str
    task_id: str


@dataclass(frozen=True)
class Inserted(Generic[A]):
    """What became of a block's arrivals of one kind."""

    new: Columns[A]
    repeated: Sequence[tuple[A, str]]
    """Arrivals whose id was taken, each with the text that is stored under it."""


class Arrivals(Protocol):
    """One database's way to insert events once, inside a write transaction."""

    def begin(self, tx: Connection) -> None:
        """Comes before everything else in a transaction."""
        ...

    def insert_outputs(
        self, tx: Connection, arrivals: Columns[JudgedOutput]
    ) -> Inserted[JudgedOutput]:
        """Store the outputs whose (producer, id) is new; of several in a block the first."""
        ...

    def insert_feedback(
        self, tx: Connection, arrivals: Columns[ReceivedFeedback]
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
        self, tx: Connection, arrivals: Columns[JudgedOutput]
    ) -> Inserted[JudgedOutput]:
        """See Arrivals."""
        first_row = self._names.next_id(events)
        inserted = self._insert(tx, events, arrivals, _OUTPUTS)
        self._names.add_tasks(inserted.new.task_names, first_row)
        return inserted

    def insert_feedback(
        self, tx: Connection, arrivals: Columns[ReceivedFeedback]
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
        self, tx: Connection, table: Table, arrivals: Columns[A], form: "_Form[A]"
    ) -> Inserted[A]:
        if not arrivals:
            return Inserted(arrivals, ())
        names = arrivals.event_names
        stored = {key: row.payload for key, row in self._rows(tx, table, names).items()}
        inserted = _sorted_out(arrivals, names, stored, names_of_events(table, stored))
        # SQLite numbers the rows by itself, on from the newest one, as `names` does.
        if inserted.new:
            insert_fields(tx, form.table, form.columns(inserted.new), form.booleans)
        self._names.add_events(table, inserted.new.event_names)
        return inserted

    def _rows(
        self, tx: Connection, table: Table, names: Sequence[int]
    ) -> dict[tuple[str, str], Row[Any]]:
        """By (producer, id), the rows that may have one of some names."""
        found = self._names.find_events(tx, names)
        row_ids = [row_id for row_ids in found.values() for row_id in row_ids]
        return {(row.producer, row.event_id): row for row in _rows_by_id(tx, table, row_ids)}


class PostgresArrivals:
    """Copies rows in, and leaves it to unique indexes to tell which of them are new.

    Straight into the table, as long as that goes well: by way of a staging table, where the
    known ones can be passed over, it takes half as long again. What is sent twice is mostly
    sent twice soon, so what was stored lately is looked up first.
    """

    def __init__(self) -> None:
        self._lately = _Lately()
        self._detour = _Detour()

    def begin(self, tx: Connection) -> None:
        """See Arrivals."""

    def insert_outputs(
        self, tx: Connection, arrivals: Columns[JudgedOutput]
    ) -> Inserted[JudgedOutput]:
        """See Arrivals."""
        return self._insert(tx, events, arrivals, _OUTPUTS)

    def insert_feedback(
        self, tx: Connection, arrivals: Columns[ReceivedFeedback]
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
        self, tx: Connection, table: Table, arrivals: Columns[A], form: "_Form[A]"
    ) -> Inserted[A]:
        if not arrivals:
            return Inserted(arrivals, ())
        keys = list(zip(arrivals["producer"], arrivals["event_id"], strict=True))
        seen = self._lately.among(arrivals.event_names)
        self._lately.add(arrivals.event_names)
        maybe = {key for key, name in zip(keys, arrivals.event_names, strict=True) if name in seen}
        texts = self._texts(tx, table, maybe)
        inserted = _sorted_out(arrivals, keys, texts, texts)
        if not inserted.new or self._copied(tx, form, inserted.new):
            return inserted
        new = self._copied_by_detour(tx, form, inserted.new)
        texts = self._texts(tx, table, set(keys) - new)
        return _sorted_out(arrivals, keys, texts, texts)

    def _copied(self, tx: Connection, form: "_Form[A]", arrivals: Columns[A]) -> bool:
        """Store arrivals when all of them are new; otherwise nothing, and False."""
        if self._detour.is_due():
            return False
        try:
            with tx.begin_nested():
                copy_rows(tx, form.postgres_copy(form.table), form.rows(arrivals))
        except IntegrityError:
            self._detour.take()
            return False
        return True

    def _copied_by_detour(
        self, tx: Connection, form: "_Form[A]", arrivals: Columns[A]
    ) -> set[tuple[str, str]]:
        """Store the arrivals that are new, and return their (producer, id)."""
        tx.exec_driver_sql(form.postgres_stage)
        copy_rows(tx, form.postgres_copy(form.stage), form.rows(arrivals))
        return set(map(tuple, tx.exec_driver_sql(form.postgres_insert)))

    def _texts(
        self, tx: Connection, table: Table, keys: Collection[tuple[str, str]]
    ) -> dict[tuple[str, str], str]:
        return {key: row.payload for key, row in self.rows_named(tx, table, keys).items()}


class _Lately:
    """The names of the last arrivals, `N_LATELY` of them at least, in any thread. Only hints."""

    def __init__(self) -> None:
        self._names: set[int] = set()
        self._older: set[int] = set()

    def among(self, names: Sequence[int]) -> set[int]:
        """Those of some names that came lately."""
        return self._names.intersection(names) | self._older.intersection(names)

    def add(self, names: Sequence[int]) -> None:
        """These came."""
        if len(self._names) >= N_LATELY:
            self._names, self._older = set(), self._names
        self._names.update(names)


class _Detour:
    """How long to go the safe way after the quick one failed: longer each time, up to a bound."""

    def __init__(self) -> None:
        self._length = 1
        self._left = 0

    def is_due(self) -> bool:
        """Whether the next block goes the safe way."""
        if self._left == 0:
            self._length = max(1, self._length - 1)
            return False
        self._left -= 1
        return True

    def take(self) -> None:
        """The quick way failed."""
        self._length = min(LONGEST_DETOUR, 2 * self._length)
        self._left = self._length


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


def _sorted_out(
    arrivals: Columns[A],
    marks: Sequence[Hashable],
    stored: Mapping[tuple[str, str], str],
    stored_marks: Iterable[Hashable],
) -> Inserted[A]:
    """What is new, given the texts that are stored under some (producer, id).

    Those with equal (producer, id) have equal marks. So only those whose mark is stored, or
    another one's too, are looked at.
    """
    counts = Counter(marks)
    shared = {mark for mark, n in counts.items() if n > 1}
    shared.update(counts.keys() & stored_marks)
    texts = dict(stored)
    is_new = [True] * len(marks)
    repeated = []
    for at in [at for at, mark in enumerate(marks) if mark in shared] if shared else ():
        arrival = arrivals.one(at)
        key = (arrival.producer, arrival.event_id)
        if key in texts:
            is_new[at] = False
            repeated.append((arrival, texts[key]))
        else:
            texts[key] = arrival.text
    return Inserted(arrivals.where(is_new) if repeated else arrivals, repeated)


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
    """How one kind of arrival becomes the rows of its table."""

    table: str
    types: Mapping[str, str]
    """The columns that are filled, by name, in PostgreSQL's words."""
    columns: Callable[[Columns[A]], Mapping[str, Sequence[Any]]]
    """What the columns hold for each of some arrivals; in the order of `types`."""

    @property
    def booleans(self) -> Collection[str]:
        """The columns of truth values."""
        return {name for name, type_ in self.types.items() if type_ == "boolean"}

    @property
    def postgres_stage(self) -> str:
        """Make the table, of this session and empty in each transaction, to copy rows into."""
        types = ", ".join(f'"{name}" {type_}' for name, type_ in self.types.items())
        return f"CREATE TEMPORARY TABLE IF NOT EXISTS {self.stage} ({types}) ON COMMIT DELETE ROWS"

    def postgres_copy(self, table: str) -> str:
        """COPY of rows into a table."""
        return f"COPY {table} ({self._names}) FROM STDIN"

    @property
    def postgres_insert(self) -> str:
        """INSERT of what is new among the rows that were copied; returns its keys."""
        return (
            f"INSERT INTO {self.table} ({self._names}) SELECT * FROM {self.stage}"  # noqa: S608
            " ON CONFLICT (producer, event_id) DO NOTHING RETURNING producer, event_id"
        )

    @property
    def _names(self) -> str:
        return ", ".join(f'"{name}"' for name in self.types)

    @property
    def stage(self) -> str:
        """The name of that table."""
        return f"arriving_{self.table}"

    def rows(self, arrivals: Columns[A]) -> Iterable[Sequence[Any]]:
        """The rows of some arrivals."""
        return zip(*self.columns(arrivals).values(), strict=True)


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


def _output_columns(outputs: Columns[JudgedOutput]) -> Mapping[str, Sequence[Any]]:
    columns = {name: outputs[_FIELD.get(name, name)] for name in _OF_OUTPUTS}
    kept = {reason: keepable(reason) for reason in set(columns["reason"])}
    columns["reason"] = [kept[reason] for reason in columns["reason"]]
    return columns


def _feedback_columns(feedback: Columns[ReceivedFeedback]) -> Mapping[str, Sequence[Any]]:
    columns = {name: feedback[_FIELD.get(name, name)] for name in _COMMON if name != "state"}
    return columns | {"state": [FeedbackState.WAITING.value] * len(feedback)}


_FIELD = {"payload": "text"}
"""The columns that are not called like the arrival's field."""
_OUTPUTS = _Form("events", _OF_OUTPUTS, _output_columns)
_FEEDBACK = _Form("feedback", _COMMON, _feedback_columns)
