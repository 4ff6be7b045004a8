"""The provider that speaks OpenAI's protocol, against a service that fails in every way."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from finetune.artifacts import ArtifactStore
from finetune.remote.access import ServiceAccess
from finetune.remote.model import RemoteModel, read, write
from finetune.remote.openai_client import Event, OpenAIClient, seconds_until
from finetune.remote.openai_client import Job as ServiceJob
from finetune.remote.openai_jobs import MOST_SUFFIX, suffix_of
from finetune.remote.openai_progress import JobDiary
from finetune.remote.openai_provider import OpenAIProvider
from finetune.remote.openai_settings import OpenAIRules
from learning.ports import JobFailedError, JobHandle, JobProgress, ModelReference, RunSpec
from tests.services.fake_openai import (
    Fate,
    Fault,
    ScriptedFaults,
    Service,
    within_process,
)

KEY = "sk-not-to-be-seen"
SERVING = "http://answers/v1"
JOBS = "/fine_tuning/jobs"
RULES = OpenAIRules(
    poll=timedelta(0), tries=3, retry_base=timedelta(0), retry_cap=timedelta(milliseconds=20)
)
LOST_BUT_DONE = [Fault.RESET_AFTER, Fault.ERROR_AFTER, Fault.HTML_AFTER, Fault.SLOW]
LOST_UNDONE = [Fault.RESET, Fault.ERROR, Fault.HTML]


@dataclass
class Bench:
    """A service within the process, and the provider as often as it is made."""

    folder: Path
    service: Service = field(default_factory=lambda: Service(api_key=KEY))
    faults: ScriptedFaults = field(default_factory=ScriptedFaults)
    rules: OpenAIRules = RULES
    key: str = KEY
    url: str = "http://service/v1"
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def __post_init__(self) -> None:
        self.artifacts = ArtifactStore(self.folder / "artifacts")

    @contextlib.asynccontextmanager
    async def provider(self) -> AsyncIterator[OpenAIProvider]:
        """As it is made at a daemon's start."""
        access = ServiceAccess(self.url, SecretStr(self.key), setting="remote.openai_endpoint")
        transport = within_process(self.service, self.faults)
        async with OpenAIClient.open(access, self.rules, transport=transport) as client:
            yield OpenAIProvider(
                client,
                access,
                self.folder / "openai",
                self.artifacts,
                serving=SERVING,
                rules=self.rules,
                clock=self.clock,
            )

    def spec(self, run_id: str = "r-1") -> RunSpec:
        rows = self.folder / "train.jsonl"
        row = {
            "messages": [
                {"role": "user", "content": "say it"},
                {"role": "assistant", "content": "it"},
            ]
        }
        rows.write_text((json.dumps(row) + "\n") * 12)
        validation = self.folder / "validation.jsonl"
        validation.write_text(json.dumps(row) + "\n")
        return RunSpec(
            run_id=run_id,
            attempt=1,
            line="Queries & more",
            parent=ModelReference("small"),
            train_file=rows,
            work_dir=self.folder / "work",
            training={},
            seed=2**62 + 5,
            timeout=timedelta(hours=1),
            validation_file=validation,
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def ignore(progress: JobProgress) -> None:
    """For who only wants the outcome."""


# --- what is asked for ----------------------------------------------------------------


async def test_a_job_says_whose_it_is_and_leaves_the_numbers_to_the_service(bench: Bench) -> None:
    async with bench.provider() as provider:
        await provider.launch(bench.spec())
    (job,) = bench.service.created
    assert job.body["method"] == {
        "type": "supervised",
        "supervised": {
            "hyperparameters": {
                "n_epochs": "auto",
                "batch_size": "auto",
                "learning_rate_multiplier": "auto",
            }
        },
    }
    assert job.metadata["learnd_run"] == "r-1"
    assert job.metadata["learnd_attempt"] == "1"
    assert job.metadata["learnd_line"] == "Queries & more"
    assert job.body["suffix"] == "queries-more-r-1"
    assert job.body["seed"] == 5
    assert job.body["validation_file"] in bench.service.files


async def test_dpo_is_asked_for_with_its_pairs(bench: Bench) -> None:
    spec = replace(bench.spec(), training={"objective": "dpo", "preference_beta": 0.2})
    pair = {"prompt": [{"role": "user", "content": "q"}], "chosen": "yes", "rejected": "no"}
    with spec.train_file.open("a") as rows:
        rows.write((json.dumps(pair) + "\n") * 10)
    async with bench.provider() as provider:
        outcome = await provider.wait(await provider.launch(spec), ignore)
    (job,) = bench.service.created
    assert job.body["method"]["dpo"]["hyperparameters"]["beta"] == 0.2
    assert outcome.measurements["rows"] == 10
    assert outcome.measurements["notes"] == [
        "12 rows that are no pair were left out: the method dpo takes pairs only"
    ]


def test_a_suffix_keeps_the_run_when_there_is_no_room_for_the_line() -> None:
    assert suffix_of("l" * 100, "r-0123").endswith("-r-0123")
    assert len(suffix_of("l" * 100, "r-0123")) == MOST_SUFFIX
    assert suffix_of("日本", "r-0123") == "r-0123"


async def test_training_goes_on_from_the_champions_model(bench: Bench, tmp_path: Path) -> None:
    bench.service.models.append("ft:small:champion")
    write(RemoteModel("openai", bench.url, "ft:small:champion"), tmp_path / "output")
    published = bench.artifacts.publish("r-0", tmp_path / "output")
    parent = ModelReference("small", bench.artifacts.path(published.name))
    async with bench.provider() as provider:
        await provider.launch(replace(bench.spec(), parent=parent))
    assert bench.service.created[0].body["model"] == "ft:small:champion"


async def test_a_champion_that_no_service_made_cannot_be_trained_on(
    bench: Bench, tmp_path: Path
) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "adapter_config.json").write_text("{}")
    published = bench.artifacts.publish("r-0", tmp_path / "output")
    parent = ModelReference("small", bench.artifacts.path(published.name))
    async with bench.provider() as provider:
        with pytest.raises(JobFailedError, match="not trained at a service") as failed:
            await provider.launch(replace(bench.spec(), parent=parent))
    assert (failed.value.code, failed.value.retryable) == ("bad_model", False)


