"""A provider for any endpoint that takes a dataset and answers with the name of a model.

Which requests it takes and where its answers say what is configuration (http_mapping.py); how
it is asked safely is http_endpoint.py's. Here is what a run needs of it: one job per attempt,
whatever is lost on the way; its progress; its end. Weights never come here: what a job leaves
is the name that its model is served under (model.py).
"""

import asyncio
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from pydantic import TypeAdapter, ValidationError

from finetune.artifacts import ArtifactError, ArtifactStore
from finetune.remote.http_endpoint import (
    HttpEndpoint,
    NotDoneError,
    RefusedError,
    Request,
    UnclearError,
    unread,
)
from finetune.remote.http_mapping import (
    Delivery,
    FineTuneEndpoint,
    JobReport,
    State,
    address,
    filled,
    job_id_in,
    jobs_in,
    model_in,
    report_in,
    trained_tokens_in,
)
from finetune.remote.http_training import NAME, HttpTraining, training_settings
from finetune.remote.model import NotARemoteModelError, RemoteModel, name_of, write
from learning.clock import Clock
from learning.gate import TrainingProof
from learning.ports import (
    JobFailedError,
    JobHandle,
    JobProgress,
    ModelReference,
    Recovery,
    RunSpec,
    TrainingOutcome,
)

log = structlog.get_logger(__name__)

T = TypeVar("T")

BYTES_PER_TOKEN: Final = 4
"""About, where the service does not tell how many tokens it trained on."""
POLL_JITTER: Final = 0.1
_GONE: Final = frozenset({404, 410})
_UNAUTHORIZED: Final = frozenset({401, 403})
_PREFERENCE: Final = (
    State.SUCCEEDED,
    State.RUNNING,
    State.QUEUED,
    State.FAILED,
    State.INVALID,
    State.CANCELLED,
)
"""Which of several jobs of one attempt is adopted; of equal ones the first that is listed."""


@dataclass(frozen=True)
class _Note:
    """What is remembered of an attempt here. Without it a job goes on all the same."""

    begun_at: datetime
    timeout_seconds: float
    parent: str
    """What the service calls the model that training starts from."""
    n_bytes: int
    """Of the training rows."""


