"""The stores that the contract runs on. A further database is one more parameter here."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon.store import Store
from daemon.store.database import sqlite_url
from tests.builders import JUDGE
from tests.contract.driver import Driver, StoppedClock
from tests.contract.promises import broken_promises


@pytest.fixture(params=["sqlite"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database of its own."""
    match request.param:
        case "sqlite":
            return sqlite_url(tmp_path / "learnd.db")
        case other:
            raise ValueError(other)


@pytest.fixture
def clock() -> StoppedClock:
    """The store's clock, at noon."""
    return StoppedClock()


@pytest.fixture
async def store(store_url: str, tmp_path: Path, clock: StoppedClock) -> AsyncIterator[Store]:
    """An open store. After each test everything in it must still be true."""
    opened = await Store.open(
        store_url, artifacts_dir=tmp_path / "artifacts", judge=JUDGE, clock=clock
    )
    try:
        yield opened
        assert await opened.database.read(broken_promises) == []
    finally:
        await opened.close()


@pytest.fixture
def drive(store: Store, clock: StoppedClock) -> Driver:
    """The store with a hand on its wheel."""
    return Driver(store, clock)
