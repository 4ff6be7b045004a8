"""The loop with a plain fine-tune endpoint: a daemon's process, and `learnd finetune`, as typed."""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from daemon.exit_status import ExitStatus
from tests.acceptance.audit import faults_of, require_none
from tests.acceptance.test_cli import LEARND, clean_environment
from tests.services.fake_chat import FakeChat
from tests.services.fake_finetune_endpoint import FakeEndpoint, Fault, Faults
from tests.services.learnd import Crash, Learnd
from tests.services.loopback import on_loopback
from tests.services.nursery import Nursery
from tests.tuned_models import BASE, FAST, KEYED, LISTED, Skills, right

LINE = "coding"
CHAT_KEY = "the-key-of-the-chat"
N_OUTPUTS = 32


@contextlib.contextmanager
def chat_service() -> Iterator[str]:
    """The address of a service that serves the base and every tuned model."""
    with on_loopback(FakeChat(Skills(), right, key=CHAT_KEY).app()) as url:
        yield url


def keys(fake: FakeEndpoint) -> dict[str, str]:
    """Keys come from the environment."""
    return {"FINETUNE_API_KEY": fake.api_key, "LLM_API_KEY": CHAT_KEY}


def settings_for(fake: FakeEndpoint, chat: str, mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "finetune": {"provider": "http", "base_model": BASE, "retry_base_seconds": 0.01},
        "queue": {"batch_size": N_OUTPUTS, "adaptive": False},
        "remote": {
            "finetune_endpoint": fake.url,
            "llm_endpoint": chat,
            "http": {**FAST, **mapping},
        },
        "lines": {LINE: {}},
    }


def send_outputs(daemon: Learnd) -> None:
    """A batch of approved outputs, through its API."""
    events = [
        {"event_id": f"e-{n}", "producer": "studio", "task_type": LINE, "task_id": f"t-{n}",
         "prompt": f"say word number {n}", "output": f"SAY WORD NUMBER {n}", "approved": True}
        for n in range(N_OUTPUTS)
    ]  # fmt: skip
    answer = httpx.post(
        f"{daemon.url}/v1/outputs",
        content="".join(f"{json.dumps(event)}\n" for event in events),
        headers={
            "Authorization": f"Bearer {daemon.token}",
            "Content-Type": "application/x-ndjson",
        },
        timeout=30,
        trust_env=False,
    )
    answer.raise_for_status()


def decided(daemon: Learnd) -> Any:
    """The only run, when it is decided."""

    def ask() -> Any:
        runs = daemon.get("/v1/runs")["items"]
        failed = [run for run in runs if run["state"] in ("failed", "waiting")]
        assert not failed, failed
        return [run for run in runs if run["state"] == "decided"]

    [run] = daemon.wait_until("a decided run", ask, seconds=60)
    return run


@pytest.fixture
def install(tmp_path: Path, nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`install(fake, mapping)` is a daemon that trains with this endpoint."""
    with contextlib.ExitStack() as stack:
        chat = stack.enter_context(chat_service())

        def install(fake: FakeEndpoint, mapping: Mapping[str, Any]) -> Learnd:
            stack.enter_context(fake.serving())
            settings = settings_for(fake, chat, mapping)
            return stack.enter_context(Learnd(tmp_path, settings, nursery=nursery))

        yield install


def test_events_become_a_promoted_version_of_the_service_with_its_faults_on(install: Any) -> None:
    kinds = [fault for fault in Fault if fault is not Fault.SLOW]
    fake = FakeEndpoint(faults=Faults(seed=6, share=0.4, kinds=kinds), heeds_keys=True)
    daemon = install(fake, KEYED)
    daemon.launch(environment=keys(fake))
    daemon.wait_until("learnd is up", daemon.is_up)
    send_outputs(daemon)
    run = decided(daemon)
    assert run["version"] == "1.0.1", run
    champion = daemon.get(f"/v1/models/{LINE}/champion")
    remote = json.loads((Path(champion["loading"]["adapter"]) / "remote_model.json").read_text())
    (job,) = (job for job in fake.jobs if job.status == "succeeded")
    assert remote["name"] == f"tuned-{job.id}"
    assert len({one.attempt for one in fake.jobs}) == len(fake.jobs)
    assert fake.living() == []
    assert daemon.stop().status == 0
    require_none(faults_of(daemon.data_dir), when="at the end")


def test_a_daemon_that_is_killed_after_the_job_was_made_goes_on_with_that_job(install: Any) -> None:
    fake = FakeEndpoint()
    daemon = install(fake, LISTED)
    daemon.launch(Crash("job launched"), environment=keys(fake))
    daemon.wait_until("learnd is up", daemon.is_up)
    with contextlib.suppress(httpx.TransportError):
        send_outputs(daemon)
    daemon.wait_for_crash()
    assert len(fake.jobs) == 1
    daemon.launch(environment=keys(fake))
    daemon.wait_until("learnd is up", daemon.is_up)
    assert decided(daemon)["version"] == "1.0.1"
    assert len(fake.jobs) == 1
    assert daemon.stop().status == 0


def test_without_key_and_list_an_unknown_launch_waits_for_an_operator_who_is_told_how(
    install: Any,
) -> None:
    fake = FakeEndpoint(faults=Faults(share=1.0, kinds=[Fault.RESET_AFTER], in_a_row=1))
    daemon = install(fake, {})
    daemon.launch(environment=keys(fake))
    daemon.wait_until("learnd is up", daemon.is_up)
    send_outputs(daemon)
    [waiting] = daemon.wait_until(
        "a waiting run",
        lambda: [run for run in daemon.get("/v1/runs")["items"] if run["state"] == "waiting"],
    )
    advice = f"learnd runs resolve {waiting['id']} --job ID"
    assert advice in daemon.get(f"/v1/runs/{waiting['id']}")["summary"]["message"]
    daemon.command("runs", "resolve", waiting["id"], "--job", fake.jobs[0].id)
    assert decided(daemon)["version"] == "1.0.1"
    assert len(fake.jobs) == 1


def test_a_dataset_file_becomes_a_version_without_a_daemon(tmp_path: Path) -> None:
    rows = [{"prompt": f"say {n}", "completion": f"SAY {n}"} for n in range(50)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    kinds = [fault for fault in Fault if fault is not Fault.SLOW]
    fake = FakeEndpoint(faults=Faults(seed=1, share=0.3, kinds=kinds), heeds_keys=True)
    with chat_service() as chat, fake.serving():
        settings = settings_for(fake, chat, KEYED)
        (tmp_path / "learnd.yaml").write_text(json.dumps({"remote": settings["remote"]}))
        words = ("finetune", "rows.jsonl", "--provider", "http", "--model", BASE, "--epochs", "2")
        done = subprocess.run(
            [*LEARND, *words, "--json"],
            cwd=tmp_path,
            env={**clean_environment(), **keys(fake)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == ExitStatus.DONE, done.stderr
    told = json.loads(done.stdout)
    assert told["final_status"] == "succeeded"
    assert told["job_id"] == fake.jobs[0].id
    assert told["evaluation"]["verdict"] == "promote"
    assert fake.submissions()[0]["hyperparameters"] == {"epochs": 2}
    assert len(fake.jobs) == 1
