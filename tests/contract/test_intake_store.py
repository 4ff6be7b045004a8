"""What IntakeStore promises: nothing twice, nothing lost, nothing from a stale owner."""

import asyncio
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, String, cast, insert, literal, select, text, update
from sqlalchemy.exc import OperationalError

from daemon.store import Store
from daemon.store.bookkeeping import Tally
from daemon.store.intake import ReplayRefusedError, UnknownDeadLetterError
from daemon.store.outbox import TAKEN_FOR, Outbox
from daemon.store.tables import dead_letters, events, feedback, positions, tallies, transitions
from learning.facts import EventsStored
from learning.judge import Judge
from learning.lifecycle import EventState, FeedbackState
from learning.policy import Policy
from learning.ports import (
    Block,
    IntakeStore,
    OutgoingLetter,
    Position,
    PositionFencedError,
    PositionMove,
    StoreUnavailableError,
)
from tests.builders import JUDGE, NOON, block, dead_letter, judged, later, output, outputs
from tests.builders import feedback as said
from tests.contract.driver import Driver, everything

SOURCE, TOPIC = "test", "learnd.outputs"
YES, NO = True, False


async def claim(store: Store, partition: int = 0) -> Position:
    (position,) = await store.intake.claim(SOURCE, [(TOPIC, partition)])
    return position


def step(claimed: Position, next_offset: int) -> PositionMove:
    return PositionMove(claimed, next_offset, bytes(16))


def test_it_is_an_intake_store(store: Store) -> None:
    port: IntakeStore = store.intake

    assert port


# --- positions ------------------------------------------------------------------------


async def test_a_partition_nobody_has_read_has_no_offset(store: Store) -> None:
    assert await claim(store) == Position(TOPIC, 0, 1, None, None)


async def test_claims_are_answered_in_the_order_asked(store: Store) -> None:
    asked = [("b", 1), ("a", 0), ("b", 0)]

    claimed = await store.intake.claim(SOURCE, asked)

    assert [(position.topic, position.partition) for position in claimed] == asked


async def test_a_block_moves_its_position_with_it(store: Store) -> None:
    first = await claim(store)
    await store.intake.append(block(output(), move=step(first, 7)))

    assert await claim(store) == Position(TOPIC, 0, first.epoch + 1, 7, bytes(16))


async def test_a_block_may_move_the_position_without_any_event(store: Store) -> None:
    await store.intake.append(block(move=step(await claim(store), 7)))

    assert (await claim(store)).next_offset == 7


async def test_the_same_block_twice_is_refused_the_second_time(store: Store) -> None:
    arrived = block(output(), said(), dead_letter(), move=step(await claim(store), 3))
    await store.intake.append(arrived)
    before = await everything(store.database)

    with pytest.raises(PositionFencedError):
        await store.intake.append(arrived)

    assert await everything(store.database) == before


async def test_a_consumer_whose_partition_was_claimed_writes_nothing(store: Store) -> None:
    stale = await claim(store)
    fresh = await claim(store)
    before = await everything(store.database)

    with pytest.raises(PositionFencedError, match=r"learnd.outputs\[0\].*epoch 1"):
        await store.intake.append(block(output(), said(), move=step(stale, 1)))

    assert await everything(store.database) == before
    await store.intake.append(block(output(), move=step(fresh, 1)))


async def test_blocks_that_are_appended_together_are_stored_together(store: Store) -> None:
    zero, one = await store.intake.claim(SOURCE, [(TOPIC, 0), (TOPIC, 1)])

    stored = await store.intake.append(
        block(output("a"), dead_letter(), move=step(one, 5)),
        block(output("a"), output("b"), said(), move=step(zero, 7)),
    )

    assert (sum(stored.outputs.values()), stored.duplicates) == (2, 1)
    claimed = await store.intake.claim(SOURCE, [(TOPIC, 0), (TOPIC, 1)])
    assert [position.next_offset for position in claimed] == [7, 5]


async def test_of_blocks_together_nothing_is_stored_when_one_is_refused(store: Store) -> None:
    stale, one = await store.intake.claim(SOURCE, [(TOPIC, 0), (TOPIC, 1)])
    await claim(store)
    before = await everything(store.database)

    with pytest.raises(PositionFencedError, match=r"learnd.outputs\[0\]"):
        await store.intake.append(
            block(output("a"), move=step(one, 1)), block(output("b"), move=step(stale, 1))
        )

    assert await everything(store.database) == before


