"""What people made of the outputs: rates, trends with a test behind the word, and issues.

Pure: counts of stretches of time in, values with their numbers out. No clock, no I/O.

A trend compares a window with the one before it. Each is one two-sided test at LEVEL, by its
normal approximation, which ENOUGH counts on both sides make good:

- rates: two proportions, z = (p1 - p2) / sqrt(p (1 - p) (1/n1 + 1/n2)), p over both windows
- ratings: Wilcoxon's rank sum over the five stars, with the correction for ties
- engagement: Welch's z of the means on the logarithmic scale, LEVEL divided by the metrics

The tests take feedbacks as independent. One audience that comes at once is not: the numbers
stand beside the word for that reason.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import reduce
from operator import add
from statistics import NormalDist

LEVEL = 0.01
"""So often a trend is said of a stream that has none, at one look."""
ENOUGH = 30
"""Counts in each window before a trend is said, and in the window before an issue is."""
ENOUGH_JUDGED = 20
"""Verdicts of people before a success rate says anything."""

LOW, HIGH = 2, 4
"""Ratings of so many stars or less are low, of so many or more are high."""
MANY_LOW = 0.3
POLARISED = 0.25
"""Each of the two ends has at least this share."""
MANY_REJECTED = 0.3
SURE, UNSURE = 0.9, 0.5
"""An output's stated confidence: from here on it is sure, below that it is unsure."""
MANY_SURE_NO = 0.3
MANY_UNSURE_YES = 0.7

METRICS = 8
"""Engagement metrics of one task type that are counted: senders name them as they like."""


@dataclass(frozen=True)
class OutputCounts:
    """Outputs that arrived in some time, and verdicts that were given in it."""

    outputs: int = 0
    confidence_sum: float = 0.0
    confidence_n: int = 0
    approved: int = 0
    """By people: on arrival, by feedback or by hand."""
    rejected: int = 0
    auto_approved: int = 0

    def __add__(self, other: "OutputCounts") -> "OutputCounts":
        return OutputCounts(*_added(self, other))


@dataclass(frozen=True)
class FeedbackCounts:
    """What the feedback of some time said."""

    n: int = 0
    yes: int = 0
    no: int = 0
    late_yes: int = 0
    """About outputs that were sealed and that no person had approved; each output once."""
    late_no: int = 0
    """About outputs that were sealed; each output once."""
    rated_1: int = 0
    rated_2: int = 0
    rated_3: int = 0
    rated_4: int = 0
    rated_5: int = 0
    sure: int = 0
    """Verdicts on outputs whose stated confidence was SURE or more."""
    sure_no: int = 0
    unsure: int = 0
    """Verdicts on outputs whose stated confidence was below UNSURE."""
    unsure_yes: int = 0

    def __add__(self, other: "FeedbackCounts") -> "FeedbackCounts":
        return FeedbackCounts(*_added(self, other))

    @property
    def ratings(self) -> tuple[int, ...]:
        """How many gave one star, two, and so on to five."""
        return self.rated_1, self.rated_2, self.rated_3, self.rated_4, self.rated_5

    @property
    def average_rating(self) -> float | None:
        """In [1, 5]; None without any."""
        return _mean_stars(self.ratings)


