"""One batch, and a daemon that dies at the worst moments: one complete version or none.

Each point is a function of the product, wrapped from outside by tests/crashing.py. The
daemon is started once with the crash and once without; then exactly one version has come
of the batch, and at no time was there half of one.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.acceptance.audit import Books, faults_of, require_none
from tests.services.kafka import KafkaBroker
from tests.services.learnd import Crash, Learnd

LINE = "coding"
BATCH_SIZE = 40


class Point(NamedTuple):
    """Where the daemon dies, and what that costs: nothing, or another attempt."""

    between: str
    crash: Crash
    attempts: int = 1


POINTS = [
    # --- from Kafka into the store
    Point("claim and reading", Crash("after", "daemon.store.intake:Intake.claim")),
    Point("rows and commit", Crash("after", "daemon.store.intake:_insert_outputs")),
    Point("store and Kafka's commit", Crash("after", "daemon.store.intake:Intake.append")),
    # --- from the queue into a batch
    Point("members and commit", Crash("before", "daemon.store.queue:_plan_run")),
    Point("batch and run", Crash("after", "daemon.store.queue:Queue.seal")),
    # --- from the batch to a job
    Point("intent and commit", Crash("before", "daemon.store.runs:move_batch")),
    Point("intent and dataset", Crash("after", "daemon.store.runs:Runs.begin"), attempts=2),
    Point("dataset and its name", Crash("before", "pathlib:Path.rename"), attempts=2),
    Point(
        "launch and adoption", Crash("after", "finetune.scripted_provider:ScriptedProvider.launch")
    ),
    Point("adoption and commit", Crash("after", "daemon.store.runs:set_attempt")),
    Point("adoption and training", Crash("after", "daemon.store.runs:Runs.adopt")),
    # --- from the job to an artifact
    Point(
        "weights and the rest of the output",
        Crash("before", "finetune.scripted_provider:_write_json"),
    ),
    Point("some files and others", Crash("after", "finetune.artifacts:_take_in")),
    Point("files and manifest", Crash("before", "finetune.artifacts:_write_durably")),
    Point("manifest and name", Crash("before", "finetune.artifacts:ArtifactStore._install")),
    Point("name and record", Crash("after", "finetune.artifacts:ArtifactStore.publish")),
    # --- from the artifact to a version
    Point("record and version row", Crash("after", "daemon.store.runs:Runs.finish_training")),
    Point("version row and commit", Crash("after", "daemon.store.runs:_add_candidate")),
    Point(
        "scores and decision",
        Crash("after", "finetune.scripted_provider:ScriptedEvaluator.score"),
    ),
    # --- from the version to the champion; the first move declared the base
    Point("alias and history", Crash("before", "daemon.store.registry:_record_alias", nth=2)),
    Point("promotion and commit", Crash("after", "daemon.store.registry:promote")),
    Point("decision and its news", Crash("after", "daemon.store.runs:Runs.decide")),
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("point", POINTS, ids=[point.between for point in POINTS])
def test_a_crash_leaves_one_complete_version_or_none(
    point: Point, kafka_broker: KafkaBroker, topic_names: Callable[[str], str], tmp_path: Path
) -> None:
    outputs, feedback = topic_names("outputs"), topic_names("feedback")
    for topic in (outputs, feedback):
        kafka_broker.create_topic(topic)
    kafka_broker.produce(outputs, [_output(number) for number in range(BATCH_SIZE)])
    settings = {
        "kafka": {
            "bootstrap_servers": kafka_broker.bootstrap,
            "group_id": topic_names("learnd"),
            "session_timeout_seconds": 1.0,
            "outputs_topics": [outputs],
            "feedback_topics": [feedback],
        },
        "queue": {"batch_size": BATCH_SIZE},
        "finetune": {"provider": "scripted", "base_model": "scripted-base"},
        "lines": {LINE: {}},
    }
    with Learnd(tmp_path, settings) as daemon:
        books = Books(daemon.data_dir)
        daemon.launch(point.crash)
        daemon.wait_for_crash()
        require_none(faults_of(daemon.data_dir), faults_of_jobs(books), when="after the crash")

        daemon.start()
        daemon.wait_until("a decided run", lambda: runs(books)["decided"])
        assert daemon.stop().status == 0
    require_none(faults_of(daemon.data_dir), faults_of_jobs(books), when="after the restart")
    assert runs(books) == {"decided": 1}
    assert [row["release"] for row in versions(books)] == ["1.0.0", "1.0.1"]
    assert books.number("select count(*) from events where state = 'sealed'") == BATCH_SIZE
    assert books.number("select count(*) from run_attempts") == point.attempts
    assert books.number("select count(*) from run_attempts where job_id is not null") == 1
    assert list((daemon.data_dir / "artifacts").glob(".staging*")) == []


def runs(books: Books) -> Mapping[str, int]:
    """How many runs are in each state."""
    return Counter(row["state"] for row in books.rows("select state from runs"))


def versions(books: Books) -> list[Any]:
    """The line's versions, oldest first."""
    return books.rows("select * from versions where line = ? order by id", LINE)


def faults_of_jobs(books: Books) -> Iterator[str]:
    """P3, by the provider's own journal."""
    journal = books.data_dir / "providers" / "scripted" / "jobs.jsonl"
    lines = journal.read_text().splitlines() if journal.exists() else []
    jobs = Counter((job["run_id"], job["attempt"]) for job in map(json.loads, lines))
    yield from (f"{attempt} got {n} jobs" for attempt, n in jobs.items() if n > 1)


def _output(number: int) -> bytes:
    event = {
        "event_id": f"e-{number}",
        "producer": "studio",
        "task_type": LINE,
        "task_id": f"t-{number}",
        "prompt": f"question {number}",
        "output": f"answer {number}",
        "approved": True,
    }
    return json.dumps(event).encode()
