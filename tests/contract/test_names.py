"""The lagging index of SQLite finds what a dictionary would, whatever happens in between.

Everything runs on a real file. The index moves names after every few, and keeps three bits
of each, so that moves and namesakes, rare in life, happen all the time.
"""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, func, select

from daemon.store.arrivals import SqliteArrivals, TaskKey
from daemon.store.columns import Columns
from daemon.store.database import Database, sqlite_url
from daemon.store.tables import event_names, events, names_covered
from learning import short_names
from learning.ports import JudgedOutput, ReceivedFeedback
from tests.builders import feedback, judged, output, received

FEW = 5
KEPT_BITS = 3
PRODUCERS = 3


class RolledBackError(Exception):
    """The transaction is to be undone."""


@pytest.fixture(autouse=True)
def _narrow_names(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers_of = short_names._numbers_of
    monkeypatch.setattr(
        short_names,
        "_numbers_of",
        lambda texts: [number >> (60 - KEPT_BITS) for number in numbers_of(texts)],
    )


class Process:
    """One daemon on a database that it may share with another."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.arrivals = SqliteArrivals(FEW)

    def close(self) -> None:
        asyncio.run(self.database.close())

    def store(self, event_ids: list[int], *, fails: bool = False) -> set[int]:
        """Insert outputs, and feedback under the same ids. Returns which outputs were new."""

        def transaction(tx: Connection) -> set[int]:
            self.arrivals.begin(tx)
            sent = [judged(output(task_of(n), event_id=f"e{n}")) for n in event_ids]
            outputs = self.arrivals.insert_outputs(tx, Columns.of(JudgedOutput, [sent]))
            opinions = [received(feedback("t", event_id=f"e{n}")) for n in event_ids]
            said = self.arrivals.insert_feedback(tx, Columns.of(ReceivedFeedback, [opinions]))
            assert set(said.new["event_id"]) == set(outputs.new["event_id"])
            assert len(outputs.new) + len(outputs.repeated) == len(event_ids)
            self.arrivals.finish(tx)
            if fails:
                raise RolledBackError
            return {int(event_id[1:]) for event_id in outputs.new["event_id"]}

        try:
            return asyncio.run(self.database.write(transaction, committed=self.arrivals.committed))
        except RolledBackError:
            return set()

    def outputs_of(self, tasks: set[str]) -> dict[str, int | None]:
        """The output of each task by its number; None where there are several."""

        def query(tx: Connection) -> dict[str, int | None]:
            self.arrivals.begin(tx)
            found = self.arrivals.outputs_of(tx, [TaskKey("normalize", task) for task in tasks])
            return {
                key.task_id: None if row is None else int(row.event_id[1:])
                for key, row in found.items()
            }

        return asyncio.run(self.database.write(query))


def task_of(n: int) -> str:
    """Every second event has its task with another one."""
    return f"task-{n if n % 2 else n // 10}"


steps = st.lists(
    st.tuples(
        st.sampled_from(["store", "fail", "restart", "other"]),
        st.lists(st.integers(0, 60), max_size=12),
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_what_was_stored_is_found_and_nothing_else(steps: list[tuple[str, list[int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = sqlite_url(Path(folder) / "learnd.db")
        here, there = Process(url), Process(url)
        asyncio.run(here.database.migrate())
        stored: set[int] = set()
        try:
            for what, event_ids in steps:
                if what == "restart":
                    here.close()
                    here = Process(url)
                    continue
                process = there if what == "other" else here
                new = process.store(event_ids, fails=what == "fail")
                if what != "fail":
                    assert new == set(event_ids) - stored
                    stored |= new
            tasks = {task_of(n) for n in range(61)}
            for process in (here, there):
                found = process.outputs_of(tasks)
                # Namesakes among tasks are taken for several outputs of one, never for none.
                for task in tasks:
                    having = [n for n in stored if task_of(n) == task]
                    if not having:
                        assert found.get(task) is None
                    elif found[task] is not None:
                        assert having == [found[task]]
        finally:
            here.close()
            there.close()


def test_names_move_into_the_tables_and_memory_stays_small(tmp_path: Path) -> None:
    process = Process(sqlite_url(tmp_path / "learnd.db"))
    asyncio.run(process.database.migrate())

    for n in range(0, 400, 4):
        process.store([n, n + 1, n + 2, n + 3])

    def counts(tx: Connection) -> tuple[int, int, int]:
        covered = tx.execute(
            select(names_covered.c.row_id).where(names_covered.c.table_name == "events")
        ).scalar_one()
        in_table = tx.execute(select(func.count()).select_from(event_names)).scalar_one()
        return covered, in_table, tx.execute(select(func.count(events.c.id))).scalar_one()

    covered, in_table, stored = asyncio.run(process.database.read(counts))
    process.close()
    assert stored == 400
    assert stored - 40 <= covered < stored
    assert in_table >= covered
    assert len(process.arrivals._names._recent) < 100
