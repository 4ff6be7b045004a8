"""Which rows meet in which optimizer step, and at what learning rate.

Pure: everything follows from the settings and the row lengths, so that a
resumed training continues as if it had never stopped.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from random import Random
from typing import Final

from finetune.trainer.protocol import TrainingSettings

Minibatch = tuple[int, ...]
"""Indices of rows."""

_STEPS_OF_LIKE_LENGTH: Final = 50
"""Grouped by length, so many steps share their rows out by length, and the epoch stays random."""


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
    if settings.schedule == "polynomial":
        return settings.learning_rate * (1 - done) ** settings.polynomial_power
    return settings.learning_rate


def steps_from(
    first: int, lengths: Sequence[int], settings: TrainingSettings
) -> Iterator[tuple[Minibatch, ...]]:
    """The minibatches of step ``first`` and of each one after it, without end.

    Each epoch shuffles anew. The rows of one step are sorted by length, so
    that a minibatch pads little. Packed, the same rows make a step, but in as
    few minibatches as the memory of the largest padded one has room for.
    """
    per_epoch = _steps_per_epoch(len(lengths), settings)
    epoch, skipped = divmod(first, per_epoch)
    while True:
        for rows in _epoch(epoch, lengths, settings)[skipped:]:
            rows.sort(key=lambda row: (lengths[row], row))
            yield tuple(_minibatches(rows, lengths, settings))
        epoch, skipped = epoch + 1, 0


def _epoch(epoch: int, lengths: Sequence[int], settings: TrainingSettings) -> list[list[int]]:
    """The rows of each step of an epoch, in an order that follows from the seed."""
    random = Random(f"{settings.seed}/{epoch}")  # noqa: S311  not a secret
    order = list(range(len(lengths)))
    random.shuffle(order)
    per_step = settings.minibatch_size * settings.gradient_accumulation
    if not settings.group_by_length:
        return _cut(order, per_step)
    steps = [
        step
        for neighbourhood in _cut(order, per_step * _STEPS_OF_LIKE_LENGTH)
        for step in _cut(sorted(neighbourhood, key=lambda row: (lengths[row], row)), per_step)
    ]
    random.shuffle(steps)
    return steps


def _minibatches(
    rows: list[int], lengths: Sequence[int], settings: TrainingSettings
) -> Iterator[Minibatch]:
    """Of the rows of a step, which are sorted by length."""
    if not settings.packing:
        yield from map(tuple, _cut(rows, settings.minibatch_size))
        return
    room = settings.minibatch_size * max(lengths)
    packed: list[int] = []
    tokens = 0
    for row in rows:
        if tokens + lengths[row] > room:
            yield tuple(packed)
            packed, tokens = [], 0
        packed.append(row)
        tokens += lengths[row]
    yield tuple(packed)


def _cut(rows: list[int], size: int) -> list[list[int]]:
    return [rows[low : low + size] for low in range(0, len(rows), size)]


def step_seed(seed: int, step: int) -> int:
    """Seed of one step's dropout, in [0, 2**63)."""
    digest = hashlib.sha256(f"{seed}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _steps_per_epoch(n_rows: int, settings: TrainingSettings) -> int:
    return math.ceil(n_rows / (settings.minibatch_size * settings.gradient_accumulation))
