"""What producers get wrong, sent through a real broker: it is kept, and its neighbours stored.

The table is tests/bad_input.py.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from sqlalchemy import select

from consumers.ingest import Ingest
from consumers.kafka_connection import KafkaConnection
from consumers.kafka_source import KafkaSource
from daemon.store import Store
from daemon.store.database import sqlite_url
from daemon.store.tables import dead_letters, events
from learning.lines import ModelLine, ModelLines
from tests.bad_input import ARRIVED, BAD_BYTES, BAD_IN_CONTEXT, TAKEN, output, with_json
from tests.builders import JUDGE
from tests.services.kafka import KafkaBroker

SECONDS = 60.0
MAX_BYTES = 4 * 2**20
LINES = ModelLines([ModelLine("coding", frozenset({"coding"}), None, "scripted")])

TopicNames = Callable[[str], str]
Send = Callable[[AIOKafkaProducer, str], Awaitable[None]]


class Found(NamedTuple):
    """What the store holds of one topic."""

    tasks: Counter[str]
    letters: Sequence[tuple[int, str, bytes]]
    """Offset, reason and raw bytes."""


async def read_topic(
    broker: KafkaBroker, topic_names: TopicNames, folder: Path, send: Send, up_to: int
) -> Found:
    """Send to a topic of one partition, and read it up to an offset."""
    topic, other = topic_names("outputs"), topic_names("feedback")
    await asyncio.to_thread(
        broker.create_topic, topic, config={"max.message.bytes": str(2 * MAX_BYTES)}
    )
    await asyncio.to_thread(broker.create_topic, other)
    async with AIOKafkaProducer(
        bootstrap_servers=broker.bootstrap,
        transactional_id=topic_names("producer"),
        max_request_size=MAX_BYTES,
    ) as producer:
        await send(producer, topic)

    store = await Store.open(
        sqlite_url(folder / "learnd.db"), artifacts_dir=folder, judge=JUDGE, clock=lambda: ARRIVED
    )
    facts: list[Any] = []
    connection = KafkaConnection(broker.bootstrap, topic_names("group"), (topic,), (other,))
    source = KafkaSource(
        connection,
        Ingest(store.intake, LINES, JUDGE, facts.append, lambda: ARRIVED),
        store.intake,
        facts.append,
    )
    stopping = asyncio.Event()
    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as tasks:
        tasks.create_task(source.run(stopping))
        while source.lag().get((topic, 0)) != 0 or not facts:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        stopping.set()

    rows = await store.database.read(lambda tx: tx.execute(select(events)).all())
    query = select(dead_letters).where(dead_letters.c.topic == topic).order_by(dead_letters.c.id)
    letters = await store.database.read(lambda tx: tx.execute(query).all())
    await store.close()
    assert {(row.source, row.partition) for row in letters} <= {("kafka", 0)}
    assert all(row.detail for row in letters)
    assert broker.end_offsets(topic) == {0: up_to}
    return Found(
        Counter(row.task_id for row in rows),
        sorted((row.offset, row.reason, row.raw) for row in letters),
    )


async def test_each_bad_record_is_a_dead_letter_and_its_neighbours_are_stored(
    kafka_broker: KafkaBroker, topic_names: TopicNames, tmp_path: Path
) -> None:
    bad: list[tuple[bytes | None, str, bytes | None]] = [
        *((value, reason, None) for value, reason in BAD_BYTES.values()),
        *BAD_IN_CONTEXT.values(),
    ]

    async def send(producer: AIOKafkaProducer, topic: str) -> None:
        async with producer.transaction():
            await producer.send(topic, TAKEN)
            for number, (value, _, content_type) in enumerate(bad):
                headers = [] if content_type is None else [("Content-Type", content_type)]
                await producer.send(topic, value, key=b"k", headers=headers)
                await producer.send(
                    topic,
                    output(task_id=f"good {number}"),
                    headers=[("content-type", b"application/json; charset=utf-8")],
                )

    up_to = 1 + 2 * len(bad) + 1  # the last one is the transaction's marker
    found = await read_topic(kafka_broker, topic_names, tmp_path, send, up_to)
    assert found.letters == [
        (1 + 2 * number, reason, value or b"") for number, (value, reason, _) in enumerate(bad)
    ]
    assert found.tasks == Counter(["taken", *(f"good {number}" for number in range(len(bad)))])


async def test_what_is_unusual_but_right_is_no_dead_letter(
    kafka_broker: KafkaBroker, topic_names: TopicNames, tmp_path: Path
) -> None:
    async def send(producer: AIOKafkaProducer, topic: str) -> None:
        async with producer.transaction():
            await producer.send(topic, output(task_id="without an id"))
            await producer.send(topic, with_json("task_id", '"the last of two keys"'))
        await producer.begin_transaction()
        await producer.send_and_wait(topic, output(task_id="aborted"))
        await producer.send_and_wait(topic, b"aborted and not JSON")
        await producer.abort_transaction()
        async with producer.transaction():
            await producer.send(topic, output(task_id="committed"))

    found = await read_topic(kafka_broker, topic_names, tmp_path, send, up_to=8)
    assert found.letters == []
    assert found.tasks == Counter(["without an id", "the last of two keys", "committed"])
