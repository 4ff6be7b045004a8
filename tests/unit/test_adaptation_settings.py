"""The bounds of adaptation are settings that fit together."""

from datetime import timedelta

import pytest
from pydantic import ValidationError

from daemon.settings import Settings
from learning.adaptation import KEYS, AdaptationRules


def test_the_rules_are_those_of_the_core_unless_something_is_set() -> None:
    assert Settings().adaptation_rules() == AdaptationRules()


def test_every_bound_can_be_set() -> None:
    rules = Settings(
        policy={"adaptive": False},
        adaptation={"dwell_hours": 1, "respect_days": 2, "window_hours": 3, "pinned": list(KEYS)},
    ).adaptation_rules()
    assert not rules.enabled
    assert (rules.dwell, rules.respect, rules.window) == (
        timedelta(hours=1),
        timedelta(days=2),
        timedelta(hours=3),
    )
    assert rules.pinned == set(KEYS)


@pytest.mark.parametrize(
    "given",
    [
        {"low_success": 0.9},
        {"high_confidence": 0.8},
        {"pinned": ["queue.batch_size"]},
        {"min_judged": 0},
        {"window_hours": 1_000},
    ],
)
def test_bounds_that_would_make_it_flap_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(adaptation=given)
