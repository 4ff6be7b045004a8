"""The broker that other tests stand on: real groups, real transactions, data that survives.

These test the test bench, not learnd.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from confluent_kafka import KafkaException

from tests.services import require
from tests.services.kafka import KafkaBroker

SECONDS = 30.0
ROOT = Path(__file__).parents[2]

TopicNames = Callable[[str], str]


@asynccontextmanager
async def consumer_of(
    broker: KafkaBroker, topic: str, group: str, **settings: str
) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=broker.bootstrap,
        group_id=group,
        heartbeat_interval_ms=200,  # a member learns of a rebalance by its heartbeat
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        **settings,
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def read(consumer: AIOKafkaConsumer, count: int) -> list[bytes]:
    async with asyncio.timeout(SECONDS):
        return [(await consumer.getone()).value for _ in range(count)]


async def test_a_group_goes_on_where_it_committed(
    kafka_broker: KafkaBroker, topic_names: TopicNames
) -> None:
    topic, group = topic_names("outputs"), topic_names("group")
    kafka_broker.create_topic(topic)
    kafka_broker.produce(topic, [b"one", b"two", b"three"])

    async with consumer_of(kafka_broker, topic, group) as consumer:
        assert await read(consumer, 2) == [b"one", b"two"]
        await consumer.commit({TopicPartition(topic, 0): 2})

    async with consumer_of(kafka_broker, topic, group) as consumer:
        assert await read(consumer, 1) == [b"three"]


async def test_two_members_of_a_group_share_the_partitions(
    kafka_broker: KafkaBroker, topic_names: TopicNames
) -> None:
    topic, group = topic_names("outputs"), topic_names("group")
    kafka_broker.create_topic(topic, partitions=2)
    kafka_broker.produce(topic, [b"left"], partition=0)
    kafka_broker.produce(topic, [b"right"], partition=1)

    async with (
        consumer_of(kafka_broker, topic, group) as first,
        consumer_of(kafka_broker, topic, group) as second,
    ):
        async with asyncio.timeout(SECONDS):
            while not (len(first.assignment()) == len(second.assignment()) == 1):
                await asyncio.gather(first.getmany(timeout_ms=20), second.getmany(timeout_ms=20))
        assert first.assignment() | second.assignment() == {
            TopicPartition(topic, 0),
            TopicPartition(topic, 1),
        }


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
async def test_a_restart_keeps_records_and_commits(
    kafka_broker: KafkaBroker, topic_names: TopicNames, how: signal.Signals
) -> None:
    topic, group = topic_names("outputs"), topic_names("group")
    kafka_broker.create_topic(topic, partitions=2)
    kafka_broker.produce(topic, [b"before", b"after"], partition=1)
    async with consumer_of(kafka_broker, topic, group) as consumer:
        assert await read(consumer, 1) == [b"before"]
        await consumer.commit({TopicPartition(topic, 1): 1})
    address = kafka_broker.bootstrap

    await asyncio.to_thread(kafka_broker.restart, how)

    assert kafka_broker.bootstrap == address
    assert kafka_broker.end_offsets(topic) == {0: 0, 1: 2}
    async with consumer_of(kafka_broker, topic, group) as consumer:
        assert await read(consumer, 1) == [b"after"]


async def test_a_connected_consumer_goes_on_after_an_outage(
    kafka_broker: KafkaBroker, topic_names: TopicNames
) -> None:
    topic = topic_names("outputs")
    kafka_broker.create_topic(topic)
    kafka_broker.produce(topic, [b"before"])
    async with consumer_of(kafka_broker, topic, topic_names("group")) as consumer:
        assert await read(consumer, 1) == [b"before"]
        await asyncio.to_thread(kafka_broker.restart)
        kafka_broker.produce(topic, [b"after"])
        assert await read(consumer, 1) == [b"after"]


async def test_aborted_records_are_hidden_from_read_committed_only(
    kafka_broker: KafkaBroker, topic_names: TopicNames
) -> None:
    topic = topic_names("outputs")
    kafka_broker.create_topic(topic)
    async with AIOKafkaProducer(
        bootstrap_servers=kafka_broker.bootstrap, transactional_id=topic_names("producer")
    ) as producer:
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"aborted")
        await producer.abort_transaction()
        async with producer.transaction():
            await producer.send_and_wait(topic, b"committed")

    async with consumer_of(
        kafka_broker, topic, topic_names("careful"), isolation_level="read_committed"
    ) as careful:
        assert await read(careful, 1) == [b"committed"]
    async with consumer_of(
        kafka_broker, topic, topic_names("careless"), isolation_level="read_uncommitted"
    ) as careless:
        assert await read(careless, 2) == [b"aborted", b"committed"]


def test_produce_says_where_each_record_is(
    kafka_broker: KafkaBroker, topic_names: TopicNames
) -> None:
    topic = topic_names("outputs")
    kafka_broker.create_topic(topic, partitions=3)
    assert kafka_broker.produce(topic, [b"a", None], partition=2) == [(2, 0), (2, 1)]
    by_key = kafka_broker.produce(topic, [b"b", b"c"], keys=[b"same", b"same"])
    assert by_key[0].partition == by_key[1].partition
    assert sum(kafka_broker.end_offsets(topic).values()) == 4


def test_a_record_that_was_not_stored_is_an_error(
    kafka_broker: KafkaBroker, topic_names: TopicNames
) -> None:
    with pytest.raises(KafkaException, match="UNKNOWN_TOPIC"):
        kafka_broker.produce(topic_names("never-made"), [b"lost"])


def test_a_recreated_topic_starts_again_at_zero(
    kafka_broker: KafkaBroker, topic_names: TopicNames
) -> None:
    topic = topic_names("outputs")
    kafka_broker.create_topic(topic, partitions=2)
    kafka_broker.produce(topic, [b"old"] * 3, partition=0)
    kafka_broker.delete_topic(topic)
    with pytest.raises(KafkaException, match="UNKNOWN_TOPIC"):
        kafka_broker.end_offsets(topic)
    kafka_broker.create_topic(topic, partitions=1)
    assert kafka_broker.end_offsets(topic) == {0: 0}


def test_the_broker_dies_with_the_process_that_started_it(
    kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    # `kafka_broker` is here for its skip where there is no Java; this one is a second broker.
    script = """
from tests.services import require
from tests.services.kafka import KafkaBroker
with KafkaBroker() as broker:
    print(broker.bootstrap, flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},  # nobody will be left to clean up
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        host, port = owner.stdout.readline().strip().split(":")
        with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
            owner.kill()
            try:
                end = connection.recv(1)  # the broker itself never speaks first
            except ConnectionResetError:
                end = b""
    assert end == b""


def test_a_missing_service_skips_on_a_laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Java"):
        require("Kafka", "no Java")


def test_a_missing_service_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no Java"):
        require("Kafka", "no Java")
    require("Kafka", None)
