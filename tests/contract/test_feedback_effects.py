"""Feedback changes the loop in the transaction that digests it, with its history."""

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.following_feedback import FeedbackFollower
from daemon.live_settings import LiveSettings
from daemon.operations import DaemonOperations, UnknownTaskTypeError
from daemon.settings import Settings
from daemon.store import Store
from daemon.store.feedback_dials import UnknownFeedbackError
from daemon.store.feedback_effects import FeedbackEffects
from daemon.store.tables import (
    batches,
    feedback,
    feedback_dials,
    feedback_effects,
    feedback_memory,
    feedback_moves,
    transitions,
)
from daemon.store.views.feedback import FeedbackLoop
from learning.events import FeedbackEvent, OutputEvent
from learning.facts import Fact, FeedbackReset, LoopAdapted
from learning.feedback import FeedbackRules
from learning.lifecycle import FeedbackState, Role
from learning.lines import ModelLine, ModelLines
from learning.policy import Policy
from learning.sampling import SplitRules
from tests.builders import JUDGE, output
from tests.builders import feedback as said
from tests.contract.driver import LINE, Driver, StoppedClock
from tests.contract.promises import broken_promises
from tests.screening import no_screening

LINES = ModelLines([LINE])
RULES = FeedbackRules()


@pytest.fixture
async def drive(store_url: str, tmp_path: Path, clock: StoppedClock) -> AsyncIterator[Driver]:
    store = await Store.open(
        store_url,
        artifacts_dir=tmp_path,
        judge=JUDGE,
        clock=clock,
        consequences=[FeedbackEffects(lambda: RULES)],
    )
    try:
        yield Driver(store, clock)
        assert await store.database.read(broken_promises) == []
    finally:
        await store.close()


async def digest(drive: Driver) -> Sequence[Fact]:
    _, facts = await drive.store.digest.digest(drive.now)
    return facts


def opinions(
    producers: Sequence[str], tasks: Sequence[int], **fields: Any
) -> list[OutputEvent | FeedbackEvent]:
    """Outputs that are held, and what each of some producers says of every one."""
    return [
        *(output(f"t-{n}", confidence=0.1) for n in tasks),
        *(
            said(f"t-{n}", producer=name, event_id=f"{name}-{n}", **fields)
            for n in tasks
            for name in producers
        ),
    ]


async def reject(drive: Driver, tasks: Sequence[int] = range(4)) -> Sequence[Fact]:
    """As many rejections of two producers as make the bar stricter."""
    await drive.send(*opinions(["ann", "bob"], tasks, approved=False))
    return await digest(drive)


async def dials(drive: Driver) -> Mapping[tuple[str, str], float]:
    return {(row.dial, row.subject): row.value for row in await drive.rows(feedback_dials)}


async def test_rejections_raise_the_bar_with_their_reason_and_are_told(drive: Driver) -> None:
    facts = await reject(drive)

    (fact,) = facts
    assert isinstance(fact, LoopAdapted)
    assert (fact.task_type, fact.change, fact.times) == (
        "normalize",
        "increase_validation_strictness",
        1,
    )
    assert fact.reason.startswith("increase_validation_strictness: bar 0.000 -> 0.016 (mean score")
    (effect,) = await drive.rows(feedback_effects)
    assert (effect.before, effect.after) == (0.0, pytest.approx(0.016))
    assert effect.actor == "evidence"
    standing = await drive.store.dials.standing(drive.now)
    assert standing.offsets == {"normalize": 0.016}


async def test_feedback_that_is_digested_in_parts_comes_to_the_same(drive: Driver) -> None:
    await drive.send(*opinions(["ann", "bob"], range(4), approved=False))
    for _ in range(8):
        await drive.store.digest.digest(drive.now, most=1)
    assert await dials(drive) == {("bar", ""): pytest.approx(0.016)}


