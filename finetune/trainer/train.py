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
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune.trainer.bases import Bases
from finetune.trainer.checkpoint import Origin
from finetune.trainer.encoding import EncodedRow, Encoder
from finetune.trainer.interruption import Interruption
from finetune.trainer.loop import TrainingLoop
from finetune.trainer.material import Preparation, read_source
from finetune.trainer.models import (
    Compute,
    base_dtype,
    choose_compute,
    fingerprint,
    load_adapter,
    max_positions,
    new_adapter,
    save_adapter,
    save_model,
    stored_dtype,
)
from finetune.trainer.packing import attend_by_rows
from finetune.trainer.preflight import require_possible
from finetune.trainer.protocol import (
    ModelRef,
    TokenSpread,
    TrainingCurve,
    TrainingSettings,
    TrainRequest,
    TrainResult,
    finite_or_none,
)
from finetune.trainer.publication import published, require_vacant
from finetune.trainer.ranks import ALONE, Ranks
from finetune.trainer.record import TrainingRecord
from finetune.trainer.reporting import Reporter
from finetune.trainer.rows import read_rows
from finetune.trainer.validation import Validation
from finetune.trainer.weights import Weights, all_finite, change_norm, trainable

_NAMED_SKIPPED_ROWS = 100
_WITHOUT_EFFECT_ON_WEIGHTS = {
    "checkpoint_every_steps",
    "checkpoints_kept",
    "validate_every_steps",
    "resume",
    "cpu_offload",
}


