"""What every fine-tune provider and its evaluator keep, whoever trains.

The local provider runs with the real trainer on a tiny model, the scripted one without.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from finetune.artifacts import ArtifactStore
from finetune.providers import Workbench, Workshop, factory_of
from finetune.trainer.protocol import MakeTinyModelRequest
from finetune.trainer_process import TrainerHost
from learning.ports import (
    Evaluator,
    FineTuneProvider,
    JobFailedError,
    JobHandle,
    JobProgress,
    ModelReference,
    Recovery,
    RunSpec,
    TrainingOutcome,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUICK: dict[str, Any] = {
    "max_steps": 3,
    "minibatch_size": 2,
    "gradient_accumulation": 1,
    "learning_rate": 1e-2,
    "max_length": 64,
    "lora_rank": 4,
    "precision": "fp32",
    "checkpoint_every_steps": 1,
}


@dataclass(frozen=True)
class Subject:
    """A provider under test, and what it can be asked to do."""

    bench: Workbench
    artifacts: ArtifactStore
    base_model: str
    training: dict[str, Any]
    long_training: dict[str, Any]
    """The first attempt goes on after its first progress; a second one ends."""
    resumes: bool
    """Whether a second attempt goes on where the first one was cancelled."""

    @property
    def provider(self) -> FineTuneProvider:
        return self.bench.provider

    @property
    def evaluator(self) -> Evaluator:
        return self.bench.evaluator


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["local", "scripted"])
async def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Subject]:
    folder = tmp_path_factory.mktemp(request.param)
    one_thread = (
        pytest.MonkeyPatch()
    )  # a tiny model gains nothing from more, and loses on a full machine
    one_thread.setenv("OMP_NUM_THREADS", "1")
    request.addfinalizer(one_thread.undo)
    artifacts = ArtifactStore(folder / "artifacts")
    async with TrainerHost(artifacts, folder / "trainer.log", idle=timedelta(hours=1)) as host:
        base_model = "any-base"
        training: dict[str, Any] = {}
        long_training: dict[str, Any] = {"plan": "hang,improve"}
        if request.param == "local":
            base_model = str(folder / "base")
            tiny = MakeTinyModelRequest(id="tiny", output_dir=base_model, steps=0)
            async with host.use() as trainer:
                await trainer.request(tiny, lambda message: None)
            training, long_training = QUICK, QUICK | {"max_steps": 40}
        workshop = Workshop(folder, artifacts, host, lambda: training)
        async with factory_of(request.param)(workshop) as bench:
            resumes = request.param == "local"
            yield Subject(bench, artifacts, base_model, training, long_training, resumes)


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    rows = [
        [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": word * 2}]
        for n, word in enumerate(["eins", "zwei", "drei", "vier"])
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


@pytest.fixture
def spec(subject: Subject, rows_file: Path, tmp_path: Path) -> RunSpec:
    return RunSpec(
        run_id=f"r-{tmp_path.name}".replace("[", "-").replace("]", ""),
        attempt=1,
        line="queries",
        parent=ModelReference(subject.base_model),
        train_file=rows_file,
        work_dir=tmp_path / "work",
        training=subject.training,
        seed=7,
        timeout=timedelta(minutes=10),
    )


def ignore(progress: JobProgress) -> None:
    """For who only wants the outcome."""


async def train(subject: Subject, spec: RunSpec) -> TrainingOutcome:
    return await subject.provider.wait(await subject.provider.launch(spec), ignore)


async def publish(subject: Subject, spec: RunSpec) -> ModelReference:
    """Train, and make an artifact of what comes of it."""
    outcome = await train(subject, spec)
    published = await asyncio.to_thread(subject.artifacts.publish, spec.run_id, outcome.output_dir)
    assert outcome.method == "lora"
    return ModelReference(subject.base_model, subject.artifacts.path(published.name))


def damage(model: ModelReference) -> str:
    """Flip one bit of the weights; returns the file's name."""
    assert model.adapter is not None
    weights = model.adapter / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    return weights.name


