"""How far each fine-tune run is: every step between two durable states is one transaction.

Implements learning.ports.RunStore. Launches nothing and decides nothing: finetune/runner.py
drives, learning/gate.py decides.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    exists,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from daemon.store import registry, spending
from daemon.store.bookkeeping import Move, record
from daemon.store.database import Database
from daemon.store.dialect import insert_new
from daemon.store.leases import Leases
from daemon.store.queue import move_batch
from daemon.store.rejected import give_back_rejected, objective_of
from daemon.store.screenings import learned_text
from daemon.store.tables import (
    batch_members,
    batches,
    evaluation_examples,
    evaluations,
    events,
    is_one_of,
    returned_events,
    run_attempts,
    runs,
    versions,
)
from learning.budget import Quote
from learning.errors import IllegalMoveError, NotFoundError
from learning.events import OutputEvent
from learning.gate import GateReport, Outcome, Refusal, TrainingProof
from learning.lifecycle import (
    ACTIVE_RUN_STATES,
    TRAINING_ROLES,
    UNFINISHED_RUN_STATES,
    BatchState,
    EventState,
    Role,
    RunState,
    VersionState,
    require_run_move,
)
from learning.lines import ModelLine
from learning.ports import (
    Cancellation,
    ChampionMovedError,
    Decision,
    Duel,
    HeldOutRow,
    JobProgress,
    ModelReference,
    PreferenceRow,
    RunRecord,
    TrainingOutcome,
    TrainingRow,
)
from learning.versioning import Recipe, next_candidate, parse

T = TypeVar("T")

RUNNER = "runner"
_IS_ACTIVE = is_one_of(runs.c.state, *ACTIVE_RUN_STATES)

_MOVES_OF_THE_CANCELLED = frozenset({RunState.RUNNING, RunState.WAITING, RunState.CANCELLED})

LONGEST_CODE = 64
"""Characters of a provider's error code that are kept."""
ABSTENTIONS = 3
"""How often a training row comes back after the gate abstained; after a rejection, once."""


