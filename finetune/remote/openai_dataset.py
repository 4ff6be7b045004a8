"""A run's rows as OpenAI's fine-tuning takes them, checked before anything is uploaded.

What the service would refuse after an upload and a wait is refused here at once, with the line
it stands on. For method supervised the file goes as it is; for dpo its pairs are reworded.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from finetune.remote.openai_settings import OpenAITraining
from learning.errors import LearningError

ROLES: Final = ("system", "user", "assistant")
BYTES_PER_TOKEN: Final = 4


class RowsRefusedError(LearningError):
    """A file breaks a rule of the format, so that the service would refuse it."""

    def __init__(self, file: str, fault: str) -> None:
        super().__init__(f"{file}: {fault}")
        self.file, self.fault = file, fault


@dataclass(frozen=True)
class Upload:
    """One file as it goes to the service."""

    content: bytes
    n_rows: int
    n_left_out: int
    """Rows that the method does not take: under dpo those that are no pair."""

    @property
    def sha256(self) -> str:
        """Of the content, in hex."""
        return hashlib.sha256(self.content).hexdigest()


def training_upload(file: Path, settings: OpenAITraining) -> Upload:
    """The rows to train on. Raises RowsRefusedError. Blocks."""
    upload = _upload(file, settings)
    if upload.n_rows < settings.min_examples:
        kind = "pairs" if settings.objective == "dpo" else "examples"
        raise RowsRefusedError(
            file.name,
            f"it has {upload.n_rows} {kind}, and the service wants {settings.min_examples} at least"
            " (training.min_examples): gather larger batches",
        )
    return upload


def validation_upload(file: Path | None, settings: OpenAITraining) -> Upload | None:
    """The rows to watch the loss on; None when there are none that the method takes.

    Raises RowsRefusedError. Blocks.
    """
    if file is None:
        return None
    upload = _upload(file, settings)
    return upload if upload.n_rows else None


def _upload(file: Path, settings: OpenAITraining) -> Upload:
    try:
        n_bytes = file.stat().st_size
        if n_bytes > settings.max_file_mib << 20:
            raise RowsRefusedError(
                file.name,
                f"it has {n_bytes} bytes, more than {settings.max_file_mib} MiB"
                " (training.max_file_mib)",
            )
        content = file.read_bytes()
    except OSError as error:
        raise RowsRefusedError(file.name, f"it cannot be read: {error.strerror}") from error
    lines = content.splitlines()
    rows = [_row(file.name, number, line) for number, line in enumerate(lines, 1)]
    if settings.objective == "sft":
        for number, (row, line) in enumerate(zip(rows, lines, strict=True), 1):
            _require(file.name, number, _fault_of_conversation(row), len(line), settings)
        return Upload(content, len(rows), 0)
    pairs = []
    for number, (row, line) in enumerate(zip(rows, lines, strict=True), 1):
        if "chosen" in row:
            _require(file.name, number, _fault_of_pair(row), len(line), settings)
            pairs.append(_preference(row))
    written = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
    return Upload(written.encode(), len(pairs), len(rows) - len(pairs))


def _row(file: str, number: int, line: bytes) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise RowsRefusedError(file, f"line {number} is no JSON object")
    return row


def _require(
    file: str, number: int, fault: str | None, n_bytes: int, settings: OpenAITraining
) -> None:
    n_tokens = n_bytes // BYTES_PER_TOKEN
    if fault is None and n_tokens > settings.max_example_tokens:
        fault = (
            f"some {n_tokens} tokens, more than {settings.max_example_tokens}"
            " (training.max_example_tokens)"
        )
    if fault is not None:
        raise RowsRefusedError(file, f"line {number}: {fault}")


def _fault_of_conversation(row: Mapping[str, Any]) -> str | None:
    if "label" in row or "chosen" in row:
        return "it says what is good and what is bad, which the method supervised cannot learn from"
    messages = row.get("messages")
    if set(row) != {"messages"} or not isinstance(messages, list) or len(messages) < 2:
        return "a row is `messages`: a prompt, and the answer last"
    if (fault := _fault_of_messages(messages)) is not None:
        return fault
    return None if messages[-1]["role"] == "assistant" else "the answer must be last"


def _fault_of_pair(row: Mapping[str, Any]) -> str | None:
    prompt, answers = row.get("prompt"), (row.get("chosen"), row.get("rejected"))
    if not isinstance(prompt, list) or not prompt:
        return "a pair has a `prompt` of messages"
    if not all(isinstance(answer, str) and answer.strip() for answer in answers):
        return "`chosen` and `rejected` are texts, and not empty"
    return _fault_of_messages(prompt)


def _fault_of_messages(messages: Sequence[Any]) -> str | None:
    for message in messages:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            return "a message is a `role` and a `content`"
        if message["role"] not in ROLES:
            return f"the role {message['role']!r} is none of {', '.join(ROLES)}"
        if not isinstance(message["content"], str) or not message["content"].strip():
            return f"a message of the {message['role']} has no text"
    return None


def _preference(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        "input": {"messages": row["prompt"]},
        "preferred_output": [{"role": "assistant", "content": row["chosen"]}],
        "non_preferred_output": [{"role": "assistant", "content": row["rejected"]}],
    }
