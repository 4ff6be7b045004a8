"""Make the dataset of a batch training from files that a person brings.

Reads chat messages, prompt and completion, or preferences, a line each; finds what cannot
train; splits what has no validation file of its own; writes the same folder as a run of the
daemon has (finetune/datasets/chat.py). The same files and seed make the same bytes.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune.datasets.chat import (
    DatasetError,
    Record,
    conversation_of,
    write_files,
)
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


class _Turn(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    role: str
    content: str


_Text = str | list[_Turn]


class _Line(BaseModel):
    """Keys that are not named here are not ours."""

    model_config = ConfigDict(strict=True, extra="ignore")

    messages: list[_Turn] | None = None
    prompt: _Text | None = None
    completion: _Text | None = None
    chosen: _Text | None = None
    rejected: _Text | None = None
    label: bool | None = None


def _read(
    path: Path, system_prompt: str | None, objective: ObjectiveName
) -> tuple[Sequence[_Row], Sequence[Fault]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from error
    rows: list[_Row] = []
    faults: list[Fault] = []
    for number, text in enumerate(content.split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            line = _Line.model_validate_json(text)
            record = _record(line)
            _require_fit(record, objective)
        except ValidationError as error:
            faults.append(Fault(path.name, number, _complaint(error)))
        except ValueError as error:
            faults.append(Fault(path.name, number, str(error)))
        else:
            key = key_of_prompt(said["content"] for said in conversation_of(record)[:-1])
            rows.append(_Row(number, key, _prompted(record, system_prompt)))
    return rows, faults


def _record(line: _Line) -> Record:
    """The line as it is trained on. Raises ValueError saying what is missing."""
    if line.chosen is not None and line.rejected is not None and line.prompt is not None:
        prompt = _turns(line.prompt, "user")
        return {"prompt": prompt, "chosen": _one(line.chosen), "rejected": _one(line.rejected)}
    if line.messages is not None:
        messages = _turns(line.messages, "user")
    elif line.prompt is not None and line.completion is not None:
        answer = {"role": "assistant", "content": _one(line.completion)}
        messages = [*_turns(line.prompt, "user"), answer]
    else:
        raise ValueError("neither messages, nor prompt and completion, nor a pair")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise ValueError("the last of at least two messages must be the assistant's")
    if not messages[-1]["content"].strip():
        raise ValueError("the answer is empty")
    return {"messages": messages, **({} if line.label is None else {"label": line.label})}


def _require_fit(record: Record, objective: ObjectiveName) -> None:
    """Raise ValueError when nothing can be learned from it that way."""
    kind = "pair" if "chosen" in record else "verdict" if "label" in record else "answer"
    if kind in _FITTING[objective]:
        return
    needed = {
        "sft": "answers; set training.objective to kto or dpo to learn from preferences",
        "dpo": "prompt, chosen and rejected",
        "kto": "a label, true or false, or prompt, chosen and rejected",
    }
    raise ValueError(f"objective {objective} needs {needed[objective]}")


_FITTING: Final[Mapping[ObjectiveName, frozenset[str]]] = {
    "sft": frozenset({"answer"}),
    "dpo": frozenset({"pair"}),
    "kto": frozenset({"pair", "verdict"}),
}


def _turns(text: _Text, role: str) -> list[Mapping[str, str]]:
    if isinstance(text, str):
        return [{"role": role, "content": text}]
    return [{"role": turn.role, "content": turn.content} for turn in text]


def _one(text: _Text) -> str:
    """Raises ValueError."""
    turns = _turns(text, "assistant")
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise ValueError("an answer is one message of the assistant's")
    if not turns[0]["content"].strip():
        raise ValueError("the answer is empty")
    return turns[0]["content"]


def _complaint(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, fault["loc"]))
    return f"{place}: {fault['msg']}" if place else str(fault["msg"])


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
