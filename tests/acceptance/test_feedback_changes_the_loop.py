"""Feedback of several producers from Kafka moves a bar; outputs are judged by it; an undo."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.services.kafka import KafkaBroker
from tests.services.learnd import Learnd

TASK_TYPE = "coding"
AUDIENCE = ("ann", "bob", "cat")
N_TASKS = 8


def output(task: str, confidence: float) -> bytes:
    event = {
        "event_id": task,
        "producer": "studio",
        "task_type": TASK_TYPE,
        "task_id": task,
        "prompt": f"write {task}",
        "output": f"here is {task}",
        "approved": True,
        "confidence": confidence,
    }
    return json.dumps(event).encode()


def rejection(task: str, producer: str) -> bytes:
    event = {
        "event_id": f"{producer}/{task}",
        "producer": producer,
        "task_type": TASK_TYPE,
        "task_id": task,
        "approved": False,
        "feedback": {"user_rating": 1},
        "adaptation": {"confidence_adjustment": 1.0, "mood_adjustment": "calm"},
    }
    return json.dumps(event).encode()


def verdict_on(daemon: Learnd, task: str) -> Mapping[str, Any]:
    """The stored output of a task, once it is there."""

    def look() -> Sequence[Mapping[str, Any]]:
        found = daemon.get("/v1/events?limit=500")["items"]
        return [event for event in found if event["task_id"] == task]

    (event,) = daemon.wait_until("its verdict", look)
    return event


def bars(daemon: Learnd) -> float:
    """What the judge goes by, over all task types, above what is configured."""
    n = len(daemon.get("/v1/feedback/loop"))
    return round(daemon.metric("learnd_confidence_bar") - 0.7 * n, 3)


def test_feedback_raises_the_bar_survives_a_kill_and_an_operator_takes_it_back(
    kafka_broker: KafkaBroker, topic_names: Callable[[str], str], tmp_path: Path
) -> None:
    outputs, feedback = topic_names("outputs"), topic_names("feedback")
    for topic in (outputs, feedback):
        kafka_broker.create_topic(topic)
    tasks = [f"t-{number}" for number in range(N_TASKS)]
    kafka_broker.produce(outputs, [output(task, 0.9) for task in tasks])
    kafka_broker.produce(
        feedback, [rejection(task, producer) for task in tasks for producer in AUDIENCE]
    )
    settings = {
        "kafka": {
            "bootstrap_servers": kafka_broker.bootstrap,
            "group_id": topic_names("learnd"),
            "outputs_topics": [outputs],
            "feedback_topics": [feedback],
        },
        "queue": {"batch_size": 100, "max_queue_size": 100},
        "finetune": {"provider": "scripted", "base_model": "scripted-base"},
    }
    with Learnd(tmp_path, settings) as daemon:
        daemon.start()
        # However much three producers wish for, it moves a day's share.
        daemon.wait_until("the bar", lambda: bars(daemon) == 0.05)

        kafka_broker.produce(outputs, [output("just-above", 0.72)])
        held = verdict_on(daemon, "just-above")
        assert held["state"] == "held"
        assert "confidence 0.72 < 0.75 after feedback (configured: 0.7)" in held["reason"]

        shown = json.loads(daemon.command("feedback", TASK_TYPE, "--json"))
        assert (shown["loop"]["min_confidence"], shown["loop"]["score"]) == (0.75, -1.0)
        assert shown["loop"]["mood"] == "calm"
        changes = {one["change"] for one in shown["effects"]}
        assert {"increase_validation_strictness", "adjust_content_style"} == changes
        assert "0.75 (+0.05)" in daemon.command("feedback")

        daemon.kill()
        daemon.start()
        assert bars(daemon) == 0.05

        told = daemon.command("feedback", "reset", TASK_TYPE, "--reason", "they were paid for it")
        assert told == f"{TASK_TYPE}: taken back, 2 things were turned (they were paid for it)\n"
        daemon.wait_until("the bar as configured", lambda: bars(daemon) == 0.0)
        kafka_broker.produce(outputs, [output("the-same", 0.72)])
        queued = verdict_on(daemon, "the-same")
        assert queued["state"] == "queued"
        assert queued["reason"] == "approved, confidence 0.72 >= 0.7"
        last = daemon.get(f"/v1/feedback/effects?task_type={TASK_TYPE}&limit=2")["items"]
        assert {one["change"] for one in last} == {"reset"}
        assert daemon.stop().status == 0