@pytest.mark.parametrize("believed", [None, 0, 4, 6])
async def test_a_consumer_that_is_wrong_about_the_offset_writes_nothing(
    store: Store, believed: int | None
) -> None:
    claimed = await claim(store)
    await store.intake.append(block(output("first"), move=step(claimed, 5)))
    before = await everything(store.database)
    wrong = Position(TOPIC, 0, claimed.epoch, believed, None)

    with pytest.raises(PositionFencedError):
        await store.intake.append(block(output("second"), move=step(wrong, 9)))

    assert await everything(store.database) == before


async def test_partitions_and_sources_are_fenced_apart(store: Store) -> None:
    zero, one = await store.intake.claim(SOURCE, [(TOPIC, 0), (TOPIC, 1)])
    await store.intake.claim("another source", [(TOPIC, 0)])

    await store.intake.append(block(output("a"), move=step(zero, 1)))
    await store.intake.append(block(output("b"), move=step(one, 1)))


async def test_a_recreated_topic_is_read_again_from_where_it_is_told(store: Store) -> None:
    claimed = await claim(store)
    await store.intake.append(block(output("old"), move=step(claimed, 100)))
    reached = Position(TOPIC, 0, claimed.epoch, 100, bytes(16))

    rewound = await store.intake.rewind(SOURCE, reached, 0)

    assert rewound == Position(TOPIC, 0, claimed.epoch, 0, None)
    await store.intake.append(block(output("new"), move=step(rewound, 1)))
    assert (await claim(store)).next_offset == 1


async def test_a_stale_owner_rewinds_nothing(store: Store) -> None:
    stale = await claim(store)
    await store.intake.append(block(move=step(await claim(store), 100)))

    with pytest.raises(PositionFencedError):
        await store.intake.rewind(SOURCE, stale, 0)

    assert (await claim(store)).next_offset == 100


async def test_a_source_without_offsets_moves_no_position(drive: Driver) -> None:
    await drive.send(output())

    assert await drive.rows(positions) == []


# --- the same event again -------------------------------------------------------------


async def test_an_event_under_a_new_offset_is_a_duplicate(store: Store) -> None:
    claimed = await claim(store)
    first = await store.intake.append(block(output(), said(), move=step(claimed, 2)))
    reached = Position(TOPIC, 0, claimed.epoch, 2, bytes(16))

    again = await store.intake.append(block(output(), said(), move=step(reached, 4)))

    assert first.duplicates == 0
    assert again == EventsStored(source="test", duplicates=2)
    assert (await claim(store)).next_offset == 4


async def test_an_event_that_is_twice_in_a_block_is_stored_once(drive: Driver) -> None:
    stored = await drive.send(output(), said(), output(), said(), output())

    assert stored.duplicates == 3
    assert len(await drive.rows(events)) == 1
    assert len(await drive.rows(feedback)) == 1


async def test_a_duplicate_does_not_bring_back_what_feedback_withdrew(drive: Driver) -> None:
    await drive.send(output(), said(approved=NO))

    await drive.send(output())

    assert await drive.states() == {"task-1": EventState.WITHDRAWN}


async def test_an_id_with_another_body_is_a_dead_letter_with_its_raw_bytes(drive: Driver) -> None:
    await drive.send(output(event_id="e-1", prompt="one"))
    other = output(event_id="e-1", prompt="two")

    stored = await drive.send(other)

    assert stored.dead_letters == {"id_reused": 1}
    assert stored.duplicates == 0
    (letter,) = await drive.rows(dead_letters)
    assert (letter.kind, letter.reason) == ("output", "id_reused")
    assert letter.raw == other.model_dump_json().encode()
    assert "'e-1'" in letter.detail
    assert "'studio'" in letter.detail
    assert (await drive.event("task-1")).payload.count("one") == 1


async def test_within_a_block_the_first_body_of_an_id_counts(drive: Driver) -> None:
    one, two = (output(event_id="e-1", prompt=prompt) for prompt in ("one", "two"))

    stored = await drive.send(one, two, one)

    assert (stored.dead_letters, stored.duplicates) == ({"id_reused": 1}, 1)
    (letter,) = await drive.rows(dead_letters)
    assert b"two" in letter.raw


async def test_a_stored_body_beats_the_first_in_the_block(drive: Driver) -> None:
    one, two = (output(event_id="e-1", prompt=prompt) for prompt in ("one", "two"))
    await drive.send(one)

    stored = await drive.send(two, one, two)

    assert (stored.dead_letters, stored.duplicates) == ({"id_reused": 1}, 2)


