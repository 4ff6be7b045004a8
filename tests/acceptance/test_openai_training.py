"""The whole way at a service that speaks OpenAI's protocol, and fails: daemon and command line.

Real processes, a real port. The service trains nothing, but its models answer as well as the
test says, so that the gate has something to prove.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from daemon.api.routes.webhooks import PATH
from daemon.batch_config import read_config
from daemon.finetuning import Mode, finetune
from finetune.batch_job import Status
from finetune.providers import ServiceNotNamedError
from finetune.remote.model import read
from tests.acceptance.audit import faults_of, require_none
from tests.services.fake_chat import FakeChat
from tests.services.fake_openai import FakeOpenAI, Fault, Job, SeededFaults, Service
from tests.services.learnd import Learnd
from tests.services.nursery import Nursery
from tests.webhooks import KEY as KEY_OF_WEBHOOKS
from tests.webhooks import SECRET, event

LINE = "coding"
ANSWER = "seven"
BATCH_SIZE = 48
KEY = "sk-for-the-tests"
BASE = "small"
JOBS = "/fine_tuning/jobs"
SEED = 5
MOST_TRIES = 20
PRICE = 3_000
"""For a million tokens."""
WHOLE_LIFE = 10
"""So many steps take a job to its end."""
KINDS = tuple(fault for fault in Fault if fault not in (Fault.HELD, Fault.SLOW))
REMOTE = {
    "openai_api_key": KEY,
    "openai_poll_seconds": 0.05,
    "openai_retry_seconds": 0.01,
    "openai_retry_max_seconds": 0.1,
}


class Stormy(SeededFaults):
    """A quarter of what is asked of fine-tuning goes wrong; the first job's reply is lost."""

    def __init__(self) -> None:
        super().__init__(SEED, share=0.25, kinds=KINDS)
        self._first = True

    def of(self, method: str, path: str) -> Fault | None:
        """See Faults."""
        if path.endswith("/chat/completions"):
            return None
        if self._first and method == "POST" and path.endswith(JOBS):
            self._first = False
            return Fault.RESET_AFTER
        return super().of(method, path)


def stage() -> tuple[Service, FakeChat]:
    """A service whose base model knows little, and whose trained models know all."""
    chat = FakeChat({BASE: 0.1}, lambda messages: ANSWER, key=KEY)

    def serve(job: Job) -> None:
        assert job.model is not None
        chat.models[job.model] = 1.0

    return Service(api_key=KEY, on_model=serve), chat


@pytest.fixture
def stormy() -> Iterator[FakeOpenAI]:
    service, chat = stage()
    with FakeOpenAI(service, faults=Stormy(), chat=chat.app()) as fake:
        yield fake


@pytest.fixture
def calm() -> Iterator[FakeOpenAI]:
    """Without faults but those that the test asks for."""
    service, chat = stage()
    with FakeOpenAI(service, chat=chat.app()) as fake:
        yield fake


def installed(folder: Path, fake: FakeOpenAI, nursery: Nursery, **remote: Any) -> Learnd:
    return Learnd(
        folder,
        {
            "queue": {"batch_size": BATCH_SIZE},
            "lines": {LINE: {}},
            "finetune": {
                "provider": "openai",
                "base_model": BASE,
                "retry_base_seconds": 0.1,
                "retry_max_seconds": 0.2,
            },
            "remote": {"openai_endpoint": fake.url, **REMOTE, **remote},
            "money": {
                "prices": {"openai": {BASE: {"per_million_tokens": PRICE}}},
                "cap_per_month": 1_000_000,
            },
        },
        nursery=nursery,
    )


def send_a_batch(daemon: Learnd) -> None:
    for number in range(BATCH_SIZE):
        assert daemon.post("/v1/outputs", _output(number)).is_success


def wait_for_decision(daemon: Learnd) -> Any:
    """The only run, when it is decided."""

    def decided() -> Any:
        runs = daemon.get("/v1/runs")["items"]
        assert not [run for run in runs if run["state"] in ("failed", "waiting")], runs
        return [run for run in runs if run["state"] == "decided"]

    [run] = daemon.wait_until("a decided run", decided, poll_seconds=0.1)
    return daemon.get(f"/v1/runs/{run['id']}")


def has_been_looked_at(service: Service) -> bool:
    """Whether somebody asked how the first job is."""
    return any(("GET", f"/v1{JOBS}/{job.id}") in service.requests for job in service.created[:1])


def require_one_job(service: Service, run: Mapping[str, Any]) -> Job:
    """One job is the run's, and nothing that was made beside it goes on."""
    run_id = run["summary"]["id"]
    job_id = run["measurements"]["job_id"]
    assert {job.metadata["learnd_run"] for job in service.created} == {run_id}
    assert service.living(run_id) == []
    [adopted] = [job for job in service.created if job.is_done]
    assert adopted.id == job_id
    return adopted