async def test_a_launch_returns_the_job_of_the_attempt(subject: Subject, spec: RunSpec) -> None:
    job = await subject.provider.launch(replace(spec, attempt=3))
    assert (job.run_id, job.attempt) == (spec.run_id, 3)


async def test_different_attempts_get_different_jobs(subject: Subject, spec: RunSpec) -> None:
    first = await subject.provider.launch(spec)
    second = await subject.provider.launch(replace(spec, attempt=2))
    assert first.job_id != second.job_id


async def test_a_launched_job_can_be_looked_up(subject: Subject, spec: RunSpec) -> None:
    assert subject.provider.recovery is Recovery.LOOKUP
    assert await subject.provider.lookup(spec.run_id, 1) is None
    job = await subject.provider.launch(spec)
    assert await subject.provider.lookup(spec.run_id, 1) == job
    assert await subject.provider.lookup(spec.run_id, 2) is None


async def test_training_ends_with_proof_and_files_that_can_be_published(
    subject: Subject, spec: RunSpec
) -> None:
    outcome = await train(subject, spec)
    published = await asyncio.to_thread(subject.artifacts.publish, spec.run_id, outcome.output_dir)
    await asyncio.to_thread(subject.artifacts.verify, published.name)
    assert outcome.proof.trained_tokens > 0
    assert outcome.proof.weight_delta_norm > 0
    assert outcome.proof.all_finite


async def test_measurements_can_be_stored_as_json(subject: Subject, spec: RunSpec) -> None:
    outcome = await train(subject, spec)
    assert json.loads(json.dumps(outcome.measurements, allow_nan=False)) == outcome.measurements


async def test_progress_counts_the_steps_up_to_the_last(subject: Subject, spec: RunSpec) -> None:
    told: list[JobProgress] = []
    await subject.provider.wait(await subject.provider.launch(spec), told.append)
    steps = [progress.step for progress in told]
    assert steps == sorted(steps)
    assert {progress.total_steps for progress in told} == {3}
    assert steps[-1] == 3
    assert all(math.isfinite(value) for progress in told for value in progress.numbers.values())


async def test_who_waits_again_is_told_the_outcome_again(subject: Subject, spec: RunSpec) -> None:
    job = await subject.provider.launch(spec)
    first = await subject.provider.wait(job, ignore)
    assert await subject.provider.wait(job, ignore) == first
    assert (first.output_dir / "adapter_config.json").exists()


async def test_training_goes_on_from_a_published_model(subject: Subject, spec: RunSpec) -> None:
    parent = await publish(subject, spec)
    child = replace(
        spec, run_id=f"{spec.run_id}-child", parent=parent, work_dir=spec.work_dir / "child"
    )
    assert (await publish(subject, child)).adapter != parent.adapter


async def test_training_does_not_start_from_a_damaged_model(
    subject: Subject, spec: RunSpec
) -> None:
    parent = await publish(subject, spec)
    name = damage(parent)
    with pytest.raises(JobFailedError, match=name) as failed:
        await train(subject, replace(spec, attempt=2, parent=parent))
    assert (failed.value.code, failed.value.retryable) == ("bad_model", False)


async def test_a_misspelt_training_setting_is_named_with_the_nearest(subject: Subject) -> None:
    known = next(iter(subject.long_training))
    with pytest.raises(ValueError, match=rf"no training setting {known}x.*did you mean {known}\?"):
        subject.provider.check_training({f"{known}x": 1})


async def test_a_training_setting_out_of_bounds_is_named(subject: Subject) -> None:
    known = next(iter(subject.long_training))
    with pytest.raises(ValueError, match=known):
        subject.provider.check_training({known: -1})


async def test_the_training_settings_of_the_tests_are_understood(subject: Subject) -> None:
    subject.provider.check_training(subject.training)
    subject.provider.check_training({})


