"""Score models on held-out examples, without generating.

One teacher-forced pass over each example tells both how probable the right
output is and whether greedy decoding would have written it. It compares
nothing: the gate does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from finetune.trainer.bases import Bases
from finetune.trainer.encoding import EncodedRow, Encoder
from finetune.trainer.interruption import Interruption
from finetune.trainer.likelihood import measure
from finetune.trainer.models import choose_compute, load_adapter, max_positions
from finetune.trainer.protocol import (
    EvaluateProgress,
    EvaluateRequest,
    EvaluateResult,
    ExampleScore,
    ModelScores,
    finite_or_none,
)
from finetune.trainer.reporting import Reporter
from finetune.trainer.rows import read_rows

_NO_TOKEN = ExampleScore(loss=None, match=False, tokens=0)

Adapters = Mapping[str, str | None]
"""Model name to adapter directory; None is the base itself."""


def evaluate(
    request: EvaluateRequest, reporter: Reporter, interruption: Interruption, bases: Bases
) -> EvaluateResult:
    """Scores of each model on each example, in file order.

    Raises RequestFailed, and Interrupted between minibatches when it should stop.
    """
    started = time.monotonic()
    rows = read_rows(request.examples_file)
    compute = choose_compute(request.precision, next(iter(request.models.values())).base_model)
    scores: dict[str, ModelScores] = {}
    truncated_lines: set[int] = set()
    for base_model, adapters in _by_base(request).items():
        tokenizer = bases.tokenizer(base_model)
        encoder = Encoder(tokenizer)
        base = bases.lend(
            base_model,
            compute.dtype,
            compute.device,
            reporter.note,
            quantization=request.quantization,
        )
        max_length = min(request.max_length, max_positions(base) or request.max_length)
        encoded = [encoder.encode(row, max_length) for row in rows]
        truncated_lines.update(row.line for row in encoded if row.output_truncated)
        for name, model in _adapted(base, adapters):
            scoring = _Scoring(name, model, tokenizer.pad_token_id or 0, reporter, interruption)
            with interruption.deferred():
                scores[name] = scoring.score(encoded, request.minibatch_size)
    return EvaluateResult(
        models={name: scores[name] for name in request.models},
        rows_truncated=len(truncated_lines),
        seconds=time.monotonic() - started,
        device=str(compute.device),
        precision=compute.arithmetic,
    )


def _by_base(request: EvaluateRequest) -> dict[str, dict[str, str | None]]:
    """Models that share a base, so that it is loaded once."""
    grouped: dict[str, dict[str, str | None]] = {}
    for name, ref in request.models.items():
        grouped.setdefault(ref.base_model, {})[name] = ref.adapter
    return grouped


def _adapted(
    base: PreTrainedModel, adapters: Adapters
) -> Iterator[tuple[str, PreTrainedModel | PeftModel]]:
    """One base in turn with each of the adapters; use each before asking for the next."""
    for name, adapter in adapters.items():
        if adapter is None:
            yield name, base
            continue
        adapted = load_adapter(base, adapter, trainable=False).eval()
        yield name, adapted
        base = adapted.unload()


class _Scoring:
    """One model's way through the examples."""

    def __init__(
        self,
        name: str,
        model: PreTrainedModel | PeftModel,
        pad_id: int,
        reporter: Reporter,
        interruption: Interruption,
    ) -> None:
        self._name, self._model, self._pad_id = name, model, pad_id
        self._reporter, self._interruption = reporter, interruption

    def score(self, rows: Sequence[EncodedRow], minibatch_size: int) -> ModelScores:
        """Scores in the order of ``rows``; the work goes by length, so as to pad little."""
        scores = [_NO_TOKEN] * len(rows)
        order = [index for index, row in enumerate(rows) if row.label_tokens]
        order.sort(key=lambda index: len(rows[index].ids))
        for start in range(0, len(order), minibatch_size):
            self._interruption.raise_if_requested()
            chosen = order[start : start + minibatch_size]
            minibatch = [rows[index] for index in chosen]
            for index, score in zip(chosen, self._score_minibatch(minibatch), strict=True):
                scores[index] = score
            self._report(start + len(chosen), len(order))
        return ModelScores(
            examples=tuple(scores),
            all_finite=all(score.loss is not None for score in scores if score.tokens),
        )

    @torch.inference_mode()
    def _score_minibatch(self, rows: Sequence[EncodedRow]) -> list[ExampleScore]:
        likelihood = measure(self._model, rows, self._pad_id)
        sums = torch.zeros(len(rows), dtype=torch.float64)
        sums.index_add_(0, likelihood.rows.cpu(), likelihood.losses.double().cpu())
        wrong = torch.zeros(len(rows), dtype=torch.long)
        wrong.index_add_(0, likelihood.rows.cpu(), (~likelihood.right()).long().cpu())
        return [
            ExampleScore(
                loss=finite_or_none(total / (row.output_bytes + 1)),
                # Every argmax over NaN is the first token, which may be the right one.
                match=errors == 0 and finite_or_none(total) is not None,
                tokens=row.label_tokens,
            )
            for row, total, errors in zip(rows, sums.tolist(), wrong.tolist(), strict=True)
        ]

    def _report(self, done: int, total: int) -> None:
        if self._reporter.progress_is_due(last=done == total):
            self._reporter.say(
                EvaluateProgress(
                    id=self._reporter.request_id, model=self._name, done=done, total=total
                )
            )
