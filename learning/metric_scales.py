"""What is usual for a metric, so that a value of it can be compared with that.

Pure. Producers choose their metrics and the units; nobody says which clarity is good. So a
value counts as far as it is better or worse than this metric usually is in this task type:
a running mean and variance that forget exponentially, and that no single value can drag away.
"""

import math
from datetime import datetime
from typing import NamedTuple

MIN_COUNT = 10
"""Values of a metric before one counts: until then nobody knows what is usual."""
WINDOW = 200
"""Values after which an old one weighs a third."""
FARTHEST = 4.0
"""A value farther away than so many standard deviations moves the scale as if it were so far."""
_LEAST_SPREAD = 0.01
"""Of the mean: a metric that never changed would make a miracle of its first change."""


class MetricScale(NamedTuple):
    """The values of one metric so far."""

    n: int = 0
    mean: float = 0.0
    variance: float = 0.0
    heard_at: datetime | None = None

    @property
    def spread(self) -> float:
        """The standard deviation, or a little of the mean."""
        return max(math.sqrt(self.variance), _LEAST_SPREAD * abs(self.mean), 1e-9)

    def compared(self, value: float) -> float | None:
        """How a value compares with what is usual, in (-1, 1); None while too few are known.

        tanh of half of the distance in standard deviations: 1 away is 0.46, 3 away 0.91.
        """
        if self.n < MIN_COUNT:
            return None
        return math.tanh((value - self.mean) / self.spread / 2.0)

    def joined(self, value: float, now: datetime) -> "MetricScale":
        """The scale with one more value."""
        if self.n >= MIN_COUNT:
            reach = FARTHEST * self.spread
            value = max(self.mean - reach, min(self.mean + reach, value))
        n = min(self.n + 1, WINDOW)
        apart = value - self.mean
        return MetricScale(
            n,
            self.mean + apart / n,
            (1.0 - 1.0 / n) * (self.variance + apart * apart / n),
            now,
        )