async def test_rows_that_break_a_rule_are_never_sent(bench: Bench) -> None:
    spec = bench.spec()
    spec.train_file.write_text('{"messages": []}\n')
    async with bench.provider() as provider:
        with pytest.raises(JobFailedError, match="line 1") as failed:
            await provider.launch(spec)
    assert (failed.value.code, failed.value.retryable) == ("bad_dataset", False)
    assert bench.service.requests == []


# --- creating, at most once -----------------------------------------------------------


@pytest.mark.parametrize("fault", LOST_BUT_DONE)
async def test_a_job_whose_reply_was_lost_is_found_and_not_made_again(
    bench: Bench, fault: Fault
) -> None:
    bench.faults.plan("POST", JOBS, fault)
    async with bench.provider() as provider:
        with pytest.raises((ConnectionError, TimeoutError)):
            await provider.launch(bench.spec())
        found = await provider.lookup("r-1", 1)
    (job,) = bench.service.created
    assert found == JobHandle("r-1", 1, job.id)


@pytest.mark.parametrize("fault", LOST_UNDONE)
async def test_a_creation_that_was_not_answered_is_not_repeated(bench: Bench, fault: Fault) -> None:
    bench.faults.plan("POST", JOBS, fault)
    async with bench.provider() as provider:
        with pytest.raises(ConnectionError):
            await provider.launch(bench.spec())
        assert await provider.lookup("r-1", 1) is None
    assert bench.service.created == []
    assert bench.service.requests.count(("POST", f"/v1{JOBS}")) == 1


@pytest.mark.parametrize("fault", [Fault.RATE_LIMIT, Fault.RATE_LIMIT_SILENT])
async def test_a_busy_service_made_no_job_and_is_asked_again(bench: Bench, fault: Fault) -> None:
    bench.faults.plan("POST", JOBS, fault, fault)
    async with bench.provider() as provider:
        await provider.launch(bench.spec())
    assert len(bench.service.created) == 1


