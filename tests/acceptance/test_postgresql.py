"""The daemon on PostgreSQL, which crashes under it: it waits, and loses and doubles nothing."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import psycopg
import pytest
from sqlalchemy import create_engine

from daemon.store.database import address_of
from tests.contract.promises import broken_promises
from tests.services.kafka import KafkaBroker
from tests.services.learnd import Learnd
from tests.services.postgres import IMMEDIATE, PostgresServer

LINE = "coding"
BATCH_SIZE = 40


@pytest.mark.timeout(180)
def test_a_database_that_crashes_costs_time_and_nothing_else(
    postgres_server: PostgresServer,
    kafka_broker: KafkaBroker,
    topic_names: Callable[[str], str],
    tmp_path: Path,
) -> None:
    outputs, feedback = topic_names("outputs"), topic_names("feedback")
    for topic in (outputs, feedback):
        kafka_broker.create_topic(topic)
    with (
        postgres_server.database() as url,
        Learnd(
            tmp_path,
            {
                "database_url": url,
                "kafka": {
                    "bootstrap_servers": kafka_broker.bootstrap,
                    "group_id": topic_names("learnd"),
                    "session_timeout_seconds": 1.0,
                    "outputs_topics": [outputs],
                    "feedback_topics": [feedback],
                },
                "queue": {"adaptive": False, "batch_size": BATCH_SIZE},
                "finetune": {"provider": "scripted", "base_model": "scripted-base"},
                "lines": {LINE: {}},
            },
        ) as daemon,
    ):
        daemon.start()
        kafka_broker.produce(outputs, _outputs(0, BATCH_SIZE))
        daemon.wait_until("a first version", lambda: _champion(daemon) == "1.0.1")
        daemon.wait_until("readiness", lambda: _is_ready(daemon))

        kafka_broker.produce(outputs, _outputs(BATCH_SIZE, 2 * BATCH_SIZE))
        with postgres_server.outage(IMMEDIATE):
            kafka_broker.produce(outputs, _outputs(2 * BATCH_SIZE, 3 * BATCH_SIZE))
            daemon.wait_until("it is noticed", lambda: not _is_ready(daemon))
            daemon.get("/livez")

        daemon.wait_until("readiness again", lambda: _is_ready(daemon))
        daemon.wait_until(
            "every output in a batch",
            lambda: (
                _number(url, "SELECT count(*) FROM events WHERE state = 'sealed'") == 3 * BATCH_SIZE
            ),
        )
        daemon.wait_until(
            "every run decided",
            lambda: _number(url, "SELECT count(*) FROM runs WHERE state <> 'decided'") == 0,
        )
        newest = _champion(daemon)
        assert newest > "1.0.1"
        assert "1.0.1" in daemon.command("rollback", LINE, "--to", "1.0.1")
        assert _champion(daemon) == "1.0.1"
        assert daemon.stop().status == 0

        assert _number(url, "SELECT count(*) FROM events") == 3 * BATCH_SIZE
        assert _number(url, "SELECT count(DISTINCT task_id) FROM events") == 3 * BATCH_SIZE
        assert _number(url, "SELECT next_offset FROM positions WHERE topic = %s", outputs) == (
            3 * BATCH_SIZE
        )
        assert _number(url, "SELECT count(*) FROM dead_letters") == 0
        assert _faults(url) == []


def _outputs(first: int, end: int) -> list[bytes | None]:
    return [
        json.dumps(
            {
                "event_id": f"e-{number}",
                "producer": "studio",
                "task_type": LINE,
                "task_id": f"t-{number}",
                "prompt": f"question {number}",
                "output": f"answer {number}",
                "approved": True,
            }
        ).encode()
        for number in range(first, end)
    ]


def _champion(daemon: Learnd) -> str:
    return str(daemon.get(f"/v1/models/{LINE}/champion")["summary"]["version"])


def _is_ready(daemon: Learnd) -> bool:
    with contextlib.suppress(httpx.HTTPStatusError):
        daemon.get("/readyz")
        return True
    return False


def _number(url: str, query: str, *values: str) -> int:
    with psycopg.connect(url, connect_timeout=5) as session:
        row = session.execute(query.encode(), values).fetchone()
    assert row is not None
    return int(row[0])


def _faults(url: str) -> list[str]:
    engine = create_engine(address_of(url))
    try:
        with engine.connect() as tx:
            return broken_promises(tx)
    finally:
        engine.dispose()
