"""What trainings cost: spent and reserved, against the caps, and by day, month, line or run.

Amounts of different currencies stand side by side and are never added up.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    Select,
    case,
    func,
    literal,
    literal_column,
    select,
    type_coerce,
)

from daemon.store.database import Database
from daemon.store.spending import committed_since
from daemon.store.tables import Amount, is_one_of, runs, spending
from learning.budget import Basis, Budget, Period
from learning.clock import EPOCH, Clock
from learning.lifecycle import UNFINISHED_RUN_STATES

A_YEAR = timedelta(days=366)
"""Older days, months and runs are not shown."""
_DAY_MICROSECONDS = literal_column("86400000000", BigInteger)
"""Spelt out: PostgreSQL does not see that two bound parameters are one."""


class CostsBy(StrEnum):
    """What amounts are added up by."""

    DAY = "day"
    MONTH = "month"
    LINE = "line"
    RUN = "run"


@dataclass(frozen=True)
class Account:
    """What belongs together, in one currency."""

    key: str
    """A day (2026-03-01) or month (2026-03) in UTC, a line, or a run's id."""
    currency: str
    attempts: int
    """With a price, whether they had a job or not."""
    spent: Decimal
    estimated: Decimal
    """As much of `spent` was not reported by the service, but is the most that it may be."""
    reserved: Decimal
    """For attempts that have not ended."""
    trained_tokens: int
    """As services counted them."""


@dataclass(frozen=True)
class ProviderAccount:
    """What a line spent with a provider in this month, and has reserved."""

    line: str
    provider: str
    currency: str
    spent: Decimal
    reserved: Decimal


@dataclass(frozen=True)
class PeriodAccount:
    """The day or the month that it is, in the configured currency."""

    period: Period
    since: datetime
    committed: Decimal
    """Spent and reserved, together."""
    cap: Decimal | None
    left: Decimal | None
    """Of the cap; None without one."""


@dataclass(frozen=True)
class ShortRun:
    """A run that waits for money."""

    run_id: str
    line: str
    reason: str


@dataclass(frozen=True)
class Costs:
    """How the money stands."""

    at: datetime
    currency: str
    cap_per_run: Decimal | None
    periods: Sequence[PeriodAccount]
    """The day, then the month."""
    providers: Sequence[ProviderAccount]
    waiting: Sequence[ShortRun]


class CostBooks:
    """The books of one database. `budget` is asked anew each time: it may change."""

    def __init__(self, database: Database, budget: Callable[[], Budget], clock: Clock) -> None:
        self._database = database
        self._budget = budget
        self._clock = clock

    async def look(self) -> Costs:
        """How the money stands now."""
        now, budget = self._clock(), self._budget()

        def query(tx: Connection) -> Costs:
            return Costs(
                at=now,
                currency=budget.currency,
                cap_per_run=budget.caps.run,
                periods=[_period(tx, budget, period, now) for period in (Period.DAY, Period.MONTH)],
                providers=_providers(tx, now),
                waiting=_waiting(tx),
            )

        return await self._database.read(query)

    async def accounts(self, by: CostsBy, limit: int) -> Sequence[Account]:
        """The latest accounts, newest first; of lines those of this month, by name."""
        now = self._clock()
        return await self._database.read(lambda tx: _accounts(tx, by, limit, now))


def _period(tx: Connection, budget: Budget, period: Period, now: datetime) -> PeriodAccount:
    committed = committed_since(tx, budget.currency, period, now)
    cap = budget.caps.of(period)
    return PeriodAccount(
        period,
        period.start(now),
        committed,
        cap,
        None if cap is None else max(Decimal(0), cap - committed),
    )


def _providers(tx: Connection, now: datetime) -> Sequence[ProviderAccount]:
    keys = (spending.c.line, spending.c.provider, spending.c.currency)
    rows = tx.execute(_sums(*keys, since=Period.MONTH.start(now)).group_by(*keys).order_by(*keys))
    return [
        ProviderAccount(row.line, row.provider, row.currency, row.spent, row.reserved)
        for row in rows
    ]


def _waiting(tx: Connection) -> Sequence[ShortRun]:
    rows = tx.execute(
        select(runs)
        .where(is_one_of(runs.c.state, *UNFINISHED_RUN_STATES), runs.c.short_of_money)
        .order_by(runs.c.planned_at, runs.c.id)
    )
    return [ShortRun(row.id, row.line, row.message) for row in rows]


def _accounts(tx: Connection, by: CostsBy, limit: int, now: datetime) -> Sequence[Account]:
    match by:
        case CostsBy.DAY:
            return _by_day(tx, now)[:limit]
        case CostsBy.MONTH:
            return _by_month(_by_day(tx, now))[:limit]
        case CostsBy.LINE:
            key, since = spending.c.line, Period.MONTH.start(now)
            query = _sums(key.label("key"), spending.c.currency, since=since).order_by(key)
        case CostsBy.RUN:
            key, latest = spending.c.run_id, func.max(spending.c.reserved_at)
            query = _sums(key.label("key"), spending.c.currency, since=now - A_YEAR).order_by(
                latest.desc(), key
            )
    rows = tx.execute(query.group_by(key, spending.c.currency).limit(limit))
    return [_account(row.key, row) for row in rows]


def _by_day(tx: Connection, now: datetime) -> Sequence[Account]:
    day = type_coerce(spending.c.reserved_at, BigInteger) // _DAY_MICROSECONDS
    rows = tx.execute(
        _sums(day.label("key"), spending.c.currency, since=now - A_YEAR)
        .group_by(day, spending.c.currency)
        .order_by(day.desc(), spending.c.currency)
    )
    return [_account((EPOCH + timedelta(days=row.key)).date().isoformat(), row) for row in rows]


def _by_month(days: Iterable[Account]) -> Sequence[Account]:
    months: dict[tuple[str, str], Account] = {}
    for day in days:
        month = day.key[: len("2026-03")]
        so_far = months.get((month, day.currency))
        months[month, day.currency] = Account(
            month,
            day.currency,
            *(
                getattr(day, name) + (getattr(so_far, name) if so_far is not None else 0)
                for name in ("attempts", "spent", "estimated", "reserved", "trained_tokens")
            ),
        )
    return list(months.values())


def _sums(*keys: Any, since: datetime) -> Select[Any]:
    """What is spent and reserved since a time, for each key."""
    is_estimated = spending.c.basis == Basis.ESTIMATED
    is_open = spending.c.settled_at.is_(None)
    return select(
        *keys,
        func.count().label("attempts"),
        _sum(spending.c.actual).label("spent"),
        _sum(case((is_estimated, spending.c.actual))).label("estimated"),
        _sum(case((is_open, spending.c.reserved))).label("reserved"),
        func.coalesce(func.sum(spending.c.trained_tokens), 0).label("trained_tokens"),
    ).where(spending.c.reserved_at >= since)


def _sum(amounts: ColumnElement[Decimal]) -> ColumnElement[Decimal]:
    return func.coalesce(func.sum(amounts), literal(Decimal(0), Amount))


def _account(key: str, row: Row[Any]) -> Account:
    return Account(
        key,
        row.currency,
        row.attempts,
        row.spent,
        row.estimated,
        row.reserved,
        int(row.trained_tokens),
    )
