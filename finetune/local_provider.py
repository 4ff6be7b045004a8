"""Train and evaluate in the trainer process on this machine.

A job here is a request to the trainer, so it lives no longer than the daemon: after a
restart `lookup` finds nothing, and the next attempt goes on from the last checkpoint in
the run's folder. Everything that needs a training library happens in the child.
"""

import asyncio
import difflib
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
from pydantic import ValidationError

from finetune.trainer.protocol import (
    EvaluateRequest,
    ExampleScore,
    Message,
    Note,
    TrainingSettings,
    TrainProgress,
    TrainRequest,
    TrainResult,
)
from finetune.trainer_process import TrainerHost, launched
from learning.gate import Score, TrainingProof
from learning.lines import ModelLine
from learning.ports import (
    JobFailedError,
    JobHandle,
    JobProgress,
    ModelReference,
    Recovery,
    RunSpec,
    TrainingOutcome,
)

log = structlog.get_logger(__name__)

ENDED_JOBS_KEPT: Final = 32
"""So many ended jobs keep their outcome, for a runner that asks again."""


@dataclass
class _Job:
    spec: RunSpec
    training: asyncio.Task[TrainingOutcome] | None = None
    cancelled: bool = False

    @property
    def ended(self) -> bool:
        return self.cancelled or (self.training is not None and self.training.done())


class LocalProvider:
    """Implements learning.ports.FineTuneProvider on a TrainerHost.

    `launch` only takes the job down; it is trained by whoever waits for it. Runs that wait
    for the trainer at the same time are served one after the other, and a run's timeout
    starts with its turn. Each run gets a folder of its id in `tensorboard_dir`, if there is one.
    """

    def __init__(self, host: TrainerHost, *, tensorboard_dir: Path | None = None) -> None:
        self._host = host
        self._tensorboard_dir = tensorboard_dir
        self._jobs: dict[str, _Job] = {}

    @property
    def name(self) -> str:
        """See learning.ports.FineTuneProvider."""
        return "local"

    @property
    def recovery(self) -> Recovery:
        """A lookup, which finds nothing once the daemon was restarted."""
        return Recovery.LOOKUP

    def check_training(self, training: Mapping[str, Any]) -> None:
        """See learning.ports.FineTuneProvider."""
        try:
            TrainingSettings.model_validate(dict(training))
        except ValidationError as error:
            raise ValueError(_in_words(error, training)) from error

    async def launch(self, spec: RunSpec) -> JobHandle:
        """See learning.ports.FineTuneProvider. A repeated attempt returns its first job."""
        try:
            self.check_training(spec.training)
        except ValueError as error:
            raise JobFailedError("bad_request", str(error), retryable=False) from error
        handle = _handle(spec.run_id, spec.attempt)
        if handle.job_id not in self._jobs:
            self._forget_old_jobs()
            self._jobs[handle.job_id] = _Job(spec)
        return handle

    def expect(self, line: ModelLine) -> None:
        """A batch of the line is about to fill: have a trainer ready for it."""
        settings = TrainingSettings.model_validate(dict(line.training))
        if line.base_model is not None and _command(settings) is None:
            self._host.expect(line.base_model, settings)

    async def lookup(self, run_id: str, attempt: int) -> JobHandle | None:
        """See learning.ports.FineTuneProvider."""
        handle = _handle(run_id, attempt)
        return handle if handle.job_id in self._jobs else None

    async def wait(
        self, job: JobHandle, on_progress: Callable[[JobProgress], None]
    ) -> TrainingOutcome:
        """See learning.ports.FineTuneProvider. A job that has ended tells its outcome again."""
        known = self._jobs.get(job.job_id)
        if known is None:
            raise JobFailedError("job_lost", f"{job.job_id} ended with its daemon", retryable=True)
        if known.training is None:
            if known.cancelled:
                raise _cancelled(job)
            known.training = asyncio.create_task(
                self._train(job.job_id, known.spec, on_progress), name=job.job_id
            )
        try:
            return await known.training  # cancelling this cancels the training, and waits for it
        except asyncio.CancelledError:
            if known.cancelled and not _is_being_cancelled():
                raise _cancelled(job) from None
            self._jobs.pop(job.job_id, None)
            raise

    async def cancel(self, job: JobHandle) -> None:
        """See learning.ports.FineTuneProvider."""
        known = self._jobs.get(job.job_id)
        if known is None or known.ended:
            return
        known.cancelled = True
        if known.training is not None:
            known.training.cancel()
            await asyncio.wait({known.training})

    async def _train(
        self, job_id: str, spec: RunSpec, on_progress: Callable[[JobProgress], None]
    ) -> TrainingOutcome:
        output_dir = spec.work_dir / f"output-{spec.attempt}"
        await asyncio.to_thread(_make_room, output_dir)
        settings = TrainingSettings.model_validate({**spec.training, "seed": spec.seed})

        def hear(message: Message) -> None:
            match message:
                case TrainProgress():
                    on_progress(_progress(message))
                case Note(text=text):
                    log.info("trainer note", run=spec.run_id, note=text)

        request = TrainRequest(
            id=job_id,
            model=await self._host.reference(spec.parent),
            train_file=str(spec.train_file),
            output_dir=str(output_dir),
            checkpoint_dir=str(spec.work_dir / "checkpoint"),
            validation_file=None if spec.validation_file is None else str(spec.validation_file),
            tensorboard_dir=(
                None if self._tensorboard_dir is None else str(self._tensorboard_dir / spec.run_id)
            ),
            settings=settings,
        )
        async with self._host.use(_command(settings)) as trainer:
            try:
                async with asyncio.timeout(spec.timeout.total_seconds()):
                    result = await trainer.request(request, hear)
            except TimeoutError:
                raise JobFailedError(
                    "timeout",
                    f"not trained within {spec.timeout.total_seconds():g} s;"
                    " another attempt goes on from the last checkpoint",
                    retryable=True,
                ) from None
        return _outcome(output_dir, settings, result)

    def _forget_old_jobs(self) -> None:
        ended = [job_id for job_id, job in self._jobs.items() if job.ended]
        for job_id in ended[:-ENDED_JOBS_KEPT]:
            del self._jobs[job_id]


