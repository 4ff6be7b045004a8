"""What there is to tell of one training, whoever ran it: the daemon or `learnd finetune`.

Only the numbers and words; how they look is the business of the other modules here. What a
provider did not measure is missing, and never guessed.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from pydantic import ValidationError

from finetune.trainer.protocol import TrainingCurve
from learning.gate import Measure

FORMAT_VERSION: Final = 1


@dataclass(frozen=True)
class LeftOut:
    """A line that was not trained on, and why."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class Slice:
    """Before against after on some rows.

    Losses are means, None when one is not finite; exact is the share of answers that the model
    gives word for word, in [0, 1]. What is after is None too when one model was measured alone.
    """

    name: str
    n_rows: int
    loss_before: float | None
    loss_after: float | None
    exact_before: float
    exact_after: float | None

    @property
    def gain(self) -> float | None:
        """The relative fall of the loss: positive is better."""
        if self.loss_before is None or self.loss_after is None or self.loss_before <= 0:
            return None
        return (self.loss_before - self.loss_after) / self.loss_before


@dataclass(frozen=True)
class Evaluation:
    """What the gate says, or would say, of rows that were not trained on."""

    verdict: str
    reason: str
    slices: Sequence[Slice] = ()
    measure: Measure = Measure.LIKELIHOOD
    """What the losses are made of."""


@dataclass(frozen=True)
class TrainingReport:
    """One training. The mappings are shown in their order, name by name."""

    subject: str
    """Such as `run r-0123456789ab`."""
    facts: Mapping[str, Any]
    """Which model, which dataset, what came of it."""
    settings: Mapping[str, Any]
    dataset: Mapping[str, Any]
    """Counts and lengths, and how many rows were cut."""
    training: Mapping[str, Any]
    """Steps, tokens, time, losses."""
    left_out: Sequence[LeftOut] = ()
    """The first of the rows that were left out; `dataset` has their number."""
    curve: TrainingCurve = field(default_factory=TrainingCurve)
    notes: Sequence[str] = ()
    """What the trainer had to say, such as a setting that the model did not allow."""
    evaluation: Evaluation | None = None

    def as_json(self) -> dict[str, Any]:
        """The whole report as JSON values."""
        parts = {
            one.name: getattr(self, one.name)
            for one in dataclasses.fields(self)
            if one.name not in ("curve", "evaluation", "left_out")
        }
        return {
            "format_version": FORMAT_VERSION,
            **parts,
            "left_out": [dataclasses.asdict(one) for one in self.left_out],
            "curve": self.curve.model_dump(mode="json"),
            "evaluation": None if self.evaluation is None else dataclasses.asdict(self.evaluation),
        }


@dataclass(frozen=True)
class Measured:
    """The measurements of a training, sorted into the parts of a report."""

    training: Mapping[str, Any]
    dataset: Mapping[str, Any]
    left_out: Sequence[LeftOut]
    curve: TrainingCurve
    notes: Sequence[str]

    @classmethod
    def of(cls, measurements: Mapping[str, Any]) -> Self:
        """As a provider gave them; those of another provider than `local` may lack anything."""
        curve = _curve(measurements.get("curve"))
        training = {
            words: measurements[key]
            for key, words in _TRAINING.items()
            if measurements.get(key) is not None
        }
        if seconds := sum(curve.seconds):
            training["seconds in optimizer steps"] = round(seconds, 1)
            training["input tokens a second"] = round(sum(curve.tokens) / seconds, 1)
            training["rows a second"] = round(sum(curve.rows) / seconds, 2)
        dataset = {
            words: measurements[key]
            for key, words in _DATASET.items()
            if measurements.get(key) is not None
        }
        skipped = measurements.get("skipped") or ()
        return cls(
            training,
            dataset,
            [LeftOut("train.jsonl", one["line"], one["reason"]) for one in skipped],
            curve,
            measurements.get("notes") or (),
        )


_TRAINING: Final[Mapping[str, str]] = {
    "steps": "optimizer steps",
    "epochs": "epochs",
    "trained_tokens": "output tokens trained on",
    "first_loss": "loss of the first step",
    "final_loss": "loss of the last step",
    "weight_delta_norm": "norm of the change of the weights",
    "all_finite": "all numbers finite",
    "resumed_from_step": "went on from step",
    "seconds": "seconds of the last process, loading included",
    "device": "device",
    "precision": "arithmetic",
    "packed": "rows packed",
}
_DATASET: Final[Mapping[str, str]] = {
    "rows": "training rows read",
    "rows_skipped": "left out by the trainer",
    "rows_truncated": "outputs cut at their end",
    "prompts_truncated": "prompts cut at their beginning",
    "tokens_cut": "tokens cut off",
    "longest_row": "tokens of the longest row, before the cut",
    "prompt_tokens": "tokens of a prompt",
    "output_tokens": "tokens of an output",
}


def _curve(stored: Any) -> TrainingCurve:
    try:
        return TrainingCurve.model_validate_json(json.dumps(stored or {}))
    except ValidationError:
        return TrainingCurve()  # another provider's idea of a curve