async def test_a_service_that_stays_busy_fails_the_attempt_and_keeps_no_rows(bench: Bench) -> None:
    bench.faults.plan("POST", JOBS, *[Fault.RATE_LIMIT] * RULES.tries)
    async with bench.provider() as provider:
        with pytest.raises(JobFailedError, match="429") as failed:
            await provider.launch(bench.spec())
    assert (failed.value.code, failed.value.retryable) == ("service_busy", True)
    assert bench.service.files == {}


async def test_of_two_jobs_of_an_attempt_one_is_adopted_and_the_other_cancelled(
    bench: Bench,
) -> None:
    bench.faults.plan("POST", JOBS, Fault.TWICE)
    async with bench.provider() as provider:
        launched = await provider.launch(bench.spec())
        await provider.wait(launched, ignore)
    states = {job.id: job.status for job in bench.service.created}
    assert len(states) == 2
    assert states.pop(launched.job_id) == "succeeded"
    assert list(states.values()) == ["cancelled"]


async def test_a_job_of_an_earlier_attempt_is_surplus_and_one_of_a_later_attempt_is_not(
    bench: Bench,
) -> None:
    bench.service.fate = lambda job: (
        Fate.SUCCEED if job.metadata["learnd_attempt"] == "2" else Fate.HANG
    )
    async with bench.provider() as provider:
        for attempt in (1, 3):
            await provider.launch(replace(bench.spec(), attempt=attempt))
        job = await provider.launch(replace(bench.spec(), attempt=2))
        await provider.wait(job, ignore)
    states = {job.metadata["learnd_attempt"]: job.is_alive for job in bench.service.created}
    assert states == {"1": False, "2": False, "3": True}


async def test_a_job_is_found_among_many_pages_of_others(bench: Bench) -> None:
    async with bench.provider() as provider:
        job = await provider.launch(bench.spec())
        body = bench.service.created[0].body
        for number in range(250):
            foreign = {"learnd_run": f"other-{number}"} if number % 2 else None
            bench.service.create({**body, "metadata": foreign})
        bench.service.knows_filter = False
        assert await provider.lookup("r-1", 1) == job
    assert bench.service.requests.count(("GET", f"/v1{JOBS}")) == 3


# --- waiting --------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [*LOST_UNDONE, *LOST_BUT_DONE, Fault.RATE_LIMIT])
async def test_a_poll_that_failed_is_repeated(bench: Bench, fault: Fault) -> None:
    async with bench.provider() as provider:
        job = await provider.launch(bench.spec())
        bench.faults.plan("GET", job.job_id, fault, fault)
        outcome = await provider.wait(job, ignore)
    model = read(outcome.output_dir)
    assert model == RemoteModel("openai", SERVING, bench.service.created[0].model or "")
    assert outcome.method == "remote"


async def test_a_service_that_does_not_answer_leaves_the_job_to_be_waited_for_again(
    bench: Bench,
) -> None:
    async with bench.provider() as provider:
        job = await provider.launch(bench.spec())
        bench.faults.plan("GET", job.job_id, *[Fault.ERROR] * RULES.tries)
        with pytest.raises(ConnectionError, match="500"):
            await provider.wait(job, ignore)
        assert bench.service.requests.count(("GET", f"/v1{JOBS}/{job.job_id}")) == RULES.tries
        assert (await provider.wait(job, ignore)).proof.trained_tokens > 0


async def test_a_restarted_daemon_goes_on_waiting_for_the_job(bench: Bench) -> None:
    async with bench.provider() as provider:
        job = await provider.launch(bench.spec())
    async with bench.provider() as provider:
        outcome = await provider.wait(job, ignore)
    assert outcome.measurements["job_id"] == job.job_id
    assert outcome.measurements["monitoring_url"] == f"{bench.url}{JOBS}/{job.job_id}"
    assert outcome.measurements["trained_tokens"] == outcome.proof.trained_tokens
    assert [one["step"] for one in outcome.measurements["checkpoints"]] == [2, 1]


