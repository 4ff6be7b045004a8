"""Drives a store as the daemon does, in verbs short enough that a test reads as a story.

Every step takes the time from a clock that stands still until a test moves it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import ColumnElement, Row, Table, select

from daemon.store import Store
from daemon.store.database import Database
from daemon.store.registry import champion_of
from daemon.store.tables import batch_members, events, metadata, versions
from learning.batching import Due, Trigger
from learning.budget import Quote
from learning.events import FeedbackEvent, OutputEvent
from learning.facts import BatchSealed, EventsStored, Promoted, RolledBack
from learning.gate import GateReport, Outcome, Refusal, TrainingProof, refused
from learning.lifecycle import Role
from learning.lines import ModelLine
from learning.ports import Decision, Duel, RunRecord, TrainingOutcome
from learning.sampling import SplitRules
from tests.builders import NOON, block

LINE = ModelLine(
    name="normalize",
    task_types=frozenset({"normalize"}),
    base_model="tiny",
    provider="scripted",
    training={"epochs": 1},
)
ALL_TRAIN = SplitRules(
    held_out_share=0.0, starting_share=0.0, replay_share=0.0, cross_task_learning=False
)
AS_SHIPPED = SplitRules()
PROOF = TrainingProof(trained_tokens=100, weight_delta_norm=0.1, all_finite=True)


def report(outcome: Outcome, *, p_better: float | None = 0.5) -> GateReport:
    """A verdict that followed from a comparison."""
    return GateReport(outcome, f"the gate says {outcome}", p_better=p_better, threshold=0.025)


@dataclass
class StoppedClock:
    """Shows one time until it is set to another."""

    now: datetime = NOON

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Driver:
    """One store and the line that most tests are about."""

    store: Store
    clock: StoppedClock = field(default_factory=StoppedClock)
    line: ModelLine = LINE
    quote: Quote | None = None
    """What each attempt is to reserve."""

    @property
    def now(self) -> datetime:
        """The time, for the driver and the store alike."""
        return self.clock.now

    def wait(self, **duration: float) -> None:
        """Let time pass."""
        self.clock.now += timedelta(**duration)

    async def send(self, *arrivals: OutputEvent | FeedbackEvent) -> EventsStored:
        """Store arrivals in one block."""
        return await self.store.intake.append(block(*arrivals, at=self.now))

    async def seal(
        self,
        *,
        size: int = 100,
        trigger: Trigger = Trigger.FLUSH,
        rules: SplitRules = ALL_TRAIN,
        line: ModelLine | None = None,
    ) -> BatchSealed | None:
        """Seal the oldest queued events."""
        return await self.store.queue.seal(
            line or self.line, Due(trigger, size), rules, "sealer", self.now
        )

    async def batch(self, *arrivals: OutputEvent, **sealing: Any) -> BatchSealed:
        """Store outputs and seal them."""
        await self.send(*arrivals)
        batch = await self.seal(**sealing)
        assert batch is not None
        return batch

    async def run_of(self, *arrivals: OutputEvent, **sealing: Any) -> str:
        """Store outputs, seal them, and give the planned run's id."""
        batch = await self.batch(*arrivals, **sealing)
        assert batch.run_id is not None
        return batch.run_id

    async def begin(self, run_id: str) -> RunRecord:
        """planned -> launching."""
        return await self.store.runs.begin(run_id, self.line, self.now, quote=self.quote)

    async def train(
        self, run_id: str, *, method: str = "lora", proof: TrainingProof = PROOF, **measured: Any
    ) -> None:
        """planned -> trained."""
        record = await self.begin(run_id)
        await self.store.runs.adopt(run_id, f"job-{record.attempt}", self.now)
        await self.finish_training(run_id, method=method, proof=proof, **measured)

    async def finish_training(
        self, run_id: str, *, method: str = "lora", proof: TrainingProof = PROOF, **measured: Any
    ) -> None:
        """running -> trained."""
        outcome = TrainingOutcome(Path("/tmp/out"), method, proof, measured)  # noqa: S108
        await self.store.runs.finish_training(
            run_id, f"{run_id}-files", "0" * 64, outcome, self.now
        )

    async def enter(self, run_id: str) -> Duel:
        """trained -> evaluating."""
        return await self.store.runs.enter(run_id, self.now)

    async def decide(
        self,
        run_id: str,
        outcome: Outcome,
        *,
        duel: Duel | None = None,
        refusal: Refusal | None = None,
        p_better: float | None = 0.5,
    ) -> Decision:
        """evaluating -> decided."""
        said = refused(refusal) if refusal is not None else report(outcome, p_better=p_better)
        against = duel if duel is not None else await self.enter(run_id)
        return await self.store.runs.decide(run_id, against, said, {}, self.now)

    async def finish(self, run_id: str, outcome: Outcome, **told: Any) -> Decision:
        """planned -> decided."""
        await self.train(run_id)
        return await self.decide(run_id, outcome, **told)

    async def release(self, *arrivals: OutputEvent, **sealing: Any) -> str:
        """Outputs all the way to a promoted version; its number."""
        decision = await self.finish(await self.run_of(*arrivals, **sealing), Outcome.PROMOTE)
        assert decision.promoted is not None
        return decision.promoted.version

    async def promote(self, version: str, *, force: bool = True) -> Promoted:
        """Promote by hand."""
        return await self.store.registry.promote(
            self.line.name, version, force=force, reason="I know", actor="ann", now=self.now
        )

    async def rollback(self, to: str | None = None) -> RolledBack:
        """Roll back by hand."""
        return await self.store.registry.rollback(
            self.line.name, to, reason="it was worse", actor="ann", now=self.now
        )

    def configure(self, **changes: Any) -> None:
        """Change the line's configuration."""
        self.line = replace(self.line, **changes)

    # --- looking -----------------------------------------------------------------------

    async def rows(self, table: Table, *conditions: ColumnElement[bool]) -> list[Row[Any]]:
        """Rows of a table in the order of its key."""
        return await rows(self.store.database, table, *conditions)

    async def event(self, task_id: str) -> Row[Any]:
        """The stored output of a task."""
        (row,) = await self.rows(events, events.c.task_id == task_id)
        return row

    async def states(self) -> dict[str, str]:
        """The state of each output, by task."""
        return {row.task_id: row.state for row in await self.rows(events)}

    async def members(self, batch: BatchSealed, *roles: Role) -> list[str]:
        """The tasks of a batch's members of some roles, in the order of their arrival."""
        found = await self.store.database.read(
            lambda tx: (
                tx.execute(
                    select(events.c.task_id)
                    .join(batch_members, batch_members.c.event_id == events.c.id)
                    .where(
                        batch_members.c.batch_id == batch.batch_id, batch_members.c.role.in_(roles)
                    )
                    .order_by(events.c.id)
                )
                .scalars()
                .all()
            )
        )
        return list(found)

    async def version(self, number: str) -> Row[Any]:
        """A version of the line by its release or candidate number."""
        (row,) = await self.rows(
            versions, (versions.c.release == number) | (versions.c.candidate == number)
        )
        return row

    async def champion(self) -> str:
        """The release number of the line's champion."""
        return await self.store.database.read(
            lambda tx: champion_of(tx, self.line.name).row.release
        )


async def rows(
    database: Database, table: Table, *conditions: ColumnElement[bool]
) -> list[Row[Any]]:
    """Rows of a table in the order of its key."""
    return await database.read(
        lambda tx: list(
            tx.execute(select(table).where(*conditions).order_by(*table.primary_key.columns))
        )
    )


async def everything(database: Database) -> dict[str, Sequence[Row[Any]]]:
    """All rows of all tables: equal before and after where nothing was written."""
    return {table.name: await rows(database, table) for table in metadata.sorted_tables}


def wipe(url: str) -> None:
    """Empty every table of a PostgreSQL database, and begin to number from 1 again.

    Quicker than a new database for each test, by far.
    """
    deletions = [
        sql.SQL("DELETE FROM {}").format(sql.Identifier(table.name))
        for table in reversed(metadata.sorted_tables)
    ]
    renumber = sql.SQL("SELECT setval(oid::regclass, 1, false) FROM pg_class WHERE relkind = 'S'")
    with psycopg.connect(url, connect_timeout=5) as session:
        session.execute("SET LOCAL lock_timeout = '10s'")
        session.execute(sql.SQL("; ").join([*deletions, renumber]))
