"""Wilcoxon's signed-rank test (1945), exact where values are tied.

Pure: differences in, probability out. Scores of answers are tied all the time (an exact match
is 0 or 1), and there the usual normal approximation finds more than there is: five gains and no
loss are p = 1/32, not 0.013. So the distribution is counted, for as many differences as that
takes no time, and approximated with the correction for ties beyond.
"""

import math
from collections.abc import Sequence
from itertools import groupby
from statistics import NormalDist
from typing import Final

MOST_COUNTED: Final = 256
"""Differences whose distribution is counted; it takes their third power of steps."""


def p_greater(differences: Sequence[float]) -> float:
    """One-sided p-value of "the differences lie above zero", in [0, 1].

    Under the null each difference is as likely to have the other sign. Zeros say nothing and
    are left out; equal sizes share the mean of their ranks. 1.0 when nothing is left.
    """
    told = sorted((value for value in differences if value != 0), key=abs)
    if not told:
        return 1.0
    sizes = [len(list(tied)) for _, tied in groupby(told, key=abs)]
    # Twice the mean rank of each, which is a whole number.
    ranks: list[int] = []
    for size in sizes:
        ranks += [2 * len(ranks) + size + 1] * size
    found = sum(rank for rank, value in zip(ranks, told, strict=True) if value > 0)
    if len(told) > MOST_COUNTED:
        return _approximated(sizes, found / 2)
    # Imported here: a daemon that has nothing to decide yet should not pay for it.
    import numpy as np

    # The probability of each sum of the ranks that are positive, one rank after the other.
    chance = np.zeros(sum(ranks) + 1)
    chance[0] = 1.0
    for rank in ranks:
        chance[rank:] = (chance[rank:] + chance[:-rank]) / 2
        chance[:rank] /= 2
    return min(1.0, float(chance[found:].sum()))


def _approximated(sizes: Sequence[int], found: float) -> float:
    n = sum(sizes)
    mean = n * (n + 1) / 4
    ties = sum(size**3 - size for size in sizes) / 48
    deviation = math.sqrt(n * (n + 1) * (2 * n + 1) / 24 - ties)
    return 1.0 - NormalDist(mean, deviation).cdf(found)