async def test_what_a_producer_says_twice_of_an_output_counts_once(drive: Driver) -> None:
    tasks = range(2)
    await drive.send(*opinions(["ann", "bob"], tasks, approved=False))
    for again in range(20):
        await drive.send(
            *(
                said(f"t-{n}", producer=name, event_id=f"{name}-{n}-{again}", approved=False)
                for n in tasks
                for name in ("ann", "bob")
            )
        )
    await digest(drive)

    assert await dials(drive) == {}
    (row,) = await drive.rows(feedback_memory)
    assert row.memory["n"] == 4
    last = (await drive.rows(feedback))[-1]
    told = await drive.store.dials.effects_of(last.id)
    assert told.digested_at == drive.now
    assert told.note.startswith("its producer had said something of this output before")


async def test_late_feedback_changes_nothing_in_the_loop(drive: Driver) -> None:
    await drive.batch(*(output(f"t-{n}") for n in range(8)))
    await drive.send(
        *(
            said(f"t-{n}", producer=name, event_id=f"{name}-{n}", approved=False)
            for n in range(8)
            for name in ("ann", "bob")
        )
    )
    assert await digest(drive) == []
    assert await drive.rows(feedback_memory) == []
    told = await drive.store.dials.effects_of((await drive.rows(feedback))[0].id)
    assert (told.state, told.adaptations) == (FeedbackState.LATE, [])
    assert told.note.startswith("its output was sealed")


async def wish(drive: Driver, task: str, producer: str = "ann", **wishes: Any) -> int:
    """Send a wish and have it digested; the row id of its feedback."""
    await drive.send(
        output(task, confidence=0.1),
        said(task, producer=producer, event_id=f"wish-{task}", approved=None, adaptation=wishes),
    )
    await digest(drive)
    (row,) = await drive.rows(feedback, feedback.c.event_id == f"wish-{task}")
    return int(row.id)


async def test_what_came_of_a_feedback_can_be_asked_for(drive: Driver) -> None:
    await reject(drive)
    feedback_id = await wish(
        drive, "w", confidence_adjustment=0.2, trust_delta=-0.5, mood_adjustment="sing it"
    )

    told = await drive.store.dials.effects_of(feedback_id)

    assert [(one.change, one.dial, one.subject, one.done) for one in told.adaptations] == [
        ("increase_validation_strictness", "bar", "", True),
        ("adjust_trust", "trust", "studio", True),
        ("adjust_trust", "trust", "", True),
        ("adjust_content_style", "style", "", False),
    ]
    bar, trust, *_ = told.adaptations
    assert [bar.before, bar.after] == pytest.approx([0.016, 0.036])
    assert (trust.before, trust.after) == (0.5, 0.45)
    assert "no such mood is allowed" in told.adaptations[-1].reason
    assert {one.actor for one in told.adaptations} == {"ann"}
    with pytest.raises(UnknownFeedbackError):
        await drive.store.dials.effects_of(10**9)


async def test_one_that_waits_for_its_output_says_so(drive: Driver) -> None:
    await drive.send(said("nothing yet"))
    (row,) = await drive.rows(feedback)
    told = await drive.store.dials.effects_of(row.id)
    assert (told.digested_at, told.note) == (None, "its output has not come yet")


async def test_the_share_of_a_day_holds_over_many_digests_and_a_new_day_has_its_own(
    drive: Driver,
) -> None:
    await reject(drive)
    for n in range(4):
        await wish(drive, f"w-{n}", confidence_adjustment=1.0)
    assert (await dials(drive))["bar", ""] == pytest.approx(0.016 + 0.025)
    drive.wait(days=1)
    await wish(drive, "tomorrow", confidence_adjustment=1.0)
    after_a_day = 0.041 * 0.5 ** (1 / 7)
    assert (await dials(drive))["bar", ""] == pytest.approx(after_a_day + 0.025)
    assert {row.day for row in await drive.rows(feedback_moves)} == {
        (drive.now - drive.now.fromtimestamp(0, drive.now.tzinfo)).days
    }


