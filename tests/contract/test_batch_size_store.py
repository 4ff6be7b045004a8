"""What the store remembers of batch sizes, and that the sealer follows what was chosen."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from daemon.api.ports import Operations
from daemon.loops import SIZE_EVERY, Sealer
from daemon.operations import (
    BatchSizeTooLargeError,
    DaemonOperations,
    UnknownLineError,
)
from daemon.store.batch_sizes import HISTORY, BatchSizes, LineBatchSize
from daemon.store.tables import transitions
from daemon.store.views.batch_sizes import BatchSizeDetail
from daemon.store.views.batch_sizes import BatchSizes as BatchSizesView
from learning.batch_sizing import EndedRun, SizeCause, SizeRules, Sizing, choose_size
from learning.batching import BatchRules, Trigger
from learning.facts import BatchSealed, BatchSizeChanged, Fact
from learning.gate import Comparison, GateReport, Outcome
from learning.lines import ModelLine, ModelLines
from learning.sampling import SplitRules
from tests.builders import JUDGE, feedback, output, outputs
from tests.contract.driver import ALL_TRAIN, LINE, Driver, everything
from tests.screening import no_screening

LINES = ModelLines([LINE])
LARGER = Sizing(45, 45, SizeCause.UNPROVEN, "collect more")


def sizes_under(drive: Driver, **rules: Any) -> BatchSizes:
    """The database's batch sizes, as a daemon with these settings sees them."""
    return BatchSizes(drive.store.database, lambda: SizeRules(**rules))


async def present(sizes: BatchSizes, drive: Driver) -> LineBatchSize:
    found, _ = await sizes.experience(LINE, drive.now)
    return found


async def told(drive: Driver) -> list[tuple[str, str, str]]:
    """Every recorded change: from, to, by whom."""
    rows = await drive.rows(transitions, transitions.c.kind == HISTORY)
    return [(row.from_state, row.to_state, row.actor) for row in rows]


async def test_a_line_without_a_past_has_the_configured_size(drive: Driver) -> None:
    sizes = sizes_under(drive, start=7, least=7)

    assert await sizes.current() == {}
    found, experience = await sizes.experience(LINE, drive.now)
    assert (found.size, found.cause, found.revision) == (7, SizeCause.CONFIGURED, 0)
    assert (experience.runs, experience.rate, experience.waiting) == ([], None, 0)


async def test_a_change_is_told_recorded_and_survives_a_restart(drive: Driver) -> None:
    sizes = sizes_under(drive)

    changed = await sizes.change(await present(sizes, drive), LARGER, drive.now)

    assert changed == BatchSizeChanged("normalize", 20, 45, "unproven", "collect more", "sealer")
    assert await told(drive) == [("20", "45", "sealer")]
    again = (await sizes_under(drive).current())["normalize"]
    assert (again.size, again.needed, again.changed_at) == (45, 45, drive.now)


async def test_of_two_daemons_one_makes_a_change(drive: Driver) -> None:
    one, other = sizes_under(drive), sizes_under(drive)
    seen = await present(one, drive)

    for _ in range(2):
        both = await asyncio.gather(
            one.change(seen, replace(LARGER, size=seen.size + 10), drive.now),
            other.change(seen, replace(LARGER, size=seen.size + 10), drive.now),
        )
        assert sum(changed is not None for changed in both) == 1
        seen = await present(one, drive)
    assert await told(drive) == [("20", "30", "sealer"), ("30", "40", "sealer")]


async def test_a_size_that_stays_is_no_change_but_its_cause_is_known(drive: Driver) -> None:
    sizes = sizes_under(drive)
    stays = Sizing(20, 0, SizeCause.IDLE, "the line is 3% busy")

    assert await sizes.change(await present(sizes, drive), stays, drive.now) is None
    drive.wait(hours=5)
    before = await everything(drive.store.database)
    stays = replace(stays, reason="the line is 4% busy")
    assert await sizes.change(await present(sizes, drive), stays, drive.now) is None

    assert await everything(drive.store.database) == before
    found, experience = await sizes.experience(LINE, drive.now)
    assert (found.cause, found.changed_at) == ("idle", None)
    assert experience.idle_seconds == 5 * 3_600
    assert await told(drive) == []


