"""What every fine-tune provider and its evaluator keep, whoever trains.

The local provider runs with the real trainer on a tiny model, the scripted one without; the
ones over HTTP with services on real ports, and the example of docs/providers.md as it is there.
"""

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from finetune import providers
from finetune.artifacts import ArtifactStore
from finetune.providers import Workbench, Workshop, factory_of
from finetune.remote import model as remote_model
from finetune.remote.access import ServiceAccess
from finetune.remote.http_mapping import FineTuneEndpoint, HttpMapping
from finetune.remote.openai_settings import OpenAIRules
from finetune.trainer.protocol import MakeTinyModelRequest
from finetune.trainer_process import TrainerHost
from learning.gate import refusal_of
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
from tests.services.fake_chat import FakeChat, Logprobs
from tests.services.fake_finetune_endpoint import FakeEndpoint
from tests.services.fake_openai import FakeOpenAI, Fate, Job, Service
from tests.services.loopback import on_loopback
from tests.tuned_models import BASE, FAST, LISTED, Skills, right

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
    method: str = "lora"
    weights: str = "adapter_model.safetensors"
    """The file of an artifact that is damaged."""

    @property
    def provider(self) -> FineTuneProvider:
        return self.bench.provider

    @property
    def evaluator(self) -> Evaluator:
        return self.bench.evaluator


HASTE = OpenAIRules(
    poll=timedelta(milliseconds=1),
    retry_base=timedelta(milliseconds=1),
    retry_cap=timedelta(milliseconds=20),
)
HANGING_EPOCHS = 40


def fate(job: Job) -> Fate:
    """A long training hangs in its first attempt."""
    epochs = job.body["method"]["supervised"]["hyperparameters"]["n_epochs"]
    hangs = epochs == HANGING_EPOCHS and job.metadata["learnd_attempt"] == "1"
    return Fate.HANG if hangs else Fate.SUCCEED


@pytest.fixture(scope="module")
def openai_service() -> Iterator[dict[str, Any]]:
    """What a workshop knows of a service that trains and answers, which serves meanwhile."""
    chat = FakeChat({"small": 0.0}, right)

    def serve(job: Job) -> None:
        """What was trained knows all."""
        assert job.model is not None
        chat.models[job.model] = 1.0

    service = Service(min_examples=4, fate=fate, on_model=serve)
    with FakeOpenAI(service, chat=chat.app()) as served:
        access = ServiceAccess(served.url, SecretStr(service.api_key))
        yield {"training_service": access, "chat_service": access, "openai_rules": HASTE}


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["local", "scripted", "http", "openai", "memo"]
)
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
        kept: dict[str, Any] = {}
        if request.param == "http":
            base_model, long_training = BASE, {"parameters": {"hangs": True}}
            workshop = replace(workshop, **request.getfixturevalue("services_over_http"))
            kept = {"method": "remote", "weights": remote_model.FILE}
        elif request.param == "openai":
            workshop = replace(workshop, **request.getfixturevalue("openai_service"))
            base_model, training = "small", {"min_examples": 4}
            long_training = {"epochs": HANGING_EPOCHS, **training}
            kept = {"method": "remote", "weights": remote_model.FILE}
        elif request.param == "memo":
            request.getfixturevalue("provider_of_the_guide")
            long_training = {"epochs": 40, "pause_seconds": 0.01}
            kept = {"weights": "learned.json"}
        async with factory_of(request.param)(workshop) as bench:
            resumes = request.param == "local"
            yield Subject(bench, artifacts, base_model, training, long_training, resumes, **kept)


@pytest.fixture(scope="module")
def provider_of_the_guide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The example of docs/providers.md, as a package outside that is installed meanwhile."""
    guide = Path(__file__).parents[2] / "docs" / "providers.md"
    found = re.search(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)
    assert found is not None
    folder = tmp_path_factory.mktemp("outside")
    (folder / "learnd_memo.py").write_text(found[1])
    registered = EntryPoints([EntryPoint("memo", "learnd_memo:memo", providers.GROUP)])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(providers, "entry_points", registered.select)
        yield


@pytest.fixture(scope="module")
def services_over_http() -> Iterator[dict[str, Any]]:
    """What a workshop knows of a plain endpoint and of a chat service, which serve meanwhile."""

    def ends_as(body: Mapping[str, Any]) -> str:
        hangs = body.get("hyperparameters", {}).get("hangs") and body["attempt"] == 1
        return "hang" if hangs else "succeeded"

    endpoint = FakeEndpoint(ends_as=ends_as)
    chat = FakeChat(Skills(), right, logprobs=Logprobs.OFFERED)
    with endpoint.serving(), on_loopback(chat.app()) as serving:
        mapping = HttpMapping(**FAST, **LISTED)
        access = ServiceAccess(endpoint.url, SecretStr(endpoint.api_key))
        yield {
            "fine_tune_endpoint": FineTuneEndpoint(access, mapping),
            "chat_service": ServiceAccess(serving),
        }


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
    assert outcome.method == subject.method
    return ModelReference(subject.base_model, subject.artifacts.path(published.name))


def damage(subject: Subject, model: ModelReference) -> str:
    """Flip one bit of the weights; returns the file's name."""
    assert model.adapter is not None
    weights = model.adapter / subject.weights
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
    assert refusal_of(outcome.proof) is None


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
    assert (first.output_dir / subject.weights).exists()


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
    name = damage(subject, parent)
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
    name = damage(subject, candidate)
    with pytest.raises(JobFailedError, match=name) as failed:
        await subject.evaluator.score({"candidate": candidate}, spec.train_file)
    assert (failed.value.code, failed.value.retryable) == ("bad_model", False)
