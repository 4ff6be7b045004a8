"""Learn from what was rejected too: DPO from pairs, KTO from single verdicts.

Both move the model away from a reference, which is the model that the training starts from:
its likelihoods are measured once, before the first step, so that no second model is needed. DPO
is equation 7 of Rafailov et al. (2023, arXiv 2305.18290); KTO equations 7 and 8 of
Ethayarajh et al. (2024, arXiv 2402.01306).

DPO by itself only widens margins, and often makes the better answer less likely too. So approved
answers may stand beside the pairs, to be learned as ever: the sum of losses that Pang et al.
(2024, arXiv 2404.19733) found to be crucial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch.nn import functional
from transformers import PreTrainedModel

from finetune.trainer.encoding import EncodedRow
from finetune.trainer.likelihood import measure
from finetune.trainer.models import Compute
from finetune.trainer.objective import Objective

Model = PreTrainedModel | PeftModel


@dataclass(frozen=True)
class Reading:
    """How rows go through the model; as in `likelihood.measure`."""

    pad_id: int
    packed: bool = False

    def log_likelihoods(self, model: Model, rows: Sequence[EncodedRow]) -> torch.Tensor:
        """Log-likelihood of each row's whole answer, in nats; fp32, shape (n_rows,)."""
        measured = measure(model, rows, self.pad_id, packed=self.packed)
        sums = measured.losses.new_zeros(len(rows))
        return -sums.index_add(0, measured.rows, measured.losses)

    def losses(self, model: Model, rows: Sequence[EncodedRow]) -> torch.Tensor:
        """Each row's mean over its output tokens, in nats a token; fp32, shape (n_rows,)."""
        likelihoods = self.log_likelihoods(model, rows)
        return -likelihoods / likelihoods.new_tensor([row.label_tokens for row in rows])


@dataclass(frozen=True)
class EncodedPair:
    """Two answers to one prompt, each with a label token; the first is preferred."""

    chosen: EncodedRow
    rejected: EncodedRow


@dataclass(frozen=True)
class EncodedVerdict:
    """An answer, whether it is good, and the same prompt with the answer to another one."""

    row: EncodedRow
    approved: bool
    mismatched: EncodedRow


class PairObjective:
    """DPO: the mean over pairs of -log sigmoid(beta (chosen's gain - rejected's gain)).

    A gain is by how many nats the whole answer became likelier than the reference finds it.
    """

    def __init__(
        self,
        pairs: Sequence[EncodedPair],
        reference: Sequence[float],
        reading: Reading,
        *,
        beta: float,
    ) -> None:
        """``reference``: log-likelihoods of all chosen answers, then of all rejected ones."""
        self._pairs, self._reading, self._beta = pairs, reading, beta
        margins = zip(reference[: len(pairs)], reference[len(pairs) :], strict=True)
        self._reference_margins = [chosen - rejected for chosen, rejected in margins]
        self._lengths = tuple(len(pair.chosen.ids) + len(pair.rejected.ids) for pair in pairs)

    @property
    def lengths(self) -> Sequence[int]:
        """See Objective."""
        return self._lengths

    def trained_tokens(self, examples: Sequence[int]) -> int:
        """See Objective."""
        pairs = [self._pairs[index] for index in examples]
        return sum(pair.chosen.label_tokens + pair.rejected.label_tokens for pair in pairs)

    def weight(self, examples: Sequence[int]) -> int:
        """See Objective."""
        return len(examples)

    def loss(self, model: Model, examples: Sequence[int]) -> torch.Tensor:
        """See Objective."""
        pairs = [self._pairs[index] for index in examples]
        rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        chosen, rejected = self._reading.log_likelihoods(model, rows).chunk(2)
        margins = [self._reference_margins[index] for index in examples]
        gained = chosen - rejected - chosen.new_tensor(margins)
        return -functional.logsigmoid(self._beta * gained).sum()