def train(
    request: TrainRequest,
    reporter: Reporter,
    interruption: Interruption,
    bases: Bases,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Train, and publish the result in ``output_dir``; of several processes the first one does.

    Raises RequestFailed; raises Interrupted when it should stop, with a checkpoint
    of the last finished step written.
    """
    started = time.monotonic()
    settings = request.settings
    output_dir = Path(request.output_dir)
    require_vacant(output_dir)
    source = read_source(request.train_file, settings.objective)
    compute = choose_compute(settings.precision, request.model.base_model)
    require_possible(request.model.base_model, settings, compute, reporter.note)
    tokenizer = bases.tokenizer(request.model.base_model)
    base = _load_base(request.model, settings, compute, reporter, bases)
    settings = _as_the_base_can(base, bases, settings, reporter)
    model = _make_trainable(base, request.model, settings, reporter)
    preparation = Preparation(
        model=model,
        encoder=Encoder(tokenizer),
        pad_id=tokenizer.pad_token_id or 0,
        settings=settings,
        compute=compute,
    )
    material = preparation.of(source)
    _tell_what_was_cut(material.rows, settings.max_length, reporter)
    training = TrainingLoop(
        model=model,
        objective=material.objective,
        settings=settings,
        compute=compute,
        directory=Path(request.checkpoint_dir),
        origin=_origin(request, settings, compute),
        reporter=reporter,
        ranks=ranks,
        validate=_validation(request, preparation, interruption),
    )
    resumed_from_step = training.resume()
    first_step = training.counts.step
    with (
        _record(request, first_step) if ranks.is_first else nullcontext() as record,
        interruption.deferred(),
    ):
        loss_is_finite = training.run(interruption, record)
    counts, n_examples = training.counts, len(material.objective.lengths)
    change = _Change(norm=None, all_finite=True)
    if ranks.is_first:
        change = _write(model, tokenizer, training.starting_weights, request, output_dir)
    return TrainResult(
        steps=counts.step,
        epochs=counts.rows_seen / n_examples if n_examples else 0.0,
        trained_tokens=counts.trained_tokens,
        rows=material.n_read,
        rows_truncated=sum(row.output_truncated for row in material.rows),
        prompts_truncated=sum(row.prompt_truncated for row in material.rows),
        tokens_cut=sum(row.tokens_cut for row in material.rows),
        longest_row=max((len(row.ids) + row.tokens_cut for row in material.rows), default=0),
        rows_skipped=len(material.skipped),
        skipped=tuple(material.skipped[:_NAMED_SKIPPED_ROWS]),
        first_loss=finite_or_none(counts.first_loss),
        final_loss=finite_or_none(counts.last_loss),
        weight_delta_norm=change.norm,
        all_finite=loss_is_finite and change.all_finite,
        seconds=time.monotonic() - started,
        curve=record.curve() if record is not None else TrainingCurve(),
        notes=tuple(reporter.notes),
        prompt_tokens=_spread([row.first_label for row in material.rows]),
        output_tokens=_spread([row.label_tokens for row in material.rows]),
        resumed_from_step=resumed_from_step,
        device=str(compute.device),
        precision=compute.arithmetic,
        packed=settings.packing,
    )


# --- before -----------------------------------------------------------------------------------


def _load_base(
    ref: ModelRef, settings: TrainingSettings, compute: Compute, reporter: Reporter, bases: Bases
) -> PreTrainedModel:
    """The base, with the attention that it is to be trained with."""
    where = ref.base_model, base_dtype(settings, compute), compute.device, reporter.note
    if settings.method == "full":
        base = bases.take(*where)
    else:
        base = bases.lend(*where, quantization=settings.quantization)
    if settings.attention != "auto":
        base.set_attn_implementation(settings.attention)
    elif settings.packing:
        attend_by_rows(base)
    return base


def _as_the_base_can(
    base: PreTrainedModel, bases: Bases, settings: TrainingSettings, reporter: Reporter
) -> TrainingSettings:
    """The settings, less what the base was not made for. No adapter changes that."""
    limit = max_positions(base)
    if limit is not None and settings.max_length > limit:
        reporter.note(f"max_length is {limit}, as the model was made for no more")
        settings = settings.model_copy(update={"max_length": limit})
    if settings.packing and not bases.packs(base):
        reporter.note("rows are padded, not packed: this model would see from one into another")
        settings = settings.model_copy(update={"packing": False})
    return settings


def _make_trainable(
    base: PreTrainedModel, ref: ModelRef, settings: TrainingSettings, reporter: Reporter
) -> PreTrainedModel | PeftModel:
    """The starting model, with exactly those weights trainable that are to be trained."""
    # A new adapter's weights are random; so that a resumed training starts
    # from the same ones. After the base: one that was kept drew nothing.
    torch.manual_seed(settings.seed)
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


def _record(request: TrainRequest, first_step: int) -> TrainingRecord:
    return TrainingRecord(Path(request.checkpoint_dir), first_step, request.tensorboard_dir)


def _validation(
    request: TrainRequest, preparation: Preparation, interruption: Interruption
) -> Validation | None:
    """None unless there are rows, and they are to be looked at."""
    if request.validation_file is None or request.settings.validate_every_steps is None:
        return None
    rows, _ = preparation.rows(read_rows(request.validation_file))
    return Validation(preparation, rows, interruption) if rows else None


def _spread(lengths: Sequence[int]) -> TokenSpread | None:
    if not lengths:
        return None
    total = sum(lengths)
    mean = round(total / len(lengths), 1)
    return TokenSpread(total=total, least=min(lengths), mean=mean, most=max(lengths))


def _tell_what_was_cut(rows: Sequence[EncodedRow], max_length: int, reporter: Reporter) -> None:
    cut = [row for row in rows if row.tokens_cut]
    if not cut:
        return
    outputs = sum(row.output_truncated for row in cut)
    longest = max(len(row.ids) + row.tokens_cut for row in cut)
    reporter.note(
        f"{len(cut)} of {len(rows)} rows are longer than max_length {max_length} and lost"
        f" {sum(row.tokens_cut for row in cut)} tokens ({outputs} of them the end of their output);"
        f" the longest has {longest}"
    )


def _origin(request: TrainRequest, settings: TrainingSettings, compute: Compute) -> Origin:
    """The settings as they are followed, because only they decide what the weights become."""
    followed = settings.model_dump(mode="json", exclude=_WITHOUT_EFFECT_ON_WEIGHTS)
    followed["precision"] = compute.arithmetic
    canonical = json.dumps(followed, sort_keys=True).encode()
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
