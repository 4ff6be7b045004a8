"""Decide whether a candidate may replace the champion.

Pure: paired scores in, verdict out. No clock, database or network, so every rule
here is tested with plain lists. The rules, in the order in which they are applied:

1. A candidate that trained on nothing, did not change the weights or has a number that
   is not finite is refused by name.
2. With fewer than `min_evidence` recent held-out examples, or a champion whose own loss
   is not finite, the gate abstains.
3. Clearly worse on the older examples, on any task type of the line, or on a related one of
   another line that it learns from: rejected.
4. Better on the recent examples by the margin: promoted. Worse: rejected. Between the
   two: it abstains.

"Better" is a one-sided Wilcoxon signed-rank test on the paired per-example losses
(signed_ranks.py), champion * (1 - margin) against candidate. The margin is there because
two trainings with other seeds differ by about 4 % in loss, which a test without one
takes for a gain. Losses of answers are mostly ties, and a margin on each example would turn
every tie into a loss; there as much of the candidate's largest gains is taken away as the
margin is of the champion's whole loss, and the rest is tested. Each further candidate that is
compared with the same champion is one more look, and gets a smaller share of the significance
level: alpha / (k (k + 1)) for look k, which sums to alpha over all looks (an alpha-spending
sequence).

The guarded slices of rule 3 have a margin of their own, which is wider: what is learned of one
task moves the others a little, and single slices differ more between two seeds than the whole
does. A line that refuses any such movement stops learning. On related task types, which the line
need not answer for, it is wider still. The significance is shared among
the slices (Bonferroni), because there are several chances to be worse by luck.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from learning.errors import UnpairedScoresError, UnsoundScoresError
from learning.forgetting import Forgetting, compare_slices
from learning.signed_ranks import p_greater


class Outcome(StrEnum):
    """What the gate says of a candidate."""

    PROMOTE = "promote"
    REJECT = "reject"
    ABSTAIN = "abstain"


class Refusal(StrEnum):
    """Why a candidate is refused without being compared."""

    NO_TOKENS = "no_tokens"
    UNCHANGED_WEIGHTS = "unchanged_weights"
    NOT_FINITE = "not_finite"
    PARENT_ROLLED_BACK = "parent_rolled_back"


@dataclass(frozen=True)
class GateRules:
    """Margins are shares of the champion's loss; `significance` is for all looks together."""

    min_evidence: int = 8
    wanted_evidence: int = 32
    margin: float = 0.05
    regression_margin: float = 0.25
    """By so much a guarded slice may get worse, as a share of the champion's loss on it."""
    negligible_loss: float = 0.01
    """And by so much more, in nats per byte: of next to nothing, twice as much is nothing."""
    related_margin: float = 0.5
    """By so much a related task type of another line may get worse."""
    related_evidence: int = 32
    """How many of the newest held-out examples of each related task type are looked at."""
    significance: float = 0.05
    recent_evidence: int = 64
    """How many of the newest held-out examples count as recent."""
    older_evidence: int = 192
    """How many of the others are looked at, evenly spread over their age."""


@dataclass(frozen=True)
class TrainingProof:
    """What the trainer measured while it made the candidate."""

    trained_tokens: int
    weight_delta_norm: float | None
    """None where whoever trained does not say, as a service elsewhere."""
    all_finite: bool


class Measure(StrEnum):
    """What the loss of an example is made of."""

    LIKELIHOOD = "likelihood"
    """Nats per byte of the approved answer: how unlikely the model finds it."""
    ANSWERS = "answers"
    """1 - score of the model's own answer against the approved one: 0 to 1, often equal."""


@dataclass(frozen=True)
class Score:
    """One model on one held-out example: its loss, smaller is better, and exact match."""

    loss: float
    match: bool
    measure: Measure = Measure.LIKELIHOOD


