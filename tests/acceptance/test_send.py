"""`learnd send` against a real broker: acknowledged, in order, and junk refused by number."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError

from consumers import send as sending
from consumers.kafka_connection import KafkaConnection
from consumers.send import RefusedLine, SendFailedError, send
from learning.ports import EventKind
from tests.services.kafka import KafkaBroker

TopicNames = Callable[[str], str]


def now() -> datetime:
    return datetime.now(UTC)


def output(task_id: str, **fields: Any) -> bytes:
    event = {"producer": "p", "task_id": task_id, "task_type": "normalize"}
    return json.dumps({**event, "prompt": "p", "output": "o", **fields}).encode()


def feedback(task_id: str) -> bytes:
    event = {"producer": "p", "task_id": task_id, "task_type": "normalize", "approved": True}
    return json.dumps(event).encode()


async def stream(lines: Iterable[bytes]) -> AsyncIterator[bytes]:
    for line in lines:
        yield line


@pytest.fixture
def connection(kafka_broker: KafkaBroker, topic_names: TopicNames) -> KafkaConnection:
    outputs, reactions = topic_names("outputs"), topic_names("feedback")
    kafka_broker.create_topic(outputs, partitions=3)
    kafka_broker.create_topic(reactions)
    return KafkaConnection(kafka_broker.bootstrap, "unused", (outputs,), (reactions,))


Stored = list[tuple[bytes | None, bytes]]
ReadTopic = Callable[[str], Awaitable[Stored]]


@pytest.fixture
def stored(kafka_broker: KafkaBroker) -> ReadTopic:
    """`await stored(topic)` is every (key, value) of a topic, partition by partition."""

    async def read(topic: str) -> Stored:
        found = []
        async with AIOKafkaConsumer(bootstrap_servers=kafka_broker.bootstrap) as consumer:
            for number, end in kafka_broker.end_offsets(topic).items():
                partition = TopicPartition(topic, number)
                consumer.assign([partition])
                consumer.seek(partition, 0)
                while await consumer.position(partition) < end:
                    record = await consumer.getone()
                    found.append((record.key, record.value))
        return found

    return read


async def test_every_line_is_acknowledged_and_keyed_by_its_task(
    connection: KafkaConnection, stored: ReadTopic
) -> None:
    seen: list[int] = []
    lines = [output(f"t{number % 7}", event_id=f"e{number}") for number in range(12_000)]
    report = await send(stream(lines), connection, now, on_progress=seen.append)
    assert (report.sent, report.n_refused, report.refused) == (12_000, 0, ())
    assert seen == sorted(seen)
    assert seen[-1] == 12_000

    found = await stored(connection.outputs_topics[0])
    assert sorted(value for _, value in found) == sorted(lines)
    for task in range(7):
        key = f"t{task}".encode()
        in_order = [output(f"t{task}", event_id=f"e{n}") for n in range(task, 12_000, 7)]
        assert [value for its_key, value in found if its_key == key] == in_order


async def test_outputs_and_feedback_go_to_their_topics_as_they_are(
    connection: KafkaConnection, stored: ReadTopic
) -> None:
    spaced = b'  {"producer":"p", "taskId":"c", "taskType":"x", "prompt":"p", "output":"o"}'
    lines = [output("a"), b"", feedback("a"), b"   ", spaced]
    report = await send(stream(lines), connection, now)
    assert report.sent == 3
    found = await stored(connection.outputs_topics[0])
    assert sorted(found, key=str) == sorted([(b"a", output("a")), (b"c", spaced)], key=str)
    assert await stored(connection.feedback_topics[0]) == [(b"a", feedback("a"))]


async def test_bad_lines_are_refused_by_number_and_the_others_are_sent(
    connection: KafkaConnection,
) -> None:
    lines = [output("a"), b"{oops", b"", output("b", confidence=2), output("c")]
    report = await send(stream(lines), connection, now)
    assert (report.sent, report.n_refused) == (2, 2)
    (first, second) = report.refused
    assert (first.line, second.line) == (2, 4)
    assert first.reason.startswith("not_json: ")
    assert second.reason.startswith("invalid: confidence")


async def test_junk_is_sent_where_that_is_wanted(
    connection: KafkaConnection, stored: ReadTopic
) -> None:
    junk = [b"{oops", b"\xff", b"[1]", b'{"task_id": 3}', b'{"task_id": "\\ud800", "output": 1}']
    report = await send(stream(junk), connection, now, kind=EventKind.OUTPUT, validate=False)
    assert report.sent == 5
    found = await stored(connection.outputs_topics[0])
    assert sorted(value for _, value in found) == sorted(junk)


async def test_what_the_broker_finds_too_large_is_refused_by_number(
    connection: KafkaConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [output("a"), output("b", output="x" * 2_000_000), output("c")]
    report = await send(stream(lines), connection, now, validate=False)
    assert (report.sent, report.n_refused) == (2, 1)
    assert report.refused[0].line == 2
    assert report.refused[0].reason.startswith("too_large: kafka did not take it")

    monkeypatch.setattr(sending, "MAX_LINE_BYTES", 1_000)
    report = await send(stream(lines), connection, now, validate=False)
    assert report.refused == (RefusedLine(2, "too_large: more than 1,000 bytes"),)


async def test_a_topic_that_does_not_exist_is_an_error(
    connection: KafkaConnection, topic_names: TopicNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "REQUEST_TIMEOUT_SECONDS", 0.5)
    nowhere = KafkaConnection(
        connection.bootstrap_servers, "unused", (topic_names("none"),), connection.feedback_topics
    )
    with pytest.raises(SendFailedError, match="line 2 was not acknowledged") as raised:
        await send(stream([feedback("a"), output("b")]), nowhere, now)
    assert (raised.value.line, raised.value.acknowledged) == (2, 0)


async def test_a_broker_that_is_away_is_an_error(connection: KafkaConnection) -> None:
    away = KafkaConnection("127.0.0.1:1", "unused", ("a",), ("b",))
    with pytest.raises(KafkaConnectionError):
        await send(stream([output("a")]), away, now)