class LocalEvaluator:
    """Implements learning.ports.Evaluator on a TrainerHost.

    Of `training`, asked for each evaluation, it follows the length, the precision and the
    quantization: they should be what the models are trained with.
    """

    def __init__(
        self, host: TrainerHost, training: Callable[[], TrainingSettings] = TrainingSettings
    ) -> None:
        self._host = host
        self._training = training

    async def score(
        self, models: Mapping[str, ModelReference], examples_file: Path
    ) -> Mapping[str, Sequence[Score]]:
        """See learning.ports.Evaluator. Both models are verified before one is loaded."""
        training = self._training()
        request = EvaluateRequest(
            id=f"evaluate:{examples_file.parent.name}"[:200],
            models={name: await self._host.reference(model) for name, model in models.items()},
            examples_file=str(examples_file),
            max_length=training.max_length,
            precision=training.precision,
            quantization=training.quantization,
        )
        async with self._host.use() as trainer:
            result = await trainer.request(request, lambda message: None)
        return {
            name: [_score(example) for example in result.models[name].examples] for name in models
        }


def _command(settings: TrainingSettings) -> Sequence[str] | None:
    """How a training in several processes is started; None for the trainer that is at hand."""
    distributed = settings.distributed
    if distributed is None or not distributed.enabled or distributed.world_size == 1:
        return None
    return launched(distributed.world_size)


def _handle(run_id: str, attempt: int) -> JobHandle:
    return JobHandle(run_id, attempt, f"local:{run_id}:{attempt}")


def _make_room(output_dir: Path) -> None:
    """An attempt writes into a folder of its own; what a killed one left there is removed."""
    if output_dir.exists():
        shutil.rmtree(output_dir)
    output_dir.parent.mkdir(parents=True, exist_ok=True)


def _progress(message: TrainProgress) -> JobProgress:
    numbers = {
        "loss": message.loss,
        "learning_rate": message.learning_rate,
        "grad_norm": message.grad_norm,
        "tokens_per_second": message.tokens_per_second,
        "seconds_left": message.seconds_left,
        "trained_tokens": message.trained_tokens,
    }
    measured = {name: float(value) for name, value in numbers.items() if value is not None}
    return JobProgress(message.step, message.total_steps, measured)


def _outcome(output_dir: Path, settings: TrainingSettings, result: TrainResult) -> TrainingOutcome:
    proof = TrainingProof(
        trained_tokens=result.trained_tokens,
        weight_delta_norm=_number(result.weight_delta_norm),
        all_finite=result.all_finite,
    )
    measurements = result.model_dump(mode="json")
    return TrainingOutcome(output_dir, settings.method, proof, measurements)


def _score(example: ExampleScore) -> Score:
    return Score(loss=_number(example.loss), match=example.match)


def _number(value: float | None) -> float:
    """JSON has no NaN, so the trainer says null."""
    return math.nan if value is None else value


def _cancelled(job: JobHandle) -> JobFailedError:
    return JobFailedError("cancelled", f"{job.job_id} was cancelled", retryable=False)


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _in_words(error: ValidationError, training: Mapping[str, Any]) -> str:
    """The first fault, with its key."""
    fault = error.errors(include_url=False)[0]
    key = str(fault["loc"][0])
    if fault["type"] != "extra_forbidden":
        return f"training setting {key}: {fault['msg']} (it is {training.get(key)!r})"
    near = difflib.get_close_matches(key, TrainingSettings.model_fields, n=1)
    if near:
        return f"no training setting {key}; did you mean {near[0]}?"
    return f"no training setting {key}; known: {', '.join(sorted(TrainingSettings.model_fields))}"