async def test_a_distrusted_producer_is_known_to_the_policy_until_that_has_faded(
    drive: Driver,
) -> None:
    for day in range(3):
        await drive.send(*opinions(["ann", "bob"], range(10 * day, 10 * day + 4)))
        for name in ("ann", "bob"):
            await wish(drive, f"{name}-{day}", name, trust_delta=-1.0)
        drive.wait(days=1)
    standing = await drive.store.dials.standing(drive.now)
    assert standing.distrusted["normalize"].keys() == {"studio", ""}
    assert standing.distrusted["normalize"]["studio"] < 0.3
    drive.wait(days=60)
    assert (await drive.store.dials.standing(drive.now)).distrusted == {}


async def test_a_dial_at_rest_is_no_row_any_more(drive: Driver) -> None:
    await reject(drive)
    drive.wait(days=100)
    await drive.send(*opinions(["cat"], [99]))
    await digest(drive)
    assert await drive.rows(feedback_dials) == []
    assert await drive.rows(feedback_moves) == []


async def test_a_reset_brings_everything_of_a_task_type_back_with_history(drive: Driver) -> None:
    await reject(drive)
    await wish(drive, "w", mood_adjustment="calm", trust_delta=-0.2)
    facts: list[Fact] = []
    operations = operations_on(drive, facts)

    reset = await operations.reset_feedback("normalize", reason="a prank", actor="ann")

    assert reset == FeedbackReset("normalize", 4, "ann", "a prank")
    assert facts == [reset]
    assert await drive.rows(feedback_dials) == []
    assert await drive.rows(feedback_memory) == []
    taken_back = [row for row in await drive.rows(feedback_effects) if row.change == "reset"]
    assert [(row.dial, row.after, row.actor) for row in taken_back] == [
        ("bar", 0.0, "ann"),
        ("style", 0.0, "ann"),
        ("trust", 0.0, "ann"),
        ("trust", 0.0, "ann"),
    ]
    (step,) = await drive.rows(transitions, transitions.c.kind == "feedback")
    assert (step.ref, step.to_state, step.reason) == ("normalize", "reset", "a prank")
    with pytest.raises(UnknownTaskTypeError):
        await operations.reset_feedback("nowhere", reason="", actor="ann")


async def test_a_reset_does_not_give_the_day_new_shares(drive: Driver) -> None:
    await reject(drive)
    await wish(drive, "w", confidence_adjustment=1.0)
    await drive.store.dials.reset("normalize", reason="", actor="ann", now=drive.now)
    await drive.send(*opinions(["ann", "bob"], range(20, 24)))
    feedback_id = await wish(drive, "again", confidence_adjustment=1.0)
    (told,) = (await drive.store.dials.effects_of(feedback_id)).adaptations
    assert not told.done
    assert "the day's share is used up" in told.reason


def operations_on(drive: Driver, facts: list[Fact]) -> DaemonOperations:
    # Nothing here takes events in, or moves a champion.
    ingest: Any = None
    artifacts: Any = None
    return DaemonOperations(
        drive.store,
        ingest,
        artifacts,
        LINES,
        lambda _: SplitRules(),
        lambda: 100,
        facts.append,
        drive.clock,
        JUDGE,
        no_screening(drive.store, drive.clock),
    )


async def test_the_bars_of_a_running_daemon_follow(drive: Driver) -> None:
    live = LiveSettings(Settings())
    follower = FeedbackFollower(live, drive.store.dials, drive.clock)
    await follower.look()
    assert live.bars()["normalize"] == 0.7
    before = live.policy()
    await follower.look()
    assert live.policy() is before

    await reject(drive)
    await follower.look()
    assert live.bars()["normalize"] == 0.716
    assert live.bars()["audio"] == 0.7

    drive.wait(days=7)
    await follower.look()
    assert live.bars()["normalize"] == 0.708

    await drive.store.dials.reset("normalize", reason="", actor="ann", now=drive.now)
    await follower.look()
    assert live.bars()["normalize"] == 0.7


