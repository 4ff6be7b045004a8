"""Have feedback change the loop: a consequence of its digestion (digest.py).

What is remembered of the task types at hand is read, learning/feedback.py says what follows,
and what has changed is written with its history, in the digest's transaction. Late feedback
and a producer's second word on an output change nothing here.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, select

from daemon.store.dialect import replace_all
from daemon.store.digest import JoinedFeedback
from daemon.store.feedback_dials import repeated, write_effects
from daemon.store.tables import feedback_dials, feedback_memory, feedback_moves
from learning.clock import EPOCH
from learning.dials import Dial, DialKey, faded, rests_at
from learning.facts import Fact, LoopAdapted
from learning.feedback import (
    Dials,
    Effect,
    FeedbackRules,
    Memory,
    Said,
    effect_in_words,
    learn,
)
from learning.lifecycle import FeedbackState

SCORES_COUNT_FOR = timedelta(days=7)
MOST_OTHERS = 1_000
"""Task types that one is compared with, at most."""


class FeedbackEffects:
    """Turns the dials of one database; implements daemon.store.digest.Consequence."""

    def __init__(self, rules: Callable[[], FeedbackRules]) -> None:
        self._rules = rules

    def __call__(
        self, tx: Connection, feedback: Sequence[JoinedFeedback], now: datetime
    ) -> Sequence[Fact]:
        """See daemon.store.digest.Consequence."""
        rules = self._rules()
        _clean_up(tx, now)
        joined = [one for one in feedback if one.state is FeedbackState.JOINED]
        if not joined or not rules.adapt:
            return ()
        passed_over = repeated(tx, [one.id for one in joined])
        counting = [one for one in joined if one.id not in passed_over]
        task_types = sorted({one.event.task_type for one in counting})
        memories, scores = _memories(tx, task_types), _scores(tx, now)
        others = {
            task_type: [score for other, score in scores.items() if other != task_type]
            for task_type in task_types
        }
        dials = _dials(tx, counting, now)
        effects: list[Effect] = []
        for one in counting:
            task_type = one.event.task_type
            effects += learn(
                Said(one.id, one.event, one.output.producer),
                memories[task_type],
                dials,
                others[task_type],
                rules,
                now,
            )
        _write_memories(tx, memories, rules, now)
        moved = [one for one in effects if one.moved]
        _write_dials(tx, moved, dials, now)
        write_effects(tx, effects, now)
        return list(_facts(moved))


def _clean_up(tx: Connection, now: datetime) -> None:
    """Remove what says nothing any more: dials at rest, and the shares of days that are over."""
    tx.execute(delete(feedback_dials).where(feedback_dials.c.rests_at <= now))
    tx.execute(delete(feedback_moves).where(feedback_moves.c.day < _day(now)))


def _memories(tx: Connection, task_types: Sequence[str]) -> dict[str, Memory]:
    memories = {task_type: Memory() for task_type in task_types}
    rows = tx.execute(select(feedback_memory).where(feedback_memory.c.task_type.in_(task_types)))
    return memories | {row.task_type: Memory.of(row.memory) for row in rows}


def _scores(tx: Connection, now: datetime) -> dict[str, float]:
    """What the evidence says of each task type that there was feedback on lately."""
    rows = tx.execute(
        select(feedback_memory.c.task_type, feedback_memory.c.score)
        .where(
            feedback_memory.c.score.is_not(None),
            feedback_memory.c.updated_at > now - SCORES_COUNT_FOR,
        )
        .order_by(feedback_memory.c.task_type)
        .limit(MOST_OTHERS)
    )
    return {row.task_type: row.score for row in rows}


def _dials(tx: Connection, counting: Sequence[JoinedFeedback], now: datetime) -> Dials:
    """The dials that some feedback may turn, and how far they were turned today."""
    task_types = sorted({one.event.task_type for one in counting})
    subjects = sorted({"", *(one.output.producer for one in counting)})
    senders = sorted({"", *(one.event.producer for one in counting)})
    dials = Dials()
    for row in tx.execute(
        select(feedback_dials).where(
            feedback_dials.c.task_type.in_(task_types),
            (feedback_dials.c.dial != Dial.TRUST) | feedback_dials.c.subject.in_(subjects),
        )
    ):
        key = DialKey(row.task_type, Dial(row.dial), row.subject)
        dials.values[key] = faded(row.value, key.dial, row.turned_at, now)
    for row in tx.execute(
        select(feedback_moves).where(
            feedback_moves.c.task_type.in_(task_types),
            feedback_moves.c.producer.in_(senders),
            (feedback_moves.c.dial != Dial.TRUST) | feedback_moves.c.subject.in_(subjects),
        )
    ):
        key = DialKey(row.task_type, Dial(row.dial), row.subject)
        dials.moved[key, row.producer] = row.moved
    return dials


def _write_memories(
    tx: Connection, memories: dict[str, Memory], rules: FeedbackRules, now: datetime
) -> None:
    rows = []
    for task_type, memory in memories.items():
        evidence = memory.chorus(rules, now).evidence()
        rows.append(
            {
                "task_type": task_type,
                "memory": memory.as_json(),
                "score": evidence.score if evidence.enough else None,
                "updated_at": now,
            }
        )
    replace_all(tx, feedback_memory, ["task_type"], rows)


def _write_dials(tx: Connection, moved: Iterable[Effect], dials: Dials, now: datetime) -> None:
    turned = sorted({one.key for one in moved})
    replace_all(
        tx,
        feedback_dials,
        ["task_type", "dial", "subject"],
        [
            {
                **key._asdict(),
                "value": dials.values[key],
                "turned_at": now,
                "rests_at": rests_at(dials.values[key], key.dial, now),
            }
            for key in turned
        ],
    )
    replace_all(
        tx,
        feedback_moves,
        ["task_type", "dial", "subject", "producer"],
        [
            {**key._asdict(), "producer": by, "day": _day(now), "moved": far}
            for (key, by), far in sorted(dials.moved.items())
            if key in set(turned)
        ],
    )


def _facts(moved: Sequence[Effect]) -> Iterable[LoopAdapted]:
    """One for each change of a task type, with the reason of the last."""
    times = Counter((one.key.task_type, one.change) for one in moved)
    last = {(one.key.task_type, one.change): one for one in moved}
    for (task_type, change), n in times.items():
        yield LoopAdapted(task_type, change, n, effect_in_words(last[task_type, change]))


def _day(now: datetime) -> int:
    return (now - EPOCH).days
