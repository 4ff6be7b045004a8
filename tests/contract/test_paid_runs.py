"""Runs that cost money, with a real runner: over a cap they wait, and each job is paid once.

On a file only: what differs between the databases is in test_spending.py. After each test
all promises are checked (tests/contract/conftest.py): an amount is reserved exactly as long as its
attempt may go on.
"""

import asyncio
import itertools
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from learning.budget import Budget, Price
from learning.facts import (
    CandidateDecided,
    RunCancelled,
    RunFailed,
    RunLaunched,
    RunShortOfMoney,
    RunTrained,
    RunWaits,
)
from learning.ports import JobHandle, Recovery, RunRecord, RunSpec
from tests.contract.driver import Driver
from tests.contract.floor import Floor
from tests.contract.test_spending import budget, run_row, spent

pytestmark = pytest.mark.parametrize("kind", ["sqlite"], indirect=True)

EUR_5 = Price(per_job=Decimal(5))


@pytest.fixture
def floor(drive: Driver, tmp_path: Path) -> Floor:
    return Floor(drive, tmp_path, budget=budget(EUR_5))


async def test_a_run_without_a_price_leaves_no_trace_in_the_books(floor: Floor) -> None:
    floor.budget = Budget()
    await floor.sealed()

    async with floor.at_work():
        await floor.until(CandidateDecided)

    assert await spent(floor.drive) == []


async def test_a_run_at_home_costs_nothing_under_a_cap(floor: Floor) -> None:
    floor.budget, floor.needs_node = budget(None, day=1), True
    await floor.sealed()

    async with floor.at_work():
        await floor.until(CandidateDecided)

    assert await spent(floor.drive) == []


async def test_the_estimate_is_every_byte_of_the_dataset_in_each_epoch(floor: Floor) -> None:
    floor.budget = budget(Price(per_million_tokens=Decimal(1_000_000)))
    floor.play("improve", epochs=3, trained_tokens=11)
    run_id = await floor.sealed()

    async with floor.at_work():
        await floor.until(RunTrained)

    n_bytes = len((floor.folder / "datasets" / run_id / "train.jsonl").read_bytes())
    assert await spent(floor.drive) == [(1, Decimal(3 * n_bytes), Decimal(11), "reported")]