async def test_what_is_remembered_stays_within_the_bounds_of_the_settings(drive: Driver) -> None:
    sizes = sizes_under(drive)
    await sizes.change(await present(sizes, drive), LARGER, drive.now)

    for rules, size in (({"most": 30}, 30), ({"least": 60}, 60), ({"adaptive": False}, 20)):
        assert (await sizes_under(drive, **rules).current())["normalize"].size == size


async def test_a_pinned_size_stays_whatever_the_settings_say(drive: Driver) -> None:
    sizes = sizes_under(drive)

    changed = await sizes.set_by_hand("normalize", 3, "a test", "ann", drive.now)

    assert changed == BatchSizeChanged("normalize", 20, 3, "by_hand", "a test", "ann")
    for rules in ({}, {"least": 10}, {"adaptive": False}):
        assert (await sizes_under(drive, **rules).current())["normalize"].size == 3
    assert await sizes_under(drive, start=50, least=50).follow_settings(drive.now) == []


async def test_releasing_a_pinned_size_goes_on_from_there(drive: Driver) -> None:
    sizes = sizes_under(drive)
    await sizes.set_by_hand("normalize", 33, "", "ann", drive.now)

    await sizes.set_by_hand("normalize", None, "", "ann", drive.now)

    found = await present(sizes, drive)
    assert (found.size, found.pinned, found.needed) == (33, False, 0)
    assert await told(drive) == [("20", "33", "ann"), ("33", "33", "ann")]


@pytest.mark.parametrize("adaptive", [True, False])
async def test_another_configured_size_begins_anew_at_start_up(
    drive: Driver, adaptive: bool
) -> None:
    sizes = sizes_under(drive)
    await sizes.change(await present(sizes, drive), LARGER, drive.now)
    assert await sizes.follow_settings(drive.now) == []

    now_configured = sizes_under(drive, start=25, adaptive=adaptive)
    (changed,) = await now_configured.follow_settings(drive.now)

    assert (changed.before, changed.after, changed.actor) == (45, 25, "settings")
    assert changed.reason == "queue.batch_size is 25 now, it was 20"
    found = await present(sizes_under(drive, start=25), drive)
    assert (found.size, found.needed) == (25, 0)


async def test_the_experience_is_of_the_runs_at_this_size(drive: Driver) -> None:
    sizes = sizes_under(drive)
    run_id = await drive.run_of(output("old"))
    await drive.finish(run_id, Outcome.ABSTAIN)
    drive.wait(hours=1)
    await sizes.change(await present(sizes, drive), LARGER, drive.now)
    await drive.send(*outputs(range(4)))
    first = await drive.seal(size=4, trigger=Trigger.SIZE)
    assert first is not None
    assert first.run_id is not None
    drive.wait(seconds=10)
    await drive.train(first.run_id)
    drive.wait(seconds=60)
    gained = Comparison("all", 9, 2.0, 1.5, 0.1, 0.2, 0.25, 0.9)
    await drive.store.runs.decide(
        first.run_id,
        await drive.enter(first.run_id),
        GateReport(Outcome.PROMOTE, "better", overall=gained),
        {},
        drive.now,
    )
    # Of 14 more events one is withdrawn, and still has arrived.
    await drive.send(*outputs(range(4, 18)), feedback("task-9", approved=False))
    drive.wait(seconds=30)

    _, experience = await sizes.experience(LINE, drive.now)

    assert list(experience.runs) == [EndedRun(60.0, Trigger.SIZE, Outcome.PROMOTE, 0.25)]
    assert (experience.size, experience.needed) == (45, 45)
    assert experience.waiting == 13
    assert experience.rate == pytest.approx(14 / 100)
    assert experience.changes_today == 1


