"""Directories that exist complete or not at all, also after a power cut.

Files go into a sibling with a temporary name, are flushed to the disk, and
the directory is renamed. No manifest: the daemon writes that one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.trainer.errors import RequestFailed


def require_vacant(directory: Path) -> None:
    """Raises RequestFailed (bad_output) unless the directory is absent or empty."""
    try:
        occupied = any(directory.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise RequestFailed("bad_output", f"{directory}: {error.strerror}") from error
    if occupied:
        raise RequestFailed(
            "bad_output", f"{directory} is not empty; name a new directory or remove this one"
        )


@contextmanager
def published(directory: Path) -> Iterator[Path]:
    """A place to write into, which becomes ``directory`` when the block ends well.

    After an exception nothing remains. Leftovers of a killed process are
    cleared by the next attempt at the same directory.
    """
    staged = directory.parent / f".{directory.name}.partial"
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
    except OSError as error:
        raise RequestFailed("bad_output", f"{staged}: {error.strerror}") from error
    try:
        yield staged
        for path in sorted(staged.rglob("*")):
            _flush(path)
        _flush(staged)
        staged.rename(directory)
        _flush(directory.parent)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
