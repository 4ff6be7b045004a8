"""What a person does to a run: call it off, or say what became of a launch nobody heard of.

Only stores what was said, in one transaction with its history. A job that has to be ended
first is the runner's to end (finetune/runner.py): the wish is stored before that, so that
a crash in between forgets nothing.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, update

from daemon.store.database import Database
from daemon.store.runs import (
    cancel_run,
    end_attempt,
    is_attempt_open,
    locked_run,
    move_run,
    set_attempt,
)
from daemon.store.tables import runs
from learning.errors import ConflictError
from learning.facts import LaunchResolved, RunCancelAsked, RunCancelled
from learning.lifecycle import UNFINISHED_RUN_STATES, RunState
from learning.ports import Cancellation


class RunIsOverError(ConflictError):
    """There is nothing left of a run that could be cancelled."""

    def __init__(self, row: Row[Any]) -> None:
        hint = (
            f"; `learnd rollback {row.line}` takes a promoted version back"
            if row.outcome == "promote"
            else ""
        )
        super().__init__(f"run {row.id} is {row.state} already: nothing to cancel{hint}")


class NothingToResolveError(ConflictError):
    """It is known what became of the run's launch."""

    def __init__(self, row: Row[Any]) -> None:
        super().__init__(
            f"run {row.id} is {row.state}, and waits for nobody to say what became of its"
            " launch; `learnd runs` shows what it does wait for"
        )


class Interventions:
    """The wishes of persons, in one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def cancel(
        self, run_id: str, reason: str, actor: str, now: datetime
    ) -> RunCancelled | RunCancelAsked:
        """End a run: at once where it has no job, otherwise as soon as its job is ended.

        Repeated while the job is being ended it changes nothing: the first to ask is kept.
        Raises UnknownRunError and RunIsOverError.
        """

        return await self._database.write(
            lambda tx: call_off(tx, locked_run(tx, run_id), reason, actor, now)
        )

    async def resolve(
        self, run_id: str, job_id: str | None, actor: str, now: datetime
    ) -> tuple[LaunchResolved, RunCancelled | None]:
        """Say which job the launch of a waiting run made; None: none at all.

        With a job the run goes on as running, without one it is planned again, or cancelled
        where that was asked for: then the second fact is there. Raises UnknownRunError,
        NothingToResolveError, and IllegalMoveError while the line works on another run.
        """

        def transaction(tx: Connection) -> tuple[LaunchResolved, RunCancelled | None]:
            row = locked_run(tx, run_id)
            if row.state != RunState.WAITING or not is_attempt_open(tx, row):
                raise NothingToResolveError(row)
            resolved = LaunchResolved(row.line, run_id, job_id, actor)
            if job_id is not None:
                reason = f"{actor} found job {job_id}"
                move_run(
                    tx, row, RunState.RUNNING, reason, now, actor=actor, job_id=job_id, message=None
                )
                set_attempt(tx, row, job_id=job_id)
            elif row.cancel_asked_at is not None:
                asked = Cancellation(row.cancel_actor, row.cancel_reason)
                cancel_run(tx, row, asked, now)
                return resolved, RunCancelled(row.line, run_id, asked.actor, asked.reason)
            else:
                reason = f"{actor} found no job"
                move_run(tx, row, RunState.PLANNED, reason, now, actor=actor, message=None)
                end_attempt(tx, row, "interrupted", reason, now)
            return resolved, None

        return await self._database.write(transaction)


def call_off(
    tx: Connection, row: Row[Any], reason: str, actor: str, now: datetime
) -> RunCancelled | RunCancelAsked:
    """End a run that is locked; see Interventions.cancel. Raises RunIsOverError."""
    state = RunState(row.state)
    if state not in UNFINISHED_RUN_STATES:
        raise RunIsOverError(row)
    if row.cancel_asked_at is not None:
        return RunCancelAsked(row.line, row.id, row.cancel_actor, row.cancel_reason)
    if not state.active and not is_attempt_open(tx, row):
        cancel_run(tx, row, Cancellation(actor, reason), now)
        return RunCancelled(row.line, row.id, actor, reason)
    shown = {"message": f"being cancelled by {actor}"} if state.active else {}
    tx.execute(
        update(runs)
        .where(runs.c.id == row.id)
        .values(cancel_asked_at=now, cancel_actor=actor, cancel_reason=reason, **shown)
    )
    return RunCancelAsked(row.line, row.id, actor, reason)
