"""The durable queue: see what waits, seal it into batches, let held events expire.

A batch, its members' roles, its frozen examples and its planned run are one transaction.
Who gets which role is decided in learning/sampling.py.
"""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, exists, func, insert, select, update

from daemon.store.bookkeeping import Move, Tally, record
from daemon.store.database import Database
from daemon.store.dialect import CHUNK, insert_new
from daemon.store.intake import move_event
from daemon.store.tables import (
    batch_members,
    batches,
    evaluation_examples,
    events,
    feedback,
    returned_events,
    runs,
    split_sides,
    tallies,
    versions,
)
from learning.batching import Due, LineQueue, Trigger
from learning.errors import ConflictError, NotFoundError
from learning.events import OutputEvent, conversation, digest
from learning.facts import BatchSealed
from learning.lifecycle import (
    UNFINISHED_RUN_STATES,
    BatchState,
    EventState,
    Role,
    RunState,
    VersionState,
)
from learning.lines import ModelLine
from learning.policy import Verdict, rejudge
from learning.ports import EventKind
from learning.sampling import Candidate, SplitRules, draw_replay, held_out_quota, split

REPLAY_POOL = 20_000
"""Replay is drawn from so many of the newest training rows at the most."""


class UnknownEventError(NotFoundError):
    """No stored event has this row id."""

    def __init__(self, event_row_id: int) -> None:
        super().__init__(f"no event has the id {event_row_id}; `learnd events list` shows them")
        self.event_row_id = event_row_id


class VerdictRefusedError(ConflictError):
    """A verdict by hand came for an event that is past the point where one counts."""

    def __init__(self, event_row_id: int, state: str) -> None:
        super().__init__(
            f"event {event_row_id} is {state}: a verdict counts while an event is held,"
            " quarantined or queued"
        )
        self.event_row_id, self.state = event_row_id, state


@dataclass(frozen=True)
class HeldOutImport:
    """What an import of human-labelled examples did; `refused` are (row number, reason)."""

    added: int
    duplicates: int
    refused: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class _Member:
    row: Row[Any]
    role: Role
    judges: bool
    """Whether it enters the frozen set: a person approved it and its prompt never trained."""


class Queue:
    """Queued and held events of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def waiting_task_types(self) -> Sequence[str]:
        """The task types with queued events."""
        return await self._database.read(
            lambda tx: (
                tx.execute(
                    select(tallies.c.task_type).where(
                        tallies.c.kind == EventKind.OUTPUT,
                        tallies.c.state == EventState.QUEUED,
                        tallies.c.n > 0,
                    )
                )
                .scalars()
                .all()
            )
        )

    async def look(self, line: ModelLine) -> LineQueue:
        """What waits in a line's queue, and whether the line is busy."""
        return await self._database.read(lambda tx: _look(tx, line))

    async def seal(
        self, line: ModelLine, due: Due, rules: SplitRules, actor: str, now: datetime
    ) -> BatchSealed | None:
        """Seal the oldest `due.size` queued events; None when another hand was quicker.

        An automatic seal gives way to a batch that is under way; a flush does not, and its
        run waits for its turn.
        """

        def transaction(tx: Connection) -> BatchSealed | None:
            if due.trigger is not Trigger.FLUSH and _is_busy(tx, line):
                return None
            rows = tx.execute(_queued(line).order_by(events.c.id).limit(due.size)).all()
            return _seal(tx, line, rows, due.trigger, rules, actor, now) if rows else None

        return await self._database.write(transaction)

    async def expire(self, held_before: datetime, now: datetime) -> int:
        """Expire the events that are held and arrived before a time. Returns how many."""

        def transaction(tx: Connection) -> int:
            tally = Tally()
            rows = tx.execute(
                select(events).where(
                    events.c.state == EventState.HELD, events.c.received_at < held_before
                )
            ).all()
            for row in rows:
                move_event(
                    tx,
                    row,
                    Verdict(EventState.EXPIRED, "no verdict came in time", by_human=False),
                    "clock",
                    now,
                    tally,
                )
            tally.write(tx)
            return len(rows)

        return await self._database.write(transaction)

    async def judge_by_hand(
        self, event_row_id: int, verdict: Verdict, actor: str, now: datetime
    ) -> EventState:
        """Move an event by an operator's verdict. Returns its new state.

        Raises UnknownEventError, and VerdictRefusedError when the event is sealed or final.
        """

        def transaction(tx: Connection) -> EventState:
            row = tx.execute(select(events).where(events.c.id == event_row_id)).first()
            if row is None:
                raise UnknownEventError(event_row_id)
            wanted = (
                EventState.QUEUED  # an operator's yes also releases what a validator stopped
                if row.state == EventState.QUARANTINED and verdict.state is EventState.QUEUED
                else rejudge(EventState(row.state), verdict)
            )
            if wanted is None:
                raise VerdictRefusedError(event_row_id, row.state)
            tally = Tally()
            decided = Verdict(wanted, verdict.reason, verdict.by_human)
            move_event(tx, row, decided, actor, now, tally)
            tally.write(tx)
            return wanted

        return await self._database.write(transaction)

    async def import_held_out(
        self,
        examples: Sequence[tuple[int, OutputEvent, bytes]],
        task_type: str,
        actor: str,
        now: datetime,
    ) -> HeldOutImport:
        """Add human-labelled (row number, example, prompt key) to the frozen held-out set.

        One whose prompt has trained already is refused: it could only flatter.
        """

        def transaction(tx: Connection) -> HeldOutImport:
            sides = _known_sides(tx, {key for _, _, key in examples})
            added, refused = 0, []
            for number, example, key in examples:
                if sides.get(key) is Role.TRAIN:
                    refused.append((number, "its prompt has trained already"))
                    continue
                added += _freeze(tx, task_type, None, example, key, "import", None, now)
                tx.execute(insert_new(tx, split_sides), {"key": key, "side": Role.HELD_OUT})
            imported = Move("held_out", task_type, None, "imported", f"{added} examples", actor)
            record(tx, [imported], now)
            return HeldOutImport(added, len(examples) - added - len(refused), tuple(refused))

        return await self._database.write(transaction)


