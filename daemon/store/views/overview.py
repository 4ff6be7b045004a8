"""What goes on: the queue, the runs, the lines and what intake did, on one snapshot.

No row of a table that grows with the stream is counted: intake keeps the counts.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, select

from daemon.store.batch_sizes import LineBatchSize, as_configured, sizes_of
from daemon.store.database import Database
from daemon.store.dialect import database_time
from daemon.store.over_time import activity_since, hour_of
from daemon.store.registry import CHAMPION
from daemon.store.tables import (
    aliases,
    evaluation_examples,
    evaluations,
    events,
    is_one_of,
    model_lines,
    runs,
    tallies,
    versions,
)
from daemon.store.views.paging import finite
from daemon.store.views.runs import RunSummary, summaries, summary_of
from daemon.store.views.version_numbers import number, numbers_of
from learning.batch_sizing import SizeRules
from learning.clock import Clock
from learning.lifecycle import UNFINISHED_RUN_STATES, EventState, RunState
from learning.lines import ModelLines
from learning.ports import EventKind

LAST_JOBS = 10
LATELY = timedelta(hours=24)


@dataclass(frozen=True)
class QueueStats:
    """Queued events, in all and by task type."""

    total: int
    by_type: Mapping[str, int]


@dataclass(frozen=True)
class ActiveStats:
    """Runs that are planned, under way or waiting."""

    total: int
    jobs: Sequence[RunSummary]


@dataclass(frozen=True)
class CompletedStats:
    """Runs that ended. The rate is decided / (decided + failed); None without any."""

    total: int
    success_rate: float | None
    jobs: Sequence[RunSummary]
    """The last ones."""


@dataclass(frozen=True)
class Stats:
    """The statistics of QB1."""

    queue: QueueStats
    active: ActiveStats
    completed: CompletedStats
    models: Mapping[str, str]
    """The champion of each line, such as v1.2.3."""


@dataclass(frozen=True)
class TaskTypeStatistics:
    """What became of one task type's outputs, by state, and their mean stated confidence."""

    states: Mapping[str, int]
    average_confidence: float | None


@dataclass(frozen=True)
class LastDecision:
    """The gate's last word on a line. Losses as in the gate; None when it compared nothing."""

    version: str
    against: str
    outcome: str
    reason: str
    champion_loss: float | None
    candidate_loss: float | None
    at: datetime


@dataclass(frozen=True)
class LineStatus:
    """One model line: what waits, what runs, what it can prove."""

    line: str
    task_types: Sequence[str]
    base_model: str | None
    """None: nothing can be trained until one is configured."""
    champion: str | None
    champion_since: datetime | None
    waiting: int
    oldest_waiting_at: datetime | None
    run_id: str | None
    run_state: str | None
    held_out: int
    """Frozen held-out examples of its task types."""
    wanted_held_out: int
    last_decision: LastDecision | None
    batch_size: LineBatchSize


@dataclass(frozen=True)
class JudgedLately:
    """Verdicts of people, on whatever task type."""

    since: datetime
    approved: int
    rejected: int


@dataclass(frozen=True)
class Overview:
    """Everything that `learnd status` shows."""

    at: datetime
    stats: Stats
    lines: Sequence[LineStatus]
    """Those with a version, and those for which something waits."""
    outputs: Mapping[str, TaskTypeStatistics]
    feedback: Mapping[str, Mapping[str, int]]
    """By task type, then by state."""
    dead_letters: Mapping[str, int]
    """By reason."""
    runs_by_state: Mapping[str, int]
    oldest_queued_at: Mapping[str, datetime]
    """By task type."""

    oldest_queued_seconds: float
    """Age of the oldest queued event; 0 when nothing waits."""
    judged_lately: JudgedLately


