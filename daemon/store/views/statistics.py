"""What was learned and what people make of it (LP7), with the statistics of QB1, on one snapshot.

Reads sums that are kept as things happen (daemon/store/over_time.py); decides nothing: what is
a trend, an issue or advice is said in learning/.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection, Table, select

from daemon.store.database import Database
from daemon.store.over_time import Looked, Window, look_over_time
from daemon.store.tables import events, feedback, transitions
from daemon.store.views.overview import Overview, Overviews, Stats, TaskTypeStatistics
from learning.clock import Clock
from learning.errors import NotFoundError
from learning.gate import Outcome
from learning.lifecycle import APPROVED_STATES, REJECTED_STATES, EventState, RunState
from learning.policy import Policy
from learning.recommendations import (
    Recommendation,
    Situation,
    Undecided,
    WaitingQueue,
    recommend,
)
from learning.statistics import (
    ENOUGH_JUDGED,
    Activity,
    Issue,
    Trend,
    issues_of,
    together,
    trends_of,
)
from monitoring.health import HEALTHY_SUCCESS_RATE

RECENTLY = timedelta(hours=24)
LONGEST = timedelta(days=180)

_NOTHING = Activity()


class NothingKnownError(NotFoundError):
    """No output and no feedback of a task type ever came."""

    def __init__(self, task_type: str) -> None:
        super().__init__(
            f"nothing of task type {task_type!r} ever came; `learnd stats` has those that did"
        )
        self.task_type = task_type


@dataclass(frozen=True)
class Judged:
    """What people made of outputs. The rate is approved / judged."""

    approved: int
    rejected: int
    success_rate: float | None
    """None without enough verdicts, which counts as healthy."""
    needed: int
    """Verdicts before there is a rate."""
    is_healthy: bool


@dataclass(frozen=True)
class Recent:
    """What came, and what people made of it, in the window."""

    outputs: int
    auto_approved: int
    avg_confidence: float | None
    avg_rating: float | None
    by_people: Judged


@dataclass(frozen=True)
class TaskTypeLearning:
    """One task type since the first start, and lately. Means are None without data."""

    outputs: int
    approved: int
    """That may be learned from, or were."""
    rejected: int
    held: int
    avg_confidence: float | None
    by_people: Judged
    recent: Recent


@dataclass(frozen=True)
class LearningStatistics(TaskTypeLearning):
    """All of them together."""

    success_rate: float | None
    """That of the window."""
    finetune_jobs: int
    """Runs that were ever planned."""
    by_task_type: Mapping[str, TaskTypeLearning]
    last_updated: datetime | None
    """When the last event came, or was moved."""


@dataclass(frozen=True)
class FeedbackStatistics:
    """What feedback says. Counted when it has met its output."""

    total: int
    recent: int
    avg_rating: float | None
    """In the window, in [1, 5]."""
    common_issues: Sequence[Issue]
    improvement_trends: Sequence[Trend]


@dataclass(frozen=True)
class LearningStats(Stats):
    """The answer of /v1/stats and of get_stats: QB1 and LP7 together."""

    at: datetime
    window: Window
    learning: LearningStatistics
    feedback: FeedbackStatistics
    recommendations: Sequence[Recommendation]


class StatisticsBooks:
    """The statistics of one database."""

    def __init__(
        self,
        database: Database,
        overviews: Overviews,
        policy: Callable[[], Policy],
        clock: Clock,
    ) -> None:
        self._database = database
        self._overviews = overviews
        self._policy = policy
        self._clock = clock

    async def look(
        self, window: timedelta = RECENTLY, task_type: str | None = None
    ) -> LearningStats:
        """Everything, or with a task type what is about that one.

        A window is of whole hours, from a week on of whole UTC days, and the one before it is
        what trends compare with. Raises NothingKnownError.
        """
        return await self._database.read(lambda tx: self._look(tx, window, task_type))

    def _look(self, tx: Connection, length: timedelta, task_type: str | None) -> LearningStats:
        overview = self._overviews.look_at(tx)
        window = Window.of(length, self._clock())
        looked = look_over_time(tx, window)
        known = {*overview.outputs, *overview.feedback, *looked.ever}
        if task_type is not None:
            if task_type not in known:
                raise NothingKnownError(task_type)
            known = {task_type}
        types = sorted(known)
        trends, issues = _told_by(looked, types)
        recent = together(looked.recent.get(one, _NOTHING) for one in types)
        ever = together(looked.ever.get(one, _NOTHING) for one in types)
        all_outputs = [overview.outputs[one] for one in types if one in overview.outputs]
        whole = _learning(all_outputs, ever, recent)
        return LearningStats(
            **vars(overview.stats),
            at=overview.at,
            window=window,
            learning=LearningStatistics(
                **vars(whole),
                success_rate=whole.recent.by_people.success_rate,
                finetune_jobs=sum(overview.runs_by_state.values()),
                by_task_type={
                    one: _learning(
                        [overview.outputs[one]] if one in overview.outputs else [],
                        looked.ever.get(one, _NOTHING),
                        looked.recent.get(one, _NOTHING),
                    )
                    for one in types
                },
                last_updated=_last_updated(tx),
            ),
            feedback=FeedbackStatistics(
                total=ever.feedback.n,
                recent=recent.feedback.n,
                avg_rating=recent.feedback.average_rating,
                common_issues=issues,
                improvement_trends=trends,
            ),
            recommendations=recommend(
                self._situation(overview, looked, types, issues, trends, length)
            ),
        )

    def _situation(
        self,
        overview: Overview,
        looked: Looked,
        types: Sequence[str],
        issues: Sequence[Issue],
        trends: Sequence[Trend],
        length: timedelta,
    ) -> Situation:
        lines = [line for line in overview.lines if set(line.task_types) & set(types)]
        return Situation(
            window=f"the last {_in_words(length)}",
            policy=self._policy(),
            recent={one: looked.recent.get(one, _NOTHING) for one in types},
            issues=issues,
            trends=trends,
            held={
                one: n
                for one in types
                if one in overview.outputs
                and (n := overview.outputs[one].states.get(EventState.HELD, 0))
            },
            queues=[
                WaitingQueue(
                    line.line,
                    line.task_types[0],
                    line.waiting,
                    (overview.at - line.oldest_waiting_at).total_seconds(),
                    is_idle=line.run_id is None,
                    has_base_model=line.base_model is not None,
                )
                for line in lines
                if line.oldest_waiting_at is not None
            ],
            undecided=[
                Undecided(line.line, line.task_types[0], line.held_out, line.wanted_held_out)
                for line in lines
                if line.last_decision is not None
                and line.last_decision.outcome == Outcome.ABSTAIN
                and line.held_out < line.wanted_held_out
            ],
            runs_succeeded=overview.runs_by_state.get(RunState.DECIDED, 0),
            runs_failed=overview.runs_by_state.get(RunState.FAILED, 0),
        )


def _learning(
    outputs: Sequence[TaskTypeStatistics], ever: Activity, recent: Activity
) -> TaskTypeLearning:
    def count(*states: EventState) -> int:
        return sum(one.states.get(state, 0) for one in outputs for state in states)

    return TaskTypeLearning(
        outputs=sum(sum(one.states.values()) for one in outputs),
        approved=count(*APPROVED_STATES),
        rejected=count(*REJECTED_STATES),
        held=count(EventState.HELD),
        avg_confidence=ever.average_confidence,
        by_people=_judged(ever),
        recent=Recent(
            outputs=recent.outputs.outputs,
            auto_approved=recent.outputs.auto_approved,
            avg_confidence=recent.average_confidence,
            avg_rating=recent.feedback.average_rating,
            by_people=_judged(recent),
        ),
    )


def _judged(seen: Activity) -> Judged:
    rate = seen.success_rate()
    is_healthy = rate is None or rate > HEALTHY_SUCCESS_RATE
    return Judged(seen.approved, seen.rejected, rate, ENOUGH_JUDGED, is_healthy)


def _told_by(looked: Looked, types: Sequence[str]) -> tuple[list[Trend], list[Issue]]:
    """Trends and issues of each task type; where there are several, trends of all come first.

    Engagement of all together would mix metrics that have a name in common, and no more.
    """
    trends: list[Trend] = []
    issues: list[Issue] = []
    if len(types) > 1:
        before, now = (
            replace(together(side.get(one, _NOTHING) for one in types), engagement={})
            for side in (looked.earlier, looked.recent)
        )
        trends += trends_of(before, now)
    for one in types:
        before, now = looked.earlier.get(one, _NOTHING), looked.recent.get(one, _NOTHING)
        of_one = trends_of(before, now, one)
        trends += of_one
        issues += issues_of(one, now, of_one)
    return trends, issues


def _last_updated(tx: Connection) -> datetime | None:
    def newest(table: Table, column: str) -> datetime | None:
        found: datetime | None = tx.execute(
            select(table.c[column]).order_by(table.c.id.desc()).limit(1)
        ).scalar()
        return found

    times = (
        newest(events, "received_at"),
        newest(feedback, "received_at"),
        newest(transitions, "at"),
    )
    return max((time for time in times if time is not None), default=None)


def _in_words(length: timedelta) -> str:
    hours = length / timedelta(hours=1)
    return f"{hours / 24:.0f} days" if hours >= 48 and hours % 24 == 0 else f"{hours:.0f} h"
