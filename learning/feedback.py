"""What follows from feedback: a score, what is known by many scores, and which dials turn.

Pure: what is remembered of a task type and one feedback in; what is remembered then, and each
effect with its name and its reason out. No clock, no I/O. All formulas and numbers are in
docs/feedback.md; in short:

1. A feedback is a score in [-1, 1], made of approval, rating, quality and engagement.
2. Scores are evidence (evidence.py). A producer counts for a part of what is needed at most,
   so that nothing moves before several have spoken.
3. With enough evidence two things turn dials: what a sender wishes, times the learning rate
   and within its share of a day, and what the evidence says, seldom and in small steps.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import Any, Self

from learning.clock import EPOCH, microseconds
from learning.dials import Bounds, Dial, DialKey, natural, turned
from learning.events import FeedbackEvent
from learning.evidence import Chorus, Evidence, Needed, Signal, Voice
from learning.metric_scales import MetricScale
from learning.styles import MOODS, known_mood, leading_mood

METRIC_STALE = timedelta(days=7)
"""A learned metric that was not heard for so long gives its place to another."""

LOW, HIGH = -0.25, 0.5
"""Scores that are poor, and consistently good."""
MUCH_BETTER = 0.25
"""Other task types that score so on the average make one that is poor lag behind."""
UNENGAGED = -0.3
STRICTER, LAXER, LESS_OF_IT, BOOST = 0.2, 0.1, 1.0, 2.5
"""Steps of what the evidence says, times the learning rate and how clear it is."""
PATIENCE = {"relax_validation": 2}
"""How many times `min_feedback` have to be new before something is done again; once for others."""


class LoopChange(StrEnum):
    """What is done to the loop, by the name that a result lists; a metric label."""

    INCREASE_VALIDATION_STRICTNESS = "increase_validation_strictness"
    RELAX_VALIDATION = "relax_validation"
    ADJUST_CONTENT_STYLE = "adjust_content_style"
    BOOST_TASK_WEIGHT = "boost_task_weight"
    ADJUST_TRUST = "adjust_trust"
    RESET = "reset"
    """An operator took everything of a task type back."""


@dataclass(frozen=True)
class FeedbackRules:
    """The bounds. `learning_rate` in (0, 1] scales every step."""

    adapt: bool = True
    """Off, nothing turns and nothing is remembered; what turned before fades."""
    learning_rate: float = 0.1
    min_feedback: int = 8
    """So much evidence has to be there before anything turns."""
    min_producers: int = 2
    """So many producers have to stand behind it, each with an equal part."""
    max_offset: float = 0.15
    """The bars move so far at most, up or down."""
    max_offset_a_day: float = 0.05
    min_trust: float = 0.3
    """Below it outputs that no person stands behind are held."""
    metrics: tuple[str, ...] = ()
    """Metrics that count in any case."""
    learned_metrics: int = 16
    """Beside them so many names that a task type's senders use."""
    lower_is_better: tuple[str, ...] = ()
    moods: Mapping[str, str] = field(default_factory=lambda: MOODS)

    @cached_property
    def needed(self) -> Needed:
        """How much evidence is needed."""
        return Needed(self.min_feedback, self.min_producers)

    def bounds(self, dial: Dial) -> Bounds:
        """How far a dial goes, and how far in a day."""
        match dial:
            case Dial.BAR:
                return Bounds(-self.max_offset, self.max_offset, self.max_offset_a_day)
            case Dial.TRUST:
                return Bounds(-0.5, 0.5, 0.1)
            case Dial.STYLE:
                return Bounds(0.0, 1.0, 0.3)
            case Dial.WEIGHT:
                return Bounds(0.0, 1.0, 0.5)


@dataclass(frozen=True)
class Said:
    """A feedback that has met its output."""

    feedback_id: int
    event: FeedbackEvent
    output_producer: str


@dataclass(frozen=True)
class Effect:
    """A dial that was turned, or a wish that was not followed: then both values are equal."""

    feedback_id: int | None
    """None when an operator did it."""
    key: DialKey
    change: LoopChange
    before: float
    after: float
    reason: str
    by: str = ""
    """Whose wish it was, and whose share of the day it uses up; empty when the evidence did it."""

    @property
    def moved(self) -> bool:
        """Whether something is different now."""
        return self.before != self.after


