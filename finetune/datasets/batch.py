"""Make the dataset of a batch training from files that a person brings.

Reads rows of every format that formats.py knows; finds what cannot train; splits what has no
validation file of its own; writes the same folder as a run of the daemon has (chat.py). The
same files and seed make the same bytes.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from finetune.datasets.chat import (
    DatasetError,
    Record,
    conversation_of,
    write_files,
)
from finetune.datasets.flaws import BadRowError, DatasetFileError, Flaw
from finetune.datasets.formats import Example, Format, Kind, example_of, format_of
from finetune.datasets.lines import RowLimits, parsed, raw_rows
from finetune.trainer.protocol import ObjectiveName
from learning.events import key_of_prompt

NAMED_FAULTS: Final = 20
"""So many bad lines are named; the others are counted."""


@dataclass(frozen=True)
class Fault:
    """A line that cannot be used, and why."""

    file: str
    line: int
    reason: str


class BadRowsError(DatasetError):
    """Lines of the dataset cannot be used. `faults` are all of them."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        named = [f"{one.file}, line {one.line}: {one.reason}" for one in faults[:NAMED_FAULTS]]
        more = len(faults) - len(named)
        if more:
            named.append(f"and {more:,} more")
        named.append(
            f"{len(faults):,} of the lines cannot be used: mend them, or leave them out with"
            " --skip-bad-rows"
        )
        super().__init__("\n".join(named))
        self.faults = tuple(faults)


@dataclass(frozen=True)
class BatchDataset:
    """A dataset folder that is ready, and what there is to tell of it."""

    train_file: Path
    validation_file: Path | None
    """None when there is no row to validate on."""
    n_train: int
    n_validation: int
    n_repeated: int
    """Training rows that say the same as one before them."""
    faults: Sequence[Fault]
    """Lines that were left out."""
    sha256: str
    """Of the training file."""


@dataclass(frozen=True)
class Sources:
    """The files, and what is to be done with them."""

    dataset: Path
    validation: Path | None = None
    validation_share: float = 0.2
    """Of the dataset, in [0, 1); only used without a validation file."""
    seed: int = 0
    """Of the split."""
    skip_bad_rows: bool = False
    system_prompt: str | None = None
    """Put before conversations that have none."""
    objective: ObjectiveName = "sft"
    """What the rows of the dataset have to be good for."""


def prepare(folder: Path, sources: Sources) -> BatchDataset:
    """Write the folder, in place of an earlier one. Blocks.

    Rows of one prompt stay on one side of a split, and a prompt of a validation file that is
    trained on is a fault of the training row. Raises BadRowsError with every fault unless bad
    rows are skipped, and DatasetError when a file cannot be read or no training row is left.
    """
    rows, faults = _read(sources.dataset, sources.system_prompt, sources.objective)
    if sources.validation is not None:
        validation, more = _read(sources.validation, sources.system_prompt, "sft")
        train, leaks = _without_leaks(rows, validation, sources)
        faults = [*faults, *more, *leaks]
    else:
        train, validation = _split(rows, sources.validation_share, sources.seed)
        # A bad answer is nothing to become likelier.
        validation = [row for row in validation if row.record.get("label", True)]
    if faults and not sources.skip_bad_rows:
        raise BadRowsError(faults)
    if not train:
        raise DatasetError(f"{sources.dataset}: no row is left to train on")
    n_repeated = len(train) - len({json.dumps(row.record, sort_keys=True) for row in train})
    statistics = {
        "sources": {
            "dataset": str(sources.dataset),
            "validation": None if sources.validation is None else str(sources.validation),
            "validation_share": sources.validation_share,
        },
        "seed": sources.seed,
        "left_out": [vars(fault) for fault in faults],
        "repeated_rows": n_repeated,
    }
    dataset = write_files(
        folder,
        train=[row.record for row in train],
        validation=[{"messages": conversation_of(row.record)} for row in validation],
        metadata=statistics,
    )
    return BatchDataset(
        train_file=dataset.train_file,
        validation_file=dataset.validation_file if validation else None,
        n_train=len(train),
        n_validation=len(validation),
        n_repeated=n_repeated,
        faults=faults,
        sha256=dataset.digests[dataset.train_file.name],
    )


