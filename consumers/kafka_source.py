"""Consume a Kafka cluster's topics into the store, and go on when Kafka was away.

Only the outer loop, and what health and metrics ask. What one membership of the consumer
group does is in kafka_membership.py.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from consumers.ingest import Ingest
from consumers.kafka_batches import bound_batches
from consumers.kafka_connection import KafkaConnection
from consumers.kafka_membership import Membership, Pauses
from learning.facts import Announce
from learning.ports import IntakeStore

log = structlog.get_logger(__name__)

METADATA_SECONDS = 10.0
"""How soon a new topic or partition is noticed."""
REQUEST_GRACE_SECONDS = 5.0


class KafkaSource:
    """Consumes the topics of one connection until told to stop."""

    def __init__(
        self,
        connection: KafkaConnection,
        ingest: Ingest,
        store: IntakeStore,
        announce: Announce,
        *,
        name: str = "kafka",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._ingest = ingest
        self._store = store
        self._announce = announce
        self._name = name
        self._monotonic = monotonic
        self._membership: Membership | None = None

    @property
    def ready(self) -> bool:
        """Whether the group was joined and every assigned partition is claimed and read."""
        return self._membership is not None and self._membership.ready

    @property
    def assigned(self) -> frozenset[tuple[str, int]]:
        """The (topic, partition) pairs that are claimed and read."""
        return frozenset() if self._membership is None else self._membership.assigned

    @property
    def stuck(self) -> Mapping[tuple[str, int], int]:
        """Where a partition waits before a batch that cannot be decoded: its next offset."""
        return {} if self._membership is None else self._membership.stuck

    def lag(self) -> Mapping[tuple[str, int], int]:
        """Records not yet stored, by (topic, partition), as of the broker's last answer."""
        return {} if self._membership is None else self._membership.lag()

    async def run(self, stopping: asyncio.Event) -> None:
        """Consume until `stopping` is set; then finish storing, commit and leave the group.

        Kafka and the store may be away for any time: both are tried again, with growing
        pauses. What else goes wrong is raised.
        """
        pauses = Pauses()
        while not stopping.is_set():
            try:
                await self._join(stopping, pauses)
            except KafkaError as error:
                pause = pauses.next()
                log.warning("kafka is not available", error=repr(error), retry_in_seconds=pause)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), pause)

    async def _join(self, stopping: asyncio.Event, pauses: Pauses) -> None:
        consumer = self._consumer()
        try:
            # Subscribed afterwards: with a subscription, start waits for topics and group.
            await consumer.start()
            bounds = bound_batches(consumer, self._connection.max_batch_bytes)
            self._membership = Membership(
                consumer,
                bounds,
                self._connection,
                self._ingest,
                self._store,
                self._announce,
                name=self._name,
                monotonic=self._monotonic,
            )
            pauses.reset()
            await self._membership.consume(stopping)
        finally:
            self._membership = None
            await consumer.stop()

    def _consumer(self) -> Any:
        session_ms = round(self._connection.session_timeout_seconds * 1000)
        options: dict[str, Any] = {
            "bootstrap_servers": self._connection.bootstrap_servers,
            "group_id": self._connection.group_id,
            "enable_auto_commit": False,
            "auto_offset_reset": "none",
            "isolation_level": "read_committed",
            "session_timeout_ms": session_ms,
            "heartbeat_interval_ms": max(1, session_ms // 3),
            # A request to join waits for the slowest member, for a session at most.
            "request_timeout_ms": session_ms + round(REQUEST_GRACE_SECONDS * 1000),
            "metadata_max_age_ms": round(METADATA_SECONDS * 1000),
        }
        return AIOKafkaConsumer(**(options | dict(self._connection.client)))
