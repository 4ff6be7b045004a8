"""The mean loss on rows that are not trained on, while a training goes on.

For the curve alone: nothing is chosen or stopped by it. It leaves no trace in the weights,
and takes no random number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from finetune.trainer.encoding import EncodedRow
from finetune.trainer.interruption import Interruption
from finetune.trainer.likelihood import measure
from finetune.trainer.material import Preparation


@dataclass(frozen=True)
class Validation:
    """Called with the model in evaluation mode; each row has a label token."""

    preparation: Preparation
    """Whose model it is, and in what form rows go through it."""
    rows: Sequence[EncodedRow]
    interruption: Interruption

    @torch.no_grad()
    def __call__(self) -> float:
        """Nats per output token. Raises Interrupted between minibatches."""
        given, settings = self.preparation, self.preparation.settings
        rows = sorted(self.rows, key=lambda row: len(row.ids))
        total = 0.0
        for start in range(0, len(rows), settings.minibatch_size):
            self.interruption.raise_if_requested()
            minibatch = rows[start : start + settings.minibatch_size]
            with given.compute.autocast():
                measured = measure(given.model, minibatch, given.pad_id, packed=settings.packing)
            total += measured.losses.sum().item()
        return total / sum(row.label_tokens for row in rows)
