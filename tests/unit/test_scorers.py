"""A scorer tells how good an answer is, whatever it says."""

import math
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.remote import scorers
from finetune.remote.scorers import (
    MOST_CHARACTERS,
    BrokenScorerError,
    UnknownScorerError,
    chrf,
    exact,
    scorer_of,
)


@given(st.text(max_size=40), st.text(max_size=40))
def test_every_score_is_from_0_to_1_and_a_text_is_as_good_as_itself(one: str, two: str) -> None:
    for scorer in (chrf, exact):
        assert 0.0 <= scorer(one, two) <= 1.0
        assert math.isclose(scorer(one, one), 1.0)


def test_an_exact_answer_may_have_white_space_around_it_and_nothing_else() -> None:
    assert exact("SELECT 1", "\n SELECT 1 ") == 1.0
    assert exact("SELECT 1", "SELECT  1") == exact("SELECT 1", "select 1") == 0.0


def test_the_more_of_a_text_is_there_the_better() -> None:
    approved = "normalize the name to lower case"
    scores = [
        chrf(approved, answer)
        for answer in (
            "",
            "XQ",
            "the name",
            "lower case the name",
            "normalize the name to lower cases",
            approved,
        )
    ]
    assert scores == sorted(scores)
    assert len(set(scores)) == len(scores) - 1  # nothing and nonsense are equally bad
    assert (scores[0], scores[-1]) == (0.0, 1.0)


def test_a_score_is_what_its_formula_says() -> None:
    """`abc` against `abd`: 2 of 3, 1 of 2 and 0 of 1 n-grams, both ways."""
    assert chrf("abc", "abd") == pytest.approx((2 / 3 + 1 / 2) / 3)


def test_texts_without_spaces_are_compared_too() -> None:
    assert 0.0 < chrf("今日は天気がいいです", "今日は天気がわるいです") < 1.0


@pytest.mark.parametrize("letter", ["a", "\u0000", "\U0001f600", "\ud800"])
def test_the_longest_answer_is_scored(letter: str) -> None:
    assert chrf(letter * MOST_CHARACTERS, letter * 10 * MOST_CHARACTERS) == pytest.approx(1.0)


def test_nothing_is_the_right_answer_to_nothing() -> None:
    assert chrf("", " ") == exact("", " ") == 1.0
    assert chrf("", "x") == 0.0


# --- by name --------------------------------------------------------------------------


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes as if an installed package registered a scorer: its name and its place."""
    found: list[EntryPoint] = []

    def entry_points(**wanted: Any) -> EntryPoints:
        return EntryPoints(found).select(**wanted)

    monkeypatch.setattr(scorers, "entry_points", entry_points)
    return lambda name, place: found.append(EntryPoint(name, place, scorers.GROUP))


def test_a_package_brings_a_scorer(
    register: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = ModuleType("their_scorers")
    package.length = lambda approved, answer: 0.5  # type: ignore[attr-defined]  # a module made here
    monkeypatch.setitem(sys.modules, "their_scorers", package)
    register("length", "their_scorers:length")

    assert scorer_of("length")("a", "b") == 0.5


def test_a_package_does_not_replace_a_scorer_of_ours(
    register: Callable[[str, str], None],
) -> None:
    register("exact", "their_scorers:length")
    assert scorer_of("exact") is exact


def test_a_scorer_that_nobody_knows_is_an_error_with_a_hint(
    register: Callable[[str, str], None],
) -> None:
    with pytest.raises(UnknownScorerError, match=r"'chrff'; did you mean chrf\? \(known: chrf, e"):
        scorer_of("chrff")
    register("broken", "no_such_module:scorer")
    with pytest.raises(BrokenScorerError, match=r"broken.*no_such_module:scorer"):
        scorer_of("broken")