async def test_a_failed_run_counts_from_its_first_attempt(drive: Driver) -> None:
    run_id = await drive.run_of(output())
    for retry_at in (drive.now, None):
        await drive.begin(run_id)
        drive.wait(seconds=40)
        await drive.store.runs.fail(run_id, "oom", "x", retry_at, drive.now)

    _, experience = await sizes_under(drive).experience(LINE, drive.now)

    assert list(experience.runs) == [EndedRun(80.0, Trigger.FLUSH, None, None)]


async def test_changes_are_counted_for_a_day_and_an_operators_are_not(drive: Driver) -> None:
    sizes = sizes_under(drive)
    for size in (30, 40):
        seen = await present(sizes, drive)
        await sizes.change(seen, replace(LARGER, size=size), drive.now)
        drive.wait(hours=13)
    await sizes.set_by_hand("normalize", None, "", "ann", drive.now)

    _, experience = await sizes.experience(LINE, drive.now)

    assert experience.changes_today == 1


# --- the sealer -------------------------------------------------------------------------


class Sealing:
    """A sealer over a store with rules of its own, and the facts that it told."""

    def __init__(self, drive: Driver, rules: SizeRules) -> None:
        self.facts: list[Fact] = []
        self.expected: list[str] = []
        self.store = replace(
            drive.store, batch_sizes=BatchSizes(drive.store.database, lambda: rules)
        )
        self.sealer = Sealer(
            self.store,
            LINES,
            lambda: BatchRules(batch_size=rules.start, max_queue_size=rules.most),
            lambda _: ALL_TRAIN,
            self.facts.append,
            drive.clock,
            expect=lambda line: self.expected.append(line.name),
            expect_at=0.5,
        )

    async def seal(self) -> list[int]:
        """Look once; the sizes of the batches that were sealed."""
        self.facts.clear()
        await self.sealer.seal_due()
        return [fact.n_train for fact in self.facts if isinstance(fact, BatchSealed)]

    def changes(self) -> list[tuple[int, int, str]]:
        """The changes of the last look."""
        return [
            (fact.before, fact.after, fact.cause)
            for fact in self.facts
            if isinstance(fact, BatchSizeChanged)
        ]


async def three_runs(drive: Driver, sealing: Sealing, *, seconds: float = 60.0) -> None:
    """Three runs that prove nothing, while four events arrive in each."""
    for number in range(3):
        await drive.send(*outputs(range(number * 4, number * 4 + 4)))
        assert await sealing.seal() == [4]
        drive.wait(seconds=seconds)
        (record,) = await drive.store.runs.due(drive.now)
        await drive.finish(record.run_id, Outcome.ABSTAIN)


RULES = SizeRules(start=4, least=4, most=40)


async def test_the_sealer_waits_for_the_size_that_experience_asks_for(drive: Driver) -> None:
    sealing = Sealing(drive, RULES)
    await three_runs(drive, sealing)
    drive.wait(seconds=SIZE_EVERY.total_seconds())

    await drive.send(*outputs(range(20, 25)))
    assert await sealing.seal() == []
    assert sealing.changes() == [(4, 6, "unproven")]
    await drive.send(output("sixth"))
    assert await sealing.seal() == [6]


async def test_the_end_of_a_run_asks_for_the_size_at_once(drive: Driver) -> None:
    sealing = Sealing(drive, RULES)
    await three_runs(drive, sealing, seconds=5.0)
    await drive.send(output("another"))
    await sealing.seal()
    assert sealing.changes() == []

    sealing.sealer.size_anew()
    await sealing.seal()

    assert sealing.changes() == [(4, 6, "unproven")]


@pytest.mark.parametrize("how", ["switched off", "pinned"])
async def test_what_may_not_adapt_does_not(drive: Driver, how: str) -> None:
    sealing = Sealing(drive, replace(RULES, adaptive=how == "pinned"))
    if how == "pinned":
        await sealing.store.batch_sizes.set_by_hand("normalize", 4, "", "ann", drive.now)
    await three_runs(drive, sealing)
    drive.wait(hours=1)

    await drive.send(*outputs(range(20, 24)))

    assert await sealing.seal() == [4]
    assert sealing.changes() == []


