"""Which rejected outputs a batch learns from, and what each is held against."""

from hypothesis import given
from hypothesis import strategies as st

from learning.lifecycle import Role
from learning.preferences import (
    Answer,
    Answers,
    Lesson,
    Objective,
    Rejected,
    RejectedUse,
    in_turns,
)
from learning.sampling import SplitRules, rejected_quota

PROMPT, OTHER, GROUP = b"prompt", b"other", b"group"
BAD = Rejected(9, "coding", (PROMPT,), "wrong")


def answer(event_id: int, text: str, prompt: bytes = PROMPT, task_type: str = "coding") -> Answer:
    return Answer(event_id, task_type, prompt, text)


def test_a_pair_is_a_rejected_answer_and_an_approved_one_to_the_same_prompt() -> None:
    answers = Answers([answer(1, "right"), answer(2, "else", OTHER)])
    assert answers.lesson(BAD, Objective.DPO) == Lesson(rejected_id=9, preferred_id=1)


def test_the_newest_correction_is_the_better_answer() -> None:
    answers = Answers([answer(4, "best"), answer(5, "better still"), answer(3, "first try")])
    assert answers.lesson(BAD, Objective.DPO) == Lesson(9, 5)


def test_without_an_answer_to_its_prompt_there_is_no_pair() -> None:
    assert Answers([answer(1, "right", OTHER)]).lesson(BAD, Objective.DPO) is None
    assert Answers([]).lesson(BAD, Objective.DPO) is None


def test_an_answer_of_another_task_type_is_no_correction() -> None:
    other = Answers([answer(1, "right", task_type="audio")])
    assert other.lesson(BAD, Objective.DPO) is None


def test_kto_learns_from_a_rejected_answer_by_itself() -> None:
    assert Answers([answer(1, "right")]).lesson(BAD, Objective.KTO) == Lesson(9, None)
    assert Answers([]).lesson(BAD, Objective.KTO) == Lesson(9, None)


def test_nothing_is_learned_from_a_prompt_or_a_group_that_is_held_out() -> None:
    grouped = Rejected(9, "coding", (PROMPT, GROUP), "wrong")
    answers = Answers([])
    assert answers.use_of(grouped, {PROMPT: Role.HELD_OUT}) is RejectedUse.HELD_OUT
    assert answers.use_of(grouped, {GROUP: Role.HELD_OUT, PROMPT: Role.TRAIN}) is (
        RejectedUse.HELD_OUT
    )
    assert answers.use_of(grouped, {GROUP: Role.TRAIN}) is RejectedUse.FREE
    assert answers.use_of(grouped, {}) is RejectedUse.FREE


def test_an_answer_that_is_approved_and_rejected_teaches_nothing() -> None:
    answers = Answers([answer(1, "wrong"), answer(2, "right")])
    assert answers.use_of(BAD, {}) is RejectedUse.UNFIT
    assert Answers([answer(1, "wrong", OTHER)]).use_of(BAD, {}) is RejectedUse.FREE


def test_each_prompt_gets_its_turn_before_any_gets_a_second() -> None:
    assert list(in_turns([[9, 8, 7], [], [6], [5, 4]])) == [9, 6, 5, 8, 4, 7]
    assert list(in_turns([])) == []


@given(st.lists(st.lists(st.integers(1, 10**6), unique=True)))
def test_taking_turns_loses_and_doubles_nothing(by_prompt: list[list[int]]) -> None:
    assert sorted(in_turns(by_prompt)) == sorted(id for ids in by_prompt for id in ids)


@given(st.permutations([answer(n, f"answer {n}", bytes([n % 3])) for n in range(9)]))
def test_the_choice_does_not_depend_on_the_order_of_the_rows(found: list[Answer]) -> None:
    answers = Answers(found)
    lessons = [
        answers.lesson(Rejected(100 + key, "coding", (bytes([key]),), "bad"), Objective.DPO)
        for key in range(3)
    ]
    assert lessons == [Lesson(100, 6), Lesson(101, 7), Lesson(102, 8)]
    assert answers.prompts == [("coding", bytes([key])) for key in (2, 1, 0)]


def test_rejected_outputs_are_at_most_a_share_of_the_rows() -> None:
    assert rejected_quota(20, SplitRules()) == 20
    assert rejected_quota(20, SplitRules(rejected_share=0.2)) == 5
    assert rejected_quota(20, SplitRules(rejected_share=0.0)) == 0
    assert rejected_quota(0, SplitRules()) == 0
