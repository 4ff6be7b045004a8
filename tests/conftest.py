"""Fixtures that several folders of tests share: the real servers, and names used only once."""

import signal
import uuid
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from tests.services import kafka, postgres, require
from tests.services.kafka import KafkaBroker
from tests.services.nursery import Nursery
from tests.services.postgres import PostgresServer

# No test fails because a machine was slow: the first example may import scipy.
settings.register_profile("learnd", deadline=None)
settings.load_profile("learnd")

# A shell that runs the tests in the background ignores Ctrl-C for them, and for every program
# that they start; but some tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
