"""What one task type learned goes into another's batches, as the operator's map says."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.services.kafka import KafkaBroker
from tests.services.learnd import Learnd

TEACHER, PUPIL = "game", "coding"
BATCH = 40


@pytest.fixture
def topic(kafka_broker: KafkaBroker, topic_names: Callable[[str], str]) -> str:
    """Where the outputs go."""
    name = topic_names("outputs")
    kafka_broker.create_topic(name)
    return name


@pytest.fixture
def daemon(
    kafka_broker: KafkaBroker, topic_names: Callable[[str], str], topic: str, tmp_path: Path
) -> Iterator[Learnd]:
    feedback = topic_names("feedback")
    kafka_broker.create_topic(feedback)
    settings = {
        "kafka": {
            "bootstrap_servers": kafka_broker.bootstrap,
            "group_id": topic_names("learnd"),
            "outputs_topics": [topic],
            "feedback_topics": [feedback],
        },
        "queue": {"batch_size": BATCH, "adaptive": False},
        "split": {"cross_task_share": 0.2, "replay_share": 0.0},
        "finetune": {"provider": "scripted", "base_model": "scripted-base"},
        "lines": {TEACHER: {}, PUPIL: {}},
    }
    with Learnd(tmp_path, settings) as daemon:
        daemon.start()
        yield daemon
        assert daemon.stop().status == 0


def test_related_events_are_mixed_in_until_the_map_says_otherwise(
    daemon: Learnd, kafka_broker: KafkaBroker, topic: str
) -> None:
    def sent(task_type: str, numbers: Sequence[int]) -> None:
        kafka_broker.produce(topic, [_output(task_type, n) for n in numbers])

    sent(TEACHER, range(BATCH))
    taught = decided(daemon, TEACHER, 1)
    assert taught["version"] == "1.0.1", taught["message"]

    sent(PUPIL, range(BATCH))
    mixed = members(daemon, decided(daemon, PUPIL, 1))
    # A fifth of all training rows.
    assert mixed["cross_task"] == round(mixed["train"] / 4)

    key = f"split.related_task_types.{PUPIL}"
    changed = json.loads(
        daemon.command("settings", "set", f"{key}=[]", "--reason", "no games", "--json")
    )
    assert changed["revision"] == 1
    sent(PUPIL, range(BATCH, 2 * BATCH))
    assert "cross_task" not in members(daemon, decided(daemon, PUPIL, 2))

    daemon.command("settings", "undo")
    daemon.command("settings", "set", "split.cross_task_learning=false")
    sent(PUPIL, range(2 * BATCH, 3 * BATCH))
    assert "cross_task" not in members(daemon, decided(daemon, PUPIL, 3))


def decided(daemon: Learnd, line: str, n_runs: int) -> Mapping[str, Any]:
    """The newest run of a line, when so many of its runs have ended."""

    def ended() -> list[Mapping[str, Any]]:
        runs = daemon.get(f"/v1/runs?line={line}")["items"]
        over = [run for run in runs if run["state"] == "decided"]
        return over if len(over) == n_runs else []

    return daemon.wait_until(f"{n_runs} decided runs of {line}", ended)[0]


def members(daemon: Learnd, run: Mapping[str, Any]) -> Mapping[str, int]:
    """How many events of each role the run's batch has."""
    found: Mapping[str, int] = daemon.get(f"/v1/runs/{run['id']}")["members"]
    return found


def _output(task_type: str, number: int) -> bytes:
    return json.dumps(
        {
            "event_id": f"{task_type}-{number}",
            "producer": "studio",
            "task_type": task_type,
            "task_id": f"{task_type}-{number}",
            "prompt": f"{task_type} question {number}",
            "output": f"answer {number}",
            "approved": True,
        }
    ).encode()
