"""What a service elsewhere has of ours: its fine-tuning jobs, and the models that came of them.

Asks the service itself, and no daemon: it also shows what other hands made there.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from daemon.exit_status import ExitStatus
from daemon.printing import Column, number, show_table
from daemon.settings import RemoteSettings
from finetune.providers import ServiceNotNamedError
from finetune.remote.openai_client import Job, OpenAIClient, ServiceRefusedError
from finetune.remote.openai_jobs import ATTEMPT, LINE, RUN
from learning.errors import LearningError


class ServiceNotAskedError(LearningError):
    """The service did not answer."""

    exit_status = ExitStatus.UNREACHABLE

    def __init__(self, error: Exception) -> None:
        super().__init__(f"the service cannot be asked: {error}")


def openai_jobs(remote: RemoteSettings) -> Sequence[Job]:
    """The jobs of the service of the provider `openai`, newest first.

    Raises ServiceNotNamedError, ServiceNotAskedError and ServiceRefusedError.
    """
    access = remote.training_service()
    if access is None:
        raise ServiceNotNamedError.of_openai()

    async def ask() -> Sequence[Job]:
        async with OpenAIClient.open(access, remote.openai_rules()) as client:
            return await client.jobs()

    try:
        jobs = asyncio.run(ask())
    except ServiceRefusedError:
        raise
    except (ConnectionError, TimeoutError) as error:
        raise ServiceNotAskedError(error) from error
    return sorted(jobs, key=lambda job: job.created_at, reverse=True)


def as_json(job: Job) -> dict[str, Any]:
    """A job for scripts."""
    told = job.metadata or {}
    return {
        "job_id": job.id,
        "status": job.status,
        "model": job.fine_tuned_model,
        "trained_from": job.model,
        "trained_tokens": job.trained_tokens,
        "line": told.get(LINE),
        "run_id": told.get(RUN),
        "attempt": told.get(ATTEMPT),
        "created_at": datetime.fromtimestamp(job.created_at, UTC).isoformat(),
        "error": None if job.error is None else job.error.message,
    }


def show_models(jobs: Sequence[dict[str, Any]]) -> None:
    """The models for a person."""
    show_table(
        [Column("model"), Column("from"), Column("line"), Column("run"), number("tokens")],
        [
            [_text(one[key]) for key in ("model", "trained_from", "line", "run_id")]
            + [_text(one["trained_tokens"])]
            for one in jobs
        ],
    )


def show_jobs(jobs: Sequence[dict[str, Any]]) -> None:
    """The jobs for a person."""
    keys = ("job_id", "status", "line", "run_id", "attempt", "error")
    show_table(
        [*(Column(head) for head in ("job", "status", "line", "run", "attempt", "error"))],
        [[_text(one[key]) for key in keys] for one in jobs],
    )


def _text(value: Any) -> str:
    return "-" if value is None else str(value)
