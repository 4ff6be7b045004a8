"""The distribution of lengths, in memory that does not grow with the number of rows.

Sums, extremes and the count above a limit are exact; a quantile is the true one or up to
1.6 % below it, because lengths from 64 on are counted in classes, 64 to each doubling.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_BITS = 6
QUANTILES = (0.5, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Bar:
    """How many rows have a length from `low` to `high`, both included."""

    low: int
    high: int
    rows: int


@dataclass(frozen=True)
class Distribution:
    """What is known of the lengths of some texts. All are 0 where there is no row."""

    rows: int
    total: int
    shortest: int
    mean: float
    longest: int
    p50: int
    p90: int
    p95: int
    p99: int
    histogram: Sequence[Bar]
    """Doubling from bar to bar; without the empty ones before the first and after the last."""
    limit: int | None
    above_limit: int
    """Rows longer than `limit`; 0 without one."""


class Lengths:
    """Counts lengths as they come."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._classes: Counter[int] = Counter()
        self._bars: Counter[int] = Counter()
        self._total = 0
        self._shortest: int | None = None
        self._longest = 0
        self._above = 0

    def add(self, length: int) -> None:
        """One text's length, 0 or more."""
        self._classes[_class_of(length)] += 1
        self._bars[length.bit_length()] += 1
        self._total += length
        self._longest = max(self._longest, length)
        self._shortest = length if self._shortest is None else min(self._shortest, length)
        self._above += self._limit is not None and length > self._limit

    def distribution(self) -> Distribution:
        """What came so far."""
        rows = self._classes.total()
        p50, p90, p95, p99 = (self._quantile(share, rows) for share in QUANTILES)
        return Distribution(
            rows=rows,
            total=self._total,
            shortest=self._shortest or 0,
            mean=round(self._total / rows, 1) if rows else 0.0,
            longest=self._longest,
            p50=p50,
            p90=p90,
            p95=p95,
            p99=p99,
            histogram=self._histogram(),
            limit=self._limit,
            above_limit=self._above,
        )

    def _quantile(self, share: float, rows: int) -> int:
        """The length that at least `share` of the rows do not exceed."""
        counted = 0
        for each in sorted(self._classes):
            counted += self._classes[each]
            if counted >= share * rows:
                return max(_lowest_of(each), self._shortest or 0)
        return 0

    def _histogram(self) -> Sequence[Bar]:
        if not self._bars:
            return ()
        return [
            Bar(1 << bits >> 1, (1 << bits) - 1, self._bars[bits])
            for bits in range(min(self._bars), max(self._bars) + 1)
        ]


def _class_of(length: int) -> int:
    """Lengths below 2^_BITS have classes of their own."""
    shift = max(0, length.bit_length() - _BITS - 1)
    return (shift << (_BITS + 1)) + (length >> shift)


def _lowest_of(number: int) -> int:
    shift, leading = divmod(number, 1 << (_BITS + 1))
    return leading << shift
