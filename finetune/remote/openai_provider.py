"""Train at a service that speaks OpenAI's fine-tuning protocol.

A job is adopted at most once for an attempt: it carries the run and the attempt in its
metadata, a creation whose outcome nobody knows is never repeated but looked for, and what was
made beside the adopted job is cancelled. Everything that is needed to go on with a job is
written on the job itself, so that a restarted daemon needs its id and nothing else.

A model name, a price or an address of any service stands nowhere in here.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import structlog

from finetune.artifacts import ArtifactError, ArtifactStore
from finetune.remote import model as remote_model
from finetune.remote.access import ServiceAccess
from finetune.remote.model import NotARemoteModelError, RemoteModel
from finetune.remote.openai_client import (
    Event,
    Job,
    OpenAIClient,
    ServiceBusyError,
    ServiceRefusedError,
)
from finetune.remote.openai_dataset import (
    BYTES_PER_TOKEN,
    RowsRefusedError,
    Upload,
    training_upload,
    validation_upload,
)
from finetune.remote.openai_jobs import (
    BYTES,
    LEFT_OUT,
    ROWS,
    RUN,
    Files,
    files_of,
    number_on,
    of_attempt,
    request_for,
    surplus,
    time_left,
)
from finetune.remote.openai_progress import JobDiary
from finetune.remote.openai_settings import NAME, OpenAIRules, training_settings
from learning.clock import Clock
from learning.gate import TrainingProof
from learning.ports import (
    JobFailedError,
    JobHandle,
    JobProgress,
    Recovery,
    RunSpec,
    TrainingOutcome,
)

log = structlog.get_logger(__name__)

METHOD: Final = "remote"
KEY_REFUSED: Final = (401, 403)


def _now() -> datetime:
    return datetime.now(UTC)


class OpenAIProvider:
    """Implements learning.ports.FineTuneProvider.

    `folder` gets a small folder for each job that ended well: what stands for its model.
    `serving` is the base address at which such a model answers.
    """

    def __init__(
        self,
        client: OpenAIClient,
        access: ServiceAccess,
        folder: Path,
        artifacts: ArtifactStore,
        *,
        serving: str,
        rules: OpenAIRules,
        clock: Clock = _now,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._access = access
        self._folder = folder
        self._artifacts = artifacts
        self._serving = serving
        self._rules = rules
        self._clock = clock
        self._draw = draw
        self._awake: dict[str, asyncio.Event] = {}

    @property
    def name(self) -> str:
        """See learning.ports.FineTuneProvider."""
        return NAME

    @property
    def recovery(self) -> Recovery:
        """Jobs are found by what is written on them."""
        return Recovery.LOOKUP

    def check_training(self, training: Mapping[str, Any]) -> None:
        """See learning.ports.FineTuneProvider."""
        training_settings(training)

    def nudge(self, job_id: str) -> None:
        """A job may have changed: look at it now. Unknown ids are passed over."""
        if (awake := self._awake.get(job_id)) is not None:
            awake.set()

    async def launch(self, spec: RunSpec) -> JobHandle:
        """See learning.ports.FineTuneProvider. The rows are checked before anything is sent."""
        try:
            settings = training_settings(spec.training)
        except ValueError as error:
            raise JobFailedError("bad_request", str(error), retryable=False) from error
        model = await asyncio.to_thread(self._model_to_train, spec)
        try:
            training = await asyncio.to_thread(training_upload, spec.train_file, settings)
            validation = await asyncio.to_thread(validation_upload, spec.validation_file, settings)
        except RowsRefusedError as error:
            raise JobFailedError("bad_dataset", str(error), retryable=False) from error
        try:
            files = Files(
                await self._upload(spec, "train", training),
                None if validation is None else await self._upload(spec, "validation", validation),
                training,
            )
            request = request_for(spec, model, settings, files, self._clock())
            job = await self._client.create_job(request)
        except (ServiceBusyError, ServiceRefusedError) as error:
            await self._tidy(spec.run_id, spec.attempt)
            raise self._not_launched(error) from error
        if (job.metadata or {}).get(RUN) != spec.run_id:
            log.warning(
                "the service keeps no metadata: a job whose reply is lost would not be found",
                run=spec.run_id,
                job=job.id,
            )
        return JobHandle(spec.run_id, spec.attempt, job.id)

    async def lookup(self, run_id: str, attempt: int) -> JobHandle | None:
        """See learning.ports.FineTuneProvider. Raises ConnectionError while nobody can tell."""
        try:
            job = of_attempt(await self._client.jobs({RUN: run_id}), attempt)
        except ServiceRefusedError as error:
            raise self._cannot_tell(error) from error
        return None if job is None else JobHandle(run_id, attempt, job.id)

    async def wait(
        self, job: JobHandle, on_progress: Callable[[JobProgress], None]
    ) -> TrainingOutcome:
        """See learning.ports.FineTuneProvider. Raises ConnectionError and TimeoutError while
        the service does not answer: the job goes on, and may be waited for again."""
        awake = self._awake.setdefault(job.job_id, asyncio.Event())
        try:
            await self._cancel_surplus(job)
            diary = JobDiary()
            ended = await self._watch(job, diary, awake, on_progress)
            # One whose creation came through late is there by now.
            await self._cancel_surplus(job)
            await self._tidy(job.run_id, job.attempt, _own(ended, job))
            return await self._outcome(job, ended, diary)
        finally:
            self._awake.pop(job.job_id, None)

    async def cancel(self, job: JobHandle) -> None:
        """See learning.ports.FineTuneProvider. Also ends what was made beside it."""
        await self._cancel_surplus(job)
        try:
            ended = await self._end(job.job_id)
        except ServiceRefusedError as error:
            raise self._cannot_tell(error) from error
        self.nudge(job.job_id)
        await self._tidy(job.run_id, job.attempt, _own(ended, job))

    # --- launching --------------------------------------------------------------------

    def _model_to_train(self, spec: RunSpec) -> str:
        """What the service calls the champion. Blocks."""
        try:
            self._artifacts.verify_model(spec.parent)
            return remote_model.name_of(spec.parent)
        except NotARemoteModelError as error:
            message = f"{error}: the champion was not trained at a service; set another base_model"
            raise JobFailedError("bad_model", message, retryable=False) from error
        except ArtifactError as error:
            raise JobFailedError("bad_model", str(error), retryable=False) from error

    async def _upload(self, spec: RunSpec, part: str, upload: Upload) -> str:
        """The id of an uploaded file. Its name follows from the attempt and its content."""
        name = f"{files_of(spec.run_id, spec.attempt)}{part}-{upload.sha256[:16]}.jsonl"
        return (await self._client.upload(name, upload.content)).id

    def _not_launched(self, error: ServiceBusyError | ServiceRefusedError) -> JobFailedError:
        if isinstance(error, ServiceBusyError):
            return JobFailedError("service_busy", str(error), retryable=True)
        message = f"{error}{self._advice(error)}"
        if error.status in KEY_REFUSED:
            return JobFailedError("key_refused", message, retryable=True)
        return JobFailedError("service_refused", message, retryable=False)

    # --- waiting ----------------------------------------------------------------------

    async def _watch(
        self,
        job: JobHandle,
        diary: JobDiary,
        awake: asyncio.Event,
        on_progress: Callable[[JobProgress], None],
    ) -> Job:
        """Look at a job until it has ended. Raises JobFailedError `job_lost` and `timeout`."""
        while True:
            awake.clear()
            now = await self._look(job)
            if now.has_begun:
                for progress in diary.read(await self._events(now, diary)):
                    on_progress(progress)
            if now.has_ended:
                return now
            pause = self._rules.poll * (0.75 + self._draw() / 2)
            if (left := time_left(now, self._clock())) is not None:
                if left <= timedelta(0):
                    return await self._give_up(job)
                pause = min(pause, left)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause.total_seconds()):
                    await awake.wait()

    async def _look(self, job: JobHandle) -> Job:
        try:
            return await self._client.job(job.job_id)
        except ServiceRefusedError as error:
            # A wrong address answers 404 to everything: only a list without the job is proof.
            if error.status != 404 or await self._is_listed(job):
                raise self._cannot_tell(error) from error
            await self._tidy(job.run_id, job.attempt)
            message = f"there is no job {job.job_id} at the service any more"
            raise JobFailedError("job_lost", message, retryable=True) from error

    async def _is_listed(self, job: JobHandle) -> bool:
        try:
            jobs = await self._client.jobs({RUN: job.run_id})
        except ServiceRefusedError as error:
            raise self._cannot_tell(error) from error
        return any(one.id == job.job_id for one in jobs)

    async def _events(self, job: Job, diary: JobDiary) -> Sequence[Event]:
        try:
            return await self._client.events(job.id, diary.known)
        except ServiceRefusedError:
            return ()  # a service without events: the job's state is enough

    async def _give_up(self, job: JobHandle) -> Job:
        """End a job that took too long. One that ended meanwhile counts all the same."""
        try:
            ended = await self._end(job.job_id)
        except ServiceRefusedError as error:
            raise self._cannot_tell(error) from error
        if ended is not None and ended.status == "succeeded":
            return ended
        await self._tidy(job.run_id, job.attempt, _own(ended, job))
        raise JobFailedError("timeout", f"{job.job_id} took too long", retryable=True)

    # --- ending -----------------------------------------------------------------------

    async def _end(self, job_id: str) -> Job | None:
        """Cancel a job that goes on; returns it as it is afterwards, None when it is gone.

        A reply that was lost makes the service refuse the next try: then it has ended.
        """
        try:
            job = await self._client.job(job_id)
            if job.has_ended:
                return job
            try:
                await self._client.cancel_job(job_id)
            except ServiceRefusedError:
                if not (job := await self._client.job(job_id)).has_ended:
                    raise
            return await self._client.job(job_id)
        except ServiceRefusedError as error:
            if error.status == 404:
                return None
            raise

    async def _cancel_surplus(self, job: JobHandle) -> None:
        """End what was made for the same run beside its adopted job."""
        try:
            jobs = await self._client.jobs({RUN: job.run_id})
            for other in surplus(jobs, job.job_id, job.attempt):
                log.warning("a surplus job is cancelled", run=job.run_id, job=other.id)
                await self._end(other.id)
        except ServiceRefusedError as error:
            log.warning("surplus jobs cannot be looked for", run=job.run_id, error=str(error))

    async def _tidy(self, run_id: str, attempt: int, job: Job | None = None) -> None:
        """Delete what was uploaded up to this attempt, if that is the rule.

        Also what is no job's: parts, second copies, and rows that no job was made for.
        """
        if not self._rules.delete_files:
            return
        own = {job.training_file, job.validation_file} if job is not None else set()
        prefixes = tuple(files_of(run_id, number) for number in range(1, attempt + 1))
        try:
            uploaded = await self._client.files(files_of(run_id))
            found = {file.id for file in uploaded if (file.filename or "").startswith(prefixes)}
            for file_id in sorted(found | {one for one in own if one is not None}):
                await self._client.delete_file(file_id)
        except ServiceRefusedError as error:
            log.warning("uploaded files are left there", run=run_id, error=str(error))

    async def _outcome(self, job: JobHandle, ended: Job, diary: JobDiary) -> TrainingOutcome:
        if ended.status == "cancelled":
            raise JobFailedError("cancelled", f"{job.job_id} was cancelled", retryable=False)
        if ended.status == "failed":
            raise _failure(ended)
        if not ended.fine_tuned_model:
            message = f"{job.job_id} succeeded, and the service names no model of it"
            raise JobFailedError("no_model", message, retryable=False)
        if ended.fine_tuned_model == ended.model:
            message = f"{job.job_id} succeeded, and its model is the one that it began with"
            raise JobFailedError("unchanged_model", message, retryable=False)
        model = RemoteModel(NAME, self._serving, ended.fine_tuned_model)
        output_dir = self._folder / f"{job.run_id}-{job.attempt}"
        await asyncio.to_thread(remote_model.write, model, output_dir)
        proof = TrainingProof(
            trained_tokens=_trained_tokens(ended),
            weight_delta_norm=None,
            all_finite=diary.all_finite,
        )
        measured = {
            "job_id": ended.id,
            "model": ended.fine_tuned_model,
            "trained_from": ended.model,
            "trained_tokens": ended.trained_tokens,
            "monitoring_url": self._monitoring_url(ended.id),
            "training_file_id": ended.training_file,
            "validation_file_id": ended.validation_file,
            "rows": number_on(ended, ROWS),
            "checkpoints": await self._checkpoints(ended),
            "notes": _notes(ended),
            **diary.measurements(),
        }
        return TrainingOutcome(output_dir, METHOD, proof, measured)

    async def _checkpoints(self, job: Job) -> list[dict[str, Any]]:
        try:
            found = await self._client.checkpoints(job.id)
        except ServiceRefusedError:
            return []
        return [
            {"step": one.step_number, "model": one.fine_tuned_model_checkpoint}
            for one in found
            if one.fine_tuned_model_checkpoint is not None
        ]

    def _monitoring_url(self, job_id: str) -> str:
        if self._rules.monitoring_url is not None:
            return self._rules.monitoring_url.replace("{job_id}", job_id)
        return f"{self._access.base_url}/fine_tuning/jobs/{job_id}"

    def _cannot_tell(self, error: ServiceRefusedError) -> ConnectionError:
        """The service answers, but not what is asked: a person has to see to it meanwhile."""
        return ConnectionError(f"{error}{self._advice(error)}")

    def _advice(self, error: ServiceRefusedError) -> str:
        is_key = error.status in KEY_REFUSED
        return f"; is {self._access.key_setting} right?" if is_key else ""


def _own(job: Job | None, handle: JobHandle) -> Job | None:
    """The job, unless an operator gave the run one that was made by other hands."""
    if job is None or (job.metadata or {}).get(RUN) != handle.run_id:
        return None
    return job


def _failure(job: Job) -> JobFailedError:
    """Why a job failed. What is wrong with its files or settings is wrong the next time too."""
    code, message, param = None, None, None
    if job.error is not None:
        code, message, param = job.error.code, job.error.message, job.error.param
    at_fault = param is not None or (code or "").startswith("invalid")
    return JobFailedError(
        code or "job_failed", message or f"{job.id} failed", retryable=not at_fault
    )


def _trained_tokens(job: Job) -> int:
    """As the service says; where it says nothing, an estimate from what was uploaded."""
    if job.trained_tokens is not None:
        return job.trained_tokens
    return max(1, (number_on(job, BYTES) or 0) // BYTES_PER_TOKEN)


def _notes(job: Job) -> list[str]:
    notes = []
    if job.trained_tokens is None:
        notes.append("the service does not tell the trained tokens: estimated")
    if n_left_out := number_on(job, LEFT_OUT):
        notes.append(
            f"{n_left_out} rows that are no pair were left out: the method dpo takes pairs only"
        )
    return notes