class Overviews:
    """Looks at one database as a whole."""

    def __init__(
        self,
        database: Database,
        lines: ModelLines,
        wanted_held_out: Callable[[], int],
        clock: Clock,
        size_rules: Callable[[], SizeRules],
    ) -> None:
        self._database = database
        self._lines = lines
        self._wanted_held_out = wanted_held_out
        self._clock = clock
        self._size_rules = size_rules

    async def look(self) -> Overview:
        """Everything at once."""
        return await self._database.read(self.look_at)

    def look_at(self, tx: Connection) -> Overview:
        """The same in a transaction, beside what else is read in it."""
        now = self._clock()
        counts = _Tallies(tx)
        queued = counts.queued()
        oldest = _oldest_queued(tx, list(queued))
        by_state = _runs_by_state(tx)
        database_now = database_time(tx)
        unfinished = [
            summary_of(row, database_now)
            for row in tx.execute(
                summaries()
                .where(runs.c.state.in_(UNFINISHED_RUN_STATES))
                .order_by(runs.c.planned_at, runs.c.id)
            )
        ]
        champions = _champions(tx)
        return Overview(
            at=now,
            stats=Stats(
                queue=QueueStats(sum(queued.values()), queued),
                active=ActiveStats(len(unfinished), unfinished),
                completed=_completed(tx, by_state, database_now),
                models={line: f"v{version}" for line, (version, _) in champions.items()},
            ),
            lines=self._line_statuses(tx, queued, oldest, unfinished, champions),
            outputs=counts.outputs(),
            feedback=counts.feedback(),
            dead_letters=counts.dead_letters(),
            runs_by_state=by_state,
            oldest_queued_at=oldest,
            oldest_queued_seconds=max(
                ((now - since).total_seconds() for since in oldest.values()),
                default=0.0,
            ),
            judged_lately=_judged_lately(tx, hour_of(now - LATELY)),
        )

    def _line_statuses(
        self,
        tx: Connection,
        queued: Mapping[str, int],
        oldest: Mapping[str, datetime],
        unfinished: Sequence[RunSummary],
        champions: Mapping[str, tuple[str, datetime]],
    ) -> Sequence[LineStatus]:
        bases = {row.name: row.base_model for row in tx.execute(select(model_lines))}
        frozen = _frozen(tx)
        decisions = _last_decisions(tx)
        rules = self._size_rules()
        sizes = sizes_of(tx, rules)
        # The oldest unfinished run of a line is the one that it works on.
        current = {run.line: run for run in reversed(unfinished)}
        statuses = []
        homeless = {task_type for task_type in queued if self._lines.owner(task_type) is None}
        for name in sorted({line.name for line in self._lines} | bases.keys() | homeless):
            line = self._lines.get(name)
            task_types = line.task_types if line is not None else frozenset({name})
            waiting = sum(queued.get(task_type, 0) for task_type in task_types)
            if name not in bases and waiting == 0:
                continue
            run = current.get(name)
            champion, since = champions.get(name, (None, None))
            times = [oldest[task_type] for task_type in task_types if task_type in oldest]
            statuses.append(
                LineStatus(
                    line=name,
                    task_types=sorted(task_types),
                    base_model=bases.get(name),
                    champion=champion,
                    champion_since=since,
                    waiting=waiting,
                    oldest_waiting_at=min(times, default=None),
                    run_id=run.id if run is not None else None,
                    run_state=run.state if run is not None else None,
                    held_out=sum(frozen.get(task_type, 0) for task_type in task_types),
                    wanted_held_out=self._wanted_held_out(),
                    last_decision=decisions.get(name),
                    batch_size=sizes.get(name) or as_configured(name, rules),
                )
            )
        return statuses


class _Tallies:
    """The running counts, read once."""

    def __init__(self, tx: Connection) -> None:
        self._rows = tx.execute(
            select(tallies)
            .where(tallies.c.n > 0)
            .order_by(tallies.c.kind, tallies.c.task_type, tallies.c.state)
        ).all()

    def queued(self) -> dict[str, int]:
        """Queued outputs by task type."""
        return {
            row.task_type: row.n
            for row in self._rows
            if row.kind == EventKind.OUTPUT and row.state == EventState.QUEUED
        }

    def outputs(self) -> dict[str, TaskTypeStatistics]:
        """Outputs by task type."""
        states: defaultdict[str, dict[str, int]] = defaultdict(dict)
        sums: defaultdict[str, float] = defaultdict(float)
        numbers: defaultdict[str, int] = defaultdict(int)
        for row in self._rows:
            if row.kind == EventKind.OUTPUT:
                states[row.task_type][row.state] = row.n
                sums[row.task_type] += row.confidence_sum
                numbers[row.task_type] += row.confidence_n
        return {
            name: TaskTypeStatistics(
                counts, sums[name] / numbers[name] if numbers[name] > 0 else None
            )
            for name, counts in states.items()
        }

    def feedback(self) -> dict[str, dict[str, int]]:
        """Feedback by task type and state."""
        found: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for row in self._rows:
            if row.kind == EventKind.FEEDBACK:
                found[row.task_type][row.state] = row.n
        return dict(found)

    def dead_letters(self) -> dict[str, int]:
        """Dead letters by reason."""
        found: defaultdict[str, int] = defaultdict(int)
        for row in self._rows:
            if row.kind == "dead_letter":
                found[row.state] += row.n
        return dict(found)


