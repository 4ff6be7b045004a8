"""Fine-tune runs: a list, and one with its attempts, steps and measurements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, func, or_, select

from daemon.store.database import Database
from daemon.store.dialect import database_time
from daemon.store.tables import batch_members, run_attempts, run_leases, runs, spending, versions
from daemon.store.views.history import Step, history_of
from daemon.store.views.paging import Page, finite
from daemon.store.views.version_numbers import number, numbers_of
from learning.errors import NotFoundError
from learning.lifecycle import UNFINISHED_RUN_STATES, RunState


@dataclass(frozen=True)
class RunSummary:
    """One run on one line."""

    id: str
    line: str
    state: str
    batch_id: str
    provider: str
    attempt: int
    failures: int
    progress: Mapping[str, Any] | None
    """{step, total_steps, numbers}, while and after it trains."""
    outcome: str | None
    version: str | None
    """The number of the version that it made."""
    error: str | None
    message: str | None
    planned_at: datetime
    launched_at: datetime | None
    finished_at: datetime | None
    node: str | None
    """Whose daemon works on it, has its files, or worked on it last."""
    silent_since: datetime | None
    """When that daemon's lease lapsed, while the run still needs it. By the database's clock."""


@dataclass(frozen=True)
class AttemptCost:
    """What an attempt may cost, and what it did cost."""

    currency: str
    reserved: Decimal
    actual: Decimal | None
    """None as long as it has not ended."""
    basis: str | None
    """How that is known: a learning.budget.Basis."""


@dataclass(frozen=True)
class Attempt:
    """One try of a run: the intent, the job that it adopted, how it ended."""

    attempt: int
    job_id: str | None
    result: str | None
    message: str | None
    started_at: datetime
    ended_at: datetime | None
    cost: AttemptCost | None
    """None without a price."""


@dataclass(frozen=True)
class RunDetail:
    """Everything that is stored about one run."""

    summary: RunSummary
    base_model: str | None
    training: Mapping[str, Any] | None
    parent: str | None
    """The version that training continued from."""
    job_id: str | None
    artifact: str | None
    method: str | None
    measurements: Mapping[str, Any] | None
    not_before: datetime | None
    members: Mapping[str, int]
    """Members of its batch, by role."""
    attempts: Sequence[Attempt]
    history: Sequence[Step]


class Runs:
    """The runs of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self,
        *,
        line: str | None = None,
        state: RunState | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> Page[RunSummary, str]:
        """Runs planned before the run `before`, newest first. Raises NotFoundError for that."""

        def query(tx: Connection) -> Page[RunSummary, str]:
            query = summaries()
            if line is not None:
                query = query.where(runs.c.line == line)
            if state is not None:
                query = query.where(runs.c.state == state)
            if before is not None:
                planned_at = tx.execute(
                    select(runs.c.planned_at).where(runs.c.id == before)
                ).scalar()
                if planned_at is None:
                    raise NotFoundError(f"no run {before}; `learnd runs` lists them")
                query = query.where(
                    or_(
                        runs.c.planned_at < planned_at,
                        and_(runs.c.planned_at == planned_at, runs.c.id < before),
                    )
                )
            rows = tx.execute(
                query.order_by(runs.c.planned_at.desc(), runs.c.id.desc()).limit(limit)
            ).all()
            now = database_time(tx)
            return Page(
                [summary_of(row, now) for row in rows], rows[-1].id if len(rows) == limit else None
            )

        return await self._database.read(query)

    async def one(self, run_id: str) -> RunDetail | None:
        """One run, or None."""

        def query(tx: Connection) -> RunDetail | None:
            row = tx.execute(summaries().where(runs.c.id == run_id)).first()
            return None if row is None else _detail(tx, row)

        return await self._database.read(query)


def summaries() -> Select[Any]:
    """Each run with the number of the version that it made, and with its lease."""
    lease = (run_leases.c.node, run_leases.c.until, run_leases.c.bound)
    return (
        select(runs, number.label("version"), *lease)
        .outerjoin(versions, versions.c.run_id == runs.c.id)
        .outerjoin(run_leases, run_leases.c.run_id == runs.c.id)
    )


def summary_of(row: Row[Any], now: datetime) -> RunSummary:
    """A row of `summaries` on one line; `now` is the database's."""
    state = RunState(row.state)
    has_owner = row.node is not None and (state.active or row.bound)
    return RunSummary(
        id=row.id,
        line=row.line,
        state=row.state,
        batch_id=row.batch_id,
        provider=row.provider,
        attempt=row.attempt,
        failures=row.failures,
        progress=finite(row.progress),
        outcome=row.outcome,
        version=row.version,
        error=row.error,
        message=row.message,
        planned_at=row.planned_at,
        launched_at=row.launched_at,
        finished_at=row.finished_at,
        node=row.node if has_owner or state not in UNFINISHED_RUN_STATES else None,
        silent_since=(
            row.until if has_owner and state in UNFINISHED_RUN_STATES and row.until <= now else None
        ),
    )


def members_by_role(tx: Connection, batch_id: str) -> Mapping[str, int]:
    """How many events have each role in a batch."""
    rows = tx.execute(
        select(batch_members.c.role, func.count().label("n"))
        .where(batch_members.c.batch_id == batch_id)
        .group_by(batch_members.c.role)
        .order_by(batch_members.c.role)
    )
    return {row.role: row.n for row in rows}


def _detail(tx: Connection, row: Row[Any]) -> RunDetail:
    costs = {
        one.attempt: AttemptCost(one.currency, one.reserved, one.actual, one.basis)
        for one in tx.execute(select(spending).where(spending.c.run_id == row.id))
    }
    attempts = tx.execute(
        select(run_attempts).where(run_attempts.c.run_id == row.id).order_by(run_attempts.c.attempt)
    )
    return RunDetail(
        summary=summary_of(row, database_time(tx)),
        base_model=row.base_model,
        training=finite(row.training),
        parent=numbers_of(tx, [row.parent_id]).get(row.parent_id),
        job_id=row.job_id,
        artifact=row.artifact,
        method=row.method,
        measurements=finite(row.measurements),
        not_before=row.not_before,
        members=members_by_role(tx, row.batch_id),
        attempts=[
            Attempt(
                one.attempt,
                one.job_id,
                one.result,
                one.message,
                one.started_at,
                one.ended_at,
                costs.get(one.attempt),
            )
            for one in attempts
        ],
        history=history_of(tx, "run", row.id),
    )
