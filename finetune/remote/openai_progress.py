"""How far a job is, and what was measured: read from the events that the service keeps of it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from finetune.remote.openai_client import Event
from learning.ports import JobProgress

_STEPS: Final = ("step", "total_steps")


@dataclass
class JobDiary:
    """What the events of one job have told so far. An event is read once."""

    known: set[str] = field(default_factory=set)
    all_finite: bool = True
    """Whether every number was one; a service that tells none is believed."""
    _losses: dict[int, float] = field(default_factory=dict)
    _last: int = 0

    def read(self, events: Iterable[Event]) -> Sequence[JobProgress]:
        """The steps that are new, in their order."""
        steps: dict[int, JobProgress] = {}
        for event in events:
            self.known.add(event.id)
            if (progress := self._progress(event.data or {})) is not None:
                steps[progress.step] = progress
        new = [steps[step] for step in sorted(steps) if step > self._last]
        if new:
            self._last = new[-1].step
        return new

    def measurements(self) -> Mapping[str, Any]:
        """The steps, and the training loss of the first and the last of them."""
        if not self._last:
            return {}
        told: dict[str, Any] = {"steps": self._last}
        if self._losses:
            told["first_loss"] = self._losses[min(self._losses)]
            told["final_loss"] = self._losses[max(self._losses)]
        return told

    def _progress(self, data: Mapping[str, Any]) -> JobProgress | None:
        numbers = {
            key: float(value)
            for key, value in data.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        if any(not math.isfinite(value) for value in numbers.values()):
            self.all_finite = False
        finite = {key: value for key, value in numbers.items() if math.isfinite(value)}
        step = int(finite.get("step", 0))
        if step < 1:
            return None
        if (loss := finite.get("train_loss")) is not None:
            self._losses[step] = loss
        total = max(step, int(finite.get("total_steps", 0)))
        shown = {key: value for key, value in finite.items() if key not in _STEPS}
        if "train_loss" in shown:
            shown["loss"] = shown.pop("train_loss")
        return JobProgress(step, total, shown)
