"""The stream of bench.continual is what its header claims."""

from collections import Counter

import pytest

from bench.continual_stream import NOISE_SHARE, TASKS, WRONG_APPROVALS, end_of, exam, stream

EVENTS = stream(2_400, seed=1)


def test_the_same_seed_makes_the_same_stream_and_another_one_another() -> None:
    assert stream(200, seed=1) == stream(200, seed=1) != stream(200, seed=2)


def test_no_prompt_comes_twice_and_none_is_in_the_exam() -> None:
    questions = exam(40, EVENTS, seed=1)

    prompts = [one.prompt for one in [*EVENTS, *questions]]
    assert len(prompts) == len(set(prompts))
    assert Counter(one.task_type for one in questions) == dict.fromkeys(TASKS, 40)
    assert all(one.output == one.right for one in questions)


def test_each_task_type_has_its_time() -> None:
    for task_type in TASKS:
        places = [n / len(EVENTS) for n, one in enumerate(EVENTS) if one.task_type == task_type]
        assert len(places) > 200
        assert sum(place < end_of(task_type) for place in places) > 0.9 * len(places)


def test_the_phrases_of_a_task_type_change_in_its_time() -> None:
    of_coding = [one.prompt.split()[0] for one in EVENTS if one.task_type == "coding"]
    early, late = Counter(of_coding[:100]), Counter(of_coding[-100:])

    assert early["add"] > 3 * late["add"]
    assert late["first"] > 1.5 * early["first"]


def test_noise_has_low_confidence_and_one_in_twenty_of_the_rest_is_wrong() -> None:
    noise = [one for one in EVENTS if one.confidence < 0.7]
    rest = [one for one in EVENTS if one.confidence >= 0.7]

    assert len(noise) / len(EVENTS) == pytest.approx(NOISE_SHARE, abs=0.03)
    assert sum(one.output != one.right for one in noise) > len(noise) / 2
    wrong = sum(one.output != one.right for one in rest) / len(rest)
    assert wrong == pytest.approx(WRONG_APPROVALS, abs=0.02)
    assert all(one.clean == (one.output == one.right) for one in rest)
