"""The steps in the life of one thing, as the store wrote them down."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from daemon.store.tables import transitions

LONGEST_HISTORY = 500


@dataclass(frozen=True)
class Step:
    """One move from state to state."""

    before: str | None
    after: str
    reason: str
    actor: str
    at: datetime


def history_of(tx: Connection, kind: str, ref: str) -> Sequence[Step]:
    """The newest LONGEST_HISTORY steps of an event, a batch, a run or a version, oldest first."""
    rows = tx.execute(
        select(transitions)
        .where(transitions.c.kind == kind, transitions.c.ref == ref)
        .order_by(transitions.c.id.desc())
        .limit(LONGEST_HISTORY)
    ).all()
    return [
        Step(row.from_state, row.to_state, row.reason, row.actor, row.at) for row in reversed(rows)
    ]
