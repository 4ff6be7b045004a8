"""An in-process Kafka broker for the demo: librdkafka's mock cluster.

Speaks the real protocol to real clients on a port of this machine, and forgets everything
when it is closed. Not for anything but showing and trying.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Final, NamedTuple, Self

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from daemon.demo.stream import Sample
from learning.ports import EventKind

TOPICS: Final[Mapping[EventKind, str]] = {
    EventKind.OUTPUT: "learnd.outputs",
    EventKind.FEEDBACK: "learnd.feedback",
}
ANSWER_SECONDS: Final = 10.0


class Place(NamedTuple):
    """Where the broker put a record."""

    topic: str
    partition: int
    offset: int


class Broker:
    """One broker with the topics of learnd, four partitions each, and a producer for them."""

    def __enter__(self) -> Self:
        self._producer = Producer(
            {
                "bootstrap.servers": "in-process",  # never asked: the mock takes its place
                "test.mock.num.brokers": 1,
                "log_level": 0,
            }
        )
        for topic in TOPICS.values():  # to ask for a topic makes it
            described = self._producer.list_topics(topic, timeout=ANSWER_SECONDS)
        self.address = ",".join(f"{each.host}:{each.port}" for each in described.brokers.values())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del self._producer  # the cluster ends with it

    async def send(self, samples: Sequence[Sample]) -> list[Place]:
        """Produce records and return where each stands. Raises KafkaException."""
        return await asyncio.to_thread(self._send, samples)

    def _send(self, samples: Iterable[Sample]) -> list[Place]:
        places: dict[int, Place] = {}
        refused: list[KafkaError] = []

        def note(index: int, error: KafkaError | None, message: Message) -> None:
            if error is not None:
                refused.append(error)
            else:
                topic, partition, offset = message.topic(), message.partition(), message.offset()
                assert topic is not None
                assert partition is not None
                assert offset is not None
                places[index] = Place(topic, partition, offset)

        for index, sample in enumerate(samples):
            self._producer.produce(
                TOPICS[sample.kind],
                sample.value,
                sample.key.encode(),
                on_delivery=partial(note, index),
            )
        unsent = self._producer.flush(ANSWER_SECONDS)
        if refused:
            raise KafkaException(refused[0])
        if unsent:
            raise KafkaException(KafkaError(KafkaError._MSG_TIMED_OUT))
        return [places[index] for index in sorted(places)]
