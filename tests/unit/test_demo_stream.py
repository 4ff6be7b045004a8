"""The demo's traffic is what it says it is: the real wire, policy and store agree."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from consumers.ingest import Ingest
from consumers.reading import Record
from daemon.demo.stream import POISON, TASKS, Fate, Sample, Stream
from daemon.store import Store
from daemon.store.views.events import Events
from learning.events import OutputEvent, prompt_key
from learning.facts import EventsStored
from learning.judge import Judge
from learning.lines import ModelLine, ModelLines
from learning.policy import Policy
from learning.ports import Origin
from learning.validators import built_in

NOW = datetime(2026, 1, 2, tzinfo=UTC)
JUDGE = Judge(Policy, built_in(100_000))
NOISE = {
    "approved, low confidence": 4,
    "no verdict given": 3,
    "rejected by the producer": 4,
    "blank output": 2,
    "low confidence, a person says yes": 3,
    "approved, a person says no": 2,
    "feedback": 5,
    "bytes, not text": 1,
    "cut off in transit": 1,
    "confidence NaN": 1,
    "confidence as text": 1,
    "misspelt field": 1,
    "unknown task type": 1,
    "approved, confident": 1,
    "sent twice": 1,
    "id used again": 1,
}


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(
        f"sqlite:///{tmp_path / 'learnd.db'}",
        artifacts_dir=tmp_path / "artifacts",
        judge=JUDGE,
        clock=lambda: NOW,
    )
    yield opened
    await opened.close()


async def take_in(store: Store, samples: Sequence[Sample]) -> EventsStored:
    """Send samples down the one path of intake, in their order."""
    lines = ModelLines(ModelLine(name, frozenset({name}), "base", "local") for name in TASKS)
    ingest = Ingest(store.intake, lines, JUDGE, lambda _: None, lambda: NOW)
    records = [
        Record(sample.kind, sample.value, Origin("kafka", "demo", 0, offset))
        for offset, sample in enumerate(samples)
    ]
    return await ingest.store_block("kafka", records)


def test_the_same_seed_gives_the_same_records() -> None:
    def records(seed: int) -> list[Sample]:
        stream = Stream(seed)
        return [*stream.approved("coding", 5), *stream.noise("normalize")]

    assert records(7) == records(7)
    assert records(7) != records(8)


def test_labelled_examples_have_no_prompt_twice() -> None:
    for task_type in TASKS:
        examples = Stream(1).labelled(task_type, 60)
        keys = {
            prompt_key(OutputEvent(producer="p", task_id="t", task_type="t", prompt=p, output=o))
            for p, o in examples
        }
        assert len(keys) == len(examples) == 60


def test_noise_has_some_of_everything() -> None:
    samples = Stream(3).noise("normalize")

    assert Counter(sample.sort for sample in samples) == NOISE
    assert {sample.fate for sample in samples} == set(Fate)


@pytest.mark.parametrize("task_type", TASKS)
async def test_every_record_meets_the_fate_that_is_announced(store: Store, task_type: str) -> None:
    stream = Stream(5)
    samples = [*stream.approved(task_type, 6), *stream.noise(task_type)]
    fates = Counter(sample.fate for sample in samples)

    stored = await take_in(store, samples)

    states = {event.event_id: event.state for event in (await Events(store.database).page()).items}
    announced = {
        sample.event_id: sample.fate
        for sample in samples
        if sample.fate not in (Fate.FEEDBACK, Fate.DUPLICATE, Fate.DEAD_LETTER)
    }
    assert states == announced
    assert stored.duplicates == fates[Fate.DUPLICATE]
    assert sum(stored.dead_letters.values()) == fates[Fate.DEAD_LETTER]
    assert sum(stored.feedback.values()) == fates[Fate.FEEDBACK]
    assert len(states) + stored.duplicates + sum(stored.dead_letters.values()) + sum(
        stored.feedback.values()
    ) == len(samples)


@pytest.mark.parametrize("task_type", POISON)
async def test_poison_is_approved_and_wrong(store: Store, task_type: str) -> None:
    poison = Stream(5).poisoned(task_type, 4)

    await take_in(store, poison)

    stored = (await Events(store.database).page()).items
    assert [event.state for event in stored] == ["queued"] * 4
