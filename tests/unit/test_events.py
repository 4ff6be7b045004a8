"""The event models: what is read, what is refused, and which two events are the same."""

import json
from datetime import timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from learning.events import (
    FeedbackEvent,
    OutputEvent,
    answer_text,
    conversation,
    group_key,
    prompt_key,
)
from tests.builders import feedback, output

SENT = {
    "producer": "studio",
    "task_id": "t-1",
    "task_type": "normalize",
    "prompt": "weather in paris tmrw",
    "output": "weather paris tomorrow",
}


def read(**fields: Any) -> OutputEvent:
    return OutputEvent.model_validate_json(json.dumps({**SENT, **fields}))


def read_feedback(**fields: Any) -> FeedbackEvent:
    sent = {"producer": "p", "task_id": "t-1", "task_type": "normalize", **fields}
    return FeedbackEvent.model_validate_json(json.dumps(sent))


# --- reading --------------------------------------------------------------------------


def test_camel_case_and_snake_case_are_read_alike() -> None:
    camel = {
        "eventId": "e-1",
        "producer": "p",
        "taskId": "t-1",
        "taskType": "audio",
        "prompt": "hello",
        "output": "hi",
        "modelVersion": "v1.0.1",
        "splitGroup": "g",
    }
    snake = {
        "event_id": "e-1",
        "producer": "p",
        "task_id": "t-1",
        "task_type": "audio",
        "prompt": "hello",
        "output": "hi",
        "model_version": "v1.0.1",
        "split_group": "g",
    }

    assert OutputEvent.model_validate_json(json.dumps(camel)) == OutputEvent.model_validate_json(
        json.dumps(snake)
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"confidence": "0.9"},
        {"confidence": True},
        {"confidence": 1.01},
        {"confidence": -0.01},
        {"approved": "true"},
        {"approved": 1},
        {"aproved": False},  # read as "no verdict" it could train
        {"schema_version": 2},
        {"schema_version": "1"},
        {"producer": ""},
        {"producer": "a b"},
        {"producer": "../../etc"},
        {"task_type": "a/b"},
        {"task_type": "x" * 65},
        {"task_id": ""},
        {"task_id": 7},
        {"task_id": "x" * 257},
        {"timestamp": "2026-03-01T12:00:00"},  # no time zone
        {"output": None},
        {"output": 7},
        {"prompt": None},
        {"context": []},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ],
)
def test_what_breaks_the_contract_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        read(**fields)


@pytest.mark.parametrize(
    "text",
    [
        '"confidence": NaN',
        '"confidence": Infinity',
        '"confidence": 1e999',
    ],
)
def test_a_confidence_that_is_no_number_is_refused(text: str) -> None:
    body = json.dumps(SENT)[:-1] + ", " + text + "}"

    with pytest.raises(ValidationError):
        OutputEvent.model_validate_json(body)


@pytest.mark.parametrize(
    "roles",
    [["user"], ["assistant"], ["assistant", "user"], ["system", "assistant"], ["user", "tool"]],
)
def test_a_conversation_needs_a_question_and_ends_with_the_answer(roles: list[str]) -> None:
    sent = {**SENT, "messages": [{"role": role, "content": "x"} for role in roles]}
    del sent["prompt"], sent["output"]

    with pytest.raises(ValidationError):
        OutputEvent.model_validate_json(json.dumps(sent))


