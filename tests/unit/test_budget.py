"""Money: what a job may cost, what it did cost, and what the caps allow."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.budget import (
    SMALLEST,
    Basis,
    Budget,
    Caps,
    Committed,
    Period,
    Price,
    PriceMissingError,
    Use,
    epochs_of,
    settled,
    shortage,
    shown,
)

HOUR = timedelta(hours=1)
amounts = st.decimals(0, 1_000_000, places=6)
prices = st.builds(Price, amounts, amounts, amounts)
uses = st.builds(Use, st.integers(0, 10**12), st.timedeltas(timedelta(0), timedelta(days=400)))


def test_a_price_is_the_sum_of_its_parts() -> None:
    price = Price(Decimal("25.50"), Decimal(2), Decimal("0.10"))

    assert price.of(Use(2_000_000, timedelta(minutes=90))) == Decimal("54.10")


def test_what_is_no_whole_millionth_is_rounded_up() -> None:
    assert Price(per_million_tokens=Decimal("0.000001")).of(Use(1, HOUR)) == SMALLEST


def test_a_clock_that_went_back_makes_nothing_cheaper_than_free() -> None:
    assert Price(per_hour=Decimal(9)).of(Use(0, -HOUR)) == 0


@given(prices, uses)
def test_no_job_has_a_negative_price(price: Price, use: Use) -> None:
    assert price.of(use) >= 0


@given(prices, uses, uses)
def test_whoever_uses_no_more_pays_no_more(price: Price, use: Use, other: Use) -> None:
    more = Use(max(use.trained_tokens, other.trained_tokens), max(use.duration, other.duration))

    assert price.of(use) <= price.of(more)


@given(prices)
def test_a_price_is_stored_as_it_is(price: Price) -> None:
    assert Price.from_json(price.as_json()) == price


@given(st.builds(Caps, *[st.none() | amounts] * 3), st.builds(Committed, *[amounts] * 3), amounts)
def test_nothing_that_fits_goes_over_a_cap(caps: Caps, taken: Committed, wanted: Decimal) -> None:
    found = shortage(caps, taken, wanted)

    over = [
        period
        for period in Period
        if (cap := caps.of(period)) is not None and taken.of(period) + wanted > cap
    ]
    assert (found.period if found else None) == (over[0] if over else None)
    assert found is None or found.left >= 0


@given(
    cap=amounts,
    jobs=st.lists(st.tuples(amounts, st.none() | st.decimals(0, 1, places=6)), max_size=30),
)
def test_reserving_and_settling_never_goes_over_a_cap(
    cap: Decimal, jobs: list[tuple[Decimal, Decimal | None]]
) -> None:
    """Each job reserves when it fits; it ends with a share of that, or is still under way."""
    taken = Decimal(0)
    for wanted, share in jobs:
        if shortage(Caps(day=cap), Committed(day=taken), wanted) is None:
            taken += wanted
            assert taken <= cap
            if share is not None:
                taken -= wanted - wanted * share
        assert 0 <= taken <= cap


def test_what_a_service_counted_is_what_was_used() -> None:
    price = Price(per_million_tokens=Decimal(10))

    assert settled(price, 5_000_000, HOUR, 1_000_000) == (Decimal(10), Basis.REPORTED)


def test_a_service_that_counts_nothing_may_have_trained_all_of_it() -> None:
    price = Price(per_million_tokens=Decimal(10))

    assert settled(price, 5_000_000, HOUR, None) == (Decimal(50), Basis.ESTIMATED)


def test_hours_need_nobody_to_count_them() -> None:
    assert settled(Price(per_hour=Decimal(3)), 5, 2 * HOUR, None) == (Decimal(6), Basis.REPORTED)


@pytest.mark.parametrize(
    ("training", "epochs"),
    [
        ({"epochs": 3}, 3),
        ({"n_epochs": "4"}, 4),
        ({"epochs": "auto"}, None),
        ({"epochs": 0}, 1),
        ({"epochs": float("inf")}, None),
        ({}, None),
    ],
)
def test_the_epochs_are_those_of_the_training_settings(
    training: Mapping[str, Any], epochs: int | None
) -> None:
    assert epochs_of(training) == epochs


BUDGET = Budget(
    prices={
        "openai": {"big": Price(Decimal(20)), "*": Price(Decimal(5))},
        "http": {"own": Price()},
    },
    caps=Caps(day=Decimal(10)),
    assumed_epochs=7,
)


def quote(budget: Budget, provider: str, model: str, **training: Any) -> tuple[int, Decimal]:
    made = budget.quote(provider, model, tokens=1_000, training=training, longest=HOUR)
    return made.most.trained_tokens, made.amount


def test_an_estimate_is_every_token_as_often_as_it_is_seen() -> None:
    assert quote(BUDGET, "openai", "big", epochs=3) == (3_000, Decimal("0.06"))


def test_an_estimate_assumes_epochs_where_the_service_chooses_them() -> None:
    assert quote(BUDGET, "openai", "other", epochs="auto") == (7_000, Decimal("0.035"))


def test_an_hourly_price_is_estimated_by_the_time_limit() -> None:
    budget = Budget(prices={"http": {"*": Price(per_hour=Decimal(4))}})

    assert quote(budget, "http", "m")[1] == 4


def test_a_model_without_a_price_costs_nothing_where_there_is_no_cap() -> None:
    assert Budget().is_free("openai", "big", at_home=False)


def test_a_model_that_is_trained_at_home_costs_nothing_under_a_cap() -> None:
    assert BUDGET.is_free("local", "tiny", at_home=True)


def test_a_model_with_a_price_is_not_free_wherever_it_is_trained() -> None:
    assert not BUDGET.is_free("http", "own", at_home=True)


def test_under_a_cap_a_model_without_a_price_is_refused_with_the_setting() -> None:
    with pytest.raises(PriceMissingError, match=r'set money\.prices\.http\."other" '):
        BUDGET.is_free("http", "other", at_home=False)


def test_days_and_months_begin_in_utc() -> None:
    in_tokyo = datetime(2026, 3, 1, 8, 30, tzinfo=timezone(timedelta(hours=9)))

    assert Period.DAY.start(in_tokyo) == datetime(2026, 2, 28, tzinfo=UTC)
    assert Period.MONTH.start(in_tokyo) == datetime(2026, 2, 1, tzinfo=UTC)


def test_who_waits_for_a_day_is_told_what_is_left_and_that_it_goes_on_by_itself() -> None:
    found = shortage(Caps(day=Decimal(10)), Committed(day=Decimal("7.5")), Decimal(3))

    assert found is not None
    assert found.in_words("EUR") == (
        "it may cost up to 3.00 EUR, and 2.50 EUR is left of money.cap_per_day (10.00 EUR): it"
        " goes on by itself in the next day (UTC), when other runs turn out cheaper, or when the"
        " cap is raised"
    )


def test_who_can_never_fit_is_told_to_raise_the_cap() -> None:
    found = shortage(Caps(month=Decimal(1)), Committed(), Decimal(3))

    assert found is not None
    assert found.in_words("EUR").endswith("raise the cap, or cancel the run")


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "0.00 EUR"),
        ("1234.5", "1,234.50 EUR"),
        ("0.000125", "0.000125 EUR"),
        ("100", "100.00 EUR"),
    ],
)
def test_amounts_are_shown_to_the_cent_unless_there_is_more_to_them(amount: str, text: str) -> None:
    assert shown(Decimal(amount), "EUR") == text
