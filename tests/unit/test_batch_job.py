"""A batch job goes from step to step, and each of them once; a scripted provider trains."""

import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from finetune.batch_job import BatchJob, JobInUseError, Plan, Status
from finetune.datasets.batch import Sources
from finetune.providers import Workbench
from finetune.scripted_provider import ScriptedEvaluator, ScriptedProvider
from learning.ports import JobFailedError, JobProgress, ModelReference, Recovery, RunSpec


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    pairs = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(60)]
    file.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    return file


def job_of(rows: Path, tmp_path: Path, plan: str = "improve", **training: Any) -> BatchJob:
    plan_ = Plan("scripted", ModelReference("base"), Sources(rows), {"plan": plan, **training})
    folder = tmp_path / plan_.job_id()
    folder.mkdir(exist_ok=True)
    return BatchJob(plan_, folder)


class CountingProvider(ScriptedProvider):
    """Counts its launches."""

    launches = 0

    async def launch(self, spec: RunSpec) -> Any:
        self.launches += 1
        return await super().launch(spec)


@contextlib.asynccontextmanager
async def workbench(
    job: BatchJob, recovery: Recovery = Recovery.LOOKUP
) -> AsyncIterator[tuple[Workbench, CountingProvider]]:
    provider = CountingProvider(job.folder / "scripted", job.artifacts, recovery=recovery)
    yield Workbench(provider, ScriptedEvaluator(job.artifacts)), provider


def ignore(progress: JobProgress) -> None: ...


async def test_a_job_ends_with_a_verified_artifact_an_evaluation_and_a_report(
    rows: Path, tmp_path: Path
) -> None:
    job = job_of(rows, tmp_path)
    seen: list[JobProgress] = []
    with job.alone():
        dataset = job.prepare()
        async with workbench(job) as (bench, _):
            trained = await job.train(bench, dataset, seen.append)
            evaluation = await job.evaluate(bench, dataset, trained)
        result = job.finish(dataset, trained, evaluation)
    assert result.final_status is Status.SUCCEEDED
    assert result.job_id == f"scripted:{job.folder.name}:1:1"
    assert result.dataset_file == str(dataset.train_file)
    assert dataset.n_train == 48
    assert result.artifact is not None
    assert job.artifacts.verify(Path(result.artifact)).sha256 == result.manifest_sha256
    assert evaluation is not None
    assert evaluation.verdict == "promote"
    assert evaluation.slices[0].gain == pytest.approx(0.5)
    assert seen[-1].step == seen[-1].total_steps
    told = json.loads((job.folder / "report.json").read_text())
    assert told["facts"]["artifact"] == trained.artifact
    assert told["dataset"]["validation rows"] == 12
    assert job.finished() == result_with_lists(result)


def result_with_lists(result: Any) -> Any:
    """As it is read back: JSON has no tuples."""
    return dataclasses.replace(result, evaluation=json.loads(json.dumps(result.evaluation)))


async def test_a_finished_training_is_not_trained_again(rows: Path, tmp_path: Path) -> None:
    job = job_of(rows, tmp_path)
    dataset = job.prepare()
    async with workbench(job) as (bench, provider):
        first = await job.train(bench, dataset, ignore)
        again = await BatchJob(job.plan, job.folder).train(bench, dataset, ignore)
    assert provider.launches == 1
    assert again == dataclasses.replace(
        first, measurements=json.loads(json.dumps(first.measurements))
    )


async def test_a_job_that_was_launched_before_is_adopted(rows: Path, tmp_path: Path) -> None:
    job = job_of(rows, tmp_path, plan="lose_reply")
    dataset = job.prepare()
    async with workbench(job) as (bench, provider):
        with pytest.raises(ConnectionError):
            await job.train(bench, dataset, ignore)
        trained = await job.train(bench, dataset, ignore)
    assert provider.launches == 1
    assert trained.artifact is not None


async def test_a_launch_that_nobody_can_look_up_is_not_repeated(rows: Path, tmp_path: Path) -> None:
    job = job_of(rows, tmp_path, plan="lose_reply,improve")
    dataset = job.prepare()
    async with workbench(job, Recovery.NONE) as (bench, provider):
        with pytest.raises(ConnectionError):
            await job.train(bench, dataset, ignore)
        with pytest.raises(JobFailedError, match="nobody knows"):
            await job.train(bench, dataset, ignore)
        assert provider.launches == 1
        trained = await job.train(bench, dataset, ignore)  # somebody has looked
    assert provider.launches == 2
    assert trained.artifact is not None


async def test_after_a_failure_the_next_try_is_another_attempt(rows: Path, tmp_path: Path) -> None:
    job = job_of(rows, tmp_path, plan="fail,improve")
    dataset = job.prepare()
    async with workbench(job) as (bench, _):
        with pytest.raises(JobFailedError, match="scripted_failure"):
            await job.train(bench, dataset, ignore)
        trained = await job.train(bench, dataset, ignore)
    assert trained.job_id == f"scripted:{job.folder.name}:2:1"


@pytest.mark.parametrize("act", ["unchanged", "no_tokens", "not_finite"])
async def test_a_model_with_wrong_numbers_is_refused_and_not_published(
    rows: Path, tmp_path: Path, act: str
) -> None:
    job = job_of(rows, tmp_path, plan=act)
    dataset = job.prepare()
    async with workbench(job) as (bench, _):
        trained = await job.train(bench, dataset, ignore)
        assert await job.evaluate(bench, dataset, trained) is None
    result = job.finish(dataset, trained, None)
    assert (result.final_status, result.artifact) == (Status.REFUSED, None)
    assert result.message
    assert not (job.folder / "artifacts").exists()


async def test_an_adapter_is_evaluated_against_its_base_and_a_base_alone(
    rows: Path, tmp_path: Path
) -> None:
    job = job_of(rows, tmp_path)
    dataset = job.prepare()
    async with workbench(job) as (bench, _):
        trained = await job.train(bench, dataset, ignore)
        with_adapter = BatchJob(
            dataclasses.replace(job.plan, model=job.model_of(trained)), job.folder
        )
        both = await with_adapter.evaluate_only(bench, dataset)
        alone = await job.evaluate_only(bench, dataset)
    assert both.slices[0].gain == pytest.approx(0.5)
    assert both.slices[0].n_rows == dataset.n_train
    assert alone.slices[0].loss_after is None


def test_two_processes_cannot_work_on_one_job(rows: Path, tmp_path: Path) -> None:
    job = job_of(rows, tmp_path)
    with (
        job.alone(),
        pytest.raises(JobInUseError, match="another learnd finetune"),
        BatchJob(job.plan, job.folder).alone(),
    ):
        pass


def different_plans(rows: Path) -> Mapping[str, Plan]:
    plan = Plan("scripted", ModelReference("base"), Sources(rows), {})
    return {
        "provider": dataclasses.replace(plan, provider="other"),
        "model": dataclasses.replace(plan, model=ModelReference("base2")),
        "adapter": dataclasses.replace(plan, model=ModelReference("base", Path("a-000000000000"))),
        "training": dataclasses.replace(plan, training={"steps": 4}),
        "seed": dataclasses.replace(plan, seed=1),
        "share": dataclasses.replace(plan, sources=Sources(rows, validation_share=0.3)),
        "prompt": dataclasses.replace(plan, sources=Sources(rows, system_prompt="x")),
        "itself": plan,
    }


def test_whatever_changes_the_outcome_makes_another_job(rows: Path) -> None:
    ids = {name: plan.job_id() for name, plan in different_plans(rows).items()}
    assert len(set(ids.values())) == len(ids)
