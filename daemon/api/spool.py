"""What a client was told and has not taken yet: in memory, and on disk where it is much.

Many clients send a whole body before they read the first byte of the answer. Without
this, such a client and the daemon would wait for each other.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

IN_MEMORY_BYTES = 262_144
_CHUNK_BYTES = 65_536


class Spool:
    """Bytes between one that writes and one that reads; whoever opens it closes it."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES)  # noqa: SIM115 - see __exit__
        self._written = 0
        self._read = 0
        self._is_complete = False
        self._changed = asyncio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def unread_bytes(self) -> int:
        """What was written and not read yet."""
        return self._written - self._read

    def write(self, data: bytes) -> None:
        """Add bytes for the reader."""
        self._file.seek(self._written)
        self._written += self._file.write(data)
        self._changed.set()

    def complete(self) -> None:
        """Nothing more comes."""
        self._is_complete = True
        self._changed.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        """What was written, as it comes, until it is complete and read."""
        while True:
            self._changed.clear()
            while self._read < self._written:
                self._file.seek(self._read)
                chunk = self._file.read(_CHUNK_BYTES)
                self._read += len(chunk)
                if self._read == self._written:
                    self._read = self._written = self._file.seek(0)
                    self._file.truncate()
                yield chunk
            if self._is_complete:
                return
            await self._changed.wait()
