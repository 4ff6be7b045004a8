"""Continue a champion on a dataset: from a train request to its result.

What comes before the optimizer steps and after them. Numbers that went wrong
(no token, no change, not finite) end in a result, which the gate refuses by
name, and not in an error.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune.trainer.checkpoint import Origin
from finetune.trainer.encoding import EncodedRow, Encoder
from finetune.trainer.interruption import Interruption
from finetune.trainer.loop import TrainingLoop
from finetune.trainer.material import Preparation, read_source
from finetune.trainer.models import (
    Compute,
    choose_compute,
    fingerprint,
    load_adapter,
    load_base,
    load_tokenizer,
    max_positions,
    new_adapter,
    save_adapter,
    save_model,
    stored_dtype,
)
from finetune.trainer.protocol import (
    ModelRef,
    TokenSpread,
    TrainingSettings,
    TrainRequest,
    TrainResult,
    finite_or_none,
)
from finetune.trainer.publication import published, require_vacant
from finetune.trainer.record import TrainingRecord
from finetune.trainer.reporting import Reporter
from finetune.trainer.rows import read_rows
from finetune.trainer.validation import Validation
from finetune.trainer.weights import Weights, all_finite, change_norm, trainable

_NAMED_SKIPPED_ROWS = 100
_WITHOUT_EFFECT = {"checkpoint_every_steps", "validate_every_steps"}
"""Settings that the trained weights do not depend on."""


def train(request: TrainRequest, reporter: Reporter, interruption: Interruption) -> TrainResult:
    """Train, and publish the result in ``output_dir``.

    Raises RequestFailed; raises Interrupted after SIGTERM, with a checkpoint
    of the last finished step written.
    """
    started = time.monotonic()
    settings = request.settings
    output_dir = Path(request.output_dir)
    require_vacant(output_dir)
    source = read_source(request.train_file, settings.objective)
    compute = choose_compute(settings.precision)
    tokenizer = load_tokenizer(request.model.base_model)
    model = _load_trainable(request.model, settings, compute, reporter)
    pad_id = tokenizer.pad_token_id or 0
    preparation = Preparation(
        model=model,
        encoder=Encoder(tokenizer),
        max_length=_max_length(model, settings, reporter),
        pad_id=pad_id,
        settings=settings,
        compute=compute,
    )
    material = preparation.of(source)
    validation = _validation_rows(request, preparation)
    training = TrainingLoop(
        model=model,
        objective=material.objective,
        settings=settings,
        compute=compute,
        directory=Path(request.checkpoint_dir),
        origin=_origin(request, compute),
        reporter=reporter,
        validate=(
            Validation(model, validation, pad_id, settings.minibatch_size, compute, interruption)
            if validation
            else None
        ),
    )
    resumed_from_step = training.resume()
    with (
        TrainingRecord(
            Path(request.checkpoint_dir), training.counts.step, request.tensorboard_dir
        ) as record,
        interruption.deferred(),
    ):
        loss_is_finite = training.run(interruption, record)
    counts, n_examples = training.counts, len(material.objective.lengths)
    change = _write(model, tokenizer, training.starting_weights, request, output_dir)
    return TrainResult(
        steps=counts.step,
        epochs=counts.rows_seen / n_examples if n_examples else 0.0,
        trained_tokens=counts.trained_tokens,
        rows=material.n_read,
        rows_truncated=sum(row.output_truncated for row in material.rows),
        prompts_truncated=sum(row.prompt_truncated for row in material.rows),
        rows_skipped=len(material.skipped),
        skipped=tuple(material.skipped[:_NAMED_SKIPPED_ROWS]),
        first_loss=finite_or_none(counts.first_loss),
        final_loss=finite_or_none(counts.last_loss),
        weight_delta_norm=change.norm,
        all_finite=loss_is_finite and change.all_finite,
        seconds=time.monotonic() - started,
        curve=record.curve(),
        notes=tuple(reporter.notes),
        prompt_tokens=_spread([row.first_label for row in material.rows]),
        output_tokens=_spread([row.label_tokens for row in material.rows]),
        resumed_from_step=resumed_from_step,
        device=str(compute.device),
        precision=compute.arithmetic,
    )


# --- before -----------------------------------------------------------------------------------


def _load_trainable(
    ref: ModelRef, settings: TrainingSettings, compute: Compute, reporter: Reporter
) -> PreTrainedModel | PeftModel:
    """The starting model, with exactly those weights trainable that are to be trained."""
    # A new adapter's weights are random; so that a resumed training starts
    # from the same ones.
    torch.manual_seed(settings.seed)
    # Small updates vanish in 16 bits: trained weights are fp32, others need not be.
    dtype = torch.float32 if settings.method == "full" else compute.dtype
    base = load_base(ref.base_model, dtype, compute.device)
    if settings.gradient_checkpointing:
        base.activation_checkpointing_enable({"use_reentrant": False})
    if settings.method == "lora":
        base.requires_grad_(False)
        if ref.adapter is None:
            return new_adapter(base, settings)
        adapted = load_adapter(base, ref.adapter, trainable=True, dropout=settings.lora_dropout)
        config = adapted.peft_config[adapted.active_adapter]
        assert isinstance(config, LoraConfig)
        rank = config.r
        if rank != settings.lora_rank:
            reporter.note(
                f"the parent adapter has rank {rank} and keeps it; lora_rank, lora_alpha and "
                "target_modules are of new adapters only"
            )
        return adapted
    if ref.adapter is not None:
        base = load_adapter(base, ref.adapter, trainable=False).merge_and_unload(safe_merge=True)
    return base.requires_grad_(True)


def _max_length(
    model: PreTrainedModel | PeftModel, settings: TrainingSettings, reporter: Reporter
) -> int:
    limit = max_positions(model)
    if limit is None or settings.max_length <= limit:
        return settings.max_length
    reporter.note(f"max_length is {limit}, as the model was made for no more")
    return limit


def _validation_rows(request: TrainRequest, preparation: Preparation) -> Sequence[EncodedRow]:
    """None of them unless they are to be looked at."""
    if request.validation_file is None or request.settings.validate_every_steps is None:
        return ()
    rows, _ = preparation.rows(read_rows(request.validation_file))
    return rows


def _spread(lengths: Sequence[int]) -> TokenSpread | None:
    if not lengths:
        return None
    total = sum(lengths)
    mean = round(total / len(lengths), 1)
    return TokenSpread(total=total, least=min(lengths), mean=mean, most=max(lengths))


def _origin(request: TrainRequest, compute: Compute) -> Origin:
    settings = request.settings.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
    settings["precision"] = compute.arithmetic
    canonical = json.dumps(settings, sort_keys=True).encode()
    return Origin(
        model=fingerprint(request.model),
        data=hashlib.sha256(Path(request.train_file).read_bytes()).hexdigest(),
        settings=hashlib.sha256(canonical).hexdigest(),
    )


# --- after ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Change:
    norm: float | None
    all_finite: bool


def _write(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    starting_weights: Weights,
    request: TrainRequest,
    output_dir: Path,
) -> _Change:
    """Publish the trained model; measure the change of what is written, not of what was meant."""
    with published(output_dir) as staged:
        if isinstance(model, PeftModel):
            save_adapter(model, staged)
        else:
            dtype = stored_dtype(request.model.base_model)
            torch.nn.Module.to(model, dtype)
            starting_weights = {name: value.to(dtype) for name, value in starting_weights.items()}
            save_model(model, staged)
        tokenizer.save_pretrained(str(staged))
    return _Change(
        norm=change_norm(model, starting_weights),
        all_finite=all_finite(trainable(model).values()),
    )
