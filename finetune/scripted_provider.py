"""A provider that plays its jobs from a script: for tests, drills and trying learnd out.

Trains nothing and needs no training library, yet everything around it is real: its jobs
survive a daemon that is killed (a journal in its folder), its artifacts are safetensors
that can be published and verified, and its evaluator reads from them how good they are.

A script is a text. Each run of a line plays one part, the parts stand between semicolons;
each attempt of the run plays one act, the acts stand between commas; the last one repeats.
`fail,improve; worsen` is: the first run fails once and then improves the model, every
later run makes it worse. An `Act` is what can be played; `fail:CODE` names the error.
"""

import asyncio
import difflib
import hashlib
import json
import math
import os
import shutil
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from finetune.artifacts import ArtifactError, ArtifactStore
from finetune.trainer.protocol import ObjectiveName
from learning.gate import Score, TrainingProof
from learning.ports import (
    JobFailedError,
    JobHandle,
    JobProgress,
    ModelReference,
    Recovery,
    RunSpec,
    TrainingOutcome,
)

BASE_LOSS_FACTOR: Final = 1.0
"""The loss factor of a model that this provider did not make."""
SKILL_FILE: Final = "scripted.json"
_JOURNAL: Final = "jobs.jsonl"


class Act(StrEnum):
    """What one attempt plays."""

    IMPROVE = "improve"
    """Every held-out loss is halved."""
    WORSEN = "worsen"
    """Every held-out loss is doubled."""
    EQUAL = "equal"
    """A changed model with the same losses."""
    FAIL = "fail"
    """The job fails; another attempt makes sense."""
    FAIL_FOR_GOOD = "fail_for_good"
    """The job fails; another attempt makes no sense."""
    DIE = "die"
    """The trainer dies without a word."""
    HANG = "hang"
    """The job never ends by itself."""
    OUTLIVE = "outlive"
    """The job ends (as IMPROVE) only for a provider that did not launch it: after a restart."""
    AWAIT_NUDGE = "await_nudge"
    """The job ends (as IMPROVE), but is not asked before a nudge, as with a poll far away."""
    LOSE_REPLY = "lose_reply"
    """The job is made (as IMPROVE), but whoever launched it gets a ConnectionError instead."""
    NOT_FINITE = "not_finite"
    """A number of the training was not finite."""
    NO_TOKENS = "no_tokens"
    """Nothing was trained on."""
    UNCHANGED = "unchanged"
    """The weights are what they were."""
    NAN_LOSS = "nan_loss"
    """A proof as good as any, but each held-out loss of the model is NaN."""
    PICKLE = "pickle"
    """A pickle lies among the files."""


_LOSS_STEP: Final[Mapping[Act, float]] = {
    Act.WORSEN: 2.0,
    Act.EQUAL: 1.0,
    Act.UNCHANGED: 1.0,
    Act.NO_TOKENS: 1.0,
    Act.NAN_LOSS: math.nan,
}
"""What an act multiplies the parent's loss factor by; 0.5 when it is not here."""


@dataclass(frozen=True)
class Cue:
    """One attempt's act. `error` is the code that a failure carries."""

    act: Act
    error: str


Script = Callable[[RunSpec, int], Cue]
"""Chooses by the attempt and by how many runs of its line came before (0 for the first)."""


def parse_script(text: str) -> Sequence[Sequence[Cue]]:
    """The cues by run and attempt. Raises ValueError naming an act that does not exist."""
    return [[_parse_cue(cue) for cue in part.split(",")] for part in text.split(";")]


def _parse_cue(text: str) -> Cue:
    name, _, error = text.strip().partition(":")
    try:
        act = Act(name)
    except ValueError:
        raise ValueError(f"no act {name!r}; known: {', '.join(Act)}") from None
    return Cue(act, error or "scripted_failure")


def _require_script(text: str) -> str:
    parse_script(text)
    return text


