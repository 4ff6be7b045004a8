"""The truth table of LP1 and LP2, and what a verdict that comes later changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.lifecycle import EventState
from learning.policy import Evidence, Policy, Verdict, confirms, judge, rejudge

QUEUED, REJECTED = EventState.QUEUED, EventState.REJECTED
HELD, QUARANTINED = EventState.HELD, EventState.QUARANTINED

AUTO = Policy(min_confidence=0.7, enable_auto_approval=True, feedback_threshold=0.8)
BY_HAND = Policy(min_confidence=0.7, enable_auto_approval=False, feedback_threshold=0.8)
JUST_BELOW = 0.7 - 1e-9

YES, NO = (True,), (False,)
NOBODY: tuple[bool, ...] = ()

TRUTH_TABLE = [
    # stated, confidence, people, policy -> state, by a human, words of the reason
    (False, None, NOBODY, BY_HAND, REJECTED, True, "the producer said it is not approved"),
    (False, 1.0, NOBODY, AUTO, REJECTED, True, "the producer said it is not approved"),
    (False, 1.0, YES, AUTO, REJECTED, True, "the producer said it is not approved"),
    (False, None, NO, AUTO, REJECTED, True, "the producer said it is not approved"),
    (True, 1.0, NO, AUTO, REJECTED, True, "feedback said it is not approved"),
    (None, 1.0, NO, AUTO, REJECTED, True, "feedback said it is not approved"),
    (None, None, (True, False), BY_HAND, REJECTED, True, "feedback said it is not approved"),
    (True, None, NOBODY, BY_HAND, QUEUED, True, "approved, no confidence given"),
    (True, 0.7, NOBODY, BY_HAND, QUEUED, True, "approved, confidence 0.7 >= 0.7"),
    (True, 1.0, NOBODY, BY_HAND, QUEUED, True, "approved, confidence 1.0 >= 0.7"),
    (True, 0.0, NOBODY, AUTO, HELD, False, "approved, but confidence 0.0 < 0.7"),
    (True, JUST_BELOW, NOBODY, AUTO, HELD, False, f"approved, but confidence {JUST_BELOW} < 0.7"),
    (True, 0.0, YES, BY_HAND, QUEUED, True, "approved by feedback"),
    (True, None, YES, BY_HAND, QUEUED, True, "approved by feedback"),
    (None, None, NOBODY, BY_HAND, HELD, False, "no verdict yet, and auto-approval is off"),
    (None, 1.0, NOBODY, BY_HAND, HELD, False, "no verdict yet, and auto-approval is off"),
    (None, None, NOBODY, AUTO, HELD, False, "no verdict and no confidence"),
    (None, 0.7, NOBODY, AUTO, HELD, False, "no verdict, confidence 0.7 < 0.8"),
    (None, 0.8, NOBODY, AUTO, QUEUED, False, "auto-approved, confidence 0.8 >= 0.8"),
    (None, 1.0, NOBODY, AUTO, QUEUED, False, "auto-approved, confidence 1.0 >= 0.8"),
    (None, 0.0, YES, BY_HAND, QUEUED, True, "approved by feedback"),
    (None, None, YES, AUTO, QUEUED, True, "approved by feedback"),
]


@pytest.mark.parametrize(
    ("stated", "confidence", "people", "policy", "state", "by_human", "words"), TRUTH_TABLE
)
def test_the_truth_table(
    stated: bool | None,
    confidence: float | None,
    people: tuple[bool, ...],
    policy: Policy,
    state: EventState,
    by_human: bool,
    words: str,
) -> None:
    verdict = judge(Evidence(stated, confidence, people), (), policy)

    assert (verdict.state, verdict.by_human) == (state, by_human)
    assert words in verdict.reason


@pytest.mark.parametrize(
    ("stated", "confidence", "people", "policy", "state", "by_human", "words"), TRUTH_TABLE
)
def test_a_validator_stops_exactly_what_would_have_trained(
    stated: bool | None,
    confidence: float | None,
    people: tuple[bool, ...],
    policy: Policy,
    state: EventState,
    by_human: bool,
    words: str,
) -> None:
    findings = ("not_empty: the output is blank", "length: too long")

    verdict = judge(Evidence(stated, confidence, people), findings, policy)

    if state is QUEUED:
        assert verdict.state is QUARANTINED
        assert verdict.reason == "not_empty: the output is blank; length: too long"
    else:
        assert verdict.state is state
    assert verdict.by_human == by_human


confidences = st.none() | st.floats(0, 1)
policies = st.builds(
    Policy,
    min_confidence=st.floats(0, 1),
    enable_auto_approval=st.booleans(),
    feedback_threshold=st.floats(0, 1),
)


@given(
    stated=st.none() | st.booleans(),
    confidence=confidences,
    people=st.lists(st.booleans(), max_size=6),
    policy=policies,
    data=st.data(),
)
def test_the_order_in_which_people_speak_does_not_matter(
    stated: bool | None,
    confidence: float | None,
    people: list[bool],
    policy: Policy,
    data: st.DataObject,
) -> None:
    shuffled = data.draw(st.permutations(people))
    distinct = sorted(set(people))

    verdict = judge(Evidence(stated, confidence, tuple(people)), (), policy)

    assert judge(Evidence(stated, confidence, tuple(shuffled)), (), policy) == verdict
    assert judge(Evidence(stated, confidence, tuple(distinct)), (), policy) == verdict


@given(
    stated=st.none() | st.booleans(),
    confidence=confidences,
    people=st.lists(st.booleans(), max_size=3),
    policy=policies,
    findings=st.lists(st.just("length: too long"), max_size=1),
)
def test_a_verdict_never_lies_about_who_gave_it(
    stated: bool | None,
    confidence: float | None,
    people: list[bool],
    policy: Policy,
    findings: list[str],
) -> None:
    verdict = judge(Evidence(stated, confidence, tuple(people)), findings, policy)

    assert verdict.reason
    assert verdict.state in {QUEUED, REJECTED, HELD, QUARANTINED}
    if verdict.by_human:
        assert stated is not None or people
    if verdict.state is QUEUED:
        assert not findings
        assert stated is not False
        assert False not in people


def test_the_reason_never_rounds_a_confidence_up_to_its_bar() -> None:
    verdict = judge(Evidence(True, 0.69999999), (), Policy())

    assert verdict.state is HELD
    assert "0.69999999 < 0.7" in verdict.reason


@pytest.mark.parametrize(
    ("current", "verdict", "moved_to"),
    [
        (QUEUED, REJECTED, EventState.WITHDRAWN),
        (HELD, REJECTED, REJECTED),
        (QUARANTINED, REJECTED, REJECTED),
        (HELD, QUEUED, QUEUED),
        (HELD, QUARANTINED, QUARANTINED),
        (HELD, HELD, None),
        (QUEUED, QUEUED, None),
        (QUEUED, HELD, None),
        (QUEUED, QUARANTINED, None),
        (QUARANTINED, QUEUED, None),
        (QUARANTINED, HELD, None),
        (QUARANTINED, QUARANTINED, None),
        *(
            (final, verdict, None)
            for final in (
                EventState.SEALED,
                EventState.REJECTED,
                EventState.EXPIRED,
                EventState.WITHDRAWN,
            )
            for verdict in (QUEUED, REJECTED, HELD, QUARANTINED)
        ),
    ],
)
def test_what_a_fresh_verdict_does_to_an_event(
    current: EventState, verdict: EventState, moved_to: EventState | None
) -> None:
    assert rejudge(current, Verdict(verdict, "said so", by_human=True)) is moved_to


@pytest.mark.parametrize(
    ("current", "by_human", "verdict", "confirmed"),
    [
        (QUEUED, False, Verdict(QUEUED, "yes", by_human=True), True),
        (QUEUED, True, Verdict(QUEUED, "yes", by_human=True), False),
        (QUEUED, False, Verdict(QUEUED, "auto", by_human=False), False),
        (QUEUED, False, Verdict(REJECTED, "no", by_human=True), False),
        (HELD, False, Verdict(QUEUED, "yes", by_human=True), False),
        (EventState.SEALED, False, Verdict(QUEUED, "yes", by_human=True), False),
    ],
)
def test_a_persons_yes_confirms_only_what_the_loop_had_queued_by_itself(
    current: EventState, by_human: bool, verdict: Verdict, confirmed: bool
) -> None:
    assert confirms(current, by_human, verdict) is confirmed


# --- what feedback has moved ------------------------------------------------------------

MOVED = Policy(
    enable_auto_approval=True,
    feedback_threshold=0.8,
    offsets={"audio": 0.05, "game": -0.1, "route": 0.5},
    distrusted={"audio": {"bot": 0.25}, "game": {"": 0.2}},
)


@pytest.mark.parametrize(
    ("task_type", "stated", "confidence", "state", "words"),
    [
        (
            "audio",
            True,
            0.72,
            HELD,
            "approved, but confidence 0.72 < 0.75 after feedback (configured: 0.7): waits",
        ),
        ("audio", True, 0.75, QUEUED, "confidence 0.75 >= 0.75 after feedback (configured: 0.7)"),
        ("audio", None, 0.83, HELD, "no verdict, confidence 0.83 < 0.85 after feedback"),
        ("audio", None, 0.85, QUEUED, "0.85 >= 0.85 after feedback (configured: 0.8)"),
        ("game", True, 0.6, QUEUED, "approved, confidence 0.6 >= 0.6 after feedback"),
        ("route", True, 1.0, QUEUED, "1.0 >= 1.0 after feedback"),
        ("coding", True, 0.7, QUEUED, "approved, confidence 0.7 >= 0.7"),
    ],
)
def test_both_bars_move_with_the_offset_of_their_task_type(
    task_type: str, stated: bool | None, confidence: float, state: EventState, words: str
) -> None:
    verdict = judge(Evidence(stated, confidence, (), task_type, "studio"), (), MOVED)
    assert verdict.state is state
    assert words in verdict.reason


@pytest.mark.parametrize(
    ("task_type", "producer", "stated", "people", "state", "words"),
    [
        (
            "audio",
            "bot",
            True,
            NOBODY,
            HELD,
            "approved, but feedback left bot a trust of 0.25 here: waits for a verdict",
        ),
        ("audio", "bot", None, NOBODY, HELD, "no verdict, but feedback left bot a trust of 0.25"),
        ("audio", "bot", False, NOBODY, REJECTED, "the producer said"),
        ("audio", "bot", True, YES, QUEUED, "approved by feedback"),
        ("audio", "studio", True, NOBODY, QUEUED, "approved"),
        ("coding", "bot", True, NOBODY, QUEUED, "approved"),
        ("game", "studio", None, NOBODY, HELD, "no verdict, and feedback left game a trust of 0.2"),
        ("game", "studio", True, NOBODY, QUEUED, "approved"),
    ],
)
def test_what_a_distrusted_producer_says_needs_a_person(
    task_type: str,
    producer: str,
    stated: bool | None,
    people: tuple[bool, ...],
    state: EventState,
    words: str,
) -> None:
    verdict = judge(Evidence(stated, 0.99, people, task_type, producer), (), MOVED)
    assert verdict.state is state
    assert words in verdict.reason
    assert verdict.by_human or state is HELD