async def test_feedback_with_a_used_id_is_a_dead_letter_too(drive: Driver) -> None:
    await drive.send(output(), said(event_id="f-1", approved=YES))

    stored = await drive.send(said(event_id="f-1", approved=NO))

    assert stored.dead_letters == {"id_reused": 1}
    assert (await drive.rows(dead_letters))[0].kind == "feedback"
    assert await drive.states() == {"task-1": EventState.QUEUED}


async def test_two_producers_may_use_one_id(drive: Driver) -> None:
    stored = await drive.send(
        output("a", event_id="e-1", producer="one"), output("b", event_id="e-1", producer="two")
    )

    assert sum(stored.outputs.values()) == 2


async def test_output_and_feedback_may_share_an_id(drive: Driver) -> None:
    stored = await drive.send(
        output(event_id="e-1", producer="p"), said(event_id="e-1", producer="p")
    )

    assert (stored.duplicates, stored.dead_letters) == (0, {})


# --- what is kept ---------------------------------------------------------------------


async def test_an_event_is_kept_with_its_verdict_its_origin_and_its_times(drive: Driver) -> None:
    drive.wait(minutes=5)

    stored = await drive.send(output(confidence=0.9, timestamp=NOON, model_version="v1.0.0"))

    row = await drive.event("task-1")
    assert stored.outputs == {("normalize", EventState.QUEUED): 1}
    assert (row.state, row.by_human) == ("queued", True)
    assert row.reason == "approved, confidence 0.9 >= 0.7"
    assert (row.occurred_at, row.received_at) == (NOON, later(minutes=5))
    assert (row.source, row.topic, row.partition, row.offset) == ("test", TOPIC, 0, 0)


async def test_an_event_without_a_time_occurred_when_it_arrived(drive: Driver) -> None:
    await drive.send(output())

    assert (await drive.event("task-1")).occurred_at == NOON


async def test_a_rejected_output_is_kept_as_a_negative(drive: Driver) -> None:
    stored = await drive.send(output(approved=NO))

    assert stored.outputs == {("normalize", EventState.REJECTED): 1}


async def test_events_come_back_after_the_store_was_closed(
    store: Store, store_url: str, tmp_path: Path
) -> None:
    await store.intake.append(block(*outputs(range(3))))
    before = await everything(store.database)

    again = await Store.open(store_url, artifacts_dir=tmp_path, judge=JUDGE, clock=lambda: NOON)
    try:
        assert await everything(again.database) == before
    finally:
        await again.close()


async def test_a_large_block_is_one_transaction_in_the_order_of_arrival(drive: Driver) -> None:
    stored = await drive.send(*outputs(range(2_500)), *(said(f"task-{n}") for n in range(2_500)))

    assert sum(stored.outputs.values()) == 2_500
    assert stored.feedback == {("normalize", FeedbackState.JOINED): 2_500}
    rows = await drive.rows(events)
    assert [row.task_id for row in rows] == [f"task-{n}" for n in range(2_500)]


# --- feedback meets its output --------------------------------------------------------

HELD = {"approved": None}
QUEUED = {"approved": True}


async def test_feedback_waits_for_its_output(drive: Driver) -> None:
    stored = await drive.send(said(approved=NO))

    assert stored.feedback == {("normalize", FeedbackState.WAITING): 1}
    assert (await drive.rows(feedback))[0].output_id is None


@pytest.mark.parametrize("order", ["before", "after", "with"])
@pytest.mark.parametrize(
    ("sent", "approved", "becomes"),
    [
        (QUEUED, NO, EventState.WITHDRAWN),
        (QUEUED, YES, EventState.QUEUED),
        (QUEUED, None, EventState.QUEUED),
        (HELD, YES, EventState.QUEUED),
        (HELD, NO, EventState.REJECTED),
        (HELD, None, EventState.HELD),
        ({"approved": True, "confidence": 0.1}, YES, EventState.QUEUED),
        ({"approved": False}, YES, EventState.REJECTED),
        ({"output": " "}, YES, EventState.QUARANTINED),
        ({"output": " "}, NO, EventState.REJECTED),
        ({"approved": None, "output": " "}, YES, EventState.QUARANTINED),
    ],
)
async def test_either_may_come_first(
    drive: Driver,
    order: str,
    sent: dict[str, Any],
    approved: bool | None,
    becomes: EventState,
) -> None:
    event, verdict = output(**sent), said(approved=approved)
    match order:
        case "before":
            await drive.send(verdict)
            await drive.send(event)
        case "after":
            await drive.send(event)
            await drive.send(verdict)
        case _:
            await drive.send(event, verdict)

    assert await drive.states() == {"task-1": becomes}
    (joined,) = await drive.rows(feedback)
    assert joined.state == FeedbackState.JOINED
    assert joined.output_id == (await drive.event("task-1")).id


