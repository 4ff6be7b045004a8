"""The mean of the weights over the last steps of a training, which is what is kept.

Single steps at a high rate overshoot to and fro; their mean lies between, and has
moved less from where the training began (Polyak and Juditsky, 1992; over the tail
alone, Jain et al., 2018). So a rate need not fall to zero for the result to be good,
and a model that goes on from it has not been shaken out of what it knew. It trains
nothing and decides nothing: the loop tells it of each step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch

from finetune.trainer.weights import Weights

_PART: Final = "mean"


class TailMean:
    """Over the steps after `first` of `total_steps`; a share of 0 has no such step.

    The mean is kept in the weights' own precision and memory, as large as they are.
    """

    def __init__(
        self, weights: Mapping[str, torch.nn.Parameter], share: float, total_steps: int
    ) -> None:
        self._weights = weights
        self._first = total_steps - math.ceil(round(total_steps * share, 9))
        self._mean: Weights = {}

    @torch.no_grad()
    def add(self, step: int) -> None:
        """The weights are those after `step`, which counts from 1; each step comes once."""
        number = step - self._first
        if number < 1:
            return
        if number == 1:
            self._mean = {name: weight.clone() for name, weight in self._weights.items()}
        for name, mean in self._mean.items():
            mean.lerp_(self._weights[name], 1 / number)

    @torch.no_grad()
    def put(self) -> None:
        """The weights become their mean. Repeated, it changes nothing; without one neither."""
        for name, mean in self._mean.items():
            self._weights[name].copy_(mean)

    def tensors(self) -> dict[str, torch.Tensor]:
        """For a checkpoint, by part and name of the weight."""
        return {f"{_PART}/{name}": mean.contiguous() for name, mean in self._mean.items()}

    def restore(self, parts: Mapping[str, dict[str, torch.Tensor]]) -> None:
        """What `tensors` gave, taken out of each weight's parts."""
        found = {name: of.pop(_PART) for name, of in parts.items() if _PART in of}
        self._mean = {name: mean.to(self._weights[name].device) for name, mean in found.items()}
