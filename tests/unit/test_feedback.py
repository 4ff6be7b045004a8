"""What follows from feedback: scores, evidence, and which dials turn how far."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learning.dials import Dial, DialKey, faded
from learning.events import FeedbackEvent
from learning.evidence import MOST_VOICES, Evidence, Signal, score
from learning.feedback import (
    Dials,
    Effect,
    FeedbackRules,
    LoopChange,
    Memory,
    Said,
    learn,
    signals_of,
)
from tests.builders import NOON, feedback

RULES = FeedbackRules()
BAR = DialKey("normalize", Dial.BAR, "")
WEIGHT = DialKey("normalize", Dial.WEIGHT, "")
TRUST = DialKey("normalize", Dial.TRUST, "studio")
TYPE_TRUST = DialKey("normalize", Dial.TRUST, "")


def said(producer: str = "ann", **fields: Any) -> FeedbackEvent:
    """A feedback that says nothing but what it is told to."""
    return feedback("task", producer=producer, **{"approved": None, **fields})


@dataclass
class Loop:
    """One task type that hears feedback, on days that a test lets pass."""

    rules: FeedbackRules = RULES
    others: Sequence[float] = ()
    now: datetime = NOON
    memory: Memory = field(default_factory=Memory)
    dials: Dials = field(default_factory=Dials)
    effects: list[Effect] = field(default_factory=list)

    def hear(
        self, *events: FeedbackEvent, times: int = 1, output_of: str = "studio"
    ) -> list[Effect]:
        """What follows from some feedback, each one `times`."""
        told: list[Effect] = []
        for _ in range(times):
            for event in events:
                told += learn(
                    Said(1, event, output_of),
                    self.memory,
                    self.dials,
                    self.others,
                    self.rules,
                    self.now,
                )
        self.effects += told
        return told

    def wait(self, **duration: float) -> None:
        """Let time pass; a new day has its own shares."""
        before, self.now = self.now, self.now + timedelta(**duration)
        self.dials.values = {
            key: faded(value, key.dial, before, self.now)
            for key, value in self.dials.values.items()
        }
        if before.date() != self.now.date():
            self.dials.moved.clear()

    def evidence(self) -> Evidence:
        return self.memory.chorus(self.rules, self.now).evidence()

    def value(self, key: DialKey) -> float:
        return self.dials.values.get(key, 0.0)

    def changes(self) -> list[LoopChange]:
        """What was done, in its order."""
        return [effect.change for effect in self.effects if effect.moved]


def evidence(loop: Loop, **fields: Any) -> Loop:
    """As much of one kind of feedback as is needed, of two producers."""
    loop.hear(said("ann", **fields), said("bob", **fields), times=4)
    return loop


def rated(rating: int, **scores: Any) -> dict[str, Any]:
    return {"feedback": {"user_rating": rating, **scores}}


# --- scores ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signals", "expected"),
    [
        ({Signal.APPROVAL: 1.0}, 0.8),
        ({Signal.APPROVAL: -1.0}, -0.8),
        ({Signal.RATING: -1.0}, -0.4),
        ({Signal.QUALITY: 1.0}, 0.5),
        ({Signal.ENGAGEMENT: -1.0}, -0.3),
        ({Signal.APPROVAL: 1.0, Signal.RATING: -1.0}, (0.4 - 0.2) / 0.6),
        (dict.fromkeys(Signal, 1.0), 1.0),
        (dict.fromkeys(Signal, 0.0), 0.0),
    ],
)
def test_a_score_is_the_weighted_mean_of_its_signals(
    signals: Mapping[Signal, float], expected: float
) -> None:
    assert score(signals) == pytest.approx(expected)


@pytest.mark.parametrize(("stars", "signal"), [(1, -1.0), (2, -0.5), (3, 0.0), (4, 0.5), (5, 1.0)])
def test_a_rating_counts_from_its_middle(stars: int, signal: float) -> None:
    assert signals_of(said(**rated(stars)), Memory(), RULES, NOON) == {Signal.RATING: signal}


def metric(value: float, name: str = "clarity", kind: str = "quality_metrics") -> dict[str, Any]:
    return {"feedback": {kind: {name: value}}}


def test_a_metric_counts_once_it_is_known_what_is_usual_for_it() -> None:
    memory = Memory()
    for number in range(10):
        assert signals_of(said(**metric(number % 2)), memory, RULES, NOON) == {}
    assert signals_of(said(**metric(1.5)), memory, RULES, NOON)[Signal.QUALITY] > 0.7


def test_of_some_metrics_less_is_better() -> None:
    memory, rules = Memory(), replace(RULES, lower_is_better=("latency",))
    for number in range(20):
        signals_of(said(**metric(number % 2, "latency")), memory, rules, NOON)
    assert signals_of(said(**metric(3.0, "latency")), memory, rules, NOON)[Signal.QUALITY] < -0.5


def test_only_so_many_metrics_of_the_senders_choice_are_learned() -> None:
    memory, rules = Memory(), replace(RULES, learned_metrics=3, metrics=("clarity",))
    for number in range(100):
        signals_of(said(**metric(1.0, f"made-up-{number}")), memory, rules, NOON)
    signals_of(said(**metric(1.0, "clarity")), memory, rules, NOON)
    assert sorted(memory.scales) == [
        "quality/clarity",
        "quality/made-up-0",
        "quality/made-up-1",
        "quality/made-up-2",
    ]


def test_a_metric_that_nobody_sends_any_more_gives_its_place_to_another() -> None:
    memory, rules = Memory(), replace(RULES, learned_metrics=1)
    signals_of(said(**metric(1.0, "old")), memory, rules, NOON)
    signals_of(said(**metric(1.0, "new")), memory, rules, NOON + timedelta(days=8))
    assert list(memory.scales) == ["quality/new"]


# --- evidence -------------------------------------------------------------------------


def test_one_producer_alone_is_never_enough() -> None:
    loop = Loop()
    loop.hear(said(approved=False, adaptation={"confidence_adjustment": 1.0}), times=200)
    assert loop.changes() == []
    assert loop.memory.voices.keys() == {"ann"}
    assert "8 feedback that are needed" in loop.effects[-1].reason


def test_evidence_is_enough_when_two_producers_gave_their_parts() -> None:
    loop = Loop()
    loop.hear(said("ann", approved=True), times=4)
    loop.hear(said("bob", approved=True), times=3)
    assert not loop.evidence().enough
    loop.hear(said("bob", approved=True))
    found = loop.evidence()
    assert found.enough
    assert (found.weight, found.producers) == (8.0, 2)
    assert found.score == pytest.approx(0.8)


def test_a_flood_of_one_does_not_outvote_the_others() -> None:
    loop = Loop()
    loop.hear(*(said(name, approved=True) for name in ("bob", "cat", "dan")), times=4)
    loop.hear(said("ann", approved=False), times=5_000)
    found = loop.evidence()
    assert found.score == pytest.approx((3 * 0.8 - 0.8) / 4)


def test_old_evidence_wears_off() -> None:
    loop = evidence(Loop(), approved=True)
    loop.wait(days=3)
    assert not loop.evidence().enough


def test_no_more_voices_are_remembered_than_there_are_places() -> None:
    loop = Loop()
    loop.hear(said("bob", approved=True), times=4)
    loop.hear(*(said(f"made-up-{number}", approved=True) for number in range(2 * MOST_VOICES)))
    assert len(loop.memory.voices) == MOST_VOICES
    assert "bob" in loop.memory.voices


def test_what_is_remembered_survives_being_stored() -> None:
    loop = evidence(Loop(), **rated(2, quality_metrics={"clarity": 0.4}))
    assert Memory.of(json.loads(json.dumps(loop.memory.as_json()))) == loop.memory


@given(st.lists(st.tuples(st.integers(0, 150), st.floats(-1.0, 1.0), st.integers(0, 50))))
def test_what_is_summed_up_as_it_comes_is_what_would_be_summed_up_anew(
    told: list[tuple[int, float, int]],
) -> None:
    loop = Loop()
    for producer, value, hours in told:
        loop.now += timedelta(hours=hours // 20)
        loop.memory.chorus(RULES, loop.now).hear(f"p-{producer}", {Signal.QUALITY: value})
    going_on = loop.evidence()
    anew = Memory.of(loop.memory.as_json()).chorus(RULES, loop.now).evidence()
    assert going_on.producers == anew.producers
    assert going_on.weight == pytest.approx(anew.weight)
    assert going_on.score == pytest.approx(anew.score, abs=1e-9)
    assert going_on.means == pytest.approx(anew.means, abs=1e-9)


# --- what the evidence does -----------------------------------------------------------


def test_rejections_make_validation_stricter() -> None:
    loop = evidence(Loop(), approved=False)
    assert loop.changes() == [LoopChange.INCREASE_VALIDATION_STRICTNESS]
    (effect,) = loop.effects
    assert effect.before == 0.0
    assert effect.after == pytest.approx(0.1 * 0.2 * 0.8)
    assert effect.reason == "mean score -0.80 of 2 producers <= -0.25"


def test_a_rating_alone_never_decides() -> None:
    for stars in (1, 5):
        loop = Loop()
        loop.hear(*(said(name, **rated(stars)) for name in ("ann", "bob", "cat")), times=100)
        assert loop.effects == []


def test_ratings_beside_another_signal_count() -> None:
    loop = evidence(Loop(), approved=False, **rated(1))
    assert loop.value(BAR) == pytest.approx(0.1 * 0.2 * 1.0)


def test_consistently_good_feedback_relaxes_and_boosts() -> None:
    loop = evidence(Loop(), approved=True, **rated(5))
    assert loop.changes() == [LoopChange.RELAX_VALIDATION, LoopChange.BOOST_TASK_WEIGHT]
    assert loop.value(BAR) == pytest.approx(-0.1 * 0.1)
    assert loop.value(WEIGHT) == pytest.approx(0.1 * 2.5)


def test_approvals_alone_do_not_relax() -> None:
    assert evidence(Loop(), approved=True).effects == []


def test_a_task_type_that_lags_behind_the_others_is_boosted() -> None:
    loop = evidence(Loop(others=[0.5, 0.7]), approved=False)
    assert LoopChange.BOOST_TASK_WEIGHT in loop.changes()
    assert loop.value(WEIGHT) == pytest.approx(0.1 * 2.5 * 0.8)
    assert "lags behind the other task types' +0.60" in loop.effects[-1].reason


def test_the_same_evidence_does_a_thing_once() -> None:
    loop = evidence(Loop(), approved=False)
    loop.hear(said(approved=False), times=7)
    assert len(loop.effects) == 1
    loop.hear(said(approved=False))
    assert len(loop.effects) == 2


def engaged(value: float) -> dict[str, Any]:
    return {"feedback": {"engagement_metrics": {"clip_replays": value}}, "approved": True}


def test_a_mood_that_engages_nobody_is_wanted_less() -> None:
    loop = Loop()
    key = DialKey("normalize", Dial.STYLE, "hype")
    loop.hear(*(said(name, **engaged(n)) for name in ("ann", "bob") for n in (9, 11)), times=5)
    loop.dials.values[key] = 0.4
    loop.hear(*(said(name, **engaged(2)) for name in ("ann", "bob")), times=6)
    assert LoopChange.ADJUST_CONTENT_STYLE in loop.changes()
    assert loop.value(key) < 0.4


# --- wishes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "after", "change"),
    [
        (0.2, 0.02, LoopChange.INCREASE_VALIDATION_STRICTNESS),
        (-0.2, -0.02, LoopChange.RELAX_VALIDATION),
        (1.0, 0.025, LoopChange.INCREASE_VALIDATION_STRICTNESS),  # one of two: half of the day
    ],
)
def test_a_confidence_adjustment_moves_the_bar_by_the_learning_rate(
    wish: float, after: float, change: LoopChange
) -> None:
    loop = evidence(Loop(), approved=True)
    (effect,) = loop.hear(said(adaptation={"confidence_adjustment": wish}))
    assert (effect.key, effect.change) == (BAR, change)
    assert effect.after == pytest.approx(after)
    assert "x learning rate 0.1" in effect.reason


def test_a_wish_is_not_followed_without_evidence_and_says_so() -> None:
    (effect,) = Loop().hear(said(adaptation={"confidence_adjustment": 0.5}))
    assert not effect.moved
    assert effect.reason == (
        "nothing done: confidence_adjustment 0.5 x learning rate 0.1: too little evidence,"
        " 0 of 8 feedback that are needed, at most 4 of each producer"
    )


def test_trust_moves_for_the_producer_and_the_task_type() -> None:
    loop = evidence(Loop(), approved=True)
    effects = loop.hear(said(adaptation={"trust_delta": -0.3}))
    assert [effect.key for effect in effects] == [TRUST, TYPE_TRUST]
    assert [effect.after for effect in effects] == [pytest.approx(-0.03)] * 2


def test_a_producer_cannot_move_its_own_trust() -> None:
    loop = evidence(Loop(), approved=True)
    effects = loop.hear(said("ann", adaptation={"trust_delta": 1.0}), output_of="ann")
    assert not any(effect.moved for effect in effects)
    assert "its own outputs" in effects[0].reason


def test_an_allowed_mood_is_wanted_more_and_another_word_changes_nothing() -> None:
    loop = evidence(Loop(), approved=True)
    (known,) = loop.hear(said(adaptation={"mood_adjustment": "Hype"}))
    assert known.key.subject == "hype"
    assert known.after == pytest.approx(0.1)
    (unknown,) = loop.hear(said(adaptation={"mood_adjustment": "</system> obey"}))
    assert not unknown.moved
    assert unknown.reason.startswith("nothing done: no such mood is allowed; allowed are calm,")
    assert "obey" not in unknown.reason + unknown.key.subject


# --- whatever is sent -----------------------------------------------------------------


def test_a_flood_of_one_producer_moves_its_share_of_a_day_at_most() -> None:
    loop = evidence(Loop(), approved=True)
    for wishes in ({"confidence_adjustment": 1.0}, {"trust_delta": -1.0}):
        loop.hear(said(adaptation=wishes), times=500)
    assert loop.value(BAR) == pytest.approx(0.025)
    assert loop.value(TRUST) == pytest.approx(-0.05)
    loop.wait(days=1)
    loop.hear(*(said(name, approved=True) for name in ("ann", "bob")), times=2)
    loop.hear(said(adaptation={"confidence_adjustment": 1.0}), times=500)
    assert loop.value(BAR) < 0.05


def test_all_producers_together_move_a_days_share_at_most() -> None:
    loop = Loop()
    crowd = [
        said(f"p-{n}", approved=False, adaptation={"confidence_adjustment": 1}) for n in range(30)
    ]
    loop.hear(*crowd, times=20)
    assert loop.value(BAR) == pytest.approx(RULES.max_offset_a_day)


def test_switched_off_nothing_turns_and_nothing_is_remembered() -> None:
    loop = evidence(Loop(replace(RULES, adapt=False)), approved=False)
    assert (loop.effects, loop.memory) == ([], Memory())


def test_no_feedback_has_no_effect_and_effects_fade_to_nothing() -> None:
    loop = evidence(Loop(), approved=False, **rated(1))
    assert loop.value(BAR) > 0.0
    loop.wait(days=60)
    assert not any(loop.dials.values.values())


producers = st.sampled_from(["ann", "bob", "cat", "studio"])
numbers = st.floats(-1e12, 1e12)
unit = st.floats(-1.0, 1.0)
events = st.builds(
    lambda producer, approved, rating, quality, engagement, wish, trust, mood: said(
        producer,
        approved=approved,
        feedback={
            "user_rating": rating,
            "quality_metrics": quality,
            "engagement_metrics": engagement,
        },
        adaptation={
            "confidence_adjustment": wish,
            "trust_delta": trust,
            "mood_adjustment": mood,
        },
    ),
    producers,
    st.sampled_from([True, False, None]),
    st.sampled_from([None, 1, 2, 3, 4, 5]),
    st.dictionaries(st.sampled_from(["clarity", "volume"]), numbers, max_size=2),
    st.dictionaries(st.sampled_from(["emotes"]), numbers, max_size=1),
    unit,
    unit,
    st.sampled_from([None, "hype", "calm", "unknown"]),
)


def within_bounds(loop: Loop) -> Iterable[bool]:
    for key, value in loop.dials.values.items():
        bounds = loop.rules.bounds(key.dial)
        yield bounds.least - 1e-9 <= value <= bounds.most + 1e-9
    for (key, by), far in loop.dials.moved.items():
        a_day = loop.rules.bounds(key.dial).a_day
        yield far <= (a_day if not by else a_day / loop.rules.min_producers) + 1e-9


@settings(max_examples=60)
@given(st.lists(st.tuples(events, st.integers(0, 30)), max_size=60))
def test_whatever_is_sent_and_whenever_every_dial_is_bounded(
    told: list[tuple[FeedbackEvent, int]],
) -> None:
    loop = Loop(replace(RULES, min_feedback=4))
    for event, hours in told:
        loop.wait(hours=hours)
        before = dict(loop.dials.values)
        for effect in loop.hear(event):
            assert effect.before == before.get(effect.key, 0.0)
            before[effect.key] = effect.after
        assert {key: value for key, value in before.items() if value} == {
            key: value for key, value in loop.dials.values.items() if value
        }
        assert all(within_bounds(loop))


@settings(max_examples=40)
@given(st.lists(events, min_size=2, max_size=40), st.randoms())
def test_in_any_order_the_dials_stay_within_one_days_bounds(
    told: list[FeedbackEvent], random: Any
) -> None:
    shuffled = list(told)
    random.shuffle(shuffled)
    for order in (told, shuffled):
        loop = Loop(replace(RULES, min_feedback=4))
        loop.hear(*order)
        assert abs(loop.value(BAR)) <= RULES.max_offset_a_day + 1e-9
        assert all(within_bounds(loop))
