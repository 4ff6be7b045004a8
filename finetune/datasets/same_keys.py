"""Which rows share a key, found on disk: memory grows with one part of the keys, not with all.

Keys are digests, so they fall evenly into the parts, each a file; a part is sorted at once,
with about 50 bytes of memory for each of its keys. 128 bits: two texts never share one.
"""

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

PARTS = 32
_RECORD = struct.Struct("<16sQ")
_RECORDS = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])


class SameKeys:
    """Keys of 16 bytes with the numbers of the rows that have them. Closes its files."""

    def __init__(self, folder: Path, name: str) -> None:
        self._paths = [folder / f"{name}-{part}" for part in range(PARTS)]
        with ExitStack() as files:
            self._files = [files.enter_context(path.open("wb")) for path in self._paths]
            self._closing = files.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.close()

    def add(self, key: bytes, row: int) -> None:
        """A row has a key. The same pair may come again."""
        self._files[key[0] % PARTS].write(_RECORD.pack(key, row))

    def groups(self) -> Iterator[NDArray[np.int64]]:
        """The rows of each key that more than one row has, in rising order."""
        for file, path in zip(self._files, self._paths, strict=True):
            file.flush()
            records = np.fromfile(path, dtype=_RECORDS)
            if len(records) < 2:
                continue
            records = records[np.lexsort((records["row"], records["low"], records["high"]))]
            is_new = (records["high"][1:] != records["high"][:-1]) | (
                records["low"][1:] != records["low"][:-1]
            )
            starts = np.flatnonzero(np.concatenate(([True], is_new)))
            lengths = np.diff(np.append(starts, len(records)))
            for start, length in zip(
                starts[lengths > 1].tolist(), lengths[lengths > 1].tolist(), strict=True
            ):
                rows: NDArray[np.int64] = records["row"][start : start + length]
                yield rows