@pytest.mark.parametrize(
    "fields",
    [
        {"feedback": {"user_rating": 0}},
        {"feedback": {"user_rating": 6}},
        {"feedback": {"user_rating": 4.5}},
        {"feedback": {"engagement_metrics": {"bad name": 1}}},
        {"feedback": {"quality_metrics": {f"m{i}": 1 for i in range(65)}}},
        {"adaptation": {"trust_delta": 1.5}},
        {"adaptation": {"confidence_adjustment": -2}},
        {"rating": 5},
    ],
)
def test_feedback_is_bounded_in_every_number(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        read_feedback(**fields)


def test_feedback_reads_the_numbers_of_the_contract() -> None:
    event = read_feedback(
        feedback={"userRating": 5, "engagementMetrics": {"chat_emotes": 12}},
        adaptation={"trustDelta": 0.1, "moodAdjustment": "calmer"},
    )

    assert event.feedback.user_rating == 5
    assert event.feedback.engagement_metrics == {"chat_emotes": 12}
    assert event.adaptation.mood_adjustment == "calmer"


# --- the same event -------------------------------------------------------------------

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Lone surrogates cannot arrive: no JSON reader accepts them.
    | st.text(st.characters(codec="utf-8"), max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
events = st.builds(
    output,
    task_id=st.text("abc123", min_size=1, max_size=5),
    prompt=texts,
    output=texts
    | st.lists(json_values, max_size=3)
    | st.dictionaries(st.text("abc", max_size=3), json_values, max_size=3),
    context=st.dictionaries(st.text("abc", max_size=3), json_values, max_size=3),
    approved=st.none() | st.booleans(),
    confidence=st.none() | st.floats(0, 1),
    split_group=st.none() | st.text("ab", min_size=1, max_size=2),
    timestamp=st.none() | st.datetimes(timezones=offsets),
)


@given(events)
def test_what_is_stored_of_an_event_reads_back_as_the_same_event(event: OutputEvent) -> None:
    stored = event.model_dump_json(exclude_none=True)

    again = OutputEvent.model_validate_json(stored)

    assert again == event
    assert again.content_hash() == event.content_hash()
    assert (prompt_key(again), group_key(again)) == (prompt_key(event), group_key(event))


def test_the_content_hash_does_not_look_at_the_id_but_at_everything_else() -> None:
    one = read(event_id="e-1")

    assert read(event_id="e-2").content_hash() == one.content_hash()
    assert read(event_id="e-1", approved=None).content_hash() == one.content_hash()
    assert read(event_id="e-1", approved=False).content_hash() != one.content_hash()
    assert read(event_id="e-1", context={"mood": None}).content_hash() != one.content_hash()
    assert feedback(confidence=0.1).content_hash() != feedback(confidence=0.2).content_hash()
    assert feedback(event_id="e-1").content_hash() == feedback(event_id="e-2").content_hash()


# --- keys of the split ----------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    ["Weather in PARIS", " weather  in\tparis\n", "weather in paris", "WEATHER\u00a0IN PARIS"],
)
def test_prompts_that_differ_in_case_and_white_space_have_one_key(prompt: str) -> None:
    assert prompt_key(read(prompt=prompt)) == prompt_key(read(prompt="weather in paris"))


def test_other_prompts_have_other_keys() -> None:
    assert prompt_key(read(prompt="weather in paris")) != prompt_key(read(prompt="weather inparis"))


def test_a_conversation_has_the_key_of_everything_before_the_answer() -> None:
    def asked(*contents: str) -> bytes:
        turns = [{"role": "user", "content": content} for content in contents]
        sent = {**SENT, "messages": [*turns, {"role": "assistant", "content": "x"}]}
        del sent["prompt"], sent["output"]
        return prompt_key(OutputEvent.model_validate_json(json.dumps(sent)))

    assert asked("Weather in Paris") == prompt_key(read(prompt="weather in paris"))
    assert asked("hello", "weather in paris") != asked("weather in paris")


@given(texts.filter(bool))
def test_a_split_group_is_never_taken_for_a_prompt_of_the_same_words(text: str) -> None:
    assert group_key(output(split_group=text)) != prompt_key(output(prompt=text))
    assert group_key(output(split_group=text)) != prompt_key(output(prompt=f"split group\n{text}"))


def test_an_event_without_a_split_group_has_no_group_key() -> None:
    assert group_key(output()) is None


# --- what is trained ------------------------------------------------------------------


def test_a_json_output_is_trained_in_its_compact_form() -> None:
    event = read(output={"b": [1, None], "a": "é"})

    assert answer_text(event) == '{"b":[1,null],"a":"é"}'
    assert conversation(event) == [
        {"role": "user", "content": "weather in paris tmrw"},
        {"role": "assistant", "content": '{"b":[1,null],"a":"é"}'},
    ]
