"""Dials: bounded always, so far a day, and back to rest by themselves."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.dials import HALF_LIVES, NOTICEABLE, Bounds, Dial, faded, natural, rests_at, turned
from tests.builders import NOON

BOUNDS = Bounds(-0.15, 0.15, 0.05)
finite = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("value", "step", "room", "after"),
    [
        (0.0, 0.02, 0.05, 0.02),
        (0.0, 0.1, 0.05, 0.05),  # as far as the day allows
        (0.0, -0.1, 0.025, -0.025),
        (0.14, 0.05, 0.05, 0.15),  # as far as it goes
        (0.15, 0.05, 0.05, 0.15),
        (0.0, 0.0005, 0.05, 0.0),  # nobody would notice
        (0.0, 0.05, 0.0, 0.0),
        (0.3, 0.05, 0.05, 0.3),  # beyond bounds that were narrowed: no farther
        (0.3, -0.05, 0.05, 0.25),
    ],
)
def test_a_step_is_cut_to_the_bounds_and_the_day(
    value: float, step: float, room: float, after: float
) -> None:
    assert turned(value, step, room, BOUNDS) == pytest.approx(after)


@given(st.lists(finite, max_size=30), st.floats(0.0, 1.0))
def test_whatever_is_asked_for_a_dial_stays_within_its_bounds(
    steps: list[float], room: float
) -> None:
    value = 0.0
    for step in steps:
        after = turned(value, step, room, BOUNDS)
        assert BOUNDS.least <= after <= BOUNDS.most
        assert abs(after - value) <= room + 1e-12
        value = after


@pytest.mark.parametrize("dial", Dial)
def test_a_dial_halves_in_its_half_life_and_ends_at_rest(dial: Dial) -> None:
    half = HALF_LIVES[dial]
    assert faded(0.1, dial, NOON, NOON) == 0.1
    assert faded(-0.1, dial, NOON, NOON + half) == pytest.approx(-0.05)
    end = rests_at(0.1, dial, NOON)
    assert faded(0.1, dial, NOON, end - timedelta(minutes=1)) >= NOTICEABLE
    assert faded(0.1, dial, NOON, end + timedelta(minutes=1)) == 0.0
    assert faded(0.1, dial, NOON, NOON - timedelta(days=3)) == 0.1  # a clock that was set back


@given(st.floats(-1.0, 1.0), st.integers(0, 10**6), st.integers(0, 10**6))
def test_to_fade_in_two_steps_is_to_fade_once(value: float, first: int, second: int) -> None:
    middle = NOON + timedelta(seconds=first)
    end = middle + timedelta(seconds=second)
    in_two = faded(faded(value, Dial.BAR, NOON, middle), Dial.BAR, middle, end)
    assert in_two == pytest.approx(faded(value, Dial.BAR, NOON, end), abs=NOTICEABLE)


def test_people_read_trust_and_weight_as_what_they_are() -> None:
    assert natural(Dial.TRUST, -0.2) == pytest.approx(0.3)
    assert [natural(Dial.WEIGHT, value) for value in (0.0, 1.0)] == [1.0, 2.0]
    assert natural(Dial.BAR, 0.02) == 0.02
