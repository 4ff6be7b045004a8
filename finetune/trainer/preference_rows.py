"""Read a file of preferences: pairs of a better and a worse answer, or answers with a verdict.

Beside finetune/trainer/rows.py, which reads what is simply to be learned. The spellings are
those of TRL's data sets, with a text or chat messages on each side. Knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune.trainer.errors import RequestFailed
from finetune.trainer.rows import Row, Turn


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt; the first is preferred."""

    chosen: Row
    rejected: Row


@dataclass(frozen=True)
class JudgedRow:
    """An answer, and whether it was found good."""

    row: Row
    approved: bool


class _Turn(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    role: str
    content: str


_Text = str | list[_Turn]


class _Line(BaseModel):
    """Other keys are not ours."""

    model_config = ConfigDict(strict=True, extra="ignore")

    prompt: _Text | None = None
    chosen: _Text | None = None
    rejected: _Text | None = None
    completion: _Text | None = None
    messages: list[_Turn] | None = None
    label: bool | None = None


def read_pairs(path: str) -> tuple[tuple[Pair, ...], tuple[Row, ...]]:
    """All pairs of a JSONL file, and the conversations beside them, which are simply to be learned.

    Raises RequestFailed (bad_dataset), naming the line that is neither.
    """
    pairs, answers = [], []
    for number, line in _lines(path):
        pair = _pair(path, number, line)
        if pair is not None:
            pairs.append(pair)
        elif line.messages is not None and line.label is None:
            answers.append(_answer(path, number, line))
        else:
            raise _no_row(path, number, "objective dpo needs prompt, chosen and rejected")
    return tuple(pairs), tuple(answers)


def read_judged(path: str) -> tuple[JudgedRow, ...]:
    """All answers of a JSONL file; a pair is two of them. Raises RequestFailed (bad_dataset)."""
    judged = []
    for number, line in _lines(path):
        pair = _pair(path, number, line)
        if pair is not None:
            judged += [JudgedRow(pair.chosen, True), JudgedRow(pair.rejected, False)]
        elif line.label is None:
            raise _no_row(path, number, "objective kto needs a label: true or false")
        else:
            judged.append(JudgedRow(_answer(path, number, line), line.label))
    return tuple(judged)


def _lines(path: str) -> Iterator[tuple[int, _Line]]:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RequestFailed("bad_dataset", f"{path}: cannot be read: {error.strerror}") from error
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, _Line.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = str(first["loc"][0]) if first["loc"] else "line"
            raise _no_row(path, number, f"{where}: {first['msg']}") from error


def _pair(path: str, number: int, line: _Line) -> Pair | None:
    if line.prompt is None or line.chosen is None or line.rejected is None:
        return None
    prompt = _turns(line.prompt, "user")
    return Pair(
        Row(number, prompt, _one(path, number, line.chosen)),
        Row(number, prompt, _one(path, number, line.rejected)),
    )


def _answer(path: str, number: int, line: _Line) -> Row:
    if line.messages is not None:
        turns = _turns(line.messages, "user")
        if len(turns) < 2 or turns[-1].role != "assistant":
            raise _no_row(path, number, "the last of several messages must be the assistant's")
        return Row(number, turns[:-1], turns[-1].content)
    if line.prompt is None or line.completion is None:
        raise _no_row(path, number, "neither messages, nor prompt and completion")
    return Row(number, _turns(line.prompt, "user"), _one(path, number, line.completion))


def _turns(text: _Text, role: str) -> tuple[Turn, ...]:
    if isinstance(text, str):
        return (Turn(role, text),)
    return tuple(Turn(said.role, said.content) for said in text)


def _one(path: str, number: int, text: _Text) -> str:
    turns = _turns(text, "assistant")
    if len(turns) != 1 or turns[0].role != "assistant":
        raise _no_row(path, number, "an answer is one message of the assistant's")
    return turns[0].content


def _no_row(path: str, number: int, complaint: str) -> RequestFailed:
    return RequestFailed("bad_dataset", f"{path}, line {number}: {complaint}")
