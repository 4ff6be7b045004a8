"""Money in a store: reserved with the intent to launch, settled when the attempt ends.

After each test all promises are checked (tests/contract/conftest.py): an amount is reserved
exactly as long as its attempt may go on.
"""

import asyncio
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Row

from daemon.store.tables import runs, spending, transitions
from learning.budget import Budget, Caps, Price, Quote, Use
from learning.errors import IllegalMoveError
from learning.facts import (
    RunCancelled,
)
from learning.lines import ModelLine
from tests.builders import output
from tests.contract.driver import Driver


def budget(price: Price | None, **caps: int) -> Budget:
    """The scripted provider's one model costs so much."""
    prices = {} if price is None else {"scripted": {"tiny": price}}
    limits = Caps(**{period: Decimal(cap) for period, cap in caps.items()})
    return Budget("EUR", prices, limits)


def quote(amount: int, **caps: int) -> Quote:
    most = Use(0, timedelta(hours=1))
    return budget(Price(per_job=Decimal(amount)), **caps).quote(
        "scripted", "tiny", tokens=0, training={}, longest=most.duration
    )


async def spent(drive: Driver) -> list[tuple[int, Decimal, Decimal | None, str | None]]:
    """(attempt, reserved, actual, basis) of everything that has a price, run by run."""
    return [
        (row.attempt, row.reserved, row.actual, row.basis) for row in await drive.rows(spending)
    ]


async def run_row(drive: Driver, run_id: str) -> Row[Any]:
    (row,) = await drive.rows(runs, runs.c.id == run_id)
    return row


async def run_of(drive: Driver, line: ModelLine, name: str) -> str:
    """A planned run of a line."""
    (task_type,) = line.task_types
    await drive.send(output(name, task_type=task_type))
    batch = await drive.seal(line=line)
    assert batch is not None
    assert batch.run_id is not None
    return batch.run_id


def line_named(name: str) -> ModelLine:
    return ModelLine(name, frozenset({name}), "tiny", "scripted")


async def test_what_a_launch_may_cost_is_reserved_with_its_intent(drive: Driver) -> None:
    run_id = await drive.run_of(output())

    begun = await drive.store.runs.begin(run_id, drive.line, drive.now, quote=quote(3, day=10))

    assert begun.state == "launching"
    assert await spent(drive) == [(1, Decimal(3), None, None)]


async def test_over_a_cap_nothing_is_reserved_and_the_run_waits_with_the_reason(
    drive: Driver,
) -> None:
    run_id = await drive.run_of(output())

    record = await drive.store.runs.begin(run_id, drive.line, drive.now, quote=quote(3, day=2))

    assert (record.state, record.short_of_money, record.attempt) == ("waiting", True, 0)
    assert "money.cap_per_day (2.00 EUR)" in (record.message or "")
    assert await spent(drive) == []


async def test_a_run_that_waits_for_money_stays_due_and_begins_when_there_is_some(
    drive: Driver,
) -> None:
    run_id = await drive.run_of(output())
    await drive.store.runs.begin(run_id, drive.line, drive.now, quote=quote(3, day=2))

    assert [due.run_id for due in await drive.store.runs.due(drive.now)] == [run_id]
    begun = await drive.store.runs.begin(run_id, drive.line, drive.now, quote=quote(3, day=3))

    assert (begun.state, begun.attempt, begun.short_of_money) == ("launching", 1, False)
    assert [row.to_state for row in await drive.rows(transitions, transitions.c.kind == "run")] == [
        "planned",
        "waiting",
        "planned",
        "launching",
    ]


async def test_a_run_that_waits_for_money_says_anew_how_much_it_lacks_without_history(
    drive: Driver,
) -> None:
    run_id = await drive.run_of(output())
    await drive.store.runs.begin(run_id, drive.line, drive.now, quote=quote(3, day=2))
    steps = await drive.rows(transitions)

    again = await drive.store.runs.begin(run_id, drive.line, drive.now, quote=quote(4, day=2))

    assert "up to 4.00 EUR" in (again.message or "")
    assert await drive.rows(transitions) == steps


