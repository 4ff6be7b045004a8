"""The validators that ship, and what happens when one from outside breaks."""

from typing import Any

import pytest

from learning.events import Message, OutputEvent
from learning.judge import Judge
from learning.lifecycle import EventState
from learning.policy import Policy
from learning.validators import built_in, complaints
from learning.validators.emptiness import NotEmpty
from learning.validators.length import Length
from tests.builders import output

INVISIBLE = ["", " ", "\n\t ", "\u00a0", "\u200b", "\ufeff", "\u2060\u200d", "\x07"]


@pytest.mark.parametrize("blank", INVISIBLE)
def test_an_output_without_a_visible_character_is_blank(blank: str) -> None:
    assert NotEmpty().check(output(output=blank)) == "the output is blank"


@pytest.mark.parametrize("blank", INVISIBLE)
def test_a_prompt_without_a_visible_character_is_blank(blank: str) -> None:
    assert NotEmpty().check(output(prompt=blank)) == "the prompt is blank"


@pytest.mark.parametrize("answer", ["x", " x ", "0", "。", "👍", {}, [], {"a": None}])
def test_anything_visible_is_an_output_and_so_is_any_json(answer: Any) -> None:
    assert NotEmpty().check(output(output=answer)) is None


def conversation(*turns: tuple[str, str]) -> OutputEvent:
    messages = [Message.model_validate({"role": r, "content": c}) for r, c in turns]
    return output(prompt=None, output=None, messages=messages)


def test_a_conversation_in_which_the_user_says_nothing_is_blank() -> None:
    silent = conversation(("system", "be kind"), ("user", " "), ("assistant", "hello"))
    mute = conversation(("user", "hello"), ("assistant", "\n"))
    spoken = conversation(("user", " "), ("user", "hello"), ("assistant", "hello"))

    assert NotEmpty().check(silent) == "the prompt is blank"
    assert NotEmpty().check(mute) == "the output is blank"
    assert NotEmpty().check(spoken) is None


def test_an_output_may_be_as_long_as_the_limit_and_no_longer() -> None:
    assert Length(3).check(output(output="abc")) is None
    assert Length(3).check(output(output="abcd")) == (
        "the output has 4 characters, at most 3 may train"
    )


def test_a_json_output_is_measured_as_the_text_that_is_trained() -> None:
    assert Length(7).check(output(output={"a": 1})) is None
    assert Length(6).check(output(output={"a": 1})) is not None


def test_every_complaint_names_its_validator() -> None:
    found = complaints(output(prompt=" ", output="x" * 11), built_in(max_output_characters=10))

    assert found == [
        "not_empty: the prompt is blank",
        "length: the output has 11 characters, at most 10 may train",
    ]


class Broken:
    """A validator from outside with a defect."""

    name = "broken"

    def check(self, event: OutputEvent) -> str | None:
        raise KeyError("mood" * 1_000)


def test_a_validator_that_breaks_quarantines_the_event_and_stops_nothing() -> None:
    verdict = Judge(Policy, [Broken(), Length(1)])(output(output="abc"))

    assert verdict.state is EventState.QUARANTINED
    assert "broken: broke on it: KeyError: 'mood" in verdict.reason
    assert "length: the output has 3 characters" in verdict.reason
    assert len(verdict.reason) < 500


def test_the_judge_asks_for_the_policy_of_the_moment() -> None:
    policies = iter([Policy(min_confidence=0.5), Policy(min_confidence=0.9)])
    judge = Judge(lambda: next(policies), [])
    event = output(confidence=0.7)

    assert judge(event).state is EventState.QUEUED
    assert judge(event).state is EventState.HELD