def _queued(line: ModelLine) -> Select[Any]:
    return select(events).where(
        events.c.state == EventState.QUEUED, events.c.task_type.in_(sorted(line.task_types))
    )


def _is_busy(tx: Connection, line: ModelLine) -> bool:
    return bool(
        tx.execute(
            select(
                exists().where(runs.c.line == line.name, runs.c.state.in_(UNFINISHED_RUN_STATES))
            )
        ).scalar()
    )


def _look(tx: Connection, line: ModelLine) -> LineQueue:
    waiting = tx.execute(
        select(func.coalesce(func.sum(tallies.c.n), 0)).where(
            tallies.c.kind == EventKind.OUTPUT,
            tallies.c.state == EventState.QUEUED,
            tallies.c.task_type.in_(line.task_types),
        )
    ).scalar_one()
    oldest = tx.execute(
        _queued(line).with_only_columns(events.c.received_at).order_by(events.c.id).limit(1)
    ).scalar()
    return LineQueue(line.name, int(waiting), oldest, _is_busy(tx, line))


def _seal(
    tx: Connection,
    line: ModelLine,
    rows: Sequence[Row[Any]],
    trigger: Trigger,
    rules: SplitRules,
    actor: str,
    now: datetime,
) -> BatchSealed:
    sequence = _next_sequence(tx, line)
    seed = int.from_bytes(digest(f"{line.name}:{sequence}")[:6])
    batch_id, run_id = f"b-{uuid.uuid4().hex[:12]}", f"r-{uuid.uuid4().hex[:12]}"
    members = _primary_members(tx, line, rows, rules, seed)
    n_train = sum(member.role is Role.TRAIN for member in members)
    retried = _take_returned(tx, line)
    n_training = n_train + len(retried)
    replayed = (
        draw_replay(_replay_pool(tx, line, exclude=retried), n_training, rules, seed)
        if n_training
        else []
    )

    tx.execute(
        insert(batches),
        {
            "id": batch_id,
            "line": line.name,
            "sequence": sequence,
            "trigger": trigger,
            "seed": seed,
            "state": BatchState.SEALED if n_training else BatchState.SPENT,
            "actor": actor,
            "sealed_at": now,
        },
    )
    _store_members(tx, batch_id, members, now)
    extra = [(Role.RETRY, retried), (Role.REPLAY, replayed)]
    additional = [
        {"batch_id": batch_id, "event_id": event_id, "role": role}
        for role, event_ids in extra
        for event_id in event_ids
    ]
    if additional:
        tx.execute(insert(batch_members), additional)
    if n_training:
        _plan_run(tx, run_id, batch_id, line, seed, now)
    return BatchSealed(
        line=line.name,
        batch_id=batch_id,
        run_id=run_id if n_training else None,
        trigger=trigger,
        n_train=n_train,
        n_held_out=len(members) - n_train,
        n_replay=len(replayed),
        n_retry=len(retried),
    )


def _next_sequence(tx: Connection, line: ModelLine) -> int:
    highest = tx.execute(
        select(func.max(batches.c.sequence)).where(batches.c.line == line.name)
    ).scalar()
    return (highest or 0) + 1


