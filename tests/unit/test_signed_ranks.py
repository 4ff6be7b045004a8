"""Wilcoxon's test is exact, ties and all."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, wilcoxon

from learning.signed_ranks import MOST_COUNTED, p_greater

tied = st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])


def counted(differences: Sequence[float]) -> float:
    """The definition: the share of all signs that give as large a sum of ranks."""
    told = [value for value in differences if value != 0]
    ranks = [float(rank) for rank in rankdata([abs(value) for value in told])]
    found = sum(rank for rank, value in zip(ranks, told, strict=True) if value > 0)
    sums = [
        sum(rank for rank, positive in zip(ranks, signs, strict=True) if positive)
        for signs in itertools.product([False, True], repeat=len(told))
    ]
    return sum(each >= found for each in sums) / len(sums)


@given(st.lists(tied | st.floats(-1, 1), min_size=1, max_size=8))
def test_it_is_the_share_of_signs_that_would_do_as_well(differences: list[float]) -> None:
    assert p_greater(differences) == pytest.approx(counted(differences))


def test_five_gains_and_no_loss_are_one_chance_in_32_however_many_ties_there_are() -> None:
    assert p_greater([1.0] * 5 + [0.0] * 59) == 1 / 32


def test_without_a_difference_nothing_is_told() -> None:
    assert p_greater([]) == p_greater([0.0] * 40) == 1.0


@pytest.mark.parametrize("n", [10, 50])
def test_without_ties_it_is_what_scipy_counts(n: int) -> None:
    differences = [(-1) ** (i % 3) * (0.1 + i) for i in range(n)]
    expected = wilcoxon(differences, alternative="greater", method="exact").pvalue
    assert p_greater(differences) == pytest.approx(expected)


def test_where_there_are_too_many_to_count_it_is_what_scipy_approximates() -> None:
    differences = [(-1) ** i * (1 + i % 21) + 0.5 for i in range(MOST_COUNTED + 1)]
    expected = wilcoxon(differences, alternative="greater", method="approx").pvalue
    assert p_greater(differences) == pytest.approx(expected)
    assert p_greater(differences[:-1]) == pytest.approx(p_greater(differences), rel=0.1)


@given(st.lists(tied, min_size=1, max_size=40))
def test_it_is_a_probability_and_the_two_sides_overlap_by_what_was_found(
    differences: list[float],
) -> None:
    both = p_greater(differences), p_greater([-value for value in differences])
    assert all(0 < side <= 1 for side in both)
    assert sum(both) >= 1 - 1e-9
