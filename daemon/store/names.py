"""Find stored rows by the names that producers gave them, on SQLite, at any size.

A name is (producer, event id), which is taken once and for ever, or (task type, task id),
which feedback is joined on. Most are random, so in a B-tree each new row would rewrite a
page of its own: with two million rows stored intake falls to half. So this index lags: new
names are kept in memory, and move into the tables `event_names` and `task_names` many at a
time, in the order of the tables, a slice with every block. What the tables do not cover yet
is read from the newest rows when the database is opened.

Right because SQLite has one writer at a time, and every lookup is made under its lock by
the one thread that also keeps what is in memory here; what another process stored is
noticed and read first. PostgreSQL has indexes in the usual way instead (arrivals.py).
"""

import itertools
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from sqlalchemy import ColumnElement, Connection, Table, func, select, update

from daemon.store.bulk import find_in, insert_columns
from daemon.store.dialect import insert_new
from daemon.store.tables import event_names, events, feedback, names_covered
from learning.ports import EventKind
from learning.short_names import of_events, of_tasks

MOST_RECENT = 80_000
"""Names kept in memory, at about 100 bytes each, before they begin to move."""
SEVERAL = -1
"""What a task's name leads to when more than one output has it."""

_READ_AT_ONCE = 5_000


def names_of_events(table: Table, keys: Collection[tuple[str, str]]) -> list[int]:
    """What each (producer, event id) is found by, in one of the two tables of events."""
    kind = EventKind.OUTPUT if table is events else EventKind.FEEDBACK
    return of_events(kind, (key[0] for key in keys), (key[1] for key in keys))


def names_of_tasks(keys: Collection[tuple[str, str]]) -> list[int]:
    """What the output of each (task type, task id) is found by."""
    return of_tasks((key[0] for key in keys), (key[1] for key in keys))


def is_event(tx: Connection, producer: str, event_id: str) -> ColumnElement[bool]:
    """That a row of events has this producer and id, in a form that either database is quick at.

    For readers, who do not see what the writer keeps in memory: they look through it all.
    """
    named = (events.c.producer == producer) & (events.c.event_id == event_id)
    if tx.dialect.name != "sqlite":
        return named
    in_table = select(event_names.c.row_id).where(
        event_names.c.name.in_(names_of_events(events, [(producer, event_id)]))
    )
    return named & (events.c.id.in_(in_table) | (events.c.id > _covered(tx)[events.name]))


class Names:
    """The names of one SQLite database. Used by its writer thread alone.

    Each transaction that looks up or adds calls `begin` first, and `committed` is called
    when it was committed. What a transaction added that was rolled back is forgotten.
    """

    def __init__(self, most_recent: int = MOST_RECENT) -> None:
        self._most_recent = most_recent
        self._recent = _Recent()
        self._moving: _Moving | None = None
        self._last: dict[str, int] | None = None
        """By table, the newest row whose names are known; None before the first look."""
        self._added = _Recent()
        self._newest: dict[str, int] = {}
        self._moved = 0

    def begin(self, tx: Connection) -> None:
        """Forget what was not committed, and learn what was stored without us."""
        last = self._last or _covered(tx)
        self._newest = {name: tx.execute(newest).scalar() or 0 for name, newest in _NEWEST.items()}
        for table in (events, feedback):
            if self._newest[table.name] > last[table.name]:
                self._recent.read(tx, table, last[table.name])
        self._last = dict(self._newest)
        self._added, self._moved = _Recent(), 0

    def next_id(self, table: Table) -> int:
        """The row id that the next row of a table will have."""
        return self._newest[table.name] + 1

    def find_events(self, tx: Connection, names: Sequence[int]) -> dict[int, list[int]]:
        """The rows that may have each of some event names; names without any are left out."""
        found: dict[int, list[int]] = {}
        for name, row_id in itertools.chain(
            find_in(tx, _FIND_EVENTS, names),
            *(known.events_among(names) for known in self._in_memory()),
        ):
            found.setdefault(name, []).append(row_id)
        return found

    def find_tasks(self, tx: Connection, names: Sequence[int]) -> dict[int, int]:
        """The output of each of some tasks, or SEVERAL; names without any are left out."""
        found: dict[int, int] = {}
        for name, row_id in itertools.chain(
            find_in(tx, _FIND_TASKS, names),
            *(known.tasks_among(names) for known in self._in_memory()),
        ):
            _lead(found, name, row_id)
        return found

    def _in_memory(self) -> Iterator["_Recent | _Moving"]:
        yield self._recent
        yield self._added
        if self._moving is not None:
            yield self._moving

    def add_events(self, table: Table, names: Sequence[int]) -> None:
        """Rows with these names were inserted, with ids from `next_id` on."""
        self._added.add_events(names, range(self.next_id(table), self.next_id(table) + len(names)))
        self._newest[table.name] += len(names)

    def add_tasks(self, names: Sequence[int], first_row: int) -> None:
        """Outputs with these names were inserted, with ids from `first_row` on."""
        self._added.add_tasks(names, range(first_row, first_row + len(names)))

    def move(self, tx: Connection) -> None:
        """Move a slice into the tables: more than was added, so that moving comes to an end."""
        if self._moving is None and len(self._recent) >= self._most_recent:
            assert self._last is not None, "begin comes first"
            self._moving, self._recent = _Moving(self._recent, self._last), _Recent()
        if self._moving is not None:
            self._moved = len(self._added)  # of each kind: twice as many as came
            self._moving.store(tx, self._moved)

    def committed(self) -> None:
        """Keep what the transaction did."""
        self._recent.take(self._added)
        self._last = dict(self._newest)
        if self._moving is not None:
            if self._moving.is_done_after(self._moved):
                self._moving = None
            else:
                self._moving.step(self._moved)
        self._added, self._moved = _Recent(), 0


