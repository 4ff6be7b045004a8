"""Adapt two settings to what people say: how strict auto-approval is, and whether there is any.

Pure: evidence, the settings and the bounds in, at most one step for each setting out, with its
reason. No clock, no I/O.

- Success rate below `low_success`: `policy.feedback_threshold` goes up to `raised_threshold`.
- Average confidence above `high_confidence`, and people agree: `enable_auto_approval` goes on.

Each goes back to what it was, and only there, beyond another bar. The two directions are not
alike, because their mistakes are not: a step to the strict side needs the rate alone, one to
the lax side needs proof. With p the rate of n verdicts and m the middle of the two bars it is

    p >= good_success  and  (p - m) / sqrt(m (1 - m) / n) >= PROOF

So a stream whose true rate lies between the bars goes to the strict side once, by chance, and
stays there: a rate of 50 verdicts crosses both bars every few days, PROOF it never reaches.

What a step was decided on is not used again: evidence begins anew after each change. Steps of
one setting lie `dwell` apart, except that auto-approval is switched off at once when people
reject. A step to the lax side waits BACKOFF times as long for each time that it went wrong
within MEMORY: where the strict side is what makes the rate good, going back makes it bad
again, and the two would chase each other for ever. A day has `max_changes_a_day`, and nothing
steps away from what was configured without enough of them left for all ways back.

A person wins. What a person changed, or took back, is left alone for `respect`; what is in
`pinned` is never touched.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

ACTOR = "adaptation"
"""Who makes the changes, in the history."""
THRESHOLD = "policy.feedback_threshold"
AUTO_APPROVAL = "policy.enable_auto_approval"
KEYS = (THRESHOLD, AUTO_APPROVAL)
PROOF = 3.0
"""Standard deviations."""
BACKOFF = 4
MEMORY = timedelta(days=90)


class Cause(StrEnum):
    """Why a setting is changed, or is not."""

    OFF = "off"
    PINNED = "pinned"
    RESPECTED = "respected"
    """A person changed it lately."""
    TOO_LITTLE = "too_little"
    STEADY = "steady"
    DWELLING = "dwelling"
    """It would change, and changed a short while ago."""
    DAILY_LIMIT = "daily_limit"
    MANY_REJECTED = "many_rejected"
    RECOVERED = "recovered"
    CONFIDENT = "confident"
    DOUBTFUL = "doubtful"


@dataclass(frozen=True)
class AdaptationRules:
    """The bounds. Rates and confidences in [0, 1]; low_success <= good_success."""

    enabled: bool = True
    low_success: float = 0.7
    good_success: float = 0.8
    raised_threshold: float = 0.8
    high_confidence: float = 0.95
    fading_confidence: float = 0.9
    min_judged: int = 50
    """Verdicts of people before a success rate counts."""
    min_confidences: int = 100
    window: timedelta = timedelta(hours=24)
    """Older evidence does not count."""
    dwell: timedelta = timedelta(hours=6)
    respect: timedelta = timedelta(days=7)
    max_changes_a_day: int = 4
    pinned: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Evidence:
    """What was seen in the window, since the setting was last changed."""

    approved: int = 0
    """By people."""
    rejected: int = 0
    confidences: int = 0
    average_confidence: float | None = None

    @property
    def judged(self) -> int:
        """By people."""
        return self.approved + self.rejected


@dataclass(frozen=True)
class Knob:
    """One of the two settings, and who turned it when."""

    key: str
    value: float
    """A switch is 1 or 0."""
    adapted_by: int | None = None
    """The revision of an own step that stands: it can go back."""
    stepped_at: datetime | None = None
    """The last own change of it, to or fro."""
    steps_away: int = 0
    """Own steps away from what was configured within MEMORY, the one that stands included."""
    person: str = ""
    """Who changed it last of all others."""
    person_at: datetime | None = None


@dataclass(frozen=True)
class Step:
    """A change to make: a new value, or None to undo the revision that stands."""

    value: float | bool | None


@dataclass(frozen=True)
class Thought:
    """What is to become of one setting, and why. Mostly nothing."""

    key: str
    cause: Cause
    reason: str
    step: Step | None = None


@dataclass(frozen=True)
class _Wish:
    cause: Cause
    reason: str
    step: Step
    is_lax: bool = False
    is_urgent: bool = False


def consider(
    knobs: Sequence[Knob],
    evidence: Mapping[str, Evidence],
    changes_today: int,
    rules: AdaptationRules,
    now: datetime,
) -> Sequence[Thought]:
    """One thought for each setting. `changes_today` are own ones in the last 24 hours."""
    standing = sum(knob.adapted_by is not None for knob in knobs)
    thoughts = []
    for knob in knobs:
        thought = _consider(knob, evidence[knob.key], changes_today, standing, rules, now)
        if thought.step is not None:
            changes_today += 1
            standing += 1 if thought.step.value is not None else -1
        thoughts.append(thought)
    return thoughts


def _consider(
    knob: Knob,
    seen: Evidence,
    changes_today: int,
    standing: int,
    rules: AdaptationRules,
    now: datetime,
) -> Thought:
    if (left_alone := _left_alone(knob, rules, now)) is not None:
        return left_alone
    wishes = _threshold(knob, seen, rules) if knob.key == THRESHOLD else _auto(knob, seen, rules)
    wish = next(wishes, None)
    if wish is None:
        return _nothing(knob, seen, rules)
    dwell = rules.dwell * (BACKOFF ** max(0, knob.steps_away - 1) if wish.is_lax else 1)
    if not wish.is_urgent and knob.stepped_at is not None and now - knob.stepped_at < dwell:
        hours, needed_hours = (time / timedelta(hours=1) for time in (now - knob.stepped_at, dwell))
        return Thought(
            knob.key,
            Cause.DWELLING,
            f"{wish.reason}; but it changed {hours:.1f} of {needed_hours:.0f} h ago",
        )
    # A step away reserves the way back of everything that will then stand.
    needed = 1 if wish.step.value is None else standing + 2
    if changes_today + needed > rules.max_changes_a_day:
        return Thought(
            knob.key,
            Cause.DAILY_LIMIT,
            f"{wish.reason}; but {changes_today} changes were made in 24 hours, of"
            f" {rules.max_changes_a_day}, and {needed} would have to be left",
        )
    return Thought(knob.key, wish.cause, wish.reason, wish.step)


def _left_alone(knob: Knob, rules: AdaptationRules, now: datetime) -> Thought | None:
    if not rules.enabled:
        return Thought(knob.key, Cause.OFF, "policy.adaptive is off")
    if knob.key in rules.pinned:
        return Thought(knob.key, Cause.PINNED, "it is in adaptation.pinned")
    if knob.person_at is not None and now - knob.person_at < rules.respect:
        until = knob.person_at + rules.respect
        return Thought(
            knob.key, Cause.RESPECTED, f"{knob.person} changed it: left alone until {until:%F %R}"
        )
    return None


def _threshold(knob: Knob, seen: Evidence, rules: AdaptationRules) -> Iterator[_Wish]:
    if knob.adapted_by is not None:
        if _is_good(seen, rules):
            yield _Wish(
                Cause.RECOVERED, f"{_rate(seen)}, which is good again", Step(None), is_lax=True
            )
    elif _is_low(seen, rules) and knob.value < rules.raised_threshold:
        reason = f"{_rate(seen)}, below {rules.low_success:.0%}"
        yield _Wish(Cause.MANY_REJECTED, reason, Step(rules.raised_threshold))


def _auto(knob: Knob, seen: Evidence, rules: AdaptationRules) -> Iterator[_Wish]:
    average, n = seen.average_confidence, seen.confidences
    known = average is not None and n >= rules.min_confidences
    if knob.adapted_by is not None:
        if _is_low(seen, rules):
            reason = f"{_rate(seen)}, below {rules.low_success:.0%}"
            yield _Wish(Cause.MANY_REJECTED, reason, Step(None), is_urgent=True)
        elif known and average is not None and average < rules.fading_confidence:
            reason = f"the average confidence of {n} outputs is {average:.3f}"
            yield _Wish(Cause.DOUBTFUL, f"{reason}, below {rules.fading_confidence}", Step(None))
    elif (
        not knob.value
        and known
        and average is not None
        and average > rules.high_confidence
        and _is_good(seen, rules)
    ):
        reason = f"the average confidence of {n} outputs is {average:.3f}, above"
        yield _Wish(
            Cause.CONFIDENT,
            f"{reason} {rules.high_confidence}, and {_rate(seen)}",
            Step(True),
            is_lax=True,
        )


def _is_low(seen: Evidence, rules: AdaptationRules) -> bool:
    return seen.judged >= max(1, rules.min_judged) and (
        seen.approved < rules.low_success * seen.judged
    )


def _is_good(seen: Evidence, rules: AdaptationRules) -> bool:
    """Proven, and not only so at a look: senders and chance have many looks."""
    n = seen.judged
    if n < max(1, rules.min_judged) or seen.approved < rules.good_success * n:
        return False
    middle = (rules.low_success + rules.good_success) / 2
    deviation = math.sqrt(middle * (1 - middle) / n)
    return seen.approved / n - middle >= PROOF * deviation


def _rate(seen: Evidence) -> str:
    share = seen.approved / seen.judged
    return f"people approved {seen.approved} of {seen.judged} judged outputs ({share:.0%})"


def _nothing(knob: Knob, seen: Evidence, rules: AdaptationRules) -> Thought:
    if seen.judged < max(1, rules.min_judged):
        return Thought(
            knob.key,
            Cause.TOO_LITTLE,
            f"{seen.judged} of {rules.min_judged} verdicts of people",
        )
    told = _rate(seen)
    if knob.key == AUTO_APPROVAL and seen.average_confidence is not None:
        told += f", average confidence {seen.average_confidence:.3f} of {seen.confidences}"
    return Thought(knob.key, Cause.STEADY, told)
