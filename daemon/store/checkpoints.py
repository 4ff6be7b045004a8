"""Copy SQLite's write-ahead log into the database file while transactions go on.

A writer whose log has grown long copies it by itself after a commit, and the transactions
behind it wait meanwhile, for a tenth of all time when events stream in. Here most of it is copied
early, by a connection and a thread of its own; what is left for the writer is little.
"""

import sqlite3
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

EVERY_BYTES = 16 * 2**20
"""So much is written between two of them. A slow stream gets there never: the writer copies."""


class Checkpoints:
    """Those of one file. The thread that writes calls `written`, whoever opened it `close`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store-checkpoint")
        self._under_way: Future[None] | None = None
        self._n_bytes = 0

    def written(self, n_bytes: int) -> None:
        """So much more was committed, roughly. Does not wait."""
        self._n_bytes += n_bytes
        if self._n_bytes < EVERY_BYTES or (self._under_way and not self._under_way.done()):
            return
        self._n_bytes = 0
        self._under_way = self._thread.submit(self._copy)

    def close(self) -> None:
        """Wait for the one under way."""
        self._thread.shutdown()

    def _copy(self) -> None:
        # In the passive way it waits for nobody, and takes what is committed so far.
        try:
            connection = sqlite3.connect(f"{self._file.absolute().as_uri()}?mode=rw", uri=True)
            try:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            finally:
                connection.close()
        except sqlite3.Error as error:
            log.debug("the log is not copied ahead; the writer does it", error=str(error))
