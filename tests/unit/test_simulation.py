"""A record replayed under other settings: each rule moves what it should, and counts add up."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learning import simulation
from learning.batch_sizing import SizeRules
from learning.batching import BatchRules, Trigger
from learning.budget import Budget, Caps, Price
from learning.clock import microseconds
from learning.gate import Outcome
from learning.lifecycle import EventState
from learning.lines import ModelLine, ModelLines
from learning.policy import Policy
from learning.sampling import SplitRules
from learning.simulated_line import NEVER, Configuration, LinePast, PastRun
from learning.simulation import (
    Batched,
    Became,
    Carried,
    Change,
    Output,
    Past,
    Recorded,
    Report,
    Ruled,
    Said,
    Totals,
    simulate,
)

START = datetime(2026, 5, 4, tzinfo=UTC)
END = START + timedelta(days=1)
LINES = ModelLines(
    [ModelLine(name, frozenset({name}), "tiny", "scripted") for name in ("coding", "audio")]
)
SHIPPED = Configuration(
    policy=Policy(),
    batches=BatchRules(batch_size=4, max_queue_size=10, max_wait=timedelta(minutes=15)),
    sizes=SizeRules(adaptive=False, start=4, least=4, most=10),
    budget=Budget(),
    split=SplitRules(held_out_share=0.25, starting_share=0.25, wanted_held_out=0),
    split_of={},
    lines=LINES,
)

RECORDED = sorted(set(EventState) - {EventState.FORGOTTEN})
"""What is forgotten is in no record."""


def at(**passed: float) -> int:
    return microseconds(START + timedelta(**passed))


def output(
    number: int,
    state: EventState = EventState.QUEUED,
    *,
    seconds: float = 0.0,
    stated: bool | None = True,
    confidence: float | None = None,
    **fields: Any,
) -> Output:
    arrived = at(seconds=seconds)
    final = state not in (EventState.QUEUED, EventState.HELD, EventState.QUARANTINED)
    closed = fields.pop("closed_at", arrived if final else NEVER)
    return Output(arrived, number, "coding", stated, confidence, state, closed, **fields)


def replay(
    recorded: Sequence[Recorded],
    simulated: Configuration = SHIPPED,
    *,
    past: Past | None = None,
    until: datetime = END,
    run_seconds: float = 300.0,
) -> Report:
    return simulate(
        sorted(recorded, key=lambda one: one.at),
        past or Past(),
        simulated,
        SHIPPED,
        since=START,
        until=until,
        run_seconds=run_seconds,
    )


def with_policy(**changes: Any) -> Configuration:
    return replace(SHIPPED, policy=replace(SHIPPED.policy, **changes))


def soon(minutes: float = 1) -> datetime:
    return START + timedelta(minutes=minutes)


# --- verdicts -----------------------------------------------------------------------------


def test_a_higher_bar_moves_the_event_between_the_two_bars_and_no_other() -> None:
    recorded: list[Recorded] = [
        output(1, confidence=0.95),
        output(2, confidence=0.8),
        output(3, EventState.HELD, confidence=0.6),
    ]
    report = replay(recorded, with_policy(min_confidence=0.9))

    assert report.changes == [Change(Became.ACCEPTED, Became.HELD, 1)]
    assert (report.total.recorded.accepted, report.total.recorded.held) == (2, 1)
    assert (report.total.simulated.accepted, report.total.simulated.held) == (1, 2)
    assert (report.control.reproduced, report.control.verdicts) == (3, 3)


def test_auto_approval_accepts_what_had_no_verdict() -> None:
    recorded = [output(1, EventState.HELD, stated=None, confidence=0.9)]
    report = replay(recorded, with_policy(enable_auto_approval=True, feedback_threshold=0.85))
    assert report.changes == [Change(Became.HELD, Became.ACCEPTED, 1)]


def test_what_a_validator_stopped_stays_stopped_and_a_new_finding_stops() -> None:
    stopped = output(1, EventState.QUARANTINED, stopped=("x",), findings=("x",))
    anew = output(2, findings=("length: too long",))
    report = replay([stopped, anew])
    assert report.changes == [Change(Became.ACCEPTED, Became.QUARANTINED, 1)]
    assert report.control.reproduced == 2


def test_feedback_joins_later_in_time_whichever_came_first() -> None:
    early = Said(at(seconds=1), 2, True, late=False)
    recorded: list[Recorded] = [
        output(1, EventState.SEALED, stated=None, closed_at=at(minutes=30)),
        Said(at(seconds=5), 1, True, late=False),
        output(2, EventState.SEALED, seconds=9, stated=None, closed_at=at(minutes=30)),
        early,
    ]
    report = replay(recorded)
    assert report.total.simulated.accepted == 2
    assert report.control.reproduced == 2


def test_a_no_after_an_earlier_seal_is_late_and_before_a_later_one_withdraws() -> None:
    recorded: list[Recorded] = [
        *(output(n, EventState.SEALED, closed_at=at(seconds=30)) for n in (1, 2, 3)),
        output(4, EventState.WITHDRAWN, seconds=1, closed_at=at(seconds=20)),
        Said(at(seconds=20), 4, False, late=False),
    ]
    sooner = replay(recorded)  # a batch of four goes out at once
    assert sooner.total.simulated.accepted == 4
    assert sooner.changes == [Change(Became.WITHDRAWN, Became.ACCEPTED, 1)]
    assert sooner.control.reproduced == 4

    later = replay(recorded, replace(SHIPPED, sizes=replace(SHIPPED.sizes, start=5, least=5)))
    assert later.total.simulated.withdrawn == 1
    assert later.changes == []


def test_a_held_event_expires_after_its_time_and_feedback_is_late_then() -> None:
    recorded: list[Recorded] = [
        output(1, EventState.SEALED, stated=None, closed_at=at(hours=5)),
        Said(at(hours=4), 1, True, late=False),
        output(2, EventState.HELD, stated=None),
    ]
    report = replay(recorded, with_policy(hold=timedelta(hours=3)))
    assert report.total.simulated.expired == 2
    assert report.changes == [
        Change(Became.ACCEPTED, Became.EXPIRED, 1),
        Change(Became.HELD, Became.EXPIRED, 1),
    ]
    assert report.control.reproduced == 2


def test_a_verdict_by_hand_is_given_again() -> None:
    recorded: list[Recorded] = [
        output(1, EventState.SEALED, stated=None, closed_at=at(hours=1)),
        output(2, EventState.QUEUED, stopped=("x",), findings=("x",)),
        output(3, EventState.WITHDRAWN, closed_at=at(seconds=2)),
        Ruled(at(seconds=1), 1, True),
        Ruled(at(seconds=1), 2, True),
        Ruled(at(seconds=2), 3, False),
    ]
    report = replay(recorded)
    assert (report.changes, report.control.reproduced) == ([], 3)


def test_an_event_from_before_stands_as_it_stood_and_is_not_judged_anew() -> None:
    carried = Carried(EventState.QUEUED, at(minutes=-5), by_human=True, people=())
    held = Carried(EventState.HELD, at(days=-6), by_human=False, people=())
    recorded: list[Recorded] = [
        output(1, confidence=0.75, carried=carried),
        output(2, EventState.EXPIRED, stated=None, carried=held, closed_at=at(days=0.99)),
    ]
    report = replay(recorded, with_policy(min_confidence=0.9, hold=timedelta(days=6.5)))
    assert (report.arrived, report.carried) == (0, 2)
    assert report.changes == []
    assert sum(map(sum, report.series.simulated.counts.values())) == 1  # one batch, by age


def test_the_control_says_which_verdicts_todays_settings_do_not_give_again() -> None:
    report = replay([output(1, EventState.QUEUED, confidence=0.5), output(2)])
    assert (report.control.reproduced, report.control.verdicts) == (1, 2)
    (difference,) = report.control.differences
    assert (difference.id, difference.recorded, difference.replayed) == (1, "queued", "held")


# --- batches ------------------------------------------------------------------------------


def batches_of(report: Report) -> dict[str, int]:
    return dict(report.total.simulated.batches)


@pytest.mark.parametrize(
    ("n", "minutes", "expected"),
    [
        (3, 10, {}),
        (3, 16, {Trigger.AGE: 1}),
        (4, 1, {Trigger.SIZE: 1}),
        (10, 1, {Trigger.FULL: 1}),
        (14, 1, {Trigger.FULL: 1}),
        (14, 7, {Trigger.FULL: 1, Trigger.SIZE: 1}),
    ],
)
def test_a_batch_goes_out_by_size_by_age_or_when_the_queue_is_full(
    n: int, minutes: float, expected: dict[str, int]
) -> None:
    """A run lasts five minutes; what arrives in one block is looked at together."""
    report = replay([output(number) for number in range(1, n + 1)], until=soon(minutes))
    assert batches_of(report) == expected


def test_a_busy_line_seals_nothing_until_its_run_is_over() -> None:
    recorded = [output(number, seconds=number) for number in range(1, 13)]
    report = replay(recorded, until=soon(4))
    assert batches_of(report) == {Trigger.SIZE: 1}

    later = replay(recorded, until=soon(6))
    assert batches_of(later) == {Trigger.SIZE: 2}
    assert later.total.simulated.sealed == 8

    quick = replay(recorded, until=soon(4), run_seconds=1)
    assert batches_of(quick) == {Trigger.SIZE: 3}


def test_a_run_lasts_as_long_as_the_one_on_record_that_is_nearest() -> None:
    past = Past(
        {
            "coding": LinePast(
                runs=[
                    PastRun(at(seconds=4), 1.0, Trigger.SIZE, Outcome.PROMOTE, 0.1),
                    PastRun(at(seconds=8), 3_600.0, Trigger.SIZE, Outcome.REJECT, None),
                ]
            )
        }
    )
    recorded = [output(number, seconds=number) for number in range(1, 13)]
    report = replay(recorded, past=past, until=soon(30))
    assert batches_of(report) == {Trigger.SIZE: 2}


def test_a_run_that_was_under_way_keeps_the_line_busy() -> None:
    past = Past({"coding": LinePast(busy_until=at(minutes=10))})
    recorded = [output(number) for number in range(1, 5)]
    assert batches_of(replay(recorded, past=past, until=soon(9))) == {}
    assert batches_of(replay(recorded, past=past, until=soon(11))) == {Trigger.SIZE: 1}


def test_an_operators_flush_is_repeated_and_an_imported_file_comes_again() -> None:
    def batched(seconds: float, trigger: Trigger) -> Batched:
        return Batched(at(seconds=seconds), "coding", trigger, 2, 0, 0, 60.0, True, Decimal(0))

    flush, imported = batched(5, Trigger.FLUSH), batched(6, Trigger.IMPORT)
    recorded: list[Recorded] = [output(1), output(2), flush, imported]
    report = replay(recorded, until=soon(2))
    assert report.total.recorded.batches == {"flush": 1, "import": 1}
    assert report.total.simulated.batches == {"flush": 1, "import": 1}


def test_how_many_are_held_out_follows_the_shares_and_who_approved() -> None:
    recorded = [output(number) for number in range(1, 5)]
    half = replace(SHIPPED.split, held_out_share=0.5)
    report = replay(recorded, replace(SHIPPED, split=half))
    assert (report.total.simulated.held_out, report.total.simulated.trained) == (2, 2)

    auto = replace(
        SHIPPED, split=half, policy=Policy(enable_auto_approval=True, feedback_threshold=0.5)
    )
    by_itself = [output(n, EventState.HELD, stated=None, confidence=0.9) for n in range(1, 5)]
    report = replay(by_itself, auto)
    assert (report.total.simulated.held_out, report.total.simulated.trained) == (0, 4)


def test_a_line_without_a_base_model_seals_nothing_unless_it_is_to_be_assumed() -> None:
    bare = ModelLines([ModelLine("coding", frozenset({"coding"}), None, "scripted")])
    recorded = [output(number) for number in range(1, 5)]
    assert batches_of(replay(recorded, replace(SHIPPED, lines=bare))) == {}
    assumed = replace(SHIPPED, lines=bare, without_base=True)
    assert batches_of(replay(recorded, assumed)) == {Trigger.SIZE: 1}


def test_a_batch_size_adapts_by_the_runs_on_record() -> None:
    """Runs of ten minutes, and an event every ten seconds: the line cannot keep up."""
    runs = [PastRun(at(), 600.0, Trigger.SIZE, Outcome.PROMOTE, 0.1)]
    recorded = [output(number, seconds=10 * number) for number in range(1, 1_000)]
    adaptive = replace(SHIPPED, batches=replace(SHIPPED.batches, max_queue_size=10_000))
    sizes = SizeRules(adaptive=True, start=4, least=4, most=200)
    past = Past({"coding": LinePast(runs=runs)})
    fixed = replay(recorded, adaptive, past=past).total.simulated
    grown = replay(recorded, replace(adaptive, sizes=sizes), past=past).total.simulated
    assert fixed.sealed < 600
    assert grown.sealed == 999
    pinned = Past({"coding": LinePast(runs=runs, size=4, pinned=True)})
    assert replay(recorded, replace(adaptive, sizes=sizes), past=pinned).total.simulated == fixed


# --- money --------------------------------------------------------------------------------


def priced(**caps: int) -> Configuration:
    budget = Budget(
        prices={"scripted": {"*": Price(per_job=Decimal(3))}},
        caps=Caps(**{name: Decimal(amount) for name, amount in caps.items()}),
    )
    return replace(SHIPPED, budget=budget)


def test_runs_cost_what_the_price_says() -> None:
    recorded = [output(number, seconds=number) for number in range(1, 9)]
    report = replay(recorded, priced())
    assert (report.total.simulated.launched, report.total.simulated.spent) == (2, Decimal(6))
    assert not any("no price" in note for note in report.notes)
    assert any("no price" in note for note in replay(recorded).notes)


def test_tokens_and_hours_are_measured_or_their_assumption_is_told() -> None:
    price = Price(per_million_tokens=Decimal(1_000_000), per_hour=Decimal(3_600))
    budget = Budget(prices={"scripted": {"*": price}})
    one_row = replace(SHIPPED, budget=budget, split=replace(SHIPPED.split, held_out_share=0.0))
    recorded = [output(number) for number in range(1, 5)]
    past = Past({"coding": LinePast(tokens_a_row=7.0)})
    report = replay(recorded, one_row, past=past, run_seconds=2.0)
    assert report.total.simulated.spent == 4 * 7 + 2
    assert any("tokens" in note for note in replay(recorded, one_row).notes)


def test_a_run_over_a_cap_waits_for_the_next_day_or_for_ever() -> None:
    recorded = [output(number, seconds=number) for number in range(1, 9)]
    day = replay(recorded, priced(day=3), until=START + timedelta(hours=30))
    assert (day.total.simulated.launched, day.waits_for_money) == (2, 1)
    assert day.series.simulated.spent[-1] == 0
    assert replay(recorded, priced(day=3)).total.simulated.launched == 1
    never = replay(recorded, priced(run=2), until=START + timedelta(days=40))
    assert (never.total.simulated.launched, never.waits_for_money) == (0, 1)
    before = Past(spent=[(at(hours=-1), Decimal(9)), (at(), Decimal(1))])
    assert replay(recorded, priced(day=3), past=before).total.simulated.launched == 0


# --- together -----------------------------------------------------------------------------


def test_an_empty_record_is_an_empty_report() -> None:
    report = replay([])
    assert (report.arrived, report.total.simulated) == (0, Totals())
    assert report.series.step_seconds == 3_600
    assert len(report.series.starts) == 24


@st.composite
def records(draw: st.DrawFn) -> list[Recorded]:
    """Any record, consistent or not: the daemon's own are a small part of them."""
    n = draw(st.integers(0, 40))
    seconds = st.integers(0, 100_000)
    found: list[Recorded] = []
    arrivals = sorted(draw(st.lists(seconds, min_size=n, max_size=n)))
    for number, arrived in enumerate(arrivals, start=1):
        state = draw(st.sampled_from(RECORDED))
        final = state not in (EventState.QUEUED, EventState.HELD, EventState.QUARANTINED)
        findings = draw(st.sampled_from([(), ("x",)]))
        found.append(
            Output(
                at(seconds=arrived),
                number,
                draw(st.sampled_from(["coding", "audio", "unknown"])),
                draw(st.sampled_from([True, False, None])),
                draw(st.sampled_from([None, 0.3, 0.75, 0.95])),
                state,
                at(seconds=arrived + draw(seconds)) if final else NEVER,
                findings,
                findings,
            )
        )
    for _ in range(draw(st.integers(0, 40))):
        when, which = at(seconds=draw(seconds)), draw(st.integers(1, 45))
        said = draw(st.sampled_from([True, False, None]))
        found.append(
            Ruled(when, which, bool(said))
            if draw(st.booleans())
            else Said(when, which, said, draw(st.booleans()))
        )
    for trigger in draw(st.lists(st.sampled_from([Trigger.FLUSH, Trigger.IMPORT]), max_size=3)):
        when = at(seconds=draw(seconds))
        found.append(Batched(when, "coding", trigger, 1, 0, 0, 5.0, True, Decimal(1)))
    return sorted(found, key=lambda one: one.at)