async def test_a_job_is_given_up_in_its_time_after_a_restart_too(bench: Bench) -> None:
    bench.service.fate = lambda job: Fate.HANG
    async with bench.provider() as provider:
        job = await provider.launch(bench.spec())
    bench.clock = lambda: datetime.now(UTC) + timedelta(hours=2)
    async with bench.provider() as provider:
        with pytest.raises(JobFailedError) as failed:
            await provider.wait(job, ignore)
    assert (failed.value.code, failed.value.retryable) == ("timeout", True)
    assert bench.service.created[0].status == "cancelled"


async def test_who_was_nudged_looks_at_once(bench: Bench) -> None:
    bench.rules = replace(RULES, poll=timedelta(hours=1))
    begun = asyncio.Event()
    async with bench.provider() as provider:
        job = await provider.launch(bench.spec())
        bench.service.stride = 3
        waiting = asyncio.create_task(provider.wait(job, lambda _: begun.set()))
        async with asyncio.timeout(30):
            await begun.wait()
            bench.service.stride = 10
            while not waiting.done():
                provider.nudge(job.job_id)
                provider.nudge("no such job")
                await asyncio.sleep(0)
        assert waiting.result().proof.trained_tokens > 0


async def test_a_wrong_address_is_not_a_lost_job(bench: Bench) -> None:
    async with bench.provider() as provider:
        job = await provider.launch(bench.spec())
    bench.url = "http://service/v2"
    async with bench.provider() as provider:
        with pytest.raises(ConnectionError, match="404"):
            await provider.wait(job, ignore)


@pytest.mark.parametrize(
    ("fate", "code", "retryable"),
    [(Fate.FAIL, "server_error", True), (Fate.LOST, "job_lost", True)],
)
async def test_a_job_that_failed_through_no_fault_of_ours_may_be_tried_again(
    bench: Bench, fate: Fate, code: str, retryable: bool
) -> None:
    bench.service.fate = lambda job: fate
    async with bench.provider() as provider:
        with pytest.raises(JobFailedError) as failed:
            await provider.wait(await provider.launch(bench.spec()), ignore)
    assert (failed.value.code, failed.value.retryable) == (code, retryable)
    assert bench.service.files == {}


async def test_a_job_whose_files_the_service_refuses_is_not_tried_again(bench: Bench) -> None:
    bench.service.min_examples = 1_000
    async with bench.provider() as provider:
        with pytest.raises(JobFailedError, match="at least 1000 examples") as failed:
            await provider.wait(await provider.launch(bench.spec()), ignore)
    assert (failed.value.code, failed.value.retryable) == ("invalid_training_file", False)


async def test_a_cancelled_run_leaves_no_job_and_no_rows_there(bench: Bench) -> None:
    bench.faults.plan("POST", JOBS, Fault.TWICE)
    bench.faults.plan("POST", "/cancel", Fault.RESET_AFTER, Fault.RESET_AFTER)
    async with bench.provider() as provider:
        await provider.cancel(await provider.launch(bench.spec()))
    assert [job.status for job in bench.service.created] == ["cancelled", "cancelled"]
    assert bench.service.files == {}


# --- files ----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [*LOST_UNDONE, *LOST_BUT_DONE, Fault.PARTIAL, Fault.RATE_LIMIT])
async def test_an_upload_that_failed_is_one_whole_file_in_the_end(
    bench: Bench, fault: Fault
) -> None:
    bench.faults.plan("POST", "/files", fault)
    spec = replace(bench.spec(), validation_file=None)
    async with bench.provider() as provider:
        await provider.launch(spec)
    (file,) = bench.service.files.values()
    assert file.content == spec.train_file.read_bytes()


async def test_uploaded_rows_stay_where_the_policy_keeps_them(bench: Bench) -> None:
    bench.rules = replace(RULES, delete_files=False)
    async with bench.provider() as provider:
        await provider.wait(await provider.launch(bench.spec()), ignore)
    assert len(bench.service.files) == 2