@pytest.mark.parametrize("verdicts", [(YES, NO), (NO, YES)])
async def test_one_no_decides_in_whatever_order_people_speak(
    drive: Driver, verdicts: tuple[bool, ...]
) -> None:
    await drive.send(output(approved=None))

    for approved in verdicts:
        await drive.send(said(approved=approved))

    assert (await drive.states())["task-1"] in {EventState.REJECTED, EventState.WITHDRAWN}


async def test_what_feedback_moved_is_told_and_written_down(drive: Driver) -> None:
    await drive.send(output(approved=None, confidence=0.5))

    drive.wait(minutes=1)
    stored = await drive.send(said())

    assert stored.rejudged == {("normalize", EventState.QUEUED): 1}
    (move,) = await drive.rows(transitions)
    assert (move.kind, move.from_state, move.to_state, move.actor) == (
        "event",
        "held",
        "queued",
        "intake",
    )
    row = await drive.event("task-1")
    assert (row.reason, row.by_human) == ("approved by feedback", True)


async def test_a_persons_yes_lets_what_was_auto_approved_judge(
    store_url: str, tmp_path: Path
) -> None:
    generous = Judge(lambda: Policy(enable_auto_approval=True), [])
    store = await Store.open(store_url, artifacts_dir=tmp_path, judge=generous, clock=lambda: NOON)
    try:
        drive = Driver(store)
        event = output(approved=None, confidence=0.99)
        queued = Block("test", outputs=[judged(event, judge=generous)])
        await store.intake.append(queued)
        assert not (await drive.event("task-1")).by_human

        stored = await drive.send(said())

        row = await drive.event("task-1")
        assert (row.state, row.by_human) == (EventState.QUEUED, True)
        assert row.reason == "approved by feedback"
        assert stored.rejudged == {}
        assert [move.reason for move in await drive.rows(transitions)] == ["approved by feedback"]
    finally:
        await store.close()


async def test_feedback_for_another_task_type_is_for_another_task(drive: Driver) -> None:
    await drive.send(output(), said(task_type="coding", approved=NO))

    assert await drive.states() == {"task-1": EventState.QUEUED}
    assert (await drive.rows(feedback))[0].state == FeedbackState.WAITING


async def test_feedback_for_two_outputs_is_quarantined(drive: Driver) -> None:
    await drive.send(output(event_id="e-1"), output(event_id="e-2"))

    stored = await drive.send(said(approved=NO))

    assert stored.feedback == {("normalize", FeedbackState.QUARANTINED): 1}
    assert {row.state for row in await drive.rows(events)} == {EventState.QUEUED}


async def test_feedback_that_waits_for_two_outputs_of_one_block_is_quarantined(
    drive: Driver,
) -> None:
    await drive.send(said(approved=NO))

    await drive.send(output(event_id="e-1"), output(event_id="e-2"))

    assert (await drive.rows(feedback))[0].state == FeedbackState.QUARANTINED


async def test_feedback_that_has_met_its_output_stays_with_it(drive: Driver) -> None:
    await drive.send(output(event_id="e-1"), said(approved=YES))
    await drive.send(output(event_id="e-2"))

    stored = await drive.send(said(approved=NO))

    assert stored.feedback == {("normalize", FeedbackState.QUARANTINED): 1}
    assert [row.state for row in await drive.rows(feedback)] == ["joined", "quarantined"]


async def test_feedback_after_sealing_is_late_and_changes_nothing(drive: Driver) -> None:
    await drive.batch(output())

    stored = await drive.send(said(approved=NO))

    assert stored.feedback == {("normalize", FeedbackState.LATE): 1}
    assert stored.rejudged == {}
    assert await drive.states() == {"task-1": EventState.SEALED}
    assert (await drive.rows(feedback))[0].output_id is not None


async def test_feedback_after_expiry_is_late(drive: Driver) -> None:
    await drive.send(output(approved=None))
    await drive.store.queue.expire(later(days=1), later(days=8))

    stored = await drive.send(said(approved=YES))

    assert stored.feedback == {("normalize", FeedbackState.LATE): 1}
    assert await drive.states() == {"task-1": EventState.EXPIRED}


