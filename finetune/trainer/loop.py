"""The optimizer steps of one training.

A plain loop; what is minimised is the objective's business. On a CPU, a
training that was interrupted at any point and resumed ends in the same bytes
as one that was not: each step's examples and dropout follow from the seed and
the step's number. It neither loads nor writes models.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from finetune.trainer.averaging import TailMean
from finetune.trainer.checkpoint import (
    Checkpoint,
    Counts,
    Origin,
    load_checkpoint,
    save_checkpoint,
)
from finetune.trainer.interruption import Interrupted, Interruption
from finetune.trainer.models import Compute
from finetune.trainer.objective import Objective
from finetune.trainer.optimizer import make_optimizer, restore_state, state_of
from finetune.trainer.protocol import TrainingSettings, TrainProgress, finite_or_none
from finetune.trainer.ranks import ALONE, Ranks
from finetune.trainer.record import Measured, TrainingRecord
from finetune.trainer.reporting import Reporter
from finetune.trainer.schedule import (
    Minibatch,
    count_steps,
    learning_rate_at,
    step_seed,
    steps_from,
)
from finetune.trainer.weights import snapshot, trainable


class TrainingLoop:
    """Model, optimizer and counts: what changes with each step."""

    def __init__(
        self,
        *,
        model: PreTrainedModel | PeftModel,
        objective: Objective,
        settings: TrainingSettings,
        compute: Compute,
        directory: Path,
        origin: Origin,
        reporter: Reporter,
        ranks: Ranks = ALONE,
        validate: Callable[[], float] | None = None,
    ) -> None:
        """``validate`` is the mean loss on rows that are not trained on, at every look."""
        self._ranks = ranks
        self._model, self._objective = model, objective
        self._settings, self._compute = settings, compute
        self._directory, self._origin, self._reporter = directory, origin, reporter
        self._validate = validate
        self._weights = trainable(model)
        self._optimizer = make_optimizer(self._weights.values(), settings)
        self._scaler = torch.amp.GradScaler(
            compute.device.type, enabled=compute.arithmetic == "fp16"
        )
        self._total_steps = count_steps(len(objective.lengths), settings)
        self._mean = TailMean(self._weights, settings.averaged_share, self._total_steps)
        self._saved_step = 0
        self.starting_weights = snapshot(self._weights)
        self.counts = Counts(
            step=0, trained_tokens=0, rows_seen=0, first_loss=math.nan, last_loss=math.nan
        )

    def resume(self) -> int | None:
        """Go on from the checkpoint that belongs to this training; its step, if there is one."""
        if not self._settings.resume:
            return None
        checkpoint = None
        if self._ranks.is_first:
            checkpoint = load_checkpoint(self._directory, self._origin, self._reporter.note)
        # Only the first one sets a damaged one aside; the others then find what it uses.
        is_there = self._ranks.tell(checkpoint is not None)
        if is_there and checkpoint is None:
            checkpoint = load_checkpoint(self._directory, self._origin, self._reporter.note)
        if checkpoint is None:
            return None
        self._restore(checkpoint)
        return checkpoint.counts.step

    def run(self, interruption: Interruption, record: TrainingRecord | None) -> bool:
        """All steps that remain. False when the loss or a gradient was not finite: stopped there.

        In the end the weights are their mean over the last steps, where that is asked for.
        Of several processes the first one has a record, and looks at the validation rows.
        SIGTERM is looked for between minibatches; the begun step is dropped,
        which changes nothing, because it is repeated from the checkpoint. Several
        processes look between steps, and stop at the same one.
        """
        self._model.train()
        pace = _Pace(self.counts.step, self._total_steps)
        if self.counts.step == self._total_steps:
            self._mean.put()
            return True
        self._validate_if_due(record)
        for minibatches in steps_from(self.counts.step, self._objective.lengths, self._settings):
            try:
                finite = self._step(minibatches, interruption, pace, record)
                if not finite:
                    return False
                if self.counts.step == self._total_steps:
                    self._mean.put()
                self._validate_if_due(record)
            except Interrupted:
                self._save()
                raise
            if self.counts.step == self._total_steps:
                break
            if self.counts.step % self._settings.checkpoint_every_steps == 0:
                self._save()
        return True

    def _validate_if_due(self, record: TrainingRecord | None) -> None:
        """Before the first step, every so many, and after the last."""
        every, step = self._settings.validate_every_steps, self.counts.step
        if every is None or self._validate is None or record is None:
            return
        if step <= record.validated_at:
            return
        if step % every == 0 or step == self._total_steps:
            self._model.eval()
            record.add_validation(step, self._validate())
            self._model.train()

    def _step(
        self,
        minibatches: Sequence[Minibatch],
        interruption: Interruption,
        pace: _Pace,
        record: TrainingRecord | None,
    ) -> bool:
        settings, counts = self._settings, self.counts
        started = time.monotonic()
        rate = learning_rate_at(counts.step, self._total_steps, settings)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        objective = self._objective
        examples = [index for minibatch in minibatches for index in minibatch]
        weight = objective.weight(examples)
        # What a process has no share in is nothing.
        losses = [torch.zeros((), device=self._compute.device)]
        self._stop_together(interruption)
        for place, minibatch in self._ranks.share(minibatches):
            if self._ranks.count == 1:
                interruption.raise_if_requested()
            # By its place, so that its dropout does not depend on who computes it.
            torch.manual_seed(step_seed(settings.seed, counts.step, place))
            with self._compute.autocast(), self._offload():
                summed = objective.loss(self._model, minibatch)
            # What weighs the same does so in whichever minibatch of the step it was.
            share = summed / weight
            self._scaler.scale(share).backward()  # type: ignore[no-untyped-call]
            losses.append(share.detach())
        self._ranks.add_gradients(self._weights.values())
        self._scaler.unscale_(self._optimizer)
        clipped = torch.nn.utils.clip_grad_norm_(self._weights.values(), settings.max_grad_norm)
        # The one moment of a step at which this process waits for a GPU.
        loss, norm = torch.stack([torch.stack(losses).sum(), clipped.float()]).tolist()
        loss = self._ranks.add(loss)
        # The fp16 scaler skips a step whose gradients overflow, and scales less.
        usable = math.isfinite(norm) or self._scaler.is_enabled()
        finite = math.isfinite(loss) and usable
        if finite:
            self._scaler.step(self._optimizer)
            self._scaler.update()
            self._mean.add(counts.step + 1)
            counts = Counts(
                step=counts.step + 1,
                trained_tokens=counts.trained_tokens + objective.trained_tokens(examples),
                rows_seen=counts.rows_seen + len(examples),
                first_loss=loss if counts.step == 0 else counts.first_loss,
                last_loss=loss,
            )
        else:
            counts = counts.model_copy(update={"last_loss": loss})
        self.counts = counts
        self._optimizer.zero_grad(set_to_none=True)
        tokens = sum(objective.lengths[index] for index in examples)
        pace.add(tokens)
        if record is not None:
            record.add_step(
                Measured(
                    step=counts.step if finite else counts.step + 1,
                    loss=finite_or_none(loss),
                    learning_rate=rate,
                    grad_norm=finite_or_none(norm),
                    tokens=tokens,
                    rows=len(examples),
                    seconds=time.monotonic() - started,
                )
            )
        if self._reporter.progress_is_due(last=not finite or counts.step == self._total_steps):
            self._reporter.say(
                TrainProgress(
                    id=self._reporter.request_id,
                    step=counts.step,
                    total_steps=self._total_steps,
                    loss=finite_or_none(loss),
                    learning_rate=rate,
                    grad_norm=finite_or_none(norm),
                    tokens_per_second=pace.tokens_per_second,
                    seconds_left=pace.seconds_left(counts.step),
                    trained_tokens=counts.trained_tokens,
                )
            )
        return finite

    def _stop_together(self, interruption: Interruption) -> None:
        if self._ranks.add(interruption.has_come):
            raise Interrupted

    def _offload(self) -> AbstractContextManager[object]:
        """Where activations wait for the backward pass."""
        if not self._settings.cpu_offload:
            return nullcontext()
        return torch.autograd.graph.save_on_cpu(pin_memory=self._compute.device.type == "cuda")

    def _save(self) -> None:
        if self.counts.step == self._saved_step or not self._ranks.is_first:
            return
        tensors = self._mean.tensors()
        for name, weight in self._weights.items():
            tensors[f"weight/{name}"] = weight.detach().contiguous()
            for part, value in state_of(self._optimizer, weight).items():
                tensors[f"{part}/{name}"] = value
        counts = self.counts
        if self._scaler.is_enabled():
            scaler = self._scaler.state_dict()
            counts = counts.model_copy(
                update={"loss_scale": scaler["scale"], "loss_scale_age": scaler["_growth_tracker"]}
            )
        keep = self._settings.checkpoints_kept
        save_checkpoint(self._directory, self._origin, counts, tensors, keep)
        self._saved_step = counts.step

    def _restore(self, checkpoint: Checkpoint) -> None:
        parts: dict[str, dict[str, torch.Tensor]] = {name: {} for name in self._weights}
        for key, value in checkpoint.tensors.items():
            part, _, name = key.partition("/")
            parts[name][part] = value
        self._mean.restore(parts)
        for name, weight in self._weights.items():
            weight.data.copy_(parts[name].pop("weight"))
            restore_state(self._optimizer, weight, parts[name])
        counts = checkpoint.counts
        if self._scaler.is_enabled() and counts.loss_scale is not None:
            scaler = self._scaler.state_dict()
            scaler |= {"scale": counts.loss_scale, "_growth_tracker": counts.loss_scale_age}
            self._scaler.load_state_dict(scaler)
        self.counts, self._saved_step = counts, counts.step


class _Pace:
    """Speed since this process began to train."""

    def __init__(self, first_step: int, total_steps: int) -> None:
        self._started = time.monotonic()
        self._first_step, self._total_steps = first_step, total_steps
        self._tokens = 0

    def add(self, tokens: int) -> None:
        self._tokens += tokens

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / max(self._seconds, 1e-9)

    def seconds_left(self, step: int) -> float:
        done = step - self._first_step
        return self._seconds / done * (self._total_steps - step) if done else 0.0

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started
