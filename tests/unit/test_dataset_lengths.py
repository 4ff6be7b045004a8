"""Lengths are counted in bounded memory, and close enough."""

import math
import statistics

from hypothesis import given
from hypothesis import strategies as st

from finetune.datasets.lengths import Lengths


@given(st.lists(st.integers(0, 10_000_000), min_size=1))
def test_a_distribution_is_exact_but_for_quantiles_a_little_below(lengths: list[int]) -> None:
    counted = Lengths(limit=1_000)
    for length in lengths:
        counted.add(length)

    found = counted.distribution()

    ordered = sorted(lengths)
    assert (found.rows, found.total) == (len(lengths), sum(lengths))
    assert (found.shortest, found.longest) == (ordered[0], ordered[-1])
    assert math.isclose(found.mean, statistics.fmean(lengths), abs_tol=0.051)
    assert found.above_limit == sum(length > 1_000 for length in lengths)
    assert sum(bar.rows for bar in found.histogram) == len(lengths)
    for bar in found.histogram:
        assert bar.rows == sum(bar.low <= length <= bar.high for length in lengths)
    for share, quantile in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
        true = ordered[math.ceil(share * len(ordered)) - 1]
        assert true * (1 - 1 / 64) - 1 <= quantile <= true


def test_of_nothing_everything_is_nought() -> None:
    found = Lengths().distribution()
    assert (found.rows, found.p50, found.longest, found.histogram) == (0, 0, 0, ())


def test_ten_million_different_lengths_take_few_classes() -> None:
    counted = Lengths()
    for length in range(0, 10_000_000, 997):
        counted.add(length)
    assert len(counted._classes) < 2_000
