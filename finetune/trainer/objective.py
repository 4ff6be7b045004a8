"""What a training minimises: how a loss comes from a minibatch.

The loop asks only this Protocol, so that another method is another objective
and no other loop. It knows nothing of steps, optimizers and checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from finetune.trainer.encoding import EncodedRow
from finetune.trainer.likelihood import measure


class Objective(Protocol):
    """The examples of a training, by index, and the loss that is made from them.

    An example is what is shuffled, counted and learned from as one: a row, or
    a pair of rows. The same examples give the same loss in every process, but
    for dropout; what has to be known of the starting model (a reference's
    likelihoods) is found out when the objective is made.
    """

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens that the model reads for each example, each at least 1."""
        ...

    def trained_tokens(self, examples: Sequence[int]) -> int:
        """Output tokens that the loss of these examples is made from."""
        ...

    def weight(self, examples: Sequence[int]) -> int:
        """What the examples count in a step's mean: tokens, or examples. At least 1.

        A step's loss is the sum of its minibatches' losses over the weight of all
        its examples.
        """
        ...

    def loss(self, model: PreTrainedModel | PeftModel, examples: Sequence[int]) -> torch.Tensor:
        """The summed (not mean) loss of one minibatch: an fp32 scalar with its gradient.

        Called under autocast, with the model in training mode.
        """
        ...


class SupervisedObjective:
    """Nats of the output tokens: each weighs the same, whichever row it is in."""

    def __init__(self, rows: Sequence[EncodedRow], pad_id: int, *, packed: bool) -> None:
        """Each row has a label token. ``packed`` as in `likelihood.measure`."""
        self._rows, self._pad_id, self._packed = rows, pad_id, packed
        self._lengths = tuple(len(row.ids) for row in rows)

    @property
    def lengths(self) -> Sequence[int]:
        """See Objective."""
        return self._lengths

    def trained_tokens(self, examples: Sequence[int]) -> int:
        """See Objective."""
        return sum(self._rows[index].label_tokens for index in examples)

    def weight(self, examples: Sequence[int]) -> int:
        """See Objective."""
        return self.trained_tokens(examples)

    def loss(self, model: PreTrainedModel | PeftModel, examples: Sequence[int]) -> torch.Tensor:
        """See Objective."""
        rows = [self._rows[index] for index in examples]
        return measure(model, rows, self._pad_id, packed=self._packed).losses.sum()