@dataclass
class Memory:
    """What is remembered of a task type beside its dials. Changed in place by `learn`."""

    n: int = 0
    """Feedback that counted, ever."""
    acted_at: dict[str, int] = field(default_factory=dict)
    """By LoopChange, `n` when the evidence last did it."""
    voices: dict[str, Voice] = field(default_factory=dict)
    scales: dict[str, MetricScale] = field(default_factory=dict)
    """By signal/metric."""
    _chorus: Chorus | None = field(default=None, compare=False, repr=False)

    def chorus(self, rules: FeedbackRules, now: datetime) -> Chorus:
        """The voices at a moment; the same object for that moment and these rules."""
        last = self._chorus
        if last is None or last.now != now or last.needed != rules.needed:
            self._chorus = last = Chorus(self.voices, rules.needed, now)
        return last

    def as_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "n": self.n,
            "acted_at": self.acted_at,
            "voices": {
                name: [microseconds(one.at), one.n, one.heard] for name, one in self.voices.items()
            },
            "scales": {
                name: [
                    one.n,
                    one.mean,
                    one.variance,
                    microseconds(one.heard_at) if one.heard_at is not None else None,
                ]
                for name, one in self.scales.items()
            },
        }

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """What `as_json` gave."""
        return cls(
            stored["n"],
            dict(stored["acted_at"]),
            {
                name: Voice(_time(at), n, {key: (k, s) for key, (k, s) in heard.items()})
                for name, (at, n, heard) in stored["voices"].items()
            },
            {
                name: MetricScale(n, mean, variance, None if at is None else _time(at))
                for name, (n, mean, variance, at) in stored["scales"].items()
            },
        )


@dataclass
class Dials:
    """The dials of the task types at hand at one moment, and how far they moved today."""

    values: dict[DialKey, float] = field(default_factory=dict)
    moved: dict[tuple[DialKey, str], float] = field(default_factory=dict)
    """Today's steps of a dial without their signs, by whose wish; "" is the sum of all."""

    def turn(self, effect: Effect) -> None:
        """Take an effect over."""
        self.values[effect.key] = effect.after
        for by in {effect.by, ""}:
            already = self.moved.get((effect.key, by), 0.0)
            self.moved[effect.key, by] = already + abs(effect.after - effect.before)

    def room(self, key: DialKey, by: str, rules: FeedbackRules) -> float:
        """How far a dial may still move today, by a producer's wish, or "" by the evidence."""
        a_day = rules.bounds(key.dial).a_day
        left = a_day - self.moved.get((key, ""), 0.0)
        if by:
            left = min(left, a_day / rules.min_producers - self.moved.get((key, by), 0.0))
        return max(0.0, left)

    def style(self, task_type: str) -> dict[str, float]:
        """The style profile of a task type: how much each mood is wanted."""
        return {
            key.subject: value
            for key, value in self.values.items()
            if key.task_type == task_type and key.dial is Dial.STYLE
        }


def signals_of(
    event: FeedbackEvent, memory: Memory, rules: FeedbackRules, now: datetime
) -> dict[Signal, float]:
    """What a feedback says, each signal in [-1, 1]; its metrics join the scales of `memory`."""
    said = event.feedback
    signals: dict[Signal, float] = {}
    if event.approved is not None:
        signals[Signal.APPROVAL] = 1.0 if event.approved else -1.0
    if said.user_rating is not None:
        signals[Signal.RATING] = (said.user_rating - 3) / 2
    for signal, metrics in (
        (Signal.QUALITY, said.quality_metrics),
        (Signal.ENGAGEMENT, said.engagement_metrics),
    ):
        compared = [
            value
            for name in sorted(metrics)
            if (value := _compared(signal, name, metrics[name], memory, rules, now)) is not None
        ]
        if compared:
            signals[signal] = sum(compared) / len(compared)
    return signals