async def test_a_run_that_waits_for_money_does_not_stop_the_next_one_of_its_line(
    drive: Driver,
) -> None:
    dear, cheap = await drive.run_of(output("dear")), await drive.run_of(output("cheap"))
    await drive.store.runs.begin(dear, drive.line, drive.now, quote=quote(3, run=2))

    assert [due.run_id for due in await drive.store.runs.due(drive.now)] == [dear, cheap]


async def test_a_run_under_way_is_not_sent_back_to_wait_for_money(drive: Driver) -> None:
    """By a daemon that saw it planned, and comes too late."""
    run_id = await drive.run_of(output())
    await drive.begin(run_id)

    with pytest.raises(IllegalMoveError):
        await drive.store.runs.begin(run_id, drive.line, drive.now, quote=quote(3, day=2))

    assert (await run_row(drive, run_id)).state == "launching"


async def test_the_caps_of_a_day_and_a_month_count_all_lines(drive: Driver) -> None:
    lines = [line_named(name) for name in ("one", "two", "three")]
    run_ids = [await run_of(drive, line, line.name) for line in lines]

    async def begin(number: int, **caps: int) -> str:
        record = await drive.store.runs.begin(
            run_ids[number], lines[number], drive.now, quote=quote(3, **caps)
        )
        return record.state

    assert await begin(0, day=5, month=8) == "launching"
    assert await begin(1, day=5, month=8) == "waiting"
    drive.wait(days=1)
    assert await begin(1, day=5, month=8) == "launching"
    drive.wait(days=1)
    assert await begin(2, day=5, month=8) == "waiting"
    drive.wait(days=31)
    assert await begin(2, day=5, month=8) == "launching"


async def test_the_cap_of_a_run_counts_its_earlier_attempts(drive: Driver) -> None:
    run_id = await drive.run_of(output())
    await drive.store.runs.begin(run_id, drive.line, drive.now, quote=quote(3, run=5))
    await drive.store.runs.adopt(run_id, "job-1", drive.now)
    await drive.store.runs.fail(run_id, "died", "no reason", drive.now, drive.now)

    record = await drive.store.runs.begin(run_id, drive.line, drive.now, quote=quote(3, run=5))

    assert record.short_of_money
    assert await spent(drive) == [(1, Decimal(3), Decimal(3), "reported")]


async def test_another_currency_is_not_in_the_sum(drive: Driver) -> None:
    one, two = line_named("one"), line_named("two")
    in_dollars = replace(quote(3, day=4), currency="USD")
    await drive.store.runs.begin(await run_of(drive, one, "a"), one, drive.now, quote=in_dollars)

    record = await drive.store.runs.begin(
        await run_of(drive, two, "b"), two, drive.now, quote=quote(3, day=4)
    )

    assert record.state == "launching"


@pytest.mark.parametrize(
    ("told", "actual", "basis"),
    [
        (500_000, Decimal(1), "reported"),
        (0, Decimal(0), "reported"),
        (None, Decimal(4), "estimated"),
        ("many", Decimal(4), "estimated"),
        (-1, Decimal(4), "estimated"),
        (10**30, Decimal(4), "estimated"),
    ],
)
async def test_a_run_cost_what_its_service_says_and_otherwise_what_was_reserved(
    drive: Driver, told: object, actual: Decimal, basis: str
) -> None:
    by_tokens = Price(per_million_tokens=Decimal(2))
    at_most = budget(by_tokens).quote(
        "scripted", "tiny", tokens=1_000_000, training={"epochs": 2}, longest=timedelta(hours=1)
    )
    run_id = await drive.run_of(output())
    await drive.store.runs.begin(run_id, drive.line, drive.now, quote=at_most)

    await drive.store.runs.adopt(run_id, "job-1", drive.now)
    await drive.finish_training(run_id, trained_tokens=told)

    assert await spent(drive) == [(1, Decimal(4), actual, basis)]