class ScriptedSettings(BaseModel):
    """What `training` may say for this provider. Lax: environment variables are strings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    plan: Annotated[str, AfterValidator(_require_script)] = "improve"
    method: Literal["lora", "full"] = "lora"
    objective: ObjectiveName = "sft"
    """It makes no difference to what is played."""
    steps: int = Field(3, ge=1, le=1_000_000)
    step_seconds: float = Field(0.0, ge=0, le=86_400, allow_inf_nan=False)
    epochs: int = Field(1, ge=1, le=1_000)
    """It makes no difference to what is played, but to what it may cost."""
    trained_tokens: int | None = Field(None, ge=0)
    """What it says that it trained, and asks to be paid for; None: it does not say."""


class _Job(BaseModel):
    """One line of the journal, with all that a restarted provider needs to play it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    job_id: str
    run_id: str
    attempt: int
    line: str
    act: Act
    error: str
    base_model: str
    adapter: str | None
    train_file: str
    work_dir: str
    seed: int
    timeout_seconds: float
    settings: ScriptedSettings
    cancelled: bool = False

    @property
    def handle(self) -> JobHandle:
        return JobHandle(self.run_id, self.attempt, self.job_id)

    @property
    def parent(self) -> ModelReference:
        return ModelReference(self.base_model, Path(self.adapter) if self.adapter else None)


class ScriptedProvider:
    """Implements learning.ports.FineTuneProvider.

    Its jobs live in `folder`, as they would at a remote service: cancelling a wait leaves
    the job as it is, and a provider that is made anew on the folder finds it. Without a
    `script` the `plan` in each run's training settings is played.
    """

    def __init__(
        self,
        folder: Path,
        artifacts: ArtifactStore,
        *,
        script: Script | None = None,
        recovery: Recovery = Recovery.LOOKUP,
    ) -> None:
        self._journal = folder / _JOURNAL
        self._artifacts = artifacts
        self._script = script or _planned
        self._recovery = recovery
        self._lock = asyncio.Lock()
        self._launched: set[str] = set()
        self._playing: dict[str, asyncio.Task[TrainingOutcome]] = {}
        self._nudged: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    @property
    def name(self) -> str:
        """See learning.ports.FineTuneProvider."""
        return "scripted"

    @property
    def recovery(self) -> Recovery:
        """As it was told."""
        return self._recovery

    def check_training(self, training: Mapping[str, Any]) -> None:
        """See learning.ports.FineTuneProvider."""
        _settings(training)

    async def launch(self, spec: RunSpec) -> JobHandle:
        """See learning.ports.FineTuneProvider. Raises ConnectionError for LOSE_REPLY."""
        try:
            settings = _settings(spec.training)
        except ValueError as error:
            raise JobFailedError("bad_request", str(error), retryable=False) from error
        async with self._lock:
            jobs = await asyncio.to_thread(_read_journal, self._journal)
            same = [job for job in jobs if (job.run_id, job.attempt) == (spec.run_id, spec.attempt)]
            if same and self._recovery is Recovery.IDEMPOTENCY:
                return same[0].handle
            runs = dict.fromkeys(job.run_id for job in jobs if job.line == spec.line)
            earlier = list(runs).index(spec.run_id) if spec.run_id in runs else len(runs)
            cue = self._script(spec, earlier)
            job = _Job(
                job_id=f"scripted:{spec.run_id}:{spec.attempt}:{len(same) + 1}",
                run_id=spec.run_id,
                attempt=spec.attempt,
                line=spec.line,
                act=cue.act,
                error=cue.error,
                base_model=spec.parent.base_model,
                adapter=str(spec.parent.adapter) if spec.parent.adapter else None,
                train_file=str(spec.train_file),
                work_dir=str(spec.work_dir),
                seed=spec.seed,
                timeout_seconds=spec.timeout.total_seconds(),
                settings=settings,
            )
            await asyncio.to_thread(_append, self._journal, job)
        self._launched.add(job.job_id)
        if cue.act is Act.LOSE_REPLY:
            raise ConnectionError(f"the reply that told of {job.job_id} was lost")
        return job.handle

    async def lookup(self, run_id: str, attempt: int) -> JobHandle | None:
        """See learning.ports.FineTuneProvider."""
        for job in await self.jobs():
            if (job.run_id, job.attempt) == (run_id, attempt):
                return job
        return None

    async def jobs(self) -> Sequence[JobHandle]:
        """Every job that was ever made here, oldest first; two of one attempt are one too many."""
        return [job.handle for job in await asyncio.to_thread(_read_journal, self._journal)]

    async def jobs_created(self) -> Mapping[tuple[str, int], int]:
        """How many jobs each (run_id, attempt) got."""
        return Counter((job.run_id, job.attempt) for job in await self.jobs())

    def nudge(self, job_id: str) -> None:
        """A job may have changed; see finetune.providers.Workbench."""
        self._nudged[job_id].set()

    async def wait(
        self, job: JobHandle, on_progress: Callable[[JobProgress], None]
    ) -> TrainingOutcome:
        """See learning.ports.FineTuneProvider."""
        known = await self._find(job)
        if known is None:
            raise JobFailedError("job_lost", f"there is no job {job.job_id}", retryable=True)
        if known.cancelled:
            raise _cancelled(job)
        playing = asyncio.create_task(self._play(known, on_progress), name=job.job_id)
        self._playing[job.job_id] = playing
        try:
            return await playing
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise _cancelled(job) from None
        finally:
            self._playing.pop(job.job_id, None)

    async def cancel(self, job: JobHandle) -> None:
        """See learning.ports.FineTuneProvider."""
        async with self._lock:
            known = await self._find(job)
            if known is None or known.cancelled:
                return
            await asyncio.to_thread(
                _append, self._journal, known.model_copy(update={"cancelled": True})
            )
        if (playing := self._playing.get(job.job_id)) is not None:
            playing.cancel()
            await asyncio.wait({playing})

    async def _find(self, wanted: JobHandle) -> _Job | None:
        jobs = await asyncio.to_thread(_read_journal, self._journal)
        return next((job for job in jobs if job.job_id == wanted.job_id), None)

    async def _play(self, job: _Job, on_progress: Callable[[JobProgress], None]) -> TrainingOutcome:
        try:
            async with asyncio.timeout(job.timeout_seconds):
                return await self._perform(job, on_progress)
        except TimeoutError:
            raise JobFailedError(
                "timeout", f"not trained within {job.timeout_seconds:g} s", retryable=True
            ) from None

    async def _perform(
        self, job: _Job, on_progress: Callable[[JobProgress], None]
    ) -> TrainingOutcome:
        steps = job.settings.steps
        for step in range(1, steps + 1):
            await asyncio.sleep(job.settings.step_seconds)
            on_progress(JobProgress(step, steps, {"loss": 1 / step}))
        match job.act:
            case Act.FAIL | Act.FAIL_FOR_GOOD:
                raise JobFailedError(job.error, "the script says so", retryable=job.act is Act.FAIL)
            case Act.DIE:
                raise JobFailedError("trainer_died", "the script says so", retryable=True)
            case Act.HANG:
                await asyncio.Event().wait()
            case Act.OUTLIVE if job.job_id in self._launched:
                await asyncio.Event().wait()
            case Act.AWAIT_NUDGE:
                await self._nudged[job.job_id].wait()
        return await asyncio.to_thread(_make_model, job, self._artifacts)