async def test_a_task_type_is_shown_with_what_brought_it_there(drive: Driver) -> None:
    await reject(drive)
    await wish(drive, "w", mood_adjustment="calm")
    view = FeedbackLoop(drive.store.database, LINES, Policy, lambda: RULES, drive.clock)

    (shown,) = await view.every_task_type()

    assert shown == await view.one("normalize")
    assert (shown.min_confidence, shown.feedback_threshold, shown.offset) == (0.716, 0.716, 0.016)
    assert (shown.mood, shown.sentence) == ("calm", "Write calmly and without haste.")
    assert (shown.feedback, shown.producers, shown.score) == (8, 2, -0.8)
    assert await view.one("nowhere") is None
    page = await view.effects(task_type="normalize", before=None, limit=1)
    assert [one.change for one in page.items] == ["adjust_content_style"]
    page = await view.effects(task_type="normalize", before=page.next, limit=5)
    assert [one.change for one in page.items] == ["increase_validation_strictness"]
    assert (await view.effects(task_type="audio", before=None, limit=5)).items == []


# --- weights ----------------------------------------------------------------------------

TWO = ModelLine(
    name="normalize",
    task_types=frozenset({"normalize", "route"}),
    base_model="tiny",
    provider="scripted",
    training={"epochs": 1},
)
REPEAT = SplitRules(
    held_out_share=0.0, starting_share=0.0, replay_share=0.5, cross_task_learning=False
)


async def test_a_boosted_task_type_is_repeated_more_and_the_batch_says_so(drive: Driver) -> None:
    drive.configure(task_types=TWO.task_types)
    old = [output(f"{kind}-{n}", task_type=kind) for kind in TWO.task_types for n in range(30)]
    await drive.release(*old, rules=REPEAT)
    praise: dict[str, Any] = {"approved": True, "feedback": {"user_rating": 5}}
    for day in range(3):
        await drive.send(*opinions(["ann", "bob"], range(10 * day, 10 * day + 8), **praise))
        await digest(drive)
        drive.wait(days=1)
    fresh = [output(f"new-{kind}-{n}", task_type=kind) for kind in TWO.task_types for n in range(9)]
    for event in list(fresh):
        await drive.send(event)

    batch = await drive.seal(rules=REPEAT)

    assert batch is not None
    (row,) = await drive.rows(batches, batches.c.id == batch.batch_id)
    assert row.weights == {"normalize": pytest.approx(row.weights["normalize"])}
    assert 1.4 < row.weights["normalize"] <= 2.0
    repeated = await drive.members(batch, Role.REPLAY)
    assert sum(task.startswith("route") for task in repeated) < len(repeated) / 2


async def test_without_a_boost_a_batch_has_no_weights(drive: Driver) -> None:
    batch = await drive.batch(output("a"))
    (row,) = await drive.rows(batches, batches.c.id == batch.batch_id)
    assert row.weights is None


# --- at random --------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.sampled_from(["ann", "bob", "cat", "studio"]),
        st.sampled_from([True, False, None]),
        st.sampled_from([None, 1, 5]),
        st.floats(-1.0, 1.0),
        st.sampled_from([None, "hype", "nonsense"]),
        st.sampled_from([0, 0, 5, 30]),
        st.sampled_from(["send", "send", "send", "send", "reset"]),
    ),
    min_size=20,
    max_size=60,
)


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps)
async def test_whatever_is_said_every_dial_is_what_its_history_says(
    drive: Driver, steps: list[tuple[Any, ...]]
) -> None:
    for name, approved, rating, wish_for, mood, hours, what in steps:
        drive.wait(hours=hours, seconds=1)
        task = f"{drive.now.timestamp()}"
        if what == "reset":
            await drive.store.dials.reset("normalize", reason="", actor="ann", now=drive.now)
            continue
        await drive.send(
            output(task, confidence=0.1),
            said(
                task,
                producer=name,
                approved=approved,
                feedback={"user_rating": rating},
                adaptation={
                    "confidence_adjustment": wish_for,
                    "trust_delta": -wish_for,
                    "mood_adjustment": mood,
                },
            ),
        )
        await digest(drive)
    assert await drive.store.database.read(broken_promises) == []