async def test_what_an_operator_pins_is_sealed(drive: Driver) -> None:
    sealing = Sealing(drive, RULES)
    await sealing.store.batch_sizes.set_by_hand("normalize", 2, "", "ann", drive.now)
    await drive.send(*outputs(range(3)))

    assert await sealing.seal() == [2]


# --- asked by a person ------------------------------------------------------------------


def operations_on(drive: Driver, lines: ModelLines = LINES) -> tuple[Operations, list[Fact]]:
    facts: list[Fact] = []
    # Nothing here takes events in, or moves a champion.
    ingest: Any = None
    artifacts: Any = None
    operations = DaemonOperations(
        drive.store,
        ingest,
        artifacts,
        lines,
        lambda _: SplitRules(),
        lambda: 100,
        facts.append,
        drive.clock,
        JUDGE,
        no_screening(drive.store, drive.clock),
    )
    return operations, facts


async def test_an_operator_sets_a_size_and_it_is_told(drive: Driver) -> None:
    operations, facts = operations_on(drive)

    changed = await operations.set_batch_size("normalize", 8, reason="fewer", actor="ann")

    assert facts == [changed]
    view = BatchSizesView(drive.store.database, LINES, SizeRules)
    detail = await view.one("normalize")
    assert isinstance(detail, BatchSizeDetail)
    assert (detail.current.size, detail.current.pinned) == (8, True)
    assert [(step.before, step.after, step.actor) for step in detail.history] == [
        ("20", "8", "ann")
    ]
    assert detail.history[0].reason == "by_hand: fewer"


async def test_a_size_needs_a_line_and_room_in_the_queue(drive: Driver) -> None:
    operations, facts = operations_on(drive)

    with pytest.raises(UnknownLineError, match="no model line 'nowhere'"):
        await operations.set_batch_size("nowhere", 8, reason="", actor="ann")
    with pytest.raises(BatchSizeTooLargeError, match="larger than queue"):
        await operations.set_batch_size("normalize", 101, reason="", actor="ann")

    assert facts == []


async def test_every_line_is_listed_with_its_size(drive: Driver) -> None:
    lines = ModelLines([LINE, ModelLine("audio", frozenset({"audio"}), "tiny", "scripted")])
    sizes = sizes_under(drive)
    await sizes.change(await present(sizes, drive), LARGER, drive.now)

    view = BatchSizesView(drive.store.database, lines, SizeRules)

    assert [(one.line, one.size, one.cause) for one in await view.every_line()] == [
        ("audio", 20, "configured"),
        ("normalize", 45, "unproven"),
    ]
    assert await view.one("nowhere") is None


async def test_a_choice_from_the_store_is_the_pure_rules_choice(drive: Driver) -> None:
    sealing = Sealing(drive, RULES)
    await three_runs(drive, sealing)

    _, experience = await sealing.store.batch_sizes.experience(LINE, drive.now)

    assert choose_size(experience, RULES).cause is SizeCause.UNPROVEN


async def test_a_line_is_expected_once_of_each_batch_when_a_share_of_it_waits(
    drive: Driver,
) -> None:
    sealing = Sealing(drive, RULES)
    await drive.send(output("first"))
    await sealing.seal()
    assert sealing.expected == []

    await drive.send(output("second"))
    await sealing.seal()
    await drive.send(output("third"))
    await sealing.seal()
    assert sealing.expected == ["normalize"]

    await drive.send(output("fourth"))
    assert await sealing.seal() == [4]
    await drive.send(output("fifth"), output("sixth"))
    await sealing.seal()  # the line is busy: its trainer is at work
    assert sealing.expected == ["normalize"]
    (record,) = await drive.store.runs.due(drive.now)
    await drive.finish(record.run_id, Outcome.ABSTAIN)
    await sealing.seal()
    assert sealing.expected == ["normalize", "normalize"]
