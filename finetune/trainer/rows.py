"""Read a dataset file: one conversation a line, the last turn is the output.

Knows nothing of tokens. Every complaint names file and line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune.trainer.errors import RequestFailed


@dataclass(frozen=True)
class Turn:
    """What one role said."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """A prompt of at least one turn, and the output to learn or to score."""

    line: int
    prompt: tuple[Turn, ...]
    output: str


class _Turn(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    role: str
    content: str


class _Line(BaseModel):
    """Either messages, or prompt and completion; other keys are not ours."""

    model_config = ConfigDict(strict=True, extra="ignore")

    messages: list[_Turn] | None = None
    prompt: str | None = None
    completion: str | None = None


def read_rows(path: str) -> tuple[Row, ...]:
    """All rows of a JSONL file, in file order; blank lines are passed over.

    Raises RequestFailed (bad_dataset) for a file that cannot be read and for
    the first line that is no row.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RequestFailed("bad_dataset", f"{path}: cannot be read: {error.strerror}") from error
    return tuple(
        _read_row(path, number, line)
        for number, line in enumerate(content.split(b"\n"), start=1)
        if line.strip()
    )


def _read_row(path: str, number: int, line: bytes) -> Row:
    try:
        parsed = _Line.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        complaint = f"{where}: {first['msg']}" if where else first["msg"]
        raise _no_row(path, number, complaint) from error
    if parsed.messages is None:
        if parsed.prompt is None or parsed.completion is None:
            raise _no_row(path, number, "neither messages, nor prompt and completion")
        return Row(number, (Turn("user", parsed.prompt),), parsed.completion)
    turns = tuple(Turn(said.role, said.content) for said in parsed.messages)
    if not turns or turns[-1].role != "assistant":
        raise _no_row(path, number, "the last message must be the assistant's output")
    if len(turns) == 1:
        raise _no_row(path, number, "no message before the assistant's output")
    return Row(number, turns[:-1], turns[-1].content)


def _no_row(path: str, number: int, complaint: str) -> RequestFailed:
    return RequestFailed("bad_dataset", f"{path}, line {number}: {complaint}")
