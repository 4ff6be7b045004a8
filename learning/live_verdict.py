"""Say whether people like a champion less than the version before it, at any moment.

Pure: counts in, verdict out. The test is an e-process: looked at after every single feedback,
for ever, it says "worse" of a champion that is not with a probability of at most its level.
What it needs are counts, in whatever order they came. docs/live-verdict.md has the formula.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

EVERYBODY_ELSE: Final = ""
"""Stands for the producers that came after `MOST_PRODUCERS` of them; no producer is called so."""
MOST_PRODUCERS: Final = 32
"""Whose verdicts on one version are counted apart."""

_DROPS: Final = ((0.3, 0.2), (0.55, 0.4), (1.0, 0.3), (2.0, 0.1))
"""How much lower the champion's rate may be, in log-odds, and how much is bet on each."""
_SHARES: Final = ((1.0, 0.3), (0.75, 0.25), (0.5, 0.25), (0.25, 0.15), (0.0, 0.05))
"""How much of a drop lies on the champion's side of the null; the rest is on the predecessor's."""
_BETS: Final = tuple(
    (drop * (1 - share), drop * share, math.log(weight * of_share))
    for drop, weight in _DROPS
    for share, of_share in _SHARES
)
"""(predecessor up, champion down, log weight); the weights add up to 1."""
_COARSE_STEPS: Final = 12
_FINE_STEPS: Final = 12
_GOLDEN: Final = (math.sqrt(5) - 1) / 2
_Z_95: Final = 1.96


class Standing(StrEnum):
    """How a champion stands against the version before it."""

    NO_PREDECESSOR = "no_predecessor"
    COLLECTING = "collecting"
    """One of the two has too few verdicts to say anything."""
    OPEN = "open"
    WORSE = "worse"
    SETTLED = "settled"
    """It has been in use for so long that what its predecessor once got says little."""


@dataclass(frozen=True)
class Approvals:
    """What people said of a version: `yes` of `n` verdicts, 0 <= yes <= n."""

    n: int = 0
    yes: int = 0

    @property
    def rate(self) -> float | None:
        """Share of "yes", in [0, 1]; None without verdicts."""
        return self.yes / self.n if self.n else None

    def __sub__(self, other: "Approvals") -> "Approvals":
        return Approvals(self.n - other.n, self.yes - other.yes)


ByProducer = Mapping[str, Approvals]
"""The verdicts on one version, by who sent them."""


@dataclass(frozen=True)
class VerdictRules:
    """What is asked of the evidence, and what may follow from it."""

    automatic_rollback: bool = True
    level: float = 0.01
    """The chance that a champion which is not worse is ever called worse."""
    level_without_one: float = 0.05
    """The same chance where any one producer lies."""
    margin: float = 0.0
    """So much lower an approval rate is not worse yet."""
    min_evidence: int = 30
    """Verdicts on each of the two versions, before anything is said."""
    settled_after: int = 5_000
    """Verdicts on the champion, after which nothing follows by itself any more."""
    min_producers: int = 2
    """1 trusts a single producer; with 2 the evidence has to hold without any one of them."""
    max_rollbacks_a_day: int = 1
    """Automatic ones of one line."""
    spare_forced_hours: float = 24.0
    """So long an operator's own choice of a champion stays."""
    canary_share: float = 0.2
    """Of the traffic, for the predecessor while the verdict is open."""


@dataclass(frozen=True)
class LiveVerdict:
    """What is known of a champion and the version before it."""

    standing: Standing
    champion: Approvals
    predecessor: Approvals
    log_e: float
    """Natural logarithm of the evidence that the champion is worse; 0 is none."""
    log_e_without_one: float | None
    """The least of it without one of the producers; None where a single one is trusted."""
    decisive_producer: str | None
    """Without this one there is the least evidence."""
    threshold: float
    """What `log_e` has to reach."""
    threshold_without_one: float
    at_least: int | None
    """So many "no" in a row would be needed now; None when nothing follows from more."""
    reason: str
    """All that in a sentence."""


