"""Take joined feedback into account, once: what follows from it beyond its output's verdict.

Intake joins feedback with its output and has that judged again; this comes a moment later,
so that intake stays as quick as it is. Whoever wants to learn from feedback is a
`Consequence`: what it writes, and the mark that the feedback was digested, are one transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from sqlalchemy import Connection, bindparam, select, update

from daemon.store.database import Database
from daemon.store.dialect import take_turns
from daemon.store.tables import IS_UNDIGESTED, events, feedback
from learning.events import FeedbackEvent
from learning.facts import Fact
from learning.lifecycle import EventState, FeedbackState

TURN = "digest"
"""Of whoever writes what feedback leads to."""
MOST = 500
"""Feedback in one transaction, which intake waits for on SQLite: some ten milliseconds."""


@dataclass(frozen=True)
class JudgedBefore:
    """The output that a feedback is about, as it is stored now, without its text."""

    id: int
    producer: str
    state: EventState
    confidence: float | None
    model_version: str | None


@dataclass(frozen=True)
class JoinedFeedback:
    """A feedback that has met its output and was not digested before."""

    id: int
    state: FeedbackState
    """JOINED, or LATE: its output was sealed or had expired."""
    event: FeedbackEvent
    received_at: datetime
    output: JudgedBefore


class Consequence(Protocol):
    """Something that follows from feedback."""

    def __call__(
        self, tx: Connection, feedback: Sequence[JoinedFeedback], now: datetime
    ) -> Sequence[Fact]:
        """Write what follows from feedback that no call had before, oldest first.

        In the transaction that marks them; it has the turn TURN, so that no other daemon
        digests meanwhile. Returns the facts to be told when it is committed.
        """
        ...


class Digest:
    """Feedback of one database that is still to be taken into account."""

    def __init__(self, database: Database, consequences: Sequence[Consequence]) -> None:
        self._database = database
        self._consequences = tuple(consequences)

    async def digest(self, now: datetime, most: int = MOST) -> tuple[int, Sequence[Fact]]:
        """Digest the oldest feedback. Returns how many, and the facts that came of it.

        Fewer than `most` means that no more waits. Raises StoreUnavailableError: then nothing
        was done.
        """

        def transaction(tx: Connection) -> tuple[int, Sequence[Fact]]:
            take_turns(tx, [TURN])
            joined = _undigested(tx, most)
            if not joined:
                return 0, ()
            facts = [fact for follow in self._consequences for fact in follow(tx, joined, now)]
            tx.execute(_MARK, [{"of": one.id, "digested_at": now} for one in joined])
            return len(joined), facts

        return await self._database.write(transaction)


_UNDIGESTED = (
    select(
        feedback.c.id,
        feedback.c.state,
        feedback.c.payload,
        feedback.c.received_at,
        events.c.id.label("output_id"),
        events.c.producer,
        events.c.state.label("output_state"),
        events.c.confidence,
        events.c.model_version,
    )
    .join(events, events.c.id == feedback.c.output_id)
    .where(IS_UNDIGESTED)
    .order_by(feedback.c.id)
)
_MARK = (
    update(feedback)
    .where(feedback.c.id == bindparam("of"))
    .values(digested_at=bindparam("digested_at"))
)


def _undigested(tx: Connection, most: int) -> list[JoinedFeedback]:
    return [
        JoinedFeedback(
            row.id,
            FeedbackState(row.state),
            FeedbackEvent.model_validate_json(row.payload),
            row.received_at,
            JudgedBefore(
                row.output_id,
                row.producer,
                EventState(row.output_state),
                row.confidence,
                row.model_version,
            ),
        )
        for row in tx.execute(_UNDIGESTED.limit(most))
    ]
