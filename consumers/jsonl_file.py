"""One JSONL file, opened: its complete lines from a position on, and what it is known by.

Blocking, and knows no events. The fingerprint tells whether the bytes before a position
are those that were read: it covers the beginning and the end of them, so that a file that was
truncated, replaced or written anew is noticed, and one that was renamed is recognised.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from consumers.lines import Line, LineCutter

_MARK_BYTES = 1_024
_CHUNK_BYTES = 262_144
# Not waiting, should the path be a pipe by now.
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Signature(NamedTuple):
    """What changes when a file does; cheap to ask for."""

    inode: int
    n_bytes: int
    changed_ns: int


def signature(path: Path) -> Signature | None:
    """None when there is no such file."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return Signature(found.st_ino, found.st_size, found.st_ctime_ns)


class JsonlFile:
    """A regular file, opened for reading; whoever opens it closes it."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, also when the path is a link by now."""
        self._descriptor = os.open(path, _OPEN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    def fingerprint(self, offset: int) -> bytes | None:
        """16 bytes that the content before an offset is known by; None when it is shorter."""
        n_bytes = min(offset, _MARK_BYTES)
        head = os.pread(self._descriptor, n_bytes, 0)
        tail = os.pread(self._descriptor, n_bytes, offset - n_bytes)
        if len(head) < n_bytes or len(tail) < n_bytes:
            return None
        return hashlib.blake2b(head + tail, digest_size=16).digest()

    def lines(self, cutter: LineCutter, offset: int) -> tuple[Sequence[Line], int]:
        """The complete lines of the next piece, and where the one after it begins.

        At the end of the file that is `offset` again.
        """
        chunk = os.pread(self._descriptor, _CHUNK_BYTES, offset)
        return list(cutter.cut(chunk)), offset + len(chunk)