class UnknownRunError(NotFoundError):
    """No run has this id."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"no run {run_id}; `learnd runs` lists them")
        self.run_id = run_id


class Runs:
    """The runs of one database."""

    def __init__(self, database: Database, artifacts_dir: Path, leases: Leases) -> None:
        self._database = database
        self._artifacts_dir = artifacts_dir
        self._leases = leases

    async def due(self, now: datetime) -> Sequence[RunRecord]:
        """See learning.ports.RunStore."""

        def query(tx: Connection) -> list[RunRecord]:
            busy = select(runs.c.line).where(_IS_ACTIVE)
            rows = tx.execute(
                select(runs)
                .join(batches, batches.c.id == runs.c.batch_id)
                .where(
                    is_one_of(runs.c.state, *UNFINISHED_RUN_STATES),
                    (runs.c.state == RunState.PLANNED) | runs.c.short_of_money,
                    runs.c.line.not_in(busy),
                )
                # Not by time: two may be planned at one, and a clock may go back.
                .order_by(batches.c.sequence)
            )
            short: list[Row[Any]] = []
            oldest: dict[str, Row[Any]] = {}
            for row in rows:
                if row.short_of_money:
                    short.append(row)
                else:
                    oldest.setdefault(row.line, row)
            planned = sorted(oldest.values(), key=lambda row: (row.planned_at, row.line))
            return [
                self._record(tx, row)
                for row in (*short, *planned)
                if (row.not_before is None or row.not_before <= now)
                and self._leases.may_begin(tx, row.id)
            ]

        return await self._database.read(query)

    async def cancelling(self) -> Sequence[RunRecord]:
        """See learning.ports.RunStore."""
        asked = select(runs).where(_IS_ACTIVE, runs.c.cancel_asked_at.is_not(None))
        return await self._database.read(
            lambda tx: [self._record(tx, row) for row in tx.execute(asked)]
        )

    async def get(self, run_id: str) -> RunRecord:
        """See learning.ports.RunStore."""
        return await self._database.read(
            lambda tx: self._record(tx, tx.execute(select(runs).where(runs.c.id == run_id)).one())
        )

    async def begin(
        self,
        run_id: str,
        line: ModelLine,
        now: datetime,
        *,
        bound: bool = False,
        quote: Quote | None = None,
    ) -> RunRecord:
        """See learning.ports.RunStore."""

        def transaction(tx: Connection) -> tuple[RunRecord, int | None]:
            row = locked_run(tx, run_id)
            if not row.short_of_money:
                require_run_move(RunState(row.state), RunState.LAUNCHING)
            if quote is not None and (reason := spending.obstacle(tx, run_id, quote, now)):
                _wait_for_money(tx, row, reason, now)
                return self._record(tx, locked_run(tx, run_id)), None
            if row.short_of_money:
                move_run(tx, row, RunState.PLANNED, "there is money for it now", now, message=None)
                row = locked_run(tx, run_id)
            assert line.base_model is not None, "the runner checks this before it begins"
            registry.ensure_line(tx, line, line.base_model, now)
            champion = registry.champion_of(tx, line.name).row
            # A new base model starts afresh: there is nothing to continue from.
            continues = champion.base_model == line.base_model
            training = dict(line.training)
            objective = objective_of(tx, row.batch_id)
            if objective is not line.objective:
                training["objective"] = objective.value
            move_run(
                tx,
                row,
                RunState.LAUNCHING,
                f"attempt {row.attempt + 1}",
                now,
                attempt=row.attempt + 1,
                provider=line.provider,
                base_model=line.base_model,
                foundation=_foundation(champion) if continues else line.base_model,
                training=training,
                training_digest=_digest(line),
                parent_id=champion.id if continues else None,
                job_id=None,
                error=None,
                message=None,
                not_before=None,
                launched_at=now,
            )
            tx.execute(
                insert(run_attempts).values(run_id=run_id, attempt=row.attempt + 1, started_at=now)
            )
            if quote is not None:
                spending.reserve(tx, row, line.provider, quote, now)
            move_batch(tx, row.batch_id, BatchState.RUNNING, "its run began", RUNNER, now)
            epoch = self._leases.take(tx, run_id, bound=bound)
            return self._record(tx, locked_run(tx, run_id)), epoch

        begun, epoch = await self._database.write(transaction)
        if epoch is not None:
            self._leases.taken(run_id, epoch)
        return begun

    async def wait_for(
        self, run_id: str, reason: str, now: datetime, *, for_money: bool = False
    ) -> None:
        """See learning.ports.RunStore."""

        def transaction(tx: Connection) -> None:
            row = locked_run(tx, run_id)
            if for_money:
                _wait_for_money(tx, row, reason, now)
            else:
                move_run(tx, row, RunState.WAITING, reason, now, message=reason)

        await self._write(run_id, transaction)

    async def resume_waiting(self, now: datetime, why: str = "tried again at start") -> int:
        """waiting -> planned: what the runs wait for may be there now.

        A run that waits because nobody knows what its launch came to stays where it is:
        another launch could make a second job. So does one that waits for money: it is due.
        """

        def transaction(tx: Connection) -> int:
            unresolved = exists().where(
                run_attempts.c.run_id == runs.c.id,
                run_attempts.c.attempt == runs.c.attempt,
                run_attempts.c.ended_at.is_(None),
            )
            rows = tx.execute(
                select(runs)
                .where(
                    is_one_of(runs.c.state, *UNFINISHED_RUN_STATES),
                    runs.c.state == RunState.WAITING,
                    runs.c.short_of_money.is_not(True),
                    ~unresolved,
                )
                .order_by(runs.c.line, runs.c.planned_at)
                .with_for_update(key_share=True)
            ).all()
            for row in rows:
                move_run(tx, row, RunState.PLANNED, why, now, message=None)
            return len(rows)

        return await self._database.write(transaction)

    async def adopt(self, run_id: str, job_id: str, now: datetime) -> None:
        """See learning.ports.RunStore."""

        def transaction(tx: Connection) -> None:
            row = locked_run(tx, run_id)
            move_run(tx, row, RunState.RUNNING, f"job {job_id}", now, job_id=job_id)
            set_attempt(tx, row, job_id=job_id)

        await self._write(run_id, transaction)

    async def interrupt(self, run_id: str, message: str, now: datetime) -> None:
        """See learning.ports.RunStore."""

        def transaction(tx: Connection) -> None:
            row = locked_run(tx, run_id)
            move_run(tx, row, RunState.PLANNED, message, now, message=message)
            end_attempt(tx, row, "interrupted", message, now)

        await self._write(run_id, transaction)

    async def fail(
        self,
        run_id: str,
        code: str,
        message: str,
        retry_at: datetime | None,
        now: datetime,
        *,
        maybe_a_job: bool = False,
    ) -> None:
        """See learning.ports.RunStore."""

        def transaction(tx: Connection) -> None:
            row = locked_run(tx, run_id)
            end: dict[str, Any] = {} if retry_at is not None else {"finished_at": now}
            move_run(
                tx,
                row,
                RunState.PLANNED if retry_at is not None else RunState.FAILED,
                f"{code}: {message}",
                now,
                failures=row.failures + 1,
                error=code[:LONGEST_CODE],
                message=message,
                not_before=retry_at,
                **end,
            )
            end_attempt(tx, row, "failed", f"{code}: {message}", now, maybe_a_job=maybe_a_job)
            if retry_at is None:
                _return_batch(tx, row, ABSTENTIONS, "its run failed", now)

        await self._write(run_id, transaction)

    async def cancel(self, run_id: str, now: datetime) -> None:
        """See learning.ports.RunStore."""

        def transaction(tx: Connection) -> None:
            row = locked_run(tx, run_id)
            if row.cancel_asked_at is None:
                raise IllegalMoveError("run that nobody cancels", row.state, RunState.CANCELLED)
            cancel_run(tx, row, Cancellation(row.cancel_actor, row.cancel_reason), now)

        await self._write(run_id, transaction)

    async def report(self, run_id: str, progress: JobProgress, now: datetime) -> None:
        """See learning.ports.RunStore."""
        await self._write(
            run_id,
            lambda tx: tx.execute(
                update(runs)
                .where(runs.c.id == run_id)
                .values(progress=asdict(progress), updated_at=now)
            ),
        )

    async def finish_training(
        self,
        run_id: str,
        artifact: str,
        manifest_sha256: str,
        outcome: TrainingOutcome,
        now: datetime,
    ) -> None:
        """See learning.ports.RunStore."""

        def transaction(tx: Connection) -> None:
            row = locked_run(tx, run_id)
            move_run(
                tx,
                row,
                RunState.TRAINED,
                f"artifact {artifact}",
                now,
                artifact=artifact,
                manifest_sha256=manifest_sha256,
                method=outcome.method,
                measurements={**outcome.measurements, "proof": _stored_proof(outcome.proof)},
            )
            tokens = outcome.measurements.get("trained_tokens")
            end_attempt(tx, row, "succeeded", None, now, trained_tokens=tokens)
            self._leases.unbind(tx, run_id)

        await self._write(run_id, transaction)

    async def enter(self, run_id: str, now: datetime) -> Duel:
        """See learning.ports.RunStore."""

        def transaction(tx: Connection) -> Duel:
            row = locked_run(tx, run_id)
            if row.state != RunState.EVALUATING:
                move_run(tx, row, RunState.EVALUATING, "candidate", now)
                _add_candidate(tx, row, now)
            return self._duel(tx, row)

        return await self._write(run_id, transaction)

    async def training_rows(self, batch_id: str) -> Sequence[TrainingRow]:
        """See learning.ports.RunStore."""
        return await self._database.read(
            lambda tx: [
                TrainingRow(
                    row.id,
                    Role(row.role),
                    row.task_type,
                    OutputEvent.model_validate_json(row.learned_text),
                )
                for row in tx.execute(
                    select(events.c.id, batch_members.c.role, events.c.task_type, learned_text())
                    .join(batch_members, batch_members.c.event_id == events.c.id)
                    .where(
                        batch_members.c.batch_id == batch_id,
                        batch_members.c.role.in_(TRAINING_ROLES),
                    )
                    .order_by(events.c.id)
                )
            ]
        )

    async def preference_rows(self, batch_id: str) -> Sequence[PreferenceRow]:
        """See learning.ports.RunStore."""
        return await self._database.read(
            lambda tx: [
                PreferenceRow(
                    row.id,
                    row.task_type,
                    OutputEvent.model_validate_json(row.learned_text),
                    row.preferred_id,
                )
                for row in tx.execute(
                    select(
                        events.c.id,
                        events.c.task_type,
                        learned_text(),
                        batch_members.c.preferred_id,
                    )
                    .join(batch_members, batch_members.c.event_id == events.c.id)
                    .where(
                        batch_members.c.batch_id == batch_id,
                        batch_members.c.role == Role.PREFERENCE,
                    )
                    .order_by(events.c.id)
                )
            ]
        )

    async def held_out_rows(self, line: ModelLine) -> Sequence[HeldOutRow]:
        """See learning.ports.RunStore."""
        of_line = (
            select(evaluation_examples)
            .where(evaluation_examples.c.task_type.in_(line.task_types))
            .order_by(evaluation_examples.c.id)
        )
        return await self._database.read(lambda tx: _held_out(tx, of_line))

    async def newest_held_out(self, task_type: str, most: int) -> Sequence[HeldOutRow]:
        """See learning.ports.RunStore."""
        newest = (
            select(evaluation_examples)
            .where(evaluation_examples.c.task_type == task_type)
            .order_by(evaluation_examples.c.id.desc())
            .limit(most)
        )
        return await self._database.read(lambda tx: _held_out(tx, newest)[::-1])

    async def decide(
        self,
        run_id: str,
        duel: Duel,
        report: GateReport,
        scores: Mapping[str, Any],
        now: datetime,
    ) -> Decision:
        """See learning.ports.RunStore."""

        def transaction(tx: Connection) -> Decision:
            row = locked_run(tx, run_id)
            champion = registry.champion_of(tx, row.line, to_move=True)
            if champion.row.id != duel.champion_id:
                raise ChampionMovedError(duel.champion_number, registry.number_of(champion.row))
            candidate = tx.execute(select(versions).where(versions.c.run_id == run_id)).one()
            tx.execute(
                insert(evaluations).values(
                    version_id=candidate.id,
                    champion_id=champion.row.id,
                    outcome=report.outcome,
                    report=asdict(report),
                    scores=dict(scores),
                    at=now,
                )
            )
            move_run(
                tx,
                row,
                RunState.DECIDED,
                report.reason,
                now,
                outcome=report.outcome,
                message=report.reason,
                finished_at=now,
            )
            if candidate.release is not None:
                return Decision(None)  # an operator forced it meanwhile; its batch is spent
            match report.outcome:
                case Outcome.PROMOTE:
                    return Decision(
                        registry.promote(
                            tx,
                            champion,
                            candidate,
                            cause="promote",
                            reason=report.reason,
                            actor=RUNNER,
                            now=now,
                        )
                    )
                case Outcome.REJECT:
                    registry.refuse(tx, candidate, report.reason, RUNNER, now)
                    # That its parent was rolled back tells nothing about its rows.
                    innocent = report.refusal is Refusal.PARENT_ROLLED_BACK
                    times = ABSTENTIONS if innocent else 1
                    _return_batch(tx, row, times, report.reason, now)
                case Outcome.ABSTAIN:
                    _return_batch(tx, row, ABSTENTIONS, report.reason, now)
            return Decision(None)

        return await self._write(run_id, transaction)

    async def _write(self, run_id: str, transaction: Callable[[Connection], T]) -> T:
        """Run a transaction about a run. Raises LeaseLostError when it is another daemon's."""

        @wraps(transaction)  # it is the same step
        def fenced(tx: Connection) -> T:
            self._leases.require(tx, run_id)
            return transaction(tx)

        return await self._database.write(fenced)

    def _record(self, tx: Connection, row: Row[Any]) -> RunRecord:
        return RunRecord(
            run_id=row.id,
            batch_id=row.batch_id,
            line=row.line,
            state=RunState(row.state),
            provider=row.provider,
            attempt=row.attempt,
            failures=row.failures,
            seed=row.seed,
            job_id=row.job_id,
            artifact=row.artifact,
            method=row.method,
            measurements=row.measurements,
            parent=self._parent(tx, row),
            training=row.training,
            cancellation=(
                Cancellation(row.cancel_actor, row.cancel_reason)
                if row.cancel_asked_at is not None
                else None
            ),
            message=row.message,
            short_of_money=bool(row.short_of_money),
        )

    def _parent(self, tx: Connection, row: Row[Any]) -> ModelReference | None:
        """What training starts from: the champion of the time, or the bare base model."""
        if row.base_model is None:
            return None
        if row.parent_id is None:
            return ModelReference(row.base_model)
        parent = tx.execute(select(versions).where(versions.c.id == row.parent_id)).one()
        return registry.reference(parent, self._artifacts_dir)

    def _duel(self, tx: Connection, row: Row[Any]) -> Duel:
        champion = registry.champion_of(tx, row.line).row
        candidate = tx.execute(select(versions).where(versions.c.run_id == row.id)).one()
        return Duel(
            candidate_id=candidate.id,
            candidate_number=registry.number_of(candidate),
            candidate=registry.reference(candidate, self._artifacts_dir),
            champion_id=champion.id,
            champion_number=registry.number_of(champion),
            champion=registry.reference(champion, self._artifacts_dir),
            parent_rolled_back=registry.has_rolled_back_parent(
                tx, champion.id, candidate.parent_id
            ),
            look=registry.looks_at(tx, champion.id, candidate.id),
        )