async def test_any_number_of_feedback_may_wait_for_one_output(store: Store) -> None:
    """More than a statement has parameters: the output must not be stuck behind them."""
    await store.intake.append(block(said()))
    await store.database.write(lambda tx: _multiply_feedback(tx, 33_000))

    await store.intake.append(block(output(approved=None)))

    drive = Driver(store)
    assert await drive.states() == {"task-1": EventState.QUEUED}
    assert {row.state for row in await drive.rows(feedback)} == {FeedbackState.JOINED}


def _multiply_feedback(tx: Connection, n: int) -> None:
    """Make n more of the one feedback that is stored."""
    numbers = select(literal(1).label("i")).cte("numbers", recursive=True)
    numbers = numbers.union_all(select(numbers.c.i + 1).where(numbers.c.i < n))
    copied = [column for column in feedback.columns if column.name not in ("id", "event_id")]
    copies = select(literal("copy-") + cast(numbers.c.i, String), *copied).join(
        numbers, literal(True)
    )
    tx.execute(insert(feedback).from_select(["event_id", *copied], copies))
    tx.execute(update(tallies).values(n=tallies.c.n + n))


# --- all or nothing -------------------------------------------------------------------


async def test_a_failure_at_the_end_of_a_block_leaves_nothing_of_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = await claim(store)
    await store.intake.append(block(output("held", approved=None)))
    before = await everything(store.database)
    arrived = block(output(), said("held"), dead_letter(), move=step(claimed, 4))

    def fail(self: Tally, tx: Connection, now: datetime) -> None:
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    with monkeypatch.context() as patch:
        patch.setattr(Tally, "write", fail)
        with pytest.raises(StoreUnavailableError, match="disk is full"):
            await store.intake.append(arrived)

    assert await everything(store.database) == before
    stored = await store.intake.append(arrived)
    assert stored.duplicates == 0
    assert stored.rejudged == {("normalize", EventState.QUEUED): 1}


async def test_whatever_else_goes_wrong_passes_through_and_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await everything(store.database)

    def fail(self: Tally, tx: Connection, now: datetime) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Tally, "write", fail)
    with pytest.raises(ZeroDivisionError):
        await store.intake.append(block(output()))

    assert await everything(store.database) == before


async def test_cancelling_the_caller_does_not_tear_a_block(drive: Driver) -> None:
    storing = asyncio.create_task(drive.send(*outputs(range(50))))
    await asyncio.sleep(0)

    storing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await storing

    # It had begun, so it has ended: all of it is there when the caller goes on.
    assert len(await drive.rows(events)) == 50


# --- dead letters ---------------------------------------------------------------------


async def test_a_dead_letter_is_kept_with_its_raw_bytes(drive: Driver) -> None:
    raw = bytes(range(256))

    stored = await drive.store.intake.append(block(dead_letter(raw), dead_letter(b"")))

    assert stored.dead_letters == {"not_json": 2}
    first, second = await drive.rows(dead_letters)
    assert (first.raw, second.raw) == (raw, b"")
    assert await drive.store.intake.dead_letter(first.id) == dead_letter(raw)


async def test_a_dead_letter_that_is_read_again_is_the_same_one(drive: Driver) -> None:
    await drive.store.intake.append(block(dead_letter(b"{"), dead_letter(b"[")))

    again = await drive.store.intake.append(
        block(dead_letter(b"{", reason="renamed", at=later(days=1)), dead_letter(b"other"))
    )

    assert (again.dead_letters, again.duplicates) == ({"not_json": 1}, 1)
    assert [row.raw for row in await drive.rows(dead_letters)] == [b"{", b"[", b"other"]
    assert {row.reason for row in await drive.rows(dead_letters)} == {"not_json"}


async def test_letters_are_published_once_by_one_daemon_and_again_after_a_crash(
    store: Store,
) -> None:
    now = NOON
    first, second = (Outbox(store.database, lambda: now) for _ in range(2))
    await store.intake.append(block(*(dead_letter(b"%d" % number) for number in range(5))))

    taken = await first.take(3)
    assert taken == [
        OutgoingLetter(number + 1, dead_letter(b"%d" % number), 1) for number in range(3)
    ]
    assert [one.id for one in await second.take(10)] == [4, 5]
    await first.mark([1, 2])
    await first.mark([2])
    assert await first.take(10) == []

    now += TAKEN_FOR  # both died
    assert [one.id for one in await first.take(10)] == [3, 4, 5]
    await first.mark([3, 4, 5])
    now += TAKEN_FOR
    assert await second.take(10) == []


