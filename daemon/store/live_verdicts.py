"""What the live verdict knows of each line: the champion's counts beside its predecessor's.

Reads, and keeps how the evidence grew. learning/live_verdict.py judges; daemon/store/registry.py
moves the champion.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from daemon.store.database import Database
from daemon.store.dialect import insert_new
from daemon.store.live_counts import counts_of
from daemon.store.registry import (
    CHAMPION,
    Champion,
    SeenPair,
    champion_of,
    number_of,
    predecessor_of,
)
from daemon.store.tables import aliases, live_counts, live_looks
from learning.live_verdict import (
    ByProducer,
    LiveVerdict,
    Standing,
    VerdictRules,
    judge_live,
)

FIRST_MARK = 10
GROWTH = 1.15
"""Between two looks that are kept: some 50 of them until a verdict is settled."""


@dataclass(frozen=True)
class Evidence:
    """A version of a line, what it is compared with, and what people said of both."""

    line: str
    version_id: int
    version: str
    predecessor_id: int | None
    predecessor: str | None
    verdicts: ByProducer
    before: ByProducer | None
    """None where there is no version before it."""

    def judged(self, rules: VerdictRules) -> LiveVerdict:
        """What follows from it."""
        return judge_live(self.verdicts, self.before, rules)

    @property
    def pair(self) -> SeenPair | None:
        """What an automatic rollback would move, if there is a version before it."""
        if self.predecessor_id is None:
            return None
        return SeenPair(self.line, self.version_id, self.predecessor_id)


class LiveVerdicts:
    """The evidence of one database."""

    def __init__(self, database: Database, rules: Callable[[], VerdictRules]) -> None:
        self._database = database
        self._rules = rules

    @property
    def rules(self) -> VerdictRules:
        """Those of now."""
        return self._rules()

    async def champions(self) -> Sequence[Evidence]:
        """Of each line whose champion people gave verdicts on, by name."""
        return await self._database.read(evidence_of_champions)

    async def keep(self, one: Evidence, verdict: LiveVerdict, now: datetime) -> None:
        """Keep how strong the evidence is, unless that was done at about this many verdicts."""
        if one.predecessor_id is None or verdict.standing is Standing.SETTLED:
            return
        mark = mark_of(verdict.champion.n)
        if mark is None:
            return
        row = {
            "version_id": one.version_id,
            "predecessor_id": one.predecessor_id,
            "mark": mark,
            "n": verdict.champion.n,
            "yes": verdict.champion.yes,
            "before_n": verdict.predecessor.n,
            "before_yes": verdict.predecessor.yes,
            "log_e": verdict.log_e,
            "at": now,
        }
        await self._database.write(lambda tx: tx.execute(insert_new(tx, live_looks).values(**row)))


def mark_of(n: int) -> int | None:
    """The highest number of verdicts up to `n` at which a look is kept; None below the first."""
    mark, following = None, float(FIRST_MARK)
    while following <= n:
        mark, following = int(following), following * GROWTH
    return mark


def evidence_of_champions(tx: Connection) -> Sequence[Evidence]:
    """Of each line whose champion people gave verdicts on, by name."""
    lines = tx.execute(
        select(aliases.c.line)
        .where(
            aliases.c.name == CHAMPION,
            aliases.c.version_id.in_(select(live_counts.c.version_id)),
        )
        .order_by(aliases.c.line)
    ).scalars()
    return [evidence_of(tx, champion_of(tx, line)) for line in lines.all()]


def evidence_of(tx: Connection, version: Champion) -> Evidence:
    """Of one version, which need not be the champion any more."""
    row = version.row
    before = predecessor_of(tx, version)
    return Evidence(
        line=row.line,
        version_id=row.id,
        version=number_of(row),
        predecessor_id=None if before is None else before.id,
        predecessor=None if before is None else number_of(before),
        verdicts=counts_of(tx, row.id),
        before=None if before is None else counts_of(tx, before.id),
    )
