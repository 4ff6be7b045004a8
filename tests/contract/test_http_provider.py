"""The provider `http` against an endpoint on a real port: what it sends, believes and survives."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from finetune.artifacts import ArtifactStore
from finetune.remote.access import ServiceAccess
from finetune.remote.http_endpoint import MOST_ANSWER_BYTES, HttpEndpoint, RefusedError
from finetune.remote.http_mapping import FineTuneEndpoint, HttpMapping
from finetune.remote.http_provider import HttpProvider
from finetune.remote.model import RemoteModel, read, write
from learning.facts import CandidateDecided, RunFailed, RunWaits
from learning.ports import (
    JobFailedError,
    JobHandle,
    JobProgress,
    ModelReference,
    Recovery,
    RunSpec,
    TrainingOutcome,
)
from tests.contract.driver import Driver
from tests.contract.floor import Floor
from tests.services.fake_finetune_endpoint import Asked, FakeEndpoint, Fault, Faults
from tests.tuned_models import FAST, KEYED, LISTED

RECOVERIES = {Recovery.IDEMPOTENCY: KEYED, Recovery.LOOKUP: LISTED, Recovery.NONE: {}}
SERVING = "https://answer.example/v1"


def utc_now() -> datetime:
    return datetime.now(UTC)


@contextlib.asynccontextmanager
async def provider_of(
    fake: FakeEndpoint, folder: Path, mapping: Mapping[str, Any], *, hours: float = 1.0
) -> AsyncIterator[HttpProvider]:
    """A provider as a daemon makes it at its start."""
    mapped = HttpMapping(**{**FAST, **mapping})
    access = ServiceAccess(fake.url, SecretStr(fake.api_key), setting="remote.finetune_endpoint")
    configured = FineTuneEndpoint(access, mapped, timedelta(hours=hours))
    async with HttpEndpoint.connect(configured) as endpoint:
        yield HttpProvider(
            configured,
            endpoint,
            serving=SERVING,
            folder=folder / "http",
            artifacts=ArtifactStore(folder / "artifacts"),
            clock=utc_now,
        )


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    rows = [
        {"messages": [{"role": "user", "content": f"say {n}"},
                      {"role": "assistant", "content": "sieben"}]}
        for n in range(4)
    ]  # fmt: skip
    for name in ("train.jsonl", "validation.jsonl"):
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return RunSpec(
        run_id="r-1",
        attempt=1,
        line="normalize",
        parent=ModelReference("base-7b"),
        train_file=tmp_path / "train.jsonl",
        work_dir=tmp_path / "work",
        training={"epochs": 2, "minibatch_size": 8, "parameters": {"lora_rank": 16}},
        seed=7,
        timeout=timedelta(hours=1),
        validation_file=tmp_path / "validation.jsonl",
    )


def ignore(progress: JobProgress) -> None:
    """For who only wants the outcome."""


async def train(provider: HttpProvider, spec: RunSpec) -> TrainingOutcome:
    return await provider.wait(await provider.launch(spec), ignore)


async def failure(doing: Any) -> JobFailedError:
    with pytest.raises(JobFailedError) as failed:
        await doing
    return failed.value


# --- what is sent ---------------------------------------------------------------------


async def test_a_job_is_made_watched_and_leaves_the_name_of_its_model(
    spec: RunSpec, tmp_path: Path
) -> None:
    told: list[JobProgress] = []
    with FakeEndpoint().serving() as fake:
        async with provider_of(fake, tmp_path, {}) as provider:
            outcome = await provider.wait(await provider.launch(spec), told.append)
    assert outcome.method == "remote"
    assert read(outcome.output_dir) == RemoteModel("http", SERVING, "tuned-job-1")
    assert (outcome.proof.trained_tokens, outcome.proof.weight_delta_norm) == (1_000, None)
    assert outcome.proof.all_finite
    assert [(one.step, one.total_steps) for one in told] == [(1, 3), (2, 3), (3, 3)]
    assert outcome.measurements["loss"] == 0.5


async def test_as_it_is_the_request_holds_all_that_there_is_to_know(
    spec: RunSpec, tmp_path: Path
) -> None:
    with FakeEndpoint().serving() as fake:
        async with provider_of(fake, tmp_path, {}) as provider:
            await provider.launch(spec)
    (asked,) = fake.asked
    assert asked.headers["authorization"] == f"Bearer {fake.api_key}"
    assert "idempotency-key" not in asked.headers
    assert json.loads(asked.content) == {
        "run_id": "r-1",
        "attempt": 1,
        "line": "normalize",
        "model": "base-7b",
        "objective": "sft",
        "hyperparameters": {"epochs": 2, "batch_size": 8, "lora_rank": 16},
        "seed": 7,
        "training_data": spec.train_file.read_text(),
        "validation_data": spec.validation_file and spec.validation_file.read_text(),
    }


async def test_another_service_is_configured_and_not_coded(spec: RunSpec, tmp_path: Path) -> None:
    """Other words, other places, another header for the key, and a request for the result."""
    mapping: dict[str, Any] = {
        "key_header": "X-Api-Key",
        "key_scheme": "",
        "submit": {
            "method": "PUT",
            "path": "/v2/tunings",
            "body": {"base": "{model}", "data": {"inline": "{training_data}"},
                     "tag": "learnd-{run_id}-{attempt}", "n": [1, "{seed}"]},
        },
        "status": {"path": "/v2/tunings/{job_id}/state"},
        "result": {"path": "/v2/tunings/{job_id}/result"},
        "answer": {"job_id": "tuning.0.key", "state": "phase", "progress": "share",
                   "model": "models.0", "trained_tokens": "usage.tokens"},
        "states": {"running": "busy", "succeeded": "ready, deployed"},
    }  # fmt: skip
    answers = iter(
        [
            {"tuning": [{"key": 77}]},
            {"phase": "BUSY", "share": 0.25},
            {"phase": "Ready", "share": 1},
            {"models": ["tuned:77"], "usage": {"tokens": 12}},
        ]
    )
    told: list[JobProgress] = []
    fake = FakeEndpoint(answer=lambda asked: (200, json.dumps(next(answers)).encode()))
    with fake.serving():
        async with provider_of(fake, tmp_path, mapping) as provider:
            outcome = await provider.wait(await provider.launch(spec), told.append)
    assert [(one.method, one.path) for one in fake.asked] == [
        ("PUT", "/v2/tunings"),
        ("GET", "/v2/tunings/77/state"),
        ("GET", "/v2/tunings/77/state"),
        ("GET", "/v2/tunings/77/result"),
    ]
    assert json.loads(fake.asked[0].content) == {
        "base": "base-7b",
        "data": {"inline": spec.train_file.read_text()},
        "tag": "learnd-r-1-1",
        "n": [1, 7],
    }
    assert {one.headers["x-api-key"] for one in fake.asked} == {fake.api_key}
    assert [(one.step, one.total_steps) for one in told] == [(25, 100), (100, 100)]
    assert read(outcome.output_dir).name == "tuned:77"
    assert outcome.proof.trained_tokens == 12


async def test_a_dataset_may_go_as_the_files_of_a_form(spec: RunSpec, tmp_path: Path) -> None:
    with FakeEndpoint().serving() as fake:
        async with provider_of(fake, tmp_path, {"dataset": "multipart"}) as provider:
            await provider.launch(spec)
    (asked,) = fake.asked
    assert asked.headers["content-type"].startswith("multipart/form-data")
    assert b'name="training_data"; filename="train.jsonl"' in asked.content
    assert b'name="validation_data"; filename="validation.jsonl"' in asked.content
    assert asked.content.count(spec.train_file.read_bytes()) == 2
    assert b'name="model"\r\n\r\nbase-7b\r\n' in asked.content
    assert b'name="attempt"\r\n\r\n1\r\n' in asked.content


async def test_a_dataset_may_be_fetched_by_the_service(spec: RunSpec, tmp_path: Path) -> None:
    mapping = {"dataset": "reference", "dataset_address": "s3://sets/{run_id}/{file}"}
    with FakeEndpoint().serving() as fake:
        async with provider_of(fake, tmp_path, mapping) as provider:
            await provider.launch(spec)
        async with provider_of(fake, tmp_path, {"dataset": "reference"}) as provider:
            await provider.launch(replace(spec, attempt=2))
    first, second = fake.submissions()
    assert first["training_data"] == "s3://sets/r-1/train.jsonl"
    assert first["validation_data"] == "s3://sets/r-1/validation.jsonl"
    assert second["training_data"] == f"file://{spec.train_file}"


async def test_a_dataset_that_is_too_large_is_not_sent(spec: RunSpec, tmp_path: Path) -> None:
    with FakeEndpoint().serving() as fake:
        async with provider_of(fake, tmp_path, {"max_dataset_bytes": 10}) as provider:
            failed = await failure(provider.launch(spec))
    assert (failed.code, failed.retryable) == ("dataset_too_large", False)
    assert "remote.http.max_dataset_bytes" in failed.message
    assert fake.asked == []


async def test_training_goes_on_from_a_version_by_its_name(spec: RunSpec, tmp_path: Path) -> None:
    write(RemoteModel("http", SERVING, "tuned-before"), tmp_path / "made")
    artifacts = ArtifactStore(tmp_path / "artifacts")
    published = artifacts.publish("r-0", tmp_path / "made")
    parent = ModelReference("base-7b", artifacts.path(published.name))
    with FakeEndpoint().serving() as fake:
        async with provider_of(fake, tmp_path, {}) as provider:
            await provider.launch(replace(spec, parent=parent))
    assert fake.submissions()[0]["model"] == "tuned-before"


# --- what is not believed -------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html>welcome</html>", "no JSON"),
        (b"", "remote.http.answer.state"),
        (b"[" * 100_000, "no JSON"),
        (b'{"status": ' + b"1" * 5_000 + b"}", "no JSON"),
        (b" " * (MOST_ANSWER_BYTES + 1), "more than"),
        (b"\xff\xfe\x00", "no JSON"),
        ([], "remote.http.answer.state"),
        ({"state": "running"}, "remote.http.answer.state"),
        ({"status": ["running"]}, "remote.http.answer.state"),
        ({"status": "thinking\x1b[2J"}, "remote.http.states"),
        ({"status": "succeeded"}, "remote.http.answer.model"),
        ({"status": "succeeded", "fine_tuned_model": {"a": 1}}, "remote.http.answer.model"),
        ({"status": "succeeded", "fine_tuned_model": "a b"}, "remote.http.answer.model"),
        ({"status": "succeeded", "fine_tuned_model": "m" * 501}, "remote.http.answer.model"),
        ({"status": "succeeded", "fine_tuned_model": "base-7b"}, "which the training began with"),
        (
            {"status": "succeeded", "fine_tuned_model": "m", "trained_tokens": "many"},
            "remote.http.answer.trained_tokens",
        ),
    ],
)
async def test_an_answer_that_cannot_be_meant_fails_the_job_and_names_the_setting(
    spec: RunSpec, tmp_path: Path, content: Any, said: str
) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    is_success = isinstance(content, dict) and content.get("status") == "succeeded"

    def answer(asked: Asked) -> tuple[int, bytes] | None:
        return (200, body) if asked.method == "GET" else None

    with FakeEndpoint(answer=answer).serving() as fake:
        async with provider_of(fake, tmp_path, {"retries": 1}) as provider:
            failed = await failure(train(provider, spec))
    assert (failed.code, failed.retryable) == ("bad_answer", False)
    assert said in failed.message
    assert "\x1b" not in failed.message
    assert is_success or fake.living() == [], "nobody would hear of it: it is cancelled"


async def test_a_number_that_is_none_is_seen_by_the_gate(spec: RunSpec, tmp_path: Path) -> None:
    done = b'{"status": "done", "fine_tuned_model": "m", "loss": NaN, "step": 1e999}'
    fake = FakeEndpoint(answer=lambda asked: (200, done) if asked.method == "GET" else None)
    with fake.serving():
        async with provider_of(fake, tmp_path, {}) as provider:
            outcome = await train(provider, spec)
    assert not outcome.proof.all_finite
    assert outcome.measurements["notes"] == [
        "the service does not tell the trained tokens: estimated"
    ]
    assert outcome.proof.trained_tokens == spec.train_file.stat().st_size // 4
    assert json.loads(json.dumps(outcome.measurements, allow_nan=False)) == outcome.measurements


@pytest.mark.parametrize("job_id", ["", "../admin", "a b", "x" * 201, None, True, {"a": 1}])
async def test_a_job_id_that_could_not_be_asked_for_makes_an_unknown_launch(
    spec: RunSpec, tmp_path: Path, job_id: Any
) -> None:
    fake = FakeEndpoint(answer=lambda asked: (200, json.dumps({"id": job_id}).encode()))
    with fake.serving():
        async with provider_of(fake, tmp_path, {}) as provider:
            with pytest.raises(ConnectionError, match=r"remote\.http\.answer\.job_id"):
                await provider.launch(spec)
    assert len(fake.asked) == 1


@pytest.mark.parametrize(
    ("told", "code", "retryable"),
    [
        ({"status": "failed", "error": {"message": "no\x07 luck"}}, "no luck", True),
        ({"status": "error"}, "does not say why", True),
        ({"status": "rejected", "error": "line 3"}, "line 3", False),
    ],
)
async def test_a_failure_is_told_in_the_services_words(
    spec: RunSpec, tmp_path: Path, told: Any, code: str, retryable: bool
) -> None:
    fake = FakeEndpoint(
        answer=lambda asked: (200, json.dumps(told).encode()) if asked.method == "GET" else None
    )
    with fake.serving():
        async with provider_of(fake, tmp_path, {}) as provider:
            failed = await failure(train(provider, spec))
    assert (failed.code, failed.retryable) == ("job_failed", retryable)
    assert code in failed.message


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "answered 400: no: ********"),
        (401, "the key is remote.finetune_api_key"),
        (403, "the key is remote.finetune_api_key"),
        (301, "set remote.finetune_endpoint to its end"),
    ],
)
async def test_a_launch_that_is_refused_says_why_and_never_repeats_the_key(
    spec: RunSpec, tmp_path: Path, status: int, said: str
) -> None:
    fake = FakeEndpoint()
    fake.answer = lambda asked: (status, f"no: {fake.api_key}".encode())
    with fake.serving():
        async with provider_of(fake, tmp_path, {}) as provider:
            failed = await failure(provider.launch(spec))
    assert (failed.code, failed.retryable) == ("refused", False)
    assert said in failed.message
    assert fake.api_key not in str(failed)
    assert len(fake.asked) == 1


async def test_what_a_service_repeats_of_the_key_is_masked_wherever_it_says_it(
    spec: RunSpec, tmp_path: Path
) -> None:
    fake = FakeEndpoint()
    told = {"status": "failed", "error": f"bad header: Bearer {fake.api_key}"}
    fake.answer = lambda asked: (200, json.dumps(told).encode()) if asked.method == "GET" else None
    with fake.serving():
        async with provider_of(fake, tmp_path, {}) as provider:
            failed = await failure(train(provider, spec))
    assert failed.message == "bad header: Bearer ********"


# --- what is survived -----------------------------------------------------------------


async def test_the_wait_that_a_service_asks_for_is_kept_up_to_the_cap(
    spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        waited.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    always = Faults(share=1.0, kinds=[Fault.BUSY_UNTIL], in_a_row=1)
    for asked_for, kept in (("7", 7.0), ("3600", 60.0)):
        with FakeEndpoint(faults=always, retry_after=asked_for).serving() as fake:
            mapping = {"retry_max_seconds": 60.0}
            async with provider_of(fake, tmp_path, mapping) as provider:
                await provider.launch(spec)
        assert kept in waited
        waited.clear()


@pytest.mark.parametrize("fault", [Fault.BUSY, Fault.BUSY_UNTIL])
async def test_a_service_that_puts_off_is_asked_again_a_few_times(
    spec: RunSpec, tmp_path: Path, fault: Fault
) -> None:
    always = Faults(share=1.0, kinds=[fault], in_a_row=10_000)
    with FakeEndpoint(faults=always).serving() as fake:
        async with provider_of(fake, tmp_path, {}) as provider:
            failed = await failure(provider.launch(spec))
    assert (failed.code, failed.retryable) == ("unreachable", True)
    assert len(fake.asked) == 4


@pytest.mark.parametrize("fault", [Fault.BROKEN, Fault.RESET_AFTER, Fault.HTML, Fault.SLOW])
async def test_a_submission_of_unknown_outcome_is_repeated_only_under_a_key(
    spec: RunSpec, tmp_path: Path, fault: Fault
) -> None:
    first = Faults(share=1.0, kinds=[fault], in_a_row=1)
    with FakeEndpoint(faults=first, heeds_keys=True).serving() as fake:
        async with provider_of(fake, tmp_path, {"timeout_seconds": 0.3}) as provider:
            with pytest.raises(ConnectionError):
                await provider.launch(spec)
        assert len(fake.asked) == 1
        fake.misbehave(first)
        async with provider_of(fake, tmp_path, {**KEYED, "timeout_seconds": 0.3}) as provider:
            job = await provider.launch(replace(spec, attempt=2))
    assert [one.attempt for one in fake.jobs if one.id == job.job_id] == [("r-1", 2)]
    assert sum(one.attempt == ("r-1", 2) for one in fake.jobs) == 1
    assert {one.headers["idempotency-key"] for one in fake.asked[1:]} == {"r-1-2"}


async def test_a_repeated_launch_under_a_key_returns_the_first_job(
    spec: RunSpec, tmp_path: Path
) -> None:
    with FakeEndpoint(heeds_keys=True).serving() as fake:
        async with provider_of(fake, tmp_path, KEYED) as provider:
            assert provider.recovery is Recovery.IDEMPOTENCY
            first = await provider.launch(spec)
        async with provider_of(fake, tmp_path / "restarted", KEYED) as provider:
            assert await provider.launch(spec) == first


async def test_where_keys_are_forgotten_the_list_still_knows_the_first_job(
    spec: RunSpec, tmp_path: Path
) -> None:
    with FakeEndpoint(heeds_keys=False).serving() as fake:
        async with provider_of(fake, tmp_path, {**KEYED, **LISTED}) as provider:
            assert provider.recovery is Recovery.IDEMPOTENCY
            assert await provider.launch(spec) == await provider.launch(spec)
    assert len(fake.jobs) == 1


async def test_a_lookup_believes_only_what_names_the_attempt_and_ends_what_is_surplus(
    spec: RunSpec, tmp_path: Path
) -> None:
    mapping = {"lookup": {"path": "/jobs"}}  # the whole list, of all runs
    with FakeEndpoint().serving() as fake:
        async with provider_of(fake, tmp_path, mapping) as provider:
            await provider.launch(replace(spec, run_id="r-other"))
            await provider.launch(replace(spec, attempt=2))
            assert await provider.lookup("r-1", 1) is None
            jobs = [await provider.launch(spec) for _ in range(3)]
            assert await provider.lookup("r-1", 1) == jobs[0]
            assert await provider.lookup("r-1", 1) == jobs[0]
    assert [one.status for one in fake.jobs] == ["queued"] * 3 + ["cancelled"] * 2


async def test_an_endpoint_that_is_away_or_refuses_the_key_does_not_end_a_job(
    spec: RunSpec, tmp_path: Path
) -> None:
    with FakeEndpoint().serving() as fake:
        async with provider_of(fake, tmp_path, LISTED) as provider:
            job = await provider.launch(spec)
            for status in (500, 502, 503, 401, 403):
                fake.answer = lambda asked, status=status: (status, b"later")  # type: ignore[misc]  # mypy knows no defaults of lambdas
                with pytest.raises(ConnectionError, match=str(status)):
                    await provider.wait(job, ignore)
                with pytest.raises(ConnectionError, match=str(status)):
                    await provider.lookup("r-1", 1)
            fake.answer = lambda asked: None
            assert (await provider.wait(job, ignore)).method == "remote"


async def test_a_service_that_knows_its_job_only_later_has_not_lost_it(
    spec: RunSpec, tmp_path: Path
) -> None:
    n_looks = 0

    def answer(asked: Asked) -> tuple[int, bytes] | None:
        nonlocal n_looks
        n_looks += asked.method == "GET"
        return (404, b"{}") if asked.method == "GET" and n_looks <= 2 else None

    with FakeEndpoint(answer=answer).serving() as fake:
        async with provider_of(fake, tmp_path, {}) as provider:
            assert (await train(provider, spec)).method == "remote"


async def test_a_job_that_ended_while_nobody_looked_is_not_late(
    spec: RunSpec, tmp_path: Path
) -> None:
    with FakeEndpoint().serving() as fake:
        async with provider_of(fake, tmp_path, {}) as provider:
            job = await provider.launch(replace(spec, timeout=timedelta(0)))
            fake.jobs[0].status = "succeeded"
            assert (await provider.wait(job, ignore)).method == "remote"


async def test_a_job_that_takes_too_long_is_cancelled_there(spec: RunSpec, tmp_path: Path) -> None:
    with FakeEndpoint(ends_as=lambda body: "hang").serving() as fake:
        async with provider_of(fake, tmp_path, {}) as provider:
            failed = await failure(train(provider, replace(spec, timeout=timedelta(0))))
            assert (failed.code, failed.retryable) == ("timeout", True)
        assert fake.jobs[0].status == "cancelled"
        # A daemon that did not launch it gives it its own patience.
        async with provider_of(fake, tmp_path, {}) as provider:
            job = await provider.launch(replace(spec, attempt=2))
        async with provider_of(fake, tmp_path / "elsewhere", {}, hours=0) as provider:
            assert (await failure(provider.wait(job, ignore))).code == "timeout"
        assert fake.jobs[1].status == "cancelled"


async def test_cancelling_what_has_ended_or_is_gone_is_done(spec: RunSpec, tmp_path: Path) -> None:
    with FakeEndpoint().serving() as fake:
        async with provider_of(fake, tmp_path, {}) as provider:
            await train(provider, spec)
            await provider.cancel(JobHandle("r-1", 1, "job-1"))
            await provider.cancel(JobHandle("r-1", 9, "nowhere"))
            job = await provider.launch(replace(spec, attempt=2))
            fake.answer = lambda asked: (405, b"") if "cancel" in asked.path else None
            with pytest.raises(ConnectionError, match="was not cancelled"):
                await provider.cancel(job)
            fake.answer = lambda asked: (
                (200, b"<html>hello</html>") if asked.method == "POST" else None
            )
            with pytest.raises(ConnectionError, match="was not cancelled"):
                await provider.cancel(job)
            fake.answer = lambda asked: (200, b"") if asked.method == "POST" else None
            await provider.cancel(job)
    assert fake.jobs[0].status == "succeeded"


async def test_an_address_that_may_not_be_used_is_refused_at_the_first_request(
    tmp_path: Path, spec: RunSpec
) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["169.254.169.254"]

    access = ServiceAccess("https://tune.example", setting="remote.finetune_endpoint")
    configured = FineTuneEndpoint(access, HttpMapping(**FAST))
    async with HttpEndpoint.connect(configured, resolve=resolve) as endpoint:
        provider = HttpProvider(
            configured,
            endpoint,
            serving=SERVING,
            folder=tmp_path / "http",
            artifacts=ArtifactStore(tmp_path / "artifacts"),
            clock=utc_now,
        )
        failed = await failure(provider.launch(spec))
    assert (failed.code, failed.retryable) == ("refused", False)
    assert "remote.finetune_endpoint: tune.example is 169.254.169.254" in failed.message
    assert isinstance(failed.__cause__, RefusedError)


# --- through the runner, over seeds ---------------------------------------------------


async def learn_through(
    floor: Floor, fake: FakeEndpoint, mapping: Mapping[str, Any]
) -> tuple[str, int]:
    """One run to its end, with an operator who resolves what is unknown; what it cost them."""
    n_resolved = 0
    async with provider_of(fake, floor.folder, mapping) as provider:
        floor.provider = provider
        run_id = await floor.sealed()
        async with floor.at_work() as runner:
            while True:
                told = await floor.until_one_of(CandidateDecided, RunFailed, RunWaits)
                floor.facts.clear()
                if isinstance(told, CandidateDecided) or (
                    isinstance(told, RunFailed) and not told.retried
                ):
                    return run_id, n_resolved
                if isinstance(told, RunWaits):
                    record = await floor.drive.store.runs.get(run_id)
                    made = [job for job in fake.jobs if job.attempt == (run_id, record.attempt)]
                    await floor.drive.store.interventions.resolve(
                        run_id, made[0].id if made else None, "ann", floor.drive.now
                    )
                    n_resolved += 1
                    runner.wake()


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("recovery", list(Recovery))
async def test_over_many_seeds_of_faults_each_attempt_has_at_most_one_job(
    recovery: Recovery, drive: Driver, tmp_path: Path
) -> None:
    n_seeds, n_resolved = 6, 0
    mapping = {**RECOVERIES[recovery], "timeout_seconds": 0.15, "retries": 2}
    floor = Floor(drive, tmp_path)
    floor.rules = replace(floor.rules, max_failures=100)
    for seed in range(n_seeds):
        faults = Faults(seed=seed, share=0.35)
        fake = FakeEndpoint(faults=faults, heeds_keys=recovery is Recovery.IDEMPOTENCY)
        with fake.serving():
            run_id, n = await learn_through(floor, fake, mapping)
        n_resolved += n
        attempts = [job.attempt for job in fake.jobs]
        assert len(attempts) == len(set(attempts)), f"seed {seed}: {attempts}"
        record = await drive.store.runs.get(run_id)
        adopted = next(job for job in fake.jobs if job.id == record.job_id)
        assert adopted.attempt == (run_id, record.attempt)
        assert [job for job in fake.living() if job is not adopted] == [], f"seed {seed}"
        n_looks = sum(one.path.startswith("/jobs/") for one in fake.asked)
        assert n_looks < 100, f"seed {seed}: it is not asked without end"
    assert (n_resolved > 0) is (recovery is Recovery.NONE), "only then nobody else can know"
