"""One path for every source: decoded, judged, stored in one block, and told once."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from consumers.ingest import Ingest
from consumers.reading import Record
from learning.clock import microseconds
from learning.events import OutputEvent
from learning.facts import EventsStored, Fact
from learning.judge import Judge
from learning.lifecycle import EventState
from learning.lines import ModelLine, ModelLines
from learning.policy import Policy
from learning.ports import (
    Block,
    DeadLetter,
    EventKind,
    Origin,
    Position,
    PositionFencedError,
    PositionMove,
    StoreUnavailableError,
)
from learning.validators import Validator, built_in
from tests.recording_store import RecordingStore

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
LINES = ModelLines(
    [ModelLine("coding", frozenset({"coding"}), base_model=None, provider="scripted")]
)
MOVE = PositionMove(Position("outputs", 0, 1, None, None), 7, b"fingerprint")


class Bench:
    """An Ingest with everything around it."""

    def __init__(
        self,
        *,
        validators: Sequence[Validator] = (),
        lines: ModelLines = LINES,
        unpack: Callable[[DeadLetter], Sequence[Record]] | None = None,
    ) -> None:
        self.store = RecordingStore()
        self.policy = Policy()
        self.facts: list[Fact] = []
        self.ingest = Ingest(
            self.store,
            lines,
            Judge(lambda: self.policy, validators),
            self.facts.append,
            lambda: NOW,
            unpack=unpack,
        )

    async def store_one(self, record: Record) -> Block:
        await self.ingest.store_block("kafka", [record])
        return self.store.blocks[-1]


def origin(offset: int) -> Origin:
    return Origin("kafka", "outputs", 0, offset)


def output(offset: int = 0, **fields: Any) -> Record:
    event = {
        "producer": "game",
        "task_id": f"t-{offset}",
        "task_type": "coding",
        "prompt": "p",
        "output": "o",
        "approved": True,
        **fields,
    }
    return Record(EventKind.OUTPUT, json.dumps(event).encode(), origin(offset))


def feedback(offset: int = 0, **fields: Any) -> Record:
    event = {"producer": "chat", "task_id": "t-0", "task_type": "coding", **fields}
    return Record(EventKind.FEEDBACK, json.dumps(event).encode(), origin(offset))


async def test_an_output_is_stored_with_its_verdict_origin_time_and_bytes() -> None:
    record = output(5, event_id="e-5")
    block = await Bench().store_one(record)
    (judged,) = block.outputs
    assert (judged.event_id, judged.task_id) == ("e-5", "t-5")
    assert judged.state == EventState.QUEUED
    assert (judged.origin, judged.received_at) == (origin(5), microseconds(NOW))
    assert judged.text.encode() == record.value
    assert (block.source, block.feedback, block.dead_letters, block.move) == ("kafka", [], [], None)


async def test_feedback_is_stored_without_a_verdict() -> None:
    record = feedback(3, approved=False, event_id="f-3")
    block = await Bench().store_one(record)
    (received,) = block.feedback
    assert (received.event_id, received.approved) == ("f-3", False)
    assert (received.origin, received.received_at) == (origin(3), microseconds(NOW))
    assert received.text.encode() == record.value


async def test_a_bad_record_is_a_dead_letter_with_its_bytes() -> None:
    block = await Bench().store_one(Record(EventKind.OUTPUT, b"{oops", origin(2)))
    (letter,) = block.dead_letters
    assert (letter.kind, letter.reason, letter.raw) == (EventKind.OUTPUT, "not_json", b"{oops")
    assert (letter.origin, letter.received_at) == (origin(2), NOW)
    assert "line 1 column 2" in letter.detail


async def test_a_tombstone_is_a_dead_letter_without_bytes() -> None:
    block = await Bench().store_one(Record(EventKind.FEEDBACK, None, origin(2)))
    (letter,) = block.dead_letters
    assert (letter.kind, letter.reason, letter.raw) == (EventKind.FEEDBACK, "tombstone", b"")


@pytest.mark.parametrize("record", [output(task_type="chess"), feedback(task_type="chess")])
async def test_a_task_type_that_no_line_owns_is_a_dead_letter(record: Record) -> None:
    block = await Bench().store_one(record)
    (letter,) = block.dead_letters
    assert letter.reason == "unknown_task_type"
    assert "'chess'" in letter.detail
    assert not block.outputs
    assert not block.feedback


async def test_unknown_task_types_are_stored_where_they_are_accepted() -> None:
    template = ModelLine("new", frozenset({"new"}), base_model=None, provider="local")
    bench = Bench(lines=ModelLines(LINES, template))
    await bench.ingest.store_block("http", [output(task_type="chess"), feedback(task_type="go")])
    (block,) = bench.store.blocks
    assert [judged.task_type for judged in block.outputs] == ["chess"]
    assert [received.task_type for received in block.feedback] == ["go"]


async def test_records_of_all_kinds_share_one_block_with_the_position_they_move() -> None:
    bench = Bench()
    bad = Record(EventKind.OUTPUT, b"", origin(2))
    await bench.ingest.store_block("kafka", [output(1), bad, feedback(3), output(4)], MOVE)
    (block,) = bench.store.blocks
    assert [judged.origin.offset for judged in block.outputs] == [1, 4]
    assert [received.origin.offset for received in block.feedback] == [3]
    assert [letter.origin.offset for letter in block.dead_letters] == [2]
    assert block.move == MOVE


async def test_what_the_store_says_is_announced_once() -> None:
    bench = Bench()
    stored = await bench.ingest.store_block("kafka", [output()])
    assert bench.facts == [stored]
    assert stored == EventsStored("kafka", duplicates=1)


@pytest.mark.parametrize(
    "failure", [StoreUnavailableError("locked"), PositionFencedError("outputs", 0, 1)]
)
async def test_nothing_is_announced_when_nothing_was_stored(failure: Exception) -> None:
    bench = Bench()
    bench.store.failure = failure
    with pytest.raises(type(failure)):
        await bench.ingest.store_block("kafka", [output()])
    assert bench.facts == []


async def test_a_change_of_policy_holds_from_the_next_block_on() -> None:
    bench = Bench()
    unsure = output(confidence=0.6)
    assert (await bench.store_one(unsure)).outputs[0].state == EventState.HELD
    bench.policy = Policy(min_confidence=0.5)
    assert (await bench.store_one(unsure)).outputs[0].state == EventState.QUEUED


async def test_a_complaint_of_a_validator_quarantines() -> None:
    bench = Bench(validators=built_in(max_output_characters=10))
    block = await bench.store_one(output(output="far too long a text"))
    assert block.outputs[0].state == EventState.QUARANTINED


class Broken:
    """A validator from outside with a bug."""

    name = "broken"

    def check(self, event: OutputEvent) -> str | None:
        raise ZeroDivisionError(f"on {event.task_id}")


async def test_a_validator_that_breaks_quarantines_and_stops_nothing() -> None:
    bench = Bench(validators=[Broken()])
    await bench.ingest.store_block("kafka", [output(1), feedback(2)])
    (block,) = bench.store.blocks
    (judged,) = block.outputs
    assert judged.state == EventState.QUARANTINED
    assert "ZeroDivisionError: on t-1" in judged.reason
    assert len(block.feedback) == 1


async def test_a_long_block_lets_others_work_while_it_is_decoded() -> None:
    bench = Bench()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    await bench.ingest.prepare("kafka", [output(n, prompt="x" * 100_000) for n in range(30)])
    ticking.cancel()
    assert ticks >= 10


def dead(raw: bytes, kind: EventKind = EventKind.OUTPUT) -> DeadLetter:
    return DeadLetter(
        kind, "unknown_task_type", "", raw, origin(9), datetime(2026, 1, 1, tzinfo=UTC)
    )


def test_a_dead_letter_is_replayed_under_its_own_origin() -> None:
    raw = output(9).value or b""
    block = Bench().ingest.replay(dead(raw))
    assert isinstance(block, Block)
    (judged,) = block.outputs
    assert (judged.origin, judged.received_at) == (origin(9), microseconds(NOW))
    assert judged.text == raw.decode()
    assert (block.source, block.move, block.dead_letters) == ("kafka", None, ())


def test_of_a_batch_that_is_replayed_the_good_records_are_taken() -> None:
    records = [output(7), Record(EventKind.OUTPUT, b"{", origin(8)), output(9)]
    block = Bench(unpack=lambda _: records).ingest.replay(dead(b"a batch"))
    assert isinstance(block, Block)
    assert [judged.origin for judged in block.outputs] == [origin(7), origin(9)]
    assert [letter.origin for letter in block.dead_letters] == [origin(8)]


def test_a_replayed_event_has_the_id_that_it_would_have_had() -> None:
    raw = output(9).value or b""
    bench = Bench()
    first, second = bench.ingest.replay(dead(raw)), bench.ingest.replay(dead(raw))
    assert isinstance(first, Block)
    assert isinstance(second, Block)
    assert first.outputs[0].event_id == second.outputs[0].event_id


def test_feedback_is_replayed_as_feedback() -> None:
    block = Bench().ingest.replay(dead(feedback().value or b"", EventKind.FEEDBACK))
    assert isinstance(block, Block)
    assert len(block.feedback) == 1


def test_what_is_still_no_event_comes_back_with_the_reason_of_today() -> None:
    letter = dead(b'{"producer": 1}')
    still = Bench().ingest.replay(letter)
    assert isinstance(still, DeadLetter)
    assert still.reason == "invalid"
    assert "producer" in still.detail
    assert replace(still, reason=letter.reason, detail="", received_at=letter.received_at) == letter
