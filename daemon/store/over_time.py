"""What happened when: counts by task type and hour, so that a window is summed, not counted.

Written in the transactions that change things: what outputs do by bookkeeping.py, what
feedback says by `FeedbackCounter` here. Hours become days and days one row, so that sums over
everything stay equal to counts of everything, and the tables stay small for ever.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Row, Table, and_, case, delete, func, select

from daemon.store.database import Database
from daemon.store.dialect import CHUNK, add_up, take_turns
from daemon.store.digest import JoinedFeedback
from daemon.store.tables import (
    engagement_over_time,
    events,
    feedback,
    feedback_over_time,
    outputs_over_time,
)
from learning.clock import EPOCH
from learning.facts import Fact
from learning.lifecycle import FeedbackState
from learning.statistics import (
    METRICS,
    SURE,
    UNSURE,
    Activity,
    FeedbackCounts,
    Moments,
    OutputCounts,
    logarithmic,
)

HOUR, DAY, EVER = "hour", "day", "ever"
HOURS_KEPT = timedelta(days=15)
"""Hours that are older become days."""
DAYS_KEPT = timedelta(days=400)
"""Days that are older become one row for all the time before."""
LONGEST_BY_HOUR = timedelta(days=7)
"""A window of so long, and the one before it, are within the hours that are kept."""

TABLES = (outputs_over_time, feedback_over_time, engagement_over_time)


def hour_of(time: datetime) -> datetime:
    """When its hour began."""
    return time.replace(minute=0, second=0, microsecond=0)


def day_of(time: datetime) -> datetime:
    """When its day began, in UTC."""
    return time.replace(hour=0, minute=0, second=0, microsecond=0)


@dataclass(frozen=True)
class Window:
    """A stretch of time up to now, and one of about the same length before it."""

    before: datetime
    since: datetime
    until: datetime

    @classmethod
    def of(cls, length: timedelta, now: datetime) -> "Window":
        """From a whole hour, or of a long one from a whole day: no less than asked for."""
        start_of = hour_of if length <= LONGEST_BY_HOUR else day_of
        since = start_of(now - length)
        return cls(start_of(since - length), since, now)


@dataclass(frozen=True)
class Looked:
    """What was counted of each task type: ever, in a window, and in the one before."""

    ever: Mapping[str, Activity]
    recent: Mapping[str, Activity]
    earlier: Mapping[str, Activity]


class OverTime:
    """The counts by time of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def fold(self, now: datetime) -> int:
        """Make days of old hours, and one row of old days. Returns how many rows went away."""

        def transaction(tx: Connection) -> int:
            take_turns(tx, ["over_time"])
            return sum(
                _fold(tx, table, HOUR, DAY, before=day_of(now - HOURS_KEPT))
                + _fold(tx, table, DAY, EVER, before=day_of(now - DAYS_KEPT))
                for table in TABLES
            )

        return await self._database.write(transaction)


def look_over_time(tx: Connection, window: Window) -> Looked:
    """Sums of the counts. The tables have a bounded number of rows for each task type."""
    stretches: dict[str, defaultdict[str, Activity]] = {
        name: defaultdict(Activity) for name in ("ever", "recent", "earlier")
    }
    for table in TABLES:
        for row in tx.execute(_sums(table, window)):
            told = _activity(table, row)
            if row.stretch != "ever":
                stretches[row.stretch][row.task_type] += told
            stretches["ever"][row.task_type] += told
    return Looked(**stretches)


def activity_since(tx: Connection, since: datetime) -> Activity:
    """All task types together, from a whole hour on that is not long ago; without engagement."""
    outputs, opinions = (
        tx.execute(
            select(*(_sum_of(table, name) for name in _counted(table))).where(
                table.c.span == HOUR, table.c.since >= since
            )
        ).one()
        for table in (outputs_over_time, feedback_over_time)
    )
    return Activity(_counts(OutputCounts, outputs), _counts(FeedbackCounts, opinions))


def _activity(table: Table, row: Row[Any]) -> Activity:
    if table is outputs_over_time:
        return Activity(outputs=_counts(OutputCounts, row))
    if table is feedback_over_time:
        return Activity(feedback=_counts(FeedbackCounts, row))
    return Activity(engagement={row.metric: _counts(Moments, row)})


def _sums(table: Table, window: Window) -> Any:
    stretch = case(
        (and_(table.c.span != EVER, table.c.since >= window.since), "recent"),
        (and_(table.c.span != EVER, table.c.since >= window.before), "earlier"),
        else_="ever",
    ).label("stretch")
    keys = [table.c.task_type, *([table.c.metric] if "metric" in table.c else [])]
    sums = (_sum_of(table, name) for name in _counted(table))
    return select(*keys, stretch, *sums).group_by(*keys, stretch)


def _counted(table: Table) -> list[str]:
    return [column.name for column in table.columns if not column.primary_key]


def _sum_of(table: Table, name: str) -> Any:
    return func.coalesce(func.sum(table.c[name]), 0).label(name)


def _counts(form: type[Any], row: Row[Any]) -> Any:
    """PostgreSQL gives sums of whole numbers as Decimal."""
    values = {name: getattr(row, name) for name in form.__dataclass_fields__}
    return form(**{k: int(v) if isinstance(v, Decimal) else v for k, v in values.items()})


