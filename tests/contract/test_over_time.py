"""What happened is counted by hour as it happens, and the counts fade without changing a sum."""

from datetime import timedelta

import pytest
from sqlalchemy import func, select

from daemon.store.over_time import Window, activity_since, hour_of, look_over_time
from daemon.store.tables import engagement_over_time, feedback_over_time, outputs_over_time
from learning.events import FeedbackEvent
from learning.lifecycle import EventState
from learning.policy import Verdict
from learning.statistics import METRICS, Activity
from tests.builders import feedback, output, outputs
from tests.contract.driver import Driver, rows

DAY = timedelta(days=1)
YES = Verdict(EventState.QUEUED, "looks right", by_human=True)


async def seen(drive: Driver, length: timedelta = DAY, of: str = "recent") -> Activity:
    """What a window shows of the task type that most tests are about."""
    window = Window.of(length, drive.now)
    looked = await drive.store.database.read(lambda tx: look_over_time(tx, window))
    found: Activity = getattr(looked, of)["normalize"]
    return found


def rated(task: str, stars: int | None, **said: object) -> FeedbackEvent:
    scores = {"engagement_metrics": said.pop("metrics", {})}
    if stars is not None:
        scores["user_rating"] = stars
    return feedback(task, feedback=scores, **said)


async def test_outputs_and_peoples_verdicts_are_counted_as_they_come(drive: Driver) -> None:
    await drive.send(
        output("yes", confidence=0.9),
        output("no", approved=False),
        output("nobody", approved=None, confidence=0.5),
    )
    found = await seen(drive)
    assert (found.outputs.outputs, found.approved, found.rejected) == (3, 1, 1)
    assert found.average_confidence == pytest.approx(0.7)


async def test_feedback_and_an_operator_judge_what_was_held(drive: Driver) -> None:
    await drive.send(*(output(name, approved=None) for name in "abc"))
    await drive.send(feedback("a"), feedback("b", approved=False))
    await drive.store.queue.judge_by_hand((await drive.event("c")).id, YES, "ann", drive.now)
    found = await seen(drive)
    assert (found.approved, found.rejected) == (2, 1)


async def test_a_withdrawal_is_a_second_verdict(drive: Driver) -> None:
    await drive.send(output("a"))
    await drive.send(feedback("a", approved=False))
    found = await seen(drive)
    assert (found.approved, found.rejected) == (1, 1)


async def test_what_nobody_judged_counts_for_no_rate(drive: Driver) -> None:
    await drive.send(*outputs(range(3), approved=None))
    await drive.store.queue.expire(drive.now + DAY, drive.now)
    assert (await seen(drive)).judged == 0


async def test_a_no_about_a_sealed_output_counts_once(drive: Driver) -> None:
    await drive.batch(output("a"))
    for n in range(3):
        await drive.send(feedback("a", event_id=str(n), approved=False))
        await drive.store.digest.digest(drive.now)
    found = await seen(drive)
    assert (found.approved, found.rejected, found.feedback.no) == (1, 1, 3)


async def test_a_yes_about_a_sealed_output_that_a_person_approved_is_no_news(
    drive: Driver,
) -> None:
    await drive.batch(output("a"))
    await drive.send(feedback("a"))
    await drive.store.digest.digest(drive.now)
    found = await seen(drive)
    assert (found.approved, found.feedback.yes, found.feedback.late_yes) == (1, 1, 0)


async def test_feedback_is_counted_with_its_numbers(drive: Driver) -> None:
    await drive.send(
        output("a", confidence=0.95),
        output("b", confidence=0.2),
        rated("a", 1, approved=False, metrics={"views": 10.0}),
        rated("b", 5),
        rated("b", None, event_id="x", approved=None, metrics={"views": 1000.0, "likes": 0.0}),
    )
    await drive.store.digest.digest(drive.now)
    found = await seen(drive)
    told = found.feedback
    assert (told.n, told.yes, told.no, told.ratings) == (3, 1, 1, (1, 0, 0, 0, 1))
    assert (told.sure, told.sure_no, told.unsure, told.unsure_yes) == (1, 1, 1, 1)
    assert found.engagement["views"].n == 2
    assert found.engagement["views"].typical == pytest.approx((11 * 1001) ** 0.5 - 1)


async def test_senders_cannot_make_rows_without_end_by_naming_metrics(drive: Driver) -> None:
    await drive.send(output("a"))
    for n in range(METRICS + 5):
        await drive.send(rated("a", 3, event_id=str(n), metrics={f"metric-{n}": 1.0, "one": 1.0}))
        await drive.store.digest.digest(drive.now)
    names = {row.metric for row in await drive.rows(engagement_over_time)}
    assert len(names) == METRICS
    assert {"one", "metric-0"} <= names


async def test_a_window_and_the_one_before_it_are_kept_apart(drive: Driver) -> None:
    await drive.send(*outputs(range(5)))
    drive.wait(days=1, hours=2)
    await drive.send(*outputs(range(5, 7)))
    assert (await seen(drive)).outputs.outputs == 2
    assert (await seen(drive, of="earlier")).outputs.outputs == 5
    assert (await seen(drive, of="ever")).outputs.outputs == 7
    assert (await seen(drive, timedelta(days=30))).outputs.outputs == 7


async def test_what_happened_since_an_hour_is_summed_over_all_task_types(drive: Driver) -> None:
    await drive.send(*outputs(range(3)))
    drive.wait(hours=1)
    await drive.send(output("a", approved=False), output("b", task_type="audio"))
    await drive.send(feedback("task-1", approved=False), rated("b", 4, task_type="audio"))
    await drive.store.digest.digest(drive.now)
    found = await drive.store.database.read(lambda tx: activity_since(tx, hour_of(drive.now)))
    assert (found.outputs.outputs, found.approved, found.rejected) == (2, 1, 2)
    assert found.feedback.average_rating == 4


async def test_old_hours_become_days_and_old_days_one_row_and_no_sum_changes(
    drive: Driver,
) -> None:
    for n in range(6):
        await drive.send(output(str(n), confidence=0.5), rated(str(n), 2, metrics={"views": 1.0}))
        await drive.store.digest.digest(drive.now)
        drive.wait(hours=5)
    before = await seen(drive, of="ever")
    assert await drive.store.over_time.fold(drive.now) == 0

    drive.wait(days=30)
    assert await drive.store.over_time.fold(drive.now) == 3 * (6 - 2)
    assert await seen(drive, of="ever") == before
    assert {row.span for row in await drive.rows(outputs_over_time)} == {"day"}
    assert (await seen(drive, timedelta(days=40))).outputs.outputs == 6

    drive.wait(days=500)
    await drive.store.over_time.fold(drive.now)
    await drive.store.over_time.fold(drive.now)
    assert await seen(drive, of="ever") == before
    for table in (outputs_over_time, feedback_over_time, engagement_over_time):
        (row,) = await drive.rows(table)
        assert row.span == "ever"


async def test_rows_are_bounded_whatever_time_brings(drive: Driver) -> None:
    """Two years of an event every 27 hours."""
    for n in range(2 * 365 * 24 // 27):
        await drive.send(output(str(n)))
        drive.wait(hours=27)
        if n % 20 == 0:
            await drive.store.over_time.fold(drive.now)
    assert len(await rows(drive.store.database, outputs_over_time)) < 400 + 15 + 30
    total = select(func.sum(outputs_over_time.c.outputs))
    assert await drive.store.database.read(lambda tx: tx.execute(total).scalar_one()) == n + 1
