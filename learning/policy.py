"""Judge an output: may it train, must it wait, or is it a negative?

Pure: an event's own words, what people said of it, and the validators' findings
in; a verdict with its reason in words out. The truth table is `judge`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

from learning.lifecycle import EventState


@dataclass(frozen=True)
class Policy:
    """The bars that an output has to clear. Confidences are in [0, 1]."""

    min_confidence: float = 0.7
    enable_auto_approval: bool = False
    feedback_threshold: float = 0.7
    hold: timedelta = timedelta(days=7)
    offsets: Mapping[str, float] = field(default_factory=dict)
    """What feedback has added to both bars, by task type; docs/feedback.md."""
    distrusted: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By task type and producer, their trust where it is too little; with the producer "" of
    the task type as a whole."""
    _known: dict[tuple[float, str], tuple[float, str]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def bar(self, configured: float, task_type: str) -> float:
        """A configured bar as it is in force for a task type, in [0, 1]."""
        return self.bar_in_words(configured, task_type)[0]

    def bar_in_words(self, configured: float, task_type: str) -> tuple[float, float | str]:
        """The same, and what a reason says of it: the configured one too, where it is another.

        Put into words once: it is asked for each event.
        """
        if task_type not in self.offsets:
            return configured, configured
        known = self._known.get((configured, task_type))
        if known is None:
            bar = round(max(0.0, min(1.0, configured + self.offsets[task_type])), 3)
            known = bar, f"{bar} after feedback (configured: {configured})"
            self._known[configured, task_type] = known
        return known


class Verdict(NamedTuple):
    """What becomes of an event, why, and whether a person stands behind it."""

    state: EventState
    reason: str
    by_human: bool


class Evidence(NamedTuple):
    """What is known of an output when it is judged.

    `stated` is the producer's own `approved`; `people` are the `approved` values of
    the feedback that named it, in any order.
    """

    stated: bool | None
    confidence: float | None
    people: tuple[bool, ...] = ()
    task_type: str = ""
    producer: str = ""


def judge(evidence: Evidence, findings: Sequence[str], policy: Policy) -> Verdict:
    """The truth table of LP1 and LP2.

    One "no" from anybody rejects, so the order in which verdicts arrive does not
    matter. A person's "yes" in feedback accepts whatever the confidence was. The
    producer's own "yes" needs the bar when a confidence came with it, and the trust of those
    who gave feedback. `findings` are the complaints of the validators: an output that would
    train is quarantined by one.
    """
    stated, people = evidence.stated, evidence.people
    if stated is False or False in people:
        who = "the producer" if stated is False else "feedback"
        return Verdict(EventState.REJECTED, f"{who} said it is not approved", by_human=True)

    accepted = _acceptance(evidence, policy)
    if findings and accepted.state is EventState.QUEUED:
        return Verdict(EventState.QUARANTINED, "; ".join(findings), by_human=accepted.by_human)
    return accepted


def _acceptance(evidence: Evidence, policy: Policy) -> Verdict:
    stated, confidence, people, task_type, _ = evidence
    if people:
        return Verdict(EventState.QUEUED, "approved by feedback", by_human=True)
    if task_type in policy.distrusted:
        doubt = _doubt(evidence, policy.distrusted[task_type])
        if doubt is not None:
            return Verdict(EventState.HELD, f"{doubt}: waits for a verdict", by_human=False)
    if stated is True:
        if confidence is None:
            return Verdict(EventState.QUEUED, "approved, no confidence given", by_human=True)
        bar, shown = policy.bar_in_words(policy.min_confidence, task_type)
        if confidence >= bar:
            return Verdict(
                EventState.QUEUED, f"approved, confidence {confidence} >= {shown}", by_human=True
            )
        return Verdict(
            EventState.HELD,
            f"approved, but confidence {confidence} < {shown}: waits for a verdict",
            by_human=False,
        )
    if not policy.enable_auto_approval:
        return Verdict(EventState.HELD, "no verdict yet, and auto-approval is off", by_human=False)
    if confidence is None:
        return Verdict(
            EventState.HELD, "no verdict and no confidence: waits for a verdict", by_human=False
        )
    bar, shown = policy.bar_in_words(policy.feedback_threshold, task_type)
    if confidence >= bar:
        return Verdict(
            EventState.QUEUED, f"auto-approved, confidence {confidence} >= {shown}", by_human=False
        )
    return Verdict(
        EventState.HELD,
        f"no verdict, confidence {confidence} < {shown}: waits for a verdict",
        by_human=False,
    )


def _doubt(evidence: Evidence, distrusted: Mapping[str, float]) -> str | None:
    """Why an output that no feedback approves is not taken on its producer's word, if so.

    `distrusted` are those of its task type.
    """
    stated, _, _, task_type, producer = evidence
    trust = distrusted.get(producer)
    if trust is not None:
        word = "approved" if stated else "no verdict"
        return f"{word}, but feedback left {producer} a trust of {trust} here"
    trust = distrusted.get("")
    if trust is not None and stated is None:
        return f"no verdict, and feedback left {task_type} a trust of {trust}"
    return None


def rejudge(current: EventState, verdict: Verdict) -> EventState | None:
    """The state that a fresh verdict moves an unsealed event to, or None for no move.

    A "no" withdraws what was queued and rejects what waited. A "yes" queues only what
    was held: what a validator quarantined needs an operator's release.
    """
    if verdict.state is EventState.REJECTED:
        if current is EventState.QUEUED:
            return EventState.WITHDRAWN
        if current in (EventState.HELD, EventState.QUARANTINED):
            return EventState.REJECTED
    if current is EventState.HELD and verdict.state in (
        EventState.QUEUED,
        EventState.QUARANTINED,
    ):
        return verdict.state
    return None


def rejudge_by_hand(current: EventState, verdict: Verdict) -> EventState | None:
    """The same for an operator's verdict, whose "yes" also releases what a validator stopped."""
    if current is EventState.QUARANTINED and verdict.state is EventState.QUEUED:
        return EventState.QUEUED
    return rejudge(current, verdict)


def confirms(current: EventState, by_human: bool, verdict: Verdict) -> bool:
    """Whether a person's "yes" now stands behind an output that was queued without one.

    It stays queued; but what a person approved may judge, and not only train.
    """
    return (
        current is EventState.QUEUED
        and not by_human
        and verdict.state is EventState.QUEUED
        and verdict.by_human
    )