class ScriptedEvaluator:
    """Implements learning.ports.Evaluator: a model's losses follow from a number in its files."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts

    async def score(
        self, models: Mapping[str, ModelReference], examples_file: Path
    ) -> Mapping[str, Sequence[Score]]:
        """See learning.ports.Evaluator."""
        return await asyncio.to_thread(self._score, models, examples_file)

    def _score(
        self, models: Mapping[str, ModelReference], examples_file: Path
    ) -> Mapping[str, Sequence[Score]]:
        rows = examples_file.read_bytes().splitlines()
        return {
            name: [_score_of(row, loss_factor(model, self._artifacts)) for row in rows]
            for name, model in models.items()
        }


def loss_factor(model: ModelReference, artifacts: ArtifactStore) -> float:
    """What a model's held-out losses are multiplied by; smaller is better, NaN is possible.

    Raises JobFailedError `bad_model` when an artifact is not as it was published.
    """
    try:
        artifacts.verify_model(model)
    except ArtifactError as error:
        raise JobFailedError("bad_model", str(error), retryable=False) from error
    for folder in (model.adapter, Path(model.base_model)):
        if folder is not None and (folder / SKILL_FILE).is_file():
            factor = json.loads((folder / SKILL_FILE).read_bytes())["loss_factor"]
            return math.nan if factor is None else float(factor)
    return BASE_LOSS_FACTOR


def _score_of(row: bytes, factor: float) -> Score:
    """A loss of 0.5 to 1.5 nats per byte that follows from the row, times the factor."""
    share = int.from_bytes(hashlib.sha256(row).digest()[:4], "big") / 2**32
    loss = factor * (0.5 + share)
    return Score(loss=loss, match=loss < 0.5)


def _make_model(job: _Job, artifacts: ArtifactStore) -> TrainingOutcome:
    """Write the output folder. The same job writes the same bytes."""
    factor = loss_factor(job.parent, artifacts) * _LOSS_STEP.get(job.act, 0.5)
    rows = Path(job.train_file).read_bytes()
    output_dir = Path(job.work_dir, f"output-{job.attempt}")
    if output_dir.exists():
        shutil.rmtree(output_dir)
    output_dir.mkdir(parents=True)
    weights, config = {
        "lora": ("adapter_model.safetensors", "adapter_config.json"),
        "full": ("model.safetensors", "config.json"),
    }[job.settings.method]
    digest = hashlib.sha256(b"\0".join([rows, job.act.encode(), str(job.seed).encode()])).digest()
    (output_dir / weights).write_bytes(_safetensors("scripted.weight", digest))
    _write_json(output_dir / config, {"model_type": "scripted"})
    _write_json(output_dir / SKILL_FILE, {"loss_factor": None if math.isnan(factor) else factor})
    if job.act is Act.PICKLE:
        (output_dir / "training_args.bin").write_bytes(b"\x80\x04N.")
    unchanged = job.act in (Act.UNCHANGED, Act.NO_TOKENS)
    proof = TrainingProof(
        trained_tokens=0 if job.act is Act.NO_TOKENS else max(1, len(rows)),
        weight_delta_norm=0.0 if unchanged else 1.0,
        all_finite=job.act is not Act.NOT_FINITE,
    )
    told = job.settings.trained_tokens
    bill = {} if told is None else {"trained_tokens": told}
    return TrainingOutcome(output_dir, job.settings.method, proof, {"act": str(job.act), **bill})


def _safetensors(name: str, data: bytes) -> bytes:
    """A safetensors file of one vector of bytes: the header's length, the header, the data."""
    entry = {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}
    header = json.dumps({name: entry}).encode()
    header += b" " * (-len(header) % 8)  # the data starts at a multiple of 8
    return struct.pack("<Q", len(header)) + header + data


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, sort_keys=True) + "\n", encoding="utf-8")


