"""The durable queue: see what waits, seal it into batches, let held events expire.

A batch, its members' roles, its frozen examples and its planned run are one transaction.
Who gets which role is decided in learning/sampling.py.
"""

import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)

from daemon.store.batch_sizes import ever_queued
from daemon.store.bookkeeping import Move, Tally, record
from daemon.store.database import Database
from daemon.store.dialect import CHUNK, insert_new, take_turns
from daemon.store.feedback_dials import weights_of
from daemon.store.intake import IMPORT, confirm_event, move_event
from daemon.store.rejected import RejectedOutputs, spend_rejected
from daemon.store.replay import draw, rejected_since, remember_batch
from daemon.store.screenings import (
    Ruleset,
    is_cleared,
    learned_events,
    oldest_queued,
    release,
    without_rules,
)
from daemon.store.split_sides import SPLIT, known_sides, split_keys, take_sides
from daemon.store.tables import (
    batch_members,
    batches,
    evaluation_examples,
    events,
    is_one_of,
    returned_events,
    runs,
    tallies,
)
from learning.batching import Due, LineQueue, Trigger
from learning.cross_task import related_to
from learning.errors import ConflictError, NotFoundError
from learning.events import OutputEvent, conversation, digest, group_key, prompt_key
from learning.facts import BatchSealed
from learning.lifecycle import (
    PRIMARY_ROLES,
    UNFINISHED_RUN_STATES,
    BatchState,
    EventState,
    Role,
    RunState,
    require_batch_move,
)
from learning.lines import ModelLine
from learning.policy import Verdict, confirms, rejudge_by_hand
from learning.ports import EventKind
from learning.preferences import Objective
from learning.sampling import (
    Candidate,
    ReplayStrategy,
    SplitRules,
    cross_task_quota,
    held_out_quota,
    rejected_quota,
    replay_quota,
    split,
)

_IS_QUEUED = is_one_of(events.c.state, EventState.QUEUED)


class UnknownEventError(NotFoundError):
    """No stored event has this row id."""

    def __init__(self, event_row_id: int) -> None:
        super().__init__(f"no event has the id {event_row_id}; `learnd events list` shows them")
        self.event_row_id = event_row_id