def learn(
    said: Said,
    memory: Memory,
    dials: Dials,
    others: Sequence[float],
    rules: FeedbackRules,
    now: datetime,
) -> list[Effect]:
    """Take one feedback into account: change `memory` and `dials`, and tell every effect.

    `others` are the scores of other task types. The wishes of a feedback are answered one by
    one, also where nothing came of them; what the evidence does is told when it is done.
    """
    if not rules.adapt:
        return []
    signals = signals_of(said.event, memory, rules, now)
    chorus = memory.chorus(rules, now)
    if signals:
        memory.n += 1
        chorus.hear(said.event.producer, signals)
    evidence = chorus.evidence()
    effects: list[Effect] = []
    for effect in _by_wish(said, evidence, dials, rules):
        effects.append(effect)
        if effect.moved:
            dials.turn(effect)
    if signals and evidence.enough:
        for effect in _by_evidence(said, evidence, memory, dials, others, rules):
            effects.append(effect)
            dials.turn(effect)
            memory.acted_at[effect.change] = memory.n
    return effects


# --- wishes ---------------------------------------------------------------------------


def _by_wish(
    said: Said, evidence: Evidence, dials: Dials, rules: FeedbackRules
) -> Iterator[Effect]:
    """What a sender asks for, each once; it is turned before the next is looked at."""
    wishes, task_type = said.event.adaptation, said.event.task_type
    rate = rules.learning_rate
    if wishes.confidence_adjustment:
        change = (
            LoopChange.INCREASE_VALIDATION_STRICTNESS
            if wishes.confidence_adjustment > 0
            else LoopChange.RELAX_VALIDATION
        )
        key = DialKey(task_type, Dial.BAR, "")
        told = f"confidence_adjustment {wishes.confidence_adjustment:g} x learning rate {rate:g}"
        step = wishes.confidence_adjustment * rate
        yield _wished(said, key, change, step, told, evidence, dials, rules)
    if wishes.trust_delta:
        told = f"trust_delta {wishes.trust_delta:g} x learning rate {rate:g}"
        for subject in (said.output_producer, ""):
            key = DialKey(task_type, Dial.TRUST, subject)
            if said.event.producer == said.output_producer:
                why = f"{told}: a producer does not move trust by feedback on its own outputs"
                yield _refused(said, key, LoopChange.ADJUST_TRUST, why, dials)
            else:
                step = wishes.trust_delta * rate
                yield _wished(
                    said, key, LoopChange.ADJUST_TRUST, step, told, evidence, dials, rules
                )
    if wishes.mood_adjustment is not None:
        mood = known_mood(wishes.mood_adjustment, rules.moods)
        key = DialKey(task_type, Dial.STYLE, mood or "")
        if mood is None:
            why = f"no such mood is allowed; allowed are {', '.join(sorted(rules.moods))}"
            yield _refused(said, key, LoopChange.ADJUST_CONTENT_STYLE, why, dials)
        else:
            told = f"mood_adjustment {mood} x learning rate {rate:g}"
            yield _wished(
                said, key, LoopChange.ADJUST_CONTENT_STYLE, rate, told, evidence, dials, rules
            )


def _wished(
    said: Said,
    key: DialKey,
    change: LoopChange,
    step: float,
    told: str,
    evidence: Evidence,
    dials: Dials,
    rules: FeedbackRules,
) -> Effect:
    if not evidence.enough:
        why = f"{told}: too little evidence, {evidence}"
        return _refused(said, key, change, why, dials)
    by = said.event.producer
    before, room = dials.values.get(key, 0.0), dials.room(key, by, rules)
    after = turned(before, step, room, rules.bounds(key.dial))
    if after == before:
        full = "that is as far as it goes" if room >= abs(step) else "the day's share is used up"
        return _refused(said, key, change, f"{told}: {full}", dials)
    if abs(after - before) < abs(step) - 1e-9:
        told += f", cut to {after - before:+.3f}"
    return Effect(said.feedback_id, key, change, before, after, told, by)


def _refused(said: Said, key: DialKey, change: LoopChange, why: str, dials: Dials) -> Effect:
    value = dials.values.get(key, 0.0)
    reason = f"nothing done: {why}"
    return Effect(said.feedback_id, key, change, value, value, reason, said.event.producer)


# --- evidence -------------------------------------------------------------------------


