"""Fixtures of the unit tests: a real SQLite file each."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon.store.database import Database, sqlite_url
from tests.rows import open_past


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """An empty store with its schema."""
    opened = await open_past(sqlite_url(tmp_path / "learnd.db"))
    yield opened
    await opened.close()
