"""Rates, trends and issues: pure functions of counts (LP7)."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from scipy.stats import mannwhitneyu, ttest_ind

from learning.statistics import (
    ENOUGH,
    ENOUGH_JUDGED,
    LEVEL,
    Activity,
    Direction,
    FeedbackCounts,
    Issue,
    Moments,
    OutputCounts,
    Trend,
    issues_of,
    logarithmic,
    together,
    trends_of,
)


def judged(approved: int, rejected: int) -> Activity:
    return Activity(OutputCounts(approved=approved, rejected=rejected))


def rated(*stars: int) -> Activity:
    names = {f"rated_{n}": count for n, count in enumerate(stars, start=1)}
    return Activity(feedback=FeedbackCounts(n=sum(stars), **names))


def moments(values: Sequence[float]) -> Moments:
    scaled = [logarithmic(value) for value in values]
    return Moments(len(scaled), sum(scaled), sum(value * value for value in scaled))


def trend(about: str, before: Activity, after: Activity) -> Trend:
    (found,) = (one for one in trends_of(before, after, "coding") if one.about == about)
    return found


def names_of(issues: Sequence[Issue]) -> list[str]:
    return [issue.name for issue in issues]


def issues(seen: Activity, before: Activity | None = None) -> list[Issue]:
    trends = trends_of(before, seen, "coding") if before is not None else ()
    return list(issues_of("coding", seen, trends))


# --- rates ----------------------------------------------------------------------------


def test_without_enough_verdicts_there_is_no_rate() -> None:
    assert judged(ENOUGH_JUDGED - 1, 0).success_rate() is None
    assert judged(0, 0).success_rate(0) is None
    assert judged(15, 5).success_rate() == 0.75


def test_what_was_said_of_sealed_outputs_counts_for_the_rate() -> None:
    late = Activity(OutputCounts(approved=20), FeedbackCounts(late_yes=1, late_no=21))
    assert late.success_rate() == 0.5


def test_what_was_approved_without_a_person_counts_for_no_rate() -> None:
    assert Activity(OutputCounts(auto_approved=1_000)).judged == 0


def test_sums_of_activity_are_the_activity_of_both() -> None:
    one = Activity(OutputCounts(outputs=2, confidence_sum=1.5, confidence_n=2))
    other = replace(rated(0, 0, 0, 0, 2), engagement={"views": moments([1, 2])})
    both = together([one, other, other])
    assert (both.outputs.outputs, both.feedback.rated_5, both.engagement["views"].n) == (2, 4, 4)
    assert both.average_confidence == 0.75
    assert both.feedback.average_rating == 5
    assert together([]).average_confidence is None


def test_the_logarithmic_scale_keeps_sign_and_order_and_stays_finite() -> None:
    values = [-1e12, -3.0, -0.1, 0.0, 0.1, 3.0, 1e12]
    scaled = [logarithmic(value) for value in values]
    assert scaled == sorted(scaled)
    assert logarithmic(-3.0) == -logarithmic(3.0)
    assert moments([7.0]).typical == pytest.approx(7.0)
    assert math.isfinite(moments([1e12] * 1_000).squares)


# --- trends ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "direction"),
    [
        (judged(29, 0), judged(300, 0), Direction.TOO_LITTLE),
        (judged(0, 0), judged(300, 0), Direction.TOO_LITTLE),
        (judged(60, 40), judged(90, 10), Direction.IMPROVING),
        (judged(90, 10), judged(60, 40), Direction.WORSENING),
        (judged(80, 20), judged(85, 15), Direction.NOT_CLEAR),
        (judged(100, 0), judged(100, 0), Direction.NOT_CLEAR),
    ],
)
def test_a_success_rate_has_a_trend_only_where_the_test_says_so(
    before: Activity, after: Activity, direction: Direction
) -> None:
    found = trend("success_rate", before, after)
    assert found.direction is direction
    assert (found.p is None) == (direction is Direction.TOO_LITTLE)


def test_a_trend_names_its_numbers() -> None:
    assert str(trend("success_rate", judged(60, 40), judged(90, 10))) == (
        "success_rate: improving (0.6 of 100 before, 0.9 of 100 now, p = 9.6e-07)"
    )
    assert str(trend("rating", rated(0, 0, 3), rated(0, 0, 0, 40))) == (
        "rating: too little data (3 of 30 needed in each window)"
    )


def test_ratings_are_compared_as_wilcoxon_does() -> None:
    before, after = (4, 10, 20, 30, 40), (14, 20, 20, 30, 20)
    found = trend("rating", rated(*before), rated(*after))
    spread = [
        [star for star, n in enumerate(side, start=1) for _ in range(n)] for side in (before, after)
    ]
    expected = mannwhitneyu(*spread, use_continuity=False, method="asymptotic").pvalue
    assert found.p == pytest.approx(expected)
    assert found.direction is Direction.WORSENING


def test_engagement_is_compared_by_its_means_on_the_logarithmic_scale() -> None:
    chance = random.Random(7)
    before = [chance.lognormvariate(3, 1) for _ in range(400)]
    after = [chance.lognormvariate(2.5, 1) for _ in range(300)]
    one, other = (Activity(engagement={"views": moments(side)}) for side in (before, after))
    found = trend("engagement:views", one, other)
    exact = ttest_ind(
        *([logarithmic(v) for v in side] for side in (before, after)), equal_var=False
    )
    assert found.p is not None
    assert math.log(found.p) == pytest.approx(math.log(exact.pvalue), rel=0.05)
    assert found.direction is Direction.WORSENING
    assert names_of(issues(other, one)) == ["falling_engagement"]


def test_a_metric_that_nobody_told_before_has_too_little_data() -> None:
    after = Activity(engagement={"views": moments([1.0] * 100)})
    assert trend("engagement:views", Activity(), after).direction is Direction.TOO_LITTLE


def test_streams_without_a_trend_are_seldom_given_one() -> None:
    """Rates, ratings and three metrics of 4,000 pairs of windows that do not differ."""
    chance, said, looks = random.Random(11), 0, 0
    for _ in range(4_000):
        n = chance.randint(ENOUGH, 150)
        share = chance.uniform(0.3, 0.9)

        def window(n: int = n, share: float = share) -> Activity:
            yes = sum(chance.random() < share for _ in range(n))
            stars = [0] * 5
            for _ in range(n):
                stars[min(4, int(chance.random() ** share * 5))] += 1
            told = rated(*stars)
            return replace(told, outputs=OutputCounts(approved=yes, rejected=n - yes))

        for found in trends_of(window(), window()):
            looks += 1
            said += found.direction in (Direction.IMPROVING, Direction.WORSENING)
    assert looks == 8_000
    # Of a binomial with LEVEL: four standard deviations, and what the approximation adds.
    assert said / looks < LEVEL + 4 * math.sqrt(LEVEL * (1 - LEVEL) / looks) + 0.002


# --- issues ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (Activity(), []),
        (rated(6, 2, 0, 0, 20), []),  # 28 ratings are too few
        (rated(5, 5, 10, 6, 4), ["high_low_ratings"]),
        (rated(4, 4, 10, 8, 4), []),
        (rated(8, 0, 14, 0, 8), ["polarised_ratings"]),
        (rated(10, 0, 10, 0, 10), ["high_low_ratings", "polarised_ratings"]),
        (judged(69, 31), ["many_rejections"]),
        (judged(71, 29), []),
        (judged(0, ENOUGH - 1), []),
        (Activity(feedback=FeedbackCounts(sure=40, sure_no=12)), ["confident_rejected"]),
        (Activity(feedback=FeedbackCounts(sure=40, sure_no=11)), []),
        (Activity(feedback=FeedbackCounts(unsure=40, unsure_yes=28)), ["low_confidence_approved"]),
        (Activity(feedback=FeedbackCounts(unsure=29, unsure_yes=29)), []),
    ],
)
def test_an_issue_has_a_definition(seen: Activity, expected: list[str]) -> None:
    assert names_of(issues(seen)) == expected


def test_an_issue_names_its_number() -> None:
    (found,) = issues(judged(49, 31))
    assert str(found) == "many_rejections: 31 of 80 judged outputs of coding were rejected"
    assert (found.n, found.of) == (31, 80)
