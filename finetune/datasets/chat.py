"""Write the dataset folder of a run: chat JSONL as OpenAI's fine-tuning reads it, with metadata.

    train.jsonl           what the run trains on
    validation.jsonl      the line's held-out examples: never to be trained on
    training_data.jsonl   both, train first: the whole dataset in one file
    metadata.json         statistics, digests, seed and sources

A batch with rejected outputs has them in train.jsonl, in the spellings of TRL: KTO's rows each
have a `label`; DPO's pairs of a `prompt`, `chosen` and `rejected` come after the training rows.
A rejected answer never stands in a row without saying so.

The same rows make the same bytes. The folder appears complete or not at all.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from learning.errors import LearningError
from learning.events import OutputEvent, answer_text, conversation, key_of_prompt, prompt_key
from learning.failpoints import reached
from learning.lifecycle import Role
from learning.lines import ModelLine
from learning.ports import HeldOutRow, PreferenceRow, TrainingRow

FORMAT_VERSION: Final = 1
ALL: Final = "training_data.jsonl"
TRAIN: Final = "train.jsonl"
VALIDATION: Final = "validation.jsonl"
METADATA: Final = "metadata.json"

Messages = Sequence[Mapping[str, str]]

Record = Mapping[str, Any]
"""One line of a file: `messages`, perhaps with a `label`; or a `prompt` of messages with a
`chosen` and a `rejected` answer."""

# JSON lets these stand in a text, but some readers of lines end a line there.
LINE_ENDS: Final = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


class DatasetError(LearningError):
    """The rows of a run do not make a dataset."""

    code = "bad_dataset"


class LeakageError(DatasetError):
    """A prompt of the held-out set is among the training rows."""

    code = "leakage"

    def __init__(self, event_id: int, example_id: int) -> None:
        super().__init__(
            f"event {event_id} would be trained on, and its prompt is that of held-out example"
            f" {example_id}: the figures of this run would mean nothing"
        )
        self.event_id, self.example_id = event_id, example_id


@dataclass(frozen=True)
class Dataset:
    """A complete dataset folder. `digests` are SHA-256 in hex by file name."""

    folder: Path
    digests: Mapping[str, str]

    @property
    def train_file(self) -> Path:
        """What to train on."""
        return self.folder / TRAIN

    @property
    def validation_file(self) -> Path:
        """The held-out examples, in the order in which they were given."""
        return self.folder / VALIDATION

    @property
    def metadata_file(self) -> Path:
        """What is known of the dataset."""
        return self.folder / METADATA


def write_dataset(
    folder: Path,
    *,
    run_id: str,
    batch_id: str,
    seed: int,
    line: ModelLine,
    training: Sequence[TrainingRow],
    preferences: Sequence[PreferenceRow],
    held_out: Sequence[HeldOutRow],
) -> Dataset:
    """Write the dataset of a run, in place of an earlier one in the same folder.

    A task type with a system prompt of the line gets it put first, unless the conversation
    has a system message of its own. Raises LeakageError, naming the row, and DatasetError
    when there is no training row. Blocks.
    """
    if not training:
        raise DatasetError(f"run {run_id} has no training row")
    members = [(row.event_id, row.role, row.task_type, row.event) for row in training] + [
        (row.event_id, Role.PREFERENCE, row.task_type, row.event) for row in preferences
    ]
    _require_no_leakage({event_id: event for event_id, _, _, event in members}, held_out)
    validation = [_prompted(line, row.task_type, row.messages) for row in held_out]
    return write_files(
        folder,
        train=_records(line, training, preferences),
        validation=[{"messages": messages} for messages in validation],
        metadata={
            "run_id": run_id,
            "batch_id": batch_id,
            "line": line.name,
            "seed": seed,
            "system_prompts": dict(line.system_prompts),
            "sources": {
                "events": {
                    role: [event_id for event_id, of_role, _, _ in members if of_role == role]
                    for role in sorted({role for _, role, _, _ in members})
                },
                "pairs": [
                    {"chosen": row.preferred_id, "rejected": row.event_id}
                    for row in preferences
                    if row.preferred_id is not None
                ],
                "held_out_examples": [row.id for row in held_out],
            },
        },
        train_counts={
            "roles": _counts(role for _, role, _, _ in members),
            "task_types": _counts(task_type for _, _, task_type, _ in members),
            "producers": _counts(event.producer for _, _, _, event in members),
        },
        validation_counts={"task_types": _counts(row.task_type for row in held_out)},
    )


def write_files(
    folder: Path,
    *,
    train: Sequence[Record],
    validation: Sequence[Record],
    metadata: Mapping[str, Any],
    train_counts: Mapping[str, Any] = MappingProxyType({}),
    validation_counts: Mapping[str, Any] = MappingProxyType({}),
) -> Dataset:
    """Write a dataset folder of these rows; `metadata.json` also has their numbers and digests.

    In place of an earlier one in the same folder. Blocks.
    """
    contents = {
        TRAIN: _jsonl(train),
        VALIDATION: _jsonl(validation),
        ALL: _jsonl([*train, *validation]),
    }
    complete = {
        **metadata,
        "format_version": FORMAT_VERSION,
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in contents.items()
        },
        "statistics": {
            "train": {"rows": len(train), **train_counts, **_lengths(train)},
            "validation": {"rows": len(validation), **validation_counts, **_lengths(validation)},
        },
    }
    contents[METADATA] = (
        json.dumps(complete, ensure_ascii=False, indent=2, sort_keys=True) + "\n"
    ).encode()
    _replace(folder, contents)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return Dataset(folder, digests)


def write_examples(path: Path, line: ModelLine, rows: Sequence[HeldOutRow]) -> None:
    """Write held-out examples for an evaluation, worded as in the training: one row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [{"messages": _prompted(line, row.task_type, row.messages)} for row in rows]
    path.write_bytes(_jsonl(records))


