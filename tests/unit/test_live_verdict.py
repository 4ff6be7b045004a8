"""The live verdict: seldom wrong however often one looks, and never for want of data."""

import math
import random

import pytest

from learning.live_verdict import (
    Approvals,
    ByProducer,
    Standing,
    VerdictRules,
    canary_share,
    interval,
    is_worse,
    judge_live,
    log_evidence,
)

RULES = VerdictRules()
TRUSTING = VerdictRules(min_producers=1)


def of(n: int, yes: int, producers: int = 4) -> ByProducer:
    """Verdicts spread evenly over some producers."""
    return {
        f"p-{k}": Approvals(
            n * (k + 1) // producers - n * k // producers,
            yes * (k + 1) // producers - yes * k // producers,
        )
        for k in range(producers)
    }


def ever_called_worse(rate: float, history: int, n: int, seed: int) -> bool:
    """Whether a champion as good as the one before it is called worse, looked at each time."""
    rng = random.Random(seed)
    before = Approvals(history, sum(rng.random() < rate for _ in range(history)))
    champion = Approvals()
    for _ in range(n):
        champion = Approvals(champion.n + 1, champion.yes + (rng.random() < rate))
        if is_worse({"a": champion}, {"a": before}, TRUSTING):
            return True
    return False


@pytest.mark.parametrize(("rate", "history"), [(0.5, 30), (0.8, 300), (0.97, 100), (0.05, 100)])
def test_equal_versions_are_seldom_told_apart_however_often_one_looks(
    rate: float, history: int
) -> None:
    wrong = sum(ever_called_worse(rate, history, 300, seed) for seed in range(100))
    # 100 streams at a level of 0.01: more than 5 have a chance of about one in a thousand.
    assert wrong <= 5


def test_a_drop_of_ten_points_is_found_within_two_thousand() -> None:
    assert is_worse(of(1_000, 700), of(1_000, 800), RULES)
    assert not is_worse(of(1_000, 790), of(1_000, 800), RULES)


def test_the_evidence_is_a_supermartingale_at_the_null() -> None:
    """The mean of e over all that two coins can do is at most 1; counted out, not simulated."""
    n, m = 12, 15
    won = {
        (yes, of_before): math.exp(log_e)
        for yes in range(n + 1)
        for of_before in range(m + 1)
        if (log_e := log_evidence(Approvals(n, yes), Approvals(m, of_before))) > 0
    }
    for rate in (0.1, 0.5, 0.9):
        mean = sum(
            e
            * math.comb(n, yes)
            * math.comb(m, of_before)
            * rate ** (yes + of_before)
            * (1 - rate) ** (n + m - yes - of_before)
            for (yes, of_before), e in won.items()
        )
        assert mean <= 1.0


def test_more_no_is_more_evidence_and_more_yes_is_less() -> None:
    before = Approvals(500, 400)
    told = [log_evidence(Approvals(200, yes), before) for yes in range(160, 20, -10)]
    assert told == sorted(told)
    assert told[0] == 0


def test_missing_data_never_calls_a_champion_worse() -> None:
    assert not is_worse({}, of(1_000, 1_000), RULES)
    assert not is_worse(of(29, 0), of(1_000, 1_000), RULES)
    assert not is_worse(of(1_000, 0), of(29, 29), RULES)
    assert not is_worse(of(1_000, 0), {}, RULES)
    assert judge_live(of(10, 0), of(500, 400), RULES).standing is Standing.COLLECTING
    assert judge_live(of(500, 0), None, RULES).standing is Standing.NO_PREDECESSOR


def test_one_producer_is_not_enough_unless_it_is_trusted() -> None:
    champion, before = {"a": Approvals(400, 100)}, {"a": Approvals(400, 380)}
    assert not is_worse(champion, before, RULES)
    assert is_worse(champion, before, TRUSTING)
    told = judge_live(champion, before, RULES)
    assert told.standing is Standing.OPEN
    assert "without a the others' verdicts do not say so" in told.reason


def test_a_liar_with_half_of_the_verdicts_moves_nothing() -> None:
    champion = {**of(400, 320), "liar": Approvals(400, 0)}
    told = judge_live(champion, of(1_000, 800), RULES)
    assert told.standing is Standing.OPEN
    assert told.decisive_producer == "liar"
    assert told.log_e > told.threshold


def test_what_is_worse_without_any_one_producer_is_worse() -> None:
    told = judge_live(of(400, 200), of(1_000, 800), RULES)
    assert told.standing is Standing.WORSE
    assert told.log_e_without_one is not None
    assert told.log_e_without_one >= told.threshold_without_one
    assert "200 of 400 approved (50.0%), before it 800 of 1000 (80.0%)" in told.reason


def test_a_settled_champion_is_judged_no_more() -> None:
    champion, before = of(5_000, 1_000), of(5_000, 4_500)
    assert not is_worse(champion, before, RULES)
    assert judge_live(champion, before, RULES).standing is Standing.SETTLED


def test_a_margin_asks_for_a_larger_drop() -> None:
    champion, before = of(2_000, 1_480), of(2_000, 1_600)
    assert is_worse(champion, before, TRUSTING)
    assert not is_worse(champion, before, VerdictRules(min_producers=1, margin=0.05))
    low = VerdictRules(min_producers=1, margin=0.05)
    assert is_worse(of(2_000, 1_300), before, low)


def test_rates_of_nothing_and_of_all_are_no_special_case() -> None:
    assert log_evidence(Approvals(50, 0), Approvals(50, 50)) > 20
    assert log_evidence(Approvals(50, 0), Approvals(50, 0)) == 0
    assert log_evidence(Approvals(50, 50), Approvals(50, 50)) == 0
    assert log_evidence(Approvals(100_000, 40_000), Approvals(100_000, 60_000), 0.1) > 100


def test_at_least_so_many_no_are_needed() -> None:
    told = judge_live(of(100, 80), of(1_000, 800), TRUSTING)
    assert told.at_least is not None
    one_less = of(100 + told.at_least - 1, 80, 1)
    assert not is_worse(one_less, of(1_000, 800), TRUSTING)
    assert is_worse(of(100 + told.at_least, 80, 1), of(1_000, 800), TRUSTING)


def test_the_canary_share_is_published_while_the_verdict_is_open() -> None:
    before = of(1_000, 800)
    share = {
        judge_live(champion, before, RULES).standing: canary_share(
            judge_live(champion, before, RULES), RULES
        )
        for champion in (of(5, 4), of(500, 400), of(500, 100), of(5_000, 4_000))
    }
    assert share == {
        Standing.COLLECTING: 0.2,
        Standing.OPEN: 0.2,
        Standing.WORSE: 0.0,
        Standing.SETTLED: 0.0,
    }
    assert canary_share(judge_live(of(5, 4), None, RULES), RULES) == 0.0


def test_an_interval_holds_the_rate_and_narrows() -> None:
    assert interval(Approvals()) == (0.0, 1.0)
    wide, narrow = interval(Approvals(10, 8)), interval(Approvals(1_000, 800))
    assert wide[0] < narrow[0] < 0.8 < narrow[1] < wide[1]