async def test_an_hourly_price_is_paid_for_the_time_that_the_job_took(drive: Driver) -> None:
    hourly = budget(Price(per_hour=Decimal(6))).quote(
        "scripted", "tiny", tokens=9, training={}, longest=timedelta(hours=4)
    )
    run_id = await drive.run_of(output())
    await drive.store.runs.begin(run_id, drive.line, drive.now, quote=hourly)
    await drive.store.runs.adopt(run_id, "job-1", drive.now)
    drive.wait(minutes=90)

    await drive.finish_training(run_id)

    assert await spent(drive) == [(1, Decimal(24), Decimal(9), "reported")]


async def test_a_launch_that_made_no_job_gives_its_money_back(drive: Driver) -> None:
    run_id = await drive.run_of(output())
    await drive.store.runs.begin(run_id, drive.line, drive.now, quote=quote(3))

    await drive.store.runs.interrupt(run_id, "the launch made no job", drive.now)

    assert await spent(drive) == [(1, Decimal(3), Decimal(0), "no_job")]


async def test_a_launch_that_ended_in_a_defect_keeps_its_money(drive: Driver) -> None:
    run_id = await drive.run_of(output())
    await drive.store.runs.begin(run_id, drive.line, drive.now, quote=quote(3))

    await drive.store.runs.fail(run_id, "internal", "KeyError", None, drive.now, maybe_a_job=True)

    assert await spent(drive) == [(1, Decimal(3), Decimal(3), "reported")]


async def test_the_money_of_an_unknown_launch_is_kept_until_a_person_knows(drive: Driver) -> None:
    run_id = await drive.run_of(output())
    await drive.store.runs.begin(run_id, drive.line, drive.now, quote=quote(3))
    await drive.store.runs.wait_for(run_id, "nobody knows", drive.now)
    assert await spent(drive) == [(1, Decimal(3), None, None)]

    await drive.store.interventions.resolve(run_id, None, "ann", drive.now)

    assert await spent(drive) == [(1, Decimal(3), Decimal(0), "no_job")]


async def test_a_job_that_a_person_found_is_paid_when_it_ends(drive: Driver) -> None:
    run_id = await drive.run_of(output())
    await drive.store.runs.begin(run_id, drive.line, drive.now, quote=quote(3))
    await drive.store.runs.wait_for(run_id, "nobody knows", drive.now)

    await drive.store.interventions.resolve(run_id, "job-7", "ann", drive.now)
    assert await spent(drive) == [(1, Decimal(3), None, None)]
    await drive.store.leases.hold(run_id)
    await drive.finish_training(run_id)

    assert await spent(drive) == [(1, Decimal(3), Decimal(3), "reported")]


async def test_a_start_leaves_a_run_that_waits_for_money_waiting_and_due(drive: Driver) -> None:
    run_id = await drive.run_of(output())
    await drive.store.runs.begin(run_id, drive.line, drive.now, quote=quote(3, day=2))

    assert await drive.store.runs.resume_waiting(drive.now) == 0

    assert [due.short_of_money for due in await drive.store.runs.due(drive.now)] == [True]


async def test_a_run_that_waits_for_money_is_cancelled_at_once(drive: Driver) -> None:
    run_id = await drive.run_of(output())
    await drive.store.runs.begin(run_id, drive.line, drive.now, quote=quote(3, day=2))

    done = await drive.store.interventions.cancel(run_id, "too dear", "ann", drive.now)

    assert isinstance(done, RunCancelled)


async def test_many_lines_together_stay_below_the_cap(drive: Driver) -> None:
    lines = [line_named(f"line-{number}") for number in range(8)]
    run_ids = [await run_of(drive, line, line.name) for line in lines]

    records = await asyncio.gather(
        *(
            drive.store.runs.begin(run_id, line, drive.now, quote=quote(3, day=10))
            for run_id, line in zip(run_ids, lines, strict=True)
        )
    )

    assert sorted(record.state for record in records) == ["launching"] * 3 + ["waiting"] * 5
