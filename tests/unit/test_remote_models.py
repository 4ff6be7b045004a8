"""What `learnd models` shows of a service, and says when it cannot."""

import pytest
from typer.testing import CliRunner

from daemon.commands import models
from daemon.exit_status import ExitStatus
from daemon.remote_models import ServiceNotAskedError
from finetune.providers import ServiceNotNamedError
from tests.services.fake_openai import FakeOpenAI, Service


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    """One job that ended well, and one that goes on."""
    service = Service()
    file = service.upload("rows.jsonl", "fine-tune", b'{"messages": []}\n')
    metadata = {"learnd_run": "r-1", "learnd_line": "queries", "learnd_attempt": "1"}
    for number in range(2):
        job = service.create({"model": "small", "training_file": file.id, "metadata": metadata})
        if number == 0:
            job.status, job.trained_tokens = "succeeded", 1234
    monkeypatch.setenv("OPENAI_API_KEY", service.api_key)
    monkeypatch.setenv("LEARND_REMOTE__OPENAI_RETRY_SECONDS", "0.001")
    return service


def typed(*words: str) -> str:
    ran = CliRunner().invoke(models.commands, words, env={"COLUMNS": "200"})
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return ran.output


def test_models_that_came_of_jobs_are_listed_with_their_lines(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeOpenAI(service) as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.url)
        listed = typed()
        jobs = typed("--jobs")
    done, going_on = service.created
    assert done.model is not None
    assert done.model in listed
    assert "1234" in listed
    assert going_on.id not in listed
    assert all(job.id in jobs and "queries" in jobs for job in service.created)
    assert "validating_files" in jobs


def test_without_a_service_the_setting_is_named() -> None:
    with pytest.raises(ServiceNotNamedError, match=r"remote\.openai_endpoint"):
        typed()


@pytest.mark.usefixtures("service")
def test_a_service_that_does_not_answer_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    with pytest.raises(ServiceNotAskedError) as failed:
        typed()
    assert failed.value.exit_status is ExitStatus.UNREACHABLE