class PairsAndAnswersObjective:
    """The mean over pairs of DPO's loss, and over answers of their nats a token, all as one.

    Examples are the pairs, then the answers. Each weighs the same, however long.
    """

    def __init__(self, pairs: Objective, answers: Sequence[EncodedRow], reading: Reading) -> None:
        """Each answer has a label token."""
        self._pairs, self._answers, self._reading = pairs, answers, reading
        self._n_pairs = len(pairs.lengths)
        self._lengths = (*pairs.lengths, *(len(row.ids) for row in answers))

    @property
    def lengths(self) -> Sequence[int]:
        """See Objective."""
        return self._lengths

    def trained_tokens(self, examples: Sequence[int]) -> int:
        """See Objective."""
        pairs, answers = self._parted(examples)
        return self._pairs.trained_tokens(pairs) + sum(row.label_tokens for row in answers)

    def weight(self, examples: Sequence[int]) -> int:
        """See Objective."""
        return len(examples)

    def loss(self, model: Model, examples: Sequence[int]) -> torch.Tensor:
        """See Objective."""
        pairs, answers = self._parted(examples)
        losses = []
        if pairs:
            losses.append(self._pairs.loss(model, pairs))
        if answers:
            losses.append(self._reading.losses(model, answers).sum())
        return torch.stack(losses).sum()

    def _parted(self, examples: Sequence[int]) -> tuple[Sequence[int], Sequence[EncodedRow]]:
        pairs = [index for index in examples if index < self._n_pairs]
        answers = [
            self._answers[index - self._n_pairs] for index in examples if index >= self._n_pairs
        ]
        return pairs, answers


class VerdictObjective:
    """KTO: the mean over answers of 1 - sigmoid(beta (gain - z)) for good ones, and of
    1 - sigmoid(beta (z - gain)) for bad ones.

    A gain is as in PairObjective; z, at least 0, is the mean gain of the minibatch's
    mismatched answers, and has no gradient: how far the model has moved for no reason.
    """

    def __init__(
        self,
        verdicts: Sequence[EncodedVerdict],
        reference: Sequence[float],
        reading: Reading,
        *,
        beta: float,
        approved_weight: float,
        rejected_weight: float,
    ) -> None:
        """``reference``: log-likelihoods of all answers, then of all mismatched ones."""
        self._verdicts, self._reading, self._beta = verdicts, reading, beta
        self._weights = {True: approved_weight, False: rejected_weight}
        self._reference = reference[: len(verdicts)]
        self._mismatched_reference = reference[len(verdicts) :]
        self._lengths = tuple(len(one.row.ids) + len(one.mismatched.ids) for one in verdicts)

    @property
    def lengths(self) -> Sequence[int]:
        """See Objective."""
        return self._lengths

    def trained_tokens(self, examples: Sequence[int]) -> int:
        """See Objective."""
        return sum(self._verdicts[index].row.label_tokens for index in examples)

    def weight(self, examples: Sequence[int]) -> int:
        """See Objective."""
        return len(examples)

    def loss(self, model: Model, examples: Sequence[int]) -> torch.Tensor:
        """See Objective."""
        verdicts = [self._verdicts[index] for index in examples]
        with torch.no_grad():
            mismatched = self._reading.log_likelihoods(model, [one.mismatched for one in verdicts])
        moved = mismatched - mismatched.new_tensor(
            [self._mismatched_reference[index] for index in examples]
        )
        drift = moved.mean().clamp(min=0)
        likelihoods = self._reading.log_likelihoods(model, [one.row for one in verdicts])
        gains = likelihoods - likelihoods.new_tensor([self._reference[index] for index in examples])
        signs = gains.new_tensor([1.0 if one.approved else -1.0 for one in verdicts])
        weights = gains.new_tensor([self._weights[one.approved] for one in verdicts])
        return (weights * (1 - torch.sigmoid(self._beta * signs * (gains - drift)))).sum()


@torch.no_grad()
def reference_likelihoods(
    model: Model,
    rows: Sequence[EncodedRow],
    reading: Reading,
    minibatch_size: int,
    compute: Compute,
) -> Sequence[float]:
    """The log-likelihoods of any number of rows by the model as it is now, in their order."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    found = [0.0] * len(rows)
    for start in range(0, len(order), minibatch_size):
        chosen = order[start : start + minibatch_size]
        with compute.autocast():
            likelihoods = reading.log_likelihoods(model, [rows[index] for index in chosen])
        for index, likelihood in zip(chosen, likelihoods.tolist(), strict=True):
            found[index] = likelihood
    return found
