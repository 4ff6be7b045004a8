"""What a batch may repeat: a bounded memory of the events that made versions.

Kept up to date when a version is released, so that sealing never looks through the past: it
reads what is remembered of the batch's task types, and checks the events that it takes. Who
is drawn is decided in learning/sampling.py.
"""

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from sqlalchemy import ColumnElement, Connection, delete, exists, select

from daemon.store.dialect import CHUNK, replace_all
from daemon.store.tables import batch_members, events, feedback, replay_memory, runs, versions
from learning.lifecycle import EventState, Role, VersionState
from learning.sampling import (
    Remembered,
    ReplayStrategy,
    draw_balanced,
    draw_evenly,
    even_sample,
    priorities,
)

CAPACITY = 5_000
"""Events of one task type that are remembered."""

T = TypeVar("T")


def remember_batch(tx: Connection, batch_id: str) -> None:
    """Remember what trained in a batch that a version came of. Repeated, it changes nothing.

    A task type that remembers CAPACITY events already takes those whose priority is lower, in
    place of the highest: whatever the order, what stays is an even sample.
    """
    trained = tx.execute(
        select(events.c.task_type, events.c.id)
        .join(batch_members, batch_members.c.event_id == events.c.id)
        .where(
            batch_members.c.batch_id == batch_id,
            batch_members.c.role.in_([Role.TRAIN, Role.RETRY]),
        )
    ).all()
    priority = priorities(row.id for row in trained)
    for task_type in sorted({row.task_type for row in trained}):
        ceiling = _ceiling(tx, task_type)
        rows = [
            {
                "task_type": task_type,
                "priority": priority[row.id],
                "event_id": row.id,
                "batch_id": batch_id,
            }
            for row in trained
            if row.task_type == task_type and (ceiling is None or priority[row.id] <= ceiling)
        ]
        replace_all(tx, replay_memory, ["task_type", "priority", "event_id"], rows)
        if (ceiling := _ceiling(tx, task_type)) is not None:
            tx.execute(
                delete(replay_memory).where(
                    replay_memory.c.task_type == task_type, replay_memory.c.priority > ceiling
                )
            )


def draw(
    tx: Connection,
    task_types: Iterable[str],
    wanted: int,
    strategy: ReplayStrategy,
    *,
    fresh: Mapping[str, int],
    exclude: Collection[int],
    seed: int,
    weights: Mapping[str, float] | None = None,
) -> list[int]:
    """Row ids of up to `wanted` remembered events, ascending; the same for the same seed.

    Only of such that are sealed, that nobody rejected since, and whose version was not rolled
    back. `fresh` counts the rows that the batch has already, by task type, and `weights` say
    which task types a balanced draw favours.
    """
    if not wanted:
        return []
    memory = _memory(tx, task_types)
    if strategy is ReplayStrategy.RESERVOIR:
        memory = even_sample(memory, CAPACITY)
    left = {one.event_id: one for one in memory if one.event_id not in exclude}
    drawn: list[int] = []
    # What turns out to be out of bounds is drawn again, from what is left.
    for attempt in itertools.count(seed):
        missing = wanted - len(drawn)
        chosen = (
            draw_evenly(list(left.values()), missing, attempt)
            if strategy is ReplayStrategy.RESERVOIR
            else draw_balanced(list(left.values()), missing, fresh, attempt, weights)
        )
        drawn += _sound(tx, chosen)
        for one in chosen:
            del left[one.event_id]
        if len(drawn) == wanted or not left:
            break
    return sorted(drawn)


def rejected_since(event_id: int | ColumnElement[int]) -> ColumnElement[bool]:
    """Whether feedback says no to an event; of a sealed one, late feedback."""
    return exists().where(feedback.c.output_id == event_id, feedback.c.approved.is_(False))


def _ceiling(tx: Connection, task_type: str) -> int | None:
    """The highest priority that a task type has a place for; None while it has places left."""
    return tx.execute(
        select(replay_memory.c.priority)
        .where(replay_memory.c.task_type == task_type)
        .order_by(replay_memory.c.priority)
        .offset(CAPACITY - 1)
        .limit(1)
    ).scalar()


def _memory(tx: Connection, task_types: Iterable[str]) -> list[Remembered]:
    return [
        Remembered(row.event_id, row.task_type, row.priority, row.batch_id)
        for task_type in sorted(task_types)
        for row in tx.execute(select(replay_memory).where(replay_memory.c.task_type == task_type))
    ]


def _sound(tx: Connection, chosen: Sequence[Remembered]) -> list[int]:
    """Those of the chosen events that may be repeated."""
    standing = {
        batch_id
        for some in _chunks(sorted({one.batch_id for one in chosen}))
        for batch_id in tx.execute(
            select(runs.c.batch_id)
            .join(versions, versions.c.run_id == runs.c.id)
            .where(
                runs.c.batch_id.in_(some),
                versions.c.state.in_([VersionState.RELEASED, VersionState.SUPERSEDED]),
            )
        ).scalars()
    }
    return [
        event_id
        for some in _chunks([one.event_id for one in chosen if one.batch_id in standing])
        for event_id in tx.execute(
            select(events.c.id).where(
                events.c.id.in_(some),
                events.c.state == EventState.SEALED,
                ~rejected_since(events.c.id),
            )
        ).scalars()
    ]


def _chunks(values: Sequence[T]) -> Iterable[Sequence[T]]:
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))
