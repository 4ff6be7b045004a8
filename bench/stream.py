"""The stream that the intake benchmarks read: made events, and how each of them must end.

Seeded, so that every contender reads the same bytes. Ids are random, as most producers'
are (UUID 4): the worst case for an index.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from confluent_kafka import Producer

DUPLICATE_SHARE, BAD_SHARE, BELOW_BAR_SHARE = 0.01, 0.005, 0.13
TASK_TYPES = ("audio", "coding", "game", "website", "moderation")
PRODUCERS = ("assistant-eu", "assistant-us", "batch-scorer")
EVENT_BYTES = 1_200
RECENT = 20_000
"""A producer sends again what it sent lately."""
_TEXT = (
    "the caster calls a triple kill and the crowd of the arena goes wild over it while"
    " nobody hears that two streams lag behind by half a second or more on most evenings"
)
_WORDS = _TEXT.split()
_BAD = (
    lambda text: text[: len(text) // 2],
    lambda text: text.replace('"confidence":', '"confidence":1e', 1),
    lambda text: text.replace('"schema_version":1', '"schema_version":9', 1),
    lambda text: text.replace('"task_id"', '"taskid"', 1),
)


@dataclass(frozen=True)
class Expected:
    """How many records of a stream must end in which way."""

    records: int
    queued: int
    held: int
    dead_letters: int
    duplicates: int


def make(n: int, seed: int, now: datetime) -> tuple[list[bytes], Expected]:
    """`n` records in the order in which they are sent, and how they must end."""
    chance = random.Random(seed)
    records: list[bytes] = []
    recent: list[bytes] = []
    queued = held = dead_letters = duplicates = 0
    for text, below in _events(chance, now):
        if len(records) == n:
            break
        draw = chance.random()
        if draw < DUPLICATE_SHARE and recent:
            duplicates += 1
            records.append(chance.choice(recent))
        elif draw < DUPLICATE_SHARE + BAD_SHARE:
            dead_letters += 1
            records.append(chance.choice(_BAD)(text).encode())
        else:
            held += below
            queued += not below
            records.append(text.encode())
            recent.append(records[-1])
            del recent[:-RECENT]
    return records, Expected(len(records), queued, held, dead_letters, duplicates)


def _events(chance: random.Random, now: datetime) -> Iterator[tuple[str, bool]]:
    """Outputs as JSON, and whether each is below the bar."""
    while True:
        below = chance.random() < BELOW_BAR_SHARE
        event = {
            "schema_version": 1,
            "event_id": _uuid(chance),
            "producer": chance.choice(PRODUCERS),
            "task_id": _uuid(chance),
            "task_type": chance.choice(TASK_TYPES),
            "prompt": " ".join(chance.choices(_WORDS, k=50)),
            "output": "",
            "context": {"type": "speech", "mood": "hype", "pot": chance.randrange(1000)},
            "approved": True,
            "confidence": round(chance.uniform(0.3, 0.69) if below else chance.uniform(0.7, 1), 3),
            "model_version": "v1.2.3",
            "timestamp": (now - timedelta(seconds=chance.random() * 3600)).isoformat(),
        }
        missing = EVENT_BYTES - len(json.dumps(event, separators=(",", ":")))
        event["output"] = " ".join(chance.choices(_WORDS, k=missing // 4))[:missing]
        yield json.dumps(event, separators=(",", ":")), below


def _uuid(chance: random.Random) -> str:
    digits = chance.randbytes(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{digits[16:20]}-{digits[20:]}"


def send(bootstrap: str, topic: str, partitions: int, records: list[bytes]) -> None:
    """Produce records with lz4, spread evenly over the partitions of a topic."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "compression.type": "lz4",
            "linger.ms": 50,
            "batch.size": 262_144,
            "queue.buffering.max.messages": 500_000,
        }
    )
    for number, record in enumerate(records):
        producer.produce(topic, record, partition=number % partitions)
        if number % 5_000 == 0:
            producer.poll(0)
    if producer.flush(120):
        raise TimeoutError(f"{topic}: not all records were sent in two minutes")


def started_at() -> datetime:
    """The time that a stream's events are made around."""
    return datetime.now(UTC)
