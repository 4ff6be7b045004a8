"""A metric counts as far as a value of it is unusual; no value drags its scale away."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.metric_scales import MIN_COUNT, MetricScale
from tests.builders import NOON

numbers = st.floats(-1e12, 1e12)


def scale_of(*values: float) -> MetricScale:
    scale = MetricScale()
    for value in values:
        scale = scale.joined(value, NOON)
    return scale


def test_nothing_counts_before_it_is_known_what_is_usual() -> None:
    assert scale_of(*range(MIN_COUNT - 1)).compared(100.0) is None
    assert scale_of(*range(MIN_COUNT)).compared(100.0) is not None


def test_mean_and_spread_are_those_of_the_values() -> None:
    scale = scale_of(1.0, 2.0, 3.0, 4.0)
    assert scale.mean == pytest.approx(2.5)
    assert scale.variance == pytest.approx(1.25)


@pytest.mark.parametrize(("away", "said"), [(0.0, 0.0), (1.0, 0.462), (-1.0, -0.462), (3.0, 0.905)])
def test_a_value_says_how_many_standard_deviations_it_is_away(away: float, said: float) -> None:
    scale = scale_of(*[-1.0, 1.0] * 10)
    assert scale.compared(scale.mean + away * scale.spread) == pytest.approx(said, abs=1e-3)


def test_one_extreme_value_does_not_drag_the_scale_away() -> None:
    usual = scale_of(*[9.0, 11.0] * 20)
    after = usual.joined(1e12, NOON)
    assert abs(after.mean - usual.mean) < usual.spread
    assert after.spread < 2 * usual.spread
    assert usual.compared(1e12) == pytest.approx(1.0)


def test_a_metric_that_changes_for_good_becomes_the_usual() -> None:
    scale = scale_of(*[9.0, 11.0] * 20)
    for _ in range(1_500):
        scale = scale.joined(30.0, NOON)
    assert abs(scale.compared(30.0) or 1.0) < 0.25


def test_a_metric_that_never_changed_makes_no_miracle_of_a_small_change() -> None:
    assert abs(scale_of(*[5.0] * 30).compared(5.01) or 1.0) < 0.2


@given(st.lists(numbers, min_size=1, max_size=60), numbers)
def test_whatever_the_numbers_a_metric_says_something_between_minus_one_and_one(
    values: list[float], value: float
) -> None:
    said = scale_of(*values).compared(value)
    assert said is None or -1.0 <= said <= 1.0
