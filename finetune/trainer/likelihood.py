"""How probable a model finds the outputs of a minibatch: shared by training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch.nn import functional
from transformers import PreTrainedModel

from finetune.trainer.encoding import EncodedRow
from finetune.trainer.models import label_window


@dataclass(frozen=True)
class Likelihood:
    """One value per output token of all rows, row after row."""

    losses: torch.Tensor
    """Negative log likelihood in nats, fp32, shape (n_tokens,)."""
    right: torch.Tensor
    """Whether the token is the most probable one, shape (n_tokens,)."""
    rows: torch.Tensor
    """Index of the token's row, shape (n_tokens,)."""


def measure(
    model: PreTrainedModel | PeftModel, rows: Sequence[EncodedRow], pad_id: int
) -> Likelihood:
    """One forward pass over rows padded on the right. Each row has a label token."""
    width = max(len(row.ids) for row in rows)
    device = next(model.parameters()).device
    ids = torch.full((len(rows), width), pad_id)
    attended = torch.zeros((len(rows), width), dtype=torch.long)
    labelled = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        attended[index, : len(row.ids)] = 1
        labelled[index, row.first_label : len(row.ids)] = True
    ids, attended, labelled = ids.to(device), attended.to(device), labelled.to(device)
    # With a large vocabulary the logits are most of the memory: none for prompts.
    window = label_window(model, width, min(row.first_label for row in rows))
    kept = {"logits_to_keep": window} if window < width else {}
    logits = model(input_ids=ids, attention_mask=attended, use_cache=False, **kept).logits
    # Logits at one position predict the id at the next one.
    targets, wanted = ids[:, -window:][:, 1:], labelled[:, -window:][:, 1:]
    chosen = logits[:, :-1][wanted].float()  # (n_tokens, vocabulary)
    return Likelihood(
        losses=functional.cross_entropy(chosen, targets[wanted], reduction="none"),
        right=chosen.detach().argmax(dim=-1) == targets[wanted],
        rows=wanted.nonzero()[:, 0],
    )