@pytest.mark.timeout(240)
def test_a_service_that_fails_all_the_time_trains_a_champion_and_one_command_takes_it_back(
    stormy: FakeOpenAI, tmp_path: Path, nursery: Nursery
) -> None:
    with installed(tmp_path, stormy, nursery) as daemon:
        daemon.start()
        send_a_batch(daemon)
        run = wait_for_decision(daemon)
        assert run["summary"]["version"] == "1.0.1", run["summary"]["message"]
        job = require_one_job(stormy.service, run)
        measured = run["measurements"]
        assert measured["trained_tokens"] == job.trained_tokens
        assert measured["monitoring_url"] == f"{stormy.url}{JOBS}/{job.id}"
        assert stormy.service.files == {}, "rows were left there"
        assert job.trained_tokens is not None
        [paid] = daemon.get("/v1/costs/accounts?by=run")
        assert (paid["attempts"], paid["trained_tokens"]) == (1, job.trained_tokens)
        assert float(paid["spent"]) == pytest.approx(PRICE * job.trained_tokens / 1e6, abs=1e-5)
        assert float(paid["reserved"]) == 0

        told = json.loads(daemon.command("rollback", LINE, "--reason", "a test", "--json"))
        assert (told["version"], told["left"]) == ("1.0.0", "1.0.1")
        assert daemon.stop().status == 0
        require_none(faults_of(daemon.data_dir), when="at the end")
        assert KEY not in daemon.log_tail(100_000)


@pytest.mark.timeout(240)
def test_a_daemon_killed_before_it_heard_of_its_job_adopts_that_one_and_makes_no_other(
    calm: FakeOpenAI, tmp_path: Path, nursery: Nursery
) -> None:
    calm.planned.plan("POST", JOBS, Fault.HELD)
    with installed(tmp_path, calm, nursery) as daemon:
        daemon.start()
        send_a_batch(daemon)
        daemon.wait_until("a job at the service", lambda: len(calm.service.created) == 1)
        daemon.kill()
        calm.let_go()

        daemon.start()
        run = wait_for_decision(daemon)
        assert run["summary"]["version"] == "1.0.1", run["summary"]["message"]
        require_one_job(calm.service, run)
        assert len(calm.service.created) == 1
        assert [one["result"] for one in run["attempts"]] == ["succeeded"]
        assert daemon.stop().status == 0
        require_none(faults_of(daemon.data_dir), when="at the end")


@pytest.mark.timeout(240)
def test_a_webhook_ends_the_wait_for_a_job_long_before_the_next_look(
    calm: FakeOpenAI, tmp_path: Path, nursery: Nursery
) -> None:
    told = {"openai_poll_seconds": 86_400, "openai_webhook_secret": SECRET}
    with installed(tmp_path, calm, nursery, **told) as daemon:
        daemon.start()
        send_a_batch(daemon)
        daemon.wait_until("the first look at the job", lambda: has_been_looked_at(calm.service))
        [job] = calm.service.created
        calm.service.stride = WHOLE_LIFE
        body = event(job=job.id)
        answer = daemon.post_signed(
            PATH, body, KEY_OF_WEBHOOKS.sign("d-1", datetime.now(UTC), body)
        )
        assert answer.is_success, answer.text
        run = wait_for_decision(daemon)
        assert run["summary"]["version"] == "1.0.1", run["summary"]["message"]
        require_one_job(calm.service, run)
        assert daemon.stop().status == 0


@pytest.mark.timeout(240)
def test_learnd_finetune_goes_the_whole_way_at_a_failing_service(
    stormy: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    pairs = [{"prompt": f"which number is {n}?", "completion": ANSWER} for n in range(60)]
    rows.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    config = read_config(
        None,
        {"dataset": rows, "provider": "openai", "model": BASE, "output": tmp_path / "jobs"},
    )
    prepared = finetune(config, Mode.PREPARE_ONLY)
    assert prepared.final_status is Status.PREPARED
    with pytest.raises(ServiceNotNamedError, match=r"remote\.openai_endpoint"):
        finetune(config, Mode.FULL)
    assert stormy.service.requests == []

    for key, value in {"openai_endpoint": stormy.url, **REMOTE}.items():
        monkeypatch.setenv(f"LEARND_REMOTE__{key.upper()}", str(value))
    for _ in range(MOST_TRIES):
        # As often as somebody types it who reads that the service did not answer.
        if (result := finetune(config, Mode.FULL)).final_status is not Status.FAILED:
            break
    assert result.final_status is Status.SUCCEEDED, result.message
    assert result.evaluation is not None
    assert result.evaluation["verdict"] == "promote"
    [job] = [job for job in stormy.service.created if job.is_done]
    assert result.job_id == job.id
    assert stormy.service.living(job.metadata["learnd_run"]) == []
    assert result.artifact is not None
    assert read(Path(result.artifact)).name == job.model
    n_requests = len(stormy.service.requests)
    assert finetune(config, Mode.FULL) == result, "it is shown again"
    assert len(stormy.service.requests) == n_requests, "and not paid again"


def _output(number: int) -> dict[str, Any]:
    return {
        "event_id": f"e-{number}",
        "producer": "studio",
        "task_type": LINE,
        "task_id": f"t-{number}",
        "prompt": f"which number is {number}?",
        "output": ANSWER,
        "approved": True,
    }