def _held_out(tx: Connection, chosen: Select[Any]) -> Sequence[HeldOutRow]:
    return [
        HeldOutRow(row.id, row.task_type, row.messages, row.producer, row.category)
        for row in tx.execute(chosen)
    ]


def locked_run(tx: Connection, run_id: str) -> Row[Any]:
    """A run, locked: whoever reads it here is about to move it. Raises UnknownRunError."""
    query = select(runs).where(runs.c.id == run_id).with_for_update(key_share=True)
    row = tx.execute(query).first()
    if row is None:
        raise UnknownRunError(run_id)
    return row


def move_run(
    tx: Connection,
    row: Row[Any],
    state: RunState,
    reason: str,
    now: datetime,
    *,
    actor: str = RUNNER,
    **values: Any,
) -> None:
    """Give a run another state, with its history row. Raises IllegalMoveError.

    One whose cancellation was asked for goes nowhere that would lead to a version.
    """
    if row.cancel_asked_at is not None and state not in _MOVES_OF_THE_CANCELLED:
        raise IllegalMoveError("run that is being cancelled and", row.state, state)
    require_run_move(RunState(row.state), state)
    values.setdefault("short_of_money", None)
    try:
        tx.execute(
            update(runs).where(runs.c.id == row.id).values(state=state, updated_at=now, **values)
        )
    except IntegrityError as error:  # one_active_run: another hand began a run of the line
        raise IllegalMoveError("run of a busy line", row.state, state) from error
    record(tx, [Move("run", row.id, row.state, state, reason, actor)], now)


