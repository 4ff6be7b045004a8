"""The batch size of each model line: the present one, what it learned from, every change.

Chooses nothing: learning/batch_sizing.py does. A change is compare-and-set on the row's
revision, so that of several daemons one makes it, and brings its history row along.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from daemon.store.bookkeeping import Move, record
from daemon.store.database import Database
from daemon.store.dialect import insert_new
from daemon.store.tables import (
    batch_sizes,
    batches,
    evaluations,
    imports,
    run_attempts,
    runs,
    tallies,
    transitions,
    versions,
)
from learning.batch_sizing import (
    RUNS_LOOKED_AT,
    EndedRun,
    Experience,
    SizeCause,
    SizeRules,
    Sizing,
)
from learning.batching import Trigger
from learning.errors import ConflictError
from learning.facts import BatchSizeChanged
from learning.gate import Outcome
from learning.lifecycle import EventState, RunState
from learning.lines import ModelLine
from learning.ports import EventKind

SIZER = "sealer"
"""Who makes the automatic changes, in the history."""
HISTORY = "batch_size"
"""The kind of its history rows; they refer to the line."""

# Forgotten ones mostly were, and a sum that falls would look like a stream that dried up.
_EVER_QUEUED = (
    EventState.QUEUED,
    EventState.SEALED,
    EventState.WITHDRAWN,
    EventState.FORGOTTEN,
)


class BatchSizeMovedError(ConflictError):
    """Another hand set a line's batch size at the same moment."""

    def __init__(self, line: str) -> None:
        super().__init__(f"another hand set the batch size of {line} just now; look, and try again")
        self.line = line


@dataclass(frozen=True)
class LineBatchSize:
    """The batch size of one line, in events, and why."""

    line: str
    size: int
    needed: int
    """See learning.batch_sizing.Experience."""
    pinned: bool
    """An operator set it: it does not change by itself."""
    cause: str
    reason: str
    changed_at: datetime | None
    """When it was last set; None when it is as configured."""
    cause_since: datetime | None
    """Since when the cause is this one."""
    revision: int
    """0 while nothing is stored; a change has to name the one that it saw."""


