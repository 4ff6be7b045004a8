"""A stream of bytes is cut into lines: anywhere, in bounded memory, with their offsets."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.lines import Line, LineCutter


def cut(chunks: Iterable[bytes], max_bytes: int = 100) -> list[Line]:
    cutter = LineCutter(max_bytes)
    lines = [line for chunk in chunks for line in cutter.cut(chunk)]
    last = cutter.last()
    return lines if last is None else [*lines, last]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"one", [b"one"]),
        (b"one\ntwo\n", [b"one", b"two"]),
        (b"one\r\ntwo\r\nthree", [b"one", b"two", b"three"]),
        ("é\u2028x\n漢".encode(), ["é\u2028x".encode(), "漢".encode()]),
    ],
)
def test_lines_end_at_line_feeds_only(content: bytes, lines: list[bytes]) -> None:
    assert [line.raw for line in cut([content])] == lines


@given(st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"d\ne", b""]), max_size=30))
def test_where_the_chunks_are_cut_makes_no_difference(chunks: list[bytes]) -> None:
    assert cut(chunks) == cut([b"".join(chunks)])


@given(st.binary(max_size=60))
def test_the_lines_cover_every_byte_once(content: bytes) -> None:
    lines = cut([content])
    begins = [line.begin for line in lines]
    assert begins == [0, *(line.end for line in lines)][: len(lines)]
    assert (lines[-1].end if lines else 0) == len(content)


def test_of_a_line_that_is_too_long_one_byte_too_many_is_kept() -> None:
    long, short = cut([b"x" * 40, b"x" * 40, b"\nok\n"], max_bytes=10)
    assert (long.raw, long.begin, long.end) == (b"x" * 11, 0, 81)
    assert (short.raw, short.begin, short.end) == (b"ok", 81, 84)


def test_a_line_without_end_is_not_told_before_the_end() -> None:
    cutter = LineCutter(10, offset=7)
    assert list(cutter.cut(b"half")) == []
    assert cutter.has_rest
    assert cutter.last() == Line(b"half", 7, 11)
