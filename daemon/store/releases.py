"""Let go what the firewall stopped: many at once, by producer, rule or task type.

What an operator lets go is true from then on: it is queued, never stopped again, and the
firewall counts it as it counts what it cleared itself. So more of the same passes.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select, update

from daemon.store.bookkeeping import Tally
from daemon.store.database import Database
from daemon.store.dialect import take_turns
from daemon.store.firewall import admit
from daemon.store.intake import move_event, people_on
from daemon.store.screenings import SCREENING, learned_events, release, topic_of
from daemon.store.split_sides import SPLIT
from daemon.store.tables import events, firewall_stops, is_one_of
from learning.errors import ConflictError
from learning.facts import QuarantineReleased
from learning.firewall import Looks, Rule
from learning.lifecycle import EventState
from learning.policy import Verdict

MOST_RELEASED = 500
"""In one transaction, which intake waits for on SQLite."""


class NothingToReleaseError(ConflictError):
    """No event waits that the firewall stopped and that was asked for."""

    def __init__(self) -> None:
        super().__init__(
            "nothing of that kind waits behind the firewall; `learnd firewall` shows what does"
        )


@dataclass(frozen=True)
class Which:
    """Which stopped events are meant; None stands for any."""

    producer: str | None = None
    rule: Rule | None = None
    task_type: str | None = None


class Releases:
    """What an operator lets go, in one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def release(
        self, which: Which, most: int, reason: str, actor: str, now: datetime
    ) -> QuarantineReleased:
        """Queue the oldest `most` of them, at most MOST_RELEASED.

        The fact says whether more wait. Raises NothingToReleaseError.
        """
        most = min(most, MOST_RELEASED)

        def transaction(tx: Connection) -> QuarantineReleased:
            take_turns(tx, [SCREENING, SPLIT])  # the memory is the screening's; see Screenings.add
            conditions = [
                column == wanted
                for column, wanted in (
                    (firewall_stops.c.producer, which.producer),
                    (firewall_stops.c.rule, which.rule),
                    (firewall_stops.c.task_type, which.task_type),
                )
                if wanted is not None
            ]
            rows = tx.execute(
                select(events)
                .join(firewall_stops, firewall_stops.c.event_id == events.c.id)
                .where(
                    firewall_stops.c.released_at.is_(None),
                    is_one_of(events.c.state, EventState.QUARANTINED),
                    *conditions,
                )
                .order_by(events.c.id)
                .limit(most + 1)
                .with_for_update(key_share=True, of=events)
            ).all()
            if not rows:
                raise NothingToReleaseError
            chosen = rows[:most]
            people = people_on(tx, {row.id for row in chosen})
            by_human = {row.id: row.by_human or True in people.get(row.id, ()) for row in chosen}
            tally = Tally()
            for row in chosen:
                why = reason or "released by an operator"
                said = Verdict(EventState.QUEUED, why, by_human[row.id])
                move_event(tx, row, said, actor, now, tally, is_verdict=False)
                release(tx, row.id, now)
                tx.execute(
                    update(firewall_stops)
                    .where(firewall_stops.c.event_id == row.id)
                    .values(released_at=now)
                )
            tally.write(tx, now)
            learned = learned_events(tx, by_human)
            looks = {
                row.id: Looks.of(
                    learned[row.id],
                    topic=topic_of(row),
                    received_at=row.received_at,
                    by_human=by_human[row.id],
                )
                for row in chosen
            }
            admit(tx, looks, now)
            return QuarantineReleased(
                len(chosen),
                which.producer,
                which.rule,
                which.task_type,
                more=len(rows) > most,
                actor=actor,
                reason=reason,
            )

        return await self._database.write(transaction)
