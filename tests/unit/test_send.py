"""Which topic a line belongs to, and how a stream is cut into lines."""

import io

import pytest

from consumers import send
from consumers.send import kind_of, read_lines
from learning.ports import EventKind


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"prompt": "p", "output": "o"}, EventKind.OUTPUT),
        ({"messages": []}, EventKind.OUTPUT),
        ({"output": "o"}, EventKind.OUTPUT),
        ({"feedback": {}}, EventKind.FEEDBACK),
        ({"adaptation": {}}, EventKind.FEEDBACK),
        ({"prompt": "p", "output": "o", "feedback": {}}, EventKind.FEEDBACK),
        ({"task_id": "t", "approved": True}, EventKind.FEEDBACK),
        ({}, EventKind.FEEDBACK),
        ([], EventKind.OUTPUT),
        ("text", EventKind.OUTPUT),
        (None, EventKind.OUTPUT),
    ],
)
def test_a_line_shows_what_kind_of_event_it_is(content: object, kind: EventKind) -> None:
    assert kind_of(content) is kind


class Dribble(io.BytesIO):
    """A pipe that gives a few bytes at a time."""

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read1(3)


async def lines_of(file: io.BytesIO) -> list[bytes]:
    return [line async for line in read_lines(file)]


@pytest.mark.parametrize("source", [io.BytesIO, Dribble])
@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"one", [b"one"]),
        (b"one\ntwo\n", [b"one", b"two"]),
        (b"one\r\ntwo\r\nthree", [b"one", b"two", b"three"]),
        (b"\n\nlonger line\n\n", [b"", b"", b"longer line", b""]),
        ("é\u2028x\n漢".encode(), ["é\u2028x".encode(), "漢".encode()]),
    ],
)
async def test_a_stream_is_cut_at_line_feeds_only(
    source: type[io.BytesIO], content: bytes, lines: list[bytes]
) -> None:
    assert await lines_of(source(content)) == lines


async def test_a_line_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send, "MAX_LINE_BYTES", 10)
    monkeypatch.setattr(send, "_CHUNK_BYTES", 4)
    endless, short = await lines_of(io.BytesIO(b"x" * 1_000 + b"\nshort"))
    assert 10 < len(endless) < 20
    assert short == b"short"