class _Recent:
    """Names that are not in the tables yet."""

    def __init__(self) -> None:
        self.events: dict[int, int] = {}
        self.tasks: dict[int, int] = {}
        self.namesakes: list[tuple[int, int]] = []
        """Rows whose event name is another row's too: one in 2^60."""

    def __len__(self) -> int:
        return len(self.events) + len(self.tasks)

    def add_events(self, names: Iterable[int], row_ids: Iterable[int]) -> None:
        """Rows with their event names; what is known already changes nothing."""
        pairs = list(zip(names, row_ids, strict=True))
        self._add_events(dict(pairs), pairs)

    def add_tasks(self, names: Iterable[int], row_ids: Iterable[int]) -> None:
        """Outputs with the names of their tasks."""
        pairs = list(zip(names, row_ids, strict=True))
        self._add_tasks(dict(pairs), pairs)

    # Nearly always no name is known yet, and all of them are taken over at once.

    def _add_events(self, added: dict[int, int], pairs: Collection[tuple[int, int]]) -> None:
        if len(added) == len(pairs) and self.events.keys().isdisjoint(added):
            self.events.update(added)
            return
        for name, row_id in pairs:
            if self.events.setdefault(name, row_id) != row_id:
                self.namesakes.append((name, row_id))

    def _add_tasks(self, added: dict[int, int], pairs: Collection[tuple[int, int]]) -> None:
        if len(added) == len(pairs) and self.tasks.keys().isdisjoint(added):
            self.tasks.update(added)
            return
        for name, row_id in pairs:
            _lead(self.tasks, name, row_id)

    def take(self, added: "_Recent") -> None:
        """Everything that another one has."""
        self._add_events(added.events, (*added.events.items(), *added.namesakes))
        self._add_tasks(added.tasks, added.tasks.items())

    def read(self, tx: Connection, table: Table, after: int) -> None:
        """The names of the rows of a table after one of them."""
        columns = [table.c.id, table.c.producer, table.c.event_id]
        if table is events:
            columns += [table.c.task_type, table.c.task_id]
        found = tx.execute(
            select(*columns).where(table.c.id > after).order_by(table.c.id),
            execution_options={"yield_per": _READ_AT_ONCE},
        )
        for rows in found.partitions():
            row_ids = [row[0] for row in rows]
            self.add_events(names_of_events(table, [row[1:3] for row in rows]), row_ids)
            if table is events:
                self.add_tasks(names_of_tasks([row[3:5] for row in rows]), row_ids)

    def events_among(self, names: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(name, row id) of the rows that may have some event names."""
        for name in self.events.keys() & names:
            yield name, self.events[name]
        yield from (pair for pair in self.namesakes if pair[0] in names)

    def tasks_among(self, names: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(name, row id or SEVERAL) of the outputs of some tasks."""
        for name in self.tasks.keys() & names:
            yield name, self.tasks[name]


class _Column:
    """(name, row id) pairs in the order of their names, in 16 bytes each."""

    def __init__(self, rows: Mapping[int, int], namesakes: Iterable[tuple[int, int]] = ()) -> None:
        # Sorted without a pair for each: those would take ten times the memory of the arrays.
        self._names = array("q", sorted(rows))
        self._row_ids = array("q", map(rows.__getitem__, self._names))
        for name, row_id in namesakes:
            at = bisect_left(self._names, name)
            self._names.insert(at, name)
            self._row_ids.insert(at, row_id)

    def __len__(self) -> int:
        return len(self._names)

    def among(self, names: Iterable[int]) -> Iterator[tuple[int, int]]:
        """The pairs with some names."""
        for name in names:
            at = bisect_left(self._names, name)
            while at < len(self._names) and self._names[at] == name:
                yield name, self._row_ids[at]
                at += 1

    def part(self, start: int, stop: int) -> tuple[Sequence[int], Sequence[int]]:
        """Some of the pairs, as names and row ids."""
        return self._names[start:stop], self._row_ids[start:stop]


class _Moving:
    """Names on their way into the tables, the lowest first."""

    def __init__(self, recent: _Recent, last: Mapping[str, int]) -> None:
        self.last = last
        """By table, the row up to which all names are in the tables once these are."""
        self.events = _Column(recent.events, recent.namesakes)
        self.tasks = _Column(recent.tasks)
        self._at = 0

    def events_among(self, names: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(name, row id) of the rows that may have some event names."""
        return self.events.among(names)

    def tasks_among(self, names: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(name, row id or SEVERAL) of the outputs of some tasks."""
        return self.tasks.among(names)

    def store(self, tx: Connection, n: int) -> None:
        """Write the next `n` of each kind, and after the last ones that all are written."""
        stop = self._at + n
        insert_columns(tx, _INSERT_EVENTS, self.events.part(self._at, stop))
        insert_columns(tx, _INSERT_TASKS, self.tasks.part(self._at, stop))
        if self.is_done_after(n):
            for table, row_id in self.last.items():
                covered = {"table_name": table, "row_id": row_id}
                tx.execute(insert_new(tx, names_covered), covered)
                tx.execute(
                    update(names_covered)
                    .where(names_covered.c.table_name == table, names_covered.c.row_id < row_id)
                    .values(row_id=row_id)
                )

    def is_done_after(self, n: int) -> bool:
        """Whether nothing is left after `n` more of each kind."""
        return self._at + n >= max(len(self.events), len(self.tasks))

    def step(self, n: int) -> None:
        """What was stored was committed."""
        self._at += n


_NEWEST = {table.name: select(func.max(table.c.id)) for table in (events, feedback)}
_FIND_EVENTS = "SELECT name, row_id FROM event_names WHERE name IN {}"
_FIND_TASKS = "SELECT name, row_id FROM task_names WHERE name IN {}"
_INSERT_EVENTS = "INSERT OR IGNORE INTO event_names (name, row_id) VALUES {}"
_INSERT_TASKS = (
    "INSERT OR ROLLBACK INTO task_names (name, row_id) VALUES {} ON CONFLICT (name) DO UPDATE"
    " SET row_id = CASE row_id WHEN excluded.row_id THEN row_id ELSE -1 END"
)


def _covered(tx: Connection) -> dict[str, int]:
    """By table, the row up to which all names are in the tables."""
    stored = {row.table_name: row.row_id for row in tx.execute(select(names_covered))}
    return {table.name: stored.get(table.name, 0) for table in (events, feedback)}


def _lead(names: dict[int, int], name: int, row_id: int) -> None:
    """Let a task's name lead to one more output."""
    if names.setdefault(name, row_id) != row_id:
        names[name] = SEVERAL