@dataclass(frozen=True)
class HeldOut:
    """One held-out example, as far as the gate needs to know it."""

    id: int
    task_type: str
    recent: bool
    producer: str | None = None
    category: str | None = None
    related: bool = False
    """Whether it is another line's, of a related task type; such a one is never recent."""


@dataclass(frozen=True)
class Comparison:
    """Champion and candidate on one slice of the held-out set.

    Losses are means in nats per byte; matches are shares in [0, 1]; `gain` is the
    relative fall of the mean loss, positive when the candidate is better. `p_worse` is
    the p-value of "the candidate is worse by more than the margin".
    """

    name: str
    n_examples: int
    champion_loss: float
    candidate_loss: float
    champion_match: float
    candidate_match: float
    gain: float
    p_worse: float


@dataclass(frozen=True)
class GateReport:
    """The verdict and every number behind it."""

    outcome: Outcome
    reason: str
    refusal: Refusal | None = None
    overall: Comparison | None = None
    slices: tuple[Comparison, ...] = ()
    p_better: float | None = None
    threshold: float | None = None
    look: int = 1
    n_missing: int = 0
    """Recent held-out examples that are missing until `wanted_evidence`."""
    forgetting: Forgetting | None = None
    """What changed on all the examples that were scored, wherever both have finite losses."""
    measure: Measure | None = None
    """What the losses are made of; None where nothing was scored."""


