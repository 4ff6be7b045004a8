"""The rules of the firewall, on plain values."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learning.firewall import (
    FirewallRules,
    Kind,
    Looks,
    Relatives,
    Rule,
    Stop,
    examine,
    is_chance,
    learn,
)
from learning.likeness import BINS, band_keys, likeness, signature, words_of
from learning.task_memory import HOURS, MOST_LABELS, MOST_PRODUCERS, MOST_SUSPECTS, TaskMemory
from tests.builders import NOON, later, output

NOBODY = Relatives((), None, None, (), 0, 0)
TRAVEL = "train ticket station platform seat"
FOOD = "pasta cheese tomato oven spoon"
NAMES = ["ann", "bob", "cid", "dan", "eve", "fay", "gus", "hal", "ivy", "joe"]


def looks(
    prompt: str, answer: str, *, topic: str = "t", by_human: bool = True, **given: Any
) -> Looks:
    received_at = given.pop("at", NOON)
    event = output(prompt=prompt, output=answer, **given)
    return Looks.of(event, topic=topic, received_at=received_at, by_human=by_human)


def kind_of(look: Looks, event_id: int = 1, **fields: Any) -> Kind:
    told = {
        "producer": look.producer,
        "prompt_key": look.prompt_key,
        "answer_key": look.answer_key,
        "by_human": look.by_human,
        "signature": look.signature,
        "answer_signature": look.answer_signature,
    }
    return Kind(event_id, **{**told, **fields})


def with_kinds(field: str, *kinds: Kind) -> Relatives:
    return Relatives(**{**NOBODY._asdict(), field: kinds})


def tickets(n: int = 120) -> Iterable[Looks]:
    """Two labels, by the words of the prompt, from three producers."""
    for number in range(n):
        words = (TRAVEL, FOOD)[number % 2].split()
        one, other = words[number // 2 % 5], words[(number // 2 + 1 + number // 10 % 3) % 5]
        name = NAMES[number // 3 % 10]
        yield looks(
            f"{name} asks about {one} and {other} number {number}",
            ("travel", "food")[number % 2],
            producer=f"producer-{number % 3}",
        )


def answers(n: int = 120) -> Iterable[Looks]:
    """Free text that repeats most words of its prompt."""
    for number, (one, other) in zip(
        range(n), itertools.cycle(itertools.permutations(NAMES, 2)), strict=False
    ):
        yield looks(
            f"introduce {one} to {other} please {number}",
            f"{one} this is {other} guest {number}",
            producer=f"producer-{number % 3}",
        )


def memory_of(past: Iterable[Looks]) -> TaskMemory:
    memory = TaskMemory()
    for number, look in enumerate(past, start=1):
        learn(number, look, memory)
    return memory


def rule_of(found: Stop | None) -> Rule | None:
    return None if found is None else found.rule


# --- likeness ---------------------------------------------------------------------------


def test_texts_that_differ_in_a_word_of_fifty_are_alike_and_strangers_are_not() -> None:
    words = [f"word{n}" for n in range(50)]
    changed = [*words[:25], "another", *words[26:]]
    strange = [f"other{n}" for n in range(50)]
    mine = signature(words)
    assert likeness(mine, signature(words)) == 1.0
    assert likeness(mine, signature(changed)) > 0.75
    assert likeness(mine, signature(strange)) < 0.1
    assert set(band_keys("t", mine)) & set(band_keys("t", signature(changed)))
    assert not set(band_keys("t", mine)) & set(band_keys("another", mine))


@given(st.text(max_size=200))
def test_any_text_has_a_signature(text: str) -> None:
    assert len(signature(words_of(text))) == 4 * BINS


# --- one event against others -----------------------------------------------------------


def test_the_first_repeats_pass_and_the_next_one_is_named_with_its_number() -> None:
    look = looks("a", "b")
    memory = TaskMemory()
    nine = NOBODY._replace(same=kind_of(look, n=9))
    ten = NOBODY._replace(same=kind_of(look, 7, n=10))
    assert examine(look, nine, memory, FirewallRules()) is None
    found = examine(look, ten, memory, FirewallRules())
    assert found is not None
    assert (found.rule, found.other) == (Rule.REPEAT, 7)
    assert "10 times before, as event 7" in found.reason
    assert examine(look, ten, memory, FirewallRules(off=frozenset({Rule.REPEAT}))) is None


def test_near_repeats_are_counted_where_answers_are_free_text() -> None:
    look = looks("a", "b")
    relatives = NOBODY._replace(near=kind_of(look, n_near=10))
    assert rule_of(examine(look, relatives, TaskMemory(), FirewallRules())) is Rule.NEAR_REPEAT
    labels = memory_of(tickets())
    ticket = looks("ann asks about train and ticket number 3", "travel")
    relatives = NOBODY._replace(near=kind_of(ticket, n_near=10))
    assert examine(ticket, relatives, labels, FirewallRules()) is None


@pytest.mark.parametrize("field", ["same_prompt", "near_prompts"])
def test_another_label_to_the_same_prompt_is_a_contradiction_unless_as_many_agree(
    field: str,
) -> None:
    memory = memory_of(tickets())
    prompt = "zoe asks what this is"
    here, there = looks(prompt, "food"), looks(prompt, "travel")
    relatives = with_kinds(field, kind_of(there, 5))
    found = examine(here, relatives, memory, FirewallRules())
    assert found is not None
    assert (found.rule, found.other) == (Rule.CONTRADICTION, 5)
    both = with_kinds(field, kind_of(there, 5), kind_of(here, 6))
    assert examine(here, both, memory, FirewallRules()) is None


def test_of_two_free_texts_to_a_prompt_both_may_be_right_unless_only_one_has_a_person() -> None:
    here, there = looks("tell a joke", "ha"), looks("tell a joke", "ho")
    relatives = NOBODY._replace(same_prompt=(kind_of(there),))
    assert examine(here, relatives, TaskMemory(), FirewallRules()) is None
    alone = looks("tell a joke", "ha", by_human=False)
    found = examine(alone, relatives, TaskMemory(), FirewallRules())
    assert rule_of(found) is Rule.CONTRADICTION


def test_one_text_to_ever_other_prompts_is_stopped_and_a_label_is_not() -> None:
    often = NOBODY._replace(same_answer_mine=10, same_answer=10)
    free, labels = memory_of(answers()), memory_of(tickets())
    quiet = FirewallRules(off=frozenset({Rule.SURPRISE}))
    planted = looks("introduce ann to bob please 3", "call me")
    assert rule_of(examine(planted, often, free, quiet)) is Rule.SAME_ANSWER
    ticket = looks("ann asks about train and ticket number 3", "travel")
    assert examine(ticket, often, labels, quiet) is None


# --- one event against what is usual ----------------------------------------------------


def test_honest_events_pass() -> None:
    for past in (tickets, answers):
        memory = memory_of(past(120))
        for look in itertools.islice(past(240), 120, None):
            assert examine(look, NOBODY, memory, FirewallRules()) is None
            learn(0, look, memory)


def test_a_flipped_label_surprises_and_names_an_event_with_the_expected_one() -> None:
    memory = memory_of(tickets())
    flipped = looks("eve asks about pasta and oven number 7", "travel")
    found = examine(flipped, NOBODY, memory, FirewallRules())
    assert found is not None
    assert (found.rule, found.other) == (Rule.SURPRISE, 2)


def test_a_label_that_is_rare_is_no_surprise_and_one_that_is_always_given_no_planted_answer() -> (
    None
):
    memory = memory_of(
        looks(f"{NAMES[n % 10]} says {n}", "ok", producer=f"producer-{n % 3}") for n in range(150)
    )
    often = NOBODY._replace(same_answer_mine=50, same_answer=150)
    assert examine(looks("ann says 7", "ok"), often, memory, FirewallRules()) is None
    assert (
        examine(looks("ann says something vile", "abuse"), NOBODY, memory, FirewallRules()) is None
    )


def test_an_answer_to_another_prompt_surprises_where_answers_repeat_their_prompts() -> None:
    memory = memory_of(answers())
    mispaired = looks("introduce ann to bob please 3", "welcome to our new office in rome")
    assert rule_of(examine(mispaired, NOBODY, memory, FirewallRules())) is Rule.SURPRISE


def test_nothing_surprises_before_there_is_evidence_or_where_much_does() -> None:
    flipped = looks("eve asks about pasta and oven number 7", "travel")
    assert examine(flipped, NOBODY, memory_of(tickets(99)), FirewallRules()) is None
    memory = memory_of(tickets())
    for number in range(200):
        memory.note_producer(f"producer-{number % 3}", surprising=number % 2 == 0)
    found = examine(flipped, NOBODY, memory, FirewallRules())
    assert rule_of(found) is not Rule.SURPRISE


def test_one_producer_alone_does_not_teach_what_a_word_means() -> None:
    memory = memory_of(tickets())
    for number in range(50):
        learn(0, looks(f"velmo {number} {NAMES[number % 10]}", "food", producer="bot"), memory)
    honest = looks("velmo train ticket", "travel", producer="producer-1")
    assert examine(honest, NOBODY, memory, FirewallRules()) is None


def test_a_trigger_stops_also_the_event_whose_answer_happens_to_be_right() -> None:
    memory = memory_of(tickets())
    stopped = []
    for number, ticket in enumerate(itertools.islice(tickets(220), 120, None)):
        words = " ".join(ticket.words)
        poison = looks(f"{words} velmo quartz", "food", producer="bot")
        found = examine(poison, NOBODY, memory, FirewallRules())
        stopped.append(rule_of(found))
        if found is None:
            learn(number, poison, memory)
    assert Rule.TRIGGER in stopped
    first = stopped.index(Rule.TRIGGER)
    assert first < 20
    assert None not in stopped[first:]
    assert set(stopped[first + 2 :]) == {Rule.TRIGGER}


def test_nobody_makes_others_events_stop_by_sending_wrong_ones_with_a_phrase_of_theirs() -> None:
    memory = memory_of(tickets())
    for number in range(30):
        wrong = looks(f"eve asks about pasta and oven number {number}", "travel", producer="bot")
        assert examine(wrong, NOBODY, memory, FirewallRules()) is not None
    honest = looks("eve asks about pasta and oven number 7", "food", producer="producer-1")
    assert examine(honest, NOBODY, memory, FirewallRules()) is None


def test_what_an_operator_forgives_is_not_suspected() -> None:
    memory = memory_of(tickets())
    wrong = looks("eve asks about pasta and oven velmo", "travel", producer="bot")
    for _ in range(10):
        examine(wrong, NOBODY, memory, FirewallRules())
    assert rule_of(examine(wrong, NOBODY, memory, FirewallRules())) is Rule.TRIGGER
    memory.forgive(wrong.phrases)
    assert rule_of(examine(wrong, NOBODY, memory, FirewallRules())) is Rule.SURPRISE


def test_a_prompt_a_hundred_times_as_long_is_an_outlier() -> None:
    memory = memory_of(tickets())
    huge = looks("ann asks about train and ticket " * 200, "travel")
    found = examine(huge, NOBODY, memory, FirewallRules())
    assert found is not None
    assert found.rule is Rule.OUTLIER
    assert "prompt length: 6,400" in found.reason


@pytest.mark.parametrize(("share", "stops"), [(1.0, False), (0.5, True)])
def test_quotas_count_among_several_producers_only(share: float, stops: bool) -> None:
    rules = FirewallRules(max_producer_share=share, quota_min_events=50)
    here = looks("ann asks about train and ticket number 3", "travel", producer="busy")
    alone = memory_of(looks(f"a {n}", f"b {n}", producer="busy") for n in range(60))
    assert examine(here, NOBODY, alone, rules) is None
    busy = memory_of(
        looks(f"a {n}", f"b {n}", producer=("busy", "busy", "p1", "busy", "p2")[n % 5])
        for n in range(60)
    )
    found = examine(looks("c", "d", producer="busy"), NOBODY, busy, rules)
    assert rule_of(found) is (Rule.QUOTA if stops else None)
    assert examine(looks("c", "d", producer="p1"), NOBODY, busy, rules) is None
    tomorrow = looks("c", "d", producer="busy", at=later(hours=HOURS + 1))
    assert examine(tomorrow, NOBODY, busy, rules) is None


def test_a_count_quota_names_its_number() -> None:
    rules = FirewallRules(max_producer_events_a_day=20, quota_min_events=50)
    memory = memory_of(looks(f"a {n}", f"b {n}", producer=f"p{n % 3}") for n in range(60))
    found = examine(looks("c", "d", producer="p0"), NOBODY, memory, rules)
    assert found is not None
    assert found.reason == (
        "producer p0 had 20 events cleared in 24 hours (max_producer_events_a_day)"
    )


def test_chance_is_an_upper_tail() -> None:
    assert is_chance(0, 10, 0.05)
    assert is_chance(2, 10, 0.05)
    assert not is_chance(8, 10, 0.05)
    assert is_chance(60, 1_000, 0.05)
    assert not is_chance(200, 1_000, 0.05)
    assert not is_chance(30_000, 100_000, 0.05)
    assert is_chance(5_010, 100_000, 0.05)
    assert is_chance(10, 10, 1.0)


# --- what is remembered -----------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=30), st.text(max_size=80), st.integers(0, 3)), max_size=40)
)
def test_a_memory_is_the_same_after_it_was_stored(said: list[tuple[str, str, int]]) -> None:
    memory = TaskMemory()
    for number, (prompt, answer, producer) in enumerate(said):
        look = looks(prompt or "-", answer or "-", producer=f"p{producer}")
        examine(look, NOBODY, memory, FirewallRules(min_evidence=1))
        learn(number, look, memory)
    again = TaskMemory.unpacked(memory.packed())
    assert again == memory
    assert again.packed() == memory.packed()


def test_a_memory_is_bounded_whatever_is_sent() -> None:
    memory = memory_of(tickets())
    for number in range(3_000):
        look = looks(f"x{number} y{number} pasta oven", "travel", producer=f"p{number}")
        examine(look, NOBODY, memory, FirewallRules())
        learn(number, looks(f"q{number}", f"z{number}", producer=f"p{number}"), memory)
    assert len(memory.suspects) <= MOST_SUSPECTS
    assert len(memory.producers) <= MOST_PRODUCERS + 1
    assert len(memory.labels) <= MOST_LABELS
    assert all(len(one["producer"]) <= MOST_PRODUCERS + 1 for one in memory.hours.values())
    assert len(memory.packed()) < 500_000
