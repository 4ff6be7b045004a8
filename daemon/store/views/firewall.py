"""What the firewall stopped: in the last day by rule and producer, and ever by rule."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, func, select

from daemon.store.database import Database
from daemon.store.firewall import FIREWALL
from daemon.store.tables import events, firewall_stops, tallies
from learning.clock import Clock
from learning.lifecycle import EventState

DAY = timedelta(days=1)
MOST_STOPS = 10_000
"""So many of the newest of a day are looked at."""
MOST_GROUPS = 50
EXAMPLES = 3


@dataclass(frozen=True)
class StoppedEvent:
    """One of them, as an example."""

    id: int
    task_type: str
    reason: str
    state: str
    other: int | None
    """An event that it should be looked at beside."""
    at: datetime


@dataclass(frozen=True)
class StoppedGroup:
    """What one rule stopped of one producer in the last day."""

    rule: str
    producer: str
    count: int
    waiting: int
    """Of them nobody has decided on these yet."""
    examples: Sequence[StoppedEvent]
    release: str
    """The command that lets them go."""


@dataclass(frozen=True)
class FirewallLook:
    """The firewall at a glance."""

    since: datetime
    groups: Sequence[StoppedGroup]
    """Those with the most first."""
    is_cut: bool
    """More was stopped than is looked at, or by more producers."""
    ever: Mapping[str, int]
    """Events that each rule stopped, since the beginning."""


class Firewalls:
    """Looks at the firewall of one database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def look(self) -> FirewallLook:
        """The last day, and the sums."""
        since = self._clock() - DAY

        def query(tx: Connection) -> FirewallLook:
            newest = (
                select(firewall_stops)
                .where(firewall_stops.c.at > since)
                .order_by(firewall_stops.c.at.desc(), firewall_stops.c.event_id.desc())
                .limit(MOST_STOPS)
                .subquery()
            )
            stops = select(newest, events.c.reason, events.c.state).join(
                events, events.c.id == newest.c.event_id
            )
            counts: Counter[tuple[str, str]] = Counter()
            waiting: Counter[tuple[str, str]] = Counter()
            examples: defaultdict[tuple[str, str], list[StoppedEvent]] = defaultdict(list)
            for row in tx.execute(stops.order_by(newest.c.event_id.desc())):
                key = (row.rule, row.producer)
                counts[key] += 1
                waiting[key] += row.state == EventState.QUARANTINED
                if len(examples[key]) < EXAMPLES:
                    examples[key].append(
                        StoppedEvent(
                            row.event_id,
                            row.task_type,
                            row.reason,
                            row.state,
                            row.other_id,
                            row.at,
                        )
                    )
            return FirewallLook(
                since,
                [
                    StoppedGroup(
                        rule,
                        producer,
                        n,
                        waiting[rule, producer],
                        examples[rule, producer],
                        f"learnd events release --producer {producer} --rule {rule}",
                    )
                    for (rule, producer), n in counts.most_common(MOST_GROUPS)
                ],
                len(counts) > MOST_GROUPS or counts.total() == MOST_STOPS,
                stopped_ever(tx),
            )

        return await self._database.read(query)

    async def ever(self) -> Mapping[str, int]:
        """Events that each rule stopped, since the beginning."""
        return await self._database.read(stopped_ever)


def stopped_ever(tx: Connection) -> dict[str, int]:
    """The running counts, by rule."""
    query = (
        select(tallies.c.state, func.sum(tallies.c.n).label("n"))
        .where(tallies.c.kind == FIREWALL)
        .group_by(tallies.c.state)
        .order_by(tallies.c.state)
    )
    return {row.state: int(row.n) for row in tx.execute(query)}