def choose_evidence(n_examples: int, rules: GateRules) -> list[tuple[int, bool]]:
    """Which of `n_examples` frozen examples, oldest first, are scored.

    Returns (index, recent) in ascending order: a spread over the older ones, so that the
    cost of an evaluation does not grow for ever, and all recent ones.
    """
    n_older = max(0, n_examples - rules.recent_evidence)
    n_taken = min(n_older, rules.older_evidence)
    older = [(i * n_older // n_taken, False) for i in range(n_taken)]
    return older + [(index, True) for index in range(n_older, n_examples)]


def refusal_of(proof: TrainingProof) -> Refusal | None:
    """The name under which a candidate is refused unseen, or None."""
    moved = proof.weight_delta_norm
    if not proof.all_finite or not (moved is None or _is_finite(moved)):
        return Refusal.NOT_FINITE
    if proof.trained_tokens <= 0:
        return Refusal.NO_TOKENS
    if moved == 0.0:
        return Refusal.UNCHANGED_WEIGHTS
    return None


def refused(refusal: Refusal) -> GateReport:
    """The report of a candidate that is refused by name."""
    words = {
        Refusal.NO_TOKENS: "it was trained on no token at all",
        Refusal.UNCHANGED_WEIGHTS: "training did not change the weights",
        Refusal.NOT_FINITE: "a weight or a loss is not a finite number",
        Refusal.PARENT_ROLLED_BACK: "the version that it was trained from was rolled back",
    }
    return GateReport(Outcome.REJECT, words[refusal], refusal=refusal)


def sound(model: str, scores: Sequence[Score] | None, n_examples: int) -> Sequence[Score]:
    """What an evaluator said of `model`, as it is. Raises UnsoundScoresError.

    One score is needed for each of the `n_examples` examples, with a loss that is not below
    zero. A likelihood that is not finite is sound: it was measured, and `decide` refuses it.
    """
    if scores is None:
        raise UnsoundScoresError(model, "there are none")
    if len(scores) != n_examples:
        raise UnsoundScoresError(model, f"{len(scores)} of them for {n_examples} examples")
    for number, score in enumerate(scores, start=1):
        if not isinstance(score.match, bool):
            raise UnsoundScoresError(
                model, f"match is {score.match!r} on example {number}, neither true nor false"
            )
        if not isinstance(score.loss, float | int) or -math.inf < score.loss < 0:
            raise UnsoundScoresError(
                model,
                f"loss is {score.loss!r} on example {number}; nats per byte are never below 0",
            )
        if score.measure is Measure.ANSWERS and not score.loss <= 1:
            raise UnsoundScoresError(
                model, f"loss is {score.loss!r} on example {number}; an answer's is at most 1"
            )
    return scores


def spent_significance(rules: GateRules, look: int) -> float:
    """The significance level of the `look`-th candidate against one champion, look >= 1."""
    return rules.significance / (look * (look + 1))


def decide(
    examples: Sequence[HeldOut],
    champion: Sequence[Score],
    candidate: Sequence[Score],
    rules: GateRules,
    look: int,
) -> GateReport:
    """Compare on the same examples; index i is the same example in all three sequences.

    `look` counts the candidates that were compared with this champion, this one included.
    Raises UnpairedScoresError when the lengths differ, and UnsoundScoresError when some scores
    are of likelihoods and some of answers.
    """
    if not len(examples) == len(champion) == len(candidate):
        raise UnpairedScoresError(len(champion), len(candidate), len(examples))
    measure = _measure_of(champion, candidate)
    if any(not _is_finite(score.loss) for score in candidate):
        return refused(Refusal.NOT_FINITE)
    recent = [i for i, example in enumerate(examples) if example.recent]
    missing = max(0, rules.wanted_evidence - len(recent))
    n_broken = sum(not _is_finite(score.loss) for score in champion)
    if n_broken:
        return GateReport(
            Outcome.ABSTAIN,
            f"the champion's own loss is not a finite number on {n_broken} of {len(examples)}"
            " held-out examples: there is nothing to compare with",
            look=look,
            n_missing=missing,
            measure=measure,
        )
    forgetting = compare_slices(examples, champion, candidate)
    if len(recent) < rules.min_evidence:
        return GateReport(
            Outcome.ABSTAIN,
            f"{len(recent)} held-out examples, at least {rules.min_evidence} are needed"
            f" and {rules.wanted_evidence} wanted: {missing} more, which are drawn from outputs"
            " that a person approved",
            look=look,
            n_missing=missing,
            forgetting=forgetting if examples else None,
            measure=measure,
        )

    def compare(
        name: str, indices: Sequence[int], margin: float, negligible: float = 0.0
    ) -> Comparison:
        pair = [champion[i] for i in indices], [candidate[i] for i in indices]
        return _compare(name, *pair, margin, negligible)

    threshold = spent_significance(rules, look)
    overall = compare("recent", recent, rules.margin)
    guarded = {
        name: indices
        for name, indices in _guarded_slices(examples).items()
        if len(indices) >= rules.min_evidence
    }
    margins = {
        name: rules.related_margin if examples[indices[0]].related else rules.regression_margin
        for name, indices in guarded.items()
    }
    slices = tuple(
        compare(name, indices, margins[name], rules.negligible_loss)
        for name, indices in guarded.items()
    )
    p_better = p_greater(
        _gains([champion[i] for i in recent], [candidate[i] for i in recent], rules.margin)
    )

    def report(outcome: Outcome, reason: str) -> GateReport:
        return GateReport(
            outcome,
            reason,
            overall=overall,
            slices=slices,
            p_better=p_better,
            threshold=threshold,
            look=look,
            n_missing=missing,
            forgetting=forgetting,
            measure=measure,
        )

    of_what = " of the answers" if measure is Measure.ANSWERS else ""
    for part in slices:
        if part.p_worse <= _level(part, rules, len(slices)):
            return report(
                Outcome.REJECT,
                f"worse by more than {margins[part.name]:.0%} on {part.name}:"
                f" loss{of_what} {part.champion_loss:.3f} -> {part.candidate_loss:.3f}"
                f" over {part.n_examples} examples (p = {part.p_worse:.2g})",
            )
    change = f"held-out loss{of_what} {overall.champion_loss:.3f} -> {overall.candidate_loss:.3f}"
    if p_better < threshold:
        return report(
            Outcome.PROMOTE,
            f"better by more than {rules.margin:.0%}: {change}"
            f" over {overall.n_examples} examples (p = {p_better:.2g} < {threshold:.2g})",
        )
    if overall.p_worse < rules.significance:
        return report(
            Outcome.REJECT,
            f"worse by more than {rules.margin:.0%}: {change}"
            f" over {overall.n_examples} examples (p = {overall.p_worse:.2g})",
        )
    wanted = f"; {missing} more held-out examples are wanted" if missing else ""
    return report(
        Outcome.ABSTAIN,
        f"neither better nor worse by {rules.margin:.0%}: {change}"
        f" (p = {p_better:.2g}, needed < {threshold:.2g}){wanted}",
    )


def _level(part: Comparison, rules: GateRules, n_slices: int) -> float:
    """The p-value at which a guarded slice is worse.

    Never below what the test can reach at all: where each of a few examples got worse that
    is enough, however many other slices there are.
    """
    return max(rules.significance / n_slices, 0.5**part.n_examples)


def _guarded_slices(examples: Sequence[HeldOut]) -> Mapping[str, list[int]]:
    """The slices on which a candidate may not be worse: older examples, each task type."""
    slices: dict[str, list[int]] = {}
    several = len({example.task_type for example in examples if not example.related}) > 1
    for index, example in enumerate(examples):
        if example.related:
            slices.setdefault(f"related task type {example.task_type}", []).append(index)
            continue
        if not example.recent:
            slices.setdefault("older examples", []).append(index)
        if several:
            slices.setdefault(f"task type {example.task_type}", []).append(index)
    return slices


def _compare(
    name: str,
    champion: Sequence[Score],
    candidate: Sequence[Score],
    margin: float,
    negligible: float,
) -> Comparison:
    n = len(champion)
    champion_loss = sum(score.loss for score in champion) / n
    candidate_loss = sum(score.loss for score in candidate) / n
    return Comparison(
        name=name,
        n_examples=n,
        champion_loss=champion_loss,
        candidate_loss=candidate_loss,
        champion_match=sum(score.match for score in champion) / n,
        candidate_match=sum(score.match for score in candidate) / n,
        gain=(champion_loss - candidate_loss) / champion_loss if champion_loss > 0 else 0.0,
        p_worse=p_greater(_losses(champion, candidate, margin, negligible)),
    )


def _gains(old: Sequence[Score], new: Sequence[Score], margin: float) -> list[float]:
    """By how much the loss of each example fell, beyond the margin."""
    if old[0].measure is Measure.LIKELIHOOD:
        return [one.loss * (1 - margin) - two.loss for one, two in zip(old, new, strict=True)]
    fallen = [one.loss - two.loss for one, two in zip(old, new, strict=True)]
    return _without_largest(fallen, margin * sum(one.loss for one in old))


def _losses(
    old: Sequence[Score], new: Sequence[Score], margin: float, negligible: float
) -> list[float]:
    """By how much the loss of each example rose, beyond the margin and what is negligible."""
    if old[0].measure is Measure.LIKELIHOOD:
        return [
            two.loss - one.loss * (1 + margin) - negligible
            for one, two in zip(old, new, strict=True)
        ]
    risen = [two.loss - one.loss for one, two in zip(old, new, strict=True)]
    return _without_largest(risen, margin * sum(one.loss for one in old) + negligible * len(old))


def _without_largest(changes: Sequence[float], budget: float) -> list[float]:
    """The changes, after `budget` was taken away from the largest ones."""
    left = list(changes)
    for index in sorted(range(len(left)), key=lambda index: -left[index]):
        taken = max(0.0, min(left[index], budget))
        left[index] -= taken
        budget -= taken
    return left


def _measure_of(champion: Sequence[Score], candidate: Sequence[Score]) -> Measure | None:
    """What both were measured by; None without an example. Raises UnsoundScoresError."""
    measures = {score.measure for score in (*champion, *candidate)}
    if len(measures) > 1:
        raise UnsoundScoresError(
            "candidate and its champion", "some are of likelihoods and some of answers"
        )
    return measures.pop() if measures else None


def _is_finite(value: float) -> bool:
    return value - value == 0.0
