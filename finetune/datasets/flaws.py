"""Why a line of a dataset is no example, and what to do about it.

Only the words. What is wrong is found where lines are read (lines.py) and where rows are
understood (formats.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from learning.errors import LearningError


class Flaw(StrEnum):
    """The kinds of bad line: keys of `--json`, and never renamed."""

    TOO_LONG = "too_long"
    BAD_UTF8 = "bad_utf8"
    NULL_CHARACTER = "null_character"
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    TOO_DEEP = "too_deep"
    UNKNOWN_FORMAT = "unknown_format"
    OTHER_FORMAT = "other_format"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    EMPTY_TEXT = "empty_text"
    NO_ANSWER = "no_answer"
    UNREADABLE_TURN = "unreadable_turn"


ADVICE: Final[Mapping[Flaw, str]] = {
    Flaw.TOO_LONG: "cut it into several rows, or raise --max-line-bytes",
    Flaw.BAD_UTF8: "save the file as UTF-8",
    Flaw.NULL_CHARACTER: "remove U+0000: databases and many tools cannot keep it",
    Flaw.NOT_JSON: "each line must be one JSON object, without a line break in it",
    Flaw.NOT_AN_OBJECT: 'write it as an object: {"prompt": "...", "completion": "..."}',
    Flaw.TOO_DEEP: "flatten it: no example needs so many levels",
    Flaw.UNKNOWN_FORMAT: "name its fields as a format does, or map them: --field prompt=YOURS",
    Flaw.OTHER_FORMAT: "a file holds one format: move the row to a file of its own and convert it",
    Flaw.MISSING_FIELD: "add the field, or map one that has it: --field NAME=YOURS",
    Flaw.WRONG_TYPE: "write the field as the format asks",
    Flaw.EMPTY_TEXT: "fill it in, or leave the row out: nothing is learned from nothing",
    Flaw.NO_ANSWER: "end the conversation with the assistant's answer",
    Flaw.UNREADABLE_TURN: "leave the row out: only text of system, user and assistant is learned",
}


class Drop(StrEnum):
    """What may be left out although it is no bad line."""

    DUPLICATES = "duplicates"
    NEAR_DUPLICATES = "near-duplicates"
    LEAKS = "leaks"


class BadRowError(LearningError):
    """A line is no example."""

    def __init__(self, flaw: Flaw, detail: str) -> None:
        super().__init__(f"{flaw}: {detail}")
        self.flaw, self.detail = flaw, detail


@dataclass(frozen=True)
class BadLine:
    """A line that is no example; lines are counted from 1."""

    line: int
    flaw: Flaw
    detail: str

    @property
    def advice(self) -> str:
        """What to do about it."""
        return ADVICE[self.flaw]


class DatasetFileError(LearningError):
    """A file is no dataset at all, or cannot be read or written."""