def cancel_run(tx: Connection, row: Row[Any], asked: Cancellation, now: datetime) -> None:
    """End a run that has no job any more, and return its batch."""
    reason = asked.reason or "no reason given"
    move_run(
        tx,
        row,
        RunState.CANCELLED,
        reason,
        now,
        actor=asked.actor,
        message=f"cancelled by {asked.actor}: {reason}",
        not_before=None,
        finished_at=now,
    )
    if is_attempt_open(tx, row):
        end_attempt(tx, row, "cancelled", reason, now)
    _return_batch(tx, row, ABSTENTIONS, "its run was cancelled", now, actor=asked.actor)


def is_forgotten(event_id: ColumnElement[int]) -> ColumnElement[bool]:
    """Whether an event was forgotten, so that nothing may train on it."""
    return exists().where(events.c.id == event_id, events.c.state == EventState.FORGOTTEN)


def set_attempt(tx: Connection, row: Row[Any], **values: Any) -> None:
    """Note something about a run's latest attempt."""
    tx.execute(
        update(run_attempts)
        .where(run_attempts.c.run_id == row.id, run_attempts.c.attempt == row.attempt)
        .values(**values)
    )


def is_attempt_open(tx: Connection, row: Row[Any]) -> bool:
    """Whether a run's latest attempt has not ended; of a waiting run: its launch is unresolved."""
    open_attempt = select(run_attempts.c.run_id).where(
        run_attempts.c.run_id == row.id,
        run_attempts.c.attempt == row.attempt,
        run_attempts.c.ended_at.is_(None),
    )
    return tx.execute(open_attempt).first() is not None