async def test_a_launch_with_settings_that_are_not_understood_fails_for_good(
    subject: Subject, spec: RunSpec
) -> None:
    with pytest.raises(JobFailedError, match="nonsense") as failed:
        await subject.provider.launch(replace(spec, training={"nonsense": 1}))
    assert not failed.value.retryable


async def test_waiting_for_a_job_that_does_not_exist_fails_and_may_be_tried_again(
    subject: Subject,
) -> None:
    with pytest.raises(JobFailedError) as failed:
        await subject.provider.wait(JobHandle("r-none", 1, "no such job"), ignore)
    assert (failed.value.code, failed.value.retryable) == ("job_lost", True)


async def test_a_job_that_takes_too_long_fails_and_may_be_tried_again(
    subject: Subject, spec: RunSpec
) -> None:
    hurried = replace(spec, training=subject.long_training, timeout=timedelta(seconds=0.1))
    with pytest.raises(JobFailedError) as failed:
        await train(subject, hurried)
    assert (failed.value.code, failed.value.retryable) == ("timeout", True)


async def test_cancelling_a_wait_raises_and_the_next_attempt_can_be_made(
    subject: Subject, spec: RunSpec
) -> None:
    spec = replace(spec, training=subject.long_training)
    begun = asyncio.Event()
    job = await subject.provider.launch(spec)
    waiting = asyncio.create_task(subject.provider.wait(job, lambda _: begun.set()))
    await begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    outcome = await train(subject, replace(spec, attempt=2))
    assert outcome.proof.trained_tokens > 0
    assert bool(outcome.measurements.get("resumed_from_step")) is subject.resumes


async def test_a_cancelled_job_fails_for_good(subject: Subject, spec: RunSpec) -> None:
    job = await subject.provider.launch(replace(spec, training=subject.long_training))
    waiting = asyncio.create_task(subject.provider.wait(job, ignore))
    await asyncio.sleep(0)
    await subject.provider.cancel(job)
    with pytest.raises(JobFailedError) as failed:
        await waiting
    assert (failed.value.code, failed.value.retryable) == ("cancelled", False)
    with pytest.raises(JobFailedError, match="cancelled"):
        await subject.provider.wait(job, ignore)


async def test_cancelling_a_job_that_nobody_waits_for_is_noted(
    subject: Subject, spec: RunSpec
) -> None:
    job = await subject.provider.launch(spec)
    await subject.provider.cancel(job)
    with pytest.raises(JobFailedError, match="cancelled"):
        await subject.provider.wait(job, ignore)


async def test_the_evaluator_scores_each_model_on_each_row_in_order(
    subject: Subject, spec: RunSpec
) -> None:
    candidate = await publish(subject, spec)
    champion = ModelReference(subject.base_model)
    scores = await subject.evaluator.score(
        {"champion": champion, "candidate": candidate}, spec.train_file
    )
    assert set(scores) == {"champion", "candidate"}
    assert all(len(column) == 4 for column in scores.values())
    assert all(math.isfinite(score.loss) for column in scores.values() for score in column)
    assert scores["champion"] != scores["candidate"]

    lines = spec.train_file.read_text().splitlines(keepends=True)
    turned = spec.train_file.with_name("turned.jsonl")
    turned.write_text("".join(reversed(lines)))
    again = await subject.evaluator.score({"it": champion}, turned)
    losses = [score.loss for score in scores["champion"]]
    assert [score.loss for score in reversed(again["it"])] == pytest.approx(losses, rel=1e-3)


async def test_the_evaluator_refuses_a_damaged_model_by_the_name_of_its_file(
    subject: Subject, spec: RunSpec
) -> None:
    candidate = await publish(subject, spec)
    name = damage(candidate)
    with pytest.raises(JobFailedError, match=name) as failed:
        await subject.evaluator.score({"candidate": candidate}, spec.train_file)
    assert (failed.value.code, failed.value.retryable) == ("bad_model", False)