class BatchSizes:
    """The batch sizes of one database, under whatever rules one daemon has when it is asked."""

    def __init__(self, database: Database, rules: Callable[[], SizeRules]) -> None:
        self._database = database
        self._rules = rules

    @property
    def rules(self) -> SizeRules:
        """Those of now."""
        return self._rules()

    async def current(self) -> Mapping[str, LineBatchSize]:
        """Those of the lines that have one of their own; see `of_line` for the others."""
        return await self._database.read(lambda tx: sizes_of(tx, self.rules))

    async def size_of(self, line: ModelLine) -> int:
        """So many events make a batch of a line now."""
        return await self._database.read(lambda tx: of_line(tx, line.name, self.rules).size)

    async def experience(self, line: ModelLine, now: datetime) -> tuple[LineBatchSize, Experience]:
        """The present size of a line, and what it has shown since it has that size."""
        return await self._database.read(lambda tx: _experience(tx, line, self.rules, now))

    async def change(
        self, seen: LineBatchSize, sizing: Sizing, now: datetime
    ) -> BatchSizeChanged | None:
        """Take over a choice; None when the size stays, or another hand was quicker.

        A size that stays for another reason than before is stored with that reason.
        """
        stays = sizing.size == seen.size
        if stays and sizing.cause == seen.cause:
            return None
        wanted = replace(
            seen,
            size=sizing.size,
            needed=sizing.needed,
            cause=sizing.cause,
            reason=sizing.reason,
            changed_at=seen.changed_at if stays else now,
        )

        def transaction(tx: Connection) -> BatchSizeChanged | None:
            stored = self._store(tx, seen, wanted, now)
            return self._tell(tx, seen, wanted, SIZER, now) if stored and not stays else None

        return await self._database.write(transaction)

    async def set_by_hand(
        self, line: str, size: int | None, reason: str, actor: str, now: datetime
    ) -> BatchSizeChanged:
        """Pin a line's size, or release it with None: from there it adapts again.

        Releasing also forgets which sizes were too small. Raises BatchSizeMovedError.
        """

        def transaction(tx: Connection) -> BatchSizeChanged:
            seen = of_line(tx, line, self.rules, to_change=True)
            wanted = replace(
                seen,
                size=seen.size if size is None else size,
                needed=0,
                pinned=size is not None,
                cause=SizeCause.BY_HAND,
                reason=reason or ("released" if size is None else "pinned"),
                changed_at=now,
            )
            if not self._store(tx, seen, wanted, now):  # a first row, made by another hand
                raise BatchSizeMovedError(line)
            return self._tell(tx, seen, wanted, actor, now)

        return await self._database.write(transaction)

    async def follow_settings(self, now: datetime) -> list[BatchSizeChanged]:
        """Begin anew where `batch_size` was configured differently since.

        Once at start-up and once for each change of it at run time; more often it would make
        two daemons with different settings fight over one row.
        """

        def transaction(tx: Connection) -> list[BatchSizeChanged]:
            changed = []
            for row in tx.execute(
                select(batch_sizes)
                .where(
                    batch_sizes.c.configured != self.rules.start, batch_sizes.c.pinned.is_(False)
                )
                .order_by(batch_sizes.c.line)
                .with_for_update()
            ).all():
                # What it was under the settings of then; those of now may say otherwise.
                seen = replace(of_line(tx, row.line, self.rules), size=row.size)
                wanted = replace(
                    seen,
                    size=self.rules.start,
                    needed=0,
                    cause=SizeCause.CONFIGURED,
                    reason=f"queue.batch_size is {self.rules.start} now, it was {row.configured}",
                    changed_at=now,
                )
                if self._store(tx, seen, wanted, now):
                    changed.append(self._tell(tx, seen, wanted, "settings", now))
            return changed

        return await self._database.write(transaction)

    def _store(
        self, tx: Connection, seen: LineBatchSize, wanted: LineBatchSize, now: datetime
    ) -> bool:
        """Whether the row was still as it was seen, and is now as wanted."""
        values = {
            "size": wanted.size,
            "needed": wanted.needed,
            "configured": self.rules.start,
            "pinned": wanted.pinned,
            "cause": wanted.cause,
            "reason": wanted.reason,
            "revision": seen.revision + 1,
            "changed_at": wanted.changed_at,
            "cause_since": seen.cause_since if wanted.cause == seen.cause else now,
        }
        first = insert_new(tx, batch_sizes).values(line=seen.line, **values)
        later = (
            update(batch_sizes)
            .where(batch_sizes.c.line == seen.line, batch_sizes.c.revision == seen.revision)
            .values(**values)
        )
        statement = first if seen.revision == 0 else later
        # Asked for the row: how many rows an INSERT has made is not told by every driver.
        return tx.execute(statement.returning(batch_sizes.c.line)).first() is not None

    def _tell(
        self, tx: Connection, seen: LineBatchSize, wanted: LineBatchSize, actor: str, now: datetime
    ) -> BatchSizeChanged:
        why = f"{wanted.cause}: {wanted.reason}"
        record(tx, [Move(HISTORY, seen.line, str(seen.size), str(wanted.size), why, actor)], now)
        return BatchSizeChanged(
            seen.line, seen.size, wanted.size, wanted.cause, wanted.reason, actor
        )


def sizes_of(tx: Connection, rules: SizeRules) -> dict[str, LineBatchSize]:
    """The size of every line that has a row of its own."""
    return {row.line: _told(row, rules) for row in tx.execute(select(batch_sizes))}


def as_configured(line: str, rules: SizeRules) -> LineBatchSize:
    """The size of a line that has no row of its own."""
    reason = "queue.batch_size" if rules.adaptive else "queue.batch_size; queue.adaptive is off"
    return LineBatchSize(line, rules.start, 0, False, SizeCause.CONFIGURED, reason, None, None, 0)


def of_line(
    tx: Connection, line: str, rules: SizeRules, *, to_change: bool = False
) -> LineBatchSize:
    """The size of one line; `to_change` locks its row until the transaction ends."""
    query = select(batch_sizes).where(batch_sizes.c.line == line)
    row = tx.execute(query.with_for_update() if to_change else query).first()
    return as_configured(line, rules) if row is None else _told(row, rules)


def _told(row: Row[Any], rules: SizeRules) -> LineBatchSize:
    return LineBatchSize(
        line=row.line,
        size=_effective(row.size, row.pinned, rules),
        needed=row.needed,
        pinned=row.pinned,
        cause=row.cause,
        reason=row.reason,
        changed_at=row.changed_at,
        cause_since=row.cause_since,
        revision=row.revision,
    )