def _records(
    line: ModelLine, training: Sequence[TrainingRow], preferences: Sequence[PreferenceRow]
) -> Sequence[Record]:
    """The lines to train on: approved answers, then what was rejected."""
    answers = {
        row.event_id: _prompted(line, row.task_type, conversation(row.event)) for row in training
    }
    alone = [row for row in preferences if row.preferred_id is None]
    if alone:
        bad = [_prompted(line, row.task_type, conversation(row.event)) for row in alone]
        return [
            *({"messages": messages, "label": True} for messages in answers.values()),
            *({"messages": messages, "label": False} for messages in bad),
        ]
    pairs = [
        {
            "prompt": answers[row.preferred_id][:-1],
            "chosen": answers[row.preferred_id][-1]["content"],
            "rejected": answer_text(row.event),
        }
        for row in preferences
        if row.preferred_id is not None
    ]
    return [*({"messages": messages} for messages in answers.values()), *pairs]


def _require_no_leakage(learned: Mapping[int, OutputEvent], held_out: Sequence[HeldOutRow]) -> None:
    examples = {
        key_of_prompt(message["content"] for message in row.messages[:-1]): row.id
        for row in held_out
    }
    for event_id, event in learned.items():
        if (example_id := examples.get(prompt_key(event))) is not None:
            raise LeakageError(event_id, example_id)


def _prompted(line: ModelLine, task_type: str, messages: Messages) -> Messages:
    prompt = line.system_prompts.get(task_type)
    if prompt is None or any(message["role"] == "system" for message in messages):
        return messages
    return [{"role": "system", "content": prompt}, *messages]


def _jsonl(records: Iterable[Record]) -> bytes:
    lines = (json.dumps(record, ensure_ascii=False).translate(LINE_ENDS) for record in records)
    return "".join(f"{line}\n" for line in lines).encode()


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(map(str, values)).items()))


def _lengths(records: Sequence[Record]) -> dict[str, Any]:
    """Characters of prompts, system prompts included, and of answers; of a pair the chosen one."""
    rows = [conversation_of(record) for record in records]
    prompts = [sum(len(message["content"]) for message in row[:-1]) for row in rows]
    answers = [len(row[-1]["content"]) for row in rows]
    return {"prompt_characters": _spread(prompts), "answer_characters": _spread(answers)}


def conversation_of(record: Record) -> Messages:
    """The messages of a line, the answer last; of a pair with the chosen one."""
    if "messages" in record:
        messages: Messages = record["messages"]
        return messages
    return [*record["prompt"], {"role": "assistant", "content": record["chosen"]}]


def _spread(lengths: Sequence[int]) -> dict[str, int | float]:
    if not lengths:
        return {}
    mean = round(sum(lengths) / len(lengths), 1)
    return {"sum": sum(lengths), "min": min(lengths), "mean": mean, "max": max(lengths)}


def _replace(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write beside the folder, then rename. A kill in between costs a folder, never half of one.

    One run is worked on by one process, so the names beside it are ours.
    """
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    new.mkdir(parents=True)
    for name, content in contents.items():
        (new / name).write_bytes(content)
    if folder.exists():
        folder.rename(old)
    reached("dataset written")
    new.rename(folder)
    reached("dataset named")
    if old.exists():
        shutil.rmtree(old)
