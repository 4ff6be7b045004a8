"""Two producers on Kafka teach a line; one of them is forgotten, and cannot come back.

From outside: records in, versions out, the command line, and every file below the data directory.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.audit import faults_of, require_none
from tests.services.kafka import KafkaBroker
from tests.services.learnd import Learnd

LINE = "coding"
N = 24
SECRET = "Zyzzyva"


@pytest.fixture
def topics(kafka_broker: KafkaBroker, topic_names: Callable[[str], str]) -> tuple[str, str]:
    names = topic_names("outputs"), topic_names("feedback")
    for name in names:
        kafka_broker.create_topic(name)
    return names


@pytest.fixture
def daemon(
    kafka_broker: KafkaBroker,
    topics: tuple[str, str],
    topic_names: Callable[[str], str],
    tmp_path: Path,
) -> Iterator[Learnd]:
    settings = {
        "kafka": {
            "bootstrap_servers": kafka_broker.bootstrap,
            "group_id": topic_names("learnd"),
            "outputs_topics": [topics[0]],
            "feedback_topics": [topics[1]],
        },
        # The batches are flushed when everything is there.
        "queue": {"batch_size": 500, "max_queue_size": 500, "adaptive": False},
        "finetune": {"provider": "scripted", "base_model": "scripted-base"},
        "lines": {LINE: {}},
    }
    with Learnd(tmp_path, settings) as daemon:
        daemon.start()
        yield daemon


@pytest.mark.timeout(300)
def test_a_forgotten_producer_is_nowhere_and_a_clean_version_takes_the_place(
    daemon: Learnd, kafka_broker: KafkaBroker, topics: tuple[str, str]
) -> None:
    outputs, feedback = topics
    kafka_broker.produce(outputs, [_output("choir", n) for n in range(N)])
    assert learned(daemon, stored=N) == "1.0.1"
    of_the_mole = [_output("mole", n) for n in range(N)]
    broken = f'{{"producer": "mole", "prompt": "{SECRET}'.encode()
    kafka_broker.produce(
        outputs, [*of_the_mole, *(_output("choir", n) for n in range(N, 2 * N)), broken]
    )
    kafka_broker.produce(feedback, [_feedback(n) for n in range(3)])
    daemon.wait_until("the feedback", lambda: count(daemon, "feedback") == 3)
    assert learned(daemon, stored=3 * N) == "1.0.2"
    daemon.wait_until("the dead letter", lambda: count(daemon, "dead_letters") == 1)
    assert files_with_secret(daemon)

    mole = ("forget", "--producer", "mole")
    would = json.loads(daemon.command(*mole, "--dry-run", "--json"))
    assert champion(daemon)["release"] == "1.0.2"
    done = json.loads(daemon.command(*mole, "--yes", "--reason", "it left", "--json"))
    assert done["counts"] == would["counts"]
    assert done["counts"]["outputs"] == N
    assert (done["counts"]["feedback"], done["counts"]["dead_letters"]) == (3, 1)
    assert done["counts"]["held_out"] > 0
    assert [one["version"] for one in done["versions"]] == ["1.0.2"]
    nothing_is_left(daemon)
    assert champion(daemon)["release"] == "1.0.1"
    assert states_of_versions(daemon)["1.0.2"] == "tainted"
    refused = daemon.post(f"/v1/models/{LINE}/rollback", {"to": "1.0.2"})
    assert refused.status_code == 409
    assert "tainted" in refused.json()["detail"]
    daemon.command("chat", f"{LINE}@1.0.2", "-p", "hello", status=1)
    told = [daemon.command("explain", f"mole/mole-{n}") for n in range(4)]
    assert all("forgotten: what it said is gone" in one for one in told)
    assert any(f"{LINE}@1.0.2 (tainted)" in one for one in told)

    # The same records again: at new offsets, and by reading the topics from their beginning.
    kafka_broker.produce(outputs, [*of_the_mole, _output("mole", 1, output=f"other {SECRET}")])
    kafka_broker.produce(feedback, [_feedback(7, task=1)])
    daemon.wait_until("the feedback", lambda: count(daemon, "feedback") == 4)
    assert daemon.stop().status == 0
    with sqlite3.connect(daemon.database) as database:
        database.execute("update positions set next_offset = 0, fingerprint = null")
    database.close()
    daemon.start()
    kafka_broker.produce(outputs, [_output("choir", 2 * N)])
    daemon.wait_until("all of it", lambda: count(daemon, "events") == 3 * N + 1)
    daemon.wait_until("what was read again", lambda: lag(daemon) == 0)
    assert (count(daemon, "dead_letters"), count(daemon, "feedback")) == (1, 4)
    nothing_is_left(daemon)

    again = json.loads(daemon.command(*mole, "--retrain", "--yes", "--json"))
    (line,) = again["learned_again"]
    assert line["batch"]["trigger"] == "retrain"
    assert decided(daemon, line["batch"]["run_id"]) == "promote"
    assert champion(daemon)["release"] == "1.0.3"
    assert champion(daemon)["parent"] == "1.0.1"
    knows = json.loads(daemon.command("lineage", f"{LINE}@1.0.3", "--limit", "500", "--json"))
    assert {one["producer"] for one in knows["events"]["items"]} == {"choir"}
    nothing_is_left(daemon)

    assert daemon.stop().status == 0
    assert files_with_secret(daemon) == []
    require_none(faults_of(daemon.data_dir), when="at the end")


def learned(daemon: Learnd, *, stored: int) -> str:
    """Train on all that waits, once so much is stored; the version that it made."""
    daemon.wait_until("the events", lambda: count(daemon, "events") == stored)
    (flushed,) = daemon.post("/v1/queue/flush", {}).json()
    assert decided(daemon, flushed["batch"]["run_id"]) == "promote"
    return str(champion(daemon)["release"])


def decided(daemon: Learnd, run_id: str) -> str:
    """The gate's verdict on a run."""

    def outcome() -> Any:
        return daemon.get(f"/v1/runs/{run_id}")["summary"]["outcome"]

    return str(daemon.wait_until("a verdict", outcome))


