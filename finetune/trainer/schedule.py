"""Which rows meet in which optimizer step, and at what learning rate.

Pure: everything follows from the settings and the row lengths, so that a
resumed training continues as if it had never stopped.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from random import Random

from finetune.trainer.protocol import TrainingSettings

Minibatch = tuple[int, ...]
"""Indices of rows."""


def count_steps(n_rows: int, settings: TrainingSettings) -> int:
    """Optimizer steps of a whole training; 0 without rows."""
    if n_rows == 0:
        return 0
    return settings.max_steps or settings.epochs * _steps_per_epoch(n_rows, settings)


def learning_rate_at(step: int, total_steps: int, settings: TrainingSettings) -> float:
    """The rate of step 0, 1, ... total_steps - 1.

    Warm-up is linear, over warmup_steps but at most a tenth of all steps: the
    default of 100 would otherwise never end in a training of 60. What follows
    falls towards zero, which the step after the last one would reach.
    """
    warmup = min(settings.warmup_steps, total_steps // 10)
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / (total_steps - warmup)
    if settings.schedule == "cosine":
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if settings.schedule == "linear":
        return settings.learning_rate * (1 - done)
    return settings.learning_rate


def steps_from(
    first: int, lengths: Sequence[int], settings: TrainingSettings
) -> Iterator[tuple[Minibatch, ...]]:
    """The minibatches of step ``first`` and of each one after it, without end.

    Each epoch shuffles anew. The rows of one step are sorted by length, so
    that a minibatch pads little; which rows share a step stays random.
    """
    per_epoch = _steps_per_epoch(len(lengths), settings)
    epoch, skipped = divmod(first, per_epoch)
    while True:
        order = list(range(len(lengths)))
        Random(f"{settings.seed}/{epoch}").shuffle(order)  # noqa: S311  not a secret
        per_step = settings.minibatch_size * settings.gradient_accumulation
        for start in range(skipped * per_step, len(order), per_step):
            rows = sorted(order[start : start + per_step], key=lambda row: (lengths[row], row))
            yield tuple(
                tuple(rows[low : low + settings.minibatch_size])
                for low in range(0, len(rows), settings.minibatch_size)
            )
        epoch, skipped = epoch + 1, 0


def step_seed(seed: int, step: int, minibatch: int = 0) -> int:
    """Seed of the dropout in a step's n-th minibatch, in [0, 2**63)."""
    digest = hashlib.sha256(f"{seed}/{step}/{minibatch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _steps_per_epoch(n_rows: int, settings: TrainingSettings) -> int:
    return math.ceil(n_rows / (settings.minibatch_size * settings.gradient_accumulation))