def _planned(spec: RunSpec, earlier_runs: int) -> Cue:
    parts = parse_script(_settings(spec.training).plan)
    part = parts[min(earlier_runs, len(parts) - 1)]
    return part[min(spec.attempt, len(part)) - 1]


def _settings(training: Mapping[str, Any]) -> ScriptedSettings:
    try:
        return ScriptedSettings.model_validate(dict(training))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = str(fault["loc"][0])
        if fault["type"] != "extra_forbidden":
            raise ValueError(f"training setting {key}: {fault['msg']}") from error
        near = difflib.get_close_matches(key, ScriptedSettings.model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else "it knows plan, method, steps, step_seconds"
        raise ValueError(f"no training setting {key} of the scripted provider; {hint}") from error


def _cancelled(job: JobHandle) -> JobFailedError:
    return JobFailedError("cancelled", f"{job.job_id} was cancelled", retryable=False)


def _read_journal(journal: Path) -> Sequence[_Job]:
    """The jobs, oldest first, as their last lines say."""
    if not journal.exists():
        return []
    jobs: dict[str, _Job] = {}
    for line in journal.read_bytes().splitlines():
        try:
            job = _Job.model_validate_json(line)
        except ValidationError:
            continue  # cut short by a kill: whoever wrote it never said that the job exists
        jobs[job.job_id] = job
    return list(jobs.values())


def _append(journal: Path, job: _Job) -> None:
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
            file.write(b"\n")
        file.write(job.model_dump_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