async def test_over_the_cap_a_run_waits_says_so_once_and_launches_nothing(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor.budget = budget(EUR_5, day=4)
    run_id = await floor.sealed()
    really_begin = floor.drive.store.runs.begin
    looks, looked_twice = itertools.count(1), asyncio.Event()

    async def begin(*told: Any, **more: Any) -> RunRecord:
        record = await really_begin(*told, **more)
        if next(looks) == 2:
            looked_twice.set()
        return record

    monkeypatch.setattr(floor.drive.store.runs, "begin", begin)
    async with floor.at_work():
        await looked_twice.wait()

    (told,) = floor.facts_of(RunShortOfMoney)
    assert (told.run_id, told.reason) == (run_id, (await run_row(floor.drive, run_id)).message)
    assert await floor.jobs() == []


async def test_a_run_that_waits_goes_on_when_the_cap_is_raised(floor: Floor) -> None:
    floor.budget = budget(EUR_5, month=4)
    await floor.sealed()

    async with floor.at_work() as runner:
        await floor.until(RunShortOfMoney)
        floor.budget = budget(EUR_5, month=5)
        runner.wake()
        await floor.until(CandidateDecided)

    assert await spent(floor.drive) == [(1, Decimal(5), Decimal(5), "reported")]


async def test_a_run_that_waits_goes_on_when_the_day_turns(floor: Floor) -> None:
    floor.budget = budget(EUR_5, day=9)
    await floor.sealed()
    async with floor.at_work() as runner:
        await floor.until(CandidateDecided)
        await floor.sealed()
        runner.wake()
        await floor.until(RunShortOfMoney)
        assert len(await floor.jobs()) == 1

        floor.drive.wait(hours=12)
        floor.facts.clear()
        runner.wake()
        await floor.until(CandidateDecided)

    assert len(await floor.jobs()) == 2


async def test_under_a_cap_a_run_waits_for_the_price_of_its_model(floor: Floor) -> None:
    floor.budget = budget(None, day=9)
    await floor.sealed()

    async with floor.at_work() as runner:
        told = await floor.until(RunShortOfMoney)
        assert 'set money.prices.scripted."tiny"' in told.reason
        floor.budget = budget(EUR_5, day=9)
        runner.wake()
        await floor.until(CandidateDecided)

    assert len(await floor.jobs()) == 1


async def test_each_attempt_that_had_a_job_is_paid(floor: Floor) -> None:
    floor.play("fail,improve")
    await floor.sealed()

    async with floor.at_work():
        await floor.until(CandidateDecided)

    paid = (Decimal(5), Decimal(5), "reported")
    assert await spent(floor.drive) == [(1, *paid), (2, *paid)]


async def test_an_attempt_that_was_refused_at_its_launch_is_not_paid(floor: Floor) -> None:
    floor.drive.configure(training={"nonsense": 1})
    await floor.sealed()

    async with floor.at_work():
        await floor.until(RunFailed)

    assert await spent(floor.drive) == [(1, Decimal(5), Decimal(0), "no_job")]


async def test_a_dataset_that_cannot_be_written_fails_the_run_and_costs_nothing(
    floor: Floor,
) -> None:
    (floor.folder / "datasets").write_text("a file where the folder should be")
    await floor.sealed()

    async with floor.at_work():
        failed = await floor.until(RunFailed)

    assert failed.error == "internal"
    assert await spent(floor.drive) == []


@pytest.mark.parametrize("recovery", [Recovery.LOOKUP, Recovery.IDEMPOTENCY])
async def test_a_job_whose_reply_was_lost_is_found_and_paid_once(
    floor: Floor, recovery: Recovery
) -> None:
    floor.recovery = recovery
    floor.play("lose_reply")
    await floor.sealed()

    async with floor.at_work():
        await floor.until(CandidateDecided)

    assert await spent(floor.drive) == [(1, Decimal(5), Decimal(5), "reported")]
    assert len(await floor.jobs()) == 1


async def test_the_money_of_a_job_that_nobody_can_look_up_is_kept(floor: Floor) -> None:
    floor.recovery = Recovery.NONE
    floor.play("lose_reply")
    await floor.sealed()

    async with floor.at_work():
        await floor.until(RunWaits)

    assert await spent(floor.drive) == [(1, Decimal(5), None, None)]


async def test_a_daemon_that_died_before_the_launch_leaves_no_money_behind(floor: Floor) -> None:
    run_id = await floor.sealed()
    made = floor.budget.quote("scripted", "tiny", tokens=1, training={}, longest=timedelta(hours=1))
    await floor.drive.store.runs.begin(run_id, floor.drive.line, floor.drive.now, quote=made)

    async with floor.at_work():
        await floor.until(CandidateDecided)

    assert await spent(floor.drive) == [
        (1, Decimal(5), Decimal(0), "no_job"),
        (2, Decimal(5), Decimal(5), "reported"),
    ]


async def test_a_job_that_is_cancelled_is_paid(floor: Floor) -> None:
    floor.play("hang")
    run_id = await floor.sealed()

    async with floor.at_work() as runner:
        await floor.until(RunLaunched)
        await floor.drive.store.interventions.cancel(run_id, "", "ann", floor.drive.now)
        runner.wake()
        await floor.until(RunCancelled)

    assert await spent(floor.drive) == [(1, Decimal(5), Decimal(5), "reported")]


async def test_a_defect_in_a_launch_keeps_the_money_of_a_job_that_there_may_be(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = floor.provider = floor.scripted()
    really_launch = provider.launch

    async def launch(spec: RunSpec) -> JobHandle:
        await really_launch(spec)
        raise KeyError("id")

    monkeypatch.setattr(provider, "launch", launch)
    await floor.sealed()
    async with floor.at_work():
        await floor.until(RunFailed)

    assert await spent(floor.drive) == [(1, Decimal(5), Decimal(5), "reported")]