class HttpProvider:
    """Implements learning.ports.FineTuneProvider on a plain endpoint.

    What it remembers of its attempts lies in `folder`. A job that was launched elsewhere has
    the endpoint's timeout from when it is first waited for here. `serving` is where its models
    answer.
    """

    def __init__(
        self,
        configured: FineTuneEndpoint,
        endpoint: HttpEndpoint,
        *,
        serving: str,
        folder: Path,
        artifacts: ArtifactStore,
        clock: Clock,
    ) -> None:
        self._endpoint = endpoint
        self._mapping = configured.mapping
        self._serving = serving
        self._folder = folder
        self._artifacts = artifacts
        self._timeout = configured.timeout
        self._clock = clock
        self._draw = random.Random().random  # noqa: S311 - jitter, not a secret

    @property
    def name(self) -> str:
        """See learning.ports.FineTuneProvider."""
        return NAME

    @property
    def recovery(self) -> Recovery:
        """What the endpoint is configured to offer; a key that it heeds is the surest."""
        if self._mapping.idempotency_header is not None:
            return Recovery.IDEMPOTENCY
        return Recovery.NONE if self._mapping.lookup is None else Recovery.LOOKUP

    def check_training(self, training: Mapping[str, Any]) -> None:
        """See learning.ports.FineTuneProvider."""
        training_settings(training)

    async def launch(self, spec: RunSpec) -> JobHandle:
        """See learning.ports.FineTuneProvider.

        Where there is a list too it is asked first: a service forgets its keys one day.
        """
        try:
            settings = training_settings(spec.training)
        except ValueError as error:
            raise JobFailedError("bad_request", str(error), retryable=False) from error
        parent = await asyncio.to_thread(self._name_of, spec.parent)
        request = await asyncio.to_thread(self._submission, spec, parent, settings)
        await asyncio.to_thread(self._keep_note, spec, parent)
        known = None
        if self.recovery is Recovery.IDEMPOTENCY and self._mapping.lookup is not None:
            known = await self.lookup(spec.run_id, spec.attempt)
        return known or JobHandle(spec.run_id, spec.attempt, await self._submit(request))

    async def _submit(self, request: Request) -> str:
        """The id of the job that is made. Raises as `launch`."""
        try:
            return await self._endpoint.ask(
                request,
                lambda content: job_id_in(content, self._mapping),
                repeatable=self.recovery is Recovery.IDEMPOTENCY,
            )
        except RefusedError as error:
            raise JobFailedError("refused", str(error), retryable=False) from error
        except NotDoneError as error:
            if self.recovery is not Recovery.NONE:
                raise  # whoever asked asks again, for as long as it takes
            raise JobFailedError("unreachable", str(error), retryable=True) from error

    async def lookup(self, run_id: str, attempt: int) -> JobHandle | None:
        """See learning.ports.FineTuneProvider. Surplus jobs of the attempt are cancelled.

        Raises ConnectionError while there is no answer that tells.
        """
        lookup = self._mapping.lookup
        assert lookup is not None, "asked only where recovery is LOOKUP"
        path = address(lookup.path, {"run_id": run_id, "attempt": attempt})

        def read(content: Any) -> Sequence[tuple[str, JobReport]]:
            jobs = jobs_in(content, self._mapping, run_id, attempt)
            return [(job_id_in(job, self._mapping), report_in(job, self._mapping)) for job in jobs]

        try:
            jobs = await self._endpoint.ask(Request(lookup.method, path), read)
        except RefusedError as error:
            if error.status in _GONE:
                return None
            # That it may not be asked does not say that there is no job.
            raise ConnectionError(str(error)) from error
        if not jobs:
            return None
        (adopted, _), *others = sorted(jobs, key=lambda job: _PREFERENCE.index(job[1].state))
        for job_id, report in others:
            if not report.state.is_over:
                log.warning("a surplus job is cancelled", run=run_id, job=job_id)
                await self.cancel(JobHandle(run_id, attempt, job_id))
        return JobHandle(run_id, attempt, adopted)

    async def wait(
        self, job: JobHandle, on_progress: Callable[[JobProgress], None]
    ) -> TrainingOutcome:
        """See learning.ports.FineTuneProvider. Cancelling it leaves the job as it is.

        Raises ConnectionError while the endpoint cannot be asked; the job may go on meanwhile.
        """
        note = await asyncio.to_thread(self._note, job.run_id, job.attempt)
        deadline = self._clock() + self._timeout
        if note is not None:
            deadline = note.begun_at + timedelta(seconds=note.timeout_seconds)
        try:
            report = await self._end_of(job, deadline, on_progress)
            return await self._outcome(job, report, note)
        except TimeoutError as error:
            await self._give_up(job)
            raise JobFailedError("timeout", str(error), retryable=True) from None
        except UnclearError as error:
            if not error.is_junk:
                raise
            await self._give_up(job)
            raise JobFailedError("bad_answer", str(error), retryable=False) from error

    async def cancel(self, job: JobHandle) -> None:
        """See learning.ports.FineTuneProvider. Raises ConnectionError when it may go on."""
        try:
            await self._endpoint.ask(self._request("cancel", job), unread)
        except (RefusedError, UnclearError) as error:
            if isinstance(error, UnclearError) and not error.is_junk:
                raise
            # It has ended perhaps, or a gateway's page says nothing of what became of it.
            if not await self._is_over(job):
                raise ConnectionError(f"job {job.job_id} was not cancelled: {error}") from error

    async def _is_over(self, job: JobHandle) -> bool:
        try:
            return (await self._look(job)).state.is_over
        except JobFailedError as error:
            if error.code == "job_lost":
                return True
            raise

    async def _end_of(
        self, job: JobHandle, deadline: datetime, on_progress: Callable[[JobProgress], None]
    ) -> JobReport:
        """What the service says of a job that succeeded.

        Raises JobFailedError, and TimeoutError for a job that has not ended at the deadline.
        """
        furthest = n_lost = 0
        while True:
            # First looked at, then timed: it may have ended while nobody was here to look.
            try:
                report = await self._look(job)
            except JobFailedError as error:
                # A service may need a moment until it finds what it has made.
                n_lost += 1
                if error.code != "job_lost" or n_lost > self._mapping.retries:
                    raise
            except ConnectionError:
                if self._clock() >= deadline:
                    raise _took_too_long(job) from None
                raise
            else:
                n_lost = 0
                if report.step is not None and report.total_steps and report.step >= furthest:
                    furthest = report.step
                    on_progress(JobProgress(report.step, report.total_steps, report.numbers))
                if report.state is State.SUCCEEDED:
                    return report
                _require_hope(job, report)
            left_seconds = (deadline - self._clock()).total_seconds()
            if left_seconds <= 0:
                raise _took_too_long(job)
            jitter = 1 + POLL_JITTER * (2 * self._draw() - 1)
            await asyncio.sleep(min(left_seconds, self._mapping.poll_seconds * jitter))

    async def _look(self, job: JobHandle) -> JobReport:
        """How a job is. Raises JobFailedError when it is lost."""
        return await self._ask(job, "status", lambda content: report_in(content, self._mapping))

    async def _outcome(
        self, job: JobHandle, report: JobReport, note: _Note | None
    ) -> TrainingOutcome:
        """What came of a job that succeeded."""

        def read(content: Any) -> tuple[str, int | None]:
            return model_in(content, self._mapping), trained_tokens_in(content, self._mapping)

        # Asked for once more: a service may say that it is done before it says what was made.
        what = "status" if self._mapping.result is None else "result"
        model, n_tokens = await self._ask(job, what, read)
        if note is not None and model == note.parent:
            raise JobFailedError(
                "bad_answer",
                f"remote.http.answer.model: the service names {model}, which the training began"
                " with, as its result",
                retryable=False,
            )
        measurements: dict[str, Any] = {"model": model, "endpoint": self._endpoint.base_url}
        if n_tokens is None:
            n_tokens = max(1, (0 if note is None else note.n_bytes) // BYTES_PER_TOKEN)
            measurements["notes"] = ["the service does not tell the trained tokens: estimated"]
        output_dir = self._folder / "results" / f"{job.run_id}-{job.attempt}"
        remote = RemoteModel(self.name, self._serving, model)
        await asyncio.to_thread(_write_anew, remote, output_dir)
        proof = TrainingProof(n_tokens, weight_delta_norm=None, all_finite=report.all_finite)
        return TrainingOutcome(output_dir, "remote", proof, {**report.numbers, **measurements})

    async def _ask(self, job: JobHandle, what: str, read: Callable[[Any], T]) -> T:
        """Raises JobFailedError for a job that the service does not know, or does not show."""
        try:
            return await self._endpoint.ask(self._request(what, job), read)
        except RefusedError as error:
            if error.status in _UNAUTHORIZED:
                raise ConnectionError(str(error)) from error  # a key that is being changed, perhaps
            is_lost = error.status in _GONE
            code = "job_lost" if is_lost else "refused"
            raise JobFailedError(code, str(error), retryable=is_lost) from error

    def _request(self, what: str, job: JobHandle) -> Request:
        mapped = getattr(self._mapping, what)
        return Request(mapped.method, address(mapped.path, {"job_id": job.job_id}))

    async def _give_up(self, job: JobHandle) -> None:
        """Cancel a job whose end nobody will hear of; it may be beyond reach."""
        try:
            await self.cancel(job)
        except (ConnectionError, JobFailedError) as error:
            log.error("a job may go on for nothing", run=job.run_id, job=job.job_id, why=str(error))

    def _name_of(self, parent: ModelReference) -> str:
        """What the service calls a model. Raises JobFailedError. Blocks."""
        try:
            self._artifacts.verify_model(parent)
            return name_of(parent)
        except (ArtifactError, NotARemoteModelError) as error:
            raise JobFailedError("bad_model", str(error), retryable=False) from error

    def _submission(self, spec: RunSpec, parent: str, settings: HttpTraining) -> Request:
        """The request that makes the job of an attempt. Raises JobFailedError. Blocks."""
        submit, header = self._mapping.submit, self._mapping.idempotency_header
        files = {"training_data": spec.train_file, "validation_data": spec.validation_file}
        there = {name: file for name, file in files.items() if file is not None}
        n_bytes = sum(file.stat().st_size for file in there.values())
        delivery, most = self._mapping.dataset, self._mapping.max_dataset_bytes
        if delivery is not Delivery.REFERENCE and n_bytes > most:
            raise JobFailedError(
                "dataset_too_large",
                f"{n_bytes:,} bytes are more than remote.http.max_dataset_bytes, {most:,}",
                retryable=False,
            )
        data: Mapping[str, str | None] = dict.fromkeys(files)
        sent: Mapping[str, tuple[str, bytes]] = {}
        match delivery:
            case Delivery.JSON_LINES:
                data = {**data, **{name: file.read_text("utf-8") for name, file in there.items()}}
            case Delivery.MULTIPART:
                sent = {name: (file.name, file.read_bytes()) for name, file in there.items()}
            case Delivery.REFERENCE:
                data = {**data, **{name: self._where(spec, file) for name, file in there.items()}}
        values = {
            "run_id": spec.run_id,
            "attempt": spec.attempt,
            "line": spec.line,
            "model": parent,
            "objective": settings.objective,
            "hyperparameters": settings.hyperparameters(),
            "seed": spec.seed,
            **data,
        }
        return Request(
            submit.method,
            submit.path,
            body=filled(submit.body, values),
            files=sent,
            headers={} if header is None else {header: f"{spec.run_id}-{spec.attempt}"},
        )

    def _where(self, spec: RunSpec, file: Path) -> str:
        named = {"run_id": spec.run_id, "file": file.name, "path": file.absolute()}
        return address(self._mapping.dataset_address, named, safe="/")

    def _note_file(self, run_id: str, attempt: int) -> Path:
        return self._folder / "attempts" / f"{run_id}-{attempt}.json"

    def _note(self, run_id: str, attempt: int) -> _Note | None:
        """What was noted when the attempt began, if that was here. Blocks."""
        try:
            return _note.validate_json(self._note_file(run_id, attempt).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None  # cut short by a kill, at worst: a job does without

    def _keep_note(self, spec: RunSpec, parent: str) -> None:
        """Note when an attempt began, unless it was noted before. Blocks."""
        if self._note(spec.run_id, spec.attempt) is not None:
            return
        file = self._note_file(spec.run_id, spec.attempt)
        file.parent.mkdir(parents=True, exist_ok=True)
        n_bytes = spec.train_file.stat().st_size
        note = _Note(self._clock(), spec.timeout.total_seconds(), parent, n_bytes)
        file.write_text(json.dumps(asdict(note), default=datetime.isoformat), encoding="utf-8")


_note: Final = TypeAdapter(_Note)


def _took_too_long(job: JobHandle) -> TimeoutError:
    return TimeoutError(f"job {job.job_id} took too long, and was cancelled")


def _require_hope(job: JobHandle, report: JobReport) -> None:
    """Raise JobFailedError when nothing will come of a job."""
    match report.state:
        case State.FAILED | State.INVALID:
            said = report.error or "the service does not say why"
            may_succeed = report.state is State.FAILED
            raise JobFailedError("job_failed", said, retryable=may_succeed)
        case State.CANCELLED:
            raise JobFailedError("cancelled", f"{job.job_id} was cancelled", retryable=False)


def _write_anew(model: RemoteModel, folder: Path) -> None:
    """An earlier one is read-only, since it was published."""
    if folder.exists():
        shutil.rmtree(folder)
    write(model, folder)