@dataclass(frozen=True)
class Moments:
    """How often a metric was told, and its sums on the logarithmic scale."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.n + other.n, self.total + other.total, self.squares + other.squares)

    @property
    def typical(self) -> float:
        """The mean on the logarithmic scale as a plain value; of large ones the geometric mean."""
        mean = self.total / self.n
        return math.copysign(math.expm1(abs(mean)), mean)


@dataclass(frozen=True)
class Activity:
    """One task type in one stretch of time."""

    outputs: OutputCounts = OutputCounts()
    feedback: FeedbackCounts = FeedbackCounts()
    engagement: Mapping[str, Moments] = field(default_factory=dict)

    def __add__(self, other: "Activity") -> "Activity":
        names = self.engagement.keys() | other.engagement.keys()
        none = Moments()
        return Activity(
            self.outputs + other.outputs,
            self.feedback + other.feedback,
            {
                name: self.engagement.get(name, none) + other.engagement.get(name, none)
                for name in names
            },
        )

    @property
    def approved(self) -> int:
        """Times that a person approved an output, each output once."""
        return self.outputs.approved + self.feedback.late_yes

    @property
    def rejected(self) -> int:
        """Times that a person rejected an output, each output once."""
        return self.outputs.rejected + self.feedback.late_no

    @property
    def judged(self) -> int:
        """Both together."""
        return self.approved + self.rejected

    def success_rate(self, at_least: int = ENOUGH_JUDGED) -> float | None:
        """approved / judged, in [0, 1]; None below `at_least` verdicts, or without any."""
        return self.approved / self.judged if self.judged >= max(1, at_least) else None

    @property
    def average_confidence(self) -> float | None:
        """Mean of what outputs stated, in [0, 1]; None when none did."""
        counts = self.outputs
        return counts.confidence_sum / counts.confidence_n if counts.confidence_n else None


def together(parts: Iterable[Activity]) -> Activity:
    """The sum of several; engagement too, where task types have metrics of one name."""
    return reduce(lambda one, other: one + other, parts, Activity())


def logarithmic(value: float) -> float:
    """sign(v) ln(1 + |v|): views and seconds have long tails, and sums must stay finite."""
    return math.copysign(math.log1p(abs(value)), value)


# --- trends ---------------------------------------------------------------------------


class Direction(StrEnum):
    """What may be said of a trend."""

    IMPROVING = "improving"
    WORSENING = "worsening"
    NOT_CLEAR = "no clear trend"
    TOO_LITTLE = "too little data"


@dataclass(frozen=True)
class Trend:
    """How something changed from the window before to this one. More of it is better."""

    about: str
    direction: Direction
    before: float | None
    after: float | None
    n_before: int
    n_after: int
    p: float | None
    """Two-sided; None where there was too little to test."""
    reason: str
    task_type: str | None = None
    """None: of all together."""

    def __str__(self) -> str:
        return f"{self.about}: {self.direction} ({self.reason})"


def trends_of(before: Activity, after: Activity, task_type: str | None = None) -> Sequence[Trend]:
    """Success rate, ratings, and each engagement metric that either window has."""

    def told(
        about: str,
        values: tuple[float | None, float | None],
        counts: tuple[int, int],
        test: tuple[float, float] | None,
        level: float = LEVEL,
    ) -> Trend:
        """`test` is (z, p), with z > 0 where the later window is better."""
        fewest = min(counts)
        if fewest < ENOUGH or test is None:
            direction, p = Direction.TOO_LITTLE, None
            reason = f"{fewest} of {ENOUGH} needed in each window"
        else:
            z, p = test
            better = Direction.IMPROVING if z > 0 else Direction.WORSENING
            direction = better if p < level else Direction.NOT_CLEAR
            reason = (
                f"{_short(values[0])} of {counts[0]} before,"
                f" {_short(values[1])} of {counts[1]} now, p = {p:.2g}"
            )
        return Trend(about, direction, *values, *counts, p, reason, task_type)

    stars_before, stars_after = before.feedback.ratings, after.feedback.ratings
    found = [
        told(
            "success_rate",
            (before.success_rate(1), after.success_rate(1)),
            (before.judged, after.judged),
            _compare_rates(before.approved, before.judged, after.approved, after.judged),
        ),
        told(
            "rating",
            (_mean_stars(stars_before), _mean_stars(stars_after)),
            (sum(stars_before), sum(stars_after)),
            _compare_ranks(stars_before, stars_after),
        ),
    ]
    names = sorted(before.engagement.keys() | after.engagement.keys())
    for name in names:
        one, other = (side.engagement.get(name, Moments()) for side in (before, after))
        found.append(
            told(
                f"engagement:{name}",
                (one.typical if one.n else None, other.typical if other.n else None),
                (one.n, other.n),
                _compare_means(one, other),
                LEVEL / len(names),
            )
        )
    return found


def _compare_rates(k1: int, n1: int, k2: int, n2: int) -> tuple[float, float] | None:
    if not n1 or not n2:
        return None
    share = (k1 + k2) / (n1 + n2)
    deviation = math.sqrt(share * (1 - share) * (1 / n1 + 1 / n2))
    return _tested(k2 / n2 - k1 / n1, deviation)


def _compare_ranks(before: Sequence[int], after: Sequence[int]) -> tuple[float, float] | None:
    """Wilcoxon's rank sum of two histograms over the same ordered bins."""
    n1, n2 = sum(before), sum(after)
    if not n1 or not n2:
        return None
    n = n1 + n2
    rank_sum, below, ties = 0.0, 0, 0
    for one, other in zip(before, after, strict=True):
        tied = one + other
        rank_sum += other * (below + (tied + 1) / 2)
        below += tied
        ties += tied**3 - tied
    variance = n1 * n2 / 12 * (n + 1 - ties / (n * (n - 1)))
    return _tested(rank_sum - n2 * (n + 1) / 2, math.sqrt(max(0.0, variance)))