def _primary_members(
    tx: Connection, line: ModelLine, rows: Sequence[Row[Any]], rules: SplitRules, seed: int
) -> list[_Member]:
    candidates = [
        Candidate(
            id=row.id,
            keys=tuple(key for key in (row.prompt_key, row.group_key) if key is not None),
            by_human=row.by_human,
        )
        for row in rows
    ]
    n_frozen = tx.execute(
        select(func.count())
        .select_from(evaluation_examples)
        .where(evaluation_examples.c.task_type.in_(line.task_types))
    ).scalar_one()
    sides = _known_sides(tx, {key for candidate in candidates for key in candidate.keys})
    quota = held_out_quota(len(rows), n_frozen, rules)
    roles = split(candidates, sides, quota, seed)
    return [
        _Member(
            row,
            roles[row.id],
            judges=roles[row.id] is Role.HELD_OUT
            and row.by_human
            and sides.get(row.prompt_key) is not Role.TRAIN,
        )
        for row in rows
    ]


def _known_sides(tx: Connection, keys: set[bytes]) -> dict[bytes, Role]:
    wanted = sorted(keys)
    sides: dict[bytes, Role] = {}
    for start in range(0, len(wanted), CHUNK):
        rows = tx.execute(
            select(split_sides).where(split_sides.c.key.in_(wanted[start : start + CHUNK]))
        )
        sides.update((row.key, Role(row.side)) for row in rows)
    return sides


def _take_returned(tx: Connection, line: ModelLine) -> list[int]:
    """The training rows that earlier batches gave back, less those rejected since."""
    taken = tx.execute(
        delete(returned_events)
        .where(returned_events.c.line == line.name)
        .returning(returned_events.c.event_id)
    ).scalars()
    rejected = _rejected_since()
    return sorted(
        event_id
        for event_id in taken.all()
        if tx.execute(select(rejected.where(feedback.c.output_id == event_id))).scalar() is False
    )


def _rejected_since() -> Any:
    """Whether late feedback says no to an event."""
    return exists().where(feedback.c.approved.is_(False))


def _replay_pool(tx: Connection, line: ModelLine, exclude: Iterable[int]) -> list[int]:
    """Events that trained a version which was not rolled back, and that nobody rejected since."""
    rows = tx.execute(
        select(batch_members.c.event_id)
        .distinct()
        .join(runs, runs.c.batch_id == batch_members.c.batch_id)
        .join(versions, versions.c.run_id == runs.c.id)
        .where(
            versions.c.line == line.name,
            versions.c.state.in_([VersionState.RELEASED, VersionState.SUPERSEDED]),
            batch_members.c.role.in_([Role.TRAIN, Role.RETRY]),
            ~_rejected_since().where(feedback.c.output_id == batch_members.c.event_id),
        )
        .order_by(batch_members.c.event_id.desc())
        .limit(REPLAY_POOL)
    ).scalars()
    excluded = set(exclude)
    return sorted(event_id for event_id in rows if event_id not in excluded)


def _store_members(
    tx: Connection, batch_id: str, members: Sequence[_Member], now: datetime
) -> None:
    tx.execute(
        insert(batch_members),
        [{"batch_id": batch_id, "event_id": m.row.id, "role": m.role} for m in members],
    )
    tx.execute(
        insert_new(tx, split_sides),
        [
            {"key": key, "side": member.role}
            for member in members
            for key in (member.row.prompt_key, member.row.group_key)
            if key is not None
        ],
    )
    tally = Tally()
    for member in members:
        row = member.row
        tally.move(
            EventKind.OUTPUT, row.task_type, EventState.QUEUED, EventState.SEALED, row.confidence
        )
        if member.judges:
            example = OutputEvent.model_validate_json(row.payload)
            _freeze(tx, row.task_type, row.id, example, row.prompt_key, "event", batch_id, now)
    ids = [member.row.id for member in members]
    for start in range(0, len(ids), CHUNK):
        tx.execute(
            update(events)
            .where(events.c.id.in_(ids[start : start + CHUNK]))
            .values(state=EventState.SEALED)
        )
    tally.write(tx)


def _freeze(
    tx: Connection,
    task_type: str,
    event_row_id: int | None,
    example: OutputEvent,
    key: bytes,
    source: str,
    batch_id: str | None,
    now: datetime,
) -> int:
    """Append to the held-out set; a prompt that it has already is passed over. 1 or 0."""
    added = tx.execute(
        insert_new(tx, evaluation_examples).values(
            task_type=task_type,
            event_id=event_row_id,
            messages=conversation(example),
            prompt_key=key,
            source=source,
            batch_id=batch_id,
            added_at=now,
        )
    )
    return added.rowcount


def _plan_run(
    tx: Connection, run_id: str, batch_id: str, line: ModelLine, seed: int, now: datetime
) -> None:
    tx.execute(
        insert(runs),
        {
            "id": run_id,
            "batch_id": batch_id,
            "line": line.name,
            "state": RunState.PLANNED,
            "provider": line.provider,
            "attempt": 0,
            "failures": 0,
            "seed": seed,
            "planned_at": now,
            "updated_at": now,
        },
    )
    record(tx, [Move("run", run_id, None, RunState.PLANNED, "batch sealed", "queue")], now)
