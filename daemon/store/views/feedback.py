"""What feedback has changed in the loop: how each task type stands, and what brought it there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, select

from daemon.store.database import Database
from daemon.store.feedback_dials import (
    FeedbackResult,
    StoredEffect,
    dials_of,
    result_of,
    standing,
    stored_effect,
)
from daemon.store.tables import feedback_effects, feedback_memory
from daemon.store.views.paging import Page
from learning.clock import Clock
from learning.dials import Dial, DialKey, natural
from learning.evidence import Signal
from learning.feedback import FeedbackRules, Memory
from learning.lines import ModelLines
from learning.policy import Policy
from learning.styles import leading_mood, style_sentence

MOST_TASK_TYPES = 1_000


@dataclass(frozen=True)
class TaskTypeLoop:
    """How the loop treats a task type, and what the feedback on it says."""

    task_type: str
    offset: float
    """Of both bars; 0 when they are as configured."""
    min_confidence: float
    feedback_threshold: float
    """The bars that are in force."""
    trust: float
    """Of the task type as a whole, in [0, 1]."""
    distrusted: Mapping[str, float]
    """Producers whose outputs are held unless a person stands behind them, with their trust."""
    weight: float
    """Where a batch repeats or mixes in examples."""
    style: Mapping[str, float]
    """How much each mood is wanted, in [0, 1]."""
    mood: str | None
    """The one that leads."""
    sentence: str
    """What it adds to prompts that generate."""
    feedback: int
    """That counted, since the beginning or the last reset."""
    evidence: float
    """What of it still weighs; each producer counts for a part at most."""
    evidence_needed: int
    producers: int
    score: float | None
    """What the evidence says, in [-1, 1]; None when there is too little."""
    signals: Mapping[Signal, float]
    """What it is made of, as far as several producers gave it."""


class FeedbackLoop:
    """Looks at what feedback has changed, in one database."""

    def __init__(
        self,
        database: Database,
        lines: ModelLines,
        policy: Callable[[], Policy],
        rules: Callable[[], FeedbackRules],
        clock: Clock,
    ) -> None:
        self._database = database
        self._lines = lines
        self._policy = policy
        self._rules = rules
        self._clock = clock

    async def every_task_type(self) -> Sequence[TaskTypeLoop]:
        """Those of the lines and those that there was feedback on, by name."""
        named = {task_type for line in self._lines for task_type in line.task_types}

        def query(tx: Connection) -> Sequence[TaskTypeLoop]:
            found = _known(tx) | named
            return self._look(tx, sorted(found)[:MOST_TASK_TYPES])

        return await self._database.read(query)

    async def one(self, task_type: str) -> TaskTypeLoop | None:
        """One of them; None when no line learns from it and there was no feedback on it."""

        def query(tx: Connection) -> TaskTypeLoop | None:
            if self._lines.owner(task_type) is None and task_type not in _known(tx, task_type):
                return None
            return self._look(tx, [task_type])[0]

        return await self._database.read(query)

    async def result(self, feedback_id: int) -> FeedbackResult:
        """What came of one feedback so far. Raises UnknownFeedbackError."""
        return await self._database.read(lambda tx: result_of(tx, feedback_id))

    async def effects(
        self, *, task_type: str | None, before: int | None, limit: int
    ) -> Page[StoredEffect, int]:
        """What was done, and which wishes were not followed, newest first."""
        query = select(feedback_effects).order_by(feedback_effects.c.id.desc()).limit(limit)
        if task_type is not None:
            query = query.where(feedback_effects.c.task_type == task_type)
        if before is not None:
            query = query.where(feedback_effects.c.id < before)
        rows = await self._database.read(lambda tx: tx.execute(query).all())
        return Page(
            [stored_effect(row) for row in rows], rows[-1].id if len(rows) == limit else None
        )

    def _look(self, tx: Connection, task_types: Sequence[str]) -> list[TaskTypeLoop]:
        now, rules = self._clock(), self._rules()
        stands, turned = standing(tx, rules, now), dials_of(tx, task_types, now)
        policy = replace(self._policy(), offsets=stands.offsets)
        memories = {
            row.task_type: Memory.of(row.memory)
            for row in tx.execute(
                select(feedback_memory).where(feedback_memory.c.task_type.in_(task_types))
            )
        }

        def look(task_type: str) -> TaskTypeLoop:
            memory = memories.get(task_type, Memory())
            evidence = memory.chorus(rules, now).evidence()
            style = {
                key.subject: round(value, 3)
                for key, value in turned.items()
                if (key.task_type, key.dial) == (task_type, Dial.STYLE)
            }

            def dial(dial: Dial) -> float:
                value = turned.get(DialKey(task_type, dial, ""), 0.0)
                return round(natural(dial, value), 3)

            return TaskTypeLoop(
                task_type,
                stands.offsets.get(task_type, 0.0),
                policy.bar(policy.min_confidence, task_type),
                policy.bar(policy.feedback_threshold, task_type),
                dial(Dial.TRUST),
                {of: trust for of, trust in stands.distrusted.get(task_type, {}).items() if of},
                dial(Dial.WEIGHT),
                style,
                leading_mood(style, rules.moods),
                style_sentence(style, rules.moods),
                memory.n,
                round(evidence.weight, 2),
                rules.min_feedback,
                evidence.producers,
                round(evidence.score, 3) if evidence.enough else None,
                {signal: round(mean, 3) for signal, mean in evidence.means.items()},
            )

        return [look(task_type) for task_type in task_types]


def _known(tx: Connection, task_type: str | None = None) -> set[str]:
    """Task types that feedback is remembered of, as all are that it has changed; or that one."""
    query = select(feedback_memory.c.task_type).limit(MOST_TASK_TYPES)
    if task_type is not None:
        query = query.where(feedback_memory.c.task_type == task_type)
    return set(tx.execute(query).scalars())