class VerdictRefusedError(ConflictError):
    """A verdict by hand came for an event that it cannot change, or not any more."""

    def __init__(self, event_row_id: int, state: str) -> None:
        super().__init__(
            f"event {event_row_id} is queued already"
            if state == EventState.QUEUED
            else f"event {event_row_id} is {state}: a verdict counts while an event is held,"
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
    event: OutputEvent
    keys: tuple[bytes, ...]
    """What must stay on one side of the split: its prompt's key, and its group's if any."""
    role: Role
    judges: bool
    """Whether it enters the frozen set: a person approved it and its prompt never trained."""


class Queue:
    """Queued and held events of one database."""

    def __init__(
        self,
        database: Database,
        rejected: RejectedOutputs,
        ruleset: Ruleset = without_rules,
    ) -> None:
        self._database = database
        self._rejected = rejected
        self._ruleset = ruleset

    async def count_waiting(self) -> int:
        """How many events of all task types are queued."""
        total = select(func.coalesce(func.sum(tallies.c.n), 0)).where(
            tallies.c.kind == EventKind.OUTPUT, tallies.c.state == EventState.QUEUED
        )
        return await self._database.read(lambda tx: int(tx.execute(total).scalar_one()))

    async def try_to_write(self) -> None:
        """Write something that changes nothing. Raises StoreUnavailableError."""
        await self._database.write(lambda tx: tx.execute(update(tallies).values(n=tallies.c.n)))

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

        Those of them that were not screened under the rules in force stay queued. An automatic
        seal gives way to a batch that is under way; a flush does not, and its
        run waits for its turn.
        """

        def transaction(tx: Connection) -> BatchSealed | None:
            take_turns(tx, [SPLIT])  # whoever waited finds the events sealed, or the line busy
            rows = _oldest_queued(tx, line, due.size, self._ruleset())
            if not rows or (due.trigger is not Trigger.FLUSH and _is_busy(tx, line)):
                return None
            return seal_rows(tx, line, rows, self._rejected, due.trigger, rules, actor, now)

        return await self._database.write(transaction)

    async def run_of(self, event_row_id: int) -> str | None:
        """The run of the batch that an event was sealed into; None before, and without a run."""
        run = (
            select(runs.c.id)
            .join(batch_members, batch_members.c.batch_id == runs.c.batch_id)
            .where(
                batch_members.c.event_id == event_row_id,
                is_one_of(batch_members.c.role, *PRIMARY_ROLES),
            )
        )
        return await self._database.read(lambda tx: tx.execute(run).scalar())

    async def expire(self, held_before: datetime, now: datetime) -> int:
        """Expire the events that are held since before a time. Returns how many.

        Many are expired in several transactions, so that intake gets its turn between them.
        """

        def transaction(tx: Connection) -> int:
            tally = Tally()
            rows = tx.execute(
                select(events)
                .where(
                    is_one_of(events.c.state, EventState.HELD), events.c.state_since < held_before
                )
                .order_by(events.c.state_since)
                .limit(CHUNK)
                # One that is being judged now gets its turn the next time.
                .with_for_update(key_share=True, skip_locked=True)
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
            tally.write(tx, now)
            return len(rows)

        total = expired = await self._database.write(transaction)
        while expired == CHUNK:
            expired = await self._database.write(transaction)
            total += expired
        return total

    async def judge_by_hand(
        self, event_row_id: int, verdict: Verdict, actor: str, now: datetime
    ) -> EventState:
        """Move an event by an operator's verdict. Returns its new state.

        A "yes" to an event that was queued without a person's leaves it queued, confirmed.
        Raises UnknownEventError, and VerdictRefusedError when the event is sealed or final.
        """

        def transaction(tx: Connection) -> EventState:
            row = tx.execute(
                select(events).where(events.c.id == event_row_id).with_for_update(key_share=True)
            ).first()
            if row is None:
                raise UnknownEventError(event_row_id)
            current = EventState(row.state)
            tally = Tally()
            if confirms(current, row.by_human, verdict):
                confirm_event(tx, row, verdict, actor, now, tally)
                tally.write(tx, now)
                return current
            wanted = rejudge_by_hand(current, verdict)
            if wanted is None:
                raise VerdictRefusedError(event_row_id, row.state)
            decided = Verdict(wanted, verdict.reason, verdict.by_human)
            released = wanted is EventState.QUEUED and release(tx, event_row_id, now)
            # Of the stream it was approved before screening stopped it; a file's row never was.
            is_verdict = not released or row.source == IMPORT
            move_event(tx, row, decided, actor, now, tally, is_verdict=is_verdict)
            tally.write(tx, now)
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

        One whose prompt or split group has trained already is refused: it could only flatter.
        """

        def transaction(tx: Connection) -> HeldOutImport:
            take_turns(tx, [SPLIT])
            added, refused = 0, []
            for number, example, key in examples:
                group = group_key(example)
                keys = {key} if group is None else {key, group}
                if Role.TRAIN in known_sides(tx, keys).values():
                    refused.append((number, "its prompt or its split group has trained already"))
                    continue
                added += _freeze(tx, task_type, None, example, key, "import", None, now)
                take_sides(tx, Role.HELD_OUT, keys)
            imported = Move("held_out", task_type, None, "imported", f"{added} examples", actor)
            record(tx, [imported], now)
            return HeldOutImport(added, len(examples) - added - len(refused), tuple(refused))

        return await self._database.write(transaction)


def move_batch(
    tx: Connection, batch_id: str, state: BatchState, reason: str, actor: str, now: datetime
) -> None:
    """Give a batch another state, with its history row; one that has it stays as it is.

    Raises IllegalMoveError when its lifecycle does not allow it.
    """
    current = tx.execute(
        select(batches.c.state).where(batches.c.id == batch_id).with_for_update(key_share=True)
    ).scalar_one()
    if current == state:
        return
    require_batch_move(BatchState(current), state)
    tx.execute(update(batches).where(batches.c.id == batch_id).values(state=state))
    record(tx, [Move("batch", batch_id, current, state, reason, actor)], now)


def spend_batch(tx: Connection, batch_id: str, reason: str, actor: str, now: datetime) -> None:
    """A version came of a batch: what trained in it is remembered, and not tried again."""
    move_batch(tx, batch_id, BatchState.SPENT, reason, actor, now)
    remember_batch(tx, batch_id)
    spend_rejected(tx, batch_id)
    trained = select(batch_members.c.event_id).where(batch_members.c.batch_id == batch_id)
    tx.execute(delete(returned_events).where(returned_events.c.event_id.in_(trained)))


def _oldest_queued(tx: Connection, line: ModelLine, n: int, ruleset: str | None) -> list[Row[Any]]:
    """Of the `n` queued events of a line with the lowest ids those that may be sealed, locked,
    in the order of their ids."""
    wanted = oldest_queued(tx, line, n)
    may_be_sealed = [_IS_QUEUED]
    if ruleset is not None:
        may_be_sealed.append(is_cleared(events.c.id, ruleset))
    return [
        row
        for start in range(0, len(wanted), CHUNK)
        for row in tx.execute(
            select(events)
            .where(events.c.id.in_(wanted[start : start + CHUNK]), *may_be_sealed)
            .order_by(events.c.id)
            .with_for_update(key_share=True, of=events)
        )
    ]


def _is_busy(tx: Connection, line: ModelLine) -> bool:
    return bool(
        tx.execute(
            select(
                exists().where(
                    runs.c.line == line.name, is_one_of(runs.c.state, *UNFINISHED_RUN_STATES)
                )
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
    since = [
        tx.execute(
            select(func.min(events.c.state_since)).where(
                _IS_QUEUED, events.c.task_type == task_type
            )
        ).scalar()
        for task_type in line.task_types
    ]
    oldest = min((time for time in since if time is not None), default=None)
    return LineQueue(line.name, int(waiting), oldest, _is_busy(tx, line))


def seal_rows(
    tx: Connection,
    line: ModelLine,
    rows: Sequence[Row[Any]],
    rejected: RejectedOutputs,
    trigger: Trigger,
    rules: SplitRules,
    actor: str,
    now: datetime,
) -> BatchSealed:
    """Seal queued events, in the order of their ids, and plan the run.

    Beside them go in what is tried again, what is repeated, and what the line learns from
    `rejected`. The caller has the turn SPLIT, has locked the rows, and has seen to it that
    they are screened. Without an event there must be one to be tried again.
    """
    sequence = _next_sequence(tx, line)
    seed = int.from_bytes(digest(f"{line.name}:{sequence}")[:6])
    batch_id, run_id = f"b-{uuid.uuid4().hex[:12]}", f"r-{uuid.uuid4().hex[:12]}"
    members = _primary_members(tx, line, rows, rules, seed)
    n_train = sum(member.role is Role.TRAIN for member in members)
    retried = _take_returned(tx, line)
    related_types = related_to(line.task_types, rules.related)
    weights = weights_of(tx, {*line.task_types, *related_types}, now)
    n_training = n_train + len(retried)
    replayed = draw(
        tx,
        line.task_types,
        replay_quota(n_training, rules),
        rules.replay_strategy,
        fresh=Counter(member.row.task_type for member in members if member.role is Role.TRAIN)
        + _task_types(tx, retried),
        exclude={*retried},
        seed=seed,
        weights=weights,
    )
    related = draw(
        tx,
        related_types,
        cross_task_quota(n_training + len(replayed), rules),
        ReplayStrategy.BALANCED,
        fresh={},
        exclude={*retried},
        seed=seed,
        weights=weights,
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
            "queued_so_far": ever_queued(tx, line),
            "weights": weights or None,
            "sealed_at": now,
        },
    )
    _store_members(tx, batch_id, members, now)
    extra = [(Role.RETRY, retried), (Role.REPLAY, replayed), (Role.CROSS_TASK, related)]
    additional = [
        {"batch_id": batch_id, "event_id": event_id, "role": role}
        for role, event_ids in extra
        for event_id in event_ids
    ]
    if additional:
        tx.execute(insert(batch_members), additional)
    n_preference = rejected.join_batch(
        tx,
        line,
        batch_id,
        trained=[m.row.id for m in members if m.role is Role.TRAIN] + retried + replayed,
        most=rejected_quota(n_training + len(replayed) + len(related), rules),
    )
    if n_training:
        reason = _what_is_learned(line, n_preference)
        _plan_run(tx, run_id, batch_id, line, seed, reason, now)
    return BatchSealed(
        line=line.name,
        batch_id=batch_id,
        run_id=run_id if n_training else None,
        trigger=trigger,
        n_train=n_train,
        n_held_out=len(members) - n_train,
        n_replay=len(replayed),
        n_retry=len(retried),
        n_cross_task=len(related),
        n_preference=n_preference,
    )


def _what_is_learned(line: ModelLine, n_preference: int) -> str:
    """Why the run is planned, and of a line that learns from rejected outputs, by what."""
    match line.objective, n_preference:
        case Objective.SFT, _:
            return "batch sealed"
        case Objective.DPO, 0:
            return "batch sealed; by sft, not dpo: it has no rejected answer to a prompt it trains"
        case Objective.KTO, 0:
            return "batch sealed; by sft, not kto: it has no rejected output"
        case objective, _:
            return f"batch sealed; by {objective}, with {n_preference} rejected outputs"


def _next_sequence(tx: Connection, line: ModelLine) -> int:
    highest = tx.execute(
        select(func.max(batches.c.sequence)).where(batches.c.line == line.name)
    ).scalar()
    return (highest or 0) + 1


def _primary_members(
    tx: Connection, line: ModelLine, rows: Sequence[Row[Any]], rules: SplitRules, seed: int
) -> list[_Member]:
    learned = learned_events(tx, [row.id for row in rows])
    outputs = [learned[row.id] for row in rows]
    candidates = [
        Candidate(row.id, split_keys(output), row.by_human)
        for row, output in zip(rows, outputs, strict=True)
    ]
    sides = known_sides(tx, {key for candidate in candidates for key in candidate.keys})
    quota = held_out_quota(len(rows), _count_frozen(tx, line, rules.wanted_held_out), rules)
    roles = split(candidates, sides, quota, seed)
    return [
        _Member(
            row,
            output,
            candidate.keys,
            roles[row.id],
            judges=roles[row.id] is Role.HELD_OUT
            and row.by_human
            and all(sides.get(key) is not Role.TRAIN for key in candidate.keys),
        )
        for row, output, candidate in zip(rows, outputs, candidates, strict=True)
    ]


def _count_frozen(tx: Connection, line: ModelLine, at_most: int) -> int:
    """How many frozen examples a line has; no more are counted than it matters for."""
    some = (
        select(evaluation_examples.c.id)
        .where(evaluation_examples.c.task_type.in_(line.task_types))
        .limit(at_most)
        .subquery()
    )
    return tx.execute(select(func.count()).select_from(some)).scalar_one()


def _take_returned(tx: Connection, line: ModelLine) -> list[int]:
    """The training rows that earlier batches gave back, less those rejected since."""
    taken = tx.execute(
        delete(returned_events)
        .where(returned_events.c.line == line.name)
        .returning(returned_events.c.event_id)
    ).scalars()
    return sorted(
        event_id
        for event_id in taken.all()
        if not tx.execute(select(rejected_since(event_id))).scalar()
    )


def _task_types(tx: Connection, event_ids: Sequence[int]) -> Counter[str]:
    """How many of some events are of each task type."""
    return Counter(
        task_type
        for start in range(0, len(event_ids), CHUNK)
        for task_type in tx.execute(
            select(events.c.task_type).where(events.c.id.in_(event_ids[start : start + CHUNK]))
        ).scalars()
    )


def _store_members(
    tx: Connection, batch_id: str, members: Sequence[_Member], now: datetime
) -> None:
    if not members:
        return
    tx.execute(
        insert(batch_members),
        [{"batch_id": batch_id, "event_id": m.row.id, "role": m.role} for m in members],
    )
    for role in PRIMARY_ROLES:
        take_sides(tx, role, {key for m in members if m.role is role for key in m.keys})
    tally = Tally()
    for member in members:
        row = member.row
        tally.move(
            EventKind.OUTPUT, row.task_type, EventState.QUEUED, EventState.SEALED, row.confidence
        )
        if member.judges:
            key = prompt_key(member.event)
            _freeze(tx, row.task_type, row.id, member.event, key, "event", batch_id, now)
    ids = [member.row.id for member in members]
    for start in range(0, len(ids), CHUNK):
        tx.execute(
            update(events)
            .where(events.c.id.in_(ids[start : start + CHUNK]))
            .values(state=EventState.SEALED, state_since=now)
        )
    tally.write(tx, now)


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
        insert_new(tx, evaluation_examples)
        .values(
            task_type=task_type,
            event_id=event_row_id,
            messages=conversation(example),
            prompt_key=key,
            source=source,
            producer=example.producer,
            category=example.category,
            batch_id=batch_id,
            added_at=now,
        )
        .returning(evaluation_examples.c.id)
    )
    return len(added.all())


def _plan_run(
    tx: Connection,
    run_id: str,
    batch_id: str,
    line: ModelLine,
    seed: int,
    reason: str,
    now: datetime,
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
    record(tx, [Move("run", run_id, None, RunState.PLANNED, reason, "queue")], now)
