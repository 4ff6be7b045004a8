"""Rows are cut out of files in bounded memory, and junk is named, whatever it is."""

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.datasets.flaws import BadRowError, DatasetFileError, Flaw
from finetune.datasets.lines import RowLimits, parsed, raw_rows

LIMITS = RowLimits(max_bytes=1_000, max_depth=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class InPieces(io.BytesIO):
    """A file that gives as little at a time as it is told to."""

    def __init__(self, content: bytes, size: int) -> None:
        super().__init__(content)
        self._size = size

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self._size if size != 64 else size)


def rows(content: bytes, max_bytes: int = 1_000) -> list[tuple[int, bytes]]:
    return [(row.line, row.raw) for row in raw_rows(io.BytesIO(content), max_bytes)]


def test_lines_are_counted_from_one_and_blank_ones_passed_over() -> None:
    assert rows(b'{"a":1}\n\n  \n{"b":2}') == [(1, b'{"a":1}'), (4, b'{"b":2}')]


def test_a_byte_order_mark_and_carriage_returns_are_no_part_of_a_row() -> None:
    assert rows(b'\xef\xbb\xbf{"a":1}\r\n{"b":2}\r\n') == [(1, b'{"a":1}'), (2, b'{"b":2}')]


def test_of_a_long_line_only_the_beginning_is_kept_and_the_next_is_found() -> None:
    first, second = rows(b"x" * 100_000 + b'\n{"b":2}\n', max_bytes=10)
    assert first == (1, b"x" * 11)
    assert second == (2, b'{"b":2}')


@given(st.lists(JSON), st.sampled_from([None, 0, 2]), st.integers(1, 40))
def test_the_elements_of_an_array_are_found_however_it_is_written_and_read(
    values: list[Any], indent: int | None, piece: int
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=False)
    content = text.encode("utf-8", "surrogatepass")

    found = [row.raw for row in raw_rows(InPieces(content, piece), 10_000)]

    assert [json.loads(raw.decode("utf-8", "surrogatepass")) for raw in found] == values


def test_an_element_stands_in_the_line_that_it_begins_in() -> None:
    content = b'[\n  {\n    "a": 1\n  },\n\n  {"b": 2}, {"c":\n 3}\n]\n'
    assert [line for line, _ in rows(content)] == [2, 6, 6]


def test_an_element_that_is_too_long_is_cut_and_the_next_is_found() -> None:
    cut, after = rows(b'["' + b"x" * 100_000 + b'", {"a": 1}]', max_bytes=10)
    assert len(cut[1]) == 11
    assert after[1] == b'{"a": 1}'


@pytest.mark.parametrize("content", [b'[{"a":1},', b'[{"a":1}', b'[{"a":1}, {"b', b'[{"a":1}] x'])
def test_an_array_that_is_cut_off_or_followed_by_more_has_a_bad_row(content: bytes) -> None:
    *_, last = rows(content)
    with pytest.raises(BadRowError):
        parsed(last[1], LIMITS)


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ("{}".encode("utf-16"), "UTF-8"),
        (b"\x1f\x8b\x08\x00", "gunzip"),
        (b"PAR1\x15\x04", "Parquet"),
    ],
)
def test_a_file_of_another_kind_is_named_as_such(content: bytes, advice: str) -> None:
    with pytest.raises(DatasetFileError, match=advice):
        rows(content)


@pytest.mark.parametrize(
    ("raw", "flaw"),
    [
        (b"x" * 1_001, Flaw.TOO_LONG),
        (b'{"a": "\xff"}', Flaw.BAD_UTF8),
        (b'{"a": "\xed\xa0\x80"}', Flaw.BAD_UTF8),
        (b'{"a": "\x00"}', Flaw.NULL_CHARACTER),
        (b'{"a": ["\\u0000"]}', Flaw.NULL_CHARACTER),
        (b'{"\\u0000": 1}', Flaw.NULL_CHARACTER),
        (b'{"a": "\\ud800"}', Flaw.NOT_JSON),
        (b'{"a": 1', Flaw.NOT_JSON),
        (b'{"a": 1} {"b": 2}', Flaw.NOT_JSON),
        (b'{"a": NaN}', Flaw.NOT_JSON),
        (b'{"a": 1e999}', Flaw.NOT_JSON),
        (b'{"a": -1' + b"0" * 400 + b"}", Flaw.NOT_JSON),
        (b"", Flaw.NOT_JSON),
        (b"[1]", Flaw.NOT_AN_OBJECT),
        (b"null", Flaw.NOT_AN_OBJECT),
        (b'{"a": ' + b"[" * 8 + b"]" * 8 + b"}", Flaw.TOO_DEEP),
        (b"[" * 400 + b"]" * 400, Flaw.TOO_DEEP),
    ],
)
def test_what_is_no_row_is_named(raw: bytes, flaw: Flaw) -> None:
    with pytest.raises(BadRowError) as raised:
        parsed(raw, LIMITS)
    assert raised.value.flaw is flaw


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(content: bytes) -> None:
    try:
        found = list(raw_rows(io.BytesIO(content), 100))
    except DatasetFileError:
        return
    for row in found:
        try:
            parsed(row.raw, LIMITS)
        except BadRowError:
            continue
