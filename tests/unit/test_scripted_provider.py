"""The script, and that a drill can trust what the scripted provider plays."""

import asyncio
import json
import math
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from finetune.artifacts import ArtifactError, ArtifactStore
from finetune.scripted_provider import (
    Act,
    Cue,
    ScriptedEvaluator,
    ScriptedProvider,
    parse_script,
)
from learning.gate import GateRules, HeldOut, Outcome, Refusal, decide, refusal_of
from learning.ports import (
    JobFailedError,
    JobProgress,
    ModelReference,
    Recovery,
    RunSpec,
    TrainingOutcome,
)

BASE = ModelReference("any-base")


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def provider(tmp_path: Path, artifacts: ArtifactStore) -> ScriptedProvider:
    return ScriptedProvider(tmp_path / "scripted", artifacts)


@pytest.fixture
def evaluator(artifacts: ArtifactStore) -> ScriptedEvaluator:
    return ScriptedEvaluator(artifacts)


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    train_file = tmp_path / "train.jsonl"
    train_file.write_text('{"messages": []}\n')
    return RunSpec(
        run_id="r-1",
        attempt=1,
        line="queries",
        parent=BASE,
        train_file=train_file,
        work_dir=tmp_path / "work",
        training={},
        seed=7,
        timeout=timedelta(minutes=1),
    )


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps({"messages": [n]}) + "\n" for n in range(16)))
    return path


def ignore(progress: JobProgress) -> None:
    """For who only wants the outcome."""


def planned(spec: RunSpec, plan: str, **other: object) -> RunSpec:
    return replace(spec, training={"plan": plan, **other})


async def play(provider: ScriptedProvider, spec: RunSpec) -> TrainingOutcome:
    return await provider.wait(await provider.launch(spec), ignore)


async def candidate_of(
    provider: ScriptedProvider, artifacts: ArtifactStore, spec: RunSpec
) -> ModelReference:
    outcome = await play(provider, spec)
    published = artifacts.publish(spec.run_id, outcome.output_dir)
    return ModelReference(spec.parent.base_model, artifacts.path(published.name))


def test_a_script_is_acts_of_attempts_in_parts_of_runs() -> None:
    assert parse_script("fail:out_of_memory, improve; worsen") == [
        [Cue(Act.FAIL, "out_of_memory"), Cue(Act.IMPROVE, "scripted_failure")],
        [Cue(Act.WORSEN, "scripted_failure")],
    ]


def test_an_act_that_does_not_exist_is_named_with_the_known_ones(
    provider: ScriptedProvider,
) -> None:
    with pytest.raises(ValueError, match=r"plan.*'imprve'.*improve, worsen"):
        provider.check_training({"plan": "fail,imprve"})


@pytest.mark.parametrize(
    ("plan", "outcome"),
    [
        ("improve", Outcome.PROMOTE),
        ("worsen", Outcome.REJECT),
        ("equal", Outcome.ABSTAIN),
        ("nan_loss", Outcome.REJECT),
    ],
)
async def test_the_gate_says_what_the_plan_wants(
    provider: ScriptedProvider,
    evaluator: ScriptedEvaluator,
    artifacts: ArtifactStore,
    spec: RunSpec,
    examples: Path,
    plan: str,
    outcome: Outcome,
) -> None:
    candidate = await candidate_of(provider, artifacts, planned(spec, plan))
    scores = await evaluator.score({"champion": BASE, "candidate": candidate}, examples)
    held_out = [HeldOut(n, "queries", recent=True) for n in range(16)]
    report = decide(held_out, scores["champion"], scores["candidate"], GateRules(), 1)
    assert report.outcome is outcome


@pytest.mark.parametrize(
    ("plan", "refusal"),
    [
        ("not_finite", Refusal.NOT_FINITE),
        ("no_tokens", Refusal.NO_TOKENS),
        ("unchanged", Refusal.UNCHANGED_WEIGHTS),
        ("equal", None),
    ],
)
async def test_a_proof_can_be_bad(
    provider: ScriptedProvider, spec: RunSpec, plan: str, refusal: Refusal | None
) -> None:
    assert refusal_of((await play(provider, planned(spec, plan))).proof) is refusal


