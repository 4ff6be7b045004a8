"""Advice follows from numbers, names them, and says what to type (LP7)."""

import shlex
from dataclasses import replace

import pytest
import typer

from daemon.cli import app
from learning.policy import Policy
from learning.recommendations import (
    RULES,
    Recommendation,
    Situation,
    Undecided,
    WaitingQueue,
    recommend,
)
from learning.statistics import Activity, Direction, FeedbackCounts, Issue, OutputCounts, Trend

DAY = "the last 24 h"


def issue(name: str, reason: str = "31 of 80 judged outputs of coding were rejected") -> Issue:
    return Issue(name, "coding", 31, 80, reason)


def waiting(**changes: object) -> WaitingQueue:
    queue = WaitingQueue("coding", "coding", 14, 2_400.0, is_idle=True, has_base_model=True)
    return replace(queue, **changes)  # type: ignore[arg-type]


SURE = Activity(OutputCounts(outputs=200, confidence_sum=194.0, confidence_n=200, approved=30))
CASES: list[tuple[Situation, list[str]]] = [
    (Situation(DAY), []),
    (Situation(DAY, issues=[issue("many_rejections")]), ["raise_thresholds"]),
    (
        Situation(
            DAY,
            policy=Policy(feedback_threshold=0.8, min_confidence=0.85),
            issues=[issue("many_rejections")],
        ),
        [],
    ),
    (Situation(DAY, issues=[issue("high_low_ratings")]), ["review_prompts"]),
    (
        Situation(DAY, issues=[issue("polarised_ratings"), issue("falling_engagement")]),
        ["review_prompts"],
    ),
    (
        Situation(
            DAY, trends=[Trend("rating", Direction.WORSENING, 4, 3, 90, 90, 0.001, "x", "coding")]
        ),
        ["review_prompts"],
    ),
    (
        Situation(
            DAY, trends=[Trend("rating", Direction.IMPROVING, 3, 4, 90, 90, 0.001, "x", "coding")]
        ),
        [],
    ),
    (Situation(DAY, issues=[issue("confident_rejected")]), []),
    (
        Situation(
            DAY, policy=Policy(enable_auto_approval=True), issues=[issue("confident_rejected")]
        ),
        ["stop_auto_approval"],
    ),
    (Situation(DAY, issues=[issue("low_confidence_approved")]), ["lower_thresholds"]),
    (Situation(DAY, queues=[waiting()]), ["flush"]),
    (Situation(DAY, queues=[waiting(oldest_seconds=1_700.0)]), []),
    (Situation(DAY, queues=[waiting(is_idle=False)]), []),
    (Situation(DAY, queues=[waiting(has_base_model=False)]), ["name_base_model"]),
    (Situation(DAY, held={"coding": 50, "audio": 49}), ["judge_held"]),
    (Situation(DAY, undecided=[Undecided("coding", "coding", 5, 32)]), ["label_examples"]),
    (Situation(DAY, runs_succeeded=8, runs_failed=2), ["look_at_runs"]),
    (Situation(DAY, runs_succeeded=0, runs_failed=2), []),
    (Situation(DAY, runs_succeeded=9, runs_failed=1), []),
    (Situation(DAY, recent={"coding": SURE}, held={"coding": 3}), ["start_auto_approval"]),
    (Situation(DAY, recent={"coding": SURE}), []),
    (
        Situation(
            DAY,
            recent={"coding": replace(SURE, feedback=FeedbackCounts(late_no=10))},
            held={"coding": 3},
        ),
        [],
    ),
]


@pytest.mark.parametrize(("situation", "rules"), CASES)
def test_a_rule_speaks_when_its_numbers_say_so(situation: Situation, rules: list[str]) -> None:
    assert [one.rule for one in recommend(situation)] == rules


def test_each_rule_has_a_case() -> None:
    told = {one.rule for situation, _ in CASES for one in recommend(situation)}
    assert told == {rule.__name__ for rule in RULES} | {"name_base_model"}


def test_advice_names_the_number_and_the_command() -> None:
    (found,) = recommend(Situation(DAY, issues=[issue("many_rejections")]))
    assert str(found) == (
        "Consider increasing validation thresholds: 31 of 80 judged outputs of coding were rejected"
        " in the last 24 h, and policy.feedback_threshold is 0.7;"
        " learnd settings set policy.feedback_threshold=0.8"
    )
    (found,) = recommend(Situation(DAY, queues=[waiting()]))
    assert str(found) == (
        "Consider flushing the fine-tune queue: 14 events of coding wait, the oldest since 40 min;"
        " learnd flush --task-type coding"
    )


@pytest.mark.parametrize(
    "advice", [one for situation, _ in CASES for one in recommend(situation)], ids=lambda a: a.rule
)
def test_every_command_is_one_that_learnd_knows(advice: Recommendation) -> None:
    program, *words = shlex.split(advice.command)
    assert program == "learnd"
    command = typer.main.get_command(app)
    context = typer.Context(command)
    while (found := getattr(command, "commands", {}).get(words[0] if words else None)) is not None:
        command, words = found, words[1:]
        context = typer.Context(command, parent=context)
    known = {option for one in command.params for option in one.opts}
    assert {word for word in words if word.startswith("--")} <= known
