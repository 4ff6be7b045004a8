"""One training from a dataset file to a published artifact and its report, without a daemon.

A job is a folder. Its name follows from all that the outcome depends on, and each finished
step leaves a file in it: the same job, asked for again, goes on where it stopped. Which
provider trains is the business of its caller, who lends a workbench.
"""

import asyncio
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from finetune.artifacts import ArtifactStore
from finetune.datasets.batch import BatchDataset, Sources, prepare, statistics_of
from finetune.datasets.chat import DatasetError
from finetune.providers import Workbench
from finetune.report.content import Evaluation, LeftOut, Measured, Slice, TrainingReport
from finetune.report.files import write_report
from learning.errors import LearningError
from learning.gate import (
    GateRules,
    HeldOut,
    Measure,
    Score,
    decide,
    refusal_of,
    refused,
    sound,
)
from learning.ports import (
    FineTuneProvider,
    JobFailedError,
    JobHandle,
    JobProgress,
    ModelReference,
    Recovery,
    RunSpec,
    TrainingOutcome,
)

DATASET: Final = "dataset"
WORK: Final = "work"
ARTIFACTS: Final = "artifacts"
TRAINED: Final = "trained.json"
LAUNCHED: Final = "launched.json"
RESULT: Final = "result.json"
LOCK: Final = ".lock"
MOST_LEFT_OUT: Final = 1_000
"""So many of the lines that were left out are named in a report."""
PATIENCE: Final = timedelta(days=3650)
"""Nobody is kept waiting but the person who can press Ctrl-C."""

OnProgress = Callable[[JobProgress], None]


class Status(StrEnum):
    """How a job ended."""

    SUCCEEDED = "succeeded"
    """There is an artifact, which was evaluated if there were rows to do it on."""
    PREPARED = "prepared"
    """Only the dataset was asked for."""
    EVALUATED = "evaluated"
    """Only an evaluation was asked for."""
    REFUSED = "refused"
    """It was trained, and no version of a model may come of it: its numbers are wrong."""
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """By the person who started it; the same job goes on from its checkpoint."""


class JobInUseError(LearningError):
    """Another process works on the same job."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"another learnd finetune works in {folder}: wait for it, or change a setting, which"
            " makes another job"
        )
        self.folder = folder


@dataclass(frozen=True)
class Plan:
    """What is to be trained, or evaluated. Everything that the outcome depends on."""

    provider: str
    model: ModelReference
    """What training starts from."""
    sources: Sources
    training: Mapping[str, Any]
    """The provider's settings, complete."""
    seed: int = 0

    def job_id(self) -> str:
        """The same for the same plan over the same bytes. Raises DatasetError. Blocks."""
        files = (self.sources.dataset, self.sources.validation)
        told = {
            "provider": self.provider,
            "base_model": self.model.base_model,
            "adapter": None if self.model.adapter is None else self.model.adapter.name,
            "training": self.training,
            "seed": self.seed,
            "files": [None if file is None else _sha256(file) for file in files],
            "validation_share": self.sources.validation_share,
            "split_seed": self.sources.seed,
            "skip_bad_rows": self.sources.skip_bad_rows,
            "system_prompt": self.sources.system_prompt,
            "objective": self.sources.objective,
        }
        canonical = json.dumps(told, sort_keys=True).encode()
        return f"f-{hashlib.sha256(canonical).hexdigest()[:12]}"


@dataclass(frozen=True)
class Trained:
    """A training that has ended. `artifact` is None when it was refused by name."""

    job_id: str
    """The provider's."""
    method: str
    artifact: str | None
    manifest_sha256: str | None
    refusal: str | None
    measurements: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """What a person or a script wants to know in the end."""

    dataset_file: str
    file_id: str
    job_id: str | None
    final_status: Status
    folder: str
    artifact: str | None = None
    """The published directory."""
    manifest_sha256: str | None = None
    evaluation: Mapping[str, Any] | None = None
    """The verdict, its reason, and losses and exact answers before and after."""
    report: str | None = None
    """The page; the same as Markdown and JSON lies beside it."""
    message: str | None = None
    """Why it did not succeed."""
    costs: Mapping[str, Any] | None = None
    """What it may cost, and what it did cost, where it has a price."""