async def test_gains_add_up_over_generations(
    provider: ScriptedProvider,
    evaluator: ScriptedEvaluator,
    artifacts: ArtifactStore,
    spec: RunSpec,
    examples: Path,
) -> None:
    first = await candidate_of(provider, artifacts, planned(spec, "improve", method="full"))
    assert first.adapter is not None
    parent = ModelReference(str(first.adapter))  # a full model is a base of its own
    second = await candidate_of(provider, artifacts, replace(spec, run_id="r-2", parent=parent))
    scores = await evaluator.score({"base": BASE, "second": second}, examples)
    assert [score.loss for score in scores["second"]] == pytest.approx(
        [score.loss / 4 for score in scores["base"]]
    )


async def test_a_nan_loss_is_returned_as_it_is(
    provider: ScriptedProvider,
    evaluator: ScriptedEvaluator,
    artifacts: ArtifactStore,
    spec: RunSpec,
    examples: Path,
) -> None:
    candidate = await candidate_of(provider, artifacts, planned(spec, "nan_loss"))
    [losses] = (await evaluator.score({"it": candidate}, examples)).values()
    assert all(math.isnan(score.loss) for score in losses)


@pytest.mark.parametrize(
    ("plan", "code", "retryable"),
    [
        ("fail", "scripted_failure", True),
        ("fail:disk_full", "disk_full", True),
        ("fail_for_good:bad_dataset", "bad_dataset", False),
        ("die", "trainer_died", True),
    ],
)
async def test_a_failure_is_played_as_it_is_written(
    provider: ScriptedProvider, spec: RunSpec, plan: str, code: str, retryable: bool
) -> None:
    with pytest.raises(JobFailedError) as failed:
        await play(provider, planned(spec, plan))
    assert (failed.value.code, failed.value.retryable) == (code, retryable)


async def test_each_attempt_plays_its_own_act_and_the_last_one_repeats(
    provider: ScriptedProvider, spec: RunSpec
) -> None:
    spec = planned(spec, "fail,improve")
    with pytest.raises(JobFailedError):
        await play(provider, spec)
    for attempt in (2, 3):
        assert (await play(provider, replace(spec, attempt=attempt))).measurements == {
            "act": "improve"
        }


async def test_each_run_of_a_line_plays_its_own_part_and_the_last_one_repeats(
    provider: ScriptedProvider, spec: RunSpec
) -> None:
    spec = planned(spec, "improve;worsen")
    played = [
        (await play(provider, replace(spec, run_id=run_id, line=line))).measurements["act"]
        for run_id, line in [("r-1", "a"), ("r-2", "a"), ("r-3", "b"), ("r-4", "a"), ("r-1", "a")]
    ]
    assert played == ["improve", "worsen", "improve", "worsen", "improve"]


async def test_a_script_of_the_test_goes_before_the_settings(
    tmp_path: Path, artifacts: ArtifactStore, spec: RunSpec
) -> None:
    provider = ScriptedProvider(
        tmp_path / "own", artifacts, script=lambda spec, earlier: Cue(Act.FAIL, "mine")
    )
    with pytest.raises(JobFailedError, match="mine"):
        await play(provider, planned(spec, "improve"))


async def test_a_lost_reply_leaves_one_job_that_is_found(
    provider: ScriptedProvider, spec: RunSpec
) -> None:
    with pytest.raises(ConnectionError):
        await provider.launch(planned(spec, "lose_reply"))
    job = await provider.lookup("r-1", 1)
    assert job is not None
    assert (await provider.wait(job, ignore)).measurements == {"act": "lose_reply"}
    assert await provider.jobs_created() == {("r-1", 1): 1}


async def test_with_idempotency_a_repeated_launch_returns_the_first_job(
    tmp_path: Path, artifacts: ArtifactStore, spec: RunSpec
) -> None:
    provider = ScriptedProvider(tmp_path / "own", artifacts, recovery=Recovery.IDEMPOTENCY)
    with pytest.raises(ConnectionError):
        await provider.launch(planned(spec, "lose_reply"))
    job = await provider.launch(planned(spec, "lose_reply"))
    assert await provider.jobs() == [job]


