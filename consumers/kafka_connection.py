"""How to reach Kafka: addresses, topics and client options, for reading and for sending."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from learning.ports import EventKind


@dataclass(frozen=True)
class KafkaConnection:
    """One cluster, one consumer group, and the topics of each kind of event."""

    bootstrap_servers: str
    """host:port, several with commas."""
    group_id: str
    outputs_topics: tuple[str, ...]
    feedback_topics: tuple[str, ...]
    client: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Passed to every aiokafka client as it is: security_protocol, ssl_context, sasl_..."""
    max_records: int = 2_000
    """Records that are fetched, and of one partition stored, together."""
    max_batch_bytes: int = 8_000_000
    """Of a batch when it is inflated; a larger one is a dead letter as a whole."""
    session_timeout_seconds: float = 10.0
    """A consumer that is silent for so long loses its partitions."""

    @property
    def kinds(self) -> Mapping[str, EventKind]:
        """The kind of event that each topic carries, by topic."""
        return dict.fromkeys(self.outputs_topics, EventKind.OUTPUT) | dict.fromkeys(
            self.feedback_topics, EventKind.FEEDBACK
        )