def end_attempt(
    tx: Connection,
    row: Row[Any],
    result: str,
    message: str | None,
    now: datetime,
    *,
    trained_tokens: object = None,
    maybe_a_job: bool = False,
) -> None:
    """Note how a run's latest attempt ended, and settle what was reserved for it."""
    set_attempt(tx, row, result=result, message=message, ended_at=now)
    spending.settle(
        tx,
        row.id,
        row.attempt,
        now,
        had_job=maybe_a_job or row.job_id is not None,
        trained_tokens=trained_tokens,
    )


def _wait_for_money(tx: Connection, row: Row[Any], reason: str, now: datetime) -> None:
    """A run that waits for money already only says anew how much it lacks, if that is new."""
    if not row.short_of_money:
        move_run(tx, row, RunState.WAITING, reason, now, message=reason, short_of_money=True)
    elif row.message != reason:
        tx.execute(update(runs).where(runs.c.id == row.id).values(message=reason, updated_at=now))


def _stored_proof(proof: TrainingProof) -> dict[str, Any]:
    """The proof as JSON, which has no NaN: that a number was none is kept as `all_finite`."""
    moved = proof.weight_delta_norm
    all_finite = proof.all_finite and (moved is None or math.isfinite(moved))
    return {**asdict(proof), "all_finite": all_finite}


