"""The gate where a service gives answers and no likelihoods: losses from 0 to 1, mostly ties."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from learning.errors import UnsoundScoresError
from learning.gate import GateReport, GateRules, HeldOut, Measure, Outcome, Score, decide, sound

RULES = GateRules()
Draw = Callable[[random.Random], tuple[float, float]]
"""The losses of champion and candidate on one example."""


def answers(*losses: float) -> list[Score]:
    return [Score(loss, loss == 0, Measure.ANSWERS) for loss in losses]


def hold(champion: Sequence[float], candidate: Sequence[float], n_older: int = 0) -> GateReport:
    examples = [HeldOut(i, "normalize", recent=i >= n_older) for i in range(len(champion))]
    return decide(examples, answers(*champion), answers(*candidate), RULES, look=1)


# --- one verdict ----------------------------------------------------------------------


def test_a_candidate_that_answers_what_the_champion_could_not_is_promoted() -> None:
    report = hold([1.0] * 12 + [0.0] * 20, [0.0] * 12 + [0.0] * 20)

    assert report.outcome is Outcome.PROMOTE
    assert report.measure is Measure.ANSWERS
    assert "held-out loss of the answers 0.375 -> 0.000" in report.reason


def test_ties_are_no_evidence_against_a_gain() -> None:
    """With the margin of likelihoods each of the 40 ties would count as a small loss."""
    report = hold([1.0] * 50 + [0.0] * 14, [0.0] * 10 + [1.0] * 40 + [0.0] * 14)

    assert report.outcome is Outcome.PROMOTE


def test_a_candidate_that_forgot_answers_is_refused() -> None:
    report = hold([0.0] * 32, [1.0] * 8 + [0.0] * 24)

    assert (report.outcome, report.refusal) == (Outcome.REJECT, None)
    assert "loss of the answers 0.000 -> 0.250" in report.reason


def test_a_gain_does_not_excuse_older_answers_that_were_forgotten() -> None:
    report = hold([0.0] * 16 + [1.0] * 32, [1.0] * 8 + [0.0] * 8 + [0.0] * 32, n_older=16)

    assert report.outcome is Outcome.REJECT
    assert report.reason.startswith("worse by more than 25% on older examples: loss of the answers")


@pytest.mark.parametrize("loss", [0.0, 0.4, 1.0])
def test_the_same_answers_decide_nothing(loss: float) -> None:
    assert hold([loss] * 64, [loss] * 64).outcome is Outcome.ABSTAIN


def test_a_gain_within_the_margin_decides_nothing() -> None:
    """Each answer is better by 4 %: as sure as can be, and not enough."""
    assert hold([0.5] * 64, [0.48] * 64).outcome is Outcome.ABSTAIN
    assert hold([0.5] * 64, [0.40] * 64).outcome is Outcome.PROMOTE


def test_four_new_answers_are_too_few_to_tell() -> None:
    assert hold([1.0] * 4 + [0.0] * 60, [0.0] * 64).outcome is Outcome.ABSTAIN


# --- one measure for both -------------------------------------------------------------


def test_likelihoods_and_answers_are_not_compared() -> None:
    examples = [HeldOut(i, "normalize", recent=True) for i in range(8)]
    with pytest.raises(UnsoundScoresError, match="some are of likelihoods and some of answers"):
        decide(examples, answers(*[1.0] * 8), [Score(0.1, match=False)] * 8, RULES, look=1)


def test_a_report_says_what_was_compared() -> None:
    assert hold([1.0] * 7, [0.0] * 7).measure is Measure.ANSWERS
    examples = [HeldOut(i, "normalize", recent=True) for i in range(8)]
    likely = [Score(0.5, match=False)] * 8
    assert decide(examples, likely, likely, RULES, look=1).measure is Measure.LIKELIHOOD
    assert decide([], [], [], RULES, look=1).measure is None


def test_a_loss_of_an_answer_above_one_is_unsound() -> None:
    sound("candidate", answers(0.0, 1.0), 2)
    with pytest.raises(UnsoundScoresError, match=r"loss is 1\.5 on example 2"):
        sound("candidate", answers(0.0, 1.5), 2)


# --- how often it is wrong ------------------------------------------------------------


def share_promoted(n: int, draw: Draw, seed: int = 20261121) -> float:
    """Of 400 candidates, each held against its champion on `n` examples."""
    rng = random.Random(seed)

    def one() -> Outcome:
        pairs = [draw(rng) for _ in range(n)]
        return hold([old for old, _ in pairs], [new for _, new in pairs]).outcome

    return sum(one() is Outcome.PROMOTE for _ in range(400)) / 400


def exact_matches(wrong: float, other: float, gain: float = 0.0) -> Draw:
    """Both models are right or wrong alike, but for a share of examples, half of it each way.

    `gain` is the share that only the candidate has right, beyond that.
    """

    def draw(rng: random.Random) -> tuple[float, float]:
        share = rng.random()
        if share < other / 2 + gain:
            return 1.0, 0.0
        if share < other + gain:
            return 0.0, 1.0
        both = float(rng.random() < wrong)
        return both, both

    return draw


def similar_texts(noise: float, gain: float = 0.0) -> Draw:
    """A third of the answers are the same, the others differ; `gain` of the loss is saved."""

    def draw(rng: random.Random) -> tuple[float, float]:
        champion = rng.betavariate(1.2, 2.0)
        if rng.random() < 0.3:
            return champion, champion
        return champion, min(1.0, max(0.0, champion * (1 - gain) + rng.gauss(0, noise)))

    return draw


@pytest.mark.parametrize("n", [16, 64])
@pytest.mark.parametrize(
    "draw",
    [
        exact_matches(wrong=0.1, other=0.3),
        exact_matches(wrong=0.5, other=0.1),
        exact_matches(wrong=0.9, other=0.3),
        similar_texts(noise=0.1),
        similar_texts(noise=0.3),
        similar_texts(noise=0.1, gain=0.05),  # no more than the margin
    ],
)
def test_a_candidate_that_is_no_better_is_promoted_no_more_often_than_a_look_allows(
    n: int, draw: Draw
) -> None:
    # Of 400 candidates at 2.5 % each, 18 or more would be seen once in a hundred times.
    assert share_promoted(n, draw) <= 17 / 400


@pytest.mark.parametrize(
    ("n", "draw", "least"),
    [
        (32, exact_matches(wrong=0.4, other=0.1, gain=0.35), 0.75),
        (64, exact_matches(wrong=0.4, other=0.1, gain=0.25), 0.85),
        (32, similar_texts(noise=0.1, gain=0.3), 0.85),
        (64, similar_texts(noise=0.1, gain=0.3), 0.98),
    ],
)
def test_a_clear_gain_is_found(n: int, draw: Draw, least: float) -> None:
    assert share_promoted(n, draw) >= least


def test_another_margin_is_another_verdict() -> None:
    """The margin is a share of the champion's loss here too."""
    examples = [HeldOut(i, "normalize", recent=True) for i in range(64)]
    champion, candidate = answers(*[0.5] * 64), answers(*[0.40] * 64)
    strict = replace(RULES, margin=0.25)
    assert decide(examples, champion, candidate, strict, look=1).outcome is Outcome.ABSTAIN