def _judged_lately(tx: Connection, since: datetime) -> JudgedLately:
    found = activity_since(tx, since)
    return JudgedLately(since, found.approved, found.rejected)


def _oldest_queued(tx: Connection, task_types: Sequence[str]) -> dict[str, datetime]:
    """Since when the longest waiting event of each queue waits; the index gives it at once."""
    found = {}
    for task_type in task_types:
        since = tx.execute(
            select(func.min(events.c.state_since)).where(
                is_one_of(events.c.state, EventState.QUEUED), events.c.task_type == task_type
            )
        ).scalar()
        if since is not None:
            found[task_type] = since
    return found


def _runs_by_state(tx: Connection) -> dict[str, int]:
    rows = tx.execute(select(runs.c.state, func.count().label("n")).group_by(runs.c.state))
    return {row.state: row.n for row in rows}


def _completed(
    tx: Connection, by_state: Mapping[str, int], database_now: datetime
) -> CompletedStats:
    decided = by_state.get(RunState.DECIDED, 0)
    failed = by_state.get(RunState.FAILED, 0)
    last = tx.execute(
        summaries()
        .where(runs.c.finished_at.is_not(None))
        .order_by(runs.c.planned_at.desc(), runs.c.id.desc())
        .limit(LAST_JOBS)
    )
    return CompletedStats(
        total=decided + failed + by_state.get(RunState.CANCELLED, 0),
        success_rate=decided / (decided + failed) if decided + failed else None,
        jobs=[summary_of(row, database_now) for row in last],
    )


def _champions(tx: Connection) -> dict[str, tuple[str, datetime]]:
    rows = tx.execute(
        select(aliases.c.line, aliases.c.updated_at, number.label("version"))
        .join(versions, versions.c.id == aliases.c.version_id)
        .where(aliases.c.name == CHAMPION)
        .order_by(aliases.c.line)
    )
    return {row.line: (row.version, row.updated_at) for row in rows}


def _frozen(tx: Connection) -> dict[str, int]:
    rows = tx.execute(
        select(evaluation_examples.c.task_type, func.count().label("n")).group_by(
            evaluation_examples.c.task_type
        )
    )
    return {row.task_type: row.n for row in rows}


def _last_decisions(tx: Connection) -> dict[str, LastDecision]:
    last = (
        select(func.max(evaluations.c.id))
        .join(versions, versions.c.id == evaluations.c.version_id)
        .group_by(versions.c.line)
    )
    rows = tx.execute(
        select(
            versions.c.line,
            number.label("version"),
            evaluations.c.champion_id,
            evaluations.c.outcome,
            evaluations.c.report,
            evaluations.c.at,
        )
        .join(versions, versions.c.id == evaluations.c.version_id)
        .where(evaluations.c.id.in_(last))
    ).all()
    champions = numbers_of(tx, (row.champion_id for row in rows))
    return {row.line: _last_decision(row, champions[row.champion_id]) for row in rows}


def _last_decision(row: Any, against: str) -> LastDecision:
    overall = row.report.get("overall") or {}
    return LastDecision(
        version=row.version,
        against=against,
        outcome=row.outcome,
        reason=row.report["reason"],
        champion_loss=finite(overall.get("champion_loss")),
        candidate_loss=finite(overall.get("candidate_loss")),
        at=row.at,
    )
