"""Judge an output: may it train, must it wait, or is it a negative?

Pure: an event's own words, what people said of it, and the validators' findings
in; a verdict with its reason in words out. The truth table is `judge`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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


def judge(evidence: Evidence, findings: Sequence[str], policy: Policy) -> Verdict:
    """The truth table of LP1 and LP2.

    One "no" from anybody rejects, so the order in which verdicts arrive does not
    matter. A person's "yes" in feedback accepts whatever the confidence was. The
    producer's own "yes" needs the bar when a confidence came with it. `findings` are
    the complaints of the validators: an output that would train is quarantined by one.
    """
    stated, _, people = evidence
    if stated is False or False in people:
        who = "the producer" if stated is False else "feedback"
        return Verdict(EventState.REJECTED, f"{who} said it is not approved", by_human=True)

    accepted = _acceptance(evidence, policy)
    if findings and accepted.state is EventState.QUEUED:
        return Verdict(EventState.QUARANTINED, "; ".join(findings), by_human=accepted.by_human)
    return accepted


def _acceptance(evidence: Evidence, policy: Policy) -> Verdict:
    stated, confidence, people = evidence
    if people:
        return Verdict(EventState.QUEUED, "approved by feedback", by_human=True)
    if stated is True:
        if confidence is None:
            return Verdict(EventState.QUEUED, "approved, no confidence given", by_human=True)
        bar = policy.min_confidence
        if confidence >= bar:
            return Verdict(
                EventState.QUEUED, f"approved, confidence {confidence} >= {bar}", by_human=True
            )
        return Verdict(
            EventState.HELD,
            f"approved, but confidence {confidence} < {bar}: waits for a verdict",
            by_human=False,
        )
    if not policy.enable_auto_approval:
        return Verdict(EventState.HELD, "no verdict yet, and auto-approval is off", by_human=False)
    if confidence is None:
        return Verdict(
            EventState.HELD, "no verdict and no confidence: waits for a verdict", by_human=False
        )
    if confidence >= policy.feedback_threshold:
        return Verdict(
            EventState.QUEUED,
            f"auto-approved, confidence {confidence} >= {policy.feedback_threshold}",
            by_human=False,
        )
    return Verdict(
        EventState.HELD,
        f"no verdict, confidence {confidence} < {policy.feedback_threshold}: waits for a verdict",
        by_human=False,
    )


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