class BatchJob:
    """A plan in its folder. Its methods are its steps, in their order; each may be repeated."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        """`folder` is the job's own."""
        self.plan = plan
        self.folder = folder
        self.artifacts = ArtifactStore(folder / ARTIFACTS)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes off the folder, which is made. Raises JobInUseError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise JobInUseError(self.folder) from error
            yield

    def finished(self) -> Result | None:
        """What came of the job, when it was finished before. Raises ArtifactError. Blocks."""
        known = _load(self.folder / RESULT)
        if known is None:
            return None
        result = Result(**{**known, "final_status": Status(known["final_status"])})
        if result.artifact is not None:
            self.artifacts.verify(Path(result.artifact))
        return result

    def prepare(self) -> BatchDataset:
        """Write the dataset folder. Raises DatasetError. Blocks."""
        return prepare(self.folder / DATASET, self.plan.sources)

    async def train(
        self, workbench: Workbench, dataset: BatchDataset, on_progress: OnProgress
    ) -> Trained:
        """Train and publish, or tell what came of it before. Raises JobFailedError.

        Cancelling it ends a local training with a checkpoint.
        """
        if (known := _load(self.folder / TRAINED)) is not None:
            return Trained(**known)
        launch = self._launch()
        spec = RunSpec(
            run_id=self.folder.name,
            attempt=launch.attempt,
            line="finetune",
            parent=self.plan.model,
            train_file=dataset.train_file,
            work_dir=self.folder / WORK,
            training=self.plan.training,
            seed=self.plan.seed,
            timeout=PATIENCE,
            validation_file=dataset.validation_file,
        )
        try:
            job = await self._job(workbench.provider, spec, launch)
            outcome = await workbench.provider.wait(job, on_progress)
        except JobFailedError:
            # The next try is another job; a local one goes on from the checkpoint all the same.
            _store(self.folder / LAUNCHED, dataclasses.asdict(_Launch(launch.attempt + 1)))
            raise
        trained = await asyncio.to_thread(self._publish, job, outcome)
        _store(self.folder / TRAINED, dataclasses.asdict(trained))
        return trained

    async def evaluate(
        self, workbench: Workbench, dataset: BatchDataset, trained: Trained
    ) -> Evaluation | None:
        """Hold the trained model against what it was trained from; None without rows for it.

        Raises JobFailedError and UnsoundScoresError.
        """
        if dataset.validation_file is None or trained.artifact is None:
            return None
        models = {"before": self.plan.model, "after": self.model_of(trained)}
        scores = await _scores(workbench, models, dataset.validation_file, dataset.n_validation)
        return await asyncio.to_thread(_compared, scores["before"], scores["after"])

    async def evaluate_only(self, workbench: Workbench, dataset: BatchDataset) -> Evaluation:
        """Score the plan's model on every row; with an adapter, hold it against its base.

        Raises JobFailedError and UnsoundScoresError.
        """
        model = self.plan.model
        models = {"before": ModelReference(model.base_model), "after": model}
        if model.adapter is None:
            del models["after"]
        scores = await _scores(workbench, models, dataset.train_file, dataset.n_train)
        if "after" in scores:
            return await asyncio.to_thread(_compared, scores["before"], scores["after"])
        alone = _slice(scores["before"], None)
        return Evaluation(
            "measured",
            "one model alone, with nothing to compare it to",
            [alone],
            _measure_of(scores["before"]),
        )

    def model_of(self, trained: Trained) -> ModelReference:
        """How the trained model is loaded."""
        assert trained.artifact is not None, "it was refused"
        folder = self.artifacts.path(trained.artifact)
        if trained.method in ("lora", "remote"):
            return ModelReference(self.plan.model.base_model, folder)
        return ModelReference(str(folder))

    def finish(
        self,
        dataset: BatchDataset,
        trained: Trained,
        evaluation: Evaluation | None,
        costs: Mapping[str, Any] | None = None,
    ) -> Result:
        """Write the report of a training that has ended, and what came of the job. Blocks."""
        status = Status.SUCCEEDED if trained.refusal is None else Status.REFUSED
        measured = Measured.of(trained.measurements)
        faults = [LeftOut(one.file, one.line, one.reason) for one in dataset.faults]
        report = TrainingReport(
            subject=f"job {self.folder.name}",
            facts={
                "final status": status,
                "provider": self.plan.provider,
                "model": self.plan.model.base_model,
                "adapter": _text(self.plan.model.adapter),
                "dataset": str(self.plan.sources.dataset),
                "validation file": _text(self.plan.sources.validation),
                "job": trained.job_id,
                "artifact": trained.artifact,
                "manifest SHA-256": trained.manifest_sha256,
            },
            settings={"seed": self.plan.seed, **self.plan.training},
            dataset={**statistics_of(dataset), **measured.dataset},
            training=measured.training,
            left_out=[*faults, *measured.left_out][:MOST_LEFT_OUT],
            curve=measured.curve,
            notes=measured.notes,
            evaluation=evaluation,
        )
        page = write_report(self.folder, report)
        artifact = None if trained.artifact is None else self.artifacts.path(trained.artifact)
        result = dataclasses.replace(
            self.result(dataset, status),
            job_id=trained.job_id,
            artifact=_text(artifact),
            manifest_sha256=trained.manifest_sha256,
            evaluation=None if evaluation is None else dataclasses.asdict(evaluation),
            report=str(page),
            message=trained.refusal,
            costs=costs,
        )
        _store(self.folder / RESULT, dataclasses.asdict(result))
        return result

    def result(self, dataset: BatchDataset, status: Status) -> Result:
        """What is known without a training."""
        return Result(
            dataset_file=str(dataset.train_file),
            file_id=f"file-{dataset.sha256[:12]}",
            job_id=None,
            final_status=status,
            folder=str(self.folder),
        )

    def _launch(self) -> "_Launch":
        return _Launch(**(_load(self.folder / LAUNCHED) or {"attempt": 1}))

    async def _job(self, provider: FineTuneProvider, spec: RunSpec, launch: "_Launch") -> JobHandle:
        """The job of this attempt: the one that there is, or a new one. Intent before action."""
        if provider.recovery is Recovery.LOOKUP:
            if (known := await provider.lookup(spec.run_id, spec.attempt)) is not None:
                return known
        elif launch.job_id is not None:
            return JobHandle(spec.run_id, spec.attempt, launch.job_id)
        elif launch.intended and provider.recovery is Recovery.NONE:
            raise JobFailedError(
                "unknown_launch",
                f"nobody knows whether {provider.name} made a job when this was interrupted: look"
                " there, and cancel it; the same command then makes another one",
                retryable=False,
            )
        _store(self.folder / LAUNCHED, {"attempt": spec.attempt, "intended": True})
        job = await provider.launch(spec)
        _store(
            self.folder / LAUNCHED,
            {"attempt": spec.attempt, "intended": True, "job_id": job.job_id},
        )
        return job

    def _publish(self, job: JobHandle, outcome: TrainingOutcome) -> Trained:
        refusal = refusal_of(outcome.proof)
        published = (
            None
            if refusal is not None
            else self.artifacts.publish(self.folder.name, outcome.output_dir)
        )
        return Trained(
            job_id=job.job_id,
            method=outcome.method,
            artifact=published.name if published else None,
            manifest_sha256=published.manifest_sha256 if published else None,
            refusal=refused(refusal).reason if refusal is not None else None,
            measurements=outcome.measurements,
        )


