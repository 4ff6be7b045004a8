"""The dials that feedback has turned: what they say now, what turned them, and back to rest.

Which feedback turns which is decided in learning/feedback.py, and done in feedback_effects.py.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, exists, func, insert, select

from daemon.store.bookkeeping import Move, record
from daemon.store.database import Database
from daemon.store.dialect import take_turns
from daemon.store.digest import TURN
from daemon.store.tables import (
    feedback,
    feedback_dials,
    feedback_effects,
    feedback_memory,
)
from learning.dials import TRUST_AT_REST, Dial, DialKey, faded, natural
from learning.errors import NotFoundError
from learning.facts import FeedbackReset
from learning.feedback import Effect, FeedbackRules, LoopChange
from learning.lifecycle import FeedbackState

HISTORY = "feedback"
"""The kind of the history rows of resets; they refer to the task type."""
MOST_DISTRUSTED = 1_000
"""Producers in the policy: those with the least trust."""
_LOOKED_THROUGH = 5 * MOST_DISTRUSTED
EVIDENCE = "evidence"
"""Who does what no single feedback asked for."""

NOTES: Mapping[FeedbackState, str] = {
    FeedbackState.WAITING: "its output has not come yet",
    FeedbackState.QUARANTINED: "several outputs have its task: it counts for none",
    FeedbackState.LATE: "its output was sealed or had expired: it counts for the verdict on"
    " versions, and for what is repeated, and changes nothing in the loop",
}


class UnknownFeedbackError(NotFoundError):
    """No stored feedback has this row id."""

    def __init__(self, feedback_id: int) -> None:
        super().__init__(f"no feedback has the id {feedback_id}")
        self.feedback_id = feedback_id


@dataclass(frozen=True)
class Standing:
    """What the policy has to know of the dials."""

    offsets: Mapping[str, float]
    """Of the bars, by task type; those at rest left out."""
    distrusted: Mapping[str, Mapping[str, float]]
    """By task type and producer the trusts below the least, at most MOST_DISTRUSTED; the
    producer is "" for a task type as a whole."""


@dataclass(frozen=True)
class StoredEffect:
    """A row of the history, in the numbers that people read."""

    id: int
    feedback_id: int | None
    """None when an operator did it."""
    task_type: str
    dial: Dial
    subject: str
    """The producer, or the mood; empty for the task type's own dial."""
    change: LoopChange
    before: float
    after: float
    done: bool
    """False for a wish that was not followed."""
    reason: str
    actor: str
    at: datetime


@dataclass(frozen=True)
class FeedbackResult:
    """What came of one feedback."""

    feedback_id: int
    state: FeedbackState
    digested_at: datetime | None
    """None while it waits: for its output, or for its turn, which is a matter of moments."""
    note: str
    """Why nothing can come of it; empty when something may."""
    adaptations: Sequence[StoredEffect]
    """Oldest first."""


class FeedbackDials:
    """The dials of one database, under whatever rules hold when it is asked."""

    def __init__(self, database: Database, rules: Callable[[], FeedbackRules]) -> None:
        self._database = database
        self._rules = rules

    async def revision(self) -> int:
        """Grows whenever a dial was turned; 0 at the beginning."""
        newest = select(func.coalesce(func.max(feedback_effects.c.id), 0))
        return await self._database.read(lambda tx: int(tx.execute(newest).scalar_one()))

    async def standing(self, now: datetime) -> Standing:
        """What the dials say now."""
        return await self._database.read(lambda tx: standing(tx, self._rules(), now))

    async def style_of(self, task_type: str, now: datetime) -> Mapping[str, float]:
        """The style profile of a task type: how much each mood is wanted, in [0, 1]."""

        def query(tx: Connection) -> dict[str, float]:
            own = dials_of(tx, [task_type], now)
            return {key.subject: value for key, value in own.items() if key.dial is Dial.STYLE}

        return await self._database.read(query)

    async def effects_of(self, feedback_id: int) -> FeedbackResult:
        """What came of a feedback so far, by its row id. Raises UnknownFeedbackError."""
        return await self._database.read(lambda tx: result_of(tx, feedback_id))

    async def reset(
        self, task_type: str, *, reason: str, actor: str, now: datetime
    ) -> FeedbackReset:
        """Bring every dial of a task type to rest, and forget what was said of it.

        What was moved today stays counted: the day's limits hold.
        """

        def transaction(tx: Connection) -> FeedbackReset:
            take_turns(tx, [TURN])
            rows = tx.execute(
                select(feedback_dials)
                .where(feedback_dials.c.task_type == task_type)
                .order_by(feedback_dials.c.dial, feedback_dials.c.subject)
            ).all()
            back = [
                Effect(None, key, LoopChange.RESET, before, 0.0, reason)
                for key, before in ((_key(row), _now(row, now)) for row in rows)
                if before
            ]
            write_effects(tx, back, now, actor)
            tx.execute(delete(feedback_dials).where(feedback_dials.c.task_type == task_type))
            tx.execute(delete(feedback_memory).where(feedback_memory.c.task_type == task_type))
            record(tx, [Move(HISTORY, task_type, None, "reset", reason, actor)], now)
            return FeedbackReset(task_type, len(back), actor, reason)

        return await self._database.write(transaction)


