"""A real stream that people reject: the daemon raises a bar, says why, and lets a person win."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services.kafka import KafkaBroker
from tests.services.learnd import Learnd
from tests.services.nursery import Nursery

KEY = "policy.feedback_threshold"
REASON = "people approved 30 of 80 judged outputs (38%), below 70%"


def output(number: int) -> bytes:
    event = {
        "event_id": f"o-{number}",
        "producer": "studio",
        "task_id": f"t-{number}",
        "task_type": "coding",
        "prompt": f"question {number}",
        "output": f"answer {number}",
        "confidence": 0.9,
    }
    return json.dumps(event).encode()


def verdict(number: int, *, approved: bool) -> bytes:
    event = {
        "event_id": f"f-{number}",
        "producer": "crowd",
        "task_id": f"t-{number}",
        "task_type": "coding",
        "approved": approved,
        "feedback": {"user_rating": 5 if approved else 1},
    }
    return json.dumps(event).encode()


class Stream:
    """Outputs, and what people say of them, through the broker."""

    def __init__(self, broker: KafkaBroker, topic_names: Callable[[str], str]) -> None:
        self.broker = broker
        self.outputs, self.feedback = topic_names("outputs"), topic_names("feedback")
        self.group = topic_names("group")
        for topic in (self.outputs, self.feedback):
            broker.create_topic(topic)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "bootstrap_servers": self.broker.bootstrap,
            "group_id": self.group,
            "outputs_topics": [self.outputs],
            "feedback_topics": [self.feedback],
        }

    def send(self, numbers: range, approved: int) -> None:
        self.broker.produce(self.outputs, [output(n) for n in numbers])
        said = [verdict(n, approved=n < numbers.start + approved) for n in numbers]
        self.broker.produce(self.feedback, said)


@pytest.fixture
def stream(kafka_broker: KafkaBroker, topic_names: Callable[[str], str]) -> Stream:
    return Stream(kafka_broker, topic_names)


@pytest.fixture
def daemon(tmp_path: Path, nursery: Nursery, stream: Stream) -> Iterator[Learnd]:
    given = {
        "kafka": stream.settings,
        "adaptation": {"every_seconds": 0.2, "min_judged": 80},
        "finetune": {"provider": "scripted", "base_model": "base"},
        "queue": {"batch_size": 1000, "max_queue_size": 1000},
        "lines": {"coding": {}},
    }
    with Learnd(tmp_path, given, nursery=nursery) as started:
        started.start()
        yield started


def threshold(daemon: Learnd) -> dict[str, Any]:
    found = {one["key"]: one for one in daemon.get("/v1/settings")["settings"]}
    return dict(found[KEY])


def test_many_rejections_raise_the_bar_and_a_person_takes_it_back_for_good(
    daemon: Learnd, stream: Stream
) -> None:
    stream.send(range(80), approved=30)
    daemon.wait_until("the bar to rise", lambda: threshold(daemon)["value"] == "0.8")
    assert threshold(daemon)["source"].endswith(REASON)
    (change,) = json.loads(daemon.command("settings", "history", "--json"))
    assert (change["actor"], change["reason"]) == ("adaptation", REASON)
    assert daemon.told(kind="SettingsChanged")

    # What the daemon did is what its statistics say.
    daemon.wait_until("ratings", lambda: daemon.get("/v1/stats")["feedback"]["recent"] == 80)
    stats = json.loads(daemon.command("stats", "--task-type", "coding", "--json"))
    assert stats["learning"]["recent"]["by_people"] == {
        "approved": 30,
        "rejected": 50,
        "success_rate": 30 / 80,
        "needed": 20,
        "is_healthy": False,
    }
    assert stats["feedback"]["avg_rating"] == pytest.approx((30 * 5 + 50) / 80)
    issues = {one["name"] for one in stats["feedback"]["common_issues"]}
    assert {"many_rejections", "high_low_ratings", "polarised_ratings"} <= issues
    shown = daemon.command("stats", "--window", "7d")
    assert "50 of 80 judged outputs of coding were rejected" in shown
    assert "Review prompt templates and context" in shown
    assert "learnd settings set policy.min_confidence=0.8" in shown
    assert not daemon.probe("/healthz").json()["healthy"]
    assert daemon.metric("learnd_success_ratio") == pytest.approx(30 / 80)
    assert daemon.metric("learnd_feedback_issues") >= 3

    daemon.command("settings", "undo", KEY, "--reason", "a bad batch of prompts, we know")
    assert threshold(daemon)["value"] == "0.7"
    stream.send(range(100, 200), approved=10)
    daemon.wait_until("more", lambda: daemon.get("/v1/stats")["feedback"]["recent"] == 180)
    thoughts = json.loads(daemon.command("settings", "adaptation", "--json"))
    assert {one["key"]: one["cause"] for one in thoughts}[KEY] == "respected"
    assert "left alone until" in daemon.command("settings", "adaptation")

    # Not after a restart either.
    assert daemon.stop().status == 0
    daemon.start()
    daemon.wait_until("its thoughts", lambda: daemon.get("/v1/settings/adaptation"))
    assert threshold(daemon)["value"] == "0.7"
    assert len(json.loads(daemon.command("settings", "history", "--json"))) == 2
