"""The mean loss on rows that are not trained on, while a training goes on.

For the curve alone: nothing is chosen or stopped by it. It leaves no trace in the weights,
and takes no random number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from finetune.trainer.encoding import EncodedRow
from finetune.trainer.interruption import Interruption
from finetune.trainer.likelihood import measure
from finetune.trainer.models import Compute


@dataclass(frozen=True)
class Validation:
    """Called with the model in evaluation mode; each row has a label token."""

    model: PreTrainedModel | PeftModel
    rows: Sequence[EncodedRow]
    pad_id: int
    minibatch_size: int
    compute: Compute
    interruption: Interruption

    @torch.no_grad()
    def __call__(self) -> float:
        """Nats per output token. Raises Interrupted between minibatches."""
        rows = sorted(self.rows, key=lambda row: len(row.ids))
        total = 0.0
        for start in range(0, len(rows), self.minibatch_size):
            self.interruption.raise_if_requested()
            minibatch = rows[start : start + self.minibatch_size]
            with self.compute.autocast():
                total += measure(self.model, minibatch, self.pad_id).losses.sum().item()
        return total / sum(row.label_tokens for row in rows)