async def test_without_idempotency_a_repeated_launch_makes_a_surplus_job(
    provider: ScriptedProvider, spec: RunSpec
) -> None:
    first, second = await provider.launch(spec), await provider.launch(spec)
    assert first.job_id != second.job_id
    assert await provider.jobs_created() == {("r-1", 1): 2}
    assert await provider.lookup("r-1", 1) == first


async def test_jobs_survive_their_daemon(
    provider: ScriptedProvider, tmp_path: Path, artifacts: ArtifactStore, spec: RunSpec
) -> None:
    job = await provider.launch(spec)
    restarted = ScriptedProvider(tmp_path / "scripted", artifacts)
    assert await restarted.lookup("r-1", 1) == job
    assert (await restarted.wait(job, ignore)).measurements == {"act": "improve"}


async def test_a_job_that_outlives_its_daemon_ends_after_the_restart(
    provider: ScriptedProvider, tmp_path: Path, artifacts: ArtifactStore, spec: RunSpec
) -> None:
    told = asyncio.Queue[JobProgress]()
    job = await provider.launch(planned(spec, "outlive", steps=1))
    waiting = asyncio.create_task(provider.wait(job, told.put_nowait))
    await told.get()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    restarted = ScriptedProvider(tmp_path / "scripted", artifacts)
    assert (await restarted.wait(job, ignore)).measurements == {"act": "outlive"}


async def test_a_hanging_job_ends_by_its_timeout_or_by_cancelling(
    provider: ScriptedProvider, spec: RunSpec
) -> None:
    with pytest.raises(JobFailedError, match="timeout"):
        await play(provider, replace(planned(spec, "hang"), timeout=timedelta(0)))
    job = await provider.launch(planned(spec, "hang"))
    waiting = asyncio.create_task(provider.wait(job, ignore))
    await provider.cancel(job)
    with pytest.raises(JobFailedError, match="cancelled"):
        await waiting


async def test_a_cancelled_job_stays_cancelled_after_a_restart(
    provider: ScriptedProvider, tmp_path: Path, artifacts: ArtifactStore, spec: RunSpec
) -> None:
    job = await provider.launch(spec)
    await provider.cancel(job)
    restarted = ScriptedProvider(tmp_path / "scripted", artifacts)
    with pytest.raises(JobFailedError, match="cancelled"):
        await restarted.wait(job, ignore)


async def test_a_journal_line_that_was_cut_short_is_no_job(
    provider: ScriptedProvider, tmp_path: Path, spec: RunSpec
) -> None:
    first = await provider.launch(spec)
    with (tmp_path / "scripted" / "jobs.jsonl").open("a") as journal:
        journal.write('{"job_id": "scripted:r-2')
    second = await provider.launch(replace(spec, attempt=2))
    assert await provider.jobs() == [first, second]


async def test_the_same_training_file_makes_the_same_artifact(
    provider: ScriptedProvider, artifacts: ArtifactStore, spec: RunSpec, tmp_path: Path
) -> None:
    first = await candidate_of(provider, artifacts, spec)
    again = replace(spec, attempt=2, work_dir=tmp_path / "elsewhere")
    assert await candidate_of(provider, artifacts, again) == first
    spec.train_file.write_text('{"messages": [1]}\n')
    assert await candidate_of(provider, artifacts, replace(spec, attempt=3)) != first


async def test_a_planted_pickle_is_refused_at_publication(
    provider: ScriptedProvider, artifacts: ArtifactStore, spec: RunSpec
) -> None:
    outcome = await play(provider, planned(spec, "pickle"))
    with pytest.raises(ArtifactError, match=r"training_args\.bin"):
        artifacts.publish(spec.run_id, outcome.output_dir)


async def test_a_job_that_awaits_a_nudge_ends_with_one_about_itself(
    provider: ScriptedProvider, spec: RunSpec
) -> None:
    one, other = [
        await provider.launch(planned(replace(spec, run_id=run_id), "await_nudge"))
        for run_id in ("r-1", "r-2")
    ]
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(provider.wait(one, ignore))
        provider.nudge(other.job_id)
        assert (await provider.wait(other, ignore)).proof.trained_tokens > 0
        assert not waiting.done()
        provider.nudge(one.job_id)