def result_of(tx: Connection, feedback_id: int) -> FeedbackResult:
    """What came of a feedback so far. Raises UnknownFeedbackError."""
    row = tx.execute(select(feedback).where(feedback.c.id == feedback_id)).first()
    if row is None:
        raise UnknownFeedbackError(feedback_id)
    found = tx.execute(
        select(feedback_effects)
        .where(feedback_effects.c.feedback_id == feedback_id)
        .order_by(feedback_effects.c.id)
    )
    state = FeedbackState(row.state)
    note = NOTES.get(state, "")
    if not note and repeated(tx, [row.id]):
        note = "its producer had said something of this output before: that counts once"
    return FeedbackResult(
        row.id, state, row.digested_at, note, [stored_effect(one) for one in found]
    )


def standing(tx: Connection, rules: FeedbackRules, now: datetime) -> Standing:
    """What the dials say now; see Standing."""
    bars = tx.execute(
        select(feedback_dials).where(
            feedback_dials.c.dial == Dial.BAR, feedback_dials.c.rests_at > now
        )
    )
    offsets = {
        row.task_type: max(-rules.max_offset, min(rules.max_offset, value))
        for row in bars
        if (value := _now(row, now))
    }
    least = rules.min_trust - TRUST_AT_REST
    low = tx.execute(
        select(feedback_dials)
        .where(feedback_dials.c.dial == Dial.TRUST, feedback_dials.c.value < least)
        .order_by(feedback_dials.c.value)
        .limit(_LOOKED_THROUGH)
    )
    # What has faded back since it was turned is not among them any more.
    trusts = sorted(
        (round(TRUST_AT_REST + value, 3), row.task_type, row.subject)
        for row in low
        if (value := _now(row, now)) < least
    )
    distrusted: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for trust, task_type, producer in trusts[:MOST_DISTRUSTED]:
        distrusted[task_type][producer] = trust
    return Standing(
        {of: rounded for of, offset in sorted(offsets.items()) if (rounded := round(offset, 3))},
        dict(distrusted),
    )


def dials_of(tx: Connection, task_types: Collection[str], now: datetime) -> dict[DialKey, float]:
    """Every dial of some task types that is not at rest, but the trust of producers."""
    rows = tx.execute(
        select(feedback_dials).where(
            feedback_dials.c.task_type.in_(sorted(task_types)),
            feedback_dials.c.rests_at > now,
            (feedback_dials.c.dial != Dial.TRUST) | (feedback_dials.c.subject == ""),
        )
    )
    return {_key(row): value for row in rows if (value := _now(row, now))}


def weights_of(tx: Connection, task_types: Collection[str], now: datetime) -> dict[str, float]:
    """The weight of each of some task types whose weight is not 1, in (1, 2]."""
    rows = tx.execute(
        select(feedback_dials)
        .where(
            feedback_dials.c.task_type.in_(sorted(task_types)),
            feedback_dials.c.dial == Dial.WEIGHT,
            feedback_dials.c.rests_at > now,
        )
        .order_by(feedback_dials.c.task_type)
    )
    return {
        row.task_type: round(natural(Dial.WEIGHT, value), 3)
        for row in rows
        if (value := _now(row, now))
    }


def repeated(tx: Connection, feedback_ids: Collection[int]) -> set[int]:
    """Those of some feedback whose producer had said something of the same output before."""
    earlier = feedback.alias("earlier")
    return set(
        tx.execute(
            select(feedback.c.id).where(
                feedback.c.id.in_(sorted(feedback_ids)),
                exists().where(
                    earlier.c.output_id == feedback.c.output_id,
                    earlier.c.producer == feedback.c.producer,
                    earlier.c.id < feedback.c.id,
                ),
            )
        ).scalars()
    )


def write_effects(
    tx: Connection, effects: Sequence[Effect], now: datetime, actor: str = EVIDENCE
) -> None:
    """Write the history of effects; `actor` stands where no producer's wish is behind one."""
    if effects:
        tx.execute(
            insert(feedback_effects),
            [
                {
                    "feedback_id": one.feedback_id,
                    "task_type": one.key.task_type,
                    "dial": one.key.dial,
                    "subject": one.key.subject,
                    "change": one.change,
                    "before": one.before,
                    "after": one.after,
                    "reason": one.reason,
                    "actor": one.by or actor,
                    "at": now,
                }
                for one in effects
            ],
        )


def stored_effect(row: Row[Any]) -> StoredEffect:
    """A row of feedback_effects in the numbers that people read."""
    dial = Dial(row.dial)
    return StoredEffect(
        row.id,
        row.feedback_id,
        row.task_type,
        dial,
        row.subject,
        LoopChange(row.change),
        round(natural(dial, row.before), 4),
        round(natural(dial, row.after), 4),
        row.before != row.after,
        row.reason,
        row.actor,
        row.at,
    )


def _key(row: Row[Any]) -> DialKey:
    return DialKey(row.task_type, Dial(row.dial), row.subject)


def _now(row: Row[Any], now: datetime) -> float:
    return faded(row.value, Dial(row.dial), row.turned_at, now)
