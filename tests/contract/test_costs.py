"""What is shown of the money: sums of the books, against the caps that hold now."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from daemon.costs_screen import cost_of
from daemon.probes import snapshot_of_costs
from daemon.store.views.costs import CostBooks, CostsBy
from daemon.store.views.runs import AttemptCost, Runs
from learning.budget import Budget, Caps, Price
from monitoring.metrics import Metrics, Snapshot
from tests.builders import output
from tests.contract.driver import Driver

BY_TOKENS = Budget(
    "EUR",
    {"scripted": {"tiny": Price(per_million_tokens=Decimal(1))}},
    Caps(run=Decimal(100), day=Decimal(10), month=Decimal(20)),
)


@pytest.fixture
def books(drive: Driver) -> CostBooks:
    return CostBooks(drive.store.database, lambda: BY_TOKENS, drive.clock)


async def launch(drive: Driver, millions: int, currency: str = "EUR") -> str:
    """A run that may cost so much; it waits when there is no money for it."""
    run_id = await drive.run_of(output(f"task-{millions}-{drive.now:%m%d}-{currency}"))
    budget = Budget(currency, BY_TOKENS.prices, BY_TOKENS.caps)
    quote = budget.quote(
        "scripted",
        "tiny",
        tokens=millions * 1_000_000,
        training={"epochs": 1},
        longest=timedelta(hours=1),
    )
    record = await drive.store.runs.begin(run_id, drive.line, drive.now, quote=quote)
    if record.state == "launching":
        await drive.store.runs.adopt(run_id, f"job of {run_id}", drive.now)
    return run_id


async def train(drive: Driver, millions: int, told: int | None, currency: str = "EUR") -> str:
    """A run that was trained, and may have said on how many tokens."""
    run_id = await launch(drive, millions, currency)
    await drive.finish_training(run_id, trained_tokens=told)
    # The line is free for its next run.
    await drive.store.runs.fail(run_id, "enough", "seen", None, drive.now)
    return run_id


async def accounts(books: CostBooks, by: CostsBy, limit: int = 10) -> list[tuple[Any, ...]]:
    """(key, currency, spent, estimated, reserved, attempts, trained tokens)"""
    return [
        (
            one.key,
            one.currency,
            str(one.spent),
            str(one.estimated),
            str(one.reserved),
            one.attempts,
            one.trained_tokens,
        )
        for one in await books.accounts(by, limit)
    ]


async def test_without_a_price_the_books_are_empty(drive: Driver, books: CostBooks) -> None:
    await drive.train(await drive.run_of(output()))

    now = await books.look()

    assert [(one.committed, one.left) for one in now.periods] == [
        (Decimal(0), Decimal(10)),
        (Decimal(0), Decimal(20)),
    ]
    assert (now.providers, now.waiting) == ([], [])
    assert all([await books.accounts(by, 10) == [] for by in CostsBy])


async def test_what_is_spent_reserved_and_waited_for_stands_side_by_side(
    drive: Driver, books: CostBooks
) -> None:
    await train(drive, 4, 1_500_000)
    drive.wait(days=1)
    await train(drive, 4, None)
    waiting = await launch(drive, 7)
    drive.wait(seconds=1)
    running = await launch(drive, 5)

    now = await books.look()

    assert [(one.period, one.since, one.committed, one.left) for one in now.periods] == [
        ("day", datetime(2026, 3, 2, tzinfo=UTC), Decimal(9), Decimal(1)),
        ("month", datetime(2026, 3, 1, tzinfo=UTC), Decimal("10.5"), Decimal("9.5")),
    ]
    assert [asdict(one) for one in now.providers] == [
        {
            "line": "normalize",
            "provider": "scripted",
            "currency": "EUR",
            "spent": Decimal("5.5"),
            "reserved": Decimal(5),
        }
    ]
    (short,) = now.waiting
    assert (short.run_id, short.line) == (waiting, "normalize")
    assert "money.cap_per_day" in short.reason
    assert (await books.accounts(CostsBy.RUN, 1))[0].key == running


async def test_days_months_lines_and_runs_add_up_to_the_same(
    drive: Driver, books: CostBooks
) -> None:
    first = await train(drive, 4, 1_500_000)
    drive.wait(days=1)
    second = await train(drive, 3, None)
    drive.wait(days=31)
    third = await launch(drive, 5)

    spent_1 = ("1.500000", "0.000000", "0.000000", 1, 1_500_000)
    spent_2 = ("3.000000", "3.000000", "0.000000", 1, 0)
    open_3 = ("0.000000", "0.000000", "5.000000", 1, 0)
    assert await accounts(books, CostsBy.DAY) == [
        ("2026-04-02", "EUR", *open_3),
        ("2026-03-02", "EUR", *spent_2),
        ("2026-03-01", "EUR", *spent_1),
    ]
    assert await accounts(books, CostsBy.RUN) == [
        (third, "EUR", *open_3),
        (second, "EUR", *spent_2),
        (first, "EUR", *spent_1),
    ]
    assert await accounts(books, CostsBy.MONTH) == [
        ("2026-04", "EUR", *open_3),
        ("2026-03", "EUR", "4.500000", "3.000000", "0.000000", 2, 1_500_000),
    ]
    assert await accounts(books, CostsBy.LINE) == [("normalize", "EUR", *open_3)]
    assert len(await accounts(books, CostsBy.DAY, limit=2)) == 2


async def test_currencies_are_never_added_up(drive: Driver, books: CostBooks) -> None:
    await train(drive, 1, None)
    await train(drive, 2, None, currency="USD")

    found = [(one.currency, one.spent) for one in await books.accounts(CostsBy.MONTH, 10)]

    assert found == [("EUR", Decimal(1)), ("USD", Decimal(2))]
    assert (await books.look()).periods[0].committed == 1


async def test_the_gauges_show_the_money_and_who_waits_for_it(
    drive: Driver, books: CostBooks
) -> None:
    await train(drive, 4, 1_500_000)
    await launch(drive, 9)
    await launch(drive, 5)
    metrics = Metrics()

    metrics.show(snapshot_of_costs(Snapshot(ready=True), await books.look()))

    page = metrics.render().decode()
    of_line = '{currency="EUR",line="normalize",provider="scripted"}'
    assert f"learnd_money_spent{of_line} 1.5" in page
    assert f"learnd_money_reserved{of_line} 5.0" in page
    assert 'learnd_money_cap{currency="EUR",period="month"} 20.0' in page
    assert 'learnd_money_left{currency="EUR",period="day"} 3.5' in page
    assert 'learnd_money_waiting_runs{line="normalize"} 1.0' in page


async def test_each_attempt_of_a_run_is_shown_with_its_cost(drive: Driver) -> None:
    run_id = await launch(drive, 3)
    await drive.store.runs.fail(run_id, "died", "x", drive.now, drive.now)
    shown = await Runs(drive.store.database).one(run_id)

    assert shown is not None
    (attempt,) = shown.attempts
    assert attempt.cost == AttemptCost("EUR", Decimal(3), Decimal(3), "estimated")
    assert cost_of(asdict(attempt.cost)) == "at most 3.00 EUR"
    assert cost_of({**asdict(attempt.cost), "actual": None}) == "up to 3.00 EUR"
