"""The trained weights themselves: which they are, how far they moved, whether they are numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

Weights = dict[str, torch.Tensor]
"""By parameter name."""

_FACTORS = ("lora_A", "lora_B")


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, shared ones once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def snapshot(weights: Mapping[str, torch.Tensor]) -> Weights:
    """A copy in main memory."""
    return {
        name: weight.detach().to("cpu", copy=True).contiguous() for name, weight in weights.items()
    }


def all_finite(weights: Iterable[torch.Tensor]) -> bool:
    """No NaN, no infinity."""
    return all(bool(torch.isfinite(weight).all()) for weight in weights)


def change_norm(model: nn.Module, before: Mapping[str, torch.Tensor]) -> float | None:
    """L2 norm of the change of the effective weights since ``before``; None if not finite.

    For a LoRA layer, effective is scale·B·A: a change of A and B that leaves
    their product as it was is none. Everything else counts as it is.
    """
    after = trainable(model)
    squares = [_lora_change(layer, path, before) for path, layer in _lora_layers(model)]
    squares += [
        _square(weight.detach().double().cpu() - before[name].double())
        for name, weight in after.items()
        if not any(factor in name.split(".") for factor in _FACTORS)
    ]
    norm = math.sqrt(math.fsum(squares)) if all(map(math.isfinite, squares)) else math.nan
    return norm if math.isfinite(norm) else None


def _lora_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (path, layer)
        for path, layer in model.named_modules()
        if all(isinstance(getattr(layer, factor, None), nn.ModuleDict) for factor in _FACTORS)
    ]


def _lora_change(layer: nn.Module, path: str, before: Mapping[str, torch.Tensor]) -> float:
    """Squared Frobenius norm of the change of scale·B·A, over the layer's adapters.

    B₁A₁ - B₀A₀ = [B₁-B₀, B₀]·[A₁; A₁-A₀] = L·R, and |L·R|² = tr(LᵀL·RRᵀ):
    the full matrix is never built, and no change gives exactly zero.
    """
    total = 0.0
    for adapter, scale in getattr(layer, "scaling").items():  # noqa: B009  typed as a module
        name_a, name_b = (f"{path}.{factor}.{adapter}.weight" for factor in _FACTORS)
        if name_a not in before:
            continue
        a_after, b_after = (
            layer.get_parameter(f"{factor}.{adapter}.weight").detach().double().cpu()
            for factor in _FACTORS
        )
        a_before, b_before = before[name_a].double(), before[name_b].double()
        left = torch.cat([b_after - b_before, b_before], dim=1)
        right = torch.cat([a_after, a_after - a_before], dim=0)
        inner = ((left.T @ left) * (right @ right.T)).sum().item()
        total += scale**2 * (max(0.0, inner) if math.isfinite(inner) else inner)
    return total


def _square(difference: torch.Tensor) -> float:
    return float(difference.square().sum().item())
