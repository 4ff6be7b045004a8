"""What each optimizer step of one training measured, kept on the disk as it goes.

One JSON line a step, beside the checkpoints: a training that was interrupted tells of all
its steps in the end, and of each once. TensorBoard's event files are written on request.
It measures nothing itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune.trainer.protocol import CURVE_POINTS, TrainingCurve, finite_or_none

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

STEPS_FILE: Final = "steps.jsonl"


class Measured(BaseModel):
    """One line of the file: an optimizer step, or a look at the validation rows after it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    step: int
    loss: float | None = None
    """Nats per output token; None when it was not finite."""
    learning_rate: float = 0.0
    grad_norm: float | None = None
    """Before clipping; None when it was not finite."""
    tokens: int = 0
    """Input tokens, prompts included."""
    rows: int = 0
    seconds: float = 0.0
    validation_loss: float | None = None
    """Nats per output token; None when it was not finite, or when this is a step."""
    is_validation: bool = False


class TrainingRecord:
    """The steps of one training; `with` opens it after `first_step` steps and closes it.

    What the file says of later steps is dropped: they are done again. `tensorboard_dir` gets
    an event file of its own for each process that worked on the training.
    """

    def __init__(self, directory: Path, first_step: int, tensorboard_dir: str | None) -> None:
        self._file = directory / STEPS_FILE
        self._first_step = first_step
        self._tensorboard_dir = tensorboard_dir
        self._tensorboard: SummaryWriter | None = None
        self.validated_at = -1
        """The step of the last look at the validation rows; -1 before the first one."""

    def __enter__(self) -> Self:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        kept = [one for one in _read(self._file) if one.step <= self._first_step]
        draft = self._file.with_suffix(".partial")
        draft.write_bytes(b"".join(map(_line, kept)))
        draft.replace(self._file)
        self.validated_at = max((one.step for one in kept if one.is_validation), default=-1)
        self._lines = self._file.open("ab")
        if self._tensorboard_dir is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(
                self._tensorboard_dir, purge_step=self._first_step + 1
            )
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lines.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def add_step(self, measured: Measured) -> None:
        """Take down an optimizer step."""
        self._write(measured)
        self._plot(
            measured.step,
            {
                "train/loss": measured.loss,
                "train/learning_rate": measured.learning_rate,
                "train/gradient_norm": measured.grad_norm,
                "train/samples_per_second": measured.rows / max(measured.seconds, 1e-9),
            },
        )

    def add_validation(self, step: int, loss: float) -> None:
        """Take down the loss on the validation rows after `step` steps; 0 is before the first."""
        self.validated_at = step
        self._write(Measured(step=step, validation_loss=finite_or_none(loss), is_validation=True))
        self._plot(step, {"validation/loss": finite_or_none(loss)})

    def curve(self) -> TrainingCurve:
        """All steps so far, in at most CURVE_POINTS points."""
        validations = [one for one in _read(self._file) if one.is_validation]
        n_steps = sum(not one.is_validation for one in _read(self._file))
        steps = (one for one in _read(self._file) if not one.is_validation)
        points = [*map(_together, _groups(steps, math.ceil(n_steps / CURVE_POINTS)))]
        shown = [*map(_last, _groups(validations, math.ceil(len(validations) / CURVE_POINTS)))]
        return TrainingCurve(
            steps=tuple(one.step for one in points),
            loss=tuple(one.loss for one in points),
            learning_rate=tuple(one.learning_rate for one in points),
            grad_norm=tuple(one.grad_norm for one in points),
            tokens=tuple(one.tokens for one in points),
            rows=tuple(one.rows for one in points),
            seconds=tuple(one.seconds for one in points),
            validation_steps=tuple(one.step for one in shown),
            validation_loss=tuple(one.validation_loss for one in shown),
        )

    def _write(self, measured: Measured) -> None:
        self._lines.write(_line(measured))
        # So that nothing but the machine's end loses it.
        self._lines.flush()

    def _plot(self, step: int, numbers: dict[str, float | None]) -> None:
        if self._tensorboard is None:
            return
        for name, number in numbers.items():
            if number is not None:
                self._tensorboard.add_scalar(name, number, step)


def _line(measured: Measured) -> bytes:
    return measured.model_dump_json(exclude_defaults=True).encode() + b"\n"


def _read(file: Path) -> Iterator[Measured]:
    """What is there, up to a line that a killed process did not finish."""
    if not file.exists():
        return
    with file.open("rb") as lines:
        for line in lines:
            try:
                yield Measured.model_validate_json(line)
            except ValidationError:
                return


def _groups(measured: Iterable[Measured], size: int) -> Iterator[Sequence[Measured]]:
    group: list[Measured] = []
    for one in measured:
        group.append(one)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _together(group: Sequence[Measured]) -> Measured:
    """Successive steps as one: the mean loss, the largest gradient norm, sums of what adds up."""
    losses = [one.loss for one in group if one.loss is not None]
    norms = [one.grad_norm for one in group if one.grad_norm is not None]
    return Measured(
        step=group[-1].step,
        # One that was not finite is what the training ended with: it may not be averaged away.
        loss=sum(losses) / len(losses) if len(losses) == len(group) else None,
        learning_rate=group[-1].learning_rate,
        grad_norm=max(norms) if len(norms) == len(group) else None,
        tokens=sum(one.tokens for one in group),
        rows=sum(one.rows for one in group),
        seconds=sum(one.seconds for one in group),
    )


def _last(group: Sequence[Measured]) -> Measured:
    return group[-1]
