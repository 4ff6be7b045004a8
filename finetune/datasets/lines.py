"""Cut a dataset file into rows, and parse each strictly: in bounded memory, whatever comes.

JSONL, one row a line, or one JSON array of rows in a file, as LLaMA-Factory has it. Lines end
with a line feed, with or without a carriage return; a byte order mark at the beginning is
passed over. What a row means is formats.py's to say.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, NamedTuple

from pydantic_core import from_json

from finetune.datasets.flaws import BadRowError, DatasetFileError, Flaw

_CHUNK_BYTES = 262_144
_MARK = b"\xef\xbb\xbf"
_FOREIGN: Final = {
    b"\xff\xfe": "is UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text: save it as UTF-8",
    b"\x1f\x8b": "is compressed: unpack it first, with gunzip",
    b"PK": "is a ZIP archive: unpack it first",
    b"PAR1": "is Parquet: write it as JSONL first, with datasets' to_json",
    b"ARROW1": "is Arrow: write it as JSONL first, with datasets' to_json",
}
_OUTSIDE_TEXT = re.compile(rb'[\[\]{}",\n]')
_INSIDE_TEXT = re.compile(rb'["\\\n]')


@dataclass(frozen=True)
class RowLimits:
    """What is refused unread: more bytes, or deeper nesting (the row itself is level 1)."""

    max_bytes: int = 16_000_000
    max_depth: int = 64


class RawRow(NamedTuple):
    """The bytes of one row and the line that it begins in, counted from 1."""

    line: int
    raw: bytes
    """Of a row that is too long only its beginning: one byte more than is allowed."""


def raw_rows(file: BinaryIO, max_bytes: int) -> Iterator[RawRow]:
    """The rows of a file from its beginning; blank lines are counted and passed over.

    Raises DatasetFileError when the file is no text of JSON at all.
    """
    file.seek(0)
    head = file.read(64)
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise DatasetFileError(what)
    begin = len(_MARK) if head.startswith(_MARK) else 0
    is_array = head[begin:].lstrip().startswith(b"[")
    file.seek(begin)
    return _elements(file, max_bytes) if is_array else _lines(file, max_bytes)


def _lines(file: BinaryIO, max_bytes: int) -> Iterator[RawRow]:
    number = 0
    while line := file.readline(max_bytes + 2):
        number += 1
        raw = line.rstrip(b"\r\n")
        while line and not line.endswith(b"\n"):  # the rest of a line that is too long
            line = file.readline(_CHUNK_BYTES)
        if raw.strip():
            yield RawRow(number, raw[: max_bytes + 1])


def _elements(file: BinaryIO, max_bytes: int) -> Iterator[RawRow]:
    cutter = _ArrayCutter(max_bytes)
    while chunk := file.read(_CHUNK_BYTES):
        yield from cutter.cut(chunk)
    yield from cutter.end()


class _ArrayCutter:
    """Finds the elements of an array by its commas, knowing of JSON only brackets and texts."""

    def __init__(self, max_bytes: int) -> None:
        self._keep = max_bytes + 1
        self._element = bytearray()
        self._line = 1
        self._begin = 0
        """The line in which the element begins; 0 while only white space was seen of it."""
        self._depth = 0
        self._in_text = False
        self._skip_one = False

    def cut(self, chunk: bytes) -> Iterator[RawRow]:
        """The elements that a chunk completes; read them all before the next."""
        start = at = 0
        if self._skip_one:  # what a backslash at the end of the last chunk escapes
            at, self._skip_one = 1, False
        while True:
            found = (_INSIDE_TEXT if self._in_text else _OUTSIDE_TEXT).search(chunk, at)
            if found is None:
                break
            at = found.end()
            sign = found.group()
            if sign == b"\n":
                self._take(chunk, start, at)
                start = at
                self._line += 1
            elif sign == b'"':
                self._in_text = not self._in_text
            elif sign == b"\\":
                at += 1
            elif sign in b"[{":
                self._depth += 1
                if self._depth == 1:
                    self._take(chunk, start, at - 1)
                    yield from self._whole()
                    start = at
            elif (sign in b"]}" and self._depth == 1) or (sign == b"," and self._depth == 1):
                self._take(chunk, start, at - 1)
                yield from self._whole()
                start = at
                self._depth -= sign != b","
            elif sign in b"]}":
                self._depth -= 1
        self._skip_one = at > len(chunk)
        self._take(chunk, start, len(chunk))

    def end(self) -> Iterator[RawRow]:
        """What is left at the end: nothing, unless the array is cut off or followed by more."""
        yield from self._whole()
        if self._depth > 0:  # no bracket ends the array, so nobody knows what else is missing
            yield RawRow(self._line, b"")

    def _whole(self) -> Iterator[RawRow]:
        if self._begin:
            yield RawRow(self._begin, bytes(self._element).strip())
        self._element.clear()
        self._begin = 0

    def _take(self, chunk: bytes, start: int, end: int) -> None:
        part = chunk[start:end]
        if not self._begin:
            part = part.lstrip()
            if not part:
                return
            self._begin = self._line
        self._element += part[: self._keep - len(self._element)]


def parsed(raw: bytes, limits: RowLimits) -> dict[str, Any]:
    """The JSON object that a row's bytes are. Raises BadRowError."""
    if len(raw) > limits.max_bytes:
        raise BadRowError(Flaw.TOO_LONG, f"more than {limits.max_bytes:,} bytes")
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise BadRowError(
            Flaw.BAD_UTF8, f"byte {error.start} is not UTF-8: {error.reason}"
        ) from error
    if b"\x00" in raw:
        raise BadRowError(Flaw.NULL_CHARACTER, "there is a U+0000 in it")
    try:
        row = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        flaw = Flaw.TOO_DEEP if "recursion" in str(error) else Flaw.NOT_JSON
        raise BadRowError(flaw, str(error)) from error
    if not isinstance(row, dict):
        raise BadRowError(Flaw.NOT_AN_OBJECT, f"it is {kind_of(row)}")
    _require_sound(row, limits.max_depth)
    return row


def _require_sound(value: Any, levels: int) -> None:
    """What the parser lets through: nesting, U+0000, and numbers that no double can hold."""
    if isinstance(value, str):
        if "\x00" in value:
            raise BadRowError(Flaw.NULL_CHARACTER, "there is a \\u0000 in it")
    elif isinstance(value, int | float):
        if not -sys.float_info.max <= value <= sys.float_info.max:
            raise BadRowError(Flaw.NOT_JSON, "a number is too large for a 64-bit float")
    elif value is not None:
        if levels <= 0:
            raise BadRowError(Flaw.TOO_DEEP, "too many objects and arrays in each other")
        for part in value.values() if isinstance(value, dict) else value:
            _require_sound(part, levels - 1)
        if isinstance(value, dict) and any("\x00" in name for name in value):
            raise BadRowError(Flaw.NULL_CHARACTER, "there is a \\u0000 in a field's name")


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "an array"
        case _:
            return "an object"
