"""The learning loop as functions: an output or a feedback in, what was decided out.

For a program that wants an answer to each event instead of a stream: in its own process
(daemon/embedding.py) or over HTTP (daemon/api/routes/learner.py). Every event takes the one
path of intake, so what is said here holds for Kafka's too; nothing is decided here.
"""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consumers.http_source import IntakeClosedError
from consumers.ingest import Ingest
from consumers.reading import Record
from daemon.api.ports import FlushResult, Operations, SettingOperations
from daemon.generation import Generation
from daemon.loops import FeedbackDigester, Sealer
from daemon.operations import UnknownTaskTypeError
from daemon.store import Store
from daemon.store.feedback_dials import StoredEffect
from daemon.store.setting_changes import SettingChange
from daemon.store.views.statistics import LearningStats, StatisticsBooks
from learning.clock import Clock
from learning.errors import ConflictError, LearningError
from learning.feedback import FeedbackRules
from learning.lifecycle import EventState
from learning.lines import ModelLine, ModelLines
from learning.ports import ID_REUSED, EventKind, JobFailedError, Origin, Receipt
from learning.styles import style_sentence

SOURCE = "api"
PRODUCER = "api"
"""Who sends, where the caller does not say."""
MAX_NEW_TOKENS = 256

SHORT_NAMES: Mapping[str, str] = {
    "min_confidence": "policy.min_confidence",
    "feedback_threshold": "policy.feedback_threshold",
    "enable_auto_approval": "policy.enable_auto_approval",
    "batch_size": "queue.batch_size",
    "max_queue_size": "queue.max_queue_size",
    "cross_task_learning": "split.cross_task_learning",
}
"""What a learning configuration is called without its section."""


class BadEventError(LearningError):
    """What was sent is no event; nothing was stored. `reason` is one of docs/events.md's."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class EventIdReusedError(ConflictError):
    """A producer used an event id for another body before; nothing was stored."""

    def __init__(self, producer: str, event_id: str) -> None:
        super().__init__(
            f"{ID_REUSED}: producer {producer!r} has used event_id {event_id!r} for another body;"
            " send this one under an id of its own"
        )
        self.producer, self.event_id = producer, event_id


@dataclass(frozen=True)
class LearningUpdate:
    """What the policy decided about an output, and why."""

    state: str
    """A learning.lifecycle.EventState."""
    reason: str


@dataclass(frozen=True)
class LearningMetrics:
    """How the output's line stands after it."""

    confidence: float | None
    waiting: int
    """Events of the line that wait for a batch."""
    batch_size: int
    """So many make one."""


@dataclass(frozen=True)
class OutputProcessed:
    """What became of an output. Feedback on it names its `task_id`."""

    processed: bool
    """Whether it is accepted: it waits for a batch, or is in one."""
    id: int
    """The number of its row."""
    event_id: str
    task_id: str
    fine_tune_job_id: str | None
    """The run of the batch that it is in, if a batch took it already."""
    learning_update: LearningUpdate
    metrics: LearningMetrics


@dataclass(frozen=True)
class FeedbackProcessed:
    """What became of a feedback."""

    id: int
    event_id: str
    state: str
    """A learning.lifecycle.FeedbackState: `waiting` when its output is not here yet."""
    adaptations: Sequence[StoredEffect]
    """What it changed, by name and with the reason, and which of its wishes were not followed."""


@dataclass(frozen=True)
class TaskProcessed:
    """What a model answered, and what became of the answer."""

    output: str
    model_version: str
    confidence: float | None
    """The geometric mean of the tokens' probabilities; None where a service does not say."""
    result: OutputProcessed


@dataclass(frozen=True)
class LearningTask:
    """Something to be answered by a model."""

    task_type: str
    prompt: str
    context: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class TaskFailed:
    """A task of a cycle that came to nothing. `index` counts from 0."""

    index: int
    reason: str


@dataclass(frozen=True)
class BatchCycle:
    """What a batch learning cycle did."""

    processed: int
    """Tasks that were answered and stored."""
    approved: int
    """Of these, outputs that were accepted."""
    fine_tune_jobs: Sequence[str]
    """The runs of the batches that took them."""
    avg_confidence: float | None
    results: Sequence[TaskProcessed]
    failed: Sequence[TaskFailed]


