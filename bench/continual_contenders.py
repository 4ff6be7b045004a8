"""The contenders of `bench.continual`: each learns from the same stream, in the same batches.

What they have in common is what comes in (blocks of events, a trainer, training settings) and
what they are asked: a Course notes which model a contender had when, and asks in the end.
"""

import asyncio
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.continual_stream import TASKS, Event, end_of
from bench.continual_trainer import Trainer
from consumers.reading import Reader, Record
from consumers.wire import Limits
from daemon.app import Daemon, build_daemon, utc_now
from daemon.settings import Settings
from learning.clock import microseconds
from learning.events import OutputEvent
from learning.facts import CandidateDecided, Fact, RunFailed
from learning.judge import Judge
from learning.lifecycle import EventState
from learning.ports import Block, EventKind, ModelReference, Origin
from learning.validators import built_in

LINE: Final = "shared"
PATIENCE_SECONDS: Final = 600.0
"""For one batch to become a verdict."""


@dataclass(frozen=True)
class Outcome:
    """What one contender could do: exact matches by task type, as shares in [0, 1]."""

    final: Mapping[str, float]
    learned: Mapping[str, float]
    """When the task type's own time was over."""
    notes: str = ""

    @property
    def accuracy(self) -> float:
        """After the stream, on average over the task types."""
        return statistics.mean(self.final.values())

    @property
    def backward_transfer(self) -> float:
        """What became of a task type after its time, on average; the last one has no after."""
        return statistics.mean(self.final[task] - self.learned[task] for task in self.learned)


class Course:
    """Notes which model a contender had when each task type's time was over; asks in the end."""

    def __init__(self, trainer: Trainer, questions: Sequence[Event], n_events: int) -> None:
        self._trainer = trainer
        self._questions = questions
        self._n_events = n_events
        self._by_then: dict[str, ModelReference] = {}

    def after(self, n_seen: int, model: ModelReference) -> None:
        """So much of the stream was learned from."""
        for task in list(TASKS)[:-1]:
            if n_seen >= end_of(task) * self._n_events:
                self._by_then.setdefault(task, model)

    async def end(self, model: ModelReference, notes: str = "") -> Outcome:
        """The stream is over."""
        final = await self._ask(model, list(TASKS))
        learned: dict[str, float] = {}
        for asked in dict.fromkeys(self._by_then.values()):
            tasks = [task for task, by_then in self._by_then.items() if by_then == asked]
            learned |= await self._ask(asked, tasks)
        return Outcome(final, learned, notes)

    async def _ask(self, model: ModelReference, tasks: Sequence[str]) -> dict[str, float]:
        asked = [one for one in self._questions if one.task_type in tasks]
        scores = await self._trainer.score(model, asked)
        return {
            task: statistics.mean(
                score.match
                for one, score in zip(asked, scores, strict=True)
                if one.task_type == task
            )
            for task in tasks
        }


class Verdicts:
    """Hears how each batch of the daemon ended."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.failure: str | None = None
        self.decided = asyncio.Event()

    def hear(self, fact: Fact) -> None:
        """The daemon tells what has happened."""
        match fact:
            case CandidateDecided(outcome=outcome):
                self.outcomes.append(outcome)
                self.decided.set()
            case RunFailed(message=message):
                self.failure = message
                self.decided.set()


async def learn_with_learnd(
    settings: Settings, blocks: Sequence[Sequence[Event]], course: Course
) -> Outcome:
    """The product itself."""
    verdicts = Verdicts()
    n_sent = 0
    async with build_daemon(settings) as daemon:
        daemon.announcer.listen(verdicts.hear)
        stopping = asyncio.Event()
        running = asyncio.create_task(daemon.run(stopping))
        try:
            for block in blocks:
                verdicts.decided.clear()
                await _send(daemon, settings, block, first=n_sent)
                n_sent += len(block)
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await verdicts.decided.wait()
                if verdicts.failure is not None:
                    raise RuntimeError(f"a run of the daemon failed: {verdicts.failure}")
                champion = await daemon.store.registry.loadable(LINE, "champion")
                course.after(n_sent, champion)
        finally:
            stopping.set()
            await running
        promoted = verdicts.outcomes.count("promote")
        return await course.end(champion, f"{promoted} of {len(verdicts.outcomes)} promoted")


def cut(events: Sequence[Event], size: int) -> list[Sequence[Event]]:
    """The stream, cut where `size` events are fit to train; a rest that fills none is left."""
    blocks, start, fit = [], 0, 0
    for n, event in enumerate(events, start=1):
        fit += event.confidence >= 0.7
        if fit == size:
            blocks.append(events[start:n])
            start, fit = n, 0
    return blocks


async def _send(daemon: Daemon, settings: Settings, events: Sequence[Event], first: int) -> None:
    judge = Judge(settings.policy_rules, built_in(settings.policy.max_output_characters))
    records = []
    for n, event in enumerate(events, start=first):
        sent = OutputEvent(
            event_id=f"e-{n}",
            producer="bench",
            task_id=f"t-{n}",
            task_type=event.task_type,
            prompt=event.prompt,
            output=event.output,
            approved=True,
            confidence=event.confidence,
        )
        origin = Origin("bench", "stream", 0, n)
        records.append(Record(EventKind.OUTPUT, sent.model_dump_json().encode(), origin))
    limits = Limits(max_bytes=settings.kafka.max_message_bytes)
    reading = Reader(judge, limits).read(records, microseconds(utc_now()))
    queued = [output.state == EventState.QUEUED for output in reading.outputs]
    assert queued == [event.confidence >= 0.7 for event in events]
    await daemon.store.intake.append(Block("bench", reading.outputs))
    daemon.sealer.wake()


async def learn_naively(
    trainer: Trainer,
    training: Mapping[str, Any],
    blocks: Sequence[Sequence[Event]],
    course: Course,
) -> Outcome:
    """Each batch in turn, as it came, on top of the one before."""
    model, n_seen = trainer.base, 0
    for block in blocks:
        model = await trainer.train(model, block, training)
        n_seen += len(block)
        course.after(n_seen, model)
    return await course.end(model)


async def learn_offline(
    trainer: Trainer,
    training: Mapping[str, Any],
    blocks: Sequence[Sequence[Event]],
    course: Course,
) -> Outcome:
    """Everything that is right and confident, at once, in as many steps."""
    clean = [event for block in blocks for event in block if event.clean]
    settings = {**training, "max_steps": training["max_steps"] * len(blocks)}
    return await course.end(await trainer.train(trainer.base, clean, settings))