@dataclass(frozen=True)
class _Launch:
    """What is known of an attempt's launch."""

    attempt: int
    intended: bool = False
    job_id: str | None = None


async def _scores(
    workbench: Workbench, models: Mapping[str, ModelReference], file: Path, n_examples: int
) -> Mapping[str, Sequence[Score]]:
    scores = await workbench.evaluator.score(models, file)
    return {name: sound(name, scores.get(name), n_examples) for name in models}


def _compared(before: Sequence[Score], after: Sequence[Score]) -> Evaluation:
    """As the gate compares: every example is a recent one, and it is the first look."""
    examples = [HeldOut(number, "finetune", recent=True) for number in range(len(after))]
    verdict = decide(examples, before, after, GateRules(), look=1)
    return Evaluation(verdict.outcome, verdict.reason, [_slice(before, after)], _measure_of(before))


def _measure_of(scores: Sequence[Score]) -> Measure:
    return scores[0].measure


def _slice(before: Sequence[Score], after: Sequence[Score] | None) -> Slice:
    return Slice(
        name="validation rows",
        n_rows=len(before),
        loss_before=_mean_loss(before),
        loss_after=None if after is None else _mean_loss(after),
        exact_before=_exact(before),
        exact_after=None if after is None else _exact(after),
    )


def _exact(scores: Sequence[Score]) -> float:
    return sum(score.match for score in scores) / len(scores)


def _mean_loss(scores: Sequence[Score]) -> float | None:
    loss = sum(score.loss for score in scores) / len(scores)
    return loss if math.isfinite(loss) else None


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _load(file: Path) -> dict[str, Any] | None:
    try:
        loaded: dict[str, Any] = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    return loaded


def _store(file: Path, content: Mapping[str, Any]) -> None:
    """Complete or not at all."""
    draft = file.with_name(f".{file.name}.new")
    draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, file)


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read: {error.strerror}") from error