@dataclass(frozen=True)
class _Row:
    line: int
    key: bytes
    """Of the prompt; equal for prompts that differ only in case and white space."""
    record: Record


def _read(
    path: Path, system_prompt: str | None, objective: ObjectiveName
) -> tuple[Sequence[_Row], Sequence[Fault]]:
    rows: list[_Row] = []
    faults: list[Fault] = []
    limits = RowLimits()
    try:
        with path.open("rb") as file:
            for line, raw in raw_rows(file, limits.max_bytes):
                try:
                    example = _example(parsed(raw, limits), objective)
                except BadRowError as error:
                    faults.append(Fault(path.name, line, str(error)))
                else:
                    key = key_of_prompt(said["content"] for said in example.prompt)
                    rows.append(_Row(line, key, _prompted(_record(example), system_prompt)))
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from error
    except DatasetFileError as error:
        raise DatasetError(f"{path}: {error}") from error
    return rows, faults


def _example(row: Mapping[str, Any], objective: ObjectiveName) -> Example:
    """Of whichever format it is. Raises BadRowError, also when it is no use to the objective."""
    example = example_of(row, format_of(row) or Format.PROMPT_COMPLETION)
    if example.kind not in _OF_USE[objective]:
        raise BadRowError(Flaw.OTHER_FORMAT, f"objective {objective} needs {_NEEDED[objective]}")
    return example


_OF_USE: Final[Mapping[ObjectiveName, frozenset[Kind]]] = {
    "sft": frozenset({Kind.SUPERVISED}),
    "dpo": frozenset({Kind.PREFERENCE}),
    "kto": frozenset({Kind.PREFERENCE, Kind.LABELLED}),
}
_NEEDED: Final[Mapping[ObjectiveName, str]] = {
    "sft": "answers; set training.objective to kto or dpo to learn from preferences",
    "dpo": "prompt, chosen and rejected",
    "kto": "a label, true or false, or prompt, chosen and rejected",
}


def _record(example: Example) -> Record:
    """The line that the trainer reads."""
    match example.kind:
        case Kind.SUPERVISED:
            return {"messages": example.messages}
        case Kind.LABELLED:
            return {"messages": example.messages, "label": example.label}
        case Kind.PREFERENCE:
            return {
                "prompt": list(example.prompt),
                "chosen": example.answer,
                "rejected": example.rejected,
            }


def _prompted(record: Record, system_prompt: str | None) -> Record:
    name = "prompt" if "prompt" in record else "messages"
    if system_prompt is None or any(said["role"] == "system" for said in record[name]):
        return record
    return {**record, name: [{"role": "system", "content": system_prompt}, *record[name]]}


def _without_leaks(
    rows: Sequence[_Row], validation: Sequence[_Row], sources: Sources
) -> tuple[Sequence[_Row], Sequence[Fault]]:
    lines: Mapping[bytes, int] = {row.key: row.line for row in validation}
    leaks = [
        Fault(
            sources.dataset.name,
            row.line,
            f"its prompt is that of line {lines[row.key]} of the validation file",
        )
        for row in rows
        if row.key in lines
    ]
    return [row for row in rows if row.key not in lines], leaks


def _split(rows: Sequence[_Row], share: float, seed: int) -> tuple[Sequence[_Row], Sequence[_Row]]:
    """Whole prompts, in an order that the seed and their text decide, until the share is full.

    One prompt always stays to train on.
    """
    sizes: dict[bytes, int] = {}
    for row in rows:
        sizes[row.key] = sizes.get(row.key, 0) + 1
    order = sorted(sizes, key=lambda key: hashlib.sha256(f"{seed}/".encode() + key).digest())
    wanted = math.ceil(len(rows) * share)
    chosen: set[bytes] = set()
    taken = 0
    for key in order[:-1]:
        if taken >= wanted:
            break
        chosen.add(key)
        taken += sizes[key]
    return (
        [row for row in rows if row.key not in chosen],
        [row for row in rows if row.key in chosen],
    )


def statistics_of(dataset: BatchDataset) -> Mapping[str, Any]:
    """What a report says of it."""
    return {
        "training rows": dataset.n_train,
        "validation rows": dataset.n_validation,
        "repeated training rows": dataset.n_repeated,
        "lines left out": len(dataset.faults),
    }