def _return_batch(
    tx: Connection, row: Row[Any], times: int, reason: str, now: datetime, *, actor: str = RUNNER
) -> None:
    """Give the line's next batch the rows that this one trained in vain.

    A row comes back while it was tried again fewer than `times` times. A batch whose
    candidate an operator forced meanwhile is spent, and stays it.
    """
    if _batch_state(tx, row) is BatchState.SPENT:
        return
    move_batch(tx, row.batch_id, BatchState.RETURNED, reason, actor, now)
    tried_again = batch_members.alias("tried_again")
    n_retries = (
        select(func.count())
        .where(
            tried_again.c.event_id == batch_members.c.event_id,
            tried_again.c.role == Role.RETRY,
        )
        .scalar_subquery()
    )
    again = tx.execute(
        select(batch_members.c.event_id).where(
            batch_members.c.batch_id == row.batch_id,
            batch_members.c.role.in_([Role.TRAIN, Role.RETRY]),
            n_retries < times,
            ~is_forgotten(batch_members.c.event_id),
        )
    ).scalars()
    rows = [
        {"line": row.line, "event_id": event_id, "batch_id": row.batch_id} for event_id in again
    ]
    if rows:
        tx.execute(insert_new(tx, returned_events), rows)
    give_back_rejected(tx, row.batch_id, times)


def _batch_state(tx: Connection, row: Row[Any]) -> BatchState:
    return BatchState(
        tx.execute(select(batches.c.state).where(batches.c.id == row.batch_id)).scalar_one()
    )


def _add_candidate(tx: Connection, row: Row[Any], now: datetime) -> None:
    task_types = frozenset(
        tx.execute(
            select(events.c.task_type)
            .distinct()
            .join(batch_members, batch_members.c.event_id == events.c.id)
            .where(
                batch_members.c.batch_id == row.batch_id,
                batch_members.c.role != Role.CROSS_TASK,
            )
        ).scalars()
    )
    champion = registry.champion_of(tx, row.line)
    known = frozenset(champion.row.task_types)
    made_from = Recipe(row.base_model, row.training_digest, task_types | known)
    target = registry.release_target(tx, champion, made_from)
    taken = tx.execute(
        select(versions.c.candidate).where(
            versions.c.line == row.line, versions.c.candidate.is_not(None)
        )
    ).scalars()
    tx.execute(
        insert(versions).values(
            line=row.line,
            candidate=str(next_candidate(target, [parse(text) for text in taken])),
            state=VersionState.CANDIDATE,
            parent_id=row.parent_id,
            run_id=row.id,
            method=row.method,
            base_model=row.base_model,
            foundation=row.foundation,
            artifact=row.artifact,
            manifest_sha256=row.manifest_sha256,
            training_digest=row.training_digest,
            task_types=sorted(made_from.task_types),
            created_at=now,
        )
    )


def _foundation(champion: Row[Any]) -> str:
    """What an adapter trained on from this champion sits on."""
    if champion.method == "full":
        return f"{registry.ARTIFACT}{champion.artifact}"
    return str(champion.foundation)


def _digest(line: ModelLine) -> str:
    """Identity of how a line trains: another one makes a minor version."""
    recipe = {"provider": line.provider, "training": dict(line.training)}
    text = json.dumps(recipe, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
