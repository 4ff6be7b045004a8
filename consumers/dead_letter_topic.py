"""Copy dead letters to a Kafka topic, behind intake's back.

The database stays where they are kept, listed and replayed; the topic is for who watches
Kafka. At least once: what is sent and not marked is sent again. Kafka may be away for any
time; nobody waits for it here.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from consumers.kafka_connection import KafkaConnection
from consumers.kafka_membership import Pauses
from learning.ports import Outbox, OutgoingLetter, StoreUnavailableError

log = structlog.get_logger(__name__)

LOOK_SECONDS = 5.0
"""How often other daemons' letters, left behind by a crash, are looked for."""
MOST_AT_ONCE = 20
MAX_REQUEST_BYTES = 2_000_000
SHORTENED_BYTES = 100_000
"""Of a letter that Kafka does not take even so; the database has all of it."""
SEND_SECONDS = 10.0
STOP_SECONDS = 2.0


class DeadLetterTopic:
    """Publishes what the outbox holds."""

    def __init__(self, connection: KafkaConnection, topic: str, outbox: Outbox) -> None:
        self._connection = connection
        self._topic = topic
        self._outbox = outbox
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look now: there are new dead letters."""
        self._wake.set()

    async def run(self) -> None:
        """Publish until cancelled."""
        pauses = Pauses()
        while True:
            try:
                await self._publish_all(pauses)
            except (KafkaError, StoreUnavailableError, TimeoutError) as error:
                pause = pauses.next()
                log.warning(
                    "dead letters are not copied to their topic for now; the database has them",
                    topic=self._topic,
                    error=repr(error),
                    retry_in_seconds=pause,
                )
                await asyncio.sleep(pause)

    async def _publish_all(self, pauses: Pauses) -> None:
        producer = self._producer()
        try:
            await producer.start()
            while True:
                self._wake.clear()
                while letters := await self._outbox.take(MOST_AT_ONCE):
                    await self._publish(producer, letters)
                    pauses.reset()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), LOOK_SECONDS)
        finally:
            # What it still holds is not marked, and sent again.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(producer.stop(), STOP_SECONDS)

    async def _publish(self, producer: Any, letters: Sequence[OutgoingLetter]) -> None:
        """Send some letters, and mark those that Kafka has. Raises the first error."""
        async with asyncio.timeout(SEND_SECONDS):
            results = await asyncio.gather(
                *(self._send(producer, letter) for letter in letters), return_exceptions=True
            )
        errors = [result for result in results if isinstance(result, BaseException)]
        sent = [
            letter.id
            for letter, result in zip(letters, results, strict=True)
            if not isinstance(result, BaseException)
        ]
        if sent:
            await self._outbox.mark(sent)
        for error in errors:
            raise error

    async def _send(self, producer: Any, letter: OutgoingLetter) -> None:
        raw = letter.letter.raw
        headers = _headers(letter)
        try:
            await producer.send_and_wait(self._topic, raw, headers=headers)
        except MessageSizeTooLargeError:
            await producer.send_and_wait(self._topic, raw[:SHORTENED_BYTES], headers=headers)

    def _producer(self) -> Any:
        options: dict[str, Any] = {
            "bootstrap_servers": self._connection.bootstrap_servers,
            "acks": "all",
            "max_request_size": MAX_REQUEST_BYTES,
        }
        return AIOKafkaProducer(**(options | dict(self._connection.client)))


def _headers(outgoing: OutgoingLetter) -> list[tuple[str, bytes]]:
    letter = outgoing.letter
    values = {
        "id": outgoing.id,
        "kind": letter.kind,
        "reason": letter.reason,
        "detail": letter.detail,
        "source": letter.origin.source,
        "topic": letter.origin.topic,
        "partition": letter.origin.partition,
        "offset": letter.origin.offset,
        "received_at": letter.received_at.isoformat(),
        "bytes": outgoing.n_bytes,
    }
    return [(name, str(value).encode()) for name, value in values.items()]
