"""One dataset file, read as often as asked: each line as an example, or what is wrong with it.

Blocking, and of any size: one row is in memory at a time. The format is the one that most of
its first rows have, unless it is named.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from finetune.datasets.flaws import BadLine, BadRowError, DatasetFileError
from finetune.datasets.formats import Example, Format, example_of, format_of
from finetune.datasets.lines import RawRow, RowLimits, parsed, raw_rows

SAMPLED_ROWS = 100
SAMPLED_BYTES = 4_000_000
"""The format is told from so many rows or bytes, whichever comes first."""
REPORTED_EVERY_BYTES = 1_000_000


class GoodRow(NamedTuple):
    """A line that is an example."""

    line: int
    raw: bytes
    example: Example


@dataclass(frozen=True)
class Reading:
    """How a file is to be read."""

    format: Format | None = None
    """None: as its first rows are written."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """The name of a field as the formats have it -> its name in the file."""
    limits: RowLimits = field(default_factory=RowLimits)


class DatasetFile:
    """A regular file of rows of one format."""

    def __init__(self, path: Path, reading: Reading) -> None:
        """Looks at the first rows. Raises DatasetFileError when they are no dataset's."""
        self.path = path
        self._reading = reading
        if path.exists() and not path.is_file():
            raise DatasetFileError(f"{path} is no regular file: it is read several times")
        try:
            self.n_bytes = path.stat().st_size
            self.format = reading.format or self._found_format()
        except OSError as error:
            raise DatasetFileError(f"{path}: {error.strerror or error}") from error
        self._signature = self._looks()

    def rows(self, on_bytes: Callable[[int], None] = lambda n: None) -> Iterator[GoodRow | BadLine]:
        """Every row from the beginning; `on_bytes` is told how far it is, in bytes.

        Raises DatasetFileError when the file cannot be read, or is not the one it was.
        """
        if self._looks() != self._signature:
            raise DatasetFileError(f"{self.path} was changed while it was read: start again")
        reported = 0
        try:
            with self.path.open("rb") as file:
                for row in self._raw_rows(file):
                    yield self._read(row)
                    at = file.tell()
                    if at - reported >= REPORTED_EVERY_BYTES:
                        reported = at
                        on_bytes(at)
        except OSError as error:
            raise DatasetFileError(f"{self.path}: {error.strerror or error}") from error
        on_bytes(self.n_bytes)

    def _read(self, row: RawRow) -> GoodRow | BadLine:
        try:
            fields = self._named(parsed(row.raw, self._reading.limits))
            return GoodRow(row.line, row.raw, example_of(fields, self.format))
        except BadRowError as error:
            return BadLine(row.line, error.flaw, error.detail)

    def _raw_rows(self, file: Any) -> Iterator[RawRow]:
        try:
            return raw_rows(file, self._reading.limits.max_bytes)
        except DatasetFileError as error:
            raise DatasetFileError(f"{self.path} {error}") from error

    def _named(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its fields named as the formats do."""
        if not self._reading.renamed:
            return row
        theirs = {name: row[of] for name, of in self._reading.renamed.items() if of in row}
        mapped = set(self._reading.renamed.values())
        return {**{name: value for name, value in row.items() if name not in mapped}, **theirs}

    def _found_format(self) -> Format:
        seen: Counter[Format] = Counter()
        n_bytes = n_rows = 0
        with self.path.open("rb") as file:
            for row in self._raw_rows(file):
                n_rows += 1
                n_bytes += len(row.raw)
                try:
                    found = format_of(self._named(parsed(row.raw, self._reading.limits)))
                except BadRowError:
                    found = None
                if found is not None:
                    seen[found] += 1
                if n_rows >= SAMPLED_ROWS or n_bytes >= SAMPLED_BYTES:
                    break
        if not n_rows:
            raise DatasetFileError(f"{self.path} is empty")
        if not seen:
            raise DatasetFileError(
                f"{self.path}: none of its first {n_rows} rows is of a known format"
                f" ({', '.join(Format)}): name its fields with --field prompt=YOURS,"
                " or its format with --format to see what is wrong with each line"
            )
        return seen.most_common(1)[0][0]

    def _looks(self) -> tuple[int, int, int]:
        found = os.stat(self.path)
        return found.st_ino, found.st_size, found.st_mtime_ns
