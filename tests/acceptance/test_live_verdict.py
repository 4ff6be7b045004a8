"""A version that people like less than the one before is rolled back by the daemon itself."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.services.kafka import KafkaBroker
from tests.services.learnd import Learnd

LINE = "coding"
N_EXAMPLES = 60
LIKED, DISLIKED = 9, 3
"""Of ten answers of a version."""


@pytest.mark.timeout(300)
def test_bad_feedback_from_kafka_takes_a_version_back_once_a_day_and_tells_why(
    kafka_broker: KafkaBroker, topic_names: Callable[[str], str], tmp_path: Path
) -> None:
    outputs, feedback = topic_names("outputs"), topic_names("feedback")
    for topic in (outputs, feedback):
        kafka_broker.create_topic(topic)
    settings = {
        "kafka": {
            "bootstrap_servers": kafka_broker.bootstrap,
            "group_id": topic_names("learnd"),
            "outputs_topics": [outputs],
            "feedback_topics": [feedback],
        },
        # Batches are flushed, so that what is said of a version trains none.
        "queue": {"batch_size": 1_000, "max_queue_size": 1_000, "adaptive": False},
        "finetune": {"provider": "scripted", "base_model": "scripted-base"},
        "lines": {LINE: {}},
    }

    def promoted(version: str) -> None:
        """Train a version on new examples, until it is the champion."""
        for n in range(N_EXAMPLES):
            assert daemon.post("/v1/outputs", json.loads(_output(f"{version}/{n}"))).is_success
        assert daemon.post("/v1/queue/flush", {}).is_success
        daemon.wait_until(version, lambda: champion() == version)

    def champion() -> str:
        return str(daemon.get(f"/v1/models/{LINE}/champion")["summary"]["version"])

    def said(version: str, liked_of_ten: int) -> None:
        """Three producers of feedback judge a hundred answers of a version."""
        tasks = [f"of-{version}-{n}" for n in range(100)]
        kafka_broker.produce(outputs, [_output(task, f"{LINE}@{version}") for task in tasks])
        kafka_broker.produce(
            feedback,
            [
                _feedback(task, n % 10 < liked_of_ten, f"audience-{n % 3}")
                for n, task in enumerate(tasks)
            ],
        )

    with Learnd(tmp_path, settings) as daemon:
        daemon.start()
        promoted("1.0.1")
        said("1.0.1", LIKED)
        promoted("1.0.2")
        served = daemon.get(f"/v1/models/{LINE}/champion")
        assert (served["predecessor"], served["canary_share"]) == ("1.0.1", 0.2)

        said("1.0.2", DISLIKED)
        daemon.wait_until("the rollback", lambda: champion() == "1.0.1")

        told = daemon.command("verdict", f"{LINE}@1.0.2")
        assert "live verdict" in told
        listed = json.loads(daemon.command("versions", LINE, "--json"))
        assert {one["version"]: one["state"] for one in listed}["1.0.2"] == "rolled_back"
        report = json.loads(daemon.command("verdict", f"{LINE}@1.0.2", "--json"))
        (rollback,) = report["rollbacks"]
        assert rollback["automatic"]
        assert "before it 90 of 100 (90.0%)" in rollback["reason"]
        assert len(report["approvals"][0]["by_producer"]) == 3

        promoted("1.0.3")
        said("1.0.3", DISLIKED)
        daemon.wait_until(
            "that it is held back",
            lambda: not daemon.probe("/healthz").json()["checks"]["live verdict"]["ok"],
        )
        assert champion() == "1.0.3"
        assert "max_rollbacks_a_day" in daemon.command("verdict", LINE)
        assert daemon.told(kind="RollbackHeldBack")
        assert daemon.metric("learnd_live_approval_rate") > 0


def _output(task: str, model_version: str | None = None) -> bytes:
    event = {
        "producer": "studio",
        "task_id": task,
        "task_type": LINE,
        "prompt": f"write {task}",
        "output": f"here is {task}",
        "approved": True,
    }
    return json.dumps(event | ({"model_version": model_version} if model_version else {})).encode()


def _feedback(task: str, approved: bool, producer: str) -> bytes:
    return json.dumps(
        {"producer": producer, "task_id": task, "task_type": LINE, "approved": approved}
    ).encode()
