"""The files and jobs of the service, and how a job goes on.

Knows nothing of HTTP. A job goes one step further each time it is asked for, or when a test
says `advance`; a job whose fate is to hang stays where it runs.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tests.services.fake_openai.rows import fault_of

NOW = 1_790_000_000
"""The service's clock stands still; its numbers still tell jobs apart."""
STEPS = 3
TERMINAL = frozenset({"succeeded", "failed", "cancelled"})


class Fate(StrEnum):
    """What is to become of a job, if it is not cancelled."""

    SUCCEED = "succeed"
    HANG = "hang"
    """It runs for ever after its first step."""
    FAIL = "fail"
    """As it does through no fault of its files."""
    LOST = "lost"
    """The service forgets it once it runs."""


class ProtocolError(Exception):
    """The service refuses a request, in its own words."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param


@dataclass
class File:
    """A file that was uploaded."""

    id: str
    name: str
    content: bytes

    def shown(self) -> dict[str, Any]:
        """As the protocol shows it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": NOW,
            "filename": self.name,
            "purpose": "fine-tune",
            "status": "processed",
        }


@dataclass
class Job:
    """A job, as it is now."""

    id: str
    body: Mapping[str, Any]
    n_bytes: int
    """Of its training file."""
    fate: Fate = Fate.SUCCEED
    status: str = "validating_files"
    step: int = 0
    error: dict[str, str | None] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    trained_tokens: int | None = None
    hidden: int = 0
    """From so many more lists it is missing, as where a service's parts do not agree yet."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """As it was created with."""
        return self.body.get("metadata") or {}

    @property
    def method(self) -> str:
        """`supervised` or `dpo`."""
        return str((self.body.get("method") or {"type": "supervised"})["type"])

    @property
    def model(self) -> str | None:
        """The name of the fine-tuned model, once there is one."""
        suffix = self.body.get("suffix") or "custom"
        return f"ft:{self.body['model']}:org:{suffix}:{self.id}" if self.is_done else None

    @property
    def is_done(self) -> bool:
        """Whether a model came of it."""
        return self.status == "succeeded"

    @property
    def is_alive(self) -> bool:
        """Whether it still costs money."""
        return self.status not in TERMINAL

    def shown(self) -> dict[str, Any]:
        """As the protocol shows it."""
        return {
            "id": self.id,
            "object": "fine_tuning.job",
            "created_at": NOW,
            "finished_at": None if self.is_alive else NOW,
            "model": self.body["model"],
            "fine_tuned_model": self.model,
            "organization_id": "org",
            "result_files": [],
            "status": self.status,
            "training_file": self.body["training_file"],
            "validation_file": self.body.get("validation_file"),
            "hyperparameters": {},
            "method": self.body.get("method"),
            "seed": self.body.get("seed") or 0,
            "trained_tokens": self.trained_tokens,
            "metadata": self.body.get("metadata"),
            "error": self.error or {"code": None, "message": None, "param": None},
        }


class Service:
    """What the service remembers."""

    def __init__(
        self,
        *,
        api_key: str = "the-key",
        min_examples: int = 10,
        stride: int = 1,
        fate: Callable[[Job], Fate] = lambda job: Fate.SUCCEED,
        on_model: Callable[[Job], None] = lambda job: None,
    ) -> None:
        """`on_model` is told of each job that succeeds: its model is there to be asked."""
        self.api_key = api_key
        self.min_examples = min_examples
        self.stride = stride
        """So many steps of its life a job goes on whenever it is asked for."""
        self.fate = fate
        self._on_model = on_model
        self.models = ["small", "large"]
        self.knows_filter = True
        """Whether jobs are listed by their metadata; some services show all of them."""
        self.hidden = 0
        """So many lists a new job is missing from."""
        self.newest_first_events = True
        self.tells_tokens = True
        self.files: dict[str, File] = {}
        self.jobs: dict[str, Job] = {}
        self.created: list[Job] = []
        """Every job there ever was, those that were lost included: the tests' oracle."""
        self.deleted_files: list[str] = []
        self.requests: list[tuple[str, str]] = []
        """Method and path of everything that was asked, in its order."""
        self._numbers = itertools.count(1)

    # --- files ------------------------------------------------------------------------

    def upload(self, name: str, purpose: str, content: bytes) -> File:
        """Keep a file. Raises ProtocolError."""
        if purpose != "fine-tune":
            raise ProtocolError(400, f"'{purpose}' is not one of ['fine-tune']", "purpose")
        if not name.endswith(".jsonl"):
            raise ProtocolError(400, "fine-tuning takes .jsonl files", "file")
        file = File(f"file-{next(self._numbers)}", name, content)
        self.files[file.id] = file
        return file

    def file(self, file_id: str) -> File:
        """A file. Raises ProtocolError."""
        if file_id not in self.files:
            raise ProtocolError(404, f"No such File object: {file_id}", "id")
        return self.files[file_id]

    def delete(self, file_id: str) -> None:
        """Forget a file. Raises ProtocolError."""
        self.file(file_id)
        del self.files[file_id]
        self.deleted_files.append(file_id)

    # --- jobs -------------------------------------------------------------------------

    def create(self, body: Mapping[str, Any]) -> Job:
        """Make a job. Raises ProtocolError."""
        if body.get("model") not in {*self.models, *self._fine_tuned()}:
            raise ProtocolError(404, f"The model {body.get('model')!r} does not exist", "model")
        for param in ("training_file", "validation_file"):
            file_id = body.get(param)
            is_needed = file_id is not None or param == "training_file"
            if is_needed and file_id not in self.files:
                raise ProtocolError(400, f"invalid {param}: {file_id}", param)
        self._check_words(body)
        n_bytes = len(self.files[body["training_file"]].content)
        job = Job(f"ftjob-{next(self._numbers)}", body, n_bytes)
        job.fate, job.hidden = self.fate(job), self.hidden
        self.jobs[job.id] = job
        self.created.append(job)
        return job

    def job(self, job_id: str) -> Job:
        """A job. Raises ProtocolError."""
        if job_id not in self.jobs:
            raise ProtocolError(404, f"Could not find fine tune: {job_id}", "fine_tuning_job_id")
        return self.jobs[job_id]

    def newest_first(self) -> list[Job]:
        """As the protocol lists them."""
        listed = [job for job in reversed(self.jobs.values()) if not job.hidden]
        for job in self.jobs.values():
            job.hidden = max(0, job.hidden - 1)
        return listed

    def cancel(self, job_id: str) -> Job:
        """End a job. Raises ProtocolError when it has ended."""
        job = self.job(job_id)
        if not job.is_alive:
            raise ProtocolError(400, f"Job has already {job.status}")
        job.status = "cancelled"
        self._say(job, "The job was cancelled.")
        return job

    def advance(self, job: Job) -> None:
        """One step of its life."""
        match job.status:
            case "validating_files":
                self._validate(job)
            case "queued":
                job.status = "running"
            case "running" if job.fate is Fate.LOST:
                self.jobs.pop(job.id, None)
            case "running" if job.fate is Fate.FAIL and job.step:
                job.status = "failed"
                job.error = {"code": "server_error", "message": "it went wrong", "param": None}
            case "running" if job.step < STEPS and not (job.fate is Fate.HANG and job.step):
                job.step += 1
                loss = 2 / job.step
                metrics = {"step": job.step, "total_steps": STEPS, "train_loss": loss}
                self._say(job, f"Step {job.step}/{STEPS}: training loss={loss:.2f}", metrics)
            case "running" if job.step >= STEPS:
                job.status = "succeeded"
                if self.tells_tokens:
                    job.trained_tokens = job.n_bytes * STEPS // 4
                self._say(job, "The job has successfully completed")
                self._on_model(job)

    def checkpoints(self, job: Job) -> list[dict[str, Any]]:
        """What can be used of a job besides its model."""
        return [
            {
                "id": f"ftckpt-{job.id}-{step}",
                "object": "fine_tuning.job.checkpoint",
                "created_at": NOW,
                "fine_tuned_model_checkpoint": f"{job.model}:ckpt-step-{step}",
                "fine_tuning_job_id": job.id,
                "metrics": {"step": step, "train_loss": 2 / step},
                "step_number": step,
            }
            for step in range(job.step - 1, 0, -1)
            if job.is_done
        ]

    def living(self, run_id: str) -> list[Job]:
        """The jobs of a run that were created and have not ended."""
        return [
            job
            for job in self.created
            if job.metadata.get("learnd_run") == run_id and job.is_alive and job.id in self.jobs
        ]

    def _fine_tuned(self) -> list[str]:
        return [job.model for job in self.jobs.values() if job.model is not None]

    def _validate(self, job: Job) -> None:
        for param in ("training_file", "validation_file"):
            file_id = job.body.get(param)
            if file_id is None:
                continue
            least = self.min_examples if param == "training_file" else 1
            file = self.files.get(file_id)
            fault = (
                "the file was deleted"
                if file is None
                else fault_of(file.content, job.method, least)
            )
            if fault is not None:
                job.status = "failed"
                job.error = {"code": f"invalid_{param}", "message": fault, "param": param}
                return
        job.status = "queued"

    def _check_words(self, body: Mapping[str, Any]) -> None:
        suffix, seed, metadata = body.get("suffix"), body.get("seed"), body.get("metadata") or {}
        if suffix is not None and not 1 <= len(suffix) <= 64:
            raise ProtocolError(400, "suffix is too long", "suffix")
        if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**31):
            raise ProtocolError(400, f"{seed} is greater than the maximum of 2147483647", "seed")
        if len(metadata) > 16 or any(
            not isinstance(value, str) or len(key) > 64 or len(value) > 512
            for key, value in metadata.items()
        ):
            raise ProtocolError(400, "metadata is too large", "metadata")
        method = body.get("method") or {"type": "supervised"}
        if method.get("type") not in ("supervised", "dpo"):
            raise ProtocolError(400, "unknown method", "method")
        epochs = method.get(method["type"], {}).get("hyperparameters", {}).get("n_epochs", "auto")
        if epochs != "auto" and not (isinstance(epochs, int) and 1 <= epochs <= 50):
            raise ProtocolError(400, f"n_epochs cannot be {epochs}", "method")

    def _say(self, job: Job, message: str, metrics: Mapping[str, Any] | None = None) -> None:
        job.events.append(
            {
                "id": f"ftevent-{next(self._numbers)}",
                "object": "fine_tuning.job.event",
                "created_at": NOW + len(job.events),
                "level": "info",
                "message": message,
                "type": "message" if metrics is None else "metrics",
                "data": metrics,
            }
        )
