"""What learnd writes on a job at the service, so that it knows its own again.

A job carries the run and the attempt that it is for; that is how one whose reply was lost is
found, and one too many too. It also carries when it is given up, so that a restarted daemon,
which remembers nothing of it, gives it up at the same time.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from finetune.remote.openai_client import Job
from finetune.remote.openai_dataset import Upload
from finetune.remote.openai_settings import OpenAITraining
from learning.ports import RunSpec

RUN: Final = "learnd_run"
ATTEMPT: Final = "learnd_attempt"
LINE: Final = "learnd_line"
GIVE_UP_AT: Final = "learnd_give_up_at"
BYTES: Final = "learnd_bytes"
ROWS: Final = "learnd_rows"
LEFT_OUT: Final = "learnd_rows_left_out"
MOST_SUFFIX: Final = 64
MOST_METADATA: Final = 512
SEEDS: Final = 2**31


@dataclass(frozen=True)
class Files:
    """What was uploaded for a job."""

    training: str
    validation: str | None
    content: Upload
    """What is trained on."""


def request_for(
    spec: RunSpec, model: str, settings: OpenAITraining, files: Files, now: datetime
) -> Mapping[str, Any]:
    """What a job is created with."""
    hyperparameters: dict[str, Any] = {
        "n_epochs": settings.epochs,
        "batch_size": settings.minibatch_size,
        "learning_rate_multiplier": settings.learning_rate_multiplier,
    }
    method = "supervised"
    if settings.objective == "dpo":
        method = "dpo"
        hyperparameters["beta"] = settings.preference_beta
    body = {
        "model": model,
        "training_file": files.training,
        "method": {"type": method, method: {"hyperparameters": hyperparameters}},
        "suffix": suffix_of(spec.line, spec.run_id),
        "seed": spec.seed % SEEDS,
        "metadata": {
            RUN: spec.run_id,
            ATTEMPT: str(spec.attempt),
            LINE: spec.line[:MOST_METADATA],
            GIVE_UP_AT: f"{(now + spec.timeout).timestamp():.3f}",
            BYTES: str(len(files.content.content)),
            ROWS: str(files.content.n_rows),
            LEFT_OUT: str(files.content.n_left_out),
        },
    }
    if files.validation is not None:
        body["validation_file"] = files.validation
    return body


def files_of(run_id: str, attempt: int | None = None) -> str:
    """What the names of a run's files begin with, or those of one attempt."""
    return f"learnd-{run_id}-" if attempt is None else f"learnd-{run_id}-{attempt}-"


def suffix_of(line: str, run_id: str) -> str:
    """What stands in the name of the model: the line, as far as there is room, and the run."""
    run = _plain(run_id)[:MOST_SUFFIX]
    name = _plain(line)[: max(0, MOST_SUFFIX - len(run) - 1)].strip("-")
    return f"{name}-{run}" if name else run


def of_attempt(jobs: Iterable[Job], attempt: int) -> Job | None:
    """The job of an attempt among those of its run; of several the first that may still be good.

    The same one whenever it is asked, as long as the service shows them all.
    """
    own = [job for job in jobs if attempt_of(job) == attempt]
    own.sort(key=lambda job: (job.status in ("failed", "cancelled"), job.created_at, job.id))
    return own[0] if own else None


def surplus(jobs: Iterable[Job], job_id: str, attempt: int) -> Sequence[Job]:
    """Those among the jobs of a run that still go on beside the one that was adopted.

    A job of a later attempt is none of them: another daemon may have gone on with the run.
    """
    return [
        job
        for job in jobs
        if job.id != job_id and not job.has_ended and 0 < attempt_of(job) <= attempt
    ]


def attempt_of(job: Job) -> int:
    """Which attempt a job is for; 0 when it does not say."""
    text = str((job.metadata or {}).get(ATTEMPT, ""))
    return int(text) if text.isascii() and text.isdecimal() else 0


def time_left(job: Job, now: datetime) -> timedelta | None:
    """How long a job may still take; None when nobody wrote it on the job."""
    text = str((job.metadata or {}).get(GIVE_UP_AT, ""))
    try:
        return timedelta(seconds=float(text) - now.timestamp())
    except (ValueError, OverflowError):
        return None


def number_on(job: Job, key: str) -> int | None:
    """A count that was written on a job."""
    text = str((job.metadata or {}).get(key, ""))
    return int(text) if text.isascii() and text.isdecimal() else None


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