def _compare_means(before: Moments, after: Moments) -> tuple[float, float] | None:
    if before.n < 2 or after.n < 2:
        return None
    deviation = math.sqrt(_variance(before) / before.n + _variance(after) / after.n)
    return _tested(after.total / after.n - before.total / before.n, deviation)


def _variance(of: Moments) -> float:
    return max(0.0, of.squares - of.total**2 / of.n) / (of.n - 1)


def _tested(difference: float, deviation: float) -> tuple[float, float]:
    """(z, two-sided p). What does not vary and does not differ shows nothing."""
    if difference == 0:
        return 0.0, 1.0
    if deviation <= 1e-12 * abs(difference):
        return math.copysign(math.inf, difference), 0.0
    z = difference / deviation
    return z, 2 * NormalDist().cdf(-abs(z))


# --- issues ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Issue:
    """Something that the feedback of a task type shows: `n` of `of`, and from when it is one."""

    name: str
    task_type: str
    n: int
    of: int
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def issues_of(task_type: str, seen: Activity, trends: Sequence[Trend]) -> Iterator[Issue]:
    """What is wrong with a task type in a window, each by its definition in docs/statistics.md."""
    stars = seen.feedback.ratings
    rated, low, high = sum(stars), sum(stars[:LOW]), sum(stars[HIGH - 1 :])

    def issue(name: str, n: int, of: int, reason: str) -> Issue:
        return Issue(name, task_type, n, of, reason)

    if rated >= ENOUGH and low >= MANY_LOW * rated:
        yield issue(
            "high_low_ratings",
            low,
            rated,
            f"{low} of {rated} ratings of {task_type} were {LOW} stars or less",
        )
    if rated >= ENOUGH and min(stars[0], stars[-1]) >= POLARISED * rated:
        yield issue(
            "polarised_ratings",
            stars[0] + stars[-1],
            rated,
            f"{stars[0]} of {rated} ratings of {task_type} were 1 star, {stars[-1]} were 5:"
            f" {low} low ones against {high} high ones",
        )
    if seen.judged >= ENOUGH and seen.rejected >= MANY_REJECTED * seen.judged:
        yield issue(
            "many_rejections",
            seen.rejected,
            seen.judged,
            f"{seen.rejected} of {seen.judged} judged outputs of {task_type} were rejected",
        )
    told = seen.feedback
    if told.sure >= ENOUGH and told.sure_no >= MANY_SURE_NO * told.sure:
        yield issue(
            "confident_rejected",
            told.sure_no,
            told.sure,
            f"{told.sure_no} of {told.sure} verdicts on outputs of {task_type} with confidence"
            f" {SURE} or more were no",
        )
    if told.unsure >= ENOUGH and told.unsure_yes >= MANY_UNSURE_YES * told.unsure:
        yield issue(
            "low_confidence_approved",
            told.unsure_yes,
            told.unsure,
            f"{told.unsure_yes} of {told.unsure} verdicts on outputs of {task_type} with confidence"
            f" below {UNSURE} were yes",
        )
    for trend in trends:
        if trend.about.startswith("engagement:") and trend.direction is Direction.WORSENING:
            metric = trend.about.partition(":")[2]
            yield issue(
                "falling_engagement",
                trend.n_after,
                trend.n_before + trend.n_after,
                f"{metric} of {task_type} fell: {trend.reason}",
            )


def _added(one: object, other: object) -> Iterator[int]:
    return map(add, vars(one).values(), vars(other).values())


def _mean_stars(ratings: Sequence[int]) -> float | None:
    n = sum(ratings)
    return sum(stars * k for stars, k in enumerate(ratings, start=1)) / n if n else None


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
