"""The live verdict of a version: counts, rates, evidence over time, and what came of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from daemon.store.database import Database
from daemon.store.live_verdicts import Evidence, evidence_of
from daemon.store.registry import (
    LIVE_VERDICT,
    Champion,
    StepBackLimits,
    champion_of,
    find_version,
    obstacle_to_stepping_back,
    predecessor_of,
)
from daemon.store.tables import alias_history, live_looks, rollback_reports
from daemon.store.views.version_numbers import numbers_of
from learning.clock import Clock
from learning.errors import NotFoundError
from learning.live_verdict import (
    Approvals,
    ByProducer,
    LiveVerdict,
    Standing,
    VerdictRules,
    canary_share,
    interval,
    total,
)

MOST_ROLLBACKS = 20


class NeverReleasedError(NotFoundError):
    """Nobody used this version, so nobody has a verdict on it."""

    def __init__(self, line: str, version: str) -> None:
        super().__init__(
            f"{line} {version} was never released; `learnd versions {line}` lists those that were"
        )
        self.line, self.version = line, version


@dataclass(frozen=True)
class ApprovalOfVersion:
    """What people said of one version."""

    version: str
    n: int
    yes: int
    rate: float | None
    low: float
    high: float
    """Where the true rate is with 95 %; for people, nothing is decided by it."""
    by_producer: ByProducer
    """Verdicts of producers beyond a bound stand under an empty name."""


@dataclass(frozen=True)
class Look:
    """The evidence at one moment."""

    n: int
    yes: int
    before_n: int
    before_yes: int
    log_e: float
    at: datetime


@dataclass(frozen=True)
class RollbackReport:
    """A rollback, and what was known at that moment of the version that was left."""

    left: str
    to: str
    automatic: bool
    actor: str
    reason: str
    n: int
    yes: int
    before_n: int
    before_yes: int
    log_e: float
    at: datetime


@dataclass(frozen=True)
class VerdictReport:
    """Everything about a version against the one before it."""

    line: str
    version: str
    is_champion: bool
    predecessor: str | None
    verdict: LiveVerdict
    approvals: Sequence[ApprovalOfVersion]
    """Of the version, then of the one before it."""
    canary_share: float
    """0 for what is no champion."""
    automatic_rollback: bool
    obstacle: str | None
    """Why a champion that is worse may not be rolled back by itself, apart from its files."""
    looks: Sequence[Look]
    """Oldest first; their number is bounded."""
    rollbacks: Sequence[RollbackReport]
    """Those that left this version or led to it, newest first."""


@dataclass(frozen=True)
class Served:
    """What serving has to know of a line beside its champion."""

    predecessor: str | None
    canary_share: float


class Verdicts:
    """The live verdicts of one database."""

    def __init__(
        self,
        database: Database,
        rules: Callable[[], VerdictRules],
        limits: Callable[[], StepBackLimits],
        clock: Clock,
    ) -> None:
        self._database = database
        self._rules = rules
        self._limits = limits
        self._clock = clock

    async def one(self, line: str, version: str | None) -> VerdictReport:
        """Of a released version, or of the champion.

        Raises UnknownLineError, UnknownVersionError, VersionTextError and NeverReleasedError.
        """
        return await self._database.read(lambda tx: self._report(tx, line, version))

    async def served(self, line: str) -> Served:
        """Of the champion. Raises UnknownLineError."""

        def query(tx: Connection) -> Served:
            rules = self._rules()
            one = evidence_of(tx, champion_of(tx, line))
            return Served(one.predecessor, canary_share(one.judged(rules), rules))

        return await self._database.read(query)

    def _report(self, tx: Connection, line: str, version: str | None) -> VerdictReport:
        rules, champion = self._rules(), champion_of(tx, line)
        row = champion.row if version is None else find_version(tx, line, version)
        if row.release is None:
            raise NeverReleasedError(line, str(row.candidate))
        one = evidence_of(tx, Champion(row, champion.revision))
        verdict, is_champion = one.judged(rules), row.id == champion.row.id
        obstacle = None
        if is_champion and verdict.standing is Standing.WORSE:
            obstacle = self._obstacle(tx, champion, rules)
        return VerdictReport(
            line=line,
            version=one.version,
            is_champion=is_champion,
            predecessor=one.predecessor,
            verdict=verdict,
            approvals=_approvals(one),
            canary_share=canary_share(verdict, rules) if is_champion else 0.0,
            automatic_rollback=rules.automatic_rollback,
            obstacle=obstacle,
            looks=_looks(tx, one),
            rollbacks=_rollbacks(tx, row.id),
        )

    def _obstacle(self, tx: Connection, champion: Champion, rules: VerdictRules) -> str | None:
        if not rules.automatic_rollback:
            return "verdict.automatic_rollback is off"
        target = predecessor_of(tx, champion)
        if target is None:
            return None
        return obstacle_to_stepping_back(tx, champion, target, self._limits(), self._clock())


def _approvals(one: Evidence) -> Sequence[ApprovalOfVersion]:
    told = [_approval(one.version, one.verdicts)]
    if one.predecessor is not None and one.before is not None:
        told.append(_approval(one.predecessor, one.before))
    return told


def _approval(version: str, by_producer: ByProducer) -> ApprovalOfVersion:
    together: Approvals = total(by_producer)
    low, high = interval(together)
    return ApprovalOfVersion(
        version, together.n, together.yes, together.rate, low, high, by_producer
    )


def _looks(tx: Connection, one: Evidence) -> Sequence[Look]:
    rows = tx.execute(
        select(live_looks)
        .where(
            live_looks.c.version_id == one.version_id,
            live_looks.c.predecessor_id == one.predecessor_id,
        )
        .order_by(live_looks.c.mark)
    )
    return [Look(row.n, row.yes, row.before_n, row.before_yes, row.log_e, row.at) for row in rows]


def _rollbacks(tx: Connection, version_id: int) -> Sequence[RollbackReport]:
    rows = tx.execute(
        select(alias_history, rollback_reports)
        .join(rollback_reports, rollback_reports.c.move_id == alias_history.c.id)
        .where(
            (alias_history.c.from_id == version_id) | (alias_history.c.to_id == version_id),
        )
        .order_by(alias_history.c.id.desc())
        .limit(MOST_ROLLBACKS)
    ).all()
    names = numbers_of(tx, (number for row in rows for number in (row.from_id, row.to_id)))
    return [
        RollbackReport(
            left=names[row.from_id],
            to=names[row.to_id],
            automatic=row.actor == LIVE_VERDICT,
            actor=row.actor,
            reason=row.reason,
            n=row.n,
            yes=row.yes,
            before_n=row.before_n,
            before_yes=row.before_yes,
            log_e=row.log_e,
            at=row.at,
        )
        for row in rows
    ]
