"""What could not be read, as an operator meets it: the commands, and a topic of its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Message

from tests.services.kafka import KafkaBroker
from tests.services.learnd import Learnd
from tests.waiting import wait_until

TopicNames = Callable[[str], str]


def output(name: str, **fields: Any) -> bytes:
    event = {
        "producer": "studio",
        "event_id": name,
        "task_id": name,
        "task_type": "normalize",
        "prompt": f"normalize {name}",
        "output": "normal",
        **fields,
    }
    return json.dumps(event).encode()


def n_letters(daemon: Learnd) -> int:
    return len(daemon.get("/v1/dead-letters?limit=100")["items"])


def test_letters_are_listed_by_page_and_reason_and_replayed_together(
    kafka_broker: KafkaBroker, topic_names: TopicNames, tmp_path: Path
) -> None:
    outputs, feedback = topic_names("outputs"), topic_names("feedback")
    for topic in (outputs, feedback):
        kafka_broker.create_topic(topic)
    kafka = {
        "bootstrap_servers": kafka_broker.bootstrap,
        "group_id": topic_names("group"),
        "outputs_topics": [outputs],
        "feedback_topics": [feedback],
    }
    juggling = [output(f"j{number}", task_type="juggling") for number in range(5)]
    with Learnd(tmp_path, {"kafka": kafka}) as daemon:
        daemon.start()
        kafka_broker.produce(outputs, [*juggling, b"{", output("good"), b"[]"])
        daemon.wait_until("seven letters", lambda: n_letters(daemon) == 7)
        refused = daemon.command("dead-letters", "replay", "--all", "--json", status=1)
        assert [one["id"] for one in json.loads(refused)] == list(range(1, 8))
        assert all("still" in one["refused"] for one in json.loads(refused))
        daemon.stop()

    accepting = {"kafka": kafka, "policy": {"unknown_task_types": "accept"}}
    with Learnd(tmp_path, accepting) as daemon:
        daemon.start()
        by_reason = ("dead-letters", "list", "--reason", "unknown_task_type", "--json")
        page = json.loads(daemon.command(*by_reason, "--limit", "2"))
        assert [one["id"] for one in page] == [5, 4]
        page = json.loads(daemon.command(*by_reason, "--before", "4"))
        assert [one["id"] for one in page] == [3, 2, 1]
        assert "juggling" in daemon.command("dead-letters", "show", "1")
        daemon.command("dead-letters", "show", "99", status=1)

        daemon.command("dead-letters", "replay", status=2)
        daemon.command("dead-letters", "replay", "1", "--all", status=2)
        said = daemon.command("dead-letters", "replay", "--reason", "unknown_task_type")
        assert said.count("output juggling held") == 5
        assert "5 replayed, 0 refused" in said
        assert "0 replayed, 2 refused" in daemon.command(
            "dead-letters", "replay", "--all", status=1
        )
        left = json.loads(daemon.command("dead-letters", "list", "--open", "--json"))
        assert {one["reason"] for one in left} == {"not_json", "not_an_object"}
        assert daemon.stop().status == 0


def test_each_dead_letter_is_copied_to_its_topic_once_the_topic_is_there(
    kafka_broker: KafkaBroker, topic_names: TopicNames, tmp_path: Path
) -> None:
    outputs, feedback, letters = (topic_names(stem) for stem in ("outputs", "feedback", "letters"))
    for topic in (outputs, feedback):
        kafka_broker.create_topic(topic)
    kafka = {
        "bootstrap_servers": kafka_broker.bootstrap,
        "group_id": topic_names("group"),
        "outputs_topics": [outputs],
        "feedback_topics": [feedback],
        "dead_letter_topic": letters,
        "max_message_bytes": 100_000,
    }
    large = output("large", subject="x" * 900_000)
    with Learnd(tmp_path, {"kafka": kafka}) as daemon:
        daemon.start()
        kafka_broker.produce(outputs, [b"\xff", None, output("good"), large])
        daemon.wait_until("three letters", lambda: n_letters(daemon) == 3)
        daemon.wait_until(
            "a word about the topic", lambda: "not copied" in daemon.log_tail(1_000), seconds=60
        )
        kafka_broker.produce(outputs, [output("next")])
        daemon.wait_until("intake goes on", lambda: len(daemon.get("/v1/events")["items"]) == 2)
        kafka_broker.create_topic(letters, config={"max.message.bytes": "200000"})
        found = consume(kafka_broker, letters, 3)
        assert daemon.stop().status == 0

    assert [message.value() for message in found] == [b"\xff", b"", large[:100_000]]
    headers = [dict(message.headers() or []) for message in found]
    assert [one["reason"] for one in headers] == [b"bad_utf8", b"tombstone", b"too_large"]
    assert [one["offset"] for one in headers] == [b"0", b"1", b"3"]
    assert [one["id"] for one in headers] == [b"1", b"2", b"3"]
    assert headers[2]["bytes"] == str(len(large)).encode()
    assert {(one["source"], one["topic"], one["partition"]) for one in headers} == {
        (b"kafka", outputs.encode(), b"0")
    }
    assert all(one["detail"] for one in headers)

    with Learnd(tmp_path, {"kafka": kafka}) as daemon:  # what is marked is not sent again
        daemon.start()
        kafka_broker.produce(outputs, [b"{"])
        daemon.wait_until("one more", lambda: n_letters(daemon) == 4)
        assert [message.value() for message in consume(kafka_broker, letters, 4)][3:] == [b"{"]
        assert daemon.stop().status == 0


def consume(broker: KafkaBroker, topic: str, count: int) -> list[Message]:
    """The first records of a topic, sorted by the letters' ids."""
    consumer = Consumer(
        {"bootstrap.servers": broker.bootstrap, "group.id": topic, "enable.auto.commit": False}
        | {"auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    found: list[Message] = []

    def all_there() -> bool:
        found.extend(consumer.consume(count, 0.2))
        return len(found) >= count

    wait_until("the topic's records", all_there, seconds=60)
    consumer.close()
    return sorted(found, key=lambda message: int(dict(message.headers() or [])["id"] or 0))
