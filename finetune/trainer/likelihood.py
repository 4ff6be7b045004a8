"""How probable a model finds the outputs of a minibatch: shared by training and evaluation.

The minibatch is padded on the right, or packed (finetune/trainer/packing.py).
Logits are asked for only where a token is learned or scored: with a large
vocabulary they are most of the memory, and a good part of the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch.nn import functional
from transformers import PreTrainedModel

from finetune.trainer.encoding import EncodedRow
from finetune.trainer.models import label_window
from finetune.trainer.packing import PackedRows, attention_arguments


@dataclass(frozen=True)
class Likelihood:
    """One value per output token of all rows, row after row."""

    losses: torch.Tensor
    """Negative log likelihood in nats, fp32, shape (n_tokens,)."""
    rows: torch.Tensor
    """Index of the token's row, shape (n_tokens,)."""
    logits: torch.Tensor
    """That the tokens were predicted from, fp32, shape (n_tokens, vocabulary)."""
    targets: torch.Tensor
    """The tokens' ids, shape (n_tokens,)."""

    def right(self) -> torch.Tensor:
        """Whether each token is the most probable one, shape (n_tokens,)."""
        return self.logits.detach().argmax(dim=-1) == self.targets


def measure(
    model: PreTrainedModel | PeftModel,
    rows: Sequence[EncodedRow],
    pad_id: int,
    *,
    packed: bool = False,
) -> Likelihood:
    """One forward pass over the rows, each of which has a label token.

    ``packed`` is for a model that `packing.packs` has tried.
    """
    return _measure_packed(model, rows) if packed else _measure_padded(model, rows, pad_id)


def _measure_padded(
    model: PreTrainedModel | PeftModel, rows: Sequence[EncodedRow], pad_id: int
) -> Likelihood:
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
    window = label_window(model, width, min(row.first_label for row in rows))
    kept = {"logits_to_keep": window} if window < width else {}
    logits = model(input_ids=ids, attention_mask=attended, use_cache=False, **kept).logits
    # Logits at one position predict the id at the next one.
    targets, wanted = ids[:, -window:][:, 1:], labelled[:, -window:][:, 1:]
    return _likelihood(logits[:, :-1][wanted], targets[wanted], wanted.nonzero()[:, 0])


def _measure_packed(model: PreTrainedModel | PeftModel, rows: Sequence[EncodedRow]) -> Likelihood:
    device = next(model.parameters()).device
    packed = PackedRows.of([len(row.ids) for row in rows])
    ids = torch.tensor([token for row in rows for token in row.ids])
    labels = torch.cat(
        [
            torch.arange(start + row.first_label, start + len(row.ids))
            for start, row in zip(packed.starts, rows, strict=False)
        ]
    )
    owners = torch.repeat_interleave(
        torch.arange(len(rows)), torch.tensor([row.label_tokens for row in rows])
    )
    logits = model(
        input_ids=ids[None].to(device),
        position_ids=packed.positions()[None].to(device),
        use_cache=False,
        logits_to_keep=(labels - 1).to(device),
        **attention_arguments(model, packed),
    ).logits[0]
    return _likelihood(logits, ids[labels].to(device), owners.to(device))


def _likelihood(logits: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor) -> Likelihood:
    logits = logits.float()
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return Likelihood(losses=losses, rows=rows, logits=logits, targets=targets)
