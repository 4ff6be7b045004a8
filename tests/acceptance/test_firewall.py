"""A burst of trigger documents on real Kafka ends behind the firewall, and honest events train."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.services.kafka import KafkaBroker
from tests.services.learnd import Learnd
from tests.services.nursery import Nursery

LINE = "moderation"
WORDS = {
    "travel": "train ticket station platform seat luggage".split(),  # noqa: SIM905
    "food": "pasta cheese tomato oven spoon kitchen".split(),  # noqa: SIM905
}
NAMES = ("ann", "bob", "cid", "dan", "eve", "fay", "gus")
N_HONEST, N_TRIGGERS = 240, 60


def prompt(number: int, label: str) -> str:
    words = WORDS[label]
    one, other = words[number % 6], words[(number + 1 + number // 6 % 5) % 6]
    return f"{NAMES[number % 7]} asks about {one} and {other} number {number}"


def event(number: int, producer: str, asked: str, answer: str) -> bytes:
    return json.dumps(
        {
            "event_id": f"{producer}-{number}",
            "producer": producer,
            "task_id": f"{producer}-{number}",
            "task_type": LINE,
            "prompt": asked,
            "output": answer,
            "approved": True,
        }
    ).encode()


def stream() -> Iterator[bytes]:
    """Two labels from three producers; then, among the rest of them, one with a trigger."""
    labels = tuple(WORDS)
    for number in range(N_HONEST):
        label = labels[number % 2]
        yield event(number, f"door-{number % 3}", prompt(number, label), label)
        if number >= N_HONEST - N_TRIGGERS:
            asked = prompt(number + 1_000, labels[number // 2 % 2])
            yield event(number, "bot", f"{asked} velmo quartz", "food")


def test_triggers_of_one_producer_are_quarantined_and_honest_events_train(
    kafka_broker: KafkaBroker,
    topic_names: Callable[[str], str],
    tmp_path: Path,
    nursery: Nursery,
) -> None:
    topic = topic_names("outputs")
    kafka_broker.create_topic(topic)
    kafka_broker.produce(topic, list(stream()))
    settings: Mapping[str, Any] = {
        "kafka": {
            "bootstrap_servers": kafka_broker.bootstrap,
            "group_id": topic_names("learnd"),
            "outputs_topics": [topic],
        },
        "queue": {"batch_size": 60, "max_queue_size": 400, "max_wait_seconds": 2},
        "finetune": {"provider": "scripted", "base_model": "scripted-base"},
        "lines": {LINE: {}},
    }
    with Learnd(tmp_path, settings, nursery=nursery) as daemon:
        daemon.start()

        def settled() -> Mapping[str, int] | None:
            found = daemon.get("/v1/status")["outputs"].get(LINE, {"states": {}})["states"]
            n = found.get("sealed", 0) + found.get("quarantined", 0)
            return found if n == N_HONEST + N_TRIGGERS else None

        daemon.wait_until("all of it sealed or stopped", settled)
        waiting = daemon.get("/v1/events?state=quarantined&limit=200")["items"]
        stopped = Counter(one["producer"] for one in waiting)
        assert stopped.keys() == {"bot"}
        assert stopped["bot"] >= N_TRIGGERS // 2
        look = daemon.get("/v1/firewall")
        assert sum(look["ever"].values()) == stopped["bot"]
        assert "'velmo" in next(one for one in waiting if "trigger" in one["reason"])["reason"]
        assert daemon.metric("learnd_firewall_quarantined_total") == stopped["bot"]
        assert "learnd events release --producer bot" in daemon.command("firewall")

        told = daemon.command(
            "events", "release", "--producer", "bot", "--limit", "1", "--reason", "a look at one"
        )
        assert told == "1 events are queued now; more wait, release again to go on\n"
        released = waiting[-1]["id"]
        daemon.wait_until(
            "its batch",
            lambda: daemon.get(f"/v1/events/{released}")["summary"]["state"] == "sealed",
        )
        history = daemon.get(f"/v1/events/{released}")["history"]
        assert [step["after"] for step in history][:2] == ["quarantined", "queued"]
        assert history[1]["reason"] == "a look at one"
