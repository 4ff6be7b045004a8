"""SQLite's log is copied beside the writer: early, without waiting, and never at its cost."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from daemon.store.checkpoints import EVERY_BYTES, Checkpoints

MUCH = 1_000_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some % name?.db"


@pytest.fixture
def writer(file: Path) -> Iterator[sqlite3.Connection]:
    """A connection whose last transaction is in the log, and not yet in the file."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE events (payload BLOB)")
        connection.execute("INSERT INTO events VALUES (zeroblob(?))", [MUCH])
        assert file.stat().st_size < MUCH
        yield connection


def test_what_is_committed_is_copied_while_the_next_transaction_is_under_way(
    file: Path, writer: sqlite3.Connection
) -> None:
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("INSERT INTO events VALUES ('not committed')")
    checkpoints = Checkpoints(file)
    checkpoints.written(EVERY_BYTES)
    checkpoints.close()
    assert file.stat().st_size > MUCH
    writer.execute("ROLLBACK")
    assert writer.execute("SELECT count(*) FROM events").fetchone() == (1,)


def test_a_slow_stream_is_left_to_the_writer(file: Path, writer: sqlite3.Connection) -> None:
    checkpoints = Checkpoints(file)
    checkpoints.written(EVERY_BYTES - 1)
    checkpoints.close()
    assert file.stat().st_size < MUCH
    checkpoints = Checkpoints(file)
    for _ in range(2):
        checkpoints.written(EVERY_BYTES // 2)
    checkpoints.close()
    assert file.stat().st_size > MUCH


def test_a_file_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "gone.db")
    checkpoints.written(EVERY_BYTES)
    checkpoints.close()
    assert list(tmp_path.iterdir()) == []