def _by_evidence(
    said: Said,
    evidence: Evidence,
    memory: Memory,
    dials: Dials,
    others: Sequence[float],
    rules: FeedbackRules,
) -> Iterator[Effect]:
    """What the evidence asks for, where enough of it is new since that was last done."""
    task_type = said.event.task_type
    for change, dial, subject, step, told in _asked_for(task_type, evidence, dials, others, rules):
        wanted = rules.min_feedback * PATIENCE.get(change, 1)
        if change in memory.acted_at and memory.n - memory.acted_at[change] < wanted:
            continue
        key = DialKey(task_type, dial, subject)
        before = dials.values.get(key, 0.0)
        after = turned(before, step, dials.room(key, "", rules), rules.bounds(dial))
        if after != before:
            yield Effect(said.feedback_id, key, change, before, after, told)


def _asked_for(
    task_type: str,
    evidence: Evidence,
    dials: Dials,
    others: Sequence[float],
    rules: FeedbackRules,
) -> Iterator[tuple[LoopChange, Dial, str, float, str]]:
    """Change, dial, subject, step and reason of what the evidence asks for."""
    means, rate = evidence.means, rules.learning_rate
    of_producers = f"of {evidence.producers} producers"
    told = f"mean score {evidence.score:+.2f} {of_producers}"
    several = len(means) >= 2
    if evidence.score <= LOW and (several or Signal.APPROVAL in means):
        yield (
            LoopChange.INCREASE_VALIDATION_STRICTNESS,
            Dial.BAR,
            "",
            -rate * STRICTER * evidence.score,
            f"{told} <= {LOW}",
        )
        if others and (average := sum(others) / len(others)) >= MUCH_BETTER:
            yield (
                LoopChange.BOOST_TASK_WEIGHT,
                Dial.WEIGHT,
                "",
                -rate * BOOST * evidence.score,
                f"{told} lags behind the other task types' {average:+.2f}",
            )
    if evidence.score >= HIGH and several:
        yield (
            LoopChange.RELAX_VALIDATION,
            Dial.BAR,
            "",
            -rate * LAXER * evidence.score,
            f"{told} >= {HIGH}",
        )
        if (rating := means.get(Signal.RATING, 0.0)) >= HIGH:
            yield (
                LoopChange.BOOST_TASK_WEIGHT,
                Dial.WEIGHT,
                "",
                rate * BOOST * rating,
                f"mean rating {rating:+.2f} {of_producers} >= {HIGH}, and {told}",
            )
    engagement = means.get(Signal.ENGAGEMENT, 0.0)
    if engagement <= UNENGAGED and several:
        leading = leading_mood(dials.style(task_type), rules.moods)
        if leading is None:
            return
        yield (
            LoopChange.ADJUST_CONTENT_STYLE,
            Dial.STYLE,
            leading,
            rate * LESS_OF_IT * engagement,
            f"engagement {engagement:+.2f} {of_producers} <= {UNENGAGED}, with the mood {leading}",
        )


# --- what is remembered ---------------------------------------------------------------


def _compared(
    signal: Signal, name: str, value: float, memory: Memory, rules: FeedbackRules, now: datetime
) -> float | None:
    """What a metric says, in (-1, 1); its value joins its scale. None when it does not count."""
    key = f"{signal}/{name}"
    if key not in memory.scales and not _has_place(name, memory, rules, now):
        return None
    scale = memory.scales.get(key, MetricScale())
    memory.scales[key] = scale.joined(value, now)
    compared = scale.compared(value)
    return -compared if compared is not None and name in rules.lower_is_better else compared


def _has_place(name: str, memory: Memory, rules: FeedbackRules, now: datetime) -> bool:
    """Whether a new metric is counted; one that was not heard for long may have to go for it."""
    if name in rules.metrics:
        return True
    learned = [key for key in memory.scales if key.partition("/")[2] not in rules.metrics]
    if len(learned) < rules.learned_metrics:
        return True
    for key in learned:
        heard_at = memory.scales[key].heard_at
        if heard_at is not None and now - heard_at > METRIC_STALE:
            del memory.scales[key]
            return True
    return False


def _time(at: int) -> datetime:
    return EPOCH + timedelta(microseconds=at)


def effect_in_words(effect: Effect) -> str:
    """An effect as one line for people."""
    dial = effect.key.dial
    of = f" of {effect.key.subject}" if effect.key.subject else ""
    if not effect.moved:
        return f"{effect.change}: {effect.reason}"
    before, after = natural(dial, effect.before), natural(dial, effect.after)
    return f"{effect.change}: {dial}{of} {before:.3f} -> {after:.3f} ({effect.reason})"