def champion(daemon: Learnd) -> Any:
    return daemon.get(f"/v1/models/{LINE}/champion")["summary"]


def states_of_versions(daemon: Learnd) -> dict[str, str]:
    listed = daemon.get(f"/v1/models/{LINE}/versions")["items"]
    return {one["version"]: one["state"] for one in listed}


def count(daemon: Learnd, table: str) -> int:
    database = sqlite3.connect(f"file:{daemon.database}?mode=ro", uri=True)
    try:
        return int(database.execute(f"select count(*) from {table}").fetchone()[0])  # noqa: S608
    finally:
        database.close()


def lag(daemon: Learnd) -> float:
    return daemon.metric("learnd_consumer_lag_records")


def nothing_is_left(daemon: Learnd) -> None:
    """In no file: of the database, the datasets, the work folders, the logs, the artifacts."""
    assert files_with_secret(daemon) == []


def files_with_secret(daemon: Learnd) -> list[str]:
    return [
        path.name
        for path in sorted(daemon.data_dir.rglob("*"))
        if path.is_file() and SECRET.encode() in path.read_bytes()
    ]


def _output(producer: str, number: int, *, output: str | None = None) -> bytes:
    says = SECRET if producer == "mole" else "song"
    event = {
        "event_id": f"{producer}-{number}",
        "producer": producer,
        "task_type": LINE,
        "task_id": f"{producer}-{number}",
        "prompt": f"{says} question {number}",
        "output": output or f"{says} answer {number}",
        "context": {"note": says},
        "subject": says,
        "approved": True,
    }
    return json.dumps(event).encode()


def _feedback(number: int, *, task: int | None = None) -> bytes:
    event = {
        "event_id": f"f-{number}",
        "producer": "audience",
        "task_type": LINE,
        "task_id": f"mole-{number if task is None else task}",
        "approved": True,
        "adaptation": {"mood_adjustment": f"{SECRET} mood"},
    }
    return json.dumps(event).encode()
