"""A real broker, the real store, and everything that comes between them.

What is promised: each record is stored once, whatever is restarted, rebalanced, recreated,
fenced or down, and nothing that Kafka or a producer does stops the others.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import CorruptRecordException, KafkaError
from confluent_kafka import TopicPartition as Offset
from confluent_kafka.admin import AdminClient
from sqlalchemy import select
from structlog.testing import capture_logs

from consumers.ingest import Ingest
from consumers.kafka_batches import RecordsAsTheyAre
from consumers.kafka_connection import KafkaConnection
from consumers.kafka_membership import REJOIN_SECONDS, STUCK_SECONDS, Membership
from consumers.kafka_source import KafkaSource
from daemon.store import Store
from daemon.store.database import sqlite_url
from daemon.store.tables import events, feedback, positions
from learning.facts import EventsStored, Fact, PartitionFenced, TopicRecreated
from learning.lifecycle import FeedbackState
from learning.lines import ModelLine, ModelLines
from learning.ports import Block, IntakeStore, Position, StoreUnavailableError
from tests.builders import JUDGE
from tests.services.kafka import KafkaBroker

SECONDS = 60.0
NOTICE_SOON: dict[str, Any] = {"metadata_max_age_ms": 200}
LINES = ModelLines([ModelLine("normalize", frozenset({"normalize"}), None, "scripted")])

TopicNames = Callable[[str], str]


def now() -> datetime:
    return datetime.now(UTC)


def output(name: str, **fields: Any) -> bytes:
    event = {
        "producer": "studio",
        "event_id": name,
        "task_id": name,
        "task_type": "normalize",
        "prompt": f"normalize {name}",
        "output": f"normal {name}",
        "approved": True,
        **fields,
    }
    return json.dumps(event).encode()


def outputs(prefix: str, count: int) -> list[bytes]:
    return [output(f"{prefix}{number}") for number in range(count)]


async def until(reached: Callable[[], bool]) -> None:
    """Look again and again, until a condition holds or the patience ends."""
    async with asyncio.timeout(SECONDS):
        while not reached():  # noqa: ASYNC110 - not every state has an event to wait for
            await asyncio.sleep(0.01)


class UnreliableIntake:
    """The real intake behind a line that can be cut; it notes who claimed what."""

    def __init__(self, intake: IntakeStore) -> None:
        self._intake = intake
        self.cut_for = 0
        """So many of the next calls fail."""
        self.failures = 0
        self.hold: Callable[[], Awaitable[None]] | None = None
        """What is appended waits for this."""
        self.claims: list[Sequence[Position]] = []

    async def claim(
        self, source: str, partitions: Collection[tuple[str, int]]
    ) -> Sequence[Position]:
        self._maybe_fail()
        self.claims.append(await self._intake.claim(source, partitions))
        return self.claims[-1]

    async def rewind(self, source: str, claimed: Position, next_offset: int) -> Position:
        self._maybe_fail()
        return await self._intake.rewind(source, claimed, next_offset)

    async def append(self, *blocks: Block) -> EventsStored:
        self._maybe_fail()
        if self.hold is not None:
            await self.hold()
        return await self._intake.append(*blocks)

    def _maybe_fail(self) -> None:
        if self.cut_for > 0:
            self.cut_for -= 1
            self.failures += 1
            raise StoreUnavailableError("the line is cut")


@dataclass
class Reader:
    """A running source, and what it told."""

    source: KafkaSource
    intake: UnreliableIntake
    stopping: asyncio.Event
    facts: list[Fact]
    ahead_seconds: list[float]
    """One number: how far its clock is ahead."""

    @property
    def stored(self) -> int:
        return sum(sum(fact.outputs.values()) for fact in self._blocks())

    @property
    def duplicates(self) -> int:
        return sum(fact.duplicates for fact in self._blocks())

    @property
    def recreated(self) -> list[TopicRecreated]:
        return [fact for fact in self.facts if isinstance(fact, TopicRecreated)]

    def _blocks(self) -> list[EventsStored]:
        return [fact for fact in self.facts if isinstance(fact, EventsStored)]

    def let_pass(self, seconds: float) -> None:
        """Put its clock forward."""
        self.ahead_seconds[0] += seconds


@dataclass
class Bench:
    """One broker, one store, one group, and the topics of one test."""

    broker: KafkaBroker
    store: Store
    group: str
    topic: str
    feedback_topic: str

    @asynccontextmanager
    async def reading(self, *, max_records: int = 2_000, **client: Any) -> AsyncIterator[Reader]:
        """A source that runs inside the block, and has stopped after it."""
        connection = KafkaConnection(
            self.broker.bootstrap,
            self.group,
            (self.topic,),
            (self.feedback_topic,),
            client=client,
            max_records=max_records,
            session_timeout_seconds=6.0,
        )
        intake, facts, ahead = UnreliableIntake(self.store.intake), list[Fact](), [0.0]
        source = KafkaSource(
            connection,
            Ingest(intake, LINES, JUDGE, facts.append, now),
            intake,
            facts.append,
            monotonic=lambda: time.monotonic() + ahead[0],
        )
        stopping = asyncio.Event()
        async with asyncio.timeout(2 * SECONDS), asyncio.TaskGroup() as tasks:
            tasks.create_task(source.run(stopping))
            try:
                yield Reader(source, intake, stopping, facts, ahead)
            finally:
                stopping.set()

    async def create_topics(self, partitions: int = 1) -> None:
        await asyncio.to_thread(self.broker.create_topic, self.topic, partitions)
        await asyncio.to_thread(self.broker.create_topic, self.feedback_topic)

    async def recreate_topic(self) -> None:
        await asyncio.to_thread(self.broker.delete_topic, self.topic)
        await asyncio.to_thread(self.broker.create_topic, self.topic)

    async def produce(
        self, values: Sequence[bytes | None], *, partition: int | None = None
    ) -> None:
        await asyncio.to_thread(self.broker.produce, self.topic, values, partition=partition)

    async def delete_records(self, *, before: int) -> None:
        """As retention would."""
        admin = AdminClient({"bootstrap.servers": self.broker.bootstrap})
        (deleted,) = admin.delete_records([Offset(self.topic, 0, before)]).values()
        await asyncio.to_thread(deleted.result)

    async def stored_tasks(self) -> Counter[str]:
        query = select(events.c.task_id)
        return await self.store.database.read(lambda tx: Counter(tx.execute(query).scalars()))

    async def stored_positions(self) -> dict[int, int]:
        query = select(positions).where(positions.c.topic == self.topic)
        rows = await self.store.database.read(lambda tx: tx.execute(query).all())
        return {row.partition: row.next_offset for row in rows if row.next_offset is not None}


@pytest.fixture
async def bench(
    kafka_broker: KafkaBroker, topic_names: TopicNames, tmp_path: Path
) -> AsyncIterator[Bench]:
    store = await Store.open(
        sqlite_url(tmp_path / "learnd.db"), artifacts_dir=tmp_path, judge=JUDGE, clock=now
    )
    names = [topic_names(stem) for stem in ("group", "outputs", "feedback")]
    yield Bench(kafka_broker, store, *names)
    await store.close()


# --- positions ------------------------------------------------------------------------


async def test_a_restarted_source_goes_on_where_the_store_is(bench: Bench) -> None:
    await bench.create_topics(partitions=3)
    await bench.produce(outputs("a", 50))
    async with bench.reading() as first:
        await until(lambda: first.stored == 50)
    await bench.produce(outputs("b", 20))
    async with bench.reading() as second:
        await until(lambda: second.stored == 20)
    assert set((await bench.stored_tasks()).values()) == {1}
    assert sum((await bench.stored_positions()).values()) == 70
    assert second.duplicates == 0
    assert second.recreated == []


async def test_the_store_decides_and_not_what_was_committed_to_kafka(bench: Bench) -> None:
    await bench.create_topics()
    await bench.produce(outputs("a", 10))
    consumer = AIOKafkaConsumer(
        bench.topic,
        bootstrap_servers=bench.broker.bootstrap,
        group_id=bench.group,
        enable_auto_commit=False,
    )
    await consumer.start()
    await consumer.commit({TopicPartition(bench.topic, 0): 8})
    await consumer.stop()

    async with bench.reading() as reader:
        await until(lambda: reader.stored == 10)
    assert await bench.stored_positions() == {0: 10}


async def test_lag_tools_see_how_far_the_store_is(bench: Bench) -> None:
    await bench.create_topics()
    await bench.produce(outputs("a", 10))
    async with bench.reading() as reader:
        await until(lambda: reader.stored == 10)
        await until(
            lambda: reader.source.lag() == {(bench.topic, 0): 0, (bench.feedback_topic, 0): 0}
        )
        await until(lambda: reader.source.ready)
        assert reader.source.assigned == {(bench.topic, 0), (bench.feedback_topic, 0)}
    assert reader.source.assigned == frozenset()
    assert reader.source.lag() == {}
    assert not reader.source.ready

    consumer = AIOKafkaConsumer(bootstrap_servers=bench.broker.bootstrap, group_id=bench.group)
    await consumer.start()
    assert await consumer.committed(TopicPartition(bench.topic, 0)) == 10
    await consumer.stop()


async def test_records_that_expired_while_nobody_read_are_missed_loudly(bench: Bench) -> None:
    await bench.create_topics()
    await bench.produce(outputs("a", 3))
    async with bench.reading() as first:
        await until(lambda: first.stored == 3)
    await bench.produce(outputs("b", 7))
    await bench.delete_records(before=8)

    with capture_logs() as logs:
        async with bench.reading() as second:
            await until(lambda: second.stored == 2)
    assert [(error["partition"], error["n_offsets"]) for error in _errors(logs)] == [(0, 5)]
    assert second.recreated == []
    assert await bench.stored_positions() == {0: 10}


async def test_records_that_expired_under_a_running_source_are_missed_loudly(bench: Bench) -> None:
    await bench.create_topics()
    with capture_logs() as logs:
        async with bench.reading() as reader:
            await bench.produce(outputs("a", 3))
            await until(lambda: reader.stored == 3)
            reader.intake.cut_for = 1
            await bench.produce(outputs("b", 7))
            await until(lambda: reader.intake.failures == 1)
            await bench.delete_records(before=8)
            await until(lambda: reader.stored == 5)
            assert len(reader.intake.claims) == 1
    assert [(error["partition"], error["n_offsets"]) for error in _errors(logs)] == [(0, 5)]
    assert reader.recreated == []


def _errors(logs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [entry for entry in logs if entry["log_level"] == "error"]


# --- a topic that was deleted and made again --------------------------------------------


@pytest.mark.parametrize("count", [0, 4, 9, 10, 25])
async def test_a_topic_made_anew_while_nobody_read_is_read_from_its_start(
    bench: Bench, count: int
) -> None:
    await bench.create_topics()
    await bench.produce(outputs("old", 10))
    async with bench.reading() as first:
        await until(lambda: first.stored == 10)
    await bench.recreate_topic()
    await bench.produce(outputs("new", count))

    async with bench.reading() as second:
        await until(lambda: bool(second.recreated))
        await until(lambda: second.stored == count)
    assert second.recreated == [TopicRecreated(bench.topic, 0, 10, 0)]
    assert await bench.stored_tasks() == Counter(
        [f"old{n}" for n in range(10)] + [f"new{n}" for n in range(count)]
    )
    assert await bench.stored_positions() == {0: count}


async def test_what_is_sent_again_to_a_topic_made_anew_is_stored_once(bench: Bench) -> None:
    await bench.create_topics()
    await bench.produce(outputs("a", 10))
    async with bench.reading() as first:
        await until(lambda: first.stored == 10)
    await bench.recreate_topic()
    await bench.produce(outputs("a", 12))
    async with bench.reading() as second:
        await until(lambda: second.stored == 2)
    assert second.duplicates == 10
    assert len(second.recreated) == 1
    assert set((await bench.stored_tasks()).values()) == {1}


async def test_a_topic_made_anew_under_a_running_source_is_noticed(bench: Bench) -> None:
    await bench.create_topics()
    await bench.produce(outputs("old", 5))
    async with bench.reading(**NOTICE_SOON) as reader:
        await until(lambda: reader.stored == 5)
        await bench.recreate_topic()
        await bench.produce(outputs("new", 5))
        await until(lambda: reader.stored == 10)
    assert len(reader.recreated) == 1
    assert set((await bench.stored_tasks()).values()) == {1}


# --- what is in the topic ----------------------------------------------------------------


async def test_aborted_records_are_never_stored(bench: Bench, topic_names: TopicNames) -> None:
    await bench.create_topics()
    async with AIOKafkaProducer(
        bootstrap_servers=bench.broker.bootstrap, transactional_id=topic_names("producer")
    ) as producer:
        async with bench.reading() as reader:
            await producer.begin_transaction()
            await producer.send_and_wait(bench.topic, output("aborted"))
            await producer.abort_transaction()
            async with producer.transaction():
                await producer.send_and_wait(bench.topic, output("committed"))
            await until(lambda: reader.stored == 1)
            # Offset 0 was aborted, 1 and 3 are markers.
            await until(lambda: reader.source.lag().get((bench.topic, 0)) == 0)
        async with bench.reading() as restarted:
            async with producer.transaction():
                await producer.send_and_wait(bench.topic, output("later"))
            await until(lambda: restarted.stored == 1)
    assert await bench.stored_tasks() == Counter(["committed", "later"])
    assert restarted.recreated == []


async def test_feedback_is_read_from_its_own_topic_and_joined(bench: Bench) -> None:
    await bench.create_topics()
    said = {"producer": "chat", "task_id": "a", "task_type": "normalize", "approved": True}
    async with bench.reading() as reader:
        await bench.produce([output("a", approved=None)])
        await asyncio.to_thread(
            bench.broker.produce, bench.feedback_topic, [json.dumps(said).encode()]
        )
        await until(
            lambda: (
                sum(
                    sum(fact.rejudged.values())
                    for fact in reader.facts
                    if isinstance(fact, EventsStored)
                )
                == 1
            )
        )
    query = select(feedback.c.state)
    states = await bench.store.database.read(lambda tx: tx.execute(query).scalars().all())
    assert states == [FeedbackState.JOINED]


async def test_a_batch_that_cannot_be_decoded_holds_up_only_its_partition(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A broker refuses a corrupt batch, so the fault is put where aiokafka would raise it.
    hand_on = RecordsAsTheyAre._consumer_record

    def corrupt(records: Any, tp: Any, record: Any) -> Any:
        if record.value == b"corrupt":
            raise CorruptRecordException("Invalid CRC")
        return hand_on(records, tp, record)

    await bench.create_topics(partitions=4)
    await bench.produce([*outputs("a", 5), b"corrupt", *outputs("b", 5)], partition=3)
    for good in range(3):
        await bench.produce(outputs(f"c{good}-", 10), partition=good)
    with monkeypatch.context() as patched, capture_logs() as logs:
        patched.setattr(RecordsAsTheyAre, "_consumer_record", corrupt)
        async with bench.reading() as reader:
            await until(lambda: reader.source.stuck == {(bench.topic, 3): 5})
            await bench.produce(outputs("d", 10), partition=1)
            await until(lambda: reader.stored == 45)
            assert await bench.stored_positions() == {0: 10, 1: 20, 2: 10, 3: 5}
            patched.undo()
            reader.let_pass(STUCK_SECONDS)
            await until(lambda: reader.stored == 50)
            assert reader.source.stuck == {}
    assert reader.duplicates == 0
    (error,) = [entry for entry in logs if "offset" in entry]
    assert (error["log_level"], error["partition"], error["offset"]) == ("error", 3, 5)
    assert await bench.stored_positions() == {0: 10, 1: 20, 2: 10, 3: 11}


# --- several owners ------------------------------------------------------------------------


async def test_two_sources_of_one_group_share_the_partitions_and_lose_nothing(
    bench: Bench,
) -> None:
    await bench.create_topics(partitions=6)
    own = {bench.topic, bench.feedback_topic}
    async with bench.reading() as first:
        await bench.produce(outputs("a", 300))
        await until(lambda: first.stored == 300)
        async with bench.reading() as second:
            await bench.produce(outputs("b", 300))
            await until(lambda: len(second.source.assigned) == 3 or len(first.source.assigned) == 3)
            await until(lambda: len(first.source.assigned | second.source.assigned) == 7)
            assert not first.source.assigned & second.source.assigned
            await bench.produce(outputs("c", 300))
            await until(lambda: first.stored + second.stored == 900)
            assert first.source.ready
            assert second.source.ready
        await until(lambda: len(first.source.assigned) == 7)
        await bench.produce(outputs("d", 300))
        await until(lambda: first.stored + second.stored == 1_200)
        assert {topic for topic, _ in first.source.assigned} == own
    assert second.stored > 0
    assert len(await bench.stored_tasks()) == 1_200
    assert set((await bench.stored_tasks()).values()) == {1}
    assert sum((await bench.stored_positions()).values()) == 1_200


async def test_a_source_that_was_fenced_writes_nothing_until_it_joined_again(bench: Bench) -> None:
    await bench.create_topics()
    async with bench.reading() as reader:
        await bench.produce(outputs("a", 3))
        await until(lambda: reader.stored == 3)
        await until(lambda: reader.source.ready)
        await bench.store.intake.claim("kafka", [(bench.topic, 0)])  # as another owner would
        await bench.produce(outputs("late", 3))
        await until(lambda: not reader.source.ready)
        refused = [fact for fact in reader.facts if isinstance(fact, PartitionFenced)]
        assert refused == [PartitionFenced(bench.topic, 0, epoch=1)]
        assert (bench.topic, 0) not in reader.source.assigned
        assert await bench.stored_positions() == {0: 3}
        assert reader.stored == 3

        reader.let_pass(REJOIN_SECONDS)  # nobody else turned up in the group
        await until(lambda: reader.stored == 6)
        assert reader.source.ready
    assert set((await bench.stored_tasks()).values()) == {1}
    assert reader.duplicates == 0


async def test_a_partition_that_is_lost_takes_none_of_its_block_with_it(bench: Bench) -> None:
    await bench.create_topics(partitions=2)
    async with bench.reading() as reader:
        await until(lambda: len(reader.source.assigned) == 3)
        await bench.store.intake.claim("kafka", [(bench.topic, 0)])
        for _ in range(5):
            for partition in (0, 1):
                await bench.produce(outputs(f"{partition}-{_}-", 20), partition=partition)
        await until(lambda: reader.stored == 100)
        await until(lambda: (bench.topic, 0) not in reader.source.assigned)
    stored = await bench.stored_tasks()
    assert {task[0] for task in stored} == {"1"}
    assert set(stored.values()) == {1}
    assert await bench.stored_positions() == {1: 100}


async def test_a_partition_may_be_lost_while_its_offset_is_committed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_commit = AIOKafkaConsumer.commit
    committed: list[Mapping[TopicPartition, int]] = []
    storing, committing = asyncio.Event(), asyncio.Event()

    async def store_while_committing() -> None:
        if not storing.is_set():
            storing.set()
            reader.let_pass(60)  # the next commit is due
        await committing.wait()

    async def commit(consumer: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int]) -> None:
        if not storing.is_set():
            raise KafkaError("later")
        committing.set()
        await until(lambda: (bench.topic, 0) not in reader.source.assigned)
        await really_commit(consumer, offsets)
        committed.append(offsets)

    monkeypatch.setattr(AIOKafkaConsumer, "commit", commit)
    await bench.create_topics(partitions=2)
    async with bench.reading(max_records=10) as reader:
        await bench.produce(outputs("a", 10), partition=0)
        await until(lambda: reader.stored == 10)
        reader.intake.hold = store_while_committing
        await bench.store.intake.claim("kafka", [(bench.topic, 0)])
        await bench.produce(outputs("b", 30), partition=0)  # a block waits, others are handed on
        await until(lambda: bool(committed))
        await bench.produce(outputs("c", 10), partition=1)
        await until(lambda: reader.stored == 20)
    assert committed[0][TopicPartition(bench.topic, 0)] == 10


async def test_small_fetches_in_a_row_are_stored_whole_and_once(bench: Bench) -> None:
    """Each is read while the one before is stored, and several are stored together."""
    await bench.create_topics(partitions=3)
    await bench.produce(outputs("a", 900))
    async with bench.reading(max_records=10) as reader:
        await until(lambda: reader.stored >= 300)
        reader.intake.cut_for = 2
        await until(lambda: reader.stored == 900)
    assert set((await bench.stored_tasks()).values()) == {1}
    assert sum((await bench.stored_positions()).values()) == 900
    assert reader.duplicates == 0


async def test_an_error_in_a_rebalance_callback_ends_the_source(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(membership: Membership) -> None:
        raise ZeroDivisionError("in the callback")

    monkeypatch.setattr(Membership, "revoke", broken)
    await bench.create_topics()
    with pytest.RaisesGroup(pytest.RaisesExc(ZeroDivisionError, match="in the callback")):
        async with bench.reading() as reader:
            await until(lambda: reader.stopping.is_set())


# --- outages ---------------------------------------------------------------------------------


async def test_when_the_store_is_away_reading_pauses_and_nothing_is_lost(bench: Bench) -> None:
    await bench.create_topics()
    async with bench.reading() as reader:
        await bench.produce(outputs("a", 5))
        await until(lambda: reader.stored == 5)
        reader.intake.cut_for = 2
        await bench.produce(outputs("b", 5))
        await until(lambda: reader.intake.failures == 2)
        await bench.produce(outputs("c", 5))
        await until(lambda: reader.stored == 15)
        assert reader.duplicates == 0
        assert len(reader.intake.claims) == 1, "it lost its membership meanwhile"
    assert set((await bench.stored_tasks()).values()) == {1}


async def test_a_store_that_is_away_at_the_start_is_waited_for(bench: Bench) -> None:
    await bench.create_topics()
    await bench.produce(outputs("a", 5))
    async with bench.reading() as reader:
        reader.intake.cut_for = 1
        await until(lambda: reader.intake.failures == 1)
        assert not reader.source.ready
        await until(lambda: reader.stored == 5)


async def test_a_source_stops_while_the_store_is_away(bench: Bench) -> None:
    await bench.create_topics()
    await bench.produce(outputs("a", 5))
    async with bench.reading() as reader:
        reader.intake.cut_for = 1_000
        await until(lambda: reader.intake.failures == 2)
    assert await bench.stored_positions() == {}


async def test_a_topic_that_does_not_exist_yet_is_waited_for(bench: Bench) -> None:
    with capture_logs() as logs:
        async with bench.reading(**NOTICE_SOON) as reader:
            await until(lambda: any(entry.get("topic") == bench.topic for entry in logs))
            assert reader.source.ready
            await bench.create_topics(partitions=2)
            await bench.produce(outputs("a", 10))
            await until(lambda: reader.stored == 10)
    said = [entry["event"] for entry in logs if entry.get("topic") == bench.topic]
    assert said == ["the topic does not exist yet: waiting for it", "the topic exists now"]


async def test_a_broker_that_is_away_is_waited_for(bench: Bench) -> None:
    await bench.create_topics()
    await bench.produce(outputs("a", 5))
    await asyncio.to_thread(bench.broker.stop)
    try:
        with capture_logs() as logs:
            async with bench.reading() as reader:
                await until(lambda: any("not available" in entry["event"] for entry in logs))
                assert not reader.source.ready
                await asyncio.to_thread(bench.broker.start)
                await until(lambda: reader.stored == 5)
                await asyncio.to_thread(bench.broker.restart)
                await bench.produce(outputs("b", 5))
                await until(lambda: reader.stored == 10)
                assert reader.duplicates == 0
    finally:
        await asyncio.to_thread(bench.broker.start)


async def test_a_source_stops_while_the_broker_is_away(bench: Bench) -> None:
    await bench.create_topics()
    async with bench.reading() as reader:
        await until(lambda: reader.source.ready)
        await asyncio.to_thread(bench.broker.stop)
        reader.stopping.set()
    await asyncio.to_thread(bench.broker.start)
