"""What the local provider knows without a trainer. With one: tests/contract."""

from datetime import timedelta
from pathlib import Path

import pytest

from finetune.artifacts import ArtifactStore
from finetune.local_provider import LocalProvider
from finetune.trainer_process import TrainerHost
from learning.ports import JobFailedError, JobHandle, ModelReference, RunSpec


@pytest.fixture
def host(tmp_path: Path) -> TrainerHost:
    return TrainerHost(ArtifactStore(tmp_path / "artifacts"), tmp_path / "trainer.log")


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return RunSpec(
        run_id="r-1",
        attempt=2,
        line="queries",
        parent=ModelReference("base"),
        train_file=tmp_path / "train.jsonl",
        work_dir=tmp_path / "work",
        training={},
        seed=7,
        timeout=timedelta(minutes=1),
    )


async def test_a_job_is_named_by_its_run_and_attempt(host: TrainerHost, spec: RunSpec) -> None:
    assert await LocalProvider(host).launch(spec) == JobHandle("r-1", 2, "local:r-1:2")


async def test_launching_starts_nothing(host: TrainerHost, spec: RunSpec, tmp_path: Path) -> None:
    await LocalProvider(host).launch(spec)
    assert not (tmp_path / "trainer.log").exists()


async def test_a_job_is_gone_once_its_daemon_is(host: TrainerHost, spec: RunSpec) -> None:
    job = await LocalProvider(host).launch(spec)
    restarted = LocalProvider(host)
    assert await restarted.lookup("r-1", 2) is None
    with pytest.raises(JobFailedError) as lost:
        await restarted.wait(job, lambda progress: None)
    assert (lost.value.code, lost.value.retryable) == ("job_lost", True)


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"learning_rte": 1e-3}, "no training setting learning_rte; did you mean learning_rate?"),
        ({"zzz": 1}, "no training setting zzz; known: checkpoint_every_steps, distributed"),
        ({"epochs": "many"}, "training setting epochs: .*'many'"),
        ({"method": "magic"}, "training setting method: .*'magic'"),
    ],
)
async def test_a_training_setting_that_is_not_understood_is_named(
    host: TrainerHost, training: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        LocalProvider(host).check_training(training)


async def test_training_settings_may_be_texts_as_in_the_environment(host: TrainerHost) -> None:
    LocalProvider(host).check_training({"epochs": "2", "learning_rate": "1e-3"})
