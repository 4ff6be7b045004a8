"""Which rows share a key, found on disk: memory grows with one part of the keys, not with all.

Keys are digests, so they fall evenly into the parts, each a file; a part is sorted at once,
with about 50 bytes of memory for each of its keys. 128 bits: two texts never share one.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

PARTS = 32
_RECORD = struct.Struct("<16sQ")
_RECORDS = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])


class SameKeys:
    """Keys of 16 bytes with the numbers of the rows that have them."""

    def __init__(self, paths: Sequence[Path], files: Sequence[BinaryIO]) -> None:
        self._paths, self._files = paths, files

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, name: str) -> Iterator[Self]:
        """With files of that name in a folder."""
        paths = [folder / f"{name}-{part}" for part in range(PARTS)]
        with ExitStack() as files:
            yield cls(paths, [files.enter_context(path.open("wb")) for path in paths])

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
