"""Write the files that dataset commands make: whole, or not at all.

Each is written beside its place and renamed there, so that a kill leaves no half file. What
exists is not overwritten unless the caller says so.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from finetune.datasets.chat import LINE_ENDS
from finetune.datasets.flaws import DatasetFileError


@dataclass
class Output:
    """A file that is being written."""

    path: Path
    file: BinaryIO
    rows: int = 0

    def __post_init__(self) -> None:
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of what was written so far, in hex."""
        return self._digest.hexdigest()

    def write_raw(self, raw: bytes) -> None:
        """One row as it was read, on a line of its own."""
        # Between the parts of a row a line break is white space; inside of a text it is no JSON.
        self._write(raw.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n")

    def write(self, row: Mapping[str, Any]) -> None:
        """One row as JSON."""
        text = json.dumps(row, ensure_ascii=False, allow_nan=False).translate(LINE_ENDS)
        self._write(f"{text}\n".encode())

    def _write(self, line: bytes) -> None:
        self.file.write(line)
        self._digest.update(line)
        self.rows += 1


@contextlib.contextmanager
def outputs(*paths: Path, overwrite: bool) -> Iterator[list[Output]]:
    """Files to write, which appear when the block ends well. Raises DatasetFileError."""
    if not overwrite and (there := [path for path in paths if path.exists()]):
        raise DatasetFileError(f"{there[0]} exists: name another file, or take --force")
    beside = [path.with_name(f".{path.name}.{os.getpid()}.part") for path in paths]
    try:
        with contextlib.ExitStack() as files:
            written = []
            for path, part in zip(paths, beside, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                written.append(Output(path, files.enter_context(part.open("wb"))))
            yield written
        for path, part in zip(paths, beside, strict=True):
            part.replace(path)
    except OSError as error:
        raise DatasetFileError(f"{error.filename}: {error.strerror or error}") from error
    finally:
        for part in beside:
            part.unlink(missing_ok=True)
