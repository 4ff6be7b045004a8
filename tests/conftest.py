"""Fixtures that several folders of tests share: the real servers, and names used only once.

Also how a session of tests begins: where its files are, and over how many processes it goes.
"""

import os
import signal
import uuid
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings
from xdist.remote import Producer

from tests.in_memory import use_memory
from tests.services import kafka, postgres, require
from tests.services.kafka import KafkaBroker
from tests.services.nursery import Nursery
from tests.services.postgres import PostgresServer
from tests.workers import ByFile, how_many, longest_first

# No test fails because a machine was slow: the first example may import scipy.
settings.register_profile("learnd", deadline=None)
settings.load_profile("learnd")

# As the trainer's process has it: threads that wait by spinning take the cores from each other.
# Before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Where pytest loads readline, what it starts inherits the size of some terminal, its own workers
# too; but what the tests start prints into files and pipes.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

# A shell that runs the tests in the background ignores Ctrl-C for them, and for every program
# that they start; but some tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure() -> None:
    """Before the first temporary folder."""
    use_memory()


def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means."""
    return how_many()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """Who gives out the tests."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process keeps the order of the files; several begin with what takes longest."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        longest_first(items)


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[KafkaBroker]:
    """One real broker for the whole session; keep apart from other tests by `topic_names`."""
    require("Kafka", kafka.missing())
    with KafkaBroker() as broker:
        yield broker


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One real PostgreSQL for the whole session; keep apart from other tests by `database`."""
    require("PostgreSQL", postgres.missing())
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Daemons of it start without importing: for tests that start many, or the same one often."""
    with Nursery() as opened:
        yield opened


@pytest.fixture
def topic_names() -> Callable[[str], str]:
    """`topic_names("outputs")` is a new name each time: for topics, groups, transactional ids."""

    def name(stem: str) -> str:
        return f"{stem}-{uuid.uuid4().hex[:12]}"

    return name