def _fold(tx: Connection, table: Table, span: str, into: str, *, before: datetime) -> int:
    """Add the rows of a span that began before some time to those of a longer one."""
    rows = tx.execute(
        delete(table).where(table.c.span == span, table.c.since < before).returning(*table.c)
    ).all()
    sums: defaultdict[tuple[Any, ...], Counter[str]] = defaultdict(Counter)
    keys = [column.name for column in table.primary_key]
    for row in rows:
        found = {
            **row._mapping,
            "span": into,
            "since": day_of(row.since) if into == DAY else EPOCH,
        }
        sums[tuple(found[key] for key in keys)].update(
            {name: found[name] for name in _counted(table)}
        )
    folded = [
        {**dict(zip(keys, key, strict=True)), **counts} for key, counts in sorted(sums.items())
    ]
    add_up(tx, table, keys, folded)
    return len(rows) - len(folded)


# --- feedback -------------------------------------------------------------------------


@dataclass
class _Hour:
    """What feedback of one task type said in one hour."""

    counts: Counter[str] = field(default_factory=Counter)
    engagement: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


class FeedbackCounter:
    """A consequence of feedback: it is counted. Implements daemon.store.digest.Consequence."""

    def __call__(
        self, tx: Connection, feedback: Sequence[JoinedFeedback], now: datetime
    ) -> Sequence[Fact]:
        """See daemon.store.digest.Consequence."""
        first = _firsts(tx, feedback)
        hours: defaultdict[tuple[str, datetime], _Hour] = defaultdict(_Hour)
        for one in feedback:
            hour = hours[one.event.task_type, hour_of(one.received_at)]
            hour.counts.update(_said(one, first))
            for metric, value in one.event.feedback.engagement_metrics.items():
                hour.engagement[metric].append(logarithmic(value))
        no_counts = dict.fromkeys(_counted(feedback_over_time), 0)
        add_up(
            tx,
            feedback_over_time,
            ("task_type", "span", "since"),
            [
                {"task_type": task_type, "span": HOUR, "since": since, **no_counts, **hour.counts}
                for (task_type, since), hour in sorted(hours.items())
            ],
        )
        known = _known_metrics(tx, {task_type for task_type, _ in hours})
        add_up(
            tx,
            engagement_over_time,
            ("task_type", "metric", "span", "since"),
            list(_engagement_rows(hours, known)),
        )
        return ()


def _said(one: JoinedFeedback, first: Collection[int]) -> Iterable[str]:
    """The columns in which a feedback counts."""
    yield "n"
    if (stars := one.event.feedback.user_rating) is not None:
        yield f"rated_{stars}"
    if (approved := one.event.approved) is None:
        return
    word = "yes" if approved else "no"
    yield word
    if one.id in first:
        yield f"late_{word}"
    confidence = one.output.confidence
    if confidence is not None and confidence >= SURE:
        yield "sure"
        if not approved:
            yield "sure_no"
    if confidence is not None and confidence < UNSURE:
        yield "unsure"
        if approved:
            yield "unsure_yes"


def _firsts(tx: Connection, told: Sequence[JoinedFeedback]) -> set[int]:
    """The late feedback that is the first to say what it says of its output.

    A "yes" about what a person had approved before it was sealed is not news.
    """
    late = sorted(
        {
            one.output.id
            for one in told
            if one.state is FeedbackState.LATE and one.event.approved is not None
        }
    )
    found: set[int] = set()
    for start in range(0, len(late), CHUNK):
        chunk = late[start : start + CHUNK]
        rows = tx.execute(
            select(func.min(feedback.c.id).label("first"), feedback.c.approved, events.c.by_human)
            .join(events, events.c.id == feedback.c.output_id)
            .where(feedback.c.output_id.in_(chunk), feedback.c.approved.is_not(None))
            .group_by(feedback.c.output_id, feedback.c.approved, events.c.by_human)
        )
        found.update(row.first for row in rows if not (row.approved and row.by_human))
    return found & {one.id for one in told if one.state is FeedbackState.LATE}


def _known_metrics(tx: Connection, task_types: Collection[str]) -> dict[str, set[str]]:
    """The metrics that are counted of each task type."""
    known: dict[str, set[str]] = {task_type: set() for task_type in task_types}
    query = (
        select(engagement_over_time.c.task_type, engagement_over_time.c.metric)
        .distinct()
        .where(engagement_over_time.c.task_type.in_(sorted(task_types)))
    )
    for row in tx.execute(query):
        known[row.task_type].add(row.metric)
    return known


def _engagement_rows(
    hours: Mapping[tuple[str, datetime], _Hour], known: dict[str, set[str]]
) -> Iterable[Mapping[str, Any]]:
    for (task_type, since), hour in sorted(hours.items(), key=lambda item: item[0]):
        for metric, values in sorted(hour.engagement.items()):
            if metric not in known[task_type]:
                if len(known[task_type]) >= METRICS:
                    continue
                known[task_type].add(metric)
            yield {
                "task_type": task_type,
                "metric": metric,
                "span": HOUR,
                "since": since,
                "n": len(values),
                "total": sum(values),
                "squares": sum(value * value for value in values),
            }