async def test_a_replayed_dead_letter_is_stored_and_marked_at_once(drive: Driver) -> None:
    await drive.store.intake.append(block(dead_letter()))

    stored = await drive.store.intake.replay(1, block(output()))

    assert stored.outputs == {("normalize", EventState.QUEUED): 1}
    assert (await drive.rows(dead_letters))[0].replayed_at == NOON


async def test_a_dead_letter_that_is_replayed_twice_is_stored_once(drive: Driver) -> None:
    await drive.store.intake.append(block(dead_letter()))
    await drive.store.intake.replay(1, block(output()))

    again = await drive.store.intake.replay(1, block(output()))

    assert again.duplicates == 1
    assert len(await drive.rows(events)) == 1


async def test_of_a_replayed_batch_the_events_and_the_further_letters_are_stored(
    drive: Driver,
) -> None:
    await drive.store.intake.append(block(dead_letter(b"a batch")))
    bad = dead_letter(b"{")
    bad = replace(bad, origin=bad.origin._replace(offset=7))
    stored = await drive.store.intake.replay(
        1, block(output(event_id="e-1"), output(event_id="e-1", prompt="another"), bad)
    )
    assert sum(stored.outputs.values()) == 1
    assert stored.dead_letters == {"not_json": 1, "id_reused": 1}
    marked = [row.replayed_at for row in await drive.rows(dead_letters)]
    assert marked == [NOON, None, None]


async def test_a_failed_replay_leaves_the_dead_letter_as_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.intake.append(block(dead_letter()))
    before = await everything(store.database)

    def fail(self: Tally, tx: Connection, now: datetime) -> None:
        raise OperationalError("INSERT", {}, Exception("locked"))

    with monkeypatch.context() as patch:
        patch.setattr(Tally, "write", fail)
        with pytest.raises(StoreUnavailableError):
            await store.intake.replay(1, block(output()))

    assert await everything(store.database) == before


async def test_a_replay_that_would_be_a_dead_letter_again_changes_nothing(store: Store) -> None:
    await store.intake.append(block(output(event_id="e-1"), dead_letter()))
    before = await everything(store.database)

    with pytest.raises(ReplayRefusedError, match=r"dead letter 1 is id_reused: producer 'studio'"):
        await store.intake.replay(1, block(output(event_id="e-1", prompt="another")))

    assert await everything(store.database) == before


async def test_an_unknown_dead_letter_is_named(store: Store) -> None:
    with pytest.raises(UnknownDeadLetterError, match="no dead letter 7"):
        await store.intake.dead_letter(7)
    with pytest.raises(UnknownDeadLetterError, match="no dead letter 7"):
        await store.intake.replay(7, block(output()))

    assert (await everything(store.database))["events"] == []


# --- the database itself --------------------------------------------------------------


async def test_the_running_counts_follow_every_move(drive: Driver) -> None:
    await drive.send(output("a", confidence=0.9), output("b", approved=None, confidence=0.5))
    await drive.send(said("a", approved=NO), said("b"))

    counts = {
        (row.kind, row.state): (row.n, row.confidence_n, round(row.confidence_sum, 9))
        for row in await drive.rows(tallies, tallies.c.n != 0)
    }
    assert counts == {
        ("output", "withdrawn"): (1, 1, 0.9),
        ("output", "queued"): (1, 1, 0.5),
        ("feedback", "joined"): (2, 0, 0.0),
    }


async def test_a_commit_is_on_the_disk_before_it_is_acknowledged(store: Store) -> None:
    if store.database.url.startswith("sqlite"):
        full = 2
        assert (
            await store.database.write(lambda tx: tx.execute(text("PRAGMA synchronous")).scalar())
            == full
        )
        assert (
            await store.database.write(lambda tx: tx.execute(text("PRAGMA journal_mode")).scalar())
            == "wal"
        )


async def test_a_validators_strange_words_do_not_stop_its_event(drive: Driver) -> None:
    strange = judged(output("task-1"))._replace(reason="outside: odd\0 and \ud800")

    await drive.store.intake.append(Block("test", outputs=[strange]))

    assert (await drive.event("task-1")).reason == "outside: odd\ufffd and \ufffd"
