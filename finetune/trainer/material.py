"""What a training learns from: its file, encoded, as the objective that its settings name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.trainer.encoding import EncodedRow, Encoder, encode_or_skip
from finetune.trainer.errors import RequestFailed
from finetune.trainer.models import Compute
from finetune.trainer.objective import Objective, SupervisedObjective
from finetune.trainer.preference_rows import JudgedRow, Pair, read_judged, read_pairs
from finetune.trainer.preferences import (
    EncodedPair,
    EncodedVerdict,
    Model,
    PairObjective,
    PairsAndAnswersObjective,
    Reading,
    VerdictObjective,
    reference_likelihoods,
)
from finetune.trainer.protocol import ObjectiveName, SkippedRow, TrainingSettings
from finetune.trainer.rows import Row, read_rows


@dataclass(frozen=True)
class Supervised:
    """Answers that are to be learned."""

    rows: Sequence[Row]


@dataclass(frozen=True)
class Preferences:
    """Better and worse answers to one prompt, and answers that are to be learned beside them."""

    pairs: Sequence[Pair]
    answers: Sequence[Row]


@dataclass(frozen=True)
class Verdicts:
    """Answers that were found good or bad."""

    judged: Sequence[JudgedRow]


Source = Supervised | Preferences | Verdicts


def read_source(file: str, objective: ObjectiveName) -> Source:
    """What is in a file, by the objective. Raises RequestFailed (bad_dataset)."""
    match objective:
        case "sft":
            return Supervised(read_rows(file))
        case "dpo":
            return Preferences(*read_pairs(file))
        case "kto":
            return Verdicts(read_judged(file))


@dataclass(frozen=True)
class Material:
    """The objective over the file's examples, and the rows in it for the statistics."""

    objective: Objective
    rows: Sequence[EncodedRow]
    """Every row that is learned from; a pair has two."""
    skipped: Sequence[SkippedRow]
    n_read: int
    """Rows of the file, skipped ones included."""


@dataclass(frozen=True)
class Preparation:
    """What encoding and measuring need. The model has its starting weights."""

    model: Model
    encoder: Encoder
    pad_id: int
    settings: TrainingSettings
    compute: Compute

    def of(self, source: Source) -> Material:
        """Raises RequestFailed (bad_dataset)."""
        match source:
            case Supervised(rows):
                return self._supervised(rows)
            case Preferences(pairs, answers):
                return self._pairs(pairs, answers)
            case Verdicts(judged):
                return self._verdicts(judged)

    def rows(self, rows: Sequence[Row]) -> tuple[Sequence[EncodedRow], Sequence[SkippedRow]]:
        """Those to learn from, and those from which nothing can be learned."""
        encoded: list[EncodedRow] = []
        skipped: list[SkippedRow] = []
        for row in rows:
            one = self._encode(row)
            if isinstance(one, SkippedRow):
                skipped.append(one)
            else:
                encoded.append(one)
        return encoded, skipped

    def _supervised(self, rows: Sequence[Row]) -> Material:
        encoded, skipped = self.rows(rows)
        objective = SupervisedObjective(encoded, self.pad_id, packed=self.settings.packing)
        return Material(objective, encoded, skipped, len(rows))

    def _pairs(self, pairs: Sequence[Pair], answers: Sequence[Row]) -> Material:
        encoded: list[EncodedPair] = []
        skipped: list[SkippedRow] = []
        for pair in pairs:
            chosen, rejected = self._encode(pair.chosen), self._encode(pair.rejected)
            # One of them alone is no pair.
            if isinstance(chosen, SkippedRow):
                skipped.append(chosen)
            elif isinstance(rejected, SkippedRow):
                skipped.append(rejected)
            else:
                encoded.append(EncodedPair(chosen, rejected))
        rows = [pair.chosen for pair in encoded] + [pair.rejected for pair in encoded]
        objective: Objective = PairObjective(
            encoded,
            self._reference(rows),
            self._read,
            beta=self.settings.preference_beta,
        )
        learned, more_skipped = self.rows(answers)
        if learned:
            objective = PairsAndAnswersObjective(objective, learned, self._read)
        return Material(
            objective,
            [*rows, *learned],
            [*skipped, *more_skipped],
            len(pairs) + len(answers),
        )

    def _verdicts(self, judged: Sequence[JudgedRow]) -> Material:
        kept: list[tuple[JudgedRow, EncodedRow]] = []
        skipped: list[SkippedRow] = []
        for one in judged:
            encoded = self._encode(one.row)
            if isinstance(encoded, SkippedRow):
                skipped.append(encoded)
            else:
                kept.append((one, encoded))
        if len(kept) == 1:
            raise RequestFailed(
                "bad_dataset", "objective kto needs two answers at least, to mismatch them"
            )
        verdicts = [
            EncodedVerdict(encoded, one.approved, self._mismatched(one.row, kept[index - 1][0].row))
            for index, (one, encoded) in enumerate(kept)
        ]
        rows = [one.row for one in verdicts]
        settings = self.settings
        objective = VerdictObjective(
            verdicts,
            self._reference([*rows, *(one.mismatched for one in verdicts)]),
            self._read,
            beta=settings.preference_beta,
            approved_weight=settings.approved_weight,
            rejected_weight=settings.rejected_weight,
        )
        return Material(objective, rows, skipped, len(judged))

    def _mismatched(self, row: Row, other: Row) -> EncodedRow:
        """The prompt of one with the answer of another; both can be encoded, so this can be."""
        return self.encoder.encode(
            Row(row.line, row.prompt, other.output), self.settings.max_length
        )

    def _encode(self, row: Row) -> EncodedRow | SkippedRow:
        return encode_or_skip(self.encoder, row, self.settings.max_length)

    @property
    def _read(self) -> Reading:
        return Reading(self.pad_id, packed=self.settings.packing)

    def _reference(self, rows: Sequence[EncodedRow]) -> Sequence[float]:
        return reference_likelihoods(
            self.model, rows, self._read, self.settings.minibatch_size, self.compute
        )