# --- keys -----------------------------------------------------------------------------


async def test_a_refused_key_names_its_setting_and_is_not_shown(bench: Bench) -> None:
    bench.key = "sk-a-wrong-one"
    async with bench.provider() as provider:
        with pytest.raises(JobFailedError, match=r"remote\.openai_api_key") as failed:
            await provider.launch(bench.spec())
        assert failed.value.retryable
        with pytest.raises(ConnectionError, match=r"remote\.openai_api_key"):
            await provider.wait(JobHandle("r-1", 1, "ftjob-1"), ignore)
    assert bench.key not in str(failed.value)


async def test_a_service_that_repeats_the_key_does_not_make_it_known(bench: Bench) -> None:
    bench.service.models = []
    spec = replace(bench.spec(), parent=ModelReference(KEY))
    async with bench.provider() as provider:
        with pytest.raises(JobFailedError, match="does not exist") as failed:
            await provider.launch(spec)
    assert KEY not in str(failed.value)
    assert failed.value.code == "service_refused"


# --- pauses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("0.5", 0.5), ("-3", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("soon", None)],
)
def test_a_service_says_when_to_come_back(header: str, seconds: float | None) -> None:
    assert seconds_until(header) == seconds


def test_a_service_may_say_nothing_of_when_to_come_back() -> None:
    assert seconds_until(None) is None


async def test_a_pause_longer_than_the_cap_is_not_waited_for_here(bench: Bench) -> None:
    bench.rules = replace(RULES, retry_cap=timedelta(milliseconds=1))
    bench.faults.plan("GET", JOBS, Fault.RATE_LIMIT)
    async with bench.provider() as provider:
        with pytest.raises(ConnectionError, match="429"):
            await provider.lookup("r-1", 1)
    assert len(bench.service.requests) == 1


async def test_a_service_that_tells_no_tokens_is_believed_that_it_trained(bench: Bench) -> None:
    bench.service.tells_tokens = False
    spec = bench.spec()
    async with bench.provider() as provider:
        outcome = await provider.wait(await provider.launch(spec), ignore)
    assert outcome.proof.trained_tokens == spec.train_file.stat().st_size // 4
    assert outcome.measurements["trained_tokens"] is None
    assert outcome.measurements["notes"] == [
        "the service does not tell the trained tokens: estimated"
    ]


# --- services that do not keep to the letter ------------------------------------------


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"created_at": "2026-11-21T00:00:00Z", "metadata": [], "error": "none", "model": None},
        {"created_at": None, "metadata": {"owner": 7}, "error": 0, "result_files": None},
        {"created_at": float("nan"), "error": {"code": 500}, "trained_tokens": "many"},
    ],
)
def test_other_peoples_jobs_may_look_as_they_like(odd: dict[str, Any]) -> None:
    job = ServiceJob.model_validate({"id": "j", "status": "paused", **odd})
    assert not job.has_ended


@pytest.mark.parametrize("newest_first", [True, False])
async def test_a_step_is_told_once_in_whichever_order_a_service_lists_them(
    bench: Bench, newest_first: bool
) -> None:
    bench.service.newest_first_events = newest_first
    told: list[JobProgress] = []
    async with bench.provider() as provider:
        await provider.wait(await provider.launch(bench.spec()), told.append)
    assert [progress.step for progress in told] == [1, 2, 3]


async def test_a_loss_that_is_no_number_is_told_to_the_gate(bench: Bench) -> None:
    diary = JobDiary()
    events = [
        Event.model_validate({"id": "e1", "data": {"step": 1, "train_loss": float("nan")}}),
        Event.model_validate({"id": "e2", "data": {"step": 2, "train_loss": 0.5}}),
        Event.model_validate({"id": "e3", "data": ["odd"]}),
    ]
    steps = diary.read(events)
    assert [(one.step, dict(one.numbers)) for one in steps] == [(1, {}), (2, {"loss": 0.5})]
    assert not diary.all_finite