class Learner:
    """The functions of one running daemon. Each returns when what it says is durable."""

    def __init__(
        self,
        *,
        ingest: Ingest,
        store: Store,
        lines: ModelLines,
        operations: Operations,
        settings: SettingOperations,
        statistics: StatisticsBooks,
        feedback_rules: Callable[[], FeedbackRules],
        clock: Clock,
        sealer: Sealer,
        digester: FeedbackDigester,
        generation: Generation,
        closed: Callable[[EventKind], str | None],
    ) -> None:
        """`closed` says why no event of a kind may be taken now, or None."""
        self._ingest = ingest
        self._store = store
        self._lines = lines
        self._operations = operations
        self._settings = settings
        self._statistics = statistics
        self._feedback_rules = feedback_rules
        self._clock = clock
        self._sealer = sealer
        self._digester = digester
        self._generation = generation
        self._closed = closed

    async def process_output(
        self,
        task_type: str,
        prompt: str,
        output: str | Mapping[str, Any] | Sequence[Any],
        context: Mapping[str, Any] | None = None,
        approved: bool | None = None,
        confidence: float | None = None,
        *,
        task_id: str | None = None,
        event_id: str | None = None,
        producer: str = PRODUCER,
        model_version: str | None = None,
        subject: str | None = None,
    ) -> OutputProcessed:
        """Judge and store an output; a batch that it fills is sealed before this returns.

        `approved` is a person's verdict, None if there is none; `confidence` is in [0, 1]. With an
        `event_id` of its own it may be repeated: it is stored once. Raises BadEventError,
        EventIdReusedError and IntakeClosedError: then nothing was stored. After a
        StoreUnavailableError it may be: repeat it under the same `event_id`.
        """
        event_id = event_id or uuid.uuid4().hex
        task_id = task_id or event_id  # the same when it is repeated
        event = {
            "event_id": event_id,
            "producer": producer,
            "task_type": task_type,
            "task_id": task_id,
            "prompt": prompt,
            "output": output,
            "context": context or {},
            "approved": approved,
            "confidence": confidence,
            "model_version": model_version,
            "subject": subject,
        }
        receipt = await self._store_event(EventKind.OUTPUT, event)
        line = self._line(task_type)
        if receipt.state == EventState.QUEUED:
            await self._sealer.seal_due(line)
            # What is sealed was screened before, which may have stopped this one.
            receipt = await self._receipt(EventKind.OUTPUT, (producer, event_id))
        accepted = receipt.state in (EventState.QUEUED, EventState.SEALED)
        waiting = (await self._store.queue.look(line)).waiting
        return OutputProcessed(
            processed=accepted,
            id=receipt.row_id,
            event_id=event_id,
            task_id=task_id,
            fine_tune_job_id=await self._store.queue.run_of(receipt.row_id) if accepted else None,
            learning_update=LearningUpdate(receipt.state, receipt.reason),
            metrics=LearningMetrics(
                confidence, waiting, await self._store.batch_sizes.size_of(line)
            ),
        )

    async def process_feedback(
        self,
        task_type: str,
        task_id: str,
        approved: bool | None = None,
        *,
        user_rating: int | None = None,
        engagement_metrics: Mapping[str, float] | None = None,
        quality_metrics: Mapping[str, float] | None = None,
        trust_delta: float = 0.0,
        confidence_adjustment: float = 0.0,
        mood_adjustment: str | None = None,
        event_id: str | None = None,
        producer: str = PRODUCER,
        model_version: str | None = None,
    ) -> FeedbackProcessed:
        """Take in what people made of an output, and all that follows from it.

        `user_rating` is 1 to 5. Raises as `process_output`.
        """
        event_id = event_id or uuid.uuid4().hex
        event = {
            "event_id": event_id,
            "producer": producer,
            "task_type": task_type,
            "task_id": task_id,
            "approved": approved,
            "feedback": {
                "user_rating": user_rating,
                "engagement_metrics": engagement_metrics or {},
                "quality_metrics": quality_metrics or {},
            },
            "adaptation": {
                "trust_delta": trust_delta,
                "confidence_adjustment": confidence_adjustment,
                "mood_adjustment": mood_adjustment,
            },
            "model_version": model_version,
        }
        receipt = await self._store_event(EventKind.FEEDBACK, event)
        while await self._digester.digest_some():
            pass
        result = await self._store.dials.effects_of(receipt.row_id)
        return FeedbackProcessed(receipt.row_id, event_id, receipt.state, result.adaptations)

    async def process_task(
        self,
        task_type: str,
        prompt: str,
        context: Mapping[str, Any] | None = None,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        producer: str = PRODUCER,
    ) -> TaskProcessed:
        """Have a model answer, and process its answer as an output that nobody judged.

        It is asked in the style that feedback has led to (docs/feedback.md). The champion of
        the line answers, or the model at `remote.llm_endpoint`. Raises UnknownTaskTypeError,
        NobodyAnswersError and JobFailedError, and as `process_output`.
        """
        line = self._line(task_type)
        style = style_sentence(
            await self._store.dials.style_of(task_type, self._clock()),
            self._feedback_rules().moods,
        )
        system = " ".join(filter(None, [line.system_prompts.get(task_type), style]))
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        generated = await self._generation.answer(line, messages, max_new_tokens=max_new_tokens)
        text, confidence = generated.answer
        result = await self.process_output(
            task_type,
            prompt,
            text,
            context,
            confidence=confidence,
            producer=producer,
            model_version=generated.model_version,
        )
        return TaskProcessed(text, generated.model_version, confidence, result)

    async def run_batch_learning_cycle(
        self,
        tasks: Sequence[LearningTask],
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        producer: str = PRODUCER,
    ) -> BatchCycle:
        """Have a model answer each task, and learn from what is accepted.

        A task that cannot be answered or stored is among the failed, and the others go on.
        Raises StoreUnavailableError; what was stored before stays.
        """
        results: list[TaskProcessed] = []
        failed: list[TaskFailed] = []
        for index, task in enumerate(tasks):
            try:
                results.append(
                    await self.process_task(
                        task.task_type,
                        task.prompt,
                        task.context,
                        max_new_tokens=max_new_tokens,
                        producer=producer,
                    )
                )
            except (
                BadEventError,
                ConflictError,
                IntakeClosedError,
                JobFailedError,
                UnknownTaskTypeError,
            ) as error:
                failed.append(TaskFailed(index, str(error)))
        known = [one.confidence for one in results if one.confidence is not None]
        runs = [await self._store.queue.run_of(one.result.id) for one in results]
        return BatchCycle(
            processed=len(results),
            approved=sum(one.result.processed for one in results),
            fine_tune_jobs=sorted({run for run in runs if run is not None}),
            avg_confidence=sum(known) / len(known) if known else None,
            results=results,
            failed=failed,
        )

    async def get_stats(self) -> LearningStats:
        """Queue, runs and champions, what was learned lately, feedback, and recommendations."""
        return await self._statistics.look()

    async def update_learning_config(
        self, changes: Mapping[str, Any], *, reason: str = "", actor: str = PRODUCER
    ) -> SettingChange:
        """Change settings that may be changed at run time: by key, or a name of SHORT_NAMES.

        All or none; they hold at once and are in the history. Raises as
        daemon.api.ports.SettingOperations.
        """
        values = {SHORT_NAMES.get(name, name): value for name, value in changes.items()}
        return await self._settings.change(values, reason=reason, actor=actor, if_revision=None)

    async def force_flush_queue(
        self, task_type: str | None = None, *, actor: str = PRODUCER
    ) -> Sequence[FlushResult]:
        """Seal what waits, of one task type's line or of all; says what that made, or why none."""
        return await self._operations.flush(task_type, actor=actor)

    def _line(self, task_type: str) -> ModelLine:
        line = self._lines.owner(task_type)
        if line is None:
            raise UnknownTaskTypeError(task_type)
        return line

    async def _store_event(self, kind: EventKind, event: Mapping[str, Any]) -> Receipt:
        if (why := self._closed(kind)) is not None:
            raise IntakeClosedError(why)
        told = {name: value for name, value in event.items() if value is not None}
        try:
            raw = json.dumps(told, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise BadEventError("not_json", str(error)) from None
        origin = Origin(SOURCE, f"{kind}/{uuid.uuid4().hex}", 0, 0)
        block = await self._ingest.prepare(SOURCE, [Record(kind, raw, origin)])
        for letter in block.dead_letters:
            raise BadEventError(letter.reason, letter.detail)
        await self._ingest.store(block)
        key = event["producer"], event["event_id"]
        receipt = await self._receipt(kind, key)
        (arrival,) = block.outputs or block.feedback
        if receipt.origin != origin and not arrival.says(receipt.text):
            raise EventIdReusedError(*key)
        return receipt

    async def _receipt(self, kind: EventKind, key: tuple[str, str]) -> Receipt:
        return (await self._store.intake.receipts(kind, [key]))[key]
