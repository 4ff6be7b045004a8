"""Cut a stream of bytes into lines, in bounded memory.

Pure: chunks in, lines out. Lines end with a line feed only, as JSONL says; what is in
them is for consumers/wire.py to judge.
"""

from collections.abc import Iterator
from typing import NamedTuple


class Line(NamedTuple):
    """One line without its end, and the byte where the next one begins."""

    raw: bytes
    """Of a line that is too long only its beginning: one byte more than is allowed."""
    begin: int
    end: int


class LineCutter:
    """Keeps the line that is not complete yet, and no more of it than `max_bytes`."""

    def __init__(self, max_bytes: int, *, offset: int = 0) -> None:
        self._keep = max_bytes + 1
        self._rest = bytearray()
        self._begin = offset
        self._end = offset

    @property
    def has_rest(self) -> bool:
        """Whether a line was begun and has no end yet."""
        return self._end > self._begin

    def cut(self, chunk: bytes) -> Iterator[Line]:
        """The lines that a chunk completes, blank ones too; read them all before the next."""
        start = 0
        while (feed := chunk.find(b"\n", start)) >= 0:
            self._keep_part(chunk, start, feed)
            self._end += feed + 1 - start
            yield self._line()
            start = feed + 1
        self._keep_part(chunk, start, len(chunk))
        self._end += len(chunk) - start

    def last(self) -> Line | None:
        """The line that the end of the stream completes, where that is an end."""
        return self._line() if self.has_rest else None

    def _keep_part(self, chunk: bytes, start: int, end: int) -> None:
        room = self._keep - len(self._rest)
        self._rest += chunk[start : min(end, start + room)]

    def _line(self) -> Line:
        line = Line(bytes(self._rest).removesuffix(b"\r"), self._begin, self._end)
        self._rest.clear()
        self._begin = self._end
        return line