def judge_live(
    champion: ByProducer, predecessor: ByProducer | None, rules: VerdictRules
) -> LiveVerdict:
    """The verdict on a champion. `predecessor` is None when there is none to go back to."""
    all_of, before = total(champion), total(predecessor or {})
    threshold, apart = -math.log(rules.level), -math.log(rules.level_without_one)

    def told(
        standing: Standing,
        reason: str,
        log_e: float = 0.0,
        weakest: tuple[float, str] | None = None,
        at_least: int | None = None,
    ) -> LiveVerdict:
        return LiveVerdict(
            standing=standing,
            champion=all_of,
            predecessor=before,
            log_e=log_e,
            log_e_without_one=None if weakest is None else weakest[0],
            decisive_producer=None if weakest is None else weakest[1],
            threshold=threshold,
            threshold_without_one=apart,
            at_least=at_least,
            reason=reason,
        )

    if predecessor is None:
        return told(Standing.NO_PREDECESSOR, "there is no version before it to compare with")
    log_e = log_evidence(all_of, before, rules.margin)
    weakest = None if rules.min_producers < 2 else _weakest(champion, predecessor, rules.margin)
    missing = max(0, rules.min_evidence - all_of.n)
    if missing or before.n < rules.min_evidence:
        return told(
            Standing.COLLECTING,
            f"too few verdicts: {all_of.n} on the champion and {before.n} on the version before"
            f" it, {rules.min_evidence} on each are needed",
            log_e,
            weakest,
            missing or None,
        )
    numbers = _numbers(all_of, before, log_e, threshold)
    if all_of.n >= rules.settled_after:
        return told(
            Standing.SETTLED, f"settled after {all_of.n} verdicts: {numbers}", log_e, weakest
        )
    if is_worse(champion, predecessor, rules):
        return told(Standing.WORSE, f"worse than the version before it: {numbers}", log_e, weakest)
    if log_e >= threshold and weakest is not None:
        return told(
            Standing.OPEN,
            f"looks worse ({numbers}), but without {weakest[1] or 'the smaller producers'} the"
            f" others' verdicts do not say so: e = {e_in_words(weakest[0])},"
            f" {e_in_words(apart)} is needed",
            log_e,
            weakest,
        )
    return told(
        Standing.OPEN,
        f"not worse as far as is known: {numbers}",
        log_e,
        weakest,
        _at_least(all_of, before, rules, threshold),
    )


def is_worse(champion: ByProducer, predecessor: ByProducer, rules: VerdictRules) -> bool:
    """Whether the evidence calls the champion worse: what an automatic rollback needs.

    Missing data never does. Quick where the answer is no, as it nearly always is.
    """
    all_of, before = total(champion), total(predecessor)
    least = rules.min_evidence
    if not least <= all_of.n < rules.settled_after or before.n < least:
        return False
    threshold, apart = -math.log(rules.level), -math.log(rules.level_without_one)
    if not _may_reach(all_of, before, rules.margin, threshold):
        return False
    without = _without_each(champion, predecessor) if rules.min_producers > 1 else {}
    # All of the quick looks come before the first thorough one.
    return (
        all(_may_reach(*left, rules.margin, apart) for left in without.values())
        and log_evidence(all_of, before, rules.margin) >= threshold
        and all(log_evidence(*left, rules.margin) >= apart for left in without.values())
    )


def canary_share(verdict: LiveVerdict, rules: VerdictRules) -> float:
    """The share of traffic that should still go to the predecessor, in [0, 1].

    Only while the verdict is open: so the two are compared at the same time.
    """
    is_open = verdict.standing in (Standing.COLLECTING, Standing.OPEN)
    return rules.canary_share if is_open else 0.0


def total(verdicts: ByProducer) -> Approvals:
    """The verdicts of all producers together."""
    return Approvals(
        sum(one.n for one in verdicts.values()), sum(one.yes for one in verdicts.values())
    )


def interval(approvals: Approvals) -> tuple[float, float]:
    """Where the true rate is with 95 %, by Wilson's formula. For people; nothing is decided by it.

    Without verdicts: (0, 1).
    """
    n = approvals.n
    if not n:
        return 0.0, 1.0
    rate, z2 = approvals.yes / n, _Z_95**2
    middle = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z_95 * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


# --- the e-process --------------------------------------------------------------------


def _may_reach(champion: Approvals, predecessor: Approvals, margin: float, log_e: float) -> bool:
    """Whether `log_evidence` may be so much, by an upper bound; mostly enough to say no.

    No bet wins more than the best one in hindsight, which has a closed form at margin 0; and
    the least over all x is not more than at one of them.
    """
    if not _points_down(champion, predecessor, margin):
        return False
    rate = (champion.yes + predecessor.yes) / (champion.n + predecessor.n)
    if margin == 0 and _divergence(champion, rate) + _divergence(predecessor, rate) < log_e:
        return False
    rate = min(max(rate + margin * champion.n / (champion.n + predecessor.n), 1e-6), 1 - 1e-6)
    return _log_won(math.log(rate / (1 - rate)), champion, predecessor, margin) >= log_e


