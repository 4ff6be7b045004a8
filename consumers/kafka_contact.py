"""Whether the broker of a consumer still answers, and where its partitions end.

aiokafka does not tell: a consumer whose broker is gone fetches nothing, for ever. Nor does it
fetch what is paused, so that its high-water marks grow old.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

log = structlog.get_logger(__name__)

ASK_SECONDS = 5.0
"""A broker that said nothing for so long is asked something."""
ANSWER_SECONDS = 2.0
AWAY_SECONDS = 15.0
"""A broker that said nothing for so long is away."""


class Contact:
    """Keeps in touch with the broker of one started consumer."""

    def __init__(self, consumer: Any, monotonic: Callable[[], float]) -> None:
        self._consumer = consumer
        self._monotonic = monotonic
        self._heard_at = self._ask_at = monotonic()
        self._fetched_at_ms = 0
        self._was_away = False
        self._ends: Mapping[TopicPartition, int] = {}

    @property
    def silent_seconds(self) -> float:
        """How long ago the broker said something last."""
        return self._monotonic() - self._heard_at

    @property
    def is_away(self) -> bool:
        """Whether that is so long that it is gone."""
        return self.silent_seconds > AWAY_SECONDS

    def end(self, partition: TopicPartition) -> int | None:
        """The offset of a partition's next record, as far as the broker has told."""
        told = (self._consumer.highwater(partition), self._ends.get(partition))
        return max((end for end in told if end is not None), default=None)

    async def keep(self, partitions: Collection[TopicPartition], *, fetching: bool) -> None:
        """Note what the broker said, and ask it when that is too long ago.

        `partitions` are assigned; with `fetching` all of them are fetched.
        """
        fetched_at_ms = max(
            (self._consumer.last_poll_timestamp(tp) or 0 for tp in partitions), default=0
        )
        if fetched_at_ms > self._fetched_at_ms:
            self._fetched_at_ms, self._heard_at = fetched_at_ms, self._monotonic()
        is_due = not fetching or self.silent_seconds > ASK_SECONDS
        if is_due and self._monotonic() > self._ask_at:
            await self._ask(partitions)
            self._ask_at = self._monotonic() + ASK_SECONDS
        if self.is_away != self._was_away:
            self._was_away = self.is_away
            log.warning("kafka does not answer" if self.is_away else "kafka answers again")

    async def _ask(self, partitions: Collection[TopicPartition]) -> None:
        # No answer is no news: that it lasts is told by `is_away`.
        with contextlib.suppress(KafkaError, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                if partitions:
                    self._ends = await self._consumer.end_offsets(list(partitions))
                else:
                    await self._consumer.topics()
            self._heard_at = self._monotonic()