def _effective(size: int, pinned: bool, rules: SizeRules) -> int:
    """What an operator pinned counts; what was learned, within bounds, while it may adapt."""
    if pinned:
        return size
    return rules.bounded(size) if rules.adaptive else rules.start


def _experience(
    tx: Connection, line: ModelLine, rules: SizeRules, now: datetime
) -> tuple[LineBatchSize, Experience]:
    present = of_line(tx, line.name, rules)
    report = (
        select(evaluations.c.report)
        .join(versions, versions.c.id == evaluations.c.version_id)
        .where(versions.c.run_id == runs.c.id)
        .order_by(evaluations.c.id)
        .limit(1)
        .scalar_subquery()
    )
    query = (
        select(
            runs.c.state,
            runs.c.outcome,
            runs.c.finished_at,
            func.coalesce(run_attempts.c.started_at, runs.c.planned_at).label("started_at"),
            batches.c.trigger,
            batches.c.sealed_at,
            batches.c.queued_so_far,
            report.label("report"),
        )
        .join(batches, batches.c.id == runs.c.batch_id)
        .outerjoin(
            run_attempts, (run_attempts.c.run_id == runs.c.id) & (run_attempts.c.attempt == 1)
        )
        .where(
            runs.c.line == line.name,
            runs.c.state.in_([RunState.DECIDED, RunState.FAILED]),
            # A file is as large as it is, and so is what is trained anew: such a run says
            # nothing of the stream.
            batches.c.trigger.not_in([Trigger.IMPORT, Trigger.RETRAIN]),
        )
        .order_by(runs.c.planned_at.desc(), runs.c.id)
        .limit(RUNS_LOOKED_AT)
    )
    if present.changed_at is not None:
        query = query.where(runs.c.planned_at >= present.changed_at)
    rows = tx.execute(query).all()
    ended = [
        EndedRun(
            seconds=(row.finished_at - row.started_at).total_seconds(),
            trigger=Trigger(row.trigger),
            outcome=Outcome(row.outcome) if row.state == RunState.DECIDED else None,
            gain=((row.report or {}).get("overall") or {}).get("gain"),
        )
        for row in rows
    ]
    queued, ever_queued = _counts(tx, line)
    rate = None
    if rows and rows[-1].queued_so_far is not None and now > rows[-1].sealed_at:
        arrived = max(0, ever_queued - rows[-1].queued_so_far)
        rate = arrived / (now - rows[-1].sealed_at).total_seconds()
    idle = timedelta(0)
    if present.cause == SizeCause.IDLE and present.cause_since is not None:
        idle = now - present.cause_since
    return present, Experience(
        size=present.size,
        needed=present.needed,
        waiting=queued,
        rate=rate,
        runs=ended,
        changes_today=_changes_since(tx, line.name, now - timedelta(days=1)),
        idle_seconds=idle.total_seconds(),
    )


def ever_queued(tx: Connection, line: ModelLine) -> int:
    """How many events of a line's stream were ever queued; withdrawn ones count."""
    return _counts(tx, line)[1]


def _counts(tx: Connection, line: ModelLine) -> tuple[int, int]:
    """Events of a line that are queued, and that ever were; those of imported files were not."""
    by_state = {
        row.state: int(row.n)
        for row in tx.execute(
            select(tallies.c.state, func.sum(tallies.c.n).label("n"))
            .where(
                tallies.c.kind == EventKind.OUTPUT,
                tallies.c.task_type.in_(line.task_types),
                tallies.c.state.in_(_EVER_QUEUED),
            )
            .group_by(tallies.c.state)
        )
    }
    imported = tx.execute(
        select(func.coalesce(func.sum(imports.c.n_events), 0)).where(imports.c.line == line.name)
    ).scalar_one()
    return by_state.get(EventState.QUEUED, 0), sum(by_state.values()) - int(imported)


def _changes_since(tx: Connection, line: str, since: datetime) -> int:
    """Automatic changes of a line's size; it has few, and the index names them."""
    return tx.execute(
        select(func.count()).where(
            transitions.c.kind == HISTORY,
            transitions.c.ref == line,
            transitions.c.actor == SIZER,
            transitions.c.at > since,
        )
    ).scalar_one()
