"""The optimizers, and their state as tensors that a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from finetune.trainer.protocol import TrainingSettings

_COUNT = "step"
"""A tensor in PyTorch's state, a plain number in that of bitsandbytes."""


def make_optimizer(
    weights: Iterable[torch.nn.Parameter], settings: TrainingSettings
) -> torch.optim.Optimizer:
    """AdamW with decoupled weight decay. Raises ModuleNotFoundError without bitsandbytes."""
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(weights, lr=rate, weight_decay=decay, fused=True)
    from bitsandbytes.optim import AdamW8bit

    eight_bits: torch.optim.Optimizer = AdamW8bit(weights, lr=rate, weight_decay=decay)
    return eight_bits


def state_of(
    optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter
) -> dict[str, torch.Tensor]:
    """What the optimizer keeps of one weight, by name."""
    state: dict[str, Any] = optimizer.state[weight]
    return {
        # A copy, because bitsandbytes has one table for all weights.
        name: torch.as_tensor(value).clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }


def restore_state(
    optimizer: torch.optim.Optimizer,
    weight: torch.nn.Parameter,
    state: Mapping[str, torch.Tensor],
) -> None:
    """What `state_of` gave."""
    plain_count = not isinstance(optimizer, torch.optim.AdamW)
    optimizer.state[weight] = {
        name: int(value) if plain_count and name == _COUNT else value.to(weight.device)
        for name, value in state.items()
    }
