"""The stores that the contract runs on. A further database is one more parameter here."""

import asyncio
import contextlib
import itertools
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from daemon.store import Store
from daemon.store.database import Database, sqlite_url
from tests.builders import JUDGE
from tests.contract.driver import Driver, StoppedClock, wipe
from tests.contract.promises import broken_promises
from tests.rows import open_past
from tests.services.postgres import PostgresServer

DATABASES = ["sqlite", "postgresql"]


@pytest.fixture(params=DATABASES)
def kind(request: pytest.FixtureRequest) -> str:
    """On which database the test runs this time."""
    return str(request.param)


@pytest.fixture
def new_empty_url(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[[], str]]:
    """Each call gives the address of another database with nothing in it."""
    with contextlib.ExitStack() as databases:
        if kind == "sqlite":
            numbers = itertools.count(1)
            yield lambda: sqlite_url(tmp_path / f"empty-{next(numbers)}.db")
        else:
            server: PostgresServer = request.getfixturevalue("postgres_server")
            yield lambda: databases.enter_context(server.database())


@pytest.fixture
def empty_url(new_empty_url: Callable[[], str]) -> str:
    """The address of a database of its own with nothing in it."""
    return new_empty_url()


async def migrate(url: str) -> None:
    """Make the tables in an empty database."""
    database = Database(url)
    await database.migrate()
    await database.close()


@pytest.fixture(scope="session")
def sqlite_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the tables, which each test gets a copy of."""
    file = tmp_path_factory.mktemp("template") / "learnd.db"
    asyncio.run(migrate(sqlite_url(file)))
    return file


@pytest.fixture(scope="session")
def postgres_tables(postgres_server: PostgresServer) -> Iterator[str]:
    """The address of a PostgreSQL database with the tables, which the tests take in turns."""
    with postgres_server.database() as url:
        asyncio.run(migrate(url))
        yield url


@pytest.fixture
def new_store_url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Each call gives the address of a database without a row in it, and ends the one before."""
    if kind == "sqlite":
        template: Path = request.getfixturevalue("sqlite_tables")
        numbers = itertools.count(1)

        def copied() -> str:
            file = tmp_path / f"learnd-{next(numbers)}.db"
            shutil.copyfile(template, file)
            return sqlite_url(file)

        return copied
    url: str = request.getfixturevalue("postgres_tables")

    def emptied() -> str:
        wipe(url)
        return url

    return emptied


@pytest.fixture
def store_url(new_store_url: Callable[[], str]) -> str:
    """The address of a database without a row in it, for this test alone."""
    return new_store_url()


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


@pytest.fixture
async def database(store_url: str) -> AsyncIterator[Database]:
    """A database with all tables, for tests of what is shown: they write its rows themselves."""
    opened = await open_past(store_url)
    yield opened
    await opened.close()