def log_evidence(champion: Approvals, predecessor: Approvals, margin: float = 0.0) -> float:
    """log e against "the champion's rate is at least the predecessor's less `margin`".

    For each rate x that the predecessor may have: how much a fixed mixture of bets would have
    won that say "it is higher than x, and the champion's lower than x - margin". Each factor is
    a likelihood ratio, so that the product is a supermartingale that starts at 1, if x is the
    true rate and the null holds; the least over all x is below it (Ville: it ever reaches
    1/alpha with a probability of alpha at most). 0 when the counts do not point down.
    """
    if not _points_down(champion, predecessor, margin):
        return 0.0

    def won(at: float) -> float:
        return _log_won(at, champion, predecessor, margin)

    centre = (champion.yes + predecessor.yes + 0.5) / (champion.n + predecessor.n + 1)
    spread = 2 / math.sqrt((champion.n + predecessor.n) * centre * (1 - centre))
    ends = (_log_odds_of(champion), _log_odds_of(predecessor), math.log(centre / (1 - centre)))
    return max(0.0, _least(won, min(ends) - spread, max(ends) + spread))


def _points_down(champion: Approvals, predecessor: Approvals, margin: float) -> bool:
    """Whether the champion's rate is lower by more than the margin; False without counts."""
    return champion.yes * predecessor.n < (predecessor.yes - margin * predecessor.n) * champion.n


def _log_won(at: float, champion: Approvals, predecessor: Approvals, margin: float) -> float:
    """What the mixture won if the predecessor's rate is x, given as its log-odds `at`."""
    bound: float | None = at
    if margin:
        rate = 1 / (1 + math.exp(-at)) - margin
        # Below the margin no champion can be worse: nothing is won from its counts.
        bound = math.log(rate / (1 - rate)) if rate > 1e-9 else None
    of_null = _softplus(at)
    of_bound = 0.0 if bound is None else _softplus(bound)
    logs = []
    for up, down, weight in _BETS:
        won = weight + predecessor.yes * up - predecessor.n * (_softplus(at + up) - of_null)
        if bound is not None:
            won += champion.n * (of_bound - _softplus(bound - down)) - champion.yes * down
        logs.append(won)
    highest = max(logs)
    return highest + math.log(sum(math.exp(one - highest) for one in logs))


def _least(function: Callable[[float], float], low: float, high: float) -> float:
    """The least value between two ends: by a grid, then by golden section around its best."""
    step = (high - low) / _COARSE_STEPS
    least, best = min((function(low + step * n), n) for n in range(_COARSE_STEPS + 1))
    low, high = low + step * (best - 1), low + step * (best + 1)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(_FINE_STEPS):
        least = min(least, at_left, at_right)
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = function(right)
    return least


def _softplus(x: float) -> float:
    return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))


def _log_odds_of(approvals: Approvals) -> float:
    return math.log((approvals.yes + 0.5) / (approvals.n - approvals.yes + 0.5))


def _divergence(approvals: Approvals, rate: float) -> float:
    """n times the Kullback-Leibler divergence of the observed rate from `rate`, in nats."""
    n, yes = approvals.n, approvals.yes
    nats = 0.0
    if yes:
        nats += yes * math.log(yes / n / rate)
    if yes < n:
        nats += (n - yes) * math.log((n - yes) / n / (1 - rate))
    return nats


def _without_each(
    champion: ByProducer, predecessor: ByProducer
) -> Mapping[str, tuple[Approvals, Approvals]]:
    """What is left of both versions' verdicts without each of the producers."""
    all_of, before, none = total(champion), total(predecessor), Approvals()
    return {
        one: (all_of - champion.get(one, none), before - predecessor.get(one, none))
        for one in sorted(champion.keys() | predecessor.keys())
    }


def _weakest(
    champion: ByProducer, predecessor: ByProducer, margin: float
) -> tuple[float, str] | None:
    """The least evidence without one of the producers, and which; None without any."""
    without = _without_each(champion, predecessor)
    return min(((log_evidence(*left, margin), one) for one, left in without.items()), default=None)


def _at_least(
    champion: Approvals, before: Approvals, rules: VerdictRules, threshold: float
) -> int | None:
    """How many "no" in a row would make the evidence; None when it is settled before that."""

    def enough(more: int) -> bool:
        with_more = Approvals(champion.n + more, champion.yes)
        return log_evidence(with_more, before, rules.margin) >= threshold

    most = rules.settled_after - champion.n - 1
    if most < 1 or not enough(most):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _numbers(champion: Approvals, before: Approvals, log_e: float, threshold: float) -> str:
    return (
        f"{champion.yes} of {champion.n} approved ({champion.yes / champion.n:.1%}), before it"
        f" {before.yes} of {before.n} ({before.yes / before.n:.1%});"
        f" e = {e_in_words(log_e)}, {e_in_words(threshold)} says worse"
    )


def e_in_words(log_e: float) -> str:
    """An e-value for people; a very large one by its power of ten."""
    if log_e > math.log(1e6):
        return f"1e{log_e / math.log(10):.0f}"
    return f"{math.exp(log_e):,.3g}" if log_e < math.log(1e3) else f"{math.exp(log_e):,.0f}"
