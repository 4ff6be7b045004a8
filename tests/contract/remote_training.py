"""A provider whose jobs end at once with a model that a chat service serves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.remote.model import RemoteModel, write
from learning.gate import TrainingProof
from learning.ports import JobHandle, JobProgress, Recovery, RunSpec, TrainingOutcome


@dataclass
class RemoteTraining:
    """Implements learning.ports.FineTuneProvider. `serve` hears of each model's name."""

    serve: Callable[[str], None]
    name: str = "remote"
    recovery: Recovery = Recovery.LOOKUP
    jobs: dict[tuple[str, int], RunSpec] = field(default_factory=dict)

    def check_training(self, training: Mapping[str, Any]) -> None:
        """Anything goes."""

    async def launch(self, spec: RunSpec) -> JobHandle:
        """See learning.ports.FineTuneProvider."""
        self.jobs[spec.run_id, spec.attempt] = spec
        return JobHandle(spec.run_id, spec.attempt, f"job-{len(self.jobs)}")

    async def lookup(self, run_id: str, attempt: int) -> JobHandle | None:
        """See learning.ports.FineTuneProvider."""
        known = (run_id, attempt) in self.jobs
        return JobHandle(run_id, attempt, f"job-{len(self.jobs)}") if known else None

    async def wait(
        self, job: JobHandle, on_progress: Callable[[JobProgress], None]
    ) -> TrainingOutcome:
        """See learning.ports.FineTuneProvider."""
        spec = self.jobs[job.run_id, job.attempt]
        model = RemoteModel(self.name, "http://127.0.0.1/trained-elsewhere", f"ft:{job.run_id}")
        write(model, spec.work_dir / "output")
        self.serve(model.name)
        proof = TrainingProof(trained_tokens=1_000, weight_delta_norm=1.0, all_finite=True)
        return TrainingOutcome(spec.work_dir / "output", "remote", proof, {})

    async def cancel(self, job: JobHandle) -> None:
        """See learning.ports.FineTuneProvider."""
