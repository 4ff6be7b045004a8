"""A log that a disk has damaged: a real broker sends it, and the daemon goes on behind it."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services.kafka import KafkaBroker
from tests.services.learnd import Learnd
from tests.services.nursery import Nursery

BATCHED = {"linger.ms": 60_000, "batch.num.messages": 5}
"""Five records are one batch, however slow the machine is between them."""


def output(name: str) -> bytes:
    event = {
        "producer": "studio",
        "event_id": name,
        "task_id": name,
        "task_type": "normalize",
        "prompt": f"normalize {name}",
        "output": f"{name} is normal",
        "approved": True,
    }
    return json.dumps(event).encode()


def tasks(daemon: Learnd) -> set[str]:
    with sqlite3.connect(f"file:{daemon.database}?mode=ro", uri=True) as connection:
        return {row[0] for row in connection.execute("SELECT task_id FROM events")}


def letters(daemon: Learnd) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = daemon.get("/v1/dead-letters?limit=100")["items"]
    return found


@pytest.fixture
def topics(
    kafka_broker: KafkaBroker, topic_names: Callable[[str], str]
) -> Iterator[tuple[str, str]]:
    """For outputs, two partitions, and for feedback."""
    names = topic_names("outputs"), topic_names("feedback")
    for name, partitions in zip(names, (2, 1), strict=True):
        kafka_broker.create_topic(name, partitions)
    yield names
    kafka_broker.delete_topic(names[0])


def test_a_damaged_batch_is_one_dead_letter_and_its_good_records_come_back_by_a_replay(
    kafka_broker: KafkaBroker,
    topics: tuple[str, str],
    topic_names: Callable[[str], str],
    nursery: Nursery,
    tmp_path: Path,
) -> None:
    outputs, feedback = topics
    kafka_broker.produce(outputs, [output("before")], partition=0)
    together = [output(f"t{number}") for number in range(5)]
    kafka_broker.produce(outputs, together, partition=0, client=BATCHED)
    kafka_broker.produce(outputs, [output("behind")], partition=0)
    kafka_broker.produce(outputs, [output("beside")], partition=1)
    kafka_broker.produce(outputs, [output("last")], partition=1)
    kafka_broker.damage(outputs, b"t2 is normal", b"t2 is \x00ormal")
    kafka_broker.damage(outputs, b"last is normal", b"last is n\xffrmal", partition=1)
    settings = {
        "kafka": {
            "bootstrap_servers": kafka_broker.bootstrap,
            "group_id": topic_names("group"),
            "outputs_topics": [outputs],
            "feedback_topics": [feedback],
        }
    }
    with Learnd(tmp_path, settings, nursery=nursery) as daemon:
        daemon.start()
        daemon.wait_until("both letters", lambda: len(letters(daemon)) == 2)
        daemon.wait_until("the records around them", lambda: len(tasks(daemon)) == 3)
        assert tasks(daemon) == {"before", "behind", "beside"}
        places = {(one["reason"], one["partition"], one["offset"]) for one in letters(daemon)}
        assert places == {("damaged_batch", 0, 5), ("damaged_batch", 1, 1)}
        kafka_broker.produce(outputs, [output("later")], partition=1)
        daemon.wait_until("what comes later", lambda: "later" in tasks(daemon))

        # The one record of the second batch is no event by itself.
        answers = json.loads(daemon.command("dead-letters", "replay", "--all", "--json", status=1))
        assert sorted(sum(one.get("outputs", {}).values()) for one in answers) == [0, 4]
        (refused,) = (one["refused"] for one in answers if "refused" in one)
        assert "still bad_utf8" in refused
        assert tasks(daemon) >= {"t0", "t1", "t3", "t4"}
        assert "t2" not in tasks(daemon)
        (own,) = (one for one in letters(daemon) if one["offset"] == 3)
        assert (own["reason"], own["partition"]) == ("null_character", 0)

        daemon.stop()
        daemon.start()  # what it has stored it does not read again
        kafka_broker.produce(outputs, [output("at last")], partition=0)
        daemon.wait_until("what comes at last", lambda: "at last" in tasks(daemon))
        assert len(letters(daemon)) == 3
        assert daemon.stop().status == 0