@settings(max_examples=60, deadline=None)
@given(
    recorded=records(),
    bar=st.sampled_from([0.2, 0.7, 0.9]),
    auto=st.booleans(),
    hours=st.sampled_from([1, 5, 200]),
    size=st.sampled_from([1, 4, 10]),
)
def test_every_event_ends_once_and_the_counts_add_up(
    recorded: list[Recorded], bar: float, auto: bool, hours: int, size: int
) -> None:
    policy = Policy(bar, auto, bar, timedelta(hours=hours))
    sizes = replace(SHIPPED.sizes, start=size, least=1)
    simulated = replace(priced(day=20), policy=policy, sizes=sizes)
    ends: Counter[int] = Counter()

    def replayed() -> Report:
        return simulate(
            recorded,
            Past(),
            simulated,
            SHIPPED,
            since=START,
            until=START + timedelta(days=2),
            ended=lambda event, state: ends.update([event]),
        )

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(simulation, "FORGET_EVERY", 1)
        forgetful = replayed()
    ends.clear()
    report = replayed()
    assert (forgetful.total, forgetful.changes) == (report.total, report.changes)
    assert forgetful.series == report.series

    outputs = [one for one in recorded if isinstance(one, Output)]
    n = len(outputs)
    assert ends == {one.id: 1 for one in outputs}
    assert report.arrived == report.control.verdicts == n
    for side in (report.total.recorded, report.total.simulated):
        assert side.events == n
        assert side.sealed == side.trained + side.held_out
    imports = sum(isinstance(one, Batched) and one.trigger is Trigger.IMPORT for one in recorded)
    assert report.total.simulated.sealed - imports <= report.total.simulated.accepted
    assert sum(one.events for one in report.changes) <= n
    for name in Became:
        for total, series, by_line in (
            (report.total.recorded, report.series.recorded, "recorded"),
            (report.total.simulated, report.series.simulated, "simulated"),
        ):
            assert sum(series.counts[name]) == getattr(total, name)
            of_lines = (getattr(getattr(one, by_line), name) for one in report.lines.values())
            assert sum(of_lines) == getattr(total, name)
    assert sum(report.series.simulated.counts["batches"]) == sum(
        report.total.simulated.batches.values()
    )
    assert sum(report.series.simulated.spent) == report.total.simulated.spent
    assert list(itertools.accumulate(report.series.simulated.spent))[-1] <= 40 + 3
